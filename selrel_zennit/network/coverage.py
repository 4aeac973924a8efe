"""Which operations of a network the rules of a method saw, and which they did not: known, not hoped for.

While a network runs forward under its rules, every operation that relevance will come back through is looked at. It is
seen where a rule's module does it, and needs no rule where it moves values or picks them out. All else is unseen: what
torch's gradient hands on there is no relevance of this method.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from zennit.core import Hook
from zennit.rules import Pass, ReLUBetaSmooth, ReLUDeconvNet, ReLUGuidedBackprop
from zennit.types import Activation, AvgPool, BatchNorm, Linear

from ..canonizers.functions import WithConstant
from ..canonizers.gates import Gate
from .operations import AVERAGES, MOVES, NORMS, PRODUCTS, RELUS, SHAPES, SUMS, WINNERS, name_of, tensors_in

# Rules that change the gradient at ReLUs alone: what else there is has its gradient, as the method wants.
GUIDED_RULES = (ReLUBetaSmooth, ReLUDeconvNet, ReLUGuidedBackprop)
# Whose classes do what the rules for them take them to do.
_KNOWN_HOMES = ("torch.", "torchvision.", "zennit.", __name__.partition(".")[0] + ".")


@dataclass(frozen=True)
class Unseen:
    """An operation that no rule saw: its name, the module that does it, and what is wrong or to be done."""

    operation: str
    module: str
    reason: str

    def __str__(self) -> str:
        return f"{self.module}: {self.operation} {self.reason}"


def rule_of(module: nn.Module) -> Hook | None:
    """Return the rule that a composite has given a module, None where it gave none."""
    for hook in module._forward_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Hook):
            return owner
    return None


class Coverage(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at every operation of a forward pass of ``model``, under the rules that are registered.

    After ``with coverage.watching(): model(clip)``, ``unseen`` says what no rule saw, each once, of what the logits
    depend on.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {module: name or type(model).__name__ for name, module in model.named_modules()}
        self.rules = {module: rule_of(module) for module in self.names}
        self.guided = any(is_guided(rule) for rule in self.rules.values())
        self.running: list[nn.Module] = []
        self.products: dict[nn.Module, int] = {}
        self.runs: dict[nn.Module, int] = {}
        # With what the operation made, to tell later whether the logits depend on it.
        self.found: list[tuple[Unseen, list[torch.Tensor]]] = []
        self.on = False
        # Whether the network looks at values, so that another clip may take another way through it.
        self.decides = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at what runs inside, until ``stop``."""
        handles = register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave)
        held = self._watch_hooks()
        self.on = True
        try:
            with self:
                yield
        finally:
            self.on = False
            for handle in handles:
                handle.remove()
            for hooks, key, hook in held:
                if key in hooks:
                    hooks[key] = hook

    def _watch_hooks(self) -> list[tuple[dict[int, Any], int, Any]]:
        """Look at the network's own hooks on modules with rules, which run without them; return what to put back."""
        held = []
        for module, rule in self.rules.items():
            for hooks in (module._forward_pre_hooks, module._forward_hooks) if rule is not None else ():
                for key, hook in list(hooks.items()):
                    of_rule = isinstance(getattr(hook, "__self__", None), Hook)  # also of a user's own class
                    if not of_rule and not _home(hook).startswith(_KNOWN_HOMES):
                        held.append((hooks, key, hook))
                        hooks[key] = self._watched(hook)
        return held

    def _watched(self, hook: Any) -> Any:
        def watched(module: nn.Module, *values: Any) -> Any:
            versions = [value._version for value in tensors_in(values) if not value.is_inference()]
            result = hook(module, *values)
            changed = versions != [value._version for value in tensors_in(values) if not value.is_inference()]
            if self.on and torch.is_grad_enabled() and (changed or (result is not None and result is not values[-1])):
                reason = (
                    "of the network's own changes what it takes or gives, and its rule runs without: make it a module"
                )
                self._note(module, "a hook", reason, [])
            return result

        return watched

    def stop(self, logits: torch.Tensor) -> list[Unseen]:
        """Look no further; return what was not seen, each once, of what ``logits`` depend on."""
        self.on = False
        reached = _reached(logits)
        found = [one for one, made in self.found if not made or any(value.grad_fn in reached for value in made)]
        if not self.guided:
            found += _own_functions(reached)
        self.found = []
        return list(dict.fromkeys(found))

    def _enter(self, module: nn.Module, args: Any) -> None:
        if module in self.names:
            self.running.append(module)
            self.products[module] = 0

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.running or self.running[-1] is not module:
            return
        self.running.pop()
        rule = self.rules[module]
        given = output[0] if isinstance(output, tuple) and output else output
        if not self.on or rule is None or not isinstance(given, torch.Tensor) or not given.requires_grad:
            return
        self.runs[module] = self.runs.get(module, 0) + 1
        if self.runs[module] == 2 and not isinstance(rule, Pass) and not is_guided(rule):
            self._note(module, "runs again", "and its rule knows the last run alone: use a module for each", [given])

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if self.on and name_of(func) in ("_local_scalar_dense", "is_nonzero", "equal"):
            self.decides = True
        if self.on and torch.is_grad_enabled():
            taken = [value for value in tensors_in((args, kwargs)) if value.requires_grad]
            made = [value for value in tensors_in(output) if value.is_floating_point()]
            if taken and made:
                # What writes into a part of a tensor leaves no node of its own to find it by.
                hidden = func._schema.name.endswith("_") and any(value._is_view() for value in made)
                self._look(name_of(func), args, taken, [] if hidden else made)
        return output

    def _look(self, name: str, args: tuple[Any, ...], taken: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        module = self.running[-1] if self.running else None
        if module is not None and self.rules[module] is not None and _is_rewritten(module):
            self._note(module, name, f"is done by a {type(module).__name__}, whose rule knows of its class alone", made)
            return
        accumulates = name == "index_put" and len(args) > 3 and bool(args[3])
        if (name in MOVES and not accumulates) or name in SHAPES:
            return
        if self.guided:
            if name in RELUS and _bends(name, args) and not is_guided(self.rules.get(module)):
                self._note(
                    module, name, "is a ReLU that no guided rule sees: use nn.ReLU, and call it as a module", made
                )
            return
        ruled = next(
            (one for one in reversed(self.running) if self.rules[one] is not None or isinstance(one, Gate)), None
        )
        if not isinstance(ruled, Linear) and name in WINNERS and (name != "clamp_min" or _bends(name, args)):
            return
        if isinstance(ruled, WithConstant) and len(taken) > 1:
            self._note(module, name, _reason(name, len(taken)), made)
        elif isinstance(ruled, Linear):
            self._look_into_layer(ruled, name, args, taken, made)
        elif ruled is None:
            self._note(module, name, _reason(name, len(taken)), made)

    def _look_into_layer(
        self, layer: Any, name: str, args: tuple[Any, ...], taken: list[torch.Tensor], made: list[torch.Tensor]
    ) -> None:
        """Check that a layer with a rule does one product, with the weight that the rule will change."""
        memory = {value.untyped_storage().data_ptr() for value in tensors_in(args)}
        bias = layer._parameters.get("bias")
        if name in SUMS and len(taken) == 1 and bias is not None and bias.untyped_storage().data_ptr() in memory:
            return  # where the product does not take it along
        if name not in PRODUCTS:
            self._note(layer, name, "is done inside a layer whose rule knows of a product with its weight alone", made)
            return
        self.products[layer] = self.products.get(layer, 0) + 1
        weight = layer._parameters.get("weight")
        if weight is None or weight.untyped_storage().data_ptr() not in memory:
            self._note(layer, name, "takes another weight than the layer's own, which is what its rule changes", made)
        elif self.products[layer] > 1:
            self._note(layer, name, "is done more than once in this layer", made)

    def _note(self, module: nn.Module | None, operation: str, reason: str, made: list[torch.Tensor]) -> None:
        name = self.names.get(module, "the network") if module is not None else "the network"
        self.found.append((Unseen(operation, name, reason), made))


def _reason(name: str, tensors: int) -> str:
    if name in AVERAGES:
        return (
            "gives all that it averages the same share, where a rule shares in proportion: use nn.AvgPool3d or "
            "nn.AdaptiveAvgPool3d"
        )
    if name in SUMS and tensors > 1:
        return "of two tensors gives both all of the relevance: use zennit.layer.Sum, or a forward torch.fx can trace"
    if name in SUMS:
        return "of a constant is seen by no rule: write it where torch.fx can trace it, or as a module with a rule"
    if name in PRODUCTS:
        return (
            "is seen by no rule, so that relevance takes its gradient: use a layer (nn.Conv3d, nn.Linear), and call it"
        )
    if name in NORMS:
        return "is seen by no rule: use nn.BatchNorm3d, and call it as a module"
    if name == "mul" and tensors > 1:
        return (
            "of two tensors multiplies relevance by either: use selrel_zennit.canonizers.Gate, whose signal takes all"
        )
    return "is seen by no rule, so that relevance takes its gradient there: use a module that the method has a rule for"


def is_guided(rule: Hook | None) -> bool:
    """Say whether a rule changes the gradient at ReLUs, and hands on no relevance that a sum could share."""
    return isinstance(rule, GUIDED_RULES) or getattr(rule, "guided", False)


def _bends(name: str, args: tuple[Any, ...]) -> bool:
    """Say whether what may be a ReLU is one: its lower end is 0, and a clamp has no other."""
    if name in ("clamp", "clamp_min", "hardtanh"):
        low, high = ((*args, None, None)[index] for index in (1, 2))
        return isinstance(low, int | float) and low == 0 and (high is None or name == "hardtanh")
    return True


def _is_rewritten(module: nn.Module) -> bool:
    """Say whether a module is of a class that rules know, and has a forward of the user's own."""
    if not isinstance(module, Activation | BatchNorm | AvgPool):
        return False
    home = next(kind.__module__ for kind in type(module).__mro__ if "forward" in vars(kind))
    return not home.startswith(_KNOWN_HOMES)


def _home(hook: Any) -> str:
    """Return the name of the module that a hook comes from."""
    owner = getattr(hook, "__self__", hook)
    return f"{getattr(owner, '__module__', type(owner).__module__)}."


def _own_functions(reached: set[Any]) -> list[Unseen]:
    """Return the functions with a derivative of the user's own that relevance comes through."""
    kinds: set[Any] = {getattr(type(node), "_forward_cls", None) for node in reached}
    own = sorted(kind.__name__ for kind in kinds if kind and not kind.__module__.startswith(_KNOWN_HOMES))
    reason = "has a derivative of its own, which is no rule: use torch's functions and modules"
    return [Unseen(name, "the network", reason) for name in own]


def _reached(logits: torch.Tensor) -> set[Any]:
    """Return the nodes of autograd that relevance of the logits comes through."""
    reached: set[Any] = set()
    waiting = [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in reached:
            reached.add(node)
            waiting += [before for before, _ in node.next_functions]
    return reached
