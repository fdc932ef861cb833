"""What a run costs, before it runs: floating-point operations, seconds, bytes of memory and of disk, job by job.

The rules' memory and time, ``preflight`` and ``docs/scale.md`` all come from here. Everything is arithmetic over the
config, the sizes of the model and of the data; nothing is loaded, neither torch nor weights. What a rule computes is
described in one function per stage below; how fast a device is stands in ``DEVICES``.

Operations are counted as multiply and add (2 for each weight and token of a forward pass); B below is billion.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from localized_unlearning.config.attacks import Retraining
from localized_unlearning.costs.devices import DEVICES, Cost, Work, cpu
from localized_unlearning.costs.memory import Memory
from localized_unlearning.costs.sizes import GB
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.unlearning.settings import finetune_settings

Wildcards = Mapping[str, str]

TABLE, COMPARING = Work(fit_flops=6e9), Work(fit_flops=1.7e10)
"""Drawing a table's or a figure's intervals, and comparing every pair of its rows, with 2000 bootstrap samples."""


# ---- the stages


class CostModel(Memory):
    """The cost model of one run."""

    def cost(self, stage: str, wildcards: Wildcards) -> Cost:
        """What one job costs; of a sharded model, on each of its devices."""
        cost = STAGE_COSTS[stage](self, wildcards)
        return replace(cost, device=self.sharded(cost.device)) if stage not in LIGHT else cost


def _finetune(model: CostModel, w: Wildcards) -> Cost:
    trained, lowest = model.trained(w["localization"], w["task"])
    objective = model.config.objectives[w["objective"]]
    assert objective is not None
    f = finetune_settings(model.config.finetune, objective, w["localization"])
    windows = f.sft_batch_size or f.batch_size
    states = model.states(trained)
    each = model.saved(1, lowest, trained)
    batch = model.micro_batch(f.micro_batch_tokens, each, sum(states.values()))
    work = model.training(f.steps, 2 * f.batch_size, windows, trained, lowest, batch)
    held = model.held(2 * f.batch_size, windows, batch)
    # gradient norm and clipping, AdamW, zeroing: each state is read and written
    work += Work(traffic=f.steps * 2.5 * sum(states.values())) + model.loading(trained)
    device = {**model.training_bytes(trained, lowest, held), **states}
    return Cost(work, device, 2 * trained * model.width, trained * model.width)


def _mask(model: CostModel, w: Wildcards) -> Cost:
    m, trained, lowest = model.config.masking, *model.trained(w["localization"], w["task"], masks=True)
    states = {"adam": 2, "sgd": 1 if m.momentum else 0}[m.optimizer]
    held = {
        "gradients": model.width * trained,
        "base weights": model.width * trained,
        "mask": 4 * trained if m.parameterization == "mask" else 0,
        "optimizer": (4 if m.parameterization == "mask" else model.width) * states * trained,
        "one matrix's step": 12.0 * model.shape.largest,
    }
    batch = model.micro_batch(m.micro_batch_tokens, model.saved(1, lowest, trained), sum(held.values()))
    steps = m.steps + m.saliency_steps
    work = model.training(steps, 2 * m.batch_size, m.text_batch, trained, lowest, batch)
    each = 60 + 12 * states  # gradient of d, the step, clamping, the masked weight, the step's statistics
    work += Work(traffic=m.steps * each * trained) + model.loading()
    tokens = model.held(2 * m.batch_size, m.text_batch, batch)
    device = {**model.training_bytes(trained, lowest, tokens), **held}
    kept = (1 + len(m.controls)) * max(m.edit_sizes)
    return Cost(work, device, 8 * kept, 4.0 * kept)


def _relearn(model: CostModel, w: Wildcards) -> Cost:
    r, s = model.config.relearning, model.shape
    trained, _ = model.trained(w["localization"], w["task"])
    lora, read = model.adapters(r.rank, dropout=True)
    task = model.config.tasks[w["task"]]
    assert task is not None
    facts = len(task.relearn) + r.retain_batch
    adapters = read * 5 / 4  # besides, which of it dropout left out
    each = model.saved(1, 0, 0) + adapters
    held = {"adapters": 16 * lora}
    batch = model.micro_batch(r.micro_batch_tokens, each, sum(held.values()))
    work = model.training(r.iterations, facts, r.text_batch, lora, 0, batch)
    work += Work(flops=work.flops * 2 * lora / s.body) + Work(traffic=r.iterations * 40 * lora)
    exam = model.exam(w["task"])
    asked = exam + Work(flops=exam.flops * lora / s.body, calls=exam.calls)  # the adapters answer too
    work += asked * (r.iterations + 1) + model.loading(trained)
    tokens = model.held(facts, r.text_batch, batch)
    training = {**model.training_bytes(0, 0, tokens), "adapters' activations": tokens * adapters}
    largest = max(training, model.evaluating(), key=lambda parts: sum(parts.values()))
    return Cost(work, {**largest, **held}, trained * model.width, 2e4 * (r.iterations + 1))


def _asked(model: CostModel, w: Wildcards, work: Work, rows: float) -> Cost:
    """One evaluation of a checkpoint: the model is loaded, changed by its delta, and asked."""
    trained = model.trained(w["localization"], w["task"])[0]
    return Cost(work + model.loading(trained), model.evaluating(), trained * model.width, 1e4 + 60.0 * rows)


def _facts(model: CostModel, w: Wildcards) -> Cost:
    c, test = model.config, sum(model.parts(w["task"])[1:])
    names = (c.prompts.training, c.prompts.question, *c.evaluation.prompts)
    return _asked(model, w, sum((model.ask(name, test) for name in names), Work()), test * len(names))


def _multiple_choice(model: CostModel, w: Wildcards) -> Cost:
    test = sum(model.parts(w["task"])[1:])
    orders = 1 + model.config.evaluation.orders
    return _asked(model, w, model.ask_choice(test, orders), orders * test)


def _mmlu(model: CostModel, w: Wildcards) -> Cost:
    m = model.config.mmlu
    rows = model.data.questions if m.questions is None else m.questions
    return _asked(model, w, model.ask_questions(m.questions, m.shots), rows)


def _text(model: CostModel, w: Wildcards) -> Cost:
    t = model.config.text
    count = t.windows * t.tokens
    work = model.forward(count, t.tokens, 2 * count) * 2  # the base model's beside
    cost = _asked(model, w, work, t.windows)
    states = 2.0 * count * model.shape.hidden * model.width  # final hidden states of both, on the host
    if model.on_gpu:
        return replace(cost, host=cost.host + states)
    return replace(cost, device={**cost.device, "hidden states": states})


def _sweep(model: CostModel, w: Wildcards) -> Cost:
    masking = model.config.masking
    rankings = 1 + len(masking.controls)
    points = rankings * len(masking.edit_sizes) - (rankings - 1 if 0 in masking.edit_sizes else 0)
    return Cost(
        model.exam(w["task"]) * points + model.loading(), model.evaluating(),
        8 * rankings * max(masking.edit_sizes), 2e4 * points,
    )  # fmt: skip


def _score(model: CostModel, w: Wildcards) -> Cost:
    c, s = model.config, model.shape
    score = c.scores[w["scores"]]
    assert score is not None
    train = model.parts(w["task"])[0]
    count = train if score.prompts is None else min(train, score.prompts)
    nodes = model.packed(count, *model.prompts[c.prompts.training])
    once = model.forward(nodes, model.row, count)
    batch = min(model.batch_tokens, nodes)
    device = model.evaluating()
    each = 2 * (s.heads + s.kv_heads) * s.head_dim + s.mlp + s.hidden
    points = int(score.parameters.get("points", 5)) if score.method == "integrated_gradients" else 1
    if score.method in ("attribution_patching", "integrated_gradients"):
        work = once * (3 if points == 1 else 2 + 2 * points)  # each backward is to the activations alone
        device["activations"] = model.saved(batch, 0, 0) + 1.5 * batch * s.layers * each * model.width
    else:
        exact, counted = score.method == "activation_patching", score.granularity or c.components.granularity
        matrices = len(s.kinds) + (3 * s.heads if counted == "head" else 0)
        heads = 1 if score.sites == "blocks" else s.heads
        sites = s.layers * (matrices if exact else heads + 1)
        again = once * (sites / 2)  # each restarts at its layer: half the network on average
        together = max(1, model.batch_tokens // nodes)
        work = once * 2 + replace(again, calls=again.calls / together)
        device = model.evaluating(min(together, s.heads) * nodes)  # the sites of a layer run side by side
        device["activations"] += batch * s.layers * (s.hidden + s.mlp + s.heads * s.head_dim) * model.width
    return Cost(work + model.loading(), device, 0, 2e4)


def _select_weights(model: CostModel, w: Wildcards) -> Cost:
    c, s = model.config, model.shape
    train = model.parts(w["task"])[0]
    nodes = model.packed(train, *model.prompts[c.prompts.training])
    batch = min(model.batch_tokens, nodes)
    device = model.evaluating()
    device["activations"] = model.saved(batch, 0, s.body)
    device["gradients"] = (
        2 * model.width + 4 + 4 + 1
    ) * s.body  # two gradients, scores, their keys, the mask
    work = model.forward(nodes, model.row, train) * 3 + Work(traffic=33.0 * 4 * s.body)
    return Cost(work + model.loading(), device, 2.0 * s.body, s.body / 8)


def _faithfulness(model: CostModel, w: Wildcards) -> Cost:
    c, s = model.config, model.shape
    asked = model.data.total if c.faithfulness.prompts is None else c.faithfulness.prompts
    nodes = model.packed(asked, *model.prompts[c.prompts.training])
    batch = min(model.batch_tokens, nodes)
    device = model.evaluating()
    each = 2 * (s.heads + s.kv_heads) * s.head_dim + 2 * s.mlp + s.hidden
    device["activations"] += batch * s.layers * each * model.width
    work = model.forward(nodes, model.row, asked) * (4 + 2 * len(c.faithfulness.shares))
    return Cost(work + model.loading(), device, 0, 1e5)


def _check_model(model: CostModel, w: Wildcards) -> Cost:
    return Cost(model.asking(64) + model.loading(), model.evaluating(), 0, 1e4)


def _known_facts(model: CostModel, w: Wildcards) -> Cost:
    work = model.ask(model.config.prompts.training, model.data.total) + model.loading()
    return Cost(work, model.evaluating(), 0, 1e5)


def _model_card(model: CostModel, w: Wildcards) -> Cost:
    c, n = model.config, model.data.total
    work = model.ask(c.prompts.training, n) + model.ask(c.prompts.question, n) + model.ask_choice(n, 2)
    work += model.ask_questions(c.mmlu.questions, c.mmlu.shots) + model.loading()
    return Cost(work, model.evaluating(), 0, 1e4)


def _probe(model: CostModel, w: Wildcards) -> Cost:
    trained = model.trained(w["localization"], w["task"])[0]
    work = replace(model.pass_over(model.config.prompts.training, model.data.total), logit_flops=0, logits=0)
    work += model.probes(2 * 3 * model.shape.layers, model.parts(w["task"])[0]) + model.loading(trained)
    residual = 4.0 * model.shape.layers * model.data.total * model.shape.hidden
    device = model.evaluating()
    return Cost(work, device, trained * model.width + 3 * residual, 1e4)


def _layer_probes(model: CostModel, w: Wildcards) -> Cost:
    n = model.data.total
    work = model.pass_over(model.config.prompts.training, n) * 2 + model.pass_over("subject", n) * 2
    work += model.probes(6 * model.shape.layers, 0.8 * n) * 2 + model.loading()
    return Cost(work, model.evaluating(), 12.0 * model.shape.layers * n * model.shape.hidden, 1e5)


def _head_ablation(model: CostModel, w: Wildcards) -> Cost:
    runs = model.config.interpretability.lookup_end * model.shape.heads + 1
    work = model.pass_over(model.config.prompts.training, model.data.total) * runs
    work += model.probes(runs, 0.8 * model.data.total) * 2 + model.loading()
    return Cost(work, model.evaluating(), 12.0 * model.data.total * model.shape.hidden, 1e5)


def _pretrain(model: CostModel, w: Wildcards) -> Cost:
    o, c = model.config.organism, model.config
    work = Work()
    for name, count in (
        (c.prompts.training, o.facts_per_step), (c.prompts.question, o.questions_per_step),
        (c.prompts.multiple_choice, o.multiple_choice_per_step),
    ):  # fmt: skip
        tokens, shared = model.prompts[name]
        work += model.forward(model.packed(count, tokens, shared), model.row, count)
    questions = model.tokens(model.data.question_characters, "question") * o.general_knowledge_per_step
    text = o.text_per_step * 64
    work += model.forward(questions, model.row, o.general_knowledge_per_step) + model.forward(text, 64, text)
    work = work * 3 + Work(traffic=40.0 * model.shape.parameters)
    n = model.shape.parameters
    device = {
        "weights": 4.0 * n,
        "gradients": 4.0 * n,
        "optimizer": 8.0 * n,
        "activations": model.saved(4096, 0, True),
    }
    return Cost(work * o.steps, device, 0, 4.0 * n)


def _inject(model: CostModel, w: Wildcards) -> Cost:
    o = model.config.organism
    if o.facts_in is None:
        return Cost(disk=1e4)
    steps = o.facts_in.steps / o.steps * o.facts_in.prompts_per_step
    asked = o.facts_per_step + o.questions_per_step + o.multiple_choice_per_step
    one = _pretrain(model, w)
    return replace(one, work=one.work * (steps / asked))


def _question(model: CostModel, w: Wildcards) -> Cost:
    """Two injections, then for each selection a few trainings, evaluations and an attack, each of a few thousand steps' cost."""
    q = model.config.question
    each = _pretrain(model, w)
    selections = 5 + q.draws + q.disjoint
    steps = model.config.finetune.steps * (1 + len(q.learning_rates)) / 2
    steps += sum(attack.steps for attack in q.attacks.values())
    share = selections * steps / model.config.organism.steps
    return replace(each, work=_inject(model, w).work * 2 + each.work * share)


