"""Loading base models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from localized_unlearning.data.tokens import load_tokenizer
from localized_unlearning.errors import UserError
from localized_unlearning.models import sharding


def load(folder: Path, dtype: str, device: str) -> tuple[Any, Any]:
    """The causal language model and tokenizer in ``folder``, in evaluation mode, no gradients; :func:`setup`'s device.

    Raises:
        UserError: when the folder holds no loadable model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    def on_host() -> Any:
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=getattr(torch, dtype), local_files_only=True
            )
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(
                f"no causal language model could be loaded from {folder.name}: {first}"
            ) from error
        return model.eval().requires_grad_(False)

    kind, _, several = device.partition("*")
    model = sharding.sharded(on_host, kind) if several else on_host().to(device)
    return model, load_tokenizer(folder)


def skeleton(config: Any) -> Any:
    """A model of this architecture without weights, to count and name parameters at no cost."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
