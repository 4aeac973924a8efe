"""Which values are never negative, and what follows: half of the z⁺ and αβ branches are zero and vanish.

The analysis reads operations and constants, never a rule's or a model's name. It holds for finite values: zero times
anything counts as zero.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import fx

from ..rewriting import Convolution, aten, finish, get_constant
from .max_pools import FIRST_MAXIMA


class Sign(enum.IntFlag):
    """What values can be besides zero."""

    ZERO = 0
    POSITIVE = 1
    NEGATIVE = 2
    ANY = 3


Signs = dict[fx.Node, Sign]


def find_signs(graph: fx.GraphModule) -> Signs:
    """Return the sign of every value of a lowered graph: ``Sign.POSITIVE`` means ≥ 0, ``Sign.ZERO`` zero everywhere."""
    signs: Signs = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            signs[node] = _of_constant(get_constant(graph, str(node.target)))
        elif node.op == "call_function" and node.target in _RULES:
            signs[node] = _RULES[node.target](node, lambda value: _of_argument(value, signs))
        else:
            signs[node] = Sign.ANY
    return signs


def eliminate_zeros(graph: fx.GraphModule) -> int:
    """Replace what is zero by zeros and what changes nothing by its input, exactly; return how many nodes went."""
    signs = find_signs(graph)
    before = len(graph.graph.nodes)
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        with graph.graph.inserting_before(node):
            replacement = _replacement(graph.graph, node, signs)
        if replacement is not None:
            if replacement not in signs:
                replacement.meta = {**node.meta, **replacement.meta}
                signs[replacement] = signs[node]
            node.replace_all_uses_with(replacement)
    finish(graph)
    return before - len(graph.graph.nodes)


def _replacement(graph: fx.Graph, node: fx.Node, signs: Signs) -> fx.Node | None:
    value = node.meta["val"] if isinstance(node.meta.get("val"), torch.Tensor) else None
    if value is None:
        return None
    first = node.args[0] if node.args else None
    if signs[node] == Sign.ZERO and node.target != aten.full.default and value.is_floating_point():
        return graph.call_function(
            aten.full.default, (list(value.shape), 0.0), {"dtype": value.dtype, "device": value.device}
        )
    if isinstance(first, fx.Node):
        sign = signs[first]
        if node.target in (aten.relu.default, aten.abs.default) and sign <= Sign.POSITIVE:
            return first
        if node.target == aten.clamp.default:
            low, high = (*node.args[1:], None, None)[:2]
            if (low is None or (low <= 0 and sign <= Sign.POSITIVE)) and (  # type: ignore[operator]
                high is None or (high >= 0 and not sign & Sign.POSITIVE)  # type: ignore[operator]
            ):
                return first
    if node.target in (aten.convolution.default, aten.linear.default) and _of_argument(_bias(node), signs) == Sign.ZERO:
        if _bias(node) is not None:
            return graph.call_function(node.target, (*node.args[:2], None, *node.args[3:]))
    elif (view := Convolution.of(node)) is not None and signs[view.input] == Sign.ZERO:
        bias = view.bias
        assert bias is not None  # a product of nothing without one is nothing, above
        column = graph.call_function(aten.reshape.default, (bias, [1, -1] + [1] * (value.ndim - 2)))
        column.meta["val"] = value.new_empty([1, value.shape[1]] + [1] * (value.ndim - 2))
        signs[column] = signs[bias]
        return graph.call_function(aten.expand.default, (column, list(value.shape)))
    if node.target == aten.add.Tensor:
        return _stabilised(graph, node, signs)
    return None


def _bias(node: fx.Node) -> Any:
    return node.args[2] if len(node.args) > 2 else None


def _stabilised(graph: fx.Graph, node: fx.Node, signs: Signs) -> fx.Node | None:
    """Zennit's x + ((x = 0) + sign(x))·ε is x + ε where x ≥ 0, and x ± ε in half the operations elsewhere."""
    x, product = node.args[:2]
    if not isinstance(x, fx.Node) or not _is(product, aten.mul.Tensor):
        return None
    direction, epsilon = product.args  # type: ignore[union-attr]
    if not isinstance(epsilon, float) or not _is(direction, aten.add.Tensor) or node.kwargs:
        return None
    equal, sign = direction.args  # type: ignore[union-attr]
    if _is(equal, aten._to_copy.default):
        equal = equal.args[0]  # type: ignore[union-attr]
    if not (_is(equal, aten.eq.Scalar) and _is(sign, aten.sign.default)):
        return None
    if equal.args != (x, 0.0) or sign.args != (x,):  # type: ignore[union-attr]
        return None
    if signs[x] <= Sign.POSITIVE:
        return graph.call_function(aten.add.Tensor, (x, epsilon))
    value = x.meta["val"]
    like = {"dtype": value.dtype, "device": value.device}
    down, up = (graph.call_function(aten.scalar_tensor.default, (e,), like) for e in (-epsilon, epsilon))
    below = graph.call_function(aten.lt.Scalar, (x, 0.0))
    step = graph.call_function(aten.where.self, (below, down, up))
    for made, meta in ((down, value.new_empty(())), (up, value.new_empty(())), (below, value < 0), (step, value)):
        made.meta["val"] = meta
        signs[made] = Sign.ANY
    return graph.call_function(aten.add.Tensor, (x, step))


