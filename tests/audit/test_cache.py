"""The cache: what is restored is what was computed, damage is found, and the store stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from lab import SOURCES, STAGES, Lab

import localized_unlearning
from localized_unlearning.audit import trace as tracing
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Job
from localized_unlearning.jobs.stages import STAGES as REAL
from localized_unlearning.provenance import cache, digests, hashing, pages, records
from localized_unlearning.workflow import runner

pytestmark = pytest.mark.slow  # all of its tests together

ROOT = Path(localized_unlearning.__file__).parents[2]


@pytest.fixture
def store(lab: Lab, tmp_path: Path) -> Path:
    """A store that holds every job of the toy run."""
    folder = tmp_path / "store"
    lab.configure(cache={"dir": str(folder)})
    lab.build()
    return folder


def entries(store: Path) -> list[Path]:
    return sorted(path.parent for path in store.glob("??/*/record.json"))


def entry_of(store: Path, record: records.Record) -> Path:
    return cache.Cache(store, False).place(record.key)


def files(lab: Lab) -> list[Path]:
    """A run's files, without the copies of its records."""
    return [p for p in lab.results.rglob("*") if p.is_file() and p.parent.name != records.JOURNAL]


def clear(lab: Lab) -> None:
    shutil.rmtree(lab.root / "results")
    shutil.rmtree(lab.root / "figures")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that were computed rather than restored, in order."""
    found: list[str] = []
    real = runner._compute

    def compute(job: Job, *rest: Any) -> dict[str, float] | None:
        found.append(job.stage.name)
        return real(job, *rest)

    monkeypatch.setattr(runner, "_compute", compute)
    return found


def test_a_second_run_is_restored_and_verifies_clean(lab: Lab, store: Path, computed: list[str]) -> None:
    """Catches a key that does not repeat, bytes that differ, and a record that claims to have computed."""
    before = {lab.name(path): path.read_bytes() for path in files(lab)}
    assert len(entries(store)) == 6
    clear(lab)
    lab.build()
    assert computed == []
    after = {lab.name(path): path.read_bytes() for path in files(lab)}
    for name, data in before.items():
        if not name.endswith(records.SUFFIX):
            assert after[name] == data, name
            continue
        old, new = (records.Record.model_validate_json(text) for text in (data, after[name]))
        if new.stage == pages.CONFIG:
            continue
        assert new.restored is not None and old.restored is None
        assert (new.restored.record, new.restored.started, new.restored.host) == (
            old.id,
            old.started,
            old.host,
        )
        assert (new.key, new.facts, new.computed.seconds) == (old.key, old.facts, old.seconds)
    assert lab.status() == {}
    trace = tracing.tree_lines(tracing.tree(lab.audit(lab.table), lab.table))
    assert "restored from record" in next(iter(trace))


def test_what_changed_is_computed(lab: Lab, store: Path, computed: list[str]) -> None:
    """Catches a stale entry: settings, code and inputs must all reach the key."""
    clear(lab)
    lab.configure(statistics={"bootstrap": 7})
    lab.build()
    assert computed == ["table", "table"]
    lab.source("helper").write_text(SOURCES["helper"].replace("x + 1", "x + 2"))
    lab.build()
    assert computed[2:] == ["train", "evaluate"] * 2 + ["table"] * 2


def test_an_edit_of_an_output_does_not_reach_the_store(lab: Lab, store: Path, computed: list[str]) -> None:
    """Catches links between store and results, kept or restored."""
    for _ in range(2):
        weights = lab.seed(0) / "model" / "weights"
        with weights.open("r+b") as stream:
            stream.write(b"!!!")
        lab.train(0)
        assert computed == [] and not weights.read_bytes().startswith(b"!!!")


@pytest.mark.parametrize("harm", ["flip", "gone", "record", "swapped", "outside"])
def test_a_damaged_entry_is_reported_set_aside_and_computed_again(
    lab: Lab, store: Path, computed: list[str], harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = records.read(lab.seed(0) / "model.record.json")
    entry = entry_of(store, record)
    weights, place = entry / "outputs/model/weights", entry / "record.json"
    if harm == "flip":
        weights.chmod(0o644)
        weights.write_bytes(b"x" + weights.read_bytes()[1:])
    elif harm == "gone":
        weights.unlink()
    elif harm == "record":
        place.chmod(0o644)
        place.write_text(place.read_text().replace('"attempt": 1', '"attempt": 2'))
    elif harm == "swapped":
        other = entry_of(store, records.read(lab.seed(1) / "model.record.json"))
        shutil.rmtree(entry)
        shutil.copytree(other, entry)
    else:
        data = json.loads(place.read_text())
        data["outputs"][0]["files"][0]["name"] = "../../escaped"
        place.chmod(0o644)
        place.write_text(json.dumps(data))
    kept = (lab.seed(0) / "model" / "weights").read_bytes()
    lab.train(0)
    assert computed == ["train"]
    assert "is damaged" in capsys.readouterr().err
    assert len(list((store / "damaged").iterdir())) == 1 and not list(store.rglob("escaped"))
    assert (lab.seed(0) / "model" / "weights").read_bytes() == kept
    lab.train(0)  # the entry was made anew
    assert computed == ["train"] and lab.status() == {}


def test_a_read_only_store_gives_and_is_left_alone(
    lab: Lab, store: Path, computed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches writes into the store: entries, times of use, and damaged entries that are moved."""
    lab.configure(cache={"dir": str(store), "read_only": True}, statistics={"bootstrap": 7})
    broken = entry_of(store, records.read(lab.seed(0) / "model.record.json")) / "outputs/model/weights"
    broken.chmod(0o644)
    broken.write_text("x")
    before = {path: path.lstat() for path in store.rglob("*")}
    clear(lab)
    lab.build()
    assert computed == ["train", "table", "table"]
    assert "left where it is" in capsys.readouterr().err
    after = {path: path.lstat() for path in store.rglob("*")}
    assert {p: (s.st_mtime_ns, s.st_ctime_ns) for p, s in after.items()} == {
        p: (s.st_mtime_ns, s.st_ctime_ns) for p, s in before.items()
    }
    lab.configure(cache={"dir": str(store / "gone"), "read_only": True})
    lab.resolve()
    with pytest.raises(UserError, match=r"cache.dir .*gone does not exist"):
        lab.train(0)


