"""The linter: does a network conserve relevance under a method, and if not, where and why?

Relevance is read at the input and output of every module that computes (those without children) while one clip is
explained. What happens between modules is watched as torch's own calls: an addition there is seen by no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, resolve_name
from zennit.attribution import Attributor
from zennit.core import Hook
from zennit.types import BatchNorm, Linear

from .attribution import build_method, one_hot
from .clip import ClipSpec
from .errors import InputError

THRESHOLD = 0.01

# What leaves relevance as it is, or shares it without a rule: shapes, joins, means over positions.
_PASSING = frozenset(
    f"{name}{dimensions}"
    for pool in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool")
    for name, dimensions in ((pool, "1d"), (pool, "2d"), (pool, "3d"))
) | frozenset(
    (
        *("broadcast_to", "cat", "chunk", "clone", "concat", "contiguous", "detach", "double", "dropout", "expand"),
        *("expand_as", "flatten", "flip", "float", "getitem", "half", "identity", "mean", "movedim", "narrow", "pad"),
        *("permute", "relu", "repeat", "requires_grad", "reshape", "roll", "select", "split", "squeeze", "stack"),
        *("swapaxes", "t", "tile", "to", "transpose", "type", "type_as", "unbind", "unflatten", "unsqueeze", "view"),
        *("view_as", "new_zeros", "zeros_like", "ones_like"),
    )
)
_PROBABILITIES = frozenset({"softmax", "log_softmax", "sigmoid"})
# Rules that keep a share for a constant, as their source has them.
_ABSORBING = frozenset({"ClassToken", "SoftmaxTaylor"})
_IN_PLACE = frozenset({"iadd", "imul", "isub", "itruediv"})


@dataclass(frozen=True)
class Flow:
    """Relevance through one module: what reaches its output, and what it hands on to its input.

    ``before`` and ``after`` are sums over all channels and voxels, ``lost`` their difference divided by the relevance
    that the explanation began with. ``rule`` is Zennit's rule for the module, None where there is none.
    """

    module: str
    kind: str
    rule: str | None
    before: float
    after: float
    lost: float


@dataclass(frozen=True)
class Finding:
    """Something that makes relevance wrong, where, and what to do."""

    kind: str
    module: str
    message: str

    def __str__(self) -> str:
        return f"{self.module}: {self.message}"


@dataclass(frozen=True)
class LintReport:
    """What the linter saw. ``conserved`` is the relevance of the clip divided by what the explanation began with.

    ``absorbed`` is what rules kept that are meant to: AttnLRP's for the constant of a softmax's Taylor
    expansion, and a class token.
    ``flows`` are the modules in the order in which they run. ``passed`` says whether nothing was found and the sum
    lies within ``threshold`` of 1.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON takes it."""
        return {**asdict(self), "passed": self.passed}


def lint(
    model: nn.Module,
    method: str | Attributor = "dtd",
    clip: torch.Tensor | None = None,
    *,
    threshold: float = THRESHOLD,
    **options: Any,
) -> LintReport:
    """Explain one clip's top class and follow relevance from the logits to the clip.

    ``clip`` is [1,3,T,H,W] in model units, by default noise within the bounds of ``model.spec``. ``method`` is a name
    of ``METHODS`` that conserves relevance (DTD, LRP, excitation backprop), built with ``options``, or an attributor.
    ``threshold`` is the share of the relevance that a module may lose or add before it is named.

    Raises InputError for a method without rules, and for what the attributor refuses.
    """
    if not 0 < threshold < 1:
        raise InputError(f"threshold is a share of the relevance and must lie in (0, 1), got {threshold!r}")
    attributor = method if isinstance(method, Attributor) else build_method(method, model, **options)
    name = str(getattr(attributor, "info", {}).get("method") or type(attributor).__name__)
    if attributor.composite is None:
        raise InputError(
            f"{name} places no rules, so that it conserves nothing that could be checked: "
            "lint dtd, an lrp method or excitation_backprop"
        )
    clip = _noise(model) if clip is None else clip
    begun: list[float] = []

    def initial(logits: torch.Tensor) -> torch.Tensor:
        start = one_hot(logits.argmax(1), logits.shape[1]).to(logits)
        begun.append(float(start.sum()))
        return start

    with attributor:
        watch = _Watch(model, {id(m): n for n, m in model.named_modules()})
        with watch.watching():
            logits, relevance = attributor(clip, initial)
        hooks = _hooks(attributor, model)
        rules = {module: type(hook).__name__ for module, hook in hooks.items()}
        flows = watch.flows(rules, begun[0])
        findings = [
            *watch.findings,
            *_modules_used_twice(watch, rules),
            *_unmerged(watch),
            *_losses(flows, model, hooks, threshold),
            *_probabilities(model, watch, logits),
        ]
    absorbed = sum(flow.lost for flow in flows if flow.rule in _ABSORBING)
    conserved = float(relevance.double().sum()) / begun[0]
    if not findings and abs(conserved + absorbed - 1) > threshold:
        findings = [_small_losses(flows, conserved + absorbed, threshold)]
    return LintReport(name, threshold, conserved, flows, findings, absorbed)


def _noise(model: nn.Module) -> torch.Tensor:
    spec = getattr(model, "spec", None) or ClipSpec()
    low, high = (torch.from_numpy(bound.copy()) for bound in spec.bounds())
    noise = torch.rand((1, *spec.shape), generator=torch.Generator().manual_seed(0))
    parameter = next(model.parameters(), noise)
    return (low + (high - low) * noise).to(parameter)


class _Calls(TorchFunctionMode):
    """Sees every call of torch, and asks whether it is inside a module that has a rule of its own."""

    def __init__(self, seen: Callable[[str, tuple[Any, ...], Any], None]) -> None:
        self.seen = seen

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self.seen(_short(func), args, output)
        return output


def _short(func: Any) -> str:
    name = str(resolve_name(func) or getattr(func, "__name__", func)).rpartition(".")[2]
    return name.strip("_") if name.startswith("__") else name


class _Watch:
    """Reads relevance at both ends of every module without children, and the calls outside of them."""

    def __init__(self, model: nn.Module, names: dict[int, str]) -> None:
        self.model, self.names = model, names
        self.running: list[nn.Module] = []
        self.order: list[nn.Module] = []
        self.runs: dict[nn.Module, int] = {}
        self.before: dict[nn.Module, float] = {}
        self.after: dict[nn.Module, float] = {}
        self.findings: list[Finding] = []
        self.last: str | None = None
        self.final: str | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hold hooks on all modules, and see all calls, inside the block."""
        with ExitStack() as stack:
            for module in self.model.modules():
                leaf = not any(True for _ in module.children())
                # Ahead of Zennit's, so that what is read at the input has gone through the rule.
                stack.callback(module.register_forward_pre_hook(self._enter, prepend=True).remove)
                stack.callback(module.register_forward_hook(self._leave).remove)
                if leaf:
                    stack.callback(module.register_forward_pre_hook(self._watch_input, prepend=True).remove)
                    stack.callback(module.register_forward_hook(self._watch_output).remove)
            stack.enter_context(_Calls(self._call))
            yield

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()
        if module is self.model:
            self.final = self.last

    def _watch_input(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        self.runs[module] = self.runs.get(module, 0) + 1
        self.order.append(module)
        if not args or not isinstance(args[0], torch.Tensor) or not args[0].requires_grad:
            return None
        return tuple(self._entered(module, value) for value in args)

    def _entered(self, module: nn.Module, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.requires_grad:
            return value
        with torch._C.DisableTorchFunction():
            # Of its own, since what else reads the tensor adds relevance to it; not in place, as a view would allow.
            entered = value.clone()
            entered.register_hook(lambda gradient: self._add(self.after, module, gradient))  # type: ignore[no-untyped-call]
        return entered

    def _watch_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor) or not output.requires_grad:
            return None
        with torch._C.DisableTorchFunction():
            left = output.clone()
            left.register_hook(lambda gradient: self._add(self.before, module, gradient))  # type: ignore[no-untyped-call]
        return left

    @staticmethod
    def _add(sums: dict[nn.Module, float], module: nn.Module, gradient: torch.Tensor) -> None:
        sums[module] = sums.get(module, 0.0) + float(gradient.double().sum())

    def _call(self, name: str, args: tuple[Any, ...], output: Any) -> None:
        self.last = name if isinstance(output, torch.Tensor) and output.dtype.is_floating_point else self.last
        if not self.running or not any(True for _ in self.running[-1].children()):
            return
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if not isinstance(output, torch.Tensor) or not any(value.requires_grad for value in tensors):
            return
        where = self.names.get(id(self.running[-1])) or type(self.running[-1]).__name__
        plain = name[1:] if name in _IN_PLACE else name.removesuffix("_")
        if plain in _PASSING or plain in _PROBABILITIES:
            return
        if name.endswith("_") or name in _IN_PLACE:
            self._find(
                "in place", where, f"{name} works in place outside of any module: a rule may read what it changed"
            )
        if plain in ("add", "radd") and len([t for t in tensors if t.requires_grad]) > 1:
            self._find(
                "addition",
                where,
                "adds two tensors where no rule sees it, so that both get all of the relevance: "
                "use zennit.layer.Sum, or a forward that torch.fx can trace",
            )
        elif plain in ("add", "radd", "sub", "rsub"):
            self._find(
                "functional", where, f"{plain} of a constant where no rule sees it: relevance is not shared with it"
            )
        else:
            self._find(
                "functional",
                where,
                f"{plain} is called where no rule sees it: relevance takes its gradient; make it a module",
            )

    def _find(self, kind: str, module: str, message: str) -> None:
        finding = Finding(kind, module, message)
        if finding not in self.findings:
            self.findings.append(finding)

    def flows(self, rules: dict[nn.Module, str], begun: float) -> list[Flow]:
        """Return relevance at both ends of every module that it reached, in the order in which they ran."""
        return [
            Flow(
                self.names.get(id(module)) or type(module).__name__,
                type(module).__name__,
                rules.get(module),
                self.before[module],
                self.after[module],
                (self.before[module] - self.after[module]) / begun,
            )
            for module in dict.fromkeys(self.order)
            if module in self.before and module in self.after
        ]


def _hooks(attributor: Attributor, model: nn.Module) -> dict[nn.Module, Hook]:
    """Return the rule of every module that has one, as the composite gave them out."""
    context: dict[str, Any] = {}
    found: dict[nn.Module, Hook] = {}
    for name, module in model.named_modules():
        rule = attributor.composite.module_map(context, name, module)
        if rule is not None:
            found[module] = rule
    return found


def _drops_bias(rule: Hook | None) -> bool:
    """Say whether a rule of Zennit's leaves biases out altogether."""
    modifiers = getattr(rule, "param_modifiers", [])
    return bool(modifiers) and all("bias" in (getattr(one, "zero_params", None) or ()) for one in modifiers)


def _modules_used_twice(watch: _Watch, rules: dict[nn.Module, str]) -> Iterator[Finding]:
    for module, runs in watch.runs.items():
        if runs > 1 and module in rules and rules[module] != "Pass":
            name = watch.names.get(id(module)) or type(module).__name__
            yield Finding(
                "used twice", name, f"runs {runs} times: a rule knows the last of them alone; use a module for each"
            )


def _unmerged(watch: _Watch) -> Iterator[Finding]:
    for module in dict.fromkeys(watch.order):
        if isinstance(module, BatchNorm) and not _is_identity(module):
            name = watch.names.get(id(module)) or type(module).__name__
            yield Finding(
                "batch norm",
                name,
                "is merged into no convolution: its scale and shift are hidden from the rules; "
                "put it right behind the layer that it belongs to",
            )


def _is_identity(norm: Any) -> bool:
    if norm.running_mean is None:
        return False
    scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    return bool(torch.allclose(scale, torch.ones_like(scale), atol=1e-4))


def _small_losses(flows: list[Flow], total: float, threshold: float) -> Finding:
    """Return what to say where no module loses much, and all together do."""
    rest = [flow for flow in flows if flow.rule not in _ABSORBING]
    most = max(rest, key=lambda flow: abs(flow.lost))
    return Finding(
        "not conserved",
        most.module,
        f"{total:.1%} of the relevance arrives, though no module changes it by more than {threshold:.0%}: "
        f"this one does most, {-most.lost:+.1%}; padding between modules {total - 1 + sum(f.lost for f in rest):+.1%}",
    )


def _losses(flows: list[Flow], model: nn.Module, hooks: dict[nn.Module, Hook], threshold: float) -> Iterator[Finding]:
    modules = dict(model.named_modules())
    for flow in flows:
        if abs(flow.lost) <= threshold or flow.rule in _ABSORBING:
            continue
        module = modules.get(flow.module)
        bias = getattr(module, "bias", None)
        biased = isinstance(module, Linear) and bias is not None and bool(bias.any()) and flow.rule is not None
        if biased and _drops_bias(hooks.get(module)):  # type: ignore[arg-type]
            yield Finding(
                "bias",
                flow.module,
                f"changes the relevance by {-flow.lost:+.1%}, though its rule drops the bias: a unit that is active by "
                "its bias alone has nothing to share relevance by",
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


def _probabilities(model: nn.Module, watch: _Watch, logits: torch.Tensor) -> Iterator[Finding]:
    last = watch.order[-1] if watch.order else None
    named = type(last).__name__ if isinstance(last, nn.Softmax | nn.LogSoftmax | nn.Sigmoid) else None
    if named is None and watch.final in _PROBABILITIES:
        named = watch.final
    if named is not None:
        yield Finding(
            "softmax", "output", f"the network ends in {named}: explain the logits before it, which the classes share"
        )
