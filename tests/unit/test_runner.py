"""The runner: nothing half-written after a fault or a kill, one writer at a time, keys that see changes."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Input, Stage
from localized_unlearning.provenance import code, digests, environment, locks, records
from localized_unlearning.workflow import runner

STAGE_MODULE = '''"""A stage."""
import time
from pathlib import Path


def run(job):
    from toystages.helper import FACTOR  # an import inside a function

    name = job.outputs["out"]
    name.write_text("half")
    job.outputs["folder"].mkdir()
    (job.outputs["folder"] / "part").write_text("part")
    mode = job.inputs["data"].read_text()
    if mode == "fail":
        raise ValueError("a fault of the stage")
    if mode == "wait":
        Path("waiting").touch()
        time.sleep(60)
    if mode == "forget":
        name.unlink()
        return
    if mode == "digests":
        name.write_text(job.digests["data"][""])
        job.written["out"] = job.digests["data"][""]
        return
    if mode == "memory":
        raise MemoryError
    if mode == "hold":
        b"x" * 300_000_000
    name.write_text(f"{mode} {job.config.finetune.steps * FACTOR}")
'''
DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from localized_unlearning.workflow import runner
from localized_unlearning.config.run import Config
from localized_unlearning.jobs.job import Input, Stage
stage = Stage("toy", "toystages.stage", ("finetune.steps",), (Input("data"),), ("out", "folder"))
root = Path.cwd()
outputs = {"out": root / "results/r/out.txt", "folder": root / "results/r/tree"}
runner.execute(stage, Config(), {}, {"data": root / "data.txt"}, outputs, root)
"""
TOY = Stage("toy", "toystages.stage", ("finetune.steps",), (Input("data"),), ("out", "folder"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a package of one stage and one helper, importable, and the stage's input."""
    package = tmp_path / "toystages"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "stage.py").write_text(STAGE_MODULE)
    (package / "helper.py").write_text("FACTOR = 2\n")
    (tmp_path / "envs").mkdir()
    (tmp_path / "data.txt").write_text("data")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] == "toystages"]:
        del sys.modules[name]


def execute(
    root: Path, stage: Stage = TOY, config: Config | None = None, wildcards: Any = None
) -> records.Record:
    outputs = {"out": root / "results/r/out.txt", "folder": root / "results/r/tree"}
    given = {"data": root / "data.txt"}
    record = runner.execute(stage, config or Config(), wildcards or {}, given, outputs, root)
    assert record is not None
    return record


