"""MMLU 0-shot at Gemma-7B's shape: random models of its width and vocabulary with few layers, extrapolated to all.

    python -m benchmarks.shape [--scale 0.2]

Each layer takes as long as the next, so two depths give what a layer costs and what the rest does, for ours and for
lm-eval. Writes the part of docs/performance.md between its markers.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.__main__ import PAGE, commit_name, cpu_name, row, settings, write

BEGIN, END = "<!-- made by `python -m benchmarks.shape`: begin -->\n", "<!-- shape: end -->\n"
DEPTHS = (1, 4)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def random_model(folder: Path, layers: int, tokenizer: Path) -> int:
    """A random model of Gemma-7B's shape with few layers, saved in ``folder``; returns the layers of the real one."""
    import torch
    import transformers

    config = transformers.GemmaConfig(
        vocab_size=262_144
    )  # its defaults are Gemma-7B's; our tokenizer's vocabulary
    depth, config.num_hidden_layers = config.num_hidden_layers, layers
    torch.manual_seed(0)
    transformers.GemmaForCausalLM(config).save_pretrained(folder)
    for name in TOKENIZER:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder)
    return int(depth)


def main() -> None:
    args = settings()
    tokenizer, rows = args.model, {}
    for layers in DEPTHS:
        with tempfile.TemporaryDirectory() as folder:
            args.model = Path(folder)
            depth = random_model(args.model, layers, tokenizer)
            rows[layers] = row("mmlu_0shot", args)
    text = table(rows, depth, args)
    print("\n" + text)
    page = PAGE.read_text(encoding="utf-8")
    write(PAGE, page.split(BEGIN)[0] + BEGIN + "\n" + text + "\n" + END + page.split(END)[1])


def table(rows: dict[int, dict[str, Any]], depth: int, args: argparse.Namespace) -> str:
    """The Markdown between the markers."""
    few, many = DEPTHS
    found = {
        variant: [rows[layers][variant]["seconds"] for layers in DEPTHS] for variant in ("theirs", "ours")
    }
    for times in found.values():
        a_layer = (times[1] - times[0]) / (many - few)
        times += [a_layer, times[0] + (depth - few) * a_layer]
    lines = [
        f"| | {few} layer, s | {many} layers, s | a layer, s | all {depth}, extrapolated, s |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | " + " | ".join(f"{value:.2f}" for value in found[variant]) + " |"
            for variant, name in (("theirs", "lm-eval"), ("ours", "ours"))
        ),
        "| times faster | "
        + " | ".join(f"{a / b:.1f}" for a, b in zip(found["theirs"], found["ours"], strict=True))
        + " |",
        "",
        f"MMLU 0-shot, {rows[few]['agreement'].split(' questions')[0]} questions, {args.dtype}, random weights of Gemma-7B's "
        f"width (hidden 3072, MLP 24,576, a vocabulary of 262,144): `python -m benchmarks.shape --scale {args.scale:g}` at "
        f"commit {commit_name()}, {datetime.now(UTC):%Y-%m-%d}, {cpu_name()}, {args.threads} threads. {rows[many]['agreement']}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
