"""engine_lint: what TensorRT would refuse of an artifact, named before a device does.

TensorRT-RTX's parser and builder read every part as a device would and build its engine; they need no GPU. They run in
a process of their own: on a machine without a driver, a native library may end the process that it is in.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selrel_zennit.errors import InputError

from ...artifact.format import MODULE, Artifact, read_artifact
from .build import MARK

_NEEDS = "tensorrt_rtx_bindings"


@dataclass(frozen=True)
class Refusal:
    """A node that TensorRT does not take. ``module`` is the path of the model's module it comes from, where known."""

    part: str
    node: str
    operation: str
    module: str | None
    reason: str

    def __str__(self) -> str:
        place = f" (module {self.module})" if self.module else ""
        return f"{self.part}: {self.operation or 'the graph'} {self.node}{place}: {self.reason}"


@dataclass(frozen=True)
class Report:
    """What TensorRT says of each part, by role: refusals, and bytes of the plans that were built."""

    version: str
    refusals: list[Refusal]
    plan_bytes: dict[str, int]


def lint(path: str | Path) -> list[Refusal]:
    """Return what TensorRT-RTX refuses of an artifact, or of any ONNX file; empty where every part builds.

    Raises InputError for a damaged artifact, and where the extra trt-lint is not installed.
    """
    return build(path).refusals


def build(path: str | Path | Artifact) -> Report:
    """Parse and build every part of an artifact, or an ONNX file; see ``lint``. The plans are thrown away."""
    if isinstance(path, Artifact):
        parts = path.parts
    else:
        path = Path(path)
        parts = read_artifact(path).parts if path.with_suffix(".json").is_file() else {"explanation": path}
    if not installed():
        raise InputError("the check needs TensorRT-RTX's parser: pip install 'selrel-zennit[trt-lint]'")
    version, refusals, plans = "", [], {}
    for role, file in parts.items():
        found = _in_a_process(file)
        version = found["version"]
        modules = _modules(file) if found["refusals"] else {}
        for refusal in found["refusals"]:
            # A node may have become several layers, each called after it.
            name = next((name for name in modules if refusal["node"].startswith(name)), refusal["node"])
            operation, module = modules.get(name, (refusal["operation"], None))
            refusals.append(Refusal(file.name, name, operation, module, refusal["reason"]))
        if found["plan_bytes"]:
            plans[role] = found["plan_bytes"]
    return Report(version, refusals, plans)


def installed() -> bool:
    """Return whether the extra trt-lint is there. Nothing is loaded."""
    return importlib.util.find_spec(_NEEDS) is not None


def _in_a_process(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file} does not exist: give the NAME.onnx of an artifact")
    command = [sys.executable, "-m", f"{__package__}.build", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answers = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not answers:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise InputError(
            f"TensorRT-RTX ended with code {done.returncode} while it built {file} (it said: {said}): "
            "build the file on the device instead"
        )
    found: dict[str, Any] = json.loads(answers[-1])
    return found


def _modules(file: Path) -> dict[str, tuple[str, str | None]]:
    """Return node → (operation, module) of an ONNX file, longest names first."""
    import onnx

    nodes = onnx.load(file, load_external_data=False).graph.node
    said = {
        node.name: (node.op_type, next((entry.value for entry in node.metadata_props if entry.key == MODULE), None))
        for node in nodes
        if node.name
    }
    return dict(sorted(said.items(), key=lambda entry: -len(entry[0])))
