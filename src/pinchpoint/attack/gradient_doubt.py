"""Whether autograd's gradient is that of the function: not where there is none, where it is zero, or where the model's own
answers along random directions say something else (``detach``, ``no_grad``, ``item``, straight-through and other backward
passes of one's own).

An honest network is never doubted for its kinks: the gradient is compared at random points beside the inputs, in float64
where the model allows, and a difference counts only where one of twice the length agrees with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pinchpoint.attack.gradient import attacking
from pinchpoint.attack.objectives import margin
from pinchpoint.attack.samples import check_points
from pinchpoint.utils.model_output import answer

_MANY = 0.1  # share of samples from which a fault is reported
_DIRECTIONS = 4
_BESIDE = (0.02, 0.06)  # how far the points lie beside the inputs, in parts of the way to a random point of the box
_COPIED = 2**27  # parameters of the largest model that is copied in float64


@dataclass(frozen=True)
class _Tolerance:
    """Lengths of the differences, in widths of the data; how well two must agree; and from where the gradient is false."""

    steps: tuple[float, ...]
    alike: float
    apart: float


_DOUBLE = _Tolerance((1e-8, 1e-6, 1e-4), 0.02, 0.05)
_SINGLE = _Tolerance((1e-5, 1e-4, 1e-3, 4e-3), 0.05, 0.3)


@dataclass(frozen=True)
class Doubt:
    """Why gradient attacks say little about a model, in one sentence, and whether there is a gradient at all."""

    sentence: str
    differentiable: bool


def gradient_doubt(
    model: nn.Module, x: Float[Tensor, "batch *shape"], *, samples: int = 8, seed: int = 0
) -> Doubt | None:
    """What is wrong with the gradient; None where nothing is.

    Args:
        model: returns logits; attacked in eval mode, and its modes are put back.
        x: inputs; ``samples`` of them are looked at.
        samples: at most.
        seed: of points and directions; the global RNG is left as it was.

    >>> x = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    >>> gradient_doubt(nn.Linear(4, 3), x) is None
    True
    >>> class Probe(nn.Module):
    ...     def forward(self, x):
    ...         return x + 2.0 * x.detach()
    >>> gradient_doubt(Probe(), x).sentence
    'the gradient is contradicted by finite differences at 8 of 8 samples'
    """
    x = check_points(x)
    rows = torch.linspace(0, len(x) - 1, min(samples, len(x)), device=x.device).round().long()
    some = x[rows].detach()
    with attacking(model, seed, x.device):
        first, again = (_answers(model, some) for _ in range(2))
        if not torch.equal(first, again):
            return None  # a randomised model; differences of its answers say nothing
        gradient = _gradient(model, some, lambda logits: margin(logits, logits.argmax(1)))
        if gradient is None:
            return Doubt(
                "the model is not differentiable in its input, so gradient attacks say nothing about it", False
            )
        flat = int((gradient == 0).flatten(1).all(1).sum())
        if _many(flat, len(some)):
            return Doubt(f"the gradient is zero at {flat} of {len(some)} samples", True)
        false = int(_contradicted(model, some, float(x.min()), float(x.max())).sum())
        if _many(false, len(some)):
            return Doubt(f"the gradient is contradicted by finite differences at {false} of {len(some)} samples", True)
    return None


def margin_gradient(model: nn.Module, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"] | None:
    """Of the margin against the answered class; None where autograd finds no way from the logits back to the input."""
    return _gradient(model, x, lambda logits: margin(logits, logits.argmax(1)))


def _many(count: int, samples: int) -> bool:
    return count > _MANY * samples and count >= min(2, samples)


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return answer(model, x).detach()


def _gradient(model: nn.Module, x: Tensor, functional: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Of the functional's sum, in x; None where autograd finds no way back."""
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        values = functional(answer(model, x))
        if not values.requires_grad:
            return None
        return torch.autograd.grad(values.sum(), x, allow_unused=True)[0]


def _contradicted(model: nn.Module, x: Tensor, low: float, high: float) -> Bool[Tensor, "batch"]:
    """Samples beside which every difference that can be trusted says that the gradient is another function's."""
    model, x = _in_float64(model, x)
    width = max(high - low, 1e-12)
    with _Precision() as precision:
        logits = _answers(model, x)
    tolerance = _DOUBLE if precision.coarsest < 1e-12 else _SINGLE
    # random points beside the inputs, where no two entries tie and nothing lies on a kink
    share = torch.empty_like(x).uniform_(*_BESIDE)
    points = x + share * (torch.empty_like(x).uniform_(low, high) - x)
    weights = _weights(logits)

    def functional(logits: Tensor) -> Tensor:
        known = torch.where(torch.isfinite(logits), logits, 0.0)
        return (weights * known).sum(1)

    gradient = _gradient(model, points, functional)
    if gradient is None:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    signs = [torch.randint(2, x.shape, device=x.device).to(x) * 2.0 - 1.0 for _ in range(_DIRECTIONS)]
    claimed = torch.stack([(gradient * sign).flatten(1).sum(1) for sign in signs], 1).double()
    largest = torch.where(torch.isfinite(logits), logits, 0.0).abs().amax(1).double()
    false = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    true = torch.zeros_like(false)
    for step in (width * part for part in tolerance.steps):
        near, far = (_slopes(model, points, signs, length, functional) for length in (step, 2.0 * step))
        size = torch.maximum(near.norm(dim=1), claimed.norm(dim=1))
        # what rounding alone can make of a difference of this length
        noise = 4.0 * precision.coarsest * largest * weights.abs().sum(1) / step * _DIRECTIONS**0.5
        sure = torch.isfinite(size) & (size > 20.0 * noise) & ((near - far).norm(dim=1) <= tolerance.alike * size)
        apart = (near - claimed).norm(dim=1) > tolerance.apart * size
        false |= sure & apart
        true |= sure & ~apart
    return false & ~true


def _slopes(
    model: nn.Module, x: Tensor, signs: list[Tensor], step: float, functional: Callable[[Tensor], Tensor]
) -> Float[Tensor, "batch directions"]:
    """Central differences of the functional along each direction."""
    columns = []
    for sign in signs:
        ahead, behind = (functional(_answers(model, x + way * step * sign)).double() for way in (1.0, -1.0))
        columns.append((ahead - behind) / (2.0 * step))
    return torch.stack(columns, 1)


def _weights(logits: Tensor) -> Tensor:
    """The runner-up against the largest logit, and all others a little, at random: what depends on any of them is seen."""
    top = logits.topk(min(2, logits.shape[1]), dim=1).indices
    weights = torch.rand_like(logits) / logits.shape[1]
    weights.scatter_add_(1, top[:, -1:], torch.ones_like(weights[:, :1]))
    return weights.scatter(1, top[:, :1], -torch.ones_like(weights[:, :1]))


def _in_float64(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy that computes in float64, and inputs for it; the model itself where it cannot be copied or run so."""
    if sum(parameter.numel() for parameter in model.parameters()) > _COPIED:
        return model, x
    try:
        copied = copy.deepcopy(model).double()
        if torch.isfinite(_answers(copied, x.double())).all():
            return copied, x.double()
    except Exception:  # whatever a model of somebody else's does in a precision it was not made for
        return model, x
    return model, x


class _Precision(TorchDispatchMode):
    """The coarsest unit of all floating point numbers that are made within."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.coarsest = torch.finfo(torch.float64).eps

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.coarsest = max(self.coarsest, torch.finfo(tensor.dtype).eps)
        return out
