"""Several methods on the command line: the figures of each, and the grid of all."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

import selrel_zennit as sr
from selrel_zennit.cli import main

SMALL = ["--model", "networks:small_c3d", "--weights", "own", "--reference", "none", "--no-frozen"]


@pytest.mark.parametrize("rows", ["time", "clips"])
def test_the_grid_of_several_methods(tmp_path, capsys, rows):
    out = tmp_path / "out"
    grid = ["--method", "gradient, gradcam", "--grid-rows", rows, "--grid-width", "single"]
    assert main(["explain", *SMALL, *grid, "--out", str(out)]) == 0
    assert "grid.png, grid.pdf, grid.svg" in capsys.readouterr().out
    picture = cv2.imread(str(out / "grid.png"))
    assert picture.shape[1] == 2100  # 3.5 inches at 600 dots
    assert (out / "grid.pdf").read_bytes().startswith(b"%PDF")
    assert "gradcam" in (out / "grid.svg").read_text(encoding="utf-8")
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["method"], list(summary["methods"])) == ("gradient", ["gradient", "gradcam"])
    with np.load(out / "explanation.npz") as arrays:
        model = sr.load_model("networks:small_c3d", "own")
        target = int(arrays["target"][0])
        found = sr.explain(model, model.spec.clip(arrays["frames"][0]), "gradcam", target)
    assert summary["methods"]["gradcam"]["motion_mass"] == pytest.approx(found.motion_share().mass.tolist(), rel=1e-5)
    # One method again: what the grid of the earlier run was is gone.
    assert main(["explain", *SMALL, "--method", "gradient", "--out", str(out)]) == 0
    assert not (out / "grid.png").exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "gradient,,dtd"], "commas"),
        (["--method", "dtd,dtd"], "each once"),
        (["--method", "dtd,gradcm"], "did you mean 'gradcam'"),
        (["--method", "dtd,gradcam", "--option", "layer=relu4a"], "one method"),
    ],
)
def test_what_is_no_list_of_methods(tmp_path, capsys, arguments, says):
    assert main(["explain", *SMALL, *arguments, "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.count("\n") == 1
