"""Targets by name: the jobs that each asks for, and those that nobody can make, before Snakemake says that no rule does."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from localized_unlearning.errors import UserError
from localized_unlearning.paper.artefacts import FIGURES, TABLES, lacking
from localized_unlearning.workflow.graph import Graph
from localized_unlearning.workflow.layout import JobId

_LIKE = re.compile(r"(fig|tab)[a-z]*[ _.-]?(\d+)", re.IGNORECASE)


def numbers(names: Iterable[str]) -> str:
    """The numbers in names, shortest first.

    >>> numbers(["figure_1", "figure_2", "figure_16"])
    '1 to 16'
    """
    found = sorted(int(name.rpartition("_")[2]) for name in names)
    return f"{found[0]} to {found[-1]}"


def asked(words: Sequence[str]) -> list[str]:
    """The targets among the words of a Snakemake command line, by Snakemake's own parser; none where it has no say."""
    from snakemake.cli import get_argument_parser  # slow to import elsewhere; here it is loaded already

    try:
        found = get_argument_parser().parse_known_args(list(words))[0].targets
    except (SystemExit, Exception):  # another program's command line, as in the tests of a module
        return []
    return [str(word) for word in found or ()]


def check(words: Sequence[str], rules: Sequence[str], graph: Graph) -> None:
    """Refuse a target that nobody can make: one that the config lacks, that the paper does not have, or a slip of the pen.

    Args:
        words: Snakemake's command line. (While the Snakefile is read, Snakemake does not say which of them are targets.)
        rules: the names of all rules.
        graph: the run's jobs.

    Raises:
        UserError: naming what the config lacks, the nearest target, or all of them.
    """
    for word in asked(words):
        if why := refusal(graph, word):
            raise UserError(why)
        if word in (*rules, *FIGURES, *TABLES) or "/" in word or Path(word).exists():
            continue
        match = _LIKE.fullmatch(word)
        if match is None:
            near = difflib.get_close_matches(word, [*rules, *FIGURES, *TABLES], n=1, cutoff=0.7)
            if near:
                raise UserError(f"there is no target {word}: did you mean {near[0]}?")
            continue
        kind, known = ("figure", FIGURES) if match[1].lower() == "fig" else ("table", TABLES)
        name = f"{kind}_{int(match[2])}"
        if name in known:
            raise UserError(f"there is no target {word}: say {name}")
        raise UserError(f"there is no {name}: {kind}s {numbers(known)}")


SINGLE = {
    "claims": "claims",
    "attacks": "attack_table",
    "table_attacks": "attack_table",
    "question": "question_page",
    "overlap_table": "overlap_table",
    "icml_table_2": "overlap_table",
    "icml_table_3": "overlap_table",
    "faithfulness_report": "faithfulness_report",
}
"""The stages behind targets of one job."""


def jobs_of(graph: Graph, name: str) -> list[JobId]:
    """The jobs whose outputs a target asks for.

    Raises:
        UserError: when the config lacks what it shows, or there is no such target.
    """
    if why := refusal(graph, name):
        raise UserError(why)
    if name == "all":
        return list(graph.targets())
    if name in SINGLE:
        return [JobId.of(SINGLE[name])]
    if name in TABLES:
        return [JobId.of("table", table=name)]
    if name in FIGURES:
        return [JobId.of("figure", figure=name)]
    if name in graph.config.studies:
        return [JobId.of("study", study=name)]
    tables = graph.possible(TABLES)
    groups = {
        "tables": [JobId.of("table", table=table) for table in tables],
        "figures": [JobId.of("figure", figure=figure) for figure in graph.possible(FIGURES)],
        "statistics": [JobId.of(stage, table=t) for t in tables for stage in ("comparisons", "supplement")],
        "studies": [JobId.of("study", study=study) for study in graph.config.studies],
        "localizers": [*(JobId.of("localizers", task=task) for task in graph.tasks), JobId.of("places_page")],
    }
    if name in groups:
        return groups[name]
    known = ", ".join(["all", *groups, *SINGLE, *graph.config.studies])
    raise UserError(f"{name} is no target with jobs of its own: say table_N, figure_N or one of {known}")


def refusal(graph: Graph, name: str) -> str | None:
    """Why a config cannot make a target that there is; None where it can."""
    if name in (*TABLES, *FIGURES):
        lack = lacking(graph.config, name)
        return f"{name} cannot be made in this run: {lack}" if lack else None
    if name in ("localizers", "question") and not graph.config.has_injection:
        return (
            f"{name} needs an organism with injected facts, which alone has a truth to compare with: set model.kind to "
            "organism and give organism.facts_in"
        )
    if SINGLE.get(name) == "attack_table" and not graph.attacked():
        return (
            "there is no matrix of attacks in this run: name attacks under attacks.run, and a task and an objective that "
            "the config has under attacks.tasks and attacks.objectives"
        )
    own = graph.config.overlap
    if name in ("icml_table_2", "icml_table_3") and not (own.mechanisms and (own.masked or name[-1] == "2")):
        return (
            f"{name} is the overlap with mechanisms (overlap.mechanisms; Table 3 also overlap.masked), which this run does not "
            "name: take preset icml-mechanisms-gemma-2-9b; overlap_table compares any run's localizations"
        )
    return None
