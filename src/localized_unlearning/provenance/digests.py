"""Digests taken before, so that ``audit verify --quick`` need not read unchanged files again, nor each job
the 17 GB of its base model.

They are kept in the user's cache folder, never in the audited one, by device and inode together with
size and the times of the last change of content and of inode. A program can set the former back;
the latter it cannot, so that a file edited in place is noticed even where its mtime was restored.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from localized_unlearning import files
from localized_unlearning.provenance import hashing
from localized_unlearning.provenance.hashing import FileDigest

Known = dict[str, tuple[list[int], str]]

LIMIT = 200_000  # files remembered

SETTLED = 1.0  # seconds a file must have been left alone before its digest is remembered

LARGE = 1 << 24  # bytes from which a job's input is not read again when it has not changed since


def digest_tree(path: Path) -> dict[str, FileDigest]:
    """As :func:`hashing.digest_tree`, but large files that have not changed since they were read are not read again."""
    files = hashing.files_of(path)
    large = [name for name, file in files.items() if file.stat().st_size >= LARGE]
    known = load(cache_file()) if large else {}
    recalled = {name: kept for name in large if (kept := recall(known, files[name]))}
    fresh = {name: file for name, file in files.items() if name not in recalled}
    with ThreadPoolExecutor(hashing.THREADS) as pool:
        taken = dict(zip(fresh, pool.map(hashing.digest, fresh.values()), strict=True))
    for name in large:
        if name in taken:
            remember(known, files[name], taken[name])
    if len(recalled) < len(large):
        save(cache_file(), known)
    return {name: recalled.get(name) or taken[name] for name in files}


def state(path: Path) -> dict[str, list[int]]:
    """Size, the times of the last change of content and of inode (ns), and inode of each file, by relative name.

    Raises:
        OSError: when it cannot be read.
    """
    return {
        name: [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        for name, file in hashing.files_of(path).items()
        for found in (file.stat(),)
    }


def cache_file() -> Path | None:
    """Where digests are kept; None for a user without a home."""
    try:
        folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(folder) / "localized-unlearning" / "digests.json"


def load(path: Path | None) -> Known:
    """The digests kept in ``path``; none when it is absent or damaged."""
    if path is None:
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {key: (list(stamp), str(sha256)) for key, (stamp, sha256) in data.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}


def save(path: Path | None, known: Mapping[str, tuple[list[int], str]]) -> None:
    """Keep digests, the newest up to a limit; a cache that cannot be written is no fault."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(dict(list(known.items())[-LIMIT:])))
    except OSError:
        return


def recall(known: Known, path: Path) -> FileDigest | None:
    """The digest of a file that has not changed since it was taken."""
    key, stamp = _stamp(path)
    kept = known.get(key)
    return FileDigest(stamp[0], kept[1]) if kept and kept[0] == stamp else None


def remember(known: Known, path: Path, digest: FileDigest) -> None:
    """Keep a digest just taken, unless the file was changed a moment ago and may be again unseen."""
    key, stamp = _stamp(path)
    known.pop(key, None)
    if stamp[0] == digest.size and time.time_ns() - stamp[2] > SETTLED * 1e9:
        known[key] = (stamp, digest.sha256)


def _stamp(path: Path) -> tuple[str, list[int]]:
    status = path.stat()
    return f"{status.st_dev}:{status.st_ino}", [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
