"""What opening a model gives: the model, its shape, and whatever had to be assumed on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from pinchpoint.errors import ModelError
from pinchpoint.models.build import AnyModelConfig
from pinchpoint.utils.model_output import as_logits


@dataclass(frozen=True)
class Source:
    """A model and what is known about it.

    Attributes:
        name: as it was asked for.
        model: in eval mode, on the CPU; takes images in [0, 1] (normalisation is part of it, where it is known).
        input_shape: shape of one input, e.g. (3, 32, 32).
        classes: number of logits, or None where its outputs are no logits or not known to be.
        notes: what was assumed, one sentence each.
        config: the architecture, by which the model or a smaller one made from it is saved; None where it has no logits.
        normalisation: how inputs are normalised, ``none`` or ``mean ..., std ...``; None where nobody has said.
    """

    name: str
    model: nn.Module
    input_shape: tuple[int, ...]
    classes: int | None
    notes: tuple[str, ...] = ()
    config: AnyModelConfig | None = None
    normalisation: str | None = None


def checked(source: Source, shape: tuple[int, ...]) -> Source:
    """With the shape, and the number of logits, after one empty image has passed.

    Raises:
        ModelError: with what the network says where it cannot take it.
    """
    try:
        with torch.inference_mode():
            logits = source.model(torch.zeros(1, *shape))
    except Exception as error:  # the network may be anybody's, and say anything
        said = (str(error) or type(error).__name__).splitlines()[0]
        own = "" if shape == source.input_shape else f"; its own size is {by(source.input_shape)}"
        raise ModelError(
            f"{source.name} must take inputs of {by(shape)}", said, f"choose another --input-size{own}"
        ) from None
    try:
        classes = as_logits(logits, 1).shape[1]
    except ModelError:  # what else it returns is no matter until it is attacked
        return replace(source, input_shape=shape, classes=None)
    return replace(source, input_shape=shape, classes=classes)


def resized(name: str, own: tuple[int, ...], wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of the inputs: its own, or of the size that is wanted.

    A wrong number of channels is refused, since normalisation would broadcast it away.

    Raises:
        ModelError: for that.

    >>> resized("a model", (3, 32, 32), (64, 64)), resized("a model", (3, 32, 32), None)
    ((3, 64, 64), (3, 32, 32))
    """
    if wanted is None:
        return own
    if len(own) != 3:
        return wanted
    if len(wanted) == 3 and wanted[0] != own[0]:
        remedy = f"use {by((own[0], *wanted[1:]))}"
        raise ModelError(f"{name} takes images of {own[0]} channels", by(wanted), remedy)
    return own[0], wanted[-2], wanted[-1]


def by(shape: Sequence[int]) -> str:
    """A shape as people write it.

    >>> by((3, 32, 32))
    '3x32x32'
    """
    return "x".join(map(str, shape))
