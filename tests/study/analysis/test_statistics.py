"""Statistics against SciPy, brute force over every permutation or resample, and what theory says of their error rates."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pinchpoint.study.analysis.resampling import bootstrap, permuted, permuted_ranks
from pinchpoint.study.analysis.statistics import associate, corrected, paired, ranks, spearman

few = st.integers(-3, 3).map(float)
values = st.one_of(few, st.floats(-1e6, 1e6, allow_subnormal=False))
pairs = st.lists(st.tuples(values, values), min_size=3, max_size=40)


@settings(max_examples=40)
@given(st.lists(values, min_size=1, max_size=30))
def test_ranks_are_those_of_scipy(given):
    assert ranks(given).tolist() == stats.rankdata(given).tolist()


@settings(max_examples=40)
@given(pairs)
def test_spearman_agrees_with_scipy_ties_included(points):
    x, y = (np.array(column) for column in zip(*points, strict=True))
    rho, p_value = spearman(x.tolist(), y.tolist())
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert (rho, p_value) == (None, None)
        return
    expected = stats.spearmanr(x, y)
    assert rho == pytest.approx(expected.statistic, abs=1e-12)
    assert p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)


@settings(max_examples=40)
@given(pairs, st.lists(st.sampled_from([None, math.nan, math.inf]), min_size=1, max_size=4))
def test_spearman_leaves_out_what_is_missing(points, missing):
    whole = spearman(*([list(column) for column in zip(*points, strict=True)]))
    holes = [*points, *((hole, 1.0) for hole in missing), *((2.0, hole) for hole in missing)]
    assert spearman(*([list(column) for column in zip(*holes, strict=True)])) == whole


@pytest.mark.parametrize(
    ("x", "y"), [([1.0, 2.0], [1.0, 2.0]), ([], []), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, None, 2.0], [1, 2, 3])]
)
def test_spearman_is_undefined_for_two_pairs_or_no_variation(x, y):
    assert spearman(x, y) == (None, None)


def test_spearman_of_a_hundred_thousand_rows():
    generator = np.random.default_rng(0)
    x = generator.normal(size=100_000)
    y = (x + generator.normal(size=100_000)).round(1)
    rho, _ = spearman(x.tolist(), y.tolist())
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_trend_without_ties_is_page_s_exact_test():
    generator = np.random.default_rng(1)
    for seeds, levels in ((2, 3), (3, 3), (3, 4), (3, 5), (5, 4), (2, 7)):
        table = generator.normal(size=(seeds, levels)) - 0.5 * np.arange(levels)
        x = np.tile(np.arange(levels) ** 2.0, seeds)
        found = associate(x, table.ravel(), np.repeat(np.arange(seeds), levels))
        rises = stats.page_trend_test(table, predicted_ranks=np.arange(1, levels + 1), method="exact")
        falls = stats.page_trend_test(table, predicted_ranks=np.arange(levels, 0, -1), method="exact")
        assert found.p_rises == pytest.approx(rises.pvalue, rel=1e-9)
        assert found.p_falls == pytest.approx(falls.pvalue, rel=1e-9)
        assert found.p_value == pytest.approx(min(1, 2 * min(rises.pvalue, falls.pvalue)), rel=1e-9)
        assert found.floor == pytest.approx(2 / math.factorial(levels) ** seeds, rel=1e-9)
        by_seed = [stats.spearmanr(x[:levels], row).statistic for row in table]
        assert list(found.by_seed.values()) == pytest.approx(by_seed)
        assert found.coefficient == pytest.approx(np.mean(by_seed))
        assert found.pooled == pytest.approx(stats.spearmanr(x, table.ravel()).statistic)
        assert found.test == "Page’s trend test within seeds, exact"


def brute_force(blocks, score):
    """The one-sided chances over every permutation of every seed."""
    scored = [(score(np.array(x)), score(np.array(y))) for x, y in blocks]
    orders = [list(itertools.permutations(y)) for _, y in scored]
    sums = np.array(
        [sum(np.dot(x, y) for (x, _), y in zip(scored, ys, strict=True)) for ys in itertools.product(*orders)]
    )
    seen = sum(np.dot(x, y) for x, y in scored)
    return float((sums <= seen + 1e-9).mean()), float((sums >= seen - 1e-9).mean())


@settings(max_examples=25)
@given(st.lists(st.lists(st.tuples(few, few), min_size=2, max_size=3), min_size=1, max_size=3))
def test_trend_with_ties_and_missing_levels_is_exact_given_them(blocks):
    columns = [tuple(zip(*block, strict=True)) for block in blocks]
    rows = [(x, y, seed) for seed, block in enumerate(blocks) for x, y in block]
    found = associate(*zip(*rows, strict=True))
    low, high = brute_force(columns, stats.rankdata)
    assert (found.p_falls, found.p_rises) == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))


def standard(values):
    centred = values - values.mean()
    return centred / np.linalg.norm(centred) if np.ptp(values) else 0 * centred


@settings(max_examples=25)
@given(st.lists(st.lists(st.tuples(few, few), min_size=2, max_size=3), min_size=1, max_size=3))
def test_pearson_is_permuted_within_seeds(blocks):
    rows = [(x, y, seed) for seed, block in enumerate(blocks) for x, y in block]
    found = associate(*zip(*rows, strict=True), kind="pearson")
    low, high = brute_force([tuple(zip(*block, strict=True)) for block in blocks], standard)
    assert (found.p_falls, found.p_rises) == (pytest.approx(low), pytest.approx(high))
    for block, r in zip(blocks, found.by_seed.values(), strict=True):
        x, y = zip(*block, strict=True)
        expected = None if len(set(x)) < 2 or len(set(y)) < 2 else pytest.approx(stats.pearsonr(x, y).statistic)
        assert r == expected


def test_exact_p_is_as_rare_as_it_says():
    """Over all orders that three seeds of three levels can show, a p of p comes about in a share p of them."""
    levels = np.arange(1.0, 4.0)
    orders = [np.array(order, dtype=float) for order in itertools.permutations(levels)]
    found = np.array([permuted_ranks([(levels, y) for y in ys]).p_low for ys in itertools.product(orders, repeat=3)])
    for p in np.unique(found):
        assert (found <= p + 1e-12).mean() == pytest.approx(p)


def test_drawn_chances_are_near_the_exact_ones_and_repeat():
    generator = np.random.default_rng(2)
    levels = np.arange(1.0, 11.0)
    blocks = [(levels, stats.rankdata(generator.normal(size=10) + 0.05 * levels)) for _ in range(3)]
    exact, drawn = permuted_ranks(blocks), permuted(blocks)
    assert exact.exact
    assert not drawn.exact
    for one, other in ((exact.p_low, drawn.p_low), (exact.p_high, drawn.p_high)):
        assert other == pytest.approx(one, abs=4 * math.sqrt(one * (1 - one) / 19_999))
    before = np.random.get_state()[1].tolist()  # noqa: NPY002  the global generator is what must not move
    assert permuted(blocks) == drawn
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    longer = [(np.append(x, 11.0), np.append(y, 11.0)) for x, y in blocks]
    assert not permuted_ranks(longer).exact, "more than ten levels are drawn"
    assert permuted_ranks(longer).floor == 1 / 20_000
    perfect = permuted_ranks([(x, x) for x, _ in longer])
    assert perfect.p_high == 1 / 20_000, "never zero: what was seen is one of the draws"


@settings(max_examples=40)
@given(
    st.lists(st.tuples(few, values, st.integers(0, 3)), min_size=2, max_size=16),
    st.permutations(range(4)),
    st.randoms(use_true_random=False),
)
def test_order_and_names_of_seeds_change_nothing(rows, names, shuffle):
    found = associate(*zip(*rows, strict=True))
    shuffle.shuffle(moved := [(x, y, names[seed]) for x, y, seed in rows])
    again = associate(*zip(*moved, strict=True))
    if found is None:
        assert again is None
        return
    assert again.p_value == pytest.approx(found.p_value, rel=1e-9)
    assert again.coefficient == (None if found.coefficient is None else pytest.approx(found.coefficient, abs=1e-12))
    assert {seed: again.by_seed[names[seed]] for seed in found.by_seed} == found.by_seed
    turned = associate([-x for x, _, _ in rows], [math.atan(y) for _, y, _ in rows], [seed for *_, seed in rows])
    if len({y for _, y, _ in rows}) == len({math.atan(y) for _, y, _ in rows}):  # ranks see order only
        assert (turned.p_falls, turned.p_rises) == (pytest.approx(found.p_rises), pytest.approx(found.p_falls))


def test_seeds_without_a_pair_do_not_count():
    assert associate([1, 2], [3, None], [0, 0]) is None
    assert associate([1, 2], [3, 4], [0, 1]) is None
    found = associate([1, 2, 3, 1], [3, 2, math.nan, 5], [0, 0, 0, 1])
    assert (found.models, found.by_seed, found.interval) == (3, {0: -1.0}, None)
    flat = associate([1, 2] * 3, [3, 3, 3, 4, 1, 5], [0, 0, 1, 1, 2, 2])
    assert (flat.by_seed, flat.coefficient, flat.interval) == ({0: None, 1: 1.0, 2: 1.0}, 1.0, None)


def test_two_levels_of_three_seeds_cannot_reach_the_level():
    found = associate([1, 2] * 3, [2, 1] * 3, [0, 0, 1, 1, 2, 2])
    assert found.p_value == found.floor == 0.25


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_few_seeds_are_resampled_in_every_way(seeds, method):
    sample = np.array([0.31, 0.35, 0.28, 0.5, 0.44])[:seeds]
    every = np.sort([np.mean(drawn) for drawn in itertools.product(sample, repeat=seeds)])
    low, high = 0.025, 0.975
    if method == "bca":  # Efron 1987, equations 2.3 and 6.6
        near = np.isclose(every, sample.mean())
        bias = stats.norm.ppf(((every < sample.mean()) & ~near).mean() + near.mean() / 2)
        gone = np.array([np.delete(sample, place).mean() for place in range(seeds)])
        skew = ((gone.mean() - gone) ** 3).sum() / (6 * ((gone.mean() - gone) ** 2).sum() ** 1.5)
        z = bias + stats.norm.ppf([low, high])
        low, high = stats.norm.cdf(bias + z / (1 - skew * z))
    found = bootstrap(lambda drawn: float(sample[drawn].mean()), seeds, method=method)
    assert found.low == pytest.approx(np.quantile(every, low, method="inverted_cdf"))
    assert found.high == pytest.approx(np.quantile(every, high, method="inverted_cdf"))
    assert found.level == min(0.95, 1 - 2.0 ** (1 - seeds))
    assert f"all {math.comb(2 * seeds - 1, seeds)} resamples of {seeds} seeds" in found.method


def test_many_seeds_agree_with_scipy_s_bootstrap():
    sample = np.random.default_rng(3).exponential(size=12)
    for method in ("percentile", "bca"):
        found = bootstrap(lambda drawn: float(sample[drawn].mean()), 12, method=method, draws=6_000)
        expected = stats.bootstrap(
            (sample,), np.mean, method=method, n_resamples=6_000, rng=np.random.default_rng(4)
        ).confidence_interval
        width = expected.high - expected.low
        assert found.low == pytest.approx(expected.low, abs=0.05 * width)
        assert found.high == pytest.approx(expected.high, abs=0.05 * width)
        assert found.level == 0.95


def test_three_seeds_cover_what_their_interval_claims():
    drawn = np.random.default_rng(5).normal(size=(4_000, 3))
    covered = np.mean(
        [
            (found := bootstrap(lambda at, row=row: float(row[at].mean()), 3)).low <= 0 <= found.high
            for row in drawn[:1_000]
        ]
    )
    assert found.level == 0.75
    assert covered == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 1_000))


@settings(max_examples=40)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8))
def test_paired_difference_agrees_with_scipy(points):
    differences = np.array(points) / 100
    found = paired(differences)
    assert found.mean == pytest.approx(differences.mean())
    signs = [np.abs(np.dot(s, differences)) for s in itertools.product((-1, 1), repeat=len(points))]
    assert found.p_signs == pytest.approx((np.array(signs) >= abs(differences.sum()) - 1e-12).mean())
    if len(set(points)) == 1:
        assert (found.p_value, found.interval, found.floor) == (found.p_signs, None, 2.0 ** (1 - len(points)))
        return
    expected = stats.ttest_1samp(differences, 0.0)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    ends = expected.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == (pytest.approx(ends.low), pytest.approx(ends.high))
    assert found.effect_size == pytest.approx(differences.mean() / differences.std(ddof=1))


def test_one_seed_gives_a_difference_and_no_test():
    found = paired([0.1])
    assert (found.mean, found.p_value, found.interval) == (0.1, None, None)


def test_many_seeds_flip_drawn_signs():
    found = paired(np.random.default_rng(6).normal(0.1, 1.0, size=24))
    assert found.p_signs == pytest.approx(found.p_value, abs=0.03)


def test_paired_t_of_three_seeds_errs_as_often_as_its_words_say():
    """Differences of accuracies of two models that are equally good, 300 samples each."""
    accuracies = np.random.default_rng(7).binomial(300, 0.3, size=(3_000, 2, 3)) / 300
    false = np.mean([paired(one - other).p_value < 0.05 for one, other in accuracies])
    assert 0.03 < false < 0.065


chances = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=6)


@given(chances)
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """A hypothesis falls where every set of hypotheses that holds it falls to Bonferroni (Marcus, Peritz, Gabriel 1976)."""
    made = [place for place, p in enumerate(p_values) if p is not None]
    sets = [s for size in range(1, len(made) + 1) for s in itertools.combinations(made, size)]
    for place, found in enumerate(corrected(p_values)):
        if p_values[place] is None:
            assert found is None
        else:
            expected = max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets if place in s)
            assert found == pytest.approx(expected)


@given(chances)
def test_benjamini_and_hochberg_agree_with_scipy(p_values):
    made = [p for p in p_values if p is not None]
    found = [p for p in corrected(p_values, "benjamini_hochberg") if p is not None]
    assert found == pytest.approx(stats.false_discovery_control(made, method="bh").tolist() if made else [])


def test_correction_of_nothing_and_of_one():
    assert corrected([]) == []
    assert corrected([None, 0.04]) == [None, 0.04]
