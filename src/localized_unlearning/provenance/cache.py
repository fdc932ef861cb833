"""The cache: finished jobs kept by their key in a folder that several checkouts or people share.

An entry is a folder ``<dir>/<first two digits>/<key>`` with the job's ``record.json`` and, under
``outputs``, its files. Entries are never changed: they are written under a temporary name and renamed,
so that of two jobs with the same key the first one wins and the other's copy is dropped. Files are
copied in and out, never linked; file systems that can share blocks (Btrfs, XFS, NFS 4.2) do so by
themselves. A later edit of an output therefore cannot reach the store, nor the other way round.

What is restored is hashed against the entry's record. An entry that fails is reported, set aside and
computed again; a store that may only be read is left as it is. A fault of the store never fails a job.

Anyone who may write to a store can plant an entry whose bytes and record agree. Where that is more than one person, entries
can be signed as they are kept (``cache.key``), and only those taken that a listed key signed (``cache.signers``).

Folders and files take the mode of the store's own folder, whatever the umask, so that several people can keep and
restore: ``mkdir -m 2775`` it, owned by their group.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from localized_unlearning import files
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import hashing, locks, records, ssh

RECORD, OUTPUTS, SEAL = "record.json", "outputs", "record.json.sig"

NAMESPACE = "entry@localized-unlearning"

DAMAGED = "damaged"  # where entries that failed are set aside

ABANDONED = 86_400.0  # seconds after which an entry that was never finished counts as left behind


class Damaged(Exception):
    """An entry is not what its own record says."""


class Cache:
    """A store of finished jobs.

    Attributes:
        folder: where it lies.
        read_only: take entries, but write nothing.
        key: an SSH key that signs what is kept.
        signers: an allowed-signers file; only what one of these keys signed is taken.
    """

    def __init__(
        self, folder: Path, read_only: bool, key: Path | None = None, signers: Path | None = None
    ) -> None:
        self.folder, self.read_only, self.key, self.signers = folder, read_only, key, signers
        for name, path in (("key", key), ("signers", signers)):
            if path is not None and not path.is_file():
                raise UserError(f"cache.{name} {path} does not exist: check the path")
        if read_only and not folder.is_dir():
            raise UserError(
                f"cache.dir {folder} does not exist, and cache.read_only forbids making it: "
                "check the path, or whether the disk is mounted"
            )

    def place(self, key: str) -> Path:
        """The folder of an entry."""
        return self.folder / key[:2] / key

    def restore(self, key: str, targets: Mapping[str, Path]) -> records.Record | None:
        """Copy the outputs of the job ``key`` to ``targets`` and verify them.

        Args:
            key: a job's key.
            targets: where to write each output, by name; nothing lies there yet.

        Returns:
            The record of the job that made them; None when there is no entry, or none that is sound.
        """
        entry = self.place(key)
        if not os.path.lexists(entry):
            return None
        try:
            if self.signers is not None and (why := _unsigned(entry, self.signers)):
                _say(f"cache entry {entry} is not taken: {why}; computing instead")
                return None
            record = _restored(entry, key, targets)
        except (Damaged, OSError) as error:
            for target in targets.values():
                remove(target)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            if isinstance(error, Damaged | FileNotFoundError):
                self._set_aside(entry, str(error))
            else:
                _say(f"cache entry {entry} cannot be read ({error}): computing instead")
            return None
        if not self.read_only:
            with suppress(OSError):
                os.utime(entry)  # the time of last use, by which a store is thinned out
        return record

    def _set_aside(self, entry: Path, why: str) -> None:
        if not os.path.exists(entry):
            return  # thinned out in the meantime
        aside = self.folder / DAMAGED / f"{entry.name}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
        done = "left where it is"
        if not self.read_only:
            with suppress(OSError):
                aside.parent.mkdir(exist_ok=True)
                aside.parent.chmod(self._mode())
                os.rename(entry, aside)
                done = f"set aside as {aside}"
        _say(f"cache entry {entry} is damaged ({why}): {done}; computing instead")

    def keep(self, record: records.Record, outputs: Mapping[str, Path]) -> None:
        """Keep a finished job, unless the store has it or may not be written.

        Args:
            record: the job's record.
            outputs: where its outputs lie, by name.
        """
        entry = self.place(record.key)
        if self.read_only or os.path.exists(entry):
            return
        part = files.temporary(entry.with_name(records.record_id(record)[:16]))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            entry.parent.mkdir(exist_ok=True)
            with suppress(OSError):  # another's folder
                entry.parent.chmod(self._mode())
            self._sweep(entry.parent)
            _fill(part, record, outputs)
            if self.key is not None:
                text = (part / RECORD).read_text(encoding="utf-8")
                (part / SEAL).write_text(ssh.sign(text, self.key, NAMESPACE), encoding="utf-8")
            self._open_up(part)
            os.rename(part, entry)
        except (OSError, UserError) as error:
            if not os.path.exists(entry):  # else another job was first
                _say(f"the cache does not keep this job: {error}")
        finally:
            with suppress(OSError):
                remove(part)

    def _mode(self) -> int:
        return stat.S_IMODE(self.folder.stat().st_mode)

    def _open_up(self, part: Path) -> None:
        """Give a new entry the mode of the store: its folders all of it, its files what it says of reading."""
        mode = self._mode()
        for path in (part, *part.rglob("*")):
            path.chmod(mode if path.is_dir() else mode & 0o444)

    def _sweep(self, folder: Path) -> None:
        """Remove what jobs that were killed while keeping left behind."""
        for left in folder.glob(".tmp-*"):
            with suppress(OSError):
                if locks.is_abandoned(left.name) or time.time() - left.stat().st_mtime > ABANDONED:
                    remove(left)


def of(config: Config) -> Cache | None:
    """The store that a config names, if any; ``~`` and variables in its path are expanded.

    Raises:
        UserError: when it may only be read and does not exist.
    """
    if config.cache.dir is None:
        return None

    def expanded(path: str | None) -> Path | None:
        return None if path is None else Path(os.path.expandvars(os.path.expanduser(path)))

    folder = expanded(config.cache.dir)
    assert folder is not None
    return Cache(folder, config.cache.read_only, expanded(config.cache.key), expanded(config.cache.signers))


def _unsigned(entry: Path, signers: Path) -> str:
    """Why an entry is not one that a listed key signed; empty when it is.

    Raises:
        UserError: when ``ssh-keygen`` is missing.
    """
    if not ((entry / RECORD).is_file() and (entry / SEAL).is_file()):
        return "it is not signed"
    return ssh.verify(records.text(entry / RECORD), entry / SEAL, signers, NAMESPACE).fault


def _restored(entry: Path, key: str, targets: Mapping[str, Path]) -> records.Record:
    """Copy an entry's outputs and check every byte.

    Raises:
        Damaged: when the entry is not what its record says.
        OSError: when it cannot be read, or the disk is full.
    """
    try:
        record = records.read(entry / RECORD)
    except FileNotFoundError as error:
        raise Damaged("it has no record") from error
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise Damaged("its record cannot be read") from error
    if record.id != records.record_id(record) or records.key_in(record) != record.key:
        raise Damaged("its record was edited")
    if record.key != key:
        raise Damaged(f"it holds the job {record.key[:8]}..")
    if {output.name for output in record.outputs} != set(targets):
        raise Damaged("it holds other outputs")
    names = [Path(file.name) for output in record.outputs for file in output.files]
    if any(name.is_absolute() or ".." in name.parts for name in names):
        raise Damaged("it names files outside itself")
    for output in record.outputs:
        kept, target = entry / OUTPUTS / output.name, targets[output.name]
        for file in output.files:
            copy(kept / file.name if file.name else kept, target / file.name if file.name else target)
        if hashing.combined(hashing.digest_tree(target)) != output.sha256:
            raise Damaged(f"the bytes of its output '{output.name}' are not those recorded")
    return record


def _fill(part: Path, record: records.Record, outputs: Mapping[str, Path]) -> None:
    (part / OUTPUTS).mkdir(parents=True)
    for output in record.outputs:
        kept, source = part / OUTPUTS / output.name, outputs[output.name]
        for file in output.files:
            copy(source / file.name if file.name else source, kept / file.name if file.name else kept)
    records.write(record, part / RECORD)


def copy(source: Path, target: Path) -> None:
    """Copy one plain file.

    Raises:
        OSError: when it is something else, such as a FIFO that a stranger planted, or cannot be read.
    """
    os.close(hashing.open_plain(source))
    files.copy(source, target)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
