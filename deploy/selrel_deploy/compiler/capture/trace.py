"""Run an attributor once and write down every tensor operation: any Zennit attributor → a graph of ATen calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from zennit.attribution import Attributor

from selrel_kernels.reference import select_motion
from selrel_zennit.attribution import VideoAttributor
from selrel_zennit.attribution.faults import named_faults
from selrel_zennit.errors import InputError
from selrel_zennit.network.output import logits_of
from selrel_zennit.selection.selections import Selection

from ..rewriting import get_constant, set_constant


def trace(attributor: Attributor, clip: torch.Tensor, selection: Selection) -> fx.GraphModule:
    """Return the graph (clip [B,3,T,H,W], target int64 [B]) → the five outputs of an artifact, as it was recorded.

    A target of −1 means the top class. The class is chosen once, by a forward pass of its own, which is the same as
    the attributor's and later falls together with it. The composite is registered while the attributor runs, unless
    it is already; constants are copied before it is removed, since canonizers and rules put their own parameters into
    the model for that time. The model is left as it was found.

    Raises InputError for an attributor that decides by looking at values, which one fixed graph cannot.
    """
    registered = attributor.composite is not None and attributor.composite.handles
    example = clip.detach().clone()
    target = torch.full((len(clip),), -1, dtype=torch.int64, device=clip.device)

    def explain(clip: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad(), named_faults(attributor.model, clip):
            logits = logits_of(attributor.model, clip)
        explained = torch.where(target < 0, logits.argmax(1), target)
        classes = torch.arange(logits.shape[1], device=logits.device)
        _, attribution = attributor(clip, (classes == explained[:, None]).to(logits.dtype))
        if attribution.shape != clip.shape:
            raise InputError(
                f"the attribution must have the clip's shape {tuple(clip.shape)}, got {tuple(attribution.shape)}"
            )
        relevance = attribution.detach().sum(1)
        return (logits.detach(), explained, relevance, *select_motion(relevance, **selection.settings))

    with torch.inference_mode(False), torch.enable_grad(), nullcontext() if registered else attributor:
        if isinstance(attributor, VideoAttributor):
            # Before anything is compiled of it: the graph's logits will be those of the rewritten network.
            attributor.check(_probe(example))
        graph = _recorded(attributor.model, explain, example, target)
        _copy_constants(graph)
    for node, value in zip(graph.graph.find_nodes(op="placeholder"), (example, target), strict=True):
        node.meta["example"] = value
    return graph


def _probe(example: torch.Tensor) -> torch.Tensor:
    """Return a clip like the example to compare logits on: noise in coarse blocks, its values do not matter."""
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reach = float(example.detach().abs().max()) or 1.0
    return (noise * reach / 3).to(example)


def _recorded(
    model: nn.Module, explain: Callable[..., tuple[torch.Tensor, ...]], example: torch.Tensor, target: torch.Tensor
) -> fx.GraphModule:
    with _parameters_kept(model), _module_paths(model), _recurrent_steps_seen(), _shapes_kept():
        try:
            return make_fx(explain)(example, target)
        except (RuntimeError, InputError) as error:
            if "get value out of a tracing tensor" in f"{error} {error.__cause__}":
                raise InputError(
                    "the attributor or model looks at values of its tensors to decide what to do, "
                    "which one fixed graph cannot: write the forward without such decisions, or explain it in torch"
                ) from error
            raise


def _copy_constants(graph: fx.GraphModule) -> None:
    """Turn every tensor that the graph refers to into one of its own."""
    for name in {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}:
        set_constant(graph, name, get_constant(graph, name).detach().clone(memory_format=torch.contiguous_format))


@contextmanager
def _parameters_kept(model: nn.Module) -> Iterator[None]:
    """Put back the very parameters that the modules had: Zennit 1.0's rules leave others in their place."""
    before = [(module, dict(module._parameters)) for module in model.modules()]
    try:
        yield
    finally:
        for module, parameters in before:
            module._parameters.clear()
            module._parameters.update(parameters)


@contextmanager
def _recurrent_steps_seen() -> Iterator[None]:
    """Keep oneDNN and cuDNN out of recurrent modules: their one operation for a layer hides the steps it is made of."""
    before = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()

    # The setters behind torch.backends: its own raise after disable_global_flags, its flags() sets TF32 as well.
    def switch(mkldnn: bool, cudnn: bool) -> None:
        torch._C._set_mkldnn_enabled(mkldnn)
        torch._C._set_cudnn_enabled(cudnn)

    def enter(module: nn.Module, args: Any) -> None:
        if isinstance(module, nn.RNNBase):
            switch(False, False)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, nn.RNNBase):
            switch(*before)

    handles = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    try:
        yield
    finally:
        switch(*before)
        for handle in handles:
            handle.remove()


def _shapes_kept() -> AbstractContextManager[Any]:
    """Let torch note the shapes of all values in one mode; otherwise it makes one for each, for half of the time."""
    return tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))


@contextmanager
def _module_paths(model: nn.Module) -> Iterator[None]:
    """Note in every traced node which module was running, as ``meta["custom"]["module"]``."""
    names = {module: name or type(model).__name__ for name, module in model.named_modules()}
    running: list[str] = []

    def say() -> None:
        traceback.current_meta["custom"] = {"module": running[-1]} if running else {}

    def enter(module: nn.Module, args: Any) -> None:
        if module in names:
            running.append(names[module])
            say()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if module in names:
            running.pop()
            say()

    handles = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    try:
        with traceback.preserve_node_meta():
            yield
    finally:
        for handle in handles:
            handle.remove()
        traceback.current_meta.pop("custom", None)
