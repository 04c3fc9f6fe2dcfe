"""Which rows of a data set belong to which part."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pinchpoint.errors import DataError


def stratified(y: npt.NDArray[Any], share: float, seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Rows of the larger and of the smaller part, every class in both by its share.

    Raises:
        DataError: where a class is too small to be in both.
    """
    from sklearn.model_selection import train_test_split

    try:
        rows, held_out = train_test_split(np.arange(len(y)), test_size=share, stratify=y, random_state=seed)
    except ValueError:
        raise DataError(
            "each class must have two training samples or more, and each part of them a sample of each class",
            f"{len(y)} samples of {len(set(y.tolist()))} classes, "
            f"the smallest of {min(np.unique(y, return_counts=True)[1], default=0)}, "
            f"and a share of {share:g}",
            "use more training samples or another share",
        ) from None
    return rows, held_out


def in_turn(y: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Rows in an order that takes one sample of each class in turn, so that the first n are balanced.

    >>> in_turn(np.array([0, 0, 0, 1, 1, 2])).tolist()
    [0, 3, 5, 1, 4, 2]
    """
    by_class = np.argsort(y, kind="stable")
    _, starts, counts = np.unique(y[by_class], return_index=True, return_counts=True)
    turn = np.empty(len(y), dtype=np.int64)
    turn[by_class] = np.arange(len(y)) - np.repeat(starts, counts)
    return np.lexsort((y, turn))
