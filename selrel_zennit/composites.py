"""Composites for video networks, registered in Zennit's COMPOSITES."""

from __future__ import annotations

from typing import Any

import torch
from zennit.composites import SpecialFirstLayerMapComposite, layer_map_base, register_composite
from zennit.core import Composite
from zennit.rules import ZBox, ZPlus
from zennit.types import Convolution, Linear


@register_composite("dtd")
class DTD(SpecialFirstLayerMapComposite):
    """Deep Taylor decomposition of a ReLU network, as Hiley et al. 2020 apply it to C3D.

    The first convolution takes the z^B rule with the box of valid inputs; every other convolution and every linear
    layer, the class layer too, takes z⁺ (α1β0). Biases are dropped, which Zennit's rules keep by default. ReLU and
    batch norm pass relevance; sums and average pools share it in proportion; a max pool, having no rule, hands it to
    the winner (its gradient). Relevance sums to the initial relevance.

    ``low`` and ``high`` are the least and greatest input in model units, shape [1,3,1,1,1] or anything that broadcasts:
    ``ClipSpec.bounds()``. The other arguments are those of Zennit's composites.

    Source: Montavon et al. 2017, §4-5; Hiley et al. 2020, arXiv 2003.14285, §3.
    """

    def __init__(
        self,
        low: torch.Tensor | float,
        high: torch.Tensor | float,
        stabilizer: Any = 1e-6,
        layer_map: list[tuple[Any, Any]] | None = None,
        first_map: list[tuple[Any, Any]] | None = None,
        zero_params: Any = "bias",
        canonizers: list[Any] | None = None,
    ) -> None:
        rule = {"stabilizer": stabilizer, "zero_params": zero_params}
        super().__init__(
            layer_map=[
                *(layer_map or []),
                *layer_map_base(stabilizer),
                (Convolution, ZPlus(**rule)),
                (Linear, ZPlus(**rule)),
            ],
            first_map=[*(first_map or []), (Convolution, ZBox(low=low, high=high, **rule))],
            canonizers=canonizers,
        )


def release_hooks(composite: Composite) -> None:
    """Drop what the hooks of a registered composite keep of the last call: tensors, and one handle per layer and call.

    Zennit drops them when the composite is removed; inside a ``with`` block they would pile up with every call.
    """
    for hook in composite.hook_refs:
        hook.stored_tensors.clear()
        hook.tensor_handles.remove()
