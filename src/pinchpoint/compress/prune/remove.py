"""Real removal: tensors without the pruned units, and a check that the network computes what the masked one does."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pinchpoint.compress.checks import answers
from pinchpoint.compress.layout import SelectsChannels, refit
from pinchpoint.compress.prune.masks import mask
from pinchpoint.compress.prune.units import Found, Group, Stay, skipped
from pinchpoint.errors import ModelError
from pinchpoint.measure.layers import float64_copy
from pinchpoint.measure.weights import computed_tensors

_TOLERANCE = 1e-8  # of the largest output, in float64: reordered sums differ by 1e-13, a wrong channel by far more


def remove(model: nn.Module, groups: Sequence[Group], stay: Stay) -> None:
    """Take the units that do not stay out of the model, in place.

    >>> from pinchpoint.compress.prune.units import Slice
    >>> model, units = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.arange(3)[:, None]
    >>> hidden = Group("0", 3, (Slice("0.weight", 0, units), Slice("0.bias", 0, units), Slice("1.weight", 1, units)), ())
    >>> remove(model, [hidden], {"0": torch.tensor([True, False, True])})
    >>> model
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
      (1): Linear(in_features=2, out_features=2, bias=True)
    )
    """
    gone: dict[str, dict[int, list[Tensor]]] = {}
    for group in groups:
        lost = ~stay[group.name].cpu()
        if lost.any():
            for part in group.slices:
                gone.setdefault(part.tensor, {}).setdefault(part.dim, []).append(part.indices[lost].flatten())
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    modules = dict(model.named_modules())
    smaller = {}
    for name, by_dim in gone.items():
        if isinstance(module := modules.get(name), SelectsChannels):
            outputs, inputs = (
                _rest(size, by_dim.get(dim, [])).tolist()
                for dim, size in enumerate((len(module.source), module.inputs))
            )
            new = {old: position for position, old in enumerate(inputs)}
            module.select(len(inputs), tuple(new.get(module.source[output], -1) for output in outputs))
            continue
        tensor = tensors[name].detach()
        for dim, lost_here in by_dim.items():
            tensor = tensor.index_select(dim, _rest(tensor.shape[dim], lost_here).to(tensor.device))
        smaller[name] = tensor
    refit(model, smaller)


def _rest(size: int, gone: Sequence[Tensor]) -> Tensor:
    """The indices that are left, in order."""
    stays = torch.ones(size, dtype=torch.bool)
    for part in gone:
        stays[part] = False
    return stays.nonzero().flatten()


def sound(model: nn.Module, found: Found, input_shape: tuple[int, ...]) -> Found:
    """The groups whose removal does what masking does, tried out on every other unit of each; the others are left alone.

    One trial where all are sound; otherwise halves are tried, and halves of those.

    Raises:
        ModelError: where groups that are sound by themselves are not together.
    """
    stay = {group.name: torch.arange(group.units) % 2 == 0 for group in found.groups}
    problems: dict[str, str] = {}

    def search(groups: Sequence[Group]) -> None:
        problem = difference(model, groups, stay, input_shape)
        if problem is not None and len(groups) == 1:
            problems[groups[0].name] = problem
        elif problem is not None:
            search(groups[: len(groups) // 2])
            search(groups[len(groups) // 2 :])

    if found.groups:
        search(found.groups)
    good = tuple(group for group in found.groups if group.name not in problems)
    if not problems:
        return found
    problem = difference(model, good, stay, input_shape)
    if problem is not None:
        raise ModelError("layers that can be removed alone must be removable together", problem, "use unit='rows'")
    names = {
        group.name: dict.fromkeys((*group.members, group.name)) for group in found.groups if group.name in problems
    }
    modules = dict(model.named_modules())
    left = [
        skipped(name, modules[name], problems[group]) for group in names for name in names[group] if name in modules
    ]
    return Found(good, (*found.left, *left))


def difference(model: nn.Module, groups: Sequence[Group], stay: Stay, input_shape: tuple[int, ...]) -> str | None:
    """How removing differs from masking, on random inputs in float64; None where it does not.

    Both are copies; the model is left alone.
    """
    masked = float64_copy(model)
    smaller = copy.deepcopy(masked, computed_tensors(masked))
    mask(masked, groups, stay)
    first = next(masked.parameters())
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((2, *input_shape), generator=generator, dtype=torch.float64).to(first.device)
    with torch.no_grad():
        try:
            remove(smaller, groups, stay)
            found = smaller(x.clone())
        except Exception as error:  # whatever a network says that does not take smaller tensors
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            return f"the network does not run without them: {said}"
        wanted = masked(x.clone())
    if not _alike(found, wanted):
        return "removing its units changes more than setting them to zero does"
    return None


def _alike(first: object, second: object) -> bool:
    """Whether two answers, which may be tensors in containers, agree to rounding."""
    pairs = answers(first), answers(second)
    return len(pairs[0]) == len(pairs[1]) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=_TOLERANCE * float(b.abs().amax() if b.numel() else 0))
        for a, b in zip(*pairs, strict=True)
    )
