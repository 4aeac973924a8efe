"""load_model: names, factories, weights, what belongs to them; and C3D itself."""

import threading
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import selrel_zennit as sr
from networks import small_c3d
from selrel_zennit.cli import main
from selrel_zennit.lint.linter import lint
from selrel_zennit.models.c3d import C3D
from selrel_zennit.pipeline import explain_video

SPEC = sr.ClipSpec(frames=4, short_side=8, crop=8)


class Flat(nn.Module):
    """A user's own network: no spec, no names."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.layer = nn.Linear(3, num_classes)

    def forward(self, clip):
        return self.layer(clip.mean((2, 3, 4)))


def tuned(num_classes=4):
    model = Flat(num_classes)
    nn.init.constant_(model.layer.weight, 7.0)
    return model


def test_c3d_is_the_papers():
    model = sr.load_model("c3d", weights="random", num_classes=101)
    kernels = [
        (name, tuple(m.weight.shape)) for name, m in model.named_modules() if isinstance(m, nn.Conv3d | nn.Linear)
    ]
    assert kernels == [
        ("conv1", (64, 3, 3, 3, 3)), ("conv2", (128, 64, 3, 3, 3)), ("conv3a", (256, 128, 3, 3, 3)),
        ("conv3b", (256, 256, 3, 3, 3)), ("conv4a", (512, 256, 3, 3, 3)), ("conv4b", (512, 512, 3, 3, 3)),
        ("conv5a", (512, 512, 3, 3, 3)), ("conv5b", (512, 512, 3, 3, 3)), ("fc6", (4096, 8192)),
        ("fc7", (4096, 4096)), ("fc8", (101, 4096)),
    ]  # fmt: skip
    pools = [(m.kernel_size, m.stride, m.padding) for m in model if isinstance(m, nn.MaxPool3d)]
    assert pools == [((1, 2, 2), (1, 2, 2), 0), (2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, (0, 1, 1))]
    assert model.spec == sr.ClipSpec()
    assert not model.training
    sizes = {}
    model.relu5b.register_forward_hook(lambda module, args, output: sizes.update(cam=tuple(output.shape)))
    with torch.no_grad():
        assert model(torch.zeros(1, *model.spec.shape)).shape == (1, 101)
    assert sizes["cam"] == (1, 512, 2, 7, 7)
    assert model.cam_layer == "relu5b"


def test_random_weights_are_seeded():
    first, again, other = (sr.load_model("c3d", weights="random", num_classes=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    assert first.provenance["weights"] == "random seed 1"


def test_weights_from_a_file(tmp_path):
    small = small_c3d()
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    torch.save({"state_dict": small.state_dict()}, tmp_path / "small.pt")

    def factory(num_classes=5):
        return small_c3d(num_classes, seed=9)

    for name in ("small.safetensors", "small.pt"):
        model = sr.load_model(factory, weights=tmp_path / name)
        assert torch.equal(model.conv1.weight, small.conv1.weight)
        assert len(model.provenance["sha256"]) == 64
        assert model.provenance["weights"].endswith(name)
        assert model.spec == small.spec
    with pytest.raises(sr.InputError, match=r"holds 5 classes.*--num-classes 5"):
        sr.load_model(factory, weights=tmp_path / "small.pt", num_classes=6)


def test_a_users_factory():
    with pytest.raises(sr.InputError, match="--weights random"):
        sr.load_model(tuned)
    own = sr.load_model(tuned, weights="own", spec=SPEC)
    assert (own.layer.weight == 7).all()
    assert own.spec == SPEC
    random = sr.load_model(tuned, weights="random", num_classes=6, spec=SPEC)
    assert random.layer.weight.shape == (6, 3)
    assert not (random.layer.weight == 7).any()
    again = sr.load_model(tuned, weights="random", num_classes=6, spec=SPEC)
    assert torch.equal(random.layer.weight, again.layer.weight)


def test_a_network_that_does_not_say_what_clips_it_takes():
    """It is not given C3D's in silence."""
    for network in (tuned, tuned()):
        with pytest.raises(sr.InputError, match=r"does not say what clips it takes: give spec=ClipSpec\(.*--clip-spec"):
            sr.load_model(network, weights="own")
    plain, clip = tuned().eval(), torch.zeros(1, *SPEC.shape)
    assert sr.explain(plain, clip, "gradient").relevance.shape == (1, 4, 8, 8)
    with pytest.raises(sr.InputError, match=r"does not say what clips it takes: set model\.spec"):
        explain_video(plain, np.zeros((4, 8, 8, 3), np.uint8), "gradient")
    with pytest.raises(sr.InputError, match=r"does not say what clips it takes: set model\.spec"):
        lint(plain, "lrp_epsilon_plus")


