"""Artifacts: NAME.onnx or its two parts, NAME.json, NAME.golden.npz and sometimes NAME.data, read and checked.

NumPy and the standard library alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError
from selrel_zennit.files import sha256_file

SCHEMA = (2, 0)
OUTPUTS = ("logits", "explained_target", "relevance", "motion_relevance", "mask")
# What an artifact takes → name of that input.
INPUTS = {"float": "clip", "uint8": "frames"}
# role → what follows NAME in the file's name
WHOLE = {"explanation": ".onnx"}
SPLIT = {"forward": ".forward.onnx", "explain": ".explain.onnx"}
# Key of an ONNX node's metadata: the path of the model's module that it comes from.
MODULE = "module"

_MANIFEST, _GOLDEN, _DATA = ".json", ".golden.npz", ".data"
_SUFFIXES = (*SPLIT.values(), ".onnx", _GOLDEN, _MANIFEST, _DATA)
_AGAIN = "export it again, or copy all of its files"


@dataclass(frozen=True)
class Artifact:
    """An artifact whose files belong together and are unchanged; ``read_artifact`` makes it.

    The input ``target`` is int64 [B], −1 the top class; the other input is ``input_name``.

    path          NAME.onnx, by which the artifact is called; where it is split no such file exists
    parts         role → file: {"explanation": NAME.onnx}, or {"forward": …, "explain": …} where it is split
    activations   what ``forward`` returns after ``logits``, in order; ``explain`` takes them by these names, and
                  ``logits``, the clip and ``target`` where it needs them; empty where it is not split
    input         "float": the input ``clip``, float32 of clip_shape; "uint8": ``frames``, uint8 of frames_shape
    clip_shape    [B,3,T,H,W] of what the network sees, in model units
    frames_shape  [B,T,H,W,3] of ``frames`` before resizing and cropping; None where the input is "float"
    num_classes   K of the output ``logits`` [B,K]
    precision     of the graph, such as "fp32"
    selection     the arguments of ``select_motion`` inside, and ``alpha`` where the thresholds are calibrated
    info          method, options, model, weights and their hash, clip_spec, class_names, warning, layout, or nulls
    versions      of what exported it
    files         name → SHA-256 of every file but the .json
    sha256        over all that the .json says, the hashes of the other files among it: one name for the artifact
    """

    path: Path
    parts: Mapping[str, Path]
    activations: tuple[str, ...]
    input: str
    clip_shape: tuple[int, ...]
    frames_shape: tuple[int, ...] | None
    num_classes: int
    precision: str
    selection: dict[str, Any]
    info: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, str]
    sha256: str

    def __repr__(self) -> str:
        what = f"{self.info.get('method')} on {self.info.get('model')}"
        shape = "×".join(map(str, self.input_shape))
        taken = f"{self.input_name} {shape}, {self.num_classes} classes, {self.precision}"
        return f"Artifact({self.path.name}, {what}, {taken})"

    @property
    def split(self) -> bool:
        """Whether the artifact is a forward part and an explain part."""
        return "forward" in self.parts

    @property
    def input_name(self) -> str:
        """The name of the input: ``clip`` or ``frames``."""
        return INPUTS[self.input]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the input: clip_shape or frames_shape."""
        return self.clip_shape if self.frames_shape is None else self.frames_shape

    def golden(self) -> dict[str, npt.NDArray[Any]]:
        """Return the golden cases: the input by its name [N,…], ``target`` [N,B], and OUTPUTS with N in front.

        Case 4·i holds clip (batch) i for the top class, then follow the runner-up, the last class, and the clip frozen
        to its middle frame (in artifacts of earlier versions its first) for the class that was the top one.
        """
        with np.load(golden_path(self.path), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in (self.input_name, "target", *OUTPUTS)}


def artifact_path(path: str | Path) -> Path:
    """Return NAME.onnx for any file of an artifact. Raises InputError for a name that none of them has."""
    path = Path(path)
    for suffix in _SUFFIXES:
        # A file NAME.forward.onnx with a NAME.forward.json beside it is a whole artifact of that name.
        if path.name.endswith(suffix) and not (suffix in SPLIT.values() and manifest_path(path).is_file()):
            return path.with_name(path.name.removesuffix(suffix) + ".onnx")
    raise InputError(f"{path} is not an .onnx file: give the NAME.onnx of an artifact")


