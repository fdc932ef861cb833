"""The logger plugin: events recorded from a real run of Snakemake, replayed on a clock of the test's."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_logger_plugin_progress import LogHandler, LogHandlerSettings, configfiles, last_line
from snakemake_logger_plugin_progress.pace import Finished, Pace, Running

# `snakemake --cores 2 --keep-going all bad`: ten jobs of half a second, one of six seconds, one that fails.
RECORDED = Path(__file__).parent / "recorded/snakemake_events.jsonl"


class Run:
    """A handler that writes to ``said``, at a time that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dryrun: bool = False, heartbeat: float = 0) -> None:
        self.time = 0.0
        self.said = io.StringIO()
        monkeypatch.setattr(sys, "stderr", self.said)
        common = SimpleNamespace(dryrun=dryrun, nocolor=False, stdout=False)
        self.handler = LogHandler(common, LogHandlerSettings(heartbeat=heartbeat), lambda: self.time)
        self.handler.setFormatter(logging.Formatter("%(text)s"))

    def tell(self, **event: Any) -> None:
        record = logging.makeLogRecord({"levelno": logging.INFO, "text": "", **event})
        self.handler.handle(record)

    def replay(self, until: float = float("inf")) -> str:
        """Tell the recorded events up to a time in seconds; returns what was said."""
        for line in RECORDED.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event["at"] > until:
                break
            self.time = event["at"]
            self.tell(**event)
        return self.said.getvalue()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(**options: Any) -> Run:
        runs.append(Run(monkeypatch, **options))
        return runs[-1]

    yield make
    for made in runs:
        made.handler.close()


def test_a_run_is_one_line_a_job_and_how_far_it_is(run: Callable[..., Run]) -> None:
    said = run().replay()
    assert said.count("short job") == 10 and said.count(": the long one\n") == 1
    assert "Select jobs" not in said and "Execute " not in said and "Finished jobid" not in said
    assert "2026" not in said.replace(".snakemake/log/2026", ""), "timestamps are in the log file"
    assert "time left not known yet" in said and "s per step, about 0:" in said
    assert "CalledProcessError" not in said, "the job's own error says it"
    assert "Error in rule bad" in said and "an error in the log" in said, "a failed job's log is shown"


