"""Canonizers: the same network, in a form that rules can see, and afterwards the very network that it was."""

import pytest
import torch
from torch import nn
from zennit.layer import Sum

import selrel_zennit as sr
from helpers import slow_but
from selrel_zennit.canonizers.batch_norm import BatchNormCanonizer, FunctionCanonizer, VideoCanonizer, neighbours

SHAPE = (3, 6, 12, 12)


def disturbed(model, seed=0):
    """Return the model in float64 with batch norms as after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    model.spec = sr.ClipSpec(frames=SHAPE[1], short_side=SHAPE[2], crop=SHAPE[2])
    return model.double().eval()


class Backwards(nn.Module):
    """Registers its batch norm before its convolution, and its class layer first of all."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.norm = nn.BatchNorm3d(4)
        self.conv = nn.Conv3d(3, 4, 3, padding=1, bias=False)

    def forward(self, clip):
        return self.fc(self.norm(self.conv(clip)).relu().mean((2, 3, 4)))


class Residual(nn.Module):
    """All ways to write an addition, in place too, and sums that are none of tensors."""

    def __init__(self, inner=None):
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm3d(3)
        self.inner = inner or nn.Identity()

    def forward(self, clip):
        out = self.norm(self.conv(clip))
        out = torch.add(out, clip)
        out = out.add(clip)
        out += self.inner(clip)
        size = out.shape[2] + out.shape[3]
        return (out + clip) + 1 + out.mean((2, 3, 4), keepdim=True) * size


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 1)

    def forward(self, clip):
        out = self.conv(clip)
        return out + clip if out.sum() > 0 else out


def state(model):
    return {name: (id(value), value.detach().clone()) for name, value in model.state_dict(keep_vars=True).items()}, {
        name: {key: id(value) for key, value in vars(module).items()} for name, module in model.named_modules()
    }


def assert_same_state(model, before):
    values, attributes = state(model)
    assert values.keys() == before[0].keys()
    for name, (address, value) in values.items():
        assert address == before[0][name][0], name
        assert torch.equal(value, before[0][name][1]), name
    assert attributes == before[1]


def canonized(canonizer, model):
    """Return (output before, output under the canonizer, its instances); the caller removes them."""
    clip = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(clip)
        instances = canonizer.apply(model)
        after = model(clip)
    return before, after, instances


def remove(instances):
    for instance in reversed(instances):
        instance.remove()


def sequential(*layers):
    return nn.Sequential(*layers, nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(1))


NETWORKS = {
    "registered backwards": (Backwards, 1),
    "no bias": (lambda: sequential(nn.Conv3d(3, 4, 3, bias=False), nn.BatchNorm3d(4)), 1),
    "groups": (lambda: sequential(nn.Conv3d(3, 6, 3, groups=3), nn.BatchNorm3d(6)), 1),
    "transposed": (lambda: sequential(nn.ConvTranspose3d(3, 4, 3, stride=2), nn.BatchNorm3d(4)), 1),
    "transposed, groups": (lambda: sequential(nn.ConvTranspose3d(3, 6, 3, groups=3), nn.BatchNorm3d(6)), 1),
    "not affine": (lambda: sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4, affine=False)), 1),
    "norm first, padding": (lambda: sequential(nn.BatchNorm3d(3), nn.Conv3d(3, 4, 3, padding=1)), 0),
    "norm first, groups": (lambda: sequential(nn.BatchNorm3d(3), nn.Conv3d(3, 6, 3, groups=3, padding=2)), 0),
    "norm first, transposed": (lambda: sequential(nn.BatchNorm3d(3), nn.ConvTranspose3d(3, 4, 3)), 0),
    "between activations": (lambda: sequential(nn.ReLU(), nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 4, 1)), 0),
    "no statistics": (lambda: sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4, track_running_stats=False)), 0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_norms_merge_exactly_and_come_back(name):
    build, merged = NETWORKS[name]
    model = disturbed(build())
    held = state(model)
    assert len(neighbours(model)) == merged
    before, after, instances = canonized(BatchNormCanonizer(), model)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    if merged:
        assert any(not torch.equal(value, held[0][key][1]) for key, value in model.state_dict().items())
    remove(instances)
    assert_same_state(model, held)


def test_a_merged_batch_norm_is_the_identity():
    model = disturbed(Backwards())
    instances = BatchNormCanonizer().apply(model)
    values = torch.randn(2, 4, 3, 3, 3, dtype=torch.float64) * 100
    torch.testing.assert_close(model.norm(values), values, rtol=1e-14, atol=0)
    remove(instances)


def test_what_else_reads_the_tensor_between_keeps_its_value():
    class Twice(Backwards):
        def forward(self, clip):
            out = self.conv(clip)
            return self.fc((self.norm(out) * out).mean((2, 3, 4)))

    class Again(Backwards):
        def forward(self, clip):
            return self.fc(self.norm(self.conv(clip) + self.conv(clip * 2)).mean((2, 3, 4)))

    for model in (disturbed(Twice()), disturbed(Again())):
        assert neighbours(model) == []


def test_weights_that_two_modules_share_are_not_merged():
    model = disturbed(
        sequential(nn.Conv3d(3, 3, 1), nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 3, 1), nn.ReLU(), nn.BatchNorm3d(3))
    )
    model[3].weight = model[0].weight
    assert neighbours(model) == []


@pytest.mark.parametrize("build", [Residual, lambda: Residual(Residual())], ids=["one", "nested modules"])
def test_additions_become_sums(build):
    model = disturbed(build())
    held = state(model)
    before, after, instances = canonized(FunctionCanonizer(), model)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    sums = [module for module in model.modules() if isinstance(module, Sum)]
    assert len(sums) == sum(isinstance(module, Residual) for module in model.modules()) * 5
    calls = []
    for module in sums:
        module.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[-1]))
    model(torch.zeros(1, *SHAPE, dtype=torch.float64))
    # torch.add, .add, +=, +, and the mean that is broadcast; the sum of two sizes is none for a rule.
    assert calls == [2] * len(sums)
    remove(instances)
    assert_same_state(model, held)


