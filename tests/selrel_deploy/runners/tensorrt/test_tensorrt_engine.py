"""Engines of TensorRT: really built by TensorRT-RTX, kept in a cache, built anew where they do not belong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import selrel_zennit as sr
from selrel_deploy import read_artifact
from selrel_deploy.runners.tensorrt import engine as tensorrt_engine
from selrel_deploy.runners.tensorrt.engine import EngineKey, build_plan, load_engine, make_log

from . import tensorrt_stand_in

KEY = EngineKey("a" * 64, "explanation", "tensorrt-10.3.0", "NVIDIA H200-sm90", tf32=False, dropped=())


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SELREL_ENGINE_CACHE", str(tmp_path / "engines"))
    return tmp_path / "engines"


@pytest.mark.slow
def test_tensorrt_rtx_really_builds(artifacts: dict[str, Path]) -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra trt-lint")
    log = make_log(trt)
    whole, _ = build_plan(trt, log, artifacts["whole"], "fp32")
    unselected, _ = build_plan(trt, log, artifacts["whole"], "fp32", tf32=True, dropped=("motion_relevance", "mask"))
    # Weights in a file beside it.
    forward, _ = build_plan(trt, log, read_artifact(artifacts["split"]).parts["forward"], "fp32")
    assert log.said == []
    assert 0 < len(forward) < len(unselected) < len(whole)


def test_what_tensorrt_rtx_refuses(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra trt-lint")
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Hardmax2", ["x"], ["y"], name="odd")], "g", ends[:1], ends[1:])
    path = tmp_path / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    with pytest.raises(sr.InputError, match=r"does not take odd\.onnx .node 0: .*selrel export --lint") as raised:
        build_plan(trt, make_log(trt), path, "fp32")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("version", "precision", "network", "flags"),
    [
        ("8.6.1", "fp32", 1, []),
        ("8.6.1", "fp32+int8", 1, ["INT8"]),
        ("10.3.0", "fp16+int8", 2, []),
        ("11.4.0", "fp16", 2, []),
    ],
)
def test_flags_by_what_there_is(
    artifacts: dict[str, Path], version: str, precision: str, network: int, flags: list[str]
) -> None:
    trt = tensorrt_stand_in.tensorrt(version)
    build_plan(trt, make_log(trt), artifacts["whole"], precision)
    build_plan(trt, make_log(trt), artifacts["whole"], precision, tf32=True)
    strict, loose = trt.builds
    assert (strict["network"], strict["flags"], loose["flags"]) == (network, flags, sorted([*flags, "TF32"]))


def test_a_tensorrt_without_any_flag_is_strongly_typed(artifacts: dict[str, Path]) -> None:
    trt = tensorrt_stand_in.tensorrt("12.0.0")
    del trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    build_plan(trt, make_log(trt), artifacts["whole"], "fp16+int8")
    assert trt.builds[0]["network"] == 0


def test_fp16_is_refused_where_it_would_spread() -> None:
    trt = tensorrt_stand_in.tensorrt("8.6.1")
    with pytest.raises(sr.InputError, match=r"TensorRT 8\.6\.1 cannot be told which layers are fp16: export fp32"):
        build_plan(trt, make_log(trt), Path("any.onnx"), "fp32+fp16")


def test_memory_that_a_build_lacks(artifacts: dict[str, Path]) -> None:
    trt = tensorrt_stand_in.tensorrt()
    trt.broken = "build"
    with pytest.raises(sr.InputError, match=r"no engine of whole\.onnx because the GPU has too little free memory"):
        build_plan(trt, make_log(trt), artifacts["whole"], "fp32")


def opened(trt: Any, path: Path, key: EngineKey = KEY) -> Any:
    log = make_log(trt)
    return load_engine(trt, log, trt.Runtime(log), path, key, "fp32")


def test_engines_are_kept(artifacts: dict[str, Path], cache: Path) -> None:
    trt = tensorrt_stand_in.tensorrt()
    for _ in range(2):
        assert opened(trt, artifacts["whole"]).num_io_tensors == 7
    assert [built["timings"] for built in trt.builds] == [""]
    assert sorted(file.name for file in cache.iterdir()) == sorted((KEY.plan.name, KEY.timings.name))
    assert KEY.plan.name.startswith("aaaaaaaaaaaa-explanation-tensorrt_10.3.0-NVIDIA_H200_sm90-")
    assert KEY.timings.name == "timings-tensorrt_10.3.0-NVIDIA_H200_sm90.cache"
    # Another artifact, GPU, version or setting has another file; what was measured is used again.
    others = [("artifact", "b" * 64), ("part", "forward"), ("gpu", "Orin-sm87"), ("runtime", "tensorrt-10.16.0")]
    keys = [
        EngineKey(**{**KEY.__dict__, name: value}) for name, value in [*others, ("tf32", True), ("dropped", ("mask",))]
    ]
    assert len({key.plan for key in (KEY, *keys)}) == 7
    opened(trt, artifacts["whole"], keys[0])
    assert trt.builds[1]["timings"] == "measured "


def test_a_plan_of_another_version_is_built_anew(artifacts: dict[str, Path], cache: Path) -> None:
    old, new = tensorrt_stand_in.tensorrt("10.3.0"), tensorrt_stand_in.tensorrt("10.16.0")
    opened(old, artifacts["whole"])
    # The same key: as if somebody had copied the file.
    assert opened(new, artifacts["whole"]).num_io_tensors == 7
    assert len(new.builds) == 1
    for damaged in (b"", b"\x00 not a plan"):
        KEY.plan.write_bytes(damaged)
        opened(new, artifacts["whole"])
    assert len(new.builds) == 3
    KEY.timings.write_bytes(b"of another device")
    opened(new, artifacts["whole"], EngineKey(**{**KEY.__dict__, "part": "forward"}))
    assert new.builds[3]["timings"] == ""


def test_a_cache_that_cannot_be_written(artifacts: dict[str, Path], cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    trt = tensorrt_stand_in.tensorrt()
    for _ in range(2):
        assert opened(trt, artifacts["whole"]) is not None
    assert len(trt.builds) == 2


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SELREL_ENGINE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tensorrt_engine.cache_folder() == tmp_path / "selrel_deploy" / "tensorrt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tensorrt_engine.cache_folder() == Path.home() / ".cache" / "selrel_deploy" / "tensorrt"
