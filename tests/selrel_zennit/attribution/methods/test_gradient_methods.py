"""Methods made of gradients, and relevance at layers, against Captum, Zennit and formulas."""

import gc

import numpy as np
import pytest
import torch
from torch import nn
from zennit.attribution import Gradient as ZennitGradient
from zennit.composites import EpsilonPlus, GuidedBackprop

import selrel_zennit as sr
from maps import norm_relative
from networks import small_c3d, snapshot

TARGET = 1
HOT = sr.one_hot(TARGET, 5)


def attribute(name, model, clip, **options):
    return sr.build_method(name, model, **options)(clip, HOT.to(clip.dtype).expand(len(clip), -1))[1]


def with_activations(kind, inplace):
    """A small C3D whose ReLUs are of another kind."""
    model = small_c3d()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            setattr(model, name, kind(inplace=inplace))
    return model.eval()


class Residual(nn.Module):
    """ReLU outputs with two consumers, a sum in place, and a branch around the last convolution."""

    def __init__(self, seed=0):
        super().__init__()
        self.first, self.relu1 = nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.second, self.relu2 = nn.Conv3d(4, 4, 3, padding=1), nn.ReLU()
        self.third, self.relu3 = nn.Conv3d(4, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5))
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.eval().requires_grad_(False)

    def forward(self, clip):
        low = self.relu1(self.first(clip))
        middle = self.second(low)
        middle += low
        middle = self.relu2(middle)
        return self.head(self.relu3(self.third(middle)) + middle)


# --- gradient, gradient x input ---


def test_gradient_equals_autograd(clip):
    model = small_c3d()
    tracked = clip.clone().requires_grad_()
    model(tracked)[0, TARGET].backward()
    assert torch.equal(attribute("gradient", model, clip), tracked.grad)


def test_gradient_equals_captum(clip):
    from captum.attr import Saliency

    model = small_c3d()
    expected = Saliency(model).attribute(clip.clone().requires_grad_(), target=TARGET, abs=False)
    assert norm_relative(attribute("gradient", model, clip), expected) < 1e-6


def test_gradient_x_input_equals_captum(clip):
    from captum.attr import InputXGradient

    model = small_c3d()
    expected = InputXGradient(model).attribute(clip.clone().requires_grad_(), target=TARGET)
    assert norm_relative(attribute("gradient_x_input", model, clip), expected) < 1e-6


def test_gradient_x_input_is_complete_without_biases(clip):
    model = small_c3d()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    expected = model(clip)[0, TARGET]
    assert float(attribute("gradient_x_input", model, clip).sum()) == pytest.approx(float(expected), rel=1e-4)


# --- guided backpropagation, deconvnet ---


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize("build", [small_c3d, Residual, lambda: with_activations(nn.ReLU, inplace=True)])
@pytest.mark.parametrize(("name", "peer"), [("guided_backprop", "GuidedBackprop"), ("deconvnet", "Deconvolution")])
def test_guided_methods_equal_captum(name, peer, build, clip):
    import captum.attr

    relevance = attribute(name, build(), clip)
    model = build()
    for module in model.modules():
        # Captum's hooks do not take ReLUs in place, which change nothing in what is computed.
        if isinstance(module, nn.ReLU):
            module.inplace = False
    expected = getattr(captum.attr, peer)(model).attribute(clip.clone().requires_grad_(), target=TARGET)
    assert norm_relative(relevance, expected) < 1e-5
    assert norm_relative(relevance, attribute("gradient", model, clip)) > 0.1


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("build", [small_c3d, Residual])
def test_light_rule_equals_zennits(build, inplace, clip):
    model = build()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = inplace
    with ZennitGradient(model, GuidedBackprop()) as reference:
        expected = reference(clip.clone(), HOT)[1]
    assert norm_relative(attribute("guided_backprop", model, clip), expected) < 1e-6


