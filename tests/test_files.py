"""Files and folders appear whole or not at all: under errors, Ctrl-C and kill -9, at any step."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import edits
import pytest
from safetensors import SafetensorError

from erasekit import files
from erasekit.errors import EditError
from erasekit.files import sweep, write_folder, write_whole


def not_written(words: str | None, path: Path, error: type[BaseException] = EditError) -> None:
    with pytest.raises(error, match=words) as caught:
        edits.example().save(path)
    assert "\n" not in str(caught.value)


def test_paths_that_cannot_be_written_are_named(tmp_path):
    not_written("is a folder", tmp_path)
    (tmp_path / "file").write_text("x")
    not_written("cannot be written", tmp_path / "file" / "e")
    not_written("not a regular file", Path("/dev/full"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unwritable_folder_is_named(tmp_path, monkeypatch):
    tmp_path.chmod(0o500)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    not_written("permission denied", tmp_path / "e")
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [None, b"the old file"])
def test_a_failure_at_any_step_leaves_the_old_file_or_nothing(tmp_path, monkeypatch, call, error, old):
    path = tmp_path / "e"
    if old:
        path.write_bytes(old)
    with monkeypatch.context() as patch:

        def fail(*args, **kwargs):
            raise error

        patch.setattr(os, call, fail)
        if isinstance(error, OSError):
            not_written("no space left on device; choose another place", path)
        else:
            not_written(None, path, KeyboardInterrupt)
    assert [file.name for file in tmp_path.iterdir()] == (["e"] if old else [])
    assert not old or path.read_bytes() == old


def test_short_writes_are_continued(tmp_path, monkeypatch):
    edits.example().save(tmp_path / "whole")
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data[:1000])))
    edits.example().save(tmp_path / "e")
    assert (tmp_path / "e").read_bytes() == (tmp_path / "whole").read_bytes()


def test_parents_are_made_links_followed_and_modes_usual(tmp_path):
    edits.example().save(tmp_path / "a" / "b" / "e")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a" / "b" / "e")
    edits.example().save(link)
    assert link.is_symlink()
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "a" / "b" / "e").stat().st_mode == (tmp_path / "plain").stat().st_mode


KILLED = """
import os, sys, time
from erasekit import files
real = os.fsync
def slow(handle):
    print("writing", flush=True)
    time.sleep(float(sys.argv[2]))
    real(handle)
os.fsync = slow
files.write_whole(sys.argv[1], b"new" * 100000)
print("done", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("wait", "line"), [("60", "writing"), ("0", "done")])
@pytest.mark.parametrize("old", [None, b"old"])
def test_kill_while_writing_leaves_a_whole_file_or_none(tmp_path, wait, line, old):
    path = tmp_path / "e"
    if old:
        path.write_bytes(old)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path), wait], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while line not in process.stdout.readline() and time.monotonic() < deadline:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    if line == "done":
        assert path.read_bytes() == b"new" * 100000
    else:
        assert (path.read_bytes() if path.exists() else None) == old
    write_whole(path, b"next")
    assert [file.name for file in tmp_path.iterdir()] == ["e"], "what the killed writer left is gone"


def test_one_of_many_files_is_written_without_a_look_at_the_others(tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(files, "sweep", lambda *place: looks.append(place))
    write_whole(tmp_path / "1.png", b"x", swept=True)
    assert looks == [] and (tmp_path / "1.png").read_bytes() == b"x"
    write_whole(tmp_path / "alone", b"x")
    assert len(looks) == 1


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    (tmp_path / "a" / "b").mkdir(parents=True)
    write_whole(tmp_path / "x", b"")
    beside = files._beside(tmp_path / "a" / "b" / "x.png").name
    dead = beside.replace(f"-{os.getpid()}-", f"-{gone.stdout.strip()}-")
    elsewhere = dead.replace(files._host(), "0" * 6)
    for name in (beside, dead, elsewhere, ".mine.part"):
        (tmp_path / "a" / "b" / name).write_bytes(b"half")
    (tmp_path / dead).mkdir()
    (tmp_path / dead / "half").write_bytes(b"")
    sweep(tmp_path)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"x", beside, elsewhere, ".mine.part"} and not (tmp_path / dead).exists()
    sweep(tmp_path / "none")


def test_what_another_container_writes_is_not_swept(tmp_path, monkeypatch):
    """It has process numbers of its own: a living writer of the one is no process of the other."""
    dead = files._beside(tmp_path / "x").name.replace(f"-{os.getpid()}-", f"-{2**30}-")
    (tmp_path / dead).write_bytes(b"half")
    with monkeypatch.context() as patch:
        patch.setattr(files, "PROCESSES", tmp_path)  # another inode
        sweep(tmp_path)
    assert (tmp_path / dead).exists()
    sweep(tmp_path)
    assert not (tmp_path / dead).exists()


def test_a_hash_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    read, path = [], tmp_path / "x"
    path.write_bytes(b"one")
    monkeypatch.setattr(files, "file_sha256", lambda place: read.append(place) or place.read_bytes())
    assert files.known_sha256(path) == files.known_sha256(path) == b"one" and len(read) == 1
    path.write_bytes(b"other")
    assert files.known_sha256(path) == b"other" and len(read) == 2


def test_a_folder_that_was_half_written_goes_with_the_next_one(tmp_path):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    for name in ("out", "other"):
        (tmp_path / files._beside(tmp_path / name).name.replace(f"-{os.getpid()}-", f"-{gone.stdout.strip()}-")).mkdir()
    write_folder(tmp_path / "out", lambda folder: (folder / "part").write_text("x"))
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == [".other", "out"]


def test_folders_appear_whole_or_not_at_all(tmp_path):
    def broken(folder: Path) -> None:
        (folder / "part").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "out", broken)
    assert not list(tmp_path.iterdir())
    write_folder(tmp_path / "out", lambda folder: (folder / "part").write_text("x"))
    assert (tmp_path / "out" / "part").read_text() == "x"
    with pytest.raises(EditError, match="not an empty folder"):
        write_folder(tmp_path / "out", broken)


def test_what_safetensors_cannot_write_is_one_line(tmp_path):
    def full(folder: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(EditError, match=r"out cannot be written: error while serializing.*choose another place"):
        write_folder(tmp_path / "out", full)
    assert not list(tmp_path.iterdir())
