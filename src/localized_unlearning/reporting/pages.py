"""Where the numbers of a page come from, and whether the code behind them has changed since.

``docs/pages.yaml`` names for each page that quotes numbers the commit, the command and the stages whose code made
them, with the digest of that code. A line at the top of the page is written from it; the page itself says when it is
older than the code.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from localized_unlearning.errors import UserError
from localized_unlearning.files import write_text
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.provenance.code import closure, code_digest

LEDGER = Path("docs/pages.yaml")
BEGIN, END = "<!-- numbers: written from docs/pages.yaml -->", "<!-- end of numbers -->"
NUMBER = re.compile(r"(?<![\w.`-])\d*\.\d{2,}(?![\w.`-])|(?<![\w.])\d+(\.\d+)? %")
"""A number that was measured, as against a version or a section: two decimals, or a share."""


class Origin(BaseModel):
    """Where the numbers of a page, or of all pages in a folder, come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    commit: str = Field(description="The commit that made them.")
    command: str = Field(description="What made them.")
    stages: tuple[str, ...] = Field(description="The stages whose code is behind them; none: all.")
    code: str | None = Field(
        None, description="Digest of that code at the commit; null: from before digests."
    )


def read(root: Path) -> tuple[dict[str, Origin], dict[str, str]]:
    """Origins by page or folder, and the pages that quote none of our numbers, with the reason.

    Raises:
        UserError: naming the page and the key at fault.
    """
    if not (root / LEDGER).is_file():
        raise UserError(f"there is no {LEDGER} here")
    data = yaml.safe_load((root / LEDGER).read_text(encoding="utf-8"))
    try:
        origins = TypeAdapter(dict[str, Origin]).validate_python(data["pages"])
        without = TypeAdapter(dict[str, str]).validate_python(data["without"])
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{LEDGER}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    unknown = [name for origin in origins.values() for name in origin.stages if name not in STAGES]
    if unknown:
        raise UserError(f"{LEDGER} names the stage {unknown[0]}, which there is not: {', '.join(STAGES)}")
    return origins, without


def digest(stages: Sequence[str]) -> str:
    """The digest of the code behind some stages as it is now; of all for none."""
    modules: dict[str, str] = {}
    for module in sorted({STAGES[name].module for name in stages or STAGES}):
        modules |= closure(module)
    return code_digest(modules)


def line(origin: Origin, now: str) -> str:
    """The line at the top of a page."""
    age = (
        "The code behind them is the present one."
        if origin.code == now
        else "**Older than the code**: what made them has changed since, so that a run today may give others."
    )
    return f"{BEGIN}\n> Numbers of commit `{origin.commit}`, by `{origin.command}`. {age}\n{END}\n"


def stamped(text: str, origin: Origin, now: str) -> str:
    """A page with its line: in the place of the old one, or below its title."""
    new = line(origin, now)
    if BEGIN in text:
        before, _, rest = text.partition(BEGIN)
        return before + new + rest.partition(f"{END}\n")[2]
    title, _, rest = text.partition("\n")
    return f"{title}\n\n{new}{rest}"


def generated(root: Path) -> dict[Path, str]:
    """Every page that has an origin, with its line; of a folder its README and every page that quotes numbers."""
    found = {}
    for name, origin in read(root)[0].items():
        now = digest(origin.stages)
        for path in covered(root, name):
            found[path] = stamped((root / path).read_text(encoding="utf-8"), origin, now)
    return found


def covered(root: Path, name: str) -> list[Path]:
    """The pages that an origin is about."""
    if not (root / name).is_dir():
        return [Path(name)]
    pages = [page.relative_to(root) for page in sorted((root / name).rglob("*.md"))]
    return [p for p in pages if p.name == "README.md" or quoting((root / p).read_text(encoding="utf-8"))]


def quoting(text: str) -> list[str]:
    """The numbers that a page quotes outside of code."""
    plain = re.sub(r"```.*?```|^(?: {4}|\t).*?$|`[^`]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    return [found.group() for found in NUMBER.finditer(plain)]


def unaccounted(root: Path, pages: Iterable[Path]) -> dict[str, list[str]]:
    """Pages that quote numbers without saying where they are from."""
    origins, without = read(root)
    found = {}
    for page in pages:
        name = page.relative_to(root).as_posix()
        known = name in without or any(name == given or name.startswith(f"{given}/") for given in origins)
        if not known and (numbers := quoting(page.read_text(encoding="utf-8"))):
            found[name] = numbers[:5]
    return found


def stamp(root: Path, page: str, command: str, stages: Sequence[str] | None = None) -> Origin:
    """Say that a page's numbers were made now, by ``command``.

    Raises:
        UserError: outside a commit, or when the page is not there.
    """
    if not (root / page).exists():
        raise UserError(f"{page} does not exist: name a page or a folder of pages under docs")
    text = (root / LEDGER).read_text(encoding="utf-8")
    head = text[: text.index("pages:")]
    origins, without = read(root)
    kept = stages if stages is not None else (origins[page].stages if page in origins else ())
    git = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True)
    if git.returncode:
        raise UserError("the numbers of a page are those of a commit: run this in the git checkout")
    origin = Origin(commit=git.stdout.strip(), command=command, stages=tuple(kept), code=digest(kept))
    origins[page] = origin
    _write(root, head, origins, without)
    return origin


def _write(root: Path, head: str, origins: Mapping[str, Origin], without: Mapping[str, str]) -> None:
    data = {"pages": {k: v.model_dump(mode="json") for k, v in origins.items()}, "without": dict(without)}
    write_text(root / LEDGER, head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120))


def run(arguments: argparse.Namespace) -> int:
    """Command: stamp pages, and write their lines."""
    root = Path()
    for page in arguments.pages:
        stamp(root, page, arguments.made_by, arguments.stages)
    for path, text in generated(root).items():
        write_text(root / path, text)
        print(path)
    return 0
