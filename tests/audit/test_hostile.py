"""Every file that the audit reads, replaced by what is no such file: a finding or an honest "unknown", never a crash
nor a wait."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from lab import Lab

from localized_unlearning.cli import main

PATIENCE = 20  # seconds that one audit may take

DEEP = "[" * 100_000


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


KINDS: dict[str, Callable[[Path], object]] = {
    "FIFO": fifo,
    "socket": bound,
    "folder": lambda path: path.mkdir(),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a device": lambda path: path.symlink_to("/dev/null"),
    "empty": lambda path: path.write_bytes(b""),
    "NUL": lambda path: path.write_bytes(b"\0" * 100),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe\xfa"),
    "deep": lambda path: path.write_text(DEEP),
    "deep mapping": lambda path: path.write_text('{"a":' * 50_000),
    "deep block": lambda path: path.write_text("- " * 50_000),
    "a number": lambda path: path.write_text("17"),
    "a long number": lambda path: path.write_text("1" * 10_000),
    "a list": lambda path: path.write_text("[1]"),
    "null": lambda path: path.write_text("null"),
    "infinite": lambda path: path.write_text('{"schema_version": 1e999}'),
    "anchors": lambda path: path.write_text(
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{n}: &{n} [{','.join([f'*{m}'] * 9)}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True))
    ),
}  # fmt: skip


@contextmanager
def patience() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still waiting after {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def replace(path: Path, kind: str) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    KINDS[kind](path)


ODD = ("FIFO", "socket", "folder", "dangling link", "link to itself", "link to a device", "empty")
SOME = ("FIFO", "folder", "link to a device", "no UTF-8", "deep", "a list")
FINDINGS = {  # files of the run: whatever they are replaced by is found
    "results/organism/tables/table_1.csv": ODD,
    "results/organism/sports/seed0/model/weights": ODD,
    "results/organism/sports/seed0/model": ODD,
    "results/organism/sports/seed0/rows.csv.record.json": tuple(KINDS),
    "results/organism/config.yaml": tuple(KINDS),
}
AROUND = {  # files beside it: the audit says what it does not know, or finds results stale
    "config.yaml": tuple(KINDS),
    "workflow/data.txt": SOME,
    "envs/cpu.txt": SOME,
    "results/organism/.sources/*.py": SOME,
    "results/organism/.sources": SOME,
    "results/organism/.records/*.json": SOME,
    "results/organism/.records": SOME,
    "results/organism/tables/.table_1.csv.lock": SOME,
    "results/organism/signed.json": SOME,
}


@pytest.mark.parametrize(
    ("what", "kind"), [(what, kind) for what, kinds in (FINDINGS | AROUND).items() for kind in kinds]
)
def test_whatever_takes_a_file_s_place(
    lab: Lab, what: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(lab.root.glob(what)) or [lab.root / what]:
        replace(path, kind)
    for words in (["verify", "--json"], ["explain", str(lab.table)]):
        with patience():
            status = main.main(["audit", *words])
        said = capsys.readouterr()
        assert "could not do its work" not in said.err, said.err
        if words[0] == "verify" and what in FINDINGS:
            assert status == 1, said.out
        elif words[0] == "verify":
            assert status in (0, 1), said.err
        if "--json" in words:
            json.loads(said.out)
