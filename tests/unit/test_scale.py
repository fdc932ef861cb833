"""What a plan costs grows with its jobs and no faster: calls are counted, since seconds depend on the neighbours."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from snakemake.scheduling.job_scheduler import JobScheduler

from localized_unlearning.config.reading import load
from localized_unlearning.workflow import snakefile
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


def test_the_sizes_of_a_ready_jobs_files_are_looked_up_once() -> None:
    """Catches a scheduler that looks through the files of all ready jobs at each job's end, and sizes that are lost."""

    class Reading:
        def __init__(self, *paths: str) -> None:
            self.input = paths

    class Scheduler:
        def __init__(self) -> None:
            self._input_sizes: dict[str, int] = {}
            self.asked: list[list[Any]] = []

        async def update_input_sizes(self, jobs: Iterable[Any]) -> None:
            self.asked.append(list(jobs))
            self._input_sizes.update({path: 1 for job in self.asked[-1] for path in job.input})

    for _ in range(2):  # read twice, wrapped once
        snakefile.calm(Scheduler)
    first, second, many = Reading("a"), Reading("b"), Reading(*map(str, range(snakefile.SIZES)))
    scheduler = Scheduler()
    for jobs in ([first], [first, second], [first, second], [second, many], [second, many]):
        asyncio.run(scheduler.update_input_sizes(jobs))
        assert {path for job in jobs for path in job.input} <= scheduler._input_sizes.keys()
    assert scheduler.asked[:3] == [[first], [second], []]
    assert scheduler.asked[3] == [second, many]  # so many that Snakemake forgets others: all are looked up
    assert inspect.iscoroutinefunction(JobScheduler.update_input_sizes)
    assert "_input_sizes" in inspect.getsource(JobScheduler.update_input_sizes)


@pytest.mark.slow
def test_no_timer_wakes_the_scheduler(tmp_path: Path) -> None:
    """Catches Snakemake's rate limit coming back: the settings that the Snakefile sees are not the scheduler's."""
    (tmp_path / "Snakefile").write_text(
        "from snakemake.scheduling.job_scheduler import JobScheduler as S\n"
        "from localized_unlearning.workflow.snakefile import calm\n"
        "calm(S)\n"
        "S._schedule_reevalutation = lambda self, delay: open('woken', 'a').close()\n"
        "rule:\n  output: 'done'\n  shell: 'touch {output}'\n"
    )
    command = [sys.executable, "-m", "snakemake", "--cores", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (tmp_path / "done").exists(), done.stderr
    assert not (tmp_path / "woken").exists()
