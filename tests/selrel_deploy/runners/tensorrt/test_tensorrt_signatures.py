"""Every call of the tensorrt runner exists in the real libraries: held through the stand-ins that it runs on."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from . import gpu_stand_in, tensorrt_stand_in

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra trt-lint")
core = pytest.importorskip("cuda.core", reason="needs the extra gpu")


def overloads(function: Any) -> list[list[tuple[str, bool]]]:
    """Return the parameters, without self, of each form of a function of pybind11: name, whether it has a default."""
    found = []
    for arguments in re.findall(rf"^(?:\d+\. )?{function.__name__}\(self: [^,)]+(.*)\) -> ", function.__doc__, re.M):
        named = re.findall(r", (\w+): [^=,]+(=)?", arguments)
        found.append([(name, bool(default)) for name, default in named])
    return found


def calls(made: type) -> dict[str, Any]:
    """Return the public methods of a stand-in, and its __init__ where it has arguments."""
    return {
        name: value
        for name, value in vars(made).items()
        if inspect.isfunction(value) and (not name.startswith("_") or name == "__init__")
    }


# Made by TensorRT itself, and never by a caller.
MADE = {"INetworkDefinition", "ITensor", "ITimingCache", "IBuilderConfig", "ICudaEngine", "IExecutionContext"}


@pytest.mark.parametrize("made", tensorrt_stand_in.tensorrt_classes(), ids=lambda made: made.__name__)
def test_tensorrt_has_every_call(made: type) -> None:
    real = getattr(trt, made.__name__)
    for name, function in calls(made).items():
        if name == "__init__" and made.__name__ in MADE:
            continue
        given = [parameter for parameter in inspect.signature(function).parameters if parameter != "self"]
        forms = overloads(getattr(real, name))
        assert forms, f"{made.__name__}.{name} has no signature to read"
        assert any(
            given == [known for known, _ in form[: len(given)]] and all(default for _, default in form[len(given) :])
            for form in forms
        ), f"{made.__name__}.{name}({', '.join(given)}) is none of {forms}"
    for name, value in vars(made).items():
        if isinstance(value, property):
            assert isinstance(getattr(real, name), property), f"{made.__name__}.{name}"


def test_a_wrong_parameter_would_be_found() -> None:
    assert overloads(trt.IExecutionContext.set_tensor_address) == [[("name", False), ("memory", False)]]
    assert overloads(trt.Builder.create_network) == [[("flags", True)]]
    assert [("serialized_engine", False)] in overloads(trt.Runtime.deserialize_cuda_engine)


def test_tensorrt_has_every_name() -> None:
    for version in ("10.3.0", "11.4.0"):
        stand_in = tensorrt_stand_in.tensorrt(version)
        # The 8.6 and 10 stand-ins have flags that 11 dropped; of RTX all of 11's are asked.
        for group in ("DataType", "NetworkDefinitionCreationFlag", *(["BuilderFlag"] if version > "11" else [])):
            for name in vars(getattr(stand_in, group)):
                assert name in getattr(trt, group).__members__, f"{group}.{name}"
    assert trt.ILogger.Severity.ERROR > trt.ILogger.Severity.INTERNAL_ERROR
    assert trt.DataType.HALF.name == "HALF"
    # Read, not called.
    for made, name in (("ITensor", "name"), ("IExecutionContext", "is_stream_capturable")):
        assert hasattr(getattr(trt, made), name)


@pytest.mark.parametrize("made", gpu_stand_in.CUDA_CLASSES, ids=lambda made: made.__name__)
def test_cuda_core_has_every_call(made: type) -> None:
    real = getattr(core, made.__name__, None) or getattr(__import__("cuda.core.graph").core.graph, made.__name__)
    for name, function in calls(made).items():
        if name in ("__init__", "put"):
            continue
        known = inspect.signature(getattr(real, name)).parameters
        for parameter in inspect.signature(function).parameters.values():
            assert parameter.name in known, f"{made.__name__}.{name}: {parameter.name}"
            assert parameter.kind == known[parameter.name].kind or parameter.name == "self"
    for name in ("handle", "size") if made.__name__ == "Buffer" else ("handle",) if made.__name__ == "Stream" else ():
        assert hasattr(real, name)
