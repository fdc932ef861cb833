"""Digests of files and folders: streamed, and in parallel over files."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

THREADS = min(8, os.cpu_count() or 1)

BUFFER = 1 << 20  # bytes read at a time; hashing them lets other threads run

TIMESTAMP = ".snakemake_timestamp"
"""Snakemake's own mark inside an output folder, which is none of its contents."""


class FileDigest(NamedTuple):
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


def digest(path: Path, advance: Callable[[int], object] | None = None) -> FileDigest:
    """Size and SHA-256 of one file.

    Args:
        path: the file.
        advance: told the number of bytes of each part that was read, for a progress bar.
    """
    sha256, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(BUFFER))
    with open(open_plain(path), "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            sha256.update(buffer[:count])
            size += count
            if advance is not None:
                advance(count)
    return FileDigest(size, sha256.hexdigest())


def open_plain(path: Path) -> int:
    """A descriptor to read a plain file; a FIFO that nobody writes to would hang, a device never end.

    Raises:
        OSError: when it is something else, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a plain file", str(path))


def files_of(path: Path) -> dict[str, Path]:
    """The files of a folder by relative name, ``{"": path}`` for a file, none for what does not exist.

    Links to files count as the files they lead to; :func:`oddities` names them. Snakemake's own time stamp does
    not count.

    Raises:
        OSError: when a folder cannot be read.
    """
    if path.is_file():
        return {"": path}
    found = {
        Path(here, name).relative_to(path).as_posix(): Path(here, name)
        for here, _, files in _walk(path)
        for name in files
        if name != TIMESTAMP or Path(here) != path
    }
    return {name: file for name, file in sorted(found.items()) if file.is_file()}


def oddities(path: Path) -> dict[str, str]:
    """What an output holds besides plain files, by relative name ("" for itself): links, FIFOs, empty folders.

    Raises:
        OSError: when a folder cannot be read.
    """
    if path.is_symlink():
        return {"": "a symbolic link"}
    if not path.is_dir():
        return {} if path.is_file() else {"": _kind(path)}
    found = {}
    for here, folders, files in _walk(path):
        below = Path(here).relative_to(path).as_posix()
        if not folders and not files and Path(here) != path:
            found[below] = "an empty folder"
        for name in (*folders, *files):
            inner = Path(here, name)
            if inner.is_symlink() or not (inner.is_dir() or inner.is_file()):
                found[inner.relative_to(path).as_posix()] = _kind(inner)
    return dict(sorted(found.items()))


def _kind(path: Path) -> str:
    mode = path.lstat().st_mode
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    def fail(error: OSError) -> None:
        raise error

    return os.walk(folder, onerror=fail) if os.path.lexists(folder) else iter(())


def digest_tree(path: Path) -> dict[str, FileDigest]:
    """Digests by relative name: one entry ``""`` for a file, one an ordinary file for a folder."""
    files = files_of(path)
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(files, pool.map(digest, files.values()), strict=True))


def combined(tree: dict[str, FileDigest]) -> str:
    """One SHA-256 for a file (its own) or a folder (over names and digests)."""
    if set(tree) == {""}:
        return tree[""].sha256
    text = "\n".join(f"{name} {d.sha256}" for name, d in sorted(tree.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def text(value: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(value.encode()).hexdigest()
