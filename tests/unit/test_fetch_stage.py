"""The fetch stage brings a source through the runner, and a wrong hash leaves nothing to mistake for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from localized_unlearning.config.run import Config
from localized_unlearning.data.fetching import sha256_of
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.workflow.runner import execute


def config(path: Path, sha256: str) -> Config:
    source = {"kind": "path", "path": str(path), "sha256": sha256}
    return Config.model_validate({"athletes": {"source": source}})


def test_fetch_stage(tmp_path: Path) -> None:
    origin = tmp_path / "athletes.csv"
    origin.write_text("athlete,sport\n")
    target = tmp_path / "out" / "athletes.source"
    run = (STAGES["fetch"], {"source": "athletes.source"}, {}, {"file": target}, tmp_path)
    with pytest.raises(UserError, match="athletes"):
        execute(run[0], config(origin, "0" * 64), *run[1:])
    assert not target.exists()
    execute(run[0], config(origin, sha256_of(origin)), *run[1:])
    assert target.read_bytes() == origin.read_bytes()
