"""The whole workflow on a tiny organism, as a user runs it: by name, again, and after a change."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from localized_unlearning.config.reading import merge
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.workflow.layout import RULES
from tiny_run import ROOT, TINY, configure, environment, snakemake, workplace


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished tiny run, and beside it a store of all its jobs."""
    folder = workplace(tmp_path_factory.mktemp("tiny"), merge(TINY, {"cache": {"dir": "store"}}))
    done = snakemake(folder, "all")
    configure(folder, TINY)  # the tests below compute
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def planned(folder: Path, *words: str) -> dict[str, int]:
    """Jobs by rule that a dry run plans."""
    done = snakemake(folder, "-n", *words)
    assert done.returncode == 0, done.stderr
    return jobs_in(done.stdout + done.stderr)


def jobs_in(text: str) -> dict[str, int]:
    """Jobs by rule in what a dry run says."""
    if "Nothing to be done" in text:
        return {}
    table = text.split("Job stats:")[1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)\s*$", table, re.M)}


def test_a_checkpoints_jobs_share_its_loaded_model(finished: Path) -> None:
    """Catches jobs that load one by one; two at a time, some find the process busy, and the text needs the base first."""
    records = [json.loads(path.read_text()) for path in finished.glob("results/tiny/**/*.record.json")]
    sharing = [r for r in records if r["stage"] in STAGES and STAGES[r["stage"]].shares]
    taken = [record["stage"] for record in sharing if "model" in record["compute"]]
    assert len(taken) > len(sharing) / 2


def test_targets_by_name_are_made_with_records(finished: Path) -> None:
    table = pd.read_csv(finished / "results/tiny/tables/table_1.csv")
    assert set(table["localization"]) == {"base", "gold", "truth", "attribution_patching", "manual", "random"}
    assert ((table["low"] <= table["mean"]) & (table["mean"] <= table["high"])).all()
    for number in range(1, 17):
        for suffix in ("pdf", "png", "csv"):
            assert (finished / f"figures/tiny/figure_{number}.{suffix}").stat().st_size > 0
    recorded = set()
    for path in finished.rglob("*.record.json"):
        record = json.loads(path.read_text())
        recorded |= {path.parent / output["path"] for output in record["outputs"]}
        assert str(finished) not in path.read_text()
    written = [
        *finished.glob("results/tiny/**/*.parquet"),
        *finished.glob("results/tiny/**/delta.safetensors"),
    ]
    assert written and set(written) <= recorded


def test_the_run_verifies_itself_at_its_end(finished: Path) -> None:
    done = snakemake(finished, "audit")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ artefacts.* ok", done.stdout), done.stdout
    path = finished / "results/tiny/base0/sports/split.parquet"
    kept = path.read_bytes()
    path.write_bytes(kept + b" ")
    try:
        done = snakemake(finished, "audit")
    finally:
        path.write_bytes(kept)
    assert done.returncode != 0 and "split.parquet" in done.stdout


