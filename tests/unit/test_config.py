"""The config: errors that help, overlays, and a stage that reads its own settings only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from localized_unlearning.config import localization, reading
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import restrict, settings_of
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.localization.settings import for_masks
from localized_unlearning.unlearning import settings as settings_module
from localized_unlearning.workflow.snakefile import resolved_text

ROOT = Path(__file__).resolve().parents[2]
WILDCARDS = {
    "task": "sports", "objective": "erase", "localization": "manual", "seed": "0",
    "scores": "causal_tracing", "source": "mmlu.source", "table": "x", "figure": "x", "attack": "few_shot",
    "place": "mlp_0",
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def write_text(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


@pytest.mark.parametrize(
    ("overlay", "key", "near"),
    [
        ("finetune: {learning_rat: 1}", "finetune.learning_rat", "learning_rate"),
        ("fintune: {steps: 1}", "fintune", "finetune"),
        ("tasks: {sports: {forget: {answers: football}}}", "tasks.sports.forget.answers", "answer"),
        ("localizations: {manual: {layer: [1]}}", "localizations.manual.layer", "layers"),
    ],
)
def test_an_unknown_key_is_named_with_its_file_and_the_nearest_key(
    overlay: str, key: str, near: str, write: Callable[[str, str], Path]
) -> None:
    """Catches a typo that is ignored, or blamed on the wrong file, at any depth."""
    base = write("base.yaml", "run: a\nfinetune: {steps: 5}\n")
    if overlay.startswith("tasks"):
        task = "{forget: {sport: football}, relearn: [], lambda_forget: 1}"
        base = write("base.yaml", f"tasks: {{sports: {task}}}")
    if overlay.startswith("localizations"):
        base = write("base.yaml", "localizations: {manual: {label: M, kind: manual, layers: [1]}}")
    faulty, last = write("faulty.yaml", overlay), write("last.yaml", "seeds: [1]\n")
    with pytest.raises(UserError) as error:
        reading.load([base, faulty, last])
    message = str(error.value)
    assert f"unknown key '{key}' in {faulty}" in message and f"did you mean '{near}'?" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("finetune: {steps: 0}", ("finetune.steps", "got 0")),
        ("model: {dtype: float16}", ("model.dtype", "float32", "got 'float16'")),
        ("localizations: {x: {label: X, kind: scores, scores: eap}}", ("localizations.x.scores", "'eap'")),
        ("localizations: {x: {label: X, kind: manual}}", ("localizations.x", "layers")),
        ("localizations: {x: {label: X, kind: random, budget: parameters}}", ("localizations.x", "manual")),
        ("model: {kind: gguf}", ("'gguf' must name its source",)),
        ("tasks: {t: {forget: {}, relearn: [], lambda_forget: 1}}", ("tasks.t.forget", "exactly one")),
        ("athletes: {own_prompts: {}}", ("athletes.own_prompts", "model.kind")),
        (
            "localizations: {m: {label: M, kind: manual, layers: [1], layers_of: {x: [2]}}}",
            ("localizations.m.layers_of", "x"),
        ),
        (
            "studies: {s: {tasks: [sports], objectives: [erase], localizations: [x]}}",
            ("studies.s.localizations", "x"),
        ),
        ("[1, 2]", ("must hold a mapping",)),
        ("a: [", ("is not valid YAML",)),
    ],
)
def test_a_wrong_value_or_reference_is_refused(
    text: str, words: tuple[str, ...], write: Callable[[str, str], Path]
) -> None:
    """Catches a dangling reference that would fail hours later, and a message without the key."""
    with pytest.raises(UserError) as error:
        reading.load([write("config.yaml", text)])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_overlays_merge_and_null_removes(write: Callable[[str, str], Path]) -> None:
    """Catches an overlay that replaces a whole block, lists that grow, and an entry that stays."""
    base = write(
        "a.yaml",
        "finetune: {steps: 5, batch_size: 8}\nseeds: [1, 2, 3]\n"
        "scores: {ap: {method: attribution_patching}, ct: {method: causal_tracing}}\n"
        "localizations: {x: {label: X, kind: scores, scores: ap}}\n",
    )
    over = write("b.yaml", "finetune: {steps: 7}\nseeds: [9]\nscores: {ct: null}\n")
    found = reading.load([base, over], {"finetune": {"learning_rate": 0.5}})
    assert (found.finetune.steps, found.finetune.batch_size, found.finetune.learning_rate) == (7, 8, 0.5)
    assert found.seeds == (9,) and list(found.scores) == ["ap"]


def test_an_objective_and_its_exceptions_override_fine_tuning() -> None:
    found = Config.model_validate(
        {
            "finetune": {"steps": 50, "learning_rate": 1e-5},
            "objectives": {
                "erase": {},
                "inject": {"finetune": {"steps": 75}, "exceptions": {"all_mlps": {"learning_rate": 2e-5}}},
            },
        }
    )
    objectives = {name: value for name, value in found.objectives.items() if value is not None}
    settings = {
        (objective, name): settings_module.finetune_settings(found.finetune, objectives[objective], name)
        for objective in ("erase", "inject")
        for name in ("manual", "all_mlps")
    }
    assert {key: (s.steps, s.learning_rate) for key, s in settings.items()} == {
        ("erase", "manual"): (50, 1e-5),
        ("erase", "all_mlps"): (50, 1e-5),
        ("inject", "manual"): (75, 1e-5),
        ("inject", "all_mlps"): (75, 2e-5),
    }
    assert all(s.batch_size == found.finetune.batch_size for s in settings.values())


def test_a_localization_of_masks_differs_where_it_says_so() -> None:
    other = {
        "label": "Manual",
        "kind": "manual",
        "layers": [2, 3],
        "mask": {"layers": [1], "granularity": "head"},
    }
    found = localization.Localization.model_validate(other)
    masks = for_masks(found)
    assert (masks.layers, masks.granularity, masks.kinds, masks.label) == (
        (1,),
        "head",
        None,
        "Manual",
    )
    assert (found.layers, found.granularity) == ((2, 3), None)


def test_a_preset_extends_another(write: Callable[[str, str], Path]) -> None:
    """Catches a base laid over its preset, and one that is lost or looked for in the wrong folder."""
    write("base.yaml", "run: base\nfinetune: {steps: 5, batch_size: 8}\n")
    preset = write("preset.yaml", "extends: base.yaml\nrun: preset\nfinetune: {steps: 7}\n")
    found = reading.load([write("first.yaml", "seeds: [3]\nfinetune: {steps: 1}\n"), preset])
    assert (found.run, found.finetune.steps, found.finetune.batch_size) == ("preset", 7, 8)
    assert found.seeds == (3,) and found.extends is None
    with pytest.raises(UserError, match=r"loop\.yaml extends itself"):
        reading.load([write("loop.yaml", "extends: loop.yaml\n")])
    with pytest.raises(UserError, match=r"absent\.yaml does not exist"):
        reading.load([write("lost.yaml", "extends: absent.yaml\n")])


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    parts = [leaves(child, f"{prefix}.{name}" if prefix else name) for name, child in node.items()]
    return {key: value for part in parts for key, value in part.items()}


def test_a_stage_reads_its_own_settings_and_no_other() -> None:
    """Catches a setting that moves results but is missing from the record."""
    whole, stage = Config(), STAGES["finetune"]
    view = restrict(whole, stage, WILDCARDS)
    task = view.tasks["sports"]
    assert task is not None
    assert view.finetune.steps == 50 and task.lambda_forget == 0.2 and view.compute.threads == 1
    readers: list[Callable[[], Any]] = [
        lambda: view.evaluation,
        lambda: view.tasks["athletes"],
        lambda: view.tasks["sports"].forget,  # type: ignore[union-attr]
        lambda: view.model.name,
        lambda: view.text.windows,
        lambda: view.objectives["inject"],
    ]
    for read in readers:
        with pytest.raises(UserError, match=r"stage finetune read the setting '.*' without declaring it"):
            read()


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"tasks": {"sports": {"lambda_forget": 0.9}}}, {"finetune"}),
        ({"finetune": {"lambda_retain": 0.5}}, {"finetune", "question"}),
        ({"scores": {"causal_tracing": {"noise": 9}}}, {"score", "select_weights"}),
        ({"split": {"seed": 7}}, {"split"}),
        ({"tasks": {"athletes": {"lambda_forget": 0.9}}}, set()),
        ({"compute": {"threads": 2}}, set()),
        ({"attacks": {"few_shot": {"facts": 3}}}, {"attack"}),
        ({"attacks": {"quantization": {"bits": [8]}}}, set()),
        (
            {"organism": {"facts_in": {"layers": [1]}}},  # a moved place leaves pretraining as it is
            {"inject", "gold", "place", "select", "select_for_mask", "localizers", "question", "figure"},
        ),
    ],
)
def test_a_change_touches_exactly_the_stages_that_compute_with_it(
    change: dict[str, Any], touched: set[str]
) -> None:
    """Catches a λ that makes localizations stale or redraws figures, another task's λ that does, and a change no stage sees."""
    before = Config()
    after = Config.model_validate(reading.merge(before.model_dump(mode="json"), change))
    assert leaves(before.model_dump(mode="json")) != leaves(after.model_dump(mode="json"))
    stages = [s for s in STAGES.values() if s.name != "study"]  # the default run has none
    found = {s.name for s in stages if settings_of(before, s, WILDCARDS) != settings_of(after, s, WILDCARDS)}
    assert found == touched


