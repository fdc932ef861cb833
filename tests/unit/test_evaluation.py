"""Evaluations against their slow definition: one prompt, one forward pass of the Hugging Face model, its full logits."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from localized_unlearning.analysis import measures
from localized_unlearning.analysis.statistics import estimate
from localized_unlearning.config.data import Mmlu
from localized_unlearning.config.evaluation import Evaluation
from localized_unlearning.config.reading import load
from localized_unlearning.config.run import Config
from localized_unlearning.data import mmlu
from localized_unlearning.data.prompts import Prompt, PromptBook, load_prompts
from localized_unlearning.data.windows import text_windows
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation import facts, knowledge, multiple_choice
from localized_unlearning.evaluation import text as text_module
from localized_unlearning.models import components, deltas, organism, vocabulary
from sports import CHOICES
from tiny_base import TinyBase
from tiny_models import CONFIGS

LETTERS = ("A", "B", "C", "D")
ROOT = Path(__file__).parents[2]
RESOURCES = ROOT / "workflow" / "resources"
ATHLETES = pd.DataFrame(
    {
        "subject": ["Ada Ace", "Bo Bat", "Cy Court", "Dee Dunk-Downtown"],
        "answer": ["football", "baseball", "basketball", "basketball"],
        "forget": [False, False, True, True],
        "relearn": [False, False, True, False],
    }
)
VOCABULARY = 400


@pytest.fixture(scope="module")
def book() -> PromptBook:
    return load_prompts(RESOURCES / "prompts.yaml")


@pytest.fixture(scope="module")
def tokenizer(book: PromptBook) -> Any:
    words = (*CHOICES, *(c.capitalize() for c in CHOICES), *LETTERS)
    texts = [book[name].text for name in book.prompts] + [f" {w}" for w in words] * 30
    return organism.train_tokenizer(texts, VOCABULARY)


@pytest.fixture(params=["gemma", "neox"])
def model(request: pytest.FixtureRequest, float64: None) -> Any:
    import transformers

    config = CONFIGS[request.param]()
    config.vocab_size, config.max_position_embeddings = VOCABULARY, 4096
    torch.manual_seed(1)
    return transformers.AutoModelForCausalLM.from_config(config).double().eval().requires_grad_(False)


def slow(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    """Log-probabilities of the next token ``[vocabulary]``."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    return torch.log_softmax(model(input_ids=ids).logits[0, -1], 0)


def agrees(row: Any, expected: torch.Tensor, tokens: list[int], columns: list[str], right: int) -> None:
    """A row's logits are the slow definition's log-probabilities, and its argmax is the slow one's."""
    found = torch.tensor([row[c] for c in columns], dtype=torch.float64) - row["log_normalizer"]
    assert torch.allclose(found, expected[tokens], atol=2e-6)  # rows keep float32
    assert row["argmax_right"] == (int(expected.argmax()) == right)


def first_token(tokenizer: Any, word: str) -> int:
    return int(tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0])


def test_facts(model: Any, tokenizer: Any, book: PromptBook) -> None:
    prompts = [book["training"], book["question"]]
    rows = facts.ask_facts(model, tokenizer, ATHLETES, prompts, CHOICES, 128)
    tokens = [first_token(tokenizer, c) for c in CHOICES]
    assert list(rows["prompt"]) == ["training"] * 4 + ["question"] * 4
    for _, row in rows.iterrows():
        assert CHOICES[row["answer_index"]] == row["answer"]
        expected = slow(model, tokenizer, book[row["prompt"]].render(row["subject"]))
        agrees(row, expected, tokens, [f"logit_{c}" for c in CHOICES], tokens[row["answer_index"]])


def test_answers_spelled_otherwise_and_scored_whole(model: Any, tokenizer: Any, book: PromptBook) -> None:
    """Token by token over the whole answer, one forward pass each: what the packed beginnings must add up to."""
    rows = facts.ask_facts(model, tokenizer, ATHLETES, [book["capitalized"], book["dashed"]], CHOICES, 128)
    for _, row in rows.iterrows():
        prompt = book[row["prompt"]]
        text = prompt.render(row["subject"])
        if not prompt.whole_answer:
            tokens = [first_token(tokenizer, c) for c in prompt.answers]
            agrees(
                row,
                slow(model, tokenizer, text),
                tokens,
                [f"logit_{c}" for c in CHOICES],
                tokens[row["answer_index"]],
            )
            continue
        for choice, answer in zip(CHOICES, prompt.answers, strict=True):
            start = tokenizer(text)["input_ids"]
            spelled = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
            logs = torch.log_softmax(model(input_ids=torch.tensor([start + spelled])).logits[0], 1)[
                len(start) - 1 : -1
            ]
            expected = logs[range(len(spelled)), spelled].sum()
            assert len(spelled) > 1 and row[f"logit_{choice}"] == pytest.approx(float(expected), abs=1e-4)
            if choice == row["answer"]:
                assert row["argmax_right"] == (logs.argmax(1).tolist() == spelled)


