"""The compiled graph on a CUDA device by torch: operation by operation, or by inductor as one CUDA graph.

Built, not run: no GPU has run it yet. README.md says what is checked without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError

from ...precisions import check_runs
from ..base import Clip, Runner
from ..driver import ordinal_of
from .compiled import compile_frozen

if TYPE_CHECKING:
    import torch
    from torch import fx

    from ...compiler import ExplanationGraph

# Rounding, with pooling windows here and there won by another voxel, stays below; a miscompiled convolution does not.
_MOST_ERROR = {"fp32": 0.02, "fp16": 0.5, "bf16": 0.5}
_MOST_ERROR_TF32 = 0.1
_WARM_UP = 3


class TorchCudaRunner(Runner):
    """Runs an ExplanationGraph on a CUDA device, as ``name`` says: "eager", or "inductor" compiled.

    Products of float32 are products of float32, unless ``tf32``: torch's own default would round convolutions' inputs
    to 10 bits. Compiled, it opens only if it agrees with the graph on the processor, and a call replays one CUDA graph
    unless ``cuda_graph`` is false.
    """

    def __init__(
        self, graph: ExplanationGraph, name: str, device: str | int, tf32: bool = False, cuda_graph: bool = True
    ) -> None:
        import torch

        self.name = name
        check_runs(name, graph.precision, cuda=True)
        where = cuda_device(device)
        compiled = name == "inductor"
        said = {"CUDA graph": compiled and cuda_graph, "TF32": tf32}
        super().__init__(
            graph.clip_shape,
            graph.num_classes,
            device=torch.cuda.get_device_name(where),
            provider=", ".join(["torch inductor" if compiled else "torch", *(key for key, on in said.items() if on)]),
            precision=graph.precision,
        )
        self._tf32, self._where = tf32, where
        self._outputs_on_device: Any = None
        self._replay: Callable[[], None] | None = None
        # Where a replay puts what it computes.
        self._recorded: Any = None
        try:
            self._inputs = (
                torch.zeros(self.clip_shape, device=where),
                torch.zeros(self.clip_shape[0], dtype=torch.int64, device=where),
            )
            self._module: Callable[..., Any] = on_device(graph.form("compiled" if compiled else "plain"), where)
            if compiled:
                self._compile(graph, cuda_graph)
        except torch.OutOfMemoryError:
            raise InputError(
                f"{self.device} has too little free memory for this graph: end what else uses it, or compile a smaller "
                "batch"
            ) from None

    @classmethod
    def open(cls, source: Any, **options: Any) -> TorchCudaRunner:
        """Return a runner for a graph that is known to be one: the runners eager and inductor check it."""
        return cls(source, **options)

    def run(self, clip: Clip, target: npt.NDArray[np.int64]) -> Sequence[npt.NDArray[Any]]:
        """Return the graph's outputs."""
        self.load(clip, target)
        self.compute()
        return self.fetch()

    def load(self, clip: Clip, target: npt.NDArray[np.int64]) -> None:
        """Copy a clip and its targets to the device."""
        import torch

        for tensor, value in zip(self._inputs, (clip, target), strict=True):
            tensor.copy_(torch.tensor(value))

    def compute(self) -> None:
        """Put the explanation of what was loaded last on the device's current stream: a replay, or ``launch``."""
        import torch

        if self._replay is None:
            self.launch()
            return
        with torch.cuda.device(self._where):
            self._replay()
        self._outputs_on_device = self._recorded

    def launch(self) -> None:
        """Put that explanation on the stream kernel by kernel, as it is without a CUDA graph."""
        with float32_products(self._tf32):
            self.enqueue()

    def enqueue(self) -> None:
        """Do as ``launch``, inside the caller's ``float32_products``, which takes time of its own."""
        import torch

        with torch.cuda.device(self._where), torch.no_grad():
            self._outputs_on_device = self._module(*self._inputs)

    def fetch(self) -> Sequence[npt.NDArray[Any]]:
        """Return what was computed last."""
        return [value.cpu().numpy() for value in self._outputs_on_device]

    def close(self) -> None:
        """Drop the graph, and what lies on the device."""
        super().close()
        self._replay = self._recorded = self._outputs_on_device = None
        self._module, self._inputs = (lambda *_: None), ()  # type: ignore[assignment]

    def _compile(self, graph: ExplanationGraph, cuda_graph: bool) -> None:
        import torch

        # A clip with structure: noise that moves over a ground.
        clip = np.random.default_rng(0).normal(0, 50, self.clip_shape).astype(np.float32)
        target = np.full(self.clip_shape[0], -1)
        with torch.cuda.device(self._where):
            self._inputs[0].copy_(torch.from_numpy(clip))
            self._inputs[1].copy_(torch.from_numpy(target))
            try:
                with float32_products(self._tf32):
                    self._module = compile_frozen(self._module, *self._inputs)  # type: ignore[arg-type]
            except torch._dynamo.exc.BackendCompilerFailed as error:
                first = str(error.__cause__ or error).strip().splitlines()[0]
                raise InputError(f"inductor cannot compile this graph ({first}): use the eager runner") from None
            if cuda_graph:
                self._replay = record(self.launch)
                self._recorded = self._outputs_on_device
        relevance = self.run(clip, target)[2]
        expected = graph(torch.from_numpy(clip), torch.from_numpy(target))[2].numpy()
        distance = np.linalg.norm(relevance - expected) / np.linalg.norm(expected)
        most = max(_MOST_ERROR[graph.precision.partition("+")[0]], _MOST_ERROR_TF32 if self._tf32 else 0)
        if not distance <= most:
            raise InputError(
                f"inductor computes another explanation than the graph (relevance differs by {distance:.0%}): "
                "use the eager runner"
            )


