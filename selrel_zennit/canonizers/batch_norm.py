"""Canonizers for video networks: functions become modules with rules, batch norms become part of convolutions.

They look at what a network computes, not at its name or the order in which its modules are registered: at the graph of
each module's own ``forward`` for functions, at a run of a copy on fake tensors (shapes without values) for batch norms.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from zennit.canonizers import Canonizer, CompositeCanonizer
from zennit.types import BatchNorm, ConvolutionTranspose, Linear

from ..network.dry_run import dry_run
from .function_canonizer import FunctionCanonizer
from .functions import ResidualSum, WithConstant
from .gates import GateCanonizer, LSTMCanonizer

__all__ = ["BatchNormCanonizer", "FunctionCanonizer", "ResidualSum", "VideoCanonizer", "neighbours"]


class BatchNormCanonizer(Canonizer):
    """Merges every batch norm into the convolution or linear layer that feeds it.

    Which that is is seen by a run of a copy of the network on fake tensors of the clip's shape, or on a clip of zeros
    where it looks at values: order of registration plays no part. A merged batch norm computes the identity, exactly.
    A scale or a shift per channel that follows a layer (a batch norm written out, a frozen one) is merged too.

    Any other batch norm stays, and rules pass its relevance on. Before a convolution that is the same as merging: the
    contributions w·(s·x + b) are those of a layer with weights w·s to x + b/s, where there is such a thing (s ≠ 0).

    Parameters keep their identity; ``remove`` gives them their values back.
    """

    def __init__(self, shape: tuple[int, ...] | None = None) -> None:
        self.shape = shape
        # The tensors themselves: Zennit 1.0's rules leave others in their place.
        self.before: list[tuple[nn.Module, str, torch.Tensor | None, torch.Tensor | None]] = []
        self.constants: list[tuple[WithConstant, Any]] = []

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        """Merge all batch norms; return what undoes it. Raises InputError where the network cannot be run."""
        if not any(isinstance(module, BatchNorm | WithConstant) for module in root_module.modules()):
            return []
        instance = BatchNormCanonizer(self.shape)
        try:
            for layer, norm in neighbours(root_module, self.shape):
                instance.register(layer, norm)
        except BaseException:
            instance.remove()
            raise
        return [instance]

    @torch.no_grad()
    def register(self, layer: nn.Module, norm: nn.Module) -> None:
        """Merge one batch norm, or what scales or shifts channels, into one layer."""
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        channels = (
            weight.shape[1] * int(getattr(layer, "groups", 1))
            if isinstance(layer, ConvolutionTranspose)
            else len(weight)
        )
        affine = norm.affine(channels, weight.ndim) if isinstance(norm, WithConstant) else _affine(norm)
        if affine is None:
            return
        scale, shift = (value.to(weight) for value in affine)
        bias: torch.Tensor | None = layer.bias  # type: ignore[assignment]
        if isinstance(layer, ConvolutionTranspose):
            groups = int(getattr(layer, "groups", 1))
            per_input = scale.reshape(groups, 1, -1).expand(-1, len(weight) // groups, -1).flatten(0, 1)
            factor = per_input.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
        else:
            factor = scale.reshape(-1, *[1] * (weight.ndim - 1))
        self._set(layer, "weight", weight * factor)
        self._set(layer, "bias", shift if bias is None else bias * scale + shift)
        self._make_identity(norm)

    def _make_identity(self, norm: Any) -> None:
        if isinstance(norm, WithConstant):
            self.constants.append((norm, (norm.function, norm.constant, norm.first)))
            norm.function, norm.constant, norm.first = operator.add, 0.0, False
            return
        self._set(norm, "running_mean", torch.zeros_like(norm.running_mean))
        # ε is added again inside; the sum is one as nearly as the type can say.
        self._set(norm, "running_var", torch.full_like(norm.running_var, 1 - norm.eps))
        for name, value in (("weight", 1.0), ("bias", 0.0)):
            held: torch.Tensor | None = getattr(norm, name)
            if held is not None:
                self._set(norm, name, torch.full_like(held, value))

    def _set(self, module: nn.Module, name: str, value: torch.Tensor) -> None:
        held: torch.Tensor | None = getattr(module, name)
        self.before.append((module, name, held, None if held is None else held.data))
        if held is None:
            setattr(module, name, nn.Parameter(value, requires_grad=False))
        else:
            held.data = value

    def remove(self) -> None:
        """Give every parameter its value back."""
        for module, name, held, value in reversed(self.before):
            setattr(module, name, held)
            if held is not None and value is not None:
                held.data = value
        self.before = []
        for norm, held in reversed(self.constants):
            norm.function, norm.constant, norm.first = held
        self.constants = []


def _affine(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift of a batch norm in eval mode."""
    scale = 1 / torch.sqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else norm.weight * scale
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def neighbours(model: nn.Module, shape: tuple[int, ...] | None = None) -> list[tuple[nn.Module, nn.Module]]:
    """Return (layer, batch norm) for each batch norm that can be merged into the layer before it, as they run.

    ``shape`` is that of a clip without the batch, by default ``model.spec.shape``. A pair must be alone with the
    tensor between them: what else reads it would see the merged values. Modules that run more than once are left out,
    and so are batch norms without running statistics and layers whose weights another module uses too.

    Raises InputError where the network does not run on a clip of that shape.
    """
    watch = _WhoReadsWhat(model)
    dry_run(model, shape, watch)
    return watch.pairs(model)


