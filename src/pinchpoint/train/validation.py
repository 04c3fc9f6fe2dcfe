"""Loss and accuracy of a network that is being trained, on data it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.data.part import Part, TensorPart
from pinchpoint.utils.model_output import answer

_BATCH = 1024

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""``(model, x, y) -> x_adv``."""


def validate(
    model: nn.Module, part: Part, device: torch.device, attack: Attack | None = None, batch_size: int = _BATCH
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over a part, in eval mode, of attacked inputs where an attack is given."""
    training = model.training
    model.eval()
    loss, right = 0.0, 0
    rows: Sequence[Tensor] = torch.arange(len(part)).split(batch_size)
    for x, y in part.batches(rows, device):
        x = x if attack is None else attack(model, x, y)
        with torch.no_grad():
            logits = answer(model, x)
            loss += float(nn.functional.cross_entropy(logits, y, reduction="sum"))
            right += int((logits.argmax(1) == y).sum())
    model.train(training)
    return loss / len(part), right / len(part)


def loss_and_accuracy(
    model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"], batch_size: int = _BATCH
) -> tuple[float, float]:
    """``validate`` of tensors, where they are."""
    return validate(model, TensorPart(x, y), x.device, batch_size=batch_size)
