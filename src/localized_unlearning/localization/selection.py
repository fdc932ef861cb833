"""The file of a selection: the chosen components."""

from __future__ import annotations

from typing import Any

from localized_unlearning.models import components
from localized_unlearning.models.components import Component


def read_selection(path: Any) -> list[Component]:
    """The components of a selection file."""
    import json

    return [components.parse(name) for name in json.loads(path.read_text(encoding="utf-8"))["components"]]
