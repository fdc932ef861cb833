"""Fixtures of all tests."""

from tiny_models import _originals, float64, tiny

__all__ = ["_originals", "float64", "tiny"]
