"""Findings are sentences computed from correlations: crafted ones give the sentence they must."""

from __future__ import annotations

import pytest

from pinchpoint.records import Correlation, Family, Level
from pinchpoint.study.findings import bound_finding, direction, findings, headline


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
    said = findings("linf", 0.1, [correlation(-0.9, [-0.95, -0.8]), ratio()], FALLING, 15)
    assert said == [
        "linf 0.1: robust accuracy fell as compressibility rose (Spearman -0.90 over 15 models, -0.95 to -0.80 by seed; "
        "robust over clean accuracy -0.50 over 15 models, -0.50 in each seed): the paper's direction. From 0.50 ± "
        "0.01 (level 0) to 0.30 ± 0.01 (level 2)."
    ]


def test_finding_that_rose():
    (said,) = findings("linf", 0.1, [correlation(0.9, [0.95, 0.8]), ratio(0.4)], RISING, 15)
    assert "robust accuracy rose as compressibility rose (Spearman +0.90 over 15 models, +0.80 to" in said
    assert "): opposite to the paper. From 0.30 ± 0.01 (level 0) to 0.50 ± 0.01 (level 2)." in said


def test_finding_that_is_undecided_and_highest_in_between():
    hump = [level(0, 0.3), level(1, 0.6, None), level(2, 0.2)]
    (said,) = findings("linf", 0.1, [correlation(-0.2, [-0.5, 0.1]), ratio()], hump, 15)
    assert "robust accuracy did not move consistently as compressibility rose (Spearman -0.20" in said
    assert "): undecided. From 0.30 ± 0.01 (level 0) to 0.20 ± 0.01 (level 2)." in said
    assert said.endswith(" It was highest in between: 0.60 (level 1).")


def test_sign_that_changes_over_budgets_is_said():
    curve = [
        correlation(-0.9, [-0.9, -0.8], eps=0.02),
        correlation(-0.1, [0.1, -0.2], eps=0.05),
        correlation(0.9, [0.9, 0.8], eps=0.1),
        correlation(0.8, [0.9, 0.8], eps=0.2),
        correlation(-0.9, [-0.9, -0.8], eps=0.1, norm="l2"),
    ]
    _, said = findings("linf", 0.1, [*reversed(curve), ratio()], RISING, 15)
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
    _, said = findings("linf", 0.1, [*curve, ratio()], FALLING, 15)
    assert said == expected


def test_finding_without_any_ratio_is_said_all_the_same():
    (said,) = findings("linf", 0.1, [correlation(None, [None, None], p=None)], [level(0, 0.0), level(1, 0.0)], 4)
    assert "(Spearman undefined; robust over clean accuracy undefined): undecided. From 0.00 ± 0.01 (level 0)" in said


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


def test_headline_says_all_three_and_takes_the_judged_budget():
    families = [
        family("Down", FALLING, correlation(-0.9, [-0.9, -0.9])),
        family("Up", RISING, correlation(0.8, [0.8, 0.8]), correlation(0.1, [0.3, -0.2], norm="l2", eps=0.5)),
        family("Hump", [level(0, 0.1), level(1, 0.4), level(2, 0.2)], correlation(0.1, [0.1, -0.1])),
    ]
    assert headline(families, 45, 1) == (
        "Over 45 models (1 seed), robust accuracy fell as compressibility rose, the paper's direction, for Down (linf "
        "0.1: Spearman -0.90, -0.90 in each seed); it rose as compressibility rose, opposite to the paper, for Up "
        "(linf 0.1: Spearman +0.80, +0.80 in each seed); it showed no consistent direction for Up (l2 0.5: Spearman "
        "+0.10, -0.20 to +0.30 by seed) and Hump (linf 0.1: Spearman +0.10, -0.10 to +0.10 by seed; highest at a middle "
        "level)."
    )


def test_bound_finding_quotes_the_paper_beside_what_was_seen():
    said = bound_finding(correlation(0.55, [0.3, 0.6], metric="gap_bound"))
    assert said == (
        "linf 0.1: the gap bound ranks the models against the measured loss gap with Spearman +0.55 over 15 models, "
        "+0.30 to +0.60 by seed (the paper reports a correlation of 0.947 in its setting)."
    )
