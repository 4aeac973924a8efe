"""Motion that adds up: against the sum over all terms written out, in float64, and what must be zero or equal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.attr import DeepLift
from torch import nn
from torch.nn import functional
from zennit.layer import Sum

import selrel_zennit as sr
from helpers import slow_but
from networks import few_layers, small_c3d, snapshot
from selrel_zennit.canonizers import Gate
from selrel_zennit.models.initialise import kaiming

SPEC = sr.ClipSpec(frames=4, short_side=8, crop=8)


def noise(model, seed=0, batch=1, dtype=torch.float64):
    low, high = (torch.from_numpy(np.array(bound)) for bound in model.spec.bounds())
    drawn = torch.rand(batch, *model.spec.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (low + (high - low) * drawn).to(dtype)


def explained(model, clip, **options):
    attributor = sr.build_method("motion_lrp", model, **options)
    logits, relevance = attributor(clip, lambda logits: sr.one_hot(logits.argmax(1), logits.shape[1]).to(logits))
    return attributor, logits, relevance


def middle(clip):
    return clip[:, :, clip.shape[2] // 2 :][:, :, :1].expand_as(clip)


# The same once more: every term w·d of every unit, by the rows of each layer's matrix.


def matrix(layer, shape):
    """A layer without its bias as a matrix [outputs, inputs]."""
    unit = torch.eye(shape.numel(), dtype=torch.float64).reshape(-1, *shape)
    zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
    return (layer(unit) - zero).flatten(1).T


def naive_share(relevance, terms, beta):
    """Relevance [J] over terms [J,I] of changes Σ_i terms: [I]."""
    change = terms.sum(1, keepdim=True)
    sign = torch.where(change >= 0, 1.0, -1.0).double()
    same, against = (terms * sign).clamp(min=0), (-terms * sign).clamp(min=0)
    total, other = same.sum(1, keepdim=True), against.sum(1, keepdim=True)
    taken = torch.where(other > 1e-9 * total, torch.full_like(other, float(beta)), torch.zeros_like(other))
    share = (1 + taken) * same / torch.where(total > 0, total, 1) - taken * against / torch.where(other > 0, other, 1)
    return (relevance[:, None] * share).sum(0)


def naive_linear(layer, a, b, relevance, beta):
    terms = matrix(layer, a.shape[1:]) * (a - b).flatten()[None]
    return naive_share(relevance.flatten(), terms, beta).reshape(a.shape)


def naive_sum(changes, relevance, beta):
    parts = torch.stack([change.flatten() for change in changes], 1)
    made = torch.stack(
        [naive_share(one[None], part[None], beta) for one, part in zip(relevance.flatten(), parts, strict=True)]
    )
    return [made[:, place].reshape(relevance.shape) for place in range(len(changes))]


def naive_max(pool, a, b, relevance):
    made = torch.zeros_like(a)
    (top_a, at_a), (top_b, at_b) = (
        functional.max_pool3d(x, pool.kernel_size, pool.stride, pool.padding, return_indices=True) for x in (a, b)
    )
    for channel in range(a.shape[1]):
        for values in zip(
            *(x[0, channel].flatten().tolist() for x in (top_a, top_b, at_a, at_b, relevance)), strict=True
        ):
            first, second, of_first, of_second, share = values
            made[0, channel].view(-1)[int(of_first if first >= second else of_second)] += share
    return made


class Branched(nn.Module):
    """Two branches that are added, a gate, a batch norm, both kinds of pool, a class layer."""

    cam_layer = "conv2"
    spec = SPEC

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv3d(3, 3, 3, padding=1, stride=(1, 2, 2))
        self.norm = nn.BatchNorm3d(3)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv3d(3, 3, (3, 1, 1), padding=(1, 0, 0))
        self.squeeze, self.excite, self.gate = nn.AdaptiveAvgPool3d(1), nn.Conv3d(3, 3, 1), Gate()
        self.pool = nn.MaxPool3d(2)
        self.mean = nn.AvgPool3d((1, 2, 2), padding=(0, 1, 1))
        self.fc = nn.Linear(3 * 2 * 2 * 2, 4)

    def forward(self, clip):
        low = self.relu(self.norm(self.conv1(clip)))
        high = low + self.conv2(low)
        gated = self.gate(high, self.excite(self.squeeze(high)).sigmoid())
        return self.fc(self.mean(self.pool(gated)).flatten(1))


def drawn(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.4)
            if name.endswith("running_var"):
                value.abs_().add_(0.2)
    return model.double().eval().requires_grad_(False)


def naive_branched(model, a, b, target, beta):
    def states(clip):
        conv1 = model.conv1(clip)
        normed = model.norm(conv1)
        low = normed.relu()
        branch = model.conv2(low)
        high = low + branch
        squeezed = model.squeeze(high)
        gate = model.excite(squeezed).sigmoid()
        gated = high * gate
        pooled = model.pool(gated)
        mean = model.mean(pooled)
        return {
            "clip": clip,
            "low": low,
            "branch": branch,
            "high": high,
            "squeezed": squeezed,
            "gate": gate,
            "gated": gated,
            "pooled": pooled,
            "mean": mean,
            "logits": model.fc(mean.flatten(1)),
        }

    x, y = states(a), states(b)
    weights = torch.full((4,), -1 / 3, dtype=torch.float64)
    weights[target] = 1
    relevance = (x["logits"] - y["logits"])[0] * weights
    relevance = naive_linear(lambda v: model.fc(v.flatten(1)), x["mean"], y["mean"], relevance, beta)
    relevance = naive_linear(model.mean, x["pooled"], y["pooled"], relevance, beta)
    relevance = naive_max(model.pool, x["gated"], y["gated"], relevance)
    wide_x, wide_y = (one["gate"].expand_as(one["high"]) for one in (x, y))
    of_signal = (wide_x + wide_y) / 2 * (x["high"] - y["high"])
    of_gate = (x["high"] + y["high"]) / 2 * (wide_x - wide_y)
    to_high, to_gate = naive_sum([of_signal, of_gate], relevance, beta)
    to_gate = to_gate.sum((2, 3, 4), keepdim=True)
    to_gate = naive_linear(model.excite, x["squeezed"], y["squeezed"], to_gate, beta)
    to_high = to_high + naive_linear(model.squeeze, x["high"], y["high"], to_gate, beta)
    to_low, to_branch = naive_sum([x["low"] - y["low"], x["branch"] - y["branch"]], to_high, beta)
    to_low = to_low + naive_linear(model.conv2, x["low"], y["low"], to_branch, beta)
    return naive_linear(model.conv1, x["clip"], y["clip"], to_low, beta)


@pytest.mark.parametrize("beta", [0, 1, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_all_terms_written_out(beta, seed):
    model = drawn(Branched(), seed)
    clip = noise(model, seed) / 100
    attributor, logits, relevance = explained(model, clip, reference="middle", beta=beta)
    expected = naive_branched(model, clip, middle(clip), int(logits.argmax()), beta)
    torch.testing.assert_close(relevance, expected, rtol=1e-7, atol=1e-10 * float(expected.abs().max()))
    assert float(relevance.sum()) == pytest.approx(float(attributor.margin - attributor.frozen_margins), rel=1e-9)


@pytest.mark.parametrize("reference", ["frames", "middle", "median", "camera"])
@pytest.mark.parametrize("output", ["margin", "logit"])
def test_adds_up_and_is_nothing_where_nothing_moves(reference, output):
    model = few_layers().double()
    clip = noise(model, batch=2)
    attributor, logits, relevance = explained(model, clip, reference=reference, output=output)
    top = logits.argmax(1)
    margin = logits.gather(1, top[:, None])[:, 0]
    if output == "margin":
        margin = margin - (logits.sum(1) - margin) / 4
    torch.testing.assert_close(attributor.margin, margin)
    assert attributor.frozen_margins.shape == (2, 4 if reference in ("frames", "camera") else 1)
    change = attributor.margin - attributor.frozen_margins.mean(1)
    torch.testing.assert_close(relevance.flatten(1).sum(1), change, rtol=1e-9, atol=1e-12)
    assert relevance.abs().max() > 0
    attributor, _, still = explained(model, middle(clip), reference=reference, output=output)
    assert (still == 0).all()
    same = attributor.margin[:, None].expand_as(attributor.frozen_margins)
    assert torch.equal(attributor.frozen_margins, same)


def test_frames_are_averaged_and_frozen_margins_are_the_networks_own():
    model = few_layers().double()
    clip = noise(model)
    attributor, logits, _ = explained(model, clip, reference="frames", frames=2)
    parts = []
    for place, at in enumerate((2, 6)):
        still = clip[:, :, at : at + 1].expand_as(clip)
        found = model(still)[0]
        top = int(logits.argmax())
        margin = found[top] - (found.sum() - found[top]) / 4
        assert float(attributor.frozen_margins[0, place]) == pytest.approx(float(margin), rel=1e-9)
        parts.append(still)
    assert (attributor.references(clip) == torch.stack(parts)).all()


@pytest.mark.slow
def test_single_precision_adds_up_to_five_digits(real_clips):
    model = sr.load_model("demo")
    for path in real_clips.values():
        clip = model.spec.clip(sr.read_frames(path, count=16))
        attributor, _, relevance = explained(model, clip)
        change = float(attributor.margin - attributor.frozen_margins.mean())
        assert float(relevance.double().sum()) == pytest.approx(change, abs=1e-5 * float(relevance.abs().sum()))


@pytest.mark.parametrize(
    "name", slow_but(["c3d", "r2plus1d_18", "s3d", "x3d_s", "tsm_resnet50", "resnet50_lstm", "i3d", "mc3_18"], "x3d_s")
)
def test_adds_up_on_the_networks_of_the_pack(name):
    model = sr.load_model(name, weights="random", num_classes=7).double()
    if name not in ("c3d", "s3d", "i3d"):
        size = 32 if name in ("r2plus1d_18", "mc3_18") else 64
        model.spec = replace(model.spec, short_side=size, crop=size)
    elif name != "c3d":
        model.spec = replace(model.spec, frames=16)
    attributor, _, relevance = explained(model, noise(model), reference="middle")
    change = float(attributor.margin - attributor.frozen_margins)
    assert float(relevance.sum()) == pytest.approx(change, abs=1e-9 * max(1, float(relevance.abs().sum())))
    assert relevance.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_deeplift_of_captum_sums_to_the_same():
    """An outside reference: on a chain without pools, Captum's rescale rule sums to the change, too."""
    model = nn.Sequential(
        nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2 * 36, 3)
    )
    model.spec = SPEC
    kaiming(model, 0)
    model = model.double().eval()
    clip = noise(model) / 50
    _, logits, relevance = explained(model, clip, reference="middle", output="logit")
    target = int(logits.argmax())
    theirs = DeepLift(model).attribute(clip, baselines=middle(clip), target=target)
    assert float(theirs.sum()) == pytest.approx(float(relevance.sum()), rel=1e-6)


