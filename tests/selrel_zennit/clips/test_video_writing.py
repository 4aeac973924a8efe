"""Writing of mp4, gif and png."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from selrel_zennit.clips import video_writing
from selrel_zennit.clips.video import probe, read_frames, write_gif, write_mp4, write_png
from selrel_zennit.errors import InputError
from videos import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    fails,
    mean_difference,
    moving_square,
)


@pytest.mark.parametrize("size", [(72, 96), (71, 95), (1, 1)])
def test_written_mp4_plays_in_a_browser(tmp_path, size):
    expected = moving_square(20, 72, 96)[:, : size[0], : size[1]]
    path = tmp_path / "new" / "x.mp4"
    write_mp4(path, iter(expected), 29.97)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.height % 2, context.width % 2) == (0, 0)
        # H.273: BT.709 colours, so that no player has to guess.
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert container.streams.video[0].average_rate == Fraction(2997, 100)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    frames = read_frames(path)
    assert mean_difference(frames[:, : size[0], : size[1]], expected) < 4
    assert mean_difference(frames[:, -1:], frames[:, size[0] - 1 : size[0]]) < 4
    assert [entry.name for entry in path.parent.iterdir()] == ["x.mp4"]


def test_written_colours_return(tmp_path):
    colours = np.array([RED, GREEN, BLUE, WHITE, (0, 0, 0), (255, 255, 255), (10, 200, 90)], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (7, 32, 32, 3))
    write_mp4(tmp_path / "x.mp4", frames, 25)
    np.testing.assert_allclose(read_frames(tmp_path / "x.mp4")[:, 16, 16].astype(int), colours, atol=4)
    write_gif(tmp_path / "x.gif", frames, 25)
    np.testing.assert_allclose(read_frames(tmp_path / "x.gif")[:, 16, 16].astype(int), colours, atol=4)


def test_written_gif_is_good_enough(tmp_path):
    expected = moving_square(20, 71, 95)
    write_gif(tmp_path / "x.gif", iter(expected), 12.5)
    info = probe(tmp_path / "x.gif")
    assert (info.frames, info.fps) == (20, 12.5)
    assert mean_difference(read_frames(tmp_path / "x.gif"), expected) < 3
    assert b"NETSCAPE2.0" in (tmp_path / "x.gif").read_bytes(), "it repeats"


def test_written_png_is_exact(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (31, 47, 3), dtype=np.uint8)
    write_png(tmp_path / "x.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "x.png"))[..., ::-1], image)


@pytest.mark.parametrize("write", [write_mp4, write_gif])
def test_bad_frames_write_nothing(tmp_path, write):
    good = moving_square(2)

    def breaking():
        yield good[0]
        raise KeyboardInterrupt

    assert "no frames" in fails(write, tmp_path / "x", [], 25)
    for frames in ([good[0], good[1, :30]], good.astype(np.float32), good[..., 0], [[1, 2, 3]]):
        with pytest.raises(InputError, match="frames to write must"):
            write(tmp_path / "x", frames, 25)
    for fps in (0, -1, float("nan")):
        with pytest.raises(InputError, match="fps must"):
            write(tmp_path / "x", good, fps)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x", breaking(), 25)
    with pytest.raises(InputError, match="is a folder"):
        write(tmp_path, good, 25)
    assert list(tmp_path.iterdir()) == []


def test_no_h264_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(video_writing, "_H264_ENCODERS", ("no_such_encoder",))
    assert "no H.264 encoder" in fails(write_mp4, tmp_path / "x.mp4", moving_square(2), 25)
    assert list(tmp_path.iterdir()) == []
