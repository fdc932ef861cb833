"""The page of discrepancies: every differing key has its reason, and every reason a differing key."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from localized_unlearning.errors import UserError
from localized_unlearning.reporting import discrepancies

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for path in ("config.yaml", discrepancies.REASONS, discrepancies.PAPER, discrepancies.RELEASED):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def change(path: Path, key: str, value: Any) -> None:
    """Set a dotted key in a YAML file; None removes it."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    *above, last = key.split("/")
    node = data
    for part in above:
        node = node.setdefault(part, {})
    if value is None:
        del node[last]
    else:
        node[last] = value
    path.write_text(yaml.safe_dump(data), encoding="utf-8")


def test_the_page_holds_the_presets_values(checkout: Path) -> None:
    page = discrepancies.page(checkout)
    (line,) = [line for line in page.splitlines() if line.startswith("| `masking.momentum`")]
    assert "`0.9`" in line
    change(checkout / discrepancies.RELEASED, "masking/momentum", 0.875)
    assert "`0.875`" in discrepancies.page(checkout)


@pytest.mark.parametrize(
    ("released", "complaint"),
    [
        (
            {"selection": "x", "seed": "not seeded"},
            r"claims localizations\.random\.mask\.seed, which .* does not switch",
        ),
        ("each of 1848, not seeded", r"says one thing of localizations\.random\.mask, where 2 keys differ"),
    ],
)
def test_a_row_cannot_claim_what_no_key_switches(checkout: Path, released: Any, complaint: str) -> None:
    path = checkout / discrepancies.REASONS
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    data["differences"]["localizations.random.mask"]["released"] = released
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(UserError, match=complaint):
        discrepancies.page(checkout)


def test_what_no_key_brings_back_names_none(checkout: Path) -> None:
    path = checkout / discrepancies.REASONS
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    data["fixed"].append({"did": "Something.", "ours": "As masking.momentum has it."})
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(UserError, match=r"no key brings back 'Something\..*names masking\.momentum"):
        discrepancies.page(checkout)


@pytest.mark.parametrize(
    ("file", "key", "value", "complaint"),
    [
        (
            discrepancies.RELEASED,
            "relearning/rank",
            8,
            r"differs in relearning\.rank, but .* gives no reason",
        ),
        (discrepancies.REASONS, "differences/measures.accuracy", None, r"differs in measures\.accuracy"),
        (
            discrepancies.RELEASED,
            "split/kind",
            "stratified",
            r"speaks of split\.kind, in which .* do not differ",
        ),
        (
            discrepancies.REASONS,
            "open/finetune.clip",
            "x",
            r"speaks of finetune\.clip, which .* does not set",
        ),
    ],
)
def test_a_key_without_a_reason_or_a_reason_without_a_key_is_refused(
    checkout: Path, file: Path, key: str, value: Any, complaint: str
) -> None:
    change(checkout / file, key, value)
    with pytest.raises(UserError, match=complaint):
        discrepancies.page(checkout)
