"""What the passes share: retracing a graph with operations replaced, constants, counting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta
from torch.utils import _pytree as pytree

from selrel_zennit.errors import InputError

aten = torch.ops.aten

# Graphs that torch makes in it write their code when it is first run or read, not after every pass: that takes a sixth
# of the time. Those that are handed out are ordinary ones, which dynamo compiles.
without_code = _use_lazy_graph_module(True)

CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)


class Convolution(NamedTuple):
    """The arguments of a convolution's node, under their names; weight and bias may be constants or computed."""

    input: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int

    @classmethod
    def of(cls, node: Any) -> Convolution | None:
        """Return the view of a node; None where it is no convolution."""
        if not isinstance(node, fx.Node) or node.target != CONVOLUTIONS[0]:
            return None
        arguments: Any = node.args
        return cls(*arguments)

    @property
    def geometry(self) -> tuple[Any, ...]:
        """All but input, weight and bias, in their order."""
        return tuple(self[3:])

    def for_each_axis(self) -> tuple[list[int], list[int], list[int]]:
        """Return stride, padding and dilation, one number for each axis."""
        n = self.weight.meta["val"].ndim - 2
        stride, padding, dilation = (
            list(given) * n if len(given) == 1 else list(given) for given in (self.stride, self.padding, self.dilation)
        )
        return stride, padding, dilation

    def constant_weight(self, graph: fx.GraphModule) -> torch.Tensor:
        """Return the weight, which must be a constant of the graph."""
        return get_constant(graph, str(self.weight.target))

    def constant_bias(self, graph: fx.GraphModule) -> torch.Tensor | None:
        """Return the bias, which must be none or a constant of the graph."""
        return None if self.bias is None else get_constant(graph, str(self.bias.target))


def viewed(node: fx.Node) -> Convolution:
    """Return the view of a node that is a convolution."""
    view = Convolution.of(node)
    assert view is not None
    return view


def retrace(graph: fx.GraphModule, rules: Mapping[Any, Callable[..., Any]] | None = None) -> fx.GraphModule:
    """Return the graph as it runs without mutations, with operations replaced: ``rules[op](*args, **kwargs)``.

    Nothing is computed: shapes alone pass through. Every call carries its ``meta["val"]`` (shape and dtype) and the
    module that it comes from.
    """
    names = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    names = list(dict.fromkeys(names))
    mode = FakeTensorMode()
    inputs = [mode.from_tensor(node.meta["example"]) for node in graph.graph.nodes if node.op == "placeholder"]
    constants = [mode.from_tensor(get_constant(graph, name)) for name in names]

    def run(inputs: list[torch.Tensor], constants: list[torch.Tensor]) -> Any:
        return _Replayer(graph, dict(zip(names, constants, strict=True))).run(*inputs)

    with preserve_node_meta():
        made = make_fx(functionalize(run), decomposition_table=dict(rules or {}), tracing_mode="fake")(
            inputs, constants
        )
    placeholders = [node for node in made.graph.nodes if node.op == "placeholder"]
    sources = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node, source in zip(placeholders, sources, strict=False):
        node.meta["example"] = source.meta["example"]
        node._rename(source.name)
        node.target = source.name
    for node, name in zip(placeholders[len(sources) :], names, strict=True):
        set_constant(made, name, get_constant(graph, name))
        with made.graph.inserting_before(node):
            constant = made.graph.get_attr(name)
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
        made.graph.erase_node(node)
    made.graph.set_codegen(fx.graph.CodeGen())
    output, source_output = made.graph.output_node(), graph.graph.output_node().args[0]
    values: Any = output.args[0]
    output.args = (tuple(values) if isinstance(source_output, list | tuple) else values[0],)
    finish(made)
    return made


