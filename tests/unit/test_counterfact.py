"""Facts that bring their own prompts and answers: CounterFact as the journal version asks it, read, asked and trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from localized_unlearning.config.data import Forget, Split
from localized_unlearning.config.run import Config
from localized_unlearning.data import counterfact
from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.data.facts import load_facts
from localized_unlearning.data.prompts import RIGHT, WRONG, PromptBook, load_prompts
from localized_unlearning.data.splits import split_athletes
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation.facts import ask_facts
from localized_unlearning.evaluation.multiple_choice import ask_multiple_choice
from localized_unlearning.jobs.job import Job, restrict
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.localization.pairs import _answers, batches, make_pairs, metric
from localized_unlearning.reporting import studies
from tiny_base import TinyBase

PLACES = ("football", "baseball", "basketball", "golf")
RELATIONS = {"P1": "{} plays the sport of", "P2": "The favourite of {} was always"}


def records(count: int = 24) -> list[dict[str, Any]]:
    """Invented facts in the public file's shape, of two relations."""
    found = []
    for number in range(count):
        relation = ("P1", "P2")[number % 2]
        subject = f"{('Ann', 'Tom', 'Eve', 'Max')[number % 4]} {'ABCDEFGHIJKL'[number // 2]}rown"
        right, wrong = PLACES[number // 2 % 4], PLACES[(number // 2 + 1) % 4]
        found.append(
            {
                "case_id": number,
                "requested_rewrite": {
                    "prompt": RELATIONS[relation],
                    "relation_id": relation,
                    "subject": subject,
                    "target_true": {"str": right, "id": "Q1"},
                    "target_new": {"str": wrong, "id": "Q2"},
                },
                "paraphrase_prompts": [f"It rained. {subject} likes", f"What {subject} likes is"],
                "neighborhood_prompts": [f"Neighbour {i} plays the sport of" for i in range(10)],
            }
        )
    return found


def write(source: Path, folder: Path, shots: int) -> dict[str, Path]:
    """What stage counterfact makes of a source."""
    config = Config.model_validate(
        {"athletes": {"own_prompts": {"shots": shots}}, "model": {"kind": "huggingface", "name": "x"}}
    )
    stage = STAGES["counterfact"]
    outputs = {"facts": folder / "facts.csv", "prompts": folder / "prompts.json"}
    counterfact.run(Job(stage, restrict(config, stage, {}), {}, {"source": source}, outputs, "key"))
    return outputs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, PromptBook]:
    folder = tmp_path_factory.mktemp("counterfact")
    (folder / "source").mkdir()
    (folder / "source/.snakemake_timestamp").touch()
    for part in (0, 1):  # cases say the order, not the files
        (folder / f"source/{part}.json").write_text(json.dumps(records()[1 - part :: 2]))
    outputs = write(folder / "source", folder, 2)
    book = load_prompts(outputs["prompts"])
    table = load_facts(outputs["facts"], book.answers)[0]
    assert len(table) == 18  # a quarter is held out for the examples
    return table.assign(forget=table.index < 6, relearn=False), book


