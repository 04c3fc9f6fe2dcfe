"""A trace is compared with the model it was taken from, once, before anything is certified.

Whatever Python decides while forward runs (random numbers, counters, attributes that change, torch.compiler's switches, the
size of the batch, the dtype) is frozen by a trace. So the model is asked at several points, each alone, twice and with
companions, in float64 and in its own dtype, and what it answers must be what the traced network computes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pinchpoint.errors import ModelError
from pinchpoint.measure.forward import apart, check_forward, enlarged_rounding, own_dtype, tolerance

_RULE = "a certified bound needs a trace that computes what the model computes"
_POINTS, _UNIT = 4, 2
"""Points that are asked with companions; and those in the unit cube."""
_SMALL_INPUT = 4096
"""Numbers of an input up to which many points are asked."""
_REMEDY = "take what Python decides while it runs (state, dtype, torch.compiler's switches) out of forward"


@torch.no_grad()
def check_agreement(
    network: Callable[[Tensor], Tensor],
    model: nn.Module,
    copied: nn.Module,
    example: Tensor,
    *,
    continuous: bool = True,
) -> None:
    """Refuse a trace that does not compute what its model does.

    Args:
        network: the traced network, which has a Lipschitz constant: one input of shape [1, ...] in, in float64.
        model: what it was traced from; its state stays as it is.
        copied: the same in float64.
        example: one input of shape [1, ...] in float64; its values do not matter.

    Raises:
        ModelError: where answers differ by more than rounding does, or are not finite.

    >>> layer = nn.Linear(2, 2).double()
    >>> check_agreement(layer, layer, layer, torch.zeros(1, 2).double())
    """

    def traced(x: Tensor) -> Tensor:
        return torch.cat([network(row[None].double()).reshape(1, -1) for row in x])

    candidates = _candidates(example)
    answers = traced(candidates)
    if not answers.numel():
        return
    if not bool(torch.isfinite(answers[:_UNIT]).all()):
        raise ModelError(
            "a certified bound needs finite answers", "NaN or inf at a point in [0, 1]", "check the model's output"
        )
    # a difference that a dead or saturated unit hides shows where the units are alive
    liveliest = _liveliest(network, candidates)
    check_forward(copied, candidates[liveliest])
    dtypes = [torch.float64]
    own = own_dtype(model)
    if own != torch.float64:
        check_forward(model, candidates[liveliest].to(own))
        dtypes.append(own)
    for dtype in dtypes:
        _compare(network, traced, copied if dtype == torch.float64 else model, candidates.to(dtype), dtype)


def _compare(
    network: Callable[[Tensor], Tensor],
    traced: Callable[[Tensor], Tensor],
    model: nn.Module,
    x: Tensor,
    dtype: torch.dtype,
) -> None:
    """The model's answers to each point alone, beside those of the traced network."""
    asked = _alone(model, x)
    if asked is None:  # the model does not run in its own dtype here
        return
    reference = traced(x)
    if asked.shape != reference.shape:
        raise ModelError(_RULE, f"{tuple(asked.shape)} answers for {tuple(reference.shape)}", _REMEDY)
    usual = reference[: 2 * _UNIT]
    for row in range(len(x)):
        here, there = asked[row : row + 1], reference[row : row + 1]
        if not bool(torch.isfinite(there).all()):
            continue  # of numbers beyond float64 nothing can be said
        if not bool(torch.isfinite(here).all()) and _overflows(network, x[row : row + 1], dtype):
            continue
        difference = apart(here, there)
        allowed = max(tolerance(dtype, there), tolerance(dtype, usual)) + torch.finfo(dtype).tiny
        if difference > allowed:
            allowed = max(allowed, enlarged_rounding(traced, x[row : row + 1].double(), there, dtype))
        if difference > allowed:
            raise ModelError(
                _RULE,
                f"answers in {str(dtype).removeprefix('torch.')} that differ by {difference:.3g} (largest answer "
                f"{float(there.abs().max()):.3g})",
                _REMEDY,
            )


def _candidates(example: Tensor) -> Tensor:
    """Points in the unit cube, and around zero at several sizes; few of large inputs; seed 0."""
    generator = torch.Generator().manual_seed(0)
    shape = (_UNIT, *example.shape[1:])
    points = [torch.rand(shape, generator=generator, dtype=torch.float64)]
    each = 4 if example.numel() <= _SMALL_INPUT else 1
    for size in (1.0, 0.01, 10.0, 100.0, 1e4) if each > 1 else (1.0, 30.0):
        points.append(size * torch.randn((each, *shape[1:]), generator=generator, dtype=torch.float64))
    return torch.cat(points).to(example.device)


def _liveliest(network: Callable[[Tensor], Tensor], points: Tensor) -> list[int]:
    """The points at which most values of the network differ from those at the first one; the first one among them."""
    each = getattr(network, "each", None)
    if each is None or len(points) <= _POINTS:
        return list(range(min(_POINTS, len(points))))
    base = [value.clone() for _, value in each(points[:1])]
    scores = []
    for row in range(1, len(points)):
        changed = [
            (value != before) & torch.isfinite(value)
            for before, (_, value) in zip(base, each(points[row : row + 1]), strict=True)
        ]
        scores.append(sum(float(entries.double().mean()) for entries in changed if entries.numel()))
    order = sorted(range(1, len(points)), key=lambda row: -scores[row - 1])
    return [0, *order[: _POINTS - 1]]


def _alone(model: nn.Module, x: Tensor) -> Tensor | None:
    """The model's answers to each point alone, in eval mode; None where it does not run."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            return torch.cat([model(row[None].clone()).reshape(1, -1) for row in x])
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    finally:
        for module, before in training:
            module.training = before


def _overflows(network: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> bool:
    """Whether some value on the way is too large for the dtype."""
    each = getattr(network, "each", None)
    largest = torch.finfo(dtype).max / 2**10
    return each is not None and any(
        float(value.abs().max()) > largest for row in x for _, value in each(row[None].double())
    )
