"""What the selection costs: separable reference, the authors' 3D convolution, and a DTD explanation of C3D.

    python benchmarks/selection.py [--repeats 101] [--explanations 5] [--threads N]

All variants run in one process, one call of each in turn, so that whatever else the machine does falls on all of them.
Times are seconds of a call; the medians are of all samples, which the file keeps. Much of a call that allocates is page
faults, so each table is made twice: with the C library's allocator as it is, and told to keep freed memory (glibc).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import machine, write_json

from selrel_kernels import select_motion

RESULTS = Path(__file__).parent / "results" / "selection.json"
SHAPE = (1, 3, 16, 112, 112)
AUTHOR_2021 = {"sign": "absolute", "sigma": "absolute", "border": "zero"}
Sample = Callable[[], Any]


def conv3d_selection(relevance: torch.Tensor, n_sigma: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The formulation of the authors' code (preset author-2021): one dense kernel over channels, time and space."""
    smooth = torch.tensor([1.0, 2.0, 1.0])
    kernel = torch.einsum("t,h,w->thw", torch.tensor([1.0, 0.0, -1.0]), smooth, smooth)
    kernel = kernel.expand(1, relevance.shape[1], 3, 3, 3)
    gradient = F.conv3d(relevance.float(), kernel, padding=1)[:, 0].abs()
    mask = gradient > n_sigma * gradient.std(dim=(1, 2, 3), keepdim=True)
    return relevance * mask[:, None], mask


def interleaved(variants: dict[str, Sample], repeats: int, warm_up: int = 3) -> dict[str, dict[str, Any]]:
    """Call every variant ``repeats`` times, in turn. Return the row of each: seconds and page faults of its calls."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    faults: dict[str, list[int]] = {name: [] for name in variants}
    for repeat in range(warm_up + repeats):
        for name, call in variants.items():
            faults_before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            call()
            taken = time.perf_counter() - start
            if repeat >= warm_up:
                seconds[name].append(taken)
                faults[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults_before)
    return {
        name: {
            "median_s": statistics.median(seconds[name]),
            "min_s": min(seconds[name]),
            "median_page_faults": statistics.median(faults[name]),
            "samples_s": seconds[name],
        }
        for name in variants
    }


def keep_freed_memory() -> None:
    """Tell glibc's allocator to reuse freed blocks of any size and to give none back to the system."""
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # <malloc.h>
    allocator = ctypes.CDLL(None)
    for parameter, value in ((trim_threshold, 2**31 - 1), (top_pad, 2**28), (mmap_max, 0)):
        if not allocator.mallopt(parameter, value):
            raise OSError(f"mallopt refused parameter {parameter}")


def against_conv3d(batch: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Selections of one random map: the authors' formulation, the same settings separably, the default settings."""
    relevance = torch.randn((batch, *SHAPE[1:]), generator=torch.Generator().manual_seed(0)).to(dtype)
    variants: dict[str, Sample] = {
        "conv3d": lambda: conv3d_selection(relevance),
        "separable_author_2021": lambda: select_motion(relevance, **AUTHOR_2021),
        "separable_default": lambda: select_motion(relevance),
    }
    rows = interleaved(variants, repeats)
    differing = (conv3d_selection(relevance)[1] != select_motion(relevance, **AUTHOR_2021)[1]).sum().item()
    medians = {name: values["median_s"] for name, values in rows.items()}
    return {
        "shape": [batch, *SHAPE[1:]],
        "dtype": str(dtype).removeprefix("torch."),
        "conv3d_over_separable_author_2021": medians["conv3d"] / medians["separable_author_2021"],
        "conv3d_over_separable_default": medians["conv3d"] / medians["separable_default"],
        "voxels_that_differ_from_conv3d": differing,
        "rows": rows,
    }


def against_dtd(repeats: int) -> dict[str, Any]:
    """The selection of C3D's DTD relevance, and the explanation that made it."""
    import selrel_zennit as sr

    model = sr.load_model("c3d", weights="random", num_classes=101)
    low, high = (torch.from_numpy(bound) for bound in model.spec.bounds())
    clip = low + (high - low) * torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    one_hot = torch.eye(101)[:1]
    attributor: Any = sr.build_method("dtd", model)
    with attributor:
        relevance = attributor(clip, one_hot)[1]
        variants: dict[str, Sample] = {
            "dtd": lambda: attributor(clip, one_hot),
            "selection": lambda: select_motion(relevance),
        }
        rows = interleaved(variants, repeats, warm_up=1)
    return {
        "shape": list(SHAPE),
        "model": "c3d, random weights, 101 classes",
        "selection_over_dtd": rows["selection"]["median_s"] / rows["dtd"]["median_s"],
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=101, help="calls of each selection (default 101)")
    parser.add_argument("--explanations", type=int, default=5, help="DTD explanations of C3D (default 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: all cores)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    result: dict[str, Any] = {
        "command": f"python benchmarks/selection.py --repeats {arguments.repeats} "
        f"--explanations {arguments.explanations} --threads {arguments.threads}",
        "machine": machine(),
        "load_average": {"before": os.getloadavg()[0]},
        "tables": {},
    }
    for allocator in ("default", "keeps freed memory"):
        if allocator != "default":
            keep_freed_memory()
        result["tables"][allocator] = {
            "against_conv3d": [
                against_conv3d(batch, dtype, max(arguments.repeats // batch, 1))
                for batch, dtype in ((1, torch.float32), (8, torch.float32), (1, torch.bfloat16), (8, torch.bfloat16))
            ],
            "against_dtd": against_dtd(arguments.explanations),
        }
    result["load_average"]["after"] = os.getloadavg()[0]  # on an idle machine: at most the threads used
    write_json(RESULTS, result)

    print("load average before {before:.1f}, after {after:.1f}".format(**result["load_average"]))
    for allocator, table in result["tables"].items():
        print(f"allocator: {allocator}")
        for entry in table["against_conv3d"]:
            times = ", ".join(f"{name} {1e3 * values['median_s']:.2f} ms" for name, values in entry["rows"].items())
            print(f"  {entry['shape']} {entry['dtype']}: {times}; {entry['conv3d_over_separable_default']:.0f}×")
        dtd = table["against_dtd"]
        seconds = dtd["rows"]["dtd"]["median_s"]
        print(f"  DTD of C3D {seconds:.2f} s; the selection takes {dtd['selection_over_dtd']:.4%} of it")


if __name__ == "__main__":
    main()
