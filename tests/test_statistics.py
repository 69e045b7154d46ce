"""Intervals, tests and effect sizes against scipy, against slow loops, and against truths known by simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analyses.shared.statistics import (
    FEW,
    attainable,
    bootstrap,
    correlation,
    effect_size,
    held_out,
    least_p_value,
    methods,
    null_p_value,
    paired_effect,
    paired_t_p_value,
    q_values,
    said_clear,
    sign_flip_p_value,
    weighted_t_p_value,
)
from interp.errors import InputError

RNG = np.random.default_rng(1)


def test_interval_agrees_with_scipy_for_many_texts():
    values = RNG.exponential(size=(300, 4))
    ours = bootstrap(values, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2))
    np.testing.assert_allclose(ours.value, values.mean(0), rtol=1e-12)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert np.all(np.abs(ours.low - theirs.confidence_interval.low) < 0.05 * width)
    assert np.all(np.abs(ours.high - theirs.confidence_interval.high) < 0.05 * width)


@pytest.mark.parametrize("n_texts", [8, 40])
def test_interval_covers_the_truth_as_often_as_it_says(n_texts):
    """6,000 experiments at once, as entries: normal numbers with mean 3."""
    values = RNG.normal(3, 1, size=(n_texts, 6000))
    found = bootstrap(values, seed=3)
    assert 0.93 < ((found.low <= 3) & (found.high >= 3)).mean() < 0.96
    if n_texts == 8:  # control: plain percentiles are too narrow
        plain = stats.bootstrap((values[:, :900],), np.mean, method="percentile", n_resamples=2000).confidence_interval
        assert ((plain.low <= 3) & (plain.high >= 3)).mean() < 0.92


def test_clusters_widen_the_interval_when_texts_of_a_template_agree():
    effect = RNG.normal(size=12)
    values = np.repeat(effect, 10) + 0.01 * RNG.normal(size=120)
    names = [f"template {i}" for i in range(12) for _ in range(10)]
    apart, together = bootstrap(values), bootstrap(values, clusters=names)
    assert together.value == pytest.approx(apart.value, rel=1e-12)
    assert (
        2.5 < (together.high - together.low) / (apart.high - apart.low) < 4
    )  # sqrt(10), and the small-sample widening
    control = bootstrap(values, clusters=list(range(120)))  # each text its own template: no difference
    assert control.low == pytest.approx(apart.low, rel=1e-12)


def test_one_text_has_no_interval():
    found = bootstrap(np.array([[1.0, 2.0]]))
    assert found.low is None
    assert found.high is None
    np.testing.assert_array_equal(found.value, [1.0, 2.0])
    assert bootstrap(np.ones((5, 2)), clusters=["a"] * 5).low is None


def test_missing_entries_are_left_out():
    values = RNG.normal(size=(30, 3))
    values[:10, 1] = np.nan
    values[1:, 2] = np.nan
    found = bootstrap(values, resamples=20_000)
    alone = bootstrap(values[10:, 1], resamples=20_000)
    np.testing.assert_allclose(found.value, np.nanmean(values, axis=0), rtol=1e-12)
    assert found.low[1] == pytest.approx(alone.low, abs=0.05)
    assert found.ends(0) == (found.low[0], found.high[0])
    assert found.ends(2) == (None, None)
    assert np.isnan(found.low[2])
    assert np.isnan(found.high[2])


def test_weights_make_a_weighted_mean():
    values, tokens = RNG.normal(size=20), RNG.integers(5, 50, size=20)
    assert bootstrap(values, weights=tokens).value == pytest.approx(np.average(values, weights=tokens), rel=1e-12)
    assert bootstrap(values, weights=np.ones(20)).low == pytest.approx(bootstrap(values).low, rel=1e-12)


def test_same_seed_same_interval_other_seed_another():
    values = RNG.normal(size=20)
    assert bootstrap(values, seed=5).low == bootstrap(values, seed=5).low
    assert bootstrap(values, seed=5).low != bootstrap(values, seed=6).low


@pytest.mark.parametrize("n", range(2, FEW))
def test_few_texts_have_students_interval(n):
    values = RNG.normal(size=(n, 3))
    found, theirs = bootstrap(values), stats.ttest_1samp(values, 0).confidence_interval()
    np.testing.assert_allclose(found.low, theirs.low, rtol=1e-12)
    np.testing.assert_allclose(found.high, theirs.high, rtol=1e-12)
    twice = bootstrap(np.repeat(values, 4, 0), clusters=np.repeat(np.arange(n), 4).tolist())
    np.testing.assert_allclose(twice.low, theirs.low, rtol=1e-12)  # the template is the unit
    assert (bootstrap(np.repeat(values, 4, 0)).low > theirs.low).all()  # control: four times as many texts


@pytest.mark.parametrize("n", [3, 12])
def test_what_is_chosen_of_many_has_an_interval_at_bonferronis_level(n):
    values = RNG.normal(size=(n, 4))
    found = bootstrap(values, chosen_of=60)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(1 - 0.05 / 60)
    np.testing.assert_allclose(found.low, theirs.low, rtol=1e-9)
    np.testing.assert_allclose(found.high, theirs.high, rtol=1e-9)
    each = bootstrap(values)
    assert ((found.low < each.low) & (each.high < found.high)).all()


def test_weighted_texts_have_the_jackknifes_error():
    """Against a loop that leaves out one text at a time; degrees of freedom from the weights (Kish)."""
    values, weights = RNG.normal(size=5), np.array([1.0, 2, 3, 4, 5])
    mean = np.average(values, weights=weights)
    without = [np.average(np.delete(values, i), weights=np.delete(weights, i)) for i in range(5)]
    error = np.sqrt(4 / 5 * sum((one - mean) ** 2 for one in without))
    freedom = weights.sum() ** 2 / (weights**2).sum() - 1
    found = bootstrap(values, weights=weights)
    assert found.value == pytest.approx(mean, rel=1e-12)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, freedom) * error, rel=1e-6)
    one_decides = bootstrap(values[:2], weights=np.array([1.0, 99.0]))
    assert one_decides.ends() == (None, None)  # of two texts one all but alone is no sample


@pytest.mark.parametrize("hits", [0, 1, 4, 9])
def test_shares_of_yes_and_no_have_clopper_and_pearsons_interval(hits):
    values = np.zeros(9)
    values[:hits] = 1
    exact = stats.binomtest(hits, 9).proportion_ci(method="exact")
    assert bootstrap(values, share=True).ends() == pytest.approx((exact.low, exact.high), abs=1e-12)
    several = bootstrap(np.repeat(values, 3), share=True, clusters=np.repeat(np.arange(9), 3).tolist())
    assert several.ends() == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert bootstrap(values[:1], share=True).low is None


def test_shares_stay_between_zero_and_one_and_narrow_with_agreement():
    apart, alike = np.array([0.9, 1.0, 0.99, 0.8, 1.0]), np.array([0.94, 0.93, 0.94, 0.95, 0.93])
    wide, narrow = bootstrap(apart, share=True), bootstrap(alike, share=True)
    assert 0 < wide.low < 0.9 < wide.high < 1
    assert narrow.high - narrow.low < 0.2 * (wide.high - wide.low)
    assert bootstrap(apart).high > 1  # control: Student's does not know the bounds
    same = bootstrap(np.full(6, 0.25), share=True)
    assert same.ends() == pytest.approx((0.25, 0.25), abs=1e-5)
    assert bootstrap(np.array([0.1, 3.0]), least=0.0).low == 0


def test_what_few_texts_cannot_reach_is_said():
    assert [least_p_value(n) for n in (2, 5, 6, 12, 30)] == [0.5, 1 / 16, 1 / 32, 1 / 2048, 1 / 4096]
    for n in (2, 4, 6, 9):
        assert sign_flip_p_value(1 + RNG.uniform(size=n)) == pytest.approx(least_p_value(n))
    assert "nothing could reach .05" in attainable(5, 1)
    said = attainable(8, 32)  # 1/128 over 32: five at the least p make q = 32 / 5 / 128 = .05
    assert "q = 0.25" in said
    assert "takes 5 that" in said
    assert (q_values(np.array([1 / 128] * 5 + [1.0] * 27))[:5] <= 0.05).all()
    assert (q_values(np.array([1 / 128] * 4 + [1.0] * 28))[:4] > 0.05).all()
    assert attainable(12, 20) == ""
    assert said_clear([0.2, np.nan], 4) == "4 texts are too few for any to reach q of .05"
    assert said_clear([0.2, 0.01], 12) == "1 of them has q at most .05"
    assert said_clear([0.2, 0.1], 12) == "none of them have q at most .05"


def test_methods_are_said_in_words_that_hold():
    (few,) = methods(5, chosen_of=16, test="sign flips", tests=16)
    for part in ("5 texts", "Student's t", "4 degrees of freedom", ".05/16", "symmetric about zero", "all 32 patterns",
                 "over 16 p-values", "nothing could reach"):  # fmt: skip
        assert part in few.text
    (many,) = methods(24, clusters=["a", "b"] * 12 + [], test="t")
    assert "2 templates" in many.text
    (many,) = methods(24, seed=7, test="sign flips", tests=3)
    assert "2,000 resamples of texts, seed 7" in many.text
    assert "4,096 random patterns" in many.text
    assert "nothing" not in many.text
    assert methods(1) == []
    assert methods(6, clusters=["a"] * 6) == []


def test_sign_flips_of_many_entries_are_those_of_each_alone():
    values = RNG.normal(size=(7, 2100))
    assert np.array_equal(sign_flip_p_value(values)[2045:2060], sign_flip_p_value(values[:, 2045:2060]))


def test_clusters_must_match_the_texts():
    with pytest.raises(InputError, match="2 clusters for 3 texts"):
        bootstrap(np.ones(3), clusters=["a", "b"])


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=8))
@settings(max_examples=40, deadline=None)
def test_sign_flips_equal_a_slow_enumeration(numbers):
    values = np.array(numbers, dtype=float)
    flipped = [abs(np.dot(signs, values)) for signs in itertools.product([1, -1], repeat=len(values))]
    assert sign_flip_p_value(values) == pytest.approx(np.mean(np.array(flipped) >= abs(values.sum()) - 1e-9), abs=1e-12)


def test_sampled_sign_flips_agree_with_the_t_test_and_are_uniform_under_the_null():
    values = RNG.normal(0.4, 1, size=(30, 2))
    assert np.allclose(sign_flip_p_value(values), stats.ttest_1samp(values, 0).pvalue, atol=0.02)
    null = sign_flip_p_value(RNG.normal(size=(30, 800)))
    assert 0.03 < (null <= 0.05).mean() < 0.07
    assert (sign_flip_p_value(RNG.normal(1, 1, size=(30, 800))) <= 0.05).mean() > 0.95  # control: a real effect is seen


def test_sign_flips_by_cluster_are_more_careful():
    values = np.repeat(RNG.normal(0.5, 1, size=6), 10)
    names = np.repeat(np.arange(6), 10).tolist()
    assert sign_flip_p_value(values, clusters=names) >= 2 / 2**6
    assert sign_flip_p_value(values) < sign_flip_p_value(values, clusters=names)


def test_null_p_value_counts_exceedances():
    null = np.arange(99.0)[:, None] + np.zeros(3)
    np.testing.assert_allclose(null_p_value(np.array([200.0, 98.0, -1.0]), null), [0.01, 0.02, 1.0])
    assert np.isnan(null_p_value(np.array([np.nan]), null[:, :1])).all()


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_equal_scipys(ties: bool) -> None:
    """Ranks shared by equal values included; a control: the two differ where the relation is no line."""
    x = np.linspace(0.1, 3, 40).round(0 if ties else 6)
    y = np.exp(3 * x) + RNG.normal(size=40)
    np.testing.assert_allclose(correlation(x, y), stats.pearsonr(x, y).statistic, rtol=1e-12)
    np.testing.assert_allclose(correlation(x, y, ranks=True), stats.spearmanr(x, y).statistic, rtol=1e-12)
    assert correlation(x, y, ranks=True) > correlation(x, y) + 0.05


def test_q_values_equal_the_step_up_rule():
    p = np.concatenate([RNG.uniform(size=50), RNG.uniform(size=10) * 1e-3])
    order, m = np.argsort(p), len(p)
    slow = np.array([min(p[order[j]] * m / (j + 1) for j in range(i, m)) for i in range(m)])
    expected = np.empty(m)
    expected[order] = np.minimum(slow, 1)
    np.testing.assert_allclose(q_values(p.reshape(6, 10)).ravel(), expected, rtol=1e-12)
    assert np.all(q_values(p) >= p)
    with_gap = np.append(p, np.nan)
    np.testing.assert_allclose(q_values(with_gap)[:-1], expected, rtol=1e-12)
    assert np.isnan(q_values(with_gap)[-1])
    assert (q_values(RNG.uniform(size=1000)) <= 0.05).sum() <= 5  # nothing is found where nothing is


def test_effect_sizes():
    values = RNG.normal(0.8, 1, size=(25, 3))
    np.testing.assert_allclose(paired_effect(values), stats.ttest_1samp(values, 0).statistic / np.sqrt(25), rtol=1e-10)
    a, b = RNG.normal(1, 2, size=(30, 2)), RNG.normal(0, 2, size=(20, 2))
    t = stats.ttest_ind(a, b).statistic
    np.testing.assert_allclose(effect_size(a, b), t * np.sqrt(1 / 30 + 1 / 20), rtol=1e-10)
    assert np.isnan(paired_effect(np.ones((1, 2)))).all()


def test_paired_t_is_scipys_and_sure_without_spread():
    values = RNG.normal(0.3, 1, size=(12, 3))
    for greater, alternative in ((True, "greater"), (False, "two-sided")):
        p = paired_t_p_value(values, greater=greater)
        np.testing.assert_allclose(p, stats.ttest_1samp(values, 0, alternative=alternative).pvalue, rtol=1e-10)
    even = np.tile([2.0, 0.0, -2.0], (4, 1))
    assert paired_t_p_value(even).tolist() == [0.0, 1.0, 0.0]
    assert paired_t_p_value(even, greater=True).tolist() == [0.0, 0.5, 0.5]
    values[1:, 0] = np.nan  # one text is left
    assert np.isnan(paired_t_p_value(values)).tolist() == [True, False, False]


def test_weighted_t_is_students_where_texts_count_alike_and_right_where_they_do_not():
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1.0, size=(12, 3))
    expected = stats.ttest_1samp(values, 0.0, alternative="greater").pvalue
    np.testing.assert_allclose(weighted_t_p_value(values, np.full(12, 5.0)), expected, rtol=1e-10)
    null = rng.normal(size=(10, 20_000))
    p = weighted_t_p_value(null, rng.integers(1, 20, size=10))
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.01)
    assert np.isnan(weighted_t_p_value(values[:1], np.ones(1))).all()
    assert (weighted_t_p_value(null + 3, np.ones(10)) <= 0.05).mean() > 0.99  # control


def test_half_of_the_texts_choose_and_the_others_measure() -> None:
    """By the slow obvious way: whichever half it is, the choice is its largest and the number that of the rest."""
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(12, 3, 2))
    effects[:, 1, 1] += 5
    held = held_out(effects, (1, 1), seed=3)
    assert held is not None
    assert held.again
    assert held.n == 6
    halves = [list(half) for half in itertools.combinations(range(12), 6)]
    assert any(np.isclose(effects[half, 1, 1].mean(), held.value, atol=1e-12) for half in halves)
    assert held.low is not None
    assert held.high is not None
    assert held.low < held.value < held.high
    assert held_out(effects[:11], (1, 1)) is None  # control: too few
    assert held_out(effects, (0, 0), seed=3) is None  # not the largest: chosen by more than size
    effects[:, 0, 0], effects[:, 1, 1], effects[:2, 1, 1] = 3, 0, 20  # without the first two, a half chooses (0, 0)
    seen = [held_out(effects, (1, 1), seed=seed) for seed in range(200)]
    assert {one.again for one in seen if one is not None} == {True, False}


def test_which_half_chose_is_told_by_values_that_only_one_half_can_have_made() -> None:
    """Each text alone has a large effect on a part of its own: whichever half chooses, the rest sees nothing there."""
    held = held_out(100 * np.eye(12), 0)
    assert held is not None
    assert held.value == 0


def test_what_a_half_chooses_by_among_and_in_which_direction() -> None:
    effects = np.tile([1.0, 2.0, -3.0, np.nan], (12, 1))
    largest = {
        (2, -3.0): {}, (1, 2.0): {"highest": True}, (0, 1.0): {"by": np.tile([9.0, 1.0, 1.0, 1.0], (12, 1))}
    }  # fmt: skip
    for (place, value), options in largest.items():
        held = held_out(effects, place, **options)
        assert held is not None
        assert (held.value, held.again) == (value, True)
        assert held_out(effects, (place + 1) % 3, **options) is None  # control: chosen by something else
    assert held_out(effects, 3, by=np.tile([0.0, 0.0, 0.0, 1.0], (12, 1))) is None


def test_no_template_is_on_both_sides() -> None:
    """A part of each template's own: were a template on both sides, the rest would see its effect."""
    template = np.repeat(np.arange(12), 3)
    held = held_out(100.0 * (template[:, None] == np.arange(12)), 0, clusters=template.tolist())
    assert held is not None
    assert (held.value, held.n) == (0, 6)
    assert held_out(np.ones((36, 2)), 0, clusters=(template % 11).tolist()) is None


def test_methods_say_who_chose() -> None:
    (many,), (few,) = methods(12, chosen_of=9), methods(11, chosen_of=9)
    assert "6 texts (drawn with seed 0) choose the largest alone, and the other 6 measure it" in many.text
    assert "Held out" not in few.text
    assert "Held out" not in methods(12, chosen_of=9, halved=False)[0].text
    assert "Held out" not in methods(12)[0].text
