"""Taking a file of unknown origin into the record: explicit, with a reason, and undone as easily.

This is the honest replacement for ``--touch``. An adoption is a record of its own beside the file and
goes before the job's record, which stays. Everything made from the file shows that it rests on it.
"""

from __future__ import annotations

from pathlib import Path

from localized_unlearning.audit.findings import Audit
from localized_unlearning.audit.words import shown
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import hashing, pages, records

ADOPTED_STAGE = "adopted"


def adopt(path: Path, reason: str, root: Path) -> Path:
    """Take ``path`` into the record as it is now; returns the record's file.

    Raises:
        UserError: when the reason is empty, the file is missing, inside an output folder, or already
            as it should be.
    """
    if not reason.strip():
        raise UserError("an adoption needs a reason: say with --reason why the file can be trusted")
    if not path.exists():
        raise UserError(f"{shown(path)} does not exist: there is nothing to adopt")
    audit = Audit([path], root)
    entry = audit.index.producer(path)
    if entry is not None and path not in entry.outputs:
        raise UserError(
            f"{shown(path)} is part of an output folder: adopt {shown(entry.outputs[0])} as a whole"
        )
    if entry is not None:
        output = next(o for o in entry.record.outputs if entry.folder / o.path == path)
        if audit.finding(entry, output).clean:
            raise UserError(f"{shown(path)} is as its record says: there is nothing to adopt")
    place = records.adoption_path(path)
    records.write(_record(path, reason.strip(), audit), place)
    return place


def forget(path: Path) -> Path:
    """Undo the adoption of ``path``; returns the record that was removed.

    Raises:
        UserError: when it was not adopted.
    """
    place = records.adoption_path(path)
    if not place.is_file():
        raise UserError(f"{shown(path)} was not adopted: there is nothing to forget")
    place.unlink()
    return place


def _record(path: Path, reason: str, audit: Audit) -> records.Record:
    tree = hashing.digest_tree(path)
    sha256 = hashing.combined(tree)
    files = tuple(records.File(name=name, size=d.size, sha256=d.sha256) for name, d in tree.items())
    replaced = audit.index.producer(path)
    return pages.record_without_code(
        ADOPTED_STAGE,
        records.Output(name="file", path=path.name, sha256=sha256, files=files),
        replaced.record.folder if replaced else audit.index.recorded_folder(path.parent),
        {"sha256": sha256},
        adopted=records.Adoption(reason=reason),
        replaces=(records.record_id(replaced.record), *replaced.record.replaces) if replaced else (),
    )
