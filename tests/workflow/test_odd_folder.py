"""Everything in a shell line is quoted: a run from a folder whose name a shell would take apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from odd_folder import ODD, bring
from tiny_run import environment, workplace


def test_files_in_a_folder_with_a_quote_a_space_and_an_umlaut(tmp_path: Path) -> None:
    """Catches an unquoted path in any rule of a table and of the claims, the overlay's own path among them."""
    folder = workplace(tmp_path)
    overlay = folder / ODD / "my overlay.yaml"
    config = bring(folder)
    overlay.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    words = ["table_1", "claims", "audit", "--configfile", f"{ODD}/my overlay.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2", *words],
        cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "results/tiny/tables/table_1.md").stat().st_size
    assert (folder / "results/tiny/claims.md").stat().st_size
