"""Figures: what is drawn is what was given, nothing global is touched, and odd inputs are met."""

import io
import subprocess
import sys
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from flowknife import plots
from flowknife.errors import InputError, StorageError
from flowknife.plots import _sheet, _style, animation


def table(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def images(count: int, height: int = 8, width: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def normal_log_prob(points: np.ndarray) -> np.ndarray:
    return -0.5 * (points**2).sum(axis=1) - np.log(2 * np.pi)


def sentence(figure) -> str:
    """The headline, or the first text of a contact sheet."""
    text = figure.get_suptitle() or next((t.get_text() for t in figure.axes[0].texts), "")
    return text.replace("\n", " ")


def pixels(figure) -> np.ndarray:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


GRID = [np.stack([np.full(9, c), np.linspace(-2, 2, 9)], axis=1) for c in (-1.0, 0.0, 1.0)]

CATALOGUE = {
    "samples 1-D": lambda: plots.samples(table(50, 1)[:, 0], table(40, 1)),
    "samples 2-D": lambda: plots.samples(table(50, 2), table(40, 2), ["a $ b $", "b_c"]),
    "samples 3-D": lambda: plots.samples(table(50, 3), table(4, 3)),
    "samples 8-D": lambda: plots.samples(table(200, 8), table(200, 8)),
    "samples of JAX arrays": lambda: plots.samples(jnp.asarray(table(9, 2)), jnp.asarray(table(9, 2))),
    "samples one row": lambda: plots.samples(table(1, 3), table(1, 3)),
    "samples constant": lambda: plots.samples(np.ones((20, 3)), np.ones((20, 3))),
    "samples with NaN": lambda: plots.samples(np.append(table(20, 2), [[np.nan, 1.0]], axis=0), table(20, 2)),
    "density": lambda: plots.density(normal_log_prob, -3, [3, 4], data=table(30, 2), resolution=40),
    "density of nothing": lambda: plots.density(lambda p: np.full(len(p), -np.inf), -3, 3, resolution=10),
    "density with NaN": lambda: plots.density(lambda p: np.full(len(p), np.nan), -3, 3, resolution=10),
    "mapping": lambda: plots.mapping(table(40, 2), table(40, 2), GRID, GRID, np.arange(40)),
    "mapping bare": lambda: plots.mapping(table(1, 2), table(1, 2)),
    "history": lambda: plots.history([3.0, 2.0, 1.0], [np.nan, 2.5, 2.7], [10, 20, 30], "nll"),
    "history of one": lambda: plots.history([3.0]),
    "latents": lambda: plots.latents(table(60, 4)),
    "latents of one": lambda: plots.latents(np.array([0.3])),
    "latent_histogram": lambda: plots.latent_histogram(table(30, 4), others=[2.0, np.nan]),
    "latent_histogram alone": lambda: plots.latent_histogram(images(3).astype(float)),
    "radius_histogram": lambda: plots.radius_histogram([9.0, np.nan, 10.0], 100, others=[30.0]),
    "radius_histogram of one": lambda: plots.radius_histogram([1.0], 1, others=[]),
    "anomaly_scores": lambda: plots.anomaly_scores([0.1, np.nan, 1.0], [0.0, 0.01]),
    "anomaly_scores alone": lambda: plots.anomaly_scores([0.5]),
    "image_grid": lambda: plots.image_grid(images(7), titles=list("abcdefg"), heading="Seven images. " * 20),
    "image_grid of one, grey": lambda: plots.image_grid(images(1, channels=1)),
    "image_grid large": lambda: plots.image_grid(images(2, 300, 200), columns=9),
    "real_regenerated_simulated": lambda: plots.real_regenerated_simulated(images(12), images(12), images(3, seed=1)),
    "compare": lambda: plots.compare([("flow", images(3)), ("Gaussian", images(2))], "Side by side."),
    "temperatures": lambda: plots.temperatures([(0.5, images(3)), (1.0, images(2, channels=1))]),
    "interpolation": lambda: plots.interpolation(images(30)),
    "closest_farthest": lambda: plots.closest_farthest(images(2), [1.0, np.nan], images(1), [40.0]),
    "outliers": lambda: plots.outliers(images(3), [0.5, np.nan, 0.0], ["a", "b$x$y", "c" * 99]),
    "outliers bare": lambda: plots.outliers(images(1, channels=1), [0.5]),
    "along": lambda: plots.along(np.stack([images(3), images(3, seed=1)]), [-1, 0, 0.5], "More and less."),
    "nearest": lambda: plots.nearest(images(3), images(6, 4, 4).reshape(3, 2, 4, 4, 3), table(3, 2) ** 2, 3.0),
    "nearest grey": lambda: plots.nearest(images(1, channels=1), images(1, channels=1)[None], [[0.0]]),
    "resampled": lambda: plots.resampled(images(1)[0], [("z_0", images(3)), ("z_1", images(2))]),
    "anomaly_maps": lambda: plots.anomaly_maps(images(12), table(12, 64).reshape(12, 8, 8), list("abcdefghijkl")),
    "anomaly_maps grey": lambda: plots.anomaly_maps(images(1, channels=1), np.full((1, 8, 8), np.nan)),
    "latent_clusters": lambda: plots.latent_clusters(
        table(30, 2), table(6, 2).reshape(2, 3, 2), ["itself", "mirrored", "darker"], images(6).reshape(2, 3, 8, 8, 3)
    ),
    "latent_cloud": lambda: plots.latent_cloud(table(9, 2), table(4, 2), table(3, 2), images(4), images(3, channels=1)),
    "latent_cloud with NaN": lambda: plots.latent_cloud(table(9, 2), [[np.nan, 1.0]], None, images(1)),
    "latent_cloud bare": lambda: plots.latent_cloud(table(1, 2), table(1, 2), np.zeros((0, 2))),
}

ELSEWHERE = ("posterior", "classes", "problems", "promises")


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_figure_draws_without_a_warning(name):
    drawn = pixels(CATALOGUE[name]())
    assert drawn.shape[0] > 50 and drawn.shape[1] > 50
    assert drawn.std() > 0


def test_every_public_figure_has_a_row():
    # those of posteriors and classes have theirs in test_plots_posterior.py
    here = {name for name in plots.__all__ if getattr(plots, name).__module__.split(".")[-1] not in ELSEWHERE}
    assert {name.split()[0] for name in CATALOGUE} == here - {
        "mapping_animation",
        "interpolation_animation",
        "heat_maps",
    }


def test_nothing_global_is_touched(tmp_path):
    script = """
import sys
import flowknife.plots as plots
import numpy as np
assert "matplotlib" not in sys.modules, "imported too early"
import matplotlib
before = dict(matplotlib.rcParams)
x = np.random.default_rng(0).normal(size=(20, 2))
plots.samples(x, x).savefig(sys.argv[1])
plots.image_grid(np.zeros((2, 4, 4, 3), np.uint8)).savefig(sys.argv[1])
assert dict(matplotlib.rcParams) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    root = Path(plots.__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.png")], cwd=root, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_samples_show_every_point_and_share_limits():
    data, generated = table(50, 2), table(40, 2, seed=1)
    left, right = plots.samples(data, generated, ["a", "b"]).axes
    np.testing.assert_array_equal(left.collections[0].get_offsets(), data)
    np.testing.assert_array_equal(right.collections[0].get_offsets(), generated)
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()
    assert (left.get_xlabel(), left.get_ylabel()) == ("a", "b")


def test_samples_matrix_puts_names_at_the_right_columns():
    data = table(300, 8) * np.arange(1, 9)
    figure = plots.samples(data, data, [f"c{i}" for i in range(8)])
    grid = np.array(figure.axes[:36]).reshape(6, 6)
    assert [axes.get_xlabel() for axes in grid[-1]] == [f"c{i}" for i in range(6)]
    drawn = np.asarray(grid[4, 2].collections[0].get_offsets())
    pairs = {tuple(row) for row in data[:, [2, 4]]}
    assert len(drawn) == 600 and {tuple(row) for row in drawn} == pairs
    assert not grid[2, 4].get_visible()


def test_density_is_the_exponential_and_is_not_transposed():
    figure = plots.density(lambda p: np.log(1 + p[:, 0] + 10 * p[:, 1]), [0, 0], [1, 2], resolution=4)
    heat = figure.axes[0].images[0].get_array()
    across, up = (np.arange(4) + 0.5) / 4, (np.arange(4) + 0.5) / 2
    np.testing.assert_allclose(heat, 1 + across[None, :] + 10 * up[:, None])
    assert figure.axes[0].images[0].origin == "lower"


@pytest.mark.parametrize(("low", "share"), [(-6, "100.0%"), ([0, -6], "50.0%"), ([0, 0], "25.0%")])
def test_density_says_how_much_mass_the_window_holds(low, share):
    assert share in sentence(plots.density(normal_log_prob, low, 6, resolution=120))


def test_mapping_keeps_colours_and_draws_the_circles_of_the_normal():
    x, z, labels = table(30, 2), table(30, 2, seed=1), np.arange(30) % 5
    left, _, right = plots.mapping(x, z, GRID, GRID, labels).axes
    seen = [axes.collections[-1] for axes in (left, right)]
    np.testing.assert_array_equal(seen[0].get_offsets(), x)
    np.testing.assert_array_equal(seen[1].get_offsets(), z)
    np.testing.assert_array_equal(seen[0].get_facecolors(), seen[1].get_facecolors())
    assert len({tuple(c) for c in seen[0].get_facecolors()}) == 5
    assert [patch.radius for patch in right.patches] == [1, 2, 3]
    assert right.get_aspect() == 1.0


def test_history_marks_the_best_held_out_record():
    figure = plots.history([900.0, 1.0, 0.5, 0.1], [np.nan, 2.0, 1.5, 1.7], [0, 100, 2000, 3000])
    np.testing.assert_allclose(figure.axes[0].collections[-1].get_offsets()[0], [2000, 1.5])
    assert "held-out" in sentence(figure) and "1.5" in sentence(figure) and "2,000" in sentence(figure)


def test_bands_of_predictions_have_their_own_labels():
    drawn = np.random.default_rng(0).normal(size=(50, 6))
    axes = plots.predictive(drawn, np.zeros(6), labels=("period (s)", "velocity")).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("period (s)", "velocity")


def test_history_of_a_result_is_that_of_its_columns():
    columns = {
        "level": [0.0, 1.0, 1.0],
        "step": [5.0, 10.0, 20.0],
        "train": [9.0, 2.0, 1.0],
        "validation": [9.0, 3.0, 4.0],
    }
    axes = plots.history(columns).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[10, 2], [20, 1]])
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [[10, 3], [20, 4]])


def test_history_without_held_out_data_marks_the_best_training_record():
    figure = plots.history([3.0, 1.0, np.nan, 2.0])
    np.testing.assert_allclose(figure.axes[0].collections[-1].get_offsets()[0], [2, 1.0])


@pytest.mark.parametrize("dimension", [1, 2, 100, 12288])
def test_radius_law_is_the_chi_density(dimension):
    radii = stats.chi(dimension).rvs(200, random_state=0)
    curve = plots.radius_histogram(radii, dimension).axes[0].lines[0]
    r, law = curve.get_data()
    np.testing.assert_allclose(law, stats.chi(dimension).pdf(r), rtol=1e-6, atol=1e-12)
    assert np.trapezoid(law, r) == pytest.approx(1, abs=2e-3)


def test_histograms_have_unit_area_and_count_what_lies_beyond():
    figure = plots.latent_histogram(np.append(table(500, 4), 1e6))
    area = sum(bar.get_width() * bar.get_height() for bar in figure.axes[0].patches)
    assert area == pytest.approx(2000 / 2001)
    assert "(1 beyond this axis)" in figure.axes[0].get_xlabel()


def test_quantiles_of_a_normal_lie_on_the_diagonal():
    z = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    right = plots.latents(z).axes[1]
    expected, found = right.lines[-1].get_data()
    np.testing.assert_allclose(found, expected, atol=0.04)
    assert expected.max() > 3.5


def test_flagged_are_the_p_values_below_alpha_as_in_score():
    figure = plots.anomaly_scores([0.04, 0.05, 0.5, 1.0], [0.0, 0.01, 0.0499, 0.05])
    bars = figure.axes[0].patches
    assert (bars[0].get_height(), bars[20].get_height()) == (0.25, 0.75)
    assert sum(bar.get_height() for bar in bars[:20]) == pytest.approx(1)
    assert "25.0% of the held-out" in sentence(figure) and "75.0% of the others" in sentence(figure)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (28, 20), (64, 64)])
def test_an_image_is_drawn_pixel_for_pixel(channels, size):
    stack = images(6, *size, channels)
    drawn = pixels(plots.image_grid(stack, columns=3, heading="Six images."))
    tile = _sheet.tile_size(stack, 3, round(11 * _sheet.INCH))
    scale = tile[1] // size[0]
    assert tile == (size[1] * scale, size[0] * scale)
    for index in (0, 5):
        magnified = np.kron(stack[index], np.ones((scale, scale, 1), np.uint8))
        row, column = divmod(index, 3)
        x = _sheet.MARGIN + column * (tile[0] + _sheet.GAP)
        below = drawn.shape[0] - _sheet.MARGIN - (1 - row) * (tile[1] + _sheet.GAP)
        part = drawn[below - tile[1] : below, x : x + tile[0]]
        np.testing.assert_array_equal(part, np.broadcast_to(magnified, part.shape))


def test_outliers_come_smallest_first_and_unknown_last():
    stack = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    figure = plots.outliers(stack, [0.3, np.nan, 0.0001, 0.05, 0.9], list("abcde"))
    shown = [int(image.get_array()[0, 0, 0]) for image in figure.axes[0].images]
    assert shown == [2, 3, 0, 4, 1]
    captions = [text.get_text() for text in figure.axes[0].texts if text.get_text().startswith("p ")]
    assert captions == ["p < 0.001\nc", "p = 0.050\nd", "p = 0.300\na", "p = 0.900\ne", "p unknown\nb"]
    assert "1 of 5 have p < 0.05" in sentence(figure)
    assert "2 of 5 have p < 0.06" in sentence(plots.outliers(stack, [0.3, np.nan, 0.0001, 0.05, 0.9], alpha=0.06))


def test_outliers_show_no_more_than_asked():
    figure = plots.outliers(images(9), np.linspace(0, 1, 9), most=4)
    assert len(figure.axes[0].images) == 4
    assert "The 4 most anomalous of 9" in sentence(figure)


def test_regenerated_images_are_compared_with_the_real_ones():
    real = images(2)
    assert "exactly" in sentence(plots.real_regenerated_simulated(real, real, real))
    near = np.where(real > 128, real - 3, real).astype(np.uint8)
    assert "within 3 of 255" in sentence(plots.real_regenerated_simulated(real, near, real))


def test_numbers_in_the_cloud_match_the_images_at_its_side():
    cloud, anomalous = table(5, 2), 9 + table(4, 2, seed=1)
    figure = plots.latent_cloud(table(50, 2), cloud, anomalous, images(3), images(2))
    paper, axes = figure.axes
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert list(places) == ["1", "2", "3", "4", "5"]
    np.testing.assert_array_equal(places["2"], cloud[1])
    np.testing.assert_array_equal(places["4"], anomalous[0])
    assert [text.get_text() for text in paper.texts if text.get_text().isdigit()] == list(places)


def test_long_names_lose_their_middle():
    assert _sheet.shorten("p = 0.1\nshort", 200) == "p = 0.1\nshort"
    cut = _sheet.shorten("photo_of_a_cat_in_the_garden_0042.jpg", 128).split("\n")[0]
    assert cut.startswith("photo") and cut.endswith(".jpg") and "…" in cut and len(cut) <= 14


@pytest.mark.parametrize("count", [1, 2, 5, 12, 17, 64, 100])
def test_grids_are_landscape_and_hold_all_images(count):
    figure = plots.image_grid(images(count))
    assert len(figure.axes[0].images) == count
    assert figure.get_figwidth() >= 0.9 * figure.get_figheight()


def test_span_ignores_wild_values_only():
    bulk = table(2000, 1)[:, 0]
    assert _style.span(bulk) == (bulk.min(), bulk.max())
    assert _style.span(np.append(bulk, [1e9, np.nan, -np.inf])) == (bulk.min(), bulk.max())
    assert _style.span(np.append(np.zeros(100), 5.0)) == (0.0, 5.0)
    assert _style.span(np.array([np.nan])) == (0.0, 1.0)
    low, high = _style.span(np.array([3.0, 3.0]))
    assert low < 3 < high


def test_point_colours_tell_labels_from_numbers():
    labels = _style.point_colours(["cat", "dog", "cat"], 3)
    assert (labels[0] == labels[2]).all() and (labels[0] != labels[1]).any()
    shades = _style.point_colours(np.linspace(0, 1, 50), 50)
    assert len({tuple(shade) for shade in shades}) == 50


@pytest.mark.parametrize(
    "call",
    [
        lambda: plots.samples(table(5, 2), table(5, 3)),
        lambda: plots.samples(table(5, 2), table(5, 2), ["only one"]),
        lambda: plots.samples(np.zeros((0, 2)), table(5, 2)),
        lambda: plots.density(normal_log_prob, 1, 0),
        lambda: plots.density(normal_log_prob, [0, 0, 0], 1),
        lambda: plots.density(lambda p: p, 0, 1, resolution=5),
        lambda: plots.mapping(table(5, 2), table(4, 2)),
        lambda: plots.mapping(table(5, 2), table(5, 2), colour=np.zeros(4)),
        lambda: plots.history([1.0, 2.0], [1.0]),
        lambda: plots.history([np.nan]),
        lambda: plots.history({"step": [1.0]}),
        lambda: plots.latents([np.nan]),
        lambda: plots.radius_histogram([1.0], 0),
        lambda: plots.anomaly_scores([1.5]),
        lambda: plots.image_grid(images(2) / 255),
        lambda: plots.image_grid(images(2, channels=4)),
        lambda: plots.image_grid(images(0)),
        lambda: plots.image_grid(images(2), titles=["a"]),
        lambda: plots.compare([]),
        lambda: plots.temperatures([]),
        lambda: plots.real_regenerated_simulated(images(2), images(3), images(1)),
        lambda: plots.closest_farthest(images(2), [1.0], images(1), [1.0]),
        lambda: plots.outliers(images(2), [0.1, 0.2], ["a"]),
        lambda: plots.latent_cloud(table(5, 2), table(1, 2), simulated_images=images(2)),
        lambda: plots.latent_cloud(table(5, 3), table(1, 2)),
        lambda: plots.along(images(3)[None], [1, 2]),
        lambda: plots.nearest(images(3), images(3)[:, None], [1.0, 2.0, 3.0]),
        lambda: plots.resampled(images(1)[0], []),
        lambda: plots.anomaly_maps(images(2), np.zeros((2, 4, 4))),
        lambda: plots.anomaly_maps(images(2), np.zeros((2, 8, 8)), ["a"]),
        lambda: plots.latent_clusters(table(5, 2), np.zeros((2, 3, 2)), ["a"], images(6).reshape(2, 3, 8, 8, 3)),
        lambda: plots.interpolation_animation("x.gif", images(1)),
        lambda: plots.mapping_animation("x.gif", table(5, 2)),
        lambda: plots.mapping_animation("x.gif", np.zeros((1, 5, 2))),
        lambda: plots.mapping_animation("x.gif", np.full((2, 5, 2), np.nan)),
        lambda: plots.mapping_animation("x.gif", np.zeros((2, 5, 2)), lines=np.zeros((3, 1, 4, 2))),
        lambda: plots.mapping_animation("x.gif", np.zeros((2, 5, 2)), names=["a"]),
    ],
)
def test_wrong_input_is_told_in_one_line(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)


def stages(count: int = 4, points: int = 60) -> np.ndarray:
    z = table(points, 2)
    return np.stack([z * [1 + 2 * t, 1 - 0.7 * t] + 5 * t for t in np.linspace(1, 0, count)])


def read_gif(path: Path) -> tuple[list[np.ndarray], list[int], int]:
    with Image.open(path) as gif:
        frames, times = [], []
        for index in range(gif.n_frames):
            gif.seek(index)
            frames.append(np.asarray(gif.convert("RGB")))
            times.append(gif.info["duration"])
        return frames, times, gif.info["loop"]


def test_animation_goes_there_and_back_for_ever(tmp_path):
    lines = np.stack([np.stack(GRID) + shift for shift in range(4)])
    lines[1, 2, 0] = np.nan
    path = plots.mapping_animation(tmp_path / "new" / "a.gif", stages(), np.arange(60), lines, seconds=0.8)
    frames, times, loop = read_gif(path)
    assert loop == 0
    assert sum(times) == pytest.approx(800 + 2 * animation.HOLD_MS, abs=200)
    half = len(frames) // 2
    assert times[0] == times[half] == animation.HOLD_MS
    for step in range(1, half):
        np.testing.assert_array_equal(frames[half - step], frames[half + step])
    assert (frames[0] != frames[half]).any()
    assert (frames[0][0, 0] == 255).all()


def test_animation_shrinks_until_the_file_is_small(tmp_path, monkeypatch):
    large = plots.mapping_animation(tmp_path / "large.gif", stages(2), seconds=0.6).stat().st_size
    monkeypatch.setattr(animation, "LARGEST_FILE", large // 2)
    assert plots.mapping_animation(tmp_path / "small.gif", stages(2), seconds=0.6).stat().st_size < large // 2


def test_animation_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not write"):
        plots.mapping_animation(tmp_path / "file" / "a.gif", stages(2), seconds=0.2)


def test_heat_is_orange_above_the_usual_and_blue_below():
    maps = np.zeros((1, 8, 8))
    maps[0, 0], maps[0, -1] = 9.0, -9.0
    hot, pale, cold = plots.heat_maps(images(1), maps)[0, [0, 4, -1]].astype(int).mean(axis=1)
    assert hot[0] > hot[2] + 50 and cold[2] > cold[0] + 50 and np.ptp(pale) < 1


def test_interpolation_animation_goes_there_and_back(tmp_path):
    strip = np.stack([np.full((8, 8, 3), shade, np.uint8) for shade in (0, 120, 250)])
    frames, times, loop = read_gif(plots.interpolation_animation(tmp_path / "new" / "a.gif", strip))
    shades = [round(float(frame.mean()) / 10) for frame in frames]
    assert shades == [0, 12, 25, 12] and loop == 0 and times[0] == times[2] > times[1]
    assert frames[0].shape[0] == 256


def test_points_of_classes_are_drawn_along_named_columns():
    rows = np.random.default_rng(0).normal(size=(2, 20, 2)) * [2.0, 1.0]
    axes = plots.class_samples(list(rows), ["a", "b"], columns=["length", "width"]).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("length", "width")