def test_a_dry_run_shows_everything_as_snakemake_words_it(run: Callable[..., Run]) -> None:
    texts = [json.loads(line)["text"] for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    assert run(dryrun=True).replay() == "".join(text + "\n" for text in texts if text)


def test_the_heartbeat_tells_what_the_long_job_said_last(run: Callable[..., Run], tmp_path: Path) -> None:
    playing = run()
    log = tmp_path / "long.log"
    playing.tell(event="run_info", stats={"pretrain": 1, "table": 2, "total": 3})
    playing.tell(event="job_info", jobid=1, rule_name="table", rule_msg="table 1", log=[])
    playing.tell(
        event="job_info", jobid=2, rule_name="pretrain", rule_msg="pretrain the organism", log=[str(log)]
    )
    playing.time = 95.0
    assert "time left not known yet" in playing.handler.heartbeat()
    log.write_text("loading\npretraining: 120/420 steps\r pretraining: 121/420 steps\n\n")
    assert playing.handler.heartbeat() == (
        "  ... pretrain the organism (and 1 more) for 1:35: pretraining: 121/420 steps\n"
        "      0 of 3 steps done, 1:35 gone, time left not known yet"
    )


def test_it_beats_by_itself_while_nothing_else_is_said(run: Callable[..., Run]) -> None:
    playing = run(heartbeat=0.05)
    playing.tell(event="job_info", jobid=1, rule_name="score", rule_msg="score components", log=None)
    playing.time = 1.0
    for _ in range(200):
        if "... score components for 0:01" in playing.said.getvalue():
            break
        playing.handler.stopped.wait(0.05)
    else:
        pytest.fail(f"no heartbeat in ten seconds: {playing.said.getvalue()}")
    playing.handler.close()
    assert playing.handler.stopped.is_set()


def test_an_event_it_cannot_read_does_not_end_it(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in emit would end the thread that Snakemake's events come through, without a word."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    playing = run()
    playing.tell(event="run_info", stats=None)
    playing.tell(event="job_info")
    playing.tell(event="progress", done=1, total=2)
    assert "1 of 2 steps done" in playing.said.getvalue()


def test_a_reader_that_went_away_is_no_fault(run: Callable[..., Run]) -> None:
    playing = run()

    def closed(text: str) -> int:
        raise BrokenPipeError

    playing.said.write = closed  # type: ignore[method-assign]
    playing.tell(event="progress", done=1, total=2)
    assert playing.handler.stopped.is_set()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ""),
        (b"", ""),
        (b"\n \n", ""),
        (b"one\ntwo\r\n", "two"),
        (b"x" * 5000, "x" * 109 + "…"),
        (b"\xff\xfe", "��"),
    ],
)
def test_the_last_line_of_any_log(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "log"
    if content is not None:
        path.write_bytes(content)
    assert last_line(path) == expected


def paced(durations: list[float], waiting: int) -> Pace:
    """Jobs of one rule, one after another."""
    pace, now = Pace(0.0, {"rule": len(durations) + waiting}), 0.0
    for number, seconds in enumerate(durations):
        pace.start(number, Running("rule", "job", now))
        now += seconds
        pace.finish(number, now)
    return pace


def test_time_left_follows_the_later_half() -> None:
    """The whole mean would say 10 x 50.5 s: it once said two minutes where there was half an hour."""
    pace = paced([100.0] * 10 + [1.0] * 10, waiting=10)
    assert pace.left(1010.0) == pytest.approx(10.0)
    assert pace.seconds_per_job(1010.0) == pytest.approx(1.0)
    slower = paced([1.0] * 10 + [100.0] * 10, waiting=10)
    assert slower.left(1010.0) == pytest.approx(1000.0)


def test_rules_have_their_own_pace_and_share_the_cores() -> None:
    pace = Pace(0.0, {"long": 4, "short": 4})
    for number in range(2):  # two long ones at a time, 100 s each; then two short ones, 10 s
        for rule, since, until in [("long", 0.0, 100.0), ("short", 100.0, 110.0)]:
            pace.start(10 * number + len(rule), Running(rule, rule, since))
            pace.finish(10 * number + len(rule), until)
    pace.finished.sort(key=lambda job: job.until)
    assert pace.total == 8
    assert pace.left(110.0) == pytest.approx((2 * 100 + 2 * 10) / 2)


def test_nothing_is_said_from_jobs_unlike_those_that_wait() -> None:
    """Four base models in 5 minutes once said that 1,038 short jobs would take 17 hours."""
    pace = Pace(0.0, {"pretrain": 4, "short": 1000})
    for number in range(4):
        pace.start(number, Running("pretrain", "pretrain", 75.0 * number))
        pace.finish(number, 75.0 * (number + 1))
    assert pace.left(300.0) is None
    pace.start(9, Running("short", "short", 300.0))
    pace.finish(9, 300.5)
    left = pace.left(300.5)
    assert left is not None and left < 1000


def test_an_overdue_job_pushes_the_end_away() -> None:
    pace = paced([10.0] * 4, waiting=1)
    pace.start(9, Running("rule", "job", 40.0))
    assert pace.left(45.0) == pytest.approx(5.0)
    assert pace.left(100.0) == pytest.approx(50.0), "60 s gone of 10: it may need that delay again"


def test_a_failed_job_is_still_to_be_done() -> None:
    pace = Pace(0.0, {"rule": 2})
    pace.start(1, Running("rule", "job", 0.0))
    pace.fail(1)
    assert pace.total == 2 and pace.waiting == {"rule": 2}
    pace.start(1, Running("rule", "job", 5.0))
    pace.finish(1, 9.0)
    assert pace.total == 2 and pace.finished == [Finished("rule", 5.0, 9.0)]


@given(st.lists(st.floats(0.01, 1000), min_size=4, max_size=30), st.integers(0, 20), st.floats(0, 100))
def test_time_left_is_a_time(durations: list[float], waiting: int, later: float) -> None:
    left = paced(durations, waiting).left(sum(durations) + later)
    assert left is not None and left >= 0 and (left > 0) == (waiting > 0)


def test_it_is_light_to_import() -> None:
    """Every start of Snakemake imports it, those of its jobs too."""
    code = "import sys, snakemake_logger_plugin_progress; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "numpy", "snakemake", "yaml", "pydantic"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist: check the path"),
        ("a: [1\n", "is not valid YAML: .*line 1"),
        ("- 1\n", "must hold a mapping of settings"),
        ("", "must hold a mapping of settings"),
        ("run: tiny\n", None),
        ('{"run":\t"tiny"}', None),  # JSON that is no YAML, which Snakemake takes
    ],
)
def test_a_wrong_config_file_is_one_sentence(tmp_path: Path, text: str | None, said: str | None) -> None:
    """Catches a fault that comes as a traceback, and a file refused that Snakemake takes."""
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    found = configfiles.fault(str(path))
    assert (found is None) if said is None else found is not None
    if said and found:
        assert re.search(said, found)
        assert "\n" not in found


def test_snakemake_itself_says_that_sentence() -> None:
    """Catches a Snakemake that reads its config files before its plugins."""
    words = [sys.executable, "-m", "snakemake", "-n", "all", "--configfile", "nowhere.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: config file nowhere.yaml does not exist: check the path\n",
    )
