"""``snakemake --logger progress``: one line for each job, how far the run is, and a heartbeat while a job is long.

Snakemake finds it by its package's name. It stands in for Snakemake's output on the terminal; the complete log in
``.snakemake/log`` stays as it is. Every start of Snakemake imports this module, so it imports little.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from logging import ERROR, WARNING, LogRecord
from pathlib import Path
from typing import Any, TextIO

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

from localized_unlearning.progress import clock
from snakemake_logger_plugin_progress import configfiles
from snakemake_logger_plugin_progress.pace import Pace, Running

configfiles.check(sys.argv)

# Snakemake's scheduling, and that a failed job's command failed: the job's own error follows. All is in the log file.
UNSAID = {LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.RESOURCES_INFO, LogEvent.WORKFLOW_STARTED}
CHATTER = re.compile(
    r"RuleException:\s+CalledProcessError|Select jobs to execute|Execute \d+ jobs|Assuming unrestricted shared|Using shell: |Provided cores: |Rules claiming"
)
TIMESTAMP = re.compile(r"^\[\w{3} \w{3} [ \d]\d [\d:]{8} \d{4}\]\s*")
COLOURS = {ERROR: "\033[31m{}\033[0m", WARNING: "\033[33m{}\033[0m"}


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    """Settings on the command line: ``--logger-progress-heartbeat 60``."""

    heartbeat: float = field(
        default=20.0,
        metadata={"help": "Seconds of silence before a heartbeat; 0 for none", "type": float},
    )


class LogHandler(LogHandlerBase):
    """Writes to the terminal what a person wants to know of a run.

    Args:
        common_settings: Snakemake's own (``dryrun``, ``nocolor``, ``stdout``).
        settings: :class:`LogHandlerSettings`.
        clock_now: seconds that only grow; a test gives its own.
    """

    def __init__(
        self, common_settings: Any, settings: Any, clock_now: Callable[[], float] = time.monotonic
    ) -> None:
        self.now = clock_now
        super().__init__(common_settings, settings)

    @property
    def writes_to_stream(self) -> bool:
        return True

    @property
    def writes_to_file(self) -> bool:
        return False

    @property
    def has_filter(self) -> bool:
        """False: Snakemake's own filter keeps ``--quiet`` as everyone knows it."""
        return False

    @property
    def has_formatter(self) -> bool:
        """False: errors, with the logs of failed jobs, are worded by Snakemake."""
        return False

    @property
    def needs_rulegraph(self) -> bool:
        return False

    def __post_init__(self) -> None:
        heartbeat = getattr(self.settings or LogHandlerSettings(), "heartbeat", 0.0)
        self.stream: TextIO = sys.stdout if getattr(self.common_settings, "stdout", False) else sys.stderr
        self.coloured = (
            self.stream.isatty() and not self.common_settings.nocolor and os.environ.get("TERM") != "dumb"
        )
        self.pace = Pace(self.now())
        self.spoke = self.now()
        self.stopped = threading.Event()
        self.turn = threading.RLock()
        if heartbeat > 0 and not self.common_settings.dryrun:
            threading.Thread(target=self._beat, args=(heartbeat,), daemon=True).start()

    # ---- what Snakemake tells (in a thread of its own, which an exception would end: the rest would be lost)

    def emit(self, record: LogRecord) -> None:
        try:
            with self.turn:
                self._follow(record)
                if text := self._text(record):
                    self._say(text, record.levelno)
        except Exception:
            self.handleError(record)

    def _follow(self, record: LogRecord) -> None:
        """Keep the pace in step with an event."""
        event, told = getattr(record, "event", None), record.__dict__
        if event == LogEvent.RUN_INFO:
            jobs = {rule: number for rule, number in told["stats"].items() if rule != "total"}
            self.pace = Pace(self.now(), jobs)
        elif event == LogEvent.JOB_INFO:
            label = told.get("rule_msg") or told["rule_name"]
            job = Running(told["rule_name"], label, self.now(), list(told.get("log") or ()))
            self.pace.start(told["jobid"], job)
        elif event == LogEvent.JOB_FINISHED:
            self.pace.finish(told["job_id"], self.now())
        elif event == LogEvent.JOB_ERROR:
            self.pace.fail(told["jobid"])

    def _text(self, record: LogRecord) -> str:
        """What is said about an event; nothing where it is Snakemake's scheduling."""
        event = getattr(record, "event", None)
        if self.common_settings.dryrun:
            return self.format(record) or ""
        if event in UNSAID:
            return ""
        if event == LogEvent.PROGRESS:
            return f"{record.done} of {record.total} steps done, {self._times()}"  # type: ignore[attr-defined]
        text = TIMESTAMP.sub("", self.format(record) or "").rstrip("\n")
        return "" if event in (None, LogEvent.ERROR) and CHATTER.match(text) else text

    # ---- what nobody tells: that a long job lives

    def _beat(self, silence: float) -> None:
        while not self.stopped.wait(min(1.0, silence)):
            with contextlib.suppress(Exception), self.turn:
                if self.now() - self.spoke >= silence and self.pace.running:
                    self._say(self.heartbeat())

    def heartbeat(self) -> str:
        """The job that spoke last in its log, its last word there, and how far the run is."""
        running = list(self.pace.running.values())
        job = max(running, key=lambda job: max(map(_changed, job.logs), default=0.0))
        others = f" (and {len(running) - 1} more)" if len(running) > 1 else ""
        log = max(job.logs, key=_changed, default="")
        word = last_line(Path(log)) if log else ""
        word = f": {word}" if word else ""
        done = len(self.pace.finished)
        return (
            f"  ... {job.label}{others} for {clock(self.now() - job.since)}{word}\n"
            f"      {done} of {self.pace.total} steps done, {self._times()}"
        )

    def _times(self) -> str:
        now = self.now()
        gone = f"{clock(now - self.pace.begun)} gone"
        seconds, left = self.pace.seconds_per_job(now), self.pace.left(now)
        if seconds is None or left is None:
            return f"{gone}, time left not known yet"
        if not self.pace.running and not any(self.pace.waiting.values()):
            return gone
        return f"{gone}, lately {seconds:.1f} s per step, about {clock(left)} left"

    def _say(self, text: str, level: int = 0) -> None:
        self.spoke = self.now()
        colour = COLOURS.get(level, "{}") if self.coloured else "{}"
        try:
            print(colour.format(text), file=self.stream, flush=True)
        except BrokenPipeError:  # `snakemake ... | head`: nobody reads any more
            self.stopped.set()

    def close(self) -> None:
        self.stopped.set()
        super().close()


def _changed(path: str) -> float:
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return 0.0


def last_line(path: Path, width: int = 110) -> str:
    """The last line of a log that says something, cut to ``width`` characters; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - 2000, 0))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    return "" if not lines else lines[-1] if len(lines[-1]) <= width else lines[-1][: width - 1] + "…"
