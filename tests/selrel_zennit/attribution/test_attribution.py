"""Attributors against independent references: Zennit by hand, Captum, pytorch-grad-cam, formulas in NumPy."""

import gc
import inspect

import numpy as np
import psutil
import pytest
import torch
from torch import nn
from zennit.attribution import Gradient as ZennitGradient
from zennit.composites import COMPOSITES, NameMapComposite
from zennit.rules import Pass, ZBox, ZPlus

import selrel_zennit as sr
from helpers import slow_but
from maps import norm_relative
from networks import small_c3d, snapshot

CONVOLUTIONS = ["conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b"]
RELUS = ["relu1", "relu2", "relu3a", "relu3b", "relu4a", "relu4b", "relu5a", "relu5b", "relu6", "relu7"]


def dtd_by_hand(model):
    low, high = (torch.tensor([(end - m) for m in (102, 98, 90)]).view(1, 3, 1, 1, 1) for end in (0.0, 255.0))
    composite = NameMapComposite(
        [
            (["conv1"], ZBox(low=low, high=high, zero_params="bias")),
            ([*CONVOLUTIONS, "fc6", "fc7", "fc8"], ZPlus(zero_params="bias")),
            (RELUS, Pass()),
        ]
    )
    return ZennitGradient(model, composite)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_dtd_equals_zennit_with_rules_placed_by_hand(dtype, tolerance, clip):
    model = small_c3d().to(dtype)
    target = sr.one_hot(2, 5).to(dtype)
    logits, relevance = sr.build_method("dtd", model)(clip.to(dtype), target)
    with dtd_by_hand(model) as reference:
        expected_logits, expected = reference(clip.to(dtype), target)
    assert norm_relative(relevance, expected.detach()) <= tolerance
    assert norm_relative(logits, expected_logits.detach()) <= tolerance


def test_dtd_drops_the_biases():
    model = small_c3d()
    clip = torch.randn(1, *model.spec.shape) * 50
    before = sr.build_method("dtd", model)(clip, sr.one_hot(0, 5))[1]
    # Without biases in the rules, only the activations can carry them; zeroing the last one changes no activation.
    model.fc8.bias += 100
    assert torch.equal(sr.build_method("dtd", model)(clip, sr.one_hot(0, 5))[1], before)


@pytest.mark.slow
def test_dtd_conserves_relevance_on_real_clips(real_clips):
    model = sr.load_model("c3d", weights="random", num_classes=101)
    with sr.build_method("dtd", model) as attributor:
        for path in real_clips.values():
            clip = model.spec.clip(sr.read_frames(path, count=16))
            _, relevance = attributor(clip, sr.one_hot(7, 101))
            assert float(relevance.double().sum()) == pytest.approx(1.0, abs=1e-4), path
            assert relevance.min() > -1e-6


def test_dtd_is_registered_with_zennit():
    from selrel_zennit.composites import DTD

    assert COMPOSITES["dtd"] is DTD


# --- DTD re-derived with dense matrices and loops in float64 ---


def dense(convolution, shape):
    """The matrix of a convolution, entry by entry, [outputs, inputs]; padding 1, stride 1, kernel 3."""
    weight = convolution.weight.detach().double().numpy()
    outputs, channels = weight.shape[:2]
    matrix = np.zeros((outputs, *shape[1:], channels, *shape[1:]))
    steps, height, width = shape[1:]
    for t, h, w in np.ndindex(steps, height, width):
        for dt, dh, dw in np.ndindex(3, 3, 3):
            s, i, j = t + dt - 1, h + dh - 1, w + dw - 1
            if 0 <= s < steps and 0 <= i < height and 0 <= j < width:
                matrix[:, t, h, w, :, s, i, j] = weight[:, :, dt, dh, dw]
    return matrix.reshape(outputs * steps * height * width, -1)


def z_plus(matrix, values, relevance):
    contributions = np.maximum(matrix, 0) * np.maximum(values, 0) + np.minimum(matrix, 0) * np.minimum(values, 0)
    return (contributions * (relevance / (contributions.sum(1) + 1e-6))[:, None]).sum(0)


def z_box(matrix, values, low, high, relevance):
    contributions = matrix * values - np.maximum(matrix, 0) * low - np.minimum(matrix, 0) * high
    total = contributions.sum(1)
    return (contributions * (relevance / (total + np.where(total >= 0, 1e-6, -1e-6)))[:, None]).sum(0)


