"""Our arithmetic against implementations we did not write, on a real model; writes the table of docs/evidence.md.

    python -m benchmarks.parity results/gemma-3-270m-cpu/base0/base_model

Everything runs in float32 on the CPU. Each check says how far the two sides differ at most, and how large the compared
numbers are; both sides start from the same weights and tokens. With ``--only NAME`` one check runs and nothing is written.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from benchmarks import lens
from benchmarks.sports import CHOICES, SPORTS, first_tokens
from localized_unlearning.attacks import relearning
from localized_unlearning.config.evaluation import Probing, Relearning
from localized_unlearning.config.localization import Components, Score
from localized_unlearning.config.unlearning import Finetune
from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.data import windows
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.errors import UserError
from localized_unlearning.interpretability import probes as probes_module
from localized_unlearning.localization import attribution_patching, causal_tracing
from localized_unlearning.localization import pairs as pairs_module
from localized_unlearning.models import activations, components, loading
from localized_unlearning.models.components import Component
from localized_unlearning.models.vocabulary import log_odds
from localized_unlearning.provenance import environment
from localized_unlearning.unlearning import finetune, losses, method, steps
from localized_unlearning.unlearning.objectives.erase import erase

PAGE = Path("docs/evidence.md")
START, END = "<!-- parity: written by benchmarks/parity.py -->", "<!-- end of parity -->"
BATCH_TOKENS = 1024


class Subject(NamedTuple):
    """What the checks run on: a model, its tokenizer, the folder it came from, and athletes with their sports."""

    folder: Path
    model: Any
    tokenizer: Any
    athletes: list[tuple[str, str]]

    def prompts(self, count: int) -> tuple[list[list[int]], list[int]]:
        """Tokens of ``count`` training prompts, and their answers' tokens."""
        names, sports = zip(*self.athletes[:count], strict=True)
        prompt = load_prompts(Path("workflow/resources/prompts.yaml"))["training"]
        tokens = dict(zip(SPORTS, first_tokens(self.tokenizer, SPORTS), strict=True))
        return tokens_module.encode(self.tokenizer, [prompt.render(n) for n in names]), [
            tokens[s] for s in sports
        ]

    def pairs(self, count: int) -> pairs_module.Pairs:
        """Clean and corrupt prompts."""
        prompt = load_prompts(Path("workflow/resources/prompts.yaml"))["training"]
        return pairs_module.make_pairs(self.athletes[:count], prompt, CHOICES, self.tokenizer, 0)


class Result(NamedTuple):
    """One comparison: what with what, over how many numbers, the largest difference and the largest number."""

    ours: str
    theirs: str
    compared: str
    numbers: int
    difference: float
    largest: float


def result(ours: str, theirs: str, compared: str, first: Any, second: Any) -> Result:
    """The comparison of two arrays of the same shape."""
    a, b = (torch.as_tensor(np.array(x)).double().numpy() for x in (first, second))
    if a.shape != b.shape:
        raise ValueError(f"{compared}: shapes {a.shape} and {b.shape}")
    return Result(ours, theirs, compared, a.size, float(np.abs(a - b).max()), float(np.abs(b).max()))


# ---- localization against TransformerLens


