"""What the selection costs on a GPU, against the fewest bytes it can move and against the torch reference.

    python benchmarks/kernel_gpu.py [--seconds 0.3] [--out FILE]
    compute-sanitizer --tool memcheck python benchmarks/kernel_gpu.py --small

Every variant is captured in a CUDA graph over several maps, more than the cache holds where there is room, and
replayed; times are of one selection, by CUDA events. The floor is one read and one write of the map, and one write of
the mask, at the bandwidth of a large copy, measured in the same run. ``--small`` launches every kernel once on small
maps, checks the results and times nothing. Without a GPU: one line, exit code 2.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import machine, write_json

from selrel_kernels import reference, torch_operator
from selrel_kernels.plan import KernelUnavailable, flags

RESULTS = Path(__file__).parent / "results" / "kernel_gpu.json"
CLIP = (3, 16, 112, 112)
BATCHES = (1, 8, 32, 128, 512)
COMPILED_BATCHES = (1, 32, 512)  # compiling takes most of a run
DTYPES = (torch.float32, torch.bfloat16)
MOST_MAPS = 16
SHARE_ON_THE_EDGE = 1e-5  # of the voxels, that rounding may move across the threshold

Selection = Callable[[torch.Tensor], Sequence[torch.Tensor]]


def variants(settings: dict[str, str], n_sigma: float) -> dict[str, Selection]:
    """The selections to compare, by name. A variant that cannot run here raises KernelUnavailable when it is called."""
    selector = torch_operator.kernel_for(torch.zeros(1, device="cuda"))
    if selector is None:
        raise KernelUnavailable("the kernel cannot run on this GPU: the warning above says why")
    chosen = flags(**settings, calibrated=False)

    def kernel(variant: str) -> Selection:
        return lambda relevance: torch_operator.launch(selector, relevance, n_sigma, None, chosen, variant)

    def eager(relevance: torch.Tensor) -> Sequence[torch.Tensor]:
        return reference.select_motion(relevance, n_sigma, **settings)

    return {
        "two launches": kernel("two launches"),
        "cluster": kernel("cluster"),
        "reference, eager": eager,
        "reference, compiled": torch.compile(eager, dynamic=False),
    }


DEFAULT = {"sign": "absolute", "sigma": "signed", "border": "replicate", "normalise": "none"}


def seconds_of(replay: Callable[[], None], calls: int, least: float) -> list[float]:
    """Seconds of one of the ``calls`` that ``replay`` makes, from about ``least`` seconds of replays."""

    def once() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end)

    first = statistics.median(once() for _ in range(10))
    return [once() / calls for _ in range(min(max(int(least / max(first, 1e-6)), 10), 2000))]


def captured(selection: Selection, maps: Sequence[torch.Tensor]) -> Callable[[], None]:
    """A CUDA graph of one selection of each map."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            selection(maps[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for relevance in maps:
            selection(relevance)
    return graph.replay


def copy_bandwidth(least: float) -> float:
    """Bytes per second of a copy of 2 GiB on the device, read and written."""
    source = torch.empty(2**29, device="cuda").normal_()
    target = torch.empty_like(source)
    samples = seconds_of(lambda: target.copy_(source), 1, least)
    return 2 * source.nbytes / statistics.median(samples)


def floor_bytes(relevance: torch.Tensor) -> int:
    """One read and one write of the map, and one write of the mask."""
    return 2 * relevance.nbytes + relevance.numel() // relevance.shape[1]


def check(name: str, selection: Selection, relevance: torch.Tensor) -> int:
    """Hold a selection against the reference in float64; return how many voxels differ. Raises ValueError for many."""
    expected = reference.select_motion(relevance.double(), 4.0)[1]
    motion, mask = selection(relevance)
    differing = int((mask != expected).sum())
    if differing > max(SHARE_ON_THE_EDGE * mask.numel(), 2):
        raise ValueError(f"{name}: {differing} of {mask.numel()} voxels differ from the reference")
    if not torch.equal(motion, torch.where(mask[:, None], relevance, 0)):
        raise ValueError(f"{name}: what is kept are not the values of the map")
    return differing


