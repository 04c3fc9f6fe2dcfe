"""Signs that a model hides its gradients instead of resisting (Athalye et al. 2018; Croce et al. 2022).

Robust accuracy measured on such a model says how well the gradient is hidden. Each check is cheap, looks at a few samples,
and says in one sentence what it saw; none of them proves anything, and a clean bill is no proof either.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pinchpoint.attack import (
    Objective,
    Threat,
    apgd,
    cross_entropy,
    gradient_doubt,
    logit_scale,
    margin,
    scaled_log_odds,
    square,
)
from pinchpoint.attack.gradient import attacking, value_and_gradient
from pinchpoint.attack.samples import check_logits, check_samples
from pinchpoint.evaluate.default_attacks import Attack, led_by_gradients
from pinchpoint.evaluate.logits import logits_of, misclassified
from pinchpoint.evaluate.model_checks import one_answer
from pinchpoint.evaluate.robust_accuracy import robust_accuracy
from pinchpoint.evaluate.verdict import Verdict
from pinchpoint.utils.model_output import answer

_MANY = 0.1  # share of samples from which a fault is reported
_NOISE = 0.02  # share of samples that may change sides by chance


def masking_warnings(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    verdict: Verdict | None = None,
    samples: int = 100,
    steps: int = 20,
    queries: int = 500,
    seed: int = 0,
) -> list[str]:
    """One sentence for each sign of masked gradients; none for a model that shows none.

    Args:
        model: returns logits; put into eval mode and back.
        x: inputs in the threat's box.
        y: labels.
        threat: ball and box it is judged under.
        verdict: of the white-box attacks on these data; the default ones are run where None.
        samples: how many of the correctly classified inputs are looked at.
        steps: gradient steps of the attacks that are compared.
        queries: of the black-box attack (Square) on what the white-box attacks left standing.
        seed: of the attacks.

    Raises:
        DataError, ModelError: for inputs no attack can take.

    >>> class Rounded(nn.Module):
    ...     def forward(self, x):
    ...         return (x * 8).round() / 8
    >>> x = torch.tensor([[0.6, 0.4], [0.9, 0.1]])
    >>> masking_warnings(Rounded(), x, torch.tensor([0, 0]), Threat("linf", 0.2))[0]
    'the gradient is zero at 2 of 2 samples'
    """
    x, y = check_samples(x, y, threat)
    with attacking(model, seed, x.device), one_answer(model, x, warn=False) as varies:
        logits = logits_of(model, x)
        check_logits(logits, y, len(x))
        with torch.no_grad():
            answer(model, x[:2])
        changed = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
        model.eval()
        found = [f"the model leaves eval mode when it is called ({', '.join(changed[:3])})"] if changed else []
        found += _randomised(model, x[:samples], seed) or ([] if varies is None else [varies])
        rows = torch.nonzero(~misclassified(logits, y)).squeeze(1)[:samples]
        if len(rows) == 0 or threat.eps == 0:
            return found
        some, labels = x[rows], y[rows]
        doubt = gradient_doubt(model, some, samples=len(some), seed=seed)
        if doubt is not None:
            found.append(doubt.sentence)
            if not doubt.differentiable:
                return found
        else:
            found += _saturated(model, some, labels)
        found += _ascent(model, some, labels, threat, steps, seed)
        standing = None if verdict is None else ~verdict.fallen[rows]
        return found + _black_box(model, some, labels, threat, standing, steps, queries, seed)


def _randomised(model: nn.Module, x: Tensor, seed: int) -> list[str]:
    """Two passes over the same batch must agree."""
    passes = []
    for draw in (seed, seed + 1):
        with attacking(model, draw, x.device), torch.no_grad():
            passes.append(answer(model, x))
    first, second = passes
    spread = (first.amax(1) - first.amin(1)).clamp_min(torch.finfo(first.dtype).tiny)
    differ = int(((first - second).abs().amax(1) > 1e-4 * spread).sum())
    if differ == 0:
        return []
    return [
        f"the model is randomised: two passes in eval mode differ at {differ} of {len(x)} samples; attacks need to "
        "average over its draws"
    ]


def _saturated(model: nn.Module, x: Tensor, y: Tensor) -> list[str]:
    """Whether float32 cross-entropy makes a gradient zero that is not."""
    samples = len(x)
    by_margin, by_loss = (_vanishes(model, x, y, objective) for objective in (margin, cross_entropy))
    saturated = int((by_loss & ~by_margin).sum())
    if saturated <= _MANY * samples:
        return []
    return [
        f"cross-entropy saturates in float32 at {saturated} of {samples} samples: its gradient is zero where that of "
        "the margin is not, so attacks must rescale the logits"
    ]


def _vanishes(model: nn.Module, x: Tensor, y: Tensor, objective: Objective) -> Bool[Tensor, "batch"]:
    _, gradient, _ = value_and_gradient(model, x, y, objective)
    vanishes: Tensor = (gradient == 0).flatten(1).all(1)
    return vanishes


def _ascent(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int, seed: int) -> list[str]:
    """More steps must raise the loss, a larger ball must not shelter more samples, and one as large as the box none."""
    objective = scaled_log_odds(logit_scale(logits_of(model, x)))

    def reached(eps: float, count: int) -> tuple[float, int]:
        """Mean loss, and how many samples stand."""
        ball = Threat(threat.norm, eps, threat.box)
        adv = apgd(model, x, y, ball, steps=count, objective=objective, drop_fallen=False, seed=seed)
        logits = logits_of(model, adv)
        return float(objective(logits, y).mean()), int((~misclassified(logits, y)).sum())

    found, samples = [], len(x)
    clean = float(objective(logits_of(model, x), y).mean())
    (early, _), (late, standing) = reached(threat.eps, max(steps // 10, 1)), reached(threat.eps, steps)
    if not late > max(clean, early):
        found.append(
            f"the loss does not rise with steps: {clean:.3g} at first, {early:.3g} early on, {late:.3g} at last"
        )
    most = threat.diagonal(x[0].numel())
    _, doubled = reached(min(2.0 * threat.eps, most), steps)
    if doubled > standing + _NOISE * samples:
        found.append(f"twice the budget leaves more samples standing: {doubled} instead of {standing} of {samples}")
    if threat.box is not None:
        _, left = reached(0.5 * most, steps)
        if left > _MANY * samples:
            found.append(f"a budget that reaches the middle of the box leaves {left} of {samples} samples standing")
    return found


def _black_box(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, standing: Tensor | None, steps: int, queries: int, seed: int
) -> list[str]:
    """Queries alone must not find what gradients did not."""
    if standing is None:
        standing = ~robust_accuracy(
            model, x, y, threat, attacks=led_by_gradients(model, x, steps=steps, seed=seed)
        ).fallen
    left = int(standing.sum())
    if left == 0:
        return []
    blind: dict[str, Attack] = {"square": lambda m, a, b, t: square(m, a, b, t, queries=queries, seed=seed)}
    fell = int(robust_accuracy(model, x[standing], y[standing], threat, attacks=blind).fallen.sum())
    if fell <= _NOISE * len(x):
        return []
    return [f"a black-box attack fools {fell} of the {left} samples that the white-box attacks left standing"]