def left(root: Path) -> set[str]:
    folder = root / "results/r"
    return (
        {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        if folder.is_dir()
        else set()
    )


def start(root: Path) -> subprocess.Popen[str]:
    """A process that is in the middle of the stage."""
    (root / "data.txt").write_text("wait")
    environment = {**os.environ, "PYTHONPATH": str(Path(runner.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], cwd=root, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not (root / "waiting").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    return process


PUBLISHED = {"out.txt", "tree/part", "out.txt.record.json"}


def test_a_stage_knows_its_inputs_digests_and_may_tell_its_outputs(root: Path) -> None:
    """Catches inputs that a stage must read again to name them, and outputs that the runner reads again."""
    import hashlib

    (root / "data.txt").write_text("digests")
    sha256 = hashlib.sha256(b"digests").hexdigest()
    record = execute(root)
    assert (root / "results/r/out.txt").read_text() == sha256
    out = next(o for o in record.outputs if o.name == "out")
    assert out.sha256 == sha256 and out.files[0].size == 64  # what the stage said, not what it wrote


def test_memory_that_runs_out_is_one_sentence(root: Path) -> None:
    """Catches a traceback, and half-written outputs."""
    (root / "data.txt").write_text("memory")
    with pytest.raises(UserError, match="ran out in stage toy: lower compute"):
        execute(root)
    assert not left(root)


def test_a_finished_job_leaves_outputs_and_a_record_that_reads_them(root: Path) -> None:
    """Catches temporary files that stay, and a record whose digests are not those of the files."""
    import hashlib

    record = execute(root)
    assert left(root) == PUBLISHED
    assert (root / "results/r/out.txt").read_text() == "data 100"
    stored = records.read(root / "results/r/out.txt.record.json")
    assert stored == record
    digest = {o.path: o.files[0].sha256 for o in stored.outputs}
    assert digest["out.txt"] == hashlib.sha256(b"data 100").hexdigest()
    assert digest["tree"] == hashlib.sha256(b"part").hexdigest()
    assert str(root) not in (root / "results/r/out.txt.record.json").read_text()  # nothing absolute


@pytest.mark.parametrize(("mode", "error"), [("fail", ValueError), ("forget", RuntimeError)])
def test_a_fault_leaves_nothing(mode: str, error: type[Exception], root: Path) -> None:
    """Catches half an output under its final name, temporary files and a lock that blocks the rerun."""
    (root / "data.txt").write_text(mode)
    with pytest.raises(error):
        execute(root)
    assert left(root) == set()
    (root / "data.txt").write_text("data")
    execute(root)
    before = {name: (root / "results/r" / name).read_bytes() for name in PUBLISHED}
    (root / "data.txt").write_text(mode)
    with pytest.raises(error):
        execute(root)
    assert {
        name: (root / "results/r" / name).read_bytes() for name in left(root)
    } == before  # the old results stand


def test_a_killed_job_is_rerun_cleanly(root: Path) -> None:
    """Catches outputs or remains that survive SIGKILL into the rerun, and a lock that outlives its holder."""
    process = start(root)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not left(root) & PUBLISHED
    assert any(".tmp-" in name for name in left(root))  # it was killed in the middle
    (root / "data.txt").write_text("data")
    execute(root)
    assert left(root) == PUBLISHED


def test_a_terminated_job_cleans_up(root: Path) -> None:
    """Catches SIGTERM, which Slurm sends at a time limit, ending the process without clean-up."""
    process = start(root)
    process.terminate()
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM and left(root) == set()


def test_a_second_writer_is_refused_while_the_first_lives(root: Path) -> None:
    """Catches two jobs that write the same outputs, and a refusal that breaks the first one's lock."""
    process = start(root)
    try:
        before = left(root)
        for _ in range(2):
            with pytest.raises(UserError, match=rf"process {process.pid}.* is writing .*out\.txt"):
                execute(root)
        assert left(root) == before
    finally:
        process.kill()
        process.communicate()


def test_a_lock_of_a_reused_process_number_is_taken_over(root: Path) -> None:
    """Catches a lock that blocks for ever because another process got the dead one's number."""
    lock = locks.path_for(root / "results/r/out.txt")
    with locks_holder(root) as holder:
        lock.write_text(json.dumps({**holder, "begun": "1"}))
        execute(root)
    assert left(root) == PUBLISHED


def locks_holder(root: Path) -> Any:
    """What this process writes into a lock, as a context that releases it first."""
    from contextlib import contextmanager

    @contextmanager
    def holder() -> Iterator[dict[str, Any]]:
        output = root / "results/r/out.txt"
        output.parent.mkdir(parents=True, exist_ok=True)
        with locks.held(output):
            content = json.loads(locks.path_for(output).read_text())
        yield content

    return holder()


def test_a_lock_of_another_machine_is_respected(root: Path) -> None:
    """Catches a take-over by a process number that belongs to another node."""
    lock = locks.path_for(root / "results/r/out.txt")
    with locks_holder(root) as holder:
        other = {k: v for k, v in holder.items() if not k.startswith("slurm")}
        lock.write_text(json.dumps({**other, "host": "another", "pid": 2**22 + 1}))
        with pytest.raises(UserError, match=f"delete {lock}"):
            execute(root)
        assert lock.exists()


# Keys.


def edit(root: Path, name: str, text: str) -> None:
    (root / "toystages" / name).write_text(text)
    for module in ("toystages.stage", "toystages.helper"):
        sys.modules.pop(module, None)
    importlib.invalidate_caches()


def test_the_key_follows_every_ingredient_and_nothing_else(root: Path) -> None:
    """Catches stale results: an input, setting, wildcard, stage, lock or code that does not reach the key."""
    first = execute(root).key
    assert execute(root).key == first
    assert (
        execute(root, config=Config.model_validate({"finetune": {"learning_rate": 1.0}})).key == first
    )  # not declared
    assert execute(root, config=Config.model_validate({"compute": {"threads": 2}})).key == first
    keys = {
        "setting": execute(root, config=Config.model_validate({"finetune": {"steps": 7}})).key,
        "wildcard": execute(root, wildcards={"seed": "1"}).key,
        "stage": execute(root, stage=replace(TOY, name="other")).key,
    }
    (root / "data.txt").write_text("more")
    keys["input"] = execute(root).key
    (root / "data.txt").write_text("data")
    for name in ("cpu.txt", "cuda.txt"):
        (root / "envs" / name).write_text("torch==1\n")
    keys["lock"] = execute(root).key
    for name in ("cpu.txt", "cuda.txt"):
        (root / "envs" / name).unlink()
    edit(root, "helper.py", "FACTOR = 3\n")
    keys["import inside a function"] = execute(root).key
    edit(root, "helper.py", "FACTOR = 2\n")
    assert execute(root).key == first
    edit(root, "stage.py", STAGE_MODULE.replace('"half"', '"a half"'))
    keys["code"] = execute(root).key
    assert first not in keys.values() and len(set(keys.values())) == len(keys), keys


def test_a_comment_changes_no_digest(root: Path) -> None:
    """Catches reruns for a comment, a docstring or a line break, and a digest that is blind to code."""
    first = code.closure("toystages.stage")
    assert set(first) >= {"toystages.stage", "toystages.helper"}
    edited = STAGE_MODULE.replace("import time\n", "import time  # a comment\n\n\n")
    edit(root, "stage.py", edited.replace('"""A stage."""', '"""Another text."""'))
    assert code.closure("toystages.stage") == first
    edit(root, "stage.py", STAGE_MODULE.replace("sleep(60)", "sleep(61)"))
    assert code.closure("toystages.stage") != first


def test_an_input_changed_behind_its_record_is_refused(root: Path) -> None:
    """Catches a hand-edited intermediate result that goes on under its old provenance."""
    execute(root)
    made = root / "results/r/out.txt"
    target = {"out": root / "results/s/out.txt", "folder": root / "results/s/tree"}
    record = runner.execute(TOY, Config(), {}, {"data": made}, target, root)
    assert record is not None
    assert record.inputs[0].record == records.record_id(records.read(root / "results/r/out.txt.record.json"))
    made.write_text("edited by hand")
    with pytest.raises(UserError, match="was changed after stage toy made it"):
        runner.execute(TOY, Config(), {}, {"data": made}, target, root)


def test_a_record_says_how_much_memory_its_job_held(root: Path) -> None:
    """Catches a peak that was let go before the end and is missed, and one that counts what was there before."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system does not say what a process held")
    (root / "data.txt").write_text("hold")
    subprocess.run([sys.executable, "-c", DRIVER], cwd=root, check=True, timeout=60)
    found = json.loads((root / "results/r/out.txt.record.json").read_text())["memory"]
    assert found["process"] == pytest.approx(0.3, abs=0.03)


def change_while(root: Path, monkeypatch: pytest.MonkeyPatch, edit: Any) -> None:
    """Let ``edit`` happen while the stage runs."""
    real = runner._compute

    def compute(*given: Any) -> Any:
        found = real(*given)
        edit()
        return found

    monkeypatch.setattr(runner, "_compute", compute)


@pytest.mark.parametrize("name", ["toystages/helper.py", "toystages/stage.py", "data.txt"])
def test_a_job_whose_code_or_input_changed_publishes_nothing(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a record that names code or data other than those that were used."""
    status = (root / name).stat()

    def edit() -> None:
        text = (root / name).read_text()
        (root / name).write_text(text.replace("2", "3").replace("half", "HALF").replace("data", "DATA"))
        os.utime(root / name, ns=(status.st_atime_ns, status.st_mtime_ns))

    with monkeypatch.context() as patch:
        change_while(root, patch, edit)
        with pytest.raises(UserError, match=f"{name} changed while stage toy ran"):
            execute(root)
    assert left(root) == set()
    execute(root)
    assert left(root) == PUBLISHED


def test_code_edited_while_inputs_are_read_and_undone_later(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches the case that digests before and after agree although edited code was imported in between."""
    path = root / "toystages/stage.py"
    text, digest = path.read_text(), digests.digest_tree

    def edited(given: Path) -> Any:
        path.write_text(text.replace("FACTOR}", "FACTOR} edited"))
        return digest(given)

    monkeypatch.setattr(digests, "digest_tree", edited)
    with pytest.raises(UserError, match=r"toystages/stage\.py changed while stage toy ran"):
        execute(root)
    assert left(root) == set()


def test_an_input_that_is_only_looked_at_is_no_change(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_while(root, monkeypatch, (root / "data.txt").read_text)
    execute(root)
    assert left(root) == PUBLISHED


def test_an_input_among_the_results_needs_a_record(root: Path) -> None:
    """Catches a model whose record was deleted, edited and trained on as if it were a source."""
    stray = root / "results/r/stray.txt"
    stray.parent.mkdir(parents=True)
    stray.write_text("data")
    outputs = {"out": root / "results/r/out.txt", "folder": root / "results/r/tree"}
    with pytest.raises(UserError, match="no record says what made it"):
        runner.execute(TOY, Config(), {}, {"data": stray}, outputs, root)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_outputs_have_the_mode_that_the_umask_gives(umask: int, root: Path) -> None:
    """Catches what a writer's own mode would be: safetensors writes 0600, so that no colleague reads a model."""
    source = STAGE_MODULE.replace(
        'write_text("part")', 'write_text("part"); (job.outputs["folder"] / "part").chmod(0o600)'
    )
    (root / "toystages/stage.py").write_text(source)
    before = os.umask(umask)
    try:
        execute(root)
    finally:
        os.umask(before)
    modes = {name: (root / "results/r" / name).stat().st_mode & 0o777 for name in ("tree", *PUBLISHED)}
    assert modes == {name: (0o777 if name == "tree" else 0o666) & ~umask for name in modes}


def test_sources_that_cannot_be_kept_lose_no_work(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "results/main").mkdir(parents=True)
    (root / "results" / Config().run).mkdir(exist_ok=True)
    (root / "results" / Config().run / ".sources").write_text("in the way")
    execute(root)
    assert left(root) == PUBLISHED and "sources behind this job are not kept" in capsys.readouterr().err


def test_a_record_names_those_it_replaces(root: Path) -> None:
    first = execute(root)
    second = execute(root)
    (root / "results/r/out.txt.record.json").unlink()
    third = execute(root)
    assert (first.replaces, second.replaces) == ((), (first.id,))
    assert set(third.replaces) == {first.id, second.id}


def test_a_record_says_how_its_job_computed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches what moves the last digits of a result and is neither in the key nor in the record."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    one = execute(root)
    assert one.compute["threads"] == (3 if "torch" not in sys.modules else one.compute["threads"])
    assert one.compute["variables"] == {"MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "3"} | {
        name: value
        for name, value in one.compute["variables"].items()
        if name not in ("MKL_CBWR", "OMP_NUM_THREADS")
    }
    assert {"device", "shards", "deterministic"} <= one.compute.keys()
    monkeypatch.delenv("MKL_CBWR")
    assert execute(root).key == one.key


def test_a_record_without_a_commit_says_why_in_the_log(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "commit_or_reason", lambda: ({}, "git is not installed here"))
    assert execute(root).commit == {}
    assert "names no commit of this project's code: git is not installed here" in capsys.readouterr().err


def test_results_that_may_not_be_written_are_one_sentence(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", "results/r")

    monkeypatch.setattr(locks, "_create", refuse)
    with pytest.raises(UserError, match=r"may not read or write results/r \(Permission denied\)"):
        execute(root)
