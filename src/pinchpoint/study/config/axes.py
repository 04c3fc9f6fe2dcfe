"""Axes of a family: lists of levels, values that go together, values that multiply."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pinchpoint.errors import ConfigError

MOST_CELLS = 10**6
"""Levels of a study times its seeds: more are counted, never written out."""


def check_count(whose: str, cells: int) -> None:
    """Refuse more cells than a study may have.

    Raises:
        ConfigError: with their number.
    """
    if cells > MOST_CELLS:
        raise ConfigError(f"{whose} may have at most {MOST_CELLS:,} cells", f"{cells:,}", "give fewer values a key")


def rows_of(
    family: str,
    listed: Sequence[Mapping[str, Any]],
    zipped: Mapping[str, Sequence[Any]],
    grid: Mapping[str, Sequence[Any]],
) -> list[dict[str, Any]]:
    """What each level of a family overrides: ``listed`` outermost, then ``zipped``, then ``grid``, last key fastest.

    Raises:
        ConfigError: where there is no level, a key stands in two axes, or zipped lists differ in length.

    >>> rows_of("f", [], {"a": [1, 2], "b": [3, 4]}, {"c": [5, 6]})[1]
    {'a': 1, 'b': 3, 'c': 6}
    """
    empty = [key for key, values in {**zipped, **grid}.items() if not values] + ["list" for row in listed if not row]
    if not (listed or zipped or grid) or empty:
        seen = f"no value for {empty[0]}" if empty else "no key"
        raise ConfigError(f"the grid of family '{family}' must hold values", seen, "list one value or more a key")
    counted = Counter([*{key for row in listed for key in row}, *zipped, *grid])
    twice = [key for key, times in counted.items() if times > 1]
    if twice:
        raise ConfigError(
            f"a key of family '{family}' belongs to one axis", f"{twice[0]} in two", "leave it in list, zip or grid"
        )
    lengths = {key: len(values) for key, values in zipped.items()}
    if len(set(lengths.values())) > 1:
        seen = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise ConfigError(f"zipped values of family '{family}' must be equally many", seen, "add or remove some")
    together = len(next(iter(zipped.values()))) if zipped else 1
    check_count(f"family '{family}'", max(1, len(listed)) * together * math.prod(map(len, grid.values())))
    outer: list[Mapping[str, Any]] = list(listed) or [{}]
    middle = [dict(zip(zipped, values, strict=True)) for values in zip(*zipped.values(), strict=True)] or [{}]
    inner = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [{**one, **two, **three} for one, two, three in itertools.product(outer, middle, inner)]
