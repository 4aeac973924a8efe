"""load_model: names, factories, weights, what belongs to them; and C3D itself."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import selrel_zennit as sr
from networks import small_c3d
from selrel_zennit.models.c3d import C3D


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
    own = sr.load_model(tuned, weights="own")
    assert (own.layer.weight == 7).all()
    assert own.spec == sr.ClipSpec()
    random = sr.load_model(tuned, weights="random", num_classes=6)
    assert random.layer.weight.shape == (6, 3)
    assert not (random.layer.weight == 7).any()
    assert torch.equal(random.layer.weight, sr.load_model(tuned, weights="random", num_classes=6).layer.weight)
    spec = sr.ClipSpec(frames=4, short_side=8, crop=8)
    assert sr.load_model(tuned, weights="own", spec=spec).spec == spec


def test_a_factory_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_network.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3, 2))\n\nnothing = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    model = sr.load_model("my_network:make", weights="own")
    assert model.provenance["model"] == "my_network:make"
    for wrong, message in (
        ("my_network:mak", "did you mean 'make'"),
        ("my_network:nothing", "no function 'nothing'"),
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
    first, again = (sr.load_model("scaled", weights="random", seed=3) for _ in range(2))
    assert first.scale.tolist() == [2.0] * 4
    assert torch.equal(first.layer.weight, again.layer.weight)
    with pytest.raises(sr.InputError, match="own is for factories"):
        sr.load_model("scaled", weights="own")


def test_a_network_that_does_not_fit_is_said_so():
    model = sr.load_model(lambda: Pair(), weights="own")
    with pytest.raises(sr.InputError, match="must return logits"):
        sr.explain(model, torch.zeros(1, *model.spec.shape), "gradient")
    plain = sr.load_model(tuned, weights="own")
    assert "as for C3D" in plain.provenance["clip_spec"]
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
