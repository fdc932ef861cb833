"""Warm starts with a command line of our own making: what the client sees is what a cold run would give."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from localized_unlearning.cli import serving, starting, warm
from localized_unlearning.provenance import code

CLI = """
import os, signal, sys, time
from pathlib import Path
from localized_unlearning.jobs import job
def preload(): pass
def can_be_warm(arguments): return arguments[0] != "fetch"
def shared(arguments): return arguments[1:2] if arguments[0] in ("keep", "spoil", "lose") else None
class Model:
    size = 8
    def __init__(self, device):
        self.model = self; self.device = self; self.type = device
def main(arguments, kept):
    assert "localized_unlearning.cli.commands" in kept.imported
    verb, *rest = arguments
    if verb == "say":
        print(os.getcwd(), os.environ.get("WORD"), *rest)
        print("aside", file=sys.stderr)
    elif verb == "inherit":
        now = os.umask(0); os.umask(now)
        print(now, sorted(os.sched_getaffinity(0)))
    elif verb == "exit": sys.exit(int(rest[0]))
    elif verb == "return": return int(rest[0])
    elif verb == "raise": raise RuntimeError("broken")
    elif verb == "die": os.kill(os.getpid(), int(rest[0]))
    elif verb == "sleep":
        Path(rest[0]).write_text(str(os.getpid()))
        time.sleep(60)
    elif verb == "tidy":
        def stop(number, frame):
            Path(rest[0]).write_text("tidied"); sys.exit(143)
        signal.signal(signal.SIGTERM, stop); Path(rest[0]).write_text("running"); time.sleep(60)
    elif verb == "keep":
        print(os.getpid(), kept.model is not None, os.environ.get("LOCALIZED_UNLEARNING_ATTEMPT"), os.umask(0))
        kept.model = Model(rest[1])
    elif verb == "spoil": kept.model = Model("cpu"); raise RuntimeError("broken")
    elif verb == "lose": os.kill(os.getpid(), 9)
    return 0
"""
JOB = """
class Kept:
    model = None
    def __init__(self, imported): self.imported = imported
"""
CLIENT = """
import sys
from pathlib import Path
from localized_unlearning.cli import warm
warm.address = lambda: Path(sys.argv[1])
status = warm.run(sys.argv[2:], start=False)
sys.exit(99 if status is None else status)
"""
MEMBER = """
import sys
from localized_unlearning.cli import warm
status = warm.run(sys.argv[1:], start=True)
sys.exit(99 if status is None else status)
"""
BATCH = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-m", "localized_unlearning.cli.starting", sys.argv[1]])
time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder with a stub package around the real warm.py, and a server of it."""
    package = tmp_path / "localized_unlearning" / "cli"
    package.mkdir(parents=True)
    (package.parent / "jobs").mkdir()
    for folder in (package, package.parent, package.parent / "jobs"):
        (folder / "__init__.py").touch()
    (package / "commands.py").write_text(CLI)
    (package.parent / "jobs/job.py").write_text(JOB)
    (package.parent / "jobs/stages.py").write_text("STAGES = {}")
    for module in (warm, starting):
        shutil.copy(str(module.__file__), package)
    text = Path(str(serving.__file__)).read_text()
    assert text.count(" = PRELOADED") == 1
    (package / "serving.py").write_text(
        text.replace(" = PRELOADED", " = ()")
    )  # seconds, and nothing of them needed
    with serving_at(tmp_path):
        yield tmp_path


@contextlib.contextmanager
def serving_at(
    tmp_path: Path, owner: int | None = None, idle: float = 60
) -> Iterator[subprocess.Popen[bytes]]:
    command = (
        "from pathlib import Path; from localized_unlearning.cli.serving import serve; "
        f"serve(Path({str(tmp_path / 's')!r}), (), {idle}, {owner})"
    )
    server = subprocess.Popen([sys.executable, "-c", command], env=environment(tmp_path))
    deadline = time.monotonic() + 20
    while not (tmp_path / "s").exists():
        assert time.monotonic() < deadline and server.poll() is None
        time.sleep(0.02)
    yield server
    server.kill()
    server.wait()


