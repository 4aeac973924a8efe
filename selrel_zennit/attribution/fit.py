"""Whether a network can be explained as it is, and by this method: one sentence where not, and what does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..attention import has_attention
from ..coverage import Unseen
from ..dry_run import only_for_pictures
from ..errors import InputError
from ..gates import refuse_other_recurrence

OTHERS = "gradient, gradcam and occlusion explain it"

# What the composites' rules do not cover: relevance would take its gradient there, and mean nothing.
_WITHOUT_RULE = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LocalResponseNorm,
    nn.MultiheadAttention,
    nn.Bilinear,
)
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


def check_network(model: nn.Module) -> None:
    """Raise InputError for a network in training mode, or in half precision."""
    check_mode(model)
    halves = (torch.float16, torch.bfloat16)
    half = next((name for name, value in model.named_parameters() if value.dtype in halves), None)
    if half is not None:
        raise InputError(
            f"the network is in half precision ({half} is {model.get_parameter(half).dtype}), in which shares of "
            "relevance are lost: call model.float(); an exported artifact can be fp16 or bf16"
        )


def check_mode(model: nn.Module) -> None:
    """Raise InputError for a network, or a part of one, in training mode."""
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        part = "" if "" in training else f" ({training[0]}, a {type(model.get_submodule(training[0])).__name__})"
        what = "a part of the model is" if part else "the model is"
        raise InputError(f"{what} in training mode{part}: call model.eval() before explaining it")


def check_rules(method: str, model: nn.Module) -> None:
    """Raise InputError for a network with modules that the rules of ``method`` do not cover."""
    refuse_other_recurrence(model)
    attention = has_attention(model)
    without = nn.MultiheadAttention if method == "lrp_epsilon_plus" and attention else _WITHOUT_RULE
    others = f"lrp_epsilon_plus, {OTHERS}" if attention and method != "lrp_epsilon_plus" else OTHERS
    for name, module in model.named_modules():
        if isinstance(module, without):
            raise InputError(f"{method} has no rule for {type(module).__name__} ({name or 'the network'}): {others}")


def refuse_unseen(method: str, unseen: Sequence[Unseen]) -> None:
    """Raise InputError where there is something that no rule of ``method`` saw."""
    if unseen:
        more = f" (and {len(unseen) - 1} more)" if len(unseen) > 1 else ""
        raise InputError(
            f"{method} would be wrong for this network, part of which no rule sees: {unseen[0]}{more}; {OTHERS}, and "
            "strict=False (--allow-unseen) explains it all the same and says so"
        )


def check_devices(model: nn.Module, input: torch.Tensor) -> None:
    """Raise InputError for a clip on another device than the network."""
    devices = list(dict.fromkeys(str(parameter.device) for parameter in model.parameters()))
    if len(devices) > 1:
        raise InputError(f"the network's parts lie on {' and '.join(devices)}: put all of it on one with model.to(…)")
    if devices and str(input.device) != devices[0]:
        raise InputError(
            f"the clip is on {input.device}, the network on {devices[0]}: move one, clip.to({devices[0]!r}) for example"
        )


@contextmanager
def named_faults(model: nn.Module) -> Iterator[None]:
    """Inside the block, active dropout and a network for pictures raise InputError."""
    try:
        with _NoDropout():
            yield
    except (RuntimeError, ValueError) as error:
        sentence = only_for_pictures(model)
        if sentence is None or isinstance(error, InputError):
            raise
        raise InputError(sentence) from error


class _NoDropout(TorchFunctionMode):
    """Refuses dropout that a network calls as a function and leaves on, which model.eval() does not reach."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS and _is_on(args, kwargs):
            raise InputError(
                "dropout is active, so that every run explains another network: write nn.Dropout, which model.eval() "
                "switches off, or pass training=self.training"
            )
        return func(*args, **kwargs)


def _is_on(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    probability = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    on = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
    return bool(on) and probability > 0
