"""Localizations: scoring components and selecting them (section 2.3).

Scores compare pairs of prompts: the training prompt about a real athlete (clean), and the same
prompt with a made-up name of equal token length (corrupt). The metric is the logit of the right
sport minus the mean of the other three answers (golf included) at the last position, normalised
so that the corrupt run has 0 and the clean run 1. Scores are signed; selection takes the largest
absolute values.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning import components as comp
from localized_unlearning import extensions, packing
from localized_unlearning.components import ATTENTION_KINDS, Component
from localized_unlearning.config import CHOICES, Components, Granularity, Localization, Score
from localized_unlearning.errors import UserError
from localized_unlearning.progress import Progress
from localized_unlearning.splits import read_split
from localized_unlearning.vocabulary import logits_of

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.stages import Job

FIRST_NAMES = [
    "Alden",
    "Basil",
    "Corwin",
    "Dorian",
    "Elric",
    "Fenton",
    "Gideon",
    "Hollis",
    "Idris",
    "Jorah",
    "Kelvin",
    "Lorcan",
    "Merrick",
    "Nolan",
    "Orrin",
    "Percy",
    "Quentin",
    "Roderick",
    "Silas",
    "Tobias",
    "Ulric",
    "Vernon",
    "Wendell",
    "Xavier",
    "Yorick",
    "Zachary",
    "Ambrose",
    "Bertram",
    "Cedric",
    "Desmond",
    "Edmund",
    "Felix",
    "Gareth",
    "Harold",
    "Ivor",
    "Jasper",
]
LAST_NAMES = [
    "Ashdown",
    "Birchall",
    "Coldwell",
    "Dunmore",
    "Eastbrook",
    "Fairholm",
    "Greystone",
    "Hartwick",
    "Inglewood",
    "Jessop",
    "Kirkham",
    "Longmire",
    "Marchbank",
    "Netherton",
    "Oakshott",
    "Penhale",
    "Quillfeather",
    "Ravenhill",
    "Stanhope",
    "Thornbury",
    "Underhill",
    "Vexley",
    "Whitlock",
    "Yarborough",
    "Zimmer",
    "Applegate",
    "Brackenbury",
    "Cranleigh",
    "Dovecote",
    "Elderwood",
    "Foxglove",
    "Gillespie",
    "Holloway",
    "Ironside",
    "Juniper",
    "Kettleburn",
]
"""Parts of made-up names; no pair of them is a known athlete."""


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupt prompts of equal length.

    Attributes:
        clean, corrupt: token ids, one list a prompt.
        subject: positions of the whole name ``(start, stop)`` in both.
        answer: index of the right sport in ``choices`` ``[prompt]``.
        choices: token of each candidate answer.
    """

    clean: list[list[int]]
    corrupt: list[list[int]]
    subject: list[tuple[int, int]]
    answer: list[int]
    choices: list[int]


