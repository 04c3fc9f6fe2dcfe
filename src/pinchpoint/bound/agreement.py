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
    points = _points(example)
    check_forward(copied, points)

    def traced(x: Tensor) -> Tensor:
        return torch.cat([network(row[None].double()).reshape(1, -1) for row in x])

    answers = traced(points)
    if not answers.numel():
        return
    if not bool(torch.isfinite(answers).all()):
        raise ModelError(
            "a certified bound needs finite answers", "NaN or inf at a point in [0, 1]", "check the model's output"
        )
    dtypes = [torch.float64]
    own = own_dtype(model)
    if own != torch.float64:
        check_forward(model, points.to(own))
        dtypes.append(own)
    for dtype in dtypes:
        x = points.to(dtype)
        asked = _alone(copied if dtype == torch.float64 else model, x)
        reference = answers if dtype == torch.float64 else traced(x)
        if asked is None or (not bool(torch.isfinite(asked).all()) and _overflows(network, x, dtype)):
            continue  # the model does not run in its own dtype here, or its numbers are too large for it
        difference = apart(asked, reference)
        allowed = tolerance(dtype, reference) + torch.finfo(dtype).tiny
        if difference > allowed:
            allowed = max(allowed, enlarged_rounding(traced, x.double(), reference, dtype))
        if difference > allowed:
            raise ModelError(
                _RULE,
                f"answers in {str(dtype).removeprefix('torch.')} that differ by {difference:.3g} (largest answer "
                f"{float(reference.abs().max()):.3g})",
                _REMEDY,
            )


def _points(example: Tensor) -> Tensor:
    """Two points in the unit cube and two normal ones; seed 0."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, *example.shape[1:])
    inside = torch.rand(shape, generator=generator, dtype=torch.float64)
    around = torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.cat([inside, around]).to(example.device)


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
