"""MMLU: four layouts read alike, nasty text survives, subsets are fair, prompts are exact."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from architectures import written
from localized_unlearning.analysis.standing import chance
from localized_unlearning.config.data import Mmlu
from localized_unlearning.data.mmlu import (
    Question,
    Questions,
    ask,
    format_question,
    load_questions,
    prompt,
    stratified_subset,
)
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation import knowledge
from localized_unlearning.models import loading

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "mmlu"
OWN = ROOT / "workflow" / "resources" / "general_knowledge.csv"

HEADER = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
Row = tuple[str, list[str], int]
NASTY: dict[str, dict[str, list[Row]]] = {
    "dev": {
        "algebra": [("What is x, if 2x = 4?", ["1", "2", "3", "4"], 1)],
        "world_religions": [("Who?", ["a", "b", "c", "d"], 3)],
    },
    "test": {
        "algebra": [
            ("Which set is empty?", ["None", "NA", "null", "NaN"], 0),
            (' A "quoted", spaced\nand two-line question ', ["0.10", "1e5", "True", " -1 "], 2),
            ("Another\r\none", ["nan", "N/A", "<NA>", "inf"], 3),
        ],
        "world_religions": [("Où est né Siddhārtha ?", ["Lumbinī", "01", "1,000", "A"], 0)],
    },
}


def write_csv(path: Path, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def single_csv(root: Path) -> Path:
    rows = [
        [subject, split, question, *choices, str(answer)]
        for split, subjects in NASTY.items()
        for subject, content in reversed(subjects.items())
        for question, choices, answer in content
    ]
    write_csv(root / "own.csv", [["subject", "split", *HEADER], *rows])
    return root / "own.csv"


def csv_folder(root: Path, headed: bool) -> Path:
    for split, subjects in NASTY.items():
        for subject, content in subjects.items():
            rows = [
                [question, *choices, str(answer) if headed else "ABCD"[answer]]
                for question, choices, answer in content
            ]
            write_csv(root / split / f"{subject}_{split}.csv", [HEADER] * headed + rows)
    return root


def parquet_folder(root: Path, names: Callable[[str], str]) -> Path:
    """Parquet files as the hub has them; `names` gives a subject's folder."""
    for split, subjects in NASTY.items():
        folders: dict[str, list[dict[str, object]]] = {}
        for subject, content in subjects.items():
            folders.setdefault(names(subject), []).extend(
                {"question": question, "subject": subject, "choices": choices, "answer": answer}
                for question, choices, answer in content
            )
        for folder, rows in folders.items():
            path = root / folder / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), path)
    return root


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "single": single_csv,
    "original": lambda root: csv_folder(root, headed=False),
    "headed": lambda root: csv_folder(root, headed=True),
    "hub by subject": lambda root: parquet_folder(root, lambda subject: subject),
    "hub all": lambda root: parquet_folder(root, lambda subject: "all"),
    "hub flat": lambda root: parquet_folder(root, lambda subject: "."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_read_alike(layout: str, tmp_path: Path) -> None:
    questions = load_questions(LAYOUTS[layout](tmp_path))
    expected = {
        split: [
            Question(
                subject,
                question,
                (choices[0], choices[1], choices[2], choices[3]),
                answer,
                f"{subject}/{'dev/' if split == 'dev' else ''}{index}",
            )
            for subject, content in subjects.items()
            for index, (question, choices, answer) in enumerate(content)
        ]
        for split, subjects in NASTY.items()
    }
    assert questions == Questions(expected["dev"], expected["test"])


def test_hub_folder_with_all_and_subjects_is_not_read_twice(tmp_path: Path) -> None:
    parquet_folder(tmp_path, lambda subject: subject)
    parquet_folder(tmp_path, lambda subject: "all")
    assert len(load_questions(tmp_path).test) == 4


def test_worked_examples_are_the_subjects_or_the_questions_own(tmp_path: Path) -> None:
    """tinyMMLU's questions bring their five-shot prompt; others need as many examples as are asked for."""
    row = {"question": "Who?", "subject": "algebra", "choices": ["a", "b", "c", "d"], "answer": 3}
    own = {**row, "input_formatted": "Five examples.\n\nWho?\nA. a\nAnswer: "}
    pq.write_table(pa.Table.from_pylist([own]), tmp_path / "test-00000-of-00001.parquet")
    tiny = load_questions(tmp_path).test[0]
    assert ask(tiny, {}, 5) == "Five examples.\n\nWho?\nA. a\nAnswer:"
    assert ask(tiny, {}, 0) == prompt(tiny, [])
    plain = Question("algebra", "Who?", ("a", "b", "c", "d"), 3, "algebra/0")
    examples = [Question("algebra", f"{n}?", ("a", "b", "c", "d"), 0, f"algebra/dev/{n}") for n in range(3)]
    assert ask(plain, {"algebra": examples}, 2) == prompt(plain, examples[:2])
    with pytest.raises(UserError, match=r"4 worked examples .* hold 3 of algebra"):
        ask(plain, {"algebra": examples}, 4)


def test_own_questions() -> None:
    questions = load_questions(OWN)
    assert len(questions.test) >= 300
    subjects = Counter(question.subject for question in questions.test)
    assert len(subjects) >= 10
    assert subjects.keys() == {question.subject for question in questions.dev}
    ids = [question.id for question in questions.dev + questions.test]
    assert len(set(ids)) == len(ids)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/mmlu is not on this machine")
def test_shared_questions() -> None:
    questions = load_questions(SHARED)
    assert len(questions.test) == 14042
    assert set(Counter(question.subject for question in questions.dev).values()) == {5}
    assert len({question.subject for question in questions.test}) == 57
    assert sum("None" in question.choices for question in questions.test) > 0
    assert questions.test[0].id == "abstract_algebra/0"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (["algebra", "test", "Q?", "a", "b", "c", "d"], "7 fields where 8 belong"),
        (["algebra", "test", "Q?", "a", "b", "c", "d", "4"], "answer '4' must be"),
        (["algebra", "test", "Q?", "a", "b", "c", "d", "nan"], "answer 'nan' must be"),
        (["algebra", "test", "Q?", "a", "", "c", "d", "1"], "2 to 26 choices"),
        (["algebra", "test", " ", "a", "b", "c", "d", "1"], "question is empty"),
        (["algebra", "val", "Q?", "a", "b", "c", "d", "1"], "split 'val'"),
    ],
)
def test_malformed_row_is_named(row: list[str], complaint: str, tmp_path: Path) -> None:
    path = single_csv(tmp_path)
    with path.open("a", newline="") as stream:
        csv.writer(stream).writerow(row)
    lines = len(path.read_text().splitlines())
    with pytest.raises(UserError) as caught:
        load_questions(path)
    assert complaint in str(caught.value)
    assert f"own.csv', line {lines}:" in str(caught.value)


