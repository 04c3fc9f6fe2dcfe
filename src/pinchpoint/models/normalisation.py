"""How inputs are normalised, in a word: ``none``, ``imagenet`` or ``mean=...,std=...``. Nobody guesses it."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from pinchpoint.errors import ConfigError
from pinchpoint.models.base import NetworkConfig

WAYS = "none, imagenet or mean=0.5,0.5,0.5,std=0.25,0.25,0.25"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?"
_NUMBERS = rf"\s*({_NUMBER}(?:[\s,]+{_NUMBER})*)\s*"


class Normalisation(NamedTuple):
    """(x - mean) / std, one value or one a channel; both None: x as it is."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __str__(self) -> str:
        return "none" if self.mean is None or self.std is None else shown(self.mean, self.std)

    def before(self, network: nn.Module, input_shape: Sequence[int]) -> nn.Module:
        """The network with the normalisation in front, as ``normalize`` and ``network``.

        Raises:
            ModelError: where mean and std do not fit each other or the input.
        """
        normalize = NetworkConfig(mean=self.mean, std=self.std).normalize(input_shape)
        if normalize is None:
            return network
        return nn.Sequential(OrderedDict([("normalize", normalize), ("network", network)]))


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def parse_normalisation(text: str) -> Normalisation:
    """What a user writes after ``--normalize``.

    Raises:
        ConfigError: for anything else.

    >>> parse_normalisation("none"), str(parse_normalisation("mean=.5,std=.25"))
    (Normalisation(mean=None, std=None), 'mean 0.5, std 0.25')
    """
    named = {"none": Normalisation(), "imagenet": IMAGENET}
    if text in named:
        return named[text]
    found = re.fullmatch(rf"mean={_NUMBERS}[,;\s]\s*std={_NUMBERS}", text)
    if found is None:
        raise ConfigError(f"a normalisation is {WAYS}", text or "an empty word", "write one of those")
    mean, std = (tuple(map(float, re.findall(_NUMBER, numbers))) for numbers in found.groups())
    return Normalisation(mean, std)


def shown(mean: Sequence[float], std: Sequence[float]) -> str:
    """As notes have it.

    >>> shown((0.5,), (0.25,))
    'mean 0.5, std 0.25'
    """
    return "mean {}, std {}".format(*(", ".join(f"{value:g}" for value in values) for values in (mean, std)))
