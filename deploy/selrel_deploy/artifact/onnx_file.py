"""torch → ONNX: a module becomes an ONNX model that says which module each node comes from, and models become files."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir
import torch
from torch import fx, nn
from torch.fx.traceback import preserve_node_meta

from ..compiler.rewriting import module_of
from .format import MODULE

OPSET = 18

# Shapes and scalars stay in the .onnx file, where tools show them.
_SMALLEST_EXTERNAL = 1024
# A page: so that runtimes can map the weights instead of copying them.
_ALIGNMENT = 4096


class Replayed(nn.Module):
    """A graph run node by node after what prepares its first input, so that an export sees where each node is from."""

    def __init__(self, graph: fx.GraphModule, prepare: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()
        self.flat = graph
        self.prepare = prepare

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the graph's outputs."""
        clip = self.prepare(input) if self.prepare is not None else input
        with preserve_node_meta():
            outputs: tuple[torch.Tensor, ...] = fx.Interpreter(self.flat).run(clip, target)
        return outputs


def to_onnx(
    module: nn.Module, inputs: Sequence[torch.Tensor], input_names: Sequence[str], output_names: Sequence[str]
) -> onnx_ir.Model:
    """Return a module as an ONNX model of static shapes, opset 18.

    A node is called MODULE/NAME and holds MODULE, the path of the module that it comes from, in its metadata; a node
    of the relevance that of the nearest layer before it. Nothing else of the machine that exports is kept.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _captured(module, tuple(inputs)),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
            verbose=False,
        )
    assert program is not None
    assert program.exported_program is not None
    modules = {node.name: _module(node) for node in program.exported_program.graph.nodes}
    model: onnx_ir.Model = program.model
    _clean(model, modules)
    _share_linear_weights(model.graph)
    return model


def _captured(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    """Return a module's operations, which the exporter does not trace once more where it takes them as they are.

    It decomposes what its functions do not cover, and traces anew for that: a third of its time. A compiled graph has
    nothing that is in its table, or that writes in place.
    """
    captured = torch.export.export(module, inputs, strict=False)
    decompose = captured.run_decompositions
    operations = [node.target for node in captured.graph.nodes if node.op == "call_function"]

    def decompose_where_needed(decomp_table: Any = None) -> torch.export.ExportedProgram:
        plain = decomp_table is not None and not any(
            operation in decomp_table or getattr(getattr(operation, "_schema", None), "is_mutable", False)
            for operation in operations
        )
        return captured if plain else decompose(decomp_table)

    captured.run_decompositions = decompose_where_needed
    return captured


def _module(node: fx.Node) -> str | None:
    """Return the module that a node comes from; of a first layer's relevance, which has none before it, that layer."""
    path = module_of(node)
    for source in node.all_input_nodes if path is None else ():
        for user in source.users:
            path = path or user.meta.get("custom", {}).get("module")
    return path


def _clean(model: onnx_ir.Model, modules: Mapping[str, str | None]) -> None:
    """Name nodes by their modules, and drop the exporter's notes: traces of its calls, with its paths, among them."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name = "explanation"
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        # Such as "%convolution_3 : [num_users=1] = call_function[…]".
        traced = node.metadata_props.get("pkg.torch.onnx.fx_node", "").partition(" :")[0].removeprefix("%")
        path = modules.get(traced)
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
        if path is not None:
            node.metadata_props[MODULE] = path
            node.name = f"{path}/{(node.name or '').removeprefix('node_')}"


def _share_linear_weights(graph: onnx_ir.Graph) -> None:
    """Write R·W as a transposed convolution of one voxel where a linear layer x·Wᵀ has the same weight.

    The same value from the same numbers; of a product TensorRT would keep a transposed copy of the weight, 203 MB in
    C3D.
    """
    columns: dict[onnx_ir.Value, onnx_ir.Value] = {}
    for node in list(graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or weight.name not in graph.initializers or not any(map(_is_linear, weight.consumers())):
            continue
        rows, result = node.inputs[0], node.outputs[0]
        assert rows is not None
        assert rows.shape is not None
        assert weight.shape is not None
        if len(rows.shape) != 2:
            continue
        for value in (rows, weight):
            if value not in columns:
                columns[value] = _reshaped(graph, node, value, [*value.shape, 1])  # type: ignore[misc]
        product = onnx_ir.node("ConvTranspose", [columns[rows], columns[weight]])
        product.name, product.outputs[0].name = node.name, f"{result.name}_column"
        product.metadata_props.update(node.metadata_props)
        product.outputs[0].type = result.type
        product.outputs[0].shape = onnx_ir.Shape([*result.shape, 1])  # type: ignore[misc]
        graph.insert_before(node, product)
        flat = _reshaped(graph, node, product.outputs[0], list(result.shape))  # type: ignore[arg-type]
        onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], [], [result], [flat])


def _is_linear(node: onnx_ir.Node) -> bool:
    return node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1


def _reshaped(graph: onnx_ir.Graph, before: onnx_ir.Node, value: onnx_ir.Value, shape: list[Any]) -> onnx_ir.Value:
    """Insert a reshape before a node, and return what it gives."""
    sizes = onnx_ir.tensor([int(size) for size in shape], dtype=onnx_ir.DataType.INT64)
    name = f"{value.name}_as_{'x'.join(map(str, shape))}"
    constant = onnx_ir.Value(
        name=f"{name}_shape",
        shape=onnx_ir.Shape(sizes.shape.numpy()),
        type=onnx_ir.TensorType(sizes.dtype),
        const_value=sizes,
    )
    graph.register_initializer(constant)
    made = onnx_ir.node("Reshape", [value, constant], name=f"{before.name}/{name}")
    made.metadata_props.update(before.metadata_props)
    made.outputs[0].name, made.outputs[0].type, made.outputs[0].shape = name, value.type, onnx_ir.Shape(shape)
    graph.insert_before(before, made)
    return made.outputs[0]


def constant_bytes(model: onnx_ir.Model) -> int:
    """Return the bytes of all initializers."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def write_models(models: Mapping[Path, onnx_ir.Model], data: Path | None) -> None:
    """Write models; with ``data``, a file in the same folder, the weights of all of them go there, equal ones once."""
    with ExitStack() as stack:
        store = _Store(stack.enter_context(open(data, "wb")), data) if data is not None else None
        for path, model in models.items():
            values = {name: value.const_value for name, value in model.graph.initializers.items()}
            try:
                for name, value in model.graph.initializers.items():
                    if store is not None and value.const_value is not None:
                        value.const_value = store.external(value.const_value, name)
                onnx_ir.save(model, path)
            finally:
                for name, constant in values.items():
                    model.graph.initializers[name].const_value = constant


class _Store:
    """A file of weights, each distinct one written once."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.places: dict[bytes, int] = {}

    def external(self, tensor: onnx_ir.TensorProtocol, name: str) -> onnx_ir.TensorProtocol:
        """Return a reference to the tensor in the file; a small one is returned as it is."""
        if tensor.nbytes < _SMALLEST_EXTERNAL:
            return tensor
        content = tensor.tobytes()
        digest = hashlib.sha256(content).digest()
        if digest not in self.places:
            self.file.write(bytes(-self.file.tell() % _ALIGNMENT))
            self.places[digest] = self.file.tell()
            self.file.write(content)
        return onnx_ir.ExternalTensor(
            self.path.name,
            self.places[digest],
            len(content),
            tensor.dtype,
            shape=onnx_ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=self.path.parent,
        )