def make_pairs(
    athletes: Sequence[tuple[str, str]], render: Callable[[str], str], tokenizer: Any, seed: int
) -> Pairs:
    """Pairs for ``athletes`` (name, sport), with made-up names drawn for equal token length.

    Raises:
        UserError: when the tokenizer gives no made-up name of an athlete's length.
    """
    from localized_unlearning import models

    rng = random.Random(seed)
    clean = models.encode(tokenizer, [render(a) for a, _ in athletes])
    by_length: dict[int, list[list[int]]] = {}
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    names += [
        f"{first} {middle} {last}"
        for first, middle, last in zip(FIRST_NAMES, FIRST_NAMES[1:], LAST_NAMES, strict=False)
    ]
    names += [*LAST_NAMES, *FIRST_NAMES]
    rng.shuffle(names)
    for ids in models.encode(tokenizer, [render(name) for name in names]):
        by_length.setdefault(len(ids), []).append(ids)
    # What all made-up names leave alone is the template; a name may begin or end as the made-up one does.
    made_up = [ids for same in by_length.values() for ids in same]
    before = min(_shared(made_up[0], ids) for ids in made_up)
    after = min(_shared(made_up[0][::-1], ids[::-1]) for ids in made_up)
    corrupt, subject = [], []
    for ids, (athlete, _) in zip(clean, athletes, strict=True):
        others = [other for other in by_length.get(len(ids), []) if other != ids]
        if not others:
            raise UserError(
                f"no made-up name has as many tokens as '{athlete}' in this tokenizer: "
                "add names of that length to localization.py"
            )
        other = rng.choice(others)
        corrupt.append(other)
        start, end = _shared(ids, other), _shared(ids[::-1], other[::-1])
        subject.append((min(before, start), len(ids) - min(after, end)))
    choices = models.answer_tokens(tokenizer, CHOICES)
    return Pairs(clean, corrupt, subject, [CHOICES.index(s) for _, s in athletes], choices)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two prompts share at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def batches(pairs: Pairs, model: Any, batch_tokens: int) -> list[packing.Batch]:
    """The clean prompts, packed so that they share what lies before every subject and nothing else.

    There the clean and the corrupt run are the same, so that nothing is lost, and what a run changes in one
    prompt stays in it.
    """
    first = pairs.clean[0]
    alike = min(_shared(first, ids) for ids in (*pairs.clean, *pairs.corrupt))
    shared = min(alike, *(start for start, _ in pairs.subject))
    return packing.batches(pairs.clean, model, batch_tokens, shared=shared)


def metric(candidates: Tensor, answer: Tensor) -> Tensor:
    """Logit of the right answer minus the mean of the others ``[prompt]``, from logits ``[prompt, choice]``."""
    import torch

    right = candidates.gather(1, answer[:, None])[:, 0]
    others = candidates.shape[1] - 1
    return right - (candidates.sum(1) - right) / others if others else torch.zeros_like(right)


@contextmanager
def recorded(
    model: Any, kinds: Sequence[str], watch: Callable[[int, str, Tensor], None] | None = None
) -> Iterator[dict[tuple[int, str], Tensor]]:
    """Record the activation of every component of ``kinds`` during a forward pass, by (layer, kind).

    Args:
        model: the model.
        kinds: kinds of components.
        watch: is shown each activation instead of its being kept: layer, kind and value.
    """
    store: dict[tuple[int, str], Tensor] = {}

    def keep(layer: int, names: list[str], value: Tensor) -> None:
        for name in names:
            if watch is None:
                store[layer, name] = value
            else:
                watch(layer, name, value)

    def on_output(layer: int, names: list[str]) -> Callable[..., Any]:
        return lambda _module, _args, output: keep(layer, names, output)

    def on_input(layer: int, names: list[str]) -> Callable[..., Any]:
        return lambda _module, args: keep(layer, names, args[0])

    with ExitStack() as stack:
        for layer in range(comp.geometry_of(model.config).layers):
            for module, names in _modules(model, layer, kinds).items():
                if comp.reads_input(names[0]):  # type: ignore[arg-type]
                    handle = module.register_forward_pre_hook(on_input(layer, names))
                else:
                    handle = module.register_forward_hook(on_output(layer, names))
                stack.callback(handle.remove)
        yield store


def _modules(model: Any, layer: int, kinds: Sequence[str]) -> dict[Any, list[str]]:
    """The linear modules of a layer with the kinds each one holds (three, where q, k and v are fused)."""
    found: dict[Any, list[str]] = {}
    for kind in kinds:
        found.setdefault(comp.module_of(model, layer, kind), []).append(kind)  # type: ignore[arg-type]
    return found


