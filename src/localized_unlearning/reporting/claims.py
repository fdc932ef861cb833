"""The paper's claims as executable checks (abstract, contributions, sections 3.1-3.2, A.1, A.2).

``schema`` says what a claim is, ``evidence`` and ``published`` where numbers come from (a run's rows, the paper's
tables), ``verdicts`` how they decide, ``pages`` how that is told.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from localized_unlearning import files
from localized_unlearning.analysis import question
from localized_unlearning.analysis.claims import evidence, published, verdicts
from localized_unlearning.analysis.claims.frames import frames_of
from localized_unlearning.analysis.claims.schema import Claim, read
from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.errors import UserError
from localized_unlearning.reporting import claim_pages

if TYPE_CHECKING:
    from localized_unlearning.analysis.claims.verdicts import Judgement
    from localized_unlearning.jobs.job import Job


LEDGER = Path("docs/claims-in-the-paper.md")

ASKED = Path("docs/results/localization-question/question.csv")
"""The rows on which the ledger judges this project's own question."""


def run(job: Job) -> None:
    """Stage: every claim judged on the run's rows, as JSON and Markdown."""

    config = job.config
    lookup = lookup_layers(job.inputs.get("selection"))
    frames = frames_of(job.inputs["rows"])
    prompt = config.measures.prompts[0]
    accuracy = config.measures.accuracy
    asked = getattr(config.prompts, prompt)
    chosen = selections(job.inputs["selections"])
    rows = evidence.Run(frames, asked, config.statistics, lookup, accuracy, chosen)
    level = config.statistics.confidence
    sets = {name: task.of for name, task in config.tasks.items() if task and task.of}
    findings = [verdicts.judge(claim, rows, level, sets) for claim in read(job.inputs["claims"])]
    text = json.dumps([finding.as_json() for finding in findings], indent=1, ensure_ascii=False)
    job.outputs["json"].write_text(text + "\n", encoding="utf-8")
    page = claim_pages.run_page(config.run, findings, level, prompt, accuracy, rows.bases)
    job.outputs["markdown"].write_text(page, encoding="utf-8")


def lookup_layers(selection: Path | None) -> tuple[int, ...]:
    """Layers of the manual localization, from its selection; none without one."""
    if selection is None:
        return ()
    components = json.loads(selection.read_text(encoding="utf-8"))["components"]
    return tuple(sorted({int(name.partition(".")[0]) for name in components}))


def selections(paths: Iterable[Path]) -> dict[tuple[str, str], list[list[str]]]:
    """Names of the chosen components by task and localization, base model by base model, of selection files."""
    found: dict[tuple[str, str], list[list[str]]] = {}
    for path in paths:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        found.setdefault((data["task"], data["localization"]), []).append(list(data["components"]))
    return found


def ledger(claims: tuple[Claim, ...], folder: Path | None, asked: Path | None) -> str:
    """The ledger: claims that Tables 1-4 decide, this project's own on the rows in ``asked``, then those that need the
    curves in ``folder``."""
    settings = Statistics()
    outcomes = None if asked is None else question.compared(pd.read_csv(asked))
    own = [] if outcomes is None else question.claims(outcomes, settings.seed)
    tables = published.Published(settings)
    found = [verdicts.judge(claim, tables, settings.confidence) for claim in claims]
    curves: list[Judgement] = []
    if folder is not None:
        curves_too = published.Published(settings, folder)
        rest = [finding.claim for finding in found if any(c.margin is None for c in finding.comparisons)]
        curves = [verdicts.judge(claim, curves_too, settings.confidence) for claim in rest]
    return claim_pages.ledger(
        [finding for finding in found if finding.verdict != "not testable"], own, curves
    )


def write_ledger(arguments: argparse.Namespace) -> int:
    """Write the ledger."""
    folder: Path | None = arguments.published
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder} does not exist: name the folder of the published numbers or leave it out")
    text = ledger(read(arguments.claims), folder, ASKED if ASKED.is_file() else None)
    files.write_text(arguments.out, text)
    print(arguments.out)
    return 0
