"""What must be true of a forward pass before a model is judged or bounded: one answer a sample, at every call, in any batch.

A network that centres features over its batch, attends over it, draws numbers or counts its calls answers a question about
one sample differently from call to call. Neither an attack nor a bound means anything for such answers, so everything that
judges or bounds asks ``check_forward`` once. It compares each of a few samples alone, again, in pairs with several
companions, in another order and in a larger batch, in float64 where the model runs in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.errors import ModelError
from pinchpoint.measure.weights import computed_tensors, float64_copy

_SMALL_INPUT = 4096
"""Numbers of an input up to which a large batch costs next to nothing."""
_RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""How far answers may be apart, relative to the largest; batches of another size are summed in another order."""
_HALF_PRECISION = 5e-2
_SAME = 1e-3
"""The same for two calls on the same input, as a share of it: some devices add in an order of their own."""
_NUDGES = 1000.0
"""The same, as a multiple of what a change of the input in its last digit does."""


@dataclass(frozen=True)
class Disagreement:
    """A sample that is answered differently from call to call.

    Attributes:
        arrangement: how it was asked the second time.
        difference: the largest between two answers.
        scale: the largest answer.
    """

    arrangement: str
    difference: float
    scale: float

    @property
    def repeats(self) -> bool:
        """Whether the same call gives the same answer, so that it is the batch that matters."""
        return self.arrangement != _AGAIN


class OneAtATime(nn.Module):
    """A model that is given one sample at a time, so that no sample has companions: the way to judge one whose answers
    depend on the batch, where that is what will be deployed.

    >>> class Centred(nn.Linear):
    ...     def forward(self, x):
    ...         return super().forward(x - x.mean(0))
    >>> disagreement(Centred(3, 2), torch.rand(4, 3)).repeats
    True
    >>> check_forward(OneAtATime(Centred(3, 2)), torch.rand(4, 3))
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Each row by itself."""
        return torch.cat([self.model(row[None]).reshape(1, -1) for row in x])


_AGAIN = "asked the same twice"


def check_forward(model: nn.Module, x: Float[Tensor, "batch *shape"]) -> None:
    """Refuse a model whose answer for a sample depends on its companions, on chance or on earlier calls.

    Args:
        model: any module with one tensor in and one tensor out; its own state stays as it is.
        x: some inputs; a few of them are used.

    Raises:
        ModelError: for a model that answers a sample differently from call to call, or that takes no sample alone.

    >>> check_forward(nn.Linear(3, 2), torch.rand(4, 3))
    """
    if (seen := disagreement(model, x)) is None:
        return
    if not seen.repeats:
        raise ModelError(
            "a model must compute the same at every call",
            f"answers to the same sample that differ by {seen.difference:.3g} (largest answer {seen.scale:.3g})",
            "take random numbers, counters and other state out of its forward pass",
        )
    raise ModelError(
        "a model must answer each sample whatever else is in its batch",
        f"answers that differ by {seen.difference:.3g} (largest answer {seen.scale:.3g}) {seen.arrangement}",
        "take what is computed over the batch out of its forward pass, or wrap it in pinchpoint.OneAtATime, which gives it "
        "one sample at a time",
    )


def disagreement(model: nn.Module, x: Float[Tensor, "batch *shape"]) -> Disagreement | None:
    """The first pair of calls that answers a sample differently; None where all agree to rounding.

    Answers that are no tensor with one row a sample are left to whoever reads them: the result is None.

    >>> disagreement(nn.Linear(3, 2), torch.rand(4, 3)) is None
    True
    """
    samples = _samples(x)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []), torch.no_grad():
        compared = (_compared(copied, inputs) for copied, inputs in _copies(model, samples))
        return next((seen for seen in compared if seen is not None), None)


def _samples(x: Tensor) -> Tensor:
    """Two or four different inputs; where there are fewer, mirrored and shifted ones join them."""
    wanted = 4 if x[0].numel() <= _SMALL_INPUT else 2
    rows = x.detach()[:wanted].flatten(1)
    while len(rows) < wanted:
        rows = torch.cat([rows, rows[-1:].flip(1).roll(1, 1) * (1 - 0.25 / len(rows))])
    return rows.reshape(-1, *x.shape[1:])


