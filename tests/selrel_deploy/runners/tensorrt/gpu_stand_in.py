"""Stand-ins for a GPU: cuda-core whose device memory is the processor's; tensorrt_stand_in.py has engines for it.

No GPU, driver or engine runs here. What they show: that buffers have the shapes and types of the tensors they are given
to, that work is put on one stream in the right order and waited for, and which calls are made. Nothing that is put on a
stream happens before the stream is waited for. Their methods have the parameters of the real libraries' ones, which
test_tensorrt_signatures.py holds.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from selrel_kernels import select_motion
from selrel_kernels.plan import CALIBRATED, FALLING, RISING, SIGMA_OF_ABS, ZERO_BORDER, Limits

GPU = "Stand-in GPU"
GARBAGE = 0xAB
STREAMS: dict[int, Any] = {}
_STATUS = {"memory": 0, "free": 1 << 30, "replays": 0}


def view(address: int, shape: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """Return the array that lies at an address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype).reshape(shape)


class CUDAError(Exception):
    pass


class Buffer:
    def __init__(self, size: int) -> None:
        if _STATUS["memory"] + size > _STATUS["free"]:
            raise CUDAError("CUDA_ERROR_OUT_OF_MEMORY: The API call failed because it was unable to allocate memory")
        _STATUS["memory"] += size
        self.size = size
        self._bytes = (ctypes.c_ubyte * size)()
        ctypes.memset(self._bytes, GARBAGE, size)
        self.handle = ctypes.addressof(self._bytes)

    def copy_from(self, src: Buffer, *, stream: Stream) -> None:
        assert src.size == self.size
        stream.put(lambda: ctypes.memmove(self.handle, src.handle, self.size))

    def copy_to(self, dst: Buffer | None = None, *, stream: Stream) -> Buffer:
        assert dst is not None, "it would be allocated in every call"
        dst.copy_from(self, stream=stream)
        return dst

    def close(self) -> None:
        _STATUS["memory"] -= self.size
        self.size = 0


class Stream:
    def __init__(self) -> None:
        self.queue: list[Callable[[], Any]] = []
        self.recording: list[Callable[[], Any]] | None = None
        self.handle = 1000 + len(STREAMS)
        STREAMS[self.handle] = self

    def put(self, work: Callable[[], Any]) -> None:
        (self.queue if self.recording is None else self.recording).append(work)

    def sync(self) -> None:
        assert self.recording is None, "a stream that is captured cannot be waited for"
        for work in self.queue:
            work()
        self.queue.clear()

    def create_graph_builder(self) -> GraphBuilder:
        return GraphBuilder(self)

    def close(self) -> None:
        assert not self.queue


class GraphBuilder:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._work: list[Callable[[], Any]] = []

    def begin_building(self, mode: str = "relaxed") -> GraphBuilder:
        assert mode in ("global", "thread_local", "relaxed")
        self._stream.recording = self._work
        return self

    def end_building(self) -> GraphBuilder:
        self._stream.recording = None
        return self

    def complete(self) -> Graph:
        return Graph(self._work)

    def close(self) -> None:
        assert self._stream.recording is None


class Graph:
    def __init__(self, work: list[Callable[[], Any]]) -> None:
        self._work: list[Callable[[], Any]] | None = list(work)

    def launch(self, stream: Stream) -> None:
        assert self._work, "nothing was captured, or the graph is closed"
        _STATUS["replays"] += 1
        for work in self._work:
            stream.put(work)

    def close(self) -> None:
        self._work = None


class LegacyPinnedMemoryResource:
    def allocate(self, size: int, *, stream: Stream | None = None) -> Buffer:
        return Buffer(size)


class Device:
    def __init__(self, device_id: int | None = None) -> None:
        self.device_id = device_id

    def set_current(self) -> None:
        pass

    def create_stream(self) -> Stream:
        return Stream()

    def allocate(self, size: int, *, stream: Stream) -> Buffer:
        return Buffer(size)


CUDA_CLASSES = (Buffer, Stream, GraphBuilder, Graph, LegacyPinnedMemoryResource, Device)


class KernelDriver:
    """In place of launcher.CudaCore: decodes the launches' arguments, and computes the second by the reference."""

    limits = Limits(132, 227 * 1024, 90)

    def __init__(self, ordinal: int) -> None:
        pass

    def load(self, names: Any) -> dict[str, str]:
        return {name: name for name in names}

    def launch(self, kernel: str, plan: Any, stream: int, values: Any) -> None:
        if kernel == "select_motion_measure_f32":
            assert view(int(values[3]), plan.workspace_bytes, np.uint8).size == plan.workspace_bytes
            return
        assert kernel == "select_motion_apply_f32"
        relevance, motion, mask, _, limits = (int(value) for value in values[:5])
        shape = [int(value) for value in values[5:10]]
        assert [int(value) for value in values[10:15]] == [
            int(np.prod(shape[axis + 1 :])) if axis != 1 else 0 for axis in range(5)
        ]
        sigma, flags = float(values[15]), int(values[16])
        settings: dict[str, Any] = {"n_sigma": sigma}
        settings["sign"] = "rising" if flags & RISING else "falling" if flags & FALLING else "absolute"
        settings["sigma"] = "absolute" if flags & SIGMA_OF_ABS else "signed"
        settings["border"] = "zero" if flags & ZERO_BORDER else "replicate"
        shape = [shape[0], *shape[2:]]

        def work() -> None:
            how = {"thresholds": view(limits, shape[1], np.float32)} if flags & CALIBRATED else settings
            kept, chosen = select_motion(view(relevance, shape, np.float32), **how)
            view(motion, shape, np.float32)[:] = kept
            view(mask, shape, np.bool_)[:] = chosen

        STREAMS[stream].put(work)


def cuda_core(free: int = 1 << 30) -> Any:
    """Return a stand-in for the module cuda.core, on a device with ``free`` bytes."""
    STREAMS.clear()
    _STATUS.update(memory=0, free=free, replays=0)
    core: Any = types.ModuleType("cuda.core")
    for made in (Device, LegacyPinnedMemoryResource):
        setattr(core, made.__name__, made)
    core.status = _STATUS
    return core
