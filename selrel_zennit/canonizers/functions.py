"""What a forward computes by functions, as modules that rules can see: sums, averages, pools, activations, layers.

Zennit's rules are hooks of modules. ``as_module`` says which module a node of a traced forward becomes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from zennit.layer import Sum

from ..network.plain_layers import AnyBatchNorm

Names = frozenset[Any]


def _both(functions: tuple[Any, ...], methods: tuple[str, ...] = ()) -> Names:
    return frozenset([("call_function", one) for one in functions] + [("call_method", name) for name in methods])


_ADD = _both((operator.add, operator.iadd, torch.add), ("add", "add_", "__add__", "__iadd__", "__radd__"))
_SUBTRACT = _both((operator.sub, operator.isub, torch.sub), ("sub", "sub_", "__sub__", "__isub__"))
_MULTIPLY = _both((operator.mul, operator.imul, torch.mul), ("mul", "mul_", "__mul__", "__imul__", "__rmul__"))
_DIVIDE = _both((operator.truediv, operator.itruediv, torch.div), ("div", "div_", "__truediv__", "__itruediv__"))
_ARITHMETIC = (
    (_ADD, operator.add),
    (_SUBTRACT, operator.sub),
    (_MULTIPLY, operator.mul),
    (_DIVIDE, operator.truediv),
)
_IN_PLACE = frozenset((operator.iadd, operator.isub, operator.imul, operator.itruediv, torch.relu_, functional.relu_))
_MEAN = _both((torch.mean, torch.sum), ("mean", "sum"))
_AVERAGES = frozenset(
    getattr(functional, f"{kind}avg_pool{dimensions}d") for kind in ("", "adaptive_") for dimensions in (1, 2, 3)
)
_MAXIMA = {
    getattr(functional, f"{kind}{dimensions}d"): getattr(nn, f"{name}{dimensions}d")
    for kind, name in (("max_pool", "MaxPool"), ("adaptive_max_pool", "AdaptiveMaxPool"))
    for dimensions in (1, 2, 3)
}
_RELUS = _both((functional.relu, functional.relu_, torch.relu, torch.relu_), ("relu", "relu_"))
_CLAMPS = _both((torch.clamp, torch.clamp_min), ("clamp", "clamp_", "clamp_min", "clamp_min_"))
_ACTIVATIONS = _both(
    (
        *(functional.relu6, functional.leaky_relu, functional.elu, functional.selu, functional.celu, functional.gelu),
        *(functional.silu, functional.mish, functional.softplus, functional.hardswish, functional.hardsigmoid),
        *(functional.hardtanh, functional.sigmoid, functional.tanh, functional.softsign, functional.logsigmoid),
        *(torch.sigmoid, torch.tanh),
    ),
    ("sigmoid", "tanh"),
)
_LAYERS: dict[Any, Any] = {
    functional.linear: nn.Linear,
    **{getattr(functional, f"conv{dimensions}d"): getattr(nn, f"Conv{dimensions}d") for dimensions in (1, 2, 3)},
}
_CONVOLUTION = ("stride", "padding", "dilation", "groups")
_DEFAULTS = (1, 0, 1, 1)


class ResidualSum(nn.Module):
    """The sum of two tensors, by Zennit's Sum, so that a rule can share relevance between them.

    One that is broadcast takes the share of all its copies.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sum = Sum()

    def forward(self, first: Any, second: Any) -> Any:
        """Return first + second; whatever is not two tensors is added as Python does."""
        if not (isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)):
            return first + second
        shape = torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]
        return self.sum(torch.stack([first.expand(shape), second.expand(shape)], dim=-1))


class _Function(nn.Module):
    """A function of one value, with its other arguments."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        self.function, self.arguments, self.options = function, arguments, options

    def forward(self, input: Any) -> Any:
        """Return what the function does."""
        return self.function(input, *self.arguments, **self.options)

    def extra_repr(self) -> str:
        """Name the function."""
        return str(getattr(self.function, "__name__", self.function))


class Average(_Function, nn.AdaptiveAvgPool3d):
    """An average or a sum as a function computes it; its type is one that composites share relevance in."""


class Elementwise(_Function, nn.Softplus):
    """A function of each value, or of each value and a constant; its type is one whose relevance composites pass on."""


class WithConstant(Elementwise):
    """A value plus, minus, times or divided by what no clip decides; ``first`` says whether that comes first.

    ``constant`` is known, or given in each call by its name: a mask of the clip's size, say.
    """

    def __init__(self, function: Callable[..., Any], constant: Any = None, first: bool = False) -> None:
        super().__init__(function, (), {})
        self.constant, self.first = constant, first

    def forward(self, input: Any, constant: Any = None) -> Any:
        """Return the result; of what is no tensor (a size) too."""
        constant = self.constant if constant is None else constant
        return self.function(constant, input) if self.first else self.function(input, constant)

    def affine(self, channels: int, dimensions: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return scale and shift per channel [C], in float64, None where it is not one of both for each channel."""
        if self.constant is None:
            return None
        value = torch.as_tensor(self.constant).detach().double()
        if value.ndim > 0:
            value = value.reshape((1,) * (dimensions - value.ndim) + tuple(value.shape))
            if value.ndim > dimensions or any(size != 1 for axis, size in enumerate(value.shape) if axis != 1):
                return None
            if value.shape[1] not in (1, channels):
                return None
        value = value.flatten().expand(channels) if value.ndim else value.expand(channels)
        one, zero = torch.ones_like(value), torch.zeros_like(value)
        if self.function is operator.mul:
            return value, zero
        if self.function is operator.truediv:
            return 1 / value, zero
        sign = -one if self.first and self.function is operator.sub else one
        return sign, value if self.function is operator.add or self.first else -value