@pytest.mark.parametrize(("name", "rule"), [("guided_backprop", "guided"), ("deconvnet", "deconvnet")])
@pytest.mark.parametrize("inplace", [False, True])
def test_guided_methods_of_relu6_equal_the_formula(name, rule, inplace):
    generator = torch.Generator().manual_seed(0)
    first, second = nn.Linear(12, 20), nn.Linear(20, 5)
    for layer in (first, second):
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * 3
        layer.requires_grad_(False)
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU6(inplace=inplace), second).eval()
    clip = torch.randn(1, 3, 4, 1, 1, generator=generator)
    before = (first.weight.double() @ clip.double().flatten() + first.bias.double()).numpy()
    back = np.maximum(second.weight[TARGET].double().numpy(), 0)
    open_gate = (before > 0) & (before < 6)
    assert 0 < open_gate.sum() < (before > 0).sum()
    expected = (back * open_gate if rule == "guided" else back) @ first.weight.double().numpy()
    assert norm_relative(attribute(name, model, clip).flatten(), expected) < 1e-5


# --- SmoothGrad ---


@pytest.mark.parametrize("squared", [False, True])
def test_smoothgrad_equals_the_mean_over_the_same_noise(squared, clip):
    model = small_c3d().double()
    clips = torch.cat([clip, clip.flip(2) * 0.5]).double()
    generator = torch.Generator().manual_seed(7)
    expected = torch.zeros_like(clips)
    for _ in range(5):
        noise = torch.randn((1, *clips.shape[1:]), generator=generator).double()
        for index, one in enumerate(clips):
            noisy = (one + 0.2 * (one.max() - one.min()) * noise[0])[None].requires_grad_()
            model(noisy)[0, TARGET].backward()
            expected[index] += (noisy.grad[0] ** 2 if squared else noisy.grad[0]) / 5
    name = "smoothgrad_squared" if squared else "smoothgrad"
    relevance = attribute(name, model, clips, samples=5, noise_level=0.2, seed=7, batch=2)
    assert norm_relative(relevance, expected) < 1e-12


def test_smoothgrad_is_reproducible_and_independent_of_the_batch(clip):
    model = small_c3d()
    attributor = sr.build_method("smoothgrad", model, samples=5, batch=2)
    first, logits = attributor(clip, HOT)[1], model(clip)
    torch.rand(1)
    assert torch.equal(attributor(clip, HOT)[1], first)
    assert norm_relative(attribute("smoothgrad", model, clip, samples=5, batch=5), first) < 1e-5
    both = attribute("smoothgrad", model, torch.cat([clip * 0.3, clip]), samples=5)
    assert norm_relative(both[1:], first) < 1e-5
    assert norm_relative(attribute("smoothgrad", model, clip, samples=5, seed=1), first) > 0.1
    assert torch.equal(attributor(clip, HOT)[0], logits)


def test_smoothgrad_of_vanishing_noise_is_the_gradient():
    model = small_c3d().double()
    # Not the clip with flat regions: there the least noise decides which of equal voxels a max pool takes.
    clip = torch.randn(1, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0)) * 50
    gradient = attribute("gradient", model, clip.double())
    options = {"samples": 3, "noise_level": 1e-12}
    assert norm_relative(attribute("smoothgrad", model, clip.double(), **options), gradient) < 1e-9
    assert norm_relative(attribute("smoothgrad_squared", model, clip.double(), **options), gradient**2) < 1e-9


# --- integrated gradients ---


@pytest.mark.parametrize("baseline", ["mean", "black", "tensor"])
def test_integrated_gradients_equal_captum(baseline, clip):
    from captum.attr import IntegratedGradients

    model = small_c3d()
    tensor = torch.linspace(-50, 50, 16).view(1, 1, 16, 1, 1)
    given = tensor if baseline == "tensor" else baseline
    values = {
        "mean": torch.zeros_like(clip),
        "black": torch.tensor([-102.0, -98.0, -90.0]).view(1, 3, 1, 1, 1).expand_as(clip),
        "tensor": tensor.expand_as(clip),
    }
    expected = IntegratedGradients(model).attribute(clip, values[baseline], target=TARGET, n_steps=7)
    relevance = attribute("integrated_gradients", model, clip, steps=7, baseline=given, batch=3)
    assert norm_relative(relevance, expected) < 1e-5


