"""The command that lists the presets, or says where one lies."""

from __future__ import annotations

import argparse
import difflib
import re
from pathlib import Path

from localized_unlearning.errors import UserError

FOLDER = Path("workflow/presets")


def find(name: str, folder: Path = FOLDER) -> Path:
    """The file of a preset.

    Raises:
        UserError: naming the nearest preset, and all of them.
    """
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if name.removesuffix(".yaml") in known:
        return known[name.removesuffix(".yaml")]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"there is no preset {name}: {hint}presets are {', '.join(known) or 'not in this folder'}"
    )


def sentence(path: Path) -> str:
    """What a preset is for: the first sentence of the comment it begins with."""
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#")
        if not line.startswith("#") or text.startswith("  "):
            break
        words += text.split()
    return re.split(r"(?<!al)[.:] |(?<=\?) | \(|\.$", " ".join(words))[0]


def presets(arguments: argparse.Namespace) -> int:
    """Print every preset with its sentence, or the path of the one that is named."""
    if arguments.name:
        print(find(arguments.name))
        return 0
    paths = sorted(FOLDER.glob("*.yaml"))
    width = max((len(path.stem) for path in paths), default=0) + 2
    for path in paths:
        print(f"{path.stem:<{width}}{sentence(path)}")
    if not paths:
        raise UserError(f"there is no folder {FOLDER} here")
    print(
        "\nlocalized-unlearning preflight --preset NAME says what one takes and what it lacks; make all PRESET=NAME"
    )
    print(f"runs it. {FOLDER}/NAME.yaml names its targets where they are not all; docs/presets.md has costs.")
    return 0