def bridge_of(subject: Subject) -> Any:
    """TransformerLens over the same weights."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        str(subject.folder), hf_model=subject.model, tokenizer=subject.tokenizer, device="cpu", dtype=torch.float32
    )  # fmt: skip


def attribution(subject: Subject) -> Iterator[Result]:
    """Attribution patching against TransformerLens."""
    pairs, found = subject.pairs(3), components.list_components(subject.model.config, Components())
    expected = lens.attribution_patching(bridge_of(subject), pairs, found)
    ours = lens.by_prompt(
        attribution_patching.attribution_patching(subject.model, pairs, found, BATCH_TOKENS)
    )
    yield result(
        "attribution patching", "TransformerLens, hooks on two runs", "score of each matrix", ours, expected
    )


def tracing(subject: Subject) -> Iterator[Result]:
    """Causal tracing against TransformerLens."""
    pairs, found = subject.pairs(2), components.list_components(subject.model.config, Components())[::7]
    sites = causal_tracing.tracing_sites(
        subject.model, Score(method="causal_tracing", sites="matrices"), found
    )
    width = subject.model.get_input_embeddings().weight.shape[1]
    scale = 3.0 * causal_tracing.noise_scale(subject.model)
    expected = lens.causal_tracing(bridge_of(subject), pairs, found, scale, width, 7)
    ours = lens.by_prompt(causal_tracing.causal_tracing(subject.model, pairs, sites, 3.0, 7, BATCH_TOKENS))
    yield result(
        "causal tracing", "TransformerLens, a whole pass for each site", "restored share", ours, expected
    )


# ---- probes, LoRA, losses, training


def probes(subject: Subject) -> Iterator[Result]:
    """Activations against transformers' own hidden states, predictions against plain scikit-learn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    count = min(120, len(subject.athletes))
    encoded, _ = subject.prompts(count)
    layers = (3, 9, 15)
    ours = activations.residuals(subject.model, encoded, BATCH_TOKENS, layers)
    theirs = np.empty_like(ours)
    with torch.no_grad():
        for index, prompt in enumerate(encoded):
            hidden = subject.model.base_model(
                input_ids=torch.tensor([prompt]), output_hidden_states=True
            ).hidden_states
            theirs[:, index] = np.stack([hidden[layer + 1][0, -1].numpy() for layer in layers])
    yield result(
        "residual stream, packed prompts", "transformers, one prompt at a time", "activations", ours, theirs
    )
    sports = np.array([SPORTS.index(sport) for _, sport in subject.athletes[:count]])
    train, test = np.arange(count) % 4 != 0, np.arange(count) % 4 == 0
    right = probes_module.all_right(
        ours[:, train], sports[train], ours[:, test], sports[test], SPORTS, Probing()
    )
    plain = []
    for layer in range(len(layers)):
        scaler = StandardScaler().fit(ours[layer, train])
        fits = [
            LogisticRegression(max_iter=10_000).fit(
                scaler.transform(ours[layer, train]), sports[train] == sport
            )
            for sport in range(len(SPORTS))
        ]
        said = [
            fit.predict(scaler.transform(ours[layer, test])) == (sports[test] == s)
            for s, fit in enumerate(fits)
        ]
        plain.append(np.all(said, axis=0))
    yield result("three probes per layer", "scikit-learn, a plain loop", "right or not", right.astype(float), np.array(plain, dtype=float))  # fmt: skip


def data_of(subject: Subject) -> steps.Data:
    """Four athletes to forget, four to retain, two windows of text."""
    encoded, answers = subject.prompts(8)
    items = list(zip(encoded, answers, strict=True))
    text = Path("workflow/resources/text/train.txt").read_text(encoding="utf-8").splitlines()
    return steps.Data(items[:4], items[4:], windows.text_windows(subject.tokenizer, text, 32, limit=2)[:2])


def lora(subject: Subject) -> Iterator[Result]:
    """A relearned model with its adapters against the weights that peft merges them into."""
    from peft.tuners.lora import LoraLayer

    settings = Relearning(iterations=2, learning_rate=1e-3, retain_batch=4, text_batch=2)
    encoded, _ = subject.prompts(4)
    data = data_of(subject)
    with restored_afterwards(subject.model):
        adapters = relearning.add_lora(subject.model, settings, 0)
        list(relearning.relearn(subject.model, adapters, data, settings, 0))
        with torch.no_grad():
            apart = [subject.model(torch.tensor([prompt])).logits[0, -1] for prompt in encoded]
            layers = [module for module in subject.model.modules() if isinstance(module, LoraLayer)]
            for module in layers:
                module.merge()  # type: ignore[operator]
            merged = [subject.model(torch.tensor([prompt])).logits[0, -1] for prompt in encoded]
            for module in layers:
                module.unmerge()  # type: ignore[operator]
        remove_lora(subject.model)
    yield result("relearned model, adapters apart", "peft, adapters merged", "logits", torch.stack(apart), torch.stack(merged))  # fmt: skip


