"""Networks that guided backpropagation, the deconvnet and guided Grad-CAM do not fit: they would be right halfway."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import selrel_zennit as sr

METHODS = ("guided_backprop", "deconvnet", "guided_gradcam")
SPEC = sr.ClipSpec(frames=4, short_side=8, crop=8)


class Network(nn.Module):
    """Two ReLUs, the second one as it is given."""

    def __init__(self, relu):
        super().__init__()
        self.conv1, self.relu1, self.conv2 = nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3)
        self.end = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 5))
        self.relu2, self.spec, self.cam_layer = relu, SPEC, "conv2"

    def forward(self, clip):
        return self.end(self.relu2(self.conv2(self.relu1(self.conv1(clip)))))


@pytest.fixture
def clip():
    return torch.randn(1, *SPEC.shape)


def attribute(name, relu, clip):
    return sr.build_method(name, Network(relu).eval())(clip, sr.one_hot(1, 5))[1]


@pytest.mark.parametrize("name", METHODS)
def test_a_network_without_relu_modules_is_refused(name):
    model = nn.Sequential(nn.Conv3d(3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(2, 2)).eval()
    with pytest.raises(sr.InputError, match="need the network's ReLUs as modules"):
        sr.build_method(name, model, **({"layer": "0"} if name == "guided_gradcam" else {}))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "relu",
    [
        torch.relu,
        torch.relu_,
        functional.relu,
        functional.relu6,
        lambda values: values.relu(),
        lambda values: functional.relu(values, inplace=True),
        lambda values: values.clamp(min=0),
        lambda values: torch.clamp(values, 0.0),
        lambda values: values.clamp_min(0),
    ],
)
def test_a_relu_that_is_no_module_is_refused(name, relu, clip):
    with pytest.raises(sr.InputError, match=r"Network calls \w+, a ReLU that guided rules do not see.*: use nn\.ReLU"):
        attribute(name, relu, clip)
    # The watch ends with the pass, also with one that was refused.
    torch.relu(clip)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "relu",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        torch.tanh,
        lambda values: values.clamp(-1, 1),
        lambda values: values.clamp(0, 1),
        lambda values: values * torch.ones(4).relu()[:, None, None, None].detach(),
    ],
)
def test_what_is_no_relu_is_left_alone(name, relu, clip):
    assert attribute(name, relu, clip).any()
