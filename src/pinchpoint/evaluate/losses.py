"""Beyond right and wrong: how far a sample's loss can be raised, and what one perturbation does to all samples."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack import (
    Threat,
    apgd_to_the_end,
    apply_universal,
    followable,
    logit_scale,
    scaled_log_odds,
    universal,
)
from pinchpoint.attack.gradient import at_once, eval_mode
from pinchpoint.attack.samples import check_samples
from pinchpoint.evaluate.logits import BATCH, cross_entropy_loss, logits_of, misclassified
from pinchpoint.evaluate.model_checks import one_answer
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
    return loss_and_examples(model, x, y, threat, steps=steps, seed=seed)[:2]


def loss_and_examples(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    steps: int = 100,
    seed: int = 0,
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
    """``adversarial_loss``, and what the same search found for a verdict: the point that raised the loss most or, where that
    is not misclassified, the first that was.

    A model without a gradient is searched along differences of its answers (``attack.Differences``).

    ``apgd-ce`` of ``default_attacks`` with these steps and this seed goes the same way from its first start and
    finds no more from there.
    """
    x, y = check_samples(x, y, threat)
    with eval_mode(model), one_answer(model, x):
        led = followable(model, x, threat, seed) if threat.eps > 0 else model
        objective = scaled_log_odds(logit_scale(logits_of(model, x)))
        loss, where = cross_entropy_loss(model, x, y), x.clone()
        if threat.eps == 0:
            return loss, where, where
        size = at_once(x, BATCH)
        parts = [
            apgd_to_the_end(led, a, b, threat, steps=steps, objective=objective, seed=seed)
            for a, b in zip(x.split(size), y.split(size), strict=True)
        ]
        found, fooling = (torch.cat(points).float().to(x.dtype) for points in zip(*parts, strict=True))
        reached = cross_entropy_loss(model, found, y)
        take = within(found, x, threat) & (reached > loss)
        where[take] = found[take]
        fools = misclassified(logits_of(model, where), y).reshape(-1, *(1,) * (x.ndim - 1))
        return torch.where(take, reached, loss), where, torch.where(fools, where, fooling)


def universal_accuracy(
    model: nn.Module,
    train: tuple[Float[Tensor, "train *shape"], Int[Tensor, "train"]],
    test: tuple[Float[Tensor, "test *shape"], Int[Tensor, "test"]],
    threat: Threat,
    *,
    steps: int = 200,
    at_a_time: int | None = None,
    seed: int = 0,
) -> tuple[float, Float[Tensor, "*shape"]]:
    """Accuracy on test data under one perturbation fitted on training data, and the perturbation.

    ``at_a_time`` is the number of samples in one pass with gradients. A test sample the perturbation would carry outside
    ball or box (it cannot, but that is checked) counts as right.
    """
    x, y = check_samples(*test, threat)
    with eval_mode(model), one_answer(model, x):
        led = followable(model, train[0], threat, seed)
        delta = universal(led, *train, threat, steps=steps, at_a_time=at_a_time, seed=seed)
        moved = apply_universal(x, delta[None], threat)
        wrong = misclassified(logits_of(model, moved), y)
        return 1.0 - float((wrong & within(moved, x, threat)).double().mean()), delta