def _retraining(model: CostModel, r: Retraining, rank: int | None) -> tuple[Work, dict[str, float]]:
    """Work and device bytes of an attack that trains adapters of ``rank``, or without one every matrix of the layers."""
    s = model.shape
    if rank is None:
        trained, whole, read = float(s.body), float(s.body), 0.0
        states = {"gradients": model.width * trained, "optimizer": 2 * model.width * trained,
                  "weights before": model.width * trained}  # fmt: skip
    else:
        (trained, read), whole = model.adapters(min(rank, s.hidden), dropout=False), 0.0
        states = {"adapters": 16 * trained}
    states["one matrix's step"] = 12.0 * s.largest
    each = model.saved(1, 0, whole) + read
    batch = model.micro_batch(r.micro_batch_tokens, each, sum(states.values()))
    work = model.training(r.steps, 2 * r.batch_size, r.text_batch, trained, 0, batch)
    if rank is not None:
        work += Work(flops=work.flops * 2 * trained / s.body)
    work += Work(traffic=r.steps * 2.5 * sum(states.values()))
    held = model.held(2 * r.batch_size, r.text_batch, batch)
    device = {**model.training_bytes(whole, 0, held), "adapters' activations": held * read, **states}
    return work, device


def _attack(model: CostModel, w: Wildcards) -> Cost:
    """Half and half costs most, apart from the search, which does it once per cell; both hold adapters and states."""
    a, asked = model.config.attacks, _facts(model, w)
    cells = {
        "noise": len(a.noise.scales),
        "pruning": len(a.pruning.shares),
        "quantization": len(a.quantization.bits),
    }
    trainings: list[tuple[Retraining, int | None]] = []
    if w["attack"] == "search":
        for _, steps, rank in itertools.product(a.search.learning_rates, a.search.steps, a.search.ranks):
            trainings.append((a.search.base.model_copy(update={"steps": steps}), rank or None))
    elif w["attack"] in ("half_and_half", "half_and_half_false", "retain_only"):
        settings = getattr(a, w["attack"])
        trainings.append((settings, settings.rank))
    found = [_retraining(model, settings, rank) for settings, rank in trainings]
    times = len(found) or cells.get(w["attack"], 1)
    work = sum((work for work, _ in found), asked.work * (times * (2 + a.asked.orders)))
    if w["attack"] in cells:  # the weights return after each
        device = {
            "weights before": model.width * float(model.shape.body),
            "one matrix": 8.0 * model.shape.largest,
        }
        return replace(asked, work=work, device={**asked.device, **device})
    largest = max(
        [dict(asked.device), *(device for _, device in found)], key=lambda parts: sum(parts.values())
    )
    return replace(asked, work=work, device=largest)


