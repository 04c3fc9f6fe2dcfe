"""Made-up records that look like the demo's: three families, four levels, three seeds, three layers, eight budgets."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from pinchpoint.records import (
    SCHEMA_VERSION,
    Audit,
    Bounds,
    Correlation,
    CurvePoint,
    DecisionPlane,
    Family,
    LayerBound,
    LayerMechanism,
    LayerProfile,
    Level,
    Mechanism,
    Member,
    Norm,
    Pictures,
    Profile,
    RepresentationPCA,
    Robustness,
    Run,
    Skipped,
    Summary,
    Training,
    View,
)
from pinchpoint.study.analysis.verdicts import judge
from pinchpoint.study.config.claims import ClaimConfig

FAMILIES: list[dict[str, Any]] = [
    {"name": "group", "title": "Group lasso on rows", "view": "neuron", "labels": ["none", "1e-3", "3e-3", "1e-2"]},
    {
        "name": "nuclear",
        "title": "Nuclear norm, constant scale",
        "view": "spectral",
        "labels": ["none", "0.005", "0.01", "0.05"],
    },
    {"name": "rank", "title": "Explicit rank", "view": "spectral", "labels": ["full", "rank 32", "rank 16", "rank 8"]},
]
EPS: dict[Norm, float] = {"linf": 0.08, "l2": 0.6}
SHAPES = [("input", 128, 64), ("hidden", 128, 128), ("output", 10, 128)]
MACHINE = "2 cores, 2 GB, Linux"
VERSIONS = {"pinchpoint": "0.1.0", "python": "3.11.9", "torch": "2.8.0"}


def view(n: int, pressure: float, noise: random.Random) -> View:
    raw = sorted((2.718 ** (-(1 + 9 * pressure) * i / n) * noise.uniform(0.9, 1.1) for i in range(n)), reverse=True)
    if pressure == 1:
        raw = raw[: n // 4] + [0.0] * (n - n // 4)
    total, kept = sum(raw), min(n, 256)
    ranks = [1 + round(i * (n - 1) / max(kept - 1, 1)) for i in range(kept)]
    k = max(1, n // 5)
    residual = sum(raw[k:]) / total
    return View(
        n=n, k=k, q=1.0, residual=residual, spread=1 - raw[k - 1] / raw[0], target=0.1, k_for_target=max(1, n - k),
        participation_ratio=total**2 / sum(value**2 for value in raw), pq_index=0.3,
        ranks=ranks, values=[raw[rank - 1] / total for rank in ranks],
        residuals=[sum(raw[rank:]) / total for rank in ranks],
    )  # fmt: skip


def robustness(norm: Norm, pressure: float, clean: float, noise: random.Random) -> Robustness:
    eps = EPS[norm]
    steep = 1.2 + 0.8 * pressure
    curve = []
    for step in range(8):
        budget = eps * 2 * step / 7
        left = clean * 2.718 ** (-steep * (budget / eps) ** 1.5 * 0.6) * noise.uniform(0.97, 1.0)
        certified = max(0.0, clean - (3 + 5 * (1 - pressure)) * budget / eps)
        curve.append(CurvePoint(eps=budget, robust_accuracy=left, certified_accuracy=min(left, certified)))
    main = clean * (0.55 - 0.3 * pressure) * noise.uniform(0.93, 1.07)
    gap = (1 + 2 * pressure) * noise.uniform(0.85, 1.15)
    return Robustness(
        norm=norm, eps=eps, robust_accuracy=main, robust_over_clean=main / clean, clean_loss=0.1,
        adversarial_loss=0.1 + gap, gap=gap, gap_bound=gap * (20 + 180 * pressure) * noise.uniform(0.7, 1.3),
        universal_accuracy=main * 1.4, settled={"clean": 10, "pgd": 150, "apgd": 40, "left": 160}, curve=curve,
    )  # fmt: skip


def bounds(norm: Norm, pressure: float, noise: random.Random) -> Bounds:
    upper = 10 ** (1 + 1.5 * pressure) * noise.uniform(0.8, 1.25)
    layers = [
        LayerBound(name=name, operator_norm=3, structure=2, scale=4, bound=8, k=4, k_row=3) for name, *_ in SHAPES
    ]
    return Bounds(
        norm=norm, lipschitz=upper, lipschitz_structure=upper * 6, lipschitz_lower=upper / 4, head_factor=2.5,
        layers=layers, median_radius=0.02, assumptions=["ReLU is 1-Lipschitz", "weights are finite"],
    )  # fmt: skip


def mechanism(norm: Norm, pressure: float, noise: random.Random) -> Mechanism:
    layers = [
        LayerMechanism(
            name=name, k=8, alignment=min(1.0, 0.45 + 0.4 * pressure + 0.05 * place + noise.uniform(-0.04, 0.04)),
            baseline=(8 / columns) ** 0.5, amplification=(0.2 + 0.15 * place) * (1 + pressure) * noise.uniform(0.9, 1.1),
        )
        for place, (name, _, columns) in enumerate(SHAPES)
    ]  # fmt: skip
    return Mechanism(norm=norm, eps=EPS[norm], amplification=layers[1].amplification, layers=layers)


def pictures(norm: Norm, sample: int, noise: random.Random, side: int = 41, points: int = 60) -> Pictures:
    """Planes of two samples in both spaces, and some representations."""

    def plane(space: Any, sample: int) -> DecisionPlane:
        size = [round(0.1 * place - 0.05 * (side - 1), 4) for place in range(side)]
        labels = [[(row + column + sample) // 30 % 3 for column in range(side)] for row in range(side)]
        confidence = [[noise.uniform(0.4, 1.0) for _ in range(side)] for _ in range(side)]
        excess = (
            [[0.1 * (row == column) for column in range(side)] for row in range(side)] if space == "input" else None
        )
        return DecisionPlane(
            space=space, sample=sample, label=0, clean_label=0, adversarial_label=1, length=0.5, along=0.6, across=0.8,
            coordinates=size, labels=labels, confidence=confidence, excess=excess,
        )  # fmt: skip

    clean = [[noise.gauss(0, 1), noise.gauss(0, 1)] for _ in range(points)]
    pca = RepresentationPCA(
        clean=clean, adversarial=[[x + 0.3, y - 0.2] for x, y in clean], labels=[row % 10 for row in range(points)],
        answers=[row % 7 for row in range(points)], explained=[0.5, 0.25], moved=[0.4, 0.1],
    )  # fmt: skip
    planes = [plane(space, number) for number in (sample, 99) for space in ("input", "representation")]
    return Pictures(norm=norm, eps=EPS[norm], planes=planes, pca=pca)


def pictured(runs: list[Run]) -> list[Run]:
    """The same with pictures, each model's of a sample of its own and of one that all share."""
    drawn = []
    for place, record in enumerate(runs):
        made = [pictures(item.norm, place, random.Random(place)) for item in record.audit.robustness]  # type: ignore[arg-type]
        drawn.append(record.model_copy(update={"audit": record.audit.model_copy(update={"pictures": made})}))
    return drawn


