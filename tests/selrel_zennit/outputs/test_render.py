from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zennit.image

from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.errors import InputError
from selrel_zennit.outputs.canvas import ACCENT, plain_ascii
from selrel_zennit.outputs.colormaps import COLORMAPS, palette
from selrel_zennit.outputs.painter import NORMS, colour_scale, normalise
from selrel_zennit.outputs.render import overlay_frames, strip_image

WORDS = {
    "title": "clip.mp4, c3d, dtd",
    "top5": [("CricketShot", 0.87), ("BaseballPitch", 0.1)],
    "target_name": "CricketShot",
    "motion_share": (0.02, 0.1),
}


def a_clip(frames=4, height=20, width=24, signed=True, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    relevance = rng.normal(size=(frames, height, width)).astype(np.float32)
    relevance = relevance if signed else np.abs(relevance)
    return pixels, relevance, np.where(np.abs(relevance) > 2, relevance, 0).astype(np.float32)


# Colour maps


@pytest.mark.parametrize("level", [0.0, 0.3, 0.5, 1.0, 1.3, 2.0, 10.0])
@pytest.mark.parametrize("name", sorted(zennit.image.CMAPS))
def test_palettes_are_zennits(name, level):
    np.testing.assert_array_equal(palette(name, level), zennit.image.palette(name, level))


def test_no_colour_map_of_zennit_is_missing():
    assert set(COLORMAPS) == set(zennit.image.CMAPS)


@pytest.mark.parametrize(
    "source",
    [
        "000,f00,80:ff0,fff",
        "000,10:f00,f0:fff",
        "3:000,F00,c0:ff0,a0a0a0",
        "000,f00,0ff,c0:ff0,fff,a0a0a0",
        " 000 , fff",
        "80:000,80:fff",
    ],
)
def test_zennits_colour_map_language(source):
    np.testing.assert_array_equal(palette(source), zennit.image.palette(source))


@pytest.mark.parametrize("source", ["jet", "", "000", "000,,fff", "ff:000,00:fff", "000:fff", "0000,fff", "zz,000"])
def test_what_is_no_colour_map_is_named(source):
    with pytest.raises(InputError, match="colour map") as caught:
        palette(source)
    assert "\n" not in str(caught.value)


def test_unknown_name_lists_the_names():
    with pytest.raises(InputError, match=r"coldnhot.*seismic"):
        palette("jet")


@pytest.mark.parametrize("level", [-1.0, float("nan"), float("inf")])
def test_impossible_level(level):
    with pytest.raises(InputError, match="level"):
        palette("bwr", level)


# Normalisation


def test_norms_by_their_formulas():
    _, relevance, _ = a_clip()
    values = relevance.astype(np.float64)
    top = np.abs(values).max()
    np.testing.assert_allclose(normalise(relevance, "symmetric"), 0.5 + values / top / 2, atol=1e-12)
    np.testing.assert_allclose(normalise(relevance, "absolute"), np.abs(values) / top, atol=1e-12)
    span = values.max() - values.min()
    np.testing.assert_allclose(normalise(relevance, "unaligned"), (values - values.min()) / span, atol=1e-12)


def test_unaligned_counts_zeros():
    values = np.array([[[0.0, 1.0, 3.0]]])
    np.testing.assert_allclose(normalise(values, "unaligned"), values / 3)
    np.testing.assert_allclose(normalise(-values, "unaligned"), 1 - values / 3)


def test_each_clip_has_its_own_scale_and_all_its_frames_share_it():
    _, relevance, _ = a_clip()
    batch = np.stack([relevance, 7 * relevance])
    both = normalise(batch, "symmetric")
    np.testing.assert_allclose(both[0], both[1], atol=1e-7)
    per_frame = np.stack([normalise(frame, "symmetric") for frame in relevance])
    assert not np.allclose(both[0], per_frame)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [0.0, 1.0, -2.0])
def test_constant_maps_stay_finite(norm, value):
    result = normalise(np.full((3, 4, 5), value, np.float32), norm)
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1
    if norm == "symmetric" and value == 0:
        assert (result == 0.5).all()