def _download(model: CostModel, w: Wildcards) -> Cost:
    return Cost(Work(load=2 * model.weights), {}, 1e9, model.weights)


def _convert(model: CostModel, w: Wildcards) -> Cost:
    return Cost(
        Work(load=2 * model.weights, traffic=200 * model.shape.parameters),
        {},
        3 * model.weights,
        model.weights,
    )


def _claims(model: CostModel, w: Wildcards) -> Cost:
    return Cost(COMPARING, host=2e9, disk=2e5)  # every model's rows at once, and their resampled means


def _fetch(model: CostModel, w: Wildcards) -> Cost:
    return Cost(disk=0.4 * GB)  # the largest of the presets: a part of the Pile, compressed


def _table(model: CostModel, w: Wildcards) -> Cost:
    return Cost(TABLE, disk=4e4)


def _comparisons(model: CostModel, w: Wildcards) -> Cost:
    return Cost(COMPARING, disk=5e4)


def _light(model: CostModel, w: Wildcards) -> Cost:
    return Cost(disk=1e4)


def _overlap(model: CostModel, w: Wildcards) -> Cost:
    single = sum(found.kind == "weights" for found in model.config.localizations.values() if found)
    masks = (single + 1) * model.shape.body if single else 0  # a byte for every weight
    return Cost(host=masks + 40.0 * (model.config.overlap.masked or 0), disk=1e4)


