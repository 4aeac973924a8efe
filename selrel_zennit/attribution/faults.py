"""What goes wrong while a network is explained, in one sentence: active dropout, blocked gradients, axes, sizes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import zennit
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

import selrel_zennit

from ..errors import InputError
from ..network.dry_run import does_not_run
from ..network.kinds import eagerly
from ..network.output import logits_of, only_logits

_DROPOUTS = frozenset(
    getattr(functional, name) for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")
) | {
    torch.dropout,
    functional.feature_alpha_dropout,
    torch.alpha_dropout,
    torch.feature_dropout,
    torch.dropout_,
    torch.feature_dropout_,
}
# They read the shape or type of a tensor, not its values.
_SHAPES = re.compile(r"new_\w+|\w+_like|(expand|reshape|view|type)_as|to|size|stride")

_BLOCKED = (
    "a part of the network passes no gradient on: leave torch.no_grad(), .detach(), rounding and checkpoints with "
    "use_reentrant=True out of its forward (use_reentrant=False is fine); occlusion needs no gradient"
)
# What torch and Zennit's hooks say, and what is meant.
_SAID = {
    r"checkpoint is incompatible with": (
        "the network's forward has a checkpoint with use_reentrant=True, through which autograd gives no explanation: "
        "set use_reentrant=False, or leave it out"
    ),
    r"[Ii]nference tensors? ": (
        "the network's forward makes tensors inside torch.inference_mode(), which have no gradient: leave that out of "
        "it; occlusion needs no gradient"
    ),
    r"does(n't| not) require grad|not have been used in the graph|'NoneType' object has no attribute 'register_hook'"
    r"|Backward hook could not be registered": _BLOCKED,
    r"leaf Variable that requires grad|modified by an inplace operation|is a view .* modified inplace": (
        "the network's forward works in place on the clip, or on values that the gradient needs: write x = x - mean "
        "in place of x -= mean, or begin it with clip = clip.clone()"
    ),
    r"derivative for (?P<name>[\w:]+) is not implemented": (
        "{name} in the network has no gradient: use another operation; occlusion needs no gradient"
    ),
    r"out of memory|not enough memory|can't allocate memory": (
        "the explanation does not fit into memory: explain fewer clips at once, or on another device"
    ),
}


@contextmanager
def named_faults(model: nn.Module, clip: torch.Tensor) -> Iterator[None]:
    """Inside the block, in which ``model`` is run on ``clip`` [B,3,T,H,W], what it cannot do raises InputError.

    That is dropout left on, a part without gradient, an output that is no logits [B,K], and a network that does not
    run on the clip. What torch.compile has compiled runs as it is written.
    """
    try:
        with eagerly(), only_logits(model), _Watched(model):
            yield
    except InputError:
        raise
    except Exception as error:  # whatever a network raises
        sentence = _meaning(error) or (does_not_run(model, clip, error) if _in_forward(error) else None)
        if sentence is None:
            raise
        raise InputError(sentence) from error


def check_forward(model: nn.Module, clip: torch.Tensor) -> None:
    """Run a network on clips [B,3,T,H,W]; raise InputError where it does not, or gives no logits [B,K]."""
    with torch.no_grad(), named_faults(model, clip):
        logits_of(model, clip)


def _meaning(error: Exception) -> str | None:
    for pattern, sentence in _SAID.items():
        found = re.search(pattern, str(error))
        if found is not None:
            return sentence.format(**found.groupdict())
    return None


def _in_forward(error: Exception) -> bool:
    """Say whether an exception came out of a network's own code, not of rules and hooks that stand in its modules."""
    frames = []
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    calls = [at for at, frame in enumerate(frames) if frame.f_code.co_name == "_call_impl"]
    if not calls:
        return False
    torchs, ours, zennits = (Path(path).parent for path in (torch.__file__, selrel_zennit.__file__, zennit.__file__))
    inner = [Path(frame.f_code.co_filename) for frame in frames[calls[-1] :] if "__torch_" not in frame.f_code.co_name]
    inner = [path for path in inner if torchs not in path.parents]
    within = inner[-1].parents if inner else ()
    return zennits not in within and (ours not in within or ours / "models" in within)


class _Watched(TorchFunctionMode):
    """Refuses dropout that is on though the network is in eval mode, and values that a gradient does not come through.

    The latter are those computed with gradients switched off, out of values that have one: as long as a network only
    decides by them nothing is lost, but where they meet values with a gradient, these get all of the explanation.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.running = 0
        self.blocked = WeakIdKeyDictionary()
        self.hooks = ExitStack()

    def __enter__(self) -> _Watched:
        if not isinstance(self.model, torch.jit.ScriptModule):
            self.hooks.callback(self.model.register_forward_pre_hook(self._begin).remove)
            self.hooks.callback(self.model.register_forward_hook(self._end, always_call=True).remove)
        return super().__enter__()  # type: ignore[no-any-return,no-untyped-call]

    def __exit__(self, *exception: Any) -> None:
        self.hooks.close()
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def _begin(self, module: nn.Module, args: Any) -> None:
        self.running += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running -= 1
        self.blocked.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS and _is_on(args, kwargs):
            raise InputError(
                "dropout is active, so that every run explains another network: write nn.Dropout, which model.eval() "
                "switches off, or pass training=self.training"
            )
        output = func(*args, **kwargs)
        if self.running and (self.blocked or not torch.is_grad_enabled()):
            self._follow(func, (args, kwargs), output)
        return output

    def _follow(self, func: Callable[..., Any], given: Any, output: Any) -> None:
        made = [value for value in tree_leaves(output) if _has_values(value)]
        if not made or _SHAPES.fullmatch(getattr(func, "__name__", "")):
            return
        taken = [value for value in tree_leaves(given) if _has_values(value)]
        lost = any(value in self.blocked and not value.requires_grad for value in taken)
        if not torch.is_grad_enabled():
            lost = lost or any(value.requires_grad and not isinstance(value, nn.Parameter) for value in taken)
        elif lost and any(value.requires_grad for value in made):
            raise InputError(f"{self._where()} takes in values computed without a gradient, and {_BLOCKED}")
        if lost:
            self.blocked.update({value: True for value in made if not value.requires_grad})

    def _where(self) -> str:
        """Return the name of the module whose forward is running."""
        names = {id(module): name for name, module in self.model.named_modules()}
        frame = sys._getframe(3)
        while frame.f_back is not None:
            name = names.get(id(frame.f_locals.get("self")))
            if name is not None:
                return name or type(self.model).__name__
            frame = frame.f_back
        return type(self.model).__name__


def _has_values(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _is_on(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    probability = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    on = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
    return bool(on) and probability > 0
