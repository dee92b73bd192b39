"""Promises about anomalies and streams, over many repetitions of what they are promised for."""

import numpy as np
import pytest

import flowknife as fk
from flowknife.diagnostics import (
    Check,
    advised,
    benjamini_hochberg,
    conformal_p_values,
    false_discovery_bound,
    monitored,
    reached_coverage,
    weighted_conformal_p_values,
    weighted_discoveries,
)
from flowknife.errors import InputError

RNG = np.random.default_rng(0)


def test_equal_weights_are_no_weights():
    scores, held_out = RNG.normal(size=50), RNG.normal(size=99)
    weighted = weighted_conformal_p_values(scores, held_out, np.full(50, 3.0), np.full(99, 3.0))
    np.testing.assert_allclose(weighted, conformal_p_values(scores, held_out))
    many = weighted_discoveries(scores + 3, held_out, np.ones(50), np.ones(99), 0.2)
    assert 0 < many.sum() <= benjamini_hochberg(conformal_p_values(scores + 3, held_out), 0.2).sum()


def shifted(count):
    """The score of a row grows with a condition, which is larger among new rows: N(1, 1) instead of N(0, 1)."""
    c = RNG.normal(1.0, 1.0, count)
    return c + RNG.normal(size=count), np.exp(c - 0.5)


def calibration(count):
    c = RNG.normal(size=count)
    return c + RNG.normal(size=count), np.exp(c - 0.5)


def test_weighted_p_values_are_uniform_under_the_shift_and_plain_ones_are_not():
    rates, plain = [], []
    for _ in range(200):
        (scores, own), (held_out, others) = shifted(50), calibration(200)
        rates.append(np.mean(weighted_conformal_p_values(scores, held_out, own, others) <= 0.1))
        plain.append(np.mean(conformal_p_values(scores, held_out) <= 0.1))
    assert np.mean(rates) <= 0.1 + 3 * np.std(rates) / 200**0.5 < np.mean(plain)


def test_false_discoveries_stay_below_the_rate_under_the_shift():
    shares, found = [], []
    for _ in range(100):
        (scores, own), (held_out, others) = shifted(100), calibration(500)
        scores[:20] += 8
        chosen = weighted_discoveries(scores, held_out, own, others, 0.2)
        shares.append(chosen[20:].sum() / max(chosen.sum(), 1))
        found.append(chosen[:20].mean())
    assert np.mean(shares) <= 0.2 + 2 * np.std(shares) / 10
    assert np.mean(found) > 0.6


@pytest.mark.slow
def test_a_detector_finds_anomalies_among_rows_of_a_new_condition():
    pytest.importorskip("sklearn")
    generator = np.random.default_rng(0)

    def rows(count, mean):
        condition = generator.normal(mean, 1.0, count)
        return np.stack([condition, 2 * condition + 0.3 * generator.normal(size=count)], axis=1)

    detector = fk.AnomalyDetector(fdr=0.1, layers=2, width=16, steps=60, random_state=0).fit(rows(2000, 0.0))
    new = rows(300, 1.0)
    new[:30, 1] += 3.0
    own = detector.shifted(new, columns=[0])
    flagged = own.predict(new) == -1
    assert flagged[:30].mean() > 0.5 and flagged[30:].sum() <= 0.2 * flagged.sum()
    assert np.mean(own.p_values(new)[30:] <= 0.1) < 0.15 < 0.18 < np.mean(detector.p_values(new)[30:] <= 0.1)
    # a rare condition alone is no anomaly
    rare, odd = own.score_samples(np.array([[3.5, 7.0], [0.0, 3.0]])), own.scores(np.array([[3.5, 7.0], [0.0, 3.0]]))
    assert rare.shape == (2,) and odd["score"][0] < odd["score"][1]
    np.testing.assert_array_equal(flagged, own.scores(new)["flag"])
    for ask in (own.decision_function, own.monitor, own.false_discoveries):
        with pytest.raises(InputError, match="a shifted detector"):
            ask(new)


def test_the_bound_on_false_discoveries_holds_as_often_as_it_says():
    held, tight = [], []
    for i in range(50):
        p = conformal_p_values(RNG.normal(size=150) + 4 * (np.arange(150) < 30), RNG.normal(size=300))
        chosen = p <= 0.02 + 0.03 * (i % 3)  # whatever the rule
        bound = false_discovery_bound(p, chosen, 300, 0.8, i)
        held.append(chosen[30:].sum() / max(chosen.sum(), 1) <= bound)
        tight.append(bound)
    assert np.mean(held) >= 0.8 - 2 * 0.057
    assert np.mean(tight) < 0.6
    assert false_discovery_bound(p, p < 0, 300) == 0.0
    with pytest.raises(InputError, match="calibration rows"):
        false_discovery_bound(p, chosen, 0)


def test_a_stream_that_does_not_change_seldom_alarms():
    alarms = [monitored(RNG.normal(size=150), RNG.normal(size=60), 0.1, i).alarm is not None for i in range(200)]
    assert np.mean(alarms) <= 0.1 + 2 * (0.09 / 200) ** 0.5
    ties = [
        monitored(RNG.integers(3, size=100) * 1.0, RNG.integers(3, size=50) * 1.0, 0.1, i).alarm for i in range(100)
    ]
    assert sum(alarm is not None for alarm in ties) <= 16


@pytest.mark.parametrize("shift", [2.0, -2.0])
def test_a_change_is_found_and_dated_in_both_directions(shift):
    scores = np.concatenate([RNG.normal(size=150), RNG.normal(shift, 1, size=150)])
    found = monitored(scores, RNG.normal(size=200), 0.01, 0)
    assert found.alarm is not None and 150 <= found.alarm < 230 and abs(found.change - 150) < 25
    assert not found.check.passed and "Alarm" in found.verdict
    assert monitored(scores[:150], scores[:0], 0.01, 0).log_wealth[0] == pytest.approx(0, abs=3)


def test_coverage_that_is_reached_after_calibration_is_the_promised_one():
    scores = RNG.exponential(size=2000) ** 3
    found = reached_coverage(np.full(2000, 0.99), {"global": scores})
    np.testing.assert_allclose(found.before, 0.0)
    np.testing.assert_allclose(found.after["global"], found.levels, atol=0.05)
    assert found.check.passed and "before calibration" in found.verdict
    rising = reached_coverage(np.full(2000, 0.5), {"global": np.where(np.arange(2000) % 2 == 0, scores, 10 + scores)})
    assert not rising.check.passed


def test_a_failed_check_says_what_to_do_next():
    passed, failed, noted = advised(
        [Check("TARP: x", 1.0, 2.0), Check("TARP: x", 3.0, 2.0), Check("TARP: x", 3.0, 2.0, "mine")]
    )
    assert not passed.note and "train.steps" in failed.note and noted.note == "mine"
    assert "try" in advised([Check("anything else", 3.0, 2.0)])[0].note
