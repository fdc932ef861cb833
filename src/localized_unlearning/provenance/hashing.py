"""Digests of files and folders: streamed, and in parallel over files."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

THREADS = min(8, os.cpu_count() or 1)


class FileDigest(NamedTuple):
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


def digest(path: Path) -> FileDigest:
    """Size and SHA-256 of one file."""
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileDigest(stream.tell(), sha256)


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
