"""How long stages will take, from a few steps of each: a timed probe of a network that has hardly been trained.

What depends on the trained network is taken to be half-way: half of the samples stand at the middle of a curve, so an attack
on those that still stand costs what it costs on half of them. Training is taken to go on to its last epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from pinchpoint.attack import Threat, apgd, square
from pinchpoint.auditing import steps
from pinchpoint.auditing.config import ThreatConfig
from pinchpoint.compress import LowRankLinear
from pinchpoint.data import load
from pinchpoint.errors import ModelError
from pinchpoint.evaluate import logits_of
from pinchpoint.evaluate.logits import BATCH
from pinchpoint.models import build
from pinchpoint.models.build import ModelConfig
from pinchpoint.models.retrieval import load_captions
from pinchpoint.recipes.recipe import Recipe
from pinchpoint.study.config.cell import Cell
from pinchpoint.study.cost.probe_training import ENOUGH, training, tuning
from pinchpoint.study.graph.stages import Stage
from pinchpoint.utils.device import device_of

_LARGE = 3_000_000
"""Entries of all matrices above which singular values and bounds are not tried out, since that cannot be broken off."""
_STAGE = 0.02
"""Seconds that any stage takes: reading the model, writing the record."""


def seconds(stage: Stage) -> float | None:
    """How long a stage will take; None where that cannot be told beforehand.

    Raises:
        PinchpointError: where the stage cannot work at all.
    """
    cell = stage.cell
    before = torch.get_num_threads()
    torch.set_num_threads(cell.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            took = _probe(stage)
    finally:
        torch.set_num_threads(before)
    return None if took is None else took + _STAGE


def _probe(stage: Stage) -> float | None:
    cell = stage.cell
    if stage.kind == "train":
        return training(cell, load(cell.data), cell.train)
    if stage.kind == "compress":
        return tuning(cell)
    if stage.kind == "transfer":
        assert cell.transfer is not None
        data, config = load(cell.transfer.data), cell.transfer.train
        plain = Recipe(model=cell.model, device=cell.device, threads=cell.threads)
        if cell.transfer.mode == "full":
            return training(plain, data, config)
        head = plain.model_copy(update={"model": ModelConfig(hidden=())})  # on pixels in the place of features
        return training(head, data, config) + _Judged(cell).forward(len(data.train) + len(data.validation))
    judged = _Judged(cell)
    return _KINDS[stage.kind](judged, next((one for one in cell.audit.threats if one.norm == stage.norm), None))


@dataclass(frozen=True)
class _Affine:
    """Seconds of something done to a number of samples, in batches: so much a batch and so much a sample."""

    batch: float
    sample: float

    def __call__(self, samples: float) -> float:
        return math.ceil(samples / BATCH) * self.batch + samples * self.sample


class _Judged:
    """A cell's network, as it is before training, on the first test samples."""

    def __init__(self, cell: Cell) -> None:
        self.config, self.data = cell.audit, load(cell.judged_data)
        self.device = device_of(cell.device)
        self.model = build(cell.model, self.data.input_shape, self.data.classes, seed=0).to(self.device).eval()
        self.count = min(cell.audit.samples or len(self.data.test), len(self.data.test))
        self.x, self.y = (tensor.to(self.device) for tensor in self.data.test.tensors(min(self.count, BATCH)))
        self.moved = (self.x + 0.05 * torch.rand_like(self.x)).clamp(0.0, 1.0)
        products = [one for one in self.model.modules() if isinstance(one, LowRankLinear)]
        size = sum(one.in_features * one.out_features for one in products)
        self.large = size + sum(parameter.numel() for parameter in self.model.parameters()) > _LARGE

    @cached_property
    def forward(self) -> _Affine:
        """Logits."""
        return self.affine(lambda n: logits_of(self.model, self.x[:n]))

    def step(self, threat: ThreatConfig) -> _Affine:
        """A step of AutoPGD."""
        ball = Threat(threat.norm, threat.eps or 1.0)

        def attack(n: int) -> None:
            apgd(self.model, self.x[:n], self.y[:n], ball, steps=_TRIED, drop_fallen=False)

        return self.affine(attack, _TRIED)

    def affine(self, work: Callable[[int], object], times: int = 1) -> _Affine:
        """What one of the ``times`` that ``work(n)`` does costs, tried on more and more samples."""
        size, before = min(16, len(self.x)), None
        self.took(work, size)
        while True:
            took = self.took(work, size) / times
            if size == len(self.x) or took * times > ENOUGH / 4:
                break
            before, size = (size, took), min(4 * size, len(self.x))
        if before is None:
            return _Affine(0.0, took / size)
        each = max(0.0, (took - before[1]) / (size - before[0]))
        return _Affine(max(0.0, took - each * size), each)

    def took(self, work: Callable[..., object], *arguments: object) -> float:
        """Seconds."""
        self.wait()
        begun = time.perf_counter()
        work(*arguments)
        self.wait()
        return time.perf_counter() - begun

    def tried(self, work: Callable[..., object], *arguments: object) -> float:
        """Seconds, at the second time where that is not too long to wait for: the first may load much."""
        first = self.took(work, *arguments)
        return first if first > 10 * ENOUGH else min(first, self.took(work, *arguments))

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


