"""Studies: how often the injected answer is given, by its definition, and published means beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from localized_unlearning.config.data import Prompts
from localized_unlearning.config.evaluation import Published, Study
from localized_unlearning.config.run import Config
from localized_unlearning.config.unlearning import Objective
from localized_unlearning.data.targets import targets
from localized_unlearning.errors import UserError
from localized_unlearning.reporting import studies
from sports import CHOICES
from tiny_run import ROOT

SPLIT = pd.DataFrame(
    {
        "subject": [f"a{i}" for i in range(12)],
        "answer": ["football", "baseball", "basketball"] * 4,
        "forget": [i < 6 for i in range(12)],
        "relearn": [i < 2 for i in range(12)],
        "train": [i < 8 for i in range(12)],
        "test": [i < 6 or i >= 8 for i in range(12)],
    }
)


def rows(rng: np.random.Generator, localization: str, objective: str, seed: int) -> dict[str, pd.DataFrame]:
    """Answers of one model to the test part."""
    asked = SPLIT[SPLIT["test"]]
    about: dict[str, Any] = {"task": "t", "objective": objective, "localization": localization, "seed": seed}
    facts = []
    for prompt in ("training", "question"):
        logits = {f"logit_{c}": rng.normal(size=len(asked)) for c in CHOICES}
        right = [CHOICES.index(sport) for sport in asked["answer"]]
        facts.append(asked.assign(prompt=prompt, answer_index=right, argmax_right=False, **logits, **about))
    letters = {f"logit_{c}": rng.normal(size=len(asked)) for c in "ABCD"}
    texts = {f"text_{c}": rng.normal(size=len(asked)) for c in "ABCD"}
    mcq = asked.assign(
        order="fixed", main=False, answer_index=right, argmax_right=False, **letters, **texts, **about
    )
    return {"facts": pd.concat(facts, ignore_index=True), "multiple_choice": mcq}


@pytest.mark.parametrize("target", ["golf", "random_other_sport"])
def test_edits_are_counted_against_the_injected_answer(target: Any) -> None:
    """Catches the right answer scored for the injected one, another seed's draw, and the retain set."""
    rng = np.random.default_rng(2)
    objective = Objective(loss="inject", target=target)
    parts = [rows(rng, "base", "none", 0), rows(rng, "manual", "o", 0), rows(rng, "manual", "o", 1)]
    frames = {key: pd.concat([p[key] for p in parts], ignore_index=True) for key in parts[0]}
    config = Config.model_validate(
        {
            "tasks": {"t": {"forget": {"first": 6}, "lambda_forget": 1}},
            "objectives": {"o": objective.model_dump()},
            "studies": {"s": {"tasks": ["t"], "objectives": ["o"]}},
            "measures": {"accuracy": "probability"},
        }
    )
    study = config.studies["s"]
    assert study is not None
    data = studies.tidy(study, frames, {"t": SPLIT}, config)
    found = data.set_index(["localization", "column"])["mean"]
    train = SPLIT[SPLIT["train"]].reset_index(drop=True)

    def wanted(localization: str, source: str, seeds: list[int]) -> float:
        scores = []
        for seed in seeds:
            told = dict(zip(train["subject"], targets(train, objective, seed), strict=True))
            table = frames[source]
            table = table[(table["localization"] == localization) & (table["seed"] == seed) & table["forget"]]
            if source == "facts":
                table = table[table["prompt"] == Prompts().question]
            for _, row in table.iterrows():
                logits = row[[c for c in table.columns if c.startswith("logit_")]].to_numpy(dtype=float)
                share = np.exp(logits) / np.exp(logits).sum()
                scores.append(share[CHOICES.index(told[row["subject"]])])
        return float(np.mean(scores))

    assert found["manual", "edit_question"] == pytest.approx(wanted("manual", "facts", [0, 1]))
    assert found["manual", "mcq_edit"] == pytest.approx(wanted("manual", "multiple_choice", [0, 1]))
    assert found["base", "edit_question"] == pytest.approx(wanted("base", "facts", [0]))


def test_published_means_stand_beside_ours_from_where_they_lie(tmp_path: Path) -> None:
    data = pd.DataFrame(
        {
            "objective": "o", "task": "t", "localization": ["manual", "random"], "column": "mmlu",
            "mean": [0.5, 0.4], "low": 0.3, "high": 0.7,
        }
    )  # fmt: skip
    path = tmp_path / "published.csv"
    path.write_text("localization,group,err\nflu,a,0.39\nflu,b,0.9\n")
    given: dict[str, Any] = {"file": str(path), "columns": {"err": "mmlu"}, "errors": ["err"]}
    own = Published.model_validate({**given, "where": {"group": "a"}, "localizations": {"flu": "manual"}})
    merged = studies.with_published(data, own, path)
    assert merged["published"].tolist()[0] == pytest.approx(0.61) and np.isnan(
        merged["published"].tolist()[1]
    )
    study = Study(tasks=("t",), objectives=("o",))
    (panel,) = studies.panels_of(merged, study, {"manual": {"label": "M"}, "random": {"label": "R"}})
    assert panel.lines == [["M", "0.500 [.300, .700] (published 0.610)"], ["R", "0.400 [.300, .700]"]]
    for change, said in (
        ({"where": {"group": "a"}}, "says nothing of this study"),
        ({"columns": {"x": "mmlu"}, "errors": []}, "lacks the column x"),
        ({}, "several rows of one localization"),
    ):
        with pytest.raises(UserError, match=said):
            studies.with_published(data, Published.model_validate({**given, **change}), path)


def test_a_study_names_what_the_config_has() -> None:
    with pytest.raises(ValueError, match=r"studies\.s\.objectives names eraze"):
        Config.model_validate({"studies": {"s": {"tasks": ["sports"], "objectives": ["eraze"]}}})


def test_the_documented_overlay_reads_the_recovered_means() -> None:
    """The page's own settings, on the file that it describes: every localization that both have, and errors turned round."""
    folder = ROOT.parent / "shared/published/icml"
    if not (folder / "figure_means.csv").is_file():
        pytest.skip(f"{folder} is not here: the published means are no part of the repository")
    page = (ROOT / "docs/journal-version.md").read_text(encoding="utf-8")
    block = page[page.index("    studies:\n") : page.index("The other groups of that file")]
    own = Published.model_validate(yaml.safe_load(block)["studies"]["icml_athletes"]["published"])
    names = [
        "manual",
        "causal_tracing",
        "causal_tracing_mlps",
        "attribution_patching",
        "nonlocalized",
        "random_mlps",
    ]
    data = pd.DataFrame(
        [(name, column) for name in names for column in own.columns.values()],
        columns=["localization", "column"],
    ).assign(task=studies.ALL)
    merged = studies.with_published(data, own, folder / "figure_means.csv")
    assert merged["published"].notna().all()
    found = merged.set_index(["localization", "column"])["published"]
    assert found["manual", "forget_training"] < 0.01 < 0.98 < found["manual", "edit_question"] < 1
