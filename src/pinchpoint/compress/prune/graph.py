"""Which rows and columns of a network's layers are coupled, from Torch-Pruning's dependency graph.

Only the graph is taken from there; scores, decisions and the removal itself are made here.

Source: G. Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023; its package ``torch_pruning``.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pinchpoint.compress.layout import SelectsChannels
from pinchpoint.compress.prune.units import OUTPUTS, Found, Group, Scored, Slice, prunable, skipped
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.measure.attention import attention
from pinchpoint.measure.forward import own_dtype
from pinchpoint.measure.weights import computed_tensors
from pinchpoint.records import Skipped

NORMALISES = "normalises over"
_STEPS = 4
"""Indices of a walk through the graph for each unit and node, at most; those of a ResNet-50 take fewer than one. Where a
fully connected layer reads flattened pixels, its inputs for each node."""

_Conv = nn.modules.conv._ConvNd
_Norm = nn.modules.batchnorm._NormBase  # batch and instance norm: each channel by itself


def filters(model: nn.Module, input_shape: tuple[int, ...], keep: Sequence[str]) -> Found:
    """Groups of coupled rows: a convolution's filters with the batch norm after it and the columns that read them, a
    residual stream with all layers that write to it, the hidden units of a transformer's MLP.

    Args:
        model: is not changed.
        input_shape: of one input, without the batch.
        keep: names of layers whose rows stay.

    Returns:
        the groups, and every layer whose rows cannot go, with the reason.

    Raises:
        ConfigError: where Torch-Pruning is not installed.
        ModelError: where it cannot follow the model.
    """
    traced = _with_convolutions(model)
    graph = _graph(traced, input_shape)
    names = {module: name for name, module in traced.named_modules()}
    modules, left = prunable(model)
    if not modules:
        return Found((), tuple(left))
    fixed = {skip.name: f"{skip.name} stays: {skip.reason}" for skip in left}
    within = {id(part.module): name for name, module in traced.named_modules() for part in attention(name, module)}
    selectors = {name for name, module in model.named_modules() if isinstance(module, SelectsChannels)}
    groups: list[Group] = []
    settled: set[str] = set()
    for name in modules:
        if name in settled:
            continue
        module = traced.get_submodule(name)
        if module not in graph.module2node:
            left.append(skipped(name, module, "it is not called, or not as a layer"))
            continue
        if id(module) in within and not _is_output(module, traced.get_submodule(within[id(module)])):
            left.append(skipped(name, module, "attention is pruned by whole heads (unit='heads')"))
            continue
        members, found = _group(graph, name, module, names, selectors, fixed)
        kept = [member for member in members if member in keep]
        if kept:
            coupled = f"its rows are coupled to those of {kept[0]}, named in keep"
            found = "named in keep" if members == (kept[0],) else coupled
        settled |= {name, *members}
        if isinstance(found, Group):
            groups.append(found)
        else:
            left += [skipped(member, model.get_submodule(member), found) for member in members]
    return Found(tuple(groups), tuple(_in_order(left, model)))


def _in_order(left: list[Skipped], model: nn.Module) -> list[Skipped]:
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}
    return sorted(left, key=lambda one: order[one.name])


def _is_output(module: nn.Module, parent: nn.Module) -> bool:
    """Whether it is attention's output projection, whose rows are no heads."""
    return any(getattr(parent, key, None) is module for key in ("proj", "out_proj", "c_proj"))


def _with_convolutions(model: nn.Module) -> nn.Module:
    """A copy in which modules that select channels are convolutions, which the graph knows."""
    copied = copy.deepcopy(model, computed_tensors(model)).eval()
    if own_dtype(copied) in (torch.float16, torch.bfloat16):
        copied.float()  # not every operation knows half precision
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    for name, module in list(copied.named_modules()):
        if isinstance(module, SelectsChannels):
            convolution = nn.Conv2d(module.inputs, len(module.source), 1, stride=module.stride, bias=False)
            first = next(copied.parameters())
            copied.set_submodule(name, convolution.to(device=first.device, dtype=first.dtype))
    return copied


