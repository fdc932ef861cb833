"""Digests of files and folders: streamed, and in parallel over files."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple


class FileDigest(NamedTuple):
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


def digest(path: Path) -> FileDigest:
    """Size and SHA-256 of one file."""
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileDigest(stream.tell(), sha256)


def digest_tree(path: Path) -> dict[str, FileDigest]:
    """Digests by relative name: one entry ``""`` for a file, one an ordinary file for a folder."""
    if path.is_file():
        return {"": digest(path)}
    files = sorted(
        p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".snakemake")
    )
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(digest, files))
    return {p.relative_to(path).as_posix(): d for p, d in zip(files, digests, strict=True)}


def combined(tree: dict[str, FileDigest]) -> str:
    """One SHA-256 for a file (its own) or a folder (over names and digests)."""
    if set(tree) == {""}:
        return tree[""].sha256
    text = "\n".join(f"{name} {d.sha256}" for name, d in sorted(tree.items()))
    return hashlib.sha256(text.encode()).hexdigest()