def measure(batch: int, dtype: torch.dtype, bandwidth: float, least: float) -> dict[str, Any]:
    """All variants on maps of one size."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    size = batch * torch.Size(CLIP).numel() * dtype.itemsize
    maps = [
        torch.randn(batch, *CLIP, device="cuda", dtype=dtype)
        for _ in range(min(max(-(-3 * cache // (2 * size)), 1), MOST_MAPS))
    ]
    floor = floor_bytes(maps[0]) / bandwidth
    rows: dict[str, Any] = {}
    for name, selection in variants(DEFAULT, 4.0).items():
        if name == "reference, compiled" and batch not in COMPILED_BATCHES:
            continue
        try:
            differing = check(name, selection, maps[0][:8])
            samples = seconds_of(captured(selection, maps), len(maps), least)
        except KernelUnavailable as error:
            rows[name] = {"left_out": str(error)}
            continue
        median = statistics.median(samples)
        rows[name] = {"median_s": median, "min_s": min(samples), "of_floor": floor / median, "samples_s": samples}
        rows[name]["voxels_that_differ"] = differing
        print(f"  {name}: {1e6 * median:.1f} µs, {floor / median:.0%} of the floor's rate", flush=True)
        torch.cuda.empty_cache()
    return {
        "shape": [batch, *CLIP],
        "dtype": str(dtype).removeprefix("torch."),
        "maps": len(maps),
        "floor_bytes": floor_bytes(maps[0]),
        "floor_s": floor,
        "rows": rows,
    }


def small() -> None:
    """Launch every kernel on small maps, for the sanitizers."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in ((2, 3, 16, 40, 70), (3, 1, 2, 1, 1), (1, 2, 20, 9, 130)):
            relevance = torch.randn(shape, generator=generator).to(dtype).cuda()
            for border, normalise in (("replicate", "none"), ("zero", "none"), ("zero", "author-2020")):
                settings = {**DEFAULT, "border": border, "normalise": normalise}
                chosen = variants(settings, 1.0)
                expected = reference.select_motion(relevance, 1.0, **settings)[1]
                for name in ("two launches", "cluster"):
                    try:
                        mask = chosen[name](relevance)[1]
                    except KernelUnavailable:
                        continue
                    if (mask != expected).sum() > 3:
                        raise ValueError(f"{name}, {shape}, {dtype}, {settings}: the mask is not the reference's")
            torch_operator.select_motion(relevance, 4.0, torch.full((shape[2],), 1e-3, device="cuda"))
    torch.cuda.synchronize()
    print("every kernel ran on small maps, and kept what the reference keeps")


def clocks() -> str | None:
    """Name, driver, clocks, power and temperature of the GPU, as nvidia-smi tells them now."""
    fields = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip().splitlines()[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.3, help="of replays for each figure (default 0.3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: benchmarks/results/kernel_gpu.json")
    parser.add_argument("--small", action="store_true", help="launch every kernel once, for a sanitizer")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: this benchmark needs a CUDA device, and torch sees none", file=sys.stderr)
        return 2
    if arguments.small:
        small()
        return 0
    result: dict[str, Any] = {
        "command": f"python benchmarks/kernel_gpu.py --seconds {arguments.seconds}",
        "machine": machine(),
        "gpu": {"name": torch.cuda.get_device_name(), "before": clocks()},
    }
    bandwidth = result["copy_bytes_per_second"] = copy_bandwidth(arguments.seconds)
    print(f"{result['gpu']['name']}: a copy moves {1e-12 * bandwidth:.2f} TB/s, read and written")
    result["sizes"] = []
    for dtype in DTYPES:
        for batch in BATCHES:
            print(f"[{batch}, {', '.join(map(str, CLIP))}] {str(dtype).removeprefix('torch.')}")
            try:
                result["sizes"].append(measure(batch, dtype, bandwidth, arguments.seconds))
            except torch.OutOfMemoryError:
                print("  left out: this GPU has too little memory for it")
    result["gpu"]["after"] = clocks()
    write_json(arguments.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
