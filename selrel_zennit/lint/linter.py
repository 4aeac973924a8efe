"""The linter: does a network conserve relevance under a method, and if not, where and why?

Relevance is read at the input and output of every module that computes (those without children) while one clip is
explained. What happens between modules is watched as torch's own calls: an addition there is seen by no rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, resolve_name
from zennit.attribution import Attributor, IntegratedGradients, Occlusion, SmoothGrad
from zennit.core import Hook
from zennit.rules import Pass
from zennit.types import BatchNorm, Linear

from ..attribution import METHODS, Contrastive, ExcitationBackprop, GradientXInput, one_hot
from ..attribution.completion import mapped_rules
from ..attribution.fit import check_devices, check_mode
from ..attribution.foreign import Adapted, Method, as_attributor
from ..attribution.provenance import label
from ..clips.spec import ClipSpec
from ..composites import DTD
from ..errors import InputError
from ..network.coverage import is_guided, rule_of
from ..network.operations import tensors_in
from ..network.output import only_logits
from .watch import PROBABILITIES, Finding, Flow, RelevanceWatch

THRESHOLD = 0.01

# Attributors that hand on something else than their composite's relevance.
_OTHER_ATTRIBUTORS = (GradientXInput, IntegratedGradients, Occlusion, SmoothGrad)


@dataclass(frozen=True)
class LintReport:
    """What the linter saw. ``conserved`` is the relevance of the clip divided by what the explanation began with.

    ``absorbed`` is what rules kept that are meant to (``Flow.kept``): AttnLRP's for the constant of a softmax's Taylor
    expansion, and a class token. ``flows`` are the modules in the order in which they run. ``passed`` says whether
    nothing was found and the sum of both lies within ``threshold`` of 1.
    """

    method: str
    threshold: float
    conserved: float
    flows: list[Flow]
    findings: list[Finding]
    absorbed: float = 0.0

    @property
    def passed(self) -> bool:
        """Say whether the network passes."""
        return not self.findings and abs(self.conserved + self.absorbed - 1) <= self.threshold

    @property
    def total(self) -> str:
        """Say in words what arrives at the clip, and what rules kept that are meant to."""
        kept = f", {self.absorbed:.2%} kept by the softmax's constant and class tokens"
        return f"{self.conserved:.2%} of the relevance arrives at the clip" + kept * any(f.kept for f in self.flows)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON takes it."""
        return {**asdict(self), "passed": self.passed}


def lint(
    model: nn.Module,
    method: Method = "dtd",
    clip: torch.Tensor | None = None,
    *,
    threshold: float = THRESHOLD,
    **options: Any,
) -> LintReport:
    """Explain one clip's top class and follow relevance from the logits to the clip.

    ``clip`` is [1,3,T,H,W] in model units, by default noise within the bounds of ``model.spec``. ``method`` is a name
    of ``METHODS`` whose rules conserve relevance (DTD, LRP, excitation backprop), built with ``options``, an
    attributor, or a composite. ``threshold`` is the share of the relevance that a module may lose or add before it is
    named.

    Raises InputError for a method without such rules, for a contrast, whose relevance sums to 0, and for what the
    attributor refuses.
    """
    if not 0 < threshold < 1:
        raise InputError(f"threshold is a share of the relevance and must lie in (0, 1), got {threshold!r}")
    attributor = as_attributor(method, model, options, clip)
    name = label(attributor.info)
    _check_method(attributor, name)
    clip = _noise(model) if clip is None else clip

    check_mode(model)
    check_devices(model, clip)
    with attributor, _not_strict(attributor):
        prepared = attributor.model
        watch = RelevanceWatch(prepared)
        with only_logits(prepared), watch.watching(), _Calls(watch):
            _, relevance = attributor(clip, lambda logits: one_hot(logits.argmax(1), logits.shape[1]).to(logits))
        if abs(watch.begun) <= 1e-6 * watch.size:
            raise _contrast(name, attributor)
        hooks = {module: rule for module in prepared.modules() if (rule := rule_of(module)) is not None}
        flows = watch.flows({module: type(hook).__name__ for module, hook in hooks.items()})
        findings = [
            *watch.findings(),
            *_modules_used_twice(watch, hooks),
            *_unmerged(watch),
            *_losses(flows, prepared, hooks, threshold),
            *_probabilities(watch),
        ]
        findings += _unseen(attributor, findings)
    absorbed = sum(flow.lost for flow in flows if flow.kept)
    report = LintReport(name, threshold, float(relevance.double().sum()) / watch.begun, flows, findings, absorbed)
    if not findings and not report.passed:
        findings.append(_small_losses(report))
    return report


