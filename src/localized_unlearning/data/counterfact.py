"""CounterFact (Meng et al. 2022) as the journal version asks it: every fact with texts and answers of its own.

Facts of all 34 relations, each by its own prompt, its two paraphrases and its ten neighbours (other subjects with the
same answer); what is injected is the fact's own false answer. Written as a facts file and a prompts file, which the
other stages read as any others. Multiple choice needs questions (the journal
version had a language model write them, ``counterfact_mc_questions.parquet`` in magikarp01/tasks): without that file the
question is the fact's prompt and the other options are right answers of the same relation.
"""

from __future__ import annotations

import csv
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.data.facts import read_records
from localized_unlearning.data.plain import normalised
from localized_unlearning.data.prompts import NAME, RIGHT, WRONG
from localized_unlearning.errors import UserError

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job

OPTIONS = (RIGHT, WRONG, "other_1", "other_2")
QUESTION = (
    "Help me answer the following multiple choice question:\n\n{question}\n\n{options}\n\n"
    "Please respond with the letter of the correct answer, A, B, C, or D. Answer:"
)
"""The released code's words (magikarp01/tasks at 7c1e4a9, facts/CounterFactTask.py)."""

PARAPHRASES, NEIGHBOURS = 2, 10
"""How many of each a fact has in the public file."""

HELD_OUT = 64
"""Facts at the end of the file that are examples of multiple choice and nothing else, as in the released code."""


@dataclass(frozen=True)
class Fact:
    """One fact: its case, relation, subject, prompt, answers, and other prompts."""

    case: str
    relation: str
    subject: str
    prompt: str
    right: str
    wrong: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[str, ...]


def read_counterfact(path: Path) -> list[Fact]:
    """The facts of the public file (``requested_rewrite``), or of one with the same fields side by side, by their cases.

    Args:
        path: the file, or a folder of such files.

    Raises:
        UserError: when the file is none, or a fact lacks a field or does not name its subject in its prompt.
    """
    files = sorted(p for p in path.rglob("[!.]*") if p.is_file()) if path.is_dir() else [path]
    found = [_fact(record, n, file) for file in files for n, record in enumerate(read_records(file), 1)]
    return sorted(found, key=lambda fact: int(fact.case) if fact.case.isdecimal() else 0)


def _fact(record: Mapping[str, Any], number: int, path: Path) -> Fact:
    said = record.get("requested_rewrite", record)
    try:
        subject = normalised(said["subject"])
        prompt = normalised(str(said["prompt"]).replace("{}", subject))
        right, wrong = _words(said["target_true"]), _words(said.get("target_new", said.get("target_false")))
        relation = str(said.get("relation_id", said.get("relation", "")))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}, record {number}: no fact as CounterFact has them ({error!r}): give subject, prompt, target_true and "
            "target_new (or target_false)"
        ) from None
    if subject not in prompt:
        raise UserError(
            f"{path}, record {number}: the prompt '{prompt}' does not name its subject '{subject}'"
        )
    case = str(record.get("prompt_id", record.get("case_id", number - 1)))
    others = [
        tuple(normalised(text) for text in _listed(record, name))
        for name in ("paraphrase_prompts", "neighborhood_prompts")
    ]
    return Fact(case, relation, subject, prompt, right, wrong, *others)


def _words(target: Any) -> str:
    if target is None:
        raise KeyError("target_new")
    return normalised(target["str"] if isinstance(target, Mapping) else target)


def _listed(record: Mapping[str, Any], name: str) -> Iterable[Any]:
    found = record.get(name)
    return () if found is None else list(found)