def attribution_patching(
    model: Any, pairs: Pairs, found: Sequence[Component], batch_tokens: int
) -> list[float]:
    """Attribution patching (Nanda 2023): the linear estimate of patching each component.

    ``(corrupt - clean activation) · d metric / d activation`` on the *clean* run, summed over
    positions and averaged over prompts. One forward on each side and one backward for all components. A
    difference is used and dropped as soon as the backward pass brings its gradient; no gradient is kept.

    Returns:
        A signed score for each of ``found``: the change of the normalised metric when the component's
        activation is replaced by the corrupt one.
    """
    import torch

    kinds = sorted({c.kind for c in found})
    columns: dict[tuple[int, str], Tensor] = {}
    embedding = model.get_input_embeddings()
    progress = Progress("attribution patching", "prompt batch")
    for batch in progress.over(batches(pairs, model, batch_tokens)):
        answer = _answers(pairs, batch).to(model.device)
        with torch.no_grad(), recorded(model, kinds) as difference:
            ids = batch.inputs["input_ids"].clone()
            for row, p in enumerate(batch.packs):
                for index, path in zip(p.prompts, p.paths, strict=True):
                    ids[row, list(path)] = torch.tensor(pairs.corrupt[index], device=ids.device)
            corrupt_value = _metric_of(model, batch, embedding(ids), answer, pairs.choices)

        def watch(layer: int, kind: str, clean: Tensor, difference: Any = difference) -> None:
            difference[layer, kind] = difference[layer, kind] - clean.detach()

            def use(gradient: Tensor) -> None:
                change = (difference.pop((layer, kind)) * gradient).double().sum((0, 1))
                columns[layer, kind] = columns.get((layer, kind), 0) + change.cpu()

            clean.register_hook(use)

        with torch.enable_grad(), recorded(model, kinds, watch):
            inputs = embedding(batch.inputs["input_ids"]).detach().requires_grad_(True)
            clean_value = _metric_of(model, batch, inputs, answer, pairs.choices)
            scale = clean_value.detach() - corrupt_value
            (clean_value / scale).sum().backward()
    scores = []
    for component in found:
        part = comp.activation_columns(component, model.config)
        change = columns[component.layer, component.kind]
        scores.append(float(change.sum() if part is None else change[list(part)].sum()) / len(pairs.clean))
    return scores


def _answers(pairs: Pairs, batch: packing.Batch) -> Tensor:
    """Index of the right choice of each prompt of a batch."""
    import torch

    return torch.tensor(pairs.answer)[batch.prompts]


def _metric_of(
    model: Any, batch: packing.Batch, inputs: Tensor, answer: Tensor, choices: Sequence[int]
) -> Tensor:
    """Metric of a batch's prompts, given their embeddings ``[row, node, hidden]``."""
    rest = {name: value for name, value in batch.inputs.items() if name != "input_ids"}
    hidden = model.base_model(inputs_embeds=inputs, **rest).last_hidden_state
    return metric(logits_of(model, hidden[batch.rows, batch.nodes], choices), answer)


def noise_scale(model: Any) -> float:
    """Standard deviation of the token embeddings over the vocabulary, the unit of causal tracing's noise.

    Some models (Gemma 3) scale inside the embedding module; the noise is added after it.
    """
    import torch

    embedding = model.get_input_embeddings()
    token = torch.zeros(1, dtype=torch.long, device=embedding.weight.device)
    token += int(embedding.weight.float().norm(dim=1).argmax())
    factor = embedding(token).float().norm() / embedding.weight[token].float().norm()
    return float(embedding.weight.float().std() * factor)


@dataclass(frozen=True)
class Site:
    """What causal tracing restores at once: a module's activation, or one head's columns of it."""

    layer: int
    kind: str
    columns: tuple[int, ...] | None
    unit: str


def tracing_sites(model: Any, settings: Score, found: Sequence[Component]) -> list[Site]:
    """The sites of causal tracing.

    ``units``: the attention output of each head (restored alone, then summed over the layer's heads)
    and each MLP's hidden activation. ``matrices``: each component's own activation.
    """
    geometry = comp.geometry_of(model.config)
    sites = []
    if settings.sites == "units":
        for layer in range(geometry.layers):
            for head in range(geometry.heads):
                columns = comp.weight_of(Component(layer, "o", head), model.config).index
                sites.append(Site(layer, "o", columns, f"{layer}.attn"))
            sites.append(Site(layer, "down", None, f"{layer}.mlp"))
    else:
        for c in found:
            sites.append(Site(c.layer, c.kind, comp.activation_columns(c, model.config), str(c)))
    return sites