def test_results_copied_into_a_fresh_clone_are_taken_over(finished: Path, tmp_path: Path) -> None:
    """A reviewer's one command: what verifies is not made again, and what does not is not taken over."""
    clone = tmp_path / "clone"
    clone.mkdir()
    workplace(clone)
    for top in ("figures", "results"):
        shutil.copytree(finished / top, clone / top, copy_function=shutil.copyfile)
    os.utime(clone / "results/tiny/base0/known.parquet")  # a copy leaves the times in any order
    assert planned(clone, "table_1") != {}
    command = [sys.executable, "-m", "localized_unlearning.cli.main", "audit", "take-over"]
    done = subprocess.run(command, cwd=clone, env=environment(clone), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert planned(clone, "table_1") == {}
    configure(clone, merge(TINY, {"tasks": {"sports": {"lambda_forget": 0.3}}}))
    assert planned(clone, "table_1")["finetune"] == 4  # and a later change is seen
    configure(clone, TINY)
    table = clone / "results/tiny/tables/table_1.csv"
    table.write_text("better")
    done = subprocess.run(command, cwd=clone, env=environment(clone), capture_output=True, text=True)
    assert done.returncode == 2 and "table_1.csv is modified" in done.stderr


def test_the_report_holds_everything(finished: Path) -> None:
    assert snakemake(finished, "report").returncode == 0
    page = (finished / "results/tiny/report.html").read_text()
    drawn = 'role="img" aria-label="Figure '
    assert page.count(drawn) == 16 and page.count('<article id="table_') == 4 and "<img " not in page
    assert "Not made yet" not in page and "Not judged yet" not in page and "://" not in page
    (finished / "figures/tiny/figure_3.png").rename(finished / "aside.png")
    try:
        assert snakemake(finished, "report").returncode == 0
    finally:
        (finished / "aside.png").rename(finished / "figures/tiny/figure_3.png")
    page = (finished / "results/tiny/report.html").read_text()
    assert page.count(drawn) == 15 and "snakemake figure_3" in page


def test_every_claim_is_judged_or_says_why_not(finished: Path) -> None:
    """The tiny model knows nothing and lacks three localizations: no claim about unlearning can be supported."""
    found = json.loads((finished / "results/tiny/claims.json").read_text())
    assert len(found) >= 12 and len({claim["id"] for claim in found}) == len(found)
    for claim in found:
        assert (
            (claim["margin"] is None) == (claim["verdict"] == "not testable") == (claim["interval"] is None)
        )
        assert claim["reason"] or claim["verdict"] != "not testable"
    assert {claim["verdict"] for claim in found if claim["section"].startswith("3.1.1")} <= {
        "undecided",
        "not testable",
    }
    head = (finished / "results/tiny/claims.md").read_text().splitlines()[0]
    assert head.startswith("# The paper's claims on tiny, ")
    page = (finished / "results/tiny/report.html").read_text()
    told = re.findall(
        r"(\d+) ([a-z ]+)</span>", page.split("claims of the paper, on this run:")[1].split("</p>")[0]
    )
    assert ", ".join(f"{count} {word}" for count, word in told if count != "0") == head.partition(": ")[2]


def test_a_run_in_python(finished: Path, tmp_path: Path) -> None:
    """The three lines of the README, and what they give on slips."""
    from localized_unlearning import load_run

    run = load_run(finished / "results/tiny")
    rows = run.rows("facts", task="sports")
    assert {"base", "manual", "random"} <= set(rows["localization"]) and set(rows["task"]) == {"sports"}
    unlearned = run.model("manual")
    asked = unlearned.ask(["Fact: Derek Jeter plays the sport of"])
    assert asked.shape == (1, 4) and ((asked > 0) & (asked < 1)).all(axis=None)
    attacked = unlearned.attack("relearn", iterations=1)["facts"]
    assert sorted(set(attacked["iteration"])) == [0, 1]
    before = run.rows("relearn", task="sports", objective="erase", localization="manual")
    columns = ["prompt", "subject", "logit_baseball"]
    first = before.query("iteration == 0 and prompt in @attacked.prompt")[columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        attacked.query("iteration == 0")[columns].reset_index(drop=True).astype(first.dtypes),
        first,
        rtol=1e-4,
    )
    with pytest.raises(UserError, match="there is no attack tickle: say relearn or probe"):
        unlearned.attack("tickle")
    with pytest.raises(UserError, match=r"unknown key 'relearning.iteration'.*did you mean 'iterations'"):
        unlearned.attack("relearn", iteration=1)
    with pytest.raises(UserError, match=r"no model .*localization nowhere"):
        run.model("nowhere")
    with pytest.raises(UserError, match="has no facts of localization nowhere"):
        run.rows("facts", localization="nowhere")
    with pytest.raises(UserError, match="name the results of a run"):
        load_run(tmp_path)


def test_a_reviewer_redraws_a_figure_from_an_export(finished: Path, tmp_path: Path) -> None:
    """Unpacked elsewhere, without models: verified, and a figure drawn again with the same numbers."""
    words = (
        "localized-unlearning",
        "audit",
        "export",
        "results/tiny",
        "figures/tiny",
        "--out",
        str(tmp_path / "run.zip"),
    )
    done = subprocess.run(words, cwd=finished, env=environment(finished), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.unpack_archive(tmp_path / "run.zip", tmp_path / "reviewed")
    for weights in (tmp_path / "reviewed").rglob("*.safetensors"):
        weights.unlink()
    from localized_unlearning import load_run

    run = load_run(tmp_path / "reviewed/results/tiny")
    drawn = run.draw("figure_3", tmp_path / "drawn")
    assert drawn.stat().st_size > 0
    pd.testing.assert_frame_equal(pd.read_csv(drawn.with_suffix(".csv")), run.figure("figure_3"))


def test_the_tutorial_runs(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell of the notebook, on the tiny run."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(finished)
    cells = json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    found: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace("results/organism", "results/tiny")
            exec(compile(code, "tutorial", "exec"), found)
    assert len(found["attacked"]) and found["rows"]["right"].dtype == bool


def test_a_second_run_has_nothing_to_do(finished: Path) -> None:
    assert planned(finished, "all") == {}
    assert planned(finished, "figure_9") == {}


def test_a_deleted_figure_is_one_job(finished: Path) -> None:
    for suffix in ("pdf", "png", "csv"):
        (finished / f"figures/tiny/figure_9.{suffix}").unlink()
    assert planned(finished, "figure_9") == {"figure": 1, "figure_9": 1}
    assert snakemake(finished, "figure_9").returncode == 0


def test_ones_own_method_is_its_file_and_what_it_imports(finished: Path) -> None:
    """A loss and a score of one's own give their models; a change of either reruns what rests on it, and that alone."""
    for path in (ROOT / "examples").glob("*.py"):
        shutil.copy(path, finished)
    (finished / "near.py").write_text("x = 1\n")
    with (finished / "gradient_ascent.py").open("a") as stream:
        stream.write("import near\n")
    own = {
        "run": "own",
        "objectives": {"erase": {"loss": "gradient_ascent.py:ascend"}},
        "scores": {"weight_norm": {"method": "weight_norm.py:score"}},
        "localizations": {"weight_norm": {"label": "Norm", "kind": "scores", "scores": "weight_norm"}},
    }
    configure(finished, merge(TINY, own))
    target = "results/own/base0/sports/erase/weight_norm/seed0/delta.safetensors"
    try:
        done = snakemake(finished, target)
        assert done.returncode == 0, done.stderr
        record = json.loads((finished / target).with_name("delta.safetensors.record.json").read_text())
        assert {"gradient_ascent.py", "near.py"} <= {i["path"] for i in record["inputs"]}
        for name, rules in (
            ("gradient_ascent.py", {"finetune"}),
            ("near.py", {"finetune"}),
            ("weight_norm.py", {"score", "select", "finetune"}),
        ):
            assert not planned(finished, target)
            with (finished / name).open("a") as stream:
                stream.write("# another\n")
            assert set(planned(finished, target)) == rules
            assert snakemake(finished, target).returncode == 0
    finally:
        configure(finished, TINY)
        shutil.rmtree(finished / "results" / "own")  # the audit would judge it too


def test_a_mask_made_again_takes_its_sweep_and_figures_along(finished: Path) -> None:
    mask = "results/tiny/base0/sports/mask/manual/seed0/mask.safetensors"
    jobs = planned(finished, "all", "--forcerun", mask)
    assert jobs == {"mask": 1, "sweep": 1, "figure": 4, "claims": 1, "all": 1}


def test_a_changed_lambda_reruns_that_task_only(finished: Path) -> None:
    change = {"tasks": {"sports": {"lambda_forget": 0.3}}}
    (finished / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **change}))
    try:
        jobs = planned(finished, "table_1", "figure_16", "figure_5")
    finally:
        (finished / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    asked = dict.fromkeys(("finetune", "facts", "multiple_choice", "mmlu", "text", "teachers"), 4)
    assert jobs == {**asked, "table": 1, "table_1": 1}


def test_swapped_lambdas_are_seen(finished: Path) -> None:
    """Snakemake alone forgets the names of params and so misses a swap of two values."""
    change = {"finetune": {**TINY["finetune"], "lambda_retain": 0.5, "lambda_sft": 1.0}}
    (finished / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **change}))
    try:
        assert planned(finished, "table_1")["finetune"] == 4
    finally:
        (finished / "tiny.yaml").write_text(yaml.safe_dump(TINY))


