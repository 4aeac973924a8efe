"""A CUDA device, a stream and buffers through cuda-core, for runners without torch."""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError


class DeviceArray:
    """Memory of a shape and NumPy type on the device; ``host`` is the page-locked array that it is exchanged with."""

    def __init__(self, device: CudaDevice, shape: Sequence[int], dtype: npt.DTypeLike, host: bool) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        size = max(math.prod(self.shape) * self.dtype.itemsize, 1)
        self._stream = device.stream
        self._memory = device.device.allocate(size, stream=device.stream)
        self._pinned: Any = None
        if host:
            self._pinned = device.pinned.allocate(size, stream=device.stream)
            bytes_of = memoryview((ctypes.c_ubyte * size).from_address(int(self._pinned.handle)))
            self.host: npt.NDArray[Any] = np.frombuffer(bytes_of, self.dtype, math.prod(self.shape)).reshape(self.shape)

    @property
    def address(self) -> int:
        """Where it lies on the device."""
        return int(self._memory.handle)

    def upload(self) -> None:
        """Put the copy of ``host`` to the device on the stream."""
        self._memory.copy_from(self._pinned, stream=self._stream)

    def download(self) -> None:
        """Put the copy of the device's memory to ``host`` on the stream."""
        self._memory.copy_to(self._pinned, stream=self._stream)

    def close(self) -> None:
        """Free the memory."""
        self.host = np.empty(0, self.dtype)
        for memory in (self._memory, self._pinned):
            if memory is not None:
                memory.close()


class CudaDevice:
    """A device by its ordinal, in its primary context, and a stream of its own. Raises InputError where it fails."""

    def __init__(self, ordinal: int) -> None:
        try:
            core = importlib.import_module("cuda.core")
        except ImportError as error:
            raise InputError(f"the tensorrt runner needs cuda-core ({error}): pip install cuda-core") from None
        self.ordinal = ordinal
        self._arrays: list[DeviceArray] = []
        self._graphs: list[Any] = []
        with on_cuda(f"cuda:{ordinal}"):
            self.device: Any = core.Device(ordinal)
            self.device.set_current()
            self.stream: Any = self.device.create_stream()
            self.pinned: Any = core.LegacyPinnedMemoryResource()

    @property
    def handle(self) -> int:
        """The address of the stream."""
        return int(self.stream.handle)

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike, host: bool = False) -> DeviceArray:
        """Return memory on the device, and where ``host``, page-locked memory beside it."""
        with on_cuda(f"an array {tuple(shape)}"):
            self._arrays.append(DeviceArray(self, shape, dtype, host))
        return self._arrays[-1]

    def make_current(self) -> None:
        """Let the calling thread use the device."""
        self.device.set_current()

    def wait(self) -> None:
        """Wait for all that is on the stream."""
        self.stream.sync()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what replays ``work``, which puts something on the stream, as one CUDA graph."""
        builder = self.stream.create_graph_builder()
        try:
            # What other threads do in the meantime is not captured, and does not end the capture.
            builder.begin_building("thread_local")
            try:
                work()
            except BaseException:
                # It raises too where the capture has failed, and says less.
                with suppress(Exception):
                    builder.end_building()
                raise
            graph = builder.end_building().complete()
        finally:
            builder.close()
        self._graphs.append(graph)
        return lambda: graph.launch(self.stream)

    def close(self) -> None:
        """Free graphs, memory and stream."""
        self.make_current()
        self.wait()
        for graph in self._graphs:
            graph.close()
        for array in self._arrays:
            array.close()
        self._graphs, self._arrays = [], []
        self.stream.close()


class on_cuda:
    """Turn what CUDA raises in the block into an InputError of one sentence that names ``what`` was to be done."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, InputError):
            return
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if out_of_memory(first) or isinstance(error, MemoryError):
            raise InputError(too_little_memory(self.what)) from None
        raise InputError(f"CUDA failed on {self.what} ({first}): check the device and its driver") from None


def out_of_memory(message: str) -> bool:
    """Say whether a message of CUDA or TensorRT is about memory that there is not."""
    text = message.lower().replace("_", "").replace(" ", "")
    return any(sign in text for sign in ("outofmemory", "memoryallocation", "insufficientmemory"))


def too_little_memory(what: str) -> str:
    """Return the sentence for a GPU without enough memory for ``what``."""
    return f"the GPU has too little free memory for {what}: end what else uses it, or export a smaller batch"
