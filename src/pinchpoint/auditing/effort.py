"""How much of what takes long is done: what inputs of this size and the time there is allow."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.attack.gradient import eval_mode, value_and_gradient
from pinchpoint.attack.objectives import cross_entropy

_PIXELS = 3 * 32 * 32
"""Input numbers up to which nothing is spared; larger images get fewer samples where many passes are needed."""
_LOOK, _DRAW, _FOOL, _CHECK = 0.3, 0.05, 0.1, 0.1
"""Shares of the time that is left for the first look, planes, universal perturbations and signs of masked gradients."""
_PLANES, _TOGETHER = 2 / 3, 50
"""Planes in pixels, where a point takes a third of a pass; samples in each step of a universal perturbation."""
_CHECKING = 300
"""Passes through the model for a sample in which signs of masked gradients are sought, about; most are queries."""
_TRIED = 0.4
"""Share of a budget that a trial may take."""
_FEWER = ((1, 1), (2, 1), (4, 1), (4, 2), (8, 2), (8, 4))
"""What the first look comes down to, step by step: samples and attack steps by these factors fewer."""
_LEAST = 8
TUNED = 3500
"""Passes through the model that a trial's fine-tuning takes, each of one sample forward and back, about."""


@dataclass(frozen=True)
class Effort:
    """How much is done of what takes long.

    Attributes:
        looked: samples, the first ones, that the first look attacks; their perturbations are followed through the network.
        steps: AutoPGD steps of that.
        search_steps: steps with each of two objectives of the search for the smallest budget of each sample.
        plane: points along each side of a decision plane.
        fitted: training samples that the universal perturbation is fitted on in ``universal_steps`` steps of 50 of them;
            none where there is no time for it.
        checked: samples on which signs of masked gradients are sought; none where there is no time for it.
        tried: samples a trial is judged on, at most, and no fewer than are looked at; none where there is no time for it.
        standard: whether what the quick ensemble leaves is attacked by the standard one.
        pass_seconds: what one sample takes through the model, forward and back; 0 where nobody asked.
    """

    looked: int = 128
    steps: int = 50
    search_steps: int = 30
    plane: int = 41
    fitted: int = 512
    universal_steps: int = 30
    checked: int = 32
    tried: int = 1000
    standard: bool = True
    pass_seconds: float = 0.0

    @classmethod
    def of(cls, input_shape: Sequence[int], standard: bool = True) -> Effort:
        """What fits inputs of this size, whatever time it takes.

        >>> Effort.of((3, 32, 32)).looked, Effort.of((3, 224, 224)).looked
        (128, 32)
        """
        scale = min(1.0, _PIXELS / math.prod(input_shape))
        return cls(
            looked=max(32, round(128 * scale)),
            fitted=max(64, round(512 * scale)),
            universal_steps=max(10, round(30 * scale)),
            checked=max(8, round(32 * scale)),
            standard=standard,
        )

    def within(self, seconds: float, pass_seconds: float, threats: int) -> Effort:
        """What fits into this time as well, under so many threats.

        >>> Effort().within(600.0, 0.001, 1) == replace(Effort(), pass_seconds=0.001, tried=1000)
        True
        >>> few = Effort().within(600.0, 0.08, 1)
        >>> few.looked, few.steps, few.search_steps, few.plane, few.universal_steps
        (32, 25, 15, 21, 15)
        >>> over = Effort().within(-3.0, 0.08, 1)  # the time was up before
        >>> over.looked, over.universal_steps, over.checked, over.tried
        (16, 0, 0, 0)
        """
        if math.isinf(seconds):
            return replace(self, pass_seconds=pass_seconds)
        passes = max(0.0, seconds) / max(pass_seconds, 1e-9) / threats
        fewer = self
        for samples, steps in _FEWER:
            fewer = replace(
                self,
                looked=max(_LEAST, self.looked // samples),
                steps=self.steps // steps,
                search_steps=self.search_steps // steps,
            )
            if fewer.looked * (fewer.steps + 2 * fewer.search_steps) <= _LOOK * passes:
                break
        plane = self.plane
        while plane > _LEAST and _PLANES * plane**2 > _DRAW * passes:
            plane = plane // 4 * 2 + 1  # odd: the sample is in the middle
        universal_steps = _halved(self.universal_steps, _FOOL * passes / _TOGETHER, _LEAST // 2)
        checked = _halved(self.checked, _CHECK * passes / _CHECKING, _LEAST // 2)
        tried = int((_TRIED * seconds / max(pass_seconds, 1e-9) / 2 - TUNED) / self._judging(threats))
        tried = min(self.tried, tried) if tried >= fewer.looked else 0  # those looked at are searched in any case
        return replace(
            fewer,
            plane=plane,
            fitted=self.fitted if universal_steps else 0,
            universal_steps=universal_steps,
            checked=checked,
            tried=tried,
            pass_seconds=pass_seconds,
        )

    @property
    def check_seconds(self) -> float:
        """What looking for signs of masked gradients takes, under one threat."""
        return self.pass_seconds * self.checked * _CHECKING

    def trial_seconds(self, samples: int, threats: int) -> float:
        """What a trial on so many samples takes: two copies tuned and judged."""
        return 2 * self.pass_seconds * (TUNED + samples * self._judging(threats))

    def _judging(self, threats: int) -> int:
        return 2 * self.search_steps * threats


def _halved(count: int, most: float, least: int) -> int:
    """The count, halved until it is small enough; 0 where fewer than ``least`` would be left."""
    while count > most:
        count //= 2
    return count if count >= least else 0


@contextmanager
def laid_out(model: nn.Module, x: Float[Tensor, "batch *shape"]) -> Iterator[None]:
    """Within, images reach a model with depthwise convolutions channels last, which takes half the time on a processor."""
    deep = any(isinstance(one, nn.Conv2d) and 1 < one.groups == one.in_channels for one in model.modules())
    if not deep or x.ndim != 4 or x.device.type != "cpu":
        yield
        return
    handle = model.register_forward_pre_hook(_channels_last)
    try:
        yield
    finally:
        handle.remove()


def _channels_last(model: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(
        one.contiguous(memory_format=torch.channels_last) if isinstance(one, Tensor) and one.ndim == 4 else one
        for one in inputs
    )


def pass_seconds(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """What one sample takes through the model, forward and back: a few are sent, twice; the second time counts."""
    with eval_mode(model):
        took = 0.0
        for _ in range(2):
            start = time.perf_counter()
            _, gradient, _ = value_and_gradient(model, x, y, cross_entropy)
            float(gradient.flatten()[0])  # waits for a GPU
            took = time.perf_counter() - start
    return took / len(x)
