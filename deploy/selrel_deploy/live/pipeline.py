"""The stages of the live view: capture, inference and encoding, each a thread, with queues in which the newest wins."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from selrel_zennit.class_names import class_name
from selrel_zennit.clips.spec import Frames
from selrel_zennit.errors import InputError
from selrel_zennit.explanation import Explanation
from selrel_zennit.loop import TOP, Condition
from selrel_zennit.outputs.files import top_classes

from .clock import stamp
from .engines import Engine
from .events import APART, Event, Events
from .gauge import FEWEST, Gauge, still_clip
from .ladder import Ladder, p95, rungs_of
from .newest import Newest
from .packets import maps_of, packet, shown_steps, view_picture
from .sources import Capture, Frame, Source

VIEWS = 10.0
"""Live pictures in a second, at most."""
ALERT = 0.5
"""Without a condition, an event begins where the top class has this probability and the gauge reads above 0."""

_STILL_EVERY = 12  # windows, of which one is followed by a still clip
_AT_START = 2 * FEWEST + 2  # still clips, half of which make thresholds
_FEWEST_TIMED, _LONGEST_TIMED = 3, 6.0  # explanations, and seconds, of each engine at start
_TICK = 0.25

Publish = Callable[[str, bytes], None]


class Window(NamedTuple):
    """Frames as the network sees them, uint8 [T,H,W,3], when the last of them came, and a running number."""

    pixels: Frames
    at: float
    number: int


class Explained(NamedTuple):
    """A window, its logits, its explanation (None where it was not asked for), and what is said of it."""

    window: Window
    explanation: Explanation | None
    header: dict[str, Any]


class Windows:
    """Makes windows of frames: one every ``hop`` frames. Each frame is decoded and resized once."""

    def __init__(self, engine: Engine, hop: int | None) -> None:
        self._engine, spec = engine, engine.spec
        self.hop = hop or spec.frames * spec.stride
        self._held: deque[Frames] = deque(maxlen=spec.span)
        self._since = self.number = 0

    def take(self, frame: Frame) -> Window | None:
        """Add a frame; return the window that ends with it, if one does."""
        if frame.begins:
            self._held.clear()
            self._since = 0
        self._held.append(self._engine.prepare(frame.pixels))
        self._since += 1
        full = len(self._held) == self._held.maxlen
        if not full or (self._since < self.hop and self._since != len(self._held)):
            return None
        self._since, self.number = 0, self.number + 1
        pixels = np.stack(list(self._held)[:: self._engine.spec.stride])
        return Window(pixels, frame.at, self.number)


class Live:
    """The live view: its stages, what they last made, and what ``state`` says of them.

    ``publish(kind, message)`` is called with every message for the page, from the threads of the stages.
    """

    def __init__(
        self,
        source: Source,
        engines: Sequence[Engine],
        publish: Publish,
        *,
        budget: float = 0.5,
        target: int = TOP,
        when: Condition | None = None,
        hop: int | None = None,
        events: Events | None = None,
        clock: bool = False,
        log: Callable[[str], None] = print,
    ) -> None:
        self.engines, self.when, self.target = list(engines), when, target
        self.ladder = Ladder(rungs_of([engine.name for engine in engines]), budget)
        self.gauges = [Gauge(engine.motion) for engine in engines]
        self.events = events or Events()
        self.capture = Capture(source, self._take)
        self.windows = Windows(self.engines[0], hop)
        self.fault: str | None = None
        self.measuring = True
        self.explained = self.skipped = 0
        self.age = math.nan
        self.stages: dict[str, deque[float]] = {name: deque(maxlen=50) for name in ("explain", "encode", "whole")}
        self._publish, self._clock, self._log = publish, clock, log
        self._views: Newest[Frame] = Newest(1)
        self._windows: Newest[Window] = Newest(1)
        self._found: Newest[Explained] = Newest(2)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._alerting, self._alert_at, self._events = False, -math.inf, 0
        self._next = 0  # the window to explain next

    def __enter__(self) -> Live:
        stages = (self.capture.run, self._infer, self._encode, self._view, self._tell)
        for stage in stages:
            self._threads.append(threading.Thread(target=stage, args=(self._stop,), daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5)

    @property
    def frames_dropped(self) -> int:
        """Windows that were never explained, because a newer one came first."""
        return self._windows.dropped

    def state(self) -> dict[str, Any]:
        """Return what the page says once a second: rung, times, faults, events."""
        ladder, gauge = self.ladder, self.gauges[self.ladder.rung.engine]
        faults = [text for text in (self.capture.fault, self.fault, self.events.fault) if text]
        if ladder.too_slow:
            faults.append(
                f"no rung keeps within {ladder.budget:g} s here: the cheapest is shown, at {ladder.p95:.2f} s"
            )
        return {
            "kind": "state",
            "source": self.capture.source.name,
            "frames": self.capture.frames,
            "reopened": self.capture.reopened,
            "explained": self.explained,
            "dropped": self.frames_dropped,
            "skipped": self.skipped,
            "measuring": self.measuring,
            "rung": ladder.rung.name,
            "rungs": [rung.name for rung in ladder.rungs],
            "at": ladder.at,
            "why": ladder.changes[-1].why if ladder.changes else "",
            "budget": ladder.budget,
            "p95": _number(ladder.p95),
            "seconds": {name: _number(p95(values)) for name, values in self.stages.items()},
            "error_rate": _number(gauge.error_rate),
            "stills": gauge.stills,
            "faults": faults,
            "events": self.events.headers(),
        }

    def _take(self, frame: Frame) -> None:
        """Take a captured frame on: to the live picture, and into windows."""
        if self._clock:
            frame = frame._replace(pixels=stamp(frame.pixels, time.time_ns() // 10**6))
        self._views.put(frame)
        window = self.windows.take(frame)
        if window is not None:
            self._windows.put(window)

    def _view(self, stop: threading.Event) -> None:
        while not stop.is_set():
            frame = self._views.get(_TICK)
            if frame is not None:
                header = {"kind": "view", "age": time.monotonic() - frame.at}
                self._publish("view", packet(header, view_picture(frame.pixels)))
                stop.wait(1 / VIEWS)

    def _tell(self, stop: threading.Event) -> None:
        while not stop.wait(1):
            self._publish("state", packet(self.state()))

    def _infer(self, stop: threading.Event) -> None:
        while not stop.is_set():
            window = self._windows.get(_TICK)
            if window is None:
                continue
            try:
                if self.measuring:
                    self._measure(window, stop)
                else:
                    self._explain(window, stop)
                self.fault = None
            except InputError as error:
                self.fault = str(error)
            except Exception as error:  # of a runtime: said on the page, and the next window may do
                self.fault = f"a window could not be explained ({type(error).__name__}): {' '.join(str(error).split())}"

    def _measure(self, window: Window, stop: threading.Event) -> None:
        """Time the engines, the best first, until one keeps within the budget, and learn its null."""
        for index, engine in enumerate(self.engines):
            engine.look(window.pixels, self.target, None)  # the first is slower than others
            times: list[float] = []
            began = time.monotonic()
            while len(times) < _FEWEST_TIMED and time.monotonic() - began < _LONGEST_TIMED and not stop.is_set():
                since = time.perf_counter()
                engine.look(window.pixels, self.target, None)
                times.append(time.perf_counter() - since)
            if self.ladder.measured(index, times or [math.inf]):
                break
        self.ladder.start()
        self._say()
        self.measuring = False

    def _explain(self, window: Window, stop: threading.Event) -> None:
        rung = self.ladder.rung
        if window.number < self._next:
            self.skipped += 1
            return
        self._next = window.number + rung.every
        engine, gauge = self.engines[rung.engine], self.gauges[rung.engine]
        since = time.perf_counter()
        looked = engine.look(window.pixels, self.target, self.when)
        seconds = time.perf_counter() - since
        self.stages["explain"].append(seconds)
        probabilities = top_classes(looked.logits, engine.class_names)
        header: dict[str, Any] = {
            "kind": "explained",
            "number": window.number,
            "top": probabilities,
            "rung": rung.name,
            "seconds": {"explain": seconds},
            "source": self.capture.source.name,
            "target": None,
        }
        if looked.explanation is not None:
            self.explained += 1
            target = int(looked.explanation.target[0])
            reading = gauge.read(looked.explanation)
            share = looked.explanation.motion_share()
            header |= {
                "target": class_name(target, engine.class_names),
                "gauge": _number(reading.value),
                "raw": _number(reading.raw),
                "null": _number(reading.null),
                "share": _number(float(share.mass[0])),
                "split": None if looked.explanation.split is None else looked.explanation.split.sentence(),
            }
            self._found.put(Explained(window, looked.explanation, header))
            self._alert(window, looked.explanation, header, engine)
            if not gauge.ready or self.explained % _STILL_EVERY == 0:
                self._learn(window, engine, gauge, target, stop)
            change = self.ladder.took(seconds)
            if change is not None:
                self._say()
        else:
            self._alerting = False
            self._found.put(Explained(window, None, header))

    def _learn(self, window: Window, engine: Engine, gauge: Gauge, target: int, stop: threading.Event) -> None:
        """Explain a window as a still camera would have shown it; at first as many as it takes, but never for long."""
        began = time.monotonic()
        for seed in range(_AT_START):
            still = engine.look(still_clip(window.pixels, 1000 * window.number + seed), target, None)
            assert still.explanation is not None
            gauge.learn(still.explanation)
            if gauge.ready or stop.is_set() or time.monotonic() - began > self.ladder.budget:
                return

    def _alert(self, window: Window, explanation: Explanation, header: dict[str, Any], engine: Engine) -> None:
        """Begin an event where there is reason to, and none has just begun."""
        sure = explanation.probabilities()[0].max() >= ALERT and (header["gauge"] or 0) > 0
        alert = bool(sure) if self.when is None else True
        begins = alert and not self._alerting and time.monotonic() - self._alert_at >= APART
        self._alerting = alert
        if not begins:
            return
        self._alert_at, self._events = time.monotonic(), self._events + 1
        said = {key: header[key] for key in ("source", "top", "target", "gauge", "share", "split", "seconds", "rung")}
        said |= {"number": self._events, "time": time.time()}
        if self.when is not None:
            wanted = "any" if self.when.target == TOP else class_name(self.when.target, engine.class_names)
            said["when"] = f"{wanted} at {self.when.probability:g} or more"
        rate = self.capture.source.rate / engine.spec.stride
        event = Event(
            self._events, said, explanation, window.pixels, rate, engine.settings, engine.info, engine.class_names
        )
        # Recording draws a film: in a thread, so that no window waits for it.
        threading.Thread(target=self.events.add, args=(event,), daemon=True).start()

    def _encode(self, stop: threading.Event) -> None:
        while not stop.is_set():
            found = self._found.get(_TICK)
            if found is None:
                continue
            with contextlib.suppress(InputError):
                since = time.perf_counter()
                header, pictures = dict(found.header), ()
                if found.explanation is not None:
                    steps = shown_steps(len(found.window.pixels), self.windows.hop)
                    maps, frames, layers = maps_of(found.explanation, found.window.pixels, steps)
                    header, pictures = header | maps, (frames, layers)  # type: ignore[assignment]
                encode = time.perf_counter() - since
                self.age = time.monotonic() - found.window.at
                header["seconds"] = {**header["seconds"], "encode": encode, "whole": self.age}
                self.stages["encode"].append(encode)
                self.stages["whole"].append(self.age)
                self._publish("explained", packet(header, *pictures))

    def _say(self) -> None:
        change = self.ladder.changes[-1]
        self._log(f"rung: {self.ladder.rungs[change.rung].name} ({change.why})")


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