def test_a_factory_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_network.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3, 2))\n\nnothing = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    model = sr.load_model("my_network:make", weights="own", spec=SPEC)
    assert model.provenance["model"] == "my_network:make"
    for wrong, message in (
        ("my_network:mak", "did you mean 'make'"),
        ("my_network:nothing", "is no function"),
        ("no_such_module_here:make", "cannot import no_such_module_here"),
    ):
        with pytest.raises(sr.InputError, match=message):
            sr.load_model(wrong, weights="own")
    with pytest.raises(sr.InputError, match=r"must return a torch\.nn\.Module"):
        sr.load_model(lambda: 3, weights="own")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("c3e", None, "did you mean 'c3d'"),
        ("c3d", None, "--weights random"),
        ("c3d", "embedded", "no embedded weights"),
        ("c3d", "missing.safetensors", "does not exist"),
    ],
)
def test_bad_requests(name, weights, message):
    with pytest.raises(sr.InputError, match=message):
        sr.load_model(name, weights=weights)


def test_a_clip_too_small_for_the_pools_is_refused():
    with pytest.raises(ValueError, match="too small"):
        C3D(2, spec=sr.ClipSpec(frames=8))
    with pytest.raises(ValueError, match="num_classes"):
        C3D(0)


def test_names_are_registered_once():
    with pytest.raises(ValueError, match="already"):
        sr.register_model("c3d", summary="", citation="", classes=1)(Flat)
    with pytest.raises(ValueError, match="already"):
        sr.register_method("dtd", summary="", citation="", passes=1, compilable=True)(lambda model: None)


class Scaled(Flat):
    """A network whose constant no file holds."""

    def __init__(self, num_classes=4):
        super().__init__(num_classes)
        self.register_buffer("scale", torch.full((4,), 2.0), persistent=False)


def test_a_registered_network_keeps_its_constants(monkeypatch):
    monkeypatch.setattr("selrel_zennit.models.registry.MODELS", dict(sr.MODELS))
    sr.register_model("scaled", summary="", citation="", classes=4)(lambda num_classes, spec: Scaled(num_classes))
    first, again = (sr.load_model("scaled", weights="random", seed=3, spec=SPEC) for _ in range(2))
    assert first.scale.tolist() == [2.0] * 4
    assert torch.equal(first.layer.weight, again.layer.weight)
    with pytest.raises(sr.InputError, match="own is for factories"):
        sr.load_model("scaled", weights="own")


def test_a_network_that_does_not_fit_is_said_so():
    model = sr.load_model(lambda: Pair(), weights="own", spec=SPEC)
    with pytest.raises(sr.InputError, match="must return logits"):
        sr.explain(model, torch.zeros(1, *model.spec.shape), "gradient")
    plain = sr.load_model(tuned, weights="own", spec=SPEC)
    with pytest.raises(sr.InputError, match="convert one of them"):
        sr.explain(plain, torch.zeros(1, *plain.spec.shape).half(), "gradient")
    with pytest.raises(sr.InputError, match="no clips"):
        sr.explain(plain, torch.zeros(0, *plain.spec.shape), "gradient")
    wrong = Flat()
    wrong.spec = {"frames": 8}
    with pytest.raises(sr.InputError, match=r"\.spec must be a ClipSpec"):
        sr.load_model(lambda: wrong, weights="own")


class Pair(nn.Module):
    """Returns more than logits."""

    def forward(self, clip):
        return clip.mean((2, 3, 4)), clip


# --- networks, state dicts, prefixes ---


