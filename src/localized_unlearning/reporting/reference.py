"""The files generated from the typed config."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.reporting import discrepancies, pages


def generated(root: Path = Path()) -> dict[Path, str]:
    """The generated files of the checkout at ``root`` and their contents."""
    return {
        Path("config.yaml"): default_yaml(),
        Path("workflow/schemas/config.schema.json"): json.dumps(Config.model_json_schema(), indent=2) + "\n",
        Path("docs/configuration.md"): reference_page(),
        Path("docs/discrepancies.md"): discrepancies.page(root),
        **pages.generated(root),
    }


def reference(arguments: argparse.Namespace) -> int:
    """Write the generated files, or check that they are in step."""
    for path, text in generated().items():
        if arguments.check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                raise UserError(f"{path} is out of step with the config: run localized-unlearning reference")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
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
        "# Generated from src/localized_unlearning/config/ by `localized-unlearning reference`;",
        "# change values freely here or, better, in an overlay: snakemake --configfile my.yaml.",
        "",
    ]
    _block(Config().unresolved(), lines, 0)
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
        "Generated from `src/localized_unlearning/config/` by `localized-unlearning reference`.",
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
