"""What is drawn of a model's decisions: planes through samples, and representations along their principal axes."""

from __future__ import annotations

from typing import Literal

from pinchpoint.records.base import Record, ThreatNorm

Space = Literal["input", "representation"]
"""Pixels, or what the head is given."""


class DecisionPlane(Record):
    """What a model answers on the plane through a sample that its perturbation and a dominant direction span.

    The sample is at (0, 0), the perturbed one at (``length``, 0), the dominant direction points from the origin towards
    (``along``, ``across``), of length 1. ``coordinates`` are those of columns and rows alike, l2 distances in the units of
    the space; ``labels[row][column]`` is the class answered there, with ``confidence`` its probability. ``excess`` is how
    far the pixel farthest outside the box is outside (0: the point is an image); None where there is no box.
    """

    space: Space
    sample: int
    label: int
    clean_label: int
    adversarial_label: int
    length: float
    along: float
    across: float
    coordinates: list[float]
    labels: list[list[int]]
    confidence: list[list[float]]
    excess: list[list[float]] | None


class RepresentationPCA(Record):
    """Clean and adversarial representations along the principal axes of the clean ones.

    ``explained`` is each axis' share of the clean variance; ``moved`` each axis' share of the squared length of the
    movements from clean to adversarial, so that 1 minus their sum is what the picture does not show. ``answers`` are the
    classes answered under attack.
    """

    clean: list[list[float]]
    adversarial: list[list[float]]
    labels: list[int]
    answers: list[int]
    explained: list[float]
    moved: list[float]


class Pictures(Record):
    """Pictures of one model under one norm. ``planes`` has each chosen sample in both spaces, one after the other."""

    norm: ThreatNorm
    eps: float
    planes: list[DecisionPlane]
    pca: RepresentationPCA
