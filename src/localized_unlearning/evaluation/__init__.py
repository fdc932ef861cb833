"""Evaluations of one model: facts, multiple choice, general knowledge, plain text; one row per item.

Rows keep the logits, never a metric: any statistic can be recomputed without a model. One process
makes all four from one model load.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.evaluation.facts import ask_facts
from localized_unlearning.evaluation.knowledge import ask_questions
from localized_unlearning.evaluation.multiple_choice import ask_multiple_choice
from localized_unlearning.evaluation.text import read_text
from localized_unlearning.splits import read_split

if TYPE_CHECKING:
    from localized_unlearning.stages import Job

__all__ = ["ask_facts", "ask_multiple_choice", "ask_questions", "read_text", "run"]


def run(job: Job) -> None:
    """Stage: evaluate the base model, or the base model plus a delta, on the test part."""
    from localized_unlearning import mmlu, models
    from localized_unlearning.prompts import load_prompts

    config = job.config
    device = models.setup(config.compute)
    tokens = config.compute.batch_tokens
    model, tokenizer = models.load(job.inputs["base_model"], config.model.dtype, device)
    split = read_split(job.inputs["split"])
    split = split[split["test"]].reset_index(drop=True)
    book = load_prompts(job.inputs["prompts"])
    questions = mmlu.load_questions(job.inputs["mmlu"])
    text = Path(job.inputs["text"]).read_text(encoding="utf-8")
    delta: Any = nullcontext()
    if job.inputs.get("delta"):
        digest = models.weights_digest(job.inputs["base_model"])
        delta = models.applied(model, models.read_delta(job.inputs["delta"], digest))
    names = (config.prompts.training, config.prompts.question, *config.evaluation.prompts)
    with delta:
        tables = {
            "facts": ask_facts(model, tokenizer, split, [book[name] for name in names], tokens),
            "multiple_choice": ask_multiple_choice(
                model,
                tokenizer,
                split,
                book[config.prompts.multiple_choice],
                config.evaluation.shuffled_seed,
                tokens,
            ),
            "mmlu": ask_questions(model, tokenizer, questions, config.mmlu, tokens),
            "text": read_text(model, tokenizer, text, config.text.tokens, config.text.windows, tokens),
        }
    who = {name: job.wildcards[name] for name in ("task", "objective", "localization")}
    who["seed"] = int(job.wildcards["seed"])  # type: ignore[assignment]
    job.facts.update(
        seeds={"option_order": config.evaluation.shuffled_seed, "mmlu": config.mmlu.seed}, device=device
    )
    for name, table in tables.items():
        table.assign(**who).to_parquet(job.outputs[name], index=False)
