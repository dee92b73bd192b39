"""`check` fails what was not trained, what simple models do better, and what does not come back from the latent."""

import numpy as np
import pytest
from scipy import stats

import flowknife as fk
from flowknife.diagnostics import (
    Check,
    class_losses,
    cross_entropies,
    gaussian_losses,
    histogram_losses,
    image_losses,
    kept_rows,
    reference_check,
)
from flowknife.train import MINIMUM_STEPS, missing_steps
from tests.command import call

QUICK = {"layers": 2, "width": 16, "depth": 1, "seed": 0}
TINY = {"layers": 1, "width": 8, "depth": 1, "scalar": "affine", "seed": 0, "train": {"steps": 3}}
MIXED = np.array([[1.0, 0.95], [0.0, 0.3]])


def correlated(rows, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, 2)) @ MIXED


# -- simple references ------------------------------------------------------------------------------------------------


def test_a_gaussian_reaches_the_entropy_of_gaussian_rows():
    losses = gaussian_losses(1e6 + correlated(4000), 1e6 + correlated(4000, seed=1))
    law = stats.multivariate_normal(np.zeros(2), MIXED.T @ MIXED)
    assert losses.mean() == pytest.approx(law.entropy(), abs=0.05)


def test_the_density_of_histograms_integrates_to_one():
    train = np.random.default_rng(0).exponential(size=(3000, 1))
    cells = np.linspace(-500, 500, 2_000_001)
    density = np.exp(-histogram_losses(train, cells[:, None]))
    assert density.sum() * (cells[1] - cells[0]) == pytest.approx(1, abs=0.01)
    assert histogram_losses(train, train).mean() == pytest.approx(1.0, abs=0.15)  # the entropy of the law


def test_simple_references_take_constant_columns_and_ties():
    rows = np.column_stack([correlated(200), np.full(200, 3.0), np.arange(200) % 2])
    for losses in (gaussian_losses(rows, rows), histogram_losses(rows, rows)):
        assert np.all(np.isfinite(losses))


def test_simple_images_have_masses_that_add_up_to_one():
    train = np.random.default_rng(0).integers(0, 256, (20, 1, 1, 1)).astype(np.uint8)
    every = (np.arange(8) * 32).astype(np.uint8).reshape(8, 1, 1, 1)
    for losses in image_losses(train, every, bits=3).values():
        assert np.sum(2.0**-losses) == pytest.approx(1, abs=1e-6)


def test_simple_classifiers_reach_the_error_of_the_best_one():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 4000)
    rows = rng.normal(size=(4000, 2)) @ MIXED + np.outer(labels, [2.0, 0.0])
    found = class_losses(rows[:2000], labels[:2000], rows[2000:], labels[2000:], 2)
    distance = np.sqrt(np.array([2.0, 0.0]) @ np.linalg.inv(MIXED.T @ MIXED) @ [2.0, 0.0])
    assert found["linear classifier"][1].mean() == pytest.approx(stats.norm.cdf(-distance / 2), abs=0.02)
    assert found["class frequencies"][0].mean() == pytest.approx(np.log(2), abs=0.01)
    entropy, errors = cross_entropies(np.log([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]))
    np.testing.assert_allclose(entropy, -np.log([0.9, 0.2]))
    assert errors.tolist() == [0, 1]


def test_a_model_that_is_worse_fails_and_both_numbers_are_named():
    noise = np.random.default_rng(0).normal(size=500)
    simple = {"a Gaussian": 2.0 + noise, "histograms": 3.0 + noise}
    worse = reference_check("nll in nats", 2.2 + noise, simple, 0.1)
    assert not worse.passed and worse.value == pytest.approx(2.2, abs=0.1) and "a Gaussian: 1.97" in worse.name
    assert reference_check("nll in nats", 1.9 + noise, simple, 0.1).passed
    one_bad_row = 1.9 + noise
    one_bad_row[0] = 1e20
    assert not reference_check("nll in nats", one_bad_row, simple, 0.1).passed
    for value in (np.nan, np.inf):
        assert not reference_check("nll in nats", np.full(500, value), simple, 0.1).passed


# -- round trips and steps --------------------------------------------------------------------------------------------


def test_the_worst_row_and_column_of_a_round_trip_are_found():
    x = np.random.default_rng(0).normal(size=(100, 3)) * [1.0, 1e-8, 0.0]
    assert Check.of_round_trip(x, x, "abc").value == 0
    back = x.copy()
    back[70, 1] += 1e-8
    found = Check.of_round_trip(x, back, "abc")
    assert not found.passed and found.value == pytest.approx(1, rel=0.3) and "worst: b" in found.name
    back = x.copy()
    back[5, 2] += 1e-6  # a column of zeros
    assert Check.of_round_trip(x, back, "abc").value > 1e4
    x[9, 0] = 1e10
    back = x.copy()
    back[9, 0] += 1e4
    assert Check.of_round_trip(x, back, "abc").value > 5e3
    back[9, 0] = np.nan
    assert not Check.of_round_trip(x, back, "abc").passed


