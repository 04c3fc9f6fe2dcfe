"""Whether a model can be judged at all, asked once: by whichever entry a call comes in through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.answers import answer, said
from pinchpoint.attack.gradient import eval_mode
from pinchpoint.errors import ModelError, PinchpointError
from pinchpoint.measure import check_forward

_ASKED: ContextVar[tuple[nn.Module, ...]] = ContextVar("models that are known to answer each sample", default=())


@contextmanager
def one_answer(model: nn.Module, x: Float[Tensor, "batch *shape"]) -> Iterator[None]:
    """Refuse a model that answers a sample differently from call to call (``check_forward``); within, it is not asked again.

    Raises:
        ModelError: for such a model, and for one that fails or returns no matrix of logits.

    >>> model = nn.Linear(2, 2)
    >>> with one_answer(model, torch.rand(3, 2)), one_answer(model, torch.rand(3, 2)):
    ...     pass
    """
    if not any(model is one for one in _ASKED.get()):
        with eval_mode(model), torch.no_grad():
            answer(model, x[:2])  # what is no classifier is refused for that
            try:
                check_forward(model, x)
            except (PinchpointError, torch.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:  # of a batch of another size
                raise ModelError(
                    "a model must take every batch it is given",
                    said(error),
                    "let its forward pass take any number of samples",
                ) from error
    with not_asked(model):
        yield


@contextmanager
def not_asked(model: nn.Module) -> Iterator[None]:
    """Within, no entry asks whether this model answers each sample: whoever enters has seen to that."""
    token = _ASKED.set((*_ASKED.get(), model))
    try:
        yield
    finally:
        _ASKED.reset(token)
