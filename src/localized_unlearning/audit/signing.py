"""Signatures over a whole run, made and checked by ``ssh-keygen``.

The records of a run hold the digests of every output and point to the records of every input, so a list
of their ids speaks for all bytes of the run. That list is the *statement*, its digest the run's *root*: it holds every
record file under the run's folders of results and figures, by its place and whatever it says of itself. It
lies beside the results with a detached SSH signature. A signature names a key, not a time, and vouches
for what the records say; docs/provenance.md says what that proves and what it cannot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localized_unlearning import files
from localized_unlearning.audit.findings import Audit
from localized_unlearning.audit.runs import SIGNED, Run
from localized_unlearning.audit.words import plain, shown
from localized_unlearning.errors import UserError
from localized_unlearning.files import canonical_json
from localized_unlearning.provenance import hashing, records, ssh

SCHEMA_VERSION = 2
NAMESPACE = "run@localized-unlearning"  # a signature for another purpose is not one over a run
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Signature:
    """What is known about a run's signature.

    Attributes:
        run: the run.
        good: whether a trusted key signed the records as they are now.
        text: one sentence for people.
    """

    run: str
    good: bool
    text: str


def statement(audit: Audit, run: Run) -> dict[str, Any]:
    """The record files of a run by their place, with the ids of their contents, and the root digest over them."""
    entries = audit.index.entries
    ordered = {
        run.named(path): records.record_id(entries[path].record) if path in entries else UNREADABLE
        for path in sorted(audit.index.files(run))
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run.name,
        "root": hashing.text(canonical_json(ordered)),
        "records": ordered,
    }


def place(run: Run) -> Path:
    """Where a run's statement lies; its signature has ``.sig`` behind its name."""
    return run.results / SIGNED


def sign(audit: Audit, run: Run, key: Path) -> dict[str, Any]:
    """Sign a run as it is, with an SSH key; returns the statement.

    Args:
        audit: both folders of the run.
        run: the run.
        key: a private key, or a public one whose private part an agent holds.

    Raises:
        UserError: when a file is not what its record says, or ``ssh-keygen`` refuses.
    """
    faults = [f for f in audit.findings() if f.integrity != "ok"]
    if faults:
        raise UserError(
            f"{shown(faults[0].path)} is {faults[0].integrity}: a run is signed only when every file is what its "
            "record says; see 'localized-unlearning audit verify'"
        )
    found = statement(audit, run)
    if not found["records"]:
        raise UserError(f"run {run.name} has no record: there is nothing to sign")
    text = json.dumps(found, indent=1) + "\n"
    seal = ssh.sign(text, key, NAMESPACE)
    files.write_text(place(run), text)
    files.write_text(place(run).with_name(f"{SIGNED}.sig"), seal)
    return found


def check(audit: Audit, run: Run, signers: Path) -> Signature:
    """Whether one of the trusted keys signed a run's records as they are now.

    Args:
        audit: the run's records, all of them.
        run: the run.
        signers: an allowed-signers file of SSH, as git uses it.

    Raises:
        UserError: when ``signers`` does not exist or ``ssh-keygen`` is missing.
    """
    if not signers.is_file():
        raise UserError(
            f"{shown(signers)} does not exist: it lists the trusted keys, as ssh-keygen -Y reads them"
        )
    name, path = plain(run.name), place(run)
    seal = path.with_name(f"{SIGNED}.sig")
    if not (path.is_file() and seal.is_file()):
        return Signature(name, False, f"run {name} is not signed")
    try:
        text = records.text(path)
        verdict = ssh.verify(text, seal, signers, NAMESPACE)
        if verdict.fault:
            return Signature(name, False, f"run {name} has no signature that counts: {verdict.fault}")
        signed = {str(place): str(record) for place, record in json.loads(text)["records"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Signature(name, False, f"the statement of run {name} cannot be read: {type(error).__name__}")
    now = statement(audit, run)["records"]
    if differs := _differences(signed, now):
        return Signature(name, False, f"run {name} is not what {verdict.signer} signed: {differs}")
    return Signature(name, True, f"run {name} is as {verdict.signer} signed it: {len(now)} records")


def unchecked(audit: Audit, runs: list[Run]) -> Signature | None:
    """What no signature speaks of, if there is any: records outside every run, or no run at all."""
    folders = [folder for run in runs for folder in run.folders]
    outside = [
        place
        for place in (*audit.index.entries, *audit.index.damaged)
        if audit.index.in_scope(place) and not any(place.is_relative_to(folder) for folder in folders)
    ]
    if outside:
        text = f"no signature speaks of {len(outside)} records that lie in no run (first {shown(outside[0])})"
        return Signature("", False, text)
    return None if runs else Signature("", False, "there is no run here: no signature was checked")


def _differences(signed: Mapping[str, str], now: Mapping[str, str]) -> str:
    counts = {
        "other now": [n for n in signed if n in now and (now[n] != signed[n] or now[n] == UNREADABLE)],
        "gone": [n for n in signed if n not in now],
        "new": [n for n in now if n not in signed],
    }
    first = next((names[0] for names in counts.values() if names), "")
    words = [f"{len(names)} records {what}" for what, names in counts.items() if names]
    return f"{', '.join(words)} (first {plain(first)})" if words else ""
