"""Data sets and traps, see ``oracles.datasets``."""

from oracles.datasets import arrays, few, trap, trapped, write

__all__ = ["arrays", "few", "trap", "trapped", "write"]
