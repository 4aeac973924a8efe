"""Plans, arguments and launchers, against stand-ins for cuda-core and pycuda; what they refuse, and how they say so."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernel_cases import SOURCE
from selrel_kernels import cubins, launcher, plan
from selrel_kernels.plan import KernelUnavailable, Limits

H200 = Limits(132, 227 * 1024, 90)
ORIN = Limits(16, 163 * 1024, 87)
LARGEST = 2**16 - 1
SHAPES = [
    (1, 3, 16, 112, 112),
    (512, 3, 16, 112, 112),
    (3, 1, 2, 1, 1),
    (1, 3, 5000, 1, 1),
    (1, 1, 2, 1, 3000),
    (2, 3, 64, 1080, 1920),
    (4000, 3, 16, 224, 224),
]


@pytest.mark.parametrize("limits", [H200, ORIN, Limits(40, 64 * 1024, 75)])
@pytest.mark.parametrize("shape", SHAPES)
def test_plans_fit_their_device(shape: tuple[int, ...], limits: Limits) -> None:
    found = plan.plan_launches(shape, limits)
    tiles = np.prod([-(-size // part) for size, part in zip(shape[2:], found.tile, strict=True)])
    assert found.shared_bytes == 16 * (found.threads + 8) + plan.box_bytes(found.tile) <= limits.shared_memory
    assert np.prod(found.tile) <= LARGEST
    assert found.threads <= 512
    assert found.threads & (found.threads - 1) == 0
    assert 1 <= found.groups <= min(tiles, 512)
    assert found.workspace_bytes == shape[0] * found.groups * 128
    assert found.grid == shape[0] * found.groups
    if np.prod(shape[2:]) * shape[0] > 10**6:
        assert found.grid >= limits.multiprocessors


def test_clusters_are_planned_where_they_can_be() -> None:
    clip = (512, 3, 16, 112, 112)
    found = plan.plan_cluster(clip, H200, 0)
    assert found is not None
    assert found.tile == (16, 14, 112)
    assert (found.groups, found.grid, found.workspace_bytes) == (8, 4096, 0)
    assert found.shared_bytes <= H200.shared_memory
    assert plan.plan_cluster((1, 3, 4, 8, 8), H200, 0).groups == 1  # type: ignore[union-attr]
    assert plan.plan_cluster(clip, ORIN, 0) is None
    assert plan.plan_cluster(clip, H200, plan.SHIFT) is None
    assert plan.plan_cluster((1, 3, 64, 224, 224), H200, 0) is None


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 1, 5, 5), "at least 2 time steps"),
        ((0, 3, 2, 5, 5), "at least one voxel"),
        ((3, 2, 5), r"\[B,C,T,H,W\] or \[B,T,H,W\]"),
        ((1, 1, 2**30, 1, 1), "fewer than 2"),
    ],
)
def test_shapes_that_cannot_be_launched(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        plan.as_five(shape, (1,) * len(shape))
    assert "\n" not in str(raised.value)


def test_a_block_without_shared_memory() -> None:
    with pytest.raises(KernelUnavailable, match="too little shared memory: 9000"):
        plan.plan_launches((1, 3, 16, 112, 112), Limits(8, 9000, 87))


def test_arguments_have_the_types_of_the_source() -> None:
    declared = re.search(r"#define PARAMETERS\(T\)(.*?)\n#define", SOURCE.read_text(encoding="utf-8"), re.DOTALL)
    assert declared
    types_of = {"long long": np.int64, "int": np.int32, "float": np.float32}
    expected: list[Any] = []
    current: Any = None
    for parameter in declared[1].replace("\\", " ").split(","):
        words = parameter.split()
        if "*" in parameter:
            expected.append(np.uint64)
        else:
            current = types_of[" ".join(words[:-1])]
            expected.append(current)
    found = plan.plan_launches((1, 3, 4, 5, 6), H200)
    values = plan.arguments(found, (1, 2, 3, 4, 5), (1, 3, 4, 5, 6), (360, 120, 30, 6, 1), 4.0, 8)
    assert [type(value) for value in values] == expected
    assert [int(value) for value in values[:10]] == [1, 2, 3, 4, 5, 1, 3, 4, 5, 6]


# --- Stand-ins -------------------------------------------------------------------------------------------------------


class Enum(int):
    pass


def cuda_core_stand_in(
    launches: list[Any], *, driver: int = 13000, nvrtc: int = 13, broken: str = ""
) -> dict[str, Any]:
    """The parts of cuda.core and cuda.bindings that the launcher uses, and a place where launches are noted."""

    class Device:
        compute_capability = (9, 0)
        device_id = 0
        properties = types.SimpleNamespace(multiprocessor_count=132, max_shared_memory_per_block_optin=232448)

        def __init__(self, ordinal: int) -> None:
            if broken == "no device" or ordinal > 0:
                raise RuntimeError("CUDA_ERROR_NO_DEVICE: nothing here\nand a second line")
            if broken == "old device":
                self.compute_capability = (6, 1)

        def set_current(self) -> None:
            launches.append("current")

    class ObjectCode:
        @staticmethod
        def from_cubin(code: bytes, name: str) -> Any:
            assert code.startswith(b"\x7fELF")
            return ObjectCode()

        def get_kernel(self, name: str) -> Any:
            if broken == "bad cubin":
                raise RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU")
            return types.SimpleNamespace(name=name, handle=name)

    class Program:
        def __init__(self, text: str, kind: str, options: Any) -> None:
            assert (kind, options.arch) == ("c++", "sm_90")

        def compile(self, target: str) -> Any:
            launches.append("compiled")
            return types.SimpleNamespace(code=b"\x7fELF")

    core = types.ModuleType("cuda.core")
    core.Device, core.ObjectCode, core.Program = Device, ObjectCode, Program  # type: ignore[attr-defined]
    core.ProgramOptions = lambda **options: types.SimpleNamespace(**options)  # type: ignore[attr-defined]
    core.LaunchConfig = lambda **config: config  # type: ignore[attr-defined]
    core.Stream = types.SimpleNamespace(from_handle=lambda handle: ("stream", handle))  # type: ignore[attr-defined]
    core.launch = lambda *launch: launches.append(launch)  # type: ignore[attr-defined]
    bindings = types.ModuleType("cuda.bindings.driver")
    bindings.cuDriverGetVersion = lambda: (Enum(0), driver)  # type: ignore[attr-defined]
    bindings.cuKernelSetAttribute = lambda *_: (Enum(broken == "no memory"),)  # type: ignore[attr-defined]
    bindings.CUfunction_attribute = types.SimpleNamespace(  # type: ignore[attr-defined]
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8
    )
    compiler = types.ModuleType("cuda.bindings.nvrtc")
    compiler.nvrtcVersion = lambda: (Enum(0), 13, 2)  # type: ignore[attr-defined]
    return {"cuda.core": core, "cuda.bindings.driver": bindings, "cuda.bindings.nvrtc": compiler}


Install = Callable[..., list[Any]]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Install:
    """Put a stand-in in the place of its library; return the list that notes what happens."""
    monkeypatch.setenv("SELREL_KERNEL_CACHE", str(tmp_path))

    def with_stand_in(make: Any, **how: Any) -> list[Any]:
        launches: list[Any] = []
        for name, module in make(launches, **how).items():
            monkeypatch.setitem(sys.modules, name, module)
        return launches

    return with_stand_in


BUFFERS = {"relevance": 16, "motion": 32, "mask": 48, "workspace": 64}
MAP = {"shape": (2, 3, 16, 30, 40), "strides": (57600, 19200, 1200, 40, 1), "dtype": "float32"}


def test_cuda_core_gets_two_launches_on_the_callers_stream(install: Install) -> None:
    launches = install(cuda_core_stand_in)
    selector = launcher.Selector(launcher.CudaCore(0))
    found = selector.plan(MAP["shape"])
    for _ in range(2):
        selector.select(found, **BUFFERS, **MAP, stream=77, n_sigma=3.0, settings=plan.ZERO_BORDER)
    assert launches[:2] == ["current", "compiled"]
    names = [kernel.name for _, _, kernel, *_ in launches[2:]]
    assert names == ["select_motion_measure_f32", "select_motion_apply_f32"] * 2
    for stream, config, _, *values in launches[2:]:
        assert stream == ("stream", 77)
        assert config == {"grid": found.grid, "block": found.threads, "shmem_size": found.shared_bytes}
        assert values == list(
            plan.arguments(found, (16, 32, 48, 64, 0), MAP["shape"], MAP["strides"], 3.0, plan.ZERO_BORDER)
        )
    again = install(cuda_core_stand_in)
    launcher.CudaCore(0)
    assert "compiled" not in again, "the cache was not used"


def test_cuda_core_counts_clusters(install: Install) -> None:
    launches = install(cuda_core_stand_in)
    selector = launcher.Selector(launcher.CudaCore(0))
    found = selector.plan((512, 3, 16, 112, 112), variant="cluster")
    values = {**MAP, "shape": (512, 3, 16, 112, 112), "dtype": "bfloat16"}
    selector.select(found, **{**BUFFERS, "workspace": 0}, **values, stream=0)
    ((_, config, kernel, *_),) = launches[2:]
    assert kernel.name == "select_motion_cluster_bf16"
    assert (config["grid"], config["cluster"], config["block"]) == (512, 8, 512)
    with pytest.raises(KernelUnavailable, match="no cluster of this device holds a clip of 16×112×112"):
        selector.plan((1, 3, 16, 112, 112), plan.SHIFT, "cluster")
    with pytest.raises(ValueError, match="variant must be one of 'two launches', 'cluster', got 'fast'"):
        selector.plan((1, 3, 16, 112, 112), variant="fast")


def test_shipped_cubins_are_taken_first(install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    launches = install(cuda_core_stand_in, driver=12060)
    monkeypatch.setattr(cubins, "SHIPPED", tmp_path)
    (tmp_path / cubins.file_name(90, (12, 4))).write_bytes(b"\x7fELF shipped")
    launcher.CudaCore(0)
    assert "compiled" not in launches


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"broken": "no device"}, "no CUDA driver or device: install NVIDIA's driver .CUDA_ERROR_NO_DEVICE"),
        ({"broken": "old device"}, "compute capability 7.5 or more, this one is sm_61"),
        ({"broken": "bad cubin"}, "the driver did not take the compiled kernel .CUDA_ERROR_NO_BINARY_FOR_GPU"),
        ({"driver": 12060}, "the driver is too old: it knows CUDA 12.6, NVRTC is of CUDA 13.2: update the driver"),
    ],
)
def test_what_cuda_core_cannot_do(install: Install, how: dict[str, Any], message: str) -> None:
    install(cuda_core_stand_in, **how)
    with pytest.raises(KernelUnavailable, match=message) as raised:
        launcher.CudaCore(0)
    assert "\n" not in str(raised.value)


def test_shared_memory_that_is_refused(install: Install) -> None:
    install(cuda_core_stand_in, broken="no memory")
    selector = launcher.Selector(launcher.CudaCore(0))
    with pytest.raises(KernelUnavailable, match="select_motion_measure_f32 cannot use 232448 bytes"):
        selector.select(selector.plan(MAP["shape"]), **BUFFERS, **MAP, stream=0)


@pytest.mark.parametrize("library", ["cuda.core", "pycuda.driver"])
def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        KernelUnavailable, match=r"\(pip install (cuda-core|'selrel-zennit\[pycuda\]'|pycuda)\)"
    ) as raised:
        launcher.CudaCore(0) if library == "cuda.core" else launcher.Pycuda()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"dtype": "int64"}, TypeError, "one of float32, float16, bfloat16 for the kernel, got int64"),
        ({"dtype": "float64"}, TypeError, "got float64"),
        ({"shape": (2, 3, 1, 30, 40)}, ValueError, "at least 2 time steps"),
        ({"motion": 0, "workspace": 0}, ValueError, "device memory for motion, workspace"),
        ({"settings": plan.CALIBRATED}, ValueError, "device memory for thresholds"),
    ],
)
def test_what_is_never_launched(
    install: Install, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    launches = install(cuda_core_stand_in)
    selector = launcher.Selector(launcher.CudaCore(0))
    found = selector.plan(MAP["shape"])
    with pytest.raises(error, match=message) as raised:
        selector.select(found, **{**BUFFERS, **MAP, "stream": 0, **changed})
    assert "\n" not in str(raised.value)
    assert len(launches) == 2


def pycuda_stand_in(launches: list[Any], *, context: bool = True) -> dict[str, Any]:
    """The parts of pycuda.driver and pycuda.compiler that the launcher uses. No GPU has run what is launched here."""

    class Function:
        def __init__(self, name: str) -> None:
            self.name = name

        def set_attribute(self, attribute: str, value: int) -> None:
            launches.append((self.name, attribute, value))

        def __call__(self, *values: Any, grid: Any, block: Any, shared: int, stream: Any) -> None:
            # pycuda packs NumPy numbers by their type; it knows nothing of Python's.
            assert all(isinstance(value, np.number) for value in values)
            launches.append((self.name, grid, block, shared, stream, values))

    def get_device() -> Any:
        if not context:
            raise RuntimeError("context_get_device failed: invalid device context\n")
        attributes = {"sms": 16, "optin": 163 * 1024}
        return types.SimpleNamespace(compute_capability=lambda: (8, 7), get_attribute=attributes.get)

    module = types.ModuleType("pycuda.driver")
    module.Context = types.SimpleNamespace(get_device=get_device)  # type: ignore[attr-defined]
    module.device_attribute = types.SimpleNamespace(  # type: ignore[attr-defined]
        MULTIPROCESSOR_COUNT="sms", MAX_SHARED_MEMORY_PER_BLOCK_OPTIN="optin"
    )
    module.function_attribute = types.SimpleNamespace(  # type: ignore[attr-defined]
        MAX_DYNAMIC_SHARED_SIZE_BYTES="shared"
    )
    module.get_driver_version = lambda: 12060  # type: ignore[attr-defined]
    module.module_from_buffer = lambda code: types.SimpleNamespace(get_function=Function)  # type: ignore[attr-defined]
    compiler = types.ModuleType("pycuda.compiler")

    def compile_source(text: str, *, arch: str, options: list[str], no_extern_c: bool) -> bytes:
        assert (arch, no_extern_c) == ("sm_87", True)
        launches.append("compiled")
        return b"\x7fELF"

    compiler.compile = compile_source  # type: ignore[attr-defined]
    return {"pycuda.driver": module, "pycuda.compiler": compiler}


def test_pycuda_stand_in_gets_two_launches(install: Install) -> None:
    launches = install(pycuda_stand_in)
    selector = launcher.Selector(launcher.Pycuda())
    found = selector.plan(MAP["shape"])
    stream = object()
    selector.select(found, **BUFFERS, **MAP, stream=stream, settings=plan.CALIBRATED, thresholds=80)
    assert launches[0] == "compiled"
    assert launches[1:3] == [(f"select_motion_{stage}_f32", "shared", 163 * 1024) for stage in ("measure", "apply")]
    for launch, stage in zip(launches[3:], ("measure", "apply"), strict=True):
        name, grid, block, shared, on, values = launch
        assert name == f"select_motion_{stage}_f32"
        assert (grid, block, shared, on) == ((found.grid, 1), (found.threads, 1, 1), found.shared_bytes, stream)
        assert [int(value) for value in values[:5]] == [16, 32, 48, 64, 80]
    with pytest.raises(KernelUnavailable, match="no cluster of this device"):
        selector.plan(MAP["shape"], variant="cluster")


def test_pycuda_without_a_context(install: Install) -> None:
    install(pycuda_stand_in, context=False)
    with pytest.raises(KernelUnavailable, match=r"no CUDA context is current: import pycuda\.autoinit first") as raised:
        launcher.Pycuda()
    assert "\n" not in str(raised.value)


def test_launchers_need_no_torch() -> None:
    import subprocess

    source = "import sys; sys.modules['torch'] = None; import selrel_kernels.launcher, selrel_kernels.build"
    loaded = "; assert not [name for name in sys.modules if name.split('.')[0] in ('cuda', 'pycuda')]"
    subprocess.run([sys.executable, "-c", source + loaded], check=True)