def as_module(
    node: fx.Node, constants: dict[fx.Node, Any], shapes: set[fx.Node]
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]] | None:
    """Return the module that computes what ``node`` does, and what it takes; None where rules need none there.

    ``constants`` are the nodes that no clip decides, with their values, ``shapes`` those that only its size decides.
    """
    if node.op not in ("call_function", "call_method"):
        return None
    key = (node.op, node.target)
    for names, function in _ARITHMETIC:
        if key in names:
            return _arithmetic(node, function, constants, shapes)
    options = {name: value for name, value in node.kwargs.items() if name not in ("input", "inplace")}
    given = (*node.args, *([node.kwargs["input"]] if "input" in node.kwargs else []))
    if not given or not isinstance(given[0], fx.Node) or given[0] in constants:
        return None
    input, arguments = given[0], given[1:]
    if key in _RELUS or (key in _CLAMPS and _is_relu(arguments, options)):
        return nn.ReLU(), (input,), {}
    if node.target in _LAYERS or node.target is functional.batch_norm:
        made = _layer(node, constants)
        return None if made is None else (made, (input,), {})
    if any(isinstance(value, fx.Node) for value in (*arguments, *options.values())):
        return None
    function = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
    if key in _MEAN or node.target in _AVERAGES:
        return Average(function, arguments, options), (input,), {}
    if node.target in _MAXIMA:
        try:
            return _MAXIMA[node.target](*arguments, **options), (input,), {}
        except TypeError:
            return None
    if key in _ACTIVATIONS:
        return Elementwise(function, arguments, options), (input,), {}
    return None


def _is_relu(arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Say whether a clamp has the lower end 0 and no other."""
    low, high = (options.get(name, (*arguments, None, None)[at]) for at, name in enumerate(("min", "max")))
    return isinstance(low, int | float) and low == 0 and high is None


# What takes of a tensor its size and its kind alone.
_LIKE = (
    frozenset(f"{name}_like" for name in ("empty", "full", "ones", "rand", "randn", "zeros"))
    | {f"new_{name}" for name in ("empty", "full", "ones", "tensor", "zeros")}
    | {"size", "dim", "numel", "getattr"}
)


def of_shape_alone(node: fx.Node, known: set[fx.Node]) -> bool:
    """Say whether nothing but the size of a clip decides a node; ``known`` are earlier ones of that kind."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name == "getattr":
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    return name in _LIKE or (bool(node.all_input_nodes) and all(one in known for one in node.all_input_nodes))


def works_in_place(node: fx.Node) -> bool:
    """Say whether a node changes what it takes."""
    named = node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")
    return named or node.target in _IN_PLACE or node.kwargs.get("inplace") is True


def _arithmetic(
    node: fx.Node, function: Callable[..., Any], constants: dict[fx.Node, Any], shapes: set[fx.Node]
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]] | None:
    options = {**node.kwargs}
    values = [*node.args, *(options.pop(name) for name in ("input", "other") if name in options)]
    if len(values) != 2 or options.pop("alpha", 1) != 1 or options:
        return None  # a multiple, or into a tensor
    fixed = [not isinstance(value, fx.Node) or value in constants or value in shapes for value in values]
    if not any(fixed):
        return (ResidualSum(), tuple(values), {}) if function is operator.add else None
    if all(fixed) or (fixed[0] and function is operator.truediv):
        return None  # a reciprocal is no scaling
    first = fixed[0]
    constant: Any = values[0] if first else values[1]
    if constant in shapes:
        return WithConstant(function, None, first), (values[first],), {"constant": constant}
    constant = constants.get(constant, constant)
    if not isinstance(constant, int | float | torch.Tensor) or isinstance(constant, bool):
        return None
    return WithConstant(function, constant, first), (values[first],), {}


def _layer(node: fx.Node, constants: dict[fx.Node, Any]) -> nn.Module | None:
    """Return the layer that a function computes with weights that no clip decides."""
    target: Any = node.target
    names = {
        functional.linear: ("input", "weight", "bias"),
        functional.batch_norm: (
            "input",
            "running_mean",
            "running_var",
            "weight",
            "bias",
            "training",
            "momentum",
            "eps",
        ),
    }.get(target, ("input", "weight", "bias", *_CONVOLUTION))
    values: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    values.pop("input")
    values = {
        name: constants.get(value, value) if isinstance(value, fx.Node) else value for name, value in values.items()
    }
    if any(isinstance(value, fx.Node) for value in values.values()):
        return None
    if node.target is functional.batch_norm:
        return _batch_norm(**values)
    weight, bias = values.pop("weight"), values.pop("bias", None)
    if not isinstance(weight, torch.Tensor):
        return None
    if node.target is functional.linear:
        made: Any = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        settings = {**dict(zip(_CONVOLUTION, _DEFAULTS, strict=True)), **values}
        inputs = weight.shape[1] * settings["groups"]
        made = _LAYERS[node.target](
            inputs, weight.shape[0], tuple(weight.shape[2:]), **settings, bias=bias is not None, device="meta"
        )
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made  # type: ignore[no-any-return]


def _batch_norm(
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> nn.Module | None:
    if training or not isinstance(running_mean, torch.Tensor) or (weight is None) != (bias is None):
        return None
    made = AnyBatchNorm(len(running_mean), eps, momentum, weight is not None, device="meta")
    made.running_mean, made.running_var = running_mean.detach().clone(), running_var.detach().clone()
    made.num_batches_tracked = None
    if weight is not None:
        made.weight = nn.Parameter(weight.detach(), requires_grad=False)
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made