PRESETS = sorted(path for path in (ROOT / "workflow/presets").glob("*.yaml"))


def nullable(section: BaseModel, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys that may be null, wherever they stand in a config."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if type(None) in get_args(field.annotation):
            yield (*prefix, name)
        if isinstance(value, BaseModel):
            yield from nullable(value, (*prefix, name))
        elif isinstance(value, dict):
            for key, inner in value.items():
                if isinstance(inner, BaseModel):
                    yield from nullable(inner, (*prefix, name, key))


def test_series_may_ask_all_by_null() -> None:
    """The keys of which a lost null once cost paper-scale panels their athletes are among those tested below."""
    found = set(nullable(Config()))
    assert {("series", "retain"), ("series", "questions"), ("finetune", "clip_norm")} <= found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_jobs_load_what_was_resolved(data: st.DataObject, tmp_path: Path) -> None:
    """For every preset and any nulls in it: the resolved file that jobs read says the same, null for null."""
    preset = data.draw(st.sampled_from([None, *PRESETS]))
    layers = [ROOT / "config.yaml", *([preset] if preset else [])]
    keys = sorted(nullable(reading.load(layers)))
    chosen = data.draw(st.lists(st.sampled_from(keys), unique=True, max_size=4))
    overrides: dict[str, Any] = {}
    for key in chosen:
        node = overrides
        for part in key[:-1]:
            node = node.setdefault(part, {})
        node[key[-1]] = None
    try:
        resolved = reading.load(layers, overrides)
    except UserError:
        assume(False)  # this null is refused, in a sentence
    path = tmp_path / "config.yaml"
    path.write_text(resolved_text(resolved), encoding="utf-8")
    assert reading.load([path]) == resolved
