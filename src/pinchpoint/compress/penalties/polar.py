"""The polar factor U V' of a weight matrix W = U diag(sigma) V' while training changes it: the nuclear norm's gradient.

An exact factor costs about ten products of W with itself, a training step less than one (2000 x 2000, batches of 100,
two cores). So it is computed rarely and followed cheaply in between. See ``nuclear`` for what else was tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.errors import CheckpointError

SMALL = 128
"""Shorter sides up to which the factor is computed at every step."""
HEAD = 64
"""Singular directions that are followed one by one, at most, once the others have collapsed."""
ABOVE = 1.5
"""Of those, the ones that stand out: above this many times what comes after them."""
SPARE = 8
"""And so many more, since subspace iteration is slow at the edge."""
COLLAPSED = 3.0
"""The tail has collapsed where its largest singular value is below this many times what W moves between two refreshes,
so that the directions found at the one mean nothing any more at the other."""
TAIL = 8.0 / (3.0 * math.pi)
"""||R||_* / (sqrt(n) ||R||_F) of a large n x n Gaussian matrix R (quarter-circle law)."""
FIRST = 8
"""Refreshes come after an eighth of the steps so far: often while everything moves, at the start of training."""
PATIENT = 4
"""A collapsed tail is looked at so many times less often."""
FOLLOW = 3
"""Steps from one subspace iteration to the next."""

_KEYS = ("counts", "polar", "basis", "reference")


@dataclass
class PolarMemory:
    """The polar factor of one matrix from step to step. Sides are swapped where h > d, so that it is always wide.

    Two regimes, chosen at each refresh, which is an eigendecomposition of the Gram matrix:

    * full: the factor of the last refresh is kept. It moves by about ||dW|| / (sigma_i + sigma_j) in directions i, j, so
      little while singular values are large beside what W moves in the meantime.
    * collapsed: where only a few singular values are large, kept directions of the others would push them through zero
      and beyond. Then the leading directions (those above ABOVE times the HEAD-th and SPARE more, HEAD at most) follow W
      by one step of subspace iteration every FOLLOW steps, the rest R is pushed along itself: U V' + g R, with g such that
      g ||R||_F is what a Gaussian matrix's polar factor would give.

    Attributes:
        steps: calls so far.
        due: the step of the next refresh.
        polar: the factor, h x d.
        basis: leading left singular vectors, h x k with k <= HEAD, when collapsed.
        reference: the matrix at the last refresh.
    """

    steps: int = 0
    due: int = 0
    polar: Tensor | None = None
    basis: Tensor | None = None
    reference: Tensor | None = None

    def factor(self, wide: Float[Tensor, "h d"], refresh: int) -> Float[Tensor, "h d"]:
        """The factor of the matrix as it is now; one step of the memory.

        Args:
            wide: h <= d, detached.
            refresh: most steps between two refreshes in the full regime.
        """
        if self.polar is None or self.steps >= self.due:
            self.polar = self._refresh(wide, refresh)
        elif self.basis is not None and self.steps % FOLLOW == 0:
            self.polar, self.basis = _follow(wide, self.basis)
        self.steps += 1
        return self.polar

    def _refresh(self, wide: Tensor, refresh: int) -> Tensor:
        sigma, left = _eigen(wide)
        moved = 0.0 if self.reference is None else float((wide - self.reference).norm()) / math.sqrt(len(wide))
        collapsed = bool(sigma[-HEAD - 1] < COLLAPSED * moved)
        head = min(HEAD, int((sigma > ABOVE * sigma[-HEAD - 1]).sum()) + SPARE)
        self.basis = left[:, -head:].clone() if collapsed else None
        self.reference = wide.clone()
        self.due = self.steps + min(max(1, self.steps // FIRST), refresh) * (PATIENT if collapsed else 1)
        return _from_eigen(wide, sigma, left)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        found = {"counts": torch.tensor([self.steps, self.due])}
        for key in _KEYS[1:]:
            if (tensor := getattr(self, key)) is not None:
                found[key] = tensor.clone()
        return found

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> PolarMemory:
        """What ``state_dict`` gave.

        Raises:
            CheckpointError: where something else stands there.
        """
        unknown = [key for key in state if key not in _KEYS]
        if unknown or "counts" not in state:
            raise CheckpointError(
                f"the memory of a nuclear norm holds {', '.join(_KEYS)}",
                ", ".join(unknown) or "no counts",
                "resume with the same penalties",
            )
        steps, due = state["counts"].tolist()
        return cls(steps, due, *(None if key not in state else state[key].clone() for key in _KEYS[1:]))


def polar_factor(wide: Float[Tensor, "h d"]) -> Float[Tensor, "h d"]:
    """(W W')^(-1/2) W for h <= d, by an eigendecomposition of the Gram matrix in W's precision.

    Squaring costs half the digits: singular values below sqrt(10 eps) sigma_1 (1e-3 in float32, 5e-8 in float64) count by
    their share of that. So no singular value of the result is above 1 but for rounding.

    >>> polar_factor(torch.tensor([[0.0, 2.0, 0.0], [5.0, 0.0, 0.0]])).round(decimals=5).abs().tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    return _from_eigen(wide, *_eigen(wide))


def _eigen(wide: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, ascending, not below the floor that rounding sets; left singular vectors as columns."""
    top = wide.abs().amax()
    scaled = wide / torch.where(top > 0, top, 1.0)
    squares, left = torch.linalg.eigh(scaled @ scaled.mT)
    floor = math.sqrt(10.0 * torch.finfo(wide.dtype).eps)
    roots = squares.clamp(min=0.0).sqrt()
    return roots.clamp(min=float(roots[-1]) * floor) * top, left


def _from_eigen(wide: Tensor, sigma: Tensor, left: Tensor) -> Tensor:
    if float(sigma[-1]) == 0.0:
        return torch.zeros_like(wide)
    return ((left / sigma) @ left.mT) @ wide


def _follow(
    wide: Float[Tensor, "h d"], basis: Float[Tensor, "h k"]
) -> tuple[Float[Tensor, "h d"], Float[Tensor, "h k"]]:
    """One step of subspace iteration from ``basis``: four products with k columns, U V' + g R, and the new basis.

    With Q an orthonormal basis of the range of W'U and W Q = U S B': V = Q B, and R = W - U S V' = W (I - Q Q').
    """
    right = torch.linalg.qr(_unit_columns(wide.mT @ basis)).Q
    image = wide @ right
    turn = torch.linalg.eigh(image.double().mT @ image.double()).eigenvectors.to(wide.dtype)
    left = _unit_columns(image @ turn)
    rest = torch.addmm(wide, image, right.mT, alpha=-1.0)  # its norm by Pythagoras would be rounding and nothing else
    size = float(rest.norm())
    gain = TAIL * math.sqrt(len(wide) - basis.shape[1]) / size if size > 0 else 0.0
    return rest.addmm_(left, (right @ turn).mT, beta=gain), left


def _unit_columns(matrix: Tensor) -> Tensor:
    lengths = matrix.norm(dim=0)
    return matrix / torch.where(lengths > 0, lengths, 1.0)