def causal_tracing(
    model: Any, pairs: Pairs, sites: Sequence[Site], noise: float, seed: int, batch_tokens: int
) -> list[float]:
    """Causal tracing (Meng et al. 2023): corrupt the subject with noise, restore one site, see what returns.

    Every prompt has one draw of Gaussian noise, ``noise`` embedding standard deviations, shared by all
    sites. The corrupted residual stream is kept at every layer, so that a site's run restarts at the
    site's layer; sites of one layer run side by side. The slow definition, against which it is tested, runs the
    whole model for each site and prompt.

    Returns:
        For each site, the restored share of the metric, averaged over prompts.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    embedding = model.get_input_embeddings()
    width = embedding.weight.shape[1]
    draws = [torch.randn(stop - start, width, generator=generator) for start, stop in pairs.subject]
    scale = noise * noise_scale(model)
    totals = [0.0] * len(sites)
    kinds = sorted({s.kind for s in sites})
    layers = comp.layers_of(model)
    with torch.inference_mode():
        for batch in Progress("causal tracing", "prompt batch").over(batches(pairs, model, batch_tokens)):
            answer = _answers(pairs, batch).to(model.device)
            inputs = embedding(batch.inputs["input_ids"])
            with recorded(model, kinds) as clean:
                clean_value = _metric_of(model, batch, inputs, answer, pairs.choices)
            noised = inputs.clone()
            for row, p in enumerate(batch.packs):
                for index, path in zip(p.prompts, p.paths, strict=True):
                    start, stop = pairs.subject[index]
                    noised[row, list(path[start:stop])] += scale * draws[index].to(noised)
            with entering(layers) as entered:
                corrupt_value = _metric_of(model, batch, noised, answer, pairs.choices)
            room = max(1, batch_tokens // inputs.shape[:2].numel())
            for group in _side_by_side(sites, room):
                some = [sites[index] for index in group]
                with restored(model, some, clean):
                    hidden = resume(model, layers, some[0].layer, entered, len(some))
                hidden = hidden.view(len(some), *inputs.shape)
                for index, copy in zip(group, hidden, strict=True):
                    logits = logits_of(model, copy[batch.rows, batch.nodes], pairs.choices)
                    share = (metric(logits, answer) - corrupt_value) / (clean_value - corrupt_value)
                    totals[index] += float(share.sum())
    return [total / len(pairs.clean) for total in totals]


def _side_by_side(sites: Sequence[Site], room: int) -> list[list[int]]:
    """Indices of the sites of each layer, ``room`` at a time."""
    by_layer: dict[int, list[int]] = {}
    for index, site in enumerate(sites):
        by_layer.setdefault(site.layer, []).append(index)
    return [same[i : i + room] for same in by_layer.values() for i in range(0, len(same), room)]


@contextmanager
def entering(layers: Any) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Record what each decoder layer is called with, so that :func:`resume` can call it again."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(keep, with_kwargs=True).remove)
        yield calls


def resume(
    model: Any, layers: Any, start: int, calls: list[tuple[tuple[Any, ...], dict[str, Any]]], copies: int = 1
) -> Tensor:
    """Final hidden states when the model runs on from layer ``start`` as it was entered, ``copies`` times over.

    The copies stand one after the other along the first dimension.
    """
    args, kwargs = calls[start]
    hidden = args[0] if args else kwargs["hidden_states"]
    rows = len(hidden)

    def repeated(value: Any) -> Any:
        import torch

        if isinstance(value, tuple):
            return tuple(repeated(part) for part in value)
        if not isinstance(value, torch.Tensor) or copies == 1 or value.dim() == 0 or len(value) != rows:
            return value
        return value.expand(copies, *value.shape).flatten(0, 1)

    hidden = repeated(hidden)
    for layer, (layer_args, layer_kwargs) in zip(layers[start:], calls[start:], strict=True):
        named = {name: repeated(value) for name, value in layer_kwargs.items()}
        if layer_args:
            output = layer(hidden, *map(repeated, layer_args[1:]), **named)
        else:
            output = layer(**{**named, "hidden_states": hidden})
        hidden = output[0] if isinstance(output, tuple) else output
    final: Tensor = final_norm(model)(hidden)
    return final


def final_norm(model: Any) -> Any:
    """The normalisation after the last decoder layer."""
    base = model.base_model
    for name in ("norm", "final_layer_norm", "ln_f"):
        if hasattr(base, name):
            return getattr(base, name)
    raise UserError(
        f"no final normalisation found in {type(base).__name__}: add its name to final_norm in localization.py"
    )


@contextmanager
def restored(model: Any, sites: Sequence[Site], clean: dict[tuple[int, str], Tensor]) -> Iterator[None]:
    """Put clean activations in place: the first site's in the first copy of a batch, the second's in the second."""
    groups: dict[str, list[int]] = {}
    for copy, site in enumerate(sites):
        groups.setdefault(site.kind, []).append(copy)

    def patch(current: Tensor, kind: str) -> Tensor:
        patched = current.clone()
        copies = patched.view(len(sites), -1, *current.shape[1:])
        for copy in groups[kind]:
            value = clean[sites[copy].layer, kind]
            columns: Any = slice(None) if sites[copy].columns is None else list(sites[copy].columns or ())
            copies[copy][..., columns] = value[..., columns]
        return patched

    def on_input(kind: str) -> Callable[..., Any]:
        return lambda _module, args: (patch(args[0], kind), *args[1:])

    def on_output(kind: str) -> Callable[..., Any]:
        return lambda _module, _args, output: patch(output, kind)

    with ExitStack() as stack:
        for kind in groups:
            module = comp.module_of(model, sites[0].layer, kind)  # type: ignore[arg-type]
            if comp.reads_input(kind):  # type: ignore[arg-type]
                handle = module.register_forward_pre_hook(on_input(kind))
            else:
                handle = module.register_forward_hook(on_output(kind))
            stack.callback(handle.remove)
        yield


def score(job: Job) -> None:
    """Stage: a score for every component, from training athletes unless the config says otherwise.

    Writes one row per component: ``component``, ``layer``, ``kind``, ``head``, ``unit`` (what was
    scored together) and the signed ``score``. Causal tracing's units give their score to all their
    matrices.
    """
    from localized_unlearning import models
    from localized_unlearning.prompts import load_prompts

    settings = job.config.scores[job.wildcards["scores"]]
    assert settings is not None
    device = models.setup(job.config.compute)
    model, tokenizer = models.load(job.inputs["base_model"], job.config.model.dtype, device)
    split = read_split(job.inputs["split"])
    asked = split if settings.athletes == "all" else split[split["train"]]
    asked = asked[asked["forget"]] if settings.athletes == "forget" else asked
    athletes = list(zip(asked["athlete"], asked["sport"], strict=True))
    if settings.prompts is not None and settings.prompts < len(athletes):
        athletes = random.Random(settings.seed).sample(athletes, settings.prompts)
    prompt = load_prompts(job.inputs["prompts"])[job.config.prompts.training]
    pairs = make_pairs(athletes, prompt.render, tokenizer, settings.seed)
    found = comp.list_components(model.config, counted(job.config.components, settings.granularity))
    tokens = models.batch_tokens(job.config.compute, model, kept=comp.geometry_of(model.config).layers)
    own = job.inputs.get("method")
    if own or settings.method == "attribution_patching":
        method = extensions.load(settings.method, own) if own else attribution_patching
        values = [float(value) for value in method(model, pairs, found, tokens)]
        if len(values) != len(found):
            raise UserError(
                f"{settings.method} gave {len(values)} scores for {len(found)} components: give one for each"
            )
        table = _table(found, [str(c) for c in found], values)
    else:
        sites = tracing_sites(model, settings, found)
        values = causal_tracing(model, pairs, sites, settings.noise, settings.seed, tokens)
        units: dict[str, float] = {}
        for site, value in zip(sites, values, strict=True):
            units[site.unit] = units.get(site.unit, 0.0) + value
        names = [_unit_of(c) if settings.sites == "units" else str(c) for c in found]
        table = _table(found, names, [units[name] for name in names])
    job.facts.update(seeds={"localization": settings.seed}, prompts=len(athletes), device=device)
    table.to_parquet(job.outputs["scores"], index=False)


def _unit_of(component: Component) -> str:
    return f"{component.layer}.{'attn' if component.kind in ATTENTION_KINDS else 'mlp'}"


def _table(found: Sequence[Component], units: Sequence[str], scores: Sequence[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "component": [str(c) for c in found],
            "layer": [c.layer for c in found],
            "kind": [c.kind for c in found],
            "head": pd.array([c.head for c in found], dtype="Int64"),
            "unit": list(units),
            "score": list(scores),
        }
    )


def counted(components: Components, granularity: Granularity | None) -> Components:
    """What counts as a component where ``granularity``, if given, replaces the run's."""
    return components if granularity is None else components.model_copy(update={"granularity": granularity})


