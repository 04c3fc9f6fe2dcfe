"""The three ways of taking something away, with one face: slices of tensors, singular values, entries.

Each has ``members``, the layers of each of its groups, and ``left``, the layers left alone. ``scores(model)`` are the units'
importance; ``zero(model, stay)`` sets the others to zero in place and returns what keeps them so; ``size(kept)`` is how many
parameters the network has when each group keeps so many units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.compress.prune.cost import parameter_count
from pinchpoint.compress.prune.criteria import Criterion, entry_scores, singular_scores, unit_scores
from pinchpoint.compress.prune.dead_units import traced_to_readers
from pinchpoint.compress.prune.graph import filters
from pinchpoint.compress.prune.masks import KeepPruned, mask
from pinchpoint.compress.prune.remove import sound
from pinchpoint.compress.prune.units import Group, Stay, Unit, Weighted, heads, prunable, rows, skipped
from pinchpoint.measure.layers import linear_modules
from pinchpoint.measure.shapes import forward_pass
from pinchpoint.measure.weights import rows_of
from pinchpoint.records import Skipped


class Slices:
    """Filters, rows or heads.

    Args:
        model: any module.
        unit: ``filters``, ``rows`` or ``heads``.
        input_shape: of one input, without the batch.
        keep: names of layers to leave alone.
        criterion: see ``criteria.unit_scores``.
        removable: leave alone, too, what can be masked but not removed.
    """

    def __init__(
        self,
        model: nn.Module,
        unit: Unit,
        input_shape: tuple[int, ...],
        keep: Sequence[str],
        criterion: Criterion,
        removable: bool,
    ) -> None:
        self.criterion = criterion
        run = forward_pass(model, input_shape, find_folds=True)
        self.folds = run.folds
        if unit == "filters":
            found = traced_to_readers(model, filters(model, input_shape, keep), input_shape, removable=removable)
        elif unit == "rows":
            called = [name for name, _ in linear_modules(model) if name in run.order]
            found = rows(model, run.folds, max(called, key=run.order.__getitem__, default=""), keep)
        else:
            found = heads(model, keep)
        if removable:
            found = sound(model, found, input_shape)
        self.groups: tuple[Group, ...] = found.groups
        self.left = list(found.left)
        self.members = {group.name: list(group.members) for group in found.groups}
        self._whole = parameter_count(model)
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    def scores(self, model: nn.Module) -> dict[str, Float[Tensor, "_"]]:
        return unit_scores(model, self.groups, self.folds, self.criterion)

    def zero(self, model: nn.Module, stay: Stay) -> KeepPruned:
        return mask(model, self.groups, stay)

    def size(self, kept: Mapping[str, int]) -> int:
        left: dict[str, list[int]] = {}
        for group in self.groups:
            for part in group.slices:
                if part.tensor in self._shapes:
                    shape = left.setdefault(part.tensor, list(self._shapes[part.tensor]))
                    shape[part.dim] -= (group.units - kept[group.name]) * part.indices.shape[1]
        before = sum(_product(self._shapes[name]) for name in left)
        return self._whole - before + sum(_product(shape) for shape in left.values())


class SingularValues:
    """Each layer's matrix truncated to its largest singular values, in dense form."""

    def __init__(self, model: nn.Module, keep: Sequence[str]) -> None:
        self._modules, self.left = _by_itself(model, keep)
        self.members = {name: [name] for name in self._modules}
        self._whole = parameter_count(model)
        self._matrices = {name: tuple(rows_of(m, m.weight).shape) for name, m in self._modules.items()}

    def scores(self, model: nn.Module) -> dict[str, Float[Tensor, "_"]]:
        return singular_scores({name: model.get_submodule(name) for name in self._modules})

    def zero(self, model: nn.Module, stay: Stay) -> KeepPruned:
        with torch.no_grad():
            for name, own in stay.items():
                if bool(own.all()):
                    continue
                weight = model.get_parameter(f"{name}.weight")
                u, sigma, vh = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
                rank = int(own.sum())
                weight.copy_(((u[:, :rank] * sigma[:rank]) @ vh[:rank]).reshape(weight.shape))
        return KeepPruned()

    def size(self, kept: Mapping[str, int]) -> int:
        """As if A and B were stored wherever that is less than the matrix."""
        saved = 0
        for name, (h, d) in self._matrices.items():
            saved += max(0, h * d - kept[name] * (h + d))
        return self._whole - saved


class Entries:
    """Single weights."""

    def __init__(self, model: nn.Module, keep: Sequence[str]) -> None:
        self._modules, self.left = _by_itself(model, keep)
        self.members = {name: [name] for name in self._modules}
        self._whole = parameter_count(model)
        self._sizes = {name: int(module.weight.numel()) for name, module in self._modules.items()}

    def scores(self, model: nn.Module) -> dict[str, Float[Tensor, "_"]]:
        return entry_scores({name: model.get_submodule(name) for name in self._modules})

    def zero(self, model: nn.Module, stay: Stay) -> KeepPruned:
        masks = {
            f"{name}.weight": [own.reshape(model.get_parameter(f"{name}.weight").shape)] for name, own in stay.items()
        }
        keep = KeepPruned(masks)
        keep(model)
        return keep

    def size(self, kept: Mapping[str, int]) -> int:
        return self._whole - sum(size - kept[name] for name, size in self._sizes.items())


Method = Slices | SingularValues | Entries
"""What ``prune`` works with."""


def _by_itself(model: nn.Module, keep: Sequence[str]) -> tuple[dict[str, Weighted], list[Skipped]]:
    """Layers that need no other layer's consent."""
    modules, left = prunable(model)
    for name in keep:
        if name in modules:
            left.append(skipped(name, modules.pop(name), "named in keep"))
    for name, module in list(modules.items()):
        if isinstance(module, nn.modules.conv._ConvNd) and module.transposed:
            left.append(skipped(name, modules.pop(name), "a transposed convolution's weight is no matrix of filters"))
    return modules, left


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
