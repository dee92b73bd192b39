"""Posteriors made exact where the likelihood is known, rounds, and ensembles, against linear-Gaussian answers."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import flowknife as fk
from flowknife.apps.invert import _refine
from flowknife.apps.invert._focus import _truncated
from flowknife.apps.invert._refine import GaussianLikelihood
from flowknife.errors import InputError

NOISE = 0.4
QUICK = {"layers": 2, "width": 8, "depth": 1, "features": 4, "show_progress": False, "key": 0}
Y = np.array([0.6, -0.9])


def simulator(x):
    return 2.0 * x


def exact(y):
    """Mean and standard deviation of each parameter, and log p(y): the prior is N(0, 1)."""
    precision = 1 + 4 / NOISE**2
    evidence = stats.norm(0, (4 + NOISE**2) ** 0.5).logpdf(y).sum()
    return 2 * np.asarray(y) / NOISE**2 / precision, precision**-0.5, evidence


@pytest.fixture(scope="module")
def posterior():
    """Trained for a few steps, so that it is not exact by itself."""
    prior = fk.Normal([0, 0], [1, 1], names=["a", "b"])
    return fk.invert(
        simulator, prior, noise=NOISE, num_simulations=600, ensemble=2, train={"steps": 25, "weight_decay": 0}, **QUICK
    )


def close(drawn, y=Y):
    mean, spread, _ = exact(y)
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=4.5 * spread / len(drawn) ** 0.5)
    np.testing.assert_allclose(drawn.std(axis=0), spread, rtol=4.5 / (2 * len(drawn)) ** 0.5)


def test_weights_make_draws_exact_and_give_the_evidence(posterior, capsys):
    # 1,000 draws take 2,000 proposals, as many as the evidences: few programs are compiled
    found = posterior.refine(Y, 1000, key=1, show_progress=True)
    assert "refining: 100 %" in capsys.readouterr().err
    assert found.method == "weights" and found.k_hat < 0.7 and found.effective > 500
    close(found.draws)
    close(posterior.sample(1000, y=Y, key=2, refine=True))
    evidence = posterior.evidence(Y, n=2000, key=3)
    assert evidence.log_evidence == pytest.approx(exact(Y)[2], abs=0.05)
    several = posterior.evidence(np.stack([Y, 0.5 * Y]), n=2000, key=3)
    assert several[1].log_evidence == pytest.approx(exact(0.5 * Y)[2], abs=0.1)


def test_a_missing_number_is_left_out_of_the_likelihood(posterior):
    likelihood = GaussianLikelihood(simulator, np.full(2, NOISE))
    x = np.asarray(posterior.prior.sample(5, key=0), np.float64)
    found = likelihood(x, np.array([Y[0], np.nan]))
    np.testing.assert_allclose(found, stats.norm(2 * x[:, 0], NOISE).logpdf(Y[0]), rtol=1e-6)


def test_a_likelihood_that_is_not_saved_is_missing_after_loading(posterior, tmp_path):
    about = posterior.record.data.model_copy(update={"own_likelihood": True})
    record = posterior.record.model_copy(update={"data": about})
    run = replace(posterior, record=record, log_likelihood=lambda x, y: np.zeros(len(x))).save(tmp_path / "run")
    # even where another likelihood is known
    loaded = replace(fk.load(run), forward=posterior.forward)
    with pytest.raises(InputError, match="log_likelihood of its fit"):
        loaded.evidence(Y)
    with pytest.raises(InputError, match="got int as log_likelihood"):
        fk.invert(simulator, posterior.prior, log_likelihood=3)
    with pytest.raises(InputError, match="two arguments"):
        fk.invert(simulator, posterior.prior, log_likelihood=lambda x: x)


@pytest.mark.slow
def test_rounds_keep_the_evidence_of_the_whole_prior(posterior):
    focused = posterior.focus(Y, rounds=1, num_simulations=600, key=0)
    found = focused.evidence(Y, n=2000, key=3)
    assert found.log_evidence == pytest.approx(exact(Y)[2], abs=0.06)
    # the share of the prior inside of the box, by counting
    _, inside, log_share = _truncated(posterior, Y, np.random.default_rng(0))
    cut = _truncated(posterior, Y, np.random.default_rng(0))[0]
    drawn = np.asarray(posterior.prior.sample(20_000, key=1), np.float64)
    share = np.mean(np.isfinite(np.asarray(cut.log_prob(drawn))))
    assert np.exp(log_share) == pytest.approx(share, abs=4 * (share / 20_000) ** 0.5)
    assert focused.record.data.log_prior_mass < 0 and inside(Y[None] / 2).all()


def test_an_observation_far_out_is_handed_to_chains(posterior, monkeypatch, capsys):
    monkeypatch.setattr(_refine, "_has_nuts", lambda likelihood: False)  # it compiles for long
    monkeypatch.setattr(_refine, "TRUSTED", -np.inf)
    drawn = posterior.sample(1000, y=1.5 * Y, key=1, refine=True)
    close(drawn, 1.5 * Y)
    assert "Drawn by Metropolis" in capsys.readouterr().err


@pytest.mark.slow
def test_nuts_takes_over_where_it_can(posterior, monkeypatch):
    monkeypatch.setattr(_refine, "TRUSTED", -np.inf)
    found = posterior.refine(Y, 2000, key=1)
    assert found.method == "NUTS" and "NUTS" in found.verdict
    np.testing.assert_allclose(found.draws.mean(axis=0), exact(Y)[0], atol=0.03)
    evidence = posterior.evidence(Y, key=3)  # of the mixture with a t around the chains
    assert evidence.log_evidence == pytest.approx(exact(Y)[2], abs=0.05)


@pytest.mark.slow
def test_a_likelihood_of_ones_own_is_as_good(posterior):
    pairs = posterior.held_out_pairs["x"], posterior.held_out_pairs["y"]

    def log_likelihood(x, y):  # NumPy: without gradients
        return stats.norm(2 * np.asarray(x), NOISE).logpdf(y).sum(axis=-1)

    settings = {**QUICK, "train": {"steps": 5, "validation": 0.3}}
    known = fk.invert(pairs=pairs, prior=posterior.prior, log_likelihood=log_likelihood, **settings)
    close(known.sample(1000, y=Y, key=0, refine=True))
    unknown = fk.invert(pairs=pairs, prior=posterior.prior, **settings)
    with pytest.raises(InputError, match="not known"):
        unknown.evidence(Y)
    with pytest.raises(InputError, match="try refine=True alone"):
        known.sample(10, y=Y, refine=True, common=True)


def test_an_ensemble_is_the_average_of_its_members(posterior, tmp_path):
    assert len(posterior.models) == 2
    x = posterior.prior.sample(7, key=0)
    each = [replace(posterior, model=model, members=()).log_prob(x, Y) for model in posterior.models]
    np.testing.assert_allclose(posterior.log_prob(x, Y), np.logaddexp(*each) - np.log(2), atol=1e-4)
    assert posterior.disagreement(Y, key=0).shape == (2,) and np.all(posterior.disagreement(Y, key=0) > 0)
    again = fk.load(posterior.save(tmp_path / "run"))
    np.testing.assert_array_equal(again.sample(5, y=Y, key=0), posterior.sample(5, y=Y, key=0))
    assert again.sample(3, y=[Y, Y], key=0).shape == (2, 3, 2)


@pytest.mark.slow
def test_check_reports_promises_sharpness_and_what_to_do(posterior):
    checks = posterior.check()
    assert {"calibrated", "width", "disagreement"} <= {check.name.split()[0] for check in checks}
    assert all(check.passed or "try" in check.note or "use" in check.note for check in checks)
    found = posterior.calibration
    assert "before calibration" in found["regions"].verdict and found["regions"].check.passed
    sharp = found["sharpness"]
    assert len(sharp.k_hat) == 12 and "width" in sharp.verdict
    # the draws' widths beside the exact ones, as weights have them and as the formula
    ratio = np.median(sharp.spread, axis=0) / exact(Y)[1]
    np.testing.assert_allclose(np.median(sharp.exact_ratio, axis=0), ratio, rtol=0.15)
    assert np.all(sharp.contraction < 1) and np.all(sharp.width > 0)


@pytest.mark.slow
def test_rounds_sharpen_the_posterior_of_one_observation():
    prior = fk.Uniform([-5.0, -5.0], [5.0, 5.0])
    mix = np.array([[1.0, 0.3], [0.5, 1.0]])
    settings = {**QUICK, "width": 16, "train": {"steps": 600}}
    wide = fk.invert(lambda x: x @ mix, prior, noise=0.2, num_simulations=4000, **settings)
    y = np.array([1.0, -0.5])
    covariance = 0.04 * np.linalg.inv(mix @ mix.T)
    law = stats.multivariate_normal(y @ np.linalg.inv(mix), covariance)
    focused = wide.focus(y, rounds=2, key=1)
    drawn = focused.sample(3000, y=y, key=0)
    np.testing.assert_allclose(drawn.std(axis=0), np.sqrt(np.diag(covariance)), rtol=0.1)
    x = law.rvs(200, random_state=0)
    assert np.mean(np.abs(focused.log_prob(x, y) - law.logpdf(x))) < 0.1  # still normalised
    cut, inside, _ = _truncated(wide, y, np.random.default_rng(0))  # a region may leave the box around its draws
    rows = np.asarray(fk.Uniform([0.0, -2.0], [3.0, 1.0]).sample(20_000, key=3), np.float64)
    assert inside(rows).any() and np.isfinite(cut.log_prob(rows[inside(rows)])).all()
    with pytest.raises(InputError, match="without its simulator"):
        fk.invert(pairs=(x, x), prior=prior, **settings).focus(y)
