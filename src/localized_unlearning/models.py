"""Loading base models, and deltas: the trained tensors of an unlearned model and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning import sharding
from localized_unlearning.config import Compute
from localized_unlearning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.stages import Job


def threads(compute: Compute) -> int:
    """How many cores this job has.

    Snakemake tells a job how many it reserved in ``OMP_NUM_THREADS``; at a prompt, ``compute.threads`` counts.
    """
    import os

    return int(os.environ.get("OMP_NUM_THREADS") or compute.threads)


def setup(compute: Compute) -> str:
    """Set up this process as ``compute`` asks: its threads (:func:`threads`), deterministic algorithms or not.

    Returns:
        The device; ``cuda*N`` and ``cpu*N`` are N processes, this one among them, that share a model.
    """
    import os

    import torch

    torch.set_num_threads(max(1, threads(compute) // compute.shards))
    if compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a GPU is first used
    torch.use_deterministic_algorithms(compute.deterministic)
    torch.backends.cudnn.benchmark = False
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if compute.shards > 1:
        if compute.device == "cpu":
            return f"cpu*{compute.shards}"
        if found < compute.shards:
            raise UserError(
                f"compute.shards is {compute.shards} but torch sees {found} GPUs: ask the scheduler for as many, "
                "lower it, or set compute.device to cpu"
            )
        return f"cuda*{compute.shards}"
    if compute.device == "auto":
        return "cuda" if found else "cpu"
    if compute.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"compute.device is {compute.device} but torch sees no GPU: set it to cpu or auto, "
            "or install the CUDA environment (envs/README.md)"
        )
    return compute.device


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


LEAST_TOKENS, MOST_TOKENS = 1024, 32_768


def batch_tokens(compute: Compute, model: Any, kept: int = 1) -> int:
    """Tokens of one forward pass: as ``compute`` says, or for ``auto`` what half of the free memory holds.

    A power of two, so that a neighbour's megabyte changes nothing; at most 4096 on a CPU, where more is not faster.

    Args:
        compute: the settings.
        model: gives its sizes, type and device.
        kept: layers whose activations are held at once; all of them where gradients or patches need them.
    """
    if compute.batch_tokens != "auto":
        return compute.batch_tokens
    import torch

    if model.device.type != "cuda":
        return 4096
    config = model.config.get_text_config()
    each = kept * (10 * config.hidden_size + 4 * config.intermediate_size) * 4
    free = torch.tensor(torch.cuda.mem_get_info(model.device)[0])
    least = -int(sharding.largest(-free, model))  # alike in all processes that share the model
    fits = int(least / 2 / each)
    return max(LEAST_TOKENS, min(MOST_TOKENS, 1 << max(0, fits.bit_length() - 1)))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder``."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with the special tokens that the tokenizer puts in front (Gemma: BOS)."""
    return list(tokenizer(list(texts))["input_ids"])


def answer_tokens(tokenizer: Any, answers: Sequence[str]) -> list[int]:
    """First token of each answer as it continues a prompt: with a leading space.

    Raises:
        UserError: when two answers begin with the same token and so cannot be told apart.
    """
    tokens = [tokenizer(f" {a}", add_special_tokens=False)["input_ids"][0] for a in answers]
    if len(set(tokens)) != len(tokens):
        raise UserError(
            f"two of the answers {', '.join(answers)} begin with the same token in this tokenizer: "
            "use answers that differ in their first token"
        )
    return tokens


def weights_digest(folder: Path) -> str:
    """SHA-256 over the weight files of a model folder: what a delta belongs to."""
    total = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder.name} holds no .safetensors weights: convert the model first")
    for file in files:
        with file.open("rb") as stream:
            total.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def save_delta(path: Path, tensors: Mapping[str, Tensor], base: str) -> None:
    """Write trained tensors, named by the base model's :func:`weights_digest`."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    # One entry only: safetensors writes several in an order that differs from process to process.
    save_file(contiguous, path, metadata={"base": base})


def read_delta(path: Path, base: str) -> dict[str, Tensor]:
    """The tensors of a delta made from the base model with digest ``base``.

    Raises:
        UserError: when the delta belongs to another base model or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("base")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): delete it and rerun") from error
    if found != base:
        raise UserError(
            f"{path} was trained from another base model ({str(found)[:12]} instead of {base[:12]}): "
            "rerun the fine-tuning"
        )
    return tensors


@contextmanager
def applied(model: Any, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """``model`` with the tensors of a delta in place; the base's own return on exit."""
    import torch

    parameters = {name: model.get_parameter(name) for name in tensors}
    kept = {name: sharding.held(parameter).clone() for name, parameter in parameters.items()}

    def put(values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():  # not around the yield: the caller may train something else meanwhile
            for name, value in values.items():
                sharding.held(parameters[name]).copy_(value)

    put({name: sharding.part(parameters[name], value) for name, value in tensors.items()})
    try:
        yield
    finally:
        put(kept)


WEIGHTS = ("*.safetensors", "*.json", "tokenizer*")
"""Files of a hub model that are needed; no pickles."""


def download(job: Job) -> None:
    """Stage: a hub model at its pinned revision, or a local folder, brought into the standard layout.

    Raises:
        UserError: when the folder does not exist, no revision is given, or the hub refuses; see
            :mod:`localized_unlearning.sources`.
    """
    import shutil

    from localized_unlearning.sources import Source, from_hub

    model, target = job.config.model, job.outputs["model"]
    local = Path(model.name).expanduser()
    if local.is_dir():
        shutil.copytree(local, target)
        return
    if model.name.count("/") != 1 or model.name.startswith((".", "~", "/")):
        raise UserError(
            f"model.name is {model.name}, which is neither a folder here nor a hub name: correct it"
        )
    if model.revision is None:
        raise UserError(f"model.revision must pin a commit of {model.name} on the hub: add it to the config")
    from_hub(Source(kind="hub", repo_id=model.name, files=WEIGHTS, revision=model.revision), target)


def skeleton(config: Any) -> Any:
    """A model of this architecture without weights, to count and name parameters at no cost."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
