"""How large a run's model and data are."""

from __future__ import annotations

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from localized_unlearning.config.base import Kind
from localized_unlearning.config.run import Config
from localized_unlearning.config.source import Source
from localized_unlearning.data.plain import pairs_in
from localized_unlearning.data.prompts import RIGHT

GB = 1e9


# ---- the model


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder; what they do not count, norms and biases, is below 0.1 %.

    Attributes:
        layers, hidden, mlp, heads, kv_heads, head_dim, vocabulary: as in the model's config.
        gated: whether the MLP has a gate projection.
        tied: whether the output layer is the embedding.
        norms: normalisations of a layer.
        softcapped: whether attention scores are capped, for which there is no fused kernel.
    """

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    gated: bool = True
    tied: bool = True
    norms: int = 2
    softcapped: bool = False

    @property
    def kinds(self) -> dict[Kind, int]:
        """Parameters of each matrix of a layer."""
        query, key, mlp = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.mlp
        widths: dict[Kind, int] = {"q": query, "k": key, "v": key, "o": query, "up": mlp, "down": mlp}
        if self.gated:
            widths["gate"] = mlp
        return {kind: width * self.hidden for kind, width in widths.items()}

    @property
    def body(self) -> int:
        """Parameters of all layers' matrices: what each token passes through."""
        return self.layers * sum(self.kinds.values())

    @property
    def head(self) -> int:
        """Parameters of the output layer."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return self.body + self.head * (1 if self.tied else 2)

    @property
    def largest(self) -> int:
        """Parameters of the largest matrix of a layer."""
        return max(self.kinds.values())


KNOWN: dict[str, Shape] = {
    "gemma-7b": Shape(28, 3072, 24576, 16, 16, 256, 256_000),
    "gemma-2-2b": Shape(26, 2304, 9216, 8, 4, 256, 256_000, norms=4, softcapped=True),
    "gemma-2-9b": Shape(42, 3584, 14336, 16, 8, 256, 256_000, norms=4, softcapped=True),
    "gemma-3-270m": Shape(18, 640, 2048, 4, 1, 256, 262_144, norms=4),
    "gemma-3-1b-pt": Shape(26, 1152, 6912, 4, 1, 256, 262_144, norms=4),
    "meta-llama-3-8b": Shape(32, 4096, 14336, 32, 8, 128, 128_256, tied=False),
    "llama-3.1-8b": Shape(32, 4096, 14336, 32, 8, 128, 128_256, tied=False),
    "pythia-2.8b": Shape(32, 2560, 10240, 32, 32, 80, 50_304, gated=False, tied=False),
}
"""Published sizes of models by the last part of their hub name, for plans made before the weights are there."""


def shape_in(path: Path) -> Shape:
    """The shape in a Hugging Face ``config.json``."""
    data = json.loads(path.read_text(encoding="utf-8"))
    data = data.get("text_config", data)
    heads, hidden = data["num_attention_heads"], data["hidden_size"]
    return Shape(
        data["num_hidden_layers"],
        hidden,
        data["intermediate_size"],
        heads,
        data.get("num_key_value_heads") or heads,
        data.get("head_dim") or hidden // heads,
        data["vocab_size"],
        gated=data["model_type"] != "gpt_neox",
        tied=data.get("tie_word_embeddings", data["model_type"].startswith("gemma")),
        norms=4 if data["model_type"].startswith(("gemma2", "gemma3")) else 2,
        softcapped=bool(data.get("attn_logit_softcapping")),
    )


class Places(Protocol):
    """Where a run's files lie, or will lie."""

    def base_model(self) -> Path:
        """The base model's folder."""

    def card(self) -> Path:
        """The base model's card."""

    def source(self, dotted: str) -> Path:
        """A fetched source."""

    def prompts(self) -> Path:
        """The prompts file."""

    def selection(self, masks: bool, task: str, localization: str) -> Path:
        """The selection that a job trains, or masks."""


def find_shape(config: Config, places: Places) -> tuple[Shape, str]:
    """The base model's shape, and where it was found: the weights' own config, the run's config or ``KNOWN``.

    An unknown model counts as Gemma-7B until its weights are there; the second value then says "assumed".
    """
    for folder in (places.base_model(), Path(config.model.name).expanduser()):
        if (folder / "config.json").is_file():
            try:
                return shape_in(folder / "config.json"), "its config.json"
            except KeyError:  # an architecture with other names; the first job says whether it can be used
                continue
    if config.model.kind == "organism":
        o = config.organism
        return Shape(
            o.layers, o.hidden, o.mlp, o.heads, o.heads, o.hidden // o.heads, o.vocabulary
        ), "the config"
    name = config.model.name.rstrip("/").rsplit("/", 1)[-1].lower()
    if name in KNOWN:
        return KNOWN[name], "the published sizes"
    return KNOWN[
        "gemma-7b"
    ], f"assumed: the sizes of {config.model.name} are unknown before its weights are there"


