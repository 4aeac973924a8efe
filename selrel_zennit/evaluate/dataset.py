"""Data sets of labelled videos: folders, tables, UCF-101's split files, the generator's clips. NumPy and PyAV alone."""

from __future__ import annotations

import csv
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..clips.spec import Frames
from ..clips.video import read_frames
from ..errors import InputError
from ..files import sha256_file
from ..synthetic import CLASSES, GENERATOR_VERSION, SyntheticClip, SyntheticSpec, make_clip
from ..synthetic.generator import drawn_class
from ..text import close_names

Box = tuple[float, float, float, float]

VIDEO_ENDINGS = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
_SPLITS = ("train", "validation", "validate", "val", "test")
_COLUMNS = ("path", "label", "split", "group", "start", "stop", "box")
# The seeds of the generator's splits: none of them trained or calibrated what ships.
_SYNTHETIC_SEEDS = {"train": 31, "validation": 32, "test": 33}
_SYNTHETIC_CLIPS = {"train": 4000, "validation": 240, "test": 400}


@dataclass(frozen=True)
class LabelledVideo:
    """One video of a data set, or a part of one.

    ``name`` is what tables and stores call it: its path below the data set's folder, with the part of it where it is
    one. ``start`` is the first frame and ``stop`` the one after the last (None: the end). ``box`` is (left, top, right,
    bottom) in pixels of the file, and ``properties`` are the table's further columns, as they are written there.
    """

    name: str
    label: str
    path: Path | None = None
    split: str | None = None
    group: str | None = None
    start: int = 0
    stop: int | None = None
    box: Box | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    made: Callable[[], SyntheticClip] | None = field(default=None, repr=False, compare=False)

    def frames(self) -> Frames:
        """Return its frames, uint8 [N,H,W,3] RGB. Raises InputError where the file cannot be read."""
        if self.made is not None:
            return self.made().frames
        assert self.path is not None
        return read_frames(self.path, self.start, None if self.stop is None else self.stop - self.start)

    def digest(self) -> str:
        """Return the SHA-256 of what it shows: of the file and the part of it, or of the generator's settings."""
        if self.made is not None:
            return hashlib.sha256(f"synthetic {GENERATOR_VERSION} {self.name}".encode()).hexdigest()
        assert self.path is not None
        part = "" if (self.start, self.stop) == (0, None) else f" {self.start} {self.stop}"
        return hashlib.sha256((sha256_file(self.path) + part).encode()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Labelled videos and the names of their classes, in the order of a network's outputs."""

    name: str
    videos: tuple[LabelledVideo, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.videos)

    def __iter__(self) -> Iterator[LabelledVideo]:
        return iter(self.videos)

    def __repr__(self) -> str:
        splits = Counter(video.split for video in self.videos if video.split is not None)
        said = "".join(f", {count} {name}" for name, count in splits.items())
        return f"Dataset({self.name}: {len(self)} videos of {len(self.classes)} classes{said})"

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in the order in which they come."""
        return tuple(dict.fromkeys(video.split for video in self.videos if video.split is not None))

    def index(self, video: LabelledVideo) -> int:
        """Return which output of a network is a video's class."""
        return self.classes.index(video.label)

    def part(self, split: str) -> Dataset:
        """Return the videos of one split; the classes stay. Raises InputError where there is none."""
        videos = tuple(video for video in self.videos if video.split == split)
        if not videos:
            having = ", ".join(self.splits) or "none"
            raise InputError(f"{self.name} has no split {split!r}{close_names(split, self.splits)}; it has: {having}")
        return replace(self, videos=videos)

    def only(self, classes: Iterable[str]) -> Dataset:
        """Return the videos of some classes, which are then all there are. Raises InputError for an unknown one."""
        wanted = tuple(dict.fromkeys(classes))
        for name in wanted:
            if name not in self.classes:
                raise InputError(f"{self.name} has no class {name!r}{close_names(name, self.classes)}")
        videos = tuple(video for video in self.videos if video.label in wanted)
        return replace(self, videos=videos, classes=wanted)


def read_dataset(
    source: str | Path, *, root: str | Path | None = None, classes: Iterable[str] | None = None
) -> Dataset:
    """Return the labelled videos of a data set; none of them is opened.

    ``source`` is ``"synthetic"`` (the generator's clips; ``"synthetic:bias=0.5,shake=1"`` sets fields of
    SyntheticSpec, and ``train``, ``validation`` and ``test`` say how many clips there are), a folder CLASS/FILE or
    SPLIT/CLASS/FILE, one with a ``labels.csv``, a table (CSV or Parquet) with the columns path and label and any of
    split, group, start, stop, box ("left top right bottom"), or a split file of UCF-101 ("Class/v_Class_g01_c01.avi 1"
    in each line). ``root`` is the folder that paths in tables and split files start from (default: the file's own).
    ``classes`` are those to take, in this order (default: all, sorted).

    Raises InputError for a source that is none of these, columns that are missing or empty, rows that come twice,
    videos that are not there, and classes without a video.
    """
    if str(source).partition(":")[0] == "synthetic":
        found = _synthetic(str(source))
    else:
        path = Path(source)
        if not path.exists():
            raise InputError(f"{path}: no such folder or file; a data set is a folder, a table, or synthetic")
        table = path / "labels.csv" if path.is_dir() else path
        if path.is_dir() and not table.exists():
            found = _folder(path)
        elif table.suffix == ".txt":
            found = _split_file(table, Path(root or table.parent))
        else:
            found = _table(table, Path(root or table.parent))
    if classes is not None:
        found = found.only(classes)
    counts = Counter(video.label for video in found)
    if not found.videos:
        raise InputError(f"{source}: no videos in it")
    empty = [name for name in found.classes if not counts[name]]
    if empty and found.videos[0].made is None:
        raise InputError(f"{source}: no video of the class {empty[0]!r}")
    return found


def _folder(root: Path) -> Dataset:
    """CLASS/FILE or SPLIT/CLASS/FILE."""
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    parts = folders if folders and all(folder.name.lower() in _SPLITS for folder in folders) else [root]
    videos, classes = [], []
    for part in parts:
        for folder in sorted(entry for entry in part.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
            classes.append(folder.name)
            videos += [
                LabelledVideo(
                    file.relative_to(root).as_posix(), folder.name, file, None if part is root else part.name.lower()
                )
                for file in sorted(folder.iterdir())
                if file.suffix.lower() in VIDEO_ENDINGS
            ]
    if not videos:
        raise InputError(f"{root}: no labels.csv and no folders CLASS/FILE with videos in them")
    return Dataset(root.resolve().name, tuple(videos), tuple(sorted(set(classes))))


def _split_file(path: Path, root: Path) -> Dataset:
    """UCF-101's: CLASS/FILE, and in the lists to train on the number of the class."""
    split = next((name for name in ("train", "test") if path.name.startswith(name)), None)
    rows = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        name = line.split(" ")[0].strip()
        if name:
            if "/" not in name:
                raise InputError(f"{path}: {line!r} is no line of a split file, which says CLASS/FILE")
            # g01 in v_Archery_g01_c01.avi: clips of one group come from one recording.
            group = next((part for part in Path(name).stem.split("_") if part[:1] == "g" and part[1:].isdigit()), None)
            rows.append({"path": name, "label": name.split("/")[0], "split": split or "", "group": group or ""})
    return _from_rows(path, root, rows)


def _table(path: Path, root: Path) -> Dataset:
    if path.suffix == ".parquet":
        rows = _parquet(path)
    else:
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(
                f"{path} is no table: {error}; give CSV or Parquet with the columns path and label"
            ) from error
    return _from_rows(path, root, rows)


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise InputError(f"{path}: Parquet needs pyarrow: pip install 'selrel-zennit[evaluate]', or give CSV") from None
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is no Parquet table: {error}") from error
    return [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]


def _from_rows(table: Path, root: Path, rows: list[dict[str, Any]]) -> Dataset:
    """Check the rows of a table and make videos of them. Lines are counted from 2, as a table's editor does."""
    if not rows:
        raise InputError(f"{table}: a table without rows")
    for column in ("path", "label"):
        if column not in rows[0]:
            having = ", ".join(str(name) for name in rows[0])
            raise InputError(f"{table} has no column {column!r}; it has: {having}")
    videos: list[LabelledVideo] = []
    first_seen: dict[str, int] = {}
    missing: list[Path] = []
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values() or not row["path"] or not row["label"]:
            raise InputError(f"{table}, line {line}: a row without path or label, or not as long as the header")
        start, stop = (_whole(table, line, row, column) for column in ("start", "stop"))
        if stop is not None and stop <= (start or 0):
            raise InputError(f"{table}, line {line}: stop must come after start, got {start or 0}…{stop}")
        name = row["path"] if start is None and stop is None else f"{row['path']}#{start or 0}-{stop or ''}"
        if name in first_seen:
            raise InputError(f"{table}, line {line}: {name} stands in line {first_seen[name]} already")
        first_seen[name] = line
        path = root / row["path"]
        if not path.exists():
            missing.append(path)
        properties = {key: value for key, value in row.items() if key not in _COLUMNS}
        videos.append(
            LabelledVideo(
                name,
                row["label"],
                path,
                split=row.get("split") or None,
                group=row.get("group") or None,
                start=start or 0,
                stop=stop,
                box=_box(table, line, row.get("box")),
                properties=properties,
            )
        )
    if missing:
        moved = f"{len(missing)} of {len(rows)} videos are not there, {missing[0]} first"
        raise InputError(f"{table}: {moved}; say with --root (root=) which folder its paths start from")
    name = table.parent.resolve().name if table.name == "labels.csv" else table.stem
    return Dataset(name, tuple(videos), tuple(sorted({video.label for video in videos})))


def _whole(table: Path, line: int, row: Mapping[str, str], column: str) -> int | None:
    text = row.get(column) or ""
    if not text:
        return None
    try:
        value = int(float(text))
    except ValueError:
        value = -1
    if value < 0 or value != float(text):
        raise InputError(f"{table}, line {line}: {column} must be a whole number of at least 0, got {text!r}")
    return value


def _box(table: Path, line: int, text: str | None) -> Box | None:
    if not text:
        return None
    try:
        left, top, right, bottom = (float(part) for part in text.replace(",", " ").split())
    except ValueError:
        left = top = right = bottom = 0.0
    if not (0 <= left < right and 0 <= top < bottom):
        raise InputError(f"{table}, line {line}: box must be 'left top right bottom' in pixels, got {text!r}")
    return left, top, right, bottom


def _synthetic(source: str) -> Dataset:
    """Clips of the generator, of seeds of their own; each is made when they are asked for."""
    settings: dict[str, Any] = {}
    counts = dict(_SYNTHETIC_CLIPS)
    kinds = {"bias": float, "opposed": int, "distractor": int}
    known = [*SyntheticSpec.__dataclass_fields__, *counts]
    for item in filter(None, source.partition(":")[2].split(",")):
        key, _, text = item.partition("=")
        if key not in known:
            raise InputError(
                f"{source}: synthetic has no setting {key!r}{close_names(key, known)}; it has: {', '.join(known)}"
            )
        try:
            value = kinds.get(key, int)(text)
        except ValueError:
            raise InputError(f"{source}: {key} takes a number, got {text!r}") from None
        if key in counts:
            counts[key] = int(value)
        else:
            settings[key] = bool(value) if key in ("opposed", "distractor") else value
    spec = SyntheticSpec(**settings)
    said = ",".join(f"{key}={value}" for key, value in settings.items())
    videos = []
    for split, count in counts.items():
        for number in range(count):
            made = functools.partial(make_clip, spec, _SYNTHETIC_SEEDS[split], number)
            label = CLASSES[drawn_class(_SYNTHETIC_SEEDS[split], number)]
            videos.append(LabelledVideo(f"{split}/{number:05d}{said and f' {said}'}", label, split=split, made=made))
    return Dataset(f"synthetic{said and f':{said}'}", tuple(videos), tuple(CLASSES))
