"""A user whose home folder cannot be written, with LANG=C, a strict umask, and a space in the path, gets everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")


def test_the_first_command_runs_for_any_user(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "selrel_zennit", "explain", "--out", "an output"],
        cwd=folder,
        env=kept | {"LANG": "C", "HOME": os.devnull},
        umask=0o077,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder / "an output").iterdir()}
    names = ("overlay.mp4", "strip.png", "report.html", "explanation.npz", "summary.json")
    assert modes == dict.fromkeys(names, 0o600)
