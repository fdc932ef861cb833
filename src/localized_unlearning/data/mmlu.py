"""MMLU and MMLU-Pro: questions from any of their file layouts, and the prompt they are asked with.

The prompt is the one of Hendrycks et al. (2021) as the lm-evaluation-harness writes it (task
`mmlu`, version 1.0): a line that names the subject, the examples with their answers, the question.
"""

from __future__ import annotations

import csv
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localized_unlearning.data.answers import FEWEST, LETTERS
from localized_unlearning.errors import UserError

PLAIN = 4
"""Choices of MMLU's own questions; other files say in their header, or question by question, how many they have."""

SPLITS = ("dev", "test")

FORMATTED = "input_formatted"
"""tinyMMLU's column with the five-shot prompt."""


@dataclass(frozen=True)
class Question:
    """One multiple-choice question; `answer` is the index of the right one of its two to 26 choices.

    `id` is `{subject}/{index}` for a test question and `{subject}/dev/{index}` for an example,
    the index counting from 0 in the file's order: the same in every layout. `formatted` is a whole
    prompt with worked examples that the file itself brings (tinyMMLU's column `input_formatted`).
    """

    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int
    id: str
    formatted: str | None = None


@dataclass(frozen=True)
class Questions:
    """The examples (`dev`) and the questions asked (`test`), each ordered by subject."""

    dev: list[Question]
    test: list[Question]


@dataclass(frozen=True)
class _Row:
    """A row as found in a file; `place` (file and row) is for messages."""

    subject: str
    split: str
    question: Any
    choices: Sequence[Any]
    answer: Any
    place: str
    formatted: str | None = None


