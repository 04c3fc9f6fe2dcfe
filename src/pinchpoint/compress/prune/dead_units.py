"""Whether what is cut with a unit reads that unit and nothing else: tried out, whatever happens to channels on the way.

A graph of layers knows no shuffled, mirrored or indexed channels. So before columns are taken for a unit's own, the unit's
rows are set to zero and the layer that reads them is watched: at those channels it must be given the same for every input.
Weights are drawn anew each time, without signs, so that no activation hides a channel, and half of every group's units are
zero in each trial, drawn by chance: two channels that were taken for one another would have to be drawn alike every time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pinchpoint.compress.checks import answers
from pinchpoint.compress.layout import SelectsChannels
from pinchpoint.compress.prune.masks import forget_channels
from pinchpoint.compress.prune.units import Found, Group, Slice, skipped
from pinchpoint.measure.weights import computed_tensors, float64_copy

REORDERED = "its channels are reordered or mixed before {reader} reads them"
"""Why a group cannot be removed, and why only its rows are masked."""

_SMALL_INPUT = 4096
"""Numbers of an input up to which many trials cost next to nothing."""
_SAME = 1e-5
"""Of a channel's largest value: what averages of one constant differ by in float32."""


@dataclass(frozen=True)
class _Reader:
    """A slice of a module that reads the units, and along which axis of its input."""

    group: str
    module: str
    part: Slice
    axis: int


def traced_to_readers(model: nn.Module, found: Found, input_shape: tuple[int, ...], *, removable: bool) -> Found:
    """The groups whose columns are proved to read their units alone.

    Of the others only rows and biases go, and what normalises them; where units are to be removed, or where a filter a
    channel is coupled to them, they are left alone.

    Args:
        model: is not changed.
        found: groups of filters.
        input_shape: of one input, without the batch.
        removable: whether units are to be removed.
    """
    readers = [reader for group in found.groups for reader in _readers(model, group)]
    wrong = _wrong(model, found.groups, readers, input_shape)
    if not wrong:
        return found
    groups, left, modules = [], list(found.left), dict(model.named_modules())
    for group in found.groups:
        unproved = [reader for reader in wrong if reader.group == group.name]
        coupled = any(_is_depthwise(modules[reader.module]) for reader in unproved)
        if not unproved:
            groups.append(group)
        elif removable or coupled:
            reason = REORDERED.format(reader=unproved[0].module)
            left += [skipped(name, modules[name], reason) for name in dict.fromkeys((*group.members, group.name))]
        else:
            groups.append(_rows_only(modules, group, unproved))
    return Found(tuple(groups), tuple(left))


def _rows_only(modules: dict[str, nn.Module], group: Group, unproved: Sequence[_Reader]) -> Group:
    """The group without the columns of any layer, and without what is not proved."""
    wrong = {id(reader.part) for reader in unproved}
    columns = {id(reader.part) for reader in _readers_of(modules, group) if _is_column(modules[reader.module])}
    return replace(group, slices=tuple(part for part in group.slices if id(part) not in wrong | columns))


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and not _is_depthwise(module)


def _is_column(module: nn.Module) -> bool:
    return _is_plain(module) or isinstance(module, SelectsChannels)


def _readers(model: nn.Module, group: Group) -> list[_Reader]:
    return _readers_of(dict(model.named_modules()), group)


def _readers_of(modules: dict[str, nn.Module], group: Group) -> list[_Reader]:
    """Every slice of the group that reads its units."""
    readers = []
    for part in group.slices:
        if part.tensor in modules:  # selects channels; dimension 1 is its input
            if part.dim == 1:
                readers.append(_Reader(group.name, part.tensor, part, 1))
            continue
        name, _, key = part.tensor.rpartition(".")
        axis = _axis(modules[name], key, part.dim)
        if axis is not None:
            readers.append(_Reader(group.name, name, part, axis))
    return readers


def _axis(module: nn.Module, key: str, dim: int) -> int | None:
    """The axis of the module's input along which a slice of one of its tensors lies; None of its outputs."""
    if isinstance(module, nn.Linear):
        return -1 if key == "weight" and dim == 1 else None
    if isinstance(module, nn.modules.conv._ConvNd):
        reads = _is_depthwise(module) or (key == "weight" and dim == int(not module.transposed))
        return -len(module.kernel_size) - 1 if reads else None
    return 1  # batch and instance norms, PReLU


def _wrong(
    model: nn.Module, groups: Sequence[Group], readers: Sequence[_Reader], input_shape: tuple[int, ...]
) -> list[_Reader]:
    """Readers that some trial gives different inputs where their units are zero."""
    copied = float64_copy(model).float().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    small = int(torch.Size(input_shape).numel()) <= _SMALL_INPUT
    wrong: dict[int, _Reader] = {}
    selectors = [module for module in copied.modules() if isinstance(module, SelectsChannels)]
    sources = [selector.source for selector in selectors]
    for trial in range(16 if small else 8):
        _draw(copied, generator)
        for selector, source in zip(selectors, sources, strict=True):
            selector.select(selector.inputs, source)
        dead = {group.name: _half(group.units, generator) for group in groups}
        _zero_rows(copied, groups, dead)
        inputs = [torch.rand((1, *input_shape), generator=generator) for _ in range(2)]
        with _watched(copied, {reader.module for reader in readers}) as given:
            calls = []
            for x in inputs:
                given.clear()
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    copied(x.to(next(copied.parameters()).device))
                calls.append({name: list(values) for name, values in given.items()})
        for position, reader in enumerate(readers):
            if position not in wrong and not _is_dead(reader, dead[reader.group], *calls):
                wrong[position] = reader
        if trial == 0:
            columns = [(i, r) for i, r in enumerate(readers) if _is_plain(copied.get_submodule(r.module))]
            wrong |= _read_elsewhere(copied, columns, dead, inputs[0])
    return [wrong[position] for position in sorted(wrong)]