def record(call: Callable[[], Any]) -> Callable[[], None]:
    """Capture a call that reads and writes the same memory each time; return what replays it."""
    import torch

    # Libraries set themselves up, and choose among their kernels, in the first calls; that cannot be captured.
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    # torch's own stream for captures belongs to the device where it was first used.
    with torch.cuda.graph(recorded, stream=side):
        call()
    return recorded.replay


def cuda_device(device: str | int) -> torch.device:
    """Return torch's name of a CUDA device. Raises InputError where this torch does not reach it."""
    import torch

    ordinal = ordinal_of(device)
    if torch.version.cuda is None:
        raise InputError("this torch was built without CUDA: install one that has it, or leave out the device")
    if not torch.cuda.is_available():
        raise InputError("torch finds no CUDA device: check the NVIDIA driver, or leave out the device")
    if ordinal >= torch.cuda.device_count():
        raise InputError(f"there is no cuda:{ordinal}; torch finds {torch.cuda.device_count()}, counted from 0")
    return torch.device("cuda", ordinal)


def on_device(module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """Return a graph whose constants, and what it makes of them, are on ``device``; the given one stays as it is."""
    import torch
    from torch import fx

    def moved(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    copy = fx.Graph()
    copy.output(copy.graph_copy(module.graph, {}))
    made = fx.GraphModule({name: tensor.to(device) for name, tensor in module.named_buffers()}, copy)
    for node in made.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, moved)
        node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
    made.recompile()
    return made


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Say whether products of float32 may be TF32 in the block, and let cuDNN measure its convolutions there."""
    import torch

    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    values: list[tuple[Any, str, Any]] = [(cudnn, "benchmark", True), (cudnn, "allow_tf32", tf32)]
    values.append((cublas, "allow_tf32", tf32))
    before: list[tuple[Any, str, Any]] = []
    for where, name, _ in values:
        # torch refuses to read what a caller has set by its newer names, which are put back last.
        with suppress(RuntimeError):
            before.append((where, name, getattr(where, name)))
    for where in (cudnn.conv, cudnn.rnn, cublas) if hasattr(cudnn, "conv") else ():
        before.append((where, "fp32_precision", where.fp32_precision))
    try:
        for where, name, value in values:
            setattr(where, name, value)
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)


def cuda_options(runner: str, options: dict[str, Any], on_cuda: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of a runner on CUDA, with the device among them; none on the processor.

    Raises InputError for an option that it has not, or has on CUDA alone.
    """
    known = ("device", *on_cuda)
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"the {runner} runner has no option {unknown[0]!r}; there are {', '.join(known)}")
    if options.get("device", "cpu") != "cpu":
        return options
    if given := sorted(set(options) & set(on_cuda)):
        raise InputError(f"{given[0]} is an option on CUDA alone: give device='cuda' with it")
    return {}
