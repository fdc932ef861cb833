"""Small things that every floor does with files and JSON."""

from __future__ import annotations

import json
from typing import Any


def canonical_json(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII; equal values give equal strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
