"""Problems: forward models against independent formulas, references against what must be true of a posterior."""

import importlib.util
import pickle
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from flowknife import data, plots
from flowknife.errors import InputError
from flowknife.priors import Normal
from flowknife.problems import (
    PROBLEMS,
    ballistics,
    dispersion,
    gaussian_linear,
    gravity,
    kinematics,
    pairs,
    ring,
    two_moons,
)
from flowknife.problems import _ballistics as throw
from flowknife.problems import _kinematics as arm
from flowknife.problems._dispersion import phase_velocities
from flowknife.problems._nuts import nuts_posterior
from flowknife.problems.make_dispersion import scaled, simulate
from flowknife.sampling._importance import Weighted
from tests.catalogue import quick_jit

HAND = np.array([1.7, 0.1])
EXACT = {
    "kinematics": (kinematics, HAND),
    "ballistics": (ballistics, np.array([8.0])),
    "two_moons": (two_moons, np.array([0.1, -0.3])),
    "gaussian_linear": (gaussian_linear, np.linspace(-1, 1, 10)),
}
with_disba = pytest.mark.skipif(importlib.util.find_spec("disba") is None, reason="disba is not installed")


@pytest.fixture(params=EXACT)
def exact(request):
    make, y = EXACT[request.param]
    return make(), y


# -- of every problem -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_a_problem_tells_of_itself(name):
    problem = PROBLEMS[name]()
    assert problem.name == name
    assert len(problem.prior.names) == problem.dim and len(problem.y_names) == len(problem.y_units) == problem.y_dim
    assert problem.noise is None or np.all(np.asarray(problem.noise) >= 0)


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "dispersion"])
def test_simulations_are_batched_seeded_and_compile(name):
    problem = PROBLEMS[name]()
    theta = problem.prior.sample((2, 3), key=0)
    y = problem.simulate(theta, key=1)
    assert y.shape == (2, 3, problem.y_dim) and np.all(np.isfinite(y))
    np.testing.assert_array_equal(y, problem.simulate(theta, key=jax.random.key(1)))
    forward = quick_jit(lambda theta: problem.forward(theta))
    np.testing.assert_allclose(forward(theta)[1, 2], forward(theta[1, 2]), rtol=1e-4, atol=1e-5)
    jacobian = quick_jit(lambda theta: jax.vmap(jax.jacfwd(problem.forward))(theta))(theta.reshape(6, -1))
    assert np.all(np.isfinite(jacobian)) and np.any(jacobian != 0)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_can_be_pickled(name):
    problem = PROBLEMS[name]()
    again = pickle.loads(pickle.dumps(problem))
    assert again.prior.names == problem.prior.names and again.noise == problem.noise
    theta = problem.prior.sample(3, key=0)
    np.testing.assert_array_equal(again.prior.sample(3, key=0), theta)
    if name == "dispersion":
        return
    y = np.asarray(problem.simulate(theta, key=1))
    np.testing.assert_array_equal(again.simulate(theta, key=1), y)
    if name != "gravity":
        both = (each.reference_posterior(y[0], 5, key=0) for each in (again, problem))
        np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("make", [lambda noise: kinematics(noise), lambda noise: gravity(noise=noise)])
def test_noise_is_added_to_the_forward_model(make):
    quiet, noisy = make(0.0), make(0.3)
    theta = jnp.broadcast_to(quiet.prior.sample(key=0), (4000, quiet.dim))
    np.testing.assert_array_equal(quiet.simulate(theta, key=1), quiet.forward(theta))
    residual = np.asarray(noisy.simulate(theta, key=1) - quiet.forward(theta))
    np.testing.assert_allclose(residual.std(axis=0), 0.3, rtol=0.06)
    np.testing.assert_allclose(residual.mean(axis=0), 0, atol=0.02)


def test_the_reference_simulates_back_to_y(exact):
    problem, y = exact
    theta = problem.reference_posterior(y, 500, key=0)
    assert theta.shape == (500, problem.dim) and theta.dtype == np.float64
    assert np.all(np.isfinite(problem.prior.log_prob(theta)))
    if problem.noise == 0:
        np.testing.assert_allclose(problem.forward(theta), np.broadcast_to(y, (500, len(y))), atol=3e-5)
    else:
        scale = 0.15 if problem.noise is None else problem.noise
        assert np.max(np.abs(problem.forward(theta) - y)) < 6 * scale
    np.testing.assert_array_equal(theta, problem.reference_posterior(y, 500, key=0))
    assert len(np.unique(theta, axis=0)) > 480


