"""What a plan costs grows with its jobs and no faster: calls are counted, since seconds depend on the neighbours."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localized_unlearning.config.reading import load
from localized_unlearning.workflow.graph import Graph

ROOT = Path(__file__).resolve().parents[2]


def calls(function: Callable[[], Any]) -> tuple[int, Any]:
    """How many Python functions are called meanwhile, and what ``function`` gives."""
    count = 0

    def counted(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        found = function()
    finally:
        sys.setprofile(before)
    return count, found


@pytest.mark.slow
def test_a_graph_of_four_times_the_seeds_takes_four_times_the_work() -> None:
    """Catches a job that looks through all others; 10,000 jobs are 57 seeds of the default run."""

    def graph(seeds: int) -> tuple[int, int]:
        config = load([ROOT / "config.yaml"], {"seeds": list(range(seeds))})
        count, jobs = calls(lambda: Graph(config).jobs)
        return count, len(jobs)

    (few, few_jobs), (many, many_jobs) = graph(5), graph(20)
    assert many_jobs > 3.5 * few_jobs
    assert many / many_jobs < 1.2 * few / few_jobs
