"""Forget and retain sets, train and test parts (sections 2.1 and A.4.1).

A split has one row per athlete: ``subject``, ``answer``, ``forget`` (in the forget set), ``train``
and ``test`` (parts it belongs to), ``relearn`` (retrained in relearning) and ``teacher``. A forget set of named
athletes is not split, so those athletes are in both parts (A.4.1); everyone else is in one.

Where an organism's facts were injected, the facts of pretraining are its *teachers*: never in the forget set, and not
in the test part, since they tell of side effects and not of what is kept of the injected facts. They are retained in
training, but for those of an answer that is forgotten as a whole. The test part is drawn first from athletes whose
multiple-choice question the organism never read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from localized_unlearning.config.data import Forget, Split
from localized_unlearning.data.prompts import RIGHT
from localized_unlearning.errors import UserError

FEWEST = 2
"""Known subjects that each answer needs, and answers that the known subjects need."""

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def split_athletes(
    known: pd.DataFrame,
    split: Split,
    forget: Forget,
    relearn: tuple[str, ...],
    exclude: Forget | None = None,
    earlier: Sequence[str] = (),
) -> pd.DataFrame:
    """The split of the known athletes.

    Args:
        known: columns ``subject``, ``answer``, ``rows`` (positions in the file) and ``known``; of an organism with
            injected facts also ``teacher`` and ``choice``.
        split: how to split.
        forget: what to forget.
        relearn: athletes that must be in the forget set's training part.
        exclude: athletes that are in neither set, unless they are forgotten.
        earlier: athletes that a task before this one has forgotten: asked for like the forget set, but not trained.

    Raises:
        UserError: when a named athlete is not in the data or not known to the model, when a relearning
            athlete is not in the forget set, or when a set is empty.
    """
    table = known[known["known"]].reset_index(drop=True)
    for name in ("teacher", "choice"):
        if name not in table.columns:
            table[name] = False
    names = set(table["subject"])
    _require(names, forget.athletes, known, "the forget set names")
    enough(table)
    if taught := sorted(set(forget.athletes) & set(table.loc[table["teacher"], "subject"])):
        raise UserError(
            f"the forget set names {taught[0]}, whom the organism knows from pretraining and not by injection: "
            "name injected subjects or draw them"
        )
    before = table["subject"].isin(earlier)
    wanted = _of_injected(table, forget) & ~before
    out = pd.Series(False, index=table.index) if exclude is None else _of_injected(table, exclude)
    columns = ("subject", "answer", "rows", "split", "teacher", "choice")
    table = table[[c for c in columns if c in table.columns]].assign(own=wanted, forget=wanted | before)
    table = table[table["forget"] | ~out].reset_index(drop=True)
    wanted = table["own"]
    if not wanted.any() or wanted.all():
        raise UserError(
            f"the {'forget' if not wanted.any() else 'retain'} set is empty after the known-facts step: "
            "lower athletes.known_threshold or change the task"
        )
    for name in relearn:
        if name not in set(known["subject"]):
            raise UserError(
                f"relearn names {name}, which is not among the subjects: correct it, or give [] for the first two"
            )
    forgotten = set(table.loc[wanted, "subject"])
    present = [name for name in relearn if name in forgotten]
    if len(present) < len(relearn) and set(relearn) - forgotten <= names:
        outside = sorted(set(relearn) - forgotten)[0]
        raise UserError(f"relearn names {outside}, which is not in the forget set: choose one that is")
    if not present:
        present = list(table.loc[wanted, "subject"][: len(relearn) or 2])
    table["relearn"] = table["subject"].isin(present)
    whole = forget.answer is None
    test = pd.Series(False, index=table.index)
    if split.kind == "file" and "split" not in table.columns:
        raise UserError(
            "split.kind is file, but the facts have no column 'split': add it, with train and test"
        )
    for part in (True, False):
        rows = table.index[wanted if part else ~table["forget"] & ~table["teacher"]]
        if not (part and whole):
            test[rows] = _test_part(table.loc[rows], split, part)
    test |= table["forget"] & ~wanted
    teachers = table.index[table["teacher"]]
    held_out = pd.Series(False, index=table.index)
    if len(teachers):
        held_out[teachers] = _test_part(table.loc[teachers], split, False)
        held_out |= table["teacher"] & (table["answer"] == forget.answer)
    table["train"] = ~test & ~held_out
    table["test"] = test | (wanted & whole)
    for name in ("train", "test"):
        for forgets in (True, False):
            if not (table[name] & (table["forget"] == forgets)).any():
                raise UserError(
                    f"the {name} part of the {'forget' if forgets else 'retain'} set is empty: "
                    "too few known facts for this split"
                )
    check_split(table, whole)
    return table[["subject", "answer", "forget", "relearn", "train", "test", "teacher"]]


def _of_injected(table: pd.DataFrame, forget: Forget) -> pd.Series:
    """Which of the known athletes are the forget set ``[athlete]``, never a teacher."""
    wanted = pd.Series(False, index=table.index)
    able = table[~table["teacher"]].reset_index()
    wanted[able["index"]] = _wanted(able, forget).to_numpy()
    return wanted


def enough(table: pd.DataFrame) -> None:
    """Refuse an answer that has one known subject: it could not both train and test anything.

    Raises:
        UserError: naming the answer, its count and what is needed.
    """
    counts = table["answer"].value_counts()
    few = sorted(str(answer) for answer, count in counts.items() if count < FEWEST)
    if few:
        raise UserError(
            f"the answer '{few[0]}' has {counts[few[0]]} subject that the model knows, and at least {FEWEST} are needed, "
            f"one to train and one to test ({len(few)} such answers): add facts, leave these out of the file, or lower "
            "athletes.known_threshold"
        )
    if len(counts) < FEWEST and RIGHT not in counts:  # where facts bring their own answers, all are right
        raise UserError(
            f"all known subjects have the answer '{counts.index[0]}': facts with at least {FEWEST} answers are needed"
        )


def _wanted(table: pd.DataFrame, forget: Forget) -> pd.Series:
    """Which of the known athletes are the forget set ``[athlete]``."""
    if forget.answer:
        return table["answer"] == forget.answer
    if forget.group:
        if "group" not in table.columns:
            raise UserError("the forget set names a group, but the facts have no column 'group': add it")
        return table["group"] == forget.group
    if forget.first is not None:
        order = table["rows"].map(min).rank(method="first")
        if forget.skip + forget.first > len(table):
            raise UserError(
                f"the first {forget.skip + forget.first} subjects of the file are asked for, but the model knows "
                f"{len(table)}: lower 'first' or 'skip'"
            )
        return (order > forget.skip) & (order <= forget.skip + forget.first)
    if forget.draw is None:
        return table["subject"].isin(forget.athletes)
    if forget.draw >= len(table):
        raise UserError(
            f"cannot draw {forget.draw} subjects to forget of {len(table)} known ones: draw fewer"
        )
    if forget.balanced:
        balanced = _drawn_by_answer(table, forget.draw, forget.seed)
        return pd.Series(table.index.isin(balanced), index=table.index)
    drawn = np.random.default_rng(forget.seed).choice(len(table), forget.draw, replace=False)
    return pd.Series(np.isin(np.arange(len(table)), drawn), index=table.index)


def _drawn_by_answer(table: pd.DataFrame, count: int, seed: int) -> list[int]:
    """Index of ``count`` athletes, as many of each answer (the first answers get what is left over).

    Of each answer, those the organism read about in multiple choice and the others are drawn in their proportion.
    """
    drawn: list[int] = []
    answers = sorted(table["answer"].unique())
    choice = table["choice"] if "choice" in table.columns else pd.Series(False, index=table.index)
    for number, answer in enumerate(answers):
        wanted = count // len(answers) + (number < count % len(answers))
        rows = table.index[table["answer"] == answer].to_numpy()
        if wanted > len(rows):
            raise UserError(
                f"cannot draw {wanted} subjects with the answer '{answer}' to forget of {len(rows)} known ones: draw fewer"
            )
        rows = np.random.default_rng([seed, number]).permutation(rows)
        seen = choice[rows].to_numpy()
        first = rows[seen][: round(wanted * seen.mean())]
        others = rows[~seen][: wanted - len(first)]
        drawn += [*first, *others, *rows[seen][len(first) : wanted - len(others)]]
    return drawn


def check_split(table: pd.DataFrame, whole_forget_set: bool) -> None:
    """Refuse a split in which one athlete stands twice or in both parts.

    Raises:
        UserError: naming the athlete.
    """
    repeated = table["subject"].duplicated()
    if repeated.any():
        raise UserError(
            f"{table.loc[repeated, 'subject'].iloc[0]} stands twice in the split: remove the duplicate"
        )
    both = table["train"] & table["test"]
    if whole_forget_set:
        both &= ~table["forget"]
    if both.any():
        raise UserError(
            f"{table.loc[both, 'subject'].iloc[0]} is in both the train and the test part: "
            "every subject may be in one only"
        )


def read_split(path: Path) -> pd.DataFrame:
    """A split file, checked again, since it may have been edited or brought from elsewhere.

    Raises:
        UserError: when an athlete stands twice, or in both parts.
    """
    table = pd.read_parquet(path)
    named = not (table["forget"] & ~table["test"]).any()
    check_split(table, whole_forget_set=named)
    return table


def _test_part(rows: pd.DataFrame, split: Split, forget: bool) -> np.ndarray:
    """Which rows are the test part ``[row]``.

    The released code cut the file, duplicates included, at 80 % of its rows; a repeated name here
    stays where its first row falls, so that it is in one part only.
    """
    test = np.zeros(len(rows), dtype=bool)
    if split.kind == "file":
        return np.asarray(rows["split"] == "test")
    own = split.forget_test_fraction if forget else None
    fraction = split.test_fraction if own is None else own
    if split.kind == "released":
        positions = sorted(row for copies in rows["rows"] for row in copies)
        train = set(positions[: int((1 - fraction) * len(positions) + 1e-9)])
        return np.array([min(copies) not in train for copies in rows["rows"]])
    for index, answer in enumerate(sorted(rows["answer"].unique())):
        candidates = np.flatnonzero((rows["answer"] == answer).to_numpy())
        free = candidates[~rows["relearn"].to_numpy()[candidates]]
        count = min(len(free), math.ceil(fraction * len(candidates)))
        generator = np.random.default_rng([split.seed, int(forget), index])
        order = generator.permutation(free)
        if "choice" in rows.columns:
            order = order[np.argsort(rows["choice"].to_numpy()[order], kind="stable")]
        test[order[:count]] = True
    return test


def _require(names: set[str], wanted: tuple[str, ...], known: pd.DataFrame, what: str) -> None:
    for name in wanted:
        if name not in set(known["subject"]):
            raise UserError(f"{what} {name}, which is not among the subjects: check the spelling or the data")
    if wanted and not names & set(wanted):
        raise UserError(f"{what} subjects of which the model knows none: lower athletes.known_threshold")


def run(job: Job) -> None:
    """Stage: the split of one task."""
    task = job.config.tasks[job.wildcards["task"]]
    assert task is not None
    known = pd.read_parquet(job.inputs["known"])
    earlier: list[str] = []
    if job.inputs.get("earlier"):
        before = read_split(job.inputs["earlier"])
        earlier = list(before.loc[before["forget"], "subject"])
    table = split_athletes(known, job.config.split, task.forget, task.relearn, task.exclude, earlier)
    job.facts.update(
        seeds={"split": job.config.split.seed},
        sizes={
            f"{'forget' if f else 'retain'}_{part}": int((table[part] & (table["forget"] == f)).sum())
            for f in (True, False)
            for part in ("train", "test")
        },
    )
    table.to_parquet(job.outputs["split"], index=False)