def signed_percentile(table: pd.DataFrame, fraction: float) -> list[str]:
    """Components whose absolute score reaches the percentile of the *signed* scores that leaves ``fraction`` above it.

    The rule of the released code's masks. Large negative scores come on top of the fraction: 14 % of Gemma-7B's
    heads and matrices pass the attribution patching threshold of 5 %.
    """
    units = table.drop_duplicates("unit")
    threshold = float(np.percentile(units["score"], 100 * (1 - fraction)))
    return list(table.loc[table["score"].abs() >= threshold, "component"])


def rising_layers(probes: pd.DataFrame, rise: tuple[float, float]) -> tuple[int, ...]:
    """The layers over which the base model's probes rise: its fact lookup, read off Figure 16 (A.2).

    A probe's rise goes from its accuracy after the first layer to its highest. The layers run from the first at
    which one of the probes (whole prompt, name alone) has made ``rise[0]`` of its rise, to the first at which all
    have made ``rise[1]``. On the paper's own Figure 16 (Gemma-7B) that is 2 to 6, where the paper says 2 to 7.

    Args:
        probes: the rows of stage ``layer_probes``.
        rise: the two shares.

    Raises:
        UserError: when no probe rises.
    """
    rows = probes[~probes["ablated"] & (probes["labels"] == "sport")]
    accuracy = rows.groupby(["series", "layer"])["right"].mean().unstack("series").sort_index()
    span = accuracy.max() - accuracy.iloc[0]
    if not (span > 0).all():
        raise UserError(
            "the probes of the base model do not rise over its layers, so 'layers: auto' finds no fact lookup: "
            "name the manual localization's layers"
        )
    made = ((accuracy - accuracy.iloc[0]) / span).to_numpy()  # [layer, series]
    first = int((made >= rise[0]).argmax(axis=0).min())
    last = int((made >= rise[1]).argmax(axis=0).max())
    return tuple(range(first, last + 1))


