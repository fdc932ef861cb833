"""A signature holds for the run that was signed, by a key that is trusted, and for nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from lab import Lab

from localized_unlearning.cli import main
from localized_unlearning.provenance import records

pytestmark = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen (OpenSSH 8.2 or newer) is not installed"
)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return new_key(tmp_path, "mine")


@pytest.fixture
def signers(tmp_path: Path, key: Path) -> Path:
    """Who is trusted: the owner of ``key``."""
    path = tmp_path / "signers"
    path.write_text(f"ann@lab {key.with_suffix('.pub').read_text()}")
    return path


def new_key(folder: Path, name: str) -> Path:
    path = folder / name
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(words, check=True)
    return path


def sign(key: Path) -> int:
    return main.main(["audit", "sign", "organism", "--key", str(key)])


def verdict(signers: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit status and the line on the signature."""
    capsys.readouterr()
    status = main.main(["audit", "verify", "--signature", str(signers), *words])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Signature: ")]
    return status, line.removeprefix("Signature: ")


def test_a_signed_run_verifies_here_and_copied_elsewhere(
    lab: Lab, key: Path, signers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert sign(key) == 0
    assert "run organism: 7 records signed, root " in capsys.readouterr().out
    good = (0, "run organism is as ann@lab signed it: 7 records.")
    assert verdict(signers, capsys) == good
    assert verdict(signers, capsys, "results/organism/tables") == good  # the whole run all the same
    assert lab.status() == {}  # its files are not called unrecorded
    shutil.copytree(lab.root, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert verdict(signers, capsys) == good


def test_a_forged_run_is_not_what_was_signed(
    lab: Lab, key: Path, signers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes and records changed to fit, down to the last table: the audit alone is content, the signature is not."""
    sign(key)
    lab.source("table").write_text(
        "def run(job):\n    job.outputs['csv'].write_text('better' + job.key + '\\n')\n"
    )
    lab.build()
    assert lab.status() == {}
    status, line = verdict(signers, capsys)
    assert status == 1
    assert line.startswith(
        "run organism is not what ann@lab signed: 6 records other now (first figures/organism/"
    )
    sign(key)
    assert verdict(signers, capsys)[0] == 0


def test_a_record_less_or_more(
    lab: Lab, key: Path, signers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sign(key)
    lab.run("table", {"table": "t"}, {"rows": lab.rows()}, {"csv": lab.results / "t.csv"})
    assert "1 records new (first results/organism/t.csv.record.json)" in verdict(signers, capsys)[1]
    (lab.results / "t.csv.record.json").unlink()
    (lab.results / "t.csv").unlink()
    assert verdict(signers, capsys)[0] == 0
    lab.figure.unlink()
    (lab.figure.parent / "figure_1.csv.record.json").unlink()
    assert "1 records gone (first figures/organism/figure_1.csv.record.json)" in verdict(signers, capsys)[1]


def test_an_adoption_after_signing_shows(
    lab: Lab, key: Path, signers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sign(key)
    lab.table.write_text("better\n")
    assert main.main(["audit", "adopt", str(lab.table), "--reason", "nobody will notice"]) == 0
    status, line = verdict(signers, capsys)
    assert status == 1 and "table_1.csv.adopted.record.json" in line


def test_bytes_are_the_audit_s_matter(
    lab: Lab, key: Path, signers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The records are as signed, so the changed file is found by its record."""
    sign(key)
    lab.table.write_text("better\n")
    status, line = verdict(signers, capsys)
    assert status == 1 and line.startswith("run organism is as ann@lab signed it")


def test_other_keys_and_edited_statements(
    lab: Lab, key: Path, signers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verdict(signers, capsys) == (1, "run organism is not signed.")
    sign(new_key(tmp_path, "stranger"))
    status, line = verdict(signers, capsys)
    assert status == 1 and "not signed by a key that" in line
    sign(key)
    place = lab.results / "signed.json"
    statement = json.loads(place.read_text())
    edited = records.read(lab.results / "tables/table_1.csv.record.json")
    assert statement["records"]["results/organism/tables/table_1.csv.record.json"] == edited.id
    place.write_text(place.read_text().replace(str(edited.id), "0" * 64))
    status, line = verdict(signers, capsys)
    assert status == 1 and "is not one over these contents" in line
    other = subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-n", "git", "-f", str(key)],
        input=json.dumps(statement), capture_output=True, text=True, check=True,
    )  # fmt: skip
    place.write_text(json.dumps(statement))
    (lab.results / "signed.json.sig").write_text(other.stdout)
    assert "is not one over" in verdict(signers, capsys)[1]  # a signature for another purpose


def test_what_is_not_signed(lab: Lab, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["audit", "sign", "none", "--key", str(key)]) == 2
    assert "there is no run none" in capsys.readouterr().err
    assert sign(tmp_path / "no_key") == 2
    assert "ssh-keygen does not sign with" in capsys.readouterr().err
    lab.table.write_text("better\n")
    assert sign(key) == 2
    assert "table_1.csv is modified: a run is signed only when" in capsys.readouterr().err
    assert not (lab.results / "signed.json").exists()
    assert main.main(["audit", "verify", "--signature", str(tmp_path / "nobody")]) == 2
    assert "lists the trusted keys" in capsys.readouterr().err


def test_the_verdict_as_json(lab: Lab, key: Path, signers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sign(key)
    capsys.readouterr()
    assert main.main(["audit", "verify", "--signature", str(signers), "--json"]) == 0
    (signature,) = json.loads(capsys.readouterr().out)["signatures"]
    assert signature["run"] == "organism" and signature["good"] is True


def forge(lab: Lab, name: str, **change: object) -> None:
    """A record like the table's with changes, refit, and the table overwritten."""
    place = lab.results / "tables/table_1.csv.record.json"
    record = records.read(place).model_copy(update=change)
    records.write(record.model_copy(update={"key": records.key_in(record)}), place.with_name(name))


@pytest.mark.parametrize("how", ["decoy", "invented", "page", "another run"])
def test_records_outside_what_they_say_of_themselves_are_no_way_around(
    lab: Lab, key: Path, signers: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The statement goes by place: a record without a folder, or of another run, is in it all the same."""
    sign(key)
    if how == "page":
        (lab.results / "report.html").write_text("better")
        assert verdict(signers, capsys)[0] == 1
        return
    if how == "decoy":
        forge(lab, "zz.csv.record.json", folder=None)
    elif how == "invented":
        shutil.copy(lab.table, lab.table.with_name("table_9.csv"))
        output = records.read(lab.results / "tables/table_1.csv.record.json").outputs[0]
        forge(
            lab,
            "table_9.csv.record.json",
            folder=None,
            outputs=(output.model_copy(update={"path": "table_9.csv"}),),
        )
    else:
        forge(lab, "zz.csv.record.json", folder="results/another/tables")
    status, line = verdict(signers, capsys)
    assert status == 1 and "1 records new (first results/organism/tables/" in line


def test_a_signature_that_checked_nothing_is_not_clean(
    lab: Lab, key: Path, signers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sign(key)
    (tmp_path / "empty").mkdir()
    assert verdict(signers, capsys, str(tmp_path / "empty")) == (
        1,
        "there is no run here: no signature was checked.",
    )
    apart = tmp_path / "apart"
    shutil.copytree(lab.table.parent, apart)
    status, line = verdict(signers, capsys, str(apart))
    assert status == 1 and line.startswith("no signature speaks of 1 records that lie in no run")


def test_a_key_that_is_listed_twice(
    lab: Lab, key: Path, signers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """git's own line for a key, restricted to git, before ours: the other line counts."""
    public = key.with_suffix(".pub").read_text()
    signers.write_text(f'ann@git namespaces="git" {public}ann@lab {public}')
    sign(key)
    assert verdict(signers, capsys) == (0, "run organism is as ann@lab signed it: 7 records.")
    signers.write_text(f'ann@git namespaces="git" {public}')
    status, line = verdict(signers, capsys)
    assert status == 1 and "not for this purpose" in line


def test_a_damaged_statement_is_a_finding(
    lab: Lab, key: Path, signers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sign(key)
    (lab.results / "signed.json").write_text("[" * 100_000)
    assert verdict(signers, capsys)[0] == 1
