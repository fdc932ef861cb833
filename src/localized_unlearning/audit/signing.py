"""Signatures over a whole run, made and checked by ``ssh-keygen``.

The records of a run hold the digests of every output and point to the records of every input, so a list
of their ids speaks for all bytes of the run. That list is the *statement*, its digest the run's *root*. It
lies beside the results with a detached SSH signature. A signature names a key, not a time, and vouches
for what the records say; docs/provenance.md says what that proves and what it cannot.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localized_unlearning.audit.index import SIGNED, Audit, shown
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import hashing, records
from localized_unlearning.workflow.layout import FIGURES_TOP, RESULTS, Layout

SCHEMA_VERSION = 1

NAMESPACE = "run@localized-unlearning"  # a signature for another purpose is not one over a run


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


def runs_of(audit: Audit) -> list[str]:
    """The runs that the audited records belong to."""
    return sorted({run for e in audit.entries.values() if (run := _run(e.record.folder))})


def _run(folder: str | None) -> str | None:
    parts = (folder or "").split("/")
    return parts[1] if len(parts) > 1 and parts[0] in (RESULTS, FIGURES_TOP) else None


def statement(audit: Audit, run: str) -> dict[str, Any]:
    """A run's records by their recorded place, and the root digest over them."""
    found = {
        f"{entry.record.folder}/{entry.place.name}": records.record_id(entry.record)
        for entry in audit.entries.values()
        if _run(entry.record.folder) == run
    }
    ordered = dict(sorted(found.items()))
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "root": hashing.text(records.canonical(ordered)),
        "records": ordered,
    }


def place(audit: Audit, run: str) -> Path:
    """Where a run's statement lies; its signature has ``.sig`` behind its name."""
    return audit.resolve(f"{Layout(run).results}/{SIGNED}")


def sign(audit: Audit, run: str, key: Path) -> dict[str, Any]:
    """Sign a run as it is, with an SSH key; returns the statement.

    Args:
        audit: both folders of the run.
        run: its name.
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
        raise UserError(f"run {run} has no record: there is nothing to sign")
    text = json.dumps(found, indent=1) + "\n"
    answer = _ssh_keygen("sign", "-n", NAMESPACE, "-f", str(key), text=text)
    if answer.returncode:
        raise UserError(f"ssh-keygen does not sign with {key}: {_words(answer)}")
    target = place(audit, run)
    _write(target, text)
    _write(target.with_name(target.name + ".sig"), answer.stdout)
    return found


def check(audit: Audit, run: str, signers: Path) -> Signature:
    """Whether one of the trusted keys signed a run's records as they are now.

    Args:
        audit: the run's records, all of them.
        run: its name.
        signers: an allowed-signers file of SSH, as git uses it.

    Raises:
        UserError: when ``signers`` does not exist or ``ssh-keygen`` is missing.
    """
    if not signers.is_file():
        raise UserError(
            f"{shown(signers)} does not exist: it lists the trusted keys, as ssh-keygen -Y reads them"
        )
    path = place(audit, run)
    seal = path.with_name(path.name + ".sig")
    if not (path.is_file() and seal.is_file()):
        return Signature(run, False, f"run {run} is not signed")
    text = path.read_text(encoding="utf-8")
    named = _ssh_keygen("find-principals", "-s", str(seal), "-f", str(signers), text="")
    if named.returncode:
        return Signature(run, False, f"run {run} is signed, but not by a key that {shown(signers)} trusts")
    signer = named.stdout.splitlines()[0]
    options = ("-n", NAMESPACE, "-I", signer, "-s", str(seal), "-f", str(signers))
    if _ssh_keygen("verify", *options, text=text).returncode:
        return Signature(
            run, False, f"the signature of run {run} is not one over {path.name}: one was changed"
        )
    signed, now = json.loads(text)["records"], statement(audit, run)["records"]
    if differs := _differences(signed, now):
        return Signature(run, False, f"run {run} is not what {signer} signed: {differs}")
    return Signature(run, True, f"run {run} is as {signer} signed it: {len(now)} records")


def _differences(signed: Mapping[str, str], now: Mapping[str, str]) -> str:
    counts = {
        "other now": [n for n in signed if n in now and now[n] != signed[n]],
        "gone": [n for n in signed if n not in now],
        "new": [n for n in now if n not in signed],
    }
    first = next((names[0] for names in counts.values() if names), "")
    words = [f"{len(names)} records {what}" for what, names in counts.items() if names]
    return f"{', '.join(words)} (first {first})" if words else ""


def _ssh_keygen(action: str, *options: str, text: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("ssh-keygen") is None:
        raise UserError("signatures are made and checked by ssh-keygen, which is not here: install OpenSSH")
    return subprocess.run(["ssh-keygen", "-Y", action, *options], input=text, capture_output=True, text=True)


def _words(answer: subprocess.CompletedProcess[str]) -> str:
    return " ".join(answer.stderr.split()) or f"exit status {answer.returncode}"


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
