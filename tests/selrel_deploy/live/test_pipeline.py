"""The stages together: what comes out, in which order, and what happens when one of them fails."""

import json
import threading
import time

import numpy as np
import pytest

from selrel_deploy.live.engines import ArtifactEngine
from selrel_deploy.live.events import Event, Events
from selrel_deploy.live.packets import parse
from selrel_deploy.live.pipeline import Live, Windows
from selrel_deploy.live.sources import Frame
from selrel_zennit.errors import InputError
from selrel_zennit.loop import Condition

from .stand_ins import Brightness, Frames, moving


def watch(until, *, source=None, engines=None, seconds=20.0, **options):
    """Run a live view until ``until(messages)``; return the view and its messages by kind, the last ones last."""
    messages, enough = {"view": [], "explained": [], "state": []}, threading.Event()

    def publish(kind, message):
        messages[kind].append(parse(message))
        if until(messages):
            enough.set()

    view = Live(
        source or Frames(moving(), lives=False),
        engines or [Brightness()],
        publish,
        log=lambda _: None,
        **{"events": Events(), **options},
    )
    with view:
        assert enough.wait(seconds), {kind: len(found) for kind, found in messages.items()}
    return view, messages


def test_windows_are_made_of_shared_frames_and_never_reach_over_a_cut():
    engine = Brightness()
    windows = Windows(engine, 2)
    prepared = []
    engine.prepare = lambda frame: prepared.append(frame) or frame
    ends = []
    for step in range(13):
        window = windows.take(Frame(np.full((16, 16, 3), step, np.uint8), float(step), step in (0, 9)))
        if window is not None:
            ends.append((window.at, window.pixels[:, 0, 0, 0].tolist()))
    assert ends == [(3, [0, 1, 2, 3]), (5, [2, 3, 4, 5]), (7, [4, 5, 6, 7]), (12, [9, 10, 11, 12])]
    assert len(prepared) == 13


def test_classes_maps_gauge_and_state_come_out():
    view, messages = watch(
        lambda found: found["state"] and found["view"] and any(h.get("gauge") for h, _ in found["explained"])
    )
    header, pictures = next((h, p) for h, p in messages["explained"] if h.get("gauge"))
    assert header["top"][0][1] == pytest.approx(1 - header["top"][1][1])
    assert header["layers"] == ["relevance", "motion"]
    assert len(pictures) == 2
    assert 0 < header["gauge"] < 0.3
    assert header["seconds"]["whole"] >= header["seconds"]["explain"]
    assert view.state()["rung"] == "brightness"


def test_a_still_source_reads_nothing():
    still = Frames(np.repeat(moving()[3:4], 8, axis=0), lives=False)
    _, messages = watch(lambda found: sum(h.get("gauge") is not None for h, _ in found["explained"]) >= 5, source=still)
    assert {h["gauge"] for h, _ in messages["explained"] if h.get("gauge") is not None} == {0.0}


def test_a_slow_engine_gets_the_newest_window_and_the_others_are_counted():
    class Slow(Brightness):
        def look(self, pixels, target, when):
            time.sleep(0.1)
            return super().look(pixels, target, when)

    view, messages = watch(lambda found: len(found["explained"]) >= 3, engines=[Slow()], budget=10.0)
    assert view.frames_dropped > 3
    numbers = [h["number"] for h, _ in messages["explained"]]
    assert numbers == sorted(set(numbers))
    assert all(h["seconds"]["whole"] < 2 for h, _ in messages["explained"])


def test_the_rung_changes_under_load_and_is_told():
    class Loaded(Brightness):
        slow = False

        def look(self, pixels, target, when):
            time.sleep(0.05 if self.slow else 0.0)
            return super().look(pixels, target, when)

    best = Loaded("best")
    said = []

    def until(found):
        best.slow = len(found["explained"]) >= 3
        return any(h["rung"] == "cheap" for h, _ in found["explained"])

    view, _ = watch(until, engines=[best, Brightness("cheap")], budget=0.04)
    view._log = said.append
    assert view.ladder.changes[0].rung == 0
    assert "over the budget" in view.ladder.changes[-1].why
    assert view.state()["at"] == 1