def manifest_path(path: Path) -> Path:
    """Return the path of the .json beside NAME.onnx."""
    return path.with_suffix(_MANIFEST)


def golden_path(path: Path) -> Path:
    """Return the path of the .golden.npz beside NAME.onnx."""
    return path.with_suffix(_GOLDEN)


def data_path(path: Path) -> Path:
    """Return the path of the .data beside NAME.onnx: weights that the .onnx files refer to."""
    return path.with_suffix(_DATA)


def part_paths(path: Path, split: bool) -> dict[str, Path]:
    """Return role → file of the artifact NAME.onnx."""
    return {role: path.with_suffix(suffix) for role, suffix in (SPLIT if split else WHOLE).items()}


def write_manifest(fields: dict[str, Any], path: Path) -> None:
    """Write the .json of an artifact, with a hash over all that it says."""
    path.write_text(_text({**fields, "manifest_sha256": _digest(fields)}), encoding="utf-8")


def read_artifact(path: str | Path, *, written: bool = False) -> Artifact:
    """Return an artifact by any of its files, after checking that all of them are there, known and unchanged.

    ``written`` says that this process wrote it just now: its files are not read again to be hashed.

    Raises InputError where a file is missing or differs from what was exported, and for an artifact of a newer kind.
    """
    asked, path = Path(path), artifact_path(path)
    manifest = manifest_path(path)
    if not manifest.is_file():
        # A split artifact has no file of the name that it is called by.
        if not any(file.exists() for file in (asked, *part_paths(path, split=True).values())):
            raise InputError(f"{asked} does not exist: give the NAME.onnx of an artifact, its other files beside it")
        raise InputError(f"{manifest} does not exist; it belongs to {path.name}: {_AGAIN}")
    fields, digest = _read_manifest(manifest)
    try:
        hashes = {str(suffix): str(sha256) for suffix, sha256 in fields["files"].items()}
        _check_files(path, hashes, fields["name"], written)
        frames = fields["frames_shape"]
        return Artifact(
            path=path,
            parts=part_paths(path, fields["split"]),
            activations=tuple(fields["activations"]),
            input=fields["input"],
            clip_shape=tuple(fields["clip_shape"]),
            frames_shape=tuple(frames) if frames is not None else None,
            num_classes=fields["num_classes"],
            precision=fields["precision"],
            selection=fields["selection"],
            info=fields["info"],
            versions=fields["versions"],
            files={path.with_suffix(suffix).name: sha256 for suffix, sha256 in hashes.items()},
            sha256=digest,
        )
    except KeyError as error:
        raise InputError(f"{manifest} lacks {error}: {_AGAIN}") from None


def _check_files(path: Path, hashes: dict[str, str], name: str, written: bool) -> None:
    """Check the files beside the manifest against their hashes; ``hashes`` has what follows NAME as keys."""
    for suffix, sha256 in hashes.items():
        file = path.with_suffix(suffix)
        if not file.is_file():
            raise InputError(f"{file} does not exist; an artifact is {len(hashes) + 1} files: {_AGAIN}")
        if not written and sha256_file(file) != sha256:
            raise InputError(f"{file} is not the file that was exported (its hash differs): {_AGAIN}")
    if _DATA in hashes and path.stem != name:
        raise InputError(f"{path} was exported as {name}, and looks for its weights in {name}{_DATA}: keep that name")


def _read_manifest(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text)
        major, minor = (int(part) for part in fields["schema"].split("."))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is damaged or not of an artifact: {_AGAIN}") from None
    # First of all: another kind may have other fields and other hashes.
    if major > SCHEMA[0]:
        raise InputError(
            f"{path} is of schema {major}.{minor}, this version reads {SCHEMA[0]}.x: install a newer selrel-zennit"
        )
    if major < SCHEMA[0]:
        raise InputError(f"{path} is of schema {major}.{minor}, this version reads {SCHEMA[0]}.x: export it again")
    digest = fields.pop("manifest_sha256", None)
    if digest != _digest(fields) or text != _text({**fields, "manifest_sha256": digest}):
        raise InputError(f"{path} is not the file that was exported (its hash differs): {_AGAIN}")
    return dict(fields), str(digest)


def _text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(_text(fields).encode()).hexdigest()
