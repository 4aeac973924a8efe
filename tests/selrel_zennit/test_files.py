from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from selrel_zennit.errors import InputError
from selrel_zennit.files import atomic_path, check_folder, sha256_file, staged_folder


def tree(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def assert_one_line(error: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert "choose another place" in message
    for part in parts:
        assert part in message


def test_files_appear_when_the_block_ends(tmp_path):
    out = tmp_path / "a" / "b" / "out"
    with staged_folder(out) as staging:
        (staging / "x.txt").write_text("x")
        (staging / "frames").mkdir()
        (staging / "frames" / "y.txt").write_text("y")
        assert not out.parent.exists()
        assert staging.stat().st_dev == tmp_path.stat().st_dev
    assert tree(tmp_path) == {"a/b/out/x.txt": "x", "a/b/out/frames/y.txt": "y"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_permissions_are_those_of_any_new_folder(tmp_path):
    (tmp_path / "plain").mkdir()
    with staged_folder(tmp_path / "out") as staging:
        (staging / "x.txt").write_text("x")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_existing_files_are_replaced_or_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "same.txt").write_text("old")
    (out / "other.txt").write_text("other")
    with staged_folder(out) as staging:
        (staging / "same.txt").write_text("new")
        assert (out / "same.txt").read_text() == "old"
    assert tree(out) == {"same.txt": "new", "other.txt": "other"}
    assert sorted(entry.name for entry in out.iterdir()) == ["other.txt", "same.txt"]


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existed", [False, True])
def test_an_exception_leaves_nothing(tmp_path, exception, existed):
    out = tmp_path / "out"
    if existed:
        out.mkdir()
        (out / "x.txt").write_text("old")
    before = tree(tmp_path)

    def write():
        with staged_folder(out) as staging:
            (staging / "x.txt").write_text("half")
            raise exception

    with pytest.raises(exception):
        write()
    assert tree(tmp_path) == before
    assert out.exists() == existed
    assert not list(tmp_path.rglob(".*"))


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(InputError) as error, staged_folder(out):
            pytest.fail("the block must not run")
        assert_one_line(error, str(out), "file is not a folder")
    assert tree(tmp_path) == {"file": "kept"}


def test_a_dangling_link_in_the_way(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    with pytest.raises(InputError) as error, staged_folder(tmp_path / "link"):
        pytest.fail("the block must not run")
    assert_one_line(error, "link is not a folder")


def test_no_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for context in (staged_folder(tmp_path / "out"), atomic_path(tmp_path / "out" / "x.txt")):
        with pytest.raises(InputError) as error, context:
            pytest.fail("the block must not run")
        assert_one_line(error, "no permission", str(tmp_path))


def test_a_file_system_that_refuses(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(InputError) as error, staged_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert_one_line(error, "Read-only file system")


def test_a_folder_in_the_place_of_a_file_moves_nothing(tmp_path):
    out = tmp_path / "out"
    (out / "b.txt").mkdir(parents=True)

    def write():
        with staged_folder(out) as staging:
            (staging / "a.txt").write_text("a")
            (staging / "b.txt").write_text("b")

    with pytest.raises(InputError) as error:
        write()
    assert_one_line(error, "b.txt", "folder of that name")
    assert [entry.name for entry in out.iterdir()] == ["b.txt"]


def test_atomic_path(tmp_path):
    path = tmp_path / "new" / "x.tar.gz"
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".gz"
        temporary.write_text("first")
        assert not path.parent.exists()
    assert path.read_text() == "first"

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert tree(tmp_path) == {"new/x.tar.gz": "first"}
    with atomic_path(path) as temporary:
        temporary.write_text("second")
    assert tree(tmp_path) == {"new/x.tar.gz": "second"}


def test_atomic_path_refuses_a_folder_and_a_path_below_a_file(tmp_path):
    (tmp_path / "file").write_text("kept")
    for path, part in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.txt", "not a folder")):
        with pytest.raises(InputError) as error, atomic_path(path):
            pytest.fail("the block must not run")
        assert_one_line(error, part)


KILLED = """
import os, signal, sys
from selrel_zennit.files import staged_folder
with staged_folder(sys.argv[1]) as folder:
    (folder / "half.txt").write_text("half")
    print(folder, flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("existed", [False, True])
def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path, existed):
    out = tmp_path / "out [1]*"
    if existed:
        out.mkdir()
    place = out if existed else tmp_path

    def started(name=out):
        return subprocess.Popen(
            [sys.executable, "-c", KILLED, str(name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    # Another run into the same folder, one into another, and folders that only look like it.
    with started() as running, started() as killed, started(tmp_path / "other") as elsewhere:
        kept, left, others = (Path(process.stdout.readline().strip()) for process in (running, killed, elsewhere))
        killed.communicate("\n")
        elsewhere.communicate("\n")
        mine = place / ".out [1]*-mine"
        mine.mkdir()
        link = place / ".out [1]*-abcdefgh.staging"
        link.symlink_to(mine)
        assert (left / "half.txt").exists()
        with staged_folder(out) as staging:
            assert not left.exists()
            assert all(path.exists() for path in (kept, others, mine, link, staging))
        assert (kept / "half.txt").exists()
        running.communicate("\n")
    with staged_folder(out):
        assert not kept.exists()


def write_until_full(place, wrapped):
    file = place / "a.bin" if place.is_dir() else place
    file.write_bytes(bytes(2_500_000))
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as full:
        if wrapped:
            raise RuntimeError("could not write") from full
        raise


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_named(tmp_path, wrapped):
    """Where, how much of it was there, and how much room is left; also where a library has made another error of it."""
    for context, name in ((staged_folder, "out"), (atomic_path, "x.npz")):
        with pytest.raises(InputError) as error, context(tmp_path / name) as place:
            write_until_full(place, wrapped)
        assert_one_line(error, f"cannot write to {tmp_path / name}: the disk is full after 2.5 MB, with ", " MB free")
        assert not any(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="another"), staged_folder(tmp_path / "out"):
        raise RuntimeError("another")


def test_a_folder_is_checked_before_long_work(tmp_path):
    (tmp_path / "file").write_text("kept")
    check_folder(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError) as error:
            check_folder(path)
        assert_one_line(error, "is not a folder")


def test_sha256(tmp_path):
    content = os.urandom((1 << 20) + 17)
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    (tmp_path / "x").write_bytes(b"abc")
    # The example of FIPS 180-2, appendix B.1.
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


TERMINATED = """
import signal, sys, time, types
import click
from selrel_zennit import cli
from selrel_zennit.files import atomic_path, staged_folder

@click.command()
def work():
    with staged_folder("out") as folder, atomic_path("summary.json"):
        (folder / "half.txt").write_text("half")
        print("ready", flush=True)
        time.sleep(60)

# A process that was started in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.modules["work"] = types.SimpleNamespace(work=work)
cli.COMMANDS["work"] = cli._Entry("work:work", "Work.")
sys.exit(cli.main(["work"]))
"""


def test_sigterm_leaves_nothing_half_written(tmp_path):
    """What systemd and docker stop send; the command ends as it does at Ctrl-C, with the exit code of the signal."""
    for sent, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with subprocess.Popen(
            [sys.executable, "-c", TERMINATED], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "ready\n"
            assert any(tmp_path.iterdir())
            process.send_signal(sent)
            assert process.wait(20) == code
            said = process.stderr.read().strip()
            assert said.startswith("selrel: error: ended by SIGTERM; " if code == 143 else "selrel: error: interrupted")
            assert "\n" not in said
        assert not any(tmp_path.iterdir())
