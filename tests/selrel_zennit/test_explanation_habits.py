"""What a notebook does with an explanation: one line, one clip, a file, pictures."""

import base64
import re
from dataclasses import replace

import numpy as np
import pytest

import selrel_zennit as sr
from selrel_zennit.motion_split import MotionSplit


def explanation(frames=True):
    relevance = np.zeros((2, 4, 32, 32), np.float32)
    relevance[:, :, :10] = 1
    relevance[1, 0, 0, 0] = 3
    mask = np.zeros(relevance.shape, bool)
    mask[:, 0, :10] = True
    pixels = np.random.default_rng(3).integers(0, 256, (*relevance.shape, 3), dtype=np.uint8)
    part = np.ones(relevance.shape, np.float32)
    numbers = np.array([1, 2], np.float32)
    return sr.Explanation(
        logits=np.array([[0, 1, 2], [3, 0, 0]], np.float32),
        target=np.array([2, 0]),
        relevance=relevance,
        motion_relevance=np.where(mask, relevance, 0),
        mask=mask,
        unseen=("mul in block",),
        split=MotionSplit(numbers, numbers[:, None], numbers, part, part, "middle"),
        frames=pixels if frames else None,
    )


def same(first, second):
    held, other = first.arrays(), second.arrays()
    return held.keys() == other.keys() and all(np.array_equal(held[name], other[name]) for name in held)


def test_one_line_says_shapes_class_and_shares():
    # 40 of 160 rows' voxels, equal relevance: a quarter; in the second clip 322 of 1282.
    assert repr(explanation()) == (
        "Explanation(2 clips of 4×32×32, class 2, 0 of 3, motion 25% of |R| in 25% of its area, 1 operations unseen)"
    )
    assert repr(
        replace(explanation()[0], mask=np.ones((1, 4, 32, 32), bool), motion_relevance=explanation()[0].relevance)
    ) == ("Explanation(1 clip of 4×32×32, class 2 of 3, motion 100% of |R| in 100% of its area, 1 operations unseen)")


def test_an_index_is_a_clip():
    whole = explanation()
    assert whole[1].target.tolist() == [0]
    assert same(whole[-1], whole[1])
    assert len(whole[0]) == 1
    assert np.array_equal(whole[1].frames, whole.frames[1:])
    assert [one.target[0] for one in whole] == [2, 0]
    with pytest.raises(IndexError, match="clip 2 of an explanation of 2"):
        whole[2]


@pytest.mark.parametrize("frames", [True, False])
def test_a_file_gives_back_all(tmp_path, frames):
    whole = explanation(frames)
    whole.save(tmp_path / "x.npz")
    back = sr.Explanation.load(tmp_path / "x.npz")
    assert same(back, whole)
    assert back.unseen == whole.unseen
    assert back.split.reference == "middle"
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_what_is_no_explanation_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(sr.InputError, match=r"saved as NAME\.npz"):
        explanation().save(tmp_path / "x.zip")
    with pytest.raises(sr.InputError, match="No such file"):
        sr.Explanation.load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(sr.InputError, match=r"no \.npz file"):
        sr.Explanation.load(path)
    np.savez(path, relevance=np.zeros(3))
    with pytest.raises(sr.InputError, match="no array 'logits'"):
        sr.Explanation.load(path)
    np.savez(path, **{**explanation().arrays(), "target": np.array([7, 0])})
    with pytest.raises(sr.InputError, match="target must lie in 0…2"):
        sr.Explanation.load(path)


@pytest.mark.parametrize("frames", [True, False])
def test_a_notebook_shows_pictures(frames):
    page = explanation(frames)._repr_html_()
    media = dict(re.findall(r'src="data:(.*?);base64,(.*?)"', page))
    assert base64.b64decode(media["image/png"]).startswith(b"\x89PNG")
    assert base64.b64decode(media["video/mp4"])[4:8] == b"ftyp"
    assert 'src="http' not in page
    assert page.startswith("<p><code>Explanation(2 clips")


def test_explain_keeps_the_frames():
    model = sr.load_model("demo")
    pixels = np.random.default_rng(0).integers(0, 256, (16, model.spec.crop, model.spec.crop, 3), dtype=np.uint8)
    clip = model.spec.clip(pixels)
    assert np.array_equal(sr.explain(model, clip, "gradient").frames[0], model.spec.pixels(pixels))
    assert "gradient" in repr(sr.build_method("gradient", model))


def test_dir_is_public_names_alone():
    assert [name for name in dir(sr) if not name.startswith("__")] == sr.__all__
