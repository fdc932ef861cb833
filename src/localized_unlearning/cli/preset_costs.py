"""What each preset is predicted to take, as a page; apart from ``presets``, which every command and stage imports."""

from __future__ import annotations

import re
from pathlib import Path

from localized_unlearning.cli.presets import FOLDER, sentence
from localized_unlearning.costs.sizes import GB
from localized_unlearning.reporting.markup import row
from localized_unlearning.workflow.plan import device_of, open_plan

DEFAULT = Path("config.yaml")


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
