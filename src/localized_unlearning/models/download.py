"""A base model from the hub or a local folder, in the standard layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from localized_unlearning.config.source import Source
from localized_unlearning.data.fetching import from_hub
from localized_unlearning.errors import UserError
from localized_unlearning.models import folders

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


WEIGHTS = (
    "model*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer*",
    "merges.txt",
    "vocab.txt",
    "*.model",
    "README.md",
    "LICENSE*",
)
"""Files of a hub model that are needed, and its card and licence; no pickles, and no second copy of the weights (consolidated.safetensors)."""


def download(job: Job) -> None:
    """Stage: a hub model at its pinned revision, or the local folder that is its input, in the standard layout.

    Raises:
        UserError: when no revision is given, or the hub refuses; see
            :mod:`localized_unlearning.data.fetching`.
    """
    import shutil

    model, target = job.config.model, job.outputs["model"]
    local = Path(model.name).expanduser()
    if local.is_dir():
        folders.require(local)
        shutil.copytree(local, target)
        return
    if model.name.count("/") != 1 or model.name.startswith((".", "~", "/")):
        raise UserError(
            f"model.name is {model.name}, which is neither a folder here nor a hub name: correct it"
        )
    if model.revision is None:
        raise UserError(f"model.revision must pin a commit of {model.name} on the hub: add it to the config")
    from_hub(Source(kind="hub", repo_id=model.name, files=WEIGHTS, revision=model.revision), target)
    folders.require(target)