def _is(value: Any, target: Any) -> bool:
    return isinstance(value, fx.Node) and value.target == target


# --- the sign of each operation ---

Of = Callable[[Any], Sign]
Rule = Callable[[fx.Node, Of], Sign]


def _of_constant(value: torch.Tensor) -> Sign:
    if value.numel() == 0 or value.dtype == torch.bool or value.is_complex():
        return Sign.POSITIVE
    low, high = (float(extreme) for extreme in torch.aminmax(value))
    # NaN compares as false with everything, so it ends as ANY.
    return (Sign.ZERO if high <= 0 else Sign.POSITIVE) | (Sign.ZERO if low >= 0 else Sign.NEGATIVE)


def _of_argument(value: Any, signs: Signs) -> Sign:
    if isinstance(value, fx.Node):
        return signs[value]
    if value is None:
        return Sign.ZERO
    if isinstance(value, bool | int | float):
        return Sign.POSITIVE if value > 0 else Sign.NEGATIVE if value < 0 else Sign.ZERO
    return Sign.ANY


def negated(sign: Sign) -> Sign:
    """Return the sign of −x."""
    return Sign(((sign & 1) << 1) | (sign >> 1))


def product(a: Sign, b: Sign) -> Sign:
    """Return the sign of x·y; also of x ÷ y, of a matrix product and of a convolution."""
    if Sign.ZERO in (a, b) and (a == 0 or b == 0):
        return Sign.ZERO
    result = Sign.ZERO
    if (a & 1 and b & 1) or (a & 2 and b & 2):
        result |= Sign.POSITIVE
    if (a & 1 and b & 2) or (a & 2 and b & 1):
        result |= Sign.NEGATIVE
    return result


def _add(node: fx.Node, of: Of) -> Sign:
    return of(node.args[0]) | product(of(node.args[1]), of(node.kwargs.get("alpha", 1)))


def _sub(node: fx.Node, of: Of) -> Sign:
    return of(node.args[0]) | negated(product(of(node.args[1]), of(node.kwargs.get("alpha", 1))))


def _product(node: fx.Node, of: Of) -> Sign:
    return product(of(node.args[0]), of(node.args[1]))


def _affine(node: fx.Node, of: Of) -> Sign:
    return product(of(node.args[0]), of(node.args[1])) | of(_bias(node))


def _addmm(node: fx.Node, of: Of) -> Sign:
    return Sign.ANY if node.kwargs else of(node.args[0]) | product(of(node.args[1]), of(node.args[2]))