def test_integrated_gradients_are_complete(clip):
    model = small_c3d().double()
    clips = torch.cat([clip, clip.flip(2) * 0.5]).double()
    relevance = attribute("integrated_gradients", model, clips, steps=100, batch=20)
    drop = (model(clips) - model(torch.zeros_like(clips)))[:, TARGET]
    assert torch.allclose(relevance.sum((1, 2, 3, 4)), drop, rtol=0.02)
    rough = attribute("integrated_gradients", model, clips, steps=1)
    assert not torch.allclose(rough.sum((1, 2, 3, 4)), drop, rtol=0.02)


@pytest.mark.parametrize("name", ["smoothgrad", "integrated_gradients"])
def test_initial_relevance_is_taken_once_from_the_clip_itself(name, clip):
    model = small_c3d()
    seen = []

    def top(logits):
        seen.append(logits)
        return sr.one_hot(logits.argmax(1), 5)

    logits = sr.build_method(name, model)(clip, top)[0]
    assert len(seen) == 1
    assert torch.equal(seen[0], model(clip))
    assert torch.equal(logits, model(clip))


# --- the random control ---


def test_random_is_reproducible_and_differs_between_clips_targets_and_seeds(clip):
    model = small_c3d()
    clips = torch.cat([clip, clip * 0.5])
    first, second = attribute("random", model, clips)
    assert torch.equal(attribute("random", model, clip)[0], first)
    assert torch.equal(attribute("random", model, clips[1:])[0], second)
    other = sr.build_method("random", model)(clip, sr.one_hot(2, 5))[1][0]
    for another in (second, other, attribute("random", model, clip, seed=1)[0]):
        assert abs(np.corrcoef(first.flatten(), another.flatten())[0, 1]) < 0.1


@pytest.mark.parametrize(("distribution", "mean", "std"), [("normal", 0, 1), ("uniform", 0.5, 12**-0.5)])
def test_random_has_the_distribution_named(distribution, mean, std, clip):
    summed = attribute("random", small_c3d(), clip, distribution=distribution).sum(1)
    assert float(summed.mean()) == pytest.approx(mean, abs=0.05)
    assert float(summed.std()) == pytest.approx(std, rel=0.05)


# --- relevance at layers ---


def test_dtd_conserves_relevance_layer_by_layer(clip):
    model = small_c3d()
    layers = [name for name, _ in model.named_children()]
    clips = torch.cat([clip, clip.flip(2)])
    hot = sr.one_hot([2, 4], 5)
    shapes, values = {}, clips
    for name, module in model.named_children():
        values = module(values)
        shapes[name] = values.shape
    attributor = sr.build_method("dtd", model, record=layers)
    attributor(clips, hot)
    assert sorted(attributor.recorded) == sorted(layers)
    for name in layers:
        recorded = attributor.recorded[name]
        assert recorded.shape == shapes[name], name
        assert torch.allclose(recorded.double().flatten(1).sum(1), torch.ones(2).double(), atol=1e-4), name
        assert not recorded.requires_grad
    assert torch.equal(attributor.recorded["fc8"], hot)
    channels = attributor.recorded["conv5b"].sum((3, 4))
    assert channels.shape == (2, 32, 2)


@pytest.mark.parametrize("entered", [False, True])
def test_recorded_relevance_equals_a_hook_by_hand(entered, clip):
    model = small_c3d()
    by_hand = {}
    handles = [
        module.register_forward_hook(
            lambda module, args, output, name=name: (
                output.register_hook(lambda grad: by_hand.__setitem__(name, grad.clone())),
                None,
            )[1]
        )
        for name, module in model.named_modules()
        if name in ("relu2", "conv5b")
    ]
    with ZennitGradient(model, EpsilonPlus()) as reference:
        reference(clip.clone(), HOT)
    for handle in handles:
        handle.remove()
    attributor = sr.build_method("lrp_epsilon_plus", model, record=["relu2", "conv5b"])
    if entered:
        with attributor:
            attributor(clip, HOT)
    else:
        attributor(clip, HOT)
    for name, expected in by_hand.items():
        assert norm_relative(attributor.recorded[name], expected) < 1e-6
    assert len(by_hand) == 2


