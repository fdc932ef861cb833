"""Where the base model's facts are made: probes at every layer (A.2)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from localized_unlearning.interpretability.ablation import mean_attention_outputs
from localized_unlearning.interpretability.probes import predictions
from localized_unlearning.interpretability.subject import load_subject
from localized_unlearning.models import components, device
from localized_unlearning.models.activations import attention_replaced, residuals
from localized_unlearning.progress import Progress

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def layer_probes(job: Job) -> None:
    """Stage: probe accuracy per layer in the prompt and on the athlete's name alone (Figure 16).

    One row per series, layer and test athlete: ``series`` (prompt: the prompt's last token, where the fact arrives;
    name: the name's last token in the prompt, where it is made; subject: the name without the prompt, as in the
    paper), ``ablated`` (attention past the lookup layers mean-ablated), ``layer`` (-1: the embeddings), ``subject``,
    ``right``; and a control with shuffled labels.
    """
    config, settings = job.config, job.config.interpretability
    subject = load_subject(job)
    sports, test = subject.sports, subject.test
    means = mean_attention_outputs(subject.model, subject.windows, settings.lookup_end)
    shuffled = np.random.default_rng(settings.seed).permutation(sports)
    rows = []
    layers = [-1, *range(components.geometry_of(subject.model.config).layers)]
    series = {
        "prompt": subject.encode(config.prompts.training),
        "name": subject.encode_names(config.prompts.training),
        "subject": subject.encode("subject"),
    }
    runs = [(name, encoded, ablated) for name, encoded in series.items() for ablated in (False, True)]
    for name, encoded, ablated in Progress("probing layers", "run").over(runs):
        with attention_replaced(subject.model, means) if ablated else nullcontext():
            activations = residuals(
                subject.model, encoded, device.batch_tokens(config.compute, subject.model), layers
            )
        targets = {"answer": sports} if ablated else {"answer": sports, "shuffled labels": shuffled}
        fits = [subject.fit(values, np.stack([*targets.values()])) for values in activations]
        found = predictions(fits, settings, device.threads(config.compute))
        rows += [
            pd.DataFrame(
                {
                    "series": name,
                    "ablated": ablated,
                    "labels": labels,
                    "layer": layer,
                    "subject": subject.athletes[test],
                    "right": said[i] == target[test],
                }
            )
            for i, (labels, target) in enumerate(targets.items())
            for layer, said in zip(layers, found, strict=True)
        ]
    majority = float(np.bincount(sports[test]).max() / test.sum())
    job.facts.update(seeds={"probe": settings.seed}, device=subject.device, majority=majority)
    pd.concat(rows, ignore_index=True).assign(
        majority=majority, base_seed=int(job.wildcards["base_seed"])
    ).to_parquet(job.outputs["probes"], index=False)
