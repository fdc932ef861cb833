"""Where the base model keeps its facts (A.2): probes across layers, with and without late attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning import components as comp
from localized_unlearning import losses, models, packing
from localized_unlearning.config import SPORTS, Interpretability
from localized_unlearning.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.stages import Job


def residuals(model: Any, prompts: Sequence[Sequence[int]], batch_tokens: int) -> np.ndarray:
    """Residual stream after every layer at each prompt's last token ``[layer, prompt, hidden]``, float32."""
    import torch

    layers = comp.layers_of(model)
    out = np.empty((len(layers), len(prompts), model.config.get_text_config().hidden_size), dtype=np.float32)
    with torch.inference_mode():
        for batch in packing.batches(prompts, model, batch_tokens):

            def keep(index: int, batch: packing.Batch = batch) -> Any:
                def hook(_module: Any, _args: Any, output: Any) -> None:
                    hidden = output[0] if isinstance(output, tuple) else output
                    out[index, batch.prompts.numpy()] = hidden[batch.rows, batch.nodes].float().cpu().numpy()

                return hook

            with ExitStack() as stack:
                for index, layer in enumerate(layers):
                    stack.callback(layer.register_forward_hook(keep(index)).remove)
                model.base_model(**batch.inputs)
    return out


def mean_attention_outputs(model: Any, windows: Tensor, from_layer: int) -> dict[int, Tensor]:
    """Mean attention output of each layer from ``from_layer`` on, over text windows and positions ``[hidden]``."""
    import torch

    means: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: Any, _args: Any, output: Tensor) -> None:
            means[layer] = output.float().mean((0, 1))

        return hook

    with torch.inference_mode(), ExitStack() as stack:
        for layer in range(from_layer, comp.geometry_of(model.config).layers):
            stack.callback(comp.module_of(model, layer, "o").register_forward_hook(keep(layer)).remove)
        model.base_model(input_ids=windows.to(model.device), use_cache=False)
    return means


@contextmanager
def attention_replaced(model: Any, values: dict[int, Tensor]) -> Iterator[None]:
    """Replace the attention output of the layers in ``values``, at every position."""

    def replace(value: Tensor) -> Any:
        return lambda _module, _args, output: value.to(output).expand_as(output)

    with ExitStack() as stack:
        for layer, value in values.items():
            stack.callback(comp.module_of(model, layer, "o").register_forward_hook(replace(value)).remove)
        yield


def probe(
    train: np.ndarray, test: np.ndarray, train_sport: np.ndarray, test_sport: np.ndarray, c: float
) -> np.ndarray:
    """Which test athletes a multinomial logistic regression gets right ``[test]``.

    Activations ``[athlete, hidden]`` are standardised with the training part's mean and deviation, so that
    the solver converges at every layer.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    classifier.fit(train, train_sport)
    return np.asarray(classifier.predict(test) == test_sport)


def test_rows(sports: Sequence[str], settings: Interpretability) -> np.ndarray:
    """Which athletes test the probe ``[athlete]``: seeded and stratified by sport."""
    from sklearn.model_selection import train_test_split

    index = np.arange(len(sports))
    _, test = train_test_split(
        index, test_size=settings.test_fraction, random_state=settings.seed, stratify=list(sports)
    )
    return np.isin(index, test)


def layer_probes(job: Job) -> None:
    """Stage: probe accuracy per layer on the prompt and on the athlete's name alone (Figure 16).

    One row per series, layer and test athlete: ``series`` (prompt, athlete), ``ablated`` (attention past
    the lookup layers mean-ablated), ``layer``, ``athlete``, ``right``; and a control with shuffled labels.
    """
    from localized_unlearning.prompts import load_prompts

    config = job.config
    settings = config.interpretability
    device = models.setup(config.compute)
    model, tokenizer = models.load(job.inputs["base_model"], config.model.dtype, device)
    known = pd.read_parquet(job.inputs["known"])
    athletes = known[known["known"]].reset_index(drop=True)
    book = load_prompts(job.inputs["prompts"])
    sports = np.array([SPORTS.index(s) for s in athletes["sport"]])
    test = test_rows(list(athletes["sport"]), settings)
    text = Path(job.inputs["text"]).read_text(encoding="utf-8")
    windows = losses.text_windows(tokenizer, text, config.text.tokens)[: settings.mean_windows]
    means = mean_attention_outputs(model, windows, settings.lookup_end)
    shuffled = np.random.default_rng(settings.seed).permutation(sports)
    rows = []
    series = [("prompt", config.prompts.training), ("athlete", "athlete")]
    runs = [(name, prompt, ablated) for name, prompt in series for ablated in (False, True)]
    for name, prompt, ablated in Progress("probing layers", "run").over(runs):
        encoded = models.encode(tokenizer, [book[prompt].render(a) for a in athletes["athlete"]])
        with attention_replaced(model, means) if ablated else nullcontext():
            activations = residuals(model, encoded, config.compute.batch_tokens)
        for layer, values in enumerate(activations):
            kinds = [("sport", sports)] + ([] if ablated else [("shuffled labels", shuffled)])
            for label, target in kinds:
                right = probe(
                    values[~test], values[test], target[~test], target[test], settings.regularization
                )
                rows.append(
                    pd.DataFrame(
                        {
                            "series": name,
                            "ablated": ablated,
                            "labels": label,
                            "layer": layer,
                            "athlete": athletes.loc[test, "athlete"].to_numpy(),
                            "right": right,
                        }
                    )
                )
    majority = float(np.bincount(sports[test]).max() / test.sum())
    job.facts.update(seeds={"probe": settings.seed}, device=device, majority=majority)
    pd.concat(rows, ignore_index=True).assign(majority=majority).to_parquet(
        job.outputs["probes"], index=False
    )
