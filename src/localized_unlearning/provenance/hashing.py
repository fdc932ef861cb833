"""Digests of files and folders: streamed, and in parallel over files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

THREADS = min(8, os.cpu_count() or 1)

BUFFER = 1 << 20  # bytes read at a time; hashing them lets other threads run


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
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            sha256.update(buffer[:count])
            size += count
            if advance is not None:
                advance(count)
    return FileDigest(size, sha256.hexdigest())


def files_of(path: Path) -> dict[str, Path]:
    """The files of a folder by relative name, ``{"": path}`` for a file, none for what does not exist.

    Snakemake's own time stamp inside an output folder does not count.
    """
    if path.is_file():
        return {"": path}
    found = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
    return {name: p for name, p in sorted(found.items()) if not p.name.startswith(".snakemake")}


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
