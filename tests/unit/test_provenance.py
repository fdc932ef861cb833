"""Digests, code closures, environment and records."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localized_unlearning import files
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.provenance import code, environment, hashing, records

# --- hashing


def test_a_long_file_is_digested_in_parts_that_add_up(tmp_path: Path) -> None:
    """Catches a buffer's rest that is hashed along, and a progress bar that misses or doubles bytes."""
    import hashlib

    data = bytes(range(256)) * (hashing.BUFFER // 256) + b"rest"
    (tmp_path / "f").write_bytes(data)
    parts: list[int] = []
    found = hashing.digest(tmp_path / "f", parts.append)
    assert found == (len(data), hashlib.sha256(data).hexdigest()) and sum(parts) == len(data)


def test_digest_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert hashing.digest(tmp_path / "a") == (
        3,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    )


def test_a_folder_is_hashed_by_relative_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_text("b")
    (tmp_path / "a").write_text("a")
    (tmp_path / ".snakemake_timestamp").touch()
    tree = hashing.digest_tree(tmp_path)
    assert list(tree) == ["a", "sub/b"]
    whole = hashing.combined(tree)
    (tmp_path / "sub" / "b").rename(tmp_path / "b")
    assert hashing.combined(hashing.digest_tree(tmp_path)) != whole  # a name counts


# --- code


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package ``toy`` of a few modules."""
    folder = tmp_path / "toy"
    (folder / "sub").mkdir(parents=True)
    (folder / "__init__.py").write_text('"""Toy."""\n__version__ = "1"\n')
    (folder / "sub" / "__init__.py").write_text("")
    (folder / "sub" / "deep.py").write_text("from .. import leaf\n")
    (folder / "leaf.py").write_text("X = 1\n")
    (folder / "lazy.py").write_text("Y = 2\n")
    (folder / "named.py").write_text("Z = 3\n")
    (folder / "unused.py").write_text("W = 4\n")
    (folder / "main.py").write_text(
        '"""Doc."""\n'
        "import os\n"
        "from toy.sub import deep\n"
        "REGISTRY = {'n': 'toy.named'}\n"
        "def run(job):\n"
        '    """Doc."""\n'
        "    from toy import lazy\n"
        "    return lazy.Y + deep.leaf.X  # sum\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        del sys.modules[name]


def test_closure_follows_every_kind_of_import(package: Path) -> None:
    assert set(code.closure("toy.main")) == {
        "toy", "toy.main", "toy.sub", "toy.sub.deep", "toy.leaf", "toy.lazy", "toy.named",
    }  # fmt: skip


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("main.py", "# sum", "# the sum"),
        ("main.py", "    return", "\n\n    return"),
        ("main.py", '"""Doc."""', '"""Another."""'),
        ("main.py", '    """Doc."""\n', ""),
        ("main.py", "lazy.Y + deep.leaf.X", "(lazy.Y +\n      deep.leaf.X)"),
        ("main.py", "'n'", '"n"'),
        ("__init__.py", '"1"', '"2"'),
        ("unused.py", "4", "5"),
    ],
)
def test_what_does_not_count_as_a_change(package: Path, file: str, old: str, new: str) -> None:
    before = code.closure("toy.main")
    edit(package / file, old, new)
    assert code.closure("toy.main") == before


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("main.py", "lazy.Y + deep", "lazy.Y - deep", "toy.main"),
        ("main.py", "lazy.Y + deep.leaf.X", "deep.leaf.X + lazy.Y", "toy.main"),
        ("leaf.py", "1", "1.0", "toy.leaf"),
        ("leaf.py", "1", "'1'", "toy.leaf"),
        ("leaf.py", "1", "None", "toy.leaf"),
        ("lazy.py", "2", "20", "toy.lazy"),
        ("named.py", "3", "30", "toy.named"),
    ],
)
def test_what_counts_as_a_change(package: Path, file: str, old: str, new: str, changed: str) -> None:
    before = code.closure("toy.main")
    edit(package / file, old, new)
    after = code.closure("toy.main")
    assert {name for name in before if before[name] != after[name]} == {changed}
    assert code.code_digest(before) != code.code_digest(after)


def test_the_digest_is_not_pythons_own_dump(package: Path) -> None:
    """Pinned, so that another Python version or an edit of code.py cannot move it unnoticed."""
    assert code.closure("toy.main")["toy.main"] == (
        "239a16ac10bfcc6c7235dc1ad9535666f74449b426fdebf6183d99c572f470a8"
    )


def test_bookkeeping_modules_do_not_count() -> None:
    modules = code.closure("localized_unlearning.localization.selecting")
    assert (
        "localized_unlearning.data.splits" not in modules
        and "localized_unlearning.models.components" in modules
    )
    assert not [m for m in modules if m.startswith(tuple(f"{name}." for name in code.NOT_CODE))]


def test_every_file_is_parsed_once_for_all_stages() -> None:
    """Catches a cost that grows with stages times files: `snakemake` asks for every stage's closure before it plans."""
    code._parse_text.cache_clear()
    files = {name for stage in STAGES.values() for name in code.closure(stage.module)}
    assert code._parse_text.cache_info().misses <= len(files)


def test_an_unknown_module_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such"):
        code.closure("localized_unlearning.no_such")


# --- environment


def test_a_locks_comments_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    lock = tmp_path / "envs" / "cpu.txt"
    assert environment.lock_digest(tmp_path) is None
    lock.write_text("torch==2.0+cpu\nnumpy==1.0  # why\n\n")
    before = environment.lock_digest(tmp_path)
    lock.write_text("# a comment\ntorch==2.0+cpu\nnumpy==1.0\n")
    assert environment.lock_digest(tmp_path) == before
    lock.write_text("torch==2.0+cpu\nnumpy==1.1\n")
    assert environment.lock_digest(tmp_path) != before


def test_deviations_from_the_lock() -> None:
    lock = ["torch==2.0", "NumPy==1.0 \\", "--hash=sha256:00", "scikit_learn==1.2 ; python_version > '3'"]
    installed = {"python": "3.11", "torch": "2.0+cpu", "numpy": "1.0", "scikit-learn": "1.2"}
    assert environment.deviations(installed, lock) == {}
    assert environment.deviations({**installed, "numpy": "1.1"}, lock) == {"numpy": "1.1"}
    assert environment.deviations({**installed, "scipy": "9"}, lock) == {"scipy": "9"}
    assert environment.deviations(installed, None) == {k: v for k, v in installed.items() if k != "python"}


def test_no_machine_or_user_name_is_kept() -> None:
    import getpass
    import platform

    text = files.canonical_json(environment.host())
    assert platform.node() not in text and str(Path.home()) not in text
    assert "user" not in environment.host() and getpass.getuser() not in environment.host().values()


# --- records

names = st.text(min_size=1, max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)
settings = st.dictionaries(names, values, max_size=4)

BASE: dict[str, Any] = {
    "stage": "finetune",
    "function": "m:run",
    "settings": {"lambda_forget": 0.2, "lambda_retain": 1.0, "none": None},
    "wildcards": {"task": "sports"},
    "code_digest": "c",
    "lock": "l",
    "deviations": {},
    "inputs": [("a", "1"), ("b", "2"), ("b", "3")],
}


@given(settings, st.permutations(range(4)))
def test_the_key_does_not_depend_on_the_order_of_settings(found: dict[str, object], order: list[int]) -> None:
    entries = list(found.items())
    shuffled = dict([entries[i] for i in order if i < len(entries)])
    assert records.key_of(**{**BASE, "settings": found}) == records.key_of(**{**BASE, "settings": shuffled})


@given(settings, settings)
def test_other_settings_give_another_key(one: dict[str, object], other: dict[str, object]) -> None:
    same_key = records.key_of(**{**BASE, "settings": one}) == records.key_of(**{**BASE, "settings": other})
    assert same_key == (files.canonical_json(one) == files.canonical_json(other))


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "evaluate"},
        {"function": "m:other"},
        {"settings": {"lambda_forget": 1.0, "lambda_retain": 0.2, "none": None}},  # swapped
        {"settings": {"lambda_forget": 1.0, "lambda_retain": 1.0, "none": None}},  # a value another has
        {"settings": {"lambda_forget": 0.2, "lambda_retain": 1.0}},
        {"wildcards": {"task": "athletes"}},
        {"code_digest": "d"},
        {"lock": None},
        {"deviations": {"torch": "1"}},
        {"inputs": [("a", "2"), ("b", "1"), ("b", "3")]},  # swapped
        {"inputs": [("a", "1"), ("b", "3"), ("b", "2")]},  # another order
        {"inputs": [("a", "1"), ("b", "2")]},
    ],
)
def test_each_ingredient_changes_the_key(change: dict[str, Any]) -> None:
    assert records.key_of(**{**BASE, **change}) != records.key_of(**BASE)


