"""Answers as tokens: one function for every stage, in every family of tokenizers, against its slow definition."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

import localized_unlearning
from localized_unlearning.attacks import retraining, subject
from localized_unlearning.config.data import Mmlu, Prompts
from localized_unlearning.data import tokens
from localized_unlearning.data.mmlu import load_questions
from localized_unlearning.data.prompts import Prompt, load_prompts
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation.facts import facts_asked
from localized_unlearning.evaluation.knowledge import questions_asked
from localized_unlearning.evaluation.multiple_choice import choices_asked
from localized_unlearning.localization.pairs import choices_of
from localized_unlearning.models import curriculum
from localized_unlearning.unlearning.finetune import asked_about
from localized_unlearning.unlearning.steps import read_data

ROOT = Path(__file__).resolve().parents[2]
BOOK = load_prompts(ROOT / "workflow/resources/prompts_organism.yaml")
PEOPLE = pd.DataFrame(
    {
        "subject": ["Ada Lovelace", "Bo Li", "Cy Young", "Di Fry"],
        "answer": ["football", "baseball", "basketball", "football"],
        "forget": [True, True, False, False],
        "relearn": False,
        "test": True,
    }
)
TRAINED_ON = [
    BOOK[name].render(who) + f" {word}"
    for name in ("training", "question")
    for who in PEOPLE["subject"]
    for word in BOOK.answers
] + [f"Answer: {letter}" for letter in "ABCD" for _ in range(20)]


def fast(model: Any, trainer: Any, **parts: Any) -> Any:
    """A tokenizer of ``tokenizers`` with ``<bos>`` in front, trained here if it has a trainer."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    found: Any = Tokenizer(model)
    for name, part in parts.items():
        setattr(found, name, part)
    if trainer is not None:
        found.train_from_iterator(TRAINED_ON * 3, trainer)
    found.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", found.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<bos>", pad_token="<pad>")


def byte_level(add_prefix_space: bool) -> Any:
    """GPT-2's, Llama 3's, Pythia's family."""
    from tokenizers import models, pre_tokenizers, trainers

    level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<pad>", "<bos>"], initial_alphabet=level.alphabet(), show_progress=False
    )  # fmt: skip
    return fast(models.BPE(), trainer, pre_tokenizer=level)


def metaspace(scheme: str) -> Any:
    """SentencePiece's: a space is a sign of its own, put before every text (Llama 2, Mistral), the first, or none."""
    from tokenizers import models, pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<bos>", "<unk>"], show_progress=False
    )
    return fast(
        models.BPE(unk_token="<unk>"), trainer, pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme=scheme)
    )


def unigram() -> Any:
    """SentencePiece's other model: the likeliest pieces, of a given list."""
    from tokenizers import models, pre_tokenizers

    letters = sorted({letter for text in TRAINED_ON for letter in text if letter != " "} | {"▁"})
    words = sorted({f"▁{word}" for text in TRAINED_ON for word in text.split()})
    pieces = ["<pad>", "<bos>", "<unk>", *letters, *words]
    scores = [0.0] * 3 + [-10.0] * len(letters) + [-5.0] * len(words)
    return fast(
        models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=2), None,
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always"),
    )  # fmt: skip


def normalized(before: bool) -> Any:
    """Gemma's: spaces become signs of their own. Llama 2's and Mistral's put one more before every text."""
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<bos>", "<unk>"], show_progress=False
    )
    space: Any = normalizers.Replace(" ", "▁")
    return fast(
        models.BPE(unk_token="<unk>"), trainer,
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), space]) if before else space,
        pre_tokenizer=pre_tokenizers.Split("▁", "merged_with_next"),
    )  # fmt: skip


FAMILIES: dict[str, Callable[[], Any]] = {
    "byte-level": lambda: byte_level(False),
    "byte-level with a space in front": lambda: byte_level(True),
    "sentencepiece, space before every text": lambda: metaspace("always"),
    "sentencepiece, space before the first": lambda: metaspace("first"),
    "sentencepiece, no space in front": lambda: metaspace("never"),
    "unigram": unigram,
    "Gemma": lambda: normalized(before=False),
    "Llama 2 and Mistral": lambda: normalized(before=True),
}


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


def by_definition(tokenizer: Any, text: str, answers: Sequence[str]) -> list[int]:
    """The first token after ``text + " " + answer`` beyond the text's own, one text and answer at a time."""
    own = tokenizer(text)["input_ids"]
    found = []
    for answer in answers:
        whole = tokenizer(f"{text} {answer}")["input_ids"]
        assert whole[: len(own)] == own
        found.append(whole[len(own)])
    return found


