"""Going through a data set: in this process, in a pool of workers, or one share of it; what is stored is skipped."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from typing import Any

import torch
from torch import nn

from ..clips.spec import Frames
from ..errors import InputError
from ..models.registry import load_model
from .controls import controlled
from .dataset import Dataset, LabelledVideo
from .measures import ANSWERS, Measures, Row, pair_name, pairs_of
from .settings import Settings
from .store import Key, Store

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]

# A video on which workers die this often is left out.
_DEATHS = 2


@dataclass
class Done:
    """What a run did: clips measured, clips that were there, and videos that could not be measured and why."""

    clips: int = 0
    known: int = 0
    failed: dict[str, str] = field(default_factory=dict)


class Evaluator:
    """Measures one video after another; picklable as what it is made from, so that workers make their own."""

    def __init__(self, settings: Settings, model: nn.Module | None = None) -> None:
        self.settings = settings
        own = model if model is not None else load_model(
            settings.model, settings.weights, num_classes=settings.num_classes, seed=settings.seed
        )  # fmt: skip
        self.network = network_name(own)
        self.measures = Measures(own, settings)

    def names(self) -> list[str]:
        """Return the rows that a clip has."""
        names = list(self.settings.methods) + [pair_name(pair) for pair in pairs_of(self.settings.methods)]
        return names + ([ANSWERS] if self.settings.audit else [])

    def shown(self, video: LabelledVideo) -> Frames:
        """Return a video's frames, under the control where there is one. Raises InputError for fewer than 2."""
        frames = video.frames()
        if len(frames) < 2:
            raise InputError(f"{video.name}: {len(frames)} frame; a motion explanation needs at least 2")
        control = self.settings.control
        return frames if control is None else controlled(frames, control, video.box, self.settings.seed)

    def video(self, video: LabelledVideo, index: int, known: frozenset[Key]) -> tuple[list[Row], int]:
        """Return the rows of a video's clips that are not known, and how many of its clips were known whole.

        Raises InputError where the video cannot be read or measured.
        """
        frames = self.shown(video)
        digest, what = video.digest(), self.settings.what
        properties = {f"property {key}": value for key, value in video.properties.items()}
        about = {
            "digest": digest,
            "video": video.name,
            "label": video.label,
            "split": video.split,
            "group": video.group,
            "network": self.network,
            "settings": what,
            **properties,
        }
        rows: list[Row] = []
        whole = 0
        for start in self.measures.starts(len(frames)):
            missing = [name for name in self.names() if (digest, start, self.network, name, what) not in known]
            whole += not missing
            if missing:
                rows += [{**about, **row} for row in self.measures.rows(video, index, frames, start, missing)]
        return rows, whole


def network_name(model: nn.Module) -> str:
    """Return what names a network in a store: its model, and a hash of its weights and of the clips it takes."""
    provenance: dict[str, Any] = getattr(model, "provenance", {}) or {}
    digest = hashlib.sha256(repr(model.spec).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return f"{provenance.get('model', type(model).__name__)} {digest.hexdigest()[:16]}"


def measure_all(
    data: Dataset,
    store: Store,
    settings: Settings,
    *,
    model: nn.Module | None = None,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Done:
    """Measure what the store does not hold yet of a data set's videos, and append it video by video.

    ``workers`` above 1 are processes of their own, with one torch thread each; one that is killed is replaced, and its
    videos are measured again. ``shard`` (I, N) takes every N-th video from the I-th on, for many machines with one
    folder. ``model`` is a loaded network, for one process alone; otherwise ``settings`` say which to load.

    A video that cannot be read, or on which a worker dies twice, is in ``failed``. Raises InputError where the network
    or a method cannot be made, and where none of the videos can be measured.
    """
    place, of = shard
    if not 0 <= place < of:
        raise InputError(f"a shard is I/N with I from 0 to N−1, got {place}/{of}")
    videos = data.videos[place::of]
    known = frozenset(store.keys())
    done = Done()
    if workers > 1 and model is None:
        results: Iterable[Any] = _pooled(data, videos, settings, known, workers)
    else:
        results = _here(Evaluator(settings, model), data, videos, known)
    if progress is not None:
        results = progress(results, "videos", len(videos))
    for name, rows, whole in results:
        if isinstance(rows, str):
            done.failed[name] = rows
            continue
        store.append(rows)
        done.clips += len({row["start"] for row in rows})
        done.known += whole
    if videos and len(done.failed) == len(videos):
        raise InputError(f"none of {len(videos)} videos can be measured; the first: {next(iter(done.failed.values()))}")
    return done


Result = tuple[str, "list[Row] | str", int]


def _here(
    evaluator: Evaluator, data: Dataset, videos: Sequence[LabelledVideo], known: frozenset[Key]
) -> Iterator[Result]:
    with contextlib.ExitStack() as entered:
        for attributor in evaluator.measures.attributors.values():
            entered.enter_context(attributor)
        for video in videos:
            yield _one(evaluator, video, data.index(video), known)


def _one(evaluator: Evaluator, video: LabelledVideo, index: int, known: frozenset[Key]) -> Result:
    try:
        return (video.name, *evaluator.video(video, index, known))
    except (InputError, OSError) as error:
        return video.name, str(error), 0


def _pooled(
    data: Dataset, videos: Sequence[LabelledVideo], settings: Settings, known: frozenset[Key], workers: int
) -> Iterator[Result]:
    """Measure in processes; where one dies, all are started anew and what they had at hand is measured again."""
    waiting = list(videos)
    deaths: dict[str, int] = {}
    while waiting:
        # Where workers die again, one at a time says whose fault it is.
        several = 1 if any(count >= _DEATHS - 1 for count in deaths.values()) else workers
        finished: set[str] = set()
        with ProcessPoolExecutor(
            several, mp_context=get_context("spawn"), initializer=_begin, initargs=(asdict(settings), known)
        ) as pool:
            at_hand = {pool.submit(_work, video, data.index(video)): video for video in waiting}
            try:
                for job in as_completed(at_hand):
                    result: Result = job.result()
                    finished.add(result[0])
                    yield result
            except BrokenProcessPool:
                # The executor does not say which; with one worker it is the first that is not finished.
                suspects = [video for video in waiting if video.name not in finished][:several]
                for video in suspects:
                    deaths[video.name] = deaths.get(video.name, 0) + 1
        waiting = [video for video in waiting if video.name not in finished]
        for video in list(waiting):
            if deaths.get(video.name, 0) >= _DEATHS + (several > 1):
                yield video.name, f"{video.name}: the worker died {deaths[video.name]} times (out of memory?)", 0
                waiting.remove(video)


_worker: Evaluator | None = None
_known: frozenset[Key] = frozenset()


def _begin(settings: dict[str, Any], known: frozenset[Key]) -> None:
    global _worker, _known
    torch.set_num_threads(1)
    _worker, _known = Evaluator(Settings(**settings)), known
    for attributor in _worker.measures.attributors.values():
        attributor.__enter__()


def _work(video: LabelledVideo, index: int) -> Result:
    assert _worker is not None
    return _one(_worker, video, index, _known)