def test_dropping_what_is_vacated_leaves_a_stated_rest():
    """A block that stood elsewhere in the reference: the place that it left goes, and the books still balance."""
    model = few_layers().double()
    frames = np.full((8, 16, 16, 3), 90, np.uint8)
    for step in range(8):
        frames[step, 4:8, 2 * step : 2 * step + 3] = 230
    clip = model.spec.clip(frames).double()
    attributor, _, kept = explained(model, clip, reference="middle")
    dropping, _, dropped = explained(model, clip, reference="middle", vacated="drop")
    change = float(attributor.margin - attributor.frozen_margins)
    assert float(kept.sum()) == pytest.approx(change, rel=1e-9)
    assert float(dropped.sum() + dropping.dropped) == pytest.approx(change, rel=1e-9)
    place = torch.zeros(8, 16, 16, dtype=torch.bool)
    place[:, 4:8, 8:11] = True  # where the block is in frame 4
    left = (dropped[0].abs().sum(0) == 0) & (kept[0].abs().sum(0) > 0)
    assert left.any()
    assert not (left & ~place).any()


def test_the_network_is_left_as_it_was():
    model, clip = small_c3d(), noise(small_c3d(), dtype=torch.float32)
    before = snapshot(model, clip)
    explained(model, clip)
    assert snapshot(model, clip) == before


