"""Diagnostics of posteriors, samples and classifiers: right ones pass, wrong ones are found, numbers match by hand."""

import sys
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

from flowknife import diagnostics
from flowknife.diagnostics import _samples
from flowknife.diagnostics._uniform import counts_below, rank_edges, uniform_band, uniformity_p_value
from flowknife.errors import CalibrationWarning, InputError


class Posterior(NamedTuple):
    """Draws, truths, and log densities of both."""

    samples: np.ndarray
    theta: np.ndarray
    log_prob_samples: np.ndarray
    log_prob_truth: np.ndarray


def gaussian(scale: float = 1.0, shift: float = 0.0, n: int = 400, draws: int = 199, d: int = 2, seed: int = 0):
    """theta ~ N(0, 1/2), y = theta + N(0, 1/2), so theta | y ~ N(y / 2, 1/4); `scale` and `shift` falsify that."""
    generator = np.random.default_rng(seed)
    theta = generator.normal(size=(n, d)) * 0.5**0.5
    y = theta + generator.normal(size=(n, d)) * 0.5**0.5
    law = stats.norm(y[:, None] / 2 + shift, 0.5 * scale)
    samples = law.rvs((n, draws, d), random_state=generator)
    return Posterior(samples, theta, law.logpdf(samples).sum(-1), law.logpdf(theta[:, None]).sum(-1)[:, 0])


def judge(name: str, posterior: Posterior):
    if name == "hpd":
        return diagnostics.hpd_coverage(posterior.log_prob_samples, posterior.log_prob_truth)
    if name == "tarp":
        return diagnostics.tarp(posterior.samples, posterior.theta, key=1)
    return getattr(diagnostics, name)(posterior.samples, posterior.theta)


# -- uniform ranks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "draws"), [(20, 9), (300, 199), (1000, 1000)])
def test_uniform_ranks_stay_inside_the_band_as_often_as_it_says(n, draws):
    edges = rank_edges(draws)
    lower, upper = uniform_band(n, edges / (draws + 1), 0.1)
    cells = np.diff([0, *edges, draws + 1]) / (draws + 1)
    ecdf = np.cumsum(np.random.default_rng(0).multinomial(n, cells, size=20_000), axis=1)[:, :-1] / n
    inside = np.mean(np.all((ecdf >= lower - 1e-12) & (ecdf <= upper + 1e-12), axis=1))
    # counts are whole: the probability is at least 0.9, and for many ranks not much more
    assert 0.893 < inside < {20: 0.95, 300: 0.915, 1000: 0.91}[n]


def test_p_values_of_uniform_ranks_are_uniform():
    generator, edges = np.random.default_rng(0), rank_edges(99)
    p = [uniformity_p_value(counts_below(generator.integers(0, 100, 150), edges), 150, edges / 100) for _ in range(400)]
    for level in (0.05, 0.2, 0.5):
        assert abs(np.mean(np.array(p) <= level) - level) < 3 * (level * (1 - level) / 400) ** 0.5


def test_p_value_of_two_ranks_by_hand():
    # one point at 1/2: both ranks on one side has probability 1/2, and that is the most extreme outcome
    for count, expected in ((0, 0.5), (1, 1.0), (2, 0.5)):
        assert uniformity_p_value(np.array([count]), 2, np.array([0.5])) == pytest.approx(expected)


def test_a_curve_leaves_the_band_where_its_p_value_is_small():
    seen = set()
    for seed in range(12):
        ranks = judge("sbc", gaussian(scale=0.93, n=150, draws=60, d=1, seed=seed))
        lower, upper = ranks.band(0.8)
        outside = bool(np.any((ranks.ecdf[:, 0] < lower - 1e-12) | (ranks.ecdf[:, 0] > upper + 1e-12)))
        assert outside == (ranks.p_values[0] < 0.2)
        seen.add(outside)
    assert seen == {True, False}


# -- posteriors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sbc", "tarp", "hpd", "coverage"])
def test_exact_posteriors_pass(name):
    assert all(judge(name, gaussian(seed=seed)).check.passed for seed in range(3))


