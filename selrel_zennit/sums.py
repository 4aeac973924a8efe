"""Additions of two tensors as modules that rules can see, in networks that write them as plain additions."""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import combinations
from types import FrameType, MethodType
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from zennit.canonizers import Canonizer
from zennit.layer import Sum
from zennit.types import Activation, AvgPool, BatchNorm, Linear, MaxPool

from .errors import InputError
from .gates import Gate

Forward = Callable[..., Any]

_ADDITIONS = frozenset(
    [("call_function", function) for function in (operator.add, operator.iadd, torch.add)]
    + [("call_method", name) for name in ("add", "add_", "__add__", "__iadd__", "__radd__")]
)
_ADDING = frozenset({torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__, torch.Tensor.__iadd__})
# What computes by a rule of its own, and what rules see already.
_RULED = (Linear, BatchNorm, Activation, AvgPool, MaxPool, Gate, nn.RNNBase)
_NOT_TRACED = ("torch.nn.", "torch.jit.", "zennit.", __name__, f"{__package__}.gates", f"{__package__}.attention")


class ResidualSum(nn.Module):
    """The sum of two tensors, by Zennit's Sum, so that a rule can share relevance between them."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = Sum()

    def forward(self, first: Any, second: Any) -> Any:
        """Return first + second; whatever is not two tensors of one shape is added as Python does."""
        tensors = isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
        if not tensors or first.shape != second.shape:
            return first + second
        return self.sum(torch.stack([first, second], dim=-1))


def register_each(canonizers: Iterable[tuple[Canonizer, tuple[Any, ...]]]) -> list[Canonizer]:
    """Register canonizers, each with its arguments; return them. Where one raises, those before it are undone."""
    done: list[Canonizer] = []
    try:
        for canonizer, arguments in canonizers:
            done.append(canonizer)
            canonizer.register(*arguments)
    except BaseException:
        for canonizer in reversed(done):
            canonizer.remove()
        raise
    return done


class SumCanonizer(Canonizer):
    """Replaces additions of two tensors, in every ``forward`` that torch.fx can trace, by modules with a Sum inside.

    Zennit's rules are hooks of modules: an addition without one hands its whole relevance to both of its inputs. The
    modules are named ``canonizer_sum_0``, …; an addition in place becomes one out of place. A forward that fx cannot
    trace (it decides by values or sizes) runs as it is, and raises InputError where it adds two tensors; see
    RefuseHiddenSums.
    """

    def __init__(self) -> None:
        self.module: nn.Module | None = None
        self.names: list[str] = []

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        """Replace the additions in every module; return what undoes it."""
        found = ((module, _with_sums(module)) for module in list(root_module.modules()))
        return register_each((SumCanonizer(), (module, *new)) for module, new in found if new is not None)

    def register(self, module: nn.Module, forward: Forward, names: list[str]) -> None:
        """Let the module run this forward from now on, with sums of these names."""
        self.module, self.names = module, names
        for name in names:
            module.add_module(name, ResidualSum().train(module.training))
        # On the module itself, so that parameters and children are those of the moment.
        object.__setattr__(module, "forward", MethodType(forward, module))

    def remove(self) -> None:
        """Give the module its own forward back."""
        if self.module is not None:
            object.__delattr__(self.module, "forward")
            for name in self.names:
                delattr(self.module, name)
            self.module = None


def _with_sums(module: nn.Module) -> tuple[Forward, list[str]] | None:
    """Return the module's forward with sums for additions, and their names; None for a forward that adds nothing.

    There is a graph for each set of optional arguments that may be given as tensors; what a call leaves out is traced
    as its default. A call without such a graph runs the forward as it is, inside RefuseHiddenSums.
    """
    own: Forward = type(module).forward
    home = next(each.__module__ for each in type(module).__mro__ if "forward" in vars(each))
    if home.startswith(_NOT_TRACED) or isinstance(module, _RULED) or "forward" in vars(module):
        return None
    signature = inspect.signature(own)
    optional = [one.name for one in signature.parameters.values() if one.default is not one.empty]
    most = len(optional) if len(optional) <= 3 else 0
    graphs: dict[frozenset[str] | None, Forward] = {}
    names: list[str] = []
    for given in (frozenset(some) for number in range(most + 1) for some in combinations(optional, number)):
        # fx raises what the forward does where it meets no tensor: TypeError for range(clip.shape[2]), …
        with suppress(Exception):
            left_out = {name: value for name, value in _defaults(signature).items() if name not in given}
            graphs[given], added = _graph(module, left_out, len(names))
            names += added
    if not _defaults(signature) and graphs:
        return (graphs[frozenset()], names) if names else None

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        graph = graphs.get(_given(signature, signature.bind(self, *args, **kwargs).arguments)) if graphs else None
        if graph is not None:
            return graph(self, *args, **kwargs)
        with RefuseHiddenSums(self):
            return own(self, *args, **kwargs)

    return forward, names


def _defaults(signature: inspect.Signature) -> dict[str, Any]:
    """Return what each parameter that a call may leave out then is."""
    values = {one.name: one.default for one in signature.parameters.values() if one.default is not one.empty}
    empty = {inspect.Parameter.VAR_POSITIONAL: tuple, inspect.Parameter.VAR_KEYWORD: dict}
    return values | {one.name: empty[one.kind]() for one in signature.parameters.values() if one.kind in empty}


def _given(signature: inspect.Signature, arguments: dict[str, Any]) -> frozenset[str] | None:
    """Return which optional parameters a call gives tensors for; None where it gives one anything else."""
    given = set()
    for name, default in _defaults(signature).items():
        value = arguments.get(name, default)
        if isinstance(value, torch.Tensor) and value is not default:
            given.add(name)
        elif value is not default and not (isinstance(value, str | float | tuple | dict | int) and value == default):
            return None
    return frozenset(given)


class _OwnForward(fx.Tracer):
    """Traces one module's own forward: what its children do is theirs. ``left_out`` are arguments and their values."""

    def __init__(self, left_out: dict[str, Any]) -> None:
        super().__init__()
        self.left_out = left_out

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        function, (module, *inputs) = super().create_args_for_root(root_fn, is_module, concrete_args)
        # Their inputs stay in the graph, so that it takes the arguments that the forward does.
        return function, [module, *(self.left_out.get(one.node.target.lstrip("*"), one) for one in inputs)]


