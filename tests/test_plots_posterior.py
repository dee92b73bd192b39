"""Figures of posteriors and of classifiers: what is drawn is what was given, and odd inputs are met."""

import io
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flowknife import diagnostics, plots
from flowknife.diagnostics import Monitoring, Reached, Sharpness
from flowknife.errors import InputError
from flowknife.plots import _style, posterior


def table(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def ranks(components: int = 2, scale: float = 1.0, n: int = 60, draws: int = 39):
    generator = np.random.default_rng(0)
    return diagnostics.sbc(
        scale * generator.normal(size=(n, draws, components)), generator.normal(size=(n, components))
    )


def central(components: int = 2, levels=(0.5, 0.9)):
    generator = np.random.default_rng(0)
    return diagnostics.coverage(
        generator.normal(size=(60, 39, components)), generator.normal(size=(60, components)), levels
    )


def probabilities(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(3), size=n)
    return p, (generator.random((n, 1)) > np.cumsum(p, axis=1)[:, :2]).sum(axis=1)


def images(count: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)


def sharpness(dim, exact=0):
    truth, names = table(40, dim), tuple(f"parameter {i}" for i in range(dim))
    ratio, shift = 1 + 0.1 * np.abs(table(exact, dim, seed=2)), 0.1 * table(exact, dim, seed=3)
    k_hat = np.full(exact, 0.3)
    return Sharpness(names, truth, truth + 0.1, np.full((40, dim), 0.2), np.ones(dim), ratio, shift, k_hat)


def reached(kinds):
    levels = np.array([0.5, 0.8, 0.9, 0.95])
    return Reached(levels, levels - 0.1, dict.fromkeys(kinds, levels), 300)


def stream(alarm):
    p = np.linspace(0.01, 0.99, 50)
    return Monitoring(p, np.linspace(0, 4, 50), 0.05, alarm, None if alarm is None else 20)


CATALOGUE = {
    "recovery": lambda: plots.recovery(sharpness(3)),
    "recovery of many": lambda: plots.recovery(sharpness(14)),
    "contraction": lambda: plots.contraction(sharpness(2)),
    "contraction beside exact ones": lambda: plots.contraction(sharpness(3, exact=8)),
    "promised": lambda: plots.promised(reached(["global", "local"])),
    "promised of one kind": lambda: plots.promised(reached(["global"])),
    "monitoring": lambda: plots.monitoring(stream(None)),
    "monitoring with an alarm": lambda: plots.monitoring(stream(38)),
    "corner": lambda: plots.corner(
        table(500, 3), ["a $ b $", "b_c", "c"], [0, 1, 9], table(400, 3, seed=1), ["m", "", "km/s"]
    ),
    "corner of JAX arrays": lambda: plots.corner(jnp.asarray(table(300, 2)), truth=jnp.zeros(2)),
    "corner 1-D": lambda: plots.corner(table(500, 1)[:, 0], truth=0.0, reference=table(50, 1)),
    "corner of many": lambda: plots.corner(table(210, 20), truth=np.zeros(20)),
    "corner of few": lambda: plots.corner(table(3, 2), reference=table(1, 2)),
    "corner of one": lambda: plots.corner(table(1, 2)),
    "corner constant": lambda: plots.corner(np.ones((300, 2)), truth=[1, 2]),
    "corner with NaN": lambda: plots.corner(np.append(table(300, 2), [[np.nan, 1.0]], axis=0)),
    "calibration": lambda: plots.calibration(ranks()),
    "calibration of many, wrong": lambda: plots.calibration(ranks(14, scale=0.3)),
    "calibration of one draw": lambda: plots.calibration(ranks(1, n=2, draws=1)),
    "coverage": lambda: plots.coverage(central(), ranks(1), ranks(1, scale=0.3)),
    "coverage of intervals": lambda: plots.coverage(central(12, levels=(0.9,))),
    "coverage jointly": lambda: plots.coverage(tarp=ranks(1)),
    "predictive": lambda: plots.predictive(table(200, 12), np.zeros(12), [f"y$_{i}" for i in range(12)]),
    "predictive histograms": lambda: plots.predictive(table(200, 2), [0.0, 9.0], ["a", "b"]),
    "predictive of one": lambda: plots.predictive(table(200, 1), 0.1),
    "predictive along a line": lambda: plots.predictive(
        table(5, 3), np.zeros(3), positions=[0.5, 0.1, 2.0], labels=("period (s)", "velocity (km/s)")
    ),
    "confusion": lambda: plots.confusion([[5, 1], [0, 7]], ["cat $", "a dog of a long name"]),
    "confusion large": lambda: plots.confusion(np.random.default_rng(0).integers(0, 9, (30, 30))),
    "confusion empty": lambda: plots.confusion(np.zeros((2, 2))),
    "reliability": lambda: plots.reliability(diagnostics.reliability(*probabilities())),
    "reliability of certainty": lambda: plots.reliability(diagnostics.reliability([[1.0, 0.0]] * 3, [0, 0, 1])),
    "latent_classes": lambda: plots.latent_classes(table(60, 5), np.arange(60) % 4, list("abcd"), 9 * table(5, 5)),
    "latent_classes plane": lambda: plots.latent_classes(table(60, 2), np.arange(60) % 3 - 1),
    "latent_classes many": lambda: plots.latent_classes(table(90, 4), np.arange(90) % 15),
    "class_samples": lambda: plots.class_samples([table(30, 2), 5 + table(20, 2)], ["a$", "b$"]),
    "class_samples of wide vectors": lambda: plots.class_samples([table(30, 6), 5 + table(20, 6)]),
    "class_samples of images": lambda: plots.class_samples([images(3), images(5)], ["cat", "dog"]),
}


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_figure_draws_without_a_warning(name):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CATALOGUE[name]().savefig(file, format="png")
    drawn = np.asarray(Image.open(file).convert("RGB"))
    assert drawn.shape[0] > 50 and drawn.shape[1] > 50
    assert drawn.std() > 0


def test_every_figure_of_this_kind_has_a_row():
    here = {
        name
        for name in plots.__all__
        if getattr(plots, name).__module__.split(".")[-1] in ("posterior", "classes", "promises")
    }
    assert {name.split()[0] for name in CATALOGUE} == here


def test_corner_puts_components_truth_and_names_at_their_places():
    samples = table(300, 3) * [1.0, 10.0, 100.0]
    figure = plots.corner(samples, ["a", "b", "c"], truth=[0.1, 2.0, 30.0], units=["m", "", "s"])
    grid = np.array(figure.axes[:9]).reshape(3, 3)
    assert [axes.get_xlabel() for axes in grid[-1]] == ["a (m)", "b", "c (s)"]
    assert [axes.get_ylabel() for axes in grid[1:, 0]] == ["b", "c (s)"]
    dot = grid[2, 1].lines[-1]
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (2.0, 30.0)
    drawn = np.asarray(grid[2, 1].collections[0].get_offsets())
    np.testing.assert_array_equal(drawn, samples[:, [1, 2]])
    area = sum(bar.get_height() * bar.get_width() for bar in grid[0, 0].patches)
    assert 0.97 < area <= 1 + 1e-9


def test_corner_of_many_components_says_how_many_it_shows():
    assert "8 of 20 components" in plots.corner(table(300, 20)).get_suptitle()


def test_regions_hold_the_mass_they_say():
    # for a normal of the plane the region of mass a is a disc of radius sqrt(-2 log(1 - a))
    samples = table(40_000, 2)
    x, y, density = posterior._smooth(samples, (-4.0, 4.0), (-4.0, 4.0))
    cell = (x[1] - x[0]) * (y[1] - y[0])
    for level, mass in zip(posterior._mass_levels(density), posterior.MASSES, strict=True):
        disc = -2 * np.pi * np.log(1 - mass)
        assert np.sum(density >= level) * cell == pytest.approx(disc, rel=0.12)


def test_limits_hold_a_truth_far_away():
    low, high = posterior._limits([table(100, 1)[:, 0]], 50.0)
    assert high > 50 and low < -1


def test_calibration_draws_the_difference_and_the_band():
    result = ranks(2)
    axes = plots.calibration(result).axes[0]
    curves = {line.get_label(): line.get_data() for line in axes.lines}
    x, y = curves["x2"]
    np.testing.assert_allclose(x[1:-1], result.points)
    np.testing.assert_allclose(y[1:-1], result.ecdf[:, 1] - result.points)
    edge = axes.collections[0].get_paths()[0].vertices
    lower, _ = result.band()
    assert edge[:, 1].min() == pytest.approx((lower - result.points).min())


def test_coverage_tells_what_failed():
    sentence = plots.coverage(central(), ranks(1), ranks(1, scale=0.3)).get_suptitle().replace("\n", " ")
    assert sentence.startswith("Highest-density regions: ") and "TARP" not in sentence


def test_predictive_counts_what_lies_inside():
    figure = plots.predictive(np.arange(101.0)[:, None] * np.ones(6), [50, 4, 6, 94, 96, 50])
    assert figure.get_suptitle().startswith("4 of 6 observed values")
    median = next(line for line in figure.axes[0].lines if line.get_label() == "median")
    np.testing.assert_allclose(median.get_ydata(), 50)


def test_confusion_tells_the_worst_pair_in_its_direction():
    figure = plots.confusion([[5, 0, 0], [4, 5, 1], [0, 0, 5]], ["cat", "dog", "cow"])
    sentence = figure.get_suptitle().replace("\n", " ")
    assert sentence == "15 of 20 right (75.0%); most often dog is predicted as cat (4)."
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image, [[1, 0, 0], [0.4, 0.5, 0.1], [0, 0, 1]])