@pytest.mark.parametrize("name", ["sbc", "tarp", "hpd", "coverage"])
@pytest.mark.parametrize(("scale", "word"), [(0.7, "overconfident"), (1.4, "underconfident")])
def test_posteriors_of_wrong_width_are_rejected_and_named(name, scale, word):
    result = judge(name, gaussian(scale=scale))
    assert not result.check.passed and result.p_value < 1e-3
    if name != "coverage":
        assert word in result.verdict.lower()
    else:
        # a level of 0.8 of the falsified posterior holds this share of the truths
        true = 2 * stats.norm.cdf(scale * stats.norm.ppf(0.9)) - 1
        np.testing.assert_allclose(result.observed[1], true, atol=0.06)
        assert np.all(
            (result.observed < result.low[:, None]) if scale < 1 else (result.observed > result.high[:, None])
        )


@pytest.mark.parametrize(("shift", "words"), [(0.25, "draws too high"), (-0.25, "draws too low")])
def test_shifted_posteriors_are_rejected_and_named(shift, words):
    result = judge("sbc", gaussian(shift=shift))
    assert not result.check.passed and words in result.verdict
    assert (result.ranks.mean() < 99.5) == (shift > 0)


def test_ranks_and_coverage_by_hand():
    samples = np.arange(9.0)[None, :, None] + np.zeros((3, 9, 1))
    theta = np.array([[-1.0], [3.5], [100.0]])
    assert diagnostics.sbc_ranks(samples, theta).tolist() == [[0], [4], [9]]
    result = diagnostics.coverage(samples, theta, levels=(0.2, 0.8))  # of 10 ranks 2 and 8 lie within
    np.testing.assert_allclose(result.observed[:, 0], [1 / 3, 1 / 3])
    assert result.names == ("x1",)


def test_coverage_is_exact_however_few_the_draws():
    posterior = gaussian(n=20_000, draws=3, d=1)
    result = diagnostics.coverage(posterior.samples, posterior.theta, levels=(0.1, 0.5, 0.9))
    np.testing.assert_allclose(result.observed[:, 0], result.levels, atol=0.012)
    np.testing.assert_allclose(
        result.high - result.low, 3.92 * (result.levels * (1 - result.levels) / 20_000) ** 0.5, rtol=0.03
    )


def test_ties_are_broken_at_random():
    ranks = diagnostics.sbc_ranks(np.zeros((4000, 3, 1)), np.zeros((4000, 1)))
    np.testing.assert_allclose(np.bincount(ranks[:, 0], minlength=4) / 4000, 0.25, atol=0.03)


def test_coverage_of_balls_is_exact_along_a_line():
    # with the reference far to the left, TARP ranks are the ranks of the parameter itself
    posterior = gaussian(n=50, d=1)
    far = np.full((50, 1), -1e3)
    ranks = diagnostics.tarp(posterior.samples, posterior.theta, references=far).ranks
    np.testing.assert_array_equal(ranks, diagnostics.sbc_ranks(posterior.samples, posterior.theta))


def test_only_references_that_depend_on_the_observation_see_an_ignored_observation():
    generator = np.random.default_rng(0)
    theta, prior = generator.normal(size=(500, 2)), generator.normal(size=(500, 199, 2))
    assert diagnostics.tarp(prior, theta, key=2).check.passed
    assert not diagnostics.tarp(prior, theta, key=2, references=theta + 0.1).check.passed


def test_a_truth_without_density_is_outside_every_region():
    ranks = diagnostics.hpd_coverage(np.zeros((5, 9)), np.full(5, -np.inf))
    assert (ranks.ranks == 9).all() and (ranks.ecdf == 0).all()


def test_resimulation_error_of_exact_posteriors_is_the_noise():
    generator = np.random.default_rng(0)
    theta = generator.normal(size=(4000, 1, 2)) * 0.5**0.5
    y = theta + generator.normal(size=(4000, 1, 2)) * 0.5**0.5
    draws = y / 2 + 0.5 * generator.normal(size=(4000, 20, 2))
    result = diagnostics.resimulation_error(draws, y)
    np.testing.assert_allclose(result.components, 0.5, atol=0.03)
    assert result.mean_squared == pytest.approx(result.components.sum()) and result.failed == 0


def test_failed_resimulations_are_counted():
    result = diagnostics.resimulation_error([[1.0, 3.0], [np.nan, 0.0], [1.0, 1.0]], [0.0, 1.0])
    assert (result.mean_squared, result.failed) == (3.0, pytest.approx(1 / 3))
    assert result.components.tolist() == [1.0, 2.0]


