"""The facts, the splits and the data written for this project."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localized_unlearning.config import reading
from localized_unlearning.config.data import Forget, Split
from localized_unlearning.data import mmlu
from localized_unlearning.data.facts import load_facts
from localized_unlearning.data.splits import check_split, split_athletes
from localized_unlearning.errors import UserError
from sports import SPORTS

ROOT = Path(__file__).parents[2]
RELEASED = ROOT.parent / "shared" / "data" / "sports_facts.csv"
OWN = ROOT / "workflow" / "resources" / "athletes.csv"

PAPERS = {
    "football": "DeForest Buckner,Walter Payton,Vonta Leach,Landon Collins,Charlie Whitehurst,"
    "Michael Floyd,LaMarr Woodley",
    "baseball": "Anthony DeSclafani,Kevin Millwood,Mitch Haniger,Mariano Rivera",
    "basketball": "Boris Diaw,Jae Crowder,Damon Stoudamire,Mario Chalmers,Stan Van Gundy",
}
SIXTEEN = {name: sport for sport, names in PAPERS.items() for name in names.split(",")}

# Loading.


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write_text(text: str) -> Path:
        path = tmp_path / "athletes.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,sport\nA B,football\n", ("no column 'subject'", "name, sport")),
        ("athlete,game\nA B,football\n", ("no column 'answer'",)),
        (
            "athlete,sport\nA B,football\nC D,golf\n",
            ("data row 2", "'C D'", "'golf'", "football, baseball, basketball"),
        ),
        ("athlete,sport\n ,football\n", ("data row 1", "needs a name")),
        ("athlete,sport\nA B,\n", ("data row 1", "''")),
        ("athlete,sport\nA B,football\nC D,baseball\nA B ,baseball\n", ("A B two answers",)),
        ("athlete,sport\nA B,football,x\n", ("data row 1", "3 fields where the header has 2")),
        ("subject,answer,split\nA B,football,dev\n", ("data row 1", "train or test")),
        ("", ("is no CSV",)),
        ('athlete,sport\n"A B,football\n', ("is no CSV",)),
    ],
)
def test_a_faulty_file_is_refused_with_its_place(
    text: str, words: tuple[str, ...], write: Callable[[str], Path]
) -> None:
    """Catches a fault that is read as data, and a message that does not say where it is."""
    with pytest.raises(UserError) as error:
        load_facts(write(text), ("football", "baseball", "basketball"))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """Catches a traceback where the user mistyped a path."""
    with pytest.raises(UserError, match=r"none\.csv does not exist"):
        load_facts(tmp_path / "none.csv")


def test_repeated_names_keep_their_first_place_and_all_rows(write: Callable[[str], Path]) -> None:
    """Catches an athlete that stands twice, and rows that belong to another name."""
    rows = ("x,sport,athlete", "1,football,A B", "2,baseball,Nan", "3,football, A B ", "4,baseball,C D")
    text = "\n".join([*rows, "5,football,A B", ""])
    table, duplicates = load_facts(write(text))
    assert list(zip(table["subject"], table["answer"], table["rows"], strict=True)) == [
        ("A B", "football", [0, 2, 4]),
        ("Nan", "baseball", [1]),
        ("C D", "baseball", [3]),
    ]
    assert (duplicates.repeated, duplicates.dropped_rows) == (("A B",), 2)


def test_names_are_normalised_and_near_twins_named(write: Callable[[str], Path]) -> None:
    """Catches one subject in two Unicode forms, or with two spaces, that counts as two."""
    text = "subject,answer\nJosé  B,football\nJose\u0301 B,football\nLeBron James,baseball\nLebron james,baseball\n"
    table, duplicates = load_facts(write(text))
    assert list(table["subject"]) == ["José B", "LeBron James", "Lebron james"]
    assert duplicates.repeated == ("José B",) and duplicates.twins == (("LeBron James", "Lebron james"),)
    assert table.attrs["answers"] == ["baseball", "football"]


def test_aliases_give_the_listed_answer(write: Callable[[str], Path]) -> None:
    """Catches an answer that is refused although the file says what else it is called."""
    text = "subject,answer,aliases\nA,association football,soccer|football\nB,baseball,\n"
    assert list(load_facts(write(text), ("football", "baseball"))[0]["answer"]) == ["football", "baseball"]
    with pytest.raises(UserError, match="one of hockey, baseball"):
        load_facts(write(text), ("hockey", "baseball"))


RECORDS: list[dict[str, Any]] = [
    {
        "subject": name,
        "relation_id": relation,
        "target_true": {"str": answer, "id": "Q1"},
        "prompt": "{} is in",
    }
    for name, relation, answer in [
        ("Lyon", "P17", "France"),
        ("Kyoto", "P17", "Japan"),
        ("Ada", "P27", "Britain"),
    ]
]


@pytest.mark.parametrize("shape", ["json", "jsonl", "parquet", "flat"])
def test_counterfact_is_read_as_it_is(shape: str, tmp_path: Path) -> None:
    """Catches a public file that has to be converted first, and relations mixed with one another."""
    path = tmp_path / "counterfact"
    nested = [{"case_id": i, "requested_rewrite": record} for i, record in enumerate(RECORDS)]
    flat = [{**r, "target_true": f" {r['target_true']['str']}"} for r in RECORDS]
    if shape == "json":
        path.write_text(json.dumps(nested, indent=2), encoding="utf-8")
    elif shape == "jsonl":
        path.write_text("\n".join(map(json.dumps, nested)), encoding="utf-8")
    else:
        pd.DataFrame(nested if shape == "parquet" else flat).to_parquet(path)
    table, _ = load_facts(path, relation="P17")
    assert dict(zip(table["subject"], table["answer"], strict=True)) == {"Lyon": "France", "Kyoto": "Japan"}
    with pytest.raises(UserError, match=r"2 relations: set athletes.relation .* P17 \(2\), P27 \(1\)"):
        load_facts(path)


def test_questions_about_a_subject_are_its_group(tmp_path: Path) -> None:
    """Catches a question file whose subject is taken for the thing asked."""
    path = tmp_path / "rwku.json"
    asked = [("Ada", "Where was Ada born?", "London"), ("Ada", "Whom did Ada assist?", "Babbage")]
    path.write_text(json.dumps([{"subject": s, "query": q, "answer": a, "level": "2"} for s, q, a in asked]))
    table, _ = load_facts(path)
    assert list(table["subject"]) == [q for _, q, _ in asked] and list(table["group"]) == ["Ada", "Ada"]


# Splitting.

BASKETBALL, RELEARN = Forget(answer="basketball"), ("b0", "b1")


def people(football: int, baseball: int, basketball: int) -> pd.DataFrame:
    rows = (
        [("f", "football")] * football + [("a", "baseball")] * baseball + [("b", "basketball")] * basketball
    )
    numbers = [*range(football), *range(baseball), *range(basketball)]
    return pd.DataFrame(
        {
            "subject": [f"{letter}{i}" for (letter, _), i in zip(rows, numbers, strict=True)],
            "answer": [sport for _, sport in rows],
            "rows": [[i] for i in range(len(rows))],
            "known": True,
        }
    )


@settings(max_examples=60, deadline=None)
@given(
    counts=st.tuples(*[st.integers(5, 30)] * 3),
    seed=st.integers(0, 3),
    fraction=st.sampled_from([0.1, 0.2, 0.5]),
    unknown=st.sets(st.integers(0, 14), max_size=3),
)
def test_stratified_split(
    counts: tuple[int, int, int], seed: int, fraction: float, unknown: set[int]
) -> None:
    """Catches athletes lost, doubled, unknown or in both parts, uneven sports, relearned athletes in test."""
    table = people(*counts)
    table.loc[[i for i in unknown if i < counts[0]], "known"] = False
    wanted = {name: list(table[table["known"] & (table["answer"] == name)]["subject"]) for name in SPORTS}
    if not wanted["football"]:
        return
    split = Split(test_fraction=fraction, seed=seed)
    found = split_athletes(table, split, BASKETBALL, RELEARN)
    assert sorted(found["subject"]) == sorted(name for names in wanted.values() for name in names)
    assert (found["train"] != found["test"]).all()
    assert ((found["answer"] == "basketball") == found["forget"]).all()
    for sport, names in wanted.items():
        share = found.loc[found["answer"] == sport, "test"].sum() - fraction * len(names)
        assert 0 <= share < 1 + 1e-9 or (sport == "basketball" and share <= 0), sport
    assert set(found.loc[found["relearn"], "subject"]) == set(RELEARN)
    assert found.loc[found["relearn"], "train"].all()
    assert found.equals(split_athletes(table, split, BASKETBALL, RELEARN))


def test_split_seeds_differ() -> None:
    """Catches a seed that is ignored."""
    tests = {
        tuple(split_athletes(people(20, 20, 20), Split(seed=seed), BASKETBALL, RELEARN)["test"])
        for seed in range(5)
    }
    assert len(tests) == 5


def test_named_athletes_are_in_both_parts() -> None:
    """Catches a forget set of named athletes that is split (A.4.1), or leaks into retain."""
    forget = Forget(athletes=("f0", "b3"))
    found = split_athletes(people(20, 20, 20), Split(), forget, ("f0",)).set_index("subject")
    assert set(found.index[found["forget"]]) == {"f0", "b3"}
    both = found["train"] & found["test"]
    assert set(found.index[both]) == {"f0", "b3"} and (found["train"] | found["test"]).all()


@pytest.mark.parametrize(
    ("forget", "relearn", "words"),
    [
        (Forget(athletes=("f0", "Nobody")), (), "Nobody, which is not among the subjects"),
        (BASKETBALL, ("f0",), "relearn names f0, which is not in the forget set"),
        (Forget(athletes=("f9",)), (), "knows none"),
    ],
)
def test_an_impossible_split_is_refused(forget: Forget, relearn: tuple[str, ...], words: str) -> None:
    """Catches a silent empty or wrong set."""
    table = people(10, 10, 10)
    table.loc[table["subject"] == "f9", "known"] = False
    with pytest.raises(UserError, match=words):
        split_athletes(table, Split(), forget, relearn)


@pytest.mark.parametrize(
    ("parts", "words"), [((True, True), "both the train and the test"), ((True, False), None)]
)
def test_a_leak_is_refused(parts: tuple[bool, bool], words: str | None) -> None:
    """Catches a check that lets an athlete stand in both parts, or a name twice."""
    table = pd.DataFrame({"subject": ["x"], "forget": [False], "train": [parts[0]], "test": [parts[1]]})
    if words:
        with pytest.raises(UserError, match=words):
            check_split(table, whole_forget_set=True)
    else:
        check_split(table, whole_forget_set=True)
        with pytest.raises(UserError, match="x stands twice"):
            check_split(pd.concat([table, table], ignore_index=True), whole_forget_set=True)


# The released data and split.


@pytest.fixture(scope="module")
def released() -> pd.DataFrame:
    if not RELEASED.is_file():
        pytest.skip(f"{RELEASED} is not here: the authors' file is not part of the repository")
    return load_facts(RELEASED)[0].assign(known=True)


def test_the_authors_file_has_seven_repeated_names(released: pd.DataFrame) -> None:
    """Catches another way to resolve duplicates than the reference facts state."""
    assert len(released) == 1559 and sum(map(len, released["rows"])) == 1566
    assert set(released.loc[released["rows"].map(len) > 1, "subject"]) == {
        "Josh Allen", "Devin Booker", "Adam Eaton", "Adrian Peterson", "Brandon Marshall", "Ryan Grant",
        "Deonte Burton",
    }  # fmt: skip
    assert released["answer"].value_counts().to_dict() == {
        "football": 583,
        "basketball": 490,
        "baseball": 486,
    }


def test_the_released_split_is_the_authors(released: pd.DataFrame) -> None:
    """Catches a cut after the duplicates were dropped: row for row the authors had 393/99 and 859/215."""
    raw = pd.read_csv(RELEASED).rename(columns={"athlete": "subject", "sport": "answer"})
    found = split_athletes(
        released, Split(kind="released", test_fraction=0.2), BASKETBALL, ("Boris Diaw", "Jae Crowder")
    )
    parts = found.set_index("subject")["train"]
    moved = set()
    for forgets, sizes in ((True, (393, 99)), (False, (859, 215))):
        rows = raw[(raw["answer"] == "basketball") == forgets]
        cut = int(0.8 * len(rows))
        assert (cut, len(rows) - cut) == sizes
        for position, name in enumerate(rows["subject"]):
            if parts[name] != (position < cut):
                moved.add(name)
    assert moved == {"Deonte Burton"}  # the authors had him in both parts
    assert parts["Deonte Burton"]
    counts: Any = found.groupby(["forget", "train"]).size()
    unique = {f: raw.loc[(raw["answer"] == "basketball") == f, "subject"].nunique() for f in (True, False)}
    assert {f: int(counts.loc[f].sum()) for f in (True, False)} == unique
    assert counts[True, False] == 98 and counts[False, False] == 215


def test_the_papers_sixteen_in_the_released_split(released: pd.DataFrame) -> None:
    """Catches a default task that names other athletes than the paper, and a split forget set."""
    task = reading.load([ROOT / "config.yaml", ROOT / "workflow/presets/gemma-7b.yaml"]).tasks["athletes"]
    assert task is not None and set(task.forget.athletes) == set(SIXTEEN)
    assert list(dict.fromkeys(pd.read_csv(RELEASED)["athlete"]))[:16] == list(task.forget.athletes)
    found = split_athletes(released, Split(kind="released"), task.forget, task.relearn)
    forgotten = found[found["forget"]]
    assert dict(zip(forgotten["subject"], forgotten["answer"], strict=True)) == SIXTEEN
    assert (forgotten["train"] & forgotten["test"]).all()
    assert set(forgotten.loc[forgotten["relearn"], "subject"]) == {"DeForest Buckner", "Walter Payton"}


# The data of this project.


def test_own_athletes_are_balanced_and_hold_the_papers_sixteen() -> None:
    """Catches an edit that unbalances the file, repeats a name or changes a sport."""
    table, duplicates = load_facts(OWN)
    counts = table["answer"].value_counts()
    assert len(table) >= 600 and counts.min() == counts.max() and set(counts.index) == set(SPORTS)
    assert duplicates.repeated == ()
    sports = dict(zip(table["subject"], table["answer"], strict=True))
    assert {name: sports.get(name) for name in SIXTEEN} == SIXTEEN


def test_own_athletes_agree_with_the_authors(released: pd.DataFrame) -> None:
    """Catches a wrong sport in the project's own file."""
    both = load_facts(OWN)[0].merge(released, on="subject")
    assert len(both) > 100
    assert list(both.loc[both["answer_x"] != both["answer_y"], "subject"]) == []


def test_own_general_knowledge() -> None:
    """Catches a subject without five worked examples, a repeated question, answers that favour a letter."""
    questions = mmlu.load_questions(ROOT / "workflow/resources/general_knowledge.csv")
    test = pd.DataFrame(
        {"subject": [q.subject for q in questions.test], "answer": [q.answer for q in questions.test]}
    )
    dev = pd.Series([q.subject for q in questions.dev]).value_counts()
    sizes = test["subject"].value_counts()
    assert len(sizes) == 12 and set(sizes) == {28} and set(dev) == {5} and set(dev.index) == set(sizes.index)
    texts = [q.question for q in (*questions.test, *questions.dev)]
    assert len(set(texts)) == len(texts)
    assert all(len(set(q.choices)) == 4 for q in (*questions.test, *questions.dev))
    assert test["answer"].value_counts(normalize=True).between(0.2, 0.3).all()
