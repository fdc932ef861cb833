"""Commands beside the stages: the summary of a run, and the files generated from the typed config."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from localized_unlearning import config as configuration
from localized_unlearning import discrepancies
from localized_unlearning.config import Config
from localized_unlearning.errors import UserError
from localized_unlearning.preflight import installed_profile
from localized_unlearning.progress import clock

Commands = Any


def add_commands(commands: Commands) -> None:
    """Add these commands to the parser's subcommands."""
    parser = commands.add_parser(
        "summary", help="the tables of a run, where every output lies, how long it took"
    )
    parser.add_argument("--config", type=Path, action="append", required=True)
    parser.set_defaults(function=summary)
    parser = commands.add_parser("reference", help="write or check the files generated from the typed config")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 when out of step")
    parser.set_defaults(function=reference)
    parser = commands.add_parser(
        "install-profile", help="put profiles/slurm where `snakemake --profile slurm` looks for it"
    )
    parser.add_argument("--replace", action="store_true", help="overwrite a copy that was edited")
    parser.set_defaults(function=install_profile)


def summary(arguments: argparse.Namespace) -> int:
    """Print a run's tables, where its outputs lie, and the compute time of its jobs."""
    config = configuration.load(arguments.config)
    results, figures = Path("results", config.run), Path("figures", config.run)
    tables = sorted(results.glob("tables/*.md"))
    if not tables:
        raise UserError(f"{results} holds no table yet: run snakemake tables")
    for path in tables:
        print(compact(path.with_suffix(".csv"), path.read_text(encoding="utf-8").splitlines()[0].strip("*")))
    seconds = [json.loads(p.read_text(encoding="utf-8"))["seconds"] for p in results.rglob("*.record.json")]
    print(f"Full tables   {results}/tables/ (.md, .csv with all three accuracies, .tex)")
    print(f"Figures       {figures}/ (.pdf, .png, and the .csv each was drawn from)")
    print(f"Model card    {results}/model_card.md")
    print(f"Rows          {results}/<task>/<objective>/<localization>/seed<N>/*.parquet, records beside them")
    print(f"Jobs          {len(seconds)} recorded jobs, {clock(sum(seconds))} of job time in all")
    return 0


def compact(path: Path, title: str) -> str:
    """A table's main columns as aligned text, from its tidy CSV."""
    import pandas as pd

    data = pd.read_csv(path)
    data = data[data["accuracy"].isin(("choice", "loss"))]
    columns = {
        "forget_training": "forget", "retain_training": "retain", "forget_question": "question",
        "mcq_forget": "MCQ forget", "mcq_retain": "MCQ retain", "mmlu": "MMLU", "text_loss": "text loss",
    }  # fmt: skip
    table = data.pivot_table(index="label", columns="column", values="mean", sort=False)[list(columns)]
    table.index.name = None
    text = (
        table.rename(columns=columns).rename_axis(columns=None).to_string(float_format=lambda v: f"{v:.3f}")
    )
    return f"{title}\n{text}\n"


def generated(root: Path = Path()) -> dict[Path, str]:
    """The generated files of the checkout at ``root`` and their contents."""
    return {
        Path("config.yaml"): default_yaml(),
        Path("workflow/schemas/config.schema.json"): json.dumps(Config.model_json_schema(), indent=2) + "\n",
        Path("docs/configuration.md"): reference_page(),
        Path("docs/discrepancies.md"): discrepancies.page(root),
    }


def reference(arguments: argparse.Namespace) -> int:
    """Write the generated files, or check that they are in step."""
    for path, text in generated().items():
        if arguments.check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                raise UserError(f"{path} is out of step with config.py: run localized-unlearning reference")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 0


