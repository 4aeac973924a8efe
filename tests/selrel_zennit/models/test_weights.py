"""Weight files: what is read, what is refused, what fits."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from c3d_files import BLOCKS, CLASSIFIER, FEATURES, MMACTION2, OWN, State, error_of, full, tiny
from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.models.c3d import C3D
from selrel_zennit.models.c3d_layouts import recognise
from selrel_zennit.models.weights import check_state, read_weights

# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_safetensors_are_known_by_suffix_or_by_content(tmp_path: Path, name: str) -> None:
    state = tiny(OWN)
    save_file(state, tmp_path / name)
    torch.testing.assert_close(read_weights(tmp_path / name), state, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["c3d.pt", "c3d.pth.tar", "c3d.pickle", "c3d.safetensors"])
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy pickle"])
def test_what_torch_saved_is_read_whatever_its_name(tmp_path: Path, name: str, as_zip: bool) -> None:
    state = tiny(OWN)
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=as_zip)
    torch.testing.assert_close(read_weights(tmp_path / name), state, rtol=0, atol=0)


@pytest.mark.parametrize("container", ["state_dict", "model_state_dict", "model", "net"])
@pytest.mark.parametrize("wrapper", ["", "module.", "module._orig_mod."])
def test_checkpoints_and_wrapped_networks_are_unwrapped(tmp_path: Path, container: str, wrapper: str) -> None:
    state = tiny(OWN)
    wrapped = {wrapper + key: value for key, value in state.items()}
    torch.save({"epoch": 3, container: wrapped, "opt_dict": {"lr": 0.1}}, tmp_path / "a.pth")
    torch.testing.assert_close(read_weights(tmp_path / "a.pth"), state, rtol=0, atol=0)


def test_parameters_and_counters_are_read(tmp_path: Path) -> None:
    torch.save({"a": nn.Parameter(torch.ones(2)), "steps": torch.tensor(7)}, tmp_path / "a.pt")
    state = read_weights(str(tmp_path / "a.pt"))
    assert not state["a"].requires_grad
    assert state["steps"].dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([0.5, -3.0, 0.25], dtype=dtype)
    save_file({"a": values}, tmp_path / "a.safetensors")
    read = read_weights(tmp_path / "a.safetensors")["a"]
    assert read.dtype == torch.float32
    assert read.tolist() == [0.5, -3.0, 0.25]


# --- refusing ------------------------------------------------------------------------------------------------------


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["torch zip", "torch legacy", "pickle 2", "pickle 5"])
def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path: Path, how: str) -> None:
    path, target = tmp_path / "evil.pth", tmp_path / "was here"
    content = {"conv1.weight": torch.ones(1), "x": Attack(target)}
    if how.startswith("torch"):
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch zip")
    else:
        path.write_bytes(pickle.dumps(Attack(target), protocol=int(how[-1])))
    error_of(lambda: read_weights(path), str(path), "not unpickled", "safetensors")
    assert not target.exists()
    # The control: the file does what it is made for where it is unpickled.
    if not how.startswith("torch"):
        pickle.loads(path.read_bytes())
        assert target.exists()


def test_the_refused_object_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "model": ClipSpec()}, tmp_path / "a.pt")
    error_of(lambda: read_weights(tmp_path / "a.pt"), "selrel_zennit.clips.spec.ClipSpec")


def saved(state: State, as_zip: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=as_zip)
    return buffer.getvalue()


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_said_to_be_damaged(tmp_path: Path, kind: str, kept: float) -> None:
    whole = tmp_path / "whole.safetensors"
    if kind == "safetensors":
        save_file(tiny(OWN), whole)
    else:
        whole.write_bytes(saved(tiny(OWN), as_zip=kind == "zip"))
    read_weights(whole)
    cut = tmp_path / f"cut.{'safetensors' if kind == 'safetensors' else 'pt'}"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * kept)])
    error_of(lambda: read_weights(cut), str(cut), "damaged")


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"conv1.weight 0.1 0.2\n" * 40, "not a weight file"),
        (b"\x00\x00\x00\x20ftypisom" + bytes(600), "not a weight file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "not a weight file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 312\n", "git lfs pull"),
        (_tar(), "tar file"),
        (pickle.dumps({"conv1.weight": [1.0]}, protocol=2), "no file of PyTorch"),
        (saved({}), "an empty dict"),
        (saved({"epoch": 3, "lr": 0.1}), "a dict of epoch, lr"),  # type: ignore[dict-item]
        (saved(torch.ones(3)), "a Tensor"),  # type: ignore[arg-type]
        (saved({"a": torch.ones(1), "epoch": 3}), "'epoch' holds a int"),  # type: ignore[dict-item]
        (saved({"a": torch.ones(2).to_sparse()}), "a is not a dense tensor"),
        (saved({"a": torch.ones(2, device="meta")}), "a is not a dense tensor"),
        (saved({"a": torch.ones(2, dtype=torch.complex64)}), "a is not a dense tensor"),
    ],
)
def test_what_is_no_weight_file_is_said_so(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "some.pth"
    path.write_bytes(content)
    error_of(lambda: read_weights(path), str(path), says)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    error_of(lambda: read_weights(tmp_path / "no.pt"), str(tmp_path / "no.pt"), "does not exist")
    error_of(lambda: read_weights(tmp_path), str(tmp_path), "cannot be read")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_program_is_refused(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "a.pt")  # type: ignore[no-untyped-call]
    recwarn.clear()
    error_of(lambda: read_weights(tmp_path / "a.pt"), "TorchScript", "state_dict()")
    assert not recwarn.list


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_values_that_are_not_finite_are_named(tmp_path: Path, value: float, suffix: str) -> None:
    state = tiny(OWN)
    state["conv3b.weight"][1, 2] = value
    path = tmp_path / f"a.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    error_of(lambda: read_weights(path), str(path), "conv3b.weight", "NaN or infinity")


def test_a_number_too_large_for_float32_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "a.pt")
    error_of(lambda: read_weights(tmp_path / "a.pt"), "infinity")


# --- fitting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modules", [OWN, FEATURES + CLASSIFIER, MMACTION2, BLOCKS])
def test_a_file_of_the_real_shapes_fits_the_network(tmp_path: Path, modules: list[str]) -> None:
    theirs = [f"{module}.{parameter}" for module in modules for parameter in ("weight", "bias")]
    # Expanded tensors are saved as their one number.
    torch.save(dict(zip(theirs, full().values(), strict=True)), tmp_path / "c3d.pth")
    with torch.device("meta"):
        network = C3D(101)
    _, state, _ = recognise(read_weights(tmp_path / "c3d.pth"))
    check_state(state, network.state_dict(), "c3d.pth", 101)
    assert sum(tensor.numel() for tensor in state.values()) == 78_409_573


@pytest.mark.parametrize("num_classes", [101, None])
def test_another_number_of_classes_names_the_option(num_classes: int | None) -> None:
    message = error_of(lambda: check_state(full(487), full(101, device="meta"), "f.pt", num_classes))
    assert message.startswith("f.pt holds 487 classes, the model was asked for 101: pass --num-classes 487")


def test_a_backbone_has_no_class_layer() -> None:
    state = {key: value for key, value in full().items() if not key.startswith("fc8")}
    error_of(lambda: check_state(state, full(device="meta"), "f.pt", 101), "f.pt", "no class layer (fc8)")


def test_every_other_misfit_is_listed_and_counted() -> None:
    state = full()
    del state["conv1.bias"]
    for number in range(5):
        state[f"bn{number}.weight"] = torch.ones(1)
    state["fc6.weight"] = torch.zeros(4096, 512)
    message = error_of(lambda: check_state(state, full(device="meta"), "f.pt", 101), "f.pt does not fit")
    assert "missing: conv1.bias;" in message
    assert "bn0.weight, bn1.weight, bn2.weight and 2 more" in message
    assert "fc6.weight (4096, 512) instead of (4096, 8192)" in message
    assert "--num-classes" not in message


def test_a_class_layer_for_other_features_is_no_matter_of_classes() -> None:
    state = full()
    state["fc8.weight"] = torch.zeros(101, 2048)
    message = error_of(lambda: check_state(state, full(device="meta"), "f.pt", 101), "fc8.weight (101, 2048)")
    assert "--num-classes" not in message


def test_a_header_that_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    for size in range(1, 400):
        save_file({"a": torch.ones(2)}, path, metadata={"pad": "x" * size})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert torch.equal(read_weights(path)["a"], torch.ones(2))
