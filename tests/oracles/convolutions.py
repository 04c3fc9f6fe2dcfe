"""Convolutions as matrices, from the module itself; and random ones of every kind."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from oracles.matrices import KINDS, SCALES, make

Array = NDArray[np.float64]


def jacobian(module: nn.Module, shape: tuple[int, ...]) -> Array:
    """The matrix of a module without bias: one forward pass a basis vector, in float64."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on padding='same' with even kernels
        return module.double()(basis).flatten(1).T.numpy()


def by_hand(weight: Array, size: int, stride: int, dilation: int, padding: int) -> Array:
    """A convolution in one dimension with zero padding, as its definition has it."""
    outs, ins, taps = weight.shape
    length = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    matrix = np.zeros((outs, length, ins, size))
    for o, i, t, at in np.ndindex(outs, ins, taps, length):
        source = at * stride + t * dilation - padding
        if 0 <= source < size:
            matrix[o, at, i, source] += weight[o, i, t]
    return matrix.reshape(outs * length, ins * size)


@st.composite
def modules(draw: st.DrawFn, most: int = 7) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution without bias and an input size that it accepts; weights of the kinds that break things."""
    dims = draw(st.integers(1, 3))
    several = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    ins, outs = groups * draw(st.integers(1, 3 if dims < 3 else 1)), groups * draw(st.integers(1, 3 if dims < 3 else 1))
    kernel, stride, dilation, padding = several(1, 3), several(1, 3), several(1, 2), several(0, 2)
    whole = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    if draw(st.booleans()):
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        least = tuple((2 * p - w - e) // s + 2 for p, w, e, s in zip(padding, whole, extra, stride, strict=True))
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        module = kind(ins, outs, kernel, stride, padding, extra, groups, False, dilation)
    else:
        mode = draw(st.sampled_from(("zeros", "zeros", "circular", "reflect", "replicate")))
        named = draw(st.sampled_from((None, None, "same", "valid")))
        stride = (1,) * dims if named == "same" else stride
        pads = tuple(w // 2 for w in whole) if named == "same" else (0,) * dims if named else padding
        least = tuple(max(p + 1, w - 2 * p) for p, w in zip(pads, whole, strict=True))
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        module = kind(ins, outs, kernel, stride, named or padding, dilation, groups, False, mode)
    size = tuple(max(1, n) + draw(st.integers(0, most - 1 if dims == 1 else 3 if dims == 2 else 1)) for n in least)
    shape = module.weight.shape
    made = make(
        draw(st.sampled_from(KINDS)),
        shape[0],
        math.prod(shape[1:]),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.sampled_from(SCALES)),
    )
    module = module.double()
    module.weight.data = torch.from_numpy(made.reshape(shape))
    return module, size
