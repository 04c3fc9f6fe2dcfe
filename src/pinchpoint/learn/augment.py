"""Augmentation of a batch, on its device: flips, crops and cutouts, drawn sample by sample."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from pinchpoint.errors import DataError


class AugmentConfig(BaseModel):
    """What is done to each training image anew each time it is seen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flip: bool = Field(default=False, description="mirror half of the images left to right")
    crop: int = Field(default=0, ge=0, description="pad by that many black pixels and cut the size out at random")
    cutout: int = Field(default=0, ge=0, description="blacken a square of that side (DeVries & Taylor 2017)")


def augment(
    x: Float[Tensor, "batch *shape"], config: AugmentConfig, generator: torch.Generator
) -> Float[Tensor, "batch *shape"]:
    """Augmented images; draws come from the generator, on its device, three a sample at most.

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
    if config.flip:
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(3), x)
    if config.crop:
        x = _crop(x, config.crop, generator)
    if config.cutout:
        x = _cutout(x, config.cutout, generator)
    return x


def _crop(x: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    height, width = x.shape[2:]
    top, left = torch.randint(2 * padding + 1, (2, len(x)), generator=generator).to(x.device)
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = left[:, None] + torch.arange(width, device=x.device)
    padded = functional.pad(x, (padding,) * 4).permute(0, 2, 3, 1)
    samples = torch.arange(len(x), device=x.device)[:, None, None]
    return padded[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    inside = []
    for size in x.shape[2:]:
        centre = torch.randint(size, (len(x), 1), generator=generator).to(x.device)
        distance = torch.arange(size, device=x.device) - (centre - side // 2)
        inside.append((distance >= 0) & (distance < side))
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)
