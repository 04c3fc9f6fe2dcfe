"""A made-up audit like that of a CIFAR ResNet: 20 layers, two threats, comparison, trial, images, nasty class names."""

from __future__ import annotations

import base64
import math
import random
import struct
import zlib
from typing import Any

from pinchpoint.records import (
    Advice,
    AuditReport,
    Bounds,
    BudgetPoint,
    Comparison,
    DecisionPlane,
    Example,
    LayerMechanism,
    Mechanism,
    Outcome,
    Paired,
    Phase,
    Pictures,
    PinchPoint,
    Prediction,
    Profile,
    RepresentationPCA,
    Samples,
    Share,
    Skipped,
    Subject,
    ThreatNorm,
    ThreatReport,
    Timing,
    Trial,
)

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
CLASSES = ["airplane", "<b>automobile</b>", "bird", NASTY, "deer", "dog & cat", "frog", "horse", 'a "ship"', "truck"]
LAYERS = ["conv1", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in (0, 1, 2) for c in (1, 2)), "linear"]
EPS: dict[ThreatNorm, float] = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
SAMPLES = 200


def share(value: float, of: int = SAMPLES) -> Share:
    count = round(value * of)
    p, z = count / of, 1.959964
    middle, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    low, high = (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)
    return Share(value=p, low=max(0.0, low), high=min(1.0, high), count=count, of=of)


