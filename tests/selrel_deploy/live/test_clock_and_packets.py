"""What the page is sent can be read back."""

import cv2
import numpy as np
import pytest

from selrel_deploy.live.clock import read_stamp, stamp
from selrel_deploy.live.packets import jpeg, maps_of, packet, parse, shown_steps, view_picture

from .stand_ins import Brightness, moving


def decoded(picture, flags=cv2.IMREAD_COLOR):
    return cv2.imdecode(np.frombuffer(picture, np.uint8), flags)


@pytest.mark.parametrize("time", [0, 1, 1234567890123, 2**20 - 1])
def test_the_clock_survives_jpeg(time):
    frame = np.random.default_rng(time % 97).integers(0, 256, (112, 112, 3), np.uint8)
    through = decoded(jpeg(stamp(frame, time)))[..., ::-1]
    assert read_stamp(through) == time % 2**20


def test_no_clock_is_read_where_there_is_none():
    assert read_stamp(np.zeros((112, 112, 3), np.uint8)) is None
    assert read_stamp(np.zeros((8, 40, 3), np.uint8)) is None
    narrow = np.zeros((8, 40, 3), np.uint8)
    assert (stamp(narrow, 5) == narrow).all()
    wrong = stamp(np.zeros((112, 112, 3), np.uint8), 6)
    wrong[:4, 12:16] = 255  # one bit more: the parity says so
    assert read_stamp(wrong) is None


def test_a_message_is_read_back():
    header, pictures = parse(packet({"kind": "view", "age": None}, b"abc", b"", b"\0\1"))
    assert header == {"kind": "view", "age": None, "sizes": [3, 0, 2]}
    assert pictures == [b"abc", b"", b"\0\1"]
    with pytest.raises(ValueError, match="JSON"):
        packet({"age": float("nan")})


def test_pictures_of_a_camera_are_made_small():
    assert decoded(view_picture(np.zeros((720, 1280, 3), np.uint8))).shape == (270, 480, 3)
    assert decoded(view_picture(np.zeros((16, 20, 3), np.uint8))).shape == (16, 20, 3)


@pytest.mark.parametrize(
    ("steps", "newest", "expected"),
    [(16, 16, [2, 4, 6, 8, 9, 11, 13, 15]), (16, 4, [12, 13, 14, 15]), (16, 1, [15]), (4, 9, [0, 1, 2, 3])],
)
def test_which_frames_are_shown(steps, newest, expected):
    found = shown_steps(steps, newest).tolist()
    assert found[-1] == steps - 1
    assert len(found) == len(expected)
    assert np.abs(np.array(found) - expected).max() <= 1


def test_maps_say_what_the_explanation_does():
    pixels = moving(4)
    explanation = Brightness().look(pixels, 0, None).explanation
    header, frames, layers = maps_of(explanation, pixels, np.array([1, 3]))
    assert header == {"layers": ["relevance", "motion"], "frames": 2, "height": 16, "width": 16}
    assert decoded(frames).shape == (32, 16, 3)
    sheet = decoded(layers, cv2.IMREAD_UNCHANGED).reshape(2, 2, 16, 16)
    # The scale ends at the brightest voxel, 250 of 255.
    assert sheet[0, 0, 5, 3] == 255
    assert sheet[0, 0, 0, 0] == round(128 + 127 * 60 / 250)
    # Kept as motion: what the square has reached since the frame before, and what it has left.
    assert set(np.nonzero(sheet[1, 0, 5] != 128)[0]) == {0, 5}