def test_one_outlier_does_not_set_the_scale():
    _, relevance, _ = a_clip(8, 64, 64)
    without = colour_scale(relevance, "symmetric", 99.5)[1]
    relevance[0, 0, 0] = 1e6
    assert colour_scale(relevance, "symmetric")[1] == 1e6
    assert colour_scale(relevance, "symmetric", 99.5)[1] == pytest.approx(without, rel=0.02)


def test_the_scale_of_a_sparse_map_ignores_its_zeros():
    sparse = np.zeros((16, 50, 50))
    sparse[3, 4, :5] = [1, 2, 3, 4, 5]
    assert colour_scale(sparse, "absolute", 99.5)[1] > 4.9


def test_unknown_norm_is_named():
    with pytest.raises(InputError, match="symmetric, absolute, unaligned"):
        normalise(np.ones((2, 3, 4)), "relative")


# Pictures


@pytest.mark.parametrize("cmap", ["coldnhot", "bwr"])
def test_a_value_has_one_colour_in_all_frames(cmap):
    # Black pixels everywhere, and the same value at the same place in each frame, beside others that change.
    pixels = np.zeros((5, 16, 16, 3), np.uint8)
    relevance = np.random.default_rng(1).normal(size=(5, 16, 16)).astype(np.float32)
    relevance *= np.arange(1, 6, dtype=np.float32)[:, None, None]
    relevance[:, 8:12, 8:12] = 2.0
    frames = overlay_frames(pixels, relevance, np.zeros_like(relevance), **WORDS, cmap=cmap, side=320)
    same = (frames == frames[0]).all(axis=(0, 3))
    place = find_block(same, 80)
    assert place is not None
    top, left = place
    assert len(np.unique(frames[:, top : top + 80, left : left + 80].reshape(-1, 3), axis=0)) == 1
    assert frames[0, top, left].max() > 40  # not the black of zero


def find_block(same, side):
    """The top left of a block of the given side where all is the same and whose surroundings change."""
    sums = np.pad(same.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    full = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side] == side * side
    for top, left in np.argwhere(full):
        around = same[top - 6 : top + side + 6, left - 6 : left + side + 6]
        if around.size and around.mean() < 0.9:
            return int(top), int(left)
    return None


def test_a_given_scale_holds_across_clips():
    pixels, relevance, motion = a_clip()
    scale = colour_scale(np.stack([relevance, 3 * relevance]))
    small = overlay_frames(pixels, relevance, motion, **WORDS, scale=scale)
    own = overlay_frames(pixels, relevance, motion, **WORDS)
    large = overlay_frames(pixels, 3 * relevance, 3 * motion, **WORDS, scale=scale)
    same = overlay_frames(pixels, 3 * relevance, 3 * motion, **WORDS, scale=(3 * scale[0], 3 * scale[1]))
    picture = (slice(None), slice(84, 300))
    np.testing.assert_array_equal(same[picture], small[picture])
    assert (small[picture] != large[picture]).any()
    assert (small[picture] != own[picture]).any()


@pytest.mark.parametrize("draw", [overlay_frames, strip_image])
@pytest.mark.parametrize("frames", [2, 3, 16, 40])
@pytest.mark.parametrize(("height", "width"), [(20, 20), (17, 31), (61, 9)])
def test_sizes_are_even_and_every_shape_is_drawn(draw, frames, height, width):
    picture = draw(*a_clip(frames, height, width), **WORDS)
    assert picture.dtype == np.uint8
    assert picture.shape[-1] == 3
    assert picture.shape[-3] % 2 == picture.shape[-2] % 2 == 0
    assert draw is strip_image or len(picture) == frames


@pytest.mark.parametrize("draw", [overlay_frames, strip_image])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["zero", "positive", "signed"])
def test_all_kinds_of_map_are_drawn(draw, norm, kind):
    pixels, relevance, motion = a_clip(signed=kind == "signed")
    if kind == "zero":
        relevance, motion = np.zeros_like(relevance), np.zeros_like(motion)
    share = (float("nan"), float("nan")) if kind == "zero" else (0.02, 0.1)
    with np.errstate(all="raise", under="ignore"):
        draw(pixels, relevance, motion, **{**WORDS, "motion_share": share}, relevance_norm=norm)


