"""Rewrite the selection of an artifact as one node of the TensorRT plugin SelectMotion: for trtexec and Triton.

    python -m selrel_deploy.runners.tensorrt.plugin NAME.onnx NAME.plugin.onnx

kernels/README.md says how the plugin is compiled and given to them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from selrel_zennit.errors import InputError
from selrel_zennit.files import atomic_path

from ...artifact.format import Artifact, read_artifact

PLUGIN = "SelectMotion"
# Runtimes that know the standard operators alone take a node of another domain for what it is.
DOMAIN = "trt.plugins"
THRESHOLDS = "selection_thresholds"

_SETTINGS = {"sign": "absolute", "sigma": "signed", "border": "replicate", "normalise": "none"}
_MASK = "mask_int32"


def with_motion_plugin(artifact: str | Path, path: str | Path) -> Path:
    """Write the part of an artifact that selects to ``path``, with one node SelectMotion in place of the selection.

    Inputs and outputs keep their names, types and shapes; the weights are copied, or stay in the artifact's NAME.data.
    The file is for TensorRT with the plugin loaded, and no artifact: its golden cases are those of the artifact.

    The node takes ``relevance``, and calibrated thresholds as a constant float32 [T]; it gives ``motion_relevance`` and
    the mask as int32, which a cast makes a bool. Its attributes are those of ``select_motion``.

    Raises InputError for a damaged artifact, for a path that is a file of it, and, where the weights are outside, for
    a path in another folder than they are.
    """
    read, path = read_artifact(artifact), Path(path)
    part = read.parts["explain" if read.split else "explanation"]
    if path.suffix != ".onnx":
        raise InputError(f"{path} is no name for an ONNX file: give one that ends in .onnx")
    if path.name in read.files and path.resolve().parent == part.resolve().parent:
        raise InputError(f"{path} is a file of the artifact: give another name, such as {read.path.stem}.plugin.onnx")
    model = onnx.load(part, load_external_data=False)
    outside = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    if outside and path.resolve().parent != part.resolve().parent:
        raise InputError(f"the weights of {part} are in a file beside it: write {path.name} to the same folder")
    _replace_selection(model, read)
    with atomic_path(path) as made:
        made.write_bytes(model.SerializeToString())
    return path


def _replace_selection(model: onnx.ModelProto, artifact: Artifact) -> None:
    graph = model.graph
    inputs = ["relevance"]
    if "thresholds" in artifact.selection:
        inputs.append(THRESHOLDS)
        values = np.asarray(artifact.selection["thresholds"], np.float32)
        graph.initializer.append(numpy_helper.from_array(values, THRESHOLDS))
    selected = ("motion_relevance", _MASK)
    select = helper.make_node(PLUGIN, inputs, selected, name=PLUGIN, domain=DOMAIN, **_attributes(artifact.selection))
    cast = helper.make_node("Cast", [_MASK], ["mask"], name=f"{PLUGIN}/mask", to=onnx.TensorProto.BOOL)
    made = {"motion_relevance", "mask"}
    kept = [node for node in graph.node if made.isdisjoint(node.output)]
    kept = _needed([*kept, select, cast], {value.name for value in graph.output})
    read = {name for node in kept for name in node.input}
    _keep(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read])
    known = {name for node in kept for name in node.output}
    _keep(graph.value_info, [value for value in graph.value_info if value.name in known])
    _keep(graph.node, kept)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _attributes(selection: dict[str, Any]) -> dict[str, Any]:
    """Return the plugin's fields, and the two by which TensorRT's parser finds it."""
    settings = {name: selection.get(name, default) for name, default in _SETTINGS.items()}
    # Beside thresholds the plugin does not look at it; its parser wants every field.
    return {
        "n_sigma": float(selection.get("n_sigma", 0.0)),
        **settings,
        "plugin_version": "1",
        "plugin_namespace": "",
    }


def _needed(nodes: Sequence[onnx.NodeProto], results: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the results depend on, in their order."""
    wanted, kept = set(results), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def _keep(field: Any, values: Sequence[Any]) -> None:
    """Make ``values`` what a repeated field holds."""
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(copies)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file; return 2, after one line, where that cannot be."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 2:
        print("usage: python -m selrel_deploy.runners.tensorrt.plugin NAME.onnx NAME.plugin.onnx", file=sys.stderr)
        return 2
    try:
        print(with_motion_plugin(*given))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
