"""How much of a perturbation lies in the dominant right singular directions of a layer.

Compressibility gives a layer few dominant right singular vectors. If the adversary aims at them, a perturbation has more
of its length in their span than a random direction's sqrt(k / d).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.errors import ModelError
from pinchpoint.measure.spectrum import as_matrix


def right_singular_vectors(matrix: Float[Tensor, "h d"], k: int) -> Float[Tensor, "k d"]:
    """The k dominant right singular vectors, as rows, in float64.

    Raises:
        ModelError: where k is outside 1 ... min(h, d).
    """
    if not 1 <= k <= min(matrix.shape):
        raise ModelError(f"k must lie in 1 ... {min(matrix.shape)}", k, "choose fewer directions")
    rows: Tensor = torch.linalg.svd(as_matrix(matrix), full_matrices=False).Vh[:k]
    return rows


def alignment(matrix: Float[Tensor, "h d"], perturbations: Float[Tensor, "batch d"], k: int) -> Float[Tensor, "batch"]:
    """||V_k' a||_2 / ||a||_2: the share of each perturbation's length in the k dominant right singular directions.

    0 for a perturbation of zero. For k = 1 it is |v_1 . a| / ||a||_2. A random direction has about ``baseline(k, d)``.

    >>> alignment(torch.diag(torch.tensor([5.0, 1.0])), torch.tensor([[3.0, 4.0]]), k=1).round(decimals=6).tolist()
    [0.6]
    """
    vectors = right_singular_vectors(matrix, k)
    a = perturbations.detach().double().to(vectors.device)
    length = torch.linalg.vector_norm(a, dim=1)
    inside = torch.linalg.vector_norm(a @ vectors.T, dim=1)
    return torch.where(length > 0, inside / torch.where(length > 0, length, 1.0), 0.0)


def baseline(k: int, d: int) -> float:
    """sqrt(k / d): root mean square of ``alignment`` over random directions."""
    return math.sqrt(k / d)
