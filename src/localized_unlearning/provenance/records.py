"""Records: one JSON file per job, beside its outputs.

Two identities are kept apart. The *key* is deterministic: stage, settings, wildcards, code, lock
and the digests of the inputs, so equal keys promise equal bytes on equal machines. The *record id*
is the hash of the whole record, times and machine included, and what a later job's record points
to. Paths are relative: inputs to the folder the job ran in, outputs to the record's own folder, so
a results folder can be copied and verified elsewhere. What is not known is absent.

On disk a record also carries its id, so that an edited one gives itself away. Its file is named after the job's
first output, so no two jobs share one. A copy of every record that a job wrote is kept in ``.records`` of its run
(:func:`journal`): a job that replaces a record names the ids of those before it, also where they were deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from localized_unlearning import files
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import hashing

SCHEMA_VERSION = 2

SUFFIX = ".record.json"

ADOPTED = ".adopted"

JOURNAL = ".records"
"""Folder of a run that keeps every record a job wrote, by place and id."""

LARGEST = 1 << 26  # bytes of a record; a job of a thousand inputs has a third of a megabyte

DEEPEST = 100  # nested values of a record


def _usable(name: str) -> str:
    """A file name that the operating system can be asked for."""
    os.fsencode(name)
    if "\0" in name:
        raise ValueError("a file name holds NUL")
    return name


def _inside(name: str) -> str:
    """A relative path that stays below its folder."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError("a file name leads outside its folder")
    return _usable(name)


def _plain_name(name: str) -> str:
    """The name of a file in the record's own folder."""
    if name in ("", ".", "..") or "/" in name:
        raise ValueError("an output lies beside its record")
    return _usable(name)


Usable = Annotated[str, AfterValidator(_usable)]

Inside = Annotated[str, AfterValidator(_inside)]

PlainName = Annotated[str, AfterValidator(_plain_name)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Part):
    """A file of an output: name inside the output ("" for the output itself), size in bytes, SHA-256."""

    name: Inside
    size: int
    sha256: str


class Input(_Part):
    """An input: its name in the stage, path, digest, and the record that made it, where there is one.

    ``outside`` marks one that lies outside the workflow's folder: its path is then its base name alone.
    """

    name: str
    path: Usable
    outside: bool | None = None
    size: int | None = None
    sha256: str
    record: str | None = None


class Output(_Part):
    """An output: its name in the stage, file name beside the record, digest, and its files."""

    name: str
    path: PlainName
    sha256: str
    files: tuple[File, ...]


class Adoption(_Part):
    """A file of unknown origin that a person took into the record, and why."""

    reason: str


class Restored(_Part):
    """Where the outputs of a job that was not computed here come from: the record kept in the cache.

    ``record`` is its id; the rest is that record's own: when, on what and from which commit it was made.
    """

    record: str
    commit: dict[str, Any]
    host: dict[str, Any]
    compute: dict[str, Any] = {}
    versions: dict[str, str]
    started: str
    ended: str
    seconds: float


class Record(_Part):
    """What one job read, did and wrote.

    ``folder`` is the outputs' folder, relative to the one the job ran in (absent when outside), so
    that a file moved elsewhere is noticed. ``deviations`` are installed versions that the lock does
    not state. A job restored from a cache says so under ``restored``; its ``facts`` are those of the
    job that computed, its times, host and commit those of the restoring. ``id`` is the record's own, as written in
    its file; it is not part of what it hashes. ``memory`` is the most it held beyond what its process held when
    it began, in GB: ``process`` and, on a GPU, ``device``; absent where the system does not say. ``cpu_seconds`` are
    those of its process and its children. ``compute`` is how it computed: the effective threads, device, batch size
    and the like, on which bytes may depend although the key does not hold them. ``replaces`` are the ids of the
    records that stood in its place before, so that a rerun is not taken for an exchange.
    """

    schema_version: int = SCHEMA_VERSION
    stage: str
    function: str | None = None
    key: str
    folder: str | None = None
    wildcards: dict[str, str]
    settings: dict[str, Any]
    code: dict[str, str]
    code_digest: str
    lock: str | None = None
    lock_name: str | None = None
    deviations: dict[str, str] = {}
    versions: dict[str, str]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    facts: dict[str, Any]
    commit: dict[str, Any]
    host: dict[str, Any]
    compute: dict[str, Any] = {}
    started: str
    ended: str
    seconds: float
    cpu_seconds: float | None = None
    memory: dict[str, float] | None = None
    attempt: int
    adopted: Adoption | None = None
    restored: Restored | None = None
    replaces: tuple[str, ...] = ()
    id: str | None = None

    @property
    def computed(self) -> Record | Restored:
        """What says when, where and from which commit the outputs were computed: here, or before."""
        return self.restored or self


def key_of(
    stage: str,
    function: str | None,
    settings: Mapping[str, Any],
    wildcards: Mapping[str, str],
    code_digest: str,
    lock: str | None,
    deviations: Mapping[str, str],
    inputs: Sequence[tuple[str, str]],
) -> str:
    """The deterministic key: no times, no machine, no paths.

    Args:
        stage: the stage's name.
        function: ``module:function`` that the stage calls.
        settings: values by dotted path.
        wildcards: values by name.
        code_digest: over the stage's code.
        lock: digest of the environment's lock.
        deviations: installed versions that the lock does not state.
        inputs: (name, digest) in the stage's order.
    """
    parts = [
        stage, function, dict(settings), dict(wildcards), code_digest, lock, dict(deviations),
        [list(i) for i in inputs],
    ]  # fmt: skip
    return hashlib.sha256(files.canonical_json(parts).encode()).hexdigest()


