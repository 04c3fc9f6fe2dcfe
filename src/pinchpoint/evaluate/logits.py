"""What a model answers on a whole data set: logits, accuracy and loss, batch by batch in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pinchpoint.attack.gradient import at_once, eval_mode
from pinchpoint.attack.samples import check_classes, check_points, check_samples
from pinchpoint.errors import ModelError, PinchpointError
from pinchpoint.evaluate.model_checks import one_answer
from pinchpoint.utils.model_output import answer, said

BATCH = 1024


def logits_of(
    model: nn.Module, x: Float[Tensor, "batch *shape"], batch_size: int = BATCH
) -> Float[Tensor, "batch classes"]:
    """Logits in eval mode and batches, which are smaller for large images; the mode is put back.

    Raises:
        DataError: for inputs that are no floating point batch.
        ModelError: where the model does not take a batch, saying which.
    """
    x, parts = check_points(x), []
    with eval_mode(model), torch.no_grad():
        for rows in torch.arange(len(x)).split(at_once(x, batch_size)):
            with in_batch(rows, len(x)):
                parts.append(answer(model, x[int(rows[0]) : int(rows[-1]) + 1]))
    if len(sizes := {part.shape[1] for part in parts}) > 1:
        raise ModelError(
            "a model must return as many logits for every batch", sorted(sizes), "check the model's output"
        )
    return torch.cat(parts)


def accuracy(model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"]) -> float:
    """Share of samples whose largest logit is the label's.

    Raises:
        DataError: for inputs and labels that make no sense.
        ModelError: for a model that fails.

    Warns:
        PinchpointWarning: where its answers depend on the batch, on chance or on earlier calls (``one_answer``).
    """
    x, y = check_samples(x, y)
    with one_answer(model, x):
        logits = logits_of(model, x)
    check_classes(y, logits.shape[1])
    return 1.0 - float(misclassified(logits, y).double().mean())


def cross_entropy_loss(
    model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"]
) -> Float[Tensor, "batch"]:
    """Cross-entropy of each sample, in float64 from the model's logits.

    Raises:
        DataError, ModelError: for samples, labels and models that make no sense.
    """
    x, y = check_samples(x, y)
    logits = logits_of(model, x).double()
    check_classes(y, logits.shape[1])
    losses: Tensor = nn.functional.cross_entropy(logits, y, reduction="none")
    return losses


def misclassified(logits: Float[Tensor, "batch classes"], y: Int[Tensor, "batch"]) -> Bool[Tensor, "batch"]:
    """Samples whose largest logit is not the label's; an answer that is not a number is no right answer."""
    return (logits.argmax(1) != y) | ~torch.isfinite(logits).all(1)


@contextmanager
def in_batch(rows: Int[Tensor, "rows"], samples: int) -> Iterator[None]:
    """Where the model or an attack fails on some of the samples, the error says on which."""
    where = f"rows {int(rows.min())} ... {int(rows.max())} of {samples}"
    try:
        yield
    except ModelError as error:
        if len(rows) == samples:
            raise
        raise ModelError(error.rule, f"{where}: {error.value}", error.remedy) from error
    except (RuntimeError, ValueError, TypeError, LookupError) as error:  # the model's are sentences already
        if isinstance(error, torch.OutOfMemoryError | PinchpointError):
            raise
        raise ModelError(
            "an attack must take every batch it is given",
            f"{where}: {said(error)}",
            "let it take any number of samples and return examples of their shape",
        ) from error
