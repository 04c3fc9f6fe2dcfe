"""Loss and accuracy of a network that is being trained, on data it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.learn.part import Part

_VALIDATION_BATCH = 1024

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""``(model, x, y) -> x_adv``."""


def validate(model: nn.Module, part: Part, device: torch.device, attack: Attack | None = None) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over a part, in eval mode, of attacked inputs where an attack is given."""
    training = model.training
    model.eval()
    loss, right = 0.0, 0
    for x, y in part.batches(_in_order(len(part)), device):
        x = x if attack is None else attack(model, x, y)
        with torch.no_grad():
            logits = model(x)
            loss += float(nn.functional.cross_entropy(logits, y, reduction="sum"))
            right += int((logits.argmax(1) == y).sum())
    model.train(training)
    return loss / len(part), right / len(part)


def loss_and_accuracy(
    model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"], batch_size: int = 4096
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of tensors, in eval mode; the mode is put back."""
    training = model.training
    model.eval()
    loss, right = 0.0, 0
    with torch.no_grad():
        for rows in torch.arange(len(x), device=x.device).split(batch_size):
            logits = model(x[rows])
            loss += float(nn.functional.cross_entropy(logits, y[rows], reduction="sum"))
            right += int((logits.argmax(1) == y[rows]).sum())
    model.train(training)
    return loss / len(x), right / len(x)


def _in_order(samples: int) -> Sequence[Tensor]:
    rows: Sequence[Tensor] = torch.arange(samples).split(_VALIDATION_BATCH)
    return rows
