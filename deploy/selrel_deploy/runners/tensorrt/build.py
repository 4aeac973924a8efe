"""Parse and build one ONNX file by TensorRT-RTX, and say in JSON what it refuses.

    python -m selrel_deploy.runners.tensorrt.build FILE

A process of its own for ``engine_lint``: what goes wrong in a native library ends this process and no other.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MARK = "selrel trt_build: "


def build(path: str) -> dict[str, Any]:
    """Return ``version``, ``plan_bytes`` (0 where nothing was built) and ``refusals``: node, operation, reason."""
    import tensorrt_rtx_bindings as trt

    said: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc, unused-ignore]
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                said.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    found: dict[str, Any] = {"version": trt.__version__, "plan_bytes": 0, "refusals": []}
    if not parser.parse_from_file(path):
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            reason = f"{error.code().name} ({error.func()}: {error.desc()})"
            found["refusals"].append(_refusal(error.node_name(), error.node_operator(), reason))
        return found
    names = [network.get_layer(index).name for index in range(network.num_layers)]
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is not None:
        found["plan_bytes"] = plan.nbytes
        return found
    for message in said:
        named = [name for name in names if name in message]
        found["refusals"].append(_refusal(max(named, key=len, default=""), "", message))
    if not found["refusals"]:
        found["refusals"].append(_refusal("", "", "no engine was built, and nothing was said"))
    return found


def _refusal(node: str, operation: str, reason: str) -> dict[str, str]:
    return {"node": node, "operation": operation, "reason": " ".join(reason.split())}


if __name__ == "__main__":
    print(MARK + json.dumps(build(sys.argv[1])))
