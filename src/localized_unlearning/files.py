"""Small things that every floor does with files and JSON."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

CHUNK = 1 << 30  # bytes that the system is asked to copy at a time


def canonical_json(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII; equal values give equal strings.

    >>> canonical_json({"b": 1, "a": [None, "é"]})
    '{"a":[null,"\\\\u00e9"],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def host() -> str:
    """Where a process number means the same process: this machine since it started, and this container."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def temporary(path: Path) -> Path:
    """A name beside ``path`` for what this process writes before it is renamed.

    It keeps the suffix, since writers choose their format by it, and holds the machine's mark too: containers
    and nodes that share a folder may have processes of one number.
    """
    return path.with_name(f".tmp-{host()}-{os.getpid()}-{path.name}")


def write_text(path: Path, text: str, durable: bool = False) -> None:
    """Write a text file whole or not at all: under a temporary name beside it, then renamed.

    Args:
        path: the file.
        text: what it holds, in UTF-8.
        durable: whether it has reached the disk when this returns.
    """
    part = temporary(path)
    try:
        with part.open("w", encoding="utf-8") as stream:
            stream.write(text)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copy one file's bytes, by shared blocks where the file system can, making the folders above it.

    Two names of one file would let an edit of the copy reach the original; shared blocks do not.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as write:
        try:
            while os.copy_file_range(read.fileno(), write.fileno(), CHUNK):
                pass
        except (AttributeError, OSError):  # not this system, or not between these two file systems
            read.seek(0)
            write.seek(0)
            write.truncate()
            shutil.copyfileobj(read, write, 1 << 20)