def a_record(**changes: object) -> records.Record:
    file = records.File(name="", size=1, sha256="5")
    plain = {
        "stage": "toy", "key": "k", "wildcards": {}, "settings": {"a.b": None, "c": 0.1}, "code": {},
        "code_digest": "c", "versions": {}, "inputs": (), "facts": {"x": [1, None]}, "commit": {}, "host": {},
        "outputs": (records.Output(name="o", path="o.csv", sha256="5", files=(file,)),),
        "started": "1", "ended": "2", "seconds": 1.0, "attempt": 1,
    }  # fmt: skip
    return records.Record.model_validate(plain | changes)


def test_a_record_survives_the_disk(tmp_path: Path) -> None:
    written = records.write(a_record(), tmp_path / "o.record.json")
    found = records.read(tmp_path / "o.record.json")
    assert found == written and found.id == records.record_id(found)
    assert found.settings == {"a.b": None, "c": 0.1} and found.facts == {"x": [1, None]}
    assert "lock" not in (tmp_path / "o.record.json").read_text()  # unknown is absent
    assert [p.name for p in tmp_path.iterdir()] == ["o.record.json"]


def test_the_id_sees_every_field_and_the_key_does_not_see_time() -> None:
    one, other = a_record(), a_record(started="0")
    assert records.record_id(one) != records.record_id(other)
    assert records.key_in(one) == records.key_in(other)


def test_find_looks_at_outputs_and_inside_output_folders(tmp_path: Path) -> None:
    (tmp_path / "model" / "sub").mkdir(parents=True)
    inner = records.File(name="sub/w", size=1, sha256="7")
    outputs = (records.Output(name="m", path="model", sha256="6", files=(inner,)), *a_record().outputs)
    place = tmp_path / "model.record.json"
    record = records.write(a_record(outputs=outputs), place)
    assert records.find(tmp_path / "model") == place
    assert records.find(tmp_path / "model" / "sub" / "w") == place
    assert records.find(tmp_path / "o.csv") == place
    assert records.find(tmp_path / "other.csv") is None
    assert records.digest_in(record, tmp_path, tmp_path / "model" / "sub" / "w") == "7"
    assert records.digest_in(record, tmp_path, tmp_path / "model") == "6"
    assert records.digest_in(record, tmp_path, tmp_path / "model" / "new") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 2}', '{"schema_version": 1}'])
def test_a_damaged_record_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.record.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.record\.json"):
        records.read(tmp_path / "a.record.json")
