"""Fixtures of all tests."""

from tiny_base import tiny_base
from tiny_models import _originals, float64, tiny

__all__ = ["_originals", "float64", "tiny", "tiny_base"]