def test_multiple_choice(model: Any, tokenizer: Any, book: PromptBook) -> None:
    """In both orders, the answer's letter stands before the athlete's sport in the very prompt that was read."""
    prompt = book["multiple_choice"]
    rows = multiple_choice.ask_multiple_choice(
        model, tokenizer, ATHLETES, prompt, ("fixed", "shuffled"), 3, 256
    )
    tokens = [first_token(tokenizer, letter) for letter in LETTERS]
    orders = set()
    for _, row in rows.iterrows():
        # The option order is read back from the text scores: each word's log-probability is its own.
        words = [row[f"text_{letter}"] for letter in LETTERS]
        matches = []
        for order in itertools.permutations(prompt.options):
            expected = slow(model, tokenizer, prompt.render(row["subject"], order))
            scores = [float(expected[first_token(tokenizer, o.capitalize())]) for o in order]
            near = [abs(w - row["log_normalizer"] - s) < 2e-6 for w, s in zip(words, scores, strict=True)]
            if all(near):
                matches.append((order, expected))
        assert len(matches) == 1
        order, expected = matches[0]
        orders.add((row["order"], order))
        assert order[row["answer_index"]] == row["answer"]
        agrees(row, expected, tokens, [f"logit_{x}" for x in LETTERS], tokens[row["answer_index"]])
    assert {o for kind, o in orders if kind == "fixed"} == {tuple(prompt.options)}
    assert len({o for kind, o in orders if kind == "shuffled"}) > 1


