"""The kernel on a GPU: cuda-core where torch's tensors are selected, pycuda where there is no torch.

Nothing of a driver is imported before a launcher is made. kernels/README.md says what of this has run on a GPU.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from . import cubins
from .plan import CALIBRATED, SUFFIXES, KernelUnavailable, Limits, Plan, arguments, as_five, plan_cluster, plan_launches

VARIANTS = ("two launches", "cluster")
OLDEST_ARCH = 75  # of what NVRTC of CUDA 13 can compile for

_INSTALL = "install cuda-core (pip install cuda-core)"


class Driver(Protocol):
    """What a library for launching kernels is asked for."""

    limits: Limits

    def load(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the kernels of these names, ready to take as much shared memory as the device has."""

    def launch(self, kernel: Any, plan: Plan, stream: Any, values: Sequence[np.generic[Any]]) -> None:
        """Put one launch on the stream."""


class Selector:
    """Motion selection on one device, by addresses: what the torch operator and pycuda callers have in common.

    ``plan`` says how much workspace a map needs; ``select`` puts one or two launches on a stream. It allocates nothing,
    waits for nothing, and can be captured in a CUDA graph after a first call, which compiles and loads the kernel.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._kernels: dict[str, Any] = {}

    def plan(self, shape: Sequence[int], settings: int = 0, variant: str = "two launches") -> Plan:
        """Return how a map of ``shape``, [B,C,T,H,W] or [B,T,H,W], is launched with the flags ``settings``.

        Raises ValueError for a shape that cannot be selected, KernelUnavailable where no cluster can hold a clip.
        """
        shape, _ = as_five(shape, (0,) * len(shape))
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(map(repr, VARIANTS))}, got {variant!r}")
        if variant == "two launches":
            return plan_launches(shape, self._driver.limits)
        found = plan_cluster(shape, self._driver.limits, settings)
        if found is None:
            raise KernelUnavailable(
                f"no cluster of this device holds a clip of {'×'.join(map(str, shape[2:]))} voxels with these "
                "settings: use variant 'two launches'"
            )
        return found

    def select(
        self,
        plan: Plan,
        *,
        relevance: int,
        motion: int,
        mask: int,
        workspace: int,
        shape: Sequence[int],
        strides: Sequence[int],
        dtype: str,
        stream: Any,
        n_sigma: float = 4.0,
        settings: int = 0,
        thresholds: int = 0,
    ) -> None:
        """Put the selection of one map on ``stream``. Buffers are device addresses.

        relevance   float32, float16 or bfloat16 (``dtype``), of any ``strides``, in elements
        motion      of the same type and shape, contiguous
        mask        one byte for each voxel, [B,T,H,W], contiguous
        workspace   ``plan.workspace_bytes`` bytes, aligned to 16; not to be shared by streams
        thresholds  float32 [T], where ``settings`` says that they are calibrated
        stream      the address of a CUDA stream with cuda-core; a pycuda Stream, or None, with pycuda
        settings    ``plan.flags`` of the settings

        Raises TypeError for another type, ValueError for another shape or a missing buffer.
        """
        if dtype not in SUFFIXES:
            raise TypeError(f"relevance must be one of {', '.join(SUFFIXES)} for the kernel, got {dtype}")
        shape, strides = as_five(shape, strides)
        needed = {"relevance": relevance, "motion": motion, "mask": mask}
        needed |= {"workspace": workspace} if plan.workspace_bytes else {}
        needed |= {"thresholds": thresholds} if settings & CALIBRATED else {}
        if missing := [name for name, address in needed.items() if not address]:
            raise ValueError(f"the kernel needs device memory for {', '.join(missing)}")
        names = plan.kernels(dtype)
        if not self._kernels.keys() >= set(names):
            self._kernels |= self._driver.load(names)
        values = arguments(plan, (relevance, motion, mask, workspace, thresholds), shape, strides, n_sigma, settings)
        for name in names:
            self._driver.launch(self._kernels[name], plan, stream, values)


class CudaCore:
    """Launches through cuda-core, on a device by its ordinal, in its primary context (torch's).

    The kernel is shipped, cached, or compiled by NVRTC when this is made. Raises KernelUnavailable, in one line, where
    that fails.
    """

    def __init__(self, ordinal: int) -> None:
        self._core = _import("cuda.core", _INSTALL)
        self._bindings = _import("cuda.bindings.driver", _INSTALL)
        self._device = _ask(lambda: self._core.Device(ordinal), "no CUDA driver or device: install NVIDIA's driver")
        self._device.set_current()
        properties = self._device.properties
        major, minor = self._device.compute_capability
        self.limits = Limits(
            properties.multiprocessor_count, properties.max_shared_memory_per_block_optin, 10 * major + minor
        )
        _check_arch(self.limits.arch)
        self._library = self._load_library()

    def load(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the kernels of these names."""
        kernels = {name: self._library.get_kernel(name) for name in names}
        attribute = self._bindings.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        for name, kernel in kernels.items():
            (status,) = self._bindings.cuKernelSetAttribute(
                attribute, self.limits.shared_memory, kernel.handle, self._device.device_id
            )
            if int(status) != 0:
                raise KernelUnavailable(
                    f"{name} cannot use {self.limits.shared_memory} bytes of shared memory: {status}"
                )
        return kernels

    def launch(self, kernel: Any, plan: Plan, stream: Any, values: Sequence[np.generic[Any]]) -> None:
        """Put one launch on the stream."""
        # With clusters, cuda-core counts these in a grid, not blocks.
        extent = {"grid": plan.grid // plan.groups, "cluster": plan.groups} if plan.in_cluster else {"grid": plan.grid}
        config = self._core.LaunchConfig(block=plan.threads, shmem_size=plan.shared_bytes, **extent)
        self._core.launch(self._core.Stream.from_handle(stream), config, kernel, *values)

    def _load_library(self) -> Any:
        driver = _version(self._ask_driver_version())
        code = cubins.shipped(self.limits.arch, driver)
        if code is None:
            toolkit = nvrtc_version()
            if toolkit[0] > driver[0]:
                raise KernelUnavailable(
                    f"the driver is too old: it knows CUDA {driver[0]}.{driver[1]}, NVRTC is of CUDA {toolkit[0]}."
                    f"{toolkit[1]}: update the driver, or install cuda-core with the NVRTC of CUDA {driver[0]}"
                )
            code = cubins.cached(self.limits.arch, toolkit, compile_with_nvrtc)
        library = self._core.ObjectCode.from_cubin(code, name="select_motion")
        _ask(lambda: library.get_kernel("select_motion_measure_f32"), "the driver did not take the compiled kernel")
        return library

    def _ask_driver_version(self) -> int:
        status, version = self._bindings.cuDriverGetVersion()
        if int(status) != 0:
            raise KernelUnavailable(f"the CUDA driver does not tell its version: {status}")
        return int(version)


class Pycuda:
    """Launches through pycuda, in the context that is current: for devices without torch. It has no clusters.

    ``compile_source`` makes a cubin where none is shipped; by default pycuda calls nvcc. Built, not run:
    only a stand-in for pycuda's driver module has been launched on.
    """

    def __init__(self, compile_source: Callable[[str, int], bytes] | None = None) -> None:
        self._cuda = _import("pycuda.driver", "install pycuda (pip install 'selrel-zennit[pycuda]')")
        device = _ask(self._cuda.Context.get_device, "no CUDA context is current: import pycuda.autoinit first")
        attributes = self._cuda.device_attribute
        major, minor = device.compute_capability()
        self.limits = Limits(
            device.get_attribute(attributes.MULTIPROCESSOR_COUNT),
            device.get_attribute(attributes.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
            10 * major + minor,
        )
        _check_arch(self.limits.arch)
        driver = _version(self._cuda.get_driver_version())
        code = cubins.shipped(self.limits.arch, driver)
        code = code or cubins.cached(self.limits.arch, driver, compile_source or compile_with_pycuda)
        self._module = _ask(lambda: self._cuda.module_from_buffer(code), "the driver did not take the compiled kernel")

    def load(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the kernels of these names."""
        kernels = {name: self._module.get_function(name) for name in names}
        for kernel in kernels.values():
            kernel.set_attribute(self._cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, self.limits.shared_memory)
        return kernels

    def launch(self, kernel: Any, plan: Plan, stream: Any, values: Sequence[np.generic[Any]]) -> None:
        """Put one launch on the stream."""
        if plan.in_cluster:
            raise KernelUnavailable("pycuda launches no clusters: use variant 'two launches'")
        kernel(*values, grid=(plan.grid, 1), block=(plan.threads, 1, 1), shared=plan.shared_bytes, stream=stream)


@functools.cache
def cuda_core_selector(ordinal: int) -> Selector:
    """Return the one ``Selector`` of a device. Raises KernelUnavailable where there can be none."""
    return Selector(CudaCore(ordinal))


def compile_with_nvrtc(text: str, arch: int) -> bytes:
    """Compile the source for an architecture (90 for sm_90). Needs NVRTC, and no GPU."""
    core = _import("cuda.core", _INSTALL)
    options = core.ProgramOptions(arch=f"sm_{arch}", std="c++17", name="select_motion.cu")
    program = _ask(lambda: core.Program(text, "c++", options).compile("cubin"), f"NVRTC failed for sm_{arch}")
    return bytes(program.code)


def compile_with_pycuda(text: str, arch: int) -> bytes:
    """Compile the source for an architecture with the nvcc that pycuda finds."""
    compiler = _import("pycuda.compiler", "install pycuda (pip install 'selrel-zennit[pycuda]')")
    code = _ask(
        lambda: compiler.compile(text, arch=f"sm_{arch}", options=["-std=c++17"], no_extern_c=True),
        f"nvcc failed for sm_{arch}",
    )
    return bytes(code)


def nvrtc_version() -> tuple[int, int]:
    """Return the CUDA version of the NVRTC that cuda-core compiles with."""
    nvrtc = _import("cuda.bindings.nvrtc", _INSTALL)
    status, major, minor = _ask(nvrtc.nvrtcVersion, "NVRTC is missing: install nvidia-cuda-nvrtc or the CUDA toolkit")
    if int(status) != 0:
        raise KernelUnavailable(f"NVRTC does not tell its version: {status}")
    return int(major), int(minor)


def _check_arch(arch: int) -> None:
    if arch < OLDEST_ARCH:
        raise KernelUnavailable(f"the kernel needs a GPU of compute capability 7.5 or more, this one is sm_{arch}")


def _version(number: Any) -> tuple[int, int]:
    return int(number) // 1000, int(number) % 1000 // 10


def _import(name: str, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise KernelUnavailable(f"{error}: {remedy}".replace("\n", " ")) from None


def _ask(question: Callable[[], Any], problem: str) -> Any:
    """Answer ``question``; whatever a library raises becomes one line."""
    try:
        return question()
    except MemoryError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KernelUnavailable(f"{problem} ({first})") from error
