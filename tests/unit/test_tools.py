"""The files generated from the typed config are in step with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from localized_unlearning.reporting import reference

ROOT = Path(__file__).resolve().parents[2]


GENERATED = reference.generated(ROOT)


@pytest.mark.parametrize("path", sorted(map(str, GENERATED)))
def test_generated_files_are_in_step(path: str) -> None:
    """Repair with: localized-unlearning reference."""
    assert (ROOT / path).read_text(encoding="utf-8") == GENERATED[Path(path)]
