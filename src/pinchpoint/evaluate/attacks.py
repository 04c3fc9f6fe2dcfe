"""What an attack is to the evaluation, which ones run where none are named, and the model a quick search sees."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.attack import Threat, apgd, dlr, logit_scale, scaled_cross_entropy
from pinchpoint.attack.objectives import margin
from pinchpoint.evaluate.logits import BATCH, logits_of

Attack = Callable[[nn.Module, Tensor, Tensor, Threat], Tensor]
"""(model, x, y, threat) -> x_adv."""


def default_attacks(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    *,
    steps: int = 100,
    seed: int = 0,
    batch_size: int = BATCH,
) -> dict[str, Attack]:
    """AutoPGD with cross-entropy on logits rescaled for this model, then with a scale-invariant objective (DLR; the
    margin for two classes).

    Multiplying a model's logits by a constant changes no decision, and with these objectives it changes no verdict.
    """
    logits = logits_of(model, x, batch_size)
    second = ("apgd-dlr", dlr) if logits.shape[1] >= 3 else ("apgd-margin", margin)
    ce = scaled_cross_entropy(logit_scale(logits))
    return {
        "apgd-ce": lambda m, a, b, t: apgd(m, a, b, t, steps=steps, objective=ce, seed=seed),
        second[0]: lambda m, a, b, t: apgd(m, a, b, t, steps=steps, objective=second[1], seed=seed + 1),
    }


class LowPrecision(nn.Module):
    """The model under bfloat16 autocast, its logits as before: for searching, never for judging."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits: Tensor = self.model(x)
        return logits.to(x.dtype)
