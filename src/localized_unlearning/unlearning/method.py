"""Unlearning methods: what a forget loss sees, and what it may own.

A method is one file with a function of a :class:`Batch`, or with a subclass of :class:`Method` where a function is not
enough. Ours (``objectives/``) are written as a user's are, so that a new one touches no other file::

    def ascend(batch, *, scale=1.0):
        return scale * batch.log_p

Keyword-only arguments (of a class: its fields) are its hyperparameters, which the config gives under
``objectives.NAME.parameters``. What a batch offers costs nothing until it is asked for. The base model's values are
measured in the first step, while the weights are still the base's: once per item, without a second model. Hidden states
come from the step's own forward pass, but for the first batch that asks. Logits of the vocabulary are made when read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from localized_unlearning import extensions
from localized_unlearning.errors import UserError
from localized_unlearning.models import components, packing, sharding
from localized_unlearning.models.vocabulary import log_odds, logits_of
from localized_unlearning.unlearning import precision

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.config.unlearning import Finetune


class About(NamedTuple):
    """Which fact an item is: whom it is about, and the answer that it is trained on, in words."""

    subject: str
    answer: str


class Facts:
    """One set of facts, forget or retain, with what is remembered of the base model about it.

    Args:
        model: the model that is trained; the base model until :meth:`moved`.
        items: tokenised prompts and the token of each one's answer.
        about: who and what each item is; may be empty.
        tokens: tokens of one forward pass.
        seed: of what a method draws at random.

    Attributes:
        watched: the layers after which a method reads the residual stream.
    """

    def __init__(
        self,
        model: Any,
        items: Sequence[tuple[list[int], int]],
        about: Sequence[About],
        tokens: int,
        seed: int,
    ) -> None:
        self.model, self.items, self.tokens, self.seed = model, items, tokens, seed
        self.about = about or [About(f"item {number}", "") for number in range(1, len(items) + 1)]
        self.watched: set[int] = set()
        self._base: dict[str, Tensor] = {}
        self._fresh = True

    def moved(self) -> None:
        """The weights are the base model's no more: what was not measured by now cannot be."""
        self._fresh = False

    def base(self, layer: int | None) -> Tensor:
        """The base model's final hidden states (None), or residual stream after a layer, of each item ``[item, width]``."""
        return self._remembered(f"after {layer}", lambda: self._measured(layer))

    def base_log_odds(self) -> Tensor:
        """The base model's log-odds of each item's answer ``[item]``."""
        import torch

        def measured() -> Tensor:
            hidden = self.base(None)
            answer = torch.tensor([answer for _, answer in self.items], device=hidden.device)
            return log_odds(self.model, hidden, answer)

        return self._remembered("log-odds", measured)

    def _remembered(self, name: str, measure: Callable[[], Tensor]) -> Tensor:
        import torch

        if name not in self._base:
            if not self._fresh:
                raise UserError(
                    "the base model's values are asked for when the weights are no longer its own: read them in every step"
                )
            with torch.no_grad():
                self._base[name] = measure()
        return self._base[name]

    def _measured(self, layer: int | None) -> Tensor:
        rows: Tensor | None = None
        for batch in packing.batches([prompt for prompt, _ in self.items], self.model, self.tokens):
            final, kept = states(self.model, batch, () if layer is None else (layer,))
            found = final if layer is None else kept[layer]
            rows = found.new_empty(len(self.items), found.shape[1]) if rows is None else rows
            rows[batch.prompts.to(rows.device)] = found
        assert rows is not None
        return rows


