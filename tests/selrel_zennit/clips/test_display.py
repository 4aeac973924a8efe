"""What a viewer sees of decoded frames: square pixels; and what is said of interlacing, alpha and cover pictures."""

from __future__ import annotations

import struct
import zlib

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from selrel_zennit.clips.cutting import cut, describe_source
from selrel_zennit.clips.spec import ClipSpec
from selrel_zennit.clips.video import probe, read_frames
from videos import encode, encode_mp4, fails, folder_of, mean_difference, moving_square, set_track_matrix


def disc(count=6, size=64, aspect=2.0):
    """A disc that is round once pixels are ``aspect`` times as wide as high."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    frames = np.full((count, size, size, 3), 30, np.uint8)
    frames[:, np.hypot(x * max(aspect, 1), y / min(aspect, 1)) < size * 0.44] = 220
    return frames


def extent(frame):
    on = frame[..., 0] > 125
    return int(on.any(axis=0).sum()), int(on.any(axis=1).sum())


@pytest.mark.parametrize(
    ("name", "codec", "aspect", "size"),
    [
        ("x.mp4", "libx264", "2", (64, 128)),
        ("x.mkv", "libx264", "16/11", (64, 93)),
        ("x.avi", "mpeg4", "1/2", (128, 64)),
        ("x.ts", "mpeg2video", "16/9", (64, 114)),
    ],
)
def test_a_disc_is_round(tmp_path, name, codec, aspect, size):
    over, _, under = aspect.partition("/")
    stored = disc(aspect=int(over) / int(under or 1))
    path = encode(tmp_path / name, stored, codec, options={"b": "4000000"}, aspect=aspect)
    assert abs(np.subtract(*extent(stored[0]))) > 8, "as stored it is none"
    info, frames = probe(path), read_frames(path)
    assert (info.height, info.width) == frames.shape[1:3] == size
    assert abs(np.subtract(*extent(frames[0]))) <= 2
    ratio = f"{over}:{under or 1}"
    assert [f"pixels are {ratio}, not square: 64×64 resampled to {size[1]}×{size[0]}"] == [
        note for note in info.notes if "square" in note
    ]
    # The same for the network, and the note is passed on.
    spec = ClipSpec(frames=4, short_side=32, crop=32)
    (clip,) = cut(path, spec, 0, False, [])
    assert abs(np.subtract(*extent(clip.pixels[0]))) <= 1
    assert info.notes[0] in describe_source(path, spec)[0]
    # Nothing but that: the stored frames, each resampled.
    with av.open(str(path)) as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    np.testing.assert_array_equal(frames, [cv2.resize(frame, size[::-1]) for frame in plain])


def test_resampled_before_it_is_turned(tmp_path):
    path = encode(tmp_path / "x.mp4", disc(8), "libx264", options={"crf": "12"}, aspect="2")
    set_track_matrix(path, 0, 1, -1, 0)
    info, frames = probe(path), read_frames(path)
    assert (info.height, info.width, info.rotation) == (128, 64, 90)
    assert frames.shape[1:3] == (128, 64)
    assert abs(np.subtract(*extent(frames[0]))) <= 2


def test_ratios_that_are_left_alone(tmp_path):
    """What rounding to even sizes leaves behind is invisible, and resampling would blur; 20:1 is a mistake."""
    near = encode(tmp_path / "near.mp4", moving_square(4), "libx264", aspect="1280/1279")
    assert read_frames(near).shape[1:3] == (72, 96)
    assert probe(near).notes == ()
    absurd = encode(tmp_path / "absurd.mp4", moving_square(4), "libx264", aspect="20")
    assert read_frames(absurd).shape[1:3] == (72, 96)
    assert probe(absurd).notes == ("pixels said to be 20:1, which no camera makes: taken for square",)


def test_a_folder_of_such_pictures(tmp_path):
    """ffmpeg writes the ratio of a video into the pictures that it makes of it: as such in a PNG's pHYs chunk."""
    folder = folder_of(tmp_path / "frames", disc(3))
    content = b"pHYs" + struct.pack(">IIB", 2, 1, 0)
    chunk = struct.pack(">I", 9) + content + struct.pack(">I", zlib.crc32(content))
    for file in folder.iterdir():
        data = file.read_bytes()
        file.write_bytes(data[:33] + chunk + data[33:])
    frames = read_frames(folder)
    assert frames.shape == (3, 64, 128, 3)
    assert abs(np.subtract(*extent(frames[0]))) <= 2
    assert "pixels are 2:1" in probe(folder).notes[0]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("x.mp4", "libx264", {"x264-params": "interlaced=1:tff=1"}),
        ("x.ts", "mpeg2video", {"flags": "+ildct+ilme"}),
    ],
)
def test_interlaced(tmp_path, name, codec, options):
    frames = moving_square(24)
    woven = frames[::2].copy()
    woven[:, 1::2] = frames[1::2, 1::2]
    path = encode(tmp_path / name, woven, codec, options={"b": "4000000", **options})
    (note,) = probe(path).notes
    assert note.startswith("interlaced")
    # The remedy is one: no comb is left of it, and ffmpeg knows it.
    assert "-vf bwdif=send_frame" in note
    graph = av.filter.Graph()
    with av.open(str(path)) as container:
        source = graph.add_buffer(template=container.streams.video[0])
        bwdif, sink = graph.add("bwdif", "send_frame"), graph.add("buffersink")
        source.link_to(bwdif)
        bwdif.link_to(sink)
        graph.configure()
        for frame in container.decode(video=0):
            graph.push(frame)
        graph.push(None)
    remedied = graph.pull()
    assert not remedied.interlaced_frame
    assert probe(encode(tmp_path / f"progressive_{name}", frames, codec)).notes == ()