def test_the_rows_that_are_kept_have_the_extreme_ones():
    rows = np.random.default_rng(0).normal(size=(1000, 2))
    rows[900, 1], rows[950, 0] = 1e10, -50.0
    kept = kept_rows(rows, 100)
    assert len(kept) == len(set(kept)) == 100 and {900, 950} <= set(kept)
    assert kept_rows(rows[:50], 100).tolist() == list(range(50))


def test_missing_steps_are_those_of_the_shortest_stage():
    assert missing_steps({"step": [50.0, 120.0]}) == 0
    assert missing_steps({"step": [3.0, 7.0]}) == MINIMUM_STEPS - 7
    levels = {"level": [0.0, 0.0, 1.0], "step": [100.0, 400.0, 60.0]}
    assert missing_steps(levels) == MINIMUM_STEPS - 60
    assert missing_steps({}) == 0


# -- results ----------------------------------------------------------------------------------------------------------


def failed(result):
    return [check.name for check in result.check() if not check.passed]


def in_corners(rows, seed=0):
    """Two far values in each column: training starts at a Gaussian, which histograms describe much better."""
    rng = np.random.default_rng(seed)
    return rng.choice([-3.0, 3.0], (rows, 2)) + 0.1 * rng.normal(size=(rows, 2))


@pytest.fixture(scope="module")
def untrained():
    return fk.density(in_corners(600), show_progress=False, **TINY)


def test_a_density_that_did_not_train_fails(untrained):
    names = " ".join(failed(untrained))
    assert "training steps" in names and "nll" in names and "histograms" in names
    assert "takes at least" in untrained.record.training.sentence


def test_the_shell_says_so_too(untrained, tmp_path):
    run = untrained.save(tmp_path / "run")
    result = call("check", run, status=1)
    assert "FAILED" in result.output and "training steps" in result.output and "histograms" in result.output


def test_the_end_of_the_fit_says_so(capsys):
    fk.density(correlated(600), show_progress=True, **TINY)
    assert "takes at least 100" in capsys.readouterr().err


@pytest.mark.slow
def test_a_density_that_trained_passes():
    flow = fk.density(correlated(2000), show_progress=False, train={"steps": 500}, **QUICK)
    assert failed(flow) == []


@pytest.mark.slow
def test_outliers_are_found_and_told(capsys):
    x = correlated(1500)
    x[:5, 0] = 1e10  # some of them are trained on
    flow = fk.density(x, train={"steps": 150}, show_progress=True, **QUICK)
    assert any("round trip" in name for name in failed(flow))
    assert "heavy tails in x1" in capsys.readouterr().err
    assert "arcsinh" in flow.record.notes[0]


@pytest.mark.slow
def test_a_classifier_is_compared_with_simple_ones():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 900)
    x = 0.5 * rng.normal(size=(900, 2)) + np.array([[0, 0], [2, 0], [0, 2]])[labels]
    good = fk.classify(x, labels, train={"steps": 300}, show_progress=False, **QUICK)
    assert failed(good) == []
    names = [check.name for check in good.check()]
    assert any("linear classifier" in name for name in names) and any("class frequencies" in name for name in names)
    # the same model, asked about other labels, is worse than guessing
    worse = {check.name: check.passed for check in good.check((x, (labels + 1) % 3))}
    assert not all(passed for name, passed in worse.items() if "cross entropy" in name)
    assert "training steps" in " ".join(
        failed(fk.classify(x, labels, train={"steps": 5}, show_progress=False, **QUICK))
    )


@pytest.mark.slow
def test_a_posterior_is_compared_with_its_prior():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2))
    y = x @ MIXED + 0.2 * rng.normal(size=x.shape)
    posterior = fk.invert(pairs=(x, y), train={"steps": 400}, show_progress=False, **QUICK)
    own = next(check for check in posterior.check() if "the prior" in check.name)
    assert own.passed
    # of observations of other parameters it knows less than the prior
    mixed = next(check for check in posterior.check((x[:500], y[500:1000])) if "the prior" in check.name)
    assert not mixed.passed and mixed.value > mixed.limit


@pytest.mark.slow
def test_images_are_compared_with_pixels_on_their_own():
    rng = np.random.default_rng(0)
    brightness = rng.integers(0, 200, (120, 1, 1, 1))
    pixels = (brightness + rng.integers(0, 40, (120, 8, 8, 1))).astype(np.uint8)
    model = fk.images(pixels, image_size=8, train={"steps": 3}, show_progress=False, seed=0)
    names = " ".join(failed(model))
    assert "training steps" in names
    assert any("bits per dimension" in check.name for check in model.check())