def top_units(table: pd.DataFrame, fraction: float) -> list[str]:
    """Components of the units with the largest absolute score; ``fraction`` of the units, rounded up.

    5 % of 168 matrices are 9; 5 % of 56 units are 3, which stand for 10 matrices (4 + 4 + 2).
    """
    units = table.drop_duplicates("unit").copy()
    units["size"] = units["score"].abs()
    units = units.sort_values(["size", "unit"], ascending=[False, True], kind="stable")
    chosen = set(units["unit"][: comp.budget(len(units), fraction)])
    return list(table.loc[table["unit"].isin(chosen), "component"])


def matched_units(table: pd.DataFrame, sizes: dict[str, int], parameters: int) -> list[str]:
    """Components of the best units, taken in order while their parameters stay within ``parameters``."""
    units = table.drop_duplicates("unit").copy()
    units["size"] = units["score"].abs()
    units = units.sort_values(["size", "unit"], ascending=[False, True], kind="stable")
    chosen: list[str] = []
    total = 0
    for unit in units["unit"]:
        members = list(table.loc[table["unit"] == unit, "component"])
        cost = sum(sizes[m] for m in members)
        if total + cost <= parameters:
            chosen += members
            total += cost
    return chosen


def choose(
    localization: Localization,
    found: Sequence[Component],
    sizes: dict[str, int],
    scores: pd.DataFrame | None,
    manual_parameters: int | None,
) -> list[str]:
    """Names of the components that a localization trains (section 2.3).

    Args:
        localization: which localization.
        found: all components.
        sizes: parameters of each component.
        scores: the scores table, for kind ``scores``.
        manual_parameters: parameters of the manual localization, for budget ``parameters``.

    Raises:
        UserError: when the manual layers name components that do not exist, or a budget fits nothing.
    """
    names = [str(c) for c in found]
    matched = localization.budget == "parameters"
    if localization.kind == "all":
        chosen = names
    elif localization.kind == "all_mlps":
        chosen = [str(c) for c in found if c.kind not in ATTENTION_KINDS]
    elif localization.kind == "manual":
        assert not isinstance(localization.layers, str)  # select has put the layers that the probes say
        chosen = [str(c) for c in found if c.layer in localization.layers and c.kind in localization.kinds]
        missing = set(localization.layers) - {c.layer for c in found}
        if missing:
            raise UserError(
                f"the manual localization names layer {min(missing)}, but the model has layers 0 to "
                f"{max(c.layer for c in found)}: correct 'layers' in the config"
            )
    elif localization.selection == "independent":
        rng = random.Random(localization.seed)
        chosen = [name for name in names if rng.random() < localization.fraction]
    elif localization.kind == "random":
        order = random.Random(localization.seed).sample(names, len(names))
        table = pd.DataFrame({"component": order, "unit": order, "score": range(len(order), 0, -1)})
        chosen = _within(table, localization, sizes, manual_parameters if matched else None)
    else:
        assert scores is not None
        chosen = _within(scores, localization, sizes, manual_parameters if matched else None)
    if not chosen:
        raise UserError(f"localization '{localization.label}' selects no component: raise its budget")
    wanted = set(chosen)
    return [name for name in names if name in wanted]


