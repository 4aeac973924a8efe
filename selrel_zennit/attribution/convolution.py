"""Convolutions for attributors: the same sums as torch's, by the faster of its own kernels, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _get_current_dispatch_mode

_ONES = (1, 1, 1)


class FastConvolutions(TorchFunctionMode):
    """Inside this context 3D convolutions on the CPU run in oneDNN, and their gradients as convolutions too.

    For one clip torch sends small layers, and with one thread every layer, through im2col, two to ten times slower.
    The gradient of the input of a convolution with stride 1 is a convolution with the flipped weight, which oneDNN
    runs faster than its own backward. Values differ from torch's by rounding alone; where two voxels of a pooling
    window are all but equal that may make the other one win: on C3D and a real clip Guided Grad-CAM is 3e-4 of its norm
    from that of torch's kernels. ``attributor.fast_convolutions = False`` takes those.

    What it does not know (other strides, dilation, groups, types, devices) and what a tracer watches goes to torch.
    Gradients of weights are not computed: attributors ask for those of inputs.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function of torch."""
        kwargs = kwargs or {}
        if func is functional.conv3d:
            call = _arguments(*args, **kwargs)
            if call is not None and _get_current_dispatch_mode() is None:
                return _Convolution.apply(*call)
        return func(*args, **kwargs)


def _arguments(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, tuple[int, ...]] | None:
    """Return what ``_Convolution`` takes, or None for a convolution that is torch's own."""
    if isinstance(padding, str) or groups != 1 or _three(stride) != _ONES or _three(dilation) != _ONES:
        return None
    padding = _three(padding)
    known = (
        input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and input.ndim == 5
        and input.numel() > 0
        and input.shape[1] == weight.shape[1]
        and all(p < k <= size + 2 * p for p, k, size in zip(padding, weight.shape[2:], input.shape[2:], strict=True))
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.enabled
    )
    return (input, weight, bias, padding) if known else None


def _three(value: Any) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * 3 if len(values) == 1 else values


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, ...]
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.padding = padding
        return _run(input, weight, bias, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        (weight,) = ctx.saved_tensors
        padding = tuple(k - 1 - p for k, p in zip(weight.shape[2:], ctx.padding, strict=True))
        return _run(gradient, weight.flip(2, 3, 4).transpose(0, 1), None, padding), None, None, None


def _run(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, ...]
) -> torch.Tensor:
    output: torch.Tensor = torch.mkldnn_convolution(
        input.contiguous(), weight.contiguous(), bias, padding, _ONES, _ONES, 1
    )
    return output