def test_dtd_equals_a_float64_rederivation():
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(
        nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 3, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    model = model.double().eval()
    model.spec = sr.ClipSpec(frames=4, short_side=4, crop=4, std=(50.0, 60.0, 70.0))
    clip = model.spec.from_pixels(np.random.default_rng(0).integers(0, 256, (1, 4, 4, 4, 3), dtype=np.uint8)).astype(
        float
    )

    # forward, in NumPy
    first, second = dense(model[0], (3, 4, 4, 4)), dense(model[3], (4, 2, 2, 2))
    bias = [np.repeat(model[i].bias.detach().numpy(), size) for i, size in ((0, 64), (3, 8))]
    hidden = np.maximum(first @ clip.ravel() + bias[0], 0)
    windows = hidden.reshape(4, 2, 2, 2, 2, 2, 2).transpose(0, 1, 3, 5, 2, 4, 6).reshape(4 * 8, 8)
    pooled = windows.max(1)
    top = np.maximum(second @ pooled + bias[1], 0)
    last = model[6].weight.detach().numpy()
    # backward
    relevance = z_plus(last, top, np.eye(4)[2])
    relevance = z_plus(second, pooled, relevance)
    unpooled = np.zeros_like(windows)
    unpooled[np.arange(32), windows.argmax(1)] = relevance
    unpooled = unpooled.reshape(4, 2, 2, 2, 2, 2, 2).transpose(0, 1, 4, 2, 5, 3, 6).reshape(-1)
    low, high = (
        np.repeat([(end - m) / s for m, s in zip((102, 98, 90), (50, 60, 70), strict=True)], 64) for end in (0, 255)
    )
    expected = z_box(first, clip.ravel(), low, high, unpooled).reshape(clip.shape)

    logits, relevance = sr.build_method("dtd", model)(torch.from_numpy(clip), sr.one_hot(2, 4).double())
    assert np.allclose(logits.numpy()[0], last @ top + model[6].bias.detach().numpy())
    # The bounds are float32 in ClipSpec, so 1e-7 is their rounding; the sum is 1 but for the stabiliser.
    assert norm_relative(relevance, expected) < 1e-6
    assert expected.sum() == pytest.approx(1, abs=1e-5)


# --- what every method leaves behind ---


# The same computation on fewer points: the tests below call every method hundreds of times.
QUICK = {
    "smoothgrad": {"samples": 2, "batch": 2},
    "smoothgrad_squared": {"samples": 2, "batch": 2},
    "integrated_gradients": {"steps": 2, "batch": 2},
    "occlusion": {"window": (16, 16, 8), "batch": 2},
}


@pytest.fixture(params=sorted(sr.METHODS))
def method(request):
    return request.param


def test_the_table_names_the_options_that_the_builder_takes(method):
    entry = sr.METHODS[method]
    assert entry.build.__name__ == method
    assert entry.options == list(inspect.signature(entry.build).parameters)[1:]


def build_quick(method, model):
    return sr.build_method(method, model, **QUICK.get(method, {}))


@pytest.mark.parametrize("surroundings", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_model_is_restored(method, clip, surroundings):
    model = small_c3d()
    probe = clip * 0.5
    before = snapshot(model, probe)
    with surroundings():
        logits, relevance = build_quick(method, model)(clip * 1.0, sr.one_hot(1, 5))
    assert relevance.shape == clip.shape
    assert not relevance.requires_grad
    assert not logits.requires_grad
    assert torch.isfinite(relevance).all()
    assert snapshot(model, probe) == before


@pytest.mark.parametrize("where", ["forward", "attr_output", "body"])
def test_model_is_restored_after_an_exception(method, clip, where):
    model = small_c3d()
    before = snapshot(model, clip)
    attributor = build_quick(method, model)

    def fail(*args, **kwargs):
        raise KeyError("planted")

    def run():
        with attributor:
            if where == "forward":
                attributor(clip[:, :, :, :5], sr.one_hot(1, 5))
            elif where == "attr_output":
                attributor(clip, fail)
            else:
                fail()

    with pytest.raises((KeyError, RuntimeError, sr.InputError)):
        run()
    assert snapshot(model, clip) == before
    attributor(clip, sr.one_hot(1, 5))
    assert snapshot(model, clip) == before


def test_model_is_restored_after_half_a_registration(clip):
    model = small_c3d()
    before = snapshot(model, clip)
    attributor = sr.build_method("dtd", model)
    mapping = attributor.composite.module_map

    def fail_at_the_end(ctx, name, module):
        if name == "fc8":
            raise KeyError("planted")
        return mapping(ctx, name, module)

    attributor.composite.module_map = fail_at_the_end
    with pytest.raises(KeyError), attributor:
        pass
    assert snapshot(model, clip) == before


@pytest.mark.parametrize("method", slow_but(sorted(sr.METHODS), "gradcam"))
def test_a_thousand_explanations_leave_memory_flat(method):
    # A thousand of the fastest and of the slowest kind; what a call leaves behind shows in 100 as well.
    calls = 1000 if method in ("gradient", "dtd") else 100
    model = small_c3d(width=1, hidden=4)
    clip = torch.randn(1, *model.spec.shape)
    target = sr.one_hot(1, 5)
    process = psutil.Process()
    with sr.Selective(build_quick(method, model)) as selective:
        sizes = []
        for count in range(calls):
            selective(clip, target)
            if count in (calls // 10, calls - 1):
                gc.collect()
                alive = sum(1 for item in gc.get_objects() if issubclass(type(item), torch.Tensor))
                sizes.append((alive, process.memory_info().rss))
        hooks = selective.composite.hook_refs if selective.composite else []
        assert all(not hook.tensor_handles and not hook.stored_tensors for hook in hooks)
    assert sizes[1][0] <= sizes[0][0]
    assert sizes[1][1] - sizes[0][1] < 16 * 2**20


# --- targets, registry, errors ---


def test_one_hot():
    assert sr.one_hot(1, 3).tolist() == [[0, 1, 0]]
    assert sr.one_hot([2, 0], 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    for wrong in (3, -1, [], [0, 5], 1.5):
        with pytest.raises(sr.InputError, match="target"):
            sr.one_hot(wrong, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dtt", {}, "did you mean 'dtd'"),
        ("dtd", {"layer": "relu1"}, "dtd has no option 'layer'"),
        ("gradcam", {"layer": "relu5c"}, "did you mean 'relu5b'"),
        ("gradcam", {"layer": ""}, "no layer ''"),
    ],
)
def test_bad_method(name, options, message):
    with pytest.raises(sr.InputError, match=message):
        sr.build_method(name, small_c3d(), **options)


def test_bad_model():
    with pytest.raises(sr.InputError, match="training mode"):
        sr.build_method("dtd", small_c3d().train())
    bare = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).eval()
    with pytest.raises(sr.InputError, match=r"model\.spec"):
        sr.build_method("dtd", bare)
    with pytest.raises(sr.InputError, match="cam_layer"):
        sr.build_method("gradcam", bare)
    with pytest.raises(sr.InputError, match="choose a convolutional layer"):
        sr.build_method("gradcam", small_c3d(), layer="fc6")(torch.zeros(1, 3, 16, 16, 16), sr.one_hot(0, 5))


def test_info_says_what_the_attributor_is():
    model = sr.load_model("c3d", weights="random", num_classes=3)
    info = sr.build_method("gradcam", model, layer="relu4b").info
    assert info["method"] == "gradcam"
    assert info["options"] == {"layer": "relu4b", "pool": "volume"}
    assert info["model"] == "c3d"
    assert info["weights"] == "random seed 0"
    assert sr.ClipSpec.from_dict(info["clip_spec"]) == model.spec


def test_selective_selects_and_refuses_to_nest(clip):
    model = small_c3d()
    selection = sr.MotionSelection(n_sigma=2)
    attributor = sr.build_method("gradient", model)
    logits, relevance = attributor(clip, sr.one_hot(1, 5))
    with sr.Selective(attributor, selection) as selective:
        selective_logits, motion = selective(clip, sr.one_hot(1, 5))
    mask = selection.mask(relevance)
    assert torch.equal(selective_logits, logits)
    assert torch.equal(motion, torch.where(mask[:, None], relevance, 0))
    assert 0 < mask.sum() < mask.numel()
    with pytest.raises(sr.InputError, match="selects already"):
        sr.Selective(sr.Selective(attributor))
    # A plain Zennit attributor is wrapped just as well.
    with sr.Selective(dtd_by_hand(model), selection) as selective:
        assert selective(clip, sr.one_hot(1, 5))[1].shape == clip.shape