def _read_elsewhere(
    model: nn.Module, columns: Sequence[tuple[int, _Reader]], dead: dict[str, Tensor], x: Tensor
) -> dict[int, _Reader]:
    """Readers whose weight something else reads, too: columns of zeros do more than channels of zeros.

    One trial where there are none; otherwise halves are tried, and halves of those.
    """

    def run(channels: bool) -> list[Tensor]:
        copied = copy.deepcopy(model, computed_tensors(model))
        for _, reader in columns:
            lost = reader.part.indices[dead[reader.group]].flatten()
            module = copied.get_submodule(reader.module)
            if channels:
                module.register_forward_pre_hook(_without(reader.axis, lost))
            else:
                data = module.get_parameter("weight").data
                data.index_fill_(reader.part.dim, lost.to(data.device), 0.0)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return answers(copied(x.to(next(copied.parameters()).device)))

    try:
        same = all(
            torch.allclose(one, other, rtol=0, atol=_SAME * float(other.abs().max()))
            for one, other in zip(run(True), run(False), strict=True)
            if other.numel()
        )
    except (RuntimeError, IndexError):  # channels that a reader does not have
        same = False
    if same or not columns:
        return {}
    if len(columns) == 1:
        return dict(columns)
    half = len(columns) // 2
    return _read_elsewhere(model, columns[:half], dead, x) | _read_elsewhere(model, columns[half:], dead, x)


def _without(axis: int, channels: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A hook that sets channels of a module's input to zero."""
    return lambda module, args: (args[0].index_fill(axis, channels.to(args[0].device), 0.0), *args[1:])


def _half(units: int, generator: torch.Generator) -> Tensor:
    """Half of the units, by chance; of one unit none."""
    dead = torch.zeros(units, dtype=torch.bool)
    dead[torch.randperm(units, generator=generator)[: units // 2]] = True
    return dead


def _draw(model: nn.Module, generator: torch.Generator) -> None:
    """New weights without signs whose rows add up to about one; norms that shift and scale little."""
    for module in model.modules():
        norm = "Norm" in type(module).__name__
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                new = torch.rand(parameter.shape, generator=generator)
                fan_in = max(1, parameter.numel() // max(1, parameter.shape[0])) if parameter.ndim > 1 else 10
                parameter.data = (new + 0.5 if norm else new * 2 / fan_in).to(parameter.device)
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.zero_()
            module.running_var.fill_(1.0)


def _zero_rows(model: nn.Module, groups: Sequence[Group], dead: dict[str, Tensor]) -> None:
    """Weights and biases of the layers whose rows the units are, and outputs of what selects channels for them."""
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    for group in groups:
        for part in group.slices:
            if part.dim == 0 and isinstance(selector := modules.get(part.tensor), SelectsChannels):
                forget_channels(selector, 0, set(part.indices[dead[group.name]].flatten().tolist()))
        for row in group.scored:
            for own in (row.weight, row.bias):
                if own is not None and own.tensor in parameters:
                    lost = own.indices[dead[group.name]].flatten()
                    data = parameters[own.tensor].data
                    data.index_fill_(own.dim, lost.to(data.device), 0.0)


@contextmanager
def _watched(model: nn.Module, names: set[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What these modules are called with, while it is entered."""
    given: dict[str, list[Tensor]] = {}

    def watch(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        given.setdefault(name, []).append(tensors[0].clone())

    handles = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: watch(name, args, kwargs), with_kwargs=True
        )
        for name, module in model.named_modules()
        if name in names
    ]
    try:
        yield given
    finally:
        for handle in handles:
            handle.remove()


def _is_dead(reader: _Reader, dead: Tensor, first: dict[str, list[Tensor]], second: dict[str, list[Tensor]]) -> bool:
    """Whether the reader is given the same for both inputs at the channels of the dead units, at every call."""
    calls, others = first.get(reader.module, []), second.get(reader.module, [])
    channels = reader.part.indices[dead].flatten()
    if len(calls) != len(others) or not calls:
        return False
    for one, other in zip(calls, others, strict=True):
        if one.shape != other.shape or one.ndim <= max(reader.axis, -reader.axis - 1):
            return False
        if len(channels) and int(channels.max()) >= one.shape[reader.axis]:
            return False
        here, there = (value.index_select(reader.axis, channels.to(value.device)) for value in (one, other))
        if not bool(((here - there).abs() <= _SAME * torch.maximum(here.abs(), there.abs())).all()):
            return False  # a NaN is no proof
    return True
