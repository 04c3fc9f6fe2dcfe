"""How inputs are normalised, in a word: ``none``, ``imagenet`` or ``mean=...,std=...``. Nobody guesses it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from pinchpoint.models.base import NetworkConfig, Normalize
from pinchpoint.utils.numbers import normalisation


class Normalisation(NamedTuple):
    """(x - mean) / std, one value or one a channel; both None: x as it is."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __str__(self) -> str:
        return "none" if self.mean is None or self.std is None else shown(self.mean, self.std)

    @property
    def explicit(self) -> Normalisation:
        """None as mean 0 and std 1, for networks that have a normalisation of their own where nothing is given."""
        return Normalisation((0.0,), (1.0,)) if self.mean is None else self

    def before(self, network: nn.Module, input_shape: Sequence[int]) -> nn.Module:
        """The network with the normalisation in front, as ``normalize`` and ``network``.

        Raises:
            ModelError: where mean and std do not fit each other or the input.
        """
        normalize = NetworkConfig(mean=self.mean, std=self.std).normalize(input_shape)
        if normalize is None:
            return network
        return nn.Sequential(OrderedDict([("normalize", normalize), ("network", network)]))


def parse_normalisation(text: str) -> Normalisation:
    """What a user writes after ``--normalize``.

    Raises:
        ConfigError: for anything else.

    >>> parse_normalisation("none"), str(parse_normalisation("mean=.5,std=.25"))
    (Normalisation(mean=None, std=None), 'mean 0.5, std 0.25')
    """
    return Normalisation(*(normalisation(text) or ()))


def normalisation_of(model: nn.Module) -> Normalisation:
    """That of a network of ours, from the module in front of it.

    >>> str(normalisation_of(Normalisation((0.5,), (0.25,)).before(nn.Identity(), (3, 4, 4))))
    'mean 0.5, std 0.25'
    """
    normalize = next((module for module in model.modules() if isinstance(module, Normalize)), None)
    if normalize is None:
        return Normalisation()
    return Normalisation(tuple(normalize.mean.flatten().tolist()), tuple(normalize.std.flatten().tolist()))


def shown(mean: Sequence[float], std: Sequence[float]) -> str:
    """As notes have it.

    >>> shown((0.5,), (0.25,))
    'mean 0.5, std 0.25'
    """
    return "mean {}, std {}".format(*(", ".join(f"{value:g}" for value in values) for values in (mean, std)))
