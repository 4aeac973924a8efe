"""Sources come back, and never say what they must not."""

import itertools
import threading
import time

import numpy as np
import pytest

from selrel_deploy.live.sources import Address, Camera, Capture, Looped, open_source, redacted
from selrel_zennit.clips.video import write_mp4
from selrel_zennit.errors import InputError

from .stand_ins import Frames, moving


def capture(source, count, seconds=5.0, **options):
    """Return the capture and its frames, once there are ``count``."""
    frames, stop = [], threading.Event()

    def take(frame):
        frames.append(frame)
        if len(frames) >= count:
            stop.set()

    reading = Capture(source, take, wait=0.01, longest=0.02, **options)
    timer = threading.Timer(seconds, stop.set)
    timer.start()
    reading.run(stop)
    timer.cancel()
    return reading, frames


def test_a_file_is_looped_at_its_pace(tmp_path):
    write_mp4(tmp_path / "x.mp4", moving(6), 50)
    since = time.monotonic()
    reading, frames = capture(open_source(str(tmp_path / "x.mp4")), 15)
    assert 14 / 50 <= time.monotonic() - since < 3
    assert [index for index, frame in enumerate(frames) if frame.begins] == [0, 6, 12]
    assert reading.source.name == "x.mp4"
    assert reading.fault is None


def test_what_breaks_off_comes_back_and_begins_anew():
    source = Frames(moving(3), fails={1: InputError("the cable is out: plug it in"), 2: RuntimeError("a decoder's")})
    reading, frames = capture(source, 9)
    assert [frame.begins for frame in frames] == [True, False, False] * 3
    assert reading.reopened == 2


@pytest.mark.parametrize("error", [InputError("the cable is out"), RuntimeError("secret path")])
def test_a_fault_is_said_in_one_sentence(error):
    reading, _ = capture(Frames([], fails=dict.fromkeys(range(99), error)), 1, seconds=0.1)
    assert reading.fault in ("the cable is out", "given frames cannot be read (RuntimeError): check the source")
    assert reading.reopened >= 2


def test_a_corrupt_file_is_a_fault_and_the_end_of_none(tmp_path):
    write_mp4(tmp_path / "x.mp4", np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8), 100)
    source = Looped(str(tmp_path / "x.mp4"))
    size = (tmp_path / "x.mp4").stat().st_size
    (tmp_path / "x.mp4").write_bytes(b"\xff" * size)
    reading, _ = capture(source, 10**6, seconds=0.3)
    assert "x.mp4" in reading.fault
    assert reading.fault.count("\n") == 0


def test_a_stream_that_is_dropped_is_opened_again(tmp_path):
    """A server of this test's own: it gives the video, breaks off in the middle of it, and gives it again."""
    import http.server

    write_mp4(tmp_path / "x.mp4", np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8), 25)
    data, asked = (tmp_path / "x.mp4").read_bytes(), itertools.count()

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if next(asked) != 1 else 503)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        source = open_source(f"http://user:pass-word@127.0.0.1:{server.server_port}/x.mp4?key=hidden")
        reading, frames = capture(source, 30)
        server.shutdown()
        thread.join()
    assert len(frames) == 30
    assert reading.reopened >= 2
    assert sum(frame.begins for frame in frames) >= 3


@pytest.mark.parametrize(
    "address",
    ["rtsp://ann:s3cret@cam.example:554/main?token=s3cret", "http://ann:s3cret@[::1]:81/x?s3cret#s3cret"],
)
def test_what_is_secret_in_an_address_is_not_shown(address):
    assert "s3cret" not in redacted(address)
    assert "ann" not in redacted(address)
    assert "s3cret" not in Address(address).name


def test_an_address_that_does_not_answer_is_one_sentence_without_its_secrets():
    with pytest.raises(InputError) as caught:
        list(Address("http://ann:s3cret@127.0.0.1:9/x?key=s3cret").open())
    assert "s3cret" not in str(caught.value)
    assert "127.0.0.1:9/x does not answer" in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_camera_that_is_not_there_is_one_sentence():
    with pytest.raises(InputError, match="camera 97 does not open"):
        list(Camera(97).open())


@pytest.mark.parametrize(
    ("text", "kind"), [(None, Looped), ("0", Camera), ("rtsp://cam/1", Address), ("HTTPS://cam/x.m3u8", Address)]
)
def test_what_a_text_names(text, kind):
    assert type(open_source(text)) is kind


@pytest.mark.parametrize("text", ["", "file:///x", "concat://a|b", "rtsp://", "http://cam:99999/", "missing.mp4"])
def test_what_names_no_source_is_refused(text):
    with pytest.raises(InputError):
        open_source(text)
