"""Memory that ran out: told in a sentence, with what was asked for, what is free and which key to lower."""

from __future__ import annotations

import re

SHARD = "or shard the model over more GPUs (compute.shards)"

REMEDIES = {
    "finetune": "lower finetune.micro_batch_tokens (auto fits it to the card), take finetune.precision "
    f"bf16_stochastic_rounding, {SHARD}",
    "mask": f"lower masking.micro_batch_tokens (auto fits it to the card), {SHARD}",
    "relearn": f"lower relearning.micro_batch_tokens (auto fits it to the card), {SHARD}",
    "attack": "lower the attack's micro_batch_tokens or rank (attacks.half_and_half, attacks.search.ranks, ...)",
}
"""What to do where a stage does not fit."""

REMEDY = f"lower compute.batch_tokens (auto fits it to the card), {SHARD}"
"""The same for the stages that only ask."""

_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMG]i?B)?")
_FREE = re.compile(r"of which ([\d.]+ [KMG]i?B) is free")
_CPU = "can't allocate memory"


def remedy(stage: str) -> str:
    """What to do where ``stage`` does not fit its device."""
    return REMEDIES.get(stage, REMEDY)


def exhausted(error: BaseException, stage: str) -> str | None:
    """The sentence for an error that says that memory ran out, on a GPU or on the host; None for any other."""
    text = str(error)
    kind = type(error).__name__
    if kind != "OutOfMemoryError" and not isinstance(error, MemoryError) and _CPU not in text:
        return None
    gpu = kind == "OutOfMemoryError"
    asked, free = _ASKED.search(text), _FREE.search(text)
    details = ""
    if asked:
        unit = asked[2] or "bytes"
        amount = f"{float(asked[1]) / 1e9:.1f} GB" if unit == "bytes" else f"{asked[1]} {unit}"
        details = f" ({amount} asked for{f', {free[1]} free' if free else ''})"
    where = "the GPU's memory" if gpu else "the memory of this machine"
    more = "" if gpu else ", or run fewer jobs at a time"
    return f"{where} ran out in stage {stage}{details}: {remedy(stage)}{more}"