def _graph(model: nn.Module, input_shape: tuple[int, ...]) -> Any:
    if importlib.util.find_spec("torch_pruning") is None:
        raise ConfigError(
            "pruning coupled filters needs torch-pruning",
            "an installation without it",
            "pip install 'pinchpoint[prune]'",
        )
    import torch_pruning  # type: ignore[import-untyped]

    inputs = torch.zeros((1, *input_shape), dtype=own_dtype(model), device=next(model.parameters()).device)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph()
            return graph.build_dependency(model, inputs, forward_fn=_forward, verbose=False)
    except ModelError:
        raise
    except Exception as error:  # whatever the model or the tracer says
        raise _untraceable(f"{type(error).__name__}: {error}") from None


def _forward(model: nn.Module, inputs: Tensor) -> Any:
    outputs = model(inputs)
    if not any(isinstance(leaf, Tensor) and leaf.grad_fn is not None for leaf in tree_leaves(outputs)):
        raise _untraceable("outputs from which autograd leads back to no layer")
    return outputs


def _untraceable(seen: str) -> ModelError:
    remedy = "check input_shape, or prune by unit='rows', which needs no graph"
    return ModelError("a model must be one that torch-pruning can trace", seen, remedy)


def _group(
    graph: Any,
    name: str,
    module: nn.Module,
    names: dict[nn.Module, str],
    selectors: set[str],
    fixed: dict[str, str],
) -> tuple[tuple[str, ...], Group | str]:
    """The layers whose rows are coupled to one layer's, and their group, or why it cannot be pruned."""
    units = graph.get_out_channels(module)
    pruner = graph.get_pruner_of_module(module)
    try:
        with warnings.catch_warnings(), _limited(_indices(graph, units)):
            warnings.simplefilter("ignore")
            items = list(graph.get_pruning_group(module, pruner.prune_out_channels, list(range(units))))
    except _TooLong as error:
        met = [names[target] for target in error.layers if isinstance(target, nn.Linear | _Conv) and target in names]
        return tuple(dict.fromkeys((name, *met))), "torch-pruning's walk through what is coupled to it does not end"
    except Exception as error:  # as above
        return (name,), f"torch-pruning cannot group it ({type(error).__name__})"
    slices: list[Slice] = []
    scored: list[Scored] = []
    rowed: list[str] = []
    reasons: list[str] = []
    for item in items:
        target, rows = item.dep.target.module, bool(graph.is_out_channel_pruning_fn(item.dep.handler))
        where, indices = names.get(target, ""), _by_unit(item.idxs, item.root_idxs, units)
        has_rows = rows and isinstance(target, nn.Linear | _Conv) and where not in selectors
        if has_rows:
            rowed.append(where)
            if not graph.module2node[target].outputs:
                reasons.append(OUTPUTS)
        if where in selectors:
            touched: list[Slice] | str = [Slice(where, 0 if rows else 1, indices)]
        else:
            touched = fixed.get(where) or _slices(where, target, rows, indices)
            if has_rows and not touched:
                touched = "it is the whole model"
        if isinstance(touched, str):
            reasons.append(touched)
        elif any(_beyond(part, target) for part in touched):
            reasons.append(f"torch-pruning counts units at {where} that it does not have")
        elif touched and len(indices) < units:
            reasons.append("its units are not spread evenly over a layer that reads them")
        else:
            slices += touched
            if has_rows:
                scored.append(Scored(where, *touched))
    members = tuple(dict.fromkeys((name, *rowed)))
    reasons.sort(key=lambda reason: reason != OUTPUTS and NORMALISES not in reason)  # the plainest first
    return members, reasons[0] if reasons else Group(name, units, tuple(slices), tuple(scored))