class _WhoReadsWhat(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that read each tensor, and notes which modules made and took it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.forget()

    def forget(self) -> None:
        self.readers: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no address is used twice
        self.runs: dict[nn.Module, list[tuple[int, int]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace != "prim":  # questions about a tensor's device read no values
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, torch.Tensor):
                    self.kept.append(value)
                    self.readers[id(value)] = self.readers.get(id(value), 0) + 1
        return func(*args, **(kwargs or {}))

    def note(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module is self.model:
            # Whoever called reads what comes out.
            for value in tree_leaves(output):
                self.readers[id(value)] = self.readers.get(id(value), 0) + 1
        if not isinstance(module, Linear | BatchNorm | WithConstant):
            return
        self.kept += [args, output]
        self.runs.setdefault(module, []).append((id(args[0]) if args else 0, id(output)))

    def pairs(self, model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
        once = {module: runs[0] for module, runs in self.runs.items() if len(runs) == 1}
        owners: dict[int, int] = {}
        for module in model.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        makes = {
            made: module
            for module, (_, made) in once.items()
            if isinstance(module, Linear) and owners.get(id(module.weight)) == 1
        }
        found: list[tuple[nn.Module, nn.Module]] = []
        for norm, (taken, made) in once.items():
            known = isinstance(norm, BatchNorm) and norm.running_mean is not None
            if (known or isinstance(norm, WithConstant)) and taken in makes and self.readers.get(taken) == 1:
                found.append((makes[taken], norm))
                makes[made] = makes[taken]  # what follows is merged into the same layer
        return found


class VideoCanonizer(CompositeCanonizer):
    """FunctionCanonizer, BatchNormCanonizer, GateCanonizer and LSTMCanonizer: what every network of the pack needs.

    ``shape`` is that of a clip without the batch, by default ``model.spec.shape``. Where one of them raises, what the
    others did before is undone.
    """

    def __init__(self, shape: tuple[int, ...] | None = None) -> None:
        super().__init__([FunctionCanonizer(), BatchNormCanonizer(shape), GateCanonizer(), LSTMCanonizer(shape)])

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        """Apply them in turn; return what undoes it."""
        instances: list[Canonizer] = []
        try:
            for canonizer in self.canonizers:
                instances += canonizer.apply(root_module)
        except BaseException:
            for instance in reversed(instances):
                instance.remove()
            raise
        return instances


class DifferenceCanonizer(VideoCanonizer):
    """The same for rules on differences: every product of a gate is one that a rule sees, and batch norms stay.

    A batch norm scales a change, whose cause it leaves as it was, so that relevance passes it.
    """

    def __init__(self, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(shape)
        self.canonizers = [FunctionCanonizer(), LSTMCanonizer(shape, seen_gates=True)]
