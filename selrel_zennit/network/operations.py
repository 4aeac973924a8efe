"""What operations of torch do to relevance, by the names that ATen gives them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

# What multiplies by weights.
PRODUCTS = frozenset({"convolution", "_convolution", "mkldnn_convolution", "addmm", "mm", "bmm", "matmul", "linear"})


def name_of(func: Any) -> str:
    """Return the plain name of an operation: ``add`` for aten::add_.Tensor."""
    name: str = func._schema.name.rpartition("::")[2]
    return name.removesuffix("_") if not name.endswith("__") else name


def tensors_in(values: Any) -> list[torch.Tensor]:
    """Return the tensors among nested arguments or outputs."""
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _ranks(*names: str) -> frozenset[str]:
    return frozenset(f"{name}{dimensions}d" for name in names for dimensions in (1, 2, 3))


# Each value of the output is one of the input, or a constant beside them: relevance goes back to where it was.
MOVES = frozenset(
    (
        *("_reshape_alias", "_to_copy", "_unsafe_view", "alias", "alias_copy", "as_strided", "block_diag", "cat"),
        *("channel_shuffle", "clone", "constant_pad_nd", "contiguous", "copy", "detach", "diagonal", "expand", "flip"),
        *("gather", "index", "index_copy", "index_put", "index_select", "lift_fresh", "masked_fill", "movedim"),
        *("narrow", "new_empty_strided", "pad", "permute", "pixel_shuffle", "pixel_unshuffle", "repeat", "reshape"),
        *("roll", "select", "select_scatter", "slice", "slice_scatter", "split", "split_with_sizes", "squeeze"),
        *("stack", "t", "take", "transpose", "unbind", "unfold", "unsafe_split", "unsqueeze", "view", "view_as"),
        *("where", "_pin_memory", "narrow_copy", "unfold_copy", "native_channel_shuffle", "chunk", "unflatten"),
    )
) | _ranks("reflection_pad", "replication_pad", "upsample_nearest", "_upsample_nearest_exact")
# What asks for a shape, or makes values that no clip decides.
SHAPES = frozenset(
    (
        *(
            "arange",
            "empty",
            "empty_like",
            "empty_strided",
            "eye",
            "fill",
            "full",
            "full_like",
            "linspace",
            "new_empty",
        ),
        *("new_full", "new_ones", "new_zeros", "ones", "ones_like", "rand_like", "randn_like", "scalar_tensor", "zero"),
        *("zeros", "zeros_like", "sym_size", "sym_numel", "sym_stride", "is_same_size", "size", "prim_device"),
    )
)
# The gradient hands relevance to the value that got through. Where nothing got through, no relevance arrives either.
WINNERS = frozenset(("relu", "clamp_min", "amax", "max", "maximum", "threshold")) | frozenset(
    f"{name}{dimensions}d{indices}"
    for name in ("max_pool", "adaptive_max_pool", "fractional_max_pool", "mkldnn_max_pool")
    for dimensions in (1, 2, 3)
    for indices in ("", "_with_indices")
)
AVERAGES = _ranks("avg_pool", "adaptive_avg_pool", "_adaptive_avg_pool") | {"mean", "sum"}
SUMS = frozenset(("add", "sub", "rsub"))
SCALES = frozenset(("mul", "div", "neg"))
NORMS = frozenset(
    ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "_batch_norm_no_update")
)
RELUS = frozenset(("relu", "clamp_min", "threshold", "hardtanh", "clamp"))
