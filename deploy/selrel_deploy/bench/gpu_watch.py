"""Clocks, power and temperature of a GPU while something runs on it, as nvidia-smi tells them. No other package."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from typing import Any

# Field of nvidia-smi → name here.
FIELDS = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "power.draw": "watts",
    "temperature.gpu": "celsius",
}
EVERY_MS = 100


class GpuWatch:
    """Samples a GPU ten times a second from construction to ``stop``; ``gpu`` is its UUID, or its number for
    nvidia-smi.

    Where nvidia-smi is missing (as on Jetson), or tells nothing, ``stop`` returns None.
    """

    def __init__(self, gpu: str) -> None:
        query = f"--query-gpu={','.join(FIELDS)}"
        self._lines = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  (closed by stop)
        try:
            self._sampler: subprocess.Popen[Any] | None = subprocess.Popen(
                ["nvidia-smi", f"--id={gpu}", query, "--format=csv,noheader,nounits", f"--loop-ms={EVERY_MS}"],
                stdout=self._lines,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            self._sampler = None

    def stop(self) -> dict[str, Any] | None:
        """Return least, median and greatest of each figure, and how many samples there were."""
        if self._sampler is None:
            self._lines.close()
            return None
        self._sampler.terminate()
        self._sampler.wait()
        self._lines.seek(0)
        # The last line may be cut off.
        rows = [line.split(",") for line in self._lines if line.endswith("\n")]
        self._lines.close()
        rows = [[cell.strip() for cell in row] for row in rows if len(row) == len(FIELDS)]
        if not rows:
            return None
        found: dict[str, Any] = {"samples": len(rows)}
        for column, name in enumerate(FIELDS.values()):
            values = [float(row[column]) for row in rows if _is_number(row[column])]
            if values:
                found[name] = {"min": min(values), "median": statistics.median(values), "max": max(values)}
        return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