def test_observations_of_the_simulator_are_accepted_as_often_as_the_level_says():
    generator = np.random.default_rng(0)
    mix = generator.normal(size=(5, 5))
    simulated = generator.normal(size=(4000, 5)) @ mix
    result = diagnostics.misspecification(simulated, generator.normal(size=(3000, 5)) @ mix)
    assert abs(np.mean(result.p_values < 0.1) - 0.1) < 0.025
    one = diagnostics.misspecification(simulated, 6 * np.ones(5) @ mix)
    assert one.p_value == pytest.approx(1 / 2001) and not one.check.passed
    assert one.verdict.startswith("The observation is unlike the simulations (p < 0.001)")


# -- two sets of samples ----------------------------------------------------------------------------------------------


def naive_mmd2(x, y, widths):
    def kernel(a, b):
        return sum(1 / (1 + np.sum((a - b) ** 2) / h**2) for h in widths)

    n, m = len(x), len(y)
    same = [np.mean([kernel(t[i], t[j]) for i in range(len(t)) for j in range(len(t)) if i != j]) for t in (x, y)]
    return sum(same) - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize("rows", [(2, 3), (9, 70), (65, 64)])
def test_mmd_is_the_double_loop(rows):
    generator = np.random.default_rng(0)
    x, y = (1000.0 + shift + generator.normal(size=(n, 3)) for n, shift in zip(rows, (0, 1), strict=True))
    assert diagnostics.mmd2(x, y, (0.5, 2.0)) == pytest.approx(naive_mmd2(x, y, (0.5, 2.0)), rel=1e-3, abs=2e-6)


def test_mmd_is_zero_on_average_for_one_distribution():
    generator = np.random.default_rng(0)
    found = [diagnostics.mmd2(*generator.normal(size=(2, 100, 2))) for _ in range(300)]
    assert abs(np.mean(found)) < 3.5 * np.std(found) / 300**0.5
    assert diagnostics.mmd2(*generator.normal([[[0]], [[1]]], size=(2, 100, 2))) > 10 * np.std(found)


def test_classifier_reaches_the_bayes_accuracy_and_no_more():
    pytest.importorskip("sklearn")
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 1500, 2))
    assert diagnostics.c2st(x, y, key=0, folds=3) == pytest.approx(0.5, abs=0.03)
    # a shift along a column of another unit: the z-score makes up for it
    moved = diagnostics.c2st(x * [1, 1e4], (y + np.array([0, 2])) * [1, 1e4], key=0, folds=3)
    assert moved == pytest.approx(stats.norm.cdf(1), abs=0.03)


@pytest.mark.slow
def test_classifier_of_ten_thousand_rows():
    pytest.importorskip("sklearn")
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 10_000, 2))
    assert diagnostics.c2st(x, y) == pytest.approx(0.5, abs=0.01)
    assert diagnostics.c2st(x, y + np.array([1, 0])) == pytest.approx(stats.norm.cdf(0.5), abs=0.01)


def test_without_scikit_learn_the_classifier_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.neural_network", None)
    with pytest.raises(InputError, match=r"flowknife\[sklearn\]"):
        diagnostics.c2st(np.zeros((5, 1)), np.ones((5, 1)))


# -- classifiers ------------------------------------------------------------------------------------------------------


def predictions(n: int = 40_000, sharpen: float = 1.0):
    """Labels drawn from probabilities, which are then raised to a power."""
    generator = np.random.default_rng(0)
    exact = generator.dirichlet(np.full(3, 0.7), size=n)
    labels = (generator.random((n, 1)) > np.cumsum(exact, axis=1)[:, :2]).sum(axis=1)
    told = exact**sharpen
    return told / told.sum(axis=1, keepdims=True), labels


def test_calibrated_probabilities_have_no_error_but_noise():
    result = diagnostics.reliability(*predictions())
    assert result.error < 2 * result.noise and result.noise < 0.01
    assert result.check.passed and "are calibrated" in result.verdict
    seen = result.counts > 500
    np.testing.assert_allclose(result.accuracy[seen], result.confidence[seen], atol=0.05)


@pytest.mark.parametrize(("sharpen", "word"), [(2.0, "overconfident"), (0.4, "underconfident")])
def test_wrong_confidence_is_found_and_named(sharpen, word):
    result = diagnostics.reliability(*predictions(sharpen=sharpen))
    assert not result.check.passed and word in result.verdict


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_of_a_constant_confidence(bins):
    # always 0.9 sure and right 3 times in 4
    probabilities = np.tile([0.9, 0.1], (400, 1))
    labels = np.arange(400) % 4 == 0
    assert diagnostics.expected_calibration_error(probabilities, labels.astype(int), bins) == pytest.approx(0.15)


