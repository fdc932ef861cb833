"""Records: one JSON file per job, beside its outputs.

Two identities are kept apart. The *key* is deterministic: stage, settings, wildcards, code, lock
and the digests of the inputs, so equal keys promise equal bytes on equal machines. The *record id*
is the hash of the whole record, times and machine included, and what a later job's record points
to. Paths are relative: inputs to the folder the job ran in, outputs to the record's own folder, so
a results folder can be copied and verified elsewhere. What is not known is absent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from localized_unlearning.errors import UserError

SCHEMA_VERSION = 1
SUFFIX = ".record.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Part):
    """A file of an output: name inside the output ("" for the output itself), size in bytes, SHA-256."""

    name: str
    size: int
    sha256: str


class Input(_Part):
    """An input: its name in the stage, path, digest, and the record that made it, where there is one."""

    name: str
    path: str
    sha256: str
    record: str | None = None


class Output(_Part):
    """An output: its name in the stage, file name beside the record, digest, and its files."""

    name: str
    path: str
    sha256: str
    files: tuple[File, ...]


class Record(_Part):
    """What one job read, did and wrote."""

    schema_version: int = SCHEMA_VERSION
    stage: str
    key: str
    wildcards: dict[str, str]
    settings: dict[str, Any]
    code: dict[str, str]
    code_digest: str
    lock: str | None
    versions: dict[str, str]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    facts: dict[str, Any]
    commit: dict[str, Any]
    host: dict[str, Any]
    started: str
    ended: str
    seconds: float
    attempt: int


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def key_of(
    stage: str,
    settings: Mapping[str, Any],
    wildcards: Mapping[str, str],
    code_digest: str,
    lock: str | None,
    inputs: Sequence[tuple[str, str]],
) -> str:
    """The deterministic key; ``inputs`` are (name, digest) in the stage's order."""
    parts = [stage, dict(settings), dict(wildcards), code_digest, lock, [list(i) for i in inputs]]
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def record_id(record: Record) -> str:
    """SHA-256 of the whole record."""
    return hashlib.sha256(canonical(record.model_dump(mode="json")).encode()).hexdigest()


def path_for(output: Path) -> Path:
    """Where the record of a job lies whose first output is ``output``."""
    return output.parent / (output.name.split(".")[0] + SUFFIX)


def write(record: Record, path: Path) -> None:
    """Write a record atomically."""
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    text = json.dumps(record.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=True)
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        UserError: when it is damaged or of another schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise UserError(f"{path} has record schema {version}, this version reads {SCHEMA_VERSION}: rerun the job")
        return Record.model_validate(data)
    except (json.JSONDecodeError, ValidationError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"{path} is no readable record: delete it and rerun the job that wrote it") from error


def find(output: Path) -> Path | None:
    """The record that lists ``output`` among its outputs, if there is one beside it."""
    direct = path_for(output)
    others = sorted(p for p in output.parent.glob(f"*{SUFFIX}") if p != direct)
    for path in ([direct] if direct.is_file() else []) + others:
        try:
            if any(o.path == output.name for o in read(path).outputs):
                return path
        except UserError:
            continue
    return None