def test_explain_when_explains_nothing_else():
    engine = Brightness()
    _, messages = watch(lambda found: len(found["explained"]) >= 3, engines=[engine], when=Condition(1, 0.99), target=1)
    assert all(h["target"] is None and "layers" not in h for h, _ in messages["explained"])
    view, messages = watch(lambda found: len(found["explained"]) >= 3, when=Condition(0, 0.5), target=0)
    assert all(h["target"] for h, _ in messages["explained"])
    (event,) = view.events.headers()
    assert event["when"].endswith("at 0.5 or more")


def test_a_fault_of_an_engine_is_said_and_passes():
    class Faulty(Brightness):
        def look(self, pixels, target, when):
            if self.looked == 10:
                self.looked += 1
                raise RuntimeError("the runtime's\nown words")
            return super().look(pixels, target, when)

    seen = []

    class Watched(Live):
        def __setattr__(self, name, value):
            if name == "fault" and value:
                seen.append(value)
            super().__setattr__(name, value)

    done = threading.Event()
    count = []
    with Watched(
        Frames(moving(), lives=False),
        [Faulty()],
        lambda kind, _: kind == "explained" and (count.append(1) or len(count) > 12) and done.set(),
        log=lambda _: None,
    ):
        assert done.wait(20)
    assert seen == ["a window could not be explained (RuntimeError): the runtime's own words"]


def event(number=1, at=1.8e9):
    pixels = moving(4)
    looked = Brightness().look(pixels, 0, None)
    said = {"number": number, "source": "<script>", "seconds": {"explain": 0.1}}
    engine = Brightness()
    return Event(number, said, looked.explanation, pixels, 25.0, engine.settings, engine.info, engine.class_names, at)


@pytest.mark.slow
def test_an_event_has_a_report_and_its_words_are_escaped(tmp_path):
    events = Events(tmp_path / "kept")
    events.add(event())
    page = events.report(1).decode()
    assert "<img src=x" not in page
    assert "<script>" not in page.partition("</head>")[2].replace("<script>\n", "")
    assert "&lt;img src=x" in page
    assert events.report(2) is None
    folder = tmp_path / "kept" / event().folder
    assert {path.name for path in folder.iterdir()} >= {"report.html", "explanation.npz", "summary.json"}
    assert json.loads((folder / "summary.json").read_text())["video"] == "<script>"


def test_recording_keeps_within_its_limit_and_leaves_other_files(tmp_path, monkeypatch):
    monkeypatch.setattr(Event, "write", lambda self, folder: (folder / "x").write_bytes(b"0" * 1000))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "big").write_bytes(b"0" * 9000)
    events = Events(tmp_path, 2500)
    for number in range(5):
        events.add(event(number, 1.8e9 + number))
        time.sleep(0.01)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["event-20270115-080003-3", "event-20270115-080004-4", "mine"]
    assert events.fault is None


def test_a_full_disk_is_said_and_the_event_is_kept_in_memory(tmp_path, monkeypatch):
    def full(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Event, "write", full)
    events = Events(tmp_path)
    events.add(event())
    assert "make room" in events.fault
    assert "\n" not in events.fault
    assert events.get(1) is not None
    assert not list(tmp_path.iterdir())


def test_memory_holds_the_last_events_only():
    events = Events()
    for number in range(40):
        events.add(event(number))
    assert [one["number"] for one in events.headers()] == list(range(39, 27, -1))


def test_an_artifact_of_several_clips_is_refused(tmp_path):
    class Run:
        class artifact:
            clip_shape, path, info = (2, 3, 4, 16, 16), tmp_path / "x.onnx", {}

    with pytest.raises(InputError, match="--batch 1"):
        ArtifactEngine(Run(), {})
