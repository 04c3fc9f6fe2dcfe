"""LipSDP-Neuron as a semidefinite programme, solved by cvxpy; and its dual form for l_inf to one output.

With s = (x, h_1, ..., h_n) stacked, A s the pre-activations and B s the activations, slopes in [0, 1] give for every
diagonal T >= 0

    [A; B]' [[0, T], [T, -2 T]] [A; B] + M <= 0,     M = diag(-Q, 0, ..., 0, W_out' W_out)

where Q = rho I certifies ||f(x) - f(y)||^2 <= rho ||x - y||_2^2 (Fazlyab et al. 2019, 1906.04893, theorem 2), and
Q = diag(gamma) with sum gamma = rho certifies |f(x) - f(y)|^2 <= rho ||x - y||_inf^2 (Wang et al. 2022, 2203.01212).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def lipsdp(weights: Sequence[Array], norm: str = "l2") -> float:
    """The optimum of LipSDP-Neuron for a ReLU network: from l_2 to l_2, or from l_inf to one output."""
    *hidden, last = weights
    scales = [float(np.linalg.norm(weight, 2)) for weight in weights]  # for the solver's sake
    hidden, last = [weight / scale for weight, scale in zip(hidden, scales, strict=False)], last / scales[-1]
    widths = [hidden[0].shape[1], *(len(weight) for weight in hidden)]
    starts = np.cumsum([0, *widths])
    inner, whole = starts[-1] - starts[1], starts[-1]
    before, after = np.zeros((inner, whole)), np.zeros((inner, whole))
    for place, weight in enumerate(hidden):
        rows = slice(starts[place + 1] - starts[1], starts[place + 2] - starts[1])
        before[rows, starts[place] : starts[place + 1]] = weight
        after[rows, starts[place + 1] : starts[place + 2]] = np.eye(len(weight))
    multipliers = cp.Variable(inner, nonneg=True)
    t = cp.diag(multipliers)
    gamma = cp.Variable(widths[0], nonneg=True)
    rho = cp.Variable(nonneg=True)
    pick_input = np.eye(whole)[:, : widths[0]]
    pick_last = np.zeros((len(last), whole))
    pick_last[:, starts[-2] :] = last
    condition = (
        before.T @ t @ after
        + after.T @ t @ before
        - 2 * after.T @ t @ after
        - pick_input @ cp.diag(gamma) @ pick_input.T
        + pick_last.T @ pick_last
    )
    tied = gamma == rho if norm == "l2" else cp.sum(gamma) == rho
    cp.Problem(cp.Minimize(rho), [(condition + condition.T) / 2 << 0, tied]).solve(solver=cp.CLARABEL)
    return math.sqrt(float(rho.value)) * math.prod(scales)
