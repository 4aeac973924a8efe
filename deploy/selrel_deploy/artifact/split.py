"""Cut an ONNX model in two: forward, which a device pays for always, and explain, for when it wants an explanation."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir

# Recomputed rather than handed over: they cost no more than reading what they return.
_CHEAP = frozenset(
    """Abs Add Cast Ceil Clip Concat Div Equal Expand Floor Gather Greater GreaterOrEqual Identity Less LessOrEqual Max
    Min Mul Neg Not Pad Reciprocal Relu Reshape Round Shape Sign Slice Sqrt Squeeze Sub Transpose Unsqueeze
    Where""".split()  # noqa: SIM905  (a list of 35 lines says no more)
)


def split_model(model: onnx_ir.Model, logits: str = "logits") -> tuple[onnx_ir.Model, onnx_ir.Model, list[str]]:
    """Return (forward, explain, activations) of a model with outputs ``logits`` and others.

    forward: the inputs that it needs → ``logits``, then ``activations``, which are called a0, a1, …: values of the
    forward pass that the rest needs. explain: those inputs, activations and ``logits`` that it needs → the other
    outputs. Initializers are shared, not copied.
    """
    graph = model.graph
    outputs = {value.name: value for value in graph.outputs}
    forward = _needed([outputs[logits]])
    handed = _boundary(graph, forward, outputs[logits])
    names: list[str] = []
    for value in handed:
        if value is not outputs[logits] and value not in graph.inputs:
            names.append(f"a{len(names)}")
            value.name = names[-1]
    others = [value for value in graph.outputs if value is not outputs[logits]]
    activations = [value for value in handed if value.name in names]
    explain_inputs = [*graph.inputs, *(value for value in handed if value not in graph.inputs)]
    parts = (
        ("forward", _reached(graph.inputs, [outputs[logits]]), [outputs[logits], *activations]),
        ("explain", _reached(explain_inputs, others), others),
    )
    made = []
    for name, ends, results in parts:
        part = onnx_ir.convenience.extract(graph, ends, results)
        part.name = name
        made.append(onnx_ir.Model(part, ir_version=model.ir_version, producer_name=model.producer_name))
    return made[0], made[1], names


def _needed(values: Iterable[onnx_ir.Value]) -> set[onnx_ir.Node]:
    """Return the nodes that the values depend on."""
    nodes: set[onnx_ir.Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in nodes:
            nodes.add(node)
            waiting.extend(value for value in node.inputs if value is not None)
    return nodes


def _reached(starts: Iterable[onnx_ir.Value], results: Iterable[onnx_ir.Value]) -> list[onnx_ir.Value]:
    """Return those of ``starts`` that the results depend on when all of them are given."""
    starts, used = list(starts), set()
    waiting, seen = list(results), set()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in starts:
            used.add(value)
            continue
        node = value.producer()
        if node is not None:
            waiting.extend(source for source in node.inputs if source is not None)
    return [value for value in starts if value in used]


def _boundary(graph: onnx_ir.Graph, forward: set[onnx_ir.Node], logits: onnx_ir.Value) -> list[onnx_ir.Value]:
    """Return what the rest needs of the forward pass, the graph's inputs among it, in the order of the graph.

    Values that the forward pass computes anyway cost it next to nothing to hand over. One that follows cheaply from
    others which are there already, or from smaller ones, is computed again on the other side.
    """
    rest = _needed(value for value in graph.outputs if value is not logits) - forward
    given = set(graph.inputs)
    wanted = {value for node in rest for value in node.inputs if value is not None and value.producer() in forward}
    wanted |= {value for value in graph.outputs if value is not logits and value.producer() in forward}
    order = [value for node in graph for value in node.outputs]
    for value in reversed(order):
        node = value.producer()
        if value not in wanted or value is logits or node is None or node.op_type not in _CHEAP:
            continue
        sources = {source for source in node.inputs if source is not None and not _is_constant(source)}
        missing = sources - wanted - given - {logits}
        if sum(map(_bytes, missing)) < (_bytes(value) if missing else 1):
            wanted.discard(value)
            wanted |= missing
    return [*graph.inputs, *(value for value in order if value in wanted)]


def _is_constant(value: onnx_ir.Value) -> bool:
    return value.producer() is None and value.const_value is not None


def _bytes(value: onnx_ir.Value) -> int:
    assert value.shape is not None
    assert value.dtype is not None
    size = 1
    for length in value.shape:
        size *= int(length)  # type: ignore[arg-type]
    return int(size * value.dtype.itemsize)