def test_truth_and_reference_draws_are_alike(exact):
    """Simulation-based calibration (Talts et al. 2018): the rank of the truth among posterior draws is uniform."""
    problem, _ = exact
    truth = np.asarray(problem.prior.sample(150, key=3), np.float64)
    y = np.asarray(problem.simulate(truth, key=4), np.float64)
    ranks = np.array(
        [np.mean(problem.reference_posterior(y[i], 60, key=i) < truth[i], axis=0) for i in range(len(truth))]
    )
    assert min(stats.kstest(rank, stats.uniform(-0.01, 1.02).cdf).pvalue for rank in ranks.T) > 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kinematics().simulate(np.zeros((5, 3)), key=0), "base, angle1"),
        (lambda: kinematics().reference_posterior([1.0], 5, key=0), "2 finite"),
        (lambda: kinematics().reference_posterior([np.nan, 1.0], 5, key=0), "2 finite"),
        (lambda: kinematics().reference_posterior(HAND, 0, key=0), "at least 1 draw"),
        (lambda: kinematics().reference_posterior([9.0, 0.0], 5, key=0), "explain"),
        (lambda: two_moons().reference_posterior([5.0, 5.0], 5, key=0), "explain"),
        (lambda: gaussian_linear(0), "at least 1"),
        (lambda: gaussian_linear(2.5), "at least 1"),
        (lambda: gravity(prisms=0), "prisms=0"),
        (lambda: gravity(stations="a"), "stations='a'"),
        (lambda: kinematics("a"), "text as noise"),
        (lambda: kinematics(-1.0), "standard deviation"),
        (lambda: ballistics(np.nan), "standard deviation"),
        (lambda: kinematics((0.1, 0.1, 0.1)), "one for each of 2"),
        (lambda: replace(kinematics(), prior=3), "int as the prior of kinematics"),
        (lambda: replace(kinematics(), forward=None), "NoneType as forward"),
        (lambda: replace(kinematics(), y_names=("hand",)), "a name and a unit"),
        (lambda: kinematics().simulate("a", key=0), "text"),
        (lambda: kinematics().reference_posterior("a", 5, key=0), "text"),
        (lambda: kinematics().reference_posterior(HAND, 2.5, key=0), "whole number"),
        (lambda: ring(["all"]), "'all', 'some', 'none'"),
        (lambda: ring("most"), "'all', 'some', 'none'"),
        (lambda: ring().log_prob_given([[0.0, 0.0]], [8]), "from 0 to 7"),
        (lambda: ring().log_prob([1.0, 2.0, 3.0]), "\\(..., 2\\)"),
        (lambda: plots.problem(kinematics(), np.zeros((5, 4)), [1.0]), "got y of shape"),
        (lambda: plots.problem(kinematics(), np.full((5, 4), np.nan)), "finite"),
        (lambda: plots.problem(gravity(), np.ones((5, 4))), "samples"),
    ],
)
def test_what_cannot_be_done_is_told(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# -- weighted proposals -----------------------------------------------------------------------------------------------


def test_weighted_proposals_become_draws_of_the_target():
    def propose(generator, m):
        x = generator.uniform(-6, 6, (m, 1))
        return x, np.where(x[:, 0] > 0, np.log(12) + stats.norm.logpdf(x[:, 0], 1.0, 0.5), -np.inf)

    generator = np.random.default_rng(0)
    weighted = Weighted.gather(propose, generator, 20_000)
    assert weighted.effective >= 20_000 and np.all(weighted.theta > 0)
    assert np.exp(weighted.log_evidence) == pytest.approx(stats.norm.sf(0, 1.0, 0.5), abs=0.02)
    draws = weighted.draw(generator, 3000)[:, 0]
    assert stats.kstest(draws, stats.truncnorm(-2, np.inf, 1.0, 0.5).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.1


# -- kinematics -------------------------------------------------------------------------------------------------------


def test_the_hand_is_where_the_formula_says():
    t = np.random.default_rng(0).normal(size=(50, 4))
    a, b, c = t[:, 1], t[:, 1] + t[:, 2], t[:, 1] + t[:, 2] + t[:, 3]
    expected = [
        0.5 * np.cos(a) + 0.5 * np.cos(b) + np.cos(c),
        t[:, 0] + 0.5 * np.sin(a) + 0.5 * np.sin(b) + np.sin(c),
    ]
    np.testing.assert_allclose(kinematics().forward(t), np.transpose(expected), atol=1e-5)
    segments = np.linalg.norm(np.diff(arm.joints(jnp.asarray(t)), axis=1), axis=-1)
    np.testing.assert_allclose(segments, np.broadcast_to([0.5, 0.5, 1.0], (50, 3)), rtol=1e-5)


def test_kinematics_evidence_and_effective_number():
    theta, log_weight = arm.propose(np.random.default_rng(0), 25_000, HAND, 0.0)
    weighted = Weighted(theta, log_weight, len(theta))
    # 0.1168 and 30,000 of 100,000 with proposals of one kind, by an independent implementation
    assert np.exp(weighted.log_evidence) == pytest.approx(0.1168, rel=0.02)
    assert weighted.effective > 15_000 and weighted.weight.max() < 1e-3
    # the density of y at the same place, of simulations
    y = np.asarray(kinematics().simulate(kinematics().prior.sample(400_000, key=0), key=0))
    inside = np.linalg.norm(y - HAND, axis=1) < 0.05
    assert np.mean(inside) / (np.pi * 0.05**2) == pytest.approx(np.exp(weighted.log_evidence), rel=0.12)


def test_kinematics_reference_agrees_with_rejection():
    problem = kinematics()
    prior = np.asarray(problem.prior.sample(1_000_000, key=0))
    kept = prior[np.linalg.norm(problem.forward(prior) - HAND, axis=1) < 0.04]
    draws = problem.reference_posterior(HAND, 4000, key=1)
    assert len(kept) > 400
    for i in range(4):
        assert stats.ks_2samp(kept[:, i], draws[:, i]).pvalue > 1e-3
    for i, j in ((0, 1), (1, 2), (2, 3)):
        assert stats.ks_2samp(kept[:, i] * kept[:, j], draws[:, i] * draws[:, j]).pvalue > 1e-3


def test_kinematics_with_noise_is_the_posterior_of_noisy_data():
    noise = 0.2
    draws = kinematics(noise).reference_posterior(HAND, 4000, key=0)
    problem = kinematics()
    prior = np.asarray(problem.prior.sample(400_000, key=1), np.float64)
    weight = np.exp(-0.5 * np.sum((np.asarray(problem.forward(prior)) - HAND) ** 2, axis=1) / noise**2)
    weight /= weight.sum()
    mean = weight @ prior
    std = np.sqrt(weight @ (prior - mean) ** 2)
    assert np.all(np.abs(draws.mean(axis=0) - mean) < 0.12 * std)
    np.testing.assert_allclose(draws.std(axis=0), std, rtol=0.1)


# -- ballistics -------------------------------------------------------------------------------------------------------


def test_throws_obey_the_equation_of_motion(float64):
    theta = jnp.asarray([0.3, 1.2, 0.9, 14.0])
    velocity = 14.0 * np.array([np.cos(0.9), np.sin(0.9)])

    def move(t, state):
        return [*state[2:], -0.25 / 0.2 * state[2], -9.81 - 0.25 / 0.2 * state[3]]

    ground = lambda t, state: state[1]  # noqa: E731
    ground.terminal, ground.direction = True, -1
    path = integrate.solve_ivp(
        move, (0, 10), [0.3, 1.2, *velocity], events=ground, rtol=1e-11, atol=1e-11, dense_output=True
    )
    t = np.linspace(0, path.t[-1], 9)
    np.testing.assert_allclose(jax.vmap(lambda s: throw.path(theta, s))(t), path.sol(t)[:2].T, atol=1e-8)
    np.testing.assert_allclose(throw.flight_time(theta), path.t_events[0][0], rtol=1e-8)
    np.testing.assert_allclose(ballistics().forward(theta), path.y_events[0][0, :1], rtol=1e-8)


def test_the_landing_is_the_later_root_of_every_throw():
    problem = ballistics()
    theta = np.array(problem.prior.sample(20_000, key=0), np.float32)
    theta[:4, 1:] = [[-1.0, 0.2, 0.0], [0.0, 1.4, -0.5], [1e-6, 0.2, 1e-6], [4.0, 1.41, 44.0]]
    t = np.asarray(jax.jit(throw.flight_time)(theta))
    x, height = np.asarray(jax.jit(throw.path)(theta, t)).T
    assert np.all(np.isfinite(t) & (t >= 0)) and np.all(np.abs(height) < 3e-5) and np.all(np.isfinite(x))
    # afterwards it is below the ground, so there is no later root
    below = np.asarray(throw.path(theta, t + 0.05))[:, 1]
    assert np.all(below < 0)


def test_gradients_of_the_landing_are_those_of_differences(float64):
    forward = jax.jit(ballistics().forward)
    theta = np.array([0.3, 1.2, 0.9, 14.0])
    slope = jax.jacobian(forward)(theta)[0]
    expected = optimize.approx_fprime(theta, lambda t: float(forward(t)[0]), 1e-6)
    np.testing.assert_allclose(slope, expected, rtol=1e-4)


def test_a_throw_from_the_ground_is_rectified():
    forward = ballistics().forward
    np.testing.assert_array_equal(forward([0.0, -1.0, 0.5, 9.0]), forward([0.0, 0.0, 0.5, 9.0]))


# -- gravity ----------------------------------------------------------------------------------------------------------


def test_the_anomaly_is_the_sum_of_line_masses(float64):
    problem = gravity(prisms=4, stations=3)
    depth = np.array([0.5, 2.0, 1.2, 0.3])
    edges, stations = problem.geometry["edges"] * 1e3, problem.geometry["stations"] * 1e3
    across = 800
    total = np.zeros(3)
    for i in range(4):
        x, width = np.linspace(edges[i], edges[i + 1], across, endpoint=False, retstep=True)
        # depths grow geometrically, since the nearest masses matter most
        z = np.concatenate([[0.0], np.geomspace(0.05, depth[i] * 1e3, 600)])
        dz, z = np.diff(z), 0.5 * (z[1:] + z[:-1]) + 1.0  # the stations stand one metre above
        r2 = (x[:, None] + width / 2 - stations[:, None, None]) ** 2 + z**2
        total += np.sum(2 * 6.6743e-11 * -300 * z / r2 * width * dz, axis=(1, 2)) * 1e5
    np.testing.assert_allclose(problem.forward(depth), total, rtol=2e-3)


def test_a_wide_basin_is_a_slab(float64):
    anomaly = gravity(prisms=8, stations=1).forward(np.full(8, 1e-3))
    np.testing.assert_allclose(anomaly, -2 * np.pi * 6.6743e-11 * 300 * 1.0 * 1e5, rtol=1e-3)


def test_single_precision_is_enough_for_the_anomaly():
    problem = gravity()
    depth = np.asarray(problem.prior.sample(20, key=0))
    rough = problem.forward(depth)
    with jax.enable_x64(True):
        fine = gravity().forward(depth.astype(np.float64))
    np.testing.assert_allclose(rough, fine, atol=1e-4)
    assert np.all((np.median(depth) > 0.2) & (np.median(depth) < 4)) and np.all(np.asarray(fine) < 0)


@pytest.mark.slow
def test_gravity_reference_is_calibrated():
    problem = gravity(prisms=8, stations=4, noise=0.5)
    truth = np.asarray(problem.prior.sample(80, key=0))
    y = np.asarray(problem.simulate(truth, key=1))
    ranks = np.array([np.mean(problem.reference_posterior(y[i], 100, key=i) < truth[i], axis=0) for i in range(80)])
    assert min(stats.kstest(rank, stats.uniform(-0.005, 1.01).cdf).pvalue for rank in ranks.T) > 1e-4


# -- NUTS -------------------------------------------------------------------------------------------------------------


def test_nuts_draws_the_posterior_of_a_linear_model():
    pytest.importorskip("blackjax")
    rng = np.random.default_rng(0)
    matrix, mean, scale, noise = rng.normal(size=(2, 3)), np.array([1.0, -1.0, 0.0]), np.array([1.0, 0.5, 2.0]), 0.1
    y = np.array([0.7, -0.4])
    reference = partial(
        nuts_posterior, Normal(mean, scale), lambda theta: theta @ jnp.asarray(matrix, theta.dtype).T, noise
    )
    theta = reference(jax.random.key(0), y, 4000)
    precision = np.diag(scale**-2) + matrix.T @ matrix / noise**2
    covariance = np.linalg.inv(precision)
    centre = covariance @ (mean / scale**2 + matrix.T @ y / noise**2)
    whitened = (theta - centre) @ np.linalg.cholesky(precision)
    assert theta.shape == (4000, 3)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=0.08)
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(3), atol=0.12)
    assert all(stats.kstest(column[::4], "norm").pvalue > 1e-3 for column in whitened.T)


