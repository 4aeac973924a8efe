"""The grid of a figure: several methods, one class, a journal's width."""

import re

import cv2
import numpy as np
import pytest

import selrel_zennit as sr
from selrel_zennit.outputs.grid import grid_figure, write_grid
from selrel_zennit.synthetic import demo_frames


@pytest.fixture(scope="module")
def found():
    return sr.explain_many(sr.load_model("demo"), demo_frames(), ["gradient", "gradcam"], 3)


def test_all_methods_explain_one_class(found):
    assert list(found) == ["gradient", "gradcam"]
    assert [one.target.tolist() for one in found.values()] == [[3], [3]]
    with pytest.raises(sr.InputError, match="gradcam"):
        sr.explain_many(sr.load_model("demo"), demo_frames(), ["gradcm"])


def test_files_have_the_width_and_their_text(found, tmp_path):
    frames = found["gradcam"].frames
    assert write_grid(tmp_path, found, frames, width="single") == ["grid.png", "grid.pdf", "grid.svg"]
    assert cv2.imread(str(tmp_path / "grid.png")).shape[1] == 2100  # 3.5 inches of 600 dots
    svg = (tmp_path / "grid.svg").read_text("utf-8")
    assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) == pytest.approx(3.5 * 72)
    assert all(f">{text}</text>" in svg for text in ("gradient", "gradcam", "selective", "input"))
    assert b"/Type3" not in (tmp_path / "grid.pdf").read_bytes()


def test_both_maps_of_a_method_have_one_scale(found):
    figure = grid_figure(found, found["gradcam"].frames, steps=2)
    limits = [axes.images[0].get_clim() for axes in figure.axes if axes.images]
    top = np.percentile(np.abs(found["gradient"].relevance[found["gradient"].relevance != 0]).astype(float), 99.5)
    assert limits[1] == limits[2] == pytest.approx((-top, top))
    with pytest.raises(sr.InputError, match="too many"):
        grid_figure({str(i): found["gradcam"] for i in range(6)}, found["gradcam"].frames, width="single")
