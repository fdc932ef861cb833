"""Tables 1 to 4: one row per localization, from per-item rows alone.

Every number carries its interval. A column in which the base model itself is at chance is marked,
because nothing can be read from it. For a Gemma-7B run the paper's value stands beside ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.config import Config, Statistics
from localized_unlearning.errors import UserError
from localized_unlearning.published import PAPER, TABLES
from localized_unlearning.statistics import ACCURACIES, Accuracy, Estimate, bootstrap_mean, estimate

if TYPE_CHECKING:
    from localized_unlearning.stages import Job

PAPER_COLUMNS = ("forget_question", "retain_question", "mcq_forget", "mmlu")
"""Our columns that the paper's four columns are comparable with: its FORGET and RETAIN are, in the
released code, the question prompt's."""

BASE = "base"


@dataclass(frozen=True)
class Column:
    """A column: its name in the CSV, its heading, and the accuracy of guessing (None: not an accuracy)."""

    name: str
    heading: str
    chance: float | None


COLUMNS = (
    Column("forget_training", "Forget ↓", 0.25),
    Column("retain_training", "Retain ↑", 0.25),
    Column("forget_question", "Question forget ↓", 0.25),
    Column("retain_question", "Question retain ↑", 0.25),
    Column("mcq_forget", "MCQ forget ↓", 0.25),
    Column("mcq_retain", "MCQ retain ↑", 0.25),
    Column("mcq_text_forget", "MCQ by text, forget ↓", 0.25),
    Column("mcq_text_retain", "MCQ by text, retain ↑", 0.25),
    Column("mcq_shuffled_forget", "MCQ shuffled, forget ↓", 0.25),
    Column("mcq_shuffled_retain", "MCQ shuffled, retain ↑", 0.25),
    Column("mmlu", "MMLU ↑", 0.25),
    Column("text_loss", "Text loss ↓", None),
)
"""The columns, all accuracies being ``choice``: right among four candidates."""


ACCURACY_IN_WORDS: Mapping[str, str] = {
    "choice": "accuracy among four choices",
    "argmax": "accuracy over the whole vocabulary",
    "probability": "probability among four choices",
}


@dataclass(frozen=True)
class Rows:
    """Per-item rows of every model in a table."""

    facts: pd.DataFrame
    multiple_choice: pd.DataFrame
    mmlu: pd.DataFrame
    text: pd.DataFrame

    def of(self, localization: str) -> Rows:
        """The rows of one localization."""
        parts = (self.facts, self.multiple_choice, self.mmlu, self.text)
        return Rows(*(t[t["localization"] == localization] for t in parts))


def cells(
    rows: Rows, training: str, question: str, settings: Statistics, accuracy: Accuracy
) -> dict[str, Estimate]:
    """The estimates of one row of the table, by column name."""

    def of(table: pd.DataFrame, prefix: str = "logit_") -> Estimate:
        how: Accuracy = "choice" if prefix == "text_" else accuracy
        return estimate(table, how, settings.confidence, settings.bootstrap, settings.seed, prefix)

    found: dict[str, Estimate] = {}
    for part, forget in (("forget", True), ("retain", False)):
        facts = rows.facts[rows.facts["forget"] == forget]
        choice = rows.multiple_choice[rows.multiple_choice["forget"] == forget]
        fixed, shuffled = (choice[choice["order"] == order] for order in ("fixed", "shuffled"))
        found[f"{part}_training"] = of(facts[facts["prompt"] == training])
        found[f"{part}_question"] = of(facts[facts["prompt"] == question])
        found[f"mcq_{part}"] = of(fixed)
        found[f"mcq_text_{part}"] = of(fixed, "text_")
        found[f"mcq_shuffled_{part}"] = of(shuffled)
    found["mmlu"] = of(rows.mmlu)
    found["text_loss"] = bootstrap_mean(
        rows.text["loss"].to_numpy(dtype=float), settings.confidence, settings.bootstrap, settings.seed
    )
    return found


def at_chance(found: Estimate, chance: float | None) -> bool:
    """Whether an accuracy cannot be told from guessing: its interval does not lie above chance."""
    return chance is not None and found.low <= chance


def tidy(table: str, rows: Rows, selections: Mapping[str, Mapping[str, Any]], config: Config) -> pd.DataFrame:
    """One row per localization, column and accuracy, with interval, n, and the paper's value for Gemma-7B."""
    names = [BASE, *selections]
    training, question = config.prompts.training, config.prompts.question
    paper = PAPER[table] if is_gemma_7b(config) else {}
    records = []
    for name in names:
        for accuracy in ACCURACIES:
            found = cells(rows.of(name), training, question, config.statistics, accuracy)
            for column in COLUMNS:
                value = found[column.name]
                published = None
                if column.name in PAPER_COLUMNS and name in paper:
                    published = paper[name][PAPER_COLUMNS.index(column.name)]
                records.append(
                    {
                        "localization": name,
                        "label": "Base model" if name == BASE else selections[name]["label"],
                        "components": 0 if name == BASE else len(selections[name]["components"]),
                        "parameters": 0 if name == BASE else selections[name]["parameters"],
                        "share_of_parameters": 0.0
                        if name == BASE
                        else selections[name]["share_of_parameters"],
                        "column": column.name,
                        "accuracy": accuracy if column.chance is not None else "loss",
                        **value._asdict(),
                        "paper": published,
                    }
                )
    return pd.DataFrame(records).drop_duplicates(["localization", "column", "accuracy"], ignore_index=True)


def is_gemma_7b(config: Config) -> bool:
    """Whether a run uses the paper's model, so that its numbers may stand beside ours."""
    return config.model.kind == "huggingface" and config.model.name == "google/gemma-7b"