def alone(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits after one prompt, unpacked."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].detach().float()  # type: ignore[no-any-return]


def token(tokenizer: Any, text: str, answer: str) -> int:
    """The first token of an answer after its own text."""
    ids, longer = tokenizer([text, f"{text} {answer}"])["input_ids"]
    return int(longer[len(ids)])


def test_the_files_say_what_the_public_one_says(made: tuple[pd.DataFrame, PromptBook]) -> None:
    """Catches a mixed-up answer, a paraphrase of another fact, and examples that are asked for as well."""
    table, book = made
    first = records()[0]["requested_rewrite"]
    name = f"{first['subject']} (P1)"
    assert table["subject"][0] == name and set(table["answer"]) == {RIGHT}
    assert book["training"].render(name) == f"{first['subject']} plays the sport of"
    assert book["paraphrase_2"].render(name) == f"What {first['subject']} likes is"
    assert book["training"].words(name, [RIGHT, WRONG]) == ("football", "baseball")
    text = book["multiple_choice"].render(name, ["other_1", RIGHT, "other_2", WRONG])
    solved, _, asked = text.rpartition("\n\nHelp me")
    assert solved.count("Answer: ") == 2 and "B. football\n" in asked and "D. baseball\n" in asked
    assert not any(fact["subject"] in solved for fact in book["training"].facts.values())


def test_answers_are_scored_fact_by_fact(made: tuple[pd.DataFrame, PromptBook], tiny_base: TinyBase) -> None:
    """Catches another fact's answer, against one prompt at a time; in multiple choice the letters in each fact's order."""
    table, book = made
    model, tokenizer = tiny_base.fresh(), tiny_base.tokenizer
    prompts = [book["training"], book["neighborhood_3"]]
    rows = ask_facts(model, tokenizer, table, prompts, book.answers, 256)
    for row in rows.sample(6, random_state=0).itertuples():
        prompt = book[str(row.prompt)]
        text = prompt.render(str(row.subject))
        logits = alone(model, tokenizer(text)["input_ids"])
        for role in (RIGHT, WRONG):
            wanted = logits[token(tokenizer, text, prompt.words(str(row.subject), [role])[0])]
            assert getattr(row, f"logit_{role}") == pytest.approx(float(wanted), abs=1e-4)
        assert row.log_normalizer == pytest.approx(float(logits.logsumexp(0)), abs=1e-4)
    choice = ask_multiple_choice(
        model, tokenizer, table, book["multiple_choice"], ["shuffled", "fixed"], 0, 2048
    )
    prompt = book["multiple_choice"]
    assert (
        choice.loc[choice["order"] == "fixed", "answer_index"].nunique() > 1
    )  # the right one is not always A
    assert (choice["answer_index"] != choice["injected"]).all()
    facts = studies._injected_rows(
        {"facts": rows}, "facts", rows.assign(seed=0),
        pd.DataFrame({"subject": table["subject"], "seed": 0, "injected": WRONG}),
    )  # fmt: skip
    assert (facts["answer_index"] == 1).all() and len(facts) == len(rows)
    assert set(prompt.options) == {RIGHT, WRONG, "other_1", "other_2"}


def test_training_is_on_each_facts_own_answer(
    made: tuple[pd.DataFrame, PromptBook], tiny_base: TinyBase
) -> None:
    """Catches the first fact's answers for all."""
    table, book = made
    names, prompt = list(table["subject"]), book["training"]
    said = [WRONG if forget else RIGHT for forget in table["forget"]]
    items = tokens_module.fact_items(tiny_base.tokenizer, prompt, names, said, book.answers)
    for (ids, answer), name, role in zip(items, names, said, strict=True):
        text = prompt.render(name)
        whole = tiny_base.tokenizer(f"{text} {prompt.words(name, [role])[0]}")["input_ids"]
        assert [*ids, answer] == whole[: len(ids) + 1]


def test_pairs_replace_the_subject_in_its_own_text(
    made: tuple[pd.DataFrame, PromptBook], tiny_base: TinyBase
) -> None:
    """Catches another fact's text, a span beside the subject, and a metric against other facts' answers."""
    table, book = made
    tokenizer, prompt = tiny_base.tokenizer, book["training"]
    people = list(zip(table["subject"], table["answer"], strict=True))
    pairs = make_pairs(people, prompt, book.answers, tokenizer, seed=0)
    assert len(pairs.names) > len(people) / 2
    for name, clean, corrupt, (start, stop) in zip(
        pairs.names, pairs.clean, pairs.corrupt, pairs.subject, strict=True
    ):
        assert len(clean) == len(corrupt) and clean[:start] == corrupt[:start]
        assert clean[stop:] == corrupt[stop:] and clean[start:stop] != corrupt[start:stop]
        assert prompt.facts[name]["subject"] in tokenizer.decode(clean[start:stop])
        assert tokenizer.decode(clean, skip_special_tokens=True).strip() == prompt.render(name)
    (batch,) = batches(pairs, tiny_base.model, 4096)
    logits = torch.randn(len(pairs.clean), len(pairs.choices))
    found = metric(logits[batch.prompts], _answers(pairs, batch))
    for row, index in enumerate(batch.prompts.tolist()):
        text, words = prompt.render(pairs.names[index]), prompt.words(pairs.names[index], book.answers)
        right, wrong = (pairs.choices.index(token(tokenizer, text, word)) for word in words)
        assert found[row] == pytest.approx(float(logits[index, right] - logits[index, wrong]))


def test_a_split_of_facts_that_are_all_right(made: tuple[pd.DataFrame, PromptBook]) -> None:
    """Catches the refusal of one class: the facts have one answer by name, each another in truth."""
    table = made[0].drop(columns=["forget", "relearn"]).assign(known=True)
    split = split_athletes(table, Split(), Forget(first=4, skip=4), (), Forget(first=12))
    assert list(split.loc[split["forget"], "subject"]) == list(table["subject"][4:8])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": ["a", "b"]}, "list right and wrong under 'answers'"),
        ({"facts": {"x": {"subject": "x", "right": "a", "wrong": "b"}}}, "'x' has no 'training'"),
        (
            {"prompts": {"training": {"text": "{subject}", "whole_answer": True}}},
            "each fact has its own",
        ),
    ],
)
def test_a_faulty_prompts_file_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    good = {
        "answers": [RIGHT, WRONG],
        "prompts": {"training": {"text": "{subject}"}},
        "facts": {"x": {"subject": "x", "training": "x is", RIGHT: "a", WRONG: "b"}},
    }
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({**good, **change}))
    with pytest.raises(UserError, match=said):
        load_prompts(path)
    path.write_text(json.dumps(good))
    with pytest.raises(UserError, match="has no fact 'y'"):
        load_prompts(path)["training"].render("y")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"subject": "A", "prompt": "A is", "target_true": "b"}, "record 1: no fact as CounterFact has them"),
        (
            {"subject": "A", "prompt": "B is", "target_true": "b", "target_false": "c"},
            "does not name its subject",
        ),
    ],
)
def test_a_faulty_source_is_refused(record: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps([record]))
    with pytest.raises(UserError, match=said):
        write(path, tmp_path, 0)
    assert not (tmp_path / "facts.csv").exists()
