"""Preflight over an environment of our own making: what is missing is said at once, each with its remedy."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localized_unlearning.cli import commands
from localized_unlearning.config.source import Source
from localized_unlearning.workflow import preflight


class Fake(preflight.Environment):
    """An environment in which everything is in order, but for what a test says."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def answer(self, name: str, default: Any) -> Any:
        value = self.answers.get(name, default)
        if isinstance(value, Exception):
            raise value
        return value

    def hub(self, source: Source) -> str | None:
        found: str | None = self.answer(f"hub {source.repo_id}", self.answer("hub", None))
        return found

    def cached(self, source: Source) -> bool:
        return bool(self.answer("cached", False))

    def reach(self, url: str) -> int:
        return int(self.answer("reach", 200))

    def free_disk(self, folder: Path) -> float:
        return float(self.answer("free", 1e13))

    def memory(self) -> float | None:
        return float(self.answer("memory", 64e9))

    def command(self, *words: str) -> str | None:
        found: str | None = self.answer(words[0], None)
        return found


Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def ask(checkout: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Exit status and page of preflight on Gemma-7B in a fake environment."""

    def run(
        overlay: str = "", preset: str = "gemma-7b", words: tuple[str, ...] = (), **answers: Any
    ) -> tuple[int, str]:
        (checkout / "overlay.yaml").write_text(textwrap.dedent(overlay) or "{}")
        files = [
            "config.yaml",
            *([f"workflow/presets/{preset}.yaml"] if preset else []),
            "overlay.yaml",
        ]
        given = [word for file in files for word in ("--config", file)]
        arguments = commands.build_parser().parse_args(["preflight", *given, *words])
        status = preflight.run(arguments, Fake(**answers))
        return status, capsys.readouterr().out

    return run


def test_in_order(ask: Ask) -> None:
    """Catches a check that cries where nothing is wrong; the plan is there with its sums."""
    status, said = ask(sinfo="cpu\ngpu\n", sacctmgr="mine\n")
    assert status == 0 and "make slurm-profile" in said
    status, said = ask()
    assert status == 0 and said.rstrip().endswith("Nothing is missing.")
    assert "285 jobs" in said and "Longest chain" in said and "none was measured" in said
    assert "there is no sinfo here" in said


def test_all_that_is_missing_at_once(ask: Ask, checkout: Path) -> None:
    """Catches a check that stops at the first fault, or tells no remedy."""
    profile = checkout / "home/snakemake/slurm/config.yaml"
    profile.parent.mkdir(parents=True)
    profile.write_text(
        "default-resources: {slurm_partition: cpu, slurm_account: ours}\nset-resources: {mask: {slurm_partition: gpux}}\n"
    )
    status, said = ask(
        overlay="""
            finetune: {precision: fp32_master, micro_batch_tokens: 8192}
            mmlu: {source: {revision: null}}
            """,
        free=1e9, reach=404, sinfo="cpu\ngpu\n", sacctmgr="mine\n",
        **{"hub google/gemma-7b": "the files * of google/gemma-7b at x are gated: (1) accept the licence"},
    )  # fmt: skip
    assert status == 1
    missing = said[said.index("Missing:") :]
    for words in (
        "google/gemma-7b at x are gated: (1) accept the licence",
        "sports.csv answers 404: correct the address",
        "mmlu.source has no revision: choose a commit",
        "GB free: free ",
        "finetune (", "of 80 GB on A100-80: lower finetune.micro_batch_tokens",
        "Slurm has no partition 'gpux': edit slurm_partition",
        "you have no Slurm account 'ours': edit slurm_account",
    ):  # fmt: skip
        assert words in missing, words
    assert "Nothing is missing" not in said


def test_without_a_network_it_says_what_was_not_checked(ask: Ask) -> None:
    """Catches a plan that needs the network, and an unreachable host taken for a wrong address or for a right one."""
    gone = preflight.Unreachable("no route")
    status, said = ask(hub=gone, reach=gone)
    assert status == 0
    unchecked = said[said.index("Not checked:") : said.index("Nothing is missing")]
    for name in ("google/gemma-7b", "athletes.source", "mmlu.source", "series.source", "text.train"):
        assert name in unchecked, name
    status, said = ask(hub=gone, reach=gone, cached=True)
    assert status == 0 and "google/gemma-7b is in the Hugging Face cache" in said


def test_more_gpus_or_a_larger_one_hold_what_one_cannot(ask: Ask) -> None:
    """Catches a memory check that ignores the device or the number of GPUs."""
    large = "finetune: {precision: fp32_master}\n"
    assert ask(overlay=large)[0] == 1
    status, said = ask(overlay=large, words=("--device", "H200"))
    assert status == 0, said
    assert ask(overlay=large, words=("--gpu-memory", "141"))[0] == 0
    assert ask(overlay=large + "compute: {shards: 2}\n")[0] == 0


def test_a_profile_that_asks_for_fewer_gpus_than_shards(ask: Ask, checkout: Path) -> None:
    """Catches jobs that wait in the queue for a day and then find one GPU."""
    profile = checkout / "home/snakemake/slurm/config.yaml"
    profile.parent.mkdir(parents=True)
    environment = {"sinfo": "cpu\ngpu\n", "sacctmgr": "mine\n"}
    for asked, enough in (("gres: gpu:a100:1", 0), ("gpu: 1", 0), ("gres: gpu:a100:2", 1), ("gpu: 4", 1)):
        profile.write_text(f"set-resources: {{mask: {{{asked}}}}}\n")
        status, said = ask(overlay="compute: {shards: 2}\n", **environment)
        assert (status, "but compute.shards is 2: ask for 2 in" in said) == (1 - enough, not enough)


def test_files_that_are_here(ask: Ask, checkout: Path) -> None:
    """Catches a file with the wrong bytes taken for the right one, and one that is not there."""
    status, said = ask(preset="")
    assert status == 0 and "athletes.source is workflow/resources/athletes.csv" in said
    status, said = ask(preset="", overlay=f"athletes: {{source: {{sha256: {'ab' * 32}}}}}")
    assert status == 1 and "another SHA-256" in said
    status, said = ask(preset="", overlay="mmlu: {source: {path: nowhere.csv}}")
    assert status == 1 and "there is no nowhere.csv" in said
    status, said = ask(preset="", memory=1e9)
    assert status == 1 and "GB of 1 GB on cpu" in said


def test_the_page_of_scale_counts_the_plan_s_jobs(ask: Ask) -> None:
    """Catches a plan that grew while the page kept its number."""
    _, said = ask()
    planned = re.search(r"^(\d+ jobs), ", said, re.M)
    assert planned
    assert f"\n{planned[1]}, " in (Path(__file__).parents[2] / "docs/scale.md").read_text(encoding="utf-8")
