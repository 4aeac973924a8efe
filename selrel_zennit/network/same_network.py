"""The same network: what is explained has the logits of the network that was given, or is refused.

Canonizers merge batch norms and rewrite forwards, layers with computed weights become plain ones. Each is meant to
change nothing; this looks whether that is so, on the clip at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from zennit.types import Linear

from ..errors import InputError
from .output import logits_of

# The largest difference of a logit, as a share of how far the logits reach. Merging batch norms moves float32 logits
# by rounding: 2e-6 at most over the networks of the pack.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def check_same(bare: nn.Module, prepared: nn.Module, clip: torch.Tensor, logits: torch.Tensor) -> None:
    """Raise InputError unless ``logits`` [B,K], of ``prepared``, are those of the network as it was given.

    The top class must be the same too, but for classes that lie nearer to each other than the tolerance. The error
    names the layer whose output deviates first.
    """
    with torch.no_grad():
        expected = logits_of(bare, clip)
    reason = difference(expected, logits)
    if reason is not None:
        first = first_deviation(bare, prepared, clip)
        where = f", first at {first}" if first else ""
        raise InputError(
            f"the network that the rules were placed in is another than the one given ({reason}{where}), so that its "
            "explanation would be wrong: explain it by gradient or gradcam, or write that part with torch.nn's modules"
        )


def difference(expected: Any, logits: torch.Tensor, tolerance: float | None = None) -> str | None:
    """Say how logits [B,K] differ from the expected ones, None where they are the same but for rounding.

    ``tolerance`` is a share of the greatest logit; by default that of the logits' type.
    """
    if not isinstance(expected, torch.Tensor) or expected.shape != logits.shape:
        return f"logits of shape {tuple(logits.shape)}, not {tuple(getattr(expected, 'shape', ()))}"
    tolerance = TOLERANCE.get(logits.dtype, 1e-4) if tolerance is None else tolerance
    expected, logits = expected.detach().double(), logits.detach().to(expected.device).double()
    bound = tolerance * float(expected.abs().max())
    worst = float((expected - logits).abs().max())
    if not worst <= bound:
        return f"logits differ by {worst:.3g}, of {float(expected.abs().max()):.3g}"
    top, other = expected.argmax(-1, keepdim=True), logits.argmax(-1, keepdim=True)
    if float((expected.gather(-1, top) - expected.gather(-1, other)).max()) > bound:
        return f"class {int(other.flatten()[0])} is named, not {int(top.flatten()[0])}"
    return None


def first_deviation(bare: nn.Module, prepared: nn.Module, clip: torch.Tensor) -> str:
    """Return the name of the first module whose output deviates, of those that both networks run; "" for none.

    A layer that a batch norm was merged into deviates, and the batch norm behind it no more: such a layer is not meant.
    """
    outputs: dict[str, torch.Tensor] = {}
    with torch.no_grad(), _listening(bare, outputs):
        bare(clip)
    others: dict[str, torch.Tensor] = {}
    with torch.no_grad(), _listening(prepared, others):
        prepared(clip)
    order = [name for name in outputs if name in others and outputs[name].shape == others[name].shape]
    modules = dict(bare.named_modules())

    def deviates(name: str) -> bool:
        expected, got = outputs[name], others[name]
        return not float((expected - got).abs().max()) <= 1e-3 * float(expected.abs().max())

    for name, behind in zip(order, [*order[1:], None], strict=True):
        merged = isinstance(modules[name], Linear) and behind is not None and not deviates(behind)
        if deviates(name) and not merged:
            return name
    return ""


@contextmanager
def _listening(model: nn.Module, outputs: dict[str, torch.Tensor]) -> Iterator[None]:
    """Keep what every module gives at its first run, by name, as the modules end."""

    def keep(name: str) -> Any:
        def hear(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and name not in outputs:
                outputs[name] = output.detach().clone()

        return hear

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
