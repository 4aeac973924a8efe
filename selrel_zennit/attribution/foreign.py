"""Zennit's own objects as attributors of this package: attributors of any class, and composites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Any, TypeAlias

import torch
from torch import nn
from zennit.attribution import Attributor
from zennit.attribution import Gradient as ZennitGradient
from zennit.attribution import Occlusion as ZennitOcclusion
from zennit.core import Composite

from .. import plugins
from ..clips.spec import ClipSpec
from ..composites import release_hooks
from ..errors import InputError
from .base import AttrOutput, VideoAttributor
from .completion import completed
from .fit import check_network
from .methods.gradient import Gradient
from .named import build_by_name
from .provenance import parameters, provenance

Method: TypeAlias = str | Attributor | Composite

_NOT_OPTIONS = ("model", "composite", "attr_output", "create_graph", "retain_graph")


class Adapted(VideoAttributor):
    """An attributor of any class, with VideoAttributor's guarantees; what it computes is its own.

    Called with an output attribution, one for each class, it explains the same classes at whatever points it runs the
    network: the attribution is taken once, from the logits of the clip itself. Zennit's Occlusion wants a weighted
    output in its place, which is the attribution times the logits; with 1 at the target, the target's logit. Called
    without, it runs with the attributor's own ``attr_output``, as Zennit does.

    ``composite`` takes the place of the attributor's own. The attributor itself is neither changed nor registered.
    Raises InputError for one that registers by itself.
    """

    records = False

    def __init__(self, attributor: Attributor, composite: Composite | None = None) -> None:
        kind = type(attributor)
        if kind.__enter__ is not Attributor.__enter__ or kind.__exit__ is not Attributor.__exit__:
            raise InputError(
                f"{kind.__name__} enters the network in a way of its own: "
                "derive it from selrel_zennit.attribution.VideoAttributor"
            )
        super().__init__(attributor.model, composite or attributor.composite, attributor.attr_output_fn)
        self.inner = copy(attributor)
        self._own_output = True

    def record_at(self, layers: str | Iterable[str]) -> None:
        """Raise InputError: it may run the network any number of times."""
        raise InputError(f"{type(self.inner).__name__} has no relevance inside the network: leave out record")

    def __call__(self, input: torch.Tensor, attr_output: AttrOutput = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K], attribution [B,3,T,H,W]); see the class and VideoAttributor."""
        self._own_output = attr_output is None
        return super().__call__(input, attr_output)

    def forward(
        self, input: torch.Tensor, attr_output_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B,K] of the clip, attribution [B,3,T,H,W])."""
        inner = copy(self.inner)
        # What is registered is this attributor's; its model may be a copy.
        inner.model, inner.composite = self.model, self.composite
        if self._own_output:
            output, attribution = inner(input, attr_output_fn)
            return output, attribution
        # Under rules with a graph, which is what a check of them looks at.
        with torch.set_grad_enabled(self.composite is not None):
            output = self.model(input.detach().requires_grad_(self.composite is not None))
            initial = attr_output_fn(output).detach()
        if self.composite is not None:
            release_hooks(self.composite)

        def of_the_clip(logits: torch.Tensor) -> torch.Tensor:
            if initial.shape != logits.shape and len(initial) != 1:
                raise InputError(
                    f"{type(inner).__name__} runs {len(logits)} clips at once for {len(initial)}: explain one at a time"
                )
            same = initial.expand_as(logits)
            return same * logits if isinstance(inner, ZennitOcclusion) else same

        return output, inner(input, of_the_clip)[1]


def as_attributor(
    method: Method,
    model: nn.Module,
    options: Mapping[str, Any] | None = None,
    clip: torch.Tensor | None = None,
    *,
    strict: bool = True,
) -> VideoAttributor:
    """Return what explains ``model``, with all guarantees of VideoAttributor and an ``info`` that says what it is.

    A name of ``METHODS`` is built with ``options``, and so is what "package.module:name" names: a function
    (model, **options), a class of attributors or composites. A composite becomes a Gradient, and so does Zennit's
    Gradient, with what it lacks on video networks (canonizers, a rule for sums; see Completed); any other attributor is
    Adapted. A VideoAttributor is returned as it is. ``clip`` tells a model without a ClipSpec what it takes.
    ``strict``, which may stand among the options, is VideoAttributor's.

    Raises InputError for what is none of these, for options without a name, for an attributor of another network or one
    that selects already, and for what ``build_method`` and ``completed`` refuse.
    """
    options = dict(options or {})
    strict = bool(options.pop("strict", strict))
    if isinstance(method, str) and ":" not in method:
        attributor = build_by_name(method, model, options)
        attributor.strict = strict
        return attributor
    if isinstance(method, str):
        method, options = _made(method, plugins.import_named(method, "--method"), model, options), {}
    if not isinstance(method, Attributor | Composite):
        got = f"the class {method.__name__}: pass an object of it" if isinstance(method, type) else repr(method)
        raise InputError(f"a method is the name of one, a Zennit attributor or a Zennit composite, got {got}")
    if options:
        raise InputError(f"options ({', '.join(sorted(options))}) go with a method's name, not with a built attributor")
    if hasattr(method, "selection"):
        raise InputError("pass the inner attributor and selection=…: explain selects by itself")
    shape = None if clip is None or isinstance(getattr(model, "spec", None), ClipSpec) else tuple(clip.shape[1:])
    made = _converted(method, model, shape)
    if made is not method:
        made.strict = strict
    elif not strict and made.strict:
        raise InputError("strict=False goes with a name or an object of Zennit's: set attributor.strict = False")
    if "model" not in made.info:
        inner = made.inner if isinstance(made, Adapted) else made
        own = {} if type(inner) is Gradient else parameters(inner, leave_out=_NOT_OPTIONS)
        made.info |= {**provenance(made, model, None, own), "attributor": _name(method)}
    return made


def _made(name: str, found: Any, model: nn.Module, options: dict[str, Any]) -> Attributor | Composite:
    """Return the attributor or composite that "package.module:name" is, or makes of the model and the options."""
    if isinstance(found, Attributor | Composite) and not options:
        return found
    composite = isinstance(found, type) and issubclass(found, Composite)
    try:
        made = found(**options) if composite else found(model, **options)
    except TypeError as error:
        raise InputError(
            f"{name} cannot be called ({error}): it must be a function (model, **options), an attributor or a composite"
        ) from None
    if not isinstance(made, Attributor | Composite):
        raise InputError(f"{name} returned {type(made).__name__}: it must return a Zennit attributor or composite")
    return made


def _converted(method: Attributor | Composite, model: nn.Module, shape: tuple[int, ...] | None) -> VideoAttributor:
    if isinstance(method, VideoAttributor):
        return method
    plain = isinstance(method, Attributor) and method.composite is None
    check_network(model, "gradient" if plain else None)
    if isinstance(method, Composite):
        return Gradient(model, completed(method, shape))
    if method.model is not model:
        raise InputError(
            f"the {type(method).__name__} is an attributor of another network than the one to explain: "
            "make it with the same object"
        )
    composite = None if method.composite is None else completed(method.composite, shape)
    if type(method) is ZennitGradient:
        return Gradient(model, composite, method.attr_output_fn)
    return Adapted(method, composite)


def _name(method: Attributor | Composite) -> str:
    kind = type(method) if isinstance(method, Attributor) else Gradient
    return f"{kind.__module__}.{kind.__qualname__}"
