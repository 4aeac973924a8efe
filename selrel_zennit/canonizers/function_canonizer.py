"""What the forwards of a network compute outside of modules, as modules that rules can see."""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from types import FrameType, MethodType
from typing import Any

import torch
from torch import fx, nn
from zennit.canonizers import Canonizer
from zennit.types import Activation, AvgPool, BatchNorm, Linear, MaxPool

from .functions import as_module, of_shape_alone, works_in_place
from .gates import Gate

Forward = Callable[..., Any]

# What computes by a rule of its own, and what rules see already.
_RULED = (Linear, BatchNorm, Activation, AvgPool, MaxPool, Gate, nn.RNNBase)
# Whose rule keeps what the last call took, so that a second call needs a module of its own.
_KNOWS_ONE_CALL = (Linear, BatchNorm, AvgPool)
_NOT_TRACED = (
    *("torch.nn.", "torch.jit.", "zennit.", __name__),
    *(f"{__package__}.{name}" for name in ("functions", "gates", "attention")),
)


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


class FunctionCanonizer(Canonizer):
    """Replaces what a ``forward`` computes by functions by modules, in every one that torch.fx can trace.

    Zennit's rules are hooks of modules: an addition without one hands its whole relevance to both of its inputs, a mean
    shares it equally, ``F.conv3d`` takes its gradient. Sums of two tensors, sums with and products by constants, means,
    pools, activations, convolutions, linear layers and batch norms become modules named ``canonizer_0``, …; what works
    in place then works out of place. A layer that one forward calls again gets a module for each further call, since a
    rule knows the last call alone. A forward that fx cannot trace (it decides by values or sizes) runs as it is.
    """

    def __init__(self) -> None:
        self.module: nn.Module | None = None
        self.names: list[str] = []

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        """Replace the functions in every module; return what undoes it."""
        found = ((module, _with_modules(module)) for module in list(root_module.modules()))
        return register_each((FunctionCanonizer(), (module, *new)) for module, new in found if new is not None)

    def register(self, module: nn.Module, forward: Forward, made: dict[str, nn.Module]) -> None:
        """Let the module run this forward from now on, with these modules."""
        self.module, self.names = module, list(made)
        for name, child in made.items():
            module.add_module(name, child.train(module.training))
        # On the module itself, so that parameters and children are those of the moment.
        object.__setattr__(module, "forward", MethodType(forward, module))

    def remove(self) -> None:
        """Give the module its own forward back."""
        if self.module is not None:
            object.__delattr__(self.module, "forward")
            for name in self.names:
                delattr(self.module, name)
            self.module = None


def _with_modules(module: nn.Module) -> tuple[Forward, dict[str, nn.Module]] | None:
    """Return the module's forward with modules for functions, and these by name; None for one that needs none.

    There is a graph for each set of optional arguments that may be given as tensors; what a call leaves out is traced
    as its default. A call without such a graph runs the forward as it is.
    """
    own: Forward = type(module).forward
    home = next(each.__module__ for each in type(module).__mro__ if "forward" in vars(each))
    if home.startswith(_NOT_TRACED) or isinstance(module, _RULED) or "forward" in vars(module):
        return None
    signature = inspect.signature(own)
    optional = [one.name for one in signature.parameters.values() if one.default is not one.empty]
    most = len(optional) if len(optional) <= 3 else 0
    graphs: dict[frozenset[str] | None, Forward] = {}
    made: dict[str, nn.Module] = {}
    for given in (frozenset(some) for number in range(most + 1) for some in combinations(optional, number)):
        left_out = {name: value for name, value in _defaults(signature).items() if name not in given}
        # fx raises what the forward does where it meets no tensor: TypeError for range(clip.shape[2]), …
        before = _attributes(module)
        try:
            traced = _OwnForward(left_out).trace(module)
        except Exception:
            traced = None
        # What a forward keeps on its modules a graph would not, and after a trace it is no tensor.
        if _put_back(before) or traced is None:
            continue
        graphs[given], added = _with_calls(traced, module, len(made))
        made |= added
    if not made:
        return None
    if not _defaults(signature):
        return graphs[frozenset()], made

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        graph = graphs.get(_given(signature, signature.bind(self, *args, **kwargs).arguments))
        return own(self, *args, **kwargs) if graph is None else graph(self, *args, **kwargs)

    return forward, made


