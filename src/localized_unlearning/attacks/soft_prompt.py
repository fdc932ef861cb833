"""Soft prompt: embeddings before the prompt, trained on the attacker's half of the forget set.

After Schwinn et al. 2024 (arXiv 2402.09063). It extracts an answer from any model with enough freedom, so it is read
against gold alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.attacks.retraining import items
from localized_unlearning.attacks.subject import Subject, ask
from localized_unlearning.config.attacks import SoftPrompt

if TYPE_CHECKING:
    from torch import Tensor


def last_logits(model: Any, prompts: Sequence[Sequence[int]], soft: Tensor) -> Tensor:
    """Logits after each prompt with ``soft`` ``[token, width]`` put behind its first token ``[prompt, vocabulary]``."""
    import torch

    longest = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    embedded = model.get_input_embeddings()(tokens.to(model.device))
    middle = soft.to(embedded).expand(len(prompts), -1, -1)
    embedded = torch.cat([embedded[:, :1], middle, embedded[:, 1:]], dim=1)
    hidden = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    last = torch.tensor([len(prompt) - 1 + len(soft) for prompt in prompts])
    return model.get_output_embeddings()(hidden[torch.arange(len(prompts)), last]).float()  # type: ignore[no-any-return]


def soft_prompt(subject: Subject, settings: SoftPrompt) -> Iterator[tuple[str, pd.DataFrame]]:
    """The soft prompt is trained on the training prompt, and asked before every format."""
    import torch

    facts, rng = items(subject, subject.attacker), random.Random(subject.seed)
    width = subject.model.get_input_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(subject.seed)
    scale = float(subject.model.get_input_embeddings().weight.float().std())
    soft = (scale * torch.randn(settings.tokens, width, generator=generator)).to(subject.model.device)
    soft.requires_grad_(True)
    optimizer = torch.optim.Adam([soft], lr=settings.learning_rate)
    for _ in range(settings.steps):
        some = rng.sample(facts, min(settings.batch_size, len(facts)))
        logits = last_logits(subject.model, [prompt for prompt, _ in some], soft)
        answers = torch.tensor([answer for _, answer in some], device=logits.device)
        torch.nn.functional.cross_entropy(logits, answers).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def likely(prompts: Sequence[Sequence[int]], candidates: Sequence[int]) -> Tensor:
        with torch.no_grad():
            parts = [
                last_logits(subject.model, prompts[i : i + 64], soft)[:, list(candidates)].cpu()
                for i in range(0, len(prompts), 64)
            ]
        return torch.cat(parts)

    yield f"{settings.tokens} embeddings", ask(subject, likely)