def test_a_bin_is_closed_at_the_right():
    result = diagnostics.reliability([[0.5, 0.5], [1.0, 0.0]], [0, 0], bins=2)
    assert result.counts.tolist() == [1, 1] and result.accuracy.tolist() == [1.0, 1.0]


def test_accuracy_is_the_diagonal_of_the_confusion():
    probabilities, labels = predictions(500)
    predicted = probabilities.argmax(axis=1)
    matrix = diagnostics.confusion(labels, predicted, 4)
    assert matrix.shape == (4, 4) and matrix.sum() == 500 and not matrix[3].any()
    for true, taken in ((0, 1), (2, 0)):
        assert matrix[true, taken] == np.sum((labels == true) & (predicted == taken))
    assert diagnostics.accuracy(labels, predicted) == np.trace(matrix) / 500
    assert diagnostics.accuracy(labels, probabilities) == diagnostics.accuracy(labels, predicted)


# -- anomalies ----------------------------------------------------------------------------------------------------


def test_adjusted_p_values_are_the_smallest_rate_of_a_step_up_test():
    p = np.random.default_rng(0).uniform(size=40) ** 3
    q = diagnostics.adjusted_p_values(p)
    for level in (0.01, 0.1, 0.3):
        ordered = np.sort(p)
        passing = np.flatnonzero(ordered <= level * np.arange(1, 41) / 40)
        threshold = ordered[passing[-1]] if len(passing) else -1.0
        np.testing.assert_array_equal(diagnostics.benjamini_hochberg(p, level), p <= threshold)
        np.testing.assert_array_equal(q <= level, p <= threshold)
    assert diagnostics.adjusted_p_values([]).shape == (0,)
    np.testing.assert_allclose(q, stats.false_discovery_control(p))


def test_of_discoveries_with_conformal_p_values_few_are_false():
    generator = np.random.default_rng(0)
    shares, found = [], []
    for _ in range(200):
        scores = np.concatenate([generator.normal(size=90), generator.normal(5, 1, size=10)])
        p = diagnostics.conformal_p_values(scores, generator.normal(size=400))
        reject = diagnostics.benjamini_hochberg(p, 0.1)
        shares.append(reject[:90].sum() / max(reject.sum(), 1))
        found.append(reject[90:].mean())
    # the promise is 0.1 times the share of normal items, 0.09; the mean of 200 has a standard deviation of 0.007
    assert np.mean(shares) < 0.09 + 0.02 and np.mean(found) > 0.9


def test_combined_p_values_keep_the_small_ones_and_their_level():
    generator = np.random.default_rng(0)
    alike = generator.uniform(size=(20_000, 1)).repeat(3, axis=1)
    independent = generator.uniform(size=(20_000, 3))
    for p in (alike, independent):
        combined = diagnostics.combined_p_values(p)
        for level in (0.01, 0.05):
            assert np.mean(combined <= level) == pytest.approx(level, rel=0.25)
    np.testing.assert_allclose(diagnostics.combined_p_values(alike[:9] * 0.9), alike[:9, 0] * 0.9, rtol=1e-6)
    # one small p-value among k counts k times itself, however small, and a p of 1 does not hide it
    tiny = np.array([[1e-30, 0.5, 1.0], [1e-12, 0.5, 1.0], [1e-6, 0.5, 1.0]])
    np.testing.assert_allclose(diagnostics.combined_p_values(tiny), [3e-30, 3e-12, 3e-6], rtol=1e-3)


def test_radii_of_normal_latents_have_uniform_p_values_in_both_directions():
    generator = np.random.default_rng(0)
    sizes = (30, 300)

    def squares(n, scale=1.0):
        return np.stack([np.sum((scale * generator.normal(size=(n, d))) ** 2, axis=1) for d in sizes], axis=1)

    held_out = squares(20_000)
    p = diagnostics.radius_p_values(squares(20_000), held_out)
    for level in (0.01, 0.05, 0.3):
        assert np.mean(p <= level) == pytest.approx(level, rel=0.2)
    for scale in (0.7, 1.4):
        assert (diagnostics.radius_p_values(squares(200, scale), held_out) < 0.01).mean() > 0.95


