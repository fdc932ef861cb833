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
from localized_unlearning.provenance import code, locks, records
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
    return runner.execute(
        stage, config or Config(), wildcards or {}, {"data": root / "data.txt"}, outputs, root
    )


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
