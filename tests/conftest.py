"""Fixtures and markers of all tests."""

import os
from pathlib import Path

import pytest

# One thread a worker, and in what it starts: before numpy and torch are imported, which read it once.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

from tiny_base import tiny_base
from tiny_models import _originals, float64, tiny

__all__ = ["_originals", "float64", "tiny", "tiny_base"]

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = Path(__file__).parent / "workflow"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh checkout in which nothing has run, and no profile of this machine's user."""
    for name in ("workflow", "config.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.hookimpl(tryfirst=True)  # before -m reads the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs Snakemake, and start with the longest: the files of it, then those with a slow test.

    A file's tests run on one worker (`--dist loadfile`), so that they share its finished run.
    """
    for item in items:
        if WORKFLOW in item.path.parents:
            item.add_marker(pytest.mark.workflow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not item.get_closest_marker("workflow"), item.path not in slow))