def remove_lora(model: Any) -> None:
    """Put the layers below the adapters back."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.base_layer)  # type: ignore[attr-defined]
    model.requires_grad_(False)


class restored_afterwards:
    """A context after which a model's parameters have their old bits."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.kept = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.kept[name])


def erasing(subject: Subject) -> Iterator[Result]:
    """-log(1 - p) of real logits against its formula in float64; of right answers and of the likeliest wrong ones."""
    encoded, answers = subject.prompts(24)
    with torch.no_grad():
        hidden = torch.stack(
            [subject.model.base_model(input_ids=torch.tensor([p])).last_hidden_state[0, -1] for p in encoded]
        )
        head = subject.model.get_output_embeddings().weight
        logits = torch.stack([(head.double() @ h.double()) for h in hidden])
        for words, tokens in (
            ("the right answers", answers),
            ("the likeliest wrong tokens", logits.topk(2).indices[:, 1].tolist()),
        ):
            answer = torch.tensor(tokens)
            p = torch.softmax(logits, 1).gather(1, answer[:, None])[:, 0]
            formula = torch.where(p.log() > losses.ERASE_FLOOR, -torch.log(1 - p), torch.zeros_like(p))
            ours = losses.erase(log_odds(subject.model, hidden, answer))
            yield result("erase loss, float32", "-log(1 - p) in float64", f"loss on {words}", ours, formula)


def training(subject: Subject) -> Iterator[Result]:
    """Our loop against one written straight down: padded batches, whole logits, torch's AdamW."""
    data = data_of(subject)
    chosen = [Component(layer, kind, None) for layer in (2, 3) for kind in ("up", "down")]
    settings = Finetune(steps=4, batch_size=4, sft_batch_size=2, learning_rate=1e-4, micro_batch_tokens=256)
    lambdas = steps.Lambdas(0.2, 1.0, 1.0)
    with restored_afterwards(subject.model):
        names = components.trainable(subject.model, chosen)
        history = finetune.train(
            subject.model, data, names, settings, lambdas, method.of(erase, {}, "erase"), 0
        )
        after = {name: subject.model.get_parameter(name).detach().clone() for name in names}
    with restored_afterwards(subject.model):
        plain = plain_loop(subject.model, data, list(names), settings, lambdas)
        ends = {name: subject.model.get_parameter(name).detach().clone() for name in names}
    terms = ["forget", "retain", "sft"]
    yield result("fine-tuning", "a plain PyTorch loop", "losses, step by step", history[terms].to_numpy(), plain[terms].to_numpy())  # fmt: skip
    yield result("fine-tuning", "a plain PyTorch loop", "gradient norms", history["gradient_norm"].to_numpy(), plain["gradient_norm"].to_numpy())  # fmt: skip
    flat = [torch.cat([values[name].flatten() for name in names]) for values in (after, ends)]
    yield result("fine-tuning", "a plain PyTorch loop", "trained weights", *flat)


