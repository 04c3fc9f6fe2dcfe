"""Findings are sentences computed from correlations: crafted ones give the sentence they must."""

from __future__ import annotations

import pytest

from pinchpoint.records import Correlation, Family, Level, Peak
from pinchpoint.study.analysis.findings import bound_finding, direction, findings, headline


def correlation(
    rho: float | None,
    by_seed: list[float | None],
    *,
    p: float | None = 0.001,
    metric: str = "robust_accuracy",
    norm: str = "linf",
    eps: float = 0.1,
) -> Correlation:
    return Correlation(metric=metric, norm=norm, eps=eps, rho=rho, p_value=p, models=15, rho_by_seed=by_seed)


def level(number: int, mean: float, std: float | None = 0.01) -> Level:
    key = "robust_accuracy_linf"
    return Level(label=f"level {number}", level=number, seeds=3, mean={key: mean}, std={key: std})


FALLING, RISING = [level(0, 0.5), level(1, 0.4), level(2, 0.3)], [level(0, 0.3), level(1, 0.4), level(2, 0.5)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (correlation(-0.9, [-0.9, -0.8, -1.0]), -1),
        (correlation(0.9, [0.9, 0.8, 1.0]), 1),
        (correlation(-0.9, [-0.9]), 0),
        (correlation(-0.9, []), 0),
        (correlation(-0.9, [-0.9, -0.8, 0.1]), 0),
        (correlation(-0.9, [-0.9, -0.8, 0.0]), 0),
        (correlation(-0.9, [-0.9, -0.8, None]), 0),
        (correlation(-0.9, [-0.9, -0.8], p=0.05), 0),
        (correlation(-0.9, [-0.9, -0.8], p=0.0499), -1),
        (correlation(-0.9, [-0.9, -0.8], p=None), 0),
        (correlation(None, [None, None], p=None), 0),
        (correlation(0.0, [0.0, 0.0], p=0.0), 0),
    ],
    ids=[
        "fell", "rose", "one seed", "no seed", "a seed disagrees", "a seed at zero", "a seed undefined", "p too large",
        "p just small enough", "no p", "undefined", "all zero",
    ],
)  # fmt: skip
def test_direction_needs_all_seeds_and_a_small_p(given, expected):
    assert direction(given) == expected


def ratio(rho: float | None = -0.5) -> Correlation:
    return correlation(rho, [rho, rho], metric="robust_over_clean")


def test_finding_that_fell():
    said = findings("linf", 0.1, [correlation(-0.9, [-0.95, -0.8]), ratio()], FALLING)
    assert said == [
        "linf 0.1: robust accuracy fell as compressibility rose, the paper's direction (Spearman -0.90 over 15 models, "
        "-0.95 to -0.80 by seed; robust over clean accuracy -0.50 over 15 models, -0.50 in each seed). From 0.50 ± "
        "0.01 (level 0) to 0.30 ± 0.01 (level 2)."
    ]


def test_finding_that_rose():
    (said,) = findings("linf", 0.1, [correlation(0.9, [0.95, 0.8]), ratio(0.4)], RISING)
    assert "robust accuracy rose as compressibility rose, opposite to the paper (Spearman +0.90 over 15 models" in said
    assert said.endswith("). From 0.30 ± 0.01 (level 0) to 0.50 ± 0.01 (level 2).")


HUMP = [level(0, 0.3), level(1, 0.6, None), level(2, 0.2)]
PEAK = [Peak(norm="linf", label="level 1")]


def test_finding_that_is_open_and_highest_in_between():
    (said,) = findings("linf", 0.1, [correlation(-0.2, [-0.5, 0.1]), ratio()], HUMP)
    assert "robust accuracy shows no clear direction (Spearman -0.20" in said
    assert said.endswith("). From 0.30 ± 0.01 (level 0) over 0.60 (level 1) to 0.20 ± 0.01 (level 2).")


def test_finding_with_a_peak_in_every_seed():
    (said,) = findings("linf", 0.1, [correlation(-0.2, [-0.5, -0.1], p=0.5), ratio()], HUMP, PEAK)
    assert "rose with compressibility at first, opposite to the paper, and then fell, in every seed (Spearman" in said
    (said,) = findings("linf", 0.1, [correlation(-0.9, [-0.9, -0.8]), ratio()], HUMP, PEAK)
    assert "robust accuracy fell as compressibility rose, the paper's direction (" in said


def test_finding_from_one_seed_is_left_open():
    (said,) = findings("linf", 0.1, [correlation(-0.9, [-0.9])], FALLING)
    assert "robust accuracy is left open, since one seed decides nothing (Spearman -0.90 over 15 models;" in said


