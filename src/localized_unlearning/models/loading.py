"""Loading base models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from localized_unlearning.data.tokens import load_tokenizer
from localized_unlearning.errors import UserError
from localized_unlearning.models import components, folders, sharding
from localized_unlearning.models.room import exhausted


def load(folder: Path, dtype: str, device: str) -> tuple[Any, Any]:
    """The causal language model and tokenizer in ``folder``, in evaluation mode, no gradients; :func:`setup`'s device.

    Raises:
        UserError: when the folder holds no model that loads exactly as its files say.
    """
    kind, _, several = device.partition("*")

    def on_host() -> Any:
        return from_folder(folder, dtype)

    model = sharding.sharded(on_host, kind) if several else from_folder(folder, dtype, device).to(device)
    return model, load_tokenizer(folder)


def from_folder(folder: Path, dtype: str, device: str = "cpu") -> Any:
    """The model in ``folder`` in evaluation mode, without gradients; on device ``meta`` its shapes alone.

    Weights go from the files straight to a GPU: the host never holds them all.

    No code of the folder runs. Every tensor of the model comes from the folder, and every tensor of the folder goes
    into the model (tied weights, and buffers that the architecture itself ignores, apart).

    Raises:
        UserError: naming the first thing in the way.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    folders.require(folder)
    place: dict[str, Any] = {} if device == "cpu" else {"device_map": {"": device}}
    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would warn of is said below, in one sentence
    try:
        config = read_config(folder)
        components.adapter_of(config)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False,
            use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **place,
        )  # fmt: skip
    except UserError:
        raise
    except Exception as error:  # whatever transformers, safetensors or a quantizer make of a broken folder
        if exhausted(error, "") is not None:
            raise
        raise UserError(
            f"no causal language model could be loaded from {folder.name}: {_first_line(error)}"
        ) from error
    finally:
        logging.set_verbosity(before)
    model, report = loaded
    refuse_report(folder.name, report)
    return model.eval().requires_grad_(False)


def refuse_report(name: str, report: Mapping[str, Any]) -> None:
    """Refuse a model of which transformers reports anything about loading.

    Raises:
        UserError: with the first tensor, and how many there are.
    """
    wrong = sorted(str(m[0]) for m in report.get("mismatched_keys", ()))
    missing = sorted(set(map(str, report.get("missing_keys", ()))) - set(wrong))
    kinds = {
        "lacks tensors that its config.json calls for, which would be drawn at random": missing,
        "has tensors of another shape than its config.json says": wrong,
        "has tensors that no part of the model takes": sorted(map(str, report.get("unexpected_keys", ()))),
        "could not be read in part": sorted(map(str, report.get("error_msgs", ()))),
    }
    for what, tensors in kinds.items():
        if tensors:
            others = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            raise UserError(
                f"{name} {what} ({tensors[0]}{others}): bring the weights and the config.json of one and the same model"
            )


def read_config(folder: Path) -> Any:
    """The Hugging Face config in ``folder``; its own code is never run.

    Raises:
        UserError: when it needs code of its own, or cannot be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # KeyError, ValueError, OSError or a validator's own, from version to version
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{folder.name} needs code of its own (auto_map in config.json), which this project does not run: "
                "convert it to a standard architecture"
            ) from error
        raise UserError(f"the config.json of {folder.name} cannot be used: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def context_length(config: Any) -> int | None:
    """Most tokens of a prompt that a Hugging Face config allows; None where it says nothing."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((int(length) for length in found if length), None)


def refuse_longer(config: Any, prompts: Iterable[Sequence[int]]) -> None:
    """Refuse prompts that pass the context length of a model with this config.

    Raises:
        UserError: with the tokens of the longest, and the limit.
    """
    limit, most = context_length(config), max(map(len, prompts), default=0)
    if limit is not None and most > limit:
        raise UserError(
            f"a prompt has {most:,} tokens, and the model takes {limit:,} (its context length): shorten it"
        )


def skeleton(config: Any) -> Any:
    """A model of this architecture without weights, to count and name parameters at no cost."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
