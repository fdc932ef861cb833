"""Reading the config: YAML layers laid over one another, and faults told in a sentence."""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError

DEEPEST = 100  # nested values of a config file
MOST = 100_000  # values of a config file, counted with what its aliases repeat

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The same language; libyaml's parser, where PyYAML was built with it, takes a tenth of the time."""


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``overlay`` laid over it, mapping by mapping, as Snakemake does."""
    merged = dict(base)
    for key, value in overlay.items():
        old = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: when the file is missing, is no YAML or holds no mapping.
    """
    try:
        data = copy.deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist: check the path") from None
    except yaml.YAMLError as error:
        raise UserError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UserError(f"config file {path} cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"config file {path} is no YAML of settings ({type(error).__name__})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"config file {path} must hold a mapping of settings, not a {type(data).__name__}")
    return data


@functools.lru_cache(maxsize=8)
def _parsed(text: str) -> Any:
    """A text as YAML; a warm process parses a run's config once for all jobs that are forked from it (15 ms each)."""
    _refuse_monsters(text)
    return yaml.load(text, LOADER)


def _refuse_monsters(text: str) -> None:
    """Settings nest a few levels and are some hundreds: what nests by the thousand would exhaust the stack of the loader,
    which is C, and aliases of aliases make millions of values of a few lines.

    Raises:
        ValueError: when they do.
    """
    sizes: dict[str, int] = {}  # of the collection that an anchor names
    around: list[tuple[str | None, int]] = []  # the open collections: anchor, and the values before it
    values = 0
    for event in yaml.parse(text, LOADER):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = around.pop()
            sizes |= {anchor: values - before} if anchor else {}
        elif isinstance(event, yaml.AliasEvent):
            values += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.NodeEvent):
            values += 1
            if isinstance(event, yaml.CollectionStartEvent):
                around.append((event.anchor, values))
        if len(around) > DEEPEST or values > MOST:
            raise ValueError("nested too deeply, or too many values")


def overlays(paths: Iterable[Path]) -> list[tuple[str, dict[str, Any]]]:
    """The named layers that YAML files make: before each file, what it extends.

    Raises:
        UserError: when a file cannot be read, or extends itself.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    for path in paths:
        chain: list[tuple[str, dict[str, Any]]] = []
        while True:
            if str(path) in (name for name, _ in chain):
                raise UserError(f"config file {path} extends itself: correct its 'extends'")
            data = read_yaml(path)
            chain.append((str(path), data))
            if data.get("extends") is None:
                break
            path = path.parent / data.pop("extends")
        found += reversed(chain)
    return found


def load(paths: Sequence[Path], overrides: Mapping[str, Any] | None = None) -> Config:
    """The config made of YAML files, later ones laid over earlier ones, then ``overrides``.

    Raises:
        UserError: naming the key, the file it stands in and, for an unknown key, the nearest valid one.
    """
    return resolve([*overlays(paths), ("--config", dict(overrides or {}))])


def resolve(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> Config:
    """The config made of named layers; see :func:`load`."""
    merged: dict[str, Any] = {}
    for _, data in layers:
        merged = merge(merged, data)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise UserError(_explain(error, layers)) from None


def _explain(error: ValidationError, layers: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    first = error.errors()[0]
    location = [part for part in first["loc"]]
    key = ".".join(str(part) for part in location) or "the config"
    where = next((name for name, data in reversed(layers) if _holds(data, location)), None)
    place = f" in {where}" if where else ""
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        valid = _valid_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys here: {', '.join(sorted(valid))}"
        return f"unknown key '{key}'{place}: {hint}{more}"
    message = _sentence(first["type"], first.get("ctx", {}), first["msg"])
    given = f" (got {first['input']!r})" if not isinstance(first["input"], Mapping | BaseModel) else ""
    if first["type"] == "missing":
        return f"{key} is missing{place}: see docs/configuration.md{more}"
    return f"{key}{place}: {message}{given}{more}"


_WANTED = {
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a finite number",
    "bool": "must be true or false",
    "string": "must be text",
    "tuple": "must be a list",
    "list": "must be a list",
    "dict": "must hold keys of its own",
    "model": "must hold keys of its own",
    "literal": "must be {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "too_short": "must have at least {min_length} {entries}; it has {actual_length}",
    "too_long": "must have at most {max_length} entries; it has {actual_length}",
}
"""What is wrong with a value, by pydantic's type of error or by what that begins with."""


def _sentence(kind: str, context: Mapping[str, Any], message: str) -> str:
    """pydantic's message in this project's words; its own where there are none."""
    wanted = _WANTED.get(kind) or _WANTED.get(kind.split("_")[0])
    context = {**context, "entries": "entry" if context.get("min_length") == 1 else "entries"}
    return wanted.format_map(context) if wanted else message.removeprefix("Value error, ")


def _holds(data: Any, location: Sequence[Any]) -> bool:
    for part in location:
        if not isinstance(data, Mapping) or part not in data:
            return False
        data = data[part]
    return bool(location)


def _valid_keys(location: Sequence[Any]) -> list[str]:
    """The keys allowed at a place in the config, found in the JSON schema."""
    schema = Config.model_json_schema()
    node: Any = schema
    for part in location:
        node = _deref(schema, node)
        node = node.get("properties", {}).get(part, node.get("additionalProperties", {}))
    node = _deref(schema, node)
    return list(node.get("properties", {})) if isinstance(node, Mapping) else []


def _deref(schema: Mapping[str, Any], node: Any) -> Any:
    if isinstance(node, Mapping):
        for option in (node, *node.get("anyOf", ()), *node.get("allOf", ())):
            if "$ref" in option:
                return schema["$defs"][option["$ref"].rsplit("/", 1)[-1]]
    return node
