"""What a model answers: the one place where a model that is attacked or judged is called.

A forward pass may do what it likes with its input, so it is handed a copy: one that normalises in place changes nobody's
data. What comes back must be a matrix of logits, one row a sample; all that a foreign module raises or returns instead
becomes one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.errors import ModelError, PinchpointError

_SHOWN = 3
"""Entries of a tuple or dict that an error names."""


def answer(model: nn.Module, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
    """The model's logits for these inputs, which stay as they are.

    Half precision is widened to float32, which is exact. A model that squeezes its output gives a vector for one sample: it
    is that sample's row.

    Args:
        model: any module; called as it stands, with autograd as it stands.
        x: a batch.

    Raises:
        ModelError: where the model fails, or returns no matrix of logits, saying what instead.

    >>> model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 3))
    >>> x = torch.tensor([[-1.0, 1.0]])
    >>> answer(model, x).shape, x.tolist()
    (torch.Size([1, 3]), [[-1.0, 1.0]])
    """
    return as_logits(called(model, x), len(x)).clone()  # a module may write all its answers into one buffer


def called(model: nn.Module, x: Float[Tensor, "batch *shape"]) -> object:
    """Whatever the model returns for these inputs, which stay as they are.

    Raises:
        ModelError: where it fails.

    >>> called(nn.Identity(), torch.zeros(1, 2))
    tensor([[0., 0.]])
    """
    try:
        return model(x.clone())
    except (torch.OutOfMemoryError, MemoryError, PinchpointError):
        raise
    except Exception as error:  # the module may be anybody's, and raise anything
        raise ModelError(
            "a model must take the inputs it is given",
            f"{_short(x.dtype)} of shape {tuple(x.shape)}: {said(error)}",
            "match device, dtype, channels and size to the model, which is given one batch and nothing else",
        ) from error


def check_module(model: nn.Module) -> None:
    """Refuse what is no module.

    Raises:
        ModelError: for that.

    >>> check_module(nn.Linear(2, 2))
    """
    if not isinstance(model, nn.Module):
        seen = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise ModelError("a model must be a torch.nn.Module", seen, "give an instance of one, or wrap it in one")


def as_logits(logits: object, samples: int) -> Float[Tensor, "batch classes"]:
    """What a model returned, as a matrix of logits.

    Raises:
        ModelError: for anything else than a floating point matrix with a row for each sample and two columns or more.

    >>> as_logits(torch.zeros(3), 1).shape
    torch.Size([1, 3])
    >>> as_logits((torch.zeros(1, 3), None), 1)
    Traceback (most recent call last):
        ...
    pinchpoint.errors.ModelError: a model must return finite logits of shape (batch, classes), but got a tuple of a tensor \
of shape (1, 3), NoneType; let its forward pass return the tensor of logits alone.
    """
    if not isinstance(logits, Tensor):
        raise _no_matrix(_described(logits), "let its forward pass return the tensor of logits alone")
    if not logits.is_floating_point() or logits.layout != torch.strided or logits.is_nested:
        kind = "" if logits.layout == torch.strided else f"{_short(logits.layout)} "
        seen = f"{kind}{_short(logits.dtype)} numbers of shape {tuple(logits.shape)}"
        raise _no_matrix(seen, "let its forward pass return real numbers, a dense tensor")
    if logits.is_meta:
        raise _no_matrix("logits on the meta device, which hold no numbers", "load the model's checkpoint first")
    if samples == 1 and logits.ndim == 1 and len(logits) > 1:
        logits = logits[None]
    if logits.numel() == samples and logits.shape in ((), (samples,), (samples, 1)):
        raise ModelError(
            "a classifier must return a logit for each of two classes or more",
            f"one number a sample, shape {tuple(logits.shape)} for {samples}",
            "let a binary classifier return torch.stack([torch.zeros_like(z), z], 1), where z is that number of each sample",
        )
    if logits.ndim != 2 or len(logits) != samples or logits.shape[1] == 0:
        raise _no_matrix(f"shape {tuple(logits.shape)} for {samples} samples", "check the model's output")
    return logits.float() if logits.dtype.itemsize < torch.float32.itemsize else logits


def said(error: Exception) -> str:
    """The first line of what an error says, or its kind where it says nothing or only a name.

    >>> said(KeyError("mask")), said(ValueError())
    ("KeyError: 'mask'", 'ValueError')
    """
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0] if isinstance(error, RuntimeError | ValueError) else f"{type(error).__name__}: {lines[0]}"


def _no_matrix(seen: str, remedy: str) -> ModelError:
    return ModelError("a model must return finite logits of shape (batch, classes)", seen, remedy)


def _described(value: object) -> str:
    """What a model returned instead of a tensor, and what is in it."""
    name = type(value).__name__
    article = "an" if name[:1].lower() in "aeiou" else "a"
    if isinstance(value, Mapping):
        names = list(map(str, value))
    elif isinstance(value, tuple | list):
        names = [
            f"a tensor of shape {tuple(one.shape)}" if isinstance(one, Tensor) else type(one).__name__ for one in value
        ]
    else:
        return f"{article} {name}"
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{article} {name} of {', '.join(names[:_SHOWN])}{more}" if names else f"an empty {name}"


def _short(kind: object) -> str:
    return str(kind).removeprefix("torch.")
