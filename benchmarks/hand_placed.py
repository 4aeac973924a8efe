"""Reference networks for rules placed by hand: batch norms merged, residual sums as modules, no canonizer.

``reference`` writes a network of the pack down once more: residual networks and I3D module by module, those with gates,
shifts and an LSTM in hand_placed_frames.py, the others as a copy of their traced graph. ``explain`` gives every module
its rule by its name, and is plain torch for Grad-CAM.
"""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict
from typing import Any

import hand_placed_frames
import torch
from hand_placed_parts import Residual, merged
from torch import fx, nn
from torch.nn.functional import interpolate
from zennit.attribution import Gradient
from zennit.composites import NameMapComposite
from zennit.core import Hook
from zennit.layer import Sum
from zennit.rules import Epsilon, Gamma, Norm, Pass, ReLUGuidedBackprop, ZBox, ZPlus

# The methods that place a rule for every layer.
RULES = ("dtd", "dtd_epsilon_head", "lrp_epsilon_plus", "lrp_epsilon_gamma_box")


class Inception(nn.Module):
    """An inception block: four branches, joined."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.b0 = unit(block.b0)
        self.b1 = nn.Sequential(unit(block.b1a), unit(block.b1b))
        self.b2 = nn.Sequential(unit(block.b2a), unit(block.b2b))
        self.b3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), unit(block.b3b))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the channels of all branches."""
        return torch.cat([self.b0(values), self.b1(values), self.b2(values), self.b3(values)], 1)


def unit(block: Any) -> nn.Module:
    return nn.Sequential(merged(block.conv3d, block.bn), nn.ReLU())


def reference(name: str, model: Any) -> tuple[nn.Module, str]:
    """Return the network written down once more, and the name of its CAM layer there."""
    if name == "r3d_18":
        return _residual(model, model.stem[0], model.stem[1], nn.Identity(), _block_of_torchvision)
    if name.startswith("resnet3d"):
        return _residual(model, model.conv1, model.bn1, nn.MaxPool3d(3, 2, 1), _block_of_pack)
    if name == "i3d":
        return _inception(model)
    if name in ("x3d_s", "tsm_resnet50", "resnet50_lstm"):
        return hand_placed_frames.reference(name, model)
    # The container is gone in a flat graph; what stands behind it is not.
    marked = copy.deepcopy(model)
    if name == "s3d":  # whose forward ends in a mean by a function
        end = {"mean": nn.AdaptiveAvgPool3d(1), "flat": nn.Flatten()}
        marked = nn.Sequential(OrderedDict([*marked.named_children(), *end.items()]))
    marked.set_submodule(model.cam_layer, nn.Sequential(marked.get_submodule(model.cam_layer), nn.Identity()))
    return folded(marked), f"{model.cam_layer}.1"


def _residual(model: Any, first: Any, norm: Any, pool: nn.Module, block: Any) -> tuple[nn.Module, str]:
    layers = [nn.Sequential(*map(block, getattr(model, f"layer{number}"))) for number in range(1, 5)]
    head = [nn.AdaptiveAvgPool3d(1), nn.Flatten(), copy.deepcopy(model.fc)]
    return nn.Sequential(merged(first, norm), nn.ReLU(), pool, *layers, *head), "6"


def _block_of_torchvision(block: Any) -> nn.Module:
    if isinstance(block, nn.Identity):
        return block
    layers = [merged(*block.conv1[:2]), nn.ReLU(), merged(*block.conv2[:2])]
    return Residual(layers, nn.Identity() if block.downsample is None else merged(*block.downsample))


def _block_of_pack(block: Any) -> nn.Module:
    if isinstance(block, nn.Identity):
        return block
    layers: list[nn.Module] = []
    for number in range(1, block.steps + 1):
        layers += [merged(getattr(block, f"conv{number}"), getattr(block, f"bn{number}")), nn.ReLU()]
    around = block.downsample
    if around is None:
        return Residual(layers[:-1], nn.Identity())
    return Residual(layers[:-1], merged(*around) if isinstance(around, nn.Sequential) else copy.deepcopy(around))


def _inception(model: Any) -> tuple[nn.Module, str]:
    made = nn.Sequential()
    for name, module in model.named_children():
        if hasattr(module, "b3b"):
            made.add_module(name, Inception(module))
        elif hasattr(module, "bn"):
            made.add_module(name, unit(module))
        elif name != "logits":
            made.add_module(name, copy.deepcopy(module))
    made.add_module("logits", copy.deepcopy(model.logits.conv3d))
    made.add_module("mean", nn.AdaptiveAvgPool3d(1))
    made.add_module("flat", nn.Flatten())
    return made, "Mixed_5c"