def load_questions(path: Path) -> Questions:
    """Read MMLU questions; the layout is recognised from what lies at `path`.

    - a CSV file with the columns subject, split, question, choice0..choice3 (or more; a question may leave the last ones
      empty then), answer (this project's `general_knowledge.csv`);
    - a folder with `dev/SUBJECT_dev.csv` and `test/SUBJECT_test.csv`, either the original files
      (no header; question, four choices, a letter) or with the header question,
      choice0..choice3 (or more), answer;
    - a folder with the hub's parquet files (`cais/mmlu`, `tinyBenchmarks/tinyMMLU`): `dev-*.parquet`
      and `test-*.parquet` in one folder per subject, or in a folder `all` (preferred), or in `path` itself;
    - the same with MMLU-Pro's columns (`TIGER-Lab/MMLU-Pro`: category, options, answer_index); its worked examples are
      in `validation-*.parquet`, which is read where there is no `dev-*.parquet`.

    Answers are letters or indices from 0. Text is taken as it stands: "None", "NA" and
    surrounding spaces stay. Raises UserError, naming file and row, for anything malformed.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"the MMLU questions '{path}' do not exist: correct the path")
    if path.is_file():
        rows = list(_rows_of_single_file(path))
    elif all((path / split).is_dir() for split in SPLITS) and any(path.glob("test/*.csv")):
        rows = [row for split in SPLITS for row in _rows_of_csv_folder(path / split, split)]
    elif any(path.rglob("test-*.parquet")):
        rows = [row for split in SPLITS for row in _rows_of_parquet(path, split)]
    else:
        raise UserError(
            f"the folder '{path}' holds no MMLU questions: it needs dev/*_dev.csv and "
            "test/*_test.csv, or the hub's test-*.parquet and dev-*.parquet or validation-*.parquet"
        )
    questions = Questions(*(_questions(rows, split) for split in SPLITS))
    if not questions.test:
        raise UserError(f"the MMLU questions '{path}' have no test question: check the files")
    return questions


def stratified_subset(questions: list[Question], n: int, seed: int) -> list[Question]:
    """Draw `n` of the questions without replacement, in their order, spread over the subjects.

    Each subject gets its proportional share, rounded by largest remainder (ties in alphabetical
    order); the draw within a subject depends only on the seed and the subject's name and size.
    Raises UserError when there are fewer than `n` questions.
    """
    if not 0 <= n <= len(questions):
        raise UserError(
            f"a subset of {n} MMLU questions was asked for but there are {len(questions)}: "
            f"choose a number from 0 to {len(questions)}"
        )
    members: dict[str, list[int]] = defaultdict(list)
    for position, question in enumerate(questions):
        members[question.subject].append(position)
    shares = _largest_remainder({subject: len(rows) for subject, rows in members.items()}, n)
    chosen: list[int] = []
    for subject, share in shares.items():
        chosen += random.Random(f"{seed}/{subject}").sample(members[subject], share)
    return [questions[position] for position in sorted(chosen)]


def _largest_remainder(sizes: dict[str, int], n: int) -> dict[str, int]:
    """`n` divided in proportion to `sizes` (which sum to at least `n`), in whole numbers."""
    total = sum(sizes.values())
    shares = {name: n * size // total for name, size in sizes.items()} if n else dict.fromkeys(sizes, 0)
    by_remainder = sorted(sizes, key=lambda name: (-(n * sizes[name] % total), name))
    for name in by_remainder[: n - sum(shares.values())]:
        shares[name] += 1
    return shares


def format_question(question: Question, with_answer: bool) -> str:
    """The question, its lettered choices and `Answer:`, followed by ` X` where asked for."""
    lines = [question.question.strip()]
    lines += [
        f"{letter}. {choice}"
        for letter, choice in zip(LETTERS[: len(question.choices)], question.choices, strict=True)
    ]
    lines.append("Answer:" + (f" {LETTERS[question.answer]}" if with_answer else ""))
    return "\n".join(lines)


def ask(question: Question, dev: Mapping[str, Sequence[Question]], shots: int) -> str:
    """The prompt with `shots` worked examples of the question's subject.

    A question that brings its own prompt with examples is asked with that, unless none are wanted.
    Raises UserError when there are fewer examples than `shots`.
    """
    if shots and question.formatted is not None:
        return question.formatted.rstrip()
    examples = list(dev.get(question.subject, ()))[:shots]
    if len(examples) < shots:
        raise UserError(
            f"{shots} worked examples are asked for, but the questions hold {len(examples)} of "
            f"{question.subject} (their dev part): lower 'shots' or give complete MMLU files"
        )
    return prompt(question, examples)


def prompt(question: Question, dev_examples: list[Question]) -> str:
    """The whole prompt; the answer to compare is the next token, ` A` and so on (with a space).

    `dev_examples` are the subject's examples in their order: none for 0-shot, the first 5 for
    5-shot.
    """
    subject = question.subject.replace("_", " ")
    description = f"The following are multiple choice questions (with answers) about {subject}."
    examples = [format_question(example, with_answer=True) for example in dev_examples]
    return "\n\n".join([description, *examples, format_question(question, with_answer=False)])


# --- reading -------------------------------------------------------------------------------------


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not blank, each with the number of its last line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            for row in reader:
                if row:
                    yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"'{path}' is not a CSV file in UTF-8 ({error}): correct it") from error


def _header(choices: int) -> list[str]:
    return ["question", *(f"choice{i}" for i in range(choices)), "answer"]


def _is_header(row: Sequence[str]) -> bool:
    """Whether a row names a question, at least four choices, and the answer."""
    return len(row) >= PLAIN + 2 and list(row) == _header(len(row) - 2)


def _rows_of_single_file(path: Path) -> Iterator[_Row]:
    rows = _csv_rows(path)
    _, header = next(rows, (0, []))
    if header[:2] != ["subject", "split"] or not _is_header(header[2:]):
        raise UserError(
            f"'{path}' must start with the header subject,split,{','.join(_header(PLAIN))} (or more choices), "
            f"not with '{','.join(header)[:80]}'"
        )
    for line, row in rows:
        place = f"'{path}', line {line}"
        _check_width(row, header, place)
        subject, split, question, *choices, answer = row
        if split not in SPLITS:
            raise UserError(f"{place}: the split '{split}' must be 'dev' or 'test'")
        yield _Row(subject, split, question, _given(choices), answer, place)


def _rows_of_csv_folder(folder: Path, split: str) -> Iterator[_Row]:
    suffix = f"_{split}.csv"
    files = {path.name.removesuffix(suffix): path for path in folder.glob(f"*{suffix}")}
    for subject, path in sorted(files.items()):
        header = _header(PLAIN)
        for number, (line, row) in enumerate(_csv_rows(path)):
            if number == 0 and _is_header(row):
                header = row
                continue
            place = f"'{path}', line {line}"
            _check_width(row, header, place)
            question, *choices, answer = row
            yield _Row(subject, split, question, _given(choices), answer, place)


def _given(choices: Sequence[str]) -> Sequence[str]:
    """Without the empty ones at the end, which only a file of more than four choices may leave out."""
    last = max((i for i, choice in enumerate(choices) if choice.strip()), default=-1)
    return choices if len(choices) == PLAIN else choices[: last + 1]


def _check_width(row: list[str], header: list[str], place: str) -> None:
    if len(row) != len(header):
        raise UserError(
            f"{place}: {len(row)} fields where {len(header)} belong ({','.join(header)}): "
            "check the quotation marks and commas"
        )


COLUMNS = (("subject", "question", "choices", "answer"), ("category", "question", "options", "answer_index"))
"""Subject, question, choices and answer in the hub's files: MMLU's names, and MMLU-Pro's."""


