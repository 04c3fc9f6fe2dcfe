"""One model attacked by name, as a user asks for it: every threat, what settled each sample, and what to mistrust."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pinchpoint.attack import (
    Threat,
    apply_universal,
    fgsm,
    gradient_doubt,
    logit_scale,
    pgd,
    scaled_log_odds,
    square,
    standard_ensemble,
    universal,
)
from pinchpoint.attack.samples import check_logits, check_samples, check_threats
from pinchpoint.bound import margins, radii_from_margins
from pinchpoint.errors import ConfigError, ModelError, ThreatError
from pinchpoint.evaluate.certified import attack_certified, chosen
from pinchpoint.evaluate.curve import smallest_eps
from pinchpoint.evaluate.default_attacks import BLIND, Attack, default_attacks
from pinchpoint.evaluate.logits import BATCH, logits_of, misclassified
from pinchpoint.evaluate.masking import masking_warnings
from pinchpoint.evaluate.model_checks import doubts_of, one_answer
from pinchpoint.evaluate.robust_accuracy import Progress, Watcher, robust_accuracy
from pinchpoint.evaluate.verdict import Verdict, save_examples
from pinchpoint.measure.layers import float64_copy
from pinchpoint.records import Attacked, AttackSheet, CurvePoint, Norm
from pinchpoint.utils.files import writable

Name = Literal["standard", "quick", "apgd", "pgd", "fgsm", "square", "universal"]
"""The attacks that go by a name: the two ensembles, and single ones."""

_STEPS: dict[str, int | None] = {"apgd": 100, "pgd": 40, "square": 5000, "universal": 30}
_LOOKED_AT = 32  # samples on which signs of masked gradients are sought
_WHITE_BOX = ("standard", "quick", "apgd")  # strong enough to be compared with queries alone


@dataclass(frozen=True)
class Samples:
    """Inputs in [0, 1] and labels: those attacked, and those a universal perturbation is fitted on."""

    x: Float[Tensor, "batch *shape"]
    y: Int[Tensor, "batch"]
    fit: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Plan:
    """Which attack, and what to do around it.

    Args:
        attack: ``standard`` and ``quick``: the ensembles of ``standard_ensemble``; ``apgd``: AutoPGD with cross-entropy,
            then with DLR (the margin for two classes), which ``robust_accuracy`` runs by default; ``pgd``: one random start;
            ``fgsm``; ``square``: queries only; ``universal``: one perturbation for all, fitted on other data. Logits whose
            spread is no ordinary one are rescaled for all that raise cross-entropy (``logit_scale``).
        steps: of ``apgd`` (100), ``pgd`` (40) or ``universal`` (30), queries of ``square`` (5000).
        curve: number of budgets up to eps at which robust accuracy is read off a search for each sample's smallest
            (``smallest_eps``); 0 for no curve, and none beside ``square`` and ``universal``, which ask another question.
        certify_s: seconds to bound the model with first, so that samples whose certified radius covers eps need no attack;
            0 for none. l1 uses the radii in l2: an l1 ball lies in the l2 ball of its size.
        checks: look for masked gradients (not after ``fgsm`` or ``universal``, which are too weak to tell). Whether the
            gradient is the function's is looked at in any case.
        low_precision, batch_size: as in ``robust_accuracy``.
        seed: of everything drawn.

    Raises:
        ConfigError: for an unknown attack, and for numbers out of range.
    """

    attack: Name = "standard"
    steps: int | None = None
    curve: int = 0
    certify_s: float = 0.0
    checks: bool = True
    low_precision: bool = False
    batch_size: int = BATCH
    seed: int = 0

    def __post_init__(self) -> None:
        if self.attack not in get_args(Name):
            raise ConfigError(f"attack must be one of {', '.join(get_args(Name))}", self.attack, "write one of these")
        if self.steps is not None and self.attack not in _STEPS:
            remedy = f"leave them out for {self.attack}"
            raise ConfigError(f"steps can be chosen for {', '.join(_STEPS)}", self.steps, remedy)
        if self.steps is not None and self.steps < 1:
            raise ConfigError(
                "an attack needs one step or more", self.steps, f"leave them out for {_STEPS[self.attack]}"
            )
        if self.curve < 0:
            raise ConfigError("a curve has zero budgets or more", self.curve, "use for example 20")
        if not 0 <= self.certify_s < math.inf:
            raise ConfigError("certifying takes zero seconds or more", self.certify_s, "use for example 10")

    @property
    def effort(self) -> int | None:
        """Steps or queries; None where the attack has none to choose."""
        return self.steps or _STEPS.get(self.attack)


def attack_sheet(
    model: nn.Module,
    data: Samples,
    threats: Sequence[Threat],
    plan: Plan | None = None,
    *,
    out: Path | None = None,
    watcher: Watcher | None = None,
) -> AttackSheet:
    """Attack a model under each threat and write down what became of every sample.

    Args:
        model: returns logits; put into eval mode and back.
        data: inputs and labels; ``universal`` needs ``fit``.
        threats: at least one.
        plan: which attack; the standard ensemble where None.
        out: a folder for one .safetensors file a threat (``save_examples``) and, while an evaluation runs, its state: the
            same call goes on from there.
        watcher: as in ``robust_accuracy``.

    Raises:
        ConfigError, ThreatError, DataError, ModelError, CheckpointError: for what makes no sense, each saying why.
        StoreError: where ``out`` cannot be written.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> data = Samples(torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.1, 0.9], [0.2, 0.8]]), torch.tensor([0, 0, 0, 0]))
    >>> found = attack_sheet(model, data, [Threat("linf", 0.2)], Plan("apgd", checks=False))
    >>> found.threats[0].robust_accuracy, found.threats[0].stage
    (0.25, ['apgd-ce', 'survived', 'clean', 'clean'])
    """
    plan = plan or Plan()
    if not threats:
        raise ThreatError("an attack needs a threat", "none", "give for example linf:8/255")
    check_threats(threats)
    if len({_file(threat) for threat in threats}) < len(threats):
        raise ThreatError("each threat is attacked once", ", ".join(map(str, threats)), "leave out the second")
    if plan.attack == "universal" and data.fit is None:
        raise ConfigError("a universal perturbation is fitted on other data", "none", "give training data as fit")
    x, y = check_samples(data.x, data.y, *threats)
    data = Samples(x, y, data.fit)
    if out is not None:
        with writable(out):
            pass
    with one_answer(model, x, warn=False) as doubt:
        logits = logits_of(model, x, plan.batch_size)
        check_logits(logits, y, len(x))
        clean = ~misclassified(logits, y)
        doubts = [*([] if doubt is None else [doubt]), *doubts_of(y, clean, logits.shape[1])]
        return AttackSheet(
            attack=plan.attack,
            steps=plan.effort,
            seed=plan.seed,
            samples=len(x),
            fitted_on=len(data.fit[0]) if plan.attack == "universal" and data.fit is not None else None,
            clean_accuracy=float(clean.double().mean()),
            threats=[_attacked(model, data, threat, plan, clean, doubts, out, watcher) for threat in threats],
        )


def write_sheet(sheet: AttackSheet, folder: Path) -> Path:
    """Write ``attack.json`` beside the examples; the file appears whole or not at all."""
    with writable(folder):
        beside = folder / ".attack.json.writing"
        beside.write_text(sheet.model_dump_json(indent=1))
        return beside.replace(folder / "attack.json")


def _attacked(
    model: nn.Module,
    data: Samples,
    threat: Threat,
    plan: Plan,
    clean: Tensor,
    doubts: Sequence[str],
    out: Path | None,
    watcher: Watcher | None,
) -> Attacked:
    """One threat. ``clean`` says which samples are right without attack; ``doubts`` are warnings about all threats."""
    start = time.perf_counter()
    warnings = list(doubts)
    radii = _radii(model, data, threat, plan.certify_s, warnings) if plan.certify_s > 0 else None
    certified = None if radii is None else clean & (radii.to(clean.device) > 0) & (radii.to(clean.device) >= threat.eps)
    checked = None
    if radii is not None and certified is not None:  # a false certificate is found before anything is built on it
        some = chosen(certified, seed=plan.seed)
        checked = attack_certified(model, data.x[some], data.y[some], threat, radii[some], seed=plan.seed)
    state = None if out is None else out / f"{_file(threat)}.state.safetensors"
    if watcher is not None and plan.attack == "universal":
        watcher(Progress("fitting", 0, len(clean), int(clean.sum()), len(clean)))
    verdict = robust_accuracy(
        model,
        data.x,
        data.y,
        threat,
        attacks=_attacks(model, data, threat, plan),
        certified_radii=radii,
        batch_size=plan.batch_size,
        low_precision=plan.low_precision,
        watcher=watcher,
        resume=state,
    )
    points = _curve(model, data, verdict, radii, plan)
    if plan.checks and plan.attack not in ("fgsm", "universal"):
        by_gradients = _by_gradients(verdict, plan.attack)
        warnings += masking_warnings(
            model, data.x, data.y, threat, verdict=by_gradients, samples=_LOOKED_AT, seed=plan.seed
        )
    elif (doubt := gradient_doubt(model, data.x, seed=plan.seed)) is not None:
        warnings.append(doubt.sentence)
    examples = None
    if out is not None and state is not None:
        examples = out / f"{_file(threat)}.safetensors"
        save_examples(examples, verdict, data.x, data.y)
        state.unlink(missing_ok=True)
    low, high = _interval(int((~verdict.fallen).sum()), len(clean))
    return Attacked(
        norm=threat.norm,
        eps=threat.eps,
        robust_accuracy=verdict.robust_accuracy,
        robust_low=low,
        robust_high=high,
        certified_accuracy=None if certified is None else float(certified.double().mean()),
        certified_attacked=checked,
        settled=verdict.settled,
        stage=list(verdict.stage),
        rejected=verdict.rejected,
        curve=points,
        examples=None if examples is None else str(examples),
        warnings=warnings,
        seconds=time.perf_counter() - start,
    )


def _attacks(model: nn.Module, data: Samples, threat: Threat, plan: Plan) -> dict[str, Attack]:
    """The stages of an attack that goes by a name."""
    name, count, seed = plan.attack, plan.effort or 1, plan.seed
    if name == "standard" or name == "quick":
        return standard_ensemble(model, data.x, version=name, seed=seed)
    if name == "apgd":
        return default_attacks(model, data.x, steps=count, seed=seed, batch_size=plan.batch_size)
    if name == "square":
        return {name: partial(square, queries=count, seed=seed)}
    if name == "universal" and data.fit is not None:
        delta = universal(model, *data.fit, threat, steps=count, seed=seed)
        return {name: partial(_moved, delta)}
    objective = scaled_log_odds(logit_scale(logits_of(model, data.x, plan.batch_size)))
    if name == "fgsm":
        return {name: partial(fgsm, objective=objective, seed=seed)}
    return {name: partial(pgd, steps=count, objective=objective, seed=seed)}


def _moved(delta: Tensor, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    return apply_universal(x, delta[None], threat)


def _radii(model: nn.Module, data: Samples, threat: Threat, seconds: float, warnings: list[str]) -> Tensor | None:
    """Certified radii, from logits in float64; None with a warning where the model cannot be bounded."""
    norm: Norm = "linf" if threat.norm == "linf" else "l2"
    try:
        constants = margins(model, norm=norm, input_shape=data.x.shape[1:], budget_s=seconds).upper
    except ModelError as error:
        warnings.append(f"not certified: {error}")
        return None
    exact = logits_of(float64_copy(model).to(data.x.device), data.x.double())
    return radii_from_margins(exact, data.y, constants)


def _curve(model: nn.Module, data: Samples, verdict: Verdict, radii: Tensor | None, plan: Plan) -> list[CurvePoint]:
    """Robust and certified accuracy at evenly spaced budgets up to eps; what the verdict says counts at eps."""
    threat, count = verdict.threat, plan.curve
    if count == 0 or threat.eps == 0 or plan.attack in ("square", "universal"):
        return []
    options: dict[str, int] = {"seed": plan.seed, "batch_size": plan.batch_size}
    eps, _ = smallest_eps(model, data.x, data.y, threat.norm, threat.eps, box=threat.box, **options)
    eps[verdict.fallen] = eps[verdict.fallen].clamp_max(threat.eps)
    points = []
    for budget in (threat.eps * (place + 1) / count for place in range(count)):
        standing = eps > budget
        certified = None if radii is None else float((standing & (radii.to(eps.device) >= budget)).double().mean())
        accuracy = float(standing.double().mean())
        points.append(CurvePoint(eps=budget, robust_accuracy=accuracy, certified_accuracy=certified))
    return points


def _by_gradients(verdict: Verdict, attack: str) -> Verdict | None:
    """The verdict as gradients alone reached it; None where no gradient was followed to the end."""
    if attack not in _WHITE_BOX:
        return None
    blind = torch.tensor([name in BLIND for name in verdict.stage], device=verdict.fallen.device)
    return replace(verdict, fallen=verdict.fallen & ~blind)


def _interval(successes: int, samples: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    from scipy.stats import binomtest

    interval = binomtest(successes, samples).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _file(threat: Threat) -> str:
    """A threat's name as a file: linf-0.03137."""
    return f"{threat.norm}-{threat.eps:.6g}"