def states(model: Any, batch: packing.Batch, layers: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """Final hidden states, and the residual stream after ``layers``, at each prompt's last token ``[prompt, width]``.

    Raises:
        UserError: when the model has no such layer.
    """
    found, kept = components.layers_of(model), {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            kept[layer] = hidden[batch.rows, batch.nodes]

        return hook

    with ExitStack() as stack:
        for layer in layers:
            if layer not in range(len(found)):
                raise UserError(f"layer {layer} is asked for, but the model has layers 0 to {len(found) - 1}")
            stack.callback(found[layer].register_forward_hook(keep(layer)).remove)
        final = packing.last_hidden(model, batch)
    return final, kept


def micro_batches(
    model: Any,
    chosen: Sequence[tuple[Facts, Sequence[int]]],
    tokens: int,
    step: int = 0,
    divided: bool = True,
) -> Iterator[tuple[list[Batch], bool]]:
    """One forward pass after another over the ``chosen`` items of one or two sets, packed together.

    Yields:
        Each set's items in the pass, with its graph, and whether this process's pass counts (:func:`sharding.share`).
    """
    import torch

    items = [facts.items[i] for facts, indices in chosen for i in indices]
    owners = torch.tensor([place for place, (_, indices) in enumerate(chosen) for _ in indices])
    numbers = torch.tensor([i for _, indices in chosen for i in indices])
    batches = packing.batches([prompt for prompt, _ in items], model, tokens)
    for batch, counts in sharding.share(batches, model if divided else None):
        answer = torch.tensor([items[i][1] for i in batch.prompts.tolist()], device=model.device)
        final, kept = states(model, batch, sorted(set().union(*(facts.watched for facts, _ in chosen))))
        odds = log_odds(model, final, answer)
        parts = []
        for place, (facts, _) in enumerate(chosen):
            rows = (owners[batch.prompts] == place).nonzero()[:, 0]

            def hidden(
                layer: int, rows: Tensor = rows, facts: Facts = facts, batch: Any = batch, kept: Any = kept
            ) -> Tensor:
                if layer not in kept:  # from now on it comes with the pass
                    facts.watched.add(layer)
                    kept.update(states(model, batch, (layer,))[1])
                found: Tensor = kept[layer][rows]
                return found

            index = numbers[batch.prompts[rows]]
            parts.append(Batch(facts, index, answer[rows], odds[rows], step, final[rows], hidden))
        yield parts, counts


class Base:
    """The base model about a batch's items; the same names as :class:`Batch` has, without gradients."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    @property
    def log_odds(self) -> Tensor:
        """``[item]``, float32."""
        return self._batch.facts.base_log_odds()[self._index()]

    @property
    def log_p(self) -> Tensor:
        """Natural logarithm of the answer's probability ``[item]``."""
        return _log_p(self.log_odds)

    def hidden(self, layer: int) -> Tensor:
        """The residual stream after ``layer`` at the prompt's last token ``[item, width]``."""
        return self._batch.facts.base(layer)[self._index()]

    def logits(self) -> Tensor:
        """Logits of the vocabulary ``[item, token]``, float32."""
        return logits_of(self._batch.facts.model, self._batch.facts.base(None)[self._index()])

    def _index(self) -> Tensor:
        return self._batch.index.to(self._batch.log_odds.device)


@dataclass
class Batch:
    """The items of one set, forget or retain, in a micro-batch: what a method sees.

    Attributes:
        facts: the set; ``facts.seed`` is for what is drawn at random.
        index: each item's place in the set ``[item]``, on the CPU.
        answer: token of each item's answer ``[item]``.
        log_odds: log(p / (1 - p)) of each answer over the whole vocabulary ``[item]``, float32, with gradient.
        step: the step, from 0.
        base: the base model about the same items.
    """

    facts: Facts
    index: Tensor
    answer: Tensor
    log_odds: Tensor
    step: int
    _final: Tensor = field(repr=False)
    _hidden: Callable[[int], Tensor] = field(repr=False)

    @property
    def log_p(self) -> Tensor:
        """Natural logarithm of each answer's probability ``[item]``."""
        return _log_p(self.log_odds)

    @property
    def subjects(self) -> list[str]:
        """Whom each item is about."""
        return [self.facts.about[i].subject for i in self.index.tolist()]

    @property
    def answers(self) -> list[str]:
        """Each item's answer in words: its class."""
        return [self.facts.about[i].answer for i in self.index.tolist()]

    @property
    def base(self) -> Base:
        """The base model about the same items."""
        return Base(self)

    def hidden(self, layer: int) -> Tensor:
        """The residual stream after ``layer`` at the prompt's last token ``[item, width]``, in the model's type."""
        return self._hidden(layer)

    def logits(self) -> Tensor:
        """Logits of the vocabulary after the prompt ``[item, token]``, float32, with gradient: as large as it sounds."""
        return logits_of(self.facts.model, self._final)


def _log_p(odds: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(odds)


@dataclass(frozen=True)
class Training:
    """What a method gets that owns the step.

    Attributes:
        model: the model; ``parameters`` are the ones of its parameters that are trained, by name.
        forget, retain: the two sets of facts.
        settings: of fine-tuning, as they hold for this model.
        seed: this model's.
    """

    model: Any
    parameters: Mapping[str, Any]
    forget: Facts
    retain: Facts
    settings: Finetune
    seed: int

    def epoch(self, tensors: Sequence[Tensor], size: int) -> Iterator[tuple[Tensor, ...]]:
        """The gradient of the mean of -log p by ``tensors``, of each ``size`` items of the forget set in order."""
        import torch

        for start in range(0, len(self.forget.items), size):
            indices = range(len(self.forget.items))[start : start + size]
            total = [torch.zeros_like(tensor) for tensor in tensors]
            chosen = [(self.forget, indices)]
            for (batch,), _ in micro_batches(self.model, chosen, self.forget.tokens):
                torch._foreach_add_(total, torch.autograd.grad(-batch.log_p.sum() / len(indices), tensors))
            yield tuple(total)


@contextmanager
def with_lora(training: Training, rank: int, alpha: float) -> Iterator[list[Tensor]]:
    """Low-rank adapters on every trained matrix, as peft starts them (A Kaiming-uniform, B 0), removed on exit.

    Yields:
        A ``[rank, in]`` and B ``[out, rank]`` of one matrix after the other; a module adds alpha / rank B A x.

    Raises:
        UserError: when a trained parameter is no whole matrix of a linear module.
    """
    import torch

    draw = torch.Generator().manual_seed(training.seed)
    adapters: list[Tensor] = []
    with ExitStack() as stack:
        for name, weight in training.parameters.items():
            module = training.model.get_submodule(name.rpartition(".")[0])
            if not isinstance(module, torch.nn.Linear) or hasattr(weight, "device_mesh"):
                raise UserError(
                    f"{name} is no whole matrix of a linear module: choose another method, or one shard"
                )
            bound = weight.shape[1] ** -0.5
            a = torch.empty(rank, weight.shape[1]).uniform_(-bound, bound, generator=draw).to(weight)
            b = weight.new_zeros(weight.shape[0], rank)
            adapters += [a.requires_grad_(), b.requires_grad_()]

            def add(_module: Any, args: Any, output: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
                added: Tensor = alpha / rank * (args[0] @ a.T) @ b.T
                return output + added

            stack.callback(module.register_forward_hook(add).remove)
        yield adapters


class Method:
    """An unlearning method. A subclass is a frozen dataclass whose fields are its hyperparameters.

    Attributes:
        named: how the config names it, for messages.
    """

    named: str = "the forget loss"

    def loss(self, batch: Batch) -> Tensor:
        """The forget loss of each item ``[item]``, to be made small; λ1 and the mean over a step's items follow."""
        raise NotImplementedError

    def retain(self, batch: Batch) -> Tensor:
        """The retain loss of each item ``[item]``: cross-entropy, -log p, unless a method says otherwise."""
        return -batch.log_p

    def gradients(self, training: Training) -> Iterator[dict[str, float]] | None:
        """For a method that owns the step: leave each step's gradient in the parameters, and yield its losses.

        The caller masks, clips and applies what it finds, and clears it. Losses are named ``forget``, ``retain`` and
        ``sft``, in nats, NaN where a method has none. None, as here: the gradient of the whole loss (section 2.4).
        """
        return None

    def optimizer(self, parameters: Sequence[Tensor], settings: Finetune, seed: int) -> Any:
        """What applies the gradients: AdamW with the settings' precision, unless a method says otherwise."""
        return precision.adamw(parameters, settings, seed)

    def checked(self, batch: Batch, retain: bool = False) -> Tensor:
        """The loss of each item, after making sure that it can be descended on.

        Raises:
            UserError: when the method raises, or gives another shape or type, no gradient (or in the first step one that
                reaches no trained weight), NaN or infinity; it names the method and the first item.
        """
        import torch

        part, wanted = ("retain loss" if retain else "loss"), batch.log_odds
        first = (
            f"at '{batch.subjects[0]}' in step {batch.step + 1}"
            if len(wanted)
            else f"in step {batch.step + 1}"
        )
        try:
            found = self.retain(batch) if retain else self.loss(batch)
        except Exception as error:
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            raise UserError(f"{self.named}: its {part} fails {first} ({said})") from error
        if getattr(found, "shape", None) != wanted.shape or not isinstance(found, torch.Tensor):
            raise UserError(
                f"{self.named}: its {part} must be one number per item, a tensor in the shape of batch.log_odds "
                f"{list(wanted.shape)}, but {first} it is {_kind(found)}"
            )
        if not found.is_floating_point():
            raise UserError(
                f"{self.named}: its {part} {first} is of type {found.dtype}: give real numbers in floating point"
            )
        if wanted.requires_grad and not (
            found.requires_grad and (batch.step or _reaches(found, batch.facts.model))
        ):
            raise UserError(
                f"{self.named}: its {part} {first} has no gradient by any weight that is trained: compute it from the batch with "
                "torch alone, undetached, and where it reads a layer train one at or below it"
            )
        bad = ~torch.isfinite(found.detach())
        if bad.any():
            place = int(bad.nonzero()[0, 0])
            raise UserError(
                f"{self.named}: its {part} is {float(found[place].detach())} for '{batch.subjects[place]}' in step "
                f"{batch.step + 1} (log-odds {float(wanted[place].detach()):.4g}): correct it"
            )
        return found


def _reaches(found: Tensor, model: Any) -> bool:
    """Whether the gradient of ``found`` reaches a weight that is trained; of a model in parts nothing is said."""
    if sharding.count(model) > 1:
        return True
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    seen, waiting = set(), [found.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        if id(getattr(node, "variable", None)) in trained:
            return True
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
    return False


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} {list(shape)}" if shape is not None else f"a {type(value).__name__}"


class _Function(Method):
    """A method that is a function of a batch."""

    def __init__(self, function: Callable[[Batch], Tensor]) -> None:
        self.function = function

    def loss(self, batch: Batch) -> Tensor:
        return self.function(batch)


def of(found: Any, parameters: Mapping[str, Any], named: str) -> Method:
    """The method that a function of a batch, or a subclass of :class:`Method`, is with these hyperparameters.

    Args:
        found: the function or class.
        parameters: hyperparameters by name.
        named: how the config names it.

    Raises:
        UserError: when it has no such hyperparameter, or refuses its value.
    """
    extensions.check(found, parameters, named, given=0 if inspect.isclass(found) else 1)
    try:
        if inspect.isclass(found):
            made = found(**parameters)
            if not isinstance(made, Method):
                raise UserError(
                    f"{named} is a class, but no subclass of {Method.__module__}.Method: derive it from that"
                )
        else:
            made = _Function(lambda batch: found(batch, **parameters))
    except (TypeError, ValueError) as error:
        raise UserError(f"{named} does not take its 'parameters' ({error}): correct them") from error
    object.__setattr__(made, "named", named)  # a frozen dataclass too
    return made


def load(named: str, path: Path, parameters: Mapping[str, Any]) -> Method:
    """The method that the config names: ours by its file's name, or ``FILE.py:FUNCTION``; from the file at ``path``.

    Raises:
        UserError: when the file cannot be run, has no such function or class, or refuses the hyperparameters.
    """
    return of(extensions.load(named, path), parameters, named)
