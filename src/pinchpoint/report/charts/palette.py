"""Colours and marker shapes, one meaning each: families are categories, levels are a sequence, seeds are shapes.

Figures carry the light colours; ``dark_of`` maps every one of them to its partner on a dark page. The categories are
those of Okabe and Ito (2008), a little darker or lighter to keep a contrast of 3:1 with either page; the sequence rises
in contrast with the page from none to strong, so that it can be read without hue.
"""

from __future__ import annotations

from collections.abc import Sequence

INK, MUTED, FAINT = "#2b313a", "#626b78", "#eef0f4"
"""Lines that are not data: strong, weak, and filled areas."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")
"""Marker shapes, one a seed; they repeat after eight."""

_NEUTRAL_DARK = {INK: "#d7dde5", MUTED: "#98a3b3", FAINT: "#232a35"}
_FAMILIES = ("#0072b2", "#d55e00", "#00875f", "#b0548a", "#8a6d00", "#5b5fc7")
_FAMILIES_DARK = ("#56b4f5", "#ff8f45", "#34cfa0", "#f0a0cd", "#e3c04a", "#a5a8ff")
_SEQUENCE = ("#dd7a12", "#c2366b", "#7d2a90", "#25185f")
_SEQUENCE_DARK = ("#8a6cf0", "#d062b4", "#f58a5e", "#fbd850")


def _mix(anchors: Sequence[str], share: float) -> str:
    """The colour at ``share`` (0 to 1) of the way along the anchors."""
    place = share * (len(anchors) - 1)
    left = min(int(place), len(anchors) - 2)
    part = place - left
    ends = [[int(anchors[i][j : j + 2], 16) for j in (1, 3, 5)] for i in (left, left + 1)]
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(*ends, strict=True))


def family_color(index: int) -> str:
    """Colour of the family at this place in the summary.

    >>> family_color(0)
    '#0072b2'
    """
    return _FAMILIES[index % len(_FAMILIES)]


def level_color(index: int, levels: int) -> str:
    """Colour of a level: from orange (none) to indigo (strong) on a light page.

    >>> level_color(0, 4), level_color(3, 4)
    ('#dd7a12', '#25185f')
    """
    return _mix(_SEQUENCE, index / max(levels - 1, 1))


def seed_symbol(index: int) -> str:
    """Marker shape of the seed at this place among the sorted seeds."""
    return SYMBOLS[index % len(SYMBOLS)]


def dark_of(most_levels: int) -> dict[str, str]:
    """Light colour to dark colour, for pages whose families have up to ``most_levels`` levels."""
    table = dict(_NEUTRAL_DARK) | dict(zip(_FAMILIES, _FAMILIES_DARK, strict=True))
    for levels in range(1, max(most_levels, 1) + 1):
        for index in range(levels):
            table[level_color(index, levels)] = _mix(_SEQUENCE_DARK, index / max(levels - 1, 1))
    return table