# -- benchmarks -------------------------------------------------------------------------------------------------------


def test_two_moons_simulations_have_the_density_of_their_definition():
    problem = two_moons()
    theta = jnp.broadcast_to(jnp.asarray([0.3, 0.5]), (20_000, 2))
    rest = np.asarray(problem.simulate(theta, key=0)) - [0.25 - 0.8 / 2**0.5, 0.2 / 2**0.5]
    radius, angle = np.linalg.norm(rest, axis=1), np.arctan2(rest[:, 1], rest[:, 0])
    assert stats.kstest(radius, stats.norm(0.1, 0.01).cdf).pvalue > 1e-3
    assert stats.kstest(angle, stats.uniform(-np.pi / 2, np.pi).cdf).pvalue > 1e-3
    np.testing.assert_allclose(problem.forward(theta[0]), np.mean(problem.simulate(theta, key=1), axis=0), atol=2e-3)


@pytest.mark.parametrize("y", [[0.1, -0.3], [-1.0, 0.1]])  # the second lies in part outside of the square
def test_two_moons_reference_is_the_normalised_likelihood_on_the_square(y):
    draws = two_moons().reference_posterior(y, 20_000, key=0)
    cells = 400
    edges = np.linspace(-1, 1, cells + 1)
    middle = 0.5 * (edges[1:] + edges[:-1])
    t1, t2 = np.meshgrid(middle, middle, indexing="ij")
    rest = [y[0] - 0.25 + np.abs(t1 + t2) / 2**0.5, y[1] - (t2 - t1) / 2**0.5]
    radius = np.hypot(*rest)
    likelihood = np.where(rest[0] > 0, stats.norm.pdf(radius, 0.1, 0.01) / (np.pi * radius), 0.0)
    expected = likelihood / likelihood.sum()
    coarse = expected.reshape(20, 20, 20, 20).sum(axis=(1, 3))
    found = np.histogram2d(*draws.T, bins=edges[::20])[0] / len(draws)
    error = np.sqrt(coarse / len(draws)) + 2e-3
    assert np.all(np.abs(found - coarse) < 5 * error)


