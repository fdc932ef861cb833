"""The supplementary tables: every prompt with all three accuracies, and how multiple choice favours letters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from localized_unlearning.analysis.measures import read_frames
from localized_unlearning.analysis.standing import recall
from localized_unlearning.analysis.statistics import ACCURACIES, candidates, estimate
from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.data.answers import LETTERS
from localized_unlearning.paper.terms import MARKS, runs
from localized_unlearning.reporting.markup import Panel, markdown, number
from localized_unlearning.reporting.tables import BASE

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


PARTS = {"forget": True, "retain": False}

CHOICE = {"shuffled": "multiple choice, shuffled", "fixed": "multiple choice, one order"}

BY_TEXT = "multiple choice, by text"


def by_prompt(facts: pd.DataFrame, choice: pd.DataFrame, settings: Statistics) -> pd.DataFrame:
    """Every prompt's accuracies, over items and seeds.

    Args:
        facts, choice: rows of one task's models.
        settings: level, bootstrap samples and their seed.

    Returns:
        One row per ``localization``, ``prompt``, ``part`` (forget or retain) and ``accuracy``, with the columns of an
        estimate, what its interval ``covers``, and of both parts together the mean ``recall`` over right answers, its
        ``standing`` and the ``modal`` answer's share (see :mod:`localized_unlearning.analysis.standing`).
    """
    asked = {
        **{str(name): (rows, "logit_") for name, rows in facts.groupby("prompt", sort=False)},
        **{CHOICE[str(order)]: (rows, "logit_") for order, rows in choice.groupby("order", sort=False)},
        BY_TEXT: (choice[choice["main"]], "text_"),
    }
    records = []
    for prompt, (rows, prefix) in asked.items():
        for name, own in rows.groupby("localization", sort=False):
            both = recall(own, prefix, settings.confidence)
            for part, forget in PARTS.items():
                for accuracy in ACCURACIES:
                    if prompt == BY_TEXT and accuracy == "argmax":
                        continue  # the letter is what the model was asked for
                    value = estimate(own[own["forget"] == forget], accuracy, settings, prefix)
                    records.append(
                        {
                            "localization": name, "prompt": prompt, "part": part, "accuracy": accuracy,
                            **value._asdict(), "covers": value.covers, "recall": both.mean,
                            "standing": both.standing, "modal": both.modal,
                        }
                    )  # fmt: skip
    return pd.DataFrame(records)


def by_letter(choice: pd.DataFrame) -> pd.DataFrame:
    """How often each letter is chosen, beside how often it is right.

    Returns:
        One row a ``localization``, ``order`` and ``letter``: ``chosen`` and ``right`` (shares of the questions, all
        seeds), ``n`` (rows) and ``bias``, half the summed absolute difference of the two over the letters: the
        share of answers that would have to move for the letters to be chosen as often as they are right.
    """
    records = []
    for (name, order), rows in choice.groupby(["localization", "order"], sort=False):
        logits = candidates(rows)
        letters = LETTERS[: logits.shape[1]]
        chosen = np.bincount(logits.argmax(1), minlength=len(letters)) / len(rows)
        right = np.bincount(rows["answer_index"], minlength=len(letters)) / len(rows)
        bias = float(np.abs(chosen - right).sum() / 2)
        records += [
            {
                "localization": name, "order": order, "letter": letter, "chosen": float(chosen[i]),
                "right": float(right[i]), "n": len(rows), "bias": bias,
            }
            for i, letter in enumerate(letters)
        ]  # fmt: skip
    return pd.DataFrame(records)


def prompt_panel(table: pd.DataFrame, labels: Mapping[str, str], part: str) -> Panel:
    """One part's prompts: choice, argmax and probability in each cell; marked where the base model is not above chance."""
    own = table[table["part"] == part]
    prompts = list(own["prompt"].unique())
    values = own.set_index(["localization", "prompt", "accuracy"])
    headings = ["Localization"]
    for prompt in prompts:
        standing = str(values.loc[(BASE, prompt, "choice"), "standing"])
        headings.append(f"{prompt.replace('_', ' ')} {MARKS.get(standing, ('', ''))[0]}".strip())
    lines = []
    for name, label in labels.items():
        cells = [
            " / ".join(
                number(float(values.loc[(name, prompt, accuracy), "mean"]))
                if (name, prompt, accuracy) in values.index
                else "–"
                for accuracy in ACCURACIES
            )
            for prompt in prompts
        ]
        lines.append([label, *cells])
    return Panel(f"{part.capitalize()} set: choice / argmax / probability.", headings, lines)


def letter_panel(table: pd.DataFrame, labels: Mapping[str, str]) -> Panel:
    """How often each letter is chosen, in the fixed and in the shuffled order, and the bias of both."""
    headings = ["Localization"]
    for order in CHOICE:
        headings += [*(f"{order} {letter}" for letter in table["letter"].unique()), f"{order}: bias"]
    lines = []
    for side, label in {"": "(right answers)", **labels}.items():
        line = [label]
        for order in CHOICE:
            rows = table[(table["order"] == order) & (table["localization"] == (side or BASE))]
            shares = rows["chosen" if side else "right"]
            line += [number(share) for share in shares] + [number(rows["bias"].iloc[0]) if side else ""]
        lines.append(line)
    return Panel("How often each letter is chosen, forget and retain sets together.", headings, lines)


def run(job: Job) -> None:
    """Stage: a table's supplement, of the paper's forget set."""
    config, table, task = job.config, job.wildcards["table"], job.wildcards["task"]
    frames = read_frames({name: job.inputs[name] for name in ("facts", "multiple_choice")})
    facts, choice = (frames[name][frames[name]["task"] == task] for name in ("facts", "multiple_choice"))
    labels = {BASE: "Base model"}
    for path in job.inputs["selections"]:
        selection = json.loads(Path(path).read_text(encoding="utf-8"))
        labels[selection["localization"]] = selection["label"]
    prompts, letters = by_prompt(facts, choice, config.statistics), by_letter(choice)
    prompts.to_csv(job.outputs["csv"], index=False)
    letters.to_csv(job.outputs["letters"], index=False)
    seeds = int(prompts["seeds"].max())
    base_standings = set(prompts.loc[prompts["localization"] == BASE, "standing"])
    notes = [
        *[f"{mark} {text}" for kind, (mark, text) in MARKS.items() if kind in base_standings],
        "Choice: right among the candidates; argmax: right over the whole vocabulary (of an answer of several tokens, "
        "greedily decoded); probability: mean probability of the right candidate, the released code's accuracy. "
        f"Over {runs(seeds, int(prompts['bases'].max()))}; intervals in the CSV.",
        "Bias: half the summed absolute difference between how often the letters are chosen and how often right.",
    ]
    panels = [*(prompt_panel(prompts, labels, part) for part in PARTS), letter_panel(letters, labels)]
    title = f"{table.replace('_', ' ').capitalize()} ({config.run}), supplement: every prompt, and the letters of multiple choice"
    job.outputs["markdown"].write_text(markdown(title, panels, notes), encoding="utf-8")