def judged(folder: Path, **variables: str) -> tuple[Counter[str], Counter[str]]:
    """How many jobs of each stage the audit calls stale, and how many a dry run plans."""
    around = environment(folder) | variables
    words = [sys.executable, "-m", "localized_unlearning.cli.main", "audit", "verify", "--json"]
    words += ["--config", "config.yaml", "--config", "tiny.yaml"]
    done = subprocess.run(words, cwd=folder, env=around, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)["artefacts"]
    assert {artefact["integrity"] for artefact in found} == {"ok"}
    stale = {(a["record"], a["stage"]) for a in found if a["currency"] == "stale" and a["stage"] in STAGES}
    words = [sys.executable, "-m", "snakemake", "-n", "all", "--cores", "1", "--configfile", "tiny.yaml"]
    done = subprocess.run(words, cwd=folder, env=around, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = {RULES.get(stage, stage) for stage in STAGES}
    again = {rule: count for rule, count in jobs_in(done.stdout).items() if rule in made}
    return Counter(RULES.get(stage, stage) for _, stage in stale), Counter(again)


def test_the_audit_and_snakemake_judge_alike(finished: Path, tmp_path: Path) -> None:
    """An edited lock, a package that deviates from it, a setting: what one calls stale the other makes again, and after
    the change is undone neither does."""
    envs, link = tmp_path / "envs", finished / "envs"
    shutil.copytree(ROOT / "envs", envs)
    lock = envs / "cpu.txt"
    text = lock.read_text()
    other = tmp_path / "site"
    (other / "kiwisolver-0.0.1.dist-info").mkdir(parents=True)
    (other / "kiwisolver-0.0.1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: kiwisolver\nVersion: 0.0.1\n"
    )
    deviating = {"PYTHONPATH": f"{other}:{ROOT / 'src'}"}
    places = [
        path for top in ("results", "figures") for path in (finished / top / "tiny").rglob("*.record.json")
    ]
    stages = [json.loads(path.read_text())["stage"] for path in places]
    jobs = Counter(RULES.get(stage, stage) for stage in stages if stage in STAGES)
    none: Counter[str] = Counter()
    link.unlink()
    link.symlink_to(envs)
    try:
        assert judged(finished) == (none, none)
        lock.write_text(re.sub(r"^torch==\S+", "torch==0.0.1", text, count=1, flags=re.M))
        assert judged(finished) == (jobs, jobs)
        lock.write_text(f"# a remark\n{text}")
        assert judged(finished) == (none, none)
        assert judged(finished, **deviating) == (jobs, jobs)
        configure(finished, merge(TINY, {"statistics": {"bootstrap": 60}}))
        stale, again = judged(finished)
        assert stale == again and none < stale < jobs
    finally:
        configure(finished, TINY)
        link.unlink()
        link.symlink_to(ROOT / "envs")
    assert judged(finished) == (none, none)


def test_touch_launders_nothing(finished: Path) -> None:
    """Snakemake takes a touched file for one made with the new value; the audit names the value it was made with."""
    configure(finished, merge(TINY, {"statistics": {"bootstrap": 60}}))
    try:
        assert snakemake(finished, "figure_15", "--touch").returncode == 0
        assert planned(finished, "figure_15") == {}
        done = snakemake(finished, "audit")
    finally:
        configure(finished, TINY)
    assert done.returncode != 0 and "statistics.bootstrap was 50, now 60" in done.stdout
    assert snakemake(finished, "figure_15", "--touch").returncode == 0


def test_an_unknown_key_stops_before_any_job(finished: Path) -> None:
    (finished / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "finetune": {"lerning_rate": 1}}))
    try:
        done = snakemake(finished, "all")
    finally:
        (finished / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert done.returncode != 0
    sentence = r"unknown key 'finetune.lerning_rate' in \S*tiny.yaml: did you mean 'learning_rate'\?"
    assert re.search(sentence, done.stderr), done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every artefact below ``folder``; records hold times."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if not path.name.endswith(".record.json")
    }