def test_gaussian_linear_reference_has_its_moments():
    y = np.linspace(-1, 1, 10)
    draws = gaussian_linear().reference_posterior(y, 20_000, key=0)
    np.testing.assert_allclose(draws.mean(axis=0), y / 2, atol=0.01)
    np.testing.assert_allclose(np.cov(draws.T), 0.05 * np.eye(10), atol=0.003)
    assert gaussian_linear(3).dim == 3


# -- ring -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "classes"), [("all", 8), ("some", 4), ("none", 1)])
def test_the_ring_is_that_of_the_toys(labels, classes):
    problem, toy = ring(labels), data.TOYS["ring"]
    x, label = problem.sample(4000, key=0)
    assert x.shape == (4000, 2) and x.dtype == np.float32 and problem.classes == classes
    np.testing.assert_array_equal(label, data.ring_labels(x, labels))
    np.testing.assert_allclose(problem.log_prob(x), toy.log_prob(x), rtol=1e-9)
    assert problem.entropy == toy.entropy
    assert -problem.log_prob(x).mean() == pytest.approx(problem.entropy, abs=0.06)


def test_the_ring_given_a_label_is_normalised_and_mixes_to_the_whole():
    problem = ring("some")
    line = np.linspace(-4, 4, 401)
    plane = np.stack(np.meshgrid(line, line), axis=-1)
    share = np.bincount(problem.mode_labels) / 8
    parts = [np.exp(problem.log_prob_given(plane, np.full((401, 401), label))) for label in range(4)]
    np.testing.assert_allclose([part.sum() * 0.02**2 for part in parts], 1, atol=1e-6)
    mixed = sum(weight * part for weight, part in zip(share, parts, strict=True))
    np.testing.assert_allclose(mixed, np.exp(problem.log_prob(plane)), rtol=1e-9)
    x, label = ring().sample(20_000, key=0)
    assert -ring().log_prob_given(x, label).mean() == pytest.approx(-0.381, abs=0.03)


