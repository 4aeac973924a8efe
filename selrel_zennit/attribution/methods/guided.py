"""Guided backpropagation and deconvnet: gradients with another rule at the ReLUs."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from zennit.canonizers import Canonizer
from zennit.composites import DeconvNet, GuidedBackprop
from zennit.core import Composite, Hook, RemovableHandle, RemovableHandleList
from zennit.rules import ReLUDeconvNet

from ...canonizers.function_canonizer import running_module
from ...errors import InputError
from .gradient import Gradient

RELUS = (nn.ReLU, nn.ReLU6)
_RELU_FUNCTIONS = frozenset(
    {
        functional.relu,
        functional.relu_,
        functional.relu6,
        torch.relu,
        torch.relu_,
        torch.Tensor.relu,
        torch.Tensor.relu_,
    }
)
# ReLUs where nothing but a lower end of 0 is given.
_CLAMPS = frozenset(
    getattr(owner, name) for owner in (torch, torch.Tensor) for name in ("clamp", "clamp_", "clamp_min", "clamp_min_")
)


class GuidedReLU(Hook):
    """Zennit's ReLUGuidedBackprop without its copies: the negative part of what a ReLU passes down is dropped.

    Zennit's rule copies the input of every ReLU in the forward pass, which on C3D costs as much again as the backward
    pass itself. For nn.ReLU and nn.ReLU6, in place too.
    """

    guided = True  # the rule of a method that leaves all else to the gradient

    def register(self, module: nn.Module) -> RemovableHandleList:
        """Register the one forward hook that is needed; before others, so that the output is the ReLU's own."""
        return RemovableHandleList([RemovableHandle(self), module.register_forward_hook(self._guide, prepend=True)])

    def _guide(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        if output.grad_fn is not None:
            self.tensor_handles.append(output.grad_fn.register_hook(self._drop_negative))

    def _drop_negative(self, grad_inputs: Any, grad_outputs: Any) -> tuple[torch.Tensor] | None:
        if not self.active or grad_inputs[0] is None:
            return None
        # In place: the ReLU's derivative has just made this tensor, and nothing else holds it.
        return (grad_inputs[0].clamp_(min=0),)


class _SeesReLUs(TorchFunctionMode):
    """Raises InputError where a forward calls a ReLU that is no module."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = args[0] if args else kwargs.get("input")
        # Nothing goes back through the others, or through a pass that only names the top class.
        if _is_relu(func, args, kwargs) and isinstance(given, torch.Tensor) and given.requires_grad:
            module = running_module()
            if not isinstance(module, RELUS):
                raise InputError(
                    f"{type(module).__name__} calls {func.__name__}, a ReLU that guided rules do not see, and the map "
                    "would be the plain gradient there: use nn.ReLU. gradient and gradcam take any network"
                )
        return func(*args, **kwargs)


def _is_relu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if func in _CLAMPS:
        low, high = (kwargs.get(name, args[at] if len(args) > at else None) for at, name in ((1, "min"), (2, "max")))
        return isinstance(low, int | float) and low == 0 and high is None
    return func in _RELU_FUNCTIONS


class RefuseOtherReLUs(Canonizer):
    """Refuses a network that has ReLUs as modules and as functions too: its map would be guided halfway."""

    rewrites = False

    def __init__(self) -> None:
        self.handles: list[Any] = []

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        """Watch the network's forward passes; return what ends it."""
        instance = RefuseOtherReLUs()
        instance.register(root_module)
        return [instance]

    def register(self, module: nn.Module) -> None:
        """Watch one network."""
        running = ExitStack()

        def enter(module: nn.Module, args: Any) -> None:
            running.enter_context(_SeesReLUs())

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            running.close()

        self.handles = [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, always_call=True),
        ]

    def remove(self) -> None:
        """End it."""
        for handle in self.handles:
            handle.remove()
        self.handles = []


def guided_composite(model: nn.Module) -> Composite:
    """Return Zennit's GuidedBackprop with the lighter rule, for nn.ReLU and nn.ReLU6.

    Raises InputError for a network without such modules, where it would be the plain gradient.
    """
    _needs_relus(model)
    return GuidedBackprop(layer_map=[(RELUS, GuidedReLU())], canonizers=[RefuseOtherReLUs()])


def guided_backprop(model: nn.Module) -> Gradient:
    """Return guided backpropagation. Raises InputError for a network whose ReLUs are not modules."""
    return Gradient(model, guided_composite(model))


def deconvnet(model: nn.Module) -> Gradient:
    """Return the deconvnet, with Zennit's rule. Raises InputError for a network whose ReLUs are not modules."""
    _needs_relus(model)
    return Gradient(model, DeconvNet(layer_map=[(RELUS, ReLUDeconvNet())], canonizers=[RefuseOtherReLUs()]))


def _needs_relus(model: nn.Module) -> None:
    if not any(isinstance(module, RELUS) for module in model.modules()):
        raise InputError(
            "guided rules need the network's ReLUs as modules: use nn.ReLU, not torch.relu; found none. "
            "gradient and gradcam take any network"
        )