def _clamp(node: fx.Node, of: Of) -> Sign:
    sign, (low, high) = of(node.args[0]), (*node.args[1:], None, None)[:2]
    result = Sign.ZERO
    if (sign & Sign.POSITIVE and (high is None or high > 0)) or (low is not None and low > 0):  # type: ignore[operator]
        result |= Sign.POSITIVE
    if (sign & Sign.NEGATIVE and (low is None or low < 0)) or (high is not None and high < 0):  # type: ignore[operator]
        result |= Sign.NEGATIVE
    return result


def _power(node: fx.Node, of: Of) -> Sign:
    exponent = node.args[1]
    even = isinstance(exponent, int | float) and exponent > 0 and exponent % 2 == 0
    sign = of(node.args[0])
    return (Sign.POSITIVE if sign else Sign.ZERO) if even else sign if sign == Sign.POSITIVE else Sign.ANY


def _maximum(node: fx.Node, of: Of) -> Sign:
    a, b = of(node.args[0]), of(node.args[1])
    return ((a | b) & Sign.POSITIVE) | (a & b & Sign.NEGATIVE)


def _pad(node: fx.Node, of: Of) -> Sign:
    return of(node.args[0]) | of(node.args[2] if len(node.args) > 2 else 0)


def _same(node: fx.Node, of: Of) -> Sign:
    return of(node.args[0])


def _never_negative(node: fx.Node, of: Of) -> Sign:
    return Sign.POSITIVE


_SAME = """_to_copy.default amax.default amin.default avg_pool2d.default avg_pool3d.default erf.default expand.default
    flip.default gelu.default index_select.default leaky_relu.default max_pool2d.default max_pool3d.default mean.default
    mean.dim permute.default reshape.default round.default select.int sign.default slice.Tensor squeeze.dim
    squeeze.dims sum.default sum.dim_IntList t.default tanh.default transpose.int unsqueeze.default""".split()  # noqa: SIM905
_NEVER_NEGATIVE = """_softmax.default argmax.default bitwise_and.Tensor bitwise_not.default bitwise_or.Tensor eq.Scalar
    eq.Tensor exp.default ge.Scalar ge.Tensor gt.Scalar gt.Tensor le.Scalar le.Tensor logical_and.default
    logical_not.default logical_or.default lt.Scalar lt.Tensor ne.Scalar ne.Tensor rsqrt.default sigmoid.default
    sqrt.default""".split()  # noqa: SIM905


def _operation(name: str) -> Any:
    return operator.attrgetter(name)(aten)


_RULES: dict[Any, Rule] = {
    FIRST_MAXIMA: _same,
    **{_operation(name): _same for name in _SAME},
    **{_operation(name): _never_negative for name in _NEVER_NEGATIVE},
    aten.abs.default: lambda node, of: Sign.POSITIVE if of(node.args[0]) else Sign.ZERO,
    aten.add.Scalar: _add,
    aten.add.Tensor: _add,
    aten.addmm.default: _addmm,
    aten.bmm.default: _product,
    aten.cat.default: lambda node, of: reduce(operator.or_, [of(value) for value in node.args[0]]),  # type: ignore[union-attr]
    aten.clamp.default: _clamp,
    aten.constant_pad_nd.default: _pad,
    aten.convolution.default: _affine,
    aten.div.Scalar: _product,
    aten.div.Tensor: _product,
    aten.full.default: lambda node, of: of(node.args[1]),
    aten.linear.default: _affine,
    aten.maximum.default: _maximum,
    aten.mm.default: _product,
    aten.mul.Scalar: _product,
    aten.mul.Tensor: _product,
    aten.neg.default: lambda node, of: negated(of(node.args[0])),
    aten.pow.Tensor_Scalar: _power,
    aten.relu.default: lambda node, of: of(node.args[0]) & Sign.POSITIVE,
    aten.scalar_tensor.default: _same,
    aten.sub.Scalar: _sub,
    aten.sub.Tensor: _sub,
    aten.where.self: lambda node, of: of(node.args[1]) | of(node.args[2]),
}
