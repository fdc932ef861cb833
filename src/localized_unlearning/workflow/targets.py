"""Targets by name: the jobs that each asks for, and those that nobody can make, before Snakemake says that no rule does."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from localized_unlearning.errors import UserError
from localized_unlearning.paper.artefacts import FIGURES, TABLES
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


def check(words: Sequence[str], rules: Sequence[str]) -> None:
    """Refuse a target that nobody can make: a figure or table that the paper does not have, or a slip of the pen.

    Args:
        words: Snakemake's command line. (While the Snakefile is read, Snakemake does not say which of them are targets.)
        rules: the names of all rules.

    Raises:
        UserError: naming the nearest one, or all of them.
    """
    for word in asked(words):
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
    "attacks": "attack_table",
    "question": "question_page",
    "overlap_table": "overlap_table",
    "icml_table_2": "overlap_table",
    "icml_table_3": "overlap_table",
    "claims": "claims",
    "faithfulness_report": "faithfulness_report",
}
"""The stages behind targets of one job."""


def jobs_of(graph: Graph, name: str) -> list[JobId]:
    """The jobs that a target asks for.

    Raises:
        UserError: for a target that is not among those that can be costed.
    """
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
    if name == "statistics":
        return [
            JobId.of(stage, table=t)
            for t in graph.possible(TABLES)
            for stage in ("comparisons", "supplement")
        ]
    known = ["all", "statistics", *SINGLE, *graph.config.studies]
    raise UserError(f"{name} is not a target with a plan: say table_N, figure_N or one of {', '.join(known)}")
