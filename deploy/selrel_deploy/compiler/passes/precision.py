"""Lower precision where it costs little: convolutions and linear layers alone, the forward pass apart from relevance.

What the logits depend on is the forward pass, all the rest is relevance. Float32 stay, in both: everything that is not
a convolution or a linear layer (divisions, pools, the selection), what reads the clip (the first layer; z^B cancels
there), what gives the logits (rounded, they could tie), and the last step of relevance. A max pool takes its winners
from the values that its forward pass has, the first of equal ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers torch.ops.quantized_decomposed)

from selrel_zennit.errors import InputError

from ...precisions import split_precision
from ..rewriting import Convolution, add_constant, aten, call, finish, get_constant, module_of
from .max_pools import FIRST_MAXIMA
from .signs import Sign, find_signs

quantized = torch.ops.quantized_decomposed

# A matrix product counts where its matrix is a linear layer's too.
PRODUCTS = (aten.convolution.default, aten.linear.default, aten.mm.default)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# uint8 for values in 0…1, int8 per output channel for weights.
ACTIVATION_SCALE = 1 / 255
# Seven bits: x86 processors without VNNI add two products in 16 bits, and 2·255·63 fits where 2·255·127 saturates.
_WEIGHT_STEPS = 63
# A clip of zeros is not divided by zero.
_TINY = 1e-30

# They hand on values as they are, or choose among them: the same in any precision.
_CHOOSING = frozenset(
    {
        aten.abs.default,
        aten.amax.default,
        aten.amin.default,
        aten.constant_pad_nd.default,
        aten.expand.default,
        aten.max_pool2d.default,
        aten.max_pool3d.default,
        aten.neg.default,
        aten.permute.default,
        aten.relu.default,
        aten.reshape.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.transpose.int,
        aten.unsqueeze.default,
    }
)


def lower_precision(graph: fx.GraphModule, precision: str) -> int:
    """Put convolutions and linear layers of a simplified float32 graph into a precision; return how many were.

    In ``bf16`` and ``fp16`` operands are rounded and the result is widened again. Relevance in fp16 is divided by a
    power of two before and multiplied after, each clip by its own, so that nothing underflows. In ``int8`` relevance
    is divided by its maximum, quantised to uint8 with the constant scale 1/255, and multiplied after; weights are int8
    of seven bits per output channel. Only convolutions both of whose operands the sign analysis proves to be of one
    sign are quantised; all others keep the forward pass's precision.

    Raises InputError for an unknown precision, and for int8 where no convolution qualifies.
    """
    forward_name, relevance_name = split_precision(precision)
    if precision == "fp32":
        return 0
    signs = find_signs(graph)
    forward, products = forward_pass(graph), find_products(graph)
    edge = _edge(products, forward)
    inner = [node for node in products if node not in forward and node not in edge]
    positive = {node for node in inner if relevance_name == "int8" and _is_positive(node, signs)}
    if relevance_name == "int8" and not positive:
        raise InputError(f"{_why_not(inner, signs)}; use {'fp32+bf16' if forward_name == 'fp32' else forward_name}")
    lowered = 0
    cache: dict[Any, fx.Node] = {}
    for node in products:
        name = forward_name if node in forward or relevance_name == "int8" else relevance_name
        if node in positive:
            _quantise(graph, node, signs, _DTYPES[forward_name])
        elif name != "fp32" and node not in edge:
            _cast(graph, node, _DTYPES[name], name == "fp16" and node not in forward, cache)
        else:
            continue
        lowered += 1
    _move_casts(graph)
    finish(graph)
    return lowered


def forward_pass(graph: fx.GraphModule) -> set[fx.Node]:
    """Return what the logits depend on."""
    outputs: Any = graph.graph.output_node().args[0]
    waiting, seen = [outputs[0]], set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(node.all_input_nodes)
    return seen


def find_products(graph: fx.GraphModule) -> list[fx.Node]:
    """Return convolutions and linear layers with constant weights, also going backward; not the matrices of pools."""
    constant = {node for node in graph.graph.nodes if node.op == "get_attr"}
    found = [
        node
        for node in graph.graph.nodes
        if node.target in PRODUCTS[:2] and node.args[1] in constant
        if node.args[0] not in constant and (len(node.args) < 3 or node.args[2] is None or node.args[2] in constant)
    ]
    matrices = {node.args[1] for node in found if node.target == aten.linear.default}
    found += [node for node in graph.graph.find_nodes(op="call_function", target=aten.mm.default)
              if node.args[1] in matrices and node.args[0] not in constant]  # fmt: skip
    return found


def _edge(products: list[fx.Node], forward: set[fx.Node]) -> set[fx.Node]:
    """Return the products that stay float32: those that no other comes before, or none of its own part after."""
    every = set(products)
    edge = {node for node in products if not _reaches(node.args[0], every, lambda n: n.all_input_nodes)}
    for node in products:
        part = {other for other in products if (other in forward) == (node in forward)}
        if not any(_reaches(user, part, lambda n: list(n.users)) for user in node.users):
            edge.add(node)
    return edge


def _reaches(start: Any, wanted: set[fx.Node], step: Any) -> bool:
    waiting, seen = [start], set()
    while waiting:
        node = waiting.pop()
        if node in wanted:
            return True
        if node not in seen:
            seen.add(node)
            waiting.extend(step(node))
    return False


def _is_positive(node: fx.Node, signs: dict[fx.Node, Sign]) -> bool:
    """Say whether a product is an ordinary convolution whose terms all have one sign."""
    view = Convolution.of(node)
    if view is None or view.transposed:
        return False
    one_sign = (Sign.POSITIVE, Sign.NEGATIVE)
    return signs[view.input] in one_sign and signs[view.weight] in one_sign


def _cast(graph: fx.GraphModule, node: fx.Node, dtype: torch.dtype, scaled: bool, cache: dict[Any, fx.Node]) -> None:
    """Compute a product in ``dtype``; ``scaled``: with its input divided by a power of two of its own size."""
    args: list[Any] = list(node.args)
    with graph.graph.inserting_before(node):
        scale = _power_of_two(graph.graph, args[0]) if scaled else None
        bias = args[2] if scale is not None and len(args) > 2 else None
        if scale is not None:
            args[0] = call(graph.graph, aten.div.Tensor, args[0], scale)
        args[0] = call(graph.graph, aten._to_copy.default, args[0], dtype=dtype)
        for place in (1, 2):
            if place < len(args) and isinstance(args[place], fx.Node):
                args[place] = _constant_as(graph, args[place], dtype, cache)
        if bias is not None:
            args[2] = None
        low = call(graph.graph, node.target, *args, **node.kwargs)
        low.meta["custom"] = node.meta.get("custom", {})
        result = call(graph.graph, aten._to_copy.default, low, dtype=torch.float32)
        if scale is not None:
            result = _rescaled(graph.graph, result, scale, bias)
    node.replace_all_uses_with(result)
    graph.graph.erase_node(node)


def _constant_as(graph: fx.GraphModule, node: fx.Node, dtype: torch.dtype, cache: dict[Any, fx.Node]) -> fx.Node:
    key = (str(node.target), dtype)
    if key not in cache:
        with graph.graph.inserting_before(next(iter(graph.graph.nodes))):
            cache[key] = add_constant(graph, get_constant(graph, str(node.target)).to(dtype))
        cache[key].meta["custom"] = node.meta.get("custom", {})
    return cache[key]


def _clip_axes(value: torch.Tensor) -> list[int]:
    return list(range(1, value.ndim))


def _peak(graph: fx.Graph, value: fx.Node) -> fx.Node:
    """Return the largest magnitude of each clip, never zero."""
    axes = _clip_axes(value.meta["val"])
    peak = call(graph, aten.amax.default, call(graph, aten.abs.default, value), axes, True)
    return call(graph, aten.clamp.default, peak, _TINY)


def _power_of_two(graph: fx.Graph, value: fx.Node) -> fx.Node:
    exponent = call(graph, aten.floor.default, call(graph, aten.log2.default, _peak(graph, value)))
    return call(graph, aten.exp2.default, exponent)


def _rescaled(graph: fx.Graph, product: fx.Node, scale: fx.Node, bias: fx.Node | None) -> fx.Node:
    result = call(graph, aten.mul.Tensor, product, scale)
    if bias is not None:
        shape = [1, -1] + [1] * (result.meta["val"].ndim - 2)
        result = call(graph, aten.add.Tensor, result, call(graph, aten.reshape.default, bias, shape))
    return result


def _quantise(graph: fx.GraphModule, node: fx.Node, signs: dict[fx.Node, Sign], stored: torch.dtype) -> None:
    """Compute a convolution in uint8 × int8, written as what every runtime knows: quantise, dequantise, convolve."""
    value, weight, bias, *rest = node.args
    with graph.graph.inserting_before(node):
        scale = _peak(graph.graph, value)  # type: ignore[arg-type]
        if signs[value] == Sign.NEGATIVE:  # type: ignore[index]
            scale = call(graph.graph, aten.neg.default, scale)
        level = (ACTIVATION_SCALE, 0, 0, 255, torch.uint8)
        unit = call(graph.graph, aten.div.Tensor, value, scale)
        unit = call(graph.graph, quantized.quantize_per_tensor.default, unit, *level)
        unit = call(graph.graph, quantized.dequantize_per_tensor.default, unit, *level)
        steps, scales = quantised_weight(get_constant(graph, str(weight.target)))  # type: ignore[union-attr]
        packed = [add_constant(graph, value) for value in (steps, scales, torch.zeros_like(scales, dtype=torch.int8))]
        kernel = call(
            graph.graph, quantized.dequantize_per_channel.default, *packed, 0, -_WEIGHT_STEPS, _WEIGHT_STEPS, torch.int8
        )
        result = call(graph.graph, aten.convolution.default, unit, kernel, None, *rest)
        result.meta["custom"] = node.meta.get("custom", {})
        if stored != torch.float32:
            result = call(graph.graph, aten._to_copy.default, result, dtype=stored)
            result = call(graph.graph, aten._to_copy.default, result, dtype=torch.float32)
        result = _rescaled(graph.graph, result, scale, bias)  # type: ignore[arg-type]
    node.replace_all_uses_with(result)
    graph.graph.erase_node(node)


def quantised_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight [O,…] as int8 steps and the size of a step of each output channel, float32 [O]."""
    peak = weight.abs().amax(_clip_axes(weight)).clamp_min(_TINY)
    scales = peak / _WEIGHT_STEPS
    steps = (weight / scales.reshape(-1, *[1] * (weight.ndim - 1))).round()
    return steps.to(torch.int8), scales


