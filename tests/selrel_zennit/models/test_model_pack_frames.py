"""X3D-S, TSM and ResNet-50 with an LSTM: their public key layouts, their forward pass once more, their relevance."""

import copy

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import selrel_zennit as sr
from helpers import slow_but
from selrel_zennit.lint.linter import lint

SMALL = sr.ClipSpec(frames=4, short_side=64, crop=64)
NAMES = ["x3d_s", "tsm_resnet50", "resnet50_lstm"]


def disturb(state, seed=0):
    """Give batch norms statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
        elif key.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            state[key.replace("running_var", "bias")].copy_(torch.randn(value.shape, generator=generator) * 0.2)
    return state


@pytest.fixture(scope="module")
def networks():
    """Return the three networks with seven classes, on a small clip."""
    loaded = {name: sr.load_model(name, weights="random", num_classes=7, spec=SMALL) for name in NAMES}
    for model in loaded.values():
        disturb(model.state_dict())
    return loaded


@pytest.fixture(scope="module")
def small_clip():
    return torch.randn(2, *SMALL.shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def resnet():
    """Return torchvision's ResNet-50 of seven classes."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = torchvision.models.resnet50(num_classes=7).eval().requires_grad_(False)
    disturb(model.state_dict())
    return model


# --- X3D-S ---


def x3d_shapes():
    """Return the keys and shapes of X3D_S.pyth, from PyTorchVideo's description of the network."""
    shapes = {}

    def convolution(name, *shape):
        shapes[f"{name}.weight"] = shape

    def norm(name, channels):
        for key in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{key}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    convolution("blocks.0.conv.conv_t", 24, 3, 1, 3, 3)
    convolution("blocks.0.conv.conv_xy", 24, 1, 5, 1, 1)
    norm("blocks.0.norm", 24)
    before = 24
    for stage, (depth, width, inner, squeezed) in enumerate(
        ((3, 24, 54, 8), (5, 48, 108, 8), (11, 96, 216, 16), (7, 192, 432, 32)), 1
    ):
        for index in range(depth):
            name = f"blocks.{stage}.res_blocks.{index}"
            if index == 0:
                convolution(f"{name}.branch1_conv", width, before, 1, 1, 1)
                if before != width:
                    norm(f"{name}.branch1_norm", width)
            convolution(f"{name}.branch2.conv_a", inner, before, 1, 1, 1)
            convolution(f"{name}.branch2.conv_b", inner, 1, 3, 3, 3)
            convolution(f"{name}.branch2.conv_c", width, inner, 1, 1, 1)
            norm(f"{name}.branch2.norm_a", inner)
            norm(f"{name}.branch2.norm_b.0", inner)
            norm(f"{name}.branch2.norm_c", width)
            if index % 2 == 0:
                for number, out, into in ((0, squeezed, inner), (2, inner, squeezed)):
                    convolution(f"{name}.branch2.norm_b.1.block.{number}", out, into, 1, 1, 1)
                    shapes[f"{name}.branch2.norm_b.1.block.{number}.bias"] = (out,)
            before = width
    convolution("blocks.5.pool.pre_conv", 432, 192, 1, 1, 1)
    norm("blocks.5.pool.pre_norm", 432)
    convolution("blocks.5.pool.post_conv", 2048, 432, 1, 1, 1)
    convolution("blocks.5.proj", 400, 2048)
    shapes["blocks.5.proj.bias"] = (400,)
    return shapes


