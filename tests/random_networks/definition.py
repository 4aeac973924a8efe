"""The slow definition of seven methods on a network's own graph, in float64, that a product is held against.

It shares no code with Zennit, the package's rules and canonizers, or the compiler. What it decides, beyond the papers:

- The class layer is the layer that gave the logits: the first one met on the way down from them.
- A batch norm directly behind a layer, which nothing else reads, is part of it: weight and bias are those of both. So
  are fixed factors and shifts there, for each channel or for all (a frozen batch norm). Any other batch norm passes
  relevance. For one before a convolution that is the same as giving it the scale: x·w is what it was.
- z^B holds in every convolution reached from the clip without a layer or an activation in between. What comes between
  (padding, scaling, batch norm, pools) is done to the box too; a factor below 0 swaps its ends.
- Activations pass relevance, and so do all other fixed factors and shifts.
- Sums of two, average pools, means and sums over axes share in proportion: R_i = x_i R ÷ (Σ ± ε). What a broadcast
  repeats gets all of its shares.
- A max pool hands relevance to its winner, the first among equals.
- A product hands relevance to its first factor, the signal; the second is the gate.
- Whatever moves values about (views, slices, padding, concatenation) moves relevance back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from . import rules
from .graph import Graph, Node, UndefinedError, capture, value_of
from .rules import Box, Layer

METHODS = (
    "dtd",
    "lrp_epsilon_plus",
    "lrp_alpha2_beta1",
    "lrp_epsilon_gamma_box",
    "excitation_backprop",
    "guided_backprop",
    "gradcam",
)
_LAYERS = {"convolution", "addmm", "mm"}
_ACTIVATIONS = {
    *("relu", "clamp", "clamp_min", "hardtanh", "sigmoid", "tanh", "elu", "leaky_relu", "silu", "gelu", "softplus"),
    *("hardswish", "hardsigmoid"),
}
_MEANS = {"mean", "sum", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"}
_MAXIMA = {"max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool3d"}
_MOVES = {
    *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "slice", "select", "expand", "cat", "stack"),
    *("unsqueeze", "squeeze", "constant_pad_nd", "reflection_pad2d", "reflection_pad3d", "replication_pad3d"),
    *(
        "replication_pad2d",
        "clone",
        "alias",
        "copy",
        "slice_scatter",
        "as_strided_",
        "index_select",
        "split",
        "split_with_sizes",
        "unbind",
    ),
}
_GUIDED = {"relu", "clamp", "clamp_min", "hardtanh"}


class Definition:
    """One network on one clip: ``model`` and ``clip`` [1,3,T,H,W] are float64; ``low`` and ``high`` bound the clip."""

    def __init__(self, model: nn.Module, clip: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
        self.graph: Graph = capture(model, clip, getattr(model, "cam_layer", None))
        self.bounds = (low.double().expand_as(clip), high.double().expand_as(clip))
        self.layers: dict[Node, Layer] = {}
        self.merged: set[Node] = set()
        for node in self.graph.nodes:
            if node.varies and node.name in _LAYERS:
                self.layers[node] = self._layer(node)
        self.head = self._class_layer()

    @property
    def logits(self) -> torch.Tensor:
        """The bare network's, [1,K]."""
        return self.graph.logits.value

    def explain(self, method: str, target: int) -> torch.Tensor:
        """Return the map of a method for one class, [1,3,T,H,W]. Raises UndefinedError where it says nothing."""
        start = functional.one_hot(torch.tensor([target]), self.logits.shape[1]).double()
        if method == "gradcam":
            return self._gradcam(start)
        guided = method == "guided_backprop"
        flow: dict[Node, torch.Tensor] = {self.graph.logits: start}
        for node in reversed(self.graph.nodes):
            if node not in flow or not node.varies or node is self.graph.clip:
                continue
            value = flow.pop(node)
            parts = self._gradient(node, value, guided) if guided else self._relevance(node, value, method)
            for one, part in parts.items():
                flow[one] = flow[one] + part if one in flow else part
        return flow.get(self.graph.clip, torch.zeros_like(self.graph.clip.value))

    def _gradcam(self, start: torch.Tensor) -> torch.Tensor:
        """Selvaraju et al. 2017 over the whole stack; a third of it on each channel."""
        layer, clip = self.graph.layer, self.graph.clip.value
        flow = {self.graph.logits: start}
        gradient = torch.zeros_like(layer.value)
        for node in reversed(self.graph.nodes):
            if node in flow and node.varies:
                value = flow.pop(node)
                if node is layer:
                    gradient = value
                    break
                for one, part in self._gradient(node, value, False).items():
                    flow[one] = flow[one] + part if one in flow else part
        cam = (gradient.mean((2, 3, 4), keepdim=True) * layer.value).sum(1, keepdim=True).clamp(min=0)
        cam = functional.interpolate(cam, size=clip.shape[2:], mode="trilinear", align_corners=False)
        return (cam / 3).expand_as(clip)

    def _gradient(self, node: Node, value: torch.Tensor, guided: bool) -> dict[Node, torch.Tensor]:
        parts = vjp(node, value)
        if guided and node.name in _GUIDED and _is_relu(node):
            return {one: part.clamp(min=0) for one, part in parts.items()}
        return parts

    def _relevance(self, node: Node, relevance: torch.Tensor, method: str) -> dict[Node, torch.Tensor]:
        inputs = list(node.inputs())
        if node in self.layers:
            return {inputs[0]: self._through_layer(node, relevance, method)}
        if node in self.merged or node.name in _ACTIVATIONS or node.name == "native_batch_norm":
            return {inputs[0]: relevance}
        if node.name in _MEANS:
            share = vjp(node, relevance / rules.stable(node.value))
            return {one: one.value * part for one, part in share.items()}
        if node.name in _MAXIMA or node.name in _MOVES:
            return vjp(node, relevance)
        if node.name in {"add", "sub", "mul", "div"}:
            return self._through_arithmetic(node, relevance)
        raise UndefinedError(f"no rule for {node}")

    def _through_layer(self, node: Node, relevance: torch.Tensor, method: str) -> torch.Tensor:
        layer = self.layers[node]
        # In a copy, biases are those of the layer with what was merged into it.
        if method == "excitation_backprop":
            return rules.z_plus(layer, relevance, bias=False)
        box = self._box(next(node.inputs())) if node.name == "convolution" else None
        if method in ("dtd", "lrp_epsilon_gamma_box") and box is not None:
            return rules.z_box(layer, relevance, box)
        if method == "dtd":
            return rules.z_plus(layer, relevance, bias=False)
        if node.name != "convolution" or node is self.head:
            return rules.epsilon(layer, relevance)
        if method == "lrp_epsilon_plus":
            return rules.z_plus(layer, relevance, bias=True)
        return (rules.alpha2_beta1 if method == "lrp_alpha2_beta1" else rules.gamma)(layer, relevance)

    def _through_arithmetic(self, node: Node, relevance: torch.Tensor) -> dict[Node, torch.Tensor]:
        first, second = node.args[:2]
        varying = [one for one in (first, second) if isinstance(one, Node) and one.varies]
        if len(varying) == 1 or node.name == "mul":
            return {varying[0]: _summed(relevance, varying[0].value)}  # a fixed factor or shift; a gate
        if node.name == "div":
            raise UndefinedError("a quotient of two tensors of the clip")
        factor = node.kwargs.get("alpha", 1) * (1 if node.name == "add" else -1)
        share = relevance / rules.stable(node.value)
        parts = {first: _summed(first.value * share, first.value)}
        of_second = _summed(factor * second.value * share, second.value)
        parts[second] = parts[second] + of_second if second in parts else of_second
        return parts

    def _layer(self, node: Node) -> Layer:
        """Return a layer with the batch norms that are part of it."""
        values = value_of(node.args)
        if node.name == "convolution":
            input, weight, bias = node.args[:3]
            rest = values[3:]
            axis = 1 if rest[3] else 0

            def apply(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
                return torch.ops.aten.convolution(x, w, None, *rest)

            if rest[3]:
                raise UndefinedError("a transposed convolution")
        else:
            bias, input, weight = node.args if node.name == "addmm" else (None, *node.args)
            axis, apply = 1, torch.matmul
        if (isinstance(weight, Node) and weight.varies) or not input.varies:
            raise UndefinedError("a product with a weight that depends on the clip")
        weight, bias = weight.value, None if bias is None else bias.value
        at = node
        while len(at.users) == 1:
            behind = at.users[0]
            if (
                node.name == "mm"
                and behind.name in ("view", "_unsafe_view")
                and behind.value.shape[-1] == at.value.shape[-1]
            ):
                # F.linear on more than two axes: a product of matrices, then its own axes again, then the bias.
                at = behind
                continue
            scale, shift = _affine(behind, at, node.name != "convolution")
            if scale is None:
                break
            at = behind
            self.merged.add(at)
            weight = weight * scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
            bias = shift if bias is None else bias * scale + shift
        if bias is not None:
            bias = bias.reshape(1, -1, *[1] * (node.value.ndim - 2))
        return Layer(input.value, weight, bias, apply)

    def _class_layer(self) -> Node | None:
        node = self.graph.logits
        while node not in self.layers:
            inputs = list(node.inputs())
            if len(inputs) != 1:
                return None
            node = inputs[0]
        return node

    def _box(self, node: Node) -> Box | None:
        """Return the bounds of a node's values, None behind a layer or an activation."""
        if node is self.graph.clip:
            return self.bounds
        known = _MOVES | _MEANS | _MAXIMA | {"add", "sub", "mul", "div", "native_batch_norm"}
        if node in self.layers or node in self.merged or node.name not in known:
            return None
        boxes = {one: self._box(one) for one in node.inputs()}
        if any(box is None for box in boxes.values()):
            return None
        ends = []
        for end in (0, 1):
            given = {one: box[end] for one, box in boxes.items() if box is not None}
            ends.append(run(node, given))
        # Where the operation falls, the ends have changed places; it rises or falls at each place alone.
        return torch.minimum(*ends), torch.maximum(*ends)


def run(node: Node, given: dict[Node, torch.Tensor]) -> torch.Tensor:
    """Return what an operation makes of other values."""

    def put(one: Any) -> Any:
        return given.get(one, one.value) if isinstance(one, Node) else one

    result = node.function(*tree_map(put, node.args), **tree_map(put, node.kwargs))
    return result[0] if node.extra is not None else result


def vjp(node: Node, cotangent: torch.Tensor) -> dict[Node, torch.Tensor]:
    """Return what flows back through an operation to each of its inputs that vary."""
    with torch.enable_grad():
        leaves = {one: one.value.detach().clone().requires_grad_() for one in node.inputs()}
        found = torch.autograd.grad(run(node, leaves), list(leaves.values()), cotangent, allow_unused=True)
    return {one: part for one, part in zip(leaves, found, strict=True) if part is not None}


def _summed(relevance: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return relevance of a broadcast tensor, summed to the tensor's own shape."""
    return relevance.sum_to_size(like.shape)


def _is_relu(node: Node) -> bool:
    low = 0 if node.name == "relu" else node.args[1] if len(node.args) > 1 else node.kwargs.get("min", -1)
    return low == 0


def _affine(node: Node, behind: Node, last: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return scale and shift, [C] both, of a batch norm or of constants behind a layer; (None, None) of all else.

    ``last``: channels are the last axis, as a linear layer has them, not the second.
    """
    if node.name == "native_batch_norm" and node.args[0] is behind:
        weight, bias, mean, var, _, _, eps = value_of(node.args[1:])
        scale = (torch.ones_like(var) if weight is None else weight) / torch.sqrt(var + eps)
        return scale, (torch.zeros_like(mean) if bias is None else bias) - mean * scale
    if node.name in ("mul", "add", "sub", "div") and node.args[0] is behind and not node.kwargs:
        other = node.args[1]
        value = other.value if isinstance(other, Node) else torch.tensor(other).double()
        channels, axis = behind.value.shape[-1 if last else 1], value.ndim - 1 if last else 1
        per_channel = value.ndim > axis and value.numel() == value.shape[axis] == channels
        if other is not behind and not getattr(other, "varies", False) and (per_channel or value.numel() == 1):
            value = value.flatten().expand(channels)
            one, zero = torch.ones(channels).double(), torch.zeros(channels).double()
            forms = {"mul": (value, zero), "div": (1 / value, zero), "add": (one, value), "sub": (one, -value)}
            return forms[node.name]
    return None, None