def _why_not(inner: list[fx.Node], signs: dict[fx.Node, Sign]) -> str:
    for node in inner:
        view = Convolution.of(node)
        if view is not None:
            which = "its values" if signs[view.input] == Sign.ANY else "its weights"
            why = "it goes backward with a stride" if view.transposed else f"{which} may have both signs"
            where = module_of(node) or "unknown"
            return f"int8 needs relevance that cannot cancel, and no convolution's is such: in or after {where}, {why}"
    return "int8 is for convolutions of relevance between the first and the last, and there are none"


def _move_casts(graph: fx.GraphModule) -> None:
    """Widen after choosing instead of before, and never widen what is narrowed again: less memory, the same values."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target == FIRST_MAXIMA:
            node.args = (node.args[0], *(_narrow(value) or value for value in node.args[1:3]), *node.args[3:])
            continue
        source = node.args[0] if node.args else None
        narrow = _narrow(source)
        if narrow is None:
            continue
        with graph.graph.inserting_before(node):
            if node.target == aten._to_copy.default and node.meta["val"].dtype == narrow.meta["val"].dtype:
                made = narrow
            elif node.target in _CHOOSING and _keeps(node, narrow.meta["val"].dtype):
                low = call(graph.graph, node.target, narrow, *node.args[1:], **node.kwargs)
                low.meta["custom"] = node.meta.get("custom", {})
                made = call(graph.graph, aten._to_copy.default, low, dtype=torch.float32)
            else:
                continue
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)


def _narrow(value: Any) -> fx.Node | None:
    """Return what was widened to float32, if ``value`` is that."""
    if not isinstance(value, fx.Node) or value.target != aten._to_copy.default:
        return None
    source: Any = value.args[0]
    widened = value.kwargs.get("dtype") == torch.float32 and source.meta["val"].dtype in _DTYPES.values()
    return source if widened and source.meta["val"].dtype != torch.float32 else None


def _keeps(node: fx.Node, dtype: torch.dtype) -> bool:
    """Say whether a constant that an operation brings in is the same in ``dtype``."""
    fill = node.args[2] if node.target == aten.constant_pad_nd.default and len(node.args) > 2 else 0
    return isinstance(fill, int | float) and (math.isinf(fill) or float(torch.tensor(fill, dtype=dtype)) == fill)