def test_inputs_are_left_alone():
    arguments = a_clip()
    before = [values.copy() for values in arguments]
    overlay_frames(*arguments, **WORDS)
    strip_image(*arguments, **WORDS)
    for values, copy in zip(arguments, before, strict=True):
        np.testing.assert_array_equal(values, copy)


def test_signs_differ_and_zero_shows_the_picture():
    pixels = np.full((2, 8, 8, 3), 100, np.uint8)
    relevance = np.zeros((2, 8, 8), np.float32)
    relevance[:, 2, 2], relevance[:, 5, 5] = 1, -1
    frame = overlay_frames(pixels, relevance, np.zeros_like(relevance), **WORDS, cmap="seismic", side=240)[0]
    colours = {tuple(colour) for colour in frame[84 : 84 + 240].reshape(-1, 3).tolist()}
    assert {(208, 0, 0), (0, 0, 208), (45, 45, 45)} <= colours  # the two ends of the map, and 0.45 of the grey


def test_kept_voxels_are_outlined_in_their_frame_alone():
    pixels = np.full((3, 16, 16, 3), 90, np.uint8)
    relevance = np.ones((3, 16, 16), np.float32)
    motion = np.zeros_like(relevance)
    motion[1, 6:9, 6:9] = 1
    frames = overlay_frames(pixels, relevance, motion, **WORDS, side=320)
    outlined = (np.abs(frames[:, 84 : 84 + 320].astype(int) - ACCENT) < 40).all(-1).sum((1, 2))
    assert outlined[1] > 100
    assert outlined[0] == outlined[2] == 0


def test_maps_must_fit_the_frames():
    pixels, relevance, motion = a_clip()
    with pytest.raises(InputError, match="motion relevance must have"):
        overlay_frames(pixels, relevance, motion[:-1], **WORDS)


@pytest.mark.parametrize("draw", [overlay_frames, strip_image])
def test_any_name_is_drawn(draw):
    names = ["café 中文 σ", "", "a\nb\tc", "x" * 500, "<script>", "\x00\x07", "👍"]
    for name in names:
        draw(*a_clip(2), **{**WORDS, "target_name": name, "title": name, "top5": [(name, 0.5), (name, float("1e-9"))]})


def test_plain_ascii():
    assert plain_ascii("café, 4σ") == "cafe, 4sigma"
    assert plain_ascii("中") == "?"
    assert plain_ascii("a\nb").isascii()


def test_a_real_clip_reads_well():
    """On a real clip the motion panel is dark outside what was kept, and brighter inside."""
    folder = os.environ.get("SELREL_DATA")
    if not folder:
        pytest.skip("SELREL_DATA is unset: no real clips")
    av = pytest.importorskip("av")
    with av.open(str(Path(folder) / "arm_wrestling.mp4")) as container:
        decoded = [
            frame.to_ndarray(format="rgb24") for frame, _ in zip(container.decode(video=0), range(16), strict=False)
        ]
    pixels = ClipSpec().pixels(np.stack(decoded))
    relevance = np.abs(np.gradient(pixels.mean(-1), axis=0)).astype(np.float32)
    motion = np.where(relevance > np.quantile(relevance, 0.98), relevance, 0).astype(np.float32)
    frames = overlay_frames(pixels, relevance, motion, **WORDS)
    panel = frames[:, 84 : 84 + 336, 20 + 2 * 346 : 20 + 2 * 346 + 336].astype(float).mean(-1)
    kept = np.kron(motion != 0, np.ones((3, 3), bool))
    assert panel[kept].mean() > 2 * panel[~kept].mean()


def test_pictures_need_neither_torch_nor_zennit():
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'zennit', 'matplotlib', 'PIL', 'scipy'): sys.modules[name] = None\n"
        "import selrel_zennit.outputs.render, selrel_zennit.outputs.report, selrel_zennit.outputs.colormaps"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
