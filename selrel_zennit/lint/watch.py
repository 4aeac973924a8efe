"""What the linter sees while one clip is explained: relevance at both ends of every module, and calls between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from zennit.types import Linear

_AVERAGES = frozenset(
    f"{name}{dimensions}" for name in ("avg_pool", "adaptive_avg_pool") for dimensions in ("1d", "2d", "3d")
) | {"mean"}
# What leaves relevance as it is, or hands it on as the rule of such a module does: shapes, joins, ReLU, max pools.
_PASSING = frozenset(
    f"{name}{dimensions}{returns}"
    for name in ("max_pool", "adaptive_max_pool")
    for dimensions in ("1d", "2d", "3d")
    for returns in ("", "_with_indices")
) | frozenset(
    (
        *(
            "H",
            "T",
            "broadcast_to",
            "cat",
            "chunk",
            "clone",
            "concat",
            "contiguous",
            "double",
            "dropout",
            "expand",
        ),
        *("expand_as", "flatten", "flip", "float", "getitem", "half", "hsplit", "hstack", "identity", "mH", "mT"),
        *("moveaxis", "movedim", "narrow", "pad", "permute", "ravel", "relu", "repeat", "reshape", "roll", "select"),
        *("split", "split_with_sizes", "squeeze", "stack", "swapaxes", "swapdims", "t", "tensor_split", "tile", "to"),
        *("transpose", "type", "type_as", "unbind", "unflatten", "unsqueeze", "view", "view_as", "vsplit", "vstack"),
    )
)
PROBABILITIES = frozenset({"softmax", "log_softmax", "sigmoid"})
_IN_PLACE = frozenset({"iadd", "imul", "isub", "itruediv"})
# Rules that keep a share for a constant, as their source has them.
_KEEPING = frozenset({"ClassToken", "SoftmaxTaylor"})


@dataclass(frozen=True)
class Flow:
    """Relevance through one module: what reaches its output, and what it hands on to its input.

    ``before`` and ``after`` are sums over all channels and voxels, ``lost`` their difference divided by the relevance
    that the explanation began with. ``rule`` is Zennit's rule for the module, None where there is none.
    """

    module: str
    kind: str
    rule: str | None
    before: float
    after: float
    lost: float

    @property
    def kept(self) -> bool:
        """Say whether what is lost is what the rule is meant to keep: a softmax's constant, a class token's share."""
        return self.rule in _KEEPING


@dataclass(frozen=True)
class Finding:
    """Something that makes relevance wrong, where, and what to do."""

    kind: str
    module: str
    message: str

    def __str__(self) -> str:
        return f"{self.module}: {self.message}"


@dataclass
class _Call:
    """A call of torch that no rule sees: its name, in which module, with how many tensors that depend on the clip.

    ``place`` counts the modules that ran before it. ``reached`` says whether any relevance comes to its output: none
    does where the output is a gate, or something to decide by.
    """

    name: str
    module: str
    tensors: int
    place: int
    reached: bool = False

    def note(self, relevance: torch.Tensor) -> None:
        self.reached |= bool(relevance.any())

    def finding(self) -> Finding:
        kind, message = "functional", f"{self.name} is called where no rule sees it: "
        if self.name in _AVERAGES:
            message += (
                "all that it averages gets the same share, where an average pool's rule shares in proportion: "
                "use nn.AvgPool3d or nn.AdaptiveAvgPool3d"
            )
        elif self.name in ("add", "radd") and self.tensors > 1:
            kind, message = (
                "addition",
                (
                    "adds two tensors where no rule sees it, so that both get all of the relevance: "
                    "use zennit.layer.Sum, or a forward that torch.fx can trace"
                ),
            )
        elif self.name in ("add", "radd", "sub", "rsub") and self.tensors == 1:
            message = f"{self.name} of a constant where no rule sees it: relevance is not shared with it"
        else:
            message += "relevance takes its gradient; make it a module"
        return Finding(kind, self.module, message)


class RelevanceWatch:
    """Reads relevance at both ends of every module without children, and the calls outside of them.

    ``call`` is told of the calls. After an explanation inside ``watching``, ``order`` holds these modules as they ran,
    ``runs`` how often each did, ``begun`` and ``size`` the sum of the relevance at the logits and that of its
    magnitudes (0 where none came), and ``final`` the last function that made new values.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {id(module): name for name, module in model.named_modules()}
        self.running: list[nn.Module] = []
        self.order: list[nn.Module] = []
        self.runs: dict[nn.Module, int] = {}
        self.before: dict[nn.Module, float] = {}
        self.after: dict[nn.Module, float] = {}
        self.begun = self.size = 0.0
        self.final: str | None = None
        self._found: list[Finding | _Call] = []
        self._last: tuple[str | None, _Call | None] = (None, None)
        self._final_call: _Call | None = None
        # What modules took and gave, by the address of its memory; held, so that no address is used twice.
        self._read: dict[int, torch.Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hold hooks on all modules inside the block."""
        with ExitStack() as stack:
            for module in self.model.modules():
                # Ahead of Zennit's, so that what is read at the input has gone through the rule.
                stack.callback(module.register_forward_pre_hook(self._enter, prepend=True).remove)
                stack.callback(module.register_forward_hook(self._leave).remove)
                if _is_leaf(module):
                    stack.callback(module.register_forward_pre_hook(self._watch_input, prepend=True).remove)
                    stack.callback(module.register_forward_hook(self._watch_output).remove)
            yield

    def name(self, module: nn.Module) -> str:
        """Return a module's name; that of its class for the network itself."""
        return self.names.get(id(module)) or type(module).__name__

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()
        if module is self.model:
            self.final, self._final_call = self._last
            if isinstance(output, torch.Tensor) and output.requires_grad:
                with torch._C.DisableTorchFunction():
                    output.register_hook(self._begin)  # type: ignore[no-untyped-call]

    def _begin(self, relevance: torch.Tensor) -> None:
        self.begun += float(relevance.double().sum())
        self.size += float(relevance.double().abs().sum())

    def _watch_input(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        # In the backward pass a checkpoint runs its modules again, for the sake of their values alone.
        if torch._C._current_graph_task_id() == -1:
            self.runs[module] = self.runs.get(module, 0) + 1
            self.order.append(module)
        if not args or not isinstance(args[0], torch.Tensor) or not args[0].requires_grad:
            return None
        return tuple(self._entered(module, value) for value in args)

    def _entered(self, module: nn.Module, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.requires_grad:
            return value
        with torch._C.DisableTorchFunction():
            self._read[value.untyped_storage().data_ptr()] = value
            # Of its own, since what else reads the tensor adds relevance to it; not in place, as a view would allow.
            entered = value.clone()
            entered.register_hook(lambda gradient: self._add(self.after, module, gradient))  # type: ignore[no-untyped-call]
        return entered

    def _watch_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor) or not output.requires_grad:
            return None
        with torch._C.DisableTorchFunction():
            left = output.clone()
            self._read[left.untyped_storage().data_ptr()] = left
            left.register_hook(lambda gradient: self._add(self.before, module, gradient))  # type: ignore[no-untyped-call]
        return left

    @staticmethod
    def _add(sums: dict[nn.Module, float], module: nn.Module, gradient: torch.Tensor) -> None:
        sums[module] = sums.get(module, 0.0) + float(gradient.double().sum())

    def call(
        self, name: str, clip_in: list[torch.Tensor], changed: list[torch.Tensor], outputs: list[torch.Tensor]
    ) -> None:
        """Note a call of torch: the tensors it took that depend on the clip, those it changed, those it returned."""
        made = [output for output in outputs if output.is_floating_point()]
        plain = name[1:] if name in _IN_PLACE else name.removesuffix("_")
        passing = plain in _PASSING
        if made and not passing:
            self._last = (plain, None)
        if not self.running or _is_leaf(self.running[-1]):
            return
        where = self.name(self.running[-1])
        if any(value.untyped_storage().data_ptr() in self._read for value in changed):
            said = f"{name} works in place outside of any module: a rule may read what it changed"
            self._found.append(Finding("in place", where, said))
        made = [output for output in made if output.requires_grad]
        if passing or not clip_in or not made:
            return
        call = _Call(plain, where, len(clip_in), len(self.order))
        for output in made:
            output.register_hook(call.note)  # type: ignore[no-untyped-call]
        self._found.append(call)
        self._last = (plain, call)

    def findings(self) -> list[Finding]:
        """Return what the calls between modules do to relevance that comes to them, each once, as they were called."""
        found = [one if isinstance(one, Finding) else one.finding() for one in self._found if self._matters(one)]
        return list(dict.fromkeys(found))

    def _matters(self, one: Finding | _Call) -> bool:
        if isinstance(one, Finding):
            return True
        if one is self._final_call and one.name in PROBABILITIES:
            return False  # the linter says of the whole network that it ends so
        # At the end, with no layer but the class layer behind it, the shares are those of the logits or of a mean.
        last = one.name in _AVERAGES and len({m for m in self.order[one.place :] if isinstance(m, Linear)}) < 2
        return one.reached and not last

    def flows(self, rules: dict[nn.Module, str]) -> list[Flow]:
        """Return relevance at both ends of every module that it reached, in the order in which they ran."""
        return [
            Flow(
                self.name(module),
                type(module).__name__,
                rules.get(module),
                self.before[module],
                self.after[module],
                (self.before[module] - self.after[module]) / self.begun,
            )
            for module in dict.fromkeys(self.order)
            if module in self.before and module in self.after
        ]


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children())