def install_profile(arguments: argparse.Namespace) -> int:
    """Copy the Slurm profile into the user's Snakemake folder; a copy that was edited for the site is kept.

    Snakemake looks for a profile's name in the working folder, then in the user's and the site's configuration
    folder, and nowhere else.

    Raises:
        UserError: outside a checkout.
    """
    shipped = Path("profiles/slurm/config.yaml")
    if not shipped.is_file():
        raise UserError(f"{shipped} is not here: run this in the folder of the Snakefile")
    target = installed_profile()
    text = shipped.read_text(encoding="utf-8")
    if target.is_file() and not arguments.replace:
        if target.read_text(encoding="utf-8") == text:
            print(f"{target} is there and is the shipped profile")
        else:
            print(
                f"{target} is kept: it was edited, or {shipped} has changed since (diff {shipped} {target})"
            )
            print("install-profile --replace overwrites it")
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"wrote {target}: set its partitions, account and GPUs, then run snakemake --profile slurm all")
    return 0


def _scalar(value: Any) -> str:
    if (
        isinstance(value, str)
        and value
        and value.replace("_", "").replace(".", "").replace("/", "").isalnum()
    ):
        return value if not value[0].isdigit() else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)


def default_yaml() -> str:
    """``config.yaml``: the default run, with every key commented."""
    lines = [
        "# The default run: the organism on this machine. Every key, with its meaning.",
        "# Generated from src/localized_unlearning/config.py by `localized-unlearning reference`;",
        "# change values freely here or, better, in an overlay: snakemake --configfile my.yaml.",
        "",
    ]
    _block(Config(), lines, 0)
    return "\n".join(lines) + "\n"


def _block(section: BaseModel, lines: list[str], depth: int) -> None:
    indent = "  " * depth
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if value is None and depth and not field.description:
            continue
        if field.description:
            lines.append(f"{indent}# {field.description}")
        _entry(name, value, lines, depth)
        if depth == 0:
            lines.append("")


def _entry(name: str, value: Any, lines: list[str], depth: int) -> None:
    indent = "  " * depth
    if isinstance(value, BaseModel):
        lines.append(f"{indent}{name}:")
        if type(value).__name__ == "Source":
            for key, item in value.model_dump(mode="json", exclude_defaults=True).items():
                lines.append(f"{indent}  {key}: {_scalar(item)}")
        else:
            _block(value, lines, depth + 1)
    elif isinstance(value, dict) and value:
        lines.append(f"{indent}{name}:")
        for key, item in value.items():
            dumped = item.model_dump(mode="json", exclude_unset=True)
            lines.append(f"{indent}  {key}:")
            for inner, content in dumped.items():
                lines.append(f"{indent}    {inner}: {json.dumps(content, ensure_ascii=False)}")
    elif isinstance(value, tuple):
        lines.append(f"{indent}{name}: {json.dumps(list(value), ensure_ascii=False)}")
    else:
        lines.append(f"{indent}{name}: {_scalar(value)}")


def reference_page() -> str:
    """``docs/configuration.md``: every key with its type, default and meaning."""
    lines = [
        "# Configuration",
        "",
        "Generated from `src/localized_unlearning/config.py` by `localized-unlearning reference`.",
        "`config.yaml` is the default run; `--configfile workflow/presets/NAME.yaml` lays a preset over it.",
        "A task, objective, score or localization set to `null` in an overlay is removed.",
        "",
    ]
    schema = Config.model_json_schema()
    for title, node in [("Top level", schema), *sorted(schema["$defs"].items())]:
        lines += [
            f"## {title}",
            "",
            node.get("description", "").split("\n")[0],
            "",
            "| key | type | default | meaning |",
        ]
        lines += ["|---|---|---|---|"]
        for name, item in node.get("properties", {}).items():
            default = json.dumps(item["default"], ensure_ascii=False) if "default" in item else ""
            default = f"`{default}`" if 0 < len(default) < 60 else ("(see config.yaml)" if default else "")
            meaning = item.get("description", "").replace("|", "\\|").replace("\n", " ")
            lines.append(f"| `{name}` | {_type(item)} | {default} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def _type(item: dict[str, Any]) -> str:
    if "enum" in item:
        return " or ".join(str(v) for v in item["enum"])
    if "$ref" in item:
        return str(item["$ref"].rsplit("/", 1)[-1])
    if "anyOf" in item:
        return " or ".join(_type(option) for option in item["anyOf"])
    return str(item.get("type", item.get("const", "")))