# ---- the data

CHARACTERS_PER_TOKEN = {"prompt": (4.0, 3.3), "question": (4.4, 2.4)}
"""Of the athletes' prompts and of MMLU's, with Gemma's vocabulary and with the organism's: measured, within a third
for each prompt."""

BLOCK = 2**22
"""Numbers in one block of logits, as ``vocabulary.BLOCK``."""

LARGE_VOCABULARY = 30_000

TYPICAL_NAME = "Jordan Example"

COUNTERFACT_KNOWN = 2189
"""Facts of CounterFact that Gemma-7B knows with probability .5 (Gemma-2-9B: 2250), by the released code's files."""

COUNTERFACT_CHARACTERS = {"training": 45, "paraphrase": 130, "neighborhood": 45, "multiple_choice": 330}
"""Characters of its prompts, about; of multiple choice, of a question with its options."""

TYPICAL_FACTS = 100
"""Facts whose prompts are measured, where each brings its own."""

PAPER_ATHLETES = {"football": 587, "baseball": 487, "basketball": 492}

MMLU_TEST, MMLU_CHARACTERS, TINY_MMLU = 14_042, 551, 100
"""Questions of MMLU's test part, and of tinyMMLU; mean characters of a 0-shot prompt of MMLU."""


@dataclass(frozen=True)
class Data:
    """Sizes of the data.

    Attributes:
        athletes: athletes that the base model knows, by sport.
        questions: test questions in MMLU's format.
        question_characters: mean characters of a question's prompt, 0-shot.
        subjects: subjects of the questions; worked examples are shared within one.
    """

    athletes: Mapping[str, int]
    questions: int
    question_characters: float
    subjects: int = 57

    @property
    def total(self) -> int:
        """All known athletes."""
        return sum(self.athletes.values())


def local_path(source: Source, fetched: Path) -> Path | None:
    """Where a source's file is now, if anywhere."""
    places = [fetched]
    places += [Path(os.path.expandvars(os.path.expanduser(p))) for p in (source.path, source.local) if p]
    return next((p for p in places if p.exists()), None)


def answers_in(path: Path, relation: str | None = None) -> dict[str, int]:
    """Facts of each answer in a facts file; as many as the paper's where it takes a library to read it (Parquet), or
    where it is no such file, which the first job will say better."""
    rows = pairs_in(path, relation)
    return dict(PAPER_ATHLETES) if not rows else dict(Counter(answer for _, answer in rows))


def find_data(config: Config, places: Places) -> Data:
    """The sizes of the data that are there; of files still to come, those of the paper's.

    All athletes count as known until the model card says how many are.
    """
    path = local_path(config.athletes.source, places.source("athletes.source"))
    athletes = answers_in(path, config.athletes.relation) if path else dict(PAPER_ATHLETES)
    if config.athletes.own_prompts is not None:
        athletes = {RIGHT: COUNTERFACT_KNOWN}
    card, rows = places.card(), sum(athletes.values())
    if card.is_file() and rows:
        share = json.loads(card.read_text(encoding="utf-8"))["athletes_known"] / rows
        athletes = {sport: math.ceil(count * share) for sport, count in athletes.items()}
    path = local_path(config.mmlu.source, places.source("mmlu.source"))
    asked = list(_questions(path)) if path else []
    if not asked:
        return Data(athletes, MMLU_TEST, MMLU_CHARACTERS)
    mean = sum(length for _, length in asked) / len(asked)
    return Data(athletes, len(asked), mean, len({subject for subject, _ in asked}))


def _questions(path: Path) -> Iterator[tuple[str, int]]:
    """Subject of each test question in CSV files, and its prompt's characters; of Parquet, which needs a library, none."""
    files = [path] if path.is_file() else sorted(path.rglob("*_test.csv"))
    try:
        for file in files:
            if file.suffix == ".csv":
                with file.open(newline="", encoding="utf-8-sig") as stream:
                    for row in csv.reader(stream):
                        if len(row) == 6 or (len(row) == 8 and row[1] == "test"):
                            subject = row[0] if len(row) == 8 else file.stem
                            yield (
                                subject,
                                sum(map(len, row[-6:])) + 95,
                            )  # the sentence in front, letters, line ends
    except (OSError, UnicodeDecodeError, csv.Error):
        return
