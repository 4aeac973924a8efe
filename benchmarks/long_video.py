"""Peak memory of `selrel explain --all-clips` on generated videos of several lengths: it must not grow with them.

    python benchmarks/long_video.py [--minutes 10 60]

The network is a small one of this file, on clips of 14 seconds: 8 frames, two seconds apart, of 112×112 pixels. Each
length is a process of its own, whose peak resident memory the system tells. Beside it stands what the clips' arrays
come to, which would be held otherwise. To results/long_video.json; lengths that stand there already are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from machine import machine, write_json
from torch import nn

from selrel_zennit import ClipSpec
from selrel_zennit.clips.video import write_mp4

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "long_video.json"
FPS, SIDE = 30, 64
OPTIONS = ("--model", "long_video:network", "--weights", "own", "--method", "gradient", "--reference", "none")


class Small(nn.Module):
    """Two convolutions: memory that is not the network's stands out."""

    spec = ClipSpec(frames=8, stride=60)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv3d(4, 8, 3, 2, 1), nn.ReLU())
        self.classes = nn.Linear(8, 5)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Return logits [B,5] of clips [B,3,8,112,112]."""
        logits: torch.Tensor = self.classes(self.layers(clip).mean((2, 3, 4)))
        return logits


def network() -> Small:
    """Return the network, with the same random weights each time: `--model long_video:network`."""
    torch.manual_seed(0)
    return Small().eval()


def frames(minutes: float) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield a square that crosses a scene; the scene is another one each minute."""
    for step in range(round(minutes * 60 * FPS)):
        if step % (60 * FPS) == 0:
            scene = np.random.default_rng(step).integers(0, 200, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
            scene = scene.repeat(8, 0).repeat(8, 1)
        frame = scene.copy()
        left = step % (SIDE - 12)
        frame[20:36, left : left + 12] = (255, 60, 0)
        yield frame


def measured(minutes: float, folder: Path) -> dict[str, Any]:
    """Explain every clip of a video of so many minutes in a process of its own, and return its peak memory."""
    video, out = folder / f"{minutes:g}.mp4", folder / "out"
    write_mp4(video, frames(minutes), FPS)
    command = [sys.executable, "-m", "selrel_zennit", "explain", str(video), "--all-clips", *OPTIONS, "--out", str(out)]
    paths = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    since = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - since
    if status:
        raise SystemExit(f"selrel explain failed on {minutes:g} minutes")
    with np.load(out / "explanation.npz") as arrays:
        clips = len(arrays["logits"])
        held = sum(arrays[name].nbytes for name in arrays.files)
    return {
        "minutes": minutes,
        "clips": clips,
        # Linux counts in kilobytes.
        "peak_memory_bytes": usage.ru_maxrss * 1024,
        "arrays_bytes": held,
        "overlay_bytes": (out / "overlay.mp4").stat().st_size,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Measure, write the figures, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 60], help="lengths (default 10 60)")
    minutes = parser.parse_args().minutes
    about = {
        "command": f"python benchmarks/long_video.py --minutes {' '.join(f'{one:g}' for one in minutes)}",
        "explains": " ".join(["selrel explain VIDEO --all-clips", *OPTIONS]),
        "machine": machine(),
        "model": "two convolutions, random weights, 8 frames of 112×112 pixels, every 60th",
    }
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
    for length in minutes:
        if length in [row["minutes"] for row in rows]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row := measured(length, Path(folder)))
        write_json(RESULTS, {**about, "rows": sorted(rows, key=lambda one: float(one["minutes"]))})
        print(
            f"{length:g} minutes, {row['clips']} clips: {row['peak_memory_bytes'] / 1e6:.0f} MB at the peak; "
            f"arrays of {row['arrays_bytes'] / 1e6:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