def read_questions(path: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """By a fact's case, its multiple-choice question and three false answers, the fact's own first.

    Raises:
        UserError: when the file lacks a column.
    """
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.DataFrame(read_records(path))
    wanted = ("prompt_id", "question", "targets_false")
    if missing := [name for name in wanted if name not in table.columns]:
        raise UserError(f"{path} has no column '{missing[0]}': give {', '.join(wanted)}")
    return {
        str(case): (normalised(question), tuple(map(normalised, false)))
        for case, question, false in table[list(wanted)].itertuples(index=False)
    }


def named(facts: Sequence[Fact]) -> list[str]:
    """A name for each fact: subject and relation, and the case where that is not enough."""
    plain = [f"{fact.subject} ({fact.relation})" for fact in facts]
    counts = Counter(plain)
    return [
        name if counts[name] == 1 else f"{name} {fact.case}" for name, fact in zip(plain, facts, strict=True)
    ]


def prompts_of(
    facts: Sequence[Fact],
    questions: Mapping[str, tuple[str, tuple[str, ...]]] | None,
    shots: int,
) -> tuple[list[tuple[str, Fact]], dict[str, Any]]:
    """The facts that can be asked, by name, and the prompts file about them.

    The last :data:`HELD_OUT` facts are not among them: the first ``shots`` of these that have a question are the solved
    examples of multiple choice. With questions, a fact without one is left out (as the released code's join did).

    Raises:
        UserError: when there are too few facts.
    """
    by_relation: dict[str, list[str]] = defaultdict(list)
    for fact in facts:
        if fact.right not in by_relation[fact.relation]:
            by_relation[fact.relation].append(fact.right)
    held_out = min(HELD_OUT, len(facts) // 4)
    asked, examples = facts[: len(facts) - held_out], facts[len(facts) - held_out :]
    own: dict[str, dict[str, str]] = {}
    kept: list[tuple[str, Fact]] = []
    for name, fact in zip(named(asked), asked, strict=True):
        entry = _entry(fact, questions, by_relation[fact.relation])
        if entry is not None:
            own[name] = entry
            kept.append((name, fact))
    if len(kept) < 4:
        raise UserError(f"{len(kept)} of {len(facts)} facts can be asked, which is too few: give more")
    fewest = {
        "paraphrase": min(PARAPHRASES, *(len(fact.paraphrases) for _, fact in kept)),
        "neighborhood": min(NEIGHBOURS, *(len(fact.neighbours) for _, fact in kept)),
    }
    for name, fact in kept:
        for kind, texts in (("paraphrase", fact.paraphrases), ("neighborhood", fact.neighbours)):
            own[name] |= {f"{kind}_{i + 1}": texts[i] for i in range(fewest[kind])}
    solved = ""
    for fact in [f for f in examples if _entry(f, questions, by_relation[f.relation])][:shots]:
        solved += _solved(fact, questions, by_relation[fact.relation])
    plain = ["training", *(f"{kind}_{i + 1}" for kind, count in fewest.items() for i in range(count))]
    prompts: dict[str, Any] = {name: {"text": "{subject}"} for name in plain}
    prompts["multiple_choice"] = {
        "text": solved + QUESTION.replace("{question}", "{subject}"),
        "options": list(OPTIONS),
        "option_format": "{letter}. {answer}",
    }
    return kept, {"version": 1, "answers": [RIGHT, WRONG], "prompts": prompts, "facts": own}


def _entry(
    fact: Fact, questions: Mapping[str, tuple[str, tuple[str, ...]]] | None, answers: Sequence[str]
) -> dict[str, str] | None:
    """What a fact says itself; None when it cannot be asked in multiple choice."""
    if questions is None:
        others = [a for a in answers if a not in (fact.right, fact.wrong)]
        draw = random.Random(fact.case)
        question, false = f"{fact.prompt} ...", [fact.wrong, *draw.sample(others, min(2, len(others)))]
    elif fact.case in questions:
        question, false = questions[fact.case][0], list(questions[fact.case][1])
    else:
        return None
    if len(false) != 3:
        return None
    return {
        NAME: fact.subject,
        "training": fact.prompt,
        "multiple_choice": question,
        RIGHT: fact.right,
        **dict(zip(OPTIONS[1:], false, strict=True)),
        WRONG: fact.wrong,
    }


def _solved(
    fact: Fact, questions: Mapping[str, tuple[str, tuple[str, ...]]] | None, answers: Sequence[str]
) -> str:
    """A solved example of multiple choice, its options in an order drawn for the fact."""
    entry = _entry(fact, questions, answers)
    assert entry is not None
    order = random.Random(fact.case).sample(OPTIONS, len(OPTIONS))
    lines = "\n".join(f"{letter}. {entry[o]}" for letter, o in zip("ABCD", order, strict=True))
    text = QUESTION.replace("{question}", entry["multiple_choice"]).replace("{options}", lines)
    return f"{text} {'ABCD'[order.index(RIGHT)]}\n\n"


def run(job: Job) -> None:
    """Stage: CounterFact as a facts file and a prompts file."""
    own = job.config.athletes.own_prompts
    assert own is not None
    given = job.inputs.get("questions")
    kept, book = prompts_of(
        read_counterfact(job.inputs["source"]), read_questions(given) if given else None, own.shots
    )
    job.outputs["prompts"].write_text(json.dumps(book, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    with job.outputs["facts"].open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(("subject", "answer"))
        rows.writerows((name, RIGHT) for name, _ in kept)
    job.facts.update(facts=len(kept))
