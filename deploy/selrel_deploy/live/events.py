"""Events: why there was an alert, kept with its clip and its maps, to look at later. Without torch."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from selrel_zennit.clips.spec import Frames
from selrel_zennit.errors import InputError
from selrel_zennit.explanation import ClipExplanations, Explanation
from selrel_zennit.files import check_folder, staged_folder
from selrel_zennit.outputs.files import write_outputs

from .packets import jpeg

KEPT = 12
"""Events that are kept in memory."""
APART = 5.0
"""Seconds between two events, at least."""

_FOLDER = re.compile(r"event-\d{8}-\d{6}-\d+")


@dataclass(frozen=True, eq=False)
class Event:
    """One alert: what the page says of it (``header``), and what its report is made of."""

    number: int
    header: dict[str, Any]
    explanation: Explanation
    pixels: Frames
    rate: float
    settings: dict[str, Any]
    info: dict[str, Any]
    class_names: list[str] | None
    at: float = field(default_factory=time.time)

    @property
    def folder(self) -> str:
        """The name of its folder in --record: date, time (UTC) and number."""
        return f"event-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(self.at))}-{self.number}"

    def picture(self) -> bytes:
        """Return the middle frame, and where what was kept as motion lies, side by side, as a JPEG file."""
        middle = len(self.pixels) // 2
        frame = self.pixels[middle]
        kept = self.explanation.mask[0, middle][..., None]
        if kept.shape[:2] != frame.shape[:2]:
            return jpeg(frame)
        return jpeg(np.concatenate([frame, np.where(kept, frame, frame // 4)], axis=1))

    def write(self, folder: Path) -> None:
        """Write the five files of the explanation into a folder that exists."""
        pixels, shape = self.pixels, self.explanation.relevance.shape[1:]
        if pixels.shape[:3] != shape:
            raise InputError("frames that the artifact resizes by itself have no report: export with --input float")
        clips = ClipExplanations(
            self.explanation, pixels[None], [0], [dict(self.header["seconds"])], self.rate, [], self.info
        )
        settings = self.settings | {"video": self.header["source"]}
        write_outputs(folder, clips, settings=settings, class_names=self.class_names)


class Events:
    """The last events, and where they are recorded. ``fault`` says in one sentence why one could not be recorded."""

    def __init__(self, record: Path | None = None, limit: int = 10**9) -> None:
        if record is not None:
            check_folder(record)
        self._record, self._limit = record, limit
        self._held: OrderedDict[int, Event] = OrderedDict()
        self._reports: OrderedDict[int, bytes] = OrderedDict()
        self._lock, self._drawing = threading.Lock(), threading.Lock()
        self.fault: str | None = None
        self.count = 0

    def add(self, event: Event) -> None:
        """Keep an event in memory and, where that was asked for, in a folder of its own. Never raises for the disk."""
        with self._lock:
            self._held[event.number] = event
            self.count += 1
            while len(self._held) > KEPT:
                number, _ = self._held.popitem(last=False)
                self._reports.pop(number, None)
        if self._record is None:
            return
        try:
            with staged_folder(self._record / event.folder) as folder:
                event.write(folder)
            _keep_within(self._record, self._limit)
            self.fault = None
        except InputError as error:
            self.fault = f"an event was not recorded: {error}"
        except OSError as error:
            self.fault = f"an event was not recorded ({error.strerror or error}): make room for --record"

    def get(self, number: int) -> Event | None:
        """Return an event by its number, None where it is not kept."""
        with self._lock:
            return self._held.get(number)

    def headers(self) -> list[dict[str, Any]]:
        """Return what the page shows of the events, the newest first."""
        with self._lock:
            return [event.header for event in reversed(self._held.values())]

    def report(self, number: int) -> bytes | None:
        """Return the report.html of an event, drawn when it is first asked for; None where it is not kept."""
        event = self.get(number)
        if event is None:
            return None
        with self._drawing:  # one at a time: drawing takes a core
            if number not in self._reports:
                with tempfile.TemporaryDirectory(prefix="selrel-live-") as folder:
                    event.write(Path(folder))
                    self._reports[number] = (Path(folder) / "report.html").read_bytes()
                while len(self._reports) > KEPT:
                    self._reports.popitem(last=False)
            return self._reports.get(number)


def _keep_within(record: Path, limit: int) -> None:
    """Remove the oldest events of a folder until it holds at most ``limit`` bytes; others' files are left alone."""
    folders = sorted(
        (path for path in record.iterdir() if _FOLDER.fullmatch(path.name) and not path.is_symlink() and path.is_dir()),
        key=lambda path: path.stat().st_mtime_ns,
    )
    sizes = {folder: sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) for folder in folders}
    total = sum(sizes.values())
    for folder in folders[:-1]:
        if total <= limit:
            return
        shutil.rmtree(folder)
        total -= sizes[folder]