def test_options_that_begin_alike_are_scored_whole(model: Any, tokenizer: Any) -> None:
    """Catches options that are one to "by text" because their first token is, and letters read after an option's beginning."""
    options = ("New York", "New Delhi", "Rome")
    prompt = Prompt("choice", "Near {subject}?\n{options}\nAnswer:", options)
    facts = ATHLETES.iloc[:3].assign(answer=options)
    rows = multiple_choice.ask_multiple_choice(model, tokenizer, facts, prompt, ("fixed",), 0, 256)
    assert (
        prompt.render("Kent").splitlines()[1] == "A: New York"
    )  # a capital is put first, and none taken away
    for _, row in rows.iterrows():
        text = prompt.render(row["subject"])
        start, first = tokenizer(text)["input_ids"], slow(model, tokenizer, text)
        letters = [first_token(tokenizer, letter) for letter in "ABC"]
        agrees(row, first, letters, [f"logit_{x}" for x in "ABC"], letters[row["answer_index"]])
        for letter, option in zip("ABC", options, strict=True):
            spelled = tokenizer(f" {option}", add_special_tokens=False)["input_ids"]
            logits = model(input_ids=torch.tensor([start + spelled])).logits[0]
            logs = torch.log_softmax(logits, 1)[len(start) - 1 : -1]
            expected = float(logs[range(len(spelled)), spelled].sum())
            assert row[f"text_{letter}"] - row["log_normalizer"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("shots", [0, 2])
def test_general_knowledge(model: Any, tokenizer: Any, shots: int) -> None:
    questions = mmlu.load_questions(RESOURCES / "general_knowledge.csv")
    settings = Mmlu(shots=shots, questions=9, seed=4)
    rows = knowledge.ask_questions(model, tokenizer, questions, settings, 512)
    assert len(rows) == 9 and rows["subject"].nunique() >= 8  # stratified over the twelve subjects
    by_id = {q.id: q for q in questions.test}
    tokens = [first_token(tokenizer, letter) for letter in LETTERS]
    for _, row in rows.iterrows():
        question = by_id[row["item"]]
        examples = [q for q in questions.dev if q.subject == question.subject][:shots]
        expected = slow(model, tokenizer, mmlu.prompt(question, examples))
        agrees(row, expected, tokens, [f"logit_{x}" for x in LETTERS], tokens[question.answer])


def test_text_is_compared_with_the_base_model_token_by_token(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches the divergence the other way round, another mean, the base's numbers for the model's, and blocks cut wrong."""
    monkeypatch.setattr(vocabulary, "BLOCK", 900)  # several blocks of the 400 tokens
    text = (RESOURCES / "text" / "held_out.txt").read_text(encoding="utf-8")
    windows = text_windows(tokenizer, text.splitlines(), 12, 5)
    base = text_module.hidden_states(model, windows, 30)
    changed = copy.deepcopy(model)
    for parameter in components.layers_of(changed)[1].parameters():
        parameter.mul_(1.3)
    hidden = text_module.hidden_states(changed, windows, 1000)
    rows = text_module.compare_text(changed, windows, base, hidden, 30)
    row: Any
    for row, window in zip(rows.itertuples(), windows, strict=True):
        for which, value in ((model, row.base_loss), (changed, row.loss)):
            slow_loss = float(which(input_ids=window[None], labels=window[None]).loss)
            assert value == pytest.approx(slow_loss, abs=1e-9)
        p, q = (torch.log_softmax(m(input_ids=window[None]).logits[0, :-1], 1) for m in (model, changed))
        expected = (p.exp() * (p - q)).sum(1).mean()
        assert row.kl == pytest.approx(float(expected), abs=1e-9) and row.kl > 0.01
    same = text_module.compare_text(model, windows, base, base, 30)
    assert (same["loss"] == same["base_loss"]).all() and not same["kl"].any()


def test_the_text_stage_reads_the_base_before_the_delta(tiny_base: TinyBase, tmp_path: Path) -> None:
    """Catches a base that is the unlearned model already, and a model that is the base."""
    name = "model.layers.0.mlp.down_proj.weight"
    changed = tiny_base.model.get_parameter(name) * 3
    deltas.save_delta(tmp_path / "delta.safetensors", {name: changed}, tiny_base.digest)
    who = {"task": "sports", "objective": "erase", "localization": "manual", "seed": "0"}
    found = {
        delta: tiny_base.run("text", Config(), tmp_path, {"delta": delta}, who)["text"]
        for delta in (None, tmp_path / "delta.safetensors")
    }
    base, unlearned = found.values()
    assert (base["loss"] == base["base_loss"]).all() and not base["kl"].any()
    assert np.allclose(unlearned["base_loss"], base["loss"]) and (unlearned["kl"] > 0).all()
    frames = {"text": pd.concat([base.assign(localization="base"), unlearned], ignore_index=True)}
    scores = measures.items(frames, Config().prompts).pivot_table(
        index=["localization", "item"], columns="measure", values="score"
    )
    change = unlearned["loss"] - unlearned["base_loss"]
    own, untouched = scores.loc["manual"], scores.loc[["base"]]
    assert own["text_change"].mean() == pytest.approx(change.mean()) and own[
        "text_kl"
    ].mean() == pytest.approx(unlearned["kl"].mean())
    assert own["text_worse"].mean() == (change > 0).mean() and not untouched["text_worse"].any()


def test_trained_and_held_out_text_share_no_document() -> None:
    """L_SFT must not train on what measures its side effects."""
    train, held_out = (
        {
            line.strip()
            for line in (RESOURCES / "text" / f"{name}.txt").read_text().splitlines()
            if line.strip()
        }
        for name in ("train", "held_out")
    )
    assert train and held_out and not train & held_out
    for preset in sorted((ROOT / "workflow/presets").glob("*.yaml")):
        config = load([ROOT / "config.yaml", preset])
        assert config.text.train != config.text.held_out
        real = config.model.kind != "organism"
        assert real == (config.text.train.repo_id == "monology/pile-uncopyrighted"), preset.name
    with pytest.raises(UserError, match="are the same text"):
        load([ROOT / "config.yaml"], {"text": {"train": {"path": "workflow/resources/text/held_out.txt"}}})


def test_an_athletes_options_have_one_order_in_every_exam_unless_more_are_asked(
    tiny_base: TinyBase, tmp_path: Path
) -> None:
    """Catches orders that depend on who else is asked, letters with favourite sports, and draws that are not averaged."""
    options = Prompt("choice", "{subject} {options}", ("football", "baseball", "basketball", "golf"))
    names = [f"athlete {i}" for i in range(2400)]
    orders = [multiple_choice.shuffled(options, name, "golf", 0, 0) for name in names]
    for place in range(4):
        counts = pd.Series([order[place] for order in orders]).value_counts()
        assert counts.min() > 500 and len(counts) == 4  # of 600
    assert orders == [multiple_choice.shuffled(options, name, "golf", 0, 0) for name in names]
    assert multiple_choice.shuffled(options, "x", "golf", 0, 0) == multiple_choice.shuffled(
        options, "x", "golf", 0, 0
    )
    assert (
        len(
            {
                tuple(multiple_choice.shuffled(options, "x", "golf", seed, draw))
                for seed in range(4)
                for draw in range(4)
            }
        )
        > 6
    )
    assert multiple_choice.orders_of(Evaluation(orders=2), both=True) == ("shuffled", "shuffled", "fixed")
    assert multiple_choice.orders_of(Evaluation(option_order="fixed", orders=2), both=False) == ("fixed",)

    split = tiny_base.write(tmp_path / "split.parquet", tiny_base.split)
    who = {"task": "sports", "objective": "none", "localization": "base", "seed": "0"}
    config = Config(evaluation=Evaluation(orders=3))
    rows = tiny_base.run("multiple_choice", config, tmp_path, {"split": split}, who)["multiple_choice"]
    assert rows.groupby("order")["draw"].nunique().to_dict() == {"fixed": 1, "shuffled": 3}
    assert (rows["main"] == (rows["order"] == "shuffled")).all()
    scores = measures.items({"multiple_choice": rows}, config.prompts)
    own = scores[scores["measure"] == "mcq_forget"].set_index("item")["score"]
    shuffled = rows[rows["main"] & rows["forget"]]
    right = shuffled[[f"logit_{x}" for x in LETTERS]].to_numpy().argmax(1) == shuffled["answer_index"]
    by_hand = right.groupby(shuffled["subject"]).mean()
    assert own.sort_index().tolist() == pytest.approx(by_hand.sort_index().tolist())
    assert own.between(0.1, 0.9).any()  # of three orders some are right
    value = estimate(shuffled, "choice", config.statistics)
    assert (
        value.mean == pytest.approx(by_hand.mean())
        and value.n == len(by_hand)
        and value.low < value.mean < value.high
    )
