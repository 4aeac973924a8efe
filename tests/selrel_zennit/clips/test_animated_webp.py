"""Animated WebP: composed as libwebp composes it, which Pillow asks; and what is no whole one."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from selrel_zennit.clips.video import iter_frames, probe, read_frames
from videos import fails, folder_of, moving_square


def write(path, frames, duration=40, **options):
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=duration, **options)
    return path


def as_pillow_reads(path):
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            yield np.asarray(image.convert("RGBA"))


def test_lossless_is_exact(tmp_path):
    expected = moving_square(20)
    path = write(tmp_path / "x.webp", expected, lossless=True)
    np.testing.assert_array_equal(read_frames(path), expected)
    np.testing.assert_array_equal(read_frames(path, start=7, count=3), expected[7:10])
    info = probe(path)
    assert (info.frames, info.height, info.width, info.fps, info.notes) == (20, 72, 96, 25.0, ())


def test_lossy_is_near(tmp_path):
    expected = moving_square(6)
    path = write(tmp_path / "x.webp", expected, quality=95)
    frames = read_frames(path)
    assert np.abs(frames.astype(float) - expected).mean() < 4
    # libwebp turns YUV into RGB by another filter than FFmpeg; observed: 0.5.
    others = np.stack(list(as_pillow_reads(path)))[..., :3]
    assert np.abs(frames.astype(float) - others).mean() < 1.5


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 90}, {"lossless": True, "minimize_size": True}])
def test_pictures_are_laid_over_each_other(tmp_path, options):
    """Parts that change, half transparent, on what was there before: kept, blended or wiped."""
    rng = np.random.default_rng(0)
    frames = np.zeros((8, 40, 60, 4), np.uint8)
    frames[:, 4:36, 4:56] = (90, 120, 60, 255)
    for index, frame in enumerate(frames):
        top, left = rng.integers(0, 20, 2)
        frame[top : top + 15, left : left + 21] = (200, 40 + 20 * index, 90, 60 if index % 2 else 255)
    path = write(tmp_path / "x.webp", frames, **options)
    expected = list(as_pillow_reads(path))
    got = list(iter_frames(path))
    assert len(got) == len(expected) == 8
    for frame, other in zip(got, expected, strict=True):
        # Where nothing is to be seen, the colour is nobody's.
        seen = other[..., 3] > 0
        difference = np.abs(frame.astype(int) - other[..., :3])[seen]
        assert difference.max() <= (1 if options.get("lossless") else 80)
        assert difference.mean() < 3
    assert probe(path).notes == ("alpha channel dropped",)


def anmf(left, top, picture, duration, flags):
    """A frame of an animation (RFC 9649, §2.7.1.1) of what a still WebP holds."""
    height, width = picture.shape[:2]
    places = (left // 2, top // 2, width - 1, height - 1, duration)
    head = b"".join(value.to_bytes(3, "little") for value in places) + bytes([flags])
    still = still_chunks(picture)
    return b"ANMF" + struct.pack("<I", len(head) + len(still)) + head + still


def still_chunks(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", lossless=True, exact=True)
    data = file.getvalue()
    assert data[12:16] == b"VP8L"
    return data[12:]


@pytest.mark.parametrize("flags", range(4))
def test_each_way_of_disposal_and_blending(tmp_path, flags):
    """By hand: a ground, a half transparent patch with the flags (1: wipe it afterwards, 2: do not blend), a dot."""
    ground = np.full((8, 12, 4), (100, 50, 200, 255), np.uint8)
    patch = np.full((4, 4, 4), (200, 150, 0, 51), np.uint8)
    dot = np.full((2, 2, 4), (255, 255, 255, 255), np.uint8)
    pictures = anmf(0, 0, ground, 40, 0) + anmf(2, 2, patch, 40, flags) + anmf(8, 4, dot, 120, 0)
    canvas = (11).to_bytes(3, "little") + (7).to_bytes(3, "little")
    head = b"VP8X" + struct.pack("<II", 10, 0x12) + canvas + b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    body = b"WEBP" + head + pictures
    path = tmp_path / "x.webp"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    second = ground[..., :3].copy()
    # 0.2 of the patch over 0.8 of the ground.
    second[2:6, 2:6] = (200, 150, 0) if flags & 2 else (120, 70, 160)
    third = second.copy()
    if flags & 1:
        third[2:6, 2:6] = 0
    third[4:6, 8:10] = 255
    np.testing.assert_array_equal(read_frames(path), [ground[..., :3], second, third])
    assert probe(path).fps == pytest.approx(3 / 0.2)


def test_damage(tmp_path):
    whole = write(tmp_path / "x.webp", moving_square(20), quality=90)
    data = whole.read_bytes()
    cut = tmp_path / "cut.webp"
    cut.write_bytes(data[: len(data) // 2])
    assert "is truncated: it breaks off after" in fails(read_frames, cut)
    left = int(fails(read_frames, cut).split("after ")[1].split()[0])
    assert 5 <= left <= 15
    np.testing.assert_array_equal(read_frames(cut, count=left), read_frames(whole)[:left])
    assert probe(cut).frames == left
    spoilt = bytearray(data)
    third = [at for at in range(len(data)) if data[at : at + 4] == b"VP8 "][2]
    spoilt[third + 8 : third + 40] = bytes(32)
    (tmp_path / "spoilt.webp").write_bytes(spoilt)
    message = fails(read_frames, tmp_path / "spoilt.webp")
    assert "is damaged: decoding breaks after 2 frames" in message
    assert "ffmpeg" not in message, "which does not read it either"


def test_in_a_folder_of_pictures(tmp_path):
    folder = folder_of(tmp_path / "frames", moving_square(3))
    write(folder / "frame4.webp", moving_square(3))
    assert "frame4.webp is an animation, not one image" in fails(read_frames, folder)
