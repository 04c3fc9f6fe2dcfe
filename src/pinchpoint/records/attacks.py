"""What attacks left of a model, and what carried over from one model to another."""

from __future__ import annotations

from typing import Literal

from pinchpoint.records.base import Record, ThreatNorm


class CurvePoint(Record):
    """Accuracies under one budget."""

    eps: float
    robust_accuracy: float
    certified_accuracy: float | None


class Attacked(Record):
    """What became of each sample under one threat, decided by a check independent of the attack.

    ``robust_low`` and ``robust_high`` are the 95 % interval (Wilson) of the robust accuracy. ``stage`` names for each sample
    what settled it and ``settled`` counts them: ``clean`` (wrong without attack), ``certified`` (no attack can succeed), an
    attack, or ``survived``. ``rejected`` examples fooled the model outside ball or box and do not count.
    """

    norm: ThreatNorm
    eps: float
    robust_accuracy: float
    robust_low: float
    robust_high: float
    certified_accuracy: float | None
    certified_attacked: int | None = None
    settled: dict[str, int]
    stage: list[str]
    rejected: int
    curve: list[CurvePoint]
    examples: str | None
    warnings: list[str]
    seconds: float


class AttackSheet(Record):
    """One model under one attack and several threats. ``fitted_on`` counts the samples of a universal perturbation."""

    attack: str
    steps: int | None
    seed: int
    samples: int
    fitted_on: int | None
    clean_accuracy: float
    threats: list[Attacked]


class Robustness(Record):
    """What attacks left of one model under one norm, decided by a check independent of the attack.

    ``gap`` is the adversarial loss found minus the clean loss (cross-entropy, nats); ``gap_bound`` is what Corollary 3.3
    allows. ``universal_accuracy`` is judged at a budget of its own, ``universal_eps``; ``query_accuracy`` is left by an
    adversary who sees at most ``queries`` answers a sample, ``transferred_accuracy`` by examples made on another model.
    ``settled`` counts the samples by the stage that settled them.
    """

    norm: ThreatNorm
    eps: float
    robust_accuracy: float
    robust_over_clean: float | None
    clean_loss: float
    adversarial_loss: float
    gap: float
    gap_bound: float | None
    universal_accuracy: float | None
    universal_eps: float | None = None
    query_accuracy: float | None = None
    queries: int | None = None
    transferred_accuracy: float | None = None
    settled: dict[str, int]
    curve: list[CurvePoint]


class TransferMatrix(Record):
    """What was made on one model (a row) and tried on another (a column), in the order of ``models``.

    ``made`` says what: examples of the judged samples themselves, or one universal perturbation fitted on ``fitted_on``
    other samples. ``robust_accuracy[source][target]`` is the share of samples the target gets right under it (and, for
    examples, without it). ``finds[source][target]`` counts the samples both get right without attack and the source wrong
    under it; on ``carried[source][target]`` of these the target is wrong, too.
    """

    made: Literal["examples", "universal"]
    norm: ThreatNorm
    eps: float
    samples: int
    fitted_on: int | None
    models: list[str]
    clean_accuracy: list[float]
    robust_accuracy: list[list[float]]
    finds: list[list[int]]
    carried: list[list[int]]


class Access(Record):
    """What is left of a model under adversaries who know more or less of it: does the weakness need white-box access?

    ``white_box`` is its robust accuracy under attacks that see its gradients, ``transfer`` under examples made on each
    surrogate, ``queries`` under at most ``query_budget`` answers a sample, ``black_box`` under all surrogates' examples
    and queries together. ``only_white_box`` counts samples that fell to gradients alone, ``only_black_box`` those that
    gradients missed: many of them mean that the gradients are masked.
    """

    norm: ThreatNorm
    eps: float
    samples: int
    clean_accuracy: float
    white_box: float
    transfer: dict[str, float]
    queries: float
    query_budget: int
    black_box: float
    only_white_box: int
    only_black_box: int
