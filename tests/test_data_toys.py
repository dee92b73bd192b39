"""The toy distributions: samples, density and entropy must agree with each other."""

import functools

import jax
import numpy as np
import pytest

from flowknife.data import TOYS, ring_labels
from flowknife.data.toys import RING_CENTRES
from flowknife.errors import InputError

NAMES = sorted(TOYS)


@functools.cache
def density_on_grid(name, per_axis=300):
    """A square that holds practically all mass: (half its side, log density at the centres of its cells, cell area)."""
    reach = np.ceil(np.abs(TOYS[name].sample(20_000, key=0)).max() + 0.5)
    side = 2 * reach / per_axis
    axis = -reach + side * (np.arange(per_axis) + 0.5)
    return reach, TOYS[name].log_prob(np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)), side**2


def test_every_toy_knows_its_name_and_source():
    assert len(TOYS) == 9
    assert all(toy.name == name and toy.source for name, toy in TOYS.items())


_LONG = ("rings", "two_spirals")  # to integrate


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in _LONG else ()) for n in NAMES])
def test_density_integrates_to_one_and_gives_the_entropy(name):
    _, log_p, cell = density_on_grid(name)
    p = np.exp(log_p)
    assert p.sum() * cell == pytest.approx(1, abs=1e-5)
    assert -(p * np.where(p > 0, log_p, 0)).sum() * cell == pytest.approx(TOYS[name].entropy, abs=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_density(name):
    toy = TOYS[name]
    x = toy.sample(20_000, key=1)
    log_p = toy.log_prob(x)
    standard_error = log_p.std() / np.sqrt(len(x))
    assert -log_p.mean() == pytest.approx(toy.entropy, abs=4 * standard_error + 1e-8)

    reach, grid, cell = density_on_grid(name)
    coarse = (np.exp(grid) * cell).reshape(10, 30, 10, 30).sum(axis=(1, 3)).ravel()
    counts, _ = np.histogramdd(x, bins=10, range=[(-reach, reach)] * 2)
    expected = coarse * len(x)
    big = expected > 5
    chi_square = ((counts.ravel() - expected)[big] ** 2 / expected[big]).sum()
    assert abs(chi_square - big.sum()) < 5 * np.sqrt(2 * big.sum())


@pytest.mark.parametrize("name", NAMES)
def test_sampling_is_reproducible_and_typed(name):
    toy = TOYS[name]
    x = toy.sample(64, key=3)
    assert x.dtype == np.float32 and x.shape == (64, 2)
    np.testing.assert_array_equal(x, toy.sample(64, key=jax.random.key(3)))
    assert not np.array_equal(x, toy.sample(64, key=4))
    assert not np.array_equal(toy.sample(64), toy.sample(64))
    assert toy.sample(0, key=0).shape == (0, 2)
    assert toy.log_prob(x[0]).shape == () and toy.log_prob(x.reshape(8, 8, 2)).shape == (8, 8)


@pytest.mark.parametrize(
    ("name", "angle", "centre"),
    [
        ("ring", np.pi / 2, (0, 0)),
        ("eight_gaussians", np.pi / 4, (0, 0)),
        ("checkerboard", np.pi, (0, 0)),
        ("moons", np.pi, (0.5, 0.25)),
        ("pinwheel", 2 * np.pi / 5, (0, 0)),
        ("two_spirals", np.pi, (0, 0)),
        ("circles", 1.0, (0, 0)),
        ("rings", 1.0, (0, 0)),
    ],
)
def test_density_has_the_symmetry_of_its_definition(name, angle, centre):
    toy = TOYS[name]
    x = toy.sample(500, key=5).astype(np.float64) - centre
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(toy.log_prob(x @ rotation.T + centre), toy.log_prob(x + centre), atol=1e-8)


def test_curves_run_where_their_definitions_say():
    datasets = pytest.importorskip("sklearn.datasets")
    moons, _ = datasets.make_moons(200)
    circles, _ = datasets.make_circles(200, factor=0.5)
    roll, _ = datasets.make_swiss_roll(200, random_state=0)
    for name, on_curve in [("moons", moons), ("circles", 3 * circles), ("swiss_roll", roll[:, [0, 2]] / 5)]:
        log_p = TOYS[name].log_prob(on_curve)
        assert log_p.mean() > -TOYS[name].entropy + 0.3  # noise lowers it, on average by about half a nat
        assert log_p.min() > -TOYS[name].entropy - 0.7


def test_checkerboard_is_flat_inside_and_zero_outside():
    toy = TOYS["checkerboard"]
    x = toy.sample(50_000, key=0)
    np.testing.assert_array_equal(toy.log_prob(x), -np.log(32))
    assert np.all(np.abs(x) < 4)
    squares, counts = np.unique(np.floor(x / 2), axis=0, return_counts=True)
    assert len(squares) == 8 and np.all(squares.sum(axis=1) % 2 == 0)
    assert np.abs(counts - 6250).max() < 5 * np.sqrt(6250)
    assert np.all(np.isneginf(toy.log_prob([[1, -1], [5, 1], [4.5, 4.5], [-1, 1]])))


def test_curve_density_agrees_with_the_bessel_formula_of_a_noisy_circle():
    from scipy.special import i0e

    x = TOYS["circles"].sample(200, key=2).astype(np.float64)
    radius = np.linalg.norm(x, axis=1)
    p = 0
    for r in (3.0, 1.5):  # the Rice distribution in polar form
        p = p + 0.5 * i0e(radius * r / 0.24**2) * np.exp(-((radius - r) ** 2) / (2 * 0.24**2)) / (2 * np.pi * 0.24**2)
    np.testing.assert_allclose(TOYS["circles"].log_prob(x), np.log(p), atol=1e-9)


def test_pinwheel_is_the_twisted_arm_of_the_original():
    x = TOYS["pinwheel"].sample(100_000, key=0) / 2
    radius = np.linalg.norm(x, axis=1)
    # Undone twist: five narrow arms at equal angles.
    angle = (np.arctan2(x[:, 1], x[:, 0]) + np.exp(radius) / 4) % (2 * np.pi / 5)
    offset = np.minimum(angle, 2 * np.pi / 5 - angle) * radius
    assert np.sqrt((offset[radius > 0.8] ** 2).mean()) == pytest.approx(0.1, rel=0.05)


def test_ring_labels_name_the_modes():
    np.testing.assert_array_equal(ring_labels(RING_CENTRES), np.arange(8))
    np.testing.assert_array_equal(ring_labels(RING_CENTRES + 0.5, "some"), [0, 0, 0, 0, 1, 1, 2, 3])
    assert set(ring_labels(TOYS["ring"].sample(100, key=0), "none")) == {0}
    counts = np.bincount(ring_labels(TOYS["ring"].sample(80_000, key=0)))
    assert np.abs(counts - 10_000).max() < 500


@pytest.mark.parametrize(
    "call",
    [
        lambda: TOYS["moons"].sample(-1, key=0),
        lambda: TOYS["moons"].sample(True, key=0),
        lambda: TOYS["moons"].log_prob(np.zeros((4, 3))),
        lambda: ring_labels(RING_CENTRES, "most"),
    ],
)
def test_misuse_is_told_in_one_line(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)
