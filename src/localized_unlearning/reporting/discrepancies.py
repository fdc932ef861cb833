"""Where the paper and its authors' code part: the difference of two presets, with the reason for each key.

The reasons stand in ``workflow/resources/discrepancies.yaml``; the values are the presets', so that the page
cannot say another thing than what runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localized_unlearning.config import reading
from localized_unlearning.errors import UserError

REASONS = Path("workflow/resources/discrepancies.yaml")

PAPER, RELEASED = (Path(f"workflow/presets/{name}.yaml") for name in ("gemma-7b", "gemma-7b-as-released"))

NAMES = ("run",)
"""Keys that must differ between any two presets."""


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a nested mapping by dotted key; an empty value (null, {}) is left out."""
    if not isinstance(node, Mapping):
        return {} if node is None else {prefix: node}
    found: dict[str, Any] = {}
    for name, child in node.items():
        found |= leaves(child, f"{prefix}.{name}" if prefix else name)
    return found


def values(*presets: Path, root: Path) -> dict[str, Any]:
    """Every value of the config made of ``config.yaml`` and presets."""
    paths = [root / path for path in (Path("config.yaml"), *presets)]
    return leaves(reading.load(paths).model_dump(mode="json"))


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys in which two configs differ, but for their names."""
    return [
        key
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key) and key not in NAMES
    ]


def reason_of(key: str, reasons: Mapping[str, Any]) -> str | None:
    """The entry that speaks of a key: its own, or that of a beginning of it."""
    return next((entry for entry in reasons if key == entry or key.startswith(f"{entry}.")), None)


def page(root: Path) -> str:
    """``docs/discrepancies.md``.

    Raises:
        UserError: when a differing key has no reason, or a reason no differing key.
    """
    notes = reading.read_yaml(root / REASONS)
    before, after = values(PAPER, root=root), values(RELEASED, root=root)
    default = values(root=root)
    keys: dict[str, list[str]] = {entry: [] for entry in notes["differences"]}
    for key in differing(before, after):
        entry = reason_of(key, notes["differences"])
        if entry is None:
            raise UserError(f"{RELEASED.name} differs in {key}, but {REASONS} gives no reason: add one")
        keys[entry].append(key)
    if idle := [entry for entry, found in keys.items() if not found]:
        raise UserError(f"{REASONS} speaks of {idle[0]}, in which the presets do not differ: remove it")
    lines = [
        "# Where the paper and its authors' code part",
        "",
        f"Generated from `{REASONS}` and the presets by `localized-unlearning reference`.",
        f"`{PAPER.stem}` is the paper as written, `{RELEASED.stem}` what the code did where it differs",
        "(magikarp01/mechanistic-unlearning: 7f2a375 of 2024-07-02 for the tables, ab3b391 of 2024-05-22 for the masks).",
        "Everything else is the same in both. Any key can be set alone, in an overlay.",
        "",
        f"## What `{RELEASED.stem}` changes",
        "",
        f"| key | paper says (`{PAPER.stem}`) | released code did (`{RELEASED.stem}`) | by default | why it matters |",
        "|---|---|---|---|---|",
    ]
    for entry, found in keys.items():
        note = notes["differences"][entry]
        cells = [
            f"`{entry}`",
            f"{note['paper']}<br>{value_in(entry, found, before)}",
            f"{claimed(entry, note['released'], found)}<br>{value_in(entry, found, after)}",
            value_in(entry, found, default),
            note["why"],
        ]
        lines.append(row(cells))
    lines += [
        "",
        f"## What the paper leaves open, and `{PAPER.stem}` takes from the code",
        "",
        f"| key | `{PAPER.stem}` | by default | |",
        "|---|---|---|---|",
    ]
    for key, note in notes["open"].items():
        if key not in before:
            raise UserError(f"{REASONS} speaks of {key}, which {PAPER.name} does not set: correct it")
        lines.append(row([f"`{key}`", value_in(key, [key], before), value_in(key, [key], default), note]))
    lines += ["", "## What no key brings back", "", "| the released code | here |", "|---|---|"]
    for note in notes["fixed"]:
        text = f"{note['did']} {note['ours']}"
        if named := [
            key for key in default if "." in key and re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", text)
        ]:
            raise UserError(
                f"{REASONS} says that no key brings back '{note['did'][:40]}...', and names {named[0]}: give that key a row"
            )
        lines.append(row([note["did"], note["ours"]]))
    return "\n".join(lines) + "\n"


def claimed(entry: str, released: str | Mapping[str, str], found: list[str]) -> str:
    """What a row says of the released code: each clause hangs on a key that the preset really switches.

    Raises:
        UserError: when one sentence speaks for several keys, or a clause for a key that does not differ.
    """
    if isinstance(released, str):
        if len(found) > 1:
            raise UserError(
                f"{REASONS} says one thing of {entry}, where {len(found)} keys differ: give each clause its key"
            )
        return released
    names = {key[len(entry) + 1 :] for key in found}
    if idle := [name for name in released if name not in names]:
        raise UserError(
            f"{REASONS} claims {entry}.{idle[0]}, which {RELEASED.name} does not switch: remove it"
        )
    return "; ".join(f"{text} (`{name}`)" for name, text in released.items())


def row(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.strip().replace("|", "\\|") for cell in cells) + " |"


def value_in(entry: str, keys: list[str], config: Mapping[str, Any]) -> str:
    """The values of ``keys`` in a config, each with what its key has beyond ``entry``."""
    parts = []
    for key in keys:
        if key in config:
            name = key[len(entry) + 1 :]
            value = json.dumps(config[key], ensure_ascii=False).strip('"')
            parts.append(f"`{name}: {value}`" if name else f"`{value}`")
    return " ".join(parts) or "(not set)"