def _copies(model: nn.Module, x: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
    """The model in float64, where differences show best and where it runs; and as it is."""
    check_weights(model)
    try:
        copied = float64_copy(model)
        copied(x[:1].to(torch.float64, copy=True))
    except Exception:  # whatever a foreign module raises: it does not run in float64, and is asked as it is
        pass
    else:
        yield copied, x.double()
    try:
        own = copy.deepcopy(model, computed_tensors(model)).eval()
    except Exception:  # a module that cannot be copied, such as a compiled one
        own = model
    before = own.training
    with suppress(NotImplementedError):  # a program that torch.export made keeps the mode it was exported in
        own.eval()
    yield own, x
    with suppress(NotImplementedError):
        own.train(before)


def check_weights(model: nn.Module) -> None:
    """Refuse a model whose weights do not exist.

    >>> check_weights(nn.Linear(3, 2))
    """
    tensors = list(chain(model.parameters(), model.buffers()))
    if any(nn.parameter.is_lazy(tensor) for tensor in tensors):
        raise ModelError("weights must exist", "a lazy module without weights", "run a batch through the model first")
    if any(tensor.device.type == "meta" for tensor in tensors):
        raise ModelError("a model must have weights", "weights on the meta device", "load its checkpoint first")


def own_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a model's first real weight or buffer; torch's default where it has none.

    >>> own_dtype(nn.Linear(2, 2).bfloat16())
    torch.bfloat16
    """
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.get_default_dtype())


def apart(answers: Tensor, reference: Tensor) -> float:
    """The largest difference between two answers; infinities and NaN that agree are none.

    >>> apart(torch.tensor([1.0, torch.inf]), torch.tensor([1.5, torch.inf]))
    0.5
    """
    difference = (answers.double() - reference.double()).abs()
    same = (answers == reference) | (answers.isnan() & reference.isnan())
    return float(torch.where(same, 0.0, difference).nan_to_num(nan=torch.inf).max()) if answers.numel() else 0.0


def tolerance(dtype: torch.dtype, answers: Tensor) -> float:
    """How far answers that were summed in another order may be apart in a dtype, where no network enlarges it."""
    finite = answers[torch.isfinite(answers)]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return _RELATIVE.get(dtype, _HALF_PRECISION) * largest


def enlarged_rounding(answer: Callable[[Tensor], Tensor], x: Tensor, answers: Tensor, dtype: torch.dtype) -> float:
    """What a network may make of rounding: how far answers move when the last digit that a dtype has of the input does.

    Args:
        answer: gives the answers to a batch.
        x: the batch.
        answers: what it gave.
        dtype: whose last digit.
    """
    signs = torch.ones_like(x).flatten(1)
    signs[:, ::2] = -1.0  # up and down in turn
    nudged = x + torch.finfo(dtype).eps * signs.reshape(x.shape) * x.abs().clamp_min(1e-3)
    change = (answer(nudged).double() - answers.double()).abs().nan_to_num(nan=0.0, posinf=0.0)
    return _NUDGES * float(change.max())


def _compared(model: nn.Module, x: Tensor) -> Disagreement | None:
    """Each sample alone, and then in every other arrangement that the model takes."""
    alone = _alone(model, x)
    if alone is None:
        return None
    allowed, enlarged = tolerance(alone.dtype, alone), False
    for arrangement, rows in _arrangements(len(x), x[0].numel() <= _SMALL_INPUT):
        again = arrangement == _AGAIN
        answers = _alone(model, x) if again else _together(model, x[rows])
        if answers is None or answers.shape != (len(rows), alone.shape[1]):
            continue
        difference = apart(answers, alone[rows])
        if difference > allowed and not (again or enlarged):
            allowed, enlarged = max(allowed, enlarged_rounding(partial(_alone_or_nan, model), x, alone, x.dtype)), True
        # the same calculation twice: no rounding can tell the two apart
        if difference > (_SAME * allowed if again else allowed):
            return Disagreement(arrangement, difference, float(alone.abs().max()))
    return None


def _together(model: nn.Module, x: Tensor) -> Tensor | None:
    """Answers to a batch, a row each; None of a model that does not take it, and so lets no sample have companions."""
    try:
        answers = model(x.clone())
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
        return None
    return answers.reshape(len(answers), -1) if isinstance(answers, Tensor) and answers.ndim else None


def _alone(model: nn.Module, x: Tensor) -> Tensor | None:
    """Answers to each sample by itself, a row each; None where they are no tensors of real numbers."""
    try:
        answers = [model(row[None].clone()) for row in x]
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError | ModelError):
            raise
        raise ModelError(
            "a model must take one sample alone",
            f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}",
            "match dtype and size, and take what is computed over the batch out of its forward pass",
        ) from error
    if not all(isinstance(answer, Tensor) and answer.is_floating_point() and answer.numel() for answer in answers):
        return None
    sizes = {answer.numel() for answer in answers}
    return torch.cat([answer.reshape(1, -1) for answer in answers]) if len(sizes) == 1 else None


def _alone_or_nan(model: nn.Module, x: Tensor) -> Tensor:
    answers = _alone(model, x)
    return x.new_full((len(x), 1), torch.nan) if answers is None else answers


def _arrangements(count: int, small: bool) -> Iterator[tuple[str, list[int]]]:
    """How samples are asked after each alone: which rows, in which order."""
    order = list(range(count))
    yield _AGAIN, order
    yield "when two samples share a batch", order[:2]
    yield "when two samples share a batch in another order", [1, 0]
    if count > 2:
        yield "when a sample has another companion", [0, 3]
        yield "when a sample has another companion", [2, 1]
        yield "when a batch is in another order", order[::-1]
    larger = 65 if small else 5
    yield "in a larger batch", [row % count for row in range(larger)]
