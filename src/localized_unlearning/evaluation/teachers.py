"""The facts of an organism's pretraining, by multiple choice: what unlearning injected facts should leave alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.data.splits import read_split
from localized_unlearning.evaluation.multiple_choice import ask_multiple_choice
from localized_unlearning.evaluation.rows import write_rows
from localized_unlearning.models.checkpoint import checkpoint

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job

MOST = 90
"""Teachers who are asked, as many of each sport: those held out of training first."""


def run(job: Job) -> None:
    """Stage: one model's multiple-choice answers about teachers whom unlearning did not train on, options shuffled."""
    config = job.config
    prompt = load_prompts(job.inputs["prompts"])[config.prompts.multiple_choice]
    split = read_split(job.inputs["split"])
    held_out = split[split["teacher"] & ~split["train"]]
    sports = max(1, held_out["answer"].nunique())
    asked = held_out.groupby("answer", group_keys=False).head(MOST // sports).reset_index(drop=True)
    seed = config.evaluation.shuffled_seed
    job.facts.update(seeds={"option_order": seed})
    with checkpoint(job) as (model, tokenizer, batch_tokens):
        rows = ask_multiple_choice(
            model, tokenizer, asked, prompt, ("shuffled",) * config.evaluation.orders, seed, batch_tokens
        )
    write_rows(job, "teachers", rows)