def environment(place: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(place), **more}


def client(place: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CLIENT, str(place / "s"), *words], env=environment(place, **more), cwd=place,
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def test_folder_environment_and_streams_are_the_clients(place: Path) -> None:
    done = client(place, "say", "a b", WORD="hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{place} hello a b\n", "aside\n")


@pytest.mark.parametrize(
    ("words", "status"),
    [(("exit", "3"), 3), (("return", "2"), 2), (("raise",), 1), (("die", "9"), 137), (("die", "15"), 143)],
)
def test_no_status_is_lost(place: Path, words: tuple[str, ...], status: int) -> None:
    done = client(place, *words)
    assert done.returncode == status
    assert ("RuntimeError: broken" in done.stderr) == (words[0] == "raise")


def test_a_server_whose_code_has_changed_forks_no_more(place: Path) -> None:
    """Catches a job that runs what was imported before an edit: it is run cold, and the server makes room."""
    waiting = keep(place, "a")[0]
    (place / "localized_unlearning" / "cli" / "commands.py").write_text(CLI.replace("return 0", "return 7"))
    assert client(place, "keep", "a", "cpu").returncode == 99
    wait_for(lambda: not (place / "s").exists() and not alive(waiting))


def test_a_command_that_cannot_be_warm_is_run_by_its_client(place: Path) -> None:
    assert client(place, "fetch").returncode == 99
    assert client(place, "say").returncode == 0


def test_the_client_knows_each_source_file_as_the_records_do() -> None:
    found = warm.sources()
    assert found == code.state(found) and "localized_unlearning.models" in found


def running(place: Path, verb: str) -> tuple[subprocess.Popen[bytes], Path]:
    mark = place / verb
    words = [sys.executable, "-c", CLIENT, str(place / "s"), verb, str(mark)]
    process = subprocess.Popen(words, env=environment(place))
    wait_for(lambda: mark.exists() and mark.read_text() != "")
    return process, mark


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_client_takes_its_job_along(place: Path) -> None:
    process, mark = running(place, "sleep")
    child = int(mark.read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not Path(f"/proc/{child}").exists())
    process, mark = running(place, "tidy")
    process.terminate()
    process.wait()
    wait_for(lambda: mark.read_text() == "tidied")
    assert client(place, "return", "0").returncode == 0


def test_umask_and_cpus_are_the_clients(place: Path) -> None:
    """Catches outputs whose mode is that of whoever started the server."""
    cpus = sorted(os.sched_getaffinity(0))
    for umask, few in ((0o077, cpus[:1]), (0o002, cpus)):
        words = [sys.executable, "-c", CLIENT, str(place / "s"), "inherit"]
        done = subprocess.run(
            words, env=environment(place), capture_output=True, text=True, timeout=30, umask=umask,
            preexec_fn=partial(os.sched_setaffinity, 0, few),
        )  # fmt: skip
        assert done.stdout == f"{umask} {few}\n", done.stderr


def test_a_killed_server_is_said_and_takes_its_children_along(
    place: Path, request: pytest.FixtureRequest
) -> None:
    mark = place / "sleep"
    words = [sys.executable, "-c", CLIENT, str(place / "s"), "sleep", str(mark)]
    process = subprocess.Popen(words, env=environment(place), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: mark.exists() and mark.read_text() != "")
    child = int(mark.read_text())
    server = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    assert process.wait(30) == 1
    assert "warm starts are forked from has ended" in process.communicate()[1]
    wait_for(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text())


def test_a_folder_with_too_long_a_name_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a server that each job starts, waits for and sees fail."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(long))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a server was started"))
    assert warm.run(["x"], start=True) is None and warm.run(["x"], start=True) is None
    assert capsys.readouterr().err.count("too long a name for a socket") == 1