class _TooLong(Exception):
    """A walk through the graph that goes on for longer than any that ends, and the modules whose rows it has met."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers


def _indices(graph: Any, units: int) -> int:
    """How many indices a walk may take."""
    widest = max((module.in_features for module in graph.module2node if isinstance(module, nn.Linear)), default=0)
    return len(graph.module2node) * max(_STEPS * units, widest)


@contextmanager
def _limited(indices: int) -> Iterator[None]:
    """Walks of torch-pruning end after so many indices: in some graphs, torchvision's Swin among them, these multiply at
    each reshape. A walk that ends takes one for each unit and node that it meets, or a few.
    """
    import torch_pruning

    walking = torch_pruning.dependency.graph

    original = walking.Group

    class Limited(original):  # type: ignore[misc, valid-type]
        """A group that counts what is added to it."""

        counted = 0

        def add_dep(self, dep: Any, idxs: Any) -> None:
            self.counted += len(idxs)
            if self.counted > indices:
                raise _TooLong([item.dep.target.module for item in self.items if _makes_rows(item.dep)])
            super().add_dep(dep, idxs)

    walking.Group = Limited
    try:
        yield
    finally:
        walking.Group = original


def _makes_rows(dependency: Any) -> bool:
    return bool(dependency.handler.__name__ == "prune_out_channels")


def _beyond(part: Slice, target: object) -> bool:
    """Whether a slice has indices that its tensor does not."""
    if not isinstance(target, nn.Module) or part.indices.numel() == 0:
        return False
    tensor = getattr(target, part.tensor.rsplit(".", 1)[-1], None)
    return isinstance(tensor, Tensor) and int(part.indices.max()) >= tensor.shape[part.dim]


def _by_unit(indices: Sequence[int], roots: Sequence[int], units: int) -> Tensor:
    """Row u: the indices that go with unit u; no rows where units have different numbers of them."""
    table: list[list[int]] = [[] for _ in range(units)]
    for index, root in zip(indices, roots, strict=True):
        table[root].append(index)
    if len({len(row) for row in table}) > 1:
        return torch.zeros(0, 0, dtype=torch.long)
    return torch.tensor([sorted(row) for row in table], dtype=torch.long)


def _slices(where: str, target: object, rows: bool, indices: Tensor) -> list[Slice] | str:
    """The parts of a module's tensors that go with the units, or why they cannot."""
    if isinstance(target, nn.Parameter):
        return f"a parameter of shape {tuple(target.shape)} outside any layer has entries of them"
    if type(target).__name__ == "_OutputOp":
        return OUTPUTS
    if not where:  # additions, activations, reshapes: nothing is stored
        return []
    if "Norm" in type(target).__name__ and not isinstance(target, _Norm):
        return f"{type(target).__name__} at {where} {NORMALISES} its units"
    if isinstance(target, _Norm):
        stored = ("weight", "bias", "running_mean", "running_var")
        return [Slice(f"{where}.{key}", 0, indices) for key in stored if getattr(target, key) is not None]
    if isinstance(target, nn.PReLU):
        return [Slice(f"{where}.weight", 0, indices)] if target.num_parameters > 1 else []
    transposed = isinstance(target, _Conv) and target.transposed
    if isinstance(target, _Conv) and target.groups > 1:
        if not target.groups == target.in_channels == target.out_channels:
            return f"{where} is a grouped convolution"
        rows, transposed = True, False  # a filter a channel: rows and columns are one, and stand in dimension 0
    elif not isinstance(target, nn.Linear | _Conv):
        return f"{where}, a {type(target).__name__}, has entries of them" if _parameters(target) else []
    found = [Slice(f"{where}.weight", int(rows == transposed), indices)]
    if rows and target.bias is not None:
        found.append(Slice(f"{where}.bias", 0, indices))
    return found


def _parameters(target: object) -> list[nn.Parameter]:
    return list(target.parameters()) if isinstance(target, nn.Module) else []
