"""``torch.ops.selrel.select_motion``: the kernel on CUDA, the definition (``reference``) everywhere else.

Registered when this module is imported. It is opaque to tracers, which is what torch.compile and CUDA graphs want; who
wants plain operations in a graph traces ``reference.select_motion``.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch

from . import launcher, reference
from .checks import check_map, check_settings
from .plan import KernelUnavailable, flags

_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@torch.library.custom_op("selrel::select_motion", mutates_args=())
def select_motion(
    relevance: torch.Tensor,
    n_sigma: float = 4.0,
    thresholds: torch.Tensor | None = None,
    sign: str = "absolute",
    sigma: str = "signed",
    border: str = "replicate",
    normalise: str = "none",
) -> tuple[torch.Tensor, torch.Tensor]:
    """``selrel_kernels.select_motion`` for tensors, as one operator, with contiguous results.

    thresholds  [T] on the device of ``relevance``; they go first

    It never looks at values: a clip with NaN or infinity keeps nothing, on a CUDA device, and on others what
    ``reference.select_motion`` keeps of it. On a CUDA device float64 maps, and all maps where the kernel cannot run (a
    warning says why, once), are selected by the torch operations of ``reference``. Raises what
    ``selrel_kernels.select_motion`` raises for another type, shape or setting.
    """
    check_map(relevance)
    check_settings(n_sigma, sign=sign, sigma=sigma, border=border, normalise=normalise)
    return _by_reference(relevance, n_sigma, thresholds, sign, sigma, border, normalise)


@select_motion.register_kernel("cuda")
def _on_cuda(
    relevance: torch.Tensor,
    n_sigma: float = 4.0,
    thresholds: torch.Tensor | None = None,
    sign: str = "absolute",
    sigma: str = "signed",
    border: str = "replicate",
    normalise: str = "none",
) -> tuple[torch.Tensor, torch.Tensor]:
    check_map(relevance)
    check_settings(n_sigma, sign=sign, sigma=sigma, border=border, normalise=normalise)
    selector = kernel_for(relevance)
    if selector is None:
        return _by_reference(relevance, n_sigma, thresholds, sign, sigma, border, normalise)
    settings = flags(sign, sigma, border, normalise, calibrated=thresholds is not None)
    return launch(selector, relevance, n_sigma, thresholds, settings)


def _by_reference(
    relevance: torch.Tensor, n_sigma: float, thresholds: torch.Tensor | None, *settings: str
) -> tuple[torch.Tensor, torch.Tensor]:
    named = dict(zip(("sign", "sigma", "border", "normalise"), settings, strict=True))
    motion, mask = reference.select_motion(relevance, n_sigma, thresholds=thresholds, **named)
    return motion.contiguous(), mask.contiguous()


@select_motion.register_fake
def _fake(relevance: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
    check_map(relevance)
    mask_shape = (relevance.shape[0], *relevance.shape[-3:])
    return relevance.new_empty(relevance.shape), relevance.new_empty(mask_shape, dtype=torch.bool)


def _keep_mask(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, motion: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    (mask,) = ctx.saved_tensors
    return torch.where(mask[:, None] if motion.ndim == 5 else mask, motion, 0.0), *(None,) * 6


select_motion.register_autograd(_backward, setup_context=_keep_mask)


def kernel_for(relevance: torch.Tensor) -> launcher.Selector | None:
    """Return what launches the kernel for a map on a CUDA device, or None where torch operations have to do."""
    return _selector(relevance.device.index) if relevance.dtype in _NAMES else None


def launch(
    selector: launcher.Selector,
    relevance: torch.Tensor,
    n_sigma: float,
    thresholds: torch.Tensor | None,
    settings: int,
    variant: str = "two launches",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel for a CUDA tensor on its device's current stream. Memory comes from torch's allocator.

    Raises torch.OutOfMemoryError where there is too little, ValueError for a tensor on another device.
    """
    if relevance.device.type != "cuda":
        raise ValueError(f"the kernel selects CUDA tensors, got one on {relevance.device}")
    if thresholds is not None and thresholds.device != relevance.device:
        raise ValueError(f"thresholds must be on the relevance's device {relevance.device}, got {thresholds.device}")
    device = relevance.device
    with torch.cuda.device(device):
        plan = selector.plan(relevance.shape, settings, variant)
        motion = torch.empty(relevance.shape, dtype=relevance.dtype, device=device)
        mask = torch.empty((relevance.shape[0], *relevance.shape[-3:]), dtype=torch.bool, device=device)
        workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=device)
        limits = None if thresholds is None else thresholds.to(torch.float32).contiguous()
        selector.select(
            plan,
            relevance=relevance.data_ptr(),
            motion=motion.data_ptr(),
            mask=mask.data_ptr(),
            workspace=workspace.data_ptr(),
            shape=relevance.shape,
            strides=relevance.stride(),
            dtype=_NAMES[relevance.dtype],
            stream=torch.cuda.current_stream(device).cuda_stream,
            n_sigma=n_sigma,
            settings=settings,
            thresholds=0 if limits is None else limits.data_ptr(),
        )
    return motion, mask


@functools.cache
def _selector(ordinal: int) -> launcher.Selector | None:
    try:
        return launcher.cuda_core_selector(ordinal)
    except KernelUnavailable as error:
        warnings.warn(f"motion selection runs as torch operations on this GPU, not as a kernel: {error}", stacklevel=4)
        return None
