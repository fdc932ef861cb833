"""Ours beside what a user would otherwise run, and beside the floor: `make bench` writes docs/performance.md."""