class _Layers(fx.Tracer):
    """Sees a convolution as one, whichever class made it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether the tracer stops at a module."""
        return isinstance(m, nn.Conv3d) or super().is_leaf_module(m, module_qualified_name)


def folded(model: nn.Module) -> fx.GraphModule:
    """Return a network's traced graph: batch norms merged into the convolution before them, additions as Sum."""
    graph = fx.GraphModule(model, _Layers().trace(model))
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], nn.BatchNorm3d):
            before = node.args[0]
            graph.set_submodule(before.target, merged(modules[before.target], modules[node.target]))
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)
        elif node.target in (operator.add, operator.iadd):
            graph.add_submodule(f"sum_{node.name}", Sum())
            with graph.graph.inserting_before(node):
                stacked = graph.graph.call_function(torch.stack, (list(node.args), -1))
                total = graph.graph.call_module(f"sum_{node.name}", (stacked,))
            node.replace_all_uses_with(total)
            graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def rules(method: str, network: nn.Module, low: torch.Tensor, high: torch.Tensor) -> list[tuple[list[str], Hook]]:
    """Return (names, rule) for every module of the network, the rules of a method with its default options.

    A module of the networks in hand_placed_frames.py that is none of torch's or Zennit's says in ``rule`` what its is.
    """
    names: dict[str, list[str]] = {"conv": [], "linear": [], "relu": [], "swish": [], "share": []}
    shares = (Sum, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveAvgPool2d)
    convolutions = (nn.Conv2d, nn.Conv3d)
    kinds = (("linear", nn.Linear), ("relu", nn.ReLU), ("swish", nn.SiLU), ("share", shares), ("conv", convolutions))
    own: list[tuple[list[str], Hook]] = []
    for name, module in network.named_modules():
        for kind, types in kinds:
            if isinstance(module, types):
                names[kind].append(name)
        if hasattr(module, "rule"):
            own.append(([name], module.rule(method)))
    if not names["linear"]:  # S3D and I3D: the class layer is the convolution written down last
        names["linear"] = [names["conv"].pop()]
    first, others = names["conv"][:1], names["conv"][1:]
    if isinstance(network.get_submodule(first[0]), nn.Conv2d):
        low, high = low.squeeze(2), high.squeeze(2)
    if method in ("guided_backprop", "guided_gradcam"):
        return [(names["relu"], ReLUGuidedBackprop())]
    shared = [*own, (names["relu"] + names["swish"], Pass()), (names["share"], Norm())]
    if method == "dtd":
        rule = ZPlus(zero_params="bias")
        return [*shared, (first, ZBox(low, high, zero_params="bias")), (others + names["linear"], rule)]
    if method == "dtd_epsilon_head":
        layers = others + names["linear"]
        box, plus = ZBox(low, high, zero_params="bias"), ZPlus(zero_params="bias")
        return [*shared, (first, box), (layers[:-1], plus), (layers[-1:], Epsilon(zero_params="bias"))]
    if method == "lrp_epsilon_plus":
        return [*shared, (first + others, ZPlus()), (names["linear"], Epsilon())]
    return [*shared, (first, ZBox(low, high)), (others, Gamma()), (names["linear"], Epsilon())]


def explain(
    method: str, network: nn.Module, layer: str, clip: torch.Tensor, target: torch.Tensor, bounds: Any
) -> torch.Tensor:
    """Return the attribution of a method, [B,3,T,H,W]; ``target`` is the initial relevance [B,K]."""
    if method == "gradcam":
        return (_cam(network, layer, clip, target) / 3).expand_as(clip)
    composite = NameMapComposite(rules(method, network, *bounds))
    with Gradient(network, composite) as attributor:
        _, attribution = attributor(clip, target)
    return attribution * _cam(network, layer, clip, target) if method == "guided_gradcam" else attribution.detach()


def _cam(network: nn.Module, layer: str, clip: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    logits = network(clip.clone().requires_grad_())
    handle.remove()
    (gradient,) = torch.autograd.grad(logits, kept[0], target)
    cam = (gradient.mean((2, 3, 4), keepdim=True) * kept[0]).sum(1, keepdim=True).relu()
    return interpolate(cam.detach(), size=clip.shape[2:], mode="trilinear", align_corners=False)
