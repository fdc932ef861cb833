"""A wrong file after ``--configfile`` is told in one sentence.

Snakemake reads these files before it reads the Snakefile, and a missing one ends it with a traceback. It imports its
plugins before that, so this is where the sentence can be said. Only files that Snakemake would refuse are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

OPTIONS = ("--configfile", "--configfiles")
STARTS = (("snakemake",), ("snakemake", "__main__.py"))


def named(words: Sequence[str]) -> list[str]:
    """The files that a command line of Snakemake names as config files.

    >>> named(["all", "--configfile", "a.yaml", "b.yaml", "-n", "--configfile=c.yaml"])
    ['a.yaml', 'b.yaml', 'c.yaml']
    """
    files: list[str] = []
    taking = False
    for word in words:
        option, _, value = word.partition("=")
        if word.startswith("-"):
            taking = option in OPTIONS
            files += [value] if taking and value else []
        elif taking:
            files.append(word)
    return files


def fault(name: str) -> str | None:
    """What is wrong with a config file, in one sentence; None when Snakemake takes it."""
    from snakemake.common.configfile import (
        load_configfile,  # Snakemake's own reading of the file; YAML's library
    )
    from snakemake.exceptions import WorkflowError

    try:
        load_configfile(name)
    except FileNotFoundError:
        # A target behind the option is the usual reason: Snakemake takes every word there for a file.
        hint = "" if "." in Path(name).name else " (targets stand before --configfile)"
        return f"config file {name} does not exist: check the path{hint}"
    except (OSError, UnicodeError) as error:
        return f"config file {name} cannot be read ({getattr(error, 'strerror', None) or 'it is no text'})"
    except WorkflowError as error:
        if "not valid" in str(error):
            return f"config file {name} is not valid YAML: {_place(name)}"
        return f"config file {name} must hold a mapping of settings, such as 'run: mine'"
    return None


def _place(name: str) -> str:
    import yaml  # for the message only

    try:
        yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        return " ".join(str(error).split())
    return "correct it"


def check(argv: Sequence[str]) -> None:
    """End a Snakemake that was given a wrong config file, with its fault; do nothing in any other program."""
    if not argv or not any(Path(argv[0]).parts[-len(end) :] == end for end in STARTS):
        return
    for name in named(argv[1:]):
        if said := fault(name):
            sys.exit(f"error: {said}")
