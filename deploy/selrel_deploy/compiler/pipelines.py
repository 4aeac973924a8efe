"""The compiler's passes as one table: what each does, in which order they run, and which forms of a graph they make.

First those that every form has, on the graph that ``capture`` wrote down; then those of a form. A form stands on
another where it says so, and takes its passes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import fx

from .passes.combine import absorb_offsets, combine
from .passes.fold import fold, pack_constants
from .passes.in_place import compute_in_place
from .passes.kernels import with_kernels
from .passes.max_pools import FIRST_MAXIMA, by_repeating, max_pool_backward, rectify_after_pools
from .passes.onnx_convolutions import join_wide, skip_padding_in_time, sum_by_convolution, unroll_in_time
from .passes.parts_of_weights import clamp_at_run_time, clamp_now, multiply_in_blocks
from .passes.precision import lower_precision
from .passes.schedule import shorten_lives
from .passes.signs import eliminate_zeros
from .passes.simplify import multiply_for_choices, simplify
from .passes.window_divisors import divide_by_window
from .rewriting import finish, written_out


class Form(NamedTuple):
    """A form of a graph: what it is for, and which form it stands on."""

    summary: str
    on: str | None = None


FORMS = {
    "plain": Form("as torch runs it on any device: what a graph computes when it is called"),
    "eager": Form(
        "as this machine's torch runs it, operation by operation, in place and with its own kernels", "plain"
    ),
    "compiled": Form("as compilers are faster with it: pools by repeating, choices as products, weights as constants"),
    "inductor": Form("as inductor compiles it for this machine, with its own kernels", "compiled"),
    "onnx": Form("as ONNX Runtime is faster with it: convolutions joined, unrolled in time, cut where padding is"),
}
# Every form that ONNX Runtime or a compiler sees.
_COMPILED = ("compiled", "onnx")


class Options(NamedTuple):
    """What passes depend on, beside the graph."""

    precision: str = "fp32"
    split: bool = False


@dataclass(frozen=True)
class Pass:
    """A pass: its name, what it does, and the function; ``forms`` are those that it makes, None for all.

    The function works in place, or returns another graph.
    """

    name: str
    does: str
    run: Callable[[fx.GraphModule, Options], Any]
    forms: tuple[str, ...] | None = None


def _plain(function: Callable[[fx.GraphModule], Any]) -> Callable[[fx.GraphModule, Options], Any]:
    return lambda graph, options: function(graph)


def _join(graph: fx.GraphModule, options: Options) -> None:
    # The forward pass then computes what is relevance's alone, so the parts of a split artifact stay as they are.
    if not options.split:
        join_wide(graph)


_SAID_ONCE = "say everything once, and nothing that changes nothing"

PASSES = (
    Pass("simplify", _SAID_ONCE, _plain(simplify)),
    Pass("signs", "drop what is zero because a value is never negative", _plain(eliminate_zeros)),
    Pass("fold", "compute what depends on constants alone", _plain(fold)),
    Pass("simplify", _SAID_ONCE, _plain(simplify)),
    Pass("combine", "make one convolution of sums of them, and of small ones with one input", _plain(combine)),
    Pass("rectify", "put a ReLU behind the max pool that follows it", _plain(rectify_after_pools)),
    Pass("pack", "lay constants out as kernels read them", _plain(pack_constants)),
    Pass(
        "precision",
        "lower the precision of convolutions and linear layers",
        lambda g, o: lower_precision(g, o.precision),
    ),
    Pass("simplify", _SAID_ONCE, _plain(simplify)),
    Pass("biases", "make biases of numbers that are added to layers", _plain(absorb_offsets)),
    Pass("parts", "clamp linear layers' weights at run time, where they are not held twice", _plain(clamp_at_run_time)),
    Pass("divisors", "divide what goes back through a pool before it is spread", _plain(divide_by_window), ("onnx",)),
    Pass(
        "pools",
        "write pools going backward out, by first maxima",
        lambda graph, options: written_out(graph, FIRST_MAXIMA, max_pool_backward),
        ("plain",),
    ),
    Pass(
        "pools",
        "write pools going backward out, by repeating what compilers fuse",
        lambda graph, options: written_out(graph, FIRST_MAXIMA, by_repeating),
        _COMPILED,
    ),
    Pass("clamps", "clamp linear layers' weights now: constants fold", _plain(clamp_now), _COMPILED),
    Pass("choices", "choose between two numbers by a product", _plain(multiply_for_choices), _COMPILED),
    Pass("join", "join wide convolutions of one input: a layer and its z⁺", _join, ("onnx",)),
    Pass("unroll", "unroll narrow kernels in time", _plain(unroll_in_time), ("onnx",)),
    Pass("padding", "multiply no padding where frames are few", _plain(skip_padding_in_time), ("onnx",)),
    Pass("channels", "sum over a clip's channels by a convolution", _plain(sum_by_convolution), ("onnx",)),
    Pass(
        "finish",
        "simplify, and order operations so that large values live short",
        lambda g, o: _finished(g),
        ("plain", *_COMPILED),
    ),
    Pass("kernels", "use this machine's own kernels", _plain(with_kernels), ("eager", "inductor")),
    Pass("blocks", "multiply by parts of weights in blocks", _plain(multiply_in_blocks), ("eager",)),
    Pass(
        "in place", "compute in the memory of an operand that nothing reads again", _plain(compute_in_place), ("eager",)
    ),
)


def of_all_forms() -> Iterator[Pass]:
    """Yield the passes that come first, whatever the form."""
    return (one for one in PASSES if one.forms is None)


def of_form(name: str) -> Iterator[Pass]:
    """Yield the passes of a form, behind those of the form that it stands on."""
    return (one for one in PASSES if one.forms is not None and name in one.forms)


def _finished(graph: fx.GraphModule) -> None:
    """Take the last passes on a graph that holds plain operations alone, and keep of shapes what runners ask for."""
    import torch

    simplify(graph)
    shorten_lives(graph)
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        kept = {"shape": tuple(value.shape), "dtype": value.dtype} if isinstance(value, torch.Tensor) else {}
        node.meta = {**kept, "custom": node.meta.get("custom", {})}
    finish(graph)
