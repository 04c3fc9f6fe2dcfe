"""What an attack is to the evaluation, which ones run where none are named, and the model a quick search sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.attack import Threat, apgd, dlr, logit_scale, scaled_log_odds, standard_ensemble
from pinchpoint.attack.ensemble import doubted
from pinchpoint.attack.gradient_doubt import gradient_doubt
from pinchpoint.attack.objectives import margin
from pinchpoint.errors import ThreatError
from pinchpoint.evaluate.logits import BATCH, logits_of, misclassified

Attack = Callable[[nn.Module, Tensor, Tensor, Threat], Tensor]
"""(model, x, y, threat) -> x_adv."""

_FEW = 0.2  # share of a batch up to which what stands is attacked again
_FLAT = 8.0  # spread of the logits then

Suite = Literal["apgd", "quick", "standard"]
"""Attacks that go by a name: ``default_attacks``, and the two versions of ``standard_ensemble``."""


def default_attacks(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    *,
    steps: int = 100,
    seed: int = 0,
    batch_size: int = BATCH,
) -> dict[str, Attack]:
    """AutoPGD with cross-entropy (as ``log_odds``, which does not saturate, of logits rescaled where their spread is no
    ordinary one), then with a scale-invariant objective (DLR; the margin for two classes).

    Multiplying a model's logits by a constant changes no decision, and with these objectives it changes no verdict. The
    two are quick and leave more standing than ``standard_ensemble``, which adds targeted attacks, FAB and Square.

    Where the gradient is not the function's (``gradient_doubt``), what needs none is added: PGD along differences of
    answers, and Square. Where there is no gradient at all, these two are all there is.
    """
    led = led_by_gradients(model, x, steps=steps, seed=seed, batch_size=batch_size)
    return doubted(led, gradient_doubt(model, x, seed=seed), seed)


def led_by_gradients(
    model: nn.Module, x: Float[Tensor, "batch *shape"], *, steps: int = 100, seed: int = 0, batch_size: int = BATCH
) -> dict[str, Attack]:
    """The two AutoPGDs of ``default_attacks``, whatever the gradient is worth.

    Where the first leaves few standing it has taken little time, and those are attacked from a second start, with logits
    flattened (``_FLAT``): near some boundaries that is the stronger loss.
    """
    logits = logits_of(model, x, batch_size)
    second = ("apgd-dlr", dlr) if logits.shape[1] >= 3 else ("apgd-margin", margin)
    first = scaled_log_odds(logit_scale(logits))
    flat = scaled_log_odds(logit_scale(logits, ordinary=(_FLAT, _FLAT), best=_FLAT))

    def cross_entropy(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        found = apgd(model, x, y, threat, steps=steps, objective=first, seed=seed)
        rows = torch.nonzero(~misclassified(logits_of(model, found), y)).squeeze(1)
        if not 0 < len(rows) <= _FEW * len(x):
            return found
        again = apgd(model, x[rows], y[rows], threat, steps=steps, objective=flat, seed=seed + 2)
        return found.index_copy(0, rows, again)

    return {
        "apgd-ce": cross_entropy,
        second[0]: lambda m, a, b, t: apgd(m, a, b, t, steps=steps, objective=second[1], seed=seed + 1),
    }


def suite(
    name: Suite, model: nn.Module, x: Float[Tensor, "batch *shape"], *, batch_size: int = BATCH
) -> dict[str, Attack]:
    """The attacks that go by a name.

    Raises:
        ThreatError: for a name that none goes by.

    >>> list(suite("standard", nn.Linear(4, 10), torch.rand(5, 4)))
    ['apgd-ce', 'apgd-t', 'fab-t', 'square']
    """
    if name not in get_args(Suite):
        raise ThreatError(f"attacks that go by a name are {', '.join(get_args(Suite))}", name, "write one of these")
    if name == "apgd":
        return default_attacks(model, x, batch_size=batch_size)
    return dict(standard_ensemble(model, x, version=name))


BLIND = ("pgd-differences", "square")
"""Attacks that follow no gradient of the model's."""


class LowPrecision(nn.Module):
    """The model under bfloat16 autocast, its logits as before: for searching, never for judging."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits: Tensor = self.model(x)
        return logits.to(x.dtype)