TRAINED = tuple(
    f"base0/{name}"
    for name in ("base_model", "sports/erase/manual", "sports/mask/manual", "athletes/inject/manual")
)
"""Folders of the tiny run whose stages train."""


def test_everything_made_again_has_the_same_bytes(finished: Path) -> None:
    """Same seed, same machine: pretraining, fine-tuning, masks, relearning and what is read off them repeat, cold or warm."""
    results = finished / "results/tiny"
    before = {name: contents(results / name) for name in TRAINED}
    assert all(before.values())
    configure(finished, merge(TINY, {"compute": {"warm_start": False, "deterministic": True}}))
    seed = [f"results/tiny/{name}/seed0" for name in TRAINED[1:]]
    targets = [
        *(f"{seed[0]}/{name}.parquet" for name in ("facts", "probes")),
        f"{seed[1]}/sweep/facts.parquet",
        f"{seed[2]}/relearning/facts.parquet",
    ]
    try:
        done = snakemake(finished, *targets, "--forcerun", "pretrain")
    finally:
        configure(finished, TINY)
    assert done.returncode == 0, done.stderr
    for stage in ("pretrain", "finetune", "mask", "relearn", "facts", "sweep", "probe"):
        assert re.search(rf"^{stage} +[1-9]", done.stderr, re.M), stage
    for name in TRAINED:
        after = contents(results / name)
        assert after.keys() == before[name].keys()
        assert [path for path, value in after.items() if value != before[name][path]] == [], name


