"""Artifacts: NAME.onnx, NAME.json and NAME.golden.npz, read and checked. NumPy and the standard library alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selrel_zennit.errors import InputError
from selrel_zennit.files import sha256_file

SCHEMA = (1, 0)
OUTPUTS = ("logits", "explained_target", "relevance", "motion_relevance", "mask")

_AGAIN = "export it again, or copy all three files"


@dataclass(frozen=True)
class Artifact:
    """An artifact whose files belong together and are unchanged; ``read_artifact`` makes it.

    clip_shape    [B,3,T,H,W] of the input ``clip``, float32; the input ``target`` is int64 [B], −1 the top class
    num_classes   K of the output ``logits`` [B,K]
    precision     of the graph, such as "fp32"
    selection     the settings of the motion selection inside
    info          method, options, model, weights and their hash, clip_spec; nulls where they are unknown
    versions      of what exported it
    sha256        of the .onnx file
    """

    path: Path
    clip_shape: tuple[int, ...]
    num_classes: int
    precision: str
    selection: dict[str, Any]
    info: dict[str, Any]
    versions: dict[str, str]
    sha256: str

    def golden(self) -> dict[str, npt.NDArray[Any]]:
        """Return the golden cases: ``clip`` [N,B,3,T,H,W], ``target`` [N,B], and each of OUTPUTS with N in front."""
        with np.load(golden_path(self.path), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("clip", "target", *OUTPUTS)}


def manifest_path(path: Path) -> Path:
    """Return the path of the .json beside an .onnx file."""
    return path.with_suffix(".json")


def golden_path(path: Path) -> Path:
    """Return the path of the .golden.npz beside an .onnx file."""
    return path.with_suffix(".golden.npz")


def write_manifest(fields: dict[str, Any], path: Path) -> None:
    """Write the .json of an artifact, with a hash over all that it says."""
    path.write_text(_text({**fields, "manifest_sha256": _digest(fields)}), encoding="utf-8")


def read_artifact(path: str | Path) -> Artifact:
    """Return the artifact of an .onnx file, after checking that its three files are there, known and unchanged.

    Raises InputError where a file is missing or differs from what was exported, and for an artifact of a newer kind.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise InputError(f"{path} is not an .onnx file: give the NAME.onnx of an artifact")
    for file in (path, manifest_path(path), golden_path(path)):
        if not file.is_file():
            raise InputError(f"{file} does not exist; an artifact is three files: {_AGAIN}")
    fields = _read_manifest(manifest_path(path))
    for file, key in ((path, "onnx_sha256"), (golden_path(path), "golden_sha256")):
        if sha256_file(file) != fields.get(key):
            raise InputError(f"{file} is not the file that was exported (its hash differs): {_AGAIN}")
    try:
        return Artifact(
            path=path,
            clip_shape=tuple(fields["clip_shape"]),
            num_classes=fields["num_classes"],
            precision=fields["precision"],
            selection=fields["selection"],
            info=fields["info"],
            versions=fields["versions"],
            sha256=fields["onnx_sha256"],
        )
    except KeyError as error:
        raise InputError(f"{manifest_path(path)} lacks {error}: {_AGAIN}") from None


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text)
        major, minor = (int(part) for part in fields["schema"].split("."))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is damaged or not of an artifact: {_AGAIN}") from None
    # First of all: a newer kind may have other fields and other hashes.
    if major > SCHEMA[0]:
        raise InputError(
            f"{path} is of schema {major}.{minor}, this version reads {SCHEMA[0]}.x: install a newer selrel-zennit"
        )
    digest = fields.pop("manifest_sha256", None)
    if digest != _digest(fields) or text != _text({**fields, "manifest_sha256": digest}):
        raise InputError(f"{path} is not the file that was exported (its hash differs): {_AGAIN}")
    return dict(fields)


def _text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(_text(fields).encode()).hexdigest()