def test_many_at_once(place: Path) -> None:
    words = [sys.executable, "-c", CLIENT, str(place / "s"), "exit"]
    processes = [subprocess.Popen([*words, str(i)], env=environment(place)) for i in range(12)]
    assert [p.wait(30) for p in processes] == list(range(12))


def keep(
    place: Path, model: str, device: str = "cpu", attempt: str = "1", umask: int = 0o022, **more: str
) -> list[str]:
    """Run a job that leaves a model; its process, whether it found one, its environment and its umask."""
    words = [sys.executable, "-c", CLIENT, str(place / "s"), "keep", model, device]
    done = subprocess.run(
        words, env=environment(place, LOCALIZED_UNLEARNING_ATTEMPT=attempt, **more), cwd=place, umask=umask,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def alive(pid: str) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_the_next_job_of_a_checkpoint_finds_its_model_and_nothing_else_of_the_last(place: Path) -> None:
    """Catches a job that loads anew, and one that sees the environment or the umask of the job before."""
    first = keep(place, "a", attempt="1", umask=0o077)
    second = keep(place, "a", attempt="2", umask=0o002)
    assert first[1:] == ["False", "1", str(0o077)] and second[1:] == ["True", "2", str(0o002)]
    assert first[0] == second[0]
    assert keep(place, "b")[0] != first[0]  # another checkpoint's
    assert (
        keep(place, "a", HF_HOME="elsewhere")[1] == "False"
    )  # libraries read the environment when they like
    assert client(place, "say").returncode == 0  # and a job that shares with none has a process of its own


@pytest.mark.parametrize(("verb", "status"), [("spoil", 1), ("lose", 137)])
def test_a_process_in_which_a_job_failed_serves_no_other(place: Path, verb: str, status: int) -> None:
    first = keep(place, "a")
    failed = client(place, verb, "a", LOCALIZED_UNLEARNING_ATTEMPT="1")
    assert failed.returncode == status and ("RuntimeError: broken" in failed.stderr) == (verb == "spoil")
    wait_for(lambda: not alive(first[0]))
    assert keep(place, "a")[1] == "False"


def test_what_waits_on_a_gpu_is_freed_before_another_job_starts(place: Path) -> None:
    """Catches a training job that shares the device's memory with the last evaluation's model."""
    first = keep(place, "a", "cuda")
    assert alive(first[0])
    assert keep(place, "a", "cuda")[0] == first[0]
    assert client(place, "say").returncode == 0
    assert not alive(first[0])


def test_few_wait_on_a_cpu(place: Path) -> None:
    found = [keep(place, str(number))[0] for number in range(serving.WAITING + 2)]
    wait_for(lambda: sum(map(alive, found)) == serving.WAITING)
    assert [alive(pid) for pid in found] == [False] * 2 + [True] * serving.WAITING


def test_two_jobs_of_a_checkpoint_at_once_have_a_process_each(place: Path) -> None:
    words = [sys.executable, "-c", CLIENT, str(place / "s"), "keep", "a", "cpu"]
    env = environment(place)
    running = [subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert [process.wait(30) for process in running] == [0] * 6


def test_a_server_leaves_with_the_process_it_works_for(place: Path) -> None:
    """Inside a Slurm allocation: what waits there with a GPU's memory goes with the group's Snakemake."""
    (place / "s").unlink()
    snakemake = subprocess.Popen(["sleep", "60"])
    with serving_at(place, owner=snakemake.pid, idle=600) as server:
        waiting = keep(place, "a")[0]
        snakemake.kill()
        snakemake.wait()
        assert server.wait(20) == 0 and not alive(waiting) and not (place / "s").exists()


@pytest.fixture
def batch(place: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """What stands for a Slurm group's Snakemake, and the socket of its starter."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    path = folder / "starter"
    process = subprocess.Popen([sys.executable, "-c", BATCH, str(path)], env=environment(place))
    wait_for(path.exists)
    yield process, path
    process.kill()
    process.wait()
    wait_for(lambda: not folder.exists())


def member(place: Path, starter: Path, step: int, *words: str) -> subprocess.CompletedProcess[str]:
    """A job of a Slurm group in a step, a process group, of its own, which ends with it."""
    process = subprocess.Popen(
        [sys.executable, "-c", MEMBER, *words], cwd=place, start_new_session=True, stdout=subprocess.PIPE, text=True,
        env=environment(place, **{warm.STARTER: str(starter), "SLURM_JOB_ID": "7", "SLURM_STEP_ID": str(step)}),
    )  # fmt: skip
    said, _ = process.communicate(timeout=60)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(words, process.returncode, said)


def test_the_steps_of_a_slurm_group_have_one_server_that_leaves_with_their_snakemake(
    place: Path, batch: tuple[subprocess.Popen[bytes], Path]
) -> None:
    """Catches a server in a member's step, with which Slurm ends it, and one that outlives the allocation's Snakemake."""
    snakemake, starter = batch
    found = [member(place, starter, step, "keep", "a", "cpu").stdout.split() for step in range(3)]
    assert [words[1] for words in found] == ["False", "True", "True"] and len(
        {words[0] for words in found}
    ) == 1
    snakemake.kill()
    snakemake.wait()
    wait_for(lambda: not alive(found[0][0]))


def test_a_member_whose_starter_is_gone_or_has_other_limits_runs_cold(
    place: Path, batch: tuple[subprocess.Popen[bytes], Path]
) -> None:
    snakemake, starter = batch
    other = "import os; os.nice(1)\n" + MEMBER
    env = environment(place, **{warm.STARTER: str(starter), "SLURM_JOB_ID": "7"})
    words = [sys.executable, "-c", other, "say"]
    assert subprocess.run(words, env=env, capture_output=True, timeout=60).returncode == 99
    assert member(place, starter, 1, "say").returncode == 0
    snakemake.kill()
    snakemake.wait()
    wait_for(lambda: not starter.exists())
    starter.parent.mkdir(mode=0o700)
    assert member(place, starter, 2, "say").returncode == 99
    shutil.rmtree(starter.parent)


def test_only_a_slurm_groups_own_snakemake_has_a_starter(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda words, **_: begun.append(words))
    shared, inside = ["text:seed=0", "facts:seed=0"], {"SLURM_JOB_ID": "7"}
    line = ["snakemake", "--target-jobs", *shared, "--executor", starting.EXECUTOR, "--jobs", "1"]
    assert starting.begin(line, {}) is None
    assert starting.begin(line, inside | {warm.STARTER: "/somewhere"}) is None
    assert starting.begin([word for word in line if word != starting.EXECUTOR], inside) is None
    assert starting.begin([word for word in line if word != shared[0]], inside) is None
    assert not begun
    path = starting.begin(line, inside)
    assert path is not None and len(begun) == 1
    shutil.rmtree(Path(path).parent)


def test_an_idle_server_leaves_and_the_next_job_runs_cold(place: Path) -> None:
    (place / "s").unlink()
    with serving_at(place, idle=0.5):
        wait_for(lambda: not (place / "s").exists())
    assert client(place, "say").returncode == 99


def test_the_address_is_private_and_changes_with_what_was_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = tmp_path / "n"  # a socket's address is short, and pytest's folders are not
    monkeypatch.setattr(warm, "LONGEST", 1000)
    near.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(near))
    first = warm.address()
    assert first == warm.address() and first.parent.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "13")
    second = warm.address()
    monkeypatch.setattr(warm, "sources", dict)
    third = warm.address()
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")  # a record names it, and it is read at the import
    fourth = warm.address()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert len({first, second, third, fourth, warm.address()}) == 5
    first.parent.chmod(0o755)
    with pytest.raises(PermissionError, match="not private"):
        warm.address()
    assert warm.run(["--version"], start=True) is None