def png(side: int, noise: random.Random, channels: int = 3) -> str:
    """A small picture of a slope and some noise."""
    rows = b"".join(
        b"\0" + bytes((x * 5 + y * 3 * c + noise.randrange(30)) % 256 for x in range(side) for c in range(channels))
        for y in range(side)
    )
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def threat(norm: ThreatNorm, strength: float) -> ThreatReport:
    eps = EPS[norm]
    curve = [
        BudgetPoint(
            eps=eps * step / 4,
            robust=share(0.91 * math.exp(-strength * (step / 4) ** 1.4)),
            certified=max(0.0, 0.91 - 2.2 * step / 4) if norm != "l1" else None,
        )
        for step in range(9)
    ]
    robust = curve[4].robust
    clean_wrong = SAMPLES - share(0.91).count
    fallen = SAMPLES - clean_wrong - robust.count
    settled = {"clean": clean_wrong, "apgd-ce": fallen - fallen // 5, "apgd-dlr": fallen // 5, "survived": robust.count}
    stage = [name for name, count in settled.items() for _ in range(count)]
    return ThreatReport(
        norm=norm, eps=eps, attack="quick", robust=robust, universal=share(0.55), certified=share(0.0),
        median_radius=0.0004, gap=4.1, gap_bound=913.0, settled=settled, stage=stage, curve=curve,
        warnings=["queries found what gradients did not on 2 samples"] if norm == "linf" else [],
    )  # fmt: skip


def points(layers: list[str], noise: random.Random) -> list[PinchPoint]:
    excess = [
        max(0.0, noise.gauss(0.05, 0.08)) + 0.7 * (name == "layer3.0.conv1") + 0.3 * (name == "conv1")
        for name in layers
    ]
    order = sorted(range(len(layers)), key=lambda place: -excess[place])
    total = sum(excess)
    found = []
    for rank, place in enumerate(order, 1):
        name, last = layers[place], layers[place] == "linear"
        random_gain = noise.uniform(-0.5, 0.1)
        advice = (
            ["spread-control", "rank-floor"] if rank == 1 else ["targeted-pruning"] if rank == 2 else ["spread-control"]
        )
        found.append(
            PinchPoint(
                rank=rank, layer=name, kind="Linear" if last else "Conv2d", share=excess[place] / total,
                gain=random_gain + excess[place], random_gain=random_gain, amplification=0.1 + 0.07 * place,
                alignment=min(1.0, 0.4 + excess[place]), alignment_baseline=0.31, neuron=0.35, spectral=0.62,
                stable_rank=3.4, effective_rank=18.2, operator_norm=None if last else 4.2,
                structure=None if last else 2.4, scale=None if last else 1.8, neighbour=None if place == 0 else 0.8,
                why=f"{name} raises adversarial perturbations {math.exp(excess[place]):.1f} times more than random ones: "
                "few directions carry it (stable rank 3.4 of 64), and the attack points along them.",
                advice=advice if rank <= 6 else [],
            )
        )  # fmt: skip
    return found


def advice() -> list[Advice]:
    def gets(metric: str, norm: ThreatNorm | None, before: float, after: float, width: float, how: str) -> Prediction:
        eps = EPS[norm] if norm else None
        return Prediction(
            metric=metric,
            norm=norm,
            eps=eps,
            before=before,
            after=after,
            low=after - width,
            high=after + width,
            how=how,
        )

    curve = "read off the measured curve at eps · f^share, with its interval"
    return [
        Advice(
            id="spread-control", title="Clip the largest singular values of layer3.0.conv1", layers=["layer3.0.conv1"],
            action={"kind": "spectral_ball", "factor": 2.0},
            command="pinchpoint compress model.safetensors --spectral-ball layer3.0.conv1=2.0 --fine-tune 3 --out treated",
            because="Its largest singular value is 5.1 times the median, and 31 % of what attacks gain is gained there.",
            predicted=[
                gets("robust_accuracy", "linf", 0.115, 0.19, 0.05, curve),
                gets("robust_accuracy", "l2", 0.205, 0.28, 0.06, curve),
                gets("lipschitz", "l2", 4210.0, 1890.0, 0.5, "computed from the weights of the changed copy"),
            ],
        ),
        Advice(
            id="rank-floor", title="Keep at least 24 directions of layer3.0.conv1", layers=["layer3.0.conv1"],
            action={"kind": "rank_floor", "rank": 24}, command="pinchpoint compress model.safetensors --rank-floor 24",
            because="Below 24 directions the structure factor rises faster than the layer shrinks.", predicted=[],
        ),
        Advice(
            id="targeted-pruning", title="Prune conv1 to a residual, not to a share", layers=["conv1"],
            action={"kind": "prune"}, command="pinchpoint compress model.safetensors --residual 0.1",
            because="Filters were removed evenly, though their norms are not even.",
            predicted=[gets("robust_accuracy", "linf", 0.115, 0.14, 0.04, curve)],
        ),
        Advice(
            id="where-to-stop", title="Stop pruning at 40 % of the filters", layers=[], action={"kind": "stop"}, command="",
            because="The residual passes 0.1 at 40 %; beyond it the curve falls faster than the size.", predicted=[],
        ),
    ]  # fmt: skip


def mechanism(norm: ThreatNorm, layers: list[str], noise: random.Random, factor: float = 1.0) -> Mechanism:
    made, size = [], 0.03
    for name in layers:
        size *= math.exp(noise.uniform(-0.05, 0.25))
        made.append(
            LayerMechanism(
                name=name, k=8, alignment=noise.uniform(0.35, 0.9), baseline=0.25, amplification=size * factor
            )
        )
    return Mechanism(norm=norm, eps=EPS[norm], amplification=size, layers=made)


def pictures(norm: ThreatNorm, noise: random.Random, side: int = 33) -> Pictures:
    def plane(space: Any, sample: int) -> DecisionPlane:
        reach = [round(0.08 * (place - side // 2), 4) for place in range(side)]
        labels = [[3 if x + 0.4 * y < 0.6 else 5 if y < 0.4 else 1 for x in reach] for y in reach]
        sure = [[noise.uniform(0.6, 1.0) for _ in reach] for _ in reach]
        return DecisionPlane(
            space=space, sample=sample, label=3, clean_label=3, adversarial_label=5, length=0.9, along=0.3, across=0.95,
            coordinates=reach, labels=labels, confidence=sure,
            excess=[[max(0.0, abs(x) - 1) for x in reach] for _ in reach] if space == "input" else None,
        )  # fmt: skip

    labels = [row % 10 for row in range(80)]
    clean = [[noise.gauss(3 * math.cos(label), 0.6), noise.gauss(3 * math.sin(label), 0.6)] for label in labels]
    moved = [[x + noise.gauss(0.8, 0.5), y - noise.gauss(0.4, 0.5)] for x, y in clean]
    answers = [(label + (row % 3)) % 10 for row, label in enumerate(labels)]
    pca = RepresentationPCA(
        clean=clean, adversarial=moved, labels=labels, answers=answers, explained=[0.41, 0.22], moved=[0.3, 0.2]
    )
    planes = [plane(space, sample) for sample in (4, 17) for space in ("input", "representation")]
    return Pictures(norm=norm, eps=EPS[norm], planes=planes, pca=pca)


def examples(norm: ThreatNorm, side: int, count: int, noise: random.Random) -> list[Example]:
    found = []
    for sample in range(count):
        label = (sample + 3) % 10
        base = {"norm": norm, "sample": 3 * sample, "label": label}
        found += [
            Example(kind="clean", answer=label, png=png(side, noise), **base),
            Example(kind="difference", answer=None, png=png(side, noise), **base),
            Example(kind="adversarial", answer=(label + 2) % 10, png=png(side, noise), **base),
        ]
    whole = Example(kind="universal", norm=norm, sample=None, label=None, answer=None, png=png(side, noise))
    return [*found, whole]


def comparison() -> Comparison:
    def row(
        metric: str, norm: ThreatNorm | None, first: float, second: float, only: tuple[int, int], p: float
    ) -> Paired:
        return Paired(
            metric=metric, norm=norm, eps=EPS[norm] if norm else None, first=share(first), second=share(second), both=10,
            only_first=only[0], only_second=only[1], neither=SAMPLES - 10 - sum(only), difference=second - first,
            low=second - first - 0.05, high=second - first + 0.05, p_value=p,
        )  # fmt: skip

    return Comparison(
        first="cifar10_resnet20_dense.safetensors", second="cifar10_resnet20.safetensors",
        rows=[
            row("clean_accuracy", None, 0.925, 0.91, (5, 2), 0.45),
            row("robust_accuracy", "linf", 0.28, 0.115, (35, 2), 0.0000004),
            row("robust_accuracy", "l2", 0.17, 0.205, (8, 15), 0.21),
            row("universal_accuracy", "linf", 0.5, 0.55, (4, 14), 0.03),
        ],
        said=["Under ℓ∞, ε = 8/255 the pruned model is less robust by 16.5 points (p < 0.001): more than chance.",
              "Clean accuracy differs by 1.5 points, which chance explains (p = 0.45)."],
    )  # fmt: skip


def trial() -> Trial:
    first = advice()[0]
    outcomes = [
        Outcome(
            metric=item.metric, norm=item.norm, eps=item.eps, before=item.before, predicted=item.after, low=item.low,
            high=item.high, measured=measured, alone=item.before, held=item.low <= measured <= item.high,
        )
        for item, measured in zip(first.predicted, (0.175, 0.21, 1890.0), strict=True)
    ]  # fmt: skip
    return Trial(
        advice=first.id, title=first.title, epochs=3, samples=5000, outcomes=outcomes,
        said="Two of three predictions held; robust accuracy under ℓ₂ stayed below what was predicted.",
    )  # fmt: skip


def report(
    norms: tuple[ThreatNorm, ...] = ("linf", "l2"),
    *,
    layers: list[str] | None = None,
    name: str = "cifar10_resnet20.safetensors",
    full: bool = True,
    side: int = 32,
    count: int = 3,
    seed: int = 0,
) -> AuditReport:
    """The audit; with ``full`` a comparison, a trial, the other model and images."""
    noise, layers = random.Random(seed), layers or LAYERS
    shift = 0.02 * seed
    return AuditReport(
        title=f"Audit of {name}", command=f"pinchpoint audit {name} --data cifar10 --threat linf:8/255 --threat l2:0.5",
        seed=0, budget=600.0 if full else None,
        subject=Subject(
            name=name, notes=["architecture: cifar_resnet20, from the names and shapes of the weights"],
            normalisation="mean 0.491, 0.482, 0.447; std 0.247, 0.243, 0.262 (of CIFAR-10)", parameters=272_474, classes=10,
            input_shape=[3, 32, 32],
        ),
        data=Samples(name="cifar10", count=SAMPLES, of=10_000, class_names=CLASSES),
        verdict=[
            "Moderately compressible: half of the filters and a third of the directions carry 90 % of its layers.",
            "Hardly robust: of 91 % that it gets right, attacks leave 12 % at ℓ∞ 8/255 and 8 % at ℓ₂ 0.5.",
            "layer3.0.conv1 pinches most: 31 % of what attacks gain over noise is gained there; clip its spectrum first.",
        ],
        clean=share(0.91 - shift),
        threats=[threat(norm, 2.0 + 0.4 * place - 0.8 * seed) for place, norm in enumerate(norms)],
        pinch_points=points(layers, noise), advice=advice(), trial=trial() if full else None,
        comparison=comparison() if full else None,
        other=report(norms, layers=layers, name="cifar10_resnet20_dense.safetensors", full=False, count=0, seed=seed + 1)
        if full
        else None,
        profile=Profile(
            layers=[], skipped=[Skipped(name="bn1", kind="BatchNorm2d", reason="folded into conv1")], neuron=0.36,
            spectral=0.61, entrywise=0.4, column=0.3, weighted={"neuron": 0.36, "spectral": 0.61},
        ),
        bounds=[
            Bounds(
                norm="l2", lipschitz=4210.0, lipschitz_structure=None, lipschitz_lower=31.0, head_factor=2.5, layers=[],
                median_radius=0.0004, assumptions=["ReLU is 1-Lipschitz", "batch norm is folded in"],
            )
        ],
        mechanism=[mechanism(norm, layers, noise, 1.0 + seed) for norm in norms],
        pictures=[pictures(norm, noise) for norm in norms] if full else [],
        examples=[item for norm in norms for item in examples(norm, side, count, noise)] if full and count else [],
        phases=[Phase(name="attack", done=True, said=""), Phase(name="bounds", done=True, said=""),
                Phase(name="trial", done=full, said="" if full else "not asked for")],
        warnings=["200 samples: an accuracy can be off by 7 points"],
        versions={"pinchpoint": "0.1.0", "torch": "2.13.0", "python": "3.11.9"}, machine="2 cores, 8 GB, Linux",
        timing=Timing(seconds=412.3, phases={"attack": 301.0, "bounds": 44.0}),
    )  # fmt: skip
