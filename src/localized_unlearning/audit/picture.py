"""What is behind a file, as a picture: its stages from the data on the left to the file on the right."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

from localized_unlearning.audit.findings import Audit
from localized_unlearning.audit.index import Entry

WIDTH, HEIGHT, ACROSS, DOWN = 150, 34, 60, 14  # of a box, and the gaps between boxes, in pixels


class Graph(NamedTuple):
    """Stages and data behind a file.

    Attributes:
        jobs: how many jobs of each stage, 0 for a data file.
        edges: (what was read, who read it).
        last: the stage that made the file.
    """

    jobs: dict[str, int]
    edges: set[tuple[str, str]]
    last: str


def graph(audit: Audit, path: Path) -> Graph | None:
    """The stages behind a file, from records alone; None when no record names it."""
    last = audit.index.producer(path)
    if last is None:
        return None
    seen: dict[str, set[Path]] = {}
    edges: set[tuple[str, str]] = set()

    def visit(entry: Entry) -> None:
        stage = entry.record.stage
        if entry.place in seen.setdefault(stage, set()):
            return
        seen[stage].add(entry.place)
        for given, place in audit.index.inputs(entry):
            producer = audit.index.producer(place) if place is not None else None
            name = producer.record.stage if producer else Path(given.path).name
            if producer:
                visit(producer)
            else:
                seen.setdefault(name, set())
            if name != stage:
                edges.add((name, stage))

    visit(last)
    return Graph({name: len(places) for name, places in seen.items()}, edges, last.record.stage)


def svg(found: Graph) -> str:
    """A :func:`graph` as SVG that takes its colours from the page around it.

    A reading that a longer way through other stages implies is left out.
    """
    layers = _layers(found)
    columns: dict[int, list[str]] = {}
    for name in sorted(found.jobs):
        columns.setdefault(layers[name], []).append(name)
    depth, tallest = max(columns), max(map(len, columns.values()))
    places = {
        name: (
            (depth - layer) * (WIDTH + ACROSS),
            row * (HEIGHT + DOWN) + (tallest - len(names)) * (HEIGHT + DOWN) // 2,
        )
        for layer, names in columns.items()
        for row, name in enumerate(names)
    }
    lines = [_edge(places[one], places[other]) for one, other in sorted(_direct(found.edges))]
    lines += [_box(name, found.jobs[name], *places[name]) for name in sorted(places)]
    width, height = (depth + 1) * (WIDTH + ACROSS) - ACROSS + 2, tallest * (HEIGHT + DOWN) - DOWN + 2
    head = (
        f'<svg viewBox="-1 -1 {width} {height}" width="{width}" role="img" style="max-width:100%;height:auto" '
        'font-size="12" font-family="sans-serif" fill="none" stroke="currentColor">'
    )
    return "\n".join([head, f"<title>What is behind stage {escape(found.last)}</title>", *lines, "</svg>"])


def _layers(found: Graph) -> Mapping[str, int]:
    """How many stages at most lie between each box and the last."""
    layers = dict.fromkeys(found.jobs, 0)
    for _ in found.jobs:  # a longest path has no more steps than there are boxes
        for one, other in found.edges:
            layers[one] = max(layers[one], min(layers[other] + 1, len(found.jobs) - 1))
    return layers


def _direct(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The edges that no longer way implies."""
    after: dict[str, set[str]] = {}
    for one, other in edges:
        after.setdefault(one, set()).add(other)

    def reached(name: str, seen: set[str]) -> set[str]:
        for following in after.get(name, set()) - seen:
            seen.add(following)
            reached(following, seen)
        return seen

    return {
        (one, other)
        for one, other in edges
        if not any(other in reached(between, set()) for between in after[one] - {other})
    }


def _edge(one: tuple[int, int], other: tuple[int, int]) -> str:
    x, y = one[0] + WIDTH, one[1] + HEIGHT // 2
    u, v = other[0], other[1] + HEIGHT // 2
    bend = min(ACROSS, u - x) // 2
    return f'<path d="M{x} {y}C{x + bend} {y} {u - bend} {v} {u} {v}" opacity=".35"/>'


def _box(name: str, jobs: int, x: int, y: int) -> str:
    label = f"{name} × {jobs}" if jobs > 1 else name
    label = label if len(label) <= 23 else label[:22] + "…"
    corner = 3 if jobs else HEIGHT // 2
    return (
        f'<g><title>{escape(name)}</title><rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="{corner}"/>'
        f'<text x="{x + WIDTH // 2}" y="{y + HEIGHT // 2 + 4}" text-anchor="middle" fill="currentColor" '
        f'stroke="none">{escape(label)}</text></g>'
    )
