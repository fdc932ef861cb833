"""How a failed run ends on the terminal: with what was found, below Snakemake's own account of it."""

from __future__ import annotations

import atexit
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

_FAILED = re.compile(r"^Error in rule (\w+):\n((?:    .*\n?)*)", re.M)
_LOG = re.compile(r"^    log: (.+?)(?: \(check log|$)", re.M)


def refuse(finding: object) -> NoReturn:
    """End Snakemake while it reads the Snakefile, with one sentence and no place in our files."""
    sys.exit(f"error: {finding}")


def findings(log: str) -> list[str]:
    """What the failed jobs of a Snakemake log found, one sentence each, from their own logs.

    Args:
        log: the text of Snakemake's log; each failed job names the log of its own there.
    """
    found = []
    for rule, block in _FAILED.findall(log):
        named = _LOG.search(block)
        path = Path(named[1].split(", ")[0]) if named else None
        lines = (
            path.read_text(encoding="utf-8", errors="replace").split("\n") if path and path.is_file() else []
        )
        said = [line.strip() for line in lines if line.startswith(("error: ", "Verdict: "))]
        if said:
            found.append(f"{rule}: {said[-1].removeprefix('error: ')}")
        elif path:
            found.append(f"{rule} failed: {path} says how")
    return list(dict.fromkeys(found))


def say_last(logs: Iterable[str | Path]) -> None:
    """Print the findings of a failed run when all else has been printed; ``logs``: Snakemake's own."""
    texts = [Path(log).read_text(encoding="utf-8", errors="replace") for log in logs if Path(log).is_file()]
    if told := findings("\n".join(texts)):
        atexit.register(_print, told)


def _print(told: Sequence[str], most: int = 5) -> None:
    more = len(told) - most
    lines = [f"error: {line}" for line in told[:most]] + ([f"and {more} more"] if more > 0 else [])
    print("\n" + "\n".join(lines), file=sys.stderr, flush=True)
