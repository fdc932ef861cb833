"""A checkout on the simulated cluster, as its user sees it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localized_unlearning.config.reading import merge, read_yaml
from localized_unlearning.jobs.stages import STAGES
from tiny_run import ROOT, TINY, environment, workplace

# One localization: every rule is here, with few jobs of each.
RUN = merge(TINY, {"localizations": {"manual": None, "random": None}})

PATIENCE = 3600
"""Seconds after which something hangs: a busy machine may take twenty times as long as a quiet one."""

PAUSE = 5
"""Seconds before Snakemake asks Slurm for the first time: the site's edit of the installed profile."""


@dataclass(frozen=True)
class Checkout:
    """A folder that looks like a checkout whose ``config.yaml`` is the tiny run, and its user's environment."""

    folder: Path
    home: Path

    @property
    def profile(self) -> Path:
        """The installed profile, a site's to edit."""
        return self.home / "snakemake/slurm/config.yaml"

    @property
    def environment(self) -> dict[str, str]:
        outside = {k: v for k, v in environment(self.folder).items() if not k.startswith(("SLURM_", "OMP_"))}
        return {**outside, "XDG_CONFIG_HOME": str(self.home)}

    def run(self, line: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """One line at this user's prompt, to its end."""
        return subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip

    def start(self, line: str) -> subprocess.Popen[bytes]:
        """One line at this user's prompt, left running; what it says goes to ``said.txt``."""
        with (self.folder / "said.txt").open("wb") as said:
            return subprocess.Popen(
                ["bash", "-c", f"exec {line}"], cwd=self.folder, env=self.environment, stdout=said, stderr=said,
                start_new_session=True,
            )  # fmt: skip

    def said(self) -> str:
        return (self.folder / "said.txt").read_text(errors="replace")

    def records(self) -> list[dict[str, Any]]:
        """The jobs' records: the resolved config has one too, which the Snakefile writes."""
        found = [json.loads(path.read_text()) for path in sorted(self.folder.glob("*/tiny/**/*.record.json"))]
        return [record for record in found if record["stage"] in STAGES]

    def record(self, output: str) -> dict[str, Any]:
        """The record of the job whose first output is ``output``."""
        path = self.folder / output
        record: dict[str, Any] = json.loads((path.parent / f"{path.name}.record.json").read_text())
        return record

    def configure(self, overlay: dict[str, Any]) -> None:
        config = merge(merge(read_yaml(ROOT / "config.yaml"), RUN), overlay)
        (self.folder / "config.yaml").unlink(missing_ok=True)
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def edit_profile(self, **resources: dict[str, Any]) -> None:
        """Resources of rules, by the rule, laid over the installed profile's.

        (``--set-resources`` on the command line would replace all of the profile's.)
        """
        profile = merge(yaml.safe_load(self.profile.read_text()), {"set-resources": resources})
        self.profile.write_text(yaml.safe_dump(profile))

    def forget(self, *outputs: str) -> None:
        """Remove outputs, to be made again."""
        for output in outputs:
            (self.folder / output).unlink()

    def copy(self, folder: Path) -> Checkout:
        """Another user's checkout in ``folder``, with what this one has made so far."""
        copy = Checkout(folder / "checkout", folder / "home")
        shutil.copytree(self.folder, copy.folder, symlinks=True)
        shutil.copytree(self.home, copy.home)
        return copy


def set_up(folder: Path) -> Checkout:
    """A fresh checkout in ``folder`` with the profile installed as documented, and edited for the site."""
    for name in ("checkout", "home"):
        (folder / name).mkdir(parents=True)
    checkout = Checkout(workplace(folder / "checkout"), folder / "home")
    for name in ("profiles", "Makefile"):
        (checkout.folder / name).symlink_to(ROOT / name)
    checkout.configure({})
    done = checkout.run("localized-unlearning install-profile")
    assert done.returncode == 0, done.stderr
    shipped = checkout.profile.read_text()
    pause = "slurm-init-seconds-before-status-checks: "
    assert f"{pause}30\n" in shipped
    checkout.profile.write_text(shipped.replace(f"{pause}30\n", f"{pause}{PAUSE}\n"))
    return checkout


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)
    return found


def holder(checkout: Checkout, output: str) -> dict[str, Any]:
    """Who is making ``output``, once somebody is; its process is stopped in its first moments."""
    path = checkout.folder / output
    lock = path.with_name(f".{path.name}.lock")

    def read() -> Any:
        try:
            return json.loads(lock.read_text())
        except (OSError, ValueError):
            return None

    found: dict[str, Any] = wait_for(read, f"a job that makes {output}")
    os.kill(found["pid"], signal.SIGSTOP)
    return found


def scontrol(*words: str) -> None:
    subprocess.run(["scontrol", *words], check=True, capture_output=True, timeout=30)