_TRIED = 10
"""Steps of an attack that is tried."""


def _profile(judged: _Judged, threat: ThreatConfig | None) -> float | None:
    if judged.large:
        return None
    few = judged.x[:16], judged.y[:16]
    return judged.tried(steps.measure, judged.model, *few, judged.config) + judged.forward(judged.count)


def _bound(judged: _Judged, threat: ThreatConfig | None) -> float | None:
    """From a few steps of its optimisations; never more than ``bound_seconds`` allows for each of the two bounds."""
    assert threat is not None
    config = judged.config
    most = 0.0 if threat.norm == "l1" else 2 * config.bound_seconds
    if judged.large:
        return most

    def some(count: int) -> float:
        short = {"bound_steps": count, "bound_seconds": min(config.bound_seconds, 2.0)}
        few = judged.x[:16], judged.y[:16]
        return judged.tried(steps.bound, judged.model, *few, threat, config.model_copy(update=short))

    try:
        first = some(min(1, config.bound_steps))
        step = (some(3) - first) / 2 if config.bound_steps > 3 else 0.0
    except ModelError:  # not to be bounded: the stage is skipped
        return 0.0
    return first + min(max(0.0, step) * config.bound_steps, most) + 2 * judged.forward(judged.count)


def _attack(judged: _Judged, threat: ThreatConfig | None) -> float:
    assert threat is not None
    config, step, count = judged.config, judged.step(threat), judged.count
    budgets = sorted({*threat.curve, threat.eps})
    total = config.steps * step(count)  # the largest loss: nothing is dropped
    for place, eps in enumerate(budgets, start=1):
        standing = count * (1.0 - place / (len(budgets) + 1))
        total += 2 * (config.steps if eps == threat.eps else config.curve_steps) * step(standing)
    return total


def _universal(judged: _Judged, threat: ThreatConfig | None) -> float:
    assert threat is not None
    return judged.config.universal_steps * judged.step(threat)(50) + judged.forward(len(judged.data.train))


def _query(judged: _Judged, threat: ThreatConfig | None) -> float:
    assert threat is not None
    ball = threat.threat()

    def ask(n: int) -> None:
        square(judged.model, judged.x[:n], judged.y[:n], ball, queries=_TRIED)

    return judged.config.queries * judged.affine(ask, _TRIED)(judged.count / 2)


def _transferred(judged: _Judged, threat: ThreatConfig | None) -> float:
    """The surrogate is taken to be as large as the network itself."""
    assert threat is not None
    return judged.config.steps * judged.step(threat)(judged.count) + judged.forward(judged.count)


def _mechanism(judged: _Judged, threat: ThreatConfig | None) -> float:
    assert threat is not None
    count, few = min(judged.config.traced_samples, judged.count), min(256, len(judged.x))
    try:
        took = judged.tried(steps.explain, judged.model, judged.x[:few], judged.moved[:few], threat, judged.config)
    except ModelError:
        return 0.0
    return took * max(1.0, count / few)


def _pictures(judged: _Judged, threat: ThreatConfig | None) -> float:
    assert threat is not None
    try:
        return judged.tried(steps.draw, judged.model, judged.x, judged.moved, judged.y, threat, judged.config)
    except ModelError:
        return 0.0


def _retrieval(judged: _Judged, threat: ThreatConfig | None) -> float:
    """A caption is taken to cost what an image does."""
    captions = judged.config.captions
    assert captions is not None
    found = load_captions(Path(captions.folder).expanduser(), captions.split)
    return judged.forward(len(found.images) + len(found.captions))


_KINDS: dict[str, Callable[[_Judged, ThreatConfig | None], float | None]] = {
    "profile": _profile,
    "bound": _bound,
    "attack": _attack,
    "universal": _universal,
    "query": _query,
    "transferred": _transferred,
    "mechanism": _mechanism,
    "pictures": _pictures,
    "retrieval": _retrieval,
}
