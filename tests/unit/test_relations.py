"""Facts of any relation: other classes, answers of several tokens, CounterFact's and RWKU's shapes, on a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import in_process
from architectures import written
from localized_unlearning.config import reading
from localized_unlearning.localization.pairs import read_names
from localized_unlearning.workflow.snakefile import Rules
from tiny_run import ROOT

FOUR = ("Paris", "Rome", "Madrid", "Oslo")
SEVEN = ("New York", "New Delhi", "New Orleans", "Buenos Aires", "San Juan", "San Jose", "Rome")
"""Answers of several tokens, some of which begin alike."""
FIFTY = tuple(
    f"{first}{last}"
    for first in ("Al", "Be", "Co", "Du", "El")
    for last in ("a", "e", "i", "o", "u", "is", "os", "us", "on", "en")
)
"""As many as a relation may have: more than multiple choice has letters."""


def book(folder: Path, answers: tuple[str, ...], listed: bool, shown: int = 0) -> Path:
    """A prompts file about places, of which a question offers all, or ``shown``."""
    texts = {
        "training": "The capital near {subject} is",
        "question": "Q: Which capital is near {subject}? A:",
    }
    prompts: dict[str, Any] = {name: {"text": text} for name, text in texts.items()}
    prompts["multiple_choice"] = {
        "text": "Near {subject}?\n{options}\nAnswer:",
        "options": shown or list(answers),
    }
    path = folder / "prompts.yaml"
    path.write_text(yaml.safe_dump({"prompts": prompts, **({"answers": list(answers)} if listed else {})}))
    return path


def overlay(facts: Path, prompts: Path, **more: Any) -> dict[str, Any]:
    """The config of one's own relation."""
    source = {"kind": "path", "path": str(facts), "url": None, "sha256": None, "local": None}
    return {"athletes": {"source": source}, "prompts": {"file": str(prompts)}, **more}


def probabilities(done: dict[Any, dict[str, Path]], stage: str) -> pd.DataFrame:
    """The rows of a stage of the base model."""
    return next(
        pd.read_parquet(out[stage]) for job, out in done.items()
        if job.stage == stage and job.named.get("localization") == "base"
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("answers", "suffix"), [(FOUR, "csv"), (SEVEN, "parquet"), (FIFTY, "csv")])
def test_another_relation_runs_the_whole_path(
    answers: tuple[str, ...], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches sports that are taken for granted: other classes, more of them than letters, answers that begin alike."""
    monkeypatch.chdir(tmp_path)
    names = [
        f"{first}{last}{more}"
        for more in (("",) if len(answers) < 10 else ("", " Hill", " Lake", " Moor", " End", " Park"))
        for first in ("Ash", "Oak", "Elm", "Fir", "Yew")
        for last in ("ton", "ham", "by", "ford", "wick")
    ]
    shown = 4 if answers == FIFTY else 0
    table = pd.DataFrame({"subject": names, "answer": [answers[i % len(answers)] for i in range(len(names))]})
    facts = tmp_path / f"facts.{suffix}"
    table.to_csv(facts, index=False) if suffix == "csv" else table.to_parquet(facts, index=False)
    model = written("llama", tmp_path)
    config = in_process.configured(
        tmp_path,
        model,
        overlay(
            facts,
            book(tmp_path, answers, suffix == "csv", shown),
            tasks={"athletes": {"forget": {"first": 14}}},
        ),
    )
    drawn = answers == FIFTY  # its tables and figures too
    done = in_process.run(config, drawn=drawn)
    rows = probabilities(done, "facts")
    columns = [c for c in rows.columns if c.startswith("logit_")]
    assert set(columns) == {f"logit_{answer}" for answer in answers}
    assert all(
        list(answers)[i] == a or suffix != "csv"
        for i, a in zip(rows["answer_index"], rows["answer"], strict=True)
    )
    if answers != FOUR:  # scored whole: log-probabilities of all tokens
        assert (rows["log_normalizer"] == 0).all() and (rows[columns] < 0).all(axis=None)
    choice = probabilities(done, "multiple_choice")
    assert [c for c in choice.columns if c.startswith("logit_")] == [
        f"logit_{x}" for x in "ABCDEFG"[: shown or len(answers)]
    ]
    assert set(choice["answer_index"]) == set(range(shown or len(answers)))
    attacks = [pd.read_parquet(out["rows"]) for job, out in done.items() if job.stage == "attack"]
    assert attacks and all(part["probability"].between(0, 1).all() for part in attacks)
    told = [
        (job.stage, Path(path))
        for job, out in done.items()
        for name, path in out.items()
        if name.endswith(("markdown", "md"))
    ]
    pages = {"table", "figure", "claims", "comparisons", "attack_table"}
    assert (pages <= {stage for stage, _ in told}) == drawn
    for stage, path in told:
        text = path.read_text(encoding="utf-8")
        football = re.search(r"sport|golf|football|athlete(?!s, erase)", text, re.IGNORECASE)
        assert not football or stage == "claims", path  # the claims are the paper's


def counterfact(path: Path, count: int = 48) -> Path:
    """A sample in the public file's shape: two relations, prompts of their own, true and new answers."""
    sports = ("basketball", "soccer", "baseball", "hockey")
    records = []
    for case in range(count):
        relation = "P641" if case % 3 else "P27"
        said = sports[case % 4] if relation == "P641" else "France"
        rewrite = {
            "prompt": "{} professionally plays the sport", "relation_id": relation, "subject": f"Player {case:02}",
            "target_new": {"str": "golf", "id": "Q1"}, "target_true": {"str": said, "id": "Q2"},
        }  # fmt: skip
        records.append(
            {
                "case_id": case,
                "requested_rewrite": rewrite,
                "paraphrase_prompts": [],
                "neighborhood_prompts": [],
            }
        )
    path.write_text(json.dumps(records))
    return path


def rwku(path: Path) -> Path:
    """A sample in the shape of RWKU's question files."""
    places, people = ("Canada", "France", "Germany", "Japan"), ("Stephen King", "Ada", "Bo", "Cy", "Dee")
    records = [
        {
            "subject": who,
            "level": "2",
            "type": "simple",
            "query": f"In which country did {who} go to school {year}?",
            "answer": place,
        }
        for who in people
        for year, place in enumerate(places * 2)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "sample"), [("counterfact-sports", counterfact), ("rwku", rwku)])