def test_a_second_checkout_is_restored_from_the_store(finished: Path, tmp_path: Path) -> None:
    """Catches keys that depend on the folder, jobs that compute, and a restored job or warm server that imports torch."""
    store = str(finished / "store")
    second = workplace(tmp_path, merge(TINY, {"cache": {"dir": store, "read_only": True}}))
    trap = second / "trap" / "torch"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text(f"open({str(second / 'imported')!r}, 'w'); raise ImportError('torch')")
    command = second / "bin" / "localized-unlearning"
    command.write_text(command.read_text().replace("exec", f'PYTHONPATH="{trap.parent}:$PYTHONPATH" exec'))
    done = snakemake(second, "all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (second / "imported").exists()
    assert re.search(r"(\d+) artefacts.*Integrity: \1 ok\. Currency: \1 ok", done.stdout), done.stdout
    places = [*second.glob("results/**/*.record.json"), *second.glob("figures/**/*.record.json")]
    places = [
        place for place in places if place.name != "config.yaml.record.json"
    ]  # written, not made by a job
    assert len(places) == len([*finished.glob("store/??/*/record.json")]) > 50
    for place in places:
        record = json.loads(place.read_text())
        assert record["restored"]["record"] and str(tmp_path) not in place.read_text()
        for output in record["outputs"]:
            for file in output["files"]:
                path = (place.parent / output["path"] / file["name"]).relative_to(second)
                assert (second / path).read_bytes() == (finished / path).read_bytes()


def test_other_threads_and_batches_are_equivalent(finished: Path) -> None:
    """Not the same bytes, but the same numbers to rounding, as ``audit diff`` tells."""
    models = ("base0/sports/erase/manual/seed0", "base0/athletes/inject/manual/seed0")
    kept = {name: finished / "results" / f"kept-{index}" for index, name in enumerate(models)}
    for name, copy in kept.items():
        shutil.copytree(finished / "results/tiny" / name, copy)
    configure(finished, merge(TINY, {"compute": {"threads": 2, "batch_tokens": 256}}))
    targets = [
        f"results/tiny/{name}/{part}.parquet" for name in models for part in ("facts", "relearning/facts")
    ]
    try:
        done = snakemake(finished, *targets, "--forcerun", "finetune", "facts", "relearn")
    finally:
        configure(finished, TINY)
    assert done.returncode == 0, done.stderr
    for name, copy in kept.items():
        command = [
            "localized-unlearning", "audit", "diff", str(copy.relative_to(finished)), f"results/tiny/{name}",
            "--tolerance", "1e-4",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=finished, env=environment(finished), capture_output=True, text=True
        )
        assert done.stdout, done.stderr
        numbers = [line for line in done.stdout.splitlines() if line.strip().startswith("numbers")]
        assert all("equal within 0.0001" in line for line in numbers), done.stdout
