"""The verdict. An attack proposes; here ball, box and label are checked again, in float32, by code no attack uses.

A sample counts as fallen only if an example passed that check. The record says which stage settled it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pinchpoint.attack import Threat, apgd, apply_universal, dlr, logit_scale, scaled_cross_entropy, universal
from pinchpoint.attack.gradient import answer, check_logits, check_points, eval_mode
from pinchpoint.attack.objectives import margin
from pinchpoint.errors import DataError, ThreatError

Attack = Callable[[nn.Module, Tensor, Tensor, Threat], Tensor]
"""(model, x, y, threat) -> x_adv."""

_BATCH = 1024


@dataclass(frozen=True)
class Verdict:
    """What became of each sample under one threat.

    Attributes:
        threat: ball and box.
        fallen: misclassified, clean or by an example that passed the check.
        adversarial: for fallen samples the example that fooled the model; for the others the last attempt that passed
            the check of ball and box (the input itself where there was none).
        stage: per sample ``clean`` (wrong without attack), the name of the attack that settled it, or ``survived``.
        rejected: examples that fooled the model but lay outside ball or box; they do not count.
    """

    threat: Threat
    fallen: Bool[Tensor, "batch"]
    adversarial: Float[Tensor, "batch *shape"]
    stage: tuple[str, ...]
    rejected: int

    @property
    def robust_accuracy(self) -> float:
        """Share of samples no example has fooled."""
        return 1.0 - float(self.fallen.double().mean())

    @property
    def settled(self) -> dict[str, int]:
        """Number of samples by stage."""
        return {name: self.stage.count(name) for name in dict.fromkeys(self.stage)}


def logits_of(
    model: nn.Module, x: Float[Tensor, "batch *shape"], batch_size: int = _BATCH
) -> Float[Tensor, "batch classes"]:
    """Logits in eval mode and batches; the mode is put back."""
    with eval_mode(model), torch.no_grad():
        return torch.cat([answer(model, part) for part in x.split(batch_size)])


def accuracy(model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"]) -> float:
    """Share of samples whose largest logit is the label's."""
    return 1.0 - float(_wrong(logits_of(model, x), y).double().mean())


def cross_entropy_loss(
    model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"]
) -> Float[Tensor, "batch"]:
    """Cross-entropy of each sample, in float64 from the model's logits."""
    losses: Tensor = nn.functional.cross_entropy(logits_of(model, x).double(), y, reduction="none")
    return losses


def within(
    x_adv: Float[Tensor, "batch *shape"], x: Float[Tensor, "batch *shape"], threat: Threat
) -> Bool[Tensor, "batch"]:
    """Which examples, taken as float32, lie in ball and box. Written without the attack's own projection.

    The distance is computed in float64. It may exceed eps by what rounding x, eps and x + delta to float32 can add: one
    unit in the last place of the sample's largest value plus eps, for each coordinate, in the threat's norm.

    >>> x = torch.full((1, 4), 0.5)
    >>> within(x + 0.1, x, Threat("linf", 0.1)).item(), within(x + 0.11, x, Threat("linf", 0.1)).item()
    (True, False)
    """
    stored = x_adv.detach().float()
    finite = torch.isfinite(stored).flatten(1).all(1)
    delta = (stored.double() - x.detach().float().double()).flatten(1)
    inside = finite
    if threat.box is not None:
        low, high = (torch.tensor(edge, dtype=torch.float32, device=x.device) for edge in threat.box)
        inside = inside & ((stored >= low) & (stored <= high)).flatten(1).all(1)
    unit = 2.0**-23 * (x.detach().double().flatten(1).abs().amax(1) + threat.eps)
    if threat.norm == "linf":
        near: Tensor = delta.abs().amax(1) <= threat.eps + unit
    else:
        near = delta.pow(2).sum(1).sqrt() <= threat.eps + unit * delta.shape[1] ** 0.5
    return inside & near


def default_attacks(
    model: nn.Module, x: Float[Tensor, "batch *shape"], *, steps: int = 100, seed: int = 0
) -> dict[str, Attack]:
    """AutoPGD with cross-entropy on logits rescaled for this model, then with a scale-invariant objective (DLR; the
    margin for two classes).

    Multiplying a model's logits by a constant changes no decision, and with these objectives it changes no verdict.
    """
    logits = logits_of(model, x)
    ce = scaled_cross_entropy(logit_scale(logits))
    second = ("apgd-dlr", dlr) if logits.shape[1] >= 3 else ("apgd-margin", margin)
    return {
        "apgd-ce": lambda m, a, b, t: apgd(m, a, b, t, steps=steps, objective=ce, seed=seed),
        second[0]: lambda m, a, b, t: apgd(m, a, b, t, steps=steps, objective=second[1], seed=seed + 1),
    }


