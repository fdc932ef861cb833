"""How two artefacts, or two folders of them, differ, and whether their numbers agree.

The third question of an audit, *equivalence*: a run elsewhere, on another machine or in another precision,
need not give the same bytes. It is equivalent when the same jobs with the same settings gave tables whose
numbers agree within a tolerance. Everything else that differs is said beside it, since it may be why.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from localized_unlearning.audit.findings import Audit
from localized_unlearning.audit.index import Entry
from localized_unlearning.audit.words import changes, flat, say, short, shown
from localized_unlearning.errors import UserError
from localized_unlearning.files import canonical_json
from localized_unlearning.provenance import hashing, pages, records

if TYPE_CHECKING:
    import pandas as pd


KINDS = ("settings", "seeds", "code", "environment", "data", "compute", "machine")
"""What may differ between two runs on purpose; all else follows from it."""

TABLES = (".csv", ".parquet")

LISTED = 20  # differences that are listed one by one


class Difference(NamedTuple):
    """One thing in which two jobs differ.

    Attributes:
        what: stage, settings, seeds, code, environment, data, input, compute, machine, facts or output; an input is
            what another job made, data is not.
        name: e.g. a dotted setting, a module, a package or an output.
        before: its value in the first.
        after: its value in the second.
    """

    what: str
    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.what:12} {self.name}: {_brief(self.before)} | {_brief(self.after)}"


class Numbers(NamedTuple):
    """How the numbers of two tables compare.

    Attributes:
        items: rows that were compared.
        differ: rows with a number beyond the tolerance, or another text.
        gap: the largest difference between two numbers.
        fault: why they cannot be compared row by row, if so.
    """

    items: int
    differ: int = 0
    gap: float = 0.0
    fault: str = ""


@dataclass(frozen=True)
class Pair:
    """A job that both sides have.

    Attributes:
        name: its outputs' place.
        differences: what differs between the records.
        numbers: comparisons of its tables, by the output's name; only of those whose bytes differ.
        tables: how many tables it has.
        bytes: outputs that are no tables and whose bytes differ.
    """

    name: str
    differences: tuple[Difference, ...]
    numbers: dict[str, Numbers]
    tables: int
    bytes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two artefacts or folders side by side.

    Attributes:
        pairs: the jobs that both have.
        only: the names of those that one side has: the first's, the second's.
        tolerance: by how much two numbers may differ, absolute or relative.
    """

    pairs: tuple[Pair, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    tolerance: float

    @property
    def differ_in(self) -> set[str]:
        """The kinds in which the jobs differ."""
        return {d.what for pair in self.pairs for d in pair.differences}

    @property
    def identical(self) -> bool:
        """Whether there is no difference at all."""
        return not any(self.only) and not any(p.differences or p.numbers or p.bytes for p in self.pairs)

    @property
    def equivalent(self) -> bool:
        """Whether the same jobs with the same settings and data gave numbers that agree."""
        agree = all(n.differ == 0 and not n.fault for p in self.pairs for n in p.numbers.values())
        return agree and not any(self.only) and not self.differ_in & {"stage", "settings", "seeds", "data"}


def compare(one: tuple[Audit, Path], other: tuple[Audit, Path], tolerance: float) -> Comparison:
    """Compare two artefacts, records or folders.

    Raises:
        UserError: when one of them has no record.
    """
    sides = [_jobs(*side) for side in (one, other)]
    if not all(_is_folder(*side) for side in (one, other)):
        sides = [{"": entry_of(*side)} for side in (one, other)]
    for (_, path), jobs in zip((one, other), sides, strict=True):
        if not jobs:
            raise UserError(f"{shown(path)} holds no record of a job: there is nothing to compare")
    a, b = sides
    pairs = [_pair(name, (one[0], a[name]), (other[0], b[name]), tolerance) for name in a if name in b]
    only = (tuple(name for name in a if name not in b), tuple(name for name in b if name not in a))
    return Comparison(tuple(pairs), only, tolerance)


def _is_folder(audit: Audit, path: Path) -> bool:
    return path.is_dir() and path not in audit.index.by_output


def _jobs(audit: Audit, folder: Path) -> dict[str, Entry]:
    return {
        place.relative_to(folder).as_posix().removesuffix(records.SUFFIX): entry
        for place, entry in audit.index.entries.items()
        if place.is_relative_to(folder) and entry.record.stage not in pages.STAGES
    }


def entry_of(audit: Audit, path: Path) -> Entry:
    """The record that a path is, or that made it.

    Raises:
        UserError: when there is none.
    """
    entry = audit.index.entries.get(path) or audit.index.producer(path)
    if entry is None:
        raise UserError(
            f"no record names {shown(path)}: it is of unknown origin, and there is nothing to compare"
        )
    return entry


def _pair(name: str, one: tuple[Audit, Entry], other: tuple[Audit, Entry], tolerance: float) -> Pair:
    theirs = {output.name: output for output in other[1].record.outputs}
    numbers, tables, others = {}, 0, []
    for output in one[1].record.outputs:
        pair = theirs.get(output.name)
        if pair is None:
            continue
        paths = one[1].folder / output.path, other[1].folder / pair.path
        if Path(output.path).suffix in TABLES and all(path.is_file() for path in paths):
            tables += 1
            if one[0].digests.of(paths[0]) != other[0].digests.of(paths[1]):
                numbers[output.name] = compare_tables(*paths, tolerance)
        elif _bytes_of(one[0], paths[0], output) != _bytes_of(other[0], paths[1], pair):
            others.append(output.name)
    found = record_differences(one[1].record, other[1].record)
    return Pair(name, tuple(found), numbers, tables, tuple(others))


def _bytes_of(audit: Audit, path: Path, output: records.Output) -> str:
    """The digest of an output as it is; as it is recorded where it is not here or cannot be read."""
    try:
        return hashing.combined(audit.digests.tree(path)) if path.exists() else output.sha256
    except OSError:
        return output.sha256


def record_differences(one: records.Record, other: records.Record) -> list[Difference]:
    """What differs between two jobs, from their records alone."""
    parts = {
        "stage": ({"stage": one.stage, **one.wildcards}, {"stage": other.stage, **other.wildcards}),
        "settings": (flat(one.settings), flat(other.settings)),
        "seeds": (flat(one.facts.get("seeds", {})), flat(other.facts.get("seeds", {}))),
        "code": (one.code, other.code),
        "environment": (
            {"lock": one.lock, **one.computed.versions},
            {"lock": other.lock, **other.computed.versions},
        ),
        "data": (_digests(one, made=False), _digests(other, made=False)),
        "input": (_digests(one, made=True), _digests(other, made=True)),
        "compute": (flat(one.computed.compute), flat(other.computed.compute)),
        "machine": (flat(_machine(one)), flat(_machine(other))),
        "facts": (flat(_facts(one)), flat(_facts(other))),
        "output": ({o.name: o.sha256 for o in one.outputs}, {o.name: o.sha256 for o in other.outputs}),
    }
    return [
        Difference(what, name, _one(old), _one(new))
        for what, (a, b) in parts.items()
        for name, old, new in changes(a, b)
    ]


def _one(value: Any) -> Any:
    """A value that can be counted: a list or mapping as text."""
    return canonical_json(value) if isinstance(value, list | dict) else value


def _machine(record: records.Record) -> dict[str, Any]:
    return {name: value for name, value in record.computed.host.items() if name != "slurm_job"}


def _facts(record: records.Record) -> dict[str, Any]:
    return {name: value for name, value in record.facts.items() if name != "seeds"}


def _digests(record: records.Record, made: bool) -> dict[str, str]:
    """Digests of the inputs that another job made, or of the others; by name, numbered where it repeats."""
    names = [i.name for i in record.inputs]
    return {
        (i.name if names.count(i.name) == 1 else f"{i.name}[{names[:number].count(i.name)}]"): i.sha256
        for number, i in enumerate(record.inputs)
        if (i.record is not None) == made
    }


# --- numbers


def compare_tables(one: Path, other: Path, tolerance: float) -> Numbers:
    """Compare two tables row by row.

    Two numbers agree when they differ by at most ``tolerance``, absolute or relative; so do those inside lists.
    """
    import numpy as np
    import pandas as pd

    a, b = ((pd.read_parquet if p.suffix == ".parquet" else pd.read_csv)(p) for p in (one, other))
    if list(a.columns) != list(b.columns):
        return Numbers(
            len(a), fault=f"columns {', '.join(map(str, _either(a.columns, b.columns)))} on one side only"
        )
    if len(a) != len(b):
        return Numbers(max(len(a), len(b)), fault=f"{len(a):,} rows | {len(b):,} rows")
    differs, gap = np.zeros(len(a), dtype=bool), 0.0
    for name in a.columns:
        found, largest = _column(a[name], b[name], tolerance)
        differs |= found
        gap = max(gap, largest)
    return Numbers(len(a), int(differs.sum()), gap)


def _either(one: Iterable[Any], other: Iterable[Any]) -> list[Any]:
    a, b = list(one), list(other)
    return [*(c for c in a if c not in b), *(c for c in b if c not in a)] or a


def _column(x: pd.Series, y: pd.Series, tolerance: float) -> tuple[Any, float]:
    """Which cells of two columns differ, and the largest gap between two numbers."""
    import numpy as np
    import pandas as pd

    if pd.api.types.is_numeric_dtype(x) and pd.api.types.is_numeric_dtype(y):
        p, q = x.to_numpy(float, na_value=np.nan), y.to_numpy(float, na_value=np.nan)
        gaps = np.abs(p - q)
        return ~np.isclose(p, q, rtol=tolerance, atol=tolerance, equal_nan=True), _largest(gaps)
    differs, gap = np.zeros(len(x), dtype=bool), 0.0
    for number, (u, v) in enumerate(zip(x, y, strict=True)):
        p, q = _numbers(u), _numbers(v)
        if p is None or q is None:
            differs[number] = _plain(u) != _plain(v)
        elif p.shape != q.shape:
            differs[number] = True
        else:
            differs[number] = not np.allclose(p, q, rtol=tolerance, atol=tolerance, equal_nan=True)
            gap = max(gap, _largest(np.abs(p - q)))
    return differs, gap


def _largest(gaps: Any) -> float:
    import numpy as np

    return float(np.max(gaps[np.isfinite(gaps)], initial=0.0))


def _numbers(cell: Any) -> Any:
    """A cell that holds numbers as an array, what is absent as NaN; None for any other."""
    import numpy as np

    if isinstance(cell, str | bytes) or not hasattr(cell, "__len__"):
        return None
    try:
        return np.array([np.nan if value is None else value for value in cell], dtype=float)
    except (TypeError, ValueError):
        return None


def _plain(value: Any) -> Any:
    """A cell as something that compares; lists and arrays as tuples, what is absent as None."""
    if hasattr(value, "__len__") and not isinstance(value, str | bytes):
        return tuple(_plain(inner) for inner in value)
    return None if value != value else value


# --- in words


def lines(found: Comparison, names: Sequence[str]) -> Iterator[str]:
    """A comparison for people: a verdict, then what differs.

    Args:
        found: the comparison.
        names: what the two sides are called.
    """
    yield verdict(found)
    for name, only in zip(names, found.only, strict=True):
        yield from _some([f"only in {name}: {job}" for job in only])
    several = len(found.pairs) > 1
    follow = {"output"} | ({"input", "facts"} if several else set())
    counted = Counter(d for pair in found.pairs for d in pair.differences if d.what not in follow)
    yield from _some(
        [f"{d}{f'  ({n} jobs)' if several else ''}" for d, n in sorted(counted.items(), key=_order)]
    )
    apart = [(p.name, name, n) for p in found.pairs for name, n in p.numbers.items() if n.fault or n.differ]
    yield from _some(
        [f"{'numbers':12} {job}{': ' if job else ''}{name}: {say_numbers(n)}" for job, name, n in apart]
    )
    others = [f"{pair.name}: {name}" if several else name for pair in found.pairs for name in pair.bytes]
    if others:
        yield f"{'bytes':12} {len(others)} other outputs differ, such as {', '.join(others[:3])}"


def _order(item: tuple[Difference, int]) -> tuple[int, int]:
    what = item[0].what
    return (KINDS.index(what) if what in KINDS else -1 if what == "stage" else len(KINDS), -item[1])


def _some(texts: Sequence[str]) -> Iterator[str]:
    yield from texts[:LISTED]
    if len(texts) > LISTED:
        yield f"... and {len(texts) - LISTED} more"


def verdict(found: Comparison) -> str:
    """One sentence: what is the same, what is other, and how the numbers compare."""
    if found.identical:
        return "no difference"
    other = [kind for kind in KINDS if kind in found.differ_in]
    same = [kind for kind in KINDS if kind not in found.differ_in]
    parts = [f"same {_listed(same)}" if same else "", f"other {_listed(other)}" if other else ""]
    sides = sum(map(len, found.only))
    parts += [f"{sides} jobs on one side only" if sides else "", _numbers_in_all(found)]
    head = "Equivalent" if found.equivalent else "Not equivalent"
    return f"{head}: {'; '.join(part for part in parts if part)}."


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _numbers_in_all(found: Comparison) -> str:
    compared = [n for pair in found.pairs for n in pair.numbers.values()]
    tables = sum(pair.tables for pair in found.pairs)
    if not tables:
        return "no tables to compare"
    if not compared:
        return f"all {tables} tables have the same bytes" if tables > 1 else "the table has the same bytes"
    faults, differ = sum(bool(n.fault) for n in compared), sum(n.differ for n in compared)
    text = f"{differ:,} of {sum(n.items for n in compared if not n.fault):,} items differ by more than {found.tolerance:g}"
    gap = max(n.gap for n in compared)
    text += f", by at most {gap:.3g}" if not faults and (gap or not differ) else ""
    text += (
        f", in {sum(bool(n.differ) for n in compared)} of {tables} tables" if tables > 1 and differ else ""
    )
    return text + (f"; {faults} tables have other rows or columns" if faults else "")


def say_numbers(found: Numbers) -> str:
    """How two tables compare, in words."""
    gap = f", by at most {found.gap:.3g}" if found.gap else " (a text, or a number on one side only)"
    return found.fault or f"{found.differ:,} of {found.items:,} items differ{gap}"


def _brief(value: Any) -> str:
    if value is None:
        return "-"
    text = say(value)
    return short(text) if re.fullmatch(r"[0-9a-f]{64}", text) else text
