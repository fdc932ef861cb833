"""Run the benchmark: every case, ours and the straightforward way, each in a process of its own.

    python -m benchmarks --model results/gemma-3-270m-cpu/base0/base_model [--cases mmlu_5shot probes] [--scale 0.2]

A whole run writes benchmarks/results/bench.json, the table of docs/performance.md (between its markers) and
docs/results/parity/mmlu.md, all at the end; part of one, or one at another scale, only prints its table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import MANUAL
from benchmarks.cases import CASES, Case
from localized_unlearning.data.mmlu import load_questions
from localized_unlearning.models import components, loading
from localized_unlearning.models.components import Component
from localized_unlearning.provenance import environment

FOLDER = Path("benchmarks/results")
PAGE = Path("docs/performance.md")
PARITY = Path("docs/results/parity/mmlu.md")
BEGIN, END = "<!-- made by `make bench`: begin -->\n", "<!-- end -->\n"


def choose(*paths: str) -> Path:
    """The first of the paths that is there."""
    return next(p for p in map(Path, paths) if p.exists())


def machine_rates(threads: int) -> tuple[float, float]:
    """FLOP per second of a float32 product as in Gemma 3 270M's MLP, and bytes per second of a copy: the best of five."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(2048, 640), torch.randn(640, 2048)
    source = torch.randn(2**26)
    target = torch.empty_like(source)

    def best(work: Any) -> float:
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:])

    return 2 * 2048 * 640 * 2048 / best(lambda: a @ b), 2 * source.nbytes / best(lambda: target.copy_(source))


