"""The networks of the pack: their public key layouts, their forward pass written out once more, their clips."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import selrel_zennit as sr
from helpers import slow_but
from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.lint.linter import lint

TORCHVISION = {"r3d_18": 33_371_472, "mc3_18": 11_695_440, "r2plus1d_18": 31_505_325, "s3d": 8_320_048}
TRANSFORMERS = {"swin3d_t": 28_158_070, "mvit_v2_s": 34_537_744}


def disturb(model, seed=0):
    """Give batch norms statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.2)
    return model


def norm(name, state, values, eps=1e-5):
    mean, variance, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(values, mean, variance, weight, bias, eps=eps)


# --- torchvision ---


@pytest.mark.parametrize("name", slow_but([*TORCHVISION, *TRANSFORMERS], "mc3_18"))
def test_torchvision_networks_take_their_public_files(name, tmp_path):
    """Parameter counts and categories are those that torchvision states of its weights."""
    from torchvision.models import video

    public = getattr(video, name)(weights=None)
    save_file(public.state_dict(), tmp_path / "public.safetensors")
    model = sr.load_model(name, weights=tmp_path / "public.safetensors")
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) == {**TORCHVISION, **TRANSFORMERS}[name]
    assert all(torch.equal(value, public.state_dict()[key]) for key, value in model.state_dict().items())
    assert len(model.class_names) == 400
    assert model.class_names[0] == "abseiling"
    assert model.class_names[-1] == "zumba"


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("r3d_18", "R3D_18_Weights"),
        ("mc3_18", "MC3_18_Weights"),
        ("r2plus1d_18", "R2Plus1D_18_Weights"),
        ("s3d", "S3D_Weights"),
        ("swin3d_t", "Swin3D_T_Weights"),
        ("mvit_v2_s", "MViT_V2_S_Weights"),
    ],
)
def test_clips_are_cut_as_torchvision_cuts_them(name, weights):
    """Its own preprocessing, on a picture that needs no resizing, and the stated sizes."""
    from torchvision.models import video

    public = getattr(video, weights).KINETICS400_V1
    transform = public.transforms()
    spec = sr.load_model(name, weights="random").spec
    size = transform.resize_size
    assert spec.short_side == (tuple(size) if len(size) == 2 else size[0])
    assert [spec.crop] * 2 == list(transform.crop_size)
    height, width = spec.short_side if isinstance(spec.short_side, tuple) else (spec.short_side, spec.short_side + 40)
    frames = torch.randint(0, 256, (spec.frames, height, width, 3), dtype=torch.uint8)
    # Where the margins cannot be equal, torchvision's crop lies one pixel further right.
    rolled = frames.roll((width - spec.crop) % 2, dims=2)
    one_by_one = ClipSpec(**{**spec.__dict__, "stride": 1})
    torch.testing.assert_close(
        one_by_one.clip(frames.numpy())[0], transform(rolled.permute(0, 3, 1, 2)), atol=2e-6, rtol=0
    )


# --- I3D ---


