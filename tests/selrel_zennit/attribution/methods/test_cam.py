"""Grad-CAM and Guided Grad-CAM against Captum, pytorch-grad-cam and formulas."""

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

import selrel_zennit as sr
from maps import norm_relative
from networks import small_c3d

HOT = sr.one_hot(1, 5)


def in_place(model):
    """Put every ReLU in place but the first, which has the clip's own values before it."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            module.inplace = name != "relu1"
    return model


def test_gradcam_equals_captum(clip):
    from captum.attr import LayerAttribution, LayerGradCam

    model = small_c3d()
    _, relevance = sr.build_method("gradcam", model, layer="relu4b")(clip, HOT)
    expected = LayerGradCam(model, model.relu4b).attribute(clip, target=1, relu_attributions=True)
    expected = LayerAttribution.interpolate(expected, tuple(clip.shape[2:]), "trilinear").detach()
    # Captum sums over channels where the paper does; it averages nothing else, so that even the scale agrees.
    assert norm_relative(relevance.sum(1, keepdim=True), expected) < 1e-6
    assert relevance.sum() > 0


def test_gradcam_equals_pytorch_grad_cam(clip):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = small_c3d().requires_grad_(True)
    with GradCAM(model=model, target_layers=[model.relu5b]) as peer:
        peer(clip, targets=[ClassifierOutputTarget(1)])
        held = peer.activations_and_grads
        activations, gradients = held.activations[0].numpy(), held.gradients[0].numpy()
        cam = peer.get_cam_image(clip, model.relu5b, [ClassifierOutputTarget(1)], activations, gradients, False)
    _, relevance = sr.build_method("gradcam", model, layer="relu5b")(clip, HOT)
    # It scales each map to 0…1 and resizes with SciPy; the map before that is what can be compared.
    expected = interpolate(torch.from_numpy(cam).relu()[:, None], clip.shape[2:], mode="trilinear", align_corners=False)
    assert norm_relative(relevance.sum(1, keepdim=True), expected) < 1e-5


def test_gradcam_with_weights_per_step_equals_the_formula(clip):
    model = small_c3d()
    layers = dict(model.named_children())
    names = list(layers)
    values = clip
    for name in names[: names.index("relu4b") + 1]:
        values = layers[name](values)
    activations = values.requires_grad_()
    for name in names[names.index("relu4b") + 1 :]:
        values = layers[name](values)
    values[0, 1].backward()
    channels, steps, height, width = activations.shape[1:]
    cam = torch.zeros(1, 1, steps, height, width)
    for step in range(steps):
        for channel in range(channels):
            weight = activations.grad[0, channel, step].sum() / (height * width)
            cam[0, 0, step] += weight * activations[0, channel, step].detach()
    assert steps == 4
    expected = interpolate(cam.relu(), clip.shape[2:], mode="trilinear", align_corners=False)
    relevance = sr.build_method("gradcam", model, layer="relu4b", pool="step")(clip, HOT)[1]
    assert norm_relative(relevance.sum(1, keepdim=True), expected) < 1e-5
    by_volume = sr.build_method("gradcam", model, layer="relu4b")(clip, HOT)[1]
    assert norm_relative(by_volume, relevance) > 0.1


def test_gradcam_defaults_to_the_models_layer_and_works_in_front_of_in_place_operations(clip):
    model = in_place(small_c3d())
    default = sr.build_method("gradcam", model)(clip, HOT)[1]
    assert torch.equal(default, sr.build_method("gradcam", model, layer="relu5b")(clip, HOT)[1])
    sr.build_method("gradcam", model, layer="conv5b")(clip, HOT)


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize("layer", ["relu5b", "conv4b", "pool2"])
@pytest.mark.parametrize("build", [small_c3d, lambda: in_place(small_c3d())])
def test_guided_gradcam_equals_captum(layer, build, clip):
    from captum.attr import GuidedGradCam

    clips = torch.cat([clip, clip.flip(2) * 0.5])
    reference = small_c3d()
    peer = GuidedGradCam(reference, dict(reference.named_modules())[layer])
    expected = peer.attribute(clips.clone().requires_grad_(), target=1, interpolate_mode="trilinear")
    relevance = sr.build_method("guided_gradcam", build(), layer=layer)(clips, HOT.expand(2, -1))[1]
    assert expected.abs().sum() > 0
    assert norm_relative(relevance, expected) < 1e-5


@pytest.mark.parametrize("pool", ["volume", "step"])
def test_guided_gradcam_is_the_product_with_the_undivided_cam(pool, clip):
    model = small_c3d()
    cam = sr.build_method("gradcam", model, layer="relu4b", pool=pool)(clip, HOT)[1].sum(1, keepdim=True)
    guided = sr.build_method("guided_backprop", model)(clip, HOT)[1]
    relevance = sr.build_method("guided_gradcam", model, layer="relu4b", pool=pool)(clip, HOT)[1]
    assert norm_relative(relevance, cam * guided) < 1e-6


def test_guided_gradcam_runs_the_trunk_once_forward_and_once_backward(clip):
    model = small_c3d()
    forward, backward = [], []
    for name in ("conv2", "fc8"):
        module = dict(model.named_modules())[name]

        def watch(module, args, output, name=name):
            forward.append(name)
            output.register_hook(lambda gradient: backward.append(name))

        module.register_forward_hook(watch)
    sr.build_method("guided_gradcam", model)(clip, HOT)
    assert forward == ["conv2", "fc8"]
    assert sorted(backward) == ["conv2", "fc8", "fc8"]  # the small head twice: plain and guided


@pytest.mark.parametrize("name", ["gradcam", "guided_gradcam"])
def test_bad_input(name, clip):
    model = small_c3d()
    cases = [
        ({"layer": "relu5c"}, "no layer 'relu5c' \\(did you mean 'relu5b'"),
        ({"pool": "time"}, "pool must be 'volume' or 'step'"),
        ({"layer": "fc6"}, "choose a convolutional layer"),
    ]
    for options, message in cases:
        with pytest.raises(sr.InputError, match=message) as error:
            sr.build_method(name, model, **options)(clip, HOT)
        assert "\n" not in str(error.value)
    bare = nn.Sequential(nn.Conv3d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2)).eval()
    with pytest.raises(sr.InputError, match=f"^{name} needs a layer: set model.cam_layer"):
        sr.build_method(name, bare)
    shared = nn.Conv3d(3, 3, 1)
    twice = nn.Sequential(shared, nn.ReLU(), shared, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 5)).eval()
    with pytest.raises(sr.InputError, match="'0' runs more than once"):
        sr.build_method(name, twice, layer="0")(clip, HOT)