def x3d_forward(state, clip):
    """X3D-S from its keys alone."""

    def norm(name, values):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(values, *(state[f"{name}.{key}"] for key in keys))

    def block(name, values, stride):
        branch = f"{name}.branch2"
        out = norm(f"{branch}.norm_a", F.conv3d(values, state[f"{branch}.conv_a.weight"])).relu()
        depthwise = state[f"{branch}.conv_b.weight"]
        out = F.conv3d(out, depthwise, stride=(1, stride, stride), padding=1, groups=len(depthwise))
        out = norm(f"{branch}.norm_b.0", out)
        gate = f"{branch}.norm_b.1.block"
        if f"{gate}.0.weight" in state:
            squeezed = out.mean((2, 3, 4), keepdim=True)
            squeezed = F.conv3d(squeezed, state[f"{gate}.0.weight"], state[f"{gate}.0.bias"]).relu()
            out = out * F.conv3d(squeezed, state[f"{gate}.2.weight"], state[f"{gate}.2.bias"]).sigmoid()
        out = out * out.sigmoid()
        out = norm(f"{branch}.norm_c", F.conv3d(out, state[f"{branch}.conv_c.weight"]))
        if f"{name}.branch1_conv.weight" in state:
            values = F.conv3d(values, state[f"{name}.branch1_conv.weight"], stride=(1, stride, stride))
        if f"{name}.branch1_norm.weight" in state:
            values = norm(f"{name}.branch1_norm", values)
        return (values + out).relu()

    values = F.conv3d(clip, state["blocks.0.conv.conv_t.weight"], stride=(1, 2, 2), padding=(0, 1, 1))
    values = F.conv3d(values, state["blocks.0.conv.conv_xy.weight"], padding=(2, 0, 0), groups=24)
    values = norm("blocks.0.norm", values).relu()
    for stage in range(1, 5):
        index = 0
        while f"blocks.{stage}.res_blocks.{index}.branch2.conv_a.weight" in state:
            values = block(f"blocks.{stage}.res_blocks.{index}", values, 2 if index == 0 else 1)
            index += 1
    values = norm("blocks.5.pool.pre_norm", F.conv3d(values, state["blocks.5.pool.pre_conv.weight"])).relu()
    values = F.conv3d(values.mean((2, 3, 4), keepdim=True), state["blocks.5.pool.post_conv.weight"]).relu()
    return F.linear(values.flatten(1), state["blocks.5.proj.weight"], state["blocks.5.proj.bias"])


def test_x3d_is_the_network_of_its_keys(networks, small_clip):
    model = copy.deepcopy(networks["x3d_s"]).double()
    expected = x3d_forward(model.state_dict(), small_clip.double())
    torch.testing.assert_close(model(small_clip.double()), expected, rtol=1e-9, atol=1e-9)


def test_x3d_loads_a_file_as_pytorchvideo_saves_it(tmp_path):
    """3.79 million parameters, as its table of models says."""
    shapes = x3d_shapes()
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.rand(shape, generator=generator) if shape else torch.tensor(1) for key, shape in shapes.items()}
    counted = sum(value.numel() for key, value in state.items() if "running" not in key and value.ndim)
    assert round(counted / 1e6, 2) == 3.79
    torch.save({"model_state": state}, tmp_path / "X3D_S.pyth")
    model = sr.load_model("x3d_s", weights=tmp_path / "X3D_S.pyth")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert (model.class_names[0], model.class_names[-1], len(model.class_names)) == ("abseiling", "zumba", 400)
    assert model.spec.shape == (3, 13, 160, 160)


# --- TSM ---


def as_tsm(key):
    """Return what mit-han-lab/temporal-shift-module calls a parameter of torchvision's ResNet-50."""
    if key.startswith("fc."):
        return f"module.new_{key}"
    return f"module.base_model.{key}".replace(
        ".conv1.weight", ".conv1.net.weight" if "layer" in key else ".conv1.weight"
    )


def as_mmaction(key):
    """Return what mmaction2 calls it."""
    parts = key.split(".")
    if parts[0] == "fc":
        return f"cls_head.fc_cls.{parts[1]}"
    if "downsample" in parts:
        return "backbone." + ".".join([*parts[:3], ("conv", "bn")[int(parts[3])], *parts[4:]])
    kind, number = parts[-2][:-1], parts[-2][-1]
    net = ["net"] if kind == "conv" and number == "1" and len(parts) > 2 else []
    return "backbone." + ".".join([*parts[:-2], f"conv{number}", kind, *net, parts[-1]])