def test_a_collapse_of_clean_accuracy_is_said():
    first, last = (
        Level(label=label, level=number, seeds=3, mean={"robust_accuracy_linf": 0.3, "clean_accuracy": clean}, std={})
        for number, (label, clean) in enumerate((("none", 0.97), ("strong", 0.6)))
    )
    (said,) = findings("linf", 0.1, [correlation(-0.9, [-0.9, -0.8]), ratio()], [first, last])
    assert said.endswith(" Clean accuracy fell along, from 0.97 to 0.60.")


def test_sign_that_changes_over_budgets_is_said():
    curve = [
        correlation(-0.9, [-0.9, -0.8], eps=0.02),
        correlation(-0.1, [0.1, -0.2], eps=0.05),
        correlation(0.9, [0.9, 0.8], eps=0.1),
        correlation(0.8, [0.9, 0.8], eps=0.2),
        correlation(-0.9, [-0.9, -0.8], eps=0.1, norm="l2"),
    ]
    _, said = findings("linf", 0.1, [*reversed(curve), ratio()], RISING)
    assert said == (
        "linf: the sign depends on the budget: robust accuracy falls with compressibility at eps 0.02, and rises at "
        "0.1, 0.2."
    )


@pytest.mark.parametrize(
    ("rhos", "expected"),
    [
        ([-0.9, -0.8], "linf: over the curve robust accuracy falls at eps 0.1, 0.2."),
        ([0.9, 0.8], "linf: over the curve robust accuracy rises at eps 0.1, 0.2."),
        ([-0.9, None], "linf: over the curve robust accuracy falls at eps 0.1 and is undecided at 1 of 2 budgets."),
        ([None, None], "linf: over the curve robust accuracy is undecided at 2 of 2 budgets."),
    ],
)
def test_curve_without_a_change_of_sign_is_said(rhos, expected):
    curve = [correlation(rho, [rho, rho], eps=eps) for rho, eps in zip(rhos, (0.1, 0.2), strict=True)]
    _, said = findings("linf", 0.1, [*curve, ratio()], FALLING)
    assert said == expected


def test_finding_without_any_ratio_is_said_all_the_same():
    (said,) = findings("linf", 0.1, [correlation(None, [None, None], p=None)], [level(0, 0.0), level(1, 0.0)])
    assert (
        "clear direction (Spearman undefined; robust over clean accuracy undefined). From 0.00 ± 0.01 (level 0)" in said
    )


def family(title: str, levels: list[Level], *judged: Correlation) -> Family:
    gaps = [correlation(0.1, [0.1, 0.1], metric="gap", norm=c.norm, eps=c.eps) for c in judged]
    elsewhere = [correlation(-1.0, [-1.0, -1.0], norm=c.norm, eps=c.eps / 2) for c in judged]
    return Family(
        name="f", title=title, view="neuron", levels=levels, correlations=[*elsewhere, *judged, *gaps], findings=[]
    )


def test_headline_of_one_family_that_fell():
    said = headline([family("Rank", FALLING, correlation(-0.9, [-0.95, -0.8]))], 15, 3)
    assert said == (
        "Over 15 models (3 seeds), robust accuracy fell as compressibility rose, the paper's direction, for Rank (linf "
        "0.1: Spearman -0.90, -0.95 to -0.80 by seed)."
    )


def test_headline_says_all_and_takes_the_judged_budget():
    hump = family("Hump", HUMP, correlation(0.1, [0.1, -0.1]))
    families = [
        family("Down", FALLING, correlation(-0.9, [-0.9, -0.9])),
        family("Up", RISING, correlation(0.8, [0.8, 0.8]), correlation(0.1, [0.3, -0.2], norm="l2", eps=0.5)),
        hump.model_copy(update={"peaks": PEAK}),
        family("Lone", RISING, correlation(0.8, [0.8])),
    ]
    assert headline(families, 45, 2) == (
        "Over 45 models (2 seeds), robust accuracy fell as compressibility rose, the paper's direction, for Down (linf "
        "0.1: Spearman -0.90, -0.90 in each seed); it rose as compressibility rose, opposite to the paper, for Up "
        "(linf 0.1: Spearman +0.80, +0.80 in each seed); it rose with mild compression and fell with strong, in every "
        "seed, for Hump (linf 0.1: Spearman +0.10, -0.10 to +0.10 by seed, highest at level 1); it shows no clear "
        "direction for Up (l2 0.5: Spearman +0.10, -0.20 to +0.30 by seed); it is left open, since one seed "
        "decides nothing, for Lone (linf 0.1: Spearman +0.80)."
    )


def test_bound_finding_quotes_the_paper_beside_what_was_seen():
    said = bound_finding(correlation(0.55, [0.3, 0.6], metric="gap_bound"))
    assert said == (
        "linf 0.1: the gap bound ranks the models against the measured loss gap with Spearman +0.55 over 15 models, "
        "+0.30 to +0.60 by seed (the paper reports rho = 0.947 in its setting)."
    )
