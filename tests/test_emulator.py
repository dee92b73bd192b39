"""Posteriors that go on training on pairs of an emulator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import flowknife as fk
from flowknife.apps.invert import _training
from flowknife.apps.invert._emulator import _emulator, emulated, overfitted
from flowknife.errors import InputError, Interrupted
from flowknife.train import fit

MATRIX = np.array([[1.0, -0.5, 0.3], [0.2, 0.8, -1.0]])
SPREADS = np.array([[0.3, 0.2, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.5]])
PRIOR = fk.Uniform([-1.0, 0.0], [1.0, 3.0])
QUICK = {"layers": 2, "width": 16, "depth": 1, "features": 4, "show_progress": False, "seed": 0}


class Stop(Exception):
    pass


def simulated(count, seed):
    x = np.asarray(PRIOR.sample(count, key=seed), np.float32)
    noise = np.random.default_rng(seed).normal(size=(count, 3)) @ SPREADS
    return x, (x @ MATRIX + noise).astype(np.float32)


def noisy(x, key):
    return x @ MATRIX + 0.3 * jax.random.normal(key, (*x.shape[:-1], 3))


def test_emulated_pairs_have_the_law_of_the_pairs():
    x, y = simulated(2000, 0)

    def train(models, pairs, key):
        narrow, wide = (sum(leaf.size for leaf in jax.tree.leaves(model)) for model in models)
        assert narrow < wide
        settings = {"steps": 600, "batch_size": 256, "learning_rate": 4e-3}
        return fit(models[1], pairs, key=key, show_progress=False, **settings).model

    drawn = emulated(x, y, PRIOR.inner, 32, 1, jax.random.key(0), train)
    assert drawn["x"].shape == (200_000, 2) and drawn["y"].shape == (200_000, 3)
    assert np.all((drawn["x"] >= [-1.0, 0.0]) & (drawn["x"] <= [1.0, 3.0]))
    uniform = (drawn["x"] - [-1.0, 0.0]) / [2.0, 3.0]
    assert all(stats.kstest(column, "uniform").pvalue > 1e-3 for column in uniform.T)
    design = np.column_stack([drawn["x"], np.ones(200_000)])
    slopes, *_ = np.linalg.lstsq(design, drawn["y"], rcond=None)
    np.testing.assert_allclose(slopes[:2], MATRIX, atol=0.05)
    residuals = drawn["y"] - drawn["x"] @ MATRIX
    np.testing.assert_allclose(np.cov(residuals.T), SPREADS.T @ SPREADS, atol=0.02)


def test_an_emulator_starts_from_standardised_data():
    y = np.random.default_rng(0).normal([5.0, -1.0], [30.0, 0.01], (500, 2)).astype(np.float32)
    model = _emulator(y, 2, 4, 1, jax.random.key(0))
    residuals = np.asarray(model.bijection.encode(jnp.asarray(y), jnp.zeros((500, 2)))[0])
    np.testing.assert_allclose(residuals.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(residuals.std(axis=0), 1.0, rtol=1e-3)


def test_more_pairs_help_where_the_loss_of_held_out_pairs_is_above_that_of_training_pairs():
    assert overfitted({"train": [0.0, -1.0], "validation": [0.0, -0.9]})
    assert not overfitted({"train": [0.0, -1.0], "validation": [0.0, -0.98]})
    assert not overfitted({"train": [], "validation": []})


@pytest.fixture(scope="module")
def plain():
    return fk.invert(noisy, PRIOR, num_simulations=300, emulate=False, train={"steps": 30}, **QUICK)


def test_training_goes_on_and_never_gets_worse_on_held_out_pairs(plain):
    posterior = fk.invert(noisy, PRIOR, num_simulations=300, emulate=True, train={"steps": 30}, **QUICK)
    assert plain.used.emulate is False and posterior.used.emulate is True
    assert min(posterior.history["validation"]) < min(plain.history["validation"])
    assert max(posterior.history["step"]) == 60
    assert posterior.config.emulate is True


def test_an_interrupted_emulator_leaves_the_posterior_of_the_pairs(plain, monkeypatch):
    def interrupted(*_, **__):
        raise Interrupted(None)

    monkeypatch.setattr(_training, "emulated", interrupted)
    with pytest.raises(Interrupted) as stop:
        fk.invert(noisy, PRIOR, num_simulations=300, emulate=True, train={"steps": 30}, **QUICK)
    kept = stop.value.result
    assert kept.used.emulate is False and kept.record.training.part == (2, 2)
    for a, b in zip(jax.tree.leaves(kept.model), jax.tree.leaves(plain.model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_held_out_pairs_choose_the_emulator(monkeypatch):
    def chosen(x, y, prior, width, depth, key, train):
        near, far = (_emulator(y + shift, 2, 4, 1, key) for shift in (0.0, 100.0))
        for models in ([near, far], [far, near]):
            best = train(models, {"y": y, "parameters": x}, key)
            residuals = best.bijection.encode(jnp.asarray(y), jnp.asarray(x))[0]
            assert np.abs(residuals).max() < 10
        raise Stop

    monkeypatch.setattr(_training, "emulated", chosen)
    with pytest.raises(Stop):
        fk.invert(noisy, PRIOR, num_simulations=300, emulate=True, train={"steps": 2}, **QUICK)


@pytest.mark.slow
def test_an_ensemble_and_a_series_go_on_too():
    settings = {"embedding": "series", "ensemble": 2, "emulate": True, "train": {"steps": 30}}
    posterior = fk.invert(noisy, PRIOR, num_simulations=300, **settings, **QUICK)
    assert posterior.used.emulate is True and len(posterior.members) == 1
    assert np.isfinite(posterior.sample(5, y=[0.1, np.nan, 0.2], key=0)).all()


@pytest.mark.parametrize(
    ("reason", "settings"),
    [
        ("data without noise of the simulator", {"noise": 0.1}),
        ("failed simulations", {"failed": True}),
        ("no held-out pairs", {"train": {"steps": 2, "validation": 0}}),
        ("parameters that are no draws of a given prior", {"prior": None}),
        ("missing numbers", {"embedding": "series", "gaps": True}),
    ],
)
def test_it_says_where_an_emulator_cannot_help(reason, settings):
    settings = {"prior": PRIOR, "train": {"steps": 2}} | settings
    x, y = simulated(100, 1)
    if settings.pop("gaps", False) or settings.pop("failed", False):
        y[0, 0] = np.nan
    with pytest.raises(InputError, match=f"got emulate=True with {reason}; expected"):
        fk.invert(pairs=(x, y), emulate=True, **settings, **QUICK)


def test_a_simulator_without_noise_has_no_emulator():
    with pytest.raises(InputError, match="got emulate=True with data without noise of the simulator"):
        fk.invert(lambda x: x @ jnp.asarray(MATRIX[:, :2]), PRIOR, num_simulations=100, emulate=True, **QUICK)


@pytest.mark.parametrize(
    ("train", "expected"),
    [({}, True), ({"steps": 2}, False), ({"minutes": 1.0}, False), ({"weight_decay": 1.0}, False)],
)
def test_few_noisy_pairs_are_emulated_unless_training_has_an_end(train, expected, monkeypatch):
    seen = []

    def run(trainings, model_key):
        seen.append(trainings.emulating)
        raise Stop

    monkeypatch.setattr(_training.Trainings, "run", run)
    x, y = simulated(100, 1)
    failed = np.where(np.arange(100)[:, None] == 3, np.nan, y)
    for data in (y, failed):
        with pytest.raises(Stop):
            fk.invert(pairs=(x, data), prior=PRIOR, train=train, **QUICK)
    assert seen == [expected, False]