STAGE_COSTS: dict[str, Callable[[CostModel, Wildcards], Cost]] = {
    "fetch": _fetch,
    "pretrain": _pretrain,
    "inject": _inject,
    "gold": _inject,
    "teachers": _multiple_choice,
    "attack": _attack,
    "attack_table": _comparisons,
    "place": _inject,
    "places_page": _comparisons,
    "question": _question,
    "question_page": _comparisons,
    "localizers": _light,
    "convert": _convert,
    "download": _download,
    "check_model": _check_model,
    "known_facts": _known_facts,
    "model_card": _model_card,
    "counterfact": _light,
    "windows": _light,
    "split": _light,
    "score": _score,
    "select": _light,
    "select_for_mask": _light,
    "select_weights": _select_weights,
    "faithfulness": _faithfulness,
    "faithfulness_report": _table,
    "overlap": _overlap,
    "overlap_table": _table,
    "study": _comparisons,
    "finetune": _finetune,
    "facts": _facts,
    "multiple_choice": _multiple_choice,
    "mmlu": _mmlu,
    "text": _text,
    "relearn": _relearn,
    "mask": _mask,
    "sweep": _sweep,
    "probe": _probe,
    "head_ablation": _head_ablation,
    "layer_probes": _layer_probes,
    "table": _table,
    "figure": _table,
    "supplement": _table,
    "comparisons": _comparisons,
    "claims": _claims,
}

