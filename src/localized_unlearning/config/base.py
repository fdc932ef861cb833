"""What every block of the config is made of."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Kind = Literal["q", "k", "v", "o", "gate", "up", "down"]

Granularity = Literal["matrix", "head"]

Selection = Literal["absolute", "signed_percentile", "independent"]

Precision = Literal["bf16", "bf16_stochastic_rounding", "fp32_master"]

Fraction = Annotated[float, Field(gt=0, le=1)]

Positive = Annotated[float, Field(gt=0)]

Weight = Annotated[float, Field(ge=0)]

Count = Annotated[int, Field(ge=1)]


def _named(name: str) -> str:
    """Takes the name of a method of ours, or of the user's own; which ones there are, the files say."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*|\S(.*\S)?\.py:[A-Za-z_]\w*", name):
        raise ValueError("should be the name of a method or FILE.py:FUNCTION, your own")
    return name


def _device(name: str) -> str:
    """Takes auto, the CPU or a CUDA device."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("must be auto, cpu, cuda or cuda:N (a GPU is cuda)")
    return name


MethodName = Annotated[str, AfterValidator(_named)]


def _label(text: str) -> str:
    """Takes a name as people read it, on one line."""
    line = " ".join(text.split())
    if not line or not line.isprintable():
        raise ValueError("should be a name of at least one letter, without control characters")
    return line


Label = Annotated[str, AfterValidator(_label)]


class Section(BaseModel):
    """A block of the config; unknown keys are an error and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


MICRO_BATCH = "Tokens of one forward and backward; auto: what a GPU's free memory holds (4096 on a CPU)."


class Compute(Section):
    """How jobs compute. Results do not depend on it beyond rounding, so records leave it out of the key."""

    device: Annotated[str, AfterValidator(_device)] = Field(
        "auto", description="auto (a GPU when there is one), cpu, cuda or cuda:N."
    )
    shards: Count = Field(
        1,
        description="Processes of one job, a GPU each, that share a model too large for one (FSDP): each holds a part "
        "of every layer and answers a part of the batches.",
    )
    threads: Count = Field(1, description="CPU threads of one job; the rules reserve as many cores.")
    batch_tokens: Count | Literal["auto"] = Field(
        1024,
        description="Tokens of one forward pass while evaluating; auto: what half of a GPU's free memory holds (1024 on a "
        "CPU, whose caches then hold a small model's activations).",
    )
    precision: Literal["exact", "fast"] = Field(
        "exact",
        description="Products of float32 numbers on a GPU: exact in float32 (of bfloat16 weights by the sum of two bfloat16 "
        "products), fast with 8 to 11 significant bits and float32 sums (TF32, one bfloat16 product). Recorded with each job.",
    )
    deterministic: bool = Field(
        False,
        description="Only deterministic algorithms, so that a GPU too gives the same bytes; an operation that has none "
        "stops the job. A CPU gives the same bytes either way.",
    )
    warm_start: bool = Field(
        True,
        description="Fork jobs from a process that has imported torch and transformers, and let jobs of one checkpoint share its loaded model.",
    )


class Cache(Section):
    """Finished jobs shared between checkouts or people (docs/provenance.md). No setting: it is in no key."""

    dir: str | None = Field(
        None,
        description="A folder that keeps every finished job by its key; a job whose key is there is restored and "
        "verified instead of computed. ~ and $VARIABLES are expanded; null keeps none.",
    )
    read_only: bool = Field(False, description="Take from the folder, but add nothing to it.")
    key: str | None = Field(
        None,
        description="An SSH key that signs what is kept; a public one when an agent holds the private part.",
    )
    signers: str | None = Field(
        None,
        description="An allowed-signers file of SSH: only what one of these keys signed is taken from the folder.",
    )
