"""Targets that nobody can make, answered before Snakemake says that no rule produces them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from localized_unlearning.errors import UserError
from localized_unlearning.paper.artefacts import FIGURES, TABLES

_LIKE = re.compile(r"(fig|tab)[a-z]*[ _.-]?(\d+)", re.IGNORECASE)


def numbers(names: Iterable[str]) -> str:
    """The numbers in names, shortest first.

    >>> numbers(["figure_1", "figure_2", "figure_16"])
    '1 to 16'
    """
    found = sorted(int(name.rpartition("_")[2]) for name in names)
    return f"{found[0]} to {found[-1]}"


def check(words: Sequence[str]) -> None:
    """Refuse a figure or table that the paper does not have, on Snakemake's command line.

    Args:
        words: the command line. (While the Snakefile is read, Snakemake does not say which of them are targets.)

    Raises:
        UserError: naming the nearest one, or all of them.
    """
    for word in words:
        match = _LIKE.fullmatch(word)
        if match is None or word in FIGURES or word in TABLES:
            continue
        kind, known = ("figure", FIGURES) if match[1].lower() == "fig" else ("table", TABLES)
        name = f"{kind}_{int(match[2])}"
        if name in known:
            raise UserError(f"there is no target {word}: say {name}")
        raise UserError(f"there is no {name}: {kind}s {numbers(known)}")