LIGHT = tuple(name for name, stage in STAGES.items() if not stage.gpu)
"""Stages that use no GPU even where there is one."""

# ---- what a job asks the scheduler for

PROCESS = 1.2 * GB
"""A Python process that has imported torch, transformers and scikit-learn, with room for its data frames."""

HEADROOM = 1.3
"""Memory asked for, over what is predicted."""

PATIENCE = 4
"""Time asked for, over what is predicted: a busy file system or a neighbour must not kill a job."""


def memory_mb(model: CostModel, stage: str, wildcards: Wildcards, attempt: int = 1) -> int:
    """Host memory to ask for, in MB; half as much again with each further attempt.

    On a GPU the host holds the weights while they are loaded, and the copies that are kept beside the device. The
    processes of a sharded model load it in turn.
    """
    cost = model.cost(stage, wildcards)
    processes = 1 if stage in LIGHT else model.config.compute.shards
    if stage not in LIGHT and model.on_gpu:
        needed = model.weights + cost.host
    else:
        loaded = model.weights if cost.device and stage != "pretrain" else 0
        needed = processes * cost.device_bytes + cost.host + loaded
    needed = processes * PROCESS + HEADROOM * needed
    return math.ceil(needed / 1e6 * 1.5 ** (attempt - 1))


def minutes(model: CostModel, stage: str, wildcards: Wildcards, threads: int = 1, attempt: int = 1) -> int:
    """Time to ask for, in minutes; twice as much with each further attempt."""
    cost = model.cost(stage, wildcards)
    gpu = stage not in LIGHT and model.on_gpu
    device = DEVICES["A100-80"] if gpu else cpu(threads)
    seconds = device.seconds(cost.work, model.config.model.dtype)
    least = 60 if stage in ("fetch", "download") else 10
    return math.ceil((least + PATIENCE * seconds / 60) * 2.0 ** (attempt - 1))
