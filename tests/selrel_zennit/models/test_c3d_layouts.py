"""The key layouts of public C3D files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from c3d_files import BLOCKS, CLASSIFIER, FEATURES, MMACTION2, OWN, State, error_of, tiny
from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.models.c3d_layouts import LAYOUTS, VARIANTS, recognise
from selrel_zennit.models.weights import check_state, read_weights

# --- layouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "classes", "name"),
    [
        (OWN, 101, "c3d"),
        (OWN, 487, "c3d-sports1m"),
        (FEATURES + CLASSIFIER, 487, "sequential"),
        (FEATURES + CLASSIFIER, 101, "sequential"),
        (MMACTION2, 101, "mmaction2"),
        (BLOCKS, 101, "hiley-blocks"),
    ],
)
def test_public_layouts_become_ours(modules: list[str], classes: int, name: str) -> None:
    found, state, spec = recognise(tiny(modules, classes))
    assert found == name
    assert spec == next(layout.spec for layout in LAYOUTS if layout.name == name)
    torch.testing.assert_close(state, tiny(OWN, classes), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("modules", "name"),
    [
        (OWN[:10], "c3d"),
        (FEATURES + CLASSIFIER[:2], "sequential"),
        (MMACTION2[:10], "mmaction2"),
        ([module.removeprefix("backbone.") for module in MMACTION2[:10]], "mmaction2"),
    ],
)
def test_backbones_are_recognised_and_then_refused(modules: list[str], name: str) -> None:
    found, state, _ = recognise(tiny(modules))
    assert found == name
    assert list(state) == list(tiny(OWN[:10]))
    error_of(lambda: check_state(state, tiny(OWN), "f.pt", 101), "no class layer (fc8)")


def test_a_file_that_holds_each_layer_twice() -> None:
    state = {**tiny(OWN), **tiny(FEATURES + CLASSIFIER)}
    name, converted, _ = recognise(state)
    assert name == "hiley-vgg"
    torch.testing.assert_close(converted, tiny(OWN), rtol=0, atol=0)
    state["features.8.bias"] = state["features.8.bias"] + 1
    error_of(lambda: recognise(state), "conv3b.bias", "features.8.bias")


def test_one_missing_and_one_extra_key_are_left_for_the_check() -> None:
    state = tiny(OWN)
    del state["conv5b.bias"]
    state["bn1.running_mean"] = torch.ones(1)
    name, converted, _ = recognise(state)
    assert name == "c3d"
    message = error_of(lambda: check_state(converted, tiny(OWN), "f.pt", 101))
    assert "missing: conv5b.bias" in message
    assert "bn1.running_mean" in message


def test_an_unknown_layout_lists_the_known_ones() -> None:
    state = {f"stem.{number}.weight": torch.ones(1) for number in range(30)}
    message = error_of(lambda: recognise(state), "stem.0.weight", "c3d", "sequential", "mmaction2", "hiley-blocks")
    assert "stem.3" not in message


def test_the_specs_are_those_of_the_sources() -> None:
    specs = {layout.name: layout.spec for layout in LAYOUTS}
    assert specs["c3d"] == specs["hiley-blocks"] == specs["hiley-vgg"] == ClipSpec()
    sports = specs["c3d-sports1m"]
    assert (sports.channel_order, sports.short_side, sports.mean) == ("BGR", (128, 171), (90.25, 97.66, 101.41))
    mmaction2 = specs["mmaction2"]
    assert (mmaction2.channel_order, mmaction2.short_side, mmaction2.mean) == ("RGB", 128, (104.0, 117.0, 128.0))
    assert (specs["sequential"].channel_order, specs["sequential"].mean) == ("BGR", (90.0, 98.0, 102.0))
    assert VARIANTS["jfzhang95"].stride == 4
    assert all(spec.shape == (3, 16, 112, 112) for spec in [*specs.values(), *VARIANTS.values()])


def test_a_real_file_from_disk_to_network(tmp_path: Path) -> None:
    """Narrow layers in the public layout of half precision: read, renamed, checked, loaded."""
    modules: list[nn.Module] = [nn.Conv3d(3, 4, 3), *(nn.Conv3d(4, 4, 3) for _ in range(7))]
    modules += [nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 5)]
    network = nn.Sequential()
    state: State = {}
    for own, theirs, module in zip(OWN, MMACTION2, modules, strict=True):
        network.add_module(own, module)
        state |= {f"module.{theirs}.{key}": value.half() for key, value in module.state_dict().items()}
    expected = {key: value.half().float() for key, value in network.state_dict().items()}
    torch.save({"meta": {"epoch": 45}, "state_dict": state}, tmp_path / "c3d.pth")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    name, renamed, _ = recognise(read_weights(tmp_path / "c3d.pth"))
    check_state(renamed, network.state_dict(), "c3d.pth", 5)
    network.load_state_dict(renamed)
    assert name == "mmaction2"
    torch.testing.assert_close(dict(network.state_dict()), expected, rtol=0, atol=0)