class _Replayer(fx.Interpreter):
    """Run a graph with its constants given from outside."""

    def __init__(self, graph: fx.GraphModule, constants: Mapping[str, torch.Tensor]) -> None:
        super().__init__(graph)
        self.constants = constants

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.constants[str(target)]

    def run_node(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except InputError as error:
            raise InputError(f"in or after module {module_of(n) or 'unknown'}: {error}") from None


def copied(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a graph of its own that shares the constants of the given one."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph.graph, {}))
    return fx.GraphModule(graph, copy)


@without_code
def written_out(graph: fx.GraphModule, operation: Any, rule: Callable[..., torch.Tensor]) -> fx.GraphModule:
    """Return the graph with an operation's calls replaced by what ``rule(*args)`` calls; it shares all constants.

    Arrays that the rule makes of numbers alone become constants.
    """
    made = copied(graph)
    for node in made.graph.find_nodes(op="call_function", target=operation):
        given = [value for value in node.args if isinstance(value, fx.Node)]
        settings = node.args[len(given) :]
        with made.graph.inserting_before(node):
            node.replace_all_uses_with(inline(made, lambda *values, rest=settings: rule(*values, *rest), *given))
    finish(made)
    return made


def inline(graph: fx.GraphModule, function: Callable[..., torch.Tensor], *given: fx.Node) -> fx.Node:
    """Insert, at the graph's insertion point, what ``function`` calls on tensors like the given nodes' values.

    Arrays that it makes of numbers alone become constants.
    """
    with FakeTensorMode():
        examples = [torch.empty(value.meta["val"].shape, dtype=value.meta["val"].dtype) for value in given]
    traced = make_fx(function, tracing_mode="fake")(*examples)
    known: dict[fx.Node, Any] = dict(zip(traced.graph.find_nodes(op="placeholder"), given, strict=True))
    for inner in traced.graph.nodes:
        if inner.op == "call_function":
            known[inner] = _inlined(graph, inner, known)
    result: Any = traced.graph.output_node().args[0]
    made: fx.Node = known[result]
    return made


def _inlined(graph: fx.GraphModule, node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
    """Return a node like one of another graph; a tensor's value as it is where it depends on no node of this one."""
    args: Any
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: known[source])
    target: Any = node.target
    if not any(isinstance(known[source], fx.Node) for source in node.all_input_nodes):
        return target(*args, **kwargs)
    if target == aten.clone.default:
        return args[0]
    if target in (aten.view.default, aten._unsafe_view.default):
        target = aten.reshape.default  # what comes in may lie in memory in another order
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda value: add_constant(graph, value), (args, kwargs))
    made = graph.graph.call_function(target, args, kwargs)
    made.meta["val"] = node.meta["val"]
    return made


def get_constant(graph: fx.GraphModule, name: str) -> torch.Tensor:
    """Return the constant of a ``get_attr`` node's target."""
    value = getattr(graph, name)
    assert isinstance(value, torch.Tensor)
    return value


def set_constant(graph: fx.GraphModule, name: str, value: torch.Tensor) -> None:
    """Keep a constant under a name; it replaces what was there."""
    if hasattr(graph, name):
        delattr(graph, name)
    graph.register_buffer(name, value, persistent=True)


def add_constant(graph: fx.GraphModule, value: torch.Tensor) -> fx.Node:
    """Insert a constant at the graph's insertion point, under a new name."""
    number = 0
    while hasattr(graph, f"constant_{number}"):
        number += 1
    set_constant(graph, f"constant_{number}", value)
    node = graph.graph.get_attr(f"constant_{number}")
    node.meta["val"] = value.to("meta")
    return node


def constant_nodes(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes that follow from constants and numbers alone."""
    constant: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and constant.issuperset(node.all_input_nodes)):
            constant.add(node)
    return constant


def call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Insert a call at the graph's insertion point, with the shape and dtype of its result in ``meta["val"]``."""
    node = graph.call_function(target, args, kwargs)
    values: Any = fx.node.map_arg((args, kwargs), _shape_alone)
    node.meta["val"] = target(*values[0], **values[1])
    return node


def _shape_alone(node: fx.Node) -> torch.Tensor:
    value = node.meta["val"]
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def finish(graph: fx.GraphModule) -> None:
    """Drop what nothing uses, nodes and constants, and make the graph callable again."""
    graph.graph.eliminate_dead_code()
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in graph.named_buffers() if name not in used]:
        delattr(graph, name)
    graph.graph.lint()
    graph.recompile()


def count_operations(graph: fx.GraphModule) -> Counter[str]:
    """Return how often each operation is called, by name."""
    return Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function")


def count_convolutions(graph: fx.GraphModule) -> int:
    """Return the number of convolutions; the backward of one counts as one for each gradient that is asked for."""
    count = 0
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target == CONVOLUTIONS[0]:
            count += 1
        elif node.op == "call_function" and node.target == CONVOLUTIONS[1]:
            count += sum(node.args[-1][:2])
    return count


def constant_bytes(graph: fx.GraphModule) -> int:
    """Return the bytes of all constants; views of one memory count once."""
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in graph.buffers()}
    return sum(storages.values())


def module_of(node: fx.Node) -> str | None:
    """Return the path of the module that a node comes from, or of the nearest node before it that has one."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        path = node.meta.get("custom", {}).get("module")
        if path:
            return str(path)
        waiting.extend(node.all_input_nodes)
    return None
