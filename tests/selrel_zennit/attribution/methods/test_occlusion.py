"""Occlusion against Captum and by hand."""

import pytest
import torch

import selrel_zennit as sr
from networks import small_c3d

HOT = sr.one_hot(1, 5)


def occlude(model, clip, **options):
    return sr.build_method("occlusion", model, **options)(clip, HOT.to(clip.dtype).expand(len(clip), -1))[1]


@pytest.mark.parametrize(
    ("window", "stride", "batch"),
    [
        ((4, 8, 8), None, 3),
        ((4, 8, 8), (3, 4, 8), 5),  # windows overlap, and do not fit evenly
        ((16, 5, 6), (16, 5, 5), 1),
        ((16, 16, 16), (1, 1, 1), 4),
    ],
)
@pytest.mark.parametrize("fill", ["mean", "black"])
def test_occlusion_equals_captum(window, stride, batch, fill, clip):
    from captum.attr import Occlusion

    model = small_c3d().double()
    clips = torch.cat([clip, clip.flip(2) * 0.5]).double()
    baseline = 0.0
    if fill == "black":
        baseline = torch.tensor([-102.0, -98.0, -90.0]).double().view(1, 3, 1, 1, 1).expand(1, -1, 16, 16, 16)
    expected = Occlusion(model).attribute(clips, (3, *window), (3, *(stride or window)), baselines=baseline, target=1)
    relevance = occlude(model, clips, window=window, stride=stride, fill=fill, batch=batch)
    # Captum writes the drop of the logit on every channel; here the channels sum to it. It counts in float32.
    assert torch.allclose(relevance.sum(1), expected[:, 0].double(), rtol=1e-5, atol=1e-9)
    assert relevance.abs().sum() > 0


def test_occlusion_is_the_drop_of_the_logit(clip):
    model = small_c3d()
    covered = clip.clone()
    tensor = torch.full((3, 1, 1, 1), 7.0)
    covered[:, :, 8:, 8:, :8] = 7.0
    drop = (model(clip) - model(covered))[0, 1]
    relevance = occlude(model, clip, window=(8, 8, 8), fill=tensor)
    assert torch.allclose(relevance[0, :, 8:, 8:, :8].sum(0), drop.expand(8, 8, 8), rtol=1e-4)


def test_occlusion_makes_no_graph_and_asks_for_the_target_once(clip):
    model = small_c3d()
    modes, seen = [], []
    handle = model.fc8.register_forward_hook(lambda *_: modes.append(torch.is_grad_enabled()))

    def target(logits):
        seen.append(logits)
        return HOT

    logits = sr.build_method("occlusion", model, window=(8, 8, 8), batch=3)(clip, target)[0]
    handle.remove()
    assert modes == [False] * 4  # the clip, and 8 windows, three at a time
    assert len(seen) == 1
    assert torch.equal(logits, model(clip))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": (0, 4, 4)}, "window must be a whole number of at least 1"),
        ({"window": (4, 4)}, "window must be three whole numbers"),
        ({"window": 4}, "window must be three whole numbers"),
        ({"stride": (0, 1, 1)}, "stride must be a whole number"),
        ({"fill": "grey"}, "fill must be 'mean' or 'black'"),
        ({"batch": 0}, "batch must"),
        ({"window": (17, 4, 4)}, "window of 17 does not fit into a clip of 16"),
        ({"window": (4, 4, 4), "stride": (4, 5, 4)}, "stride of 5 leaves gaps between windows of 4"),
        ({"fill": torch.zeros(2)}, "does not broadcast"),
    ],
)
def test_bad_options(options, message, clip):
    with pytest.raises(sr.InputError, match=message) as error:
        occlude(small_c3d(), clip, **options)
    assert "\n" not in str(error.value)
