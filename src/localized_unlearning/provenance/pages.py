"""Files of a run that are written beside its jobs, with a record as jobs leave one: its resolved config, its report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localized_unlearning import files
from localized_unlearning.provenance import code, environment, hashing, records

CONFIG, REPORT = "configure", "report"
"""What their records call the stage; no rule of the workflow is of that name."""
STAGES = frozenset({CONFIG, REPORT})


def publish(
    path: Path, text: str, stage: str, root: Path, settings: Mapping[str, Any], shown: Sequence[Path] = ()
) -> records.Record:
    """Write a page atomically, and its record.

    Args:
        path: where it lies, in the run's folder of results.
        text: what it holds.
        stage: :data:`CONFIG` or :data:`REPORT`.
        root: the workflow's folder.
        settings: what it was made by.
        shown: the files that it shows, the inputs of its record.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = records.path_for(path)
    folder = os.path.relpath(path.parent, root)
    outside = folder.startswith("..")
    journal = records.journal(path.parent)
    name = place.name if outside else Path(folder, place.name).as_posix()
    old = [records.read(found) for found in records.all_beside(path)]
    sha256 = hashing.text(text)
    file = records.File(name="", size=len(text.encode()), sha256=sha256)
    output = records.Output(name="page", path=path.name, sha256=sha256, files=(file,))
    place_of = None if outside else folder
    record = record_without_code(stage, output, place_of, settings, _inputs(shown, root))
    replaces = [
        *records.remembered(name, journal),
        *(id for r in old for id in (records.record_id(r), *r.replaces)),
    ]
    record = record.model_copy(update={"replaces": tuple(dict.fromkeys(replaces))})
    record = record.model_copy(update={"id": records.record_id(record)})
    files.write_text(path, text)
    records.remember(record, name, journal)
    return records.write(record, place)


def is_published(path: Path, text: str) -> bool:
    """Whether a page with this text and its record lie there already."""
    place = records.path_for(path)
    return path.is_file() and path.read_bytes() == text.encode() and place.is_file()


def _inputs(shown: Sequence[Path], root: Path) -> tuple[records.Input, ...]:
    found = []
    for path in shown:
        place = records.find(path)
        tree = hashing.digest_tree(path)
        found.append(
            records.Input(
                name=path.stem,
                path=Path(os.path.relpath(path, root)).as_posix(),
                size=sum(file.size for file in tree.values()),
                sha256=hashing.combined(tree),
                record=records.record_id(records.read(place)) if place else None,
            )
        )
    return tuple(found)


def record_without_code(
    stage: str,
    output: records.Output,
    folder: str | None,
    settings: Mapping[str, Any],
    inputs: tuple[records.Input, ...] = (),
    **more: Any,
) -> records.Record:
    """The record of a file that no stage's code made: a page of a run, a file that was adopted.

    Args:
        stage: what the record calls it.
        output: the file.
        folder: where it lies, relative to the workflow's folder; None outside it.
        settings: what it was made by.
        inputs: what it shows.
        more: further fields of the record.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    digest = code.code_digest({})
    return records.Record(
        stage=stage,
        key=records.key_of(stage, None, settings, {}, digest, None, {}, [(i.name, i.sha256) for i in inputs]),
        folder=folder,
        wildcards={},
        settings=dict(settings),
        code={},
        code_digest=digest,
        versions={},
        inputs=inputs,
        outputs=(output,),
        facts={},
        commit=environment.commit(),
        host={},
        started=now,
        ended=now,
        seconds=0.0,
        attempt=1,
        **more,
    )