def test_classes_keep_their_colours():
    z, labels = table(40, 2), np.arange(40) % 2
    dots = plots.latent_classes(z, labels).axes[0].collections[0]
    colours = {
        tuple(point): tuple(shade) for point, shade in zip(dots.get_offsets().data, dots.get_facecolors(), strict=True)
    }
    expected = _style.point_colours(labels, 40)
    for point, shade in zip(z, expected, strict=True):
        assert colours[tuple(point)][:3] == tuple(shade[:3])


@pytest.mark.parametrize(
    "call",
    [
        lambda: plots.corner(table(9, 2), truth=[1.0]),
        lambda: plots.corner(table(9, 2), ["a"]),
        lambda: plots.corner(table(9, 2), units=["m"]),
        lambda: plots.corner(table(9, 2), reference=table(9, 3)),
        lambda: plots.coverage(),
        lambda: plots.predictive(table(9, 2), [1.0]),
        lambda: plots.predictive(table(9, 2), [1.0, 2.0], positions=[1.0]),
        lambda: plots.confusion(np.zeros((2, 3))),
        lambda: plots.confusion([[1, -1], [0, 1]]),
        lambda: plots.confusion([[1, 1], [0, 1]], ["a"]),
        lambda: plots.latent_classes(table(5, 2), [0, 1]),
        lambda: plots.latent_classes(table(2, 2), [0, 2], ["a", "b"]),
        lambda: plots.latent_classes(table(2, 1), [0, 1]),
        lambda: plots.class_samples([]),
        lambda: plots.class_samples([table(5, 1)]),
        lambda: plots.class_samples([table(5, 2), table(5, 3)]),
        lambda: plots.class_samples([images(2) / 255]),
    ],
)
def test_wrong_input_is_told_in_one_line(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)
