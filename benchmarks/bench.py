"""The model and the inputs of a measurement, the least work there is, and what several of its cases share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from localized_unlearning.data import mmlu
from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.models import components, loading, packing

Outputs = dict[str, np.ndarray]
Work = Callable[[], Outputs]
PROMPTS = Path("workflow/resources/prompts.yaml")
TEXT = Path("workflow/resources/text/train.txt")
BATCH_TOKENS = 4096
SUBJECTS = 5
MANUAL = (2, 3, 4, 5)
"""The manual localization of the Gemma 3 270M preset: the MLPs of these layers."""


@dataclass
class Bench:
    """The model and the inputs, loaded once in each measuring process."""

    folder: Path
    questions_file: Path
    athletes_file: Path
    threads: int
    scale: float
    device: str
    dtype: str
    notes: dict[str, Any] = field(default_factory=dict)

    def count(self, full: int) -> int:
        return max(2, round(full * self.scale))

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        torch.set_num_threads(self.threads)
        return loading.load(self.folder, self.dtype, self.device)

    @property
    def model(self) -> Any:
        return self.loaded[0]

    @property
    def tokenizer(self) -> Any:
        return self.loaded[1]

    def warm_up(self) -> None:
        """Touch every weight and the libraries' code (they are mapped from files), start the threads; untimed."""
        inputs = self.model.get_input_embeddings()(torch.tensor([[2, 3, 4]], device=self.device))
        inputs = inputs.detach().requires_grad_(True)
        torch.autograd.grad(self.model(inputs_embeds=inputs).logits.sum(), inputs)
        with torch.inference_mode():
            for p in self.model.parameters():
                p.sum()

    def questions(self, a_subject: int) -> mmlu.Questions:
        """The first questions of the first subjects that are not among the longest (histories, law)."""
        found = mmlu.load_questions(self.questions_file)
        names = sorted(
            {q.subject for q in found.test if "history" not in q.subject and "law" not in q.subject}
        )
        chosen = names[:: max(1, len(names) // SUBJECTS)][:SUBJECTS]
        test = [
            q
            for name in chosen
            for q in [t for t in found.test if t.subject == name][: self.count(a_subject)]
        ]
        return mmlu.Questions([q for q in found.dev if q.subject in chosen], test)

    def athletes(self, full: int) -> pd.DataFrame:
        table = pd.read_csv(self.athletes_file).rename(columns={"athlete": "subject", "sport": "answer"})
        table = table[["subject", "answer"]].drop_duplicates("subject")
        table = table.sample(self.count(full), random_state=0).reset_index(drop=True)
        return table.assign(forget=table["answer"] == "basketball", relearn=False)

    def rendered(self, prompt: str, athletes: pd.DataFrame) -> list[list[int]]:
        book = load_prompts(PROMPTS)[prompt]
        texts = [
            book.render(a, book.options) if book.options else book.render(a) for a in athletes["subject"]
        ]
        return tokens_module.encode(self.tokenizer, texts)

    # The least work.

    @property
    def body(self) -> int:
        """FLOP of one token through all layers."""
        return 2 * sum(p.numel() for p in components.layers_of(self.model).parameters())

    @property
    def head(self) -> int:
        """FLOP of one position's logits over the vocabulary."""
        return 2 * self.model.get_output_embeddings().weight.numel()

    def floor(self, prompts: Sequence[Sequence[int]], passes: float = 1, heads: float = 1) -> None:
        """Note the work of ``passes`` through the layers for distinct prefixes and ``heads`` for each prompt."""
        nodes = sum(len(p.tokens) for p in packing.pack(prompts, 10**9))
        self.notes["flop"] = (
            self.notes.get("flop", 0) + nodes * passes * self.body + len(prompts) * heads * self.head
        )


def full_logits(bench: Bench, prompts: Sequence[Sequence[int]], size: int = 16) -> torch.Tensor:
    """Logits after each prompt, in batches padded on the right, the whole vocabulary at every position."""
    found = []
    with torch.no_grad():
        for start in range(0, len(prompts), size):
            some = prompts[start : start + size]
            ids, mask = padded(some, bench.device)
            logits = bench.model(input_ids=ids, attention_mask=mask).logits.float()
            found.append(logits[range(len(some)), [len(p) - 1 for p in some]].cpu())
    return torch.cat(found)


def padded(prompts: Sequence[Sequence[int]], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts], device=device)
    mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts], device=device)
    return ids, mask


def bridged(bench: Bench) -> Any:
    """TransformerLens over the same weights."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        str(bench.folder), hf_model=bench.model, tokenizer=bench.tokenizer, device=bench.device
    )


def close(name: str, limit: float) -> Callable[[Outputs, Outputs], tuple[bool, str]]:
    """Agreement of one output to a limit."""

    def compare(ours: Outputs, theirs: Outputs) -> tuple[bool, str]:
        error = float(np.abs(ours[name] - theirs[name]).max())
        size = float(np.abs(theirs[name]).max())
        return error <= limit * max(size, 1), f"{name} within {error:.1e} (up to {size:.3g})"

    return compare
