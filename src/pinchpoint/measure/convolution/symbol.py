"""The symbol of a convolution: one small matrix a frequency, whose norms bound the operator's l2 norm from above.

A convolution that pads with zeros is a corner of the same convolution on a torus, where inputs wrap around, as soon as
the torus is so large that wrapping joins no input to an output that does not truly see it. A Fourier transform takes the
torus apart into frequencies (Sedghi, Gupta and Long, arXiv 1805.10408). The same corner appears when whatever wraps around
changes its sign, which moves the frequencies by half a step ("twisted"); often that bound is the smaller one by far,
because the true operator, too, has no constant signal to answer to.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from pinchpoint.measure.convolution.operator import Convolution
from pinchpoint.measure.spectrum import EPS64, inflate

_CHUNK = 2**21  # complex numbers in one batch of symbols, 32 MB


def largest_norm(
    matrices: Float[Tensor, "batch h d"] | Complex[Tensor, "batch h d"], *, at_least: float = 0.0, slack: float = 1e-4
) -> tuple[float, float]:
    """The largest l2 norm in a batch, and a certified upper bound on it within 1 + ``slack`` of the first.

    One eigenvalue problem for the most promising matrix; all others are only compared with it: by the Frobenius norm of
    the Gram matrix where that is enough, else mu I - G is positive definite as soon as its Cholesky factor exists.

    Args:
        matrices: entries of a magnitude near 1.
        at_least: what counts as found already.

    >>> value, upper = largest_norm(torch.diag_embed(torch.tensor([[1.0, 2.0], [3.0, 1.0]], dtype=torch.float64)))
    >>> round(value, 12), value <= upper <= 3.001
    (3.0, True)
    """
    if min(matrices.shape[1:]) == 1:
        squared = float(torch.linalg.vector_norm(matrices, dim=(-2, -1)).max()) ** 2
        limit = max(at_least**2, squared) * (1 + slack) ** 2
        above = math.sqrt(limit + rounding(1, sum(matrices.shape[1:]), limit, squared))
        return max(at_least, math.sqrt(squared)), above
    wide = matrices.shape[1] <= matrices.shape[2]
    gram = matrices @ matrices.mH if wide else matrices.mH @ matrices
    side, terms = gram.shape[-1], sum(matrices.shape[1:])
    above = torch.linalg.vector_norm(gram, dim=(-2, -1))
    largest_trace = float(gram.diagonal(dim1=-2, dim2=-1).real.sum(dim=-1).max())  # squared Frobenius norm
    best = at_least**2
    limit = best * (1 + slack) ** 2
    pending = torch.nonzero(above > limit).flatten()
    while len(pending):
        if limit > 0:
            pending = pending[~positive_definite(limit, gram[pending])]
            if not len(pending):
                break
        first = above[pending].argmax()
        best = max(best, float(torch.linalg.eigvalsh(gram[pending[first]])[-1]))
        limit = best * (1 + slack) ** 2
        pending = torch.cat([pending[:first], pending[first + 1 :]])
        pending = pending[above[pending] > limit]
    return math.sqrt(best), math.sqrt(limit + rounding(side, terms, limit, largest_trace))


def positive_definite(limit: float, gram: Tensor) -> Tensor:
    """Whether the Cholesky factor of limit I - G exists, for each G of a batch."""
    shifted = -gram
    shifted.diagonal(dim1=-2, dim2=-1).add_(limit)
    failed: Tensor = torch.linalg.cholesky_ex(shifted).info
    return failed == 0


def rounding(side: int, terms: int, limit: float, trace: float) -> float:
    """How far the largest eigenvalue of a true Gram matrix may lie above a limit that its computed one keeps.

    Computing the Gram matrix errs by less than (terms + 2) eps ||A||_F^2. A Cholesky factor of limit I - G exists in
    floating point only if no eigenvalue lies below -(side + 1) eps trace, about (Rump, BIT 2006, "Verification of positive
    definiteness"); an eigenvalue routine is off by less than that. Complex arithmetic at most quadruples either; 16 leaves
    room.
    """
    return 16 * (side + terms + 4) * EPS64 * (side * limit + trace)


@dataclass(frozen=True)
class Torus:
    """Where a convolution is periodic: size and stride in each dimension, and whether what wraps around changes its sign."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    twist: tuple[int, ...]


def tori(conv: Convolution) -> list[Torus]:
    """The tori on which a direct convolution is a corner of a periodic one, the most promising first; [] if there are none.

    A torus must be so large that no input meets an output it does not see: positions o * stride + t * dilation - before
    of taps and i of inputs never differ by its size. Circular padding is the torus itself.
    """
    sides = list(
        zip(conv.input_size, conv.output_shape[1:], conv.stride, conv.dilation, conv.kernel, conv.padding, strict=True)
    )
    if conv.padding_mode == "circular" and all((m - 1) * s < n for n, m, s, *_ in sides):
        strides = tuple(s if n % s == 0 else 1 for n, _, s, *_ in sides)
        return [Torus(conv.input_size, strides, (0,) * len(sides))]
    if conv.padding_mode != "zeros":
        return []
    least = [max(n, n + before, m * s, (m - 1) * s + (k - 1) * d - before + 1) for n, m, s, d, k, (before, _) in sides]
    sizes = tuple(math.ceil(size / s) * s for size, s in zip(least, conv.stride, strict=True))
    twists = itertools.product(*((1, 0) if size > s else (0,) for size, s in zip(sizes, conv.stride, strict=True)))
    return [Torus(sizes, conv.stride, twist) for twist in twists]


def symbol_cost(conv: Convolution, torus: Torus) -> float:
    """Floating point operations of ``symbol_norm``, roughly."""
    aliases = math.prod(torus.strides)
    rows, columns = conv.weight.shape[0] // conv.groups, conv.weight.shape[1] * aliases
    side = min(rows, columns)
    frequencies = math.prod(torus.sizes) / aliases / 2
    return conv.groups * frequencies * (8 * rows * columns * side + 4 / 3 * side**3)


def symbols(conv: Convolution, torus: Torus) -> Iterator[Complex[Tensor, "frequencies groups out in"]]:
    """The symbols at all frequencies, or one of two conjugate ones, in parts that memory has room for."""
    weight, by_tap = _by_tap(conv)
    aliases = math.prod(torus.strides)
    angles = _angles(conv, torus)
    for part in angles.split(max(1, _CHUNK // (aliases * by_tap.shape[1]))):
        symbol = torch.complex(part.cos() @ by_tap, part.sin() @ by_tap) / math.sqrt(aliases)
        symbol = symbol.unflatten(-1, weight.shape[:3]).permute(0, 2, 3, 1, 4)  # frequencies, groups, out, aliases, in
        yield symbol.flatten(3)


def symbol_norm(conv: Convolution, torus: Torus, *, at_least: float = 0.0, slack: float = 1e-4) -> float:
    """A certified upper bound on the l2 norm of a direct convolution that is a corner of a periodic one on ``torus``.

    Args:
        conv: a direct convolution with weights of a magnitude near 1.
        torus: one of ``tori(conv)``.
        at_least: a lower bound on the norm, if one is known.
        slack: how far the result may lie above the largest norm of a symbol, relative to it.
    """
    found, upper = at_least, 0.0
    for symbol in symbols(conv, torus):
        value, above = largest_norm(symbol.flatten(0, 1), at_least=found, slack=slack)
        found, upper = max(found, value), max(upper, above)
    return upper + _rounding_of_symbols(conv)


def group_norms(conv: Convolution, torus: Torus) -> Float[Tensor, "groups"]:
    """Certified upper bounds on the l2 norms of the groups, from Frobenius norms of their symbols."""
    tops = conv.weight.new_zeros(conv.groups)
    for symbol in symbols(conv, torus):
        tops = torch.maximum(tops, torch.linalg.vector_norm(symbol, dim=(-2, -1)).amax(0))
    terms = 2 * conv.weight[0].numel() * conv.weight.shape[0] // conv.groups * math.prod(torus.strides)
    return tops * inflate(1.0, terms) + _rounding_of_symbols(conv)


def _by_tap(conv: Convolution) -> tuple[Float[Tensor, "groups out in *kernel"], Float[Tensor, "taps entries"]]:
    weight = conv.weight.unflatten(0, (conv.groups, -1))
    return weight, weight.flatten(3).permute(3, 0, 1, 2).flatten(1)


def _rounding_of_symbols(conv: Convolution) -> float:
    """How far rounding can have moved the norm of a symbol."""
    _, by_tap = _by_tap(conv)
    total = float(torch.linalg.vector_norm(by_tap, dim=1).sum())  # no symbol's norm exceeds it
    return 16 * (len(by_tap) + 8) * EPS64 * total


def _angles(conv: Convolution, torus: Torus) -> Float[Tensor, "frequencies aliases taps"]:
    """Angles of the taps at each frequency and its aliases; of two conjugate frequencies only one."""
    sizes, strides, twist = torus.sizes, torus.strides, torus.twist
    device = conv.weight.device
    bases = [n // s for n, s in zip(sizes, strides, strict=True)]
    index = _grid([torch.arange(base, device=device) for base in bases])
    conjugate = [(-at - shift) % base for at, shift, base in zip(index, twist, bases, strict=True)]
    kept = _flat(index, bases) <= _flat(conjugate, bases)
    alias = _grid([torch.arange(s, device=device) for s in strides])
    tap = _grid([torch.arange(k, device=device) * d for k, d in zip(conv.kernel, conv.dilation, strict=True)])
    angles = torch.zeros(1, dtype=torch.float64, device=device)
    for n, base, shift, at, aliased, position in zip(sizes, bases, twist, index, alias, tap, strict=True):
        half_steps = 2 * (at[kept][:, None] + base * aliased) + shift  # in units of pi / n
        whole = (half_steps[..., None] * position) % (2 * n)  # reduced as integers: no rounding
        angles = angles + whole.to(torch.float64) * (math.pi / n)
    return angles


def _grid(axes: list[Int[Tensor, "_"]]) -> list[Int[Tensor, "points"]]:
    return [axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]


def _flat(index: list[Int[Tensor, "points"]], sizes: list[int]) -> Int[Tensor, "points"]:
    flat = torch.zeros_like(index[0])
    for at, size in zip(index, sizes, strict=True):
        flat = flat * size + at
    return flat