class _Calls(TorchFunctionMode):
    """Tells a RelevanceWatch of every call of torch."""

    def __init__(self, watch: RelevanceWatch) -> None:
        self.watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        taken = tensors_in((args, kwargs))
        clip_in = [value for value in taken if value.requires_grad]
        versions = [None if value.is_inference() else value._version for value in taken]
        output = func(*args, **(kwargs or {}))
        changed = [
            value for value, old in zip(taken, versions, strict=True) if old is not None and value._version != old
        ]
        self.watch.call(_short(func), clip_in, changed, tensors_in(output))
        return output


def _short(func: Any) -> str:
    path = str(resolve_name(func) or getattr(func, "__name__", func))
    name = path.removesuffix(".__get__").rpartition(".")[2]
    return name.strip("_") if name.startswith("__") else name


def _check_method(attributor: Attributor, name: str) -> None:
    """Raise InputError for an attributor whose relevance is not what its composite's rules conserve."""
    known = METHODS.get(name)
    inner = attributor.inner if isinstance(attributor, Adapted) else attributor
    conserves = attributor.composite is not None and not isinstance(inner, _OTHER_ATTRIBUTORS)
    guided = conserves and any(is_guided(rule) for _, rule in mapped_rules(attributor.composite))
    if (known is not None and not known.rules) or not conserves or guided:
        takes = [key for key, entry in METHODS.items() if entry.rules and key != "dtd_contrastive"]
        raise InputError(f"{name} places no rules that conserve relevance: lint takes {', '.join(takes)}")
    if isinstance(attributor, Contrastive):
        raise _contrast(name, attributor)
    if isinstance(attributor, ExcitationBackprop):
        options = {"contrastive": attributor.contrastive, "layer": attributor.layer_name is not None}
        option = next((key for key, given in options.items() if given), None)
        if option is not None:
            raise InputError(f"{name} with {option} does not end with all of the relevance: lint it without {option}")


@contextmanager
def _not_strict(attributor: Attributor) -> Iterator[None]:
    """Let the attributor explain what no rule sees, which the linter lists."""
    strict = getattr(attributor, "strict", None)
    attributor.strict = False
    try:
        yield
    finally:
        if strict is not None:
            attributor.strict = strict


def _unseen(attributor: Attributor, findings: list[Finding]) -> Iterator[Finding]:
    """Yield what the attributor's own check of coverage found where nothing else was found."""
    known = {finding.module for finding in findings}
    ended = any(finding.kind == "softmax" for finding in findings)
    for one in getattr(attributor, "unseen", []):
        if one.module not in known and not (ended and one.operation.strip("_") in PROBABILITIES):
            yield Finding("unseen", one.module, f"{one.operation} {one.reason}")


def _contrast(name: str, attributor: Attributor) -> InputError:
    of_dtd = isinstance(attributor, Contrastive) and isinstance(attributor.composite, DTD)
    instead = "dtd, which has its rules" if of_dtd else "its composite with Gradient"
    return InputError(f"relevance of {name} sums to 0, so that no share of it can be followed: lint {instead}")


def _noise(model: nn.Module) -> torch.Tensor:
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ClipSpec):
        raise InputError(
            "the network does not say what clips it takes: set model.spec = ClipSpec(…), or give clip=…",
            command="the network does not say what clips it takes: give --clip-spec FILE",
        )
    low, high = (torch.from_numpy(bound.copy()) for bound in spec.bounds())
    noise = torch.rand((1, *spec.shape), generator=torch.Generator().manual_seed(0))
    parameter = next(model.parameters(), noise)
    return (low + (high - low) * noise).to(parameter)