def test_a_preset_of_other_facts_runs_on_a_sample(
    preset: str, sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a preset that cannot be planned, or whose facts no stage can read: plan and whole path on a tiny model."""
    monkeypatch.chdir(tmp_path)
    facts = sample(tmp_path / "facts.json")
    layers = reading.overlays([ROOT / "workflow/presets" / f"{preset}.yaml"])
    last = layers[-1][1]
    source = {"kind": "path", "path": str(facts), "url": None, "sha256": None, "local": None}
    own = {"athletes": {"source": source}, "prompts": last["prompts"]}
    in_process.configured(tmp_path, tmp_path)  # the workflow's files beside it
    base = ("config.yaml", reading.read_yaml(ROOT / "config.yaml"))
    planned = Rules([base, *layers])
    assert planned.config.run == preset and planned.graph.jobs
    model = written("gpt2", tmp_path)
    (tmp_path / "names.txt").write_text(
        "\n".join(
            f"In which country did {who} go to school {n}?"
            for who in ("Bob", "Al", "Xi", "Stefano King")
            for n in range(9)
        )
    )
    group = {"forget": {"group": "Stephen King", "first": None}} if preset == "rwku" else {}
    relation = {"athletes": {"relation": last["athletes"].get("relation")}}
    if preset == "rwku":
        relation["athletes"]["made_up_names"] = str(tmp_path / "names.txt")
    config = in_process.configured(
        tmp_path, model, own, relation, {"tasks": {"athletes": group}} if group else {}
    )
    done = in_process.run(config)
    rows = probabilities(done, "facts")
    assert rows["forget"].any() and not rows["forget"].all() and np.isfinite(rows["log_normalizer"]).all()


def test_made_up_names_come_from_a_file(tmp_path: Path) -> None:
    """Catches names that are not normalised, and a file that is taken with one name."""
    (tmp_path / "names.txt").write_text("\ufeffFoo  Bar\n\nBaz\nFoo Bar\n", encoding="utf-8")
    assert read_names(tmp_path / "names.txt") == ["Foo Bar", "Baz"] and read_names(None) == []