CLAIMS: list[dict[str, Any]] = [
    {"id": "falls", "says": "It falls <i>", "paper": "section 4.1, figure 3", "trend": {
        "metric": "clean_accuracy", "against": "level", "expected": "falls", "families": ["group"],
    }},
    {"id": "curve", "says": "It falls along the whole curve", "paper": "beyond", "trend": {
        "metric": "certified_accuracy", "norm": "l2", "against": "level", "eps": "each", "expected": "falls",
        "families": ["nuclear"],
    }},
    {"id": "gap", "says": "The gap is smaller", "paper": "", "contrast": {
        "metric": "gap", "norm": "linf", "expected": "lower", "of": {"family": "group", "label": "1e-2"},
        "than": {"family": "group", "label": "none"},
    }},
]  # fmt: skip


def judged(summary: Summary) -> Summary:
    """The same with verdicts: a trend, one at eight budgets, and a contrast."""
    claims = [ClaimConfig.model_validate(claim) for claim in CLAIMS]
    return summary.model_copy(update={"verdicts": judge(claims, summary.models)})


def run(family: dict[str, Any], level: int, seed: int, norms: list[Norm]) -> Run:
    pressure = level / 3
    config = {"data": {"name": "digits"}, "model": {"widths": [128, 128]}, "seed": seed}
    config |= {
        "penalty": {"kind": family["name"] if level else "none", "strength": family["labels"][level] if level else 0}
    }
    name = hashlib.sha256(repr(config).encode()).hexdigest()[:12]
    noise = random.Random(name)
    clean = 0.97 - 0.05 * pressure + noise.uniform(-0.01, 0.01)
    layers = [
        LayerProfile(
            name=name, kind="Linear", rows=rows, columns=columns, parameters=rows * columns, frobenius=6.0, matrix_linf=5.0,
            matrix_l2=2.0, linf=5.0, l2_lower=1.99, l2_upper=2.01, norm_method="exact", norm_reason=None,
            effective_rank=30.0, stable_rank=9.0, numerical_rank=64, rank_tolerance=1e-5, row_k=columns // 10,
            row_residual_mean=0.5, row_residual_max=0.6, neuron=view(rows, pressure, noise),
            spectral=view(min(rows, columns), pressure, noise), entrywise=view(rows * columns, pressure, noise),
            column=view(columns, pressure, noise), head=None,
        )
        for name, rows, columns in SHAPES
    ]  # fmt: skip
    neuron, spectral = (0.35 + 0.5 * pressure + noise.uniform(-0.03, 0.03) for _ in range(2))
    skipped = [Skipped(name="norm", kind="LayerNorm", reason="not a linear operator")]
    audit = Audit(
        clean_accuracy=clean, samples=360, seconds={"attack": 1.2}, warnings=["certified radii are zero for 3 samples"],
        profile=Profile(
            layers=layers, skipped=skipped, neuron=neuron, spectral=spectral, entrywise=0.4, column=0.3,
            weighted={"neuron": neuron, "spectral": spectral, "entrywise": 0.4, "column": 0.3},
        ),
        bounds=[bounds(norm, pressure, noise) for norm in norms],
        robustness=[robustness(norm, pressure, clean, noise) for norm in norms],
        mechanism=[mechanism(norm, pressure, noise) for norm in norms],
    )  # fmt: skip
    training = Training(epochs=40, best_epoch=31, validation_loss=0.12, validation_accuracy=clean, seconds=0.8)
    return Run(
        id=name, schema_version=SCHEMA_VERSION, config=config, seed=seed, versions=VERSIONS, machine=MACHINE,
        model="train/0123456789abcdef", training=training, audit=audit,
    )  # fmt: skip


