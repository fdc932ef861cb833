"""The fetch stage brings a source through the runner, and a wrong hash leaves nothing to mistake for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    run: tuple[Any, ...] = (STAGES["fetch"], {"source": "athletes.source"}, {}, {"file": target}, tmp_path)
    with pytest.raises(UserError, match="athletes"):
        execute(run[0], config(origin, "0" * 64), *run[1:])
    assert not target.exists()
    execute(run[0], config(origin, sha256_of(origin)), *run[1:])
    assert target.read_bytes() == origin.read_bytes()


def test_a_local_copy_is_recorded_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a record that lets a hub's commit vouch for bytes that came from this machine."""
    copy = tmp_path / "copy.csv"
    copy.write_text("athlete,sport\n")
    source = {
        "kind": "hub", "repo_id": "some/data", "filename": "f.csv", "revision": "a" * 40, "repo_type": "dataset",
        "local": str(copy),
    }  # fmt: skip
    found = Config.model_validate({"athletes": {"source": source}})
    target = tmp_path / "out" / "athletes.source"
    record = execute(STAGES["fetch"], found, {"source": "athletes.source"}, {}, {"file": target}, tmp_path)
    assert record is not None and not STAGES["fetch"].cached
    assert record.facts["origin"] == {
        "from": "a local copy", "name": "copy.csv", "checked": "nothing", "sha256": sha256_of(copy),
    }  # fmt: skip
    assert "nobody vouches for its bytes" in capsys.readouterr().err
