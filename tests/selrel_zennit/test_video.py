from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from selrel_zennit import video_writing
from selrel_zennit.errors import InputError
from selrel_zennit.video import DEFAULT_FPS, iter_frames, probe, read_frames, write_gif, write_mp4, write_png

RATE = 25
RED, GREEN, BLUE, WHITE = (200, 40, 40), (40, 180, 60), (30, 60, 210), (230, 230, 230)


def moving_square(count=30, height=72, width=96):
    """Smooth pictures that lossy codecs keep well; the square's place tells one frame from another."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = np.linspace(40, 120, width)[None, None, :, None]
    for index, frame in enumerate(frames):
        left = 2 * index % (width - 24)
        frame[height // 4 : height // 4 + 24, left : left + 24] = RED
    return frames


def quadrants(count=3, height=64, width=96):
    """Four flat colours, so that a turned or mirrored picture shows."""
    frames = np.empty((count, height, width, 3), np.uint8)
    middle, centre = height // 2, width // 2
    frames[:, :middle, :centre], frames[:, :middle, centre:] = RED, GREEN
    frames[:, middle:, :centre], frames[:, middle:, centre:] = BLUE, WHITE
    return frames


def encode(path, frames, codec, pix_fmt="yuv420p", source_format="rgb24", stamps=None, container=None, options=None):
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=RATE, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=source_format)
            picture.pts = stamps[index] if stamps else index
            picture.time_base = Fraction(1, RATE)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


def encode_mp4(path, frames, faststart=False, **options):
    flags = {"movflags": "+faststart"} if faststart else {}
    return encode(path, frames, "libx264", container=flags, options={"crf": "12", **options})


def set_track_matrix(path, a, b, c, d):
    """Write the matrix of the track header (ISO/IEC 14496-12, §8.3.2) into an mp4."""
    data = bytearray(path.read_bytes())
    tkhd = data.index(b"tkhd") + 4
    assert data[tkhd] == 0
    # version and flags, four times and identities, reserved, duration …: the matrix begins 40 bytes into the box.
    struct.pack_into(">9i", data, tkhd + 40, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def cut(path, share):
    cut_path = path.with_name(f"cut_{path.name}")
    data = path.read_bytes()
    cut_path.write_bytes(data[: int(len(data) * share)])
    return cut_path


def folder_of(path, frames, name="frame{}.png", first=1):
    path.mkdir()
    for index, frame in enumerate(frames, first):
        assert cv2.imwrite(str(path / name.format(index)), frame[..., ::-1])
    return path


def fails(function, *args, **kwargs):
    with pytest.raises(InputError) as error:
        function(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    assert ";" in message, "a remedy follows the semicolon"
    return message


def mean_difference(frames, expected):
    assert frames.dtype == np.uint8
    assert frames.shape == expected.shape
    return np.abs(frames.astype(float) - expected).mean()


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "counted"),
    [
        ("x.mp4", "libx264", "yuv420p", True),
        ("x.avi", "mpeg4", "yuv420p", True),
        ("x.mkv", "libx264", "yuv420p", False),
        ("x.webm", "libvpx", "yuv420p", False),
    ],
)
def test_lossy_files(tmp_path, name, codec, pix_fmt, counted):
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    expected = moving_square()
    path = encode(tmp_path / name, expected, codec, pix_fmt, options={"b": "4000000"})
    info = probe(path)
    assert info.path == str(path)
    assert info.frames == (30 if counted else None)
    assert (info.height, info.width, info.fps, info.rotation, info.notes) == (72, 96, 25.0, 0, ())
    frames = read_frames(path)
    assert mean_difference(frames, expected) < 4
    # Each frame is nearest to its own picture: none is missing, doubled or out of order.
    distances = np.abs(frames[:, None].astype(np.int16) - expected[None]).mean((2, 3, 4))
    assert distances.argmin(1).tolist() == list(range(30))


def test_gif_is_exact_where_its_palette_suffices(tmp_path):
    expected = moving_square()
    expected[..., 1:] = expected[..., :1] // 64 * 64
    expected[..., 0] = expected[..., 1]
    write_gif(tmp_path / "x.gif", expected, RATE)
    np.testing.assert_array_equal(read_frames(tmp_path / "x.gif"), expected)
    info = probe(tmp_path / "x.gif")
    assert (info.frames, info.fps, info.notes) == (30, 25.0, ())


def test_ranges_are_slices(tmp_path):
    path = encode_mp4(tmp_path / "x.mp4", moving_square())
    folder = folder_of(tmp_path / "frames", moving_square(12))
    for source, total in ((path, 30), (folder, 12)):
        whole = read_frames(source)
        for start, count in ((0, 1), (0, 5), (7, 3), (total - 1, 1), (total - 3, None), (total - 3, 99), (0, total)):
            stop = None if count is None else start + count
            np.testing.assert_array_equal(read_frames(source, start, count), whole[start:stop])
            streamed = list(iter_frames(source, start=np.int64(start), count=count))
            np.testing.assert_array_equal(np.stack(streamed), whole[start:stop])


def test_bad_ranges(tmp_path):
    path = encode_mp4(tmp_path / "x.mp4", moving_square(6))
    folder = folder_of(tmp_path / "frames", moving_square(6))
    for source in (path, folder):
        for start in (6, 100):
            message = fails(read_frames, source, start=start)
            assert str(source) in message
            assert "6 frames" in message
            assert "0…5" in message
        # At the call, not when the first frame is asked for.
        assert "start must be 0 or more" in fails(iter_frames, source, start=-1)
        assert "count must be 1 or more" in fails(iter_frames, source, count=-3)
        assert "count must be 1 or more" in fails(iter_frames, source, count=0)


def test_five_frames_and_odd_sizes(tmp_path):
    expected = moving_square(5, height=71, width=95)
    path = encode(tmp_path / "x.mkv", expected, "ffv1", "bgr0")
    assert mean_difference(read_frames(path), expected) == 0
    assert (probe(path).height, probe(path).width) == (71, 95)


def test_4k(tmp_path):
    expected = quadrants(2, height=2160, width=3840)
    path = encode_mp4(tmp_path / "x.mp4", expected, preset="ultrafast")
    assert mean_difference(read_frames(path), expected) < 3


def test_streaming_is_constant_in_memory(tmp_path):
    path = encode_mp4(tmp_path / "x.mp4", moving_square(60, 240, 320), preset="ultrafast")
    tracemalloc.start()
    assert sum(1 for _ in iter_frames(path)) == 60
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 240 * 320 * 3


def test_variable_frame_rate(tmp_path):
    expected = moving_square(10)
    stamps = [0, 1, 2, 10, 11, 12, 30, 31, 32, 39]
    path = encode(tmp_path / "x.mp4", expected, "libx264", stamps=stamps, options={"crf": "12", "bf": "0"})
    assert mean_difference(read_frames(path), expected) < 4
    # 10 frames in 40 to 41 periods of 1/25 s, depending on how long the last one is held to last.
    assert probe(path).fps == pytest.approx(10 / (40.5 / RATE), rel=0.2)


def test_gif_of_uneven_delays(tmp_path):
    path = encode(tmp_path / "x.gif", moving_square(5), "gif", "rgb8", stamps=[0, 1, 2, 3, 25])
    data = path.read_bytes()
    # The delays in the graphic control extensions (GIF89a, §23), in 1/100 s, are the reference.
    delays = [
        int.from_bytes(data[at + 4 : at + 6], "little") for at in range(len(data)) if data[at : at + 3] == b"!\xf9\x04"
    ]
    assert len(delays) == 5
    assert probe(path).fps == pytest.approx(5 / (sum(delays) / 100))


@pytest.mark.parametrize(
    ("matrix", "rotation", "mirrored", "turn"),
    [
        ((0, 1, -1, 0), 90, False, lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), 180, False, lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), 270, False, lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, 1), 0, True, np.fliplr),
        ((1, 0, 0, -1), 180, True, np.flipud),
        ((0, 1, 1, 0), 270, True, lambda image: image.transpose(1, 0, 2)),
    ],
)
def test_rotation(tmp_path, matrix, rotation, mirrored, turn):
    stored = quadrants(8)
    path = encode_mp4(tmp_path / "x.mp4", stored)
    set_track_matrix(path, *matrix)
    expected = np.stack([turn(image) for image in stored])
    assert mean_difference(read_frames(path), expected) < 4
    info = probe(path)
    assert (info.height, info.width) == expected.shape[1:3]
    assert info.rotation == rotation
    assert any(f"rotated by {rotation}°" in note for note in info.notes) == (rotation != 0)
    assert any("mirrored" in note for note in info.notes) == mirrored
    # The description agrees with the pixels: mirrored first, then turned clockwise.
    described = np.rot90(np.fliplr(stored[0]) if mirrored else stored[0], -rotation // 90)
    np.testing.assert_array_equal(described, expected[0])


def test_greyscale(tmp_path):
    grey = moving_square(4)[..., 0]
    path = encode(tmp_path / "x.mkv", grey, "ffv1", "gray", "gray")
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, image in enumerate(grey):
        cv2.imwrite(str(folder / f"{index}.png"), image)
    for source in (path, folder):
        np.testing.assert_array_equal(read_frames(source), np.repeat(grey[..., None], 3, axis=3))
        assert probe(source).notes == ("greyscale: repeated to three channels",)


def test_alpha(tmp_path):
    pictures = moving_square(4)
    rgba = np.concatenate([pictures, np.full((*pictures.shape[:3], 1), 128, np.uint8)], axis=3)
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, image in enumerate(rgba):
        cv2.imwrite(str(folder / f"{index}.png"), cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA))
    np.testing.assert_array_equal(read_frames(folder), pictures)
    assert probe(folder).notes == ("alpha channel dropped",)


def test_gif_with_transparency(tmp_path):
    path = tmp_path / "x.gif"
    write_gif(path, quadrants(3), RATE)
    data = bytearray(path.read_bytes())
    pixels = read_frames(path)
    first = data.index(b"!\xf9\x04")
    opaque = probe(path).notes
    # Make the palette entry of one quadrant transparent (GIF89a, §23): flag, then index.
    assert data[10] & 0x80, "the palette is global"
    size = 2 << (data[10] & 7)
    palette = [tuple(data[13 + 3 * entry : 16 + 3 * entry]) for entry in range(size)]
    data[first + 3] |= 1
    data[first + 6] = palette.index(tuple(pixels[0, 0, 0]))
    path.write_bytes(data)
    assert opaque == ()
    assert probe(path).notes == ("alpha channel dropped",)
    frames = read_frames(path)
    np.testing.assert_array_equal(frames[0, -1, -1], pixels[0, -1, -1])


def test_16_bit_images(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(2):
        cv2.imwrite(str(folder / f"{index}.png"), np.full((8, 8, 3), 129 * 257, np.uint16))
    assert probe(folder).notes == ("16 bits per channel: reduced to 8",)
    np.testing.assert_allclose(read_frames(folder), 129, atol=1)


def test_folder_is_exact_and_in_the_order_of_numbers(tmp_path):
    expected = moving_square(12)
    folder = folder_of(tmp_path / "100%d frames*", expected, first=0)
    (folder / "notes.txt").write_text("not a frame")
    (folder / "._frame3.png").write_bytes(b"left by a file manager")
    np.testing.assert_array_equal(read_frames(folder), expected)
    info = probe(folder)
    assert (info.frames, info.height, info.width, info.fps, info.notes) == (12, 72, 96, DEFAULT_FPS, ())


@pytest.mark.parametrize("suffix", ["bmp", "jpg", "JPG", "ppm", "tif", "webp"])
def test_folder_of_other_kinds(tmp_path, suffix):
    folder = folder_of(tmp_path / "frames", quadrants(2), name="{}." + suffix)
    assert mean_difference(read_frames(folder), quadrants(2)) < 4


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_photographs_stand_upright(tmp_path, orientation, turns):
    """Exif 2.32, §4.6.4, tag 274: 6 is to be turned by 90° clockwise, 8 by 90° counter-clockwise."""
    entry = struct.pack("<HHIHH", 274, 3, 1, orientation, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    folder = folder_of(tmp_path / "frames", quadrants(2), name="{}.jpg")
    for file in folder.iterdir():
        data = file.read_bytes()
        file.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    assert mean_difference(read_frames(folder), np.rot90(quadrants(2), turns, axes=(1, 2))) < 4
    assert probe(folder).rotation == -90 * turns % 360


def test_folder_of_several_sizes(tmp_path):
    folder = folder_of(tmp_path / "frames", moving_square(3))
    folder_of(tmp_path / "more", moving_square(1, height=40))
    (tmp_path / "more" / "frame1.png").rename(folder / "frame10.png")
    message = fails(read_frames, folder)
    assert "frame10.png is 96×40" in message
    assert "frame1.png 96×72" in message


def test_bad_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    one = folder_of(tmp_path / "one", moving_square(1))
    for read in (probe, read_frames):
        assert "without images" in fails(read, tmp_path / "empty")
        assert "only 1 frame" in fails(read, one)
    broken = folder_of(tmp_path / "broken", moving_square(3))
    (broken / "frame2.png").write_text("no picture")
    message = fails(read_frames, broken)
    assert "frame2.png is not an image" in message


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
from selrel_zennit.video import read_frames, write_gif, write_mp4
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


@pytest.fixture(scope="module")
def data():
    if "SELREL_DATA" not in os.environ:
        pytest.skip("SELREL_DATA does not name the folder of real clips")
    return Path(os.environ["SELREL_DATA"])


@pytest.mark.parametrize(
    ("name", "shape", "fps"),
    [
        ("v_CricketShot_g04_c01_rgb.gif", (79, 224, 224, 3), 25),
        ("arm_wrestling.mp4", (280, 256, 340, 3), 28),
        ("pool_cleaning.mp4", (32, 256, 340, 3), 30),
    ],
)
def test_real_clips(data, name, shape, fps):
    info = probe(data / name)
    assert (info.frames, info.height, info.width, info.fps, info.rotation) == (*shape[:3], fps, 0)
    frames = read_frames(data / name)
    assert frames.shape == shape
    for index, frame in enumerate(islice(iter_frames(data / name, start=3), 5), 3):
        np.testing.assert_array_equal(frame, frames[index])
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        return
    # A second decoder: the ffmpeg program, another build of the libraries.
    command = [ffmpeg, "-v", "error", "-i", str(data / name), "-fps_mode", "passthrough"]
    raw = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    second = np.frombuffer(raw, np.uint8).reshape(-1, *shape[1:])
    assert second.shape == shape
    # Builds round differently between YUV and RGB; observed: 0.
    assert mean_difference(frames, second) < 1.5
