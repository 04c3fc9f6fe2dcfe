"""What one step of an audit found. An ``Audit`` is put together from them, and a study keeps each on its own."""

from __future__ import annotations

from pinchpoint.records.base import Record, ThreatNorm
from pinchpoint.records.bounds import Bounds
from pinchpoint.records.profile import Profile


class Measured(Record):
    """Weights measured, and the accuracy on the clean samples that all later steps use."""

    profile: Profile
    clean_accuracy: float
    samples: int
    parameters: int


class Bounded(Record):
    """Certified numbers under one norm. ``radii`` are those of the samples, 0 where the sample is wrong."""

    bounds: Bounds
    eps: float
    gap_bound: float
    radii: list[float]


class RobustAt(Record):
    """Robust accuracy at one budget."""

    eps: float
    robust_accuracy: float


class Judged(Record):
    """What attacks left under one norm: at the judged budget ``eps``, and along the curve (rising, ``eps`` in it)."""

    norm: ThreatNorm
    eps: float
    robust_accuracy: float
    clean_loss: float
    adversarial_loss: float
    settled: dict[str, int]
    curve: list[RobustAt]


class Fooled(Record):
    """Accuracy under one perturbation for all inputs, fitted on training data."""

    norm: ThreatNorm
    eps: float
    accuracy: float


class Queried(Record):
    """Robust accuracy where the adversary only sees answers, ``queries`` a sample at most."""

    norm: ThreatNorm
    eps: float
    queries: int
    robust_accuracy: float


class Retrieved(Record):
    """Shares of queries that find their match among the first 1, 5 and 10: the text of an image, and the image of a text."""

    images: int
    captions: int
    image_to_text_1: float
    image_to_text_5: float
    image_to_text_10: float
    text_to_image_1: float
    text_to_image_5: float
    text_to_image_10: float


class Carried(Record):
    """Robust accuracy under examples that were made on another model; ``surrogate_accuracy`` is that one's own, clean."""

    norm: ThreatNorm
    eps: float
    robust_accuracy: float
    surrogate_accuracy: float
