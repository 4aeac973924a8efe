"""What is not a video, or not a whole one."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading

import av
import numpy as np
import pytest

from selrel_zennit.clips.video import probe, read_frames, write_gif, write_png
from videos import (
    RATE,
    cut,
    encode,
    encode_mp4,
    fails,
    moving_square,
)


def test_what_is_not_a_video(tmp_path):
    (tmp_path / "text.mp4").write_text("words " * 500)
    (tmp_path / "text.txt").write_text("words\n" * 500)
    (tmp_path / "empty.mp4").touch()
    with av.open(str(tmp_path / "sound.wav"), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        output.mux(stream.encode(sound))
    cases = {
        "missing.mp4": "does not exist",
        "text.mp4": "is not a video",
        "text.txt": "is not a video",
        "empty.mp4": "empty (0 bytes)",
        "sound.wav": "no decodable pictures",
    }
    for name, part in cases.items():
        for read in (probe, read_frames):
            message = fails(read, tmp_path / name)
            assert part in message
            assert name in message


def test_a_playlist_fetches_nothing(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connections.append(connection)
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:5", "#EXTINF:5,", url, "#EXT-X-ENDLIST", ""]
        (tmp_path / "x.m3u8").write_text("\n".join(lines))
        fails(read_frames, tmp_path / "x.m3u8")
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert connections == []


def test_one_frame(tmp_path):
    write_png(tmp_path / "x.png", moving_square(1)[0])
    write_gif(tmp_path / "x.gif", moving_square(1), RATE)
    sources = [
        encode_mp4(tmp_path / "x.mp4", moving_square(1)),
        encode(tmp_path / "x.avi", moving_square(1), "mpeg4"),
        tmp_path / "x.gif",
        tmp_path / "x.png",
    ]
    for source in sources:
        for message in (fails(probe, source), fails(read_frames, source), fails(read_frames, source, count=2)):
            assert "only 1 frame" in message
            assert str(source) in message
        # Who asks for one frame gets it.
        assert read_frames(source, count=1).shape == (1, 72, 96, 3)


def test_no_frames(tmp_path):
    path = encode(tmp_path / "x.avi", moving_square(0), "mpeg4")
    for read in (probe, read_frames):
        assert str(path) in fails(read, path)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_without_index(tmp_path, share):
    path = cut(encode_mp4(tmp_path / "x.mp4", moving_square(60)), share)
    for read in (probe, read_frames):
        message = fails(read, path)
        assert "truncated: its index is missing" in message
        assert str(path) in message


@pytest.mark.parametrize("share", [0.5, 0.75])
@pytest.mark.parametrize("name", ["x.mp4", "x.avi", "x.mkv", "x.gif"])
def test_truncated(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 255, (60, 72, 96, 3), dtype=np.uint8)
    if name.endswith("gif"):
        encode(tmp_path / name, noise, "gif", "rgb8")
    elif name.endswith("mp4"):
        encode_mp4(tmp_path / name, noise, faststart=True)
    else:
        encode(tmp_path / name, noise, "mpeg4", options={"b": "4000000"})
    whole = read_frames(tmp_path / name)
    assert len(whole) == 60
    path = cut(tmp_path / name, share)
    message = fails(read_frames, path)
    assert "truncated" in message
    assert str(path) in message
    # What lies before the cut is whole and can be had by asking for no more than that.
    left = int(message.split("breaks off after ")[1].split()[0])
    assert 60 * share - 6 <= left <= 60 * share + 3
    np.testing.assert_array_equal(read_frames(path, count=left), whole[:left])


def test_truncated_between_two_packets(tmp_path):
    path = encode_mp4(tmp_path / "x.mp4", moving_square(60), faststart=True, bf="0")
    with av.open(str(path)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    path.write_bytes(data[: ends[40]])
    assert "breaks off after 41 frames" in fails(read_frames, path)


def test_damaged_in_the_middle(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 72, 96, 3), dtype=np.uint8)
    path = encode_mp4(tmp_path / "x.mp4", noise)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 10] = bytes(len(data) // 10)
    path.write_bytes(data)
    message = fails(read_frames, path)
    assert "decoding breaks after" in message
    assert read_frames(path, count=10).shape == (10, 72, 96, 3)


def test_counts_in_the_header_that_are_off_by_a_little_are_no_damage(tmp_path):
    path = encode(tmp_path / "x.avi", moving_square(60), "mpeg4")
    data = bytearray(path.read_bytes())
    # dwTotalFrames of the main header, and dwLength of the stream header.
    for at in (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32):
        assert struct.unpack_from("<I", data, at) == (60,)
        struct.pack_into("<I", data, at, 62)
    path.write_bytes(data)
    assert len(read_frames(path)) == 60


def test_trimmed_by_an_edit_list_is_no_damage(tmp_path):
    """A phone trims without coding anew: the file holds 60 frames, its edit list shows 20."""
    path = encode_mp4(tmp_path / "x.mp4", moving_square(60), bf="0")
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 4 + 4 + 4
    struct.pack_into(">Ii", data, entry, int(20 / RATE * 1000), 0)
    path.write_bytes(data)
    assert 20 <= len(read_frames(path)) <= 22


def test_ffmpeg_is_silent(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (30, 72, 96, 3), dtype=np.uint8)
    half = cut(encode_mp4(tmp_path / "x.mp4", noise, faststart=True), 0.5)
    headless = cut(encode_mp4(tmp_path / "y.mp4", noise), 0.5)
    code = """
import sys
from selrel_zennit.errors import InputError
from selrel_zennit.clips.video import read_frames, write_gif, write_mp4
write_mp4(sys.argv[3], read_frames(sys.argv[1], count=3), 25)
write_gif(sys.argv[4], read_frames(sys.argv[1], count=3), 25)
for path in sys.argv[1:3]:
    try:
        read_frames(path)
    except InputError:
        continue
    raise SystemExit(3)
assert not {"torch", "PIL", "matplotlib", "zennit"} & set(sys.modules)
"""
    arguments = [half, headless, tmp_path / "out.mp4", tmp_path / "out.gif"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