def _attributes(module: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return what the module and those inside it hold, each dictionary with a copy."""
    held: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for one in module.modules():
        for values in (vars(one), one._buffers, one._parameters, one._modules):
            held.append((values, dict(values)))
    return held


def _put_back(held: list[tuple[dict[str, Any], dict[str, Any]]]) -> bool:
    """Give modules what they held; say whether anything had changed."""
    changed = False
    for values, before in held:
        # Where fx puts tensors that a graph holds.
        before |= {name: value for name, value in values.items() if name.startswith("_tensor_constant")}
        if values.keys() != before.keys() or any(values[name] is not value for name, value in before.items()):
            changed = True
            values.clear()
            values.update(before)
    return changed


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


class _Written(fx.Proxy):
    """A value that may be written to: ``mask[:, 1] = 1``."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


class _OwnForward(fx.Tracer):
    """Traces one module's own forward: what its children do is theirs. ``left_out`` are arguments and their values."""

    def __init__(self, left_out: dict[str, Any]) -> None:
        super().__init__()
        self.left_out = left_out

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Written(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        function, (module, *inputs) = super().create_args_for_root(root_fn, is_module, concrete_args)
        # Their inputs stay in the graph, so that it takes the arguments that the forward does.
        return function, [module, *(self.left_out.get(one.node.target.lstrip("*"), one) for one in inputs)]


def _with_calls(graph: fx.Graph, module: nn.Module, first: int) -> tuple[Forward, dict[str, nn.Module]]:
    """Return a module's traced forward with modules, named from ``first`` on, for functions, and these by name."""
    constants = _constants(graph, module)
    shapes: set[fx.Node] = set()
    for node in graph.nodes:
        if node not in constants and of_shape_alone(node, shapes | constants.keys()):
            shapes.add(node)
    # What is written into may hold the clip from then on.
    written = {node.args[0] for node in graph.nodes if node.target is operator.setitem and node not in shapes}
    shapes -= written
    made: dict[str, nn.Module] = {}
    called: set[Any] = set()

    def replace(node: fx.Node, new: nn.Module, takes: tuple[Any, ...], options: dict[str, Any]) -> None:
        name = f"canonizer_{first + len(made)}"
        made[name] = new
        with graph.inserting_before(node):
            replaced = graph.call_module(name, takes, options)
        if works_in_place(node):
            later = set(_following(node))
            for changed in takes[:1]:
                changed.replace_all_uses_with(replaced, delete_user_cb=lambda user: user in later)
        node.replace_all_uses_with(replaced)
        graph.erase_node(node)

    for node in list(graph.nodes):
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            if node.target in called and isinstance(layer, _KNOWS_ONE_CALL) and not node.kwargs:
                replace(node, _again(layer), node.args, {})
            called.add(node.target)
            continue
        found = as_module(node, constants, shapes)
        if found is not None:
            replace(node, *found)
    # The graph calls children by their names; the module is where it looks for them.
    shell = nn.Module()
    shell.__dict__.update({key: value for key, value in vars(module).items() if key != "_modules"})
    shell.__dict__["_modules"] = {**module._modules, **made}
    return type(fx.GraphModule(shell, graph, type(module).__name__)).forward, made


def _constants(graph: fx.Graph, module: nn.Module) -> dict[fx.Node, Any]:
    """Return the nodes of a graph that its inputs have no part in, with their values."""
    found: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            found[node] = operator.attrgetter(str(node.target))(module)
        elif (
            node.op in ("call_function", "call_method")
            and node.all_input_nodes
            and all(one in found for one in node.all_input_nodes)
            and not works_in_place(node)
        ):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), found.__getitem__)
            function = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
            with torch.no_grad():
                found[node] = function(*args, **kwargs)
    return found


def _following(node: fx.Node) -> Iterator[fx.Node]:
    node = node.next
    while node.op != "root":
        yield node
        node = node.next


def _again(layer: nn.Module) -> nn.Module:
    """Return a module that computes what ``layer`` does, with parameters of its own in the same memory."""
    made: nn.Module = layer.__class__.__new__(layer.__class__)
    vars(made).update(vars(layer))
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        vars(made)[name] = vars(layer)[name].copy()
    vars(made)["_buffers"], vars(made)["_modules"] = layer._buffers.copy(), layer._modules.copy()
    vars(made)["_parameters"] = {
        name: None if value is None else nn.Parameter(value.detach(), requires_grad=False)
        for name, value in layer._parameters.items()
    }
    return made


def running_module() -> nn.Module | None:
    """Return the module whose method is running; for the ``__torch_function__`` of a mode."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            return owner
        frame = frame.f_back
    return None