def row(family: dict[str, Any], level: int, record: Run) -> dict[str, Any]:
    audit = record.audit
    made: dict[str, Any] = {
        "run": record.id, "family": family["name"], "family_title": family["title"], "level": level,
        "label": family["labels"][level], "seed": record.seed, "clean_accuracy": audit.clean_accuracy,
        "neuron": audit.profile.neuron, "spectral": audit.profile.spectral,
        "compressibility": getattr(audit.profile, family["view"]),
    }  # fmt: skip
    for item in audit.robustness:
        made |= {f"eps_{item.norm}": item.eps, f"certified_accuracy_{item.norm}": item.curve[3].certified_accuracy}
        made[f"curve_{item.norm}"] = [point.model_dump() for point in item.curve]
        for key in ("robust_accuracy", "robust_over_clean", "universal_accuracy", "gap", "gap_bound"):
            made[f"{key}_{item.norm}"] = getattr(item, key)
    for limit in audit.bounds:
        made |= {
            f"lipschitz_{limit.norm}": limit.lipschitz,
            f"lipschitz_structure_{limit.norm}": limit.lipschitz_structure,
        }
    for found in audit.mechanism:
        made |= {
            f"amplification_{found.norm}": found.amplification,
            f"alignment_{found.norm}": found.layers[0].alignment,
        }
    return made


