"""Whether a network can be explained as it is, and by this method: one sentence where not, and what does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..canonizers.attention import has_attention
from ..canonizers.gates import refuse_other_recurrence
from ..errors import InputError
from ..network.coverage import Unseen
from ..network.kinds import check_kind

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


def check_network(model: Any, method: str | None = None) -> None:
    """Raise InputError for no network, one in training mode or half precision, and a kind that ``method`` cannot take.

    Without ``method``, for kinds that a method with rules or hooks cannot take; see check_kind.
    """
    check_kind(model, method)
    check_mode(model)
    wide = (torch.float32, torch.float64)
    dtypes = {name: value.dtype for name, value in model.named_parameters()}
    half = next((name for name, dtype in dtypes.items() if dtype.is_floating_point and dtype not in wide), None)
    if half is not None:
        raise InputError(
            f"the network is in half precision ({half} is {dtypes[half]}), in which shares of "
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
