"""Augmentation of a batch, on its device: flips, crops and cutouts, drawn sample by sample."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from pinchpoint.errors import DataError
from pinchpoint.utils.config import StrictModel


class AugmentConfig(StrictModel):
    """What is done to each training image anew each time it is seen."""

    flip: bool = Field(default=False, description="mirror half of the images left to right")
    crop: int = Field(default=0, ge=0, description="pad by that many black pixels and cut the size out at random")
    cutout: int = Field(
        default=0, ge=0, description="blacken a square of that side around any pixel (DeVries & Taylor 2017)"
    )


def augment(
    x: Float[Tensor, "batch *shape"], config: AugmentConfig, generator: torch.Generator
) -> Float[Tensor, "batch *shape"]:
    """Augmented images; draws come from the generator, on its device, five a sample at most.

    Raises:
        DataError: where the inputs are no images.

    >>> image = torch.arange(4.0).reshape(1, 1, 2, 2)
    >>> augment(image, AugmentConfig(), torch.Generator()) is image
    True
    """
    if not (config.flip or config.crop or config.cutout):
        return x
    if x.ndim != 4:
        raise DataError(
            "augmentation needs images (channels, height, width)",
            f"shape {tuple(x.shape[1:])}",
            "leave train.augment out",
        )
    if config.flip or config.crop:
        x = _moved(x, config.flip, config.crop, generator)
    if config.cutout:
        x = _cut(x, config.cutout, generator)
    return x


def _moved(x: Tensor, flip: bool, padding: int, generator: torch.Generator) -> Tensor:
    """Cut out of padded images, then mirrored: one gather, whose numbers of pixels are the same for all channels."""
    samples, channels, height, width = x.shape
    top, left = (_draw(2 * padding + 1, samples, generator, x.device) for _ in range(2))
    rows = top + torch.arange(height, device=x.device)
    columns = left + torch.arange(width, device=x.device)
    if flip:
        columns = torch.where(_draw(2, samples, generator, x.device) == 1, columns.flip(1), columns)
    padded = functional.pad(x, (padding,) * 4)
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    return padded.flatten(2).gather(2, pixels.flatten(1)[:, None].expand(-1, channels, -1)).reshape(x.shape)


def _cut(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    inside = []
    for size in x.shape[2:]:
        distance = torch.arange(size, device=x.device) - (_draw(size, len(x), generator, x.device) - side // 2)
        inside.append((distance >= 0) & (distance < side))
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


def _draw(below: int, samples: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """A whole number from 0 for each sample, in a column."""
    return torch.randint(below, (samples, 1), generator=generator, device=generator.device).to(device)