@pytest.mark.parametrize("name", ["gradient", "guided_backprop", "guided_gradcam"])
def test_recording_changes_no_result_and_leaves_no_hook(name, clip):
    model = small_c3d()
    before = snapshot(model, clip)
    plain = attribute(name, model, clip)
    attributor = sr.build_method(name, model, record="conv4a")
    assert torch.equal(attributor(clip, HOT)[1], plain)
    assert snapshot(model, clip) == before
    held = attributor.recorded["conv4a"]
    attributor(clip * 0.5, HOT)
    assert attributor.recorded["conv4a"] is not held
    with pytest.raises(sr.InputError, match="does not run on a clip"):
        attributor(clip[:, :, :, :5], HOT)
    assert attributor.recorded == {}
    assert snapshot(model, clip) == before


def test_recording_leaves_memory_flat(clip):
    attributor = sr.build_method("dtd", small_c3d(width=1, hidden=4), record=["conv5b", "fc8"])
    alive = []
    with attributor:
        for _ in range(20):
            attributor(clip, HOT)
            gc.collect()
            alive.append(sum(1 for item in gc.get_objects() if issubclass(type(item), torch.Tensor)))
    assert alive[-1] == alive[1]


def test_what_guided_gradcam_records_is_the_guided_gradient(clip):
    model = small_c3d()
    recorded = []
    for name in ("guided_gradcam", "guided_backprop"):
        attributor = sr.build_method(name, model, record=["fc6", "conv2"])
        attributor.fast_convolutions = False  # so that both take the same kernels
        attributor(clip, HOT)
        recorded.append(attributor.recorded)
    for name in ("fc6", "conv2"):
        assert torch.equal(recorded[0][name], recorded[1][name])


def test_recording_where_it_cannot_be(clip):
    model = small_c3d()
    with pytest.raises(sr.InputError, match="no layer 'conv5c' \\(did you mean 'conv5b'"):
        sr.build_method("dtd", model, record=["conv5c"])
    for name in ("occlusion", "random", "smoothgrad", "smoothgrad_squared", "integrated_gradients"):
        with pytest.raises(sr.InputError, match="leave out record"):
            sr.build_method(name, model, record=["conv5b"])
    with pytest.raises(sr.InputError, match="no relevance reaches layer 'conv2'"):
        sr.build_method("gradcam", model, record=["conv2"])(clip, HOT)
    twice = nn.Sequential(nn.Flatten(), nn.Linear(12288, 5))
    twice.add_module("again", nn.Linear(5, 5))
    twice.add_module("and_again", twice.again)
    attributor = sr.build_method("gradient", twice.eval(), record=["again"])
    with pytest.raises(sr.InputError, match="'again' runs more than once"):
        attributor(clip, HOT)
    assert attributor.recorded == {}


# --- bad options ---


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smoothgrad", {"samples": 0}, "samples must be a whole number of at least 1"),
        ("smoothgrad", {"batch": 0}, "batch must"),
        ("smoothgrad", {"seed": -1}, "seed must"),
        ("smoothgrad_squared", {"noise_level": 0}, "noise_level must be a positive number"),
        ("smoothgrad", {"noise_level": float("nan")}, "noise_level"),
        ("integrated_gradients", {"steps": 0}, "steps must"),
        ("integrated_gradients", {"steps": 2.5}, "steps must"),
        ("integrated_gradients", {"baseline": "blak"}, "baseline must be 'mean' or 'black'"),
        ("integrated_gradients", {"baseline": torch.tensor([float("nan")])}, "finite"),
        ("random", {"distribution": "cauchy"}, "distribution must be 'normal' or 'uniform'"),
        ("random", {"seed": "x"}, "seed must"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(sr.InputError, match=message) as error:
        sr.build_method(name, small_c3d(), **options)
    assert "\n" not in str(error.value)


def test_a_reference_must_fit_the_clip_and_black_needs_a_spec(clip):
    with pytest.raises(sr.InputError, match="does not broadcast"):
        attribute("integrated_gradients", small_c3d(), clip, baseline=torch.zeros(1, 2, 16, 16, 16))
    bare = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).eval()
    with pytest.raises(sr.InputError, match=r"needs model\.spec"):
        sr.build_method("integrated_gradients", bare, baseline="black")
