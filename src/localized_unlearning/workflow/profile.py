"""The Slurm profile: where Snakemake looks for it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from localized_unlearning.errors import UserError


def installed_profile() -> Path:
    """Where ``make slurm-profile`` puts the profile that a site edits, and Snakemake looks for it."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "snakemake/slurm/config.yaml"


def install_profile(arguments: argparse.Namespace) -> int:
    """Copy the Slurm profile into the user's Snakemake folder; a copy that was edited for the site is kept.

    Snakemake looks for a profile's name in the working folder, then in the user's and the site's configuration
    folder, and nowhere else.

    Raises:
        UserError: outside a checkout.
    """
    shipped = Path("profiles/slurm/config.yaml")
    if not shipped.is_file():
        raise UserError(f"{shipped} is not here: run this in the folder of the Snakefile")
    target = installed_profile()
    text = shipped.read_text(encoding="utf-8")
    if target.is_file() and not arguments.replace:
        if target.read_text(encoding="utf-8") == text:
            print(f"{target} is there and is the shipped profile")
        else:
            print(
                f"{target} is kept: it was edited, or {shipped} has changed since (diff {shipped} {target})"
            )
            print("install-profile --replace overwrites it")
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"wrote {target}: set its partitions, account and GPUs, then run snakemake --profile slurm all")
    return 0