def _drops_bias(rule: Hook | None) -> bool:
    """Say whether a rule of Zennit's leaves biases out altogether."""
    modifiers = getattr(rule, "param_modifiers", [])
    return bool(modifiers) and all("bias" in (getattr(one, "zero_params", None) or ()) for one in modifiers)


def _modules_used_twice(watch: RelevanceWatch, hooks: dict[nn.Module, Hook]) -> Iterator[Finding]:
    for module, runs in watch.runs.items():
        if runs > 1 and module in hooks and not isinstance(hooks[module], Pass):
            said = f"runs {runs} times: a rule knows the last of them alone; use a module for each"
            yield Finding("used twice", watch.name(module), said)


def _unmerged(watch: RelevanceWatch) -> Iterator[Finding]:
    order = list(dict.fromkeys(watch.order))
    for module, behind in zip(order, [*order[1:], None], strict=True):
        # Before a layer it is as good as merged: contributions w·(s·x + b) are what the layer's rule shares by.
        if isinstance(module, BatchNorm) and not _is_identity(module) and not isinstance(behind, Linear):
            yield Finding(
                "batch norm",
                watch.name(module),
                "is merged into no convolution: its scale and shift are hidden from the rules; "
                "put it right behind the layer that it belongs to",
            )


def _is_identity(norm: Any) -> bool:
    if norm.running_mean is None:
        return False
    scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    return bool(torch.allclose(scale, torch.ones_like(scale), atol=1e-4))


def _small_losses(report: LintReport) -> Finding:
    """Return what to say where no module loses much, and all together do."""
    said = f"{report.total}, though no module changes it by more than {report.threshold:.0%}: "
    between = 1 - report.conserved - sum(flow.lost for flow in report.flows)
    rest = [flow for flow in report.flows if not flow.kept]
    if not rest:
        return Finding("not conserved", "the network", f"{said}between modules {-between:+.1%}")
    most = max(rest, key=lambda flow: abs(flow.lost))
    said += f"this one does most, {-most.lost:+.1%}; between modules {-between:+.1%}"
    return Finding("not conserved", most.module, said)


def _losses(flows: list[Flow], model: nn.Module, hooks: dict[nn.Module, Hook], threshold: float) -> Iterator[Finding]:
    modules = dict(model.named_modules())
    for flow in flows:
        if abs(flow.lost) <= threshold or flow.kept:
            continue
        module = modules.get(flow.module)
        bias = getattr(module, "bias", None)
        biased = isinstance(module, Linear) and bias is not None and bool(bias.any()) and flow.rule is not None
        if biased and _drops_bias(hooks.get(module)):  # type: ignore[arg-type]
            yield Finding(
                "bias",
                flow.module,
                f"changes the relevance by {-flow.lost:+.1%}, though its rule drops the bias: a unit whose inputs add "
                "nothing that the rule counts (no positive product, or its bias alone) has nothing to share it by",
            )
        elif biased:
            yield Finding(
                "bias",
                flow.module,
                f"its bias takes {flow.lost:+.1%} of the relevance: drop it with zero_params='bias'",
            )
        elif flow.rule is None:
            yield Finding(
                "no rule", flow.module, f"{flow.kind} has no rule and changes the relevance by {-flow.lost:+.1%}"
            )
        else:
            yield Finding(
                "not conserved",
                flow.module,
                f"{flow.kind} under {flow.rule} changes the relevance by {-flow.lost:+.1%}",
            )


def _probabilities(watch: RelevanceWatch) -> Iterator[Finding]:
    last = watch.order[-1] if watch.order else None
    named = type(last).__name__ if isinstance(last, nn.Softmax | nn.LogSoftmax | nn.Sigmoid) else None
    if named is None and watch.final in PROBABILITIES:
        named = watch.final
    if named is not None:
        yield Finding(
            "softmax", "output", f"the network ends in {named}: explain the logits before it, which the classes share"
        )