def key_in(record: Record) -> str:
    """The key that a record's own contents give; another one than it states means it was edited."""
    inputs = [(i.name, i.sha256) for i in record.inputs]
    return key_of(
        record.stage, record.function, record.settings, record.wildcards, record.code_digest, record.lock,
        record.deviations, inputs,
    )  # fmt: skip


def record_id(record: Record) -> str:
    """SHA-256 of the whole record, without its own id."""
    return hashlib.sha256(files.canonical_json(_plain(record)).encode()).hexdigest()


def _plain(record: Record) -> dict[str, Any]:
    """A record as JSON values; what is not known is absent."""
    data = record.model_dump(mode="json", exclude={"id"})
    data["inputs"] = [_known(entry) for entry in data["inputs"]]
    return _known(data)


def _known(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if value is not None}


def path_for(output: Path) -> Path:
    """Where the record of a job lies whose first output is ``output``."""
    return output.parent / (output.name + SUFFIX)


def adoption_path(output: Path) -> Path:
    """Where the record lies that a person's adoption of ``output`` leaves."""
    return output.parent / (output.name + ADOPTED + SUFFIX)


def write(record: Record, path: Path) -> Record:
    """Write a record atomically and durably; returns it with its id."""
    named = record.model_copy(update={"id": record_id(record)})
    text = json.dumps(_plain(record) | {"id": named.id}, sort_keys=True, indent=1, ensure_ascii=True)
    files.write_text(path, text + "\n", durable=True)
    return named


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        FileNotFoundError: when it is not there.
        UserError: when it cannot be read, is damaged or of another schema.
    """
    try:
        data = json.loads(text(path))
        if _depth(data) > DEEPEST:
            raise ValueError("nested too deeply")
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise UserError(f"{path} has record schema {version}, not {SCHEMA_VERSION}: rerun the job")
        return Record.model_validate(data)
    except FileNotFoundError:
        raise
    except (OSError, ValidationError, ValueError, AttributeError, RecursionError) as error:
        why = f" ({error.strerror})" if isinstance(error, OSError) else ""
        raise UserError(
            f"{path} is no readable record{why}: delete it and rerun the job that wrote it"
        ) from error


def text(path: Path) -> str:
    """The text of a record's file.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is far too large, or no text.
    """
    with open(hashing.open_plain(path), "rb") as stream:
        data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError("too large for a record")
    return data.decode("utf-8")


def _depth(data: Any) -> int:
    """How deeply values are nested, without recursion."""
    depth, layer = 0, [data]
    while layer:
        depth += 1
        layer = [
            inner
            for value in layer
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return depth


def journal(run: Path) -> Path:
    """Where a run, given by its results folder, keeps a copy of every record that a job of it wrote."""
    return run / JOURNAL


def remember(record: Record, place: str, folder: Path) -> None:
    """Keep a copy of a record that is about to be written to ``place``, relative to the workflow's folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(record, folder / f"{mark(place)}-{record_id(record)}.json")
    except OSError as error:  # the record itself is what counts
        print(f"no copy of this job's record is kept in {folder}: {error}", file=sys.stderr)


def remembered(place: str, folder: Path) -> Iterator[str]:
    """The ids of the records that jobs wrote to ``place``, as far as they are still known."""
    for path in sorted(folder.glob(f"{mark(place)}-*.json")):
        yield path.stem.partition("-")[2]


def all_remembered(folder: Path) -> dict[str, set[str]]:
    """The ids of all records that jobs of a run wrote, by the :func:`mark` of their place."""
    found: dict[str, set[str]] = {}
    for path in folder.glob("*-*.json"):
        place, _, record = path.stem.partition("-")
        found.setdefault(place, set()).add(record)
    return found


def mark(place: str) -> str:
    """What stands for a place in the names of a journal's files."""
    return hashing.text(place)[:16]


def find(path: Path) -> Path | None:
    """The record that lists ``path``, or a folder that holds it, among its outputs."""
    for output in (path, *path.parents):
        if output.name and (found := beside(output)):
            return found
    return None


def beside(output: Path) -> Path | None:
    """The record in the folder of ``output`` that lists it; an adoption goes before a job's."""
    return next(iter(all_beside(output)), None)


def all_beside(output: Path) -> Iterator[Path]:
    """Every record in the folder of ``output`` that lists it: an adoption, the job's, then any other."""
    first = [adoption_path(output), path_for(output)]
    others = sorted(p for p in output.parent.glob(f"*{SUFFIX}") if p not in first)
    for path in (*first, *others):
        try:
            if path.is_file() and any(o.path == output.name for o in read(path).outputs):
                yield path
        except (UserError, FileNotFoundError):
            continue


def digest_in(record: Record, folder: Path, path: Path) -> str | None:
    """What a record that lies in ``folder`` states as the digest of an output or a file inside one."""
    name = path.relative_to(folder).as_posix()
    for output in record.outputs:
        if name == output.path:
            return output.sha256
        if name.startswith(output.path + "/"):
            inner = name.removeprefix(output.path + "/")
            return next((f.sha256 for f in output.files if f.name == inner), None)
    return None
