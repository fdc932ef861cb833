"""The documentation site's own parts: a hook of mkdocs, and a check of what it built.

``python tools/site.py site`` says which link of a built page leads nowhere, and what a page would load from another host.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]


OUTSIDE = re.compile(r"\]\(\.\./((?:examples|workflow|src|envs|tests)/[^)#]+)\)")
"""A link of a page in docs/ to a file outside of it, as a code host follows it."""


def on_files(files: Any, config: Any) -> Any:
    """What pages link to outside docs/ is copied beside them."""
    from mkdocs.structure.files import File

    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    for name in sorted({name for text in pages for name in OUTSIDE.findall(text)}):
        files.append(File.generated(config, f"source/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links out of docs/ made links to the copies; a page that is a caption is named after its figure."""
    name = Path(page.file.src_uri).name
    if name.endswith(".caption.md"):
        page.meta["title"] = name.removesuffix(".caption.md").replace("_", " ").capitalize()
    return OUTSIDE.sub(r"](source/\1)", markdown)


class Page(HTMLParser):
    """The anchors of a page, where it links to, and what a browser loads for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        target = found.get("src") or found.get("href")
        if target:
            loads = "src" in found or (tag == "link" and found.get("rel") != "canonical")
            (self.loaded if loads else self.links).append(target)


def faults(site: Path) -> list[str]:
    """Every link, image and anchor of a built site that leads nowhere, and everything loaded from elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for reference in [*page.links, *page.loaded]:
            parts = urlsplit(reference)
            if parts.scheme or parts.netloc:
                if reference in page.loaded and parts.scheme != "data":
                    found.append(f"{path.relative_to(site)} loads {reference}")
                continue
            start = site if parts.path.startswith("/") else path.parent
            target = (start / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{path.relative_to(site)} links to {reference}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{path.relative_to(site)} links to {reference}, which has no such place")
    return sorted(set(found))


if __name__ == "__main__":
    said = faults(Path(sys.argv[1]).resolve())
    print("\n".join(said), end="\n" if said else "")
    sys.exit(bool(said))
