"""A researcher's own score, and files that cannot be used: what they compute, and what is said when they cannot."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localized_unlearning import extensions
from localized_unlearning.errors import UserError
from localized_unlearning.models import components
from localized_unlearning.provenance import code

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_example_score_is_the_norm(tiny: Callable[[str], Any]) -> None:
    """Catches scores of other components than those asked for, heads among them."""
    model = tiny("gemma")
    score = extensions.load("examples/weight_norm.py:score", EXAMPLES / "weight_norm.py")
    up, head = components.Component(1, "up"), components.Component(0, "q", 1)
    weight = model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    rows = weight.view(model.config.num_attention_heads, -1, weight.shape[1])
    found = score(model, None, [up, head], 64)
    whole = model.get_parameter("model.layers.1.mlp.up_proj.weight")
    assert found == pytest.approx([float(whole.norm()), float(rows[1].norm())])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def other(): ...", "no function 'mine'"),
        ("mine = 3", "no function 'mine'"),
        ("import nothing_like_this", "cannot be imported .*nothing_like_this"),
        ("def (", "cannot be imported .SyntaxError"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "method.py"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        extensions.load("method.py:mine", path)


@pytest.fixture
def with_helpers(tmp_path: Path) -> Path:
    """A method in a folder of its own with what it imports: a file, a package, and by a function's own import."""
    folder = tmp_path / "mine"
    (folder / "parts").mkdir(parents=True)
    (folder / "method.py").write_text(
        "import near_by_1\n\n\ndef mine():\n    from parts.inner import x\n    return x\n"
    )
    (folder / "near_by_1.py").write_text("import math\nimport torch\n")
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "inner.py").write_text("from . import deeper\nx = deeper.x\n")
    (folder / "parts" / "deeper.py").write_text("x = 5\n")
    (folder / "bystander.py").write_text("")
    return folder / "method.py"


def test_what_a_method_imports_from_its_folder_is_known_before_it_runs(with_helpers: Path) -> None:
    """Catches a sibling that no record names, and one that is none."""
    found = list(code.imported_by(with_helpers))
    names = {str(path.relative_to(with_helpers.parent)) for path in found}
    assert names == {"near_by_1.py", "parts/__init__.py", "parts/inner.py", "parts/deeper.py"}
    before = frozenset(sys.modules)
    assert extensions.load("method.py:mine", with_helpers)() == 5
    assert extensions.strangers(before, [with_helpers, *found]) == []
    assert {path.name for path in extensions.strangers(before, [with_helpers])} == {
        "near_by_1.py", "__init__.py", "inner.py", "deeper.py",
    }  # fmt: skip


def test_modules_of_the_package_that_the_stage_does_not_import_are_inputs_too(tmp_path: Path) -> None:
    path = tmp_path / "method.py"
    path.write_text(
        "from localized_unlearning.analysis import statistics\nfrom localized_unlearning import memory\n"
    )
    known = code.closure("localized_unlearning.memory")
    found = {file.name for file in code.imported_by(path, known)}
    assert "statistics.py" in found and "memory.py" not in found


@pytest.mark.parametrize(
    ("module", "folder"),
    [("unlearning.finetune", "OBJECTIVES"), ("localization.scoring", "SCORES"), ("localization.weight_selecting", "WEIGHT_SCORES")],
)  # fmt: skip
def test_our_methods_import_what_their_stage_imports(module: str, folder: str) -> None:
    """Catches a module that only a method of ours imports: an edit would rerun nothing but by way of an input."""
    known = code.closure(f"localized_unlearning.{module}")
    for path in getattr(extensions, folder).glob("[!_]*.py"):
        assert not list(code.imported_by(path, known)), path.name


def test_a_method_that_imports_from_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a path of a person's own, which no record would hold; what is installed may be imported."""
    (tmp_path / "far").mkdir()
    (tmp_path / "far/far_away_1.py").write_text("")
    path = tmp_path / "method.py"
    path.write_text("import far_away_1, json, pytest\n\n\ndef mine(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path / "far"))
    before = frozenset(sys.modules) - {"pytest", "json"}
    extensions.load("method.py:mine", path)
    with pytest.raises(
        UserError, match=r"imported \S+far_away_1.py, which no record would name: put it beside method.py"
    ):
        extensions.refuse_strangers(before, extensions.files_of({"loss": path, "imports": []}))
    extensions.refuse_strangers(before, extensions.files_of({"loss": None}))