def test_a_store_that_cannot_be_written_fails_no_job(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    lab.configure(cache={"dir": str(tmp_path / "file" / "store")})
    lab.build()
    assert "the cache does not keep this job" in capsys.readouterr().err
    assert lab.status() == {}


def test_entries_are_whole_and_not_writable(store: Path) -> None:
    """Catches half an entry under its final name, left-over parts, and files that an editor would change."""
    assert not list(store.glob("*/.tmp-*"))
    files = [path for entry in entries(store) for path in (entry / "outputs").rglob("*") if path.is_file()]
    assert files and not any(path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP) for path in files)


def test_of_two_jobs_with_one_key_the_first_is_kept(lab: Lab, store: Path) -> None:
    """Many writers at once: one entry, whole, and nothing beside it."""
    record = records.read(lab.seed(0) / "model.record.json")
    outputs = {"model": lab.seed(0) / "model", "history": lab.seed(0) / "history.csv"}
    shutil.rmtree(entry_of(store, record))
    shared, barrier = cache.Cache(store, False), threading.Barrier(8)

    def keep(number: int) -> None:
        barrier.wait()
        shared.keep(record.model_copy(update={"attempt": number}), outputs)

    writers = [threading.Thread(target=keep, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not list(store.glob("*/.tmp-*"))
    targets = {name: lab.root / name for name in outputs}
    restored = shared.restore(record.key, targets)
    assert restored is not None and restored.attempt in range(8)
    assert (lab.root / "model" / "weights").read_bytes() == (lab.seed(0) / "model" / "weights").read_bytes()


def test_an_entry_thinned_out_is_computed_again(lab: Lab, store: Path, computed: list[str]) -> None:
    shutil.rmtree(entry_of(store, records.read(lab.seed(0) / "model.record.json")))
    lab.train(0)
    assert computed == ["train"] and not (store / "damaged").exists()


def test_a_stage_that_reads_what_its_key_does_not_name_is_not_kept(lab: Lab, store: Path) -> None:
    assert {name for name, stage in REAL.items() if not stage.cached} == {"fetch", "download"}
    before = entries(store)
    stage = replace(STAGES["train"], name="train_apart", cached=False)
    STAGES["apart"] = stage
    try:
        outputs = {"model": lab.results / "apart" / "model", "history": lab.results / "apart" / "history.csv"}
        inputs = {"data": lab.root / "workflow/data.txt", "prompts": lab.root / "workflow/prompts.yaml"}
        lab.run("apart", {"task": "sports", "seed": "0"}, inputs, outputs)
    finally:
        del STAGES["apart"]
    assert entries(store) == before


def test_restoring_imports_no_torch_even_with_warm_starts(tmp_path: Path) -> None:
    """A real stage on the command line: once computed, then restored where torch and pandas cannot be imported."""
    (tmp_path / "config.yaml").write_text("run: r\ncache: {dir: store}\n")
    script = (
        "import sys\n"
        "if sys.argv[1] == 'bare':\n"
        "    sys.modules['torch'] = sys.modules['pandas'] = None\n"
        "    import localized_unlearning.cli.warm as warm\n"
        "    warm.run = lambda *_, **__: sys.exit('asked the warm server')\n"
        "from localized_unlearning.cli import main\n"
        "sys.exit(main.main(sys.argv[2:]))\n"
    )
    job = [
        "split",
        "--config",
        "config.yaml",
        "--base-seed",
        "0",
        "--task",
        "sports",
        "--known",
        "known.parquet",
    ]
    athletes = pd.read_csv(ROOT / "workflow/resources/athletes.csv").drop_duplicates("subject")
    athletes.assign(
        rows=pd.Series([[n] for n in range(len(athletes))], index=athletes.index), known=True
    ).to_parquet(tmp_path / "known.parquet")
    for how, folder in (("full", "one"), ("bare", "two")):
        answer = subprocess.run(
            [sys.executable, "-c", script, how, *job, "--out-split", f"results/r/{folder}/split.parquet"],
            cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "LOCALIZED_UNLEARNING_WARM": "cache" if how == "bare" else ""},
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
    one, two = (tmp_path / f"results/r/{folder}/split.parquet" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert records.read(two.with_name("split.parquet.record.json")).restored is not None


# --- digests of large inputs


def test_a_large_input_is_read_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a base model read by every job, and a byte changed in place that the kept digest hides."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 1000)
    monkeypatch.setattr(digests, "SETTLED", -1.0)
    read: list[str] = []
    real = hashing.digest
    monkeypatch.setattr(hashing, "digest", lambda path: read.append(path.name) or real(path))  # type: ignore[func-returns-value]
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(bytes(2000))
    (model / "config").write_text("small")
    for _ in range(2):
        assert digests.digest_tree(model) == hashing.digest_tree(model)
    assert read.count("weights") == 3 and read.count("config") == 4  # the two slow definitions included
    status = (model / "weights").stat()
    with (model / "weights").open("r+b") as stream:
        stream.write(b"x")
    os.utime(model / "weights", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digests.digest_tree(model) == hashing.digest_tree(model)


def test_an_entry_that_lost_its_record_is_replaced(lab: Lab, store: Path, computed: list[str]) -> None:
    """Catches an entry that is neither restored nor made anew, for ever."""
    entry = entry_of(store, records.read(lab.seed(0) / "model.record.json"))
    (entry / "record.json").unlink()
    lab.train(0)
    lab.train(0)
    assert computed == ["train"] and (entry / "record.json").is_file()


@pytest.mark.parametrize("harm", ["fifo", "deep", "nul", "surrogate"])
def test_a_hostile_entry_fails_no_job(lab: Lab, store: Path, computed: list[str], harm: str) -> None:
    entry = entry_of(store, records.read(lab.seed(0) / "model.record.json"))
    weights, place = entry / "outputs/model/weights", entry / "record.json"
    if harm == "fifo":
        weights.unlink()
        os.mkfifo(weights)
    else:
        data = json.loads(place.read_text())
        data["outputs"][0]["files"][0]["name"] = {"nul": "a\0b", "surrogate": "\ud800"}.get(harm, "weights")
        place.chmod(0o644)
        place.write_text("[" * 100_000 if harm == "deep" else json.dumps(data))
    lab.train(0)
    assert computed == ["train"] and lab.status() == {}


def test_a_store_of_several_people(lab: Lab, tmp_path: Path, computed: list[str]) -> None:
    """What one keeps under umask 077, another reads; and both may add to a folder that the first made."""
    store = tmp_path / "shared"
    store.mkdir()
    store.chmod(0o2775)
    lab.configure(cache={"dir": str(store)})
    before = os.umask(0o077)
    try:
        lab.build()
    finally:
        os.umask(before)
    for path in store.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o7775 == 0o2775 if path.is_dir() else mode == 0o444, path


@pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen (OpenSSH 8.2 or newer) is not installed"
)
def test_only_entries_that_a_listed_key_signed_are_taken(
    lab: Lab, tmp_path: Path, computed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A planted entry, whose bytes and record agree, is not taken where entries must be signed."""
    key, store = tmp_path / "key", tmp_path / "store"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key)], check=True)
    signers = tmp_path / "signers"
    signers.write_text(f"ann@lab {key.with_suffix('.pub').read_text()}")
    lab.configure(cache={"dir": str(store)})
    lab.build()
    assert len(computed) == 6
    lab.configure(cache={"dir": str(store), "signers": str(signers)})
    lab.resolve()
    lab.train(0)
    assert len(computed) == 7 and "it is not signed" in capsys.readouterr().err
    shutil.rmtree(store)
    lab.configure(cache={"dir": str(store), "signers": str(signers), "key": str(key)})
    lab.resolve()
    lab.train(0)
    lab.train(0)
    assert len(computed) == 8
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(other)], check=True)
    signers.write_text(f"bob@lab {other.with_suffix('.pub').read_text()}")
    lab.train(0)
    assert len(computed) == 9 and "not signed by a key that signers trusts" in capsys.readouterr().err