def robust_accuracy(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threat: Threat,
    *,
    attacks: dict[str, Attack] | None = None,
    known: Float[Tensor, "batch *shape"] | None = None,
    batch_size: int = _BATCH,
) -> Verdict:
    """Attack what is still standing, one attack after the other, and check every example that comes back.

    Args:
        model: returns logits; put into eval mode and back.
        x: inputs in the threat's box.
        y: labels.
        threat: ball and box.
        attacks: by name, cheap ones first; ``default_attacks`` where None.
        known: candidate examples from elsewhere (a smaller budget, another model), tried before any attack.
        batch_size: samples at a time.

    Raises:
        DataError, ModelError: for inputs no attack can take.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> x = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.1, 0.9]])
    >>> verdict = robust_accuracy(model, x, torch.tensor([0, 0, 0]), Threat("linf", 0.2))
    >>> verdict.fallen.tolist(), verdict.stage
    ([True, False, True], ('apgd-ce', 'survived', 'clean'))
    """
    if len(x) != len(y):
        raise DataError(
            "there must be one label for each input", f"{len(x)} inputs and {len(y)} labels", "check the data"
        )
    check_points(x, threat)
    with eval_mode(model):
        tally = _Tally(model, x, y, threat, batch_size)
        chosen = default_attacks(model, x) if attacks is None else attacks
        if known is not None:
            tally.judge("known", torch.arange(len(x), device=x.device), known)
        if threat.eps > 0:
            for name, attack in chosen.items():
                for rows in tally.standing():
                    tally.judge(name, rows, attack(model, x[rows], y[rows], threat))
    return Verdict(threat, tally.fallen, tally.adversarial, tuple(tally.stage), tally.rejected)


class _Tally:
    """Who still stands, and what settled the others."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, batch_size: int) -> None:
        self.model, self.x, self.y, self.threat, self.batch_size = model, x, y, threat, batch_size
        logits = logits_of(model, x, batch_size)
        check_logits(logits, y, len(x))
        self.fallen = _wrong(logits, y)
        self.stage = ["clean" if wrong else "survived" for wrong in self.fallen.tolist()]
        self.adversarial = x.clone()
        self.rejected = 0

    def standing(self) -> Sequence[Tensor]:
        """Rows no example has fooled yet, in batches; nothing where none stands."""
        rows = torch.nonzero(~self.fallen).squeeze(1)
        return rows.split(self.batch_size) if len(rows) else ()

    def judge(self, name: str, rows: Tensor, candidates: Tensor) -> None:
        """Check the candidates for these rows; note which of the standing ones fell."""
        standing = ~self.fallen[rows]
        rows, stored = rows[standing], candidates[standing].detach().float().to(self.x.dtype)
        if len(rows) == 0:
            return
        wrong = _wrong(logits_of(self.model, stored, self.batch_size), self.y[rows])
        allowed = within(stored, self.x[rows], self.threat)
        self.adversarial[rows[allowed]] = stored[allowed]
        took = rows[wrong & allowed]
        self.fallen[took] = True
        for row in took.tolist():
            self.stage[row] = name
        self.rejected += int((wrong & ~allowed).sum())


def robust_curve(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, "batch"],
    threats: Sequence[Threat],
    *,
    attacks: dict[str, Attack] | None = None,
    known: Verdict | None = None,
) -> list[Verdict]:
    """Verdicts for rising budgets of one norm. An example found at a small budget counts at every larger one.

    So each budget attacks only what the smaller ones left standing, and the curve never rises. Failed attempts of the
    budget before, stretched to the new one, are tried before any attack. ``known`` is a verdict at a smaller budget to
    start from.

    Raises:
        ThreatError: where norms or boxes differ or the budgets do not rise.
    """
    points = [*([] if known is None else [known.threat]), *threats]
    if any(a.norm != b.norm or a.box != b.box or a.eps >= b.eps for a, b in pairwise(points)):
        raise ThreatError(
            "a curve needs one norm, one box and rising budgets", [str(t) for t in points], "sort the budgets"
        )
    chosen = default_attacks(model, x) if attacks is None else attacks
    verdicts: list[Verdict] = []
    for threat in threats:
        candidates = None if known is None else _stretch(x, known, threat)
        known = robust_accuracy(model, x, y, threat, attacks=chosen, known=candidates)
        verdicts.append(known)
    return verdicts


def _stretch(x: Tensor, known: Verdict, threat: Threat) -> Tensor:
    """What fooled the model at a smaller budget, and failed attempts carried on to the larger one."""
    factor = threat.eps / known.threat.eps if known.threat.eps > 0 else 1.0
    stretched = threat.project(x + factor * (known.adversarial - x), x)
    return torch.where(known.fallen.reshape(-1, *(1,) * (x.ndim - 1)), known.adversarial, stretched)


def _wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Misclassified; an answer that is not a number is no right answer."""
    return (logits.argmax(1) != y) | ~torch.isfinite(logits).all(1)


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
            apgd(model, x[rows], y[rows], threat, steps=steps, objective=objective, drop_fallen=False, seed=seed)
            for rows in torch.arange(len(x), device=x.device).split(_BATCH)
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
        objective = scaled_cross_entropy(logit_scale(logits_of(model, train[0])))
        delta = universal(model, *train, threat, steps=steps, objective=objective, seed=seed)
        moved = apply_universal(test[0], delta[None], threat)
        wrong = _wrong(logits_of(model, moved), test[1])
        return 1.0 - float((wrong & within(moved, test[0], threat)).double().mean()), delta
