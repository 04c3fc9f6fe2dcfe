"""Matrices that break things: rank 1, zero, zero rows, duplicated rows, equal entries, huge and tiny scales."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

KINDS = ("random", "rank one", "zero", "zero rows", "duplicated rows", "equal entries", "orthogonal", "sparse", "heavy")
SCALES = (1.0, 1e-3, 1e150, 1e-150)


def make(kind: str, h: int, d: int, seed: int, scale: float = 1.0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((h, d))
    if kind == "rank one":
        matrix = np.outer(matrix[:, 0], rng.standard_normal(d))
    elif kind == "zero":
        matrix = np.zeros((h, d))
    elif kind == "zero rows":
        matrix[rng.random(h) < 0.5] = 0.0
    elif kind == "duplicated rows":
        matrix = matrix[rng.integers(0, h, size=h)]
    elif kind == "equal entries":
        matrix = np.full((h, d), matrix[0, 0])
    elif kind == "orthogonal":
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        matrix = left @ right
    elif kind == "sparse":
        matrix[rng.random((h, d)) < 0.8] = 0.0
    elif kind == "heavy":
        matrix = np.sign(matrix) * np.abs(matrix) ** 8
    return matrix * scale


@st.composite
def matrices(draw: st.DrawFn, most: int = 9) -> NDArray[np.float64]:
    side = st.integers(1, most)
    return make(
        draw(st.sampled_from(KINDS)),
        draw(side),
        draw(side),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.sampled_from(SCALES)),
    )
