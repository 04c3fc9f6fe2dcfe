"""What the training loop and the audits see of a data set: batches of images in [0, 1] and labels, by row number.

Whether the images lie in memory or are decoded from files while one waits is the part's own business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
@runtime_checkable
class Part(Protocol):
    """The training, validation or test part of a data set."""

    @property
    def labels(self) -> Int[Tensor, "samples"]:
        """The class of each sample, int64, on the CPU."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""

    def __len__(self) -> int:
        """The number of samples."""

    def batches(self, rows: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """One (x, y) for each tensor of row numbers, in that order: float32 in [0, 1] and int64, on the device."""

    def tensors(self, samples: int | None = None) -> tuple[Tensor, Tensor]:
        """The first samples (all where None) in memory, on the CPU."""


class TensorPart:
    """A part held in memory. Its tensors go to a device once, and batches only index them.

    >>> part = TensorPart(torch.arange(6.0).reshape(3, 2) / 6, torch.tensor([0, 1, 0]))
    >>> [y.tolist() for x, y in part.batches([torch.tensor([2, 1])], torch.device("cpu"))]
    [[0, 1]]
    """

    def __init__(self, x: Float[Tensor, "samples *shape"], y: Int[Tensor, "samples"]) -> None:
        self.x, self.labels = x, y
        self._asked, self._there = x.device, (x, y)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, rows: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """One (x, y) for each tensor of row numbers, in that order."""
        x, y = self._on(device)
        for chosen in rows:
            there = chosen.to(x.device)
            yield x.index_select(0, there), y.index_select(0, there)

    def tensors(self, samples: int | None = None) -> tuple[Float[Tensor, "some *shape"], Int[Tensor, "some"]]:
        """The first samples (all where None)."""
        return self.x[:samples], self.labels[:samples]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._asked != device:  # by what was asked for: cuda and cuda:0 are unequal
            self._asked, self._there = device, (self.x.to(device), self.labels.to(device))
        return self._there