# -- dispersion -------------------------------------------------------------------------------------------------------


def test_stored_pairs_follow_the_prior():
    theta, y = pairs()
    prior = dispersion().prior
    assert theta.shape == (20_000, 10) and y.shape == (20_000, 14) and np.all(np.isfinite(y))
    u = np.asarray(prior.bijection.encode(jnp.asarray(theta))[0], np.float64)
    assert all(stats.kstest(column, "norm").pvalue > 1e-4 for column in u.T)
    # waves are no faster than the fastest layer, and at short periods mostly sense the upper ones
    assert np.all(y.max(axis=1) < theta.max(axis=1))
    assert np.corrcoef(theta[:, 0], y[:, 0])[0, 1] > 0.5 > np.corrcoef(theta[:, 9], y[:, 0])[0, 1]


def test_whole_numbers_of_16_bits_lose_little():
    values = np.random.default_rng(0).normal(size=(1000, 3))
    stored, low, step = scaled(values)
    assert stored.dtype == np.uint16
    np.testing.assert_allclose(low + step * stored, values, atol=6e-5)


def test_without_disba_the_way_out_is_told():
    if importlib.util.find_spec("disba") is not None:
        pytest.skip("disba is installed")
    with pytest.raises(InputError, match=r"pip install 'flowknife\[dispersion\]'.*pairs\(\)"):
        dispersion().simulate(np.ones(10), key=0)