@pytest.mark.parametrize(
    ("layout", "rename"), [("tsm", as_tsm), pytest.param("mmaction2", as_mmaction, marks=pytest.mark.slow)]
)
def test_tsm_is_a_resnet_with_shifts_in_front_of_its_blocks(layout, rename, resnet, small_clip, tmp_path):
    """torchvision's ResNet-50 on single frames, with shifts written frame by frame, from the same file."""
    state = {rename(key): value for key, value in resnet.state_dict().items()}
    if layout == "tsm":
        assert "module.base_model.layer3.5.conv1.net.weight" in state
        assert tuple(state["module.base_model.conv1.weight"].shape) == (64, 3, 7, 7)
    else:
        assert "backbone.layer3.5.conv1.conv.net.weight" in state
        assert {"backbone.conv1.conv.weight", "backbone.layer1.0.downsample.bn.running_var"} < set(state)
    torch.save({"epoch": 50, "arch": "resnet50", "state_dict": state}, tmp_path / "tsm.pth")
    model = sr.load_model("tsm_resnet50", weights=tmp_path / "tsm.pth", spec=SMALL)
    assert model.provenance["layout"] == layout
    assert model.num_classes == 7

    def shift(module, args):
        clips = args[0].unflatten(0, (len(small_clip), SMALL.frames))
        shifted = clips.clone()
        eighth = clips.shape[2] // 8
        for step in range(SMALL.frames):
            shifted[:, step, :eighth] = clips[:, step + 1, :eighth] if step + 1 < SMALL.frames else 0
            shifted[:, step, eighth : 2 * eighth] = clips[:, step - 1, eighth : 2 * eighth] if step else 0
        return (shifted.flatten(0, 1),)

    handles = [
        block.conv1.register_forward_pre_hook(shift)
        for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)
        for block in layer
    ]
    each = resnet(small_clip.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(small_clip), SMALL.frames))
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(model(small_clip), each.mean(1), rtol=1e-4, atol=1e-4)


def test_a_file_of_another_network_is_refused(resnet, tmp_path):
    save_file({key: value.contiguous() for key, value in resnet.state_dict().items()}, tmp_path / "r50.safetensors")
    with pytest.raises(sr.InputError, match=r"r50\.safetensors does not fit the model; missing: blocks"):
        sr.load_model("x3d_s", weights=tmp_path / "r50.safetensors")


# --- ResNet-50 and LSTM ---


def test_the_lstm_network_is_a_resnet_and_an_lstm(resnet, small_clip, tmp_path):
    """The LSTM by its equations, on torchvision's features of each frame."""
    hidden, features = 512, 2048
    generator = torch.Generator().manual_seed(2)
    shapes = {"weight_ih": (2048, features), "weight_hh": (2048, hidden), "bias_ih": (2048,), "bias_hh": (2048,)}
    lstm = {key: torch.randn(shape, generator=generator) * 0.05 for key, shape in shapes.items()}
    head = {"fc.weight": torch.randn(7, hidden, generator=generator), "fc.bias": torch.randn(7, generator=generator)}
    backbone = {key: value for key, value in resnet.state_dict().items() if not key.startswith("fc.")}
    torch.save({**backbone, **{f"lstm.{key}_l0": value for key, value in lstm.items()}, **head}, tmp_path / "r50l.pt")
    model = sr.load_model("resnet50_lstm", weights=tmp_path / "r50l.pt", spec=SMALL)

    frames = nn.Sequential(*list(resnet.children())[:-1])(small_clip.transpose(1, 2).flatten(0, 1))
    frames = frames.flatten(1).unflatten(0, (len(small_clip), SMALL.frames))
    state = cell = torch.zeros(len(small_clip), hidden)
    for step in range(SMALL.frames):
        gates = F.linear(frames[:, step], lstm["weight_ih"], lstm["bias_ih"])
        take, keep, candidate, show = (gates + F.linear(state, lstm["weight_hh"], lstm["bias_hh"])).chunk(4, 1)
        cell = keep.sigmoid() * cell + take.sigmoid() * candidate.tanh()
        state = show.sigmoid() * cell.tanh()
    expected = F.linear(state, head["fc.weight"], head["fc.bias"])
    torch.testing.assert_close(model(small_clip), expected, rtol=1e-4, atol=1e-4)


# --- all ---


@pytest.mark.parametrize("name", slow_but(NAMES, "x3d_s"))
@pytest.mark.parametrize("method", slow_but(["dtd", "lrp_epsilon_plus"], "dtd"))
def test_the_linter_is_silent(name, method, networks):
    options = {} if method == "dtd" else {"zero_params": "bias"}
    report = lint(networks[name], method, **options)
    assert report.findings == []
    assert report.conserved == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", slow_but(NAMES, "x3d_s"))
def test_grad_cam_finds_its_layer(name, networks, small_clip):
    model = networks[name]
    explanation = sr.explain(model, small_clip, "gradcam")
    assert explanation.relevance.shape == (2, 4, 64, 64)
    assert explanation.relevance.max() > 0
    again = sr.load_model(name, weights="random", num_classes=7)
    assert torch.equal(next(again.parameters()), next(model.parameters()))
