"""Where the Square attack changes an input: windows of any input's image, their sizes, and the patterns put into them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_FIRST_SHARE = 0.8  # of the entries that the first windows cover
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the share is halved


@dataclass(frozen=True)
class Window:
    """Rows and columns of an image, the same in every channel."""

    top: int
    left: int
    height: int
    width: int

    def of(self, images: Float[Tensor, "batch channels height width"]) -> Tensor:
        """The part of the images inside; a view."""
        return images[:, :, self.top : self.top + self.height, self.left : self.left + self.width]


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width in which an input of this shape is seen.

    The last two axes are an image, all before them channels. A flat input is a square image of one or three channels
    where its size allows (from 4 x 4), else a single row.

    >>> image_shape((3, 32, 32)), image_shape((784,)), image_shape((3072,)), image_shape((30,))
    ((3, 32, 32), (1, 28, 28), (3, 32, 32), (1, 1, 30))
    """
    if len(shape) > 1:
        return math.prod(shape[:-2]), shape[-2], shape[-1]
    for channels in (1, 3):
        side = math.isqrt(shape[0] // channels)
        if side >= 4 and channels * side * side == shape[0]:
            return channels, side, side
    return 1, 1, shape[0]


def covered(query: int) -> float:
    """Share of an image that the window of this query covers (Andriushchenko et al. 2020, section 5; not rescaled).

    >>> [covered(query) for query in (0, 11, 51, 4001)]
    [0.8, 0.4, 0.2, 0.00625]
    """
    return _FIRST_SHARE * 0.5 ** sum(query > mark for mark in _HALVED_AT)


def window_size(height: int, width: int, share: float, *, odd: bool = False) -> tuple[int, int]:
    """Height and width of a window with this share of the image: square where the image is wide enough, at least one
    entry; ``odd``: sides odd and at least three where they fit.

    >>> window_size(28, 28, 0.8), window_size(1, 30, 0.8), window_size(28, 28, 0.00625, odd=True)
    ((25, 25), (1, 24), (3, 3))
    """
    side = max(round(math.sqrt(share * height * width)), 1)
    if odd:
        side = max(side + 1 - side % 2, 3)
    short = min(side, height, width)
    long = side if short == side else max(round(share * height * width / short), short)
    return (short, min(long, width)) if height <= width else (min(long, height), short)


def place(size: tuple[int, int], height: int, width: int, generator: torch.Generator) -> Window:
    """A window of this size anywhere in the image."""
    top, left = (
        int(torch.randint(room + 1, (1,), generator=generator)) for room in (height - size[0], width - size[1])
    )
    return Window(top, left, *size)


def tiles(height: int, width: int) -> list[Window]:
    """Windows of a fifth of each side that cover the image, but for a margin smaller than one of them."""
    tall, wide = max(height // 5, 1), max(width // 5, 1)
    rows = range((height % tall) // 2, height - tall + 1, tall)
    columns = range((width % wide) // 2, width - wide + 1, wide)
    return [Window(row, column, tall, wide) for row in rows for column in columns]


def pattern(height: int, width: int, decay: int, *, upright: bool = True) -> Float[Tensor, "{height} {width}"]:
    """Two bumps of opposite sign side by side (Andriushchenko et al. 2020, section 4.3 and Figure 3), unnormalised.

    A bump is a sum of squares around its centre, the k-th of 2k - 1 entries a side and value k^-decay (2 for l2; 4 for
    l1, Croce & Hein 2021). ``upright`` puts one above the other where the window has two rows.

    >>> pattern(1, 4, 2).tolist()
    [[0.25, 1.25, -0.25, -1.25]]
    """
    if (not upright and width > 1) or height == 1:
        left = width // 2
        return torch.cat([_bump(height, left, decay), -_bump(height, width - left, decay)], 1)
    top = height // 2
    return torch.cat([_bump(top, width, decay), -_bump(height - top, width, decay)], 0)


def _bump(height: int, width: int, decay: int) -> Tensor:
    ring = torch.maximum(
        (torch.arange(height) - height // 2).abs()[:, None], (torch.arange(width) - width // 2).abs()[None]
    )
    values = torch.arange(1.0, max(height // 2, width // 2) + 2).pow(-decay)
    return values.flip(0).cumsum(0).flip(0)[ring]