def test_a_forward_that_decides_by_value_computes_the_same_and_has_no_sums():
    model = disturbed(Decides())
    held = state(model)
    before, after, instances = canonized(FunctionCanonizer(), model)
    assert torch.equal(after, before)
    assert not any(isinstance(module, Sum) for module in model.modules())
    remove(instances)
    assert_same_state(model, held)


class Shortcut(nn.Module):
    """Arguments that a call may leave out, and the one that decides what is added."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 1)

    def forward(self, clip, residual=None, *, twice=False, **more):
        out = self.conv(clip)
        if residual is not None:
            out = torch.add(input=out, other=residual, alpha=1)
        if twice:
            out = out + clip
        return out + more["last"] if more else out


@pytest.mark.parametrize(
    ("arguments", "sums"),
    [
        ({}, 0),
        ({"residual": None, "twice": False}, 0),
        ({"residual": torch.ones(2, *SHAPE, dtype=torch.float64)}, 1),
        ({"twice": True}, None),
        ({"last": torch.ones(2, *SHAPE, dtype=torch.float64, requires_grad=True)}, None),
    ],
    ids=["left out", "as their defaults", "a tensor", "a flag", "by a name of the caller's"],
)
def test_optional_arguments_are_what_the_call_makes_them(arguments, sums):
    """``sums`` is how many of Zennit's run; None where rules cannot see what is added, and coverage does."""
    model = disturbed(Shortcut())
    clip = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with torch.no_grad():
        expected = model(clip, **arguments)
    calls = []
    instances = FunctionCanonizer().apply(model)
    for module in model.modules():
        if isinstance(module, Sum):
            module.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        torch.testing.assert_close(model(clip, **arguments), expected, rtol=1e-14, atol=1e-14)
    assert len(calls) == (sums or 0)
    remove(instances)
    assert "forward" not in vars(model)


class Adds(nn.Module):
    """No module inside, so that it could be taken for a layer with a rule."""

    def forward(self, first, second):
        return first + second


class Around(nn.Sequential):
    """A container with a forward of its own."""

    def forward(self, clip):
        return super().forward(clip) + clip


def test_additions_in_leaves_and_containers_become_sums():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.around, self.adds = Around(nn.Conv3d(3, 3, 1), nn.ReLU()), Adds()

        def forward(self, clip):
            return self.adds(self.around(clip), clip)

    model = disturbed(Both())
    held = state(model)
    before, after, instances = canonized(FunctionCanonizer(), model)
    assert torch.equal(after, before)
    assert [name for name, module in model.named_modules() if isinstance(module, Sum)] == [
        "around.canonizer_0.sum",
        "adds.canonizer_0.sum",
    ]
    remove(instances)
    assert_same_state(model, held)


def test_batch_norms_of_a_network_that_decides_by_value_merge():
    model = disturbed(nn.Sequential(Decides(), nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4)))
    assert len(neighbours(model)) == 1


def test_nested_and_in_any_order():
    model = disturbed(Residual(Residual()))
    held = state(model)
    first = VideoCanonizer().apply(model)
    inside = state(model)
    before, after, second = canonized(VideoCanonizer(), model)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    remove(second)
    assert_same_state(model, inside)
    remove(first)
    assert_same_state(model, held)


def test_what_was_done_before_an_exception_is_undone(monkeypatch):
    model = disturbed(
        sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 4, 3), nn.BatchNorm3d(4))
    )
    held = state(model)
    register, calls = BatchNormCanonizer.register, []

    def failing(self, *args):
        register(self, *args)
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("planted")

    monkeypatch.setattr(BatchNormCanonizer, "register", failing)
    with pytest.raises(RuntimeError, match="planted"):
        VideoCanonizer().apply(model)
    assert len(calls) == 2
    assert_same_state(model, held)


def test_a_network_that_does_not_fit_its_clip_is_named():
    model = disturbed(sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)))
    with pytest.raises(sr.InputError, match=r"does not run on a clip \(1, 5, 6, 6, 6\)"):
        BatchNormCanonizer((5, 6, 6, 6)).apply(model)


@pytest.mark.parametrize("name", slow_but(["r3d_18", "mc3_18", "r2plus1d_18", "s3d"], "mc3_18"))
def test_torchvision_video_networks_conserve_relevance(name):
    """Zennit's ResNet canonizer finds nothing in them: relevance of DTD then grows with every residual sum.

    Not every seed will do: a unit that its bias alone makes active has z⁺ = 0 and keeps its share of relevance, which
    one in a hundred draws of these weights shows (0.3 % of the sum, in float64 too).
    """
    import torchvision.models.video

    model = disturbed(getattr(torchvision.models.video, name)(weights=None)).float()
    if name == "s3d":
        model.avgpool = nn.AdaptiveAvgPool3d(1).eval()  # the original needs 224×224
    model.spec = sr.ClipSpec(frames=16, short_side=32, crop=32)
    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    held = state(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    assert len(neighbours(model)) == len(norms)
    clip = torch.from_numpy(model.spec.from_pixels(torch.randint(0, 256, (1, 16, 32, 32, 3)).byte().numpy()))
    with sr.build_method("dtd", model) as attributor:
        _, relevance = attributor(clip, sr.one_hot(7, 400))
    assert abs(float(relevance.double().sum()) - 1) < 1e-3
    assert float(relevance.min()) >= -1e-6
    assert_same_state(model, held)
