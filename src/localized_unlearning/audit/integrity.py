"""Integrity: are the bytes what the record says, and is the record what a job wrote?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from localized_unlearning.audit.index import Entry, Index
from localized_unlearning.audit.words import changes, flat, plain, say, short, shown
from localized_unlearning.config import reading
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import code, digests, hashing, locks, pages, records


class Digests:
    """The digests of files, each read at most once.

    Attributes:
        quick: trust digests taken before of files that have not changed since.
    """

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self._known = digests.load(digests.cache_file())
        self._taken: dict[Path, hashing.FileDigest] = {}

    def of(self, path: Path, advance: Callable[[int], object] | None = None) -> hashing.FileDigest:
        """The digest of one file; ``advance`` is told how many bytes each part has.

        Raises:
            OSError: when it cannot be read.
        """
        if path not in self._taken:
            kept = digests.recall(self._known, path) if self.quick else None
            self._taken[path] = kept or hashing.digest(path, advance)
            if kept is None:
                digests.remember(self._known, path, self._taken[path])
        return self._taken[path]

    def tree(self, path: Path) -> dict[str, hashing.FileDigest]:
        """The digests of a file or a folder's files; empty when it does not exist.

        Raises:
            OSError: when it cannot be read.
        """
        return {name: self.of(file) for name, file in hashing.files_of(path).items()}

    def take_all(self, paths: Iterable[Path], progress: bool) -> None:
        """Read every file of some outputs and inputs, in parallel; what cannot be read is left to who asks for it.

        Args:
            paths: files and folders.
            progress: show a bar of bytes when it takes longer than a second.
        """
        from tqdm import tqdm

        found: set[Path] = set()
        for path in paths:
            with suppress(OSError):
                found |= set(hashing.files_of(path).values())
        files = sorted(found - set(self._taken))
        sizes = {file: size for file in files if (size := self._unread(file)) is not None}
        bar = tqdm(
            desc="hashing", total=sum(sizes.values()), unit="B", unit_scale=True, delay=1, leave=False,
            disable=not progress,
        )  # fmt: skip
        with bar, ThreadPoolExecutor(hashing.THREADS) as pool:
            for future in [pool.submit(self.of, file, bar.update) for file in sizes]:
                with suppress(OSError):
                    future.result()
        digests.save(digests.cache_file(), self._known)

    def _unread(self, file: Path) -> int | None:
        """The size of a file that has to be read; None for one that need not or cannot be."""
        with suppress(OSError):
            return None if self.quick and digests.recall(self._known, file) else file.stat().st_size
        return None


class Integrity:
    """Judges outputs by their records, and records by each other."""

    def __init__(self, index: Index, taken: Digests) -> None:
        self.index, self.digests = index, taken

    def of(self, entry: Entry, output: records.Output) -> tuple[str, list[str]]:
        """Whether an output's bytes match its record (ok, modified, missing, unreadable, incomplete), and what differs."""
        path = entry.folder / output.path
        if locks.is_held(entry.outputs[0]):
            return "incomplete", ["a job is writing it now"]
        if not os.path.lexists(path):
            return "missing", ["its record names it, but it does not exist", *self.record_faults(entry)]
        try:
            faults = self._bytes(path, output)
            if faults and entry.record.stage == pages.CONFIG and path.is_file() and not path.is_symlink():
                faults = _other_settings(path, entry.record)
        except OSError as error:
            where = Path(error.filename) if error.filename else path
            return "unreadable", [f"{shown(where)} cannot be read ({error.strerror or error})"]
        faults += self.record_faults(entry)
        return ("modified" if faults else "ok"), faults

    def _bytes(self, path: Path, output: records.Output) -> list[str]:
        odd = hashing.oddities(path)
        if "" in odd:
            return [f"it is {odd['']} now, not what was made"]
        found, recorded = self.digests.tree(path), {file.name: file.sha256 for file in output.files}
        faults = [
            f"{plain(name) or 'bytes'}: recorded {short(sha256)}, "
            f"found {short(found[name].sha256) if name in found else 'none'}"
            for name, sha256 in recorded.items()
            if name not in found or found[name].sha256 != sha256
        ]
        faults += [f"{plain(name) or 'a file'} was added" for name in found if name not in recorded]
        return faults + [
            f"{plain(name)} is {what} now, not the file that was made"
            if name in recorded
            else f"{plain(name)}, {what}, was added"
            for name, what in odd.items()
        ]

    def record_faults(self, entry: Entry) -> list[str]:
        """What is wrong with a record itself."""
        record = entry.record
        if record.id != records.record_id(record) or record.key != records.key_in(record):
            return ["its record was edited by hand: the record's id or key does not match its contents"]
        if (contradiction := _contradiction(record)) is not None:
            return [f"its record was edited by hand: {contradiction}"]
        if rivals := self.index.rivals(entry):
            return [f"{rivals[0].place.name} claims it too: of two records one was planted or left behind"]
        if misplaced := self.index.misplaced(entry):
            return [misplaced]
        if entry.place in self.exchanged:
            return [self.exchanged[entry.place]]
        if self.index.is_planted(entry):
            return ["its record is none of those that jobs of this run are known to have written here"]
        return []

    @cached_property
    def exchanged(self) -> dict[Path, str]:
        """Records that do not fit those of the jobs before or after them, by place, and why.

        A later job notes the id of the record of each input. A record that stands there now under another id is an
        honest rerun's when it names the old one among those it replaces, or when jobs of this run are known to have
        written both ends. No clock is asked.
        """
        found: dict[Path, str] = {}
        for entry in self.index.entries.values():
            for given, path in self.index.inputs(entry):
                producer = self.index.producer(path) if path is not None else None
                if path is None or producer is None or given.record == producer.record.id:
                    continue
                if records.digest_in(producer.record, producer.folder, path) != given.sha256:
                    continue  # other bytes: that it is not current is said elsewhere
                if given.record is None:
                    if producer.record.adopted is None:
                        found[entry.place] = (
                            f"its record does not say which record its input {shown(path)} is of"
                        )
                elif given.record not in producer.record.replaces:
                    guilty = self._guilty(entry, producer, path)
                    if guilty is not None:
                        found[guilty[0].place] = guilty[1]
        return found

    def _guilty(self, entry: Entry, producer: Entry, path: Path) -> tuple[Entry, str] | None:
        """Which of two records that do not fit each other no job is known to have written."""
        written = self.index.is_written_here(entry), self.index.is_written_here(producer)
        if all(written):
            return None
        if written[1]:
            return (
                entry,
                f"its record names another record of its input {shown(path)} than the one that made it",
            )
        return (
            producer,
            f"its record is another one than {shown(entry.outputs[0])} was made from, and does not say that it "
            "replaces that one",
        )


def _other_settings(path: Path, record: records.Record) -> list[str]:
    """How a resolved config differs from the one that was written; comments and layout do not count."""
    try:
        found = reading.read_yaml(path)
    except UserError as error:
        return [str(error)]
    return [
        f"{name} was {say(old)}, now {say(new)}"
        for name, old, new in changes(flat(record.settings), flat(found))
    ]


def _contradiction(record: records.Record) -> str | None:
    """Where a record says two things of one."""
    if code.code_digest(record.code) != record.code_digest:
        return "the digest of its code is not that of the modules it lists"
    for output in record.outputs:
        tree = {file.name: hashing.FileDigest(file.size, file.sha256) for file in output.files}
        if len(tree) != len(output.files) or hashing.combined(tree) != output.sha256:
            return f"the digest of {output.name} is not that of the files it lists"
    return None