def test_a_network_is_copied_and_left_as_it_was():
    given = small_c3d().train().requires_grad_(True)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    loaded = sr.load_model(given)
    drawn = sr.load_model(given, "random", seed=4)
    tuned = sr.load_model(given, {name: value + 1 for name, value in before.items()})
    assert given.training
    assert all(value.requires_grad for value in given.parameters())
    assert not hasattr(given, "provenance")
    for name, value in given.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(loaded.state_dict()[name], value)
        assert torch.equal(tuned.state_dict()[name], value + 1)
    assert not torch.equal(drawn.conv1.weight, given.conv1.weight)
    for one, said in ((loaded, "own"), (drawn, "random seed 4"), (tuned, "the state dict")):
        assert (one.provenance["model"], one.provenance["weights"]) == ("C3D", said)
        assert not one.training
        assert one.spec == given.spec
    with pytest.raises(sr.InputError, match="num_classes goes with a function that makes a network"):
        sr.load_model(given, num_classes=5)
    given.lock = threading.Lock()
    with pytest.raises(
        sr.InputError, match=r"C3D cannot be copied \(TypeError: .*lock.*\): pass a function that makes"
    ):
        sr.load_model(given)


def test_a_network_with_old_weight_norm_is_copied():
    """Its weight is no leaf, which Python's deepcopy refuses."""
    network = Flat()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(network.layer)
    clip = torch.ones(1, *SPEC.shape)
    assert torch.equal(sr.load_model(network, spec=SPEC)(clip), network(clip))


@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone.", "module.model.", "_orig_mod.module.student.net."])
def test_a_prefix_of_all_keys_is_taken_off_and_said(prefix, tmp_path, capsys, monkeypatch):
    small = small_c3d(seed=3)
    state = {prefix + name: value for name, value in small.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "lightning.ckpt")
    for weights in (tmp_path / "lightning.ckpt", state):
        loaded = sr.load_model(small_c3d, weights)
        assert torch.equal(loaded.fc8.weight, small.fc8.weight)
        # Wrappers of torch's own are known without the network.
        own = prefix.removeprefix("_orig_mod.").removeprefix("module.")
        assert loaded.provenance["prefix"] == f"{own!r} taken off all keys"
    assert main(["lint", "--model", "networks:small_c3d", "--weights", str(tmp_path / "lightning.ckpt")]) in (0, 1)
    assert capsys.readouterr().err.splitlines()[0] == f"weights: {own!r} taken off all keys"


class Wrapped(nn.Module):
    """What a user writes around a network to turn its axes, say."""

    spec = SPEC

    def __init__(self):
        super().__init__()
        self.network = Flat()

    def forward(self, clip):
        return self.network(clip)


def test_a_prefix_of_all_keys_of_the_network_is_put_in_front():
    loaded = sr.load_model(Wrapped, tuned().state_dict())
    assert (loaded.network.layer.weight == 7).all()
    assert loaded.provenance["prefix"] == "'network.' put in front of all keys"


def test_a_registered_network_of_which_a_file_has_a_prefix():
    state = sr.load_model("c3d", "random", num_classes=3).state_dict()
    loaded = sr.load_model("c3d", {f"backbone.{name}": value for name, value in state.items()})
    assert torch.equal(loaded.fc8.weight, state["fc8.weight"])
    assert loaded.provenance["prefix"] == "'backbone.' taken off all keys"


def test_keys_of_which_only_some_have_a_prefix_are_refused():
    state = {f"model.{name}": value for name, value in tuned().state_dict().items()}
    with pytest.raises(sr.InputError, match=r"the state dict does not fit .* not of this network: .*loss\.weight"):
        sr.load_model(tuned, {**state, "loss.weight": torch.ones(4)}, spec=SPEC)
    for wrong, said in (({"layer.weight": 3}, "holds no tensors by name"), ({}, "an empty dict")):
        with pytest.raises(sr.InputError, match=f"the state dict .*{said}"):
            sr.load_model(tuned, wrong, spec=SPEC)
    with pytest.raises(sr.InputError, match="NaN or infinity"):
        sr.load_model(tuned, {"layer.weight": torch.full((4, 3), torch.nan), "layer.bias": torch.ones(4)}, spec=SPEC)


def test_a_factory_that_takes_no_number_of_classes():
    with pytest.raises(sr.InputError, match=r"failed to make a network \(TypeError: .*\): leave --num-classes out"):
        sr.load_model(Wrapped, "own", num_classes=3)
