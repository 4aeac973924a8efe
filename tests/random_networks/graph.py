"""A network's own graph, in float64: every operation that it runs on one clip, with the values that it had.

Captured from the bare network by torch's tracing of aten operations, so that modules, functions and methods are the
same to it. Parameters are constants, and so is what is computed from them alone: an effective weight is what it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

# Operations that give a tensor of some shape: nothing of the clip's values is in it.
_FRESH = {"new_empty", "empty", "new_zeros", "zeros", "zeros_like", "ones_like", "empty_like", "full", "full_like"}
# Operations that give the result with something beside it, which is kept in ``extra``.
_SEVERAL = {"native_batch_norm", "max_pool3d_with_indices", "max_pool2d_with_indices", "adaptive_max_pool3d"}


class UndefinedError(Exception):
    """The definition says nothing about this network: an operation is missing from it."""


@dataclass(eq=False)
class Node:
    """One operation: ``function(*args, **kwargs)`` gave ``value``; ``varies``: the clip has a part in it."""

    name: str
    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    value: Any = None
    extra: Any = None
    varies: bool = False
    users: list[Node] = field(default_factory=list)

    def inputs(self) -> Iterator[Node]:
        """Yield the nodes that this one reads and that vary with the clip, once each."""
        return iter(dict.fromkeys(one for one in _nodes(self) if one.varies))

    def __repr__(self) -> str:
        shape = tuple(self.value.shape) if isinstance(self.value, torch.Tensor) else self.value
        return f"{self.name}({', '.join(one.name for one in self.inputs())}) -> {shape}"


@dataclass
class Graph:
    """The nodes in the order they ran; the clip's, the logits', and that of the watched layer's output."""

    nodes: list[Node]
    clip: Node
    logits: Node
    layer: Node | None


def value_of(argument: Any) -> Any:
    """Return an argument with values in the place of nodes."""
    return tree_map(lambda one: one.value if isinstance(one, Node) else one, argument)


@torch.no_grad()
def capture(model: nn.Module, clip: torch.Tensor, layer: str | None = None) -> Graph:
    """Return the graph of ``model`` on ``clip`` (both float64); ``layer`` names a module whose output is watched."""
    watched: list[torch.Tensor] = []
    if layer is not None:
        # A clone: what runs next may work in place.
        handle = model.get_submodule(layer).register_forward_hook(lambda m, a, out: watched.append(out.clone()))

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        watched.clear()
        return (model(x), *watched)

    try:
        traced = make_fx(functionalize(run))(clip)
    finally:
        if layer is not None:
            handle.remove()
    if any("copy_" in str(node.target) for node in traced.graph.nodes):
        traced = make_fx(functionalize(traced))(clip)  # what runs inside an operation (circular padding) has copies too
    made: dict[Any, Node] = {}
    order: list[Node] = []
    for step in traced.graph.nodes:
        if step.op == "output":
            logits, *rest = (made[one] for one in step.args[0])
            break
        made[step] = _node(step, made, traced, clip)
        if made[step] not in order[-1:]:
            order.append(made[step])
    for node in order:
        for one in node.inputs():
            one.users.append(node)
    if rest:
        (rest[0],) = rest[0].inputs()  # the clone's own input
    return Graph(order, next(node for node in order if node.name == "clip"), logits, rest[0] if rest else None)


def _node(step: Any, made: dict[Any, Node], traced: nn.Module, clip: torch.Tensor) -> Node:
    if step.op == "placeholder":
        return Node("clip", value=clip, varies=True)
    if step.op == "get_attr":
        value = getattr(traced, step.target)
        return Node("constant", value=value.detach())
    args, kwargs = (torch.fx.node.map_arg(given, lambda one: made[one]) for given in (step.args, step.kwargs))
    if step.target is operator.getitem and args[0].extra is not None:
        return args[0] if args[1] == 0 else Node("constant", value=args[0].extra[args[1] - 1])
    if step.target is operator.getitem and isinstance(args[0].value, list | tuple):
        several, at = args[0], args[1]  # one of the parts that an operation has made of a tensor
        return Node(
            several.name,
            lambda *given, **options: several.function(*given, **options)[at],
            several.args,
            several.kwargs,
            several.value[at],
            varies=several.varies,
        )
    name = str(step.target).split(".")[1] if "." in str(step.target) else step.target.__name__
    function = {"copy": _copy, "as_strided_": _laid_out}.get(name, step.target)
    value = function(*value_of(args), **value_of(kwargs))
    node = Node(name, function, tuple(args), dict(kwargs), value)
    if name in _SEVERAL:
        node.value, node.extra = value[0], value[1:]
    node.varies = name not in _FRESH and any(one.varies for one in _nodes(node))
    return node


def _copy(place: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Torch has no derivative for this one."""
    return values.expand_as(place)


def _laid_out(values: torch.Tensor, size: Any, strides: Any) -> torch.Tensor:
    """How an average pool to one place lays its result out in memory: the values are the same."""
    return values.reshape(size)


def _nodes(node: Node) -> list[Node]:
    leaves = tree_leaves((node.args, node.kwargs), is_leaf=lambda one: isinstance(one, Node))
    return [one for one in leaves if isinstance(one, Node)]
