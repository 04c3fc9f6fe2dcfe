"""What a class is called in a figure."""

from __future__ import annotations

from collections.abc import Sequence


def called(label: int | None, names: Sequence[str] | None) -> str:
    """A class by its name, by its number where it has none: a model may have more outputs than its data have classes.

    >>> called(1, ["cat", "dog"]), called(7, ["cat", "dog"]), called(7, None)
    ('dog', 'class 7', 'class 7')
    """
    if label is None:
        return "not known"
    return names[label] if names is not None and 0 <= label < len(names) else f"class {label}"