@with_disba
@pytest.mark.slow
def test_dispersion_forward_and_pairs_agree():
    problem = dispersion()
    theta, y = pairs()
    np.testing.assert_allclose(problem.forward(theta[:50]), y[:50], atol=2e-4)
    np.testing.assert_array_equal(jax.jit(problem.forward)(theta[:3]), problem.forward(theta[:3]))
    assert np.all(np.isnan(problem.forward(-theta[:2])))
    # a homogeneous half-space: the Rayleigh wave of its Poisson ratio, at every period
    vs, vp = 0.8, 1.16 * 0.8 + 1.36
    c = optimize.brentq(
        lambda c: (2 - (c / vs) ** 2) ** 2 - 4 * np.sqrt((1 - (c / vp) ** 2) * (1 - (c / vs) ** 2)), 0.5, 0.799
    )
    np.testing.assert_allclose(phase_velocities(np.full(10, vs)), c, atol=3e-4)
    drawn = simulate(20)
    assert drawn[0].shape == (20, 10) and np.all(np.isfinite(drawn[1])) and drawn[2] >= 0


@with_disba
@pytest.mark.slow
def test_dispersion_reference_explains_the_data():
    problem = dispersion()
    theta, y = pairs()
    observed = y[0] + problem.noise * np.random.default_rng(0).standard_normal(14)
    draws = problem.reference_posterior(observed, 200, key=0)
    misfit = np.mean(((np.asarray(problem.forward(draws)) - observed) / problem.noise) ** 2)
    assert 0.2 < misfit < 2.0
    assert np.all(draws.std(axis=0) < 1.3 * problem.prior.std)
    assert np.all(np.abs(draws.mean(axis=0) - theta[0]) < 4 * draws.std(axis=0))


# -- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "labelled"),
    [
        *((name, True) for name in (*PROBLEMS, "ring")),
        ("kinematics", False),
        ("ring", False),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in PROBLEMS if name != "kinematics"),
    ],
)
def test_every_problem_has_an_image(name, labelled):
    if name == "ring":
        x, labels = ring("some").sample(300, key=0)
        figure = plots.problem(ring("some"), x, labels if labelled else None)
    else:
        problem = PROBLEMS[name]()
        theta = np.asarray(problem.prior.sample(60, key=0))
        y = pairs()[1][0] if name == "dispersion" else problem.simulate(theta[0], key=1)
        figure = plots.problem(problem, theta, y if labelled else None, theta[0] if labelled else None)
    figure.draw_without_rendering()
    assert figure.get_suptitle().endswith(".")
    if name not in ("ring", "gaussian_linear"):
        labels = {text for axes in figure.axes for text in axes.get_legend_handles_labels()[1]}
        assert ("truth" in labels) == labelled


def test_the_image_of_the_arm_ends_at_the_hand():
    problem = kinematics()
    theta = problem.reference_posterior(HAND, 30, key=0)
    lines = plots.problem(problem, theta, HAND).axes[0].collections[0].get_segments()
    np.testing.assert_allclose([line[-1] for line in lines], np.tile(HAND, (30, 1)), atol=1e-5)
    np.testing.assert_allclose([line[0, 0] for line in lines], 0, atol=1e-6)
