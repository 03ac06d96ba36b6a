"""Files and folders that appear whole or not at all, and errors of the file system as one clear line."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from os import PathLike
from pathlib import Path

from erasekit.errors import EditError

PART = re.compile(r"\..*\.(?P<host>[0-9a-f]{6})-(?P<pid>\d+)-[0-9a-f]{12}\.part", re.DOTALL)
"""A hidden file or folder that is being written: the name of what it becomes, the machine, the process, chance."""
PROCESSES = Path("/proc/self/ns/pid")
"""Where Linux says which processes this one counts among: a container's have numbers of their own."""


def write_whole(path: str | PathLike[str], *data: bytes | memoryview, swept: bool = False) -> None:
    """Write `data`, piece after piece, to `path`; whatever happens (Ctrl-C, kill, full disk) `path` holds the old file
    or the new one.

    Missing parent folders are made. The data goes to a hidden file beside it, to the disk, then into place. What a killed
    writer of `path` left beside it is deleted, which takes a look at every name in the folder: who writes one of many
    files there calls `sweep` once, before the first, and says `swept`.
    """
    fill_whole(path, lambda beside: _write_new(beside, data), swept=swept)


def fill_whole(path: str | PathLike[str], fill: Callable[[Path], object], *, swept: bool = False) -> None:
    """`write_whole` for what is too large to hold as bytes: `fill` writes the hidden file that becomes `path`."""
    target = Path(os.path.realpath(path))  # a link keeps pointing where it points
    beside = _beside(target)
    try:
        with _one_line(path):
            check_writable(path)
            if not swept:
                sweep(target.parent, f".{glob.escape(target.name[:50])}.*.part")
            fill(beside)
            _sync_file(beside)
            beside.replace(target)
            _sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):  # gone already, or never made
            beside.unlink()


def check_writable(path: str | PathLike[str]) -> None:
    """Make the parent folders of `path`; `EditError` if a file can surely not be written there.

    Call it before long work, so that the work is not lost.
    """
    target = Path(os.path.realpath(path))
    with _one_line(path):
        if target.is_dir():
            raise EditError(f"{path} is a folder: give the name of a file in it")
        if target.exists() and not target.is_file():
            raise EditError(f"{path} is not a regular file: choose another place")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")


def write_folder(path: str | PathLike[str], fill: Callable[[Path], object]) -> None:
    """Make the folder `path` whole or not at all: `fill` writes into a hidden one beside it, then it is renamed.

    Raises:
        EditError: `path` is a file or a folder that is not empty, or cannot be written.
    """
    target = Path(os.path.realpath(path))
    sweep(target.parent, f".{glob.escape(target.name[:50])}.*.part")
    beside = _beside(target)
    try:
        with _one_line(path):
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise EditError(f"{path} exists and is not an empty folder: choose another place")
            target.parent.mkdir(parents=True, exist_ok=True)
            beside.mkdir()
            fill(beside)
            for file in beside.rglob("*"):
                if file.is_file():
                    _sync_file(file)
            beside.replace(target)
            _sync_folder(target.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def sweep(folder: str | PathLike[str], pattern: str = "**/.*.part") -> None:
    """Delete what processes of this machine that were killed while they wrote have left in the folder and below it.

    What a living process, another machine or another container may still be writing stays, and what cannot be deleted.
    """
    for left in list(Path(folder).glob(pattern)):
        found = PART.fullmatch(left.name)
        if found is None or found["host"] != _host() or _alive(int(found["pid"])):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                left.unlink()


def read_bytes(path: str | PathLike[str], *, header_only: bool = False) -> bytes:
    """A file's bytes, or those of its safetensors header; `EditError` names what is wrong with the path."""
    try:
        with Path(path).open("rb") as file:
            if not header_only:
                return file.read()
            start = file.read(9)
            # A length that is not a header's (another kind of file) is not read: the caller refuses it by its start.
            length = int.from_bytes(start[:8], "little") if start[8:] == b"{" else 0
            return start + file.read(max(0, min(length, 100_000_000) - 1))
    except IsADirectoryError as error:
        raise EditError(f"{path} is a folder: give the edit's .safetensors file") from error
    except FileNotFoundError as error:
        raise EditError(f"{path} does not exist: check the name of the edit file") from error
    except (OSError, ValueError) as error:
        raise EditError(f"{path} cannot be read: {_reason(error)}; check its permissions, or copy it again") from error


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, read in pieces."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def known_sha256(path: Path) -> str:
    """`file_sha256`, which within one process reads a file again only where its size, time or inode is another."""
    facts = path.stat()
    return _sha256_of(path.absolute(), facts.st_size, facts.st_mtime_ns, facts.st_ino)


@lru_cache(maxsize=1024)
def _sha256_of(path: Path, *_: int) -> str:
    return file_sha256(path)


def _beside(target: Path) -> Path:
    """A hidden name in the same folder (the same disk, so that the last step is a rename)."""
    return target.parent / f".{target.name[:50]}.{_host()}-{os.getpid()}-{secrets.token_hex(6)}.part"


def _host() -> str:
    """The machine; of containers on one machine each is its own, as none sees whether another's processes live."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):  # not Linux
        name += f" {PROCESSES.stat().st_ino}"
    return hashlib.sha256(name.encode()).hexdigest()[:6]


def _alive(pid: int) -> bool:
    """Whether the process may still be there; elsewhere than on POSIX a signal of 0 is no question, so it may."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or a number that cannot be asked for
        return True
    return True


@contextlib.contextmanager
def _one_line(path: str | PathLike[str]) -> Iterator[None]:
    """What the file system refuses, as one `EditError`; what safetensors writes has an error of its own for that."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise EditError(f"{path} cannot be written: {_reason(error)}; choose another place") from error


def _write_new(path: Path, pieces: Sequence[bytes | memoryview]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(handle, view) :]
    finally:
        os.close(handle)


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    """Put the rename itself on the disk, where the file system can."""
    with contextlib.suppress(OSError):  # not every file system syncs folders; the file is whole either way
        _sync_file(path)


def _reason(error: Exception) -> str:
    words = getattr(error, "strerror", None) or str(error)
    return words[:1].lower() + words[1:]
