"""Claims as files say them, and verdicts on rows made to show a trend, its opposite, or nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from oracles.as_user import refused
from pinchpoint.errors import ConfigError
from pinchpoint.study.analysis.verdicts import judge
from pinchpoint.study.config.claims import ClaimConfig
from pinchpoint.utils.config import validate


def claim(**how):
    return validate(ClaimConfig, {"id": "it", "says": "It falls", **how}, "claims")


def trend(**changes):
    asked = {"metric": "robust_accuracy", "norm": "linf", "expected": "falls", "families": ["rank"]}
    return claim(trend={**asked, **changes})


def contrast(**changes):
    of, than = {"family": "rank", "label": 3}, {"family": "rank", "label": 0}
    return claim(
        contrast={"metric": "robust_accuracy", "norm": "linf", "expected": "lower", "of": of, "than": than} | changes
    )


def rows(slopes, *, levels=4, seeds=3, family="rank", noise=0.0, curve=()):
    """Robust accuracy .5 + slope x level in each family; ``slopes`` is one number or one a seed."""
    generator = np.random.default_rng(0)
    made = []
    for level in range(levels):
        for seed in range(seeds):
            slope = slopes[seed] if isinstance(slopes, (list, tuple)) else slopes
            accuracy = 0.5 + slope * level + 0.01 * seed + noise * generator.normal()
            made.append({
                "family": family, "level": level, "label": str(level), "seed": seed, "run": f"{family}{level}{seed}",
                "compressibility": 0.2 + 0.1 * level + 0.001 * seed, "clean_accuracy": 0.8, "eps_linf": 0.1,
                "robust_accuracy_linf": accuracy, "universal_accuracy_linf": 0.9 * accuracy, "universal_eps_linf": 0.3,
                "curve_linf": [{"eps": 0.1, "robust_accuracy": accuracy, "certified_accuracy": None},
                               *({"eps": eps, "robust_accuracy": 0.5 + factor * slope * level, "certified_accuracy": 0.0}
                                 for eps, factor in curve)],
            })  # fmt: skip
    return made


def one(config, given, **options):
    (verdict,) = judge([config], given, **options)
    return verdict


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({}, "claims: claim 'it' is either a trend or a contrast, but got neither; give one of them."),
        (
            {"trend": {"metric": "robust_accuracy", "expected": "falls"}},
            "claims, trend: robust_accuracy is measured under a norm, but got none; name one, for example norm: linf.",
        ),
        (
            {"trend": {"metric": "clean_accuracy", "norm": "l2", "expected": "falls"}},
            "claims, trend: clean_accuracy is measured without a norm, but got l2; leave norm out.",
        ),
        (
            {"trend": {"metric": "gap", "norm": "l2", "eps": 0.1, "expected": "rises"}},
            "claims, trend: only robust_accuracy, robust_over_clean, certified_accuracy are measured at several budgets, "
            "but got gap; leave eps out.",
        ),
        (
            {"trend": {"metric": "clean_accuracy", "against": "clean_accuracy", "expected": "falls"}},
            "claims, trend: a trend needs two different columns, but got clean_accuracy twice; change against.",
        ),
        (
            {"trend": {"metric": "clean_accuracy", "against": "lipschitz", "expected": "falls"}},
            "claims, trend: lipschitz is measured under a norm, but got none; name one, for example norm: linf.",
        ),
        (
            {"trend": {"metric": "robust_accuracy", "norm": "l2", "eps": "all", "expected": "falls"}},
            "claims, trend.eps: eps must be a budget, each or null, but got all; write eps: each for every budget of the "
            "curve.",
        ),
        (
            {"trend": {"metric": "clean_accuracy", "expected": "drops"}},
            "claims: trend.expected: Input should be 'falls' or 'rises', but got 'drops'; use 'falls' or 'rises'.",
        ),
        (
            {"trend": {"metric": "clean_accuracy", "expected": "falls", "familys": ["rank"]}},
            "claims: every key must be known, but got trend.familys; perhaps families is meant.",
        ),
        (
            {
                "contrast": {
                    "metric": "clean_accuracy",
                    "expected": "lower",
                    "of": {"family": "a", "label": "x"},
                    "than": {"family": "b"},
                }
            },
            "claims, contrast: both sides of a contrast name a label, or neither, but got ['x', None]; add or remove one.",
        ),
        (
            {
                "contrast": {
                    "metric": "clean_accuracy",
                    "expected": "lower",
                    "of": {"family": "a"},
                    "than": {"family": "a", "metric": "clean_accuracy"},
                }
            },
            "claims, contrast: the sides of a contrast must differ, but got a twice; change one of them.",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused_in_a_sentence(how, text):
    with refused(ConfigError, text):
        claim(**how)


def test_both_ways_at_once_are_refused():
    with refused(ConfigError, "claims: claim 'it' is either a trend or a contrast, but got both; give one of them."):
        claim(trend=trend().trend.model_dump(), contrast=contrast().contrast.model_dump())


def test_claims_are_checked_against_the_families():
    families = {"rank": ["0", "3"], "other": ["x"]}
    trend().check(families)
    contrast().check(families)
    with refused(ConfigError, "claim 'it' must name families of the study, but got lasso; use one of: rank, other."):
        trend(families=["rank", "lasso"]).check(families)
    with refused(ConfigError, "claim 'it' must name a label of family 'rank', but got 4; use one of: 0, 3."):
        contrast(of={"family": "rank", "label": 4}).check(families)
    with refused(
        ConfigError,
        "claim 'it' compares families level by level, so they must share labels, but got 0, 3 and x; name a label on both "
        "sides.",
    ):
        contrast(of={"family": "rank"}, than={"family": "other"}).check(families)


@pytest.mark.parametrize(("slope", "ruling"), [(-0.1, "supported"), (0.1, "opposite")])
def test_trend_that_every_seed_shows_decides(slope, ruling):
    verdict = one(trend(), rows(slope))
    assert verdict.ruling == ruling
    assert verdict.effect == pytest.approx(np.sign(slope))
    assert verdict.by_seed == [verdict.effect] * 3
    assert verdict.p_value == verdict.p_corrected == verdict.floor == pytest.approx(2 / 24**3)
    assert (verdict.reason, verdict.eps, verdict.tests, verdict.seeds) == (None, 0.1, 1, [0, 1, 2])
    assert (verdict.interval.low, verdict.interval.high, verdict.interval.level) == (
        verdict.effect,
        verdict.effect,
        0.75,
    )
    turned = one(trend(expected="rises"), rows(slope))
    assert turned.ruling == ({"supported", "opposite"} - {ruling}).pop()


def test_a_lipschitz_bound_has_a_norm_and_no_budget():
    measured = [row | {"lipschitz_linf": 2.0 + row["level"]} for row in rows(-0.1)]
    verdict = one(trend(metric="lipschitz", expected="rises"), measured)
    assert (verdict.ruling, verdict.norm, verdict.eps) == ("supported", "linf", None)
    assert verdict.sentence.startswith("Supported: the Lipschitz bound in linf rises with compressibility in rank (")


def test_trend_in_words():
    assert one(trend(), rows(-0.1)).sentence == (
        "Supported: robust accuracy under linf 0.1 falls with compressibility in rank (Spearman -1.00 over 3 seeds, "
        "-1.00 in each; p = 0.00014), from 0.51 (0) to 0.21 (3)."
    )


def test_one_seed_decides_nothing():
    for config in (trend(), contrast()):
        verdict = one(config, rows(-0.1, seeds=1))
        assert (verdict.ruling, verdict.reason) == ("undecided", "one seed decides nothing")
        assert (verdict.p_value, verdict.p_corrected, verdict.tests) == (None, None, 0)


def test_two_levels_are_too_few_for_three_seeds():
    verdict = one(trend(), rows(-0.1, levels=2))
    assert (verdict.ruling, verdict.floor, verdict.tests) == ("undecided", 0.25, 0)
    assert verdict.reason == "so few seeds and levels give p = 0.25 at best"


def test_seeds_that_disagree_leave_a_trend_open_however_small_p():
    verdict = one(trend(), rows([-0.1] * 7 + [0.1], seeds=8))
    assert verdict.p_corrected < 1e-4
    assert verdict.ruling == "undecided"
    assert verdict.reason == "seeds disagree in rank: it falls in 7, rises in 1"
    assert verdict.sentence.startswith(
        "Undecided, because seeds disagree in rank: it falls in 7, rises in 1: robust accuracy under linf 0.1 against "
        "compressibility in rank (Spearman -0.75 over 8 seeds, -1.00 to +1.00 by seed; p < 0.0001), from "
    )


def test_a_trend_for_several_families_must_hold_in_each():
    both = trend(families=None)
    falling = rows(-0.1) + rows(-0.05, family="lasso")
    verdict = one(both, falling)
    assert (verdict.ruling, verdict.where) == ("supported", "rank and lasso")
    assert [(part.family, part.rho) for part in verdict.parts] == [("rank", -1.0), ("lasso", -1.0)]
    mixed = one(both, rows(-0.1) + rows(0.1, family="lasso"))
    assert mixed.reason == "families disagree: it falls in rank, rises in lasso"
    assert (mixed.ruling, mixed.effect) == ("undecided", 0.0)
    weak = one(both, rows(-0.1) + rows(-0.005, family="lasso", noise=0.02))
    lone = one(trend(families=["lasso"]), rows(-0.005, family="lasso", noise=0.02))
    assert weak.p_value == lone.p_value > 0.05, "the largest p of the families"
    lost = one(both, rows(-0.1) + [row | {"robust_accuracy_linf": None} for row in rows(-0.1, family="lasso")])
    assert (lost.ruling, lost.reason) == ("undecided", "robust accuracy was not measured in lasso")
    assert lost.tests == 0


def test_rise_and_fall_is_told_but_decides_nothing():
    given = rows(0.0)
    for row in given:
        row["robust_accuracy_linf"] = (0.5, 0.7, 0.6, 0.2)[row["level"]] + 0.01 * row["seed"]
    verdict = one(trend(), given)
    assert (verdict.ruling, verdict.effect) == ("undecided", pytest.approx(-0.4))
    assert verdict.reason == "p is not below 0.05; in every seed it rises and then falls"
    assert verdict.sentence.endswith("; p = 0.29), from 0.51 (0) over 0.71 (1) to 0.21 (3).")
    given[4]["robust_accuracy_linf"] = 0.1  # level 1 of one seed
    assert "then" not in one(trend(), given).reason
    for row in given:
        row["robust_accuracy_linf"] = (0.5, 0.1, 0.2, 0.6)[row["level"]]
    assert one(trend(), given).reason.endswith("in every seed it falls and then rises")


def test_a_seed_that_does_not_vary_makes_it_no_test():
    given = [row | {"robust_accuracy_linf": 0.0} if row["seed"] == 1 else row for row in rows(-0.1)]
    verdict = one(trend(), given)
    assert verdict.reason == "robust accuracy or compressibility does not vary in seed 1 of rank"
    assert (verdict.by_seed, verdict.p_corrected, verdict.tests) == ([-1.0, None, -1.0], None, 0)


def test_levels_of_different_seeds_are_not_compared():
    given = [row for row in rows(-0.1) if row["seed"] == row["level"] % 3 and row["level"] < 3]
    assert one(trend(), given).reason == "no seed of rank has two levels"


def test_pooled_models_are_ranked_together_and_each_counts_once():
    rank, lasso = rows(-0.1), rows(-0.07, family="lasso")
    for row in lasso:
        if row["level"] == 0:  # the plain model stands in both families
            row["run"] = row["run"].replace("lasso", "rank")
        row["robust_accuracy_linf"] += 0.1 * (row["level"] == 1)
    verdict = one(trend(families=None, pool=True), rank + lasso)
    x = [0.2, 0.3, 0.4, 0.5, 0.3, 0.4, 0.5]
    y = [0.5, 0.4, 0.3, 0.2, 0.53, 0.36, 0.29]
    expected = stats.spearmanr(x, y).statistic
    assert expected != pytest.approx(stats.spearmanr([*x, 0.2], [*y, 0.5]).statistic, abs=1e-3)
    assert verdict.by_seed == pytest.approx([expected] * 3)
    assert [part.family for part in verdict.parts] == ["rank and lasso"]


def test_each_budget_gets_a_verdict_and_all_are_corrected_together():
    given = rows(-0.1, curve=[(0.02, 1.0), (0.3, -1.0), (0.5, 0.0)])
    low, judged, high, flat = judge([trend(eps="each")], given)
    assert [v.eps for v in (low, judged, high, flat)] == [0.02, 0.1, 0.3, 0.5]
    assert [v.ruling for v in (low, judged, high, flat)] == ["supported", "supported", "opposite", "undecided"]
    assert flat.reason == "robust accuracy or compressibility does not vary in seed 0 of rank"
    assert low.tests == 3, "what cannot vary is no test"
    assert low.p_corrected == pytest.approx(3 * low.p_value)
    at = one(trend(eps="3e-1"), given)
    assert (at.ruling, at.eps, at.effect) == ("opposite", 0.3, 1.0)
    off = one(trend(eps=0.2), given)
    assert off.reason == "robust accuracy was not measured in rank"
    assert off.sentence == "Undecided, because robust accuracy was not measured in rank."


def test_ratio_is_known_over_the_curve_too():
    given = rows(-0.1, curve=[(0.3, -1.0)])
    for row in given:
        row["clean_accuracy"] = 0.9 - 0.2 * row["level"]
    verdict = one(contrast(metric="robust_over_clean", eps=0.3, expected="higher"), given)
    assert verdict.effect == pytest.approx(0.8 / 0.3 - 0.5 / 0.9)


def test_trend_against_another_column():
    given = rows(-0.1)
    falls = one(trend(metric="universal_accuracy", against="robust_accuracy", expected="rises"), given)
    assert (falls.ruling, falls.effect, falls.eps) == ("supported", 1.0, 0.3)
    assert one(trend(against="level"), given).ruling == "supported"
    plain = claim(trend={"metric": "compressibility", "against": "level", "expected": "rises"})
    assert one(plain, given).ruling == "supported"


def test_contrast_is_a_paired_t_over_seeds():
    given = rows([-0.1, -0.11, -0.09])
    verdict = one(contrast(), given)
    differences = [-0.3, -0.33, -0.27]
    expected = stats.ttest_1samp(differences, 0)
    assert verdict.by_seed == pytest.approx(differences)
    assert verdict.effect == pytest.approx(-0.3)
    assert verdict.p_value == pytest.approx(expected.pvalue)
    assert verdict.interval.low == pytest.approx(expected.confidence_interval(0.95).low)
    assert (verdict.ruling, verdict.unit, verdict.where) == ("supported", "share", "rank 3 against rank 0")
    assert verdict.sentence == (
        "Supported: robust accuracy under linf 0.1 is 30.0 points lower for rank 3 than for rank 0 (paired by 3 seeds, "
        "-37.5 to -22.5 with 95 % confidence; p = 0.0033), 0.21 against 0.51."
    )


def test_contrast_that_seeds_leave_open():
    assert one(contrast(), rows([-0.1, -0.1, 0.1])).reason == "seeds disagree: higher in 1, lower in 2"
    assert one(contrast(), rows([-0.1, -0.1, 0.0])).reason == "seeds disagree: higher in 0, lower in 2, the same in 1"
    assert one(contrast(), rows(0.0)).reason == "there is no difference in any seed"
    same = one(contrast(), rows(-0.1))
    assert same.reason == "so few seeds and levels give p = 0.25 at best", "equal differences leave t undefined"
    loose = one(contrast(), rows([-0.1, -0.01, -0.04]))
    assert loose.reason == "p is not below 0.05"
    missing = one(contrast(of={"family": "rank", "label": 9}), rows(-0.1))
    assert missing.sentence == "Undecided, because robust accuracy was not measured in rank 9."


def test_contrast_over_shared_levels_and_between_columns():
    given = rows([-0.1, -0.11, -0.09]) + rows([-0.05, -0.05, -0.06], family="lasso", levels=3)
    verdict = one(contrast(of={"family": "rank"}, than={"family": "lasso"}), given)
    assert verdict.by_seed == pytest.approx([-0.05, -0.06, -0.03]), "means over the three levels that both have"
    columns = one(contrast(of={"family": "rank"}, than={"family": "rank", "metric": "universal_accuracy"}), given)
    robust = [np.mean([r["robust_accuracy_linf"] for r in given[:12] if r["seed"] == seed]) for seed in range(3)]
    assert columns.by_seed == pytest.approx([0.1 * value for value in robust])
    assert "than for rank (accuracy under one universal perturbation)" in columns.sentence


def test_unfinished_seeds_are_left_out():
    given = [row for row in rows([-0.1, -0.11, -0.09]) if (row["seed"], row["level"]) != (2, 3)]
    verdict = one(contrast(), given)
    assert (verdict.seeds, len(verdict.by_seed)) == ([0, 1], 2)
    assert one(trend(), given).p_value == pytest.approx(2 / (24 * 24 * 6))


def test_all_claims_of_a_study_are_corrected_together():
    claims = [trend(), contrast(), trend(metric="gap"), claim(trend={"metric": "clean_accuracy", "expected": "falls"})]
    given = rows([-0.1, -0.11, -0.09], noise=0.001)
    verdicts = judge(claims, given)
    assert [v.tests for v in verdicts] == [2] * 4
    small, large = sorted(v.p_value for v in verdicts[:2])
    assert sorted(v.p_corrected for v in verdicts[:2]) == pytest.approx([2 * small, max(2 * small, large)])
    assert "after Holm’s correction over 2 tests" in verdicts[0].sentence
    other = judge(claims, given, "benjamini_hochberg")
    assert "Benjamini and Hochberg’s correction" in other[0].sentence


def test_enough_tests_take_a_finding_back():
    given = rows([-0.1, -0.125, -0.08])
    assert one(contrast(), given).ruling == "supported"
    many = judge([contrast(metric=m) for m in ["robust_accuracy", *["universal_accuracy"] * 9]], given)
    assert {v.ruling for v in many} == {"undecided"}
    assert many[0].reason == "p is not below 0.05 after Holm’s correction over 10 tests"


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_rows_in_any_order_give_the_same_verdicts(shuffle):
    given = rows([-0.1, -0.11, -0.02], noise=0.1)
    claims = [trend(), contrast()]
    expected = judge(claims, given)
    shuffle.shuffle(given)
    assert judge(claims, given) == expected


def test_noise_is_hardly_ever_called_a_finding():
    """Three seeds and four levels of pure noise, 200 studies: at most 5 % of either kind, up to chance."""
    found = [
        verdict.ruling != "undecided"
        for number in range(200)
        for verdict in judge([trend()], noise(np.random.default_rng(number)))
    ]
    assert np.mean(found) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def noise(generator):
    return [row | {"robust_accuracy_linf": generator.normal()} for row in rows(0.0)]