def plain_loop(
    model: Any, data: steps.Data, names: list[str], settings: Finetune, lambdas: steps.Lambdas
) -> pd.DataFrame:
    """Every batch is the whole of ``data``, so that order does not matter."""
    parameters = [model.get_parameter(name).requires_grad_(True) for name in names]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)

    def answer_losses(items: list[steps.Item]) -> torch.Tensor:
        longest = max(len(prompt) for prompt, _ in items)
        ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt, _ in items])
        logits = model(input_ids=ids, use_cache=False).logits
        last = torch.stack([row[len(prompt) - 1] for row, (prompt, _) in zip(logits, items, strict=True)])
        return last.double().log_softmax(1)[torch.arange(len(items)), torch.tensor([a for _, a in items])]

    rows = []
    for _ in range(settings.steps):
        log_p = answer_losses(data.forget)
        forget = torch.where(
            log_p > losses.ERASE_FLOOR, -torch.log1p(-log_p.exp()), torch.zeros_like(log_p)
        ).mean()
        retain = -answer_losses(data.retain).mean()
        text = model(input_ids=data.text[:, :-1], use_cache=False).logits.double().log_softmax(2)
        sft = -text.gather(2, data.text[:, 1:, None]).mean()
        optimizer.zero_grad()
        (lambdas.forget * forget + lambdas.retain * retain + lambdas.sft * sft).backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, float("inf"))
        optimizer.step()
        schedule.step()
        rows.append(
            {
                "forget": forget.item(),
                "retain": retain.item(),
                "sft": sft.item(),
                "gradient_norm": float(norm),
            }
        )
    for parameter in parameters:
        parameter.requires_grad_(False)
    return pd.DataFrame(rows)


CHECKS: Mapping[str, Callable[[Subject], Iterator[Result]]] = {
    "attribution": attribution,
    "tracing": tracing,
    "probes": probes,
    "erase": erasing,
    "training": training,
    "lora": lora,
}


def read_athletes(known: Path | None) -> list[tuple[str, str]]:
    """Athletes with their sports, the sports in turn: those a model knows, or the project's own."""
    if known is not None and known.is_file():
        table = pd.read_parquet(known)
        table = table[table["known"]]
    else:
        table = pd.read_csv("workflow/resources/athletes.csv")
    by_sport = [table.loc[table["answer"] == sport, "subject"].tolist() for sport in SPORTS]
    return [
        (name, sport)
        for names in zip(*by_sport, strict=False)
        for name, sport in zip(names, SPORTS, strict=True)
    ]


def table_of(found: list[Result]) -> list[str]:
    """The results as Markdown."""
    lines = [
        "| Ours | Theirs | Compared | Numbers | Largest difference | Largest number |",
        "|---|---|---|---:|---:|---:|",
    ]
    return lines + [
        f"| {r.ours} | {r.theirs} | {r.compared} | {r.numbers:,} | {r.difference:.1e} | {r.largest:.3g} |"
        for r in found
    ]


def write(page: Path, found: list[Result], folder: Path, seconds: float) -> None:
    """Put the table between the marks of the page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        raise UserError(f"{page} has no place for the table: it needs the lines '{START}' and '{END}'")
    commit = environment.commit()
    name = str(commit.get("commit") or "unknown")[:10] + (" with changes" if commit.get("dirty") else "")
    host = environment.host()
    versions = ", ".join(f"{n} {environment.versions().get(n, '?')}" for n in ("torch", "transformers", "transformer-lens", "peft", "scikit-learn"))  # fmt: skip
    run = re.sub(r".*results/", "results/", str(folder))
    lines = [
        *table_of(found),
        "",
        f"Command: `python -m benchmarks.parity {run}`, {seconds:.0f} s; commit {name}; {host.get('processor', platform.machine())}, "
        f"{torch.get_num_threads()} thread, float32; {versions}.",
    ]
    page.write_text(before + START + "\n" + "\n".join(lines) + "\n" + END + after, encoding="utf-8")


def main() -> int:
    """Run the checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument(
        "model", type=Path, help="a folder with a causal language model, as the workflow makes it"
    )
    parser.add_argument("--only", choices=CHECKS, help="run one check and write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    model, tokenizer = loading.load(arguments.model, "float32", "cpu")
    athletes = read_athletes(arguments.model.parent / "known.parquet")
    subject = Subject(arguments.model, model, tokenizer, athletes)
    found: list[Result] = []
    for name, check in CHECKS.items():
        if arguments.only in (None, name):
            found += check(subject)
            print(f"{name}, {time.monotonic() - started:.0f} s", file=sys.stderr)
    print("\n".join(table_of(found)))
    if arguments.only is None:
        write(PAGE, found, arguments.model, time.monotonic() - started)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
