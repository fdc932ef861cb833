"""Figures as SVG that a page can make interactive: whose each line is, and what each point says.

Matplotlib writes an artist's ``gid`` as the id of its group. A gid made by
:func:`localized_unlearning.reporting.figures.style.mark` becomes a ``data-series`` and a ``title`` on each marker, which
browsers show while a pointer rests on it.
"""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"
REFERENCE = re.compile(r"url\(#([^)]+)\)")


def drawn(figure: Figure, key: str) -> str:
    """A figure as SVG; ``key`` makes its ids its own, so that several figures can stand in one page."""
    import matplotlib as mpl

    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "localized-unlearning"}):
        figure.savefig(buffer, format="svg", metadata=metadata)
    return marked(buffer.getvalue(), f"f{key[:10]}")


def marked(text: str, prefix: str) -> str:
    """An SVG of matplotlib's with what :func:`style.mark` said as attributes and titles, and ids that begin with ``prefix``."""
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(text)
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for element in list(root.iter()):
        name = element.attrib.pop("id", None)
        if name and name.startswith("{"):
            _tell(element, json.loads(name))
        elif name:
            element.set("id", f"{prefix}-{name}")
        if HREF in element.attrib:
            element.set("href", element.attrib.pop(HREF).replace("#", f"#{prefix}-", 1))
        for attribute, value in element.attrib.items():
            if "url(#" in value:
                element.set(attribute, REFERENCE.sub(rf"url(#{prefix}-\1)", value))
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _tell(group: ElementTree.Element, said: dict[str, list[str] | str]) -> None:
    """A group's series, and the notes of its points: of the group itself where it has no markers."""
    series = str(said["series"])
    group.set("data-series", series)
    texts = [f"{series}, {note}" for note in said["notes"]]
    points = list(group.iter(f"{{{SVG}}}use")) or [group]
    if len(texts) == len(points):  # a point off the canvas is not drawn: then no note is certain
        for point, note in zip(points, texts, strict=True):
            title = ElementTree.Element(f"{{{SVG}}}title")
            title.text = note
            point.insert(0, title)
