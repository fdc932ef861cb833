"""The toy run that the audit's tests start from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import SOURCES, STAGES, Lab

from localized_unlearning.provenance import audit, environment


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A finished, clean toy run; the current folder is its workflow's."""
    root = tmp_path / "lab"
    (root / "toylab").mkdir(parents=True)
    for name, text in SOURCES.items():
        (root / "toylab" / f"{name}.py").write_text(text)
    (root / "workflow").mkdir()
    (root / "workflow" / "data.txt").write_text("1 2 3\n")
    (root / "workflow" / "prompts.yaml").write_text("training: Fact\n")
    (root / "envs").mkdir()
    (root / "envs" / "cpu.txt").write_text("# pinned\nnumpy==1.0\ntorch==2.0+cpu\n")
    (root / "config.yaml").write_text("run: organism\nseeds: [0, 1]\n")
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.chdir(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(audit, "STAGES", STAGES)
    installed = {"python": "3.11", "numpy": "1.0", "torch": "2.0+cpu"}
    monkeypatch.setattr(environment, "versions", lambda: dict(installed))
    found = Lab(root, installed)
    found.build()
    yield found
    for name in [name for name in sys.modules if name.startswith("toylab")]:
        del sys.modules[name]
