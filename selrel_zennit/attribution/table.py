"""The table of methods. It needs no torch: a method's module is imported when the method is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import VideoAttributor

    Builder = Callable[..., VideoAttributor]


@dataclass(frozen=True)
class MethodEntry:
    """A method of the registry.

    ``build(model, **options)`` makes the attributor; ``builder`` is that function or, for a method of this package,
    its place here, "module:function", beside which ``own_options`` names what it takes after the model; ``passes`` is
    the cost in forward passes, roughly; ``compilable`` says whether it is one fixed computation (no sampling, no path,
    no optimisation); ``warning`` is printed beside every result where one is due; ``rules`` says whether relevance is
    handed down by rules, which networks with layers of other kinds (attention, layer norms, GRUs) do not suit.
    """

    name: str
    builder: Builder | str
    summary: str
    citation: str
    passes: float
    compilable: bool
    warning: str | None = None
    rules: bool = False
    own_options: tuple[str, ...] = ()

    @property
    def build(self) -> Builder:
        """The function that makes the attributor; it is imported now."""
        if not isinstance(self.builder, str):
            return self.builder
        module, _, function = self.builder.partition(":")
        build: Builder = getattr(import_module(f".methods.{module}", __package__), function)
        return build

    @property
    def options(self) -> list[str]:
        """Names of the options that ``build`` takes after the model."""
        if isinstance(self.builder, str):
            return list(self.own_options)
        return list(inspect.signature(self.builder).parameters)[1:]


def register_method(
    name: str,
    *,
    summary: str,
    citation: str,
    passes: float,
    compilable: bool,
    warning: str | None = None,
    rules: bool = False,
) -> Callable[[Builder], Builder]:
    """Register a builder ``(model, **options) -> VideoAttributor`` under ``name``; see MethodEntry for the fields.

    Raises ValueError when the name is taken.
    """

    def register(build: Builder) -> Builder:
        if name in METHODS:
            raise ValueError(f"a method named {name!r} is registered already")
        METHODS[name] = MethodEntry(name, build, summary, citation, passes, compilable, warning, rules)
        return build

    return register


_BIASES = "biases take a share of the relevance, so it need not sum to 1: zero_params='bias' drops them"

_TABLE = (
    MethodEntry(
        "gradient",
        "gradient:gradient",
        summary="derivative of the target's logit with respect to the clip",
        citation="Simonyan et al. 2014, arXiv 1312.6034",
        passes=2.0,
        compilable=True,
    ),
    MethodEntry(
        "gradient_x_input",
        "gradient:gradient_x_input",
        summary="gradient times the clip in model units, the first-order share of each voxel",
        citation="Shrikumar et al. 2016, arXiv 1605.01713",
        passes=2.0,
        compilable=True,
    ),
    MethodEntry(
        "guided_backprop",
        "guided:guided_backprop",
        summary="gradient with negative parts dropped at every ReLU",
        citation="Springenberg et al. 2015, arXiv 1412.6806",
        passes=2.0,
        compilable=True,
        warning="nearly blind to the class and to the upper layers: close to an edge detector (Adebayo et al. 2018)",
    ),
    MethodEntry(
        "deconvnet",
        "guided:deconvnet",
        summary="gradient with the ReLU applied to what flows back, instead of the ReLU's derivative",
        citation="Zeiler and Fergus 2014, arXiv 1311.2901",
        passes=3.5,
        compilable=True,
        warning="nearly blind to the class (Nie et al. 2018, arXiv 1805.07039)",
    ),
    MethodEntry(
        "gradcam",
        "cam:gradcam",
        summary="Grad-CAM at the last convolution, weights pooled over time and space",
        citation="Selvaraju et al. 2017, arXiv 1610.02391",
        passes=1.05,
        compilable=True,
        own_options=("layer", "pool"),
    ),
    MethodEntry(
        "guided_gradcam",
        "cam:guided_gradcam",
        summary="guided backpropagation times Grad-CAM",
        citation="Selvaraju et al. 2017, arXiv 1610.02391",
        passes=2.0,
        compilable=True,
        warning="its detail is that of guided backpropagation, which is nearly blind to the class",
        own_options=("layer", "pool"),
    ),
    MethodEntry(
        "random",
        "control:random",
        summary="no explanation: random relevance, the control that stands in every table",
        citation="the control row of Li et al. 2020, arXiv 2005.00375",
        passes=1.0,
        compilable=False,
        warning="a control: it says nothing about the network",
        own_options=("seed", "distribution"),
    ),
    MethodEntry(
        "excitation_backprop",
        "excitation:excitation_backprop",
        summary="excitation backprop (MWP) or, with contrastive=True, cMWP; down to the clip or a layer",
        citation="Zhang et al. 2018, arXiv 1608.00507",
        passes=6.0,
        compilable=True,
        warning="without contrastive=True nearly blind to the class: maps of different classes are almost the same",
        rules=True,
        own_options=("contrastive", "layer", "head"),
    ),
    MethodEntry(
        "dtd",
        "lrp:dtd",
        summary="deep Taylor decomposition: z^B in the first convolution, z⁺ elsewhere, biases dropped",
        citation="Montavon et al. 2017; on C3D: Hiley et al. 2020, arXiv 2003.14285",
        passes=6.0,
        compilable=True,
        warning="nearly blind to the class: maps of different classes are almost the same (Sixt et al. 2020)",
        rules=True,
        own_options=("pool",),
    ),
    MethodEntry(
        "dtd_epsilon_head",
        "lrp:dtd_epsilon_head",
        summary="dtd with the Epsilon rule in the class layer: what speaks against the class counts",
        citation="Bach et al. 2015 (Epsilon rule); Hiley et al. 2020, arXiv 2003.14285",
        passes=6.0,
        compilable=True,
        warning="many z⁺ layers below the class layer, as in C3D, make it nearly as blind to the class as dtd",
        rules=True,
        own_options=("epsilon", "head"),
    ),
    MethodEntry(
        "dtd_contrastive",
        "lrp:dtd_contrastive",
        summary="dtd of the class minus the mean dtd of the other classes: signed, sums to 0",
        citation="Gu et al. 2018, arXiv 1812.02100 (CLRP)",
        passes=6.0,
        compilable=True,
        warning="small beside dtd's map; classes may differ in little more than its sign and size",
        rules=True,
        own_options=("pool",),
    ),
    MethodEntry(
        "lrp_epsilon_plus",
        "lrp:lrp_epsilon_plus",
        summary="LRP: z⁺ in convolutions, Epsilon in linear layers (Zennit's EpsilonPlus); AttnLRP in transformers",
        citation="Bach et al. 2015; Anders et al. 2021, arXiv 2106.13200 (Zennit); "
        "Achtibat et al. 2024, arXiv 2402.05602",
        passes=6.0,
        compilable=True,
        warning=f"{_BIASES}; in transformers nearly blind to the class, unless gamma=0.25 or so is given",
        rules=True,
        own_options=("epsilon", "zero_params", "gamma"),
    ),
    MethodEntry(
        "lrp_epsilon_gamma_box",
        "lrp:lrp_epsilon_gamma_box",
        summary="LRP: z^B first, Gamma in convolutions, Epsilon in linear layers (Zennit's EpsilonGammaBox)",
        citation="Montavon et al. 2019; Anders et al. 2021, arXiv 2106.13200 (Zennit)",
        passes=12.0,
        compilable=True,
        warning=_BIASES,
        rules=True,
        own_options=("epsilon", "gamma", "zero_params"),
    ),
    MethodEntry(
        "lrp_alpha2_beta1",
        "lrp:lrp_alpha2_beta1",
        summary="LRP: α2β1 in convolutions, Epsilon in linear layers (Zennit's EpsilonAlpha2Beta1)",
        citation="Bach et al. 2015; Anders et al. 2021, arXiv 2106.13200 (Zennit)",
        passes=10.0,
        compilable=True,
        warning=_BIASES,
        rules=True,
        own_options=("epsilon", "zero_params"),
    ),
    MethodEntry(
        "motion_lrp",
        "motion:motion_lrp",
        summary="LRP on differences: what motion changes in the margin over the other classes, shared out; sums to it",
        citation="this project: docs/explanation/motion.md",
        passes=18.0,
        compilable=True,
        rules=True,
        own_options=("reference", "frames", "beta", "output", "vacated"),
    ),
    MethodEntry(
        "motion_integrated_gradients",
        "sampling:motion_integrated_gradients",
        summary="integrated gradients from clips without motion: what motion changes in the margin",
        citation="Sundararajan et al. 2017, arXiv 1703.01365; references: docs/explanation/motion.md",
        passes=205.0,
        compilable=False,
        own_options=("reference", "frames", "steps", "output", "batch"),
    ),
    MethodEntry(
        "discriminative",
        "discriminative:discriminative",
        summary="relevance of the clip minus that of each frame seen as a clip of its own; signed",
        citation="Hiley et al. 2019, arXiv 1908.01536",
        passes=102.0,
        compilable=False,
        warning="two maps, each ÷ its own maximum: the difference sums to nothing in particular, and may be negative",
        rules=True,
        own_options=("normalise", "slice", "base", "batch"),
    ),
    MethodEntry(
        "occlusion",
        "occlusion:occlusion",
        summary="drop of the target's logit when a window of space and time is covered",
        citation="Zeiler and Fergus 2014, arXiv 1311.2901",
        passes=197.0,
        compilable=False,
        own_options=("window", "stride", "fill", "batch"),
    ),
    MethodEntry(
        "smoothgrad",
        "sampling:smoothgrad",
        summary="mean gradient over noisy copies of the clip",
        citation="Smilkov et al. 2017, arXiv 1706.03825",
        passes=51.0,
        compilable=False,
        own_options=("samples", "noise_level", "seed", "batch"),
    ),
    MethodEntry(
        "smoothgrad_squared",
        "sampling:smoothgrad_squared",
        summary="mean squared gradient over noisy copies of the clip",
        citation="Hooker et al. 2019, arXiv 1806.10758",
        passes=51.0,
        compilable=False,
        own_options=("samples", "noise_level", "seed", "batch"),
    ),
    MethodEntry(
        "integrated_gradients",
        "sampling:integrated_gradients",
        summary="gradient integrated from a baseline to the clip, times their difference",
        citation="Sundararajan et al. 2017, arXiv 1703.01365",
        passes=51.0,
        compilable=False,
        own_options=("steps", "baseline", "batch"),
    ),
)

METHODS: dict[str, MethodEntry] = {entry.name: entry for entry in _TABLE}
