"""Masks: pruned units are zero and stay zero while the network trains on.

What is zeroed is exactly what removal takes away: rows, biases, the affine part of batch norms, and the columns that read
the units, so that a masked network computes what the smaller one does whatever the activation between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from pinchpoint.compress.layout import SelectsChannels
from pinchpoint.compress.prune.units import Group, Stay
from pinchpoint.errors import ModelError


class KeepPruned:
    """Sets pruned weights to zero: call it after each optimiser step, ``train(..., after_step=KeepPruned(...))``.

    Args:
        masks: by parameter, True where it stays; they broadcast to its shape.

    Raises:
        ModelError: called on a model without one of the parameters.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> KeepPruned({"weight": [torch.tensor([[True, False]])]})(model)
    >>> model.weight[0, 1].item()
    0.0
    """

    def __init__(self, masks: Mapping[str, Iterable[Bool[Tensor, "..."]]] | None = None) -> None:
        self.masks = {name: list(parts) for name, parts in (masks or {}).items()}

    def __call__(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, parts in self.masks.items():
                if name not in parameters:
                    raise ModelError("the model must be the one that was pruned", f"no parameter {name}", "make anew")
                for position, part in enumerate(parts):
                    if part.device != parameters[name].device:
                        parts[position] = part = part.to(parameters[name].device)
                    parameters[name].masked_fill_(~part, 0.0)


def mask(model: nn.Module, groups: Iterable[Group], stay: Stay) -> KeepPruned:
    """Set the units that do not stay to zero, in place; modules that select channels take zeros instead of them.

    Args:
        model: whose parameters the groups name.
        groups: what can be pruned.
        stay: which units of each stay.

    Returns:
        what keeps them at zero.
    """
    parameters = dict(model.named_parameters())
    modules = dict(model.named_modules())
    whole: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        gone = ~stay[group.name].cpu()
        for part in group.slices:
            if not gone.any():
                continue
            lost = part.indices[gone].flatten()
            if isinstance(module := modules.get(part.tensor), SelectsChannels):
                forget_channels(module, part.dim, set(lost.tolist()))
            elif part.tensor in parameters:
                parameter = parameters[part.tensor]
                key = part.tensor, part.dim
                if key not in whole:
                    whole[key] = torch.ones(parameter.shape[part.dim], dtype=torch.bool)
                whole[key][lost] = False
    found: dict[str, list[Tensor]] = {}
    for (name, dim), kept in whole.items():
        shape = [-1 if axis == dim else 1 for axis in range(parameters[name].ndim)]
        found.setdefault(name, []).append(kept.reshape(shape).to(parameters[name].device))
    keep = KeepPruned(found)
    keep(model)
    return keep


def forget_channels(module: SelectsChannels, dim: int, lost: set[int]) -> None:
    """Let a module give zeros instead of the lost outputs (dimension 0), or of the lost inputs (1)."""
    source = [
        -1 if (output if dim == 0 else channel) in lost else channel for output, channel in enumerate(module.source)
    ]
    module.select(module.inputs, tuple(source))
