"""Whether a verdict on a model means anything, asked once: by whichever entry a call comes in through."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pinchpoint.attack.gradient import eval_mode
from pinchpoint.errors import ModelError, PinchpointWarning
from pinchpoint.measure import check_forward
from pinchpoint.utils.model_output import answer, said

_ASKED: ContextVar[tuple[nn.Module, ...]] = ContextVar("models that have been asked", default=())


@contextmanager
def one_answer(model: nn.Module, x: Float[Tensor, "batch *shape"], *, warn: bool = True) -> Iterator[str | None]:
    """Ask whether a model gives each sample one answer (``check_forward``); within, no entry asks it again.

    Gives one sentence where it does not, None where it does. Attacks may go on, in the batches they come in; what they find
    is a matter of those batches, so the sentence has to reach whoever reads the verdict. ``pinchpoint.OneAtATime`` attacks
    such a model one sample at a time.

    Args:
        model: what is judged.
        x: some of the samples it is judged on.
        warn: the sentence is also given as a ``PinchpointWarning``, for entries whose result has no place for it.

    Raises:
        ModelError: for a model that fails on these samples, or returns no matrix of logits.

    >>> model = nn.Linear(2, 2)
    >>> with one_answer(model, torch.rand(3, 2)) as doubt, one_answer(model, torch.rand(3, 2)):
    ...     print(doubt)
    None
    """
    doubt = None if any(model is one for one in _ASKED.get()) else _doubt(model, x)
    if doubt is not None and warn:
        warnings.warn(doubt, PinchpointWarning, stacklevel=4)
    with not_asked(model), _accompanied(model) if doubt is not None and _ALONE in doubt else nullcontext():
        yield doubt


_ALONE = "a model must take one sample alone"
"""How ``check_forward`` says that a model computes statistics that one sample has none of."""


@contextmanager
def _accompanied(model: nn.Module) -> Iterator[None]:
    """A model that takes no sample alone is given one twice, so that an attack that comes down to one sample goes on."""
    alone: list[bool] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        alone.append(len(args) == 1 and isinstance(args[0], Tensor) and len(args[0]) == 1)
        return (torch.cat([args[0], args[0]]),) if alone[-1] else None

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output[:1] if alone.pop() and isinstance(output, Tensor) else None

    hooks = model.register_forward_pre_hook(before), model.register_forward_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def not_asked(model: nn.Module) -> Iterator[None]:
    """Within, no entry asks whether this model gives each sample one answer: whoever enters has seen to that."""
    token = _ASKED.set((*_ASKED.get(), model))
    try:
        yield
    finally:
        _ASKED.reset(token)


def _doubt(model: nn.Module, x: Tensor) -> str | None:
    with eval_mode(model), torch.no_grad():
        answer(model, x[:2])  # what is no classifier is refused for that
        try:
            check_forward(model, x)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except ModelError as error:
            seen = str(error)
        except Exception as error:  # of a batch of another size
            seen = (
                f"a model must take every batch it is given, but got {said(error)}; let it take any number of samples."
            )
        else:
            return None
    return f"the verdict holds for no other batches or calls: {seen}"


def doubts_of(y: Int[Tensor, "batch"], right: Bool[Tensor, "batch"], classes: int) -> list[str]:
    """What the samples say about the model that robustness cannot be read without.

    >>> doubts_of(torch.tensor([0, 0]), torch.tensor([True, True]), 3)
    ['all 2 labels are 0: a model that always answers that would be right everywhere']
    """
    found, correct, samples = [], int(right.sum()), len(right)
    if samples > 1 and bool((y == y[0]).all()):
        found.append(
            f"all {samples} labels are {int(y[0])}: a model that always answers that would be right everywhere"
        )
    if samples >= classes and correct * classes <= samples:
        found.append(
            f"{correct} of {samples} samples are right without attack, no more than by guessing among {classes} classes: "
            "are these the model's labels and its normalisation?"
        )
    return found