@pytest.mark.parametrize(
    "call",
    [
        lambda: diagnostics.adjusted_p_values([0.5, 1.5]),
        lambda: diagnostics.adjusted_p_values([np.nan]),
        lambda: diagnostics.adjusted_p_values([[0.5]]),
        lambda: diagnostics.benjamini_hochberg([0.5], 0.0),
        lambda: diagnostics.sbc(np.zeros((3, 4)), np.zeros((3, 1))),
        lambda: diagnostics.sbc(np.zeros((3, 4, 2)), np.zeros((3, 1))),
        lambda: diagnostics.sbc(np.full((3, 4, 1), np.nan), np.zeros((3, 1))),
        lambda: diagnostics.sbc(np.zeros((3, 4, 1)), np.zeros((3, 1)), names=["a", "b"]),
        lambda: diagnostics.coverage(np.zeros((3, 4, 1)), np.zeros((3, 1)), levels=[50, 90]),
        lambda: diagnostics.tarp(np.zeros((3, 4, 1)), np.zeros((3, 1)), references=np.zeros(3)),
        lambda: diagnostics.hpd_coverage(np.zeros((3, 4)), np.zeros(4)),
        lambda: diagnostics.resimulation_error(np.zeros((5, 2)), np.zeros(3)),
        lambda: diagnostics.resimulation_error(np.zeros(2), np.zeros((5, 2))),
        lambda: diagnostics.resimulation_error(np.full((5, 2), np.nan), np.zeros(2)),
        lambda: diagnostics.misspecification(np.zeros((9, 2)), np.zeros(3)),
        lambda: diagnostics.misspecification(np.zeros((3, 2)), np.zeros(2)),
        lambda: diagnostics.mmd2(np.zeros((1, 2)), np.zeros((5, 2))),
        lambda: diagnostics.mmd2(np.zeros((5, 2)), np.full((5, 2), np.inf)),
        lambda: diagnostics.mmd2(np.zeros((5, 2)), np.zeros((5, 2)), widths=(0.0,)),
        lambda: diagnostics.c2st(np.zeros((5, 2)), np.zeros((6, 2))),
        lambda: diagnostics.accuracy([0, 1], [0, 1, 1]),
        lambda: diagnostics.confusion([0, 1], [0, 2], 2),
        lambda: diagnostics.confusion(["a"], ["b"], 2),
        lambda: diagnostics.reliability([[0.5, 0.6]], [0]),
        lambda: diagnostics.reliability([[0.4, 0.6]], [0.5]),
        lambda: diagnostics.reliability([[0.4, 0.6]], [0, 1]),
    ],
)
def test_wrong_input_is_told_in_one_line(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)


def test_memory_of_mmd_does_not_grow_with_the_square_of_the_rows():
    x = np.zeros((20_000, 2), np.float32)
    compiled = _samples._mmd2.lower(x, x, np.ones(3, np.float32)).compile()
    assert compiled.compiled.memory_analysis().temp_size_in_bytes < 100e6  # the square has 1.6 GB


def test_scores_are_columns_with_decisions_and_become_a_data_frame():
    p = np.array([0.01, 0.04, 0.5, 0.9])
    scores = diagnostics.scored({"row": np.arange(4), "score": [4.0, 3.0, 2.0, 1.0]}, diagnostics.Flagging(99, 0.05), p)
    assert list(scores) == ["row", "score", "p_value", "flag", "q_value", "discovery"] and scores.rows == 4
    assert (
        scores["flag"].tolist() == [True, True, False, False] and scores["discovery"].tolist() == [True] + [False] * 3
    )
    np.testing.assert_allclose(scores["q_value"], [0.04, 0.08, 2 / 3, 0.9])
    frame = scores.to_frame()
    assert list(frame.columns) == list(scores) and frame["p_value"].tolist() == p.tolist()
    with pytest.warns(CalibrationWarning):
        bare = diagnostics.scored({"row": np.arange(4)}, diagnostics.Flagging(0, 0.05), p)
    assert "p_value" not in bare and bare.get("flag") is None
    with pytest.raises(KeyError, match="no p-values"):
        bare["p_value"]
    with pytest.raises(InputError, match="3 and 4 rows"):
        diagnostics.Scores({"a": np.zeros(3), "b": np.zeros(4)})