def see_through(count=4, height=48, width=64):
    rgba = np.concatenate([moving_square(count, height, width), np.full((count, height, width, 1), 255, np.uint8)], 3)
    rgba[..., -8:, 3] = 0
    return rgba


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "avif"])
@pytest.mark.parametrize("opaque", [False, True])
def test_alpha_of_animated_pictures(tmp_path, kind, opaque):
    rgba = see_through()
    if opaque:
        rgba[..., 3] = 255
    pictures = [Image.fromarray(frame if not opaque else frame[..., :3]) for frame in rgba]
    path = tmp_path / f"x.{kind}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40, disposal=2)
    assert probe(path).notes == (() if opaque else ("alpha channel dropped",))
    assert len(read_frames(path)) == 4


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("x.webm", "libvpx-vp9", "yuva420p"),
        ("x.mov", "prores_ks", "yuva444p10le"),
        ("x.mov", "qtrle", "argb"),
        ("x.mkv", "ffv1", "bgra"),
    ],
)
def test_alpha_of_videos(tmp_path, name, codec, pix_fmt):
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    path = encode(tmp_path / name, see_through(), codec, pix_fmt, "rgba", options={"b": "2000000"})
    assert probe(path).notes[0] == "alpha channel dropped"
    plain = encode(tmp_path / f"plain_{name}", see_through()[..., :3], codec, "yuv420p" if "vpx" in codec else pix_fmt)
    assert not [note for note in probe(plain).notes if "alpha" in note]


def song(path, codec, container=None, film=None):
    """Write sound with a cover picture, or a film with one."""
    cv2.imwrite(str(path.with_suffix(".jpg")), np.full((64, 64, 3), 200, np.uint8))
    rate = 44100
    with av.open(str(path.with_suffix(".jpg"))) as cover, av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=25 if film is not None else rate)
        if film is not None:
            stream.height, stream.width, stream.pix_fmt = *film.shape[1:3], "yuv420p"
        picture = output.add_stream_from_template(cover.streams.video[0])
        picture.disposition = Disposition.attached_pic.value
        for packet in cover.demux():
            if packet.size:
                packet.stream = picture
                output.mux(packet)
        for index in range(40 if film is None else len(film)):
            if film is not None:
                frame = av.VideoFrame.from_ndarray(film[index], format="rgb24")
                frame.pts = index
            else:
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 2304), np.int16), format="s16", layout="stereo")
                frame.sample_rate = rate
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [("x.m4a", "aac", "mp4"), ("x.mp3", "libmp3lame", "mp3"), ("x.flac", "flac", "flac")],
)
def test_the_cover_of_a_song_is_no_video(tmp_path, name, codec, container):
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    path = song(tmp_path / name, codec, container)
    for read in (probe, read_frames):
        message = fails(read, path)
        assert message.startswith(f"{path} holds no video: its one picture is a cover, as audio files have; give")


def test_a_film_may_have_a_cover(tmp_path):
    film = moving_square(10)
    path = song(tmp_path / "x.mp4", "libx264", "mp4", film)
    assert mean_difference(read_frames(path), film) < 4
    assert probe(encode_mp4(tmp_path / "y.mp4", film)).notes == probe(path).notes == ()
