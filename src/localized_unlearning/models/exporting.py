"""A model out again: a standard Hugging Face folder, or a peft adapter, with a model card that says where it is from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from localized_unlearning import __version__
from localized_unlearning.errors import UserError
from localized_unlearning.provenance import records

CARD = "README.md"
"""The model card's file, by the hub's convention."""


def write_folder(folder: str | Path, write: Callable[[Path], None], card: str) -> Path:
    """A new folder that ``write`` fills, with a card: whole or not at all.

    Raises:
        UserError: when ``folder`` exists and is not empty.
    """
    target = Path(folder).absolute()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"{folder} exists already: name a new folder, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        write(part)
        (part / CARD).write_text(card, encoding="utf-8")
        part.chmod(0o755)
        if target.is_dir():
            target.rmdir()
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def write_model(model: Any, tokenizer: Any) -> Callable[[Path], None]:
    """What fills a folder with a model in transformers' layout."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return write


def write_adapter(model: Any, base: str | None) -> Callable[[Path], None]:
    """What fills a folder with the LoRA adapters in a model, in peft's layout.

    Args:
        model: a model with adapters in its modules.
        base: name or folder of the model that they belong on, for peft to find it by itself.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    def write(folder: Path) -> None:
        config = model.peft_config["default"]
        config.base_model_name_or_path, config.task_type, config.inference_mode = base, "CAUSAL_LM", True
        config.save_pretrained(folder)
        tensors = get_peft_model_state_dict(model)
        kept = {f"base_model.model.{name}": value.detach().contiguous() for name, value in tensors.items()}
        save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    return write


def merge_adapters(model: Any) -> None:
    """Add each LoRA adapter to the weights that it stands on, and take it out, in place."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    del model.peft_config
    model.requires_grad_(False)


def licence_of(folder: Path) -> tuple[str | None, str]:
    """The licence of a model folder, as the hub names it if its own card says so, and in words."""
    card = folder / CARD
    if card.is_file():
        front = card.read_text(encoding="utf-8", errors="replace").split("---")
        try:
            said = yaml.safe_load(front[1]) if len(front) > 2 and not front[0].strip() else None
        except yaml.YAMLError:
            said = None
        if isinstance(said, Mapping) and said.get("license"):
            return str(said["license"]), f"{said['license']}, as the base model's card says."
    found = sorted(file.name for file in folder.glob("LICEN[CS]E*"))
    if found:
        return "other", f"the base model's own ({found[0]} in its folder)."
    return (
        None,
        "the base model's own: its folder states none, so see where it came from before passing this on.",
    )


def card(
    title: str,
    base: str,
    run: str,
    wildcards: Mapping[str, str],
    made_from: Path | None,
    folder: Path,
    use: str,
) -> str:
    """A model card in the hub's layout.

    Args:
        title: what the model is, in a line.
        base: the base model's name.
        run: the run that it is of.
        wildcards: which of the run's models.
        made_from: the output whose record the card names; None for the base model itself.
        folder: the base model's folder, for its licence.
        use: how to load it, as Python.
    """
    licence, words = licence_of(folder)
    about: dict[str, Any] = {"library_name": "transformers", "tags": ["unlearning", "localized-unlearning"]}
    if base.count("/") == 1 and not base.startswith(("/", ".", "~")):
        about["base_model"] = base
    if licence is not None:
        about["license"] = licence
    path = records.path_for(made_from if made_from is not None else folder)
    lines = [f"The run `{run}`: {', '.join(f'{name} {value}' for name, value in wildcards.items())}."]
    if path.is_file():
        record = records.read(path)
        lines += [
            f"- Key: `{record.key}`",
            f"- Record: `{path.name}`, id `{record.id}` (stage {record.stage})",
        ]
    else:
        lines += ["- Key and record: none lies beside it, so nothing vouches for how it was made."]
    return "\n".join(
        [
            "---", yaml.safe_dump(about, sort_keys=True).strip(), "---", "", f"# {title}", "", *lines,
            f"- Base model: {base}", f"- Licence: {words}", f"- Written by localized-unlearning {__version__}.", "",
            "```python", use, "```", "",
            "Facts that unlearning hides can come back under attack: the run's rows say how far they did.", "",
        ]
    )  # fmt: skip
