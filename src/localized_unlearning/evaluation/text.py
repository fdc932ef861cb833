"""Loss on held-out plain text: a side-effect measure that small models have too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from localized_unlearning.data import windows as windows_module
from localized_unlearning.unlearning import losses


def read_text(
    model: Any, tokenizer: Any, documents: Sequence[str], tokens: int, windows: int, batch_tokens: int
) -> pd.DataFrame:
    """One row per window of ``tokens`` predicted tokens: ``item`` and ``loss`` (nats per token)."""
    import torch

    table = windows_module.text_windows(tokenizer, documents, tokens, windows)
    with torch.inference_mode():
        found = [
            losses.text_losses(model, part.to(model.device)).cpu()
            for part in table.split(max(1, batch_tokens // (tokens + 1)))
        ]
    return pd.DataFrame({"item": range(len(table)), "loss": torch.cat(found).numpy()})