def _within(
    table: pd.DataFrame, localization: Localization, sizes: dict[str, int], parameters: int | None
) -> list[str]:
    if localization.selection == "signed_percentile":
        return signed_percentile(table, localization.fraction)
    if parameters is None:
        return top_units(table, localization.fraction)
    return matched_units(table, sizes, parameters)


def select(job: Job) -> None:
    """Stage: the selection of one localization, a JSON file.

    It lists the chosen components, their parameters, and their share of the model.
    """
    import json

    from transformers import AutoConfig

    from localized_unlearning import models

    name = job.wildcards["localization"]
    localization = job.config.localizations[name]
    assert localization is not None
    if job.wildcards["method"] == "mask":
        localization = localization.for_masks()
    if localization.layers == "auto":
        if not job.inputs.get("probes"):
            raise UserError(f"the layers of {name} are 'auto': give stage select the base model's probes")
        layers = rising_layers(pd.read_parquet(job.inputs["probes"]), localization.rise)
        localization = localization.model_copy(update={"layers": layers})
        job.facts.update(layers=list(layers))
    model = models.skeleton(AutoConfig.from_pretrained(job.inputs["base_model"], local_files_only=True))
    found = comp.list_components(model.config, counted(job.config.components, localization.granularity))
    sizes = {str(c): comp.size_of(c, model) for c in found}
    scores = pd.read_parquet(job.inputs["scores"]) if job.inputs.get("scores") else None
    manual = job.inputs.get("manual")
    manual_parameters = json.loads(manual.read_text())["parameters"] if manual else None
    chosen = choose(localization, found, sizes, scores, manual_parameters)
    parameters = sum(sizes[c] for c in chosen)
    total = sum(p.numel() for p in model.parameters())
    selection = {
        "localization": name,
        "label": localization.label,
        "components": chosen,
        "parameters": parameters,
        "share_of_components": len(chosen) / len(found),
        "share_of_parameters": parameters / total,
    }
    if localization.kind == "random":
        job.facts.update(seeds={"random": localization.seed})
    job.outputs["selection"].write_text(json.dumps(selection, indent=1) + "\n", encoding="utf-8")


def read_selection(path: Any) -> list[Component]:
    """The components of a selection file."""
    import json

    return [comp.parse(name) for name in json.loads(path.read_text(encoding="utf-8"))["components"]]


__all__ = [
    "Components",
    "Pairs",
    "Site",
    "attribution_patching",
    "causal_tracing",
    "choose",
    "make_pairs",
    "read_selection",
    "score",
    "select",
    "top_units",
    "tracing_sites",
]
