"""Adversarial training: attacks handed to the training loop, and a check that single-step training has not collapsed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from pinchpoint.attack import Threat, cross_entropy, pgd
from pinchpoint.attack.gradient import eval_mode
from pinchpoint.attack.inner_pgd import inner_pgd
from pinchpoint.data.part import Part
from pinchpoint.evaluate import not_asked, robust_accuracy
from pinchpoint.records import ThreatNorm
from pinchpoint.utils.config import StrictModel, fraction
from pinchpoint.utils.model_output import answer

_COLLAPSED = 0.5  # of the best robust accuracy so far


class AdversarialConfig(StrictModel):
    """The attack in the inner loop of training.

    ``pgd`` takes ``steps`` gradient steps (Madry et al. 2018); ``fast`` one, from a random start (Wong, Rice & Kolter
    2020), and robust accuracy against PGD is watched, because such training can collapse within an epoch. How much of each
    batch is attacked, and whether the loss is that of TRADES, says the training's own configuration.
    """

    kind: Literal["pgd", "fast"] = "pgd"
    norm: ThreatNorm = "linf"
    eps: float = Field(default=8 / 255, gt=0, allow_inf_nan=False)
    steps: int = Field(default=10, ge=1, description="pgd only")
    step_size: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    check_samples: int = Field(default=256, ge=0, description="fast only: validation samples of the check; 0: none")

    _fractions = field_validator("eps", "step_size", mode="before")(fraction)

    @model_validator(mode="after")
    def _makes_sense(self) -> AdversarialConfig:
        Threat(self.norm, self.eps)
        return self

    @property
    def threat(self) -> Threat:
        """Ball and box."""
        return Threat(self.norm, self.eps)


def training_attack(
    config: AdversarialConfig, *, trades: bool = False
) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """What ``pinchpoint.train.train`` takes as ``attack``.

    Args:
        config: which attack.
        trades: maximise the Kullback-Leibler divergence from the clean prediction (Zhang et al. 2019, equation 5) instead
            of the cross-entropy.

    >>> attack = training_attack(AdversarialConfig(eps=0.1))
    >>> attack(nn.Linear(2, 2), torch.full((1, 2), 0.5), torch.tensor([0])).shape
    torch.Size([1, 2])
    """
    threat, steps = config.threat, config.steps if config.kind == "pgd" else 1

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        objective = _divergence(model, x) if trades else cross_entropy
        return inner_pgd(model, x, y, threat, steps=steps, step_size=config.step_size, objective=objective)

    return attack


class OverfittingCheck:
    """Whether robust accuracy against PGD has collapsed since its best epoch ("catastrophic overfitting").

    After each epoch, 10 steps of PGD attack the first validation samples. Training ends, and goes back to the epoch before,
    when less than half of the best robust accuracy so far is left.

    Args:
        config: norm and budget.
        part: where the samples come from.
        device: where the model is.
    """

    def __init__(self, config: AdversarialConfig, part: Part, device: torch.device) -> None:
        self.threat = config.threat
        rows = torch.arange(min(config.check_samples, len(part)))
        self.x, self.y = next(iter(part.batches([rows], device)))
        self.best = torch.zeros((), dtype=torch.float64)

    def __call__(self, model: nn.Module) -> str | None:
        attacks = {"pgd": lambda m, x, y, threat: pgd(m, x, y, threat, steps=10)}
        with not_asked(model):  # training is watched here; a verdict on the model is another matter
            left = robust_accuracy(model, self.x, self.y, self.threat, attacks=attacks).robust_accuracy
        best = float(self.best)
        if left < _COLLAPSED * best:
            return f"catastrophic overfitting: accuracy under PGD at {self.threat} fell from {best:.1%} to {left:.1%}"
        self.best.fill_(max(left, best))
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """The best robust accuracy so far."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self.best = state["best"].clone()


def _divergence(model: nn.Module, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    with eval_mode(model), torch.no_grad():
        clean = answer(model, x).log_softmax(1)

    def divergence(logits: Tensor, y: Tensor) -> Tensor:
        return nn.functional.kl_div(logits.log_softmax(1), clean, log_target=True, reduction="none").sum(1)

    return divergence
