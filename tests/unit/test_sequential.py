"""Sequential unlearning: tasks after one another, their splits, and a delta that is the whole chain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from localized_unlearning import extensions
from localized_unlearning.config.data import Forget, Split
from localized_unlearning.config.run import Config
from localized_unlearning.data.splits import split_athletes
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Job, restrict
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.models import deltas
from localized_unlearning.unlearning import finetune
from localized_unlearning.workflow.graph import Graph
from localized_unlearning.workflow.layout import JobId
from tiny_base import PROMPTS, TEXT, TinyBase

KNOWN = pd.DataFrame(
    {
        "subject": [f"a{i:02}" for i in range(40)],
        "answer": ["football", "baseball", "basketball", "football"] * 10,
        "rows": [[39 - i] for i in range(40)],  # the file's order is the other way round
        "known": [i != 38 for i in range(40)],  # the file's second athlete is not known
    }
)


def test_the_first_of_the_file_are_the_known_ones_in_its_order() -> None:
    """Catches the table's order, and unknown athletes that are counted."""
    found = split_athletes(KNOWN, Split(), Forget(first=3, skip=1), ())
    assert sorted(found.loc[found["forget"], "subject"]) == ["a35", "a36", "a37"]
    with pytest.raises(
        UserError, match="the first 45 subjects of the file are asked for, but the model knows 39"
    ):
        split_athletes(KNOWN, Split(), Forget(first=40, skip=5), ())
    with pytest.raises(ValueError, match="exactly one of"):
        Forget(first=3, draw=3)


def test_a_later_task_asks_for_what_was_forgotten_before_and_trains_it_no_more() -> None:
    """Catches earlier facts that are retained (trained back) or lost from the test, and later ones that are retained."""
    all_of_them = Forget(first=12)
    first = split_athletes(KNOWN, Split(), Forget(first=6), (), all_of_them)
    earlier = list(first.loc[first["forget"], "subject"])
    second = split_athletes(KNOWN, Split(), Forget(first=6, skip=6), (), all_of_them, earlier)
    assert len(first) == 39 - 6 and len(second) == 39
    assert set(second.loc[second["forget"] & ~second["train"], "subject"]) == set(earlier)
    own = second[second["forget"] & second["train"]]
    assert len(own) == 6 and own["test"].all() and not set(own["subject"]) & set(earlier)
    assert second.loc[second["forget"], "test"].all()
    assert not set(first["subject"]) & set(own["subject"])  # neither retained nor asked for before its turn
    assert not (second["relearn"] & second["subject"].isin(earlier)).any()


@pytest.mark.parametrize(
    ("after", "said"), [({"a": "b", "b": "a"}, "itself"), ({"a": "c"}, "a task that the config lacks")]
)
def test_a_chain_that_has_no_beginning_is_refused(after: dict[str, str], said: str) -> None:
    tasks = {n: {"forget": {"first": 2}, "lambda_forget": 1, "after": after.get(n)} for n in ("a", "b")}
    with pytest.raises(ValueError, match=rf"tasks\.a\.after: .*{said}"):
        Config.model_validate({"tasks": tasks})


def trained(
    base: TinyBase,
    folder: Path,
    layer: int,
    previous: Path | None,
    loss: str = "erase",
    file: Path | None = None,
) -> Path:
    """Stage finetune on one layer's MLP, from the model that ``previous`` is; its delta."""
    config = Config.model_validate(
        {
            "finetune": {"steps": 2, "batch_size": 4, "sft_batch_size": 2},
            "objectives": {"erase": {"loss": loss}},
        }
    )
    folder.mkdir()
    selection = folder / "selection.json"
    selection.write_text(json.dumps({"components": [f"{layer}.mlp.up"]}))
    wildcards = {
        "task": "athletes",
        "objective": "erase",
        "localization": "manual",
        "seed": "0",
        "base_seed": "0",
    }
    stage = STAGES["finetune"]
    wildcards = {name: wildcards[name] for name in stage.wildcards}
    inputs: dict[str, Any] = {
        "base_model": base.folder,
        "split": base.write(folder / "split.parquet", base.split),
        "selection": selection,
        "prompts": PROMPTS,
        "text": TEXT,
        "loss": file or extensions.file_of(loss, extensions.OBJECTIVES),
        "previous": previous,
    }
    outputs = {name: folder / name for name in stage.outputs}
    finetune.run(Job(stage, restrict(config, stage, wildcards), wildcards, inputs, outputs, "key"))
    return outputs["delta"]


def test_a_delta_is_the_whole_chain(tiny_base: TinyBase, tmp_path: Path) -> None:
    """Catches a second task that starts from the base model, or whose delta lacks what the first has trained."""
    one = deltas.read_delta(trained(tiny_base, tmp_path / "one", 0, None), tiny_base.digest)
    both = deltas.read_delta(
        trained(tiny_base, tmp_path / "two", 1, tmp_path / "one" / "delta"), tiny_base.digest
    )
    alone = deltas.read_delta(trained(tiny_base, tmp_path / "alone", 1, None), tiny_base.digest)
    (first,), (second,) = one.keys(), alone.keys()
    assert both.keys() == {first, second}
    assert torch.equal(both[first], one[first])
    assert not torch.equal(both[second], alone[second])


def test_a_loss_that_fails_writes_nothing(tiny_base: TinyBase, tmp_path: Path) -> None:
    """Catches half a delta or a history of a method that fails in its second step."""
    path = tmp_path / "mine.py"
    path.write_text("def loss(batch):\n    return batch.log_p / (1 - batch.step)\n")
    with pytest.raises(UserError, match=r"^mine\.py:loss: its loss is -?inf for '.*' in step 2"):
        trained(tiny_base, tmp_path / "one", 0, None, "mine.py:loss", path)
    assert {found.name for found in (tmp_path / "one").iterdir()} == {"selection.json", "split.parquet"}


def test_the_models_of_a_chain_have_names() -> None:
    """Catches a chain named backwards, or without its own task."""
    forget = {"first": 2}
    tasks = {
        "one": {"forget": forget, "lambda_forget": 1},
        "two": {"forget": forget, "lambda_forget": 1, "after": "one"},
        "three": {"forget": forget, "lambda_forget": 1, "after": "two"},
    }
    graph = Graph(Config.model_validate({"tasks": tasks}))
    assert graph.chain("three") == ("one", "two", "three") and graph.chain("one") == ("one",)
    w = {"base_seed": "0", "objective": "erase", "localization": "manual", "seed": "0"}
    job = JobId.of("finetune", task="three", **w)
    assert JobId.of("finetune", task="two", **w) in graph.needs(job)