def _graph(module: nn.Module, left_out: dict[str, Any], first: int) -> tuple[Forward, list[str]]:
    """Return a module's forward with sums, named from ``first`` on, for additions, and their names."""
    graph = _OwnForward(left_out).trace(module)
    names: list[str] = []
    for node in list(graph.nodes):
        summands = _summands(node)
        if summands is not None:
            names.append(f"canonizer_sum_{first + len(names)}")
            with graph.inserting_before(node):
                replaced = graph.call_module(names[-1], summands)
            node.replace_all_uses_with(replaced)
            graph.erase_node(node)
    # The graph calls children by their names; the module is where it looks for them.
    shell = nn.Module()
    shell.__dict__.update({key: value for key, value in vars(module).items() if key != "_modules"})
    shell.__dict__["_modules"] = {**module._modules, **{name: ResidualSum() for name in names}}
    return type(fx.GraphModule(shell, graph, type(module).__name__)).forward, names


def _summands(node: fx.Node) -> tuple[fx.Node, ...] | None:
    """Return what a node adds, None where it adds no two nodes. Raises TraceError for a sum that Sum cannot be."""
    if (node.op, node.target) not in _ADDITIONS:
        return None
    options = {**node.kwargs}
    values = (*node.args, *(options.pop(name) for name in ("input", "other") if name in options))
    nodes = tuple(value for value in values if isinstance(value, fx.Node))
    if len(nodes) < 2:
        return None
    if len(values) > 2 or options.pop("alpha", 1) != 1 or options:
        raise fx.proxy.TraceError("adds a multiple, or into a tensor")
    return nodes


class RefuseHiddenSums(TorchFunctionMode):
    """Inside this context, the forward of ``module`` raises InputError where it adds two tensors that have gradients.

    It is one that SumCanonizer could not rewrite: rules miss its additions. The linter lists them instead.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function of torch."""
        kwargs = kwargs or {}
        if func in _ADDING and running_module() is self.module:
            values = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            summands = [one for one in values if one.requires_grad and not isinstance(one, nn.Parameter)]
            if len(summands) > 1 and summands[0].shape == summands[1].shape and not _linted():
                raise InputError(
                    f"{type(self.module).__name__} adds two tensors in a forward that torch.fx cannot rewrite, where "
                    "no rule sees it: use zennit.layer.Sum there; gradient, gradcam and occlusion need no rules"
                )
        return func(*args, **kwargs)


def _linted() -> bool:
    """Say whether the linter watches the functions that run: it lists what is found, so that nothing is raised."""
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return any(getattr(mode, "lists_hidden_sums", False) for mode in modes)


def running_module() -> nn.Module | None:
    """Return the module whose method is running; for the ``__torch_function__`` of a mode."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            return owner
        frame = frame.f_back
    return None
