"""A graph as inductor compiles it, for the processor and for a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import fx


def compile_frozen(module: fx.GraphModule, *examples: torch.Tensor) -> Callable[..., Any]:
    """Return a module compiled by inductor, its constants frozen: convolutions then hold weights packed for them."""
    import torch

    # As an option of torch.compile freezing reaches only half of the compiler, and nothing is packed. Without guards it
    # never compiles again, which it would do without freezing, say after torch.set_num_threads.
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        compiled: Callable[..., Any] = torch.compile(module, fullgraph=True, dynamic=False, options=options)
        compiled(*examples)
    return compiled
