"""Beyond right and wrong: how far a sample's loss can be raised, and what one perturbation does to all samples."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack import Threat, apgd, apply_universal, logit_scale, scaled_cross_entropy, universal
from pinchpoint.attack.gradient import eval_mode
from pinchpoint.evaluate.logits import BATCH, cross_entropy_loss, logits_of, misclassified
from pinchpoint.evaluate.verdict import within


def adversarial_loss(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    steps: int = 100,
    seed: int = 0,
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch *shape"]]:
    """The largest cross-entropy found for each sample (a lower bound on the true one), and where.

    AutoPGD raises the loss to the end, without dropping anything. Points outside ball or box do not count.
    """
    with eval_mode(model):
        objective = scaled_cross_entropy(logit_scale(logits_of(model, x)))
        loss, where = cross_entropy_loss(model, x, y), x.clone()
        if threat.eps == 0:
            return loss, where
        parts = [
            apgd(model, a, b, threat, steps=steps, objective=objective, drop_fallen=False, seed=seed)
            for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)
        ]
        found = torch.cat(parts).float().to(x.dtype)
        reached = cross_entropy_loss(model, found, y)
        take = within(found, x, threat) & (reached > loss)
        where[take] = found[take]
        return torch.where(take, reached, loss), where


def universal_accuracy(
    model: nn.Module,
    train: tuple[Float[Tensor, "train *shape"], Int[Tensor, "train"]],
    test: tuple[Float[Tensor, "test *shape"], Int[Tensor, "test"]],
    threat: Threat,
    *,
    steps: int = 200,
    seed: int = 0,
) -> tuple[float, Float[Tensor, "*shape"]]:
    """Accuracy on test data under one perturbation fitted on training data, and the perturbation.

    A test sample the perturbation would carry outside ball or box (it cannot, but that is checked) counts as right.
    """
    with eval_mode(model):
        delta = universal(model, *train, threat, steps=steps, seed=seed)
        moved = apply_universal(test[0], delta[None], threat)
        wrong = misclassified(logits_of(model, moved), test[1])
        return 1.0 - float((wrong & within(moved, test[0], threat)).double().mean()), delta