def measure(name: str, variant: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one worker and return what it wrote."""
    out = FOLDER / f"{name}.{variant}"
    for left in (out.with_name(out.name + ".json"), out.with_name(out.name + ".npz")):
        left.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "benchmarks.worker", name, variant, "--out", f"{out}.x", "--model", str(args.model),
        "--questions", str(args.questions), "--athletes", str(args.athletes), "--threads", str(args.threads),
        "--scale", str(args.scale), "--device", args.device, "--dtype", args.dtype,
    ]  # fmt: skip
    paths = [args.extra] if CASES[name].extra and variant == "theirs" else []
    environ = {
        **os.environ, "OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": ":".join(paths),
        "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}, {variant}, failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads((out.with_name(out.name + ".json")).read_text())
    return figures


def row(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One case: both variants, their ratio, and whether they agree."""
    case: Case = CASES[name]
    print(f"{case.title}: the straightforward way ...", flush=True)
    theirs = measure(name, "theirs", args)
    careful = None
    if case.careful is not None:
        print(f"  {theirs['seconds']:.1f} s; a careful user's ...", flush=True)
        careful = measure(name, "careful", args)
    print(f"  {(careful or theirs)['seconds']:.1f} s; ours ...", flush=True)
    ours = measure(name, "ours", args)
    mine, *others = (
        dict(np.load(FOLDER / f"{name}.{v}.npz"))
        for v in ("ours", "theirs", "careful")
        if v != "careful" or careful
    )
    checked = [case.agree(mine, other) for other in others]
    agree, words = all(good for good, _ in checked), "; ".join(text for _, text in checked)
    ratio = (careful or theirs)["seconds"] / ours["seconds"]
    print(
        f"  {ours['seconds']:.1f} s: {ratio:.1f} times faster (target {case.target:g}); {words}", flush=True
    )
    return {
        "case": name, "title": case.title, "against": case.against, "target": case.target, "ours": ours,
        "theirs": theirs, "careful": careful, "ratio": ratio, "agree": agree, "agreement": words,
        "memory_target": case.memory,
    }  # fmt: skip


def overhead(run: Path) -> dict[str, Any] | None:
    """What share of a default run's core-seconds was outside its stages, from its records; None without a run."""
    found = [json.loads(p.read_text()) for p in run.rglob("*.record.json")]
    if not found:
        return None
    start = min(datetime.fromisoformat(r["started"]) for r in found)
    stop = max(datetime.fromisoformat(r["ended"]) for r in found)
    cores = len(os.sched_getaffinity(0))
    wall = (stop - start).total_seconds()
    inside = sum(
        r["seconds"] * (cores if r["stage"] == "pretrain" else 1) for r in found
    )  # it takes them all
    return {
        "jobs": len(found),
        "wall": wall,
        "inside": inside,
        "cores": cores,
        "outside": 1 - inside / wall / cores,
    }


def delta_share(folder: Path) -> tuple[float, float]:
    """Bytes of a manual delta over those of all weights: of the model in ``folder``, and of Gemma-7B by its shapes."""
    import transformers

    def share(config: Any, layers: Any) -> float:
        model = loading.skeleton(config)
        sizes = [components.size_of(Component(i, kind), model) for i in layers for kind in ("up", "down")]
        return float(sum(sizes) / sum(p.numel() for p in model.parameters()))

    own = transformers.AutoConfig.from_pretrained(folder)
    return share(own, MANUAL), share(transformers.GemmaConfig(), range(2, 8))


def table(found: dict[str, Any]) -> str:
    """The Markdown between the markers."""
    about = found["about"]
    lines = [
        f"Measured {about['date']} by `{about['command']}` at commit {about['commit']} on {about['machine']}, "
        f"{about['threads']} threads, {about['model']} in {about['dtype']}; torch {about['torch']}, transformers "
        f"{about['transformers']}, TransformerLens {about['transformer_lens']}, scikit-learn {about['scikit_learn']}, "
        f"lm-eval {about['lm_eval']}. A float32 product runs at {about['gflops']:.0f} GFLOP/s, a copy at "
        f"{about['gbytes']:.1f} GB/s. Load at the start: {about['load']:.1f}.",
        "",
        "| what | straightforward | that, s | a careful user, s | ours, s | times faster | target | floor, s | memory, GB: "
        "straightforward / careful / ours | outputs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found["rows"]:
        met = "" if r["ratio"] >= r["target"] else " (missed)"
        floor = "" if r["floor_seconds"] is None else f"{r['floor_seconds']:.2f}"
        kept = [r[v]["memory"] for v in ("theirs", "careful", "ours") if r[v]]
        held = "" if kept[-1] <= r["memory_target"] * min(kept[:-1]) else " (missed)"
        batch = f" ({r['theirs']['batch_size']})" if "batch_size" in r["theirs"] else ""
        careful = f"{r['careful']['seconds']:.1f}" if r["careful"] else ""
        lines.append(
            f"| {r['title']} | {r['against']}{batch} | {r['theirs']['seconds']:.1f} | {careful} | "
            f"{r['ours']['seconds']:.2f} | **{r['ratio']:.1f}** | {r['target']:g}{met} | {floor} | "
            f"{' / '.join(f'{gb:.2f}' for gb in kept)}{held} | {'' if r['agree'] else '**differ**: '}{r['agreement']} |"
        )
    run = found["overhead"]
    lines += [
        "",
        "A careful user's way, where it is another, reads last logits alone, sorts and left-pads its batches, runs a shared "
        "beginning once and loads once (benchmarks/careful.py); times faster and target are against it. "
        "Memory is the most that was held beyond the loaded model while the case ran, each in a process of its own; the "
        "target is less than either of theirs. "
        "The floor is the least work (benchmarks/cases.py) at the measured matrix rate.",
        "",
        "- Delta of a manual localization over all weights: "
        f"{found['delta'][0]:.1%} here, {found['delta'][1]:.1%} of Gemma-7B by its shapes (target: at most 12 %).",
    ]
    if run is None:
        lines.append(
            "- The default run's time outside its stages: not measured, since results/organism is not there."
        )
    else:
        lines.append(
            f"- The default run ({run['jobs']} records): {run['inside']:.0f} core-seconds in stages within {run['wall']:.0f} s on "
            f"{run['cores']} cores: {run['outside']:.0%} of the core-seconds outside stages (target: under 25 %)."
        )
    return "\n".join(lines) + "\n"


def parity(found: dict[str, Any]) -> str:
    """Every subject's questions, ours against lm-eval."""
    about = found["about"]
    lines = [
        "# MMLU answers, ours against lm-eval",
        "",
        f"`{about['command']}` at commit {about['commit']} on {about['machine']}, {about['date']}: {about['model']} in "
        f"{about['dtype']}, lm-eval {about['lm_eval']}, question by question. An answer is the most likely of A to D; "
        "its margin is its log p minus the second's, by lm-eval.",
        "",
        "| shots | subject | questions | the same answer | largest difference of log p | smallest margin | right, ours | right, lm-eval |",
        "|---|---|---|---|---|---|---|---|",
    ]

    answers = {q.id: q.answer for q in load_questions(Path(about["questions"])).test}
    for name, shots in (("mmlu_0shot", 0), ("mmlu_5shot", 5)):
        ours, theirs = (dict(np.load(FOLDER / f"{name}.{v}.npz")) for v in ("ours", "theirs"))
        subjects = np.array([item.split("/")[0] for item in ours["item"]])
        right = np.array([answers[item] for item in ours["item"]])
        for subject in dict.fromkeys(subjects):
            at = subjects == subject
            a, b = ours["logp"][at], theirs["logp"][at]
            ranked = np.sort(b, 1)
            lines.append(
                f"| {shots} | {subject.replace('_', ' ')} | {at.sum()} | {(a.argmax(1) == b.argmax(1)).sum()} | "
                f"{np.abs(a - b).max():.1e} | {(ranked[:, -1] - ranked[:, -2]).min():.1e} | "
                f"{(a.argmax(1) == right[at]).sum()} | {(b.argmax(1) == right[at]).sum()} |"
            )
    return "\n".join(lines) + "\n"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [s.split(":")[1].strip() for s in info.read_text().splitlines() if s.startswith("model name")]
    return names[0] if names else platform.processor()


def write(path: Path, text: str) -> None:
    """Atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.tmp")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def commit_name() -> str:
    """The checkout's commit, and whether it has changes."""
    state = environment.commit()
    return str(state.get("commit", "unknown"))[:12] + (" with changes" if state.get("dirty") else "")


def settings() -> argparse.Namespace:
    """What the command line says, and where the inputs are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=Path("results/gemma-3-270m-cpu/base0/base_model"))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of items")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--extra", default=".venv/bench", help="folder of the packages of envs/bench.txt")
    args = parser.parse_args()
    args.questions = choose("../shared/data/mmlu", "workflow/resources/general_knowledge.csv")
    args.athletes = choose("../shared/data/sports_facts.csv", "workflow/resources/athletes.csv")
    args.extra = str(Path(args.extra).resolve())
    FOLDER.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    from importlib.metadata import version

    args = settings()
    started = time.monotonic()
    load = os.getloadavg()[0]
    rates = machine_rates(args.threads)
    rows = [row(name, args) for name in args.cases]
    again = machine_rates(args.threads)
    rates = (max(rates[0], again[0]), max(rates[1], again[1]))
    for r in rows:
        r["floor_seconds"] = r["ours"]["flop"] / rates[0] if "flop" in r["ours"] else None
    found: dict[str, Any] = {
        "about": {
            "command": "make bench", "date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": cpu_name(), "load": load,
            "commit": commit_name(), "threads": args.threads, "dtype": args.dtype, "device": args.device,
            "model": "gemma-3-270m" if "gemma-3-270m" in str(args.model) else args.model.name,
            "questions": str(args.questions), "gflops": rates[0] / 1e9, "gbytes": rates[1] / 1e9,
            "lm_eval": next((r["theirs"]["lm_eval"] for r in rows if "lm_eval" in r["theirs"]), "not run"),
            **{n.replace("-", "_"): version(n) for n in ("torch", "transformers", "transformer-lens", "scikit-learn")},
        },
        "rows": rows, "delta": delta_share(args.model), "overhead": overhead(Path("results/organism")),
    }  # fmt: skip
    found["minutes"] = (time.monotonic() - started) / 60
    print("\n" + table(found) + f"\n{found['minutes']:.1f} minutes")
    if args.cases != list(CASES) or args.scale != 1.0:
        return
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    text = table(found)
    write(FOLDER / "bench.json", json.dumps(found, indent=1) + "\n")
    write(PARITY, parity(found))
    write(PAGE, before + BEGIN + "\n" + text + "\n" + END + after)


if __name__ == "__main__":
    main()
