"""The command that lists the presets, says where one lies, or what each costs."""

from __future__ import annotations

import argparse
import difflib
import re
from pathlib import Path

from localized_unlearning.costs.sizes import GB
from localized_unlearning.errors import UserError
from localized_unlearning.reporting.markup import row
from localized_unlearning.workflow.plan import device_of, open_plan

DEFAULT, FOLDER = Path("config.yaml"), Path("workflow/presets")


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


def targets(path: Path) -> list[str]:
    """What a preset is made for: the targets of the command in the comment it begins with."""
    found = re.search(r"^#   snakemake (.+?) --configfile", path.read_text(encoding="utf-8"), re.MULTILINE)
    words = found[1].split() if found else []
    return [
        w for w, before in zip(words, ["", *words], strict=False) if w[0] != "-" and before != "--profile"
    ]


def costs() -> str:
    """``docs/presets.md``: what each preset is predicted to take."""
    lines = [
        "# Presets and what they take",
        "",
        "Written by `localized-unlearning presets --costs`; a test keeps it in step. All of it is predicted by the cost model, for the",
        "targets named here: hours of an A100 (80 GB), or of a CPU that does one job at a time on the cores named;",
        "how the model was calibrated, and how far it is off: [scale](scale.md).",
        "",
        row(["Preset", "What it is", "Targets", "Jobs", "Hours", "On", "Memory, GB", "Outputs, GB"]),
        "|---|---|---|---:|---:|---|---:|---:|",
    ]
    for path in sorted(FOLDER.glob("*.yaml")):
        names = targets(path)
        plan = open_plan([DEFAULT, path], checked=False, names=names)
        threads, shards = plan.config.compute.threads, plan.config.compute.shards
        device, host = device_of(plan, None, threads, measure=False)
        many = shards if device.gpu else threads
        name = "A100" if device.gpu else "core" if threads == 1 else "cores"
        digits = 0 if device.gpu else 1
        held = max(cost.device_bytes for cost in plan.costs.values()) / GB
        cells = [
            f"`{path.stem}`",
            sentence(path),
            ", ".join(names),
            f"{len(plan.needs):,}",
            f"{plan.hours(list(plan.needs), device, host):.1f}",
            f"{many} {name}",
            f"{held:.{digits}f}",
            f"{plan.disk() / GB:.{digits}f}",
        ]
        lines.append(row(cells))
    return "\n".join(lines) + "\n"


def presets(arguments: argparse.Namespace) -> int:
    """Print every preset with its sentence, or the path of the one that is named, or what each costs."""
    if arguments.costs:
        print(costs(), end="")
        return 0
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
