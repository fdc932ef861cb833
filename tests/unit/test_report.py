"""The report on an empty and on a partial run, and the targets that a config can and cannot make."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.paper.artefacts import FIGURES, TABLES, lacking
from localized_unlearning.report import page as page_module
from localized_unlearning.workflow.snakefile import Rules

TEMPLATES = Path(__file__).resolve().parents[2] / "workflow" / "report"
PICTURE = b"\x89PNG\r\n\x1a\n not really"
TABLE = """**Table 1. A title.**

| Localization | Parameters | Forget ↓ |
|---|---:|---:|
| <b>Manual</b> | 65,536 (3.8 %) | 0.130 [0.061, 0.257] (paper 0.002) |

Intervals: 95 %.  
"""


def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> str:
    monkeypatch.chdir(tmp_path)
    return page_module.page(Config(**settings), TEMPLATES)


def test_an_empty_run_names_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page(tmp_path, monkeypatch)
    assert "0 of 20 tables and figures are made" in text and "<img" not in text
    for name in (*TABLES, *FIGURES):
        assert f"<code>snakemake {name}</code>" in text
    assert "No job has been recorded yet" in text and "All settings are the defaults" in text


def test_a_partial_run_shows_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a lost picture, cells that break the page, and an item called missing that cannot be made."""
    tables, figures = tmp_path / "results/mine/tables", tmp_path / "figures/mine"
    tables.mkdir(parents=True)
    figures.mkdir(parents=True)
    (tables / "table_1.md").write_text(TABLE, encoding="utf-8")
    (figures / "figure_3.png").write_bytes(PICTURE)
    settings = {"run": "mine", "objectives": {"inject": None, "erase": {}}, "finetune": {"steps": 7}}
    text = page(tmp_path, monkeypatch, **settings)
    assert "2 of 20 tables and figures are made" in text
    assert text.count("data:image/png;base64,") == 1
    assert "&lt;b&gt;Manual" in text and "<td>0.130<small>[0.061, 0.257] (paper 0.002)</small></td>" in text
    assert "<code>snakemake figure_9</code>" in text and "<code>snakemake figure_3</code>" not in text
    assert "Not part of this run: the config has no objective &#39;inject&#39;" in text
    assert "<code>snakemake figure_13</code>" not in text
    change = "<td><code>finetune.steps</code></td><td><code>7</code></td><td><code>50</code></td>"
    assert change in text
    assert "no record beside it" in text


def test_the_page_needs_nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page(tmp_path, monkeypatch)
    assert not re.search(r"""(src|href)=["'](?!data:|#)|url\(|@import|<script|<link""", text)


def test_every_item_has_a_caption_of_its_own() -> None:
    captions = page_module.read_captions(TEMPLATES / page_module.CAPTIONS, Config())
    items = [captions[name] for name in (*TABLES, *FIGURES)]
    assert len(set(items)) == 20 and all(text.endswith(".") and "{" not in text for text in items)
    assert "all basketball athletes" in captions["figure_5"] and "16 named athletes" in captions["figure_9"]


def test_a_config_that_lacks_an_objective_says_so() -> None:
    """A researcher's run without it still has ``figures``; asking for one by name tells the remedy."""
    plan = Rules([("mine", {"objectives": {"inject": None, "erase": {}}})])
    made = [target({})[0] for target in plan.targets(FIGURES)]
    assert len(made) == 14 and not any("figure_13" in path or "figure_14" in path for path in made)
    with pytest.raises(UserError, match=r"figure_13 .* no objective 'inject': add it under 'objectives'"):
        plan.target("figure_13")({})
    assert all(lacking(Config(), name) is None for name in (*TABLES, *FIGURES))


def test_runtimes_are_of_the_recorded_jobs(tmp_path: Path) -> None:
    """A record that cannot be read is left out rather than ending the page."""
    (tmp_path / "damaged.record.json").write_text(json.dumps({"schema_version": 1}))
    assert page_module.recorded([tmp_path]) == [] and page_module.runtimes([]) == []