def number(value: float, sign: bool = False) -> str:
    """A number as the paper prints it: three decimals."""
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def shown(column: Column, prompts: Sequence[str]) -> bool:
    """Whether the readable table has a column: all but those of the prompts that are not asked for."""
    return not column.name.startswith(("forget_", "retain_")) or column.name.split("_")[1] in prompts


def wide(
    data: pd.DataFrame, accuracy: str, prompts: Sequence[str] = ("training", "question")
) -> tuple[list[str], list[list[str]], list[str]]:
    """Headings, cells and footnotes of the readable table."""
    columns = [column for column in COLUMNS if shown(column, prompts)]
    chosen = data[data["accuracy"].isin((accuracy, "loss"))]
    base: Any = chosen[chosen["localization"] == BASE].set_index("column")
    headings = ["Localization", "Components", "Parameters"]
    marks = {}
    for column in columns:
        row: Any = base.loc[column.name]
        marks[column.name] = at_chance(
            Estimate(row["mean"], row["low"], row["high"], int(row["n"])),
            column.chance if accuracy != "probability" else None,
        )
        headings.append(column.heading + (" †" if marks[column.name] else ""))
    lines = []
    for name, group in chosen.groupby("localization", sort=False):
        first = group.iloc[0]
        share = (
            "" if name == BASE else f"{first['parameters']:,} ({100 * first['share_of_parameters']:.1f} %)"
        )
        line = [first["label"], "" if name == BASE else str(first["components"]), share]
        by_column: Any = group.set_index("column")
        for column in columns:
            row = by_column.loc[column.name]
            text = f"{number(row['mean'])} [{number(row['low'])}, {number(row['high'])}]"
            if pd.notna(row["paper"]):
                text += f" (paper {number(row['paper'])})"
            line.append(text)
        lines.append(line)
    notes = []
    if any(marks.values()):
        notes.append(
            "† The base model itself is at chance (25 %) here: the column says nothing about unlearning."
        )
    return headings, lines, notes


def markdown(
    title: str, headings: Sequence[str], lines: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
    """A Markdown table with title and footnotes."""
    rule = ["---"] + ["---:"] * (len(headings) - 1)
    rows = ["| " + " | ".join(cells_) + " |" for cells_ in (headings, rule, *lines)]
    return "\n".join([f"**{title}**", "", *rows, "", *[f"{note}  " for note in notes]]) + "\n"


def latex(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A LaTeX table (booktabs) with title and footnotes."""

    def clean(text: str) -> str:
        for old, new in (
            ("%", r"\%"), ("&", r"\&"), ("_", r"\_"),
            ("↓", r"$\downarrow$"), ("↑", r"$\uparrow$"), ("†", r"\dag"), ("λ", r"$\lambda$"),
        ):  # fmt: skip
            text = text.replace(old, new)
        return text

    body = [" & ".join(clean(c) for c in line) + r" \\" for line in lines]
    return (
        "\n".join(
            [
                r"\begin{table}", r"\centering", rf"\caption{{{clean(title)}}}",
                r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}", r"\toprule",
                " & ".join(clean(h) for h in headings) + r" \\", r"\midrule", *body, r"\bottomrule",
                r"\end{tabular}}", *[rf"\par\footnotesize {clean(note)}" for note in notes], r"\end{table}",
            ]
        )
        + "\n"
    )  # fmt: skip


def title_of(table: str, config: Config) -> str:
    """What a table shows, in one sentence."""
    task, objective = TABLES[table]
    forget = config.tasks[task].forget  # type: ignore[union-attr]
    what = f"all {forget.sport} athletes" if forget.sport else f"{len(forget.athletes)} named athletes"
    goal = "erasing" if objective == "erase" else "replacing with golf the sport of"
    number_ = table.split("_")[1]
    return f"Table {number_}. Localized fine-tuning, {goal} {what} ({config.run}); {ACCURACY_IN_WORDS[config.tables.accuracy]} on the test part."


def run(job: Job) -> None:
    """Stage: one table as CSV (tidy, all three accuracies), Markdown and LaTeX (one accuracy, see ``tables``)."""
    import json

    config = job.config
    table = job.wildcards["table"]

    def concat(name: str) -> pd.DataFrame:
        return pd.concat([pd.read_parquet(p) for p in job.inputs[name]], ignore_index=True)

    rows = Rows(concat("facts"), concat("multiple_choice"), concat("mmlu"), concat("text"))
    selections = {}
    for path in job.inputs["selections"]:
        selection = json.loads(Path(path).read_text(encoding="utf-8"))
        selections[selection["localization"]] = selection
    missing = {BASE, *selections} - set(rows.facts["localization"])
    if missing:
        raise UserError(
            f"{table} lacks the evaluation of {', '.join(sorted(missing))}: rerun the evaluate rule"
        )
    data = tidy(table, rows, selections, config)
    headings, lines, notes = wide(data, config.tables.accuracy, config.tables.prompts)
    sizes = data[data["localization"] == BASE].drop_duplicates("column").set_index("column")["n"]
    level = f"{100 * config.statistics.confidence:g}"
    notes.append(
        f"Intervals: {level} %, over test items (Wilson; bootstrap for the text loss), one training seed. Items: "
        f"{sizes['forget_training']} forget, {sizes['retain_training']} retain, {sizes['mmlu']} MMLU-format "
        f"questions, {sizes['text_loss']} text windows. Text loss in nats per token."
    )
    title = title_of(table, config)
    data.to_csv(job.outputs["csv"], index=False)
    job.outputs["markdown"].write_text(markdown(title, headings, lines, notes), encoding="utf-8")
    job.outputs["latex"].write_text(latex(title, headings, lines, notes), encoding="utf-8")
