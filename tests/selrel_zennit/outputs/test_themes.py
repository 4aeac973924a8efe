"""The light theme: a white page, the same picture inside, text that can be read."""

import numpy as np
import pytest

import selrel_zennit as sr
from selrel_zennit.cli import main
from selrel_zennit.outputs import canvas, render

WORDS = {"title": "t", "top5": [("a", 0.9), ("b", 0.1)], "target_name": "a", "motion_share": (0.1, 0.2)}


def maps():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (4, 24, 24, 3), np.uint8)
    relevance = rng.normal(size=(4, 24, 24)).astype(np.float32)
    return pixels, relevance, np.where(relevance > 1, relevance, 0)


@pytest.mark.parametrize(
    "draw", [render.strip_image, lambda *given, **words: render.overlay_frames(*given, **words)[0]]
)
def test_only_the_page_changes(draw):
    dark, light = (draw(*maps(), **WORDS, theme=theme) for theme in ("dark", "light"))
    assert dark.shape == light.shape
    assert (dark[0, 0] == canvas.BACKGROUND).all()
    assert (light[0, 0] == 255).all()
    # Pictures are the same in both: most of what is not page, bar or text.
    assert 0.1 < (dark == light).all(-1).mean() < 0.9
    assert (light == canvas.THEMES["light"][canvas.TEXT]).all(-1).any()
    assert not (light == canvas.BACKGROUND).all(-1).any()


def luminance(colour):
    parts = [value / 255 / 12.92 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour]
    return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("theme", canvas.THEMES)
def test_text_has_the_contrast_that_readers_need(theme):
    page = canvas.Canvas(1, 1, theme)
    ground = luminance(page.themed(canvas.BACKGROUND))
    for colour in (canvas.TEXT, canvas.MUTED, canvas.ACCENT, canvas.SERIES):
        low, high = sorted((luminance(page.themed(colour)), ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_an_unknown_theme(capsys):
    with pytest.raises(sr.InputError, match="no theme named 'sepia'; there are: dark, light"):
        canvas.Canvas(1, 1, "sepia")
    assert main(["explain", "--theme", "sepia"]) == 2
    assert "sepia" in capsys.readouterr().err