def _rows_of_parquet(root: Path, split: str) -> Iterator[_Row]:
    import pyarrow
    import pyarrow.parquet as parquet

    within, prefix = ("all/" if (root / "all").is_dir() else "**/"), split
    if split == "dev" and not any(root.glob(f"{within}dev-*.parquet")):
        prefix = "validation"
    for path in sorted(root.glob(f"{within}{prefix}-*.parquet")):
        try:
            names = parquet.read_schema(path).names
            columns = next((found for found in COLUMNS if set(found) <= set(names)), None)
            if columns is None:
                raise UserError(
                    f"'{path}' has the columns {', '.join(names)}: {', '.join(COLUMNS[0])} are needed (MMLU), or "
                    f"{', '.join(COLUMNS[1])} (MMLU-Pro)"
                )
            more = [FORMATTED] if FORMATTED in names else []
            rows = parquet.read_table(path, columns=[*columns, *more]).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"'{path}' could not be read as parquet ({error}): download it again") from error
        for number, row in enumerate(rows):
            place = f"'{path}', row {number}"
            subject, question, choices, answer = (row[name] for name in columns)
            if not (isinstance(subject, str) and isinstance(question, str)):
                raise UserError(f"{place}: {columns[0]} and {columns[1]} must not be empty: fill them in")
            yield _Row(subject, split, question, choices or [], answer, place, row.get(FORMATTED))


def _questions(rows: Iterable[_Row], split: str) -> list[Question]:
    """Check the rows of one split and number them within their subjects."""
    count: Counter[str] = Counter()
    prefix = "dev/" if split == "dev" else ""
    questions = []
    for row in rows:
        if row.split != split:
            continue
        questions.append(_question(row, f"{row.subject}/{prefix}{count[row.subject]}"))
        count[row.subject] += 1
    return sorted(questions, key=lambda question: question.subject)  # stable: keeps file order


def _question(row: _Row, item_id: str) -> Question:
    if not row.subject.strip() or not row.question.strip():
        raise UserError(f"{row.place}: the subject or the question is empty: fill it in")
    count = len(row.choices)
    if not FEWEST <= count <= len(LETTERS) or not all(isinstance(c, str) and c.strip() for c in row.choices):
        raise UserError(f"{row.place}: {FEWEST} to {len(LETTERS)} choices are needed, none of them empty")
    answer, last = str(row.answer).strip(), LETTERS[count - 1]
    if answer in LETTERS[:count]:
        index = LETTERS.index(answer)
    elif answer in map(str, range(count)):
        index = int(answer)
    else:
        raise UserError(f"{row.place}: the answer '{row.answer}' must be 0 to {count - 1} or A to {last}")
    return Question(row.subject, row.question, tuple(row.choices), index, item_id, row.formatted)
