"""Robust knowledge unlearning via mechanistic localizations (Guo et al. 2024), rebuilt."""

__version__ = "0.1.0"