def test_what_it_refuses():
    model = few_layers()
    for options, says in (
        ({"beta": -1}, "beta must be"),
        ({"reference": "first"}, "no reference named 'first'"),
        ({"frames": 0}, "frames must be"),
        ({"output": "probability"}, "output must be"),
        ({"vacated": "maybe"}, "vacated must be"),
    ):
        with pytest.raises(sr.InputError, match=says):
            sr.build_method("motion_lrp", model, **options)
    with pytest.raises(sr.InputError, match="one class"):
        explained(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 16 * 16, 1)).eval(), torch.rand(1, 3, 8, 16, 16))
    with pytest.raises(sr.InputError, match="LayerNorm"):
        sr.build_method("motion_lrp", nn.Sequential(nn.LayerNorm(8)).eval())

    class Product(nn.Sequential):
        def forward(self, clip):
            made = self[0](clip)
            return (made * made.sigmoid()).mean((2, 3, 4))

    network = Product(nn.Conv3d(3, 4, 3)).eval()
    network.spec = model.spec
    with pytest.raises(sr.InputError, match="no rule sees"):
        explained(network, noise(model, dtype=torch.float32))


def test_a_frame_alone_has_no_motion():
    model = nn.Sequential(nn.Conv3d(3, 4, (1, 3, 3)), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
    model = model.eval()
    _, _, relevance = explained(model, torch.rand(1, 3, 1, 8, 8))
    assert (relevance == 0).all()


def test_sums_of_three_share_among_three():
    """zennit.layer.Sum over an axis of three, by hand."""

    class Three(nn.Module):
        spec = SPEC

        def __init__(self):
            super().__init__()
            self.layers, self.sum = nn.ModuleList(nn.Conv3d(3, 2, 1) for _ in range(3)), Sum()

        def forward(self, clip):
            return self.sum(torch.stack([layer(clip) for layer in self.layers], -1)).mean((2, 3, 4))

    model = drawn(Three())
    clip = noise(model) / 50
    attributor, _, relevance = explained(model, clip, reference="middle")
    assert float(relevance.sum()) == pytest.approx(float(attributor.margin - attributor.frozen_margins), rel=1e-9)


# Its neighbours


@pytest.mark.parametrize("output", ["margin", "logit"])
def test_motion_integrated_gradients_add_up_to_the_error_that_they_state(output):
    model = few_layers().double()
    clip = noise(model) / 4
    attributor = sr.build_method("motion_integrated_gradients", model, steps=60, frames=2, output=output)
    _, attribution = attributor(clip, lambda logits: sr.one_hot(logits.argmax(1), 5).to(logits))
    change = float(attributor.margin - attributor.frozen_margins.mean())
    error = abs(float(attribution.sum()) - change) / abs(change)
    assert float(attributor.completeness_error) == pytest.approx(error, rel=1e-6)
    assert error < 0.05
    lrp, _, _ = explained(model, clip, frames=2, output=output)
    torch.testing.assert_close(attributor.frozen_margins, lrp.frozen_margins)
    still = attributor(middle(clip), sr.one_hot(0, 5).double())[1]
    assert (still == 0).all()
    assert (attributor.completeness_error == 0).all()


@pytest.mark.parametrize("frames", [3, 5, 7])
def test_a_still_clip_has_no_completeness_error_in_single_precision(frames):
    """The mean of 3, 5 or 7 equal numbers is often off by a last bit, which would count as an error of 100 %."""
    model = few_layers().float()
    clips = middle(torch.cat([noise(model).float() * scale for scale in torch.linspace(0.1, 1, 24)]))
    attributor = sr.build_method("motion_integrated_gradients", model, steps=1, frames=frames)
    attributor(clips, sr.one_hot(0, 5).repeat(24, 1))
    assert not torch.equal(attributor.frozen_margins.mean(1), attributor.margin)
    assert (attributor.completeness_error == 0).all()


def test_integrated_gradients_from_the_frozen_clip():
    model = few_layers().double()
    clip = noise(model) / 4
    target = sr.one_hot(1, 5).double()
    frozen = sr.build_method("integrated_gradients", model, baseline="frozen")
    given = sr.build_method("integrated_gradients", model, baseline=middle(clip))
    assert torch.equal(frozen(clip, target)[1], given(clip, target)[1])
    assert torch.equal(frozen.completeness_error, given.completeness_error)


@pytest.mark.parametrize("normalise", ["author", "none"])
@pytest.mark.parametrize("slice_", [0, "same", "mean"])
def test_discriminative_is_the_authors_steps(normalise, slice_):
    """Once more with dtd alone: R ÷ max|R| minus, for each frame, the map of that frame repeated ÷ its max."""
    model = few_layers()
    clip = noise(model, dtype=torch.float32)
    target = sr.one_hot(2, 5)
    dtd = sr.build_method("dtd", model)

    def scaled(clip):
        summed = dtd(clip, target)[1][0].sum(0)
        return summed / summed.abs().max() if normalise == "author" else summed

    spatial = []
    for step in range(8):
        found = scaled(clip[:, :, step : step + 1].expand_as(clip))
        spatial.append(found.mean(0) if slice_ == "mean" else found[step if slice_ == "same" else 0])
    expected = scaled(clip) - torch.stack(spatial)
    attributor = sr.build_method("discriminative", model, normalise=normalise, slice=slice_, batch=3)
    _, attribution = attributor(clip, target)
    torch.testing.assert_close(attribution[0].sum(0), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    torch.testing.assert_close(attribution[0, 0], attribution[0, 2], rtol=0, atol=0)
    torch.testing.assert_close(attributor.spatial[0], torch.stack(spatial), rtol=1e-4, atol=1e-6)
    for options in ({"normalise": "max"}, {"slice": 1}, {"slice": True}, {"base": "gradient"}, {"batch": 0}):
        with pytest.raises(sr.InputError):
            sr.build_method("discriminative", model, **options)
