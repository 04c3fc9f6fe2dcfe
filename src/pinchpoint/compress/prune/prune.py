"""Pruning: decide, mask, fine-tune, remove; at once or in steps."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pinchpoint.compress.checks import check_compressible
from pinchpoint.compress.prune.allocate import Allocation, Shares, allocate, check_ratio, strongest
from pinchpoint.compress.prune.cost import flop_count, latencies, parameter_count
from pinchpoint.compress.prune.criteria import Criterion
from pinchpoint.compress.prune.granularity import Entries, Method, SingularValues, Slices
from pinchpoint.compress.prune.masks import KeepPruned
from pinchpoint.compress.prune.remove import difference
from pinchpoint.compress.prune.remove import remove as remove_units
from pinchpoint.compress.prune.units import Unit
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.measure.compressibility import residual
from pinchpoint.measure.forward import own_dtype
from pinchpoint.measure.weights import computed_tensors
from pinchpoint.records import PrunedLayer, Pruning

Count = Literal["units", "parameters"]
"""What a ratio is a share of: the units that could go, or all the parameters of the network."""

FineTune = Callable[[nn.Module, Callable[[nn.Module], None]], None]
"""``fine_tune(model, after_step)`` trains in place and calls ``after_step(model)`` after each optimiser step."""


@dataclass(frozen=True)
class Pruned:
    """A pruned network.

    Attributes:
        model: a new one; the original is untouched.
        report: what was decided, and what was left alone.
        keep: call it after each optimiser step of further training, so that pruned units stay zero. It does nothing where
            they are removed.
    """

    model: nn.Module
    report: Pruning
    keep: KeepPruned


def prune(
    model: nn.Module,
    ratio: float,
    *,
    input_shape: tuple[int, ...],
    unit: Unit = "filters",
    allocation: Allocation = "residual",
    criterion: Criterion = "l2",
    q: float = 1.0,
    count: Count = "units",
    keep: Sequence[str] = (),
    remove: bool | None = None,
    steps: int = 1,
    fine_tune: FineTune | None = None,
    batch: int | None = None,
) -> Pruned:
    """Prune a copy of the model.

    Args:
        model: any module.
        ratio: the share that goes, 0 <= ratio < 1.
        input_shape: of one input, without the batch.
        unit: what goes as a whole; see ``units.Unit``.
        allocation: how the removals are spread over layers, or over groups of coupled ones: the same share of each
            (``uniform``), one threshold over scores divided by their layer's mean, for entries over the bare magnitudes
            (``global``), or the same residual in each (``residual``).
        criterion: norm by which rows and heads are ranked; see ``criteria``.
        q: of the residual ||theta - theta_k||_q / ||theta||_q of the scores.
        count: what the ratio is a share of.
        keep: layers to leave alone; patterns as in a shell, ``layer3.*``.
        remove: make the tensors smaller (filters and heads; the default there), or leave zeros.
        steps: prune in so many steps, each taking the same share of what is left.
        fine_tune: called after each step; the last time, where units are removed, with the smaller network.
        batch: time a forward pass of so many inputs, before and after.

    Returns:
        ``Pruned``. Every group keeps at least one unit; the ratio is met to within half a unit (one unit, for
        parameters).

    Raises:
        ConfigError: for an option out of range, a ratio that would empty a layer, a name that matches nothing, or where
            Torch-Pruning is needed and not installed.
        ModelError: where nothing can be pruned so, or the model does not run or cannot be traced.

    >>> model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 3))
    >>> pruned = prune(model, 0.75, input_shape=(8,))
    >>> pruned.model[0], pruned.report.met
    (Linear(in_features=8, out_features=5, bias=True), 0.75)
    """
    check_ratio(ratio)
    _check_options(unit, count, remove, steps, fine_tune)
    check_compressible(model, input_shape)
    removing = unit in ("filters", "heads") if remove is None else remove
    smaller = copy.deepcopy(model, computed_tensors(model))
    kept = _names(model, keep)
    method: Method
    if unit == "singular values":
        method = SingularValues(smaller, kept)
    elif unit == "entries":
        method = Entries(smaller, kept)
    else:
        method = Slices(smaller, unit, input_shape, kept, criterion, removing)
    if not method.members:
        raise _nothing(unit, method)
    keeper = KeepPruned()
    for step in range(1, steps + 1):
        asked = 1.0 - (1.0 - ratio) ** (step / steps) if step < steps else ratio
        scores = method.scores(smaller)
        shares = allocate(
            scores,
            asked,
            allocation,
            q=q,
            normalise=unit != "entries",
            size=method.size if count == "parameters" else None,
        )
        stay = {name: strongest(scores[name], k) for name, k in shares.kept.items()}
        keeper = method.zero(smaller, stay)
        if removing and step == steps:
            assert isinstance(method, Slices)
            if (problem := difference(smaller, method.groups, stay, input_shape)) is not None:
                raise ModelError("what is removed must be what a mask takes away", problem, "use remove=False")
            remove_units(smaller, method.groups, stay)
            keeper = KeepPruned()
        if fine_tune is not None:
            fine_tune(smaller, keeper)
    before, after = (_to_be_timed(network) for network in (model, smaller))
    seconds = latencies([before, after], input_shape, batch) if batch is not None else None
    report = Pruning(
        unit=unit,
        allocation=allocation,
        criterion=criterion if isinstance(method, Slices) else None,
        q=q,
        count=count,
        ratio=ratio,
        met=_met(method, scores, shares, count),
        threshold=shares.price,
        removed=removing,
        steps=steps,
        layers=_layers(method, scores, shares, q),
        left=method.left,
        parameters_before=parameter_count(model),
        parameters_after=method.size(shares.kept),
        flops_before=flop_count(before, input_shape),
        flops_after=flop_count(after, input_shape),
        batch=batch,
        seconds_before=seconds[0] if seconds else None,
        seconds_after=seconds[1] if seconds else None,
    )
    return Pruned(smaller, report, keeper)


def _to_be_timed(model: nn.Module) -> nn.Module:
    """A copy in eval mode; in float32 where it does not run in half precision here."""
    copied = copy.deepcopy(model, computed_tensors(model)).eval()
    on_processor = next(copied.parameters()).device.type == "cpu"
    return copied.float() if on_processor and own_dtype(copied) in (torch.float16, torch.bfloat16) else copied


def _check_options(unit: str, count: str, remove: bool | None, steps: int, fine_tune: FineTune | None) -> None:
    for name, value, choices in (("unit", unit, get_args(Unit)), ("count", count, get_args(Count))):
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}", value, "choose one")
    if steps < 1:
        raise ConfigError("pruning takes one step or more", steps, "use steps=1")
    if remove and unit not in ("filters", "heads"):
        raise ConfigError("only filters and heads can be removed", unit, "leave remove out, or use unit='filters'")
    if fine_tune is not None and unit == "singular values":
        raise ConfigError(
            "truncated matrices would regain their rank in training, so they are not fine-tuned",
            "fine_tune",
            "train the low-rank layers of pinchpoint.compress.factorize instead",
        )


def _names(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The modules that the patterns match."""
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                "keep must name layers of the model", pattern, f"use names such as {', '.join(names[:3])}"
            )
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _nothing(unit: str, method: Method) -> ModelError:
    seen = f"none ({method.left[0].name}: {method.left[0].reason})" if method.left else "none"
    return ModelError(f"a model must have a layer that can be pruned by {unit}", seen, "choose another unit")


def _met(method: Method, scores: Mapping[str, Tensor], shares: Shares, count: Count) -> float:
    whole = {name: len(own) for name, own in scores.items()}
    if count == "parameters":
        return 1.0 - method.size(shares.kept) / method.size(whole)
    return 1.0 - sum(shares.kept.values()) / sum(whole.values())


def _layers(method: Method, scores: Mapping[str, Tensor], shares: Shares, q: float) -> list[PrunedLayer]:
    return [
        PrunedLayer(
            name=name,
            members=method.members[name],
            units=len(own),
            kept=shares.kept[name],
            residual=float(residual(own, shares.kept[name], q)),
        )
        for name, own in scores.items()
    ]