def stages(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """The token of each of the organism's answers as every stage has it."""
    names, prompt = list(BOOK.answers), BOOK["training"]
    who = list(PEOPLE["subject"])
    config = SimpleNamespace(
        prompts=SimpleNamespace(training="training"),
        text=SimpleNamespace(tokens=1, documents=None),
    )
    everyone = pd.DataFrame({"subject": who[:1] * len(names), "answer": names})
    monkeypatch.setattr(
        "localized_unlearning.data.windows.read_windows", lambda *_: torch.zeros(1, 1, dtype=torch.long)
    )
    job: Any = SimpleNamespace(
        config=config, inputs={"prompts": ROOT / "workflow/resources/prompts_organism.yaml", "text": ""}
    )
    data = read_data(job, tokenizer, everyone, names, [True] * len(names))
    (facts,) = facts_asked(tokenizer, PEOPLE, [prompt], names)
    firsts, place = choices_of(tokenizer, prompt, [prompt.render(a) for a in who], names)
    asked = asked_about(PEOPLE, names, tokenizer, BOOK, Prompts(), 0)[0]
    heard: list[Sequence[int]] = []

    def likely(prompts: Sequence[Sequence[int]], candidates: Sequence[int]) -> Any:
        heard.append(candidates)
        return torch.zeros(len(prompts), len(candidates))

    attacked: Any = SimpleNamespace(
        book=BOOK, prompts=Prompts(), tested=PEOPLE, seed=0, orders=1, tokenizer=tokenizer, likely=likely
    )
    subject.ask(attacked)
    reader = curriculum.reader(tokenizer, BOOK, "training", "question", "multiple_choice")
    return {
        "known facts and evaluation": list(facts.candidates),
        "training, masks and relearning": [item[1] for item in data.forget],
        "retraining and soft prompts": [item[1] for item in retraining.items(attacked, everyone)],
        "scores": [firsts[index] for index in place[0]],
        "equal disruption": [asked.candidates[asked.right[0]]],
        "attacks": list(heard[0]),
        "pretraining": [item.answer for item in reader.short([(who[0], name) for name in names], "training")],
    }


def test_every_stage_has_the_tokens_of_the_definition(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a stage that tokenises ' football' alone, which begins every answer alike in Llama 2's family."""
    names = list(BOOK.answers)
    right = by_definition(tokenizer, BOOK["training"].render("Ada Lovelace"), names)
    assert len(set(right)) == len(names)
    found = stages(tokenizer, monkeypatch)
    first = found.pop("equal disruption")
    assert first == [right[names.index(PEOPLE["answer"][0])]]
    for name in ("known facts and evaluation", "attacks"):  # each row finds its own among them
        assert found.pop(name) == sorted(right)
    assert found == dict.fromkeys(found, right)


def test_letters_too(tokenizer: Any) -> None:
    """Multiple choice, by letter and by the option's word, and general knowledge."""
    choice = BOOK["multiple_choice"]
    text = choice.render("Ada Lovelace")
    (asked,) = choices_asked(tokenizer, PEOPLE, choice, ("fixed",), 0, "fixed")
    words = [option.capitalize() for option in choice.options]
    letters, first = (by_definition(tokenizer, text, some) for some in (choice.letters, words))
    others = set(asked.candidates) - {*letters, *first}
    assert {*letters, *first} <= set(asked.candidates)
    assert bool(others) == (len(set(first)) < len(words))  # options that begin alike are scored whole
    questions = load_questions(ROOT / "workflow/resources/general_knowledge.csv")
    general = questions_asked(tokenizer, questions, Mmlu(questions=8, shots=0))
    assert list(general.candidates) == by_definition(tokenizer, text, "ABCD"[: len(general.candidates)])


def test_an_answer_alone_would_be_another_token() -> None:
    """The families differ where the issue says: with a space put in front, ' football' alone begins with that space."""
    found = normalized(before=True)
    alone = {found(f" {name}", add_special_tokens=False)["input_ids"][0] for name in BOOK.answers}
    assert len(alone) == 1


def test_a_prompt_whose_end_merges_with_the_answer_is_refused() -> None:
    """Merges across words: the prompt's own last token would be another one with the answer behind it."""
    from tokenizers import models, normalizers, trainers

    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>", "<bos>"], show_progress=False)
    joined = fast(models.BPE(), trainer, normalizer=normalizers.Replace(" ", "▁"))
    text = BOOK["training"].render("Ada Lovelace")
    own, whole = (joined(t)["input_ids"] for t in (text, f"{text} football"))
    assert whole[: len(own)] != own
    with pytest.raises(UserError, match="joins to the answer"):
        tokens.answer_tokens(joined, BOOK["training"], [text], BOOK.answers)


def test_no_other_module_spells_answers() -> None:
    """Only ``data/tokens.py`` calls a tokenizer on prompts; the exceptions read texts that have no answer."""
    folder = Path(localized_unlearning.__file__).parent
    allowed = {
        "models/gguf.py": "the file's tokens against the converted ones",
        "models/organism.py": "how long names are",
        "models/curriculum.py": "where a name ends in the text",
        "data/tokens.py": "",
    }
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            owner = called.value if isinstance(called, ast.Attribute) else called
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            what = called.attr if isinstance(called, ast.Attribute) else ""
            if name == "tokenizer" and what in (
                "",
                "tokenizer",
                "encode",
                "convert_tokens_to_ids",
                "tokenize",
            ):
                found.add(path.relative_to(folder).as_posix())
    assert found <= set(allowed), found - set(allowed)


def test_a_prompt_without_a_space_has_its_own_tokens(tokenizer: Any) -> None:
    """As for languages that put none there."""
    prompt = Prompt("close", "{subject}:", space=False)
    (spelled,) = tokens.answer_tokens(tokenizer, prompt, ["a:"], ["golf"])
    whole, own = (tokenizer(t)["input_ids"] for t in ("a:golf", "a:"))
    assert list(spelled) == whole[len(own) :]
