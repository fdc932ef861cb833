"""The layout and the graph of a run: one place per job, one job per place, and every edge in the stage table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localized_unlearning.config import reading
from localized_unlearning.config.run import Config
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.paper.artefacts import FIGURES, TABLES
from localized_unlearning.provenance import records
from localized_unlearning.workflow.graph import INPUTS, Graph
from localized_unlearning.workflow.layout import PLACES, RULES, JobId, Layout
from localized_unlearning.workflow.products import Product

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted((ROOT / "workflow/presets").glob("*.yaml"))
NAME = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,12}", fullmatch=True)
VALUES = {
    "base_seed": st.integers(0, 10**6).map(str),
    "seed": st.integers(0, 10**6).map(str),
    "table": st.sampled_from(sorted(TABLES)),
    "figure": st.sampled_from(sorted(FIGURES)),
    "source": st.sampled_from(["athletes.source", "text.train", "text.held_out", "mmlu.source", "gguf"]),
    "task": NAME.filter(lambda name: name != "interpretability"),
    "objective": NAME.filter(lambda name: name not in ("mask", "scores", "selections")),
    "localization": NAME,
    "scores": NAME,
    "study": NAME,
    "attack": NAME,
    "place": NAME,
}


@pytest.fixture(params=[None, *PRESETS], ids=lambda path: path.stem if path else "default")
def graph(request: pytest.FixtureRequest) -> Graph:
    files = [ROOT / "config.yaml", *([request.param] if request.param else [])]
    return Graph(reading.resolve(reading.overlays(files)))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a busy machine draws slowly
@given(data=st.data(), stage=st.sampled_from(sorted(STAGES)))
def test_path_to_job_and_back(data: st.DataObject, stage: str) -> None:
    named = {name: data.draw(VALUES[name], name) for name in STAGES[stage].wildcards if name in VALUES}
    layout, job = Layout("run"), JobId.of(stage, **named)
    for path in layout.outputs(job).values():
        found = layout.job(path)
        assert found is not None and found.wildcards == job.wildcards
        assert found.stage == ("inject" if stage in ("convert", "download") else stage)  # one place


def test_the_layout_and_the_stage_table_name_the_same_outputs() -> None:
    assert PLACES.keys() == STAGES.keys() == INPUTS.keys()
    assert {name: set(places) for name, places in PLACES.items()} == {
        name: set(stage.outputs) for name, stage in STAGES.items()
    }


def test_rules_have_the_names_that_the_audit_types() -> None:
    """Catches a line to mend that forces a target of a stage's name instead of the stage's rule."""
    text = "\n".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    parts = re.split(r"^ *rule (\w+):$", text, flags=re.M)[1:]
    found = {
        stage[1]: rule
        for rule, body in zip(parts[::2], parts[1::2], strict=True)
        if (stage := re.search(r'directives\.params\("(\w+)"\)', body))
    }
    assert found == {stage: RULES.get(stage, stage) for stage in STAGES}


def test_every_job_owns_its_files_alone(graph: Graph) -> None:
    """No two jobs of a plan share an output, a record or a log, and each file is known to be its job's."""
    seen: dict[str, JobId] = {}
    for job in graph.jobs:
        log = graph.layout.log(job.stage, ".log").format(**job.named)
        record = str(records.path_for(Path(next(iter(graph.layout.outputs(job).values())))))
        for path in (*graph.layout.outputs(job).values(), log, record):
            assert seen.setdefault(path, job) == job
        assert all(graph.owner(path) == job for path in graph.layout.outputs(job).values())
        assert graph.has(job)


def test_required_inputs_are_there_and_no_other(graph: Graph) -> None:
    for job in graph.jobs:
        read = graph.inputs(job)
        for wanted in STAGES[job.stage].inputs:
            least = 0 if wanted.many or wanted.optional else 1
            assert len(read[wanted.name]) >= least and (wanted.many or len(read[wanted.name]) <= 1), (
                job,
                wanted,
            )


SEEDS = [
    {"seeds": [1]},
    {"mask_seeds": [7]},
    {"base_seeds": [3, 4]},
    {"null_distribution": {"draws": 2, "seeds": [9]}},
    {"tasks": {"sports": {"seeds": [3]}}},
]


@pytest.mark.parametrize("change", SEEDS, ids=str)
def test_no_job_of_a_run_is_an_orphan(change: dict[str, object]) -> None:
    """Which seeds a run has is asked of the graph alone, so that a fresh run verifies clean."""
    graph = Graph(reading.load([ROOT / "config.yaml"], change))
    assert len(graph.jobs) > 150 and all(graph.has(job) for job in graph.jobs)
    usual = Graph(Config()).jobs.keys() - graph.jobs.keys()
    assert all(not graph.has(job) for job in usual)


def test_every_table_and_figure_of_the_default_run_covers_its_base_models() -> None:
    """Three pretrainings at least, and rows of each behind every number; a head is one base model's."""

    def behind(config: Config) -> dict[str, set[str]]:
        graph = Graph(config)
        of = {**dict.fromkeys(TABLES, "table"), **dict.fromkeys(FIGURES, "figure")}
        found = {}
        for name, stage in of.items():
            given = [g for values in graph.inputs(JobId.of(stage, **{stage: name})).values() for g in values]
            found[name] = {g.job.named["base_seed"] for g in given if isinstance(g, Product)}
        claims = graph.inputs(JobId.of("claims"))
        assert {g.job.named["base_seed"] for g in claims["selections"] if isinstance(g, Product)} == {
            "0",
            "1",
            "3",
        }
        return found

    every = {"0", "1", "3"}
    found = behind(reading.load([ROOT / "config.yaml"]))
    assert found.pop("figure_15") == {"0"}
    assert found == dict.fromkeys(found, every)
    fewer = behind(reading.load([ROOT / "config.yaml"], {"figure_base_seeds": [1]}))
    assert {name for name, bases in fewer.items() if bases == {"1"}} == {
        name for name, figure in FIGURES.items() if figure.kind in ("relearning", "edits", "price")
    }


def test_stages_read_and_write_what_the_table_says() -> None:
    """``job.inputs["x"]`` and ``job.outputs["x"]`` in a stage's module are in the table."""
    for module in sorted({stage.module for stage in STAGES.values()}):
        path = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
        stages = [stage for stage in STAGES.values() if stage.module == module]
        inputs = {i.name for stage in stages for i in stage.inputs}
        outputs = {name for stage in stages for name in stage.outputs}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)):
                continue
            where = ast.unparse(node.value)
            if where in ("job.inputs", "job.outputs"):
                assert node.slice.value in (inputs if where == "job.inputs" else outputs), (
                    module,
                    ast.unparse(node),
                )


def test_a_job_of_one_name_reads_that_names_settings_alone() -> None:
    """Catches a section named whole by a stage that has one job per entry: a new entry would rerun all the others."""
    sections = {"task": "tasks", "objective": "objectives", "localization": "localizations", "place": "question.places",
                "scores": "scores", "attack": "attacks"}  # fmt: skip
    for stage in STAGES.values():
        for wildcard, section in sections.items():
            if wildcard in stage.wildcards:
                whole = {section, section.rsplit(".", 1)[0] if "." in section else section, f"{section}.*"}
                assert not whole & set(stage.settings), (stage.name, wildcard)
