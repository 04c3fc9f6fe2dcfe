"""Example images in the order in which they are shown: clean, difference, adversarial, one row a sample."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from pinchpoint.records import AuditReport, Example, ThreatNorm
from pinchpoint.report.audit import text
from pinchpoint.report.class_names import called

_SMALL = 64
"""Pixels of a side up to which an image is enlarged without smoothing."""
_KINDS = ("clean", "difference", "adversarial")
_WORDS = {
    "clean": "Clean",
    "difference": "Difference, scaled",
    "adversarial": "Attacked",
    "universal": "Universal, scaled",
}


@dataclass(frozen=True)
class Shot:
    """One image: its kind in words, what the model answers, whether that is right, and what a screen reader says."""

    kind: str
    png: str
    said: str
    alt: str
    right: bool | None
    small: bool


@dataclass(frozen=True)
class Strip:
    """Images of one sample under one threat, or a universal perturbation."""

    title: str
    shots: Sequence[Shot]


@dataclass(frozen=True)
class Gallery:
    """Strips by threat, and how many strips were left out to keep the page small."""

    groups: Sequence[tuple[str, Sequence[Strip]]] = field(default_factory=list)
    left_out: int = 0

    def __bool__(self) -> bool:
        return bool(self.groups)


def side(png: str) -> int:
    """The longer side of a PNG in base64, from its header; 0 where it has none."""
    head = base64.b64decode(png[:32]) if len(png) >= 32 else b""
    return max(struct.unpack(">II", head[16:24])) if head.startswith(b"\x89PNG") else 0


def _shot(example: Example, names: Sequence[str] | None) -> Shot:
    right = None if example.answer is None or example.label is None else example.answer == example.label
    said = "" if example.answer is None else f"answer: {called(example.answer, names)}"
    of = "" if example.sample is None else f" of sample {example.sample}"
    kind = _WORDS[example.kind]
    return Shot(kind, example.png, said, f"{kind}{of}. {said}".strip(), right, 0 < side(example.png) <= _SMALL)


def _strips(report: AuditReport, norm: ThreatNorm) -> list[Strip]:
    """Samples attacked under a norm, then its universal perturbations."""
    names = report.data.class_names
    own = [item for item in report.examples if item.norm == norm]
    shared = [item for item in report.examples if item.norm is None]
    strips = []
    for sample in dict.fromkeys(item.sample for item in own if item.kind == "adversarial"):
        found = {item.kind: item for item in [*shared, *own] if item.sample == sample}
        label = next((item.label for item in found.values() if item.label is not None), None)
        shots = [_shot(found[kind], names) for kind in _KINDS if kind in found]
        strips.append(Strip(f"Sample {sample}: {called(label, names)}", shots))
    universal = [_shot(item, names) for item in own if item.kind == "universal"]
    return strips + ([Strip("One perturbation for all samples", universal)] if universal else [])


def gallery(report: AuditReport, most: int) -> Gallery:
    """All strips whose images fit into ``most`` characters together, taken from all threats in turn."""
    threats = [(text.threat(item.norm, item.eps), _strips(report, item.norm)) for item in report.threats]
    kept: dict[str, list[Strip]] = {title: [] for title, _ in threats}
    room, left_out = most, 0
    for place in range(max((len(strips) for _, strips in threats), default=0)):
        for title, strips in threats:
            if place >= len(strips):
                continue
            size = sum(len(shot.png) for shot in strips[place].shots)
            if size <= room:
                room -= size
                kept[title].append(strips[place])
            else:
                left_out += 1
    return Gallery([(title, strips) for title, strips in kept.items() if strips], left_out)