def i3d_forward(state, clip):
    """I3D with TensorFlow's padding, from its keys alone."""

    def same(values, kernel, stride):
        edges = []
        for length, k, s in reversed(list(zip(values.shape[2:], kernel, stride, strict=True))):
            total = max((-(-length // s) - 1) * s + k - length, 0)
            edges += [total // 2, total - total // 2]
        return F.pad(values, edges)

    def unit(name, values, stride=1):
        weight = state[f"{name}.conv3d.weight"]
        kernel = weight.shape[2:]
        values = F.conv3d(same(values, kernel, (stride,) * 3), weight, stride=stride)
        return norm(f"{name}.bn", state, values, eps=1e-3).relu()

    def pool(values, kernel, stride):
        return F.max_pool3d(same(values, kernel, stride), kernel, stride)

    def inception(name, values):
        return torch.cat(
            [
                unit(f"{name}.b0", values),
                unit(f"{name}.b1b", unit(f"{name}.b1a", values)),
                unit(f"{name}.b2b", unit(f"{name}.b2a", values)),
                unit(f"{name}.b3b", pool(values, (3, 3, 3), (1, 1, 1))),
            ],
            1,
        )

    values = unit("Conv3d_1a_7x7", clip, 2)
    values = pool(values, (1, 3, 3), (1, 2, 2))
    values = unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", values))
    values = pool(values, (1, 3, 3), (1, 2, 2))
    values = inception("Mixed_3c", inception("Mixed_3b", values))
    values = pool(values, (3, 3, 3), (2, 2, 2))
    for letter in "bcdef":
        values = inception(f"Mixed_4{letter}", values)
    values = pool(values, (2, 2, 2), (2, 2, 2))
    values = inception("Mixed_5c", inception("Mixed_5b", values))
    values = F.avg_pool3d(values, (2, 7, 7), stride=1)
    return F.conv3d(values, state["logits.conv3d.weight"], state["logits.conv3d.bias"]).mean((2, 3, 4))


@pytest.mark.parametrize(("frames", "crop"), [pytest.param(16, 196, marks=pytest.mark.slow), (9, 193)])
def test_i3d_is_the_network_of_its_keys(frames, crop):
    """Even and odd sizes, where "same" padding is one more behind than in front, or as much on both sides."""
    model = disturb(
        sr.load_model("i3d", weights="random", num_classes=7, spec=ClipSpec(frames, short_side=crop, crop=crop))
    )
    clip = torch.randn(1, 3, frames, crop, crop, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(clip), i3d_forward(model.state_dict(), clip), rtol=1e-4, atol=1e-4)


def test_i3d_has_the_keys_of_the_public_file():
    state = sr.load_model("i3d", weights="random").state_dict()
    units = ["Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"]
    units += [
        f"Mixed_{block}.{branch}"
        for block in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
        for branch in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
    ]
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"{unit}.conv3d.weight" for unit in units} | {f"{unit}.bn.{key}" for unit in units for key in norms}
    assert set(state) == expected | {"logits.conv3d.weight", "logits.conv3d.bias"}
    assert tuple(state["Conv3d_1a_7x7.conv3d.weight"].shape) == (64, 3, 7, 7, 7)
    assert tuple(state["Mixed_4f.b1b.conv3d.weight"].shape) == (320, 160, 3, 3, 3)
    assert tuple(state["logits.conv3d.weight"].shape) == (400, 1024, 1, 1, 1)


@pytest.mark.slow
def test_files_from_before_batch_norms_counted(tmp_path):
    """PyTorch before 0.4.1 saved no num_batches_tracked, and the files of 2017 are from then."""
    for name in ("i3d", "resnet3d_18a"):
        state = sr.load_model(name, weights="random", seed=5).state_dict()
        counters = [key for key in state if key.endswith("num_batches_tracked")]
        old = {key: value for key, value in state.items() if key not in counters}
        torch.save(old, tmp_path / "old.pt")
        model = sr.load_model(name, weights=tmp_path / "old.pt")
        assert all(torch.equal(value, old[key]) for key, value in model.state_dict().items() if key in old)
        assert all(model.state_dict()[key] == 0 for key in counters)
        torch.save({**old, counters[0]: state[counters[0]]}, tmp_path / "half.pt")
        with pytest.raises(sr.InputError, match=r"missing: .*num_batches_tracked"):
            sr.load_model(name, weights=tmp_path / "half.pt")


def test_i3d_refuses_a_clip_that_its_pools_use_up():
    with pytest.raises(sr.InputError, match="I3D pools 2×7×7"):
        sr.load_model("i3d", weights="random", spec=ClipSpec(frames=8))


# --- 3D ResNets ---


def resnet_forward(state, clip, zero_shortcut):
    """A 3D ResNet from its keys alone."""

    def block(name, values, stride):
        out, number = values, 1
        while f"{name}.conv{number}.weight" in state:
            weight = state[f"{name}.conv{number}.weight"]
            strided = 2 if f"{name}.conv3.weight" in state else 1
            out = F.conv3d(out, weight, stride=stride if number == strided else 1, padding=weight.shape[-1] // 2)
            out = norm(f"{name}.bn{number}", state, out)
            number += 1
            if f"{name}.conv{number}.weight" in state:
                out = out.relu()
        if f"{name}.downsample.0.weight" in state:
            values = F.conv3d(values, state[f"{name}.downsample.0.weight"], stride=stride)
            values = norm(f"{name}.downsample.1", state, values)
        elif out.shape != values.shape:
            assert zero_shortcut
            values = values[:, :, ::2, ::2, ::2]
            values = torch.cat([values, values.new_zeros(1, out.shape[1] - values.shape[1], *values.shape[2:])], 1)
        return (out + values).relu()

    values = norm("bn1", state, F.conv3d(clip, state["conv1.weight"], stride=(1, 2, 2), padding=3)).relu()
    values = F.max_pool3d(values, 3, 2, 1)
    for layer in range(1, 5):
        index = 0
        while f"layer{layer}.{index}.conv1.weight" in state:
            values = block(f"layer{layer}.{index}", values, 2 if layer > 1 and index == 0 else 1)
            index += 1
    return F.linear(values.mean((2, 3, 4)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize(
    "name", slow_but(["resnet3d_18", "resnet3d_18a", "resnet3d_34", "resnet3d_34a", "resnet3d_50"], "resnet3d_18a")
)
def test_resnets_are_the_networks_of_their_keys(name):
    model = disturb(sr.load_model(name, weights="random", num_classes=7, spec=ClipSpec(short_side=40, crop=40)))
    clip = torch.randn(1, 3, 16, 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = resnet_forward(model.state_dict(), clip, name.endswith("a"))
        torch.testing.assert_close(model(clip), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_resnet_file_as_its_authors_save_it(tmp_path):
    """A training checkpoint of DataParallel: the keys stand under state_dict, with module. in front."""
    source = sr.load_model("resnet3d_50", weights="random", num_classes=9, seed=3)
    state = source.state_dict()
    assert tuple(state["layer3.5.conv2.weight"].shape) == (256, 256, 3, 3, 3)
    assert tuple(state["layer1.0.downsample.0.weight"].shape) == (256, 64, 1, 1, 1)
    assert tuple(state["conv1.weight"].shape) == (64, 3, 7, 7, 7)
    blocks = {1: 3, 2: 4, 3: 6, 4: 3}
    assert {key.rsplit(".", 2)[0] for key in state if key.startswith("layer") and "downsample" not in key} == {
        f"layer{layer}.{index}" for layer, count in blocks.items() for index in range(count)
    }
    torch.save(
        {"epoch": 200, "arch": "resnet-50", "state_dict": {f"module.{key}": value for key, value in state.items()}},
        tmp_path / "r3d50.pth",
    )
    model = sr.load_model("resnet3d_50", weights=tmp_path / "r3d50.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.num_classes == 9
    with pytest.raises(
        sr.InputError, match=r"r3d50\.pth does not fit the model; not of this network: layer1\.0\.conv3"
    ):
        sr.load_model("resnet3d_34", weights=tmp_path / "r3d50.pth", num_classes=9)


def test_clips_of_resnets_are_those_of_their_time(tmp_path):
    """Pixels less a mean in 2017, for 400 classes; values from 0 to 1 in 2020, for 700 and more."""
    of_2017, of_2020 = ((0.0, 255.0), (1.0, 1.0, 1.0)), ((0.0, 1.0), (0.2768, 0.2713, 0.2737))
    for classes, (value_range, std) in ((400, of_2017), (700, of_2020)):
        source = sr.load_model("resnet3d_18", weights="random", num_classes=classes)
        save_file(source.state_dict(), tmp_path / "file.safetensors")
        model = sr.load_model("resnet3d_18", weights=tmp_path / "file.safetensors")
        assert (model.spec.value_range, model.spec.std) == (value_range, std)
        assert (model.class_names is None) == (classes != 400)
    assert sr.load_model("resnet3d_18a", weights="random", num_classes=9).spec.value_range == (0.0, 255.0)


# --- all ---

# The least frames and pixels that their last pools leave something of.
SMALLEST = {"i3d": (9, 193), "s3d": (13, 209)}


@pytest.mark.parametrize(
    "name", slow_but(["r3d_18", "mc3_18", "r2plus1d_18", "s3d", "i3d", "resnet3d_18", "resnet3d_18a"], "resnet3d_18a")
)
def test_the_linter_is_silent(name):
    frames, size = SMALLEST.get(name, (8, 32))
    full = sr.load_model(name, weights="random", num_classes=5).spec
    spec = ClipSpec(frames, short_side=size, crop=size, value_range=full.value_range, mean=full.mean, std=full.std)
    report = lint(sr.load_model(name, weights="random", num_classes=5, spec=spec), "dtd")
    assert report.findings == []
    assert report.passed


@pytest.mark.parametrize("name", slow_but(["mc3_18", "i3d", "resnet3d_18a"], "mc3_18"))
def test_random_weights_are_reproducible(name):
    first, second, other = (sr.load_model(name, weights="random", seed=seed) for seed in (0, 0, 1))
    values = [torch.cat([value.flatten() for value in model.parameters()]) for model in (first, second, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert first.cam_layer in dict(first.named_modules())