def level_summary(label: str, level: int, rows: list[dict[str, Any]]) -> Level:
    keys = [key for key, value in rows[0].items() if isinstance(value, float)]
    mean = {key: sum(item[key] for item in rows) / len(rows) for key in keys}
    spread = {key: (sum((item[key] - mean[key]) ** 2 for item in rows) / max(len(rows) - 1, 1)) ** 0.5 for key in keys}
    std = {key: value if len(rows) > 1 else None for key, value in spread.items()}
    return Level(label=label, level=level, seeds=len(rows), mean=mean, std=std)


def correlations(norms: list[Norm], seeds: int, noise: random.Random) -> list[Correlation]:
    def one(metric: str, norm: Norm | None, eps: float | None, rho: float) -> Correlation:
        single = [max(-1.0, min(1.0, rho + noise.uniform(-0.15, 0.15))) for _ in range(seeds)]
        return Correlation(metric=metric, norm=norm, eps=eps, rho=rho, p_value=0.0004, models=12, rho_by_seed=single)

    made = [one("clean_accuracy", None, None, -0.61)]
    for norm in norms:
        for metric, rho in {
            "robust_over_clean": -0.9,
            "universal_accuracy": -0.7,
            "gap": 0.8,
            "lipschitz": 0.95,
        }.items():
            made.append(one(metric, norm, EPS[norm], rho))
        made += [one("amplification", norm, EPS[norm], 0.7), one("alignment", norm, EPS[norm], 0.5)]
        for step in range(1, 8):
            made.append(one("robust_accuracy", norm, EPS[norm] * 2 * step / 7, -0.9 + 0.18 * step))
        made.append(one("robust_accuracy", norm, EPS[norm], -0.35))
    return made


def study(
    families: int = 3, seeds: int = 3, norms: list[Norm] | None = None, titles: list[str] | None = None
) -> tuple[Summary, list[Run]]:
    """A summary and its runs. The plain models are shared by all families, as in the demo."""
    norms = norms or ["linf", "l2"]
    noise = random.Random(7)
    runs: dict[str, Run] = {}
    members, rows, made = [], [], []
    for place, template in enumerate(FAMILIES[:families]):
        family = {**template, "title": titles[place] if titles else template["title"]}
        levels = []
        for level, label in enumerate(family["labels"]):
            found = []
            for seed in range(seeds):
                record = run(family, level, seed, norms)
                runs[record.id] = record
                members.append(Member(family=family["name"], level=level, label=label, seed=seed, run=record.id))
                found.append(row(family, level, record))
            rows += found
            levels.append(level_summary(label, level, found))
        findings = [
            f"At ℓ∞ ε = 0.08 robust accuracy falls with {family['view']} compressibility: ρ = −0.35 over 12 models.",
            "Spread over seeds: ρ between −0.50 and −0.21.",
        ]
        made.append(
            Family(
                name=family["name"], title=family["title"], view=family["view"], levels=levels,
                correlations=correlations(norms, seeds, noise), findings=findings,
            )
        )  # fmt: skip
    summary = Summary(
        study="demo", title="Does compressibility cost robustness? Handwritten digits",
        headline="In 2 of 3 families the more compressible networks were less robust at the main ℓ∞ budget "
        "(ρ = −0.35 and −0.42 over 12 models each); for explicit rank the sign changes with the budget.",
        families=made, models=rows, members=members, versions=VERSIONS, machine=MACHINE,
        notes=["Explicit rank: not reproduced here, the direction depends on the budget."],
    )  # fmt: skip
    return summary, list(runs.values())