def test_other_malformed_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not exist"):
        load_questions(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no MMLU questions"):
        load_questions(tmp_path)
    write_csv(tmp_path / "x.csv", [["question", "answer"]])
    with pytest.raises(UserError, match="must start with the header subject,split"):
        load_questions(tmp_path / "x.csv")
    write_csv(tmp_path / "x.csv", [["subject", "split", *HEADER]])
    with pytest.raises(UserError, match="no test question"):
        load_questions(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a CSV file in UTF-8"):
        load_questions(tmp_path / "x.csv")
    (tmp_path / "test-0.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="could not be read as parquet"):
        load_questions(tmp_path)


def many(sizes: dict[str, int]) -> list[Question]:
    return [
        Question(subject, f"Q{index}", ("a", "b", "c", "d"), index % 4, f"{subject}/{index}")
        for subject, size in sizes.items()
        for index in range(size)
    ]


def test_subset_is_proportional_seeded_and_in_order() -> None:
    questions = many({"c": 100, "a": 50, "b": 7})
    subset = stratified_subset(questions, 20, seed=0)
    # 20 x (100, 50, 7) / 157 = 12.74, 6.37, 0.89: the two largest remainders are rounded up
    assert Counter(question.subject for question in subset) == {"c": 13, "a": 6, "b": 1}
    assert subset == stratified_subset(questions, 20, seed=0)
    assert subset != stratified_subset(questions, 20, seed=1)
    positions = [questions.index(question) for question in subset]
    assert positions == sorted(set(positions))


def test_subset_at_every_size() -> None:
    questions = many({"a": 3, "b": 3, "c": 5, "d": 1})
    for n in range(len(questions) + 1):
        subset = stratified_subset(questions, n, seed=3)
        assert len(set(subset)) == n
        for subject, size in Counter(question.subject for question in questions).items():
            share = sum(question.subject == subject for question in subset)
            assert abs(share - n * size / len(questions)) < 1
    assert stratified_subset(questions, len(questions), seed=3) == questions
    assert stratified_subset([], 0, seed=0) == []
    for n in (-1, len(questions) + 1):
        with pytest.raises(UserError, match="choose a number from 0 to 12"):
            stratified_subset(questions, n, seed=3)


def test_prompt_is_the_harness_format() -> None:
    """Literal text of lm-evaluation-harness 0.4.13, task mmlu (question stripped, choices not)."""
    asked = Question("us_foreign_policy", " Who?\n", ("a", "b ", "c", "d"), 3, "x/0")
    example = Question("us_foreign_policy", "Why?", ("1", "2", "3", "4"), 1, "x/dev/0")
    assert format_question(example, with_answer=True) == "Why?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B"
    head = "The following are multiple choice questions (with answers) about us foreign policy.\n\n"
    tail = "Who?\nA. a\nB. b \nC. c\nD. d\nAnswer:"
    assert prompt(asked, []) == head + tail
    assert prompt(asked, [example, example]) == (
        head + "Why?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n" * 2 + tail
    )


PRO: list[dict[str, object]] = [
    {
        "question_id": number, "question": f"Which is it, {number}?", "options": [f"choice {i}" for i in range(options)],
        "answer": "ABCDEFGHIJ"[right], "answer_index": right, "cot_content": "", "category": category, "src": "made",
    }
    for number, (options, right, category) in enumerate(
        [(10, 9, "computer science"), (4, 2, "law"), (10, 0, "law"), (3, 1, "law"), (7, 6, "computer science")]
    )
]  # fmt: skip
"""A sample in MMLU-Pro's format: up to ten options, ``category``, ``answer_index``."""


def test_mmlu_pro_is_read_and_asked(tmp_path: Path) -> None:
    """Catches four options that are taken for granted: in the loader, the prompt, the letters scored, a letter not offered."""
    folder = tmp_path / "pro/data"
    folder.mkdir(parents=True)
    for split, rows in (("validation", PRO[:2]), ("test", PRO)):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    questions = load_questions(tmp_path / "pro")
    assert [len(q.choices) for q in questions.dev] == [10, 4]
    first = questions.test[0]
    assert (first.subject, first.answer, first.id) == ("computer science", 9, "computer science/0")
    text = prompt(first, questions.dev[:1])
    assert text.count("J. choice 9") == 2 and "Answer: J\n\n" in text and text.endswith("Answer:")
    model, own = loading.load(written("llama", tmp_path), "float32", "cpu")
    found = knowledge.ask_questions(model, own, questions, Mmlu(questions=None, shots=1), 4096)
    letters = [c for c in found.columns if c.startswith("logit_")]
    assert letters == [f"logit_{x}" for x in "ABCDEFGHIJ"] and found["answer_index"].max() == 9
    offered = np.isfinite(found[letters].to_numpy()).sum(1)
    assert sorted(offered) == [3, 4, 7, 10, 10]
    assert chance(found) == pytest.approx(
        max(1 / 5, (1 / 10 + 1 / 3 + 1 / 4 + 1 / 7 + 1 / 10) / 5)
    )  # five letters occur


def test_a_file_may_have_more_choices(tmp_path: Path) -> None:
    """Catches a header of five choices that is refused, and a question with fewer that gets an empty one."""
    header = ["subject", "split", "question", *(f"choice{i}" for i in range(5)), "answer"]
    write_csv(
        tmp_path / "own.csv",
        [
            header,
            ["law", "test", "Q?", "a", "b", "c", "d", "e", "E"],
            ["law", "test", "R?", "a", "b", "", "", "", "1"],
        ],
    )
    assert [len(q.choices) for q in load_questions(tmp_path / "own.csv").test] == [5, 2]


def test_columns_of_another_file_are_named(tmp_path: Path) -> None:
    """Catches pyarrow's own words, or a remedy (download again) that helps nothing."""
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "test-0.parquet")
    with pytest.raises(UserError, match=r"has the columns prompt: .*choices, answer are needed"):
        load_questions(tmp_path)
