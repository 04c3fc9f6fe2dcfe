"""The first advice followed on a copy: did the prediction hold?

The copy is fine-tuned for one epoch on some training samples, so is the model as it was, and both are judged under the
attacks that made the prediction, on the same samples. The second is the fair rival: fine-tuning alone may help or harm.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from pinchpoint.attack.gradient import eval_mode
from pinchpoint.auditing.actions import apply
from pinchpoint.auditing.intervals import counted
from pinchpoint.data.load import AnyDataset, Dataset
from pinchpoint.evaluate import logits_of, smallest_eps
from pinchpoint.evaluate.logits import misclassified
from pinchpoint.recipes.recipe import Recipe, continue_training
from pinchpoint.records import Advice, Outcome, ThreatNorm, Trial
from pinchpoint.records.base import NORMS
from pinchpoint.train.config import TrainConfig
from pinchpoint.train.parallel import Alone
from pinchpoint.utils.numbers import budget

EPOCHS = 1
SAMPLES = 2000
"""Training samples of the fine-tuning, at most."""
_TUNING = TrainConfig(
    epochs=EPOCHS,
    batch_size=64,
    optimizer="sgd",
    learning_rate=0.01,
    weight_decay=5e-4,
    schedule="cosine",
    patience=None,
)


def follow_advice(
    model: nn.Module,
    data: AnyDataset,
    advice: Advice,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 30,
    seed: int = 0,
) -> Trial:
    """Follow an advice on a copy of the model, and see what its predictions come to.

    Args:
        model: the audited one; it stays as it is.
        data: its training part tunes both copies.
        advice: whose ``action`` is done and whose predictions are held against what is measured.
        x, y: samples it is judged on.
        steps: of the search for the smallest budget of each sample.
        seed: of fine-tuning and attacks.

    Raises:
        ConfigError, ModelError: where the action cannot be done.
    """
    few = _few(data, SAMPLES)
    changed = _tuned(apply(model, advice.action), few, seed)
    plain = _tuned(copy.deepcopy(model), few, seed)
    budgets = {(one.norm, one.eps) for one in advice.predicted if one.norm is not None}
    after, rival = (_judged(one, budgets, x, y, steps, seed) for one in (changed, plain))
    outcomes = [
        Outcome(
            metric=one.metric,
            norm=one.norm,
            eps=one.eps,
            before=one.before,
            predicted=one.after,
            low=one.low,
            high=one.high,
            measured=after[one.metric, one.norm, one.eps],
            alone=rival[one.metric, one.norm, one.eps],
            held=one.low <= after[one.metric, one.norm, one.eps] <= one.high,
        )
        for one in advice.predicted
        if (one.metric, one.norm, one.eps) in after
    ]
    return Trial(
        advice=advice.id,
        title=advice.title,
        epochs=EPOCHS,
        samples=len(few.train),
        outcomes=outcomes,
        said=_said(advice, outcomes, after, rival),
    )


_Budget = tuple[ThreatNorm | None, float | None]
_Measured = dict[tuple[str, ThreatNorm | None, float | None], float]


def _judged(
    model: nn.Module,
    budgets: Collection[tuple[ThreatNorm | None, float | None]],
    x: Tensor,
    y: Tensor,
    steps: int,
    seed: int,
) -> _Measured:
    """Clean accuracy, and robust accuracy at every budget."""
    with eval_mode(model):
        right = ~misclassified(logits_of(model, x), y)
        found: _Measured = {("clean_accuracy", None, None): counted(right.tolist()).value}
        for norm in NORMS:
            mine = [eps for other, eps in budgets if other == norm and eps is not None]
            if mine:
                smallest, _ = smallest_eps(model, x, y, norm, max(mine), steps=steps, seed=seed)
                for eps in mine:
                    found["robust_accuracy", norm, eps] = counted((smallest > eps).tolist()).value
        return found


def _few(data: AnyDataset, most: int) -> Dataset:
    """The first training samples, in memory; what is tuned is judged elsewhere."""
    x, y = data.train.tensors(min(most, len(data.train)))
    held = data.validation if len(data.validation) else data.train
    check = held.tensors(min(256, len(held)))
    return Dataset(data.name, data.classes, x, y, *check, *check)


def _tuned(model: nn.Module, data: Dataset, seed: int) -> nn.Module:
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    continue_training(model, Recipe(train=_TUNING), data, seed=seed, engine=Alone(device))
    return model.eval()


def _said(advice: Advice, outcomes: Sequence[Outcome], after: _Measured, rival: _Measured) -> str:
    def alone(metric: str, norm: ThreatNorm | None, eps: float | None) -> str:
        return f"{rival[metric, norm, eps]:.1%}"

    parts = [
        f"robust accuracy at {one.norm} {budget(one.norm, one.eps)} went from {one.before:.1%} to {one.measured:.1%} where "
        f"{one.predicted:.1%} ({one.low:.0%} to {one.high:.0%}) was predicted, so the prediction "
        f"{'held' if one.held else 'failed'}; fine-tuning alone leads to {alone(one.metric, one.norm, one.eps)}"
        for one in outcomes
        if one.metric == "robust_accuracy"
    ]
    told = f": {'; '.join(parts)}" if parts else ", which predicts nothing that could be measured"
    clean = f"{after['clean_accuracy', None, None]:.1%}, of fine-tuning alone {alone('clean_accuracy', None, None)}"
    return f"Tried: {advice.title}{told}; clean accuracy is {clean}."
