"""Layers that compute with other weights than those they hold, as plain layers with these weights.

Rules change ``layer.weight`` and run the layer again. A hook or a parametrization that computes the weight anew
(weight_norm, spectral_norm, prune), and a subclass that does so in its forward (weight standardisation, scaled or
quantised weights), would undo that: a rule without effect, and no error. So the weight that the convolution or matrix
product is really given is read from a run of the layer, and put into a layer of torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from zennit.types import BatchNorm, Linear

from .operations import PRODUCTS, name_of

_CONFIGURATION = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)
_OWN = frozenset(
    (
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        *(nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear),
    )
)


def make_layers_plain(model: nn.Module) -> list[str]:
    """Replace, in a copy of a network, layers whose weight is computed by plain ones; return their names.

    Batch norms of other types than Zennit knows (SyncBatchNorm) become plain too. A layer that computes more than one
    product with a weight stays as it is: what the coverage then finds is refused.
    """
    plain: dict[nn.Module, nn.Module] = {}
    names = {module: name for name, module in model.named_modules()}
    for module in model.modules():
        made = _plain_layer(module) if isinstance(module, Linear) else _plain_norm(module)
        if made is not None:
            plain[module] = made.train(module.training)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in plain:
                parent._modules[name] = plain[child]
    return [names[module] for module in plain]


def _plain_layer(layer: Any) -> nn.Module | None:
    """Return a plain layer with the weight that ``layer`` computes with; None where it is plain, or cannot be."""
    held = isinstance(layer._parameters.get("weight"), nn.Parameter)
    if type(layer) in _OWN and held and not layer._forward_pre_hooks:
        return None
    own = next((kind for kind in type(layer).__mro__ if kind in _OWN), None)
    if own is None:
        return None
    seen = _Operands()
    try:
        with torch.no_grad():
            values = _noise_for(layer, own)
            with seen:
                output = layer(values)
            if len(seen.found) != 1:
                return None
            weight, bias = seen.found[0]
            expected = layer._parameters.get("weight")
            if expected is not None and _same_memory(weight, expected):
                return None
            made = _built(own, layer, weight, bias)
            return made if torch.allclose(made(values), output, rtol=1e-4, atol=1e-6) else None
    except Exception:  # a layer that takes or does something else than its kind
        return None


def _built(own: Any, layer: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    if issubclass(own, nn.Linear):
        weight = weight.reshape(layer.out_features, layer.in_features)
        made: Any = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta")
    else:
        configuration = {name: getattr(layer, name) for name in _CONFIGURATION}
        if issubclass(own, nn.modules.conv._ConvTransposeNd):
            configuration["output_padding"] = layer.output_padding
        made = own(**configuration, bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return made  # type: ignore[no-any-return]


def _noise_for(layer: Any, own: Any) -> torch.Tensor:
    weight = next((value for value in (*layer.parameters(), *layer.buffers()) if value.is_floating_point()), None)
    if issubclass(own, nn.Linear):
        sizes = [layer.in_features]
    else:
        # Large enough for the kernel and for reflected borders.
        sizes = [layer.in_channels] + [
            dilation * (kernel - 1) + 1 + 2 * step
            for kernel, dilation, step in zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
        ]
    noise = torch.randn(1, *sizes, generator=torch.Generator().manual_seed(0))
    return noise if weight is None else noise.to(weight)


class _Operands(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps weight and bias of every product inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = name_of(func)
        if name in ("convolution", "_convolution", "mkldnn_convolution", "linear"):
            self.found.append((args[1], args[2] if len(args) > 2 else None))
        elif name == "addmm":
            self.found.append((args[2].t(), args[0]))
        elif name == "mm":
            self.found.append((args[1].t(), None))
        elif name in PRODUCTS:
            self.found += [(args[0], None), (args[0], None)]  # of a kind that is not read: never taken for the one
        return func(*args, **(kwargs or {}))


def _same_memory(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


class AnyBatchNorm(nn.BatchNorm3d):
    """A batch norm of any number of dimensions, of a type that Zennit's rules and canonizers know."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass


def _plain_norm(norm: Any) -> nn.Module | None:
    """Return a batch norm of a known type for one of another (SyncBatchNorm, a subclass with statistics)."""
    if not isinstance(norm, _BatchNorm) or isinstance(norm, BatchNorm) or norm.running_mean is None:
        return None
    if norm._forward_hooks or norm._forward_pre_hooks or type(norm) is not nn.SyncBatchNorm:
        return None
    made = AnyBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, device="meta")
    made._parameters, made._buffers = dict(norm._parameters), dict(norm._buffers)
    return made
