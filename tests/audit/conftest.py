"""The toy run that the audit's tests start from."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import SOURCES, STAGES, Lab

from localized_unlearning.audit import findings
from localized_unlearning.provenance import environment

INSTALLED = {"python": "3.11", "numpy": "1.0", "torch": "2.0+cpu"}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run, which every test gets a copy of: records hold no absolute path."""
    root = tmp_path_factory.mktemp("built") / "lab"
    (root / "toylab").mkdir(parents=True)
    for name, text in SOURCES.items():
        (root / "toylab" / f"{name}.py").write_text(text)
    (root / "workflow").mkdir()
    (root / "workflow" / "data.txt").write_text("1 2 3\n")
    (root / "workflow" / "prompts.yaml").write_text("training: Fact\n")
    (root / "envs").mkdir()
    (root / "envs" / "cpu.txt").write_text("# pinned\nnumpy==1.0\ntorch==2.0+cpu\n")
    (root / "config.yaml").write_text("run: organism\nseeds: [0, 1]\n")
    with pytest.MonkeyPatch.context() as patch, _inside(root, INSTALLED, patch) as lab:
        lab.build()
    shutil.rmtree(root / "toylab" / "__pycache__", ignore_errors=True)
    return root


@pytest.fixture
def lab(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A finished, clean toy run; the current folder is its workflow's."""
    root = tmp_path / "lab"
    shutil.copytree(built, root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with _inside(root, dict(INSTALLED), monkeypatch) as found:
        yield found


@contextmanager
def _inside(root: Path, installed: dict[str, str], patch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The toy run's folder as the current one, its stages and packages as the only ones."""
    patch.syspath_prepend(str(root))
    patch.chdir(root)
    patch.setattr(findings, "STAGES", STAGES)
    patch.setattr(environment, "versions", lambda: dict(installed))
    importlib.invalidate_caches()
    yield Lab(root, installed)
    for name in [name for name in sys.modules if name.startswith("toylab")]:
        del sys.modules[name]
