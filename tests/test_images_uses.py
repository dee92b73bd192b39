"""What one does with a trained image model: ways, directions, levels, neighbours, other priors, and where it is odd."""

import os
from dataclasses import replace

import jax
import numpy as np
import pytest

import flowknife as fk
from flowknife.anomaly._maps import standardise_maps
from flowknife.anomaly._neighbours import Neighbours, thumbnails
from flowknife.anomaly._scores import png_bits
from flowknife.apps.images._empirical import Empirical
from flowknife.apps.images._fit import _Detector
from flowknife.apps.images._latents import way
from flowknife.errors import InputError
from tests.catalogue import quick_jit


def faces(n, key=0):
    """Images of two bright spots of varying brightness on a ground of varying brightness, in colour."""
    generator = np.random.default_rng(key)
    pixels = generator.uniform(20, 120, (n, 1, 1, 3)) + generator.normal(0, 5, (n, 16, 16, 3))
    for column in (3, 10):
        pixels[:, 5:8, column : column + 3] += generator.uniform(40, 120, (n, 1, 1, 1))
    return np.clip(pixels, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def optimised():
    """Programs as they are in use: here, running them takes longer than compiling."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")


@pytest.fixture(scope="module")
def model(optimised):
    """A small model of faces, with what it keeps of the training images."""
    settings = {"architecture": "glow", "levels": 2, "steps_per_level": 2, "width": 12, "alpha": 0.1}
    fitted = fk.images(faces(240), train={"steps": 60, "batch_size": 24}, key=1, show_progress=False, **settings)
    train = faces(240)
    sizes = {name: columns.stop - columns.start for name, columns in fitted.levels.items()}
    empirical = Empirical.fit(fitted.latents(train), sizes)
    return replace(fitted, empirical=empirical, neighbours=Neighbours.fit(thumbnails(train), mirrored=True))


def close(a, b, bits=5):
    """Whether two images differ by no more than the bits that the model does not keep."""
    return np.abs(a.astype(int) - b).max() <= 2 ** (7 - bits)


# -- images, their latents and their scores ---------------------------------------------------------------------------


def test_images_come_back_exactly_but_for_their_lost_bits(model):
    images = faces(20, key=1)
    back = model.decode(model.encode(images))
    assert back.dtype == np.uint8
    # 5 of 8 bits are kept: 8 levels share a bin, whose middle is at most 4 away
    assert np.abs(back.astype(int) - images).max() <= 4


def test_bits_per_dim_is_that_of_the_whole_model(model):
    images = faces(8, key=5)
    whole = -np.asarray(quick_jit(lambda m, x: m.log_prob(x, key=0))(model.model, images)) / (768 * np.log(2))
    # other noise within the bins, the same images
    np.testing.assert_allclose(model.score(images)["bits_per_dim"], whole, atol=0.2)


def test_a_low_temperature_varies_less(model):
    cold, warm = (model.sample(32, key=0, temperature=t).astype(float).std(axis=0).mean() for t in (0.2, 1.0))
    assert cold < 0.7 * warm
    by_level = model.sample(32, key=0, temperature={"z_0": 0.2, "z_1": 0.2}).astype(float).std(axis=0).mean()
    assert by_level == pytest.approx(cold, rel=1e-3)


@pytest.mark.parametrize("temperature", [[1.0, 0.5], "cold", {"z_0": [1.0]}, -1.0])
@pytest.mark.parametrize("prior", ["normal", "empirical"])
def test_a_temperature_that_is_no_number_is_refused(model, temperature, prior):
    with pytest.raises(InputError, match="temperature"):
        model.sample(2, temperature=temperature, prior=prior)


def test_the_time_that_may_be_used_limits_the_images_that_calibrate(model):
    train, held_out = faces(40), faces(120, key=2)
    kept = {}
    for seconds in (0.0, 1e6):
        detector = _Detector((train, {}), (held_out, {}), True, False)
        needed = detector.within(seconds, 60, model.model)
        kept[seconds] = len(detector.held_out)
        assert needed > 0
    assert kept == {0.0: 60, 1e6: 120}


# -- ways and directions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["spherical", "linear"])
def test_a_way_starts_and_ends_at_the_two_images(model, how):
    a, b = faces(2, key=5)
    strip = model.interpolate(a, b, steps=5, how=how)
    assert strip.shape == (5, 16, 16, 3) and strip.dtype == np.uint8
    assert close(strip[0], a) and close(strip[-1], b)
    # in the middle it is like neither
    assert min(np.abs(strip[2].astype(float) - end).mean() for end in (a, b)) > 2


def test_the_spherical_way_keeps_the_radius_and_turns_evenly():
    generator = np.random.default_rng(0)
    start, end = generator.normal(size=(2, 300)) * [[1.0], [2.0]]
    steps = way(start, end, 7, "spherical")
    radii = np.linalg.norm(steps, axis=1)
    np.testing.assert_allclose(np.diff(radii), (radii[-1] - radii[0]) / 6, rtol=1e-3)
    unit = steps / radii[:, None]
    np.testing.assert_allclose(np.diff(np.sum(unit[1:] * unit[:-1], axis=1)), 0.0, atol=1e-5)
    straight = way(start, end, 7, "linear")
    assert np.linalg.norm(straight[3]) < 0.8 * radii[3]
    np.testing.assert_allclose(way(start, start, 3, "spherical"), [start] * 3, rtol=1e-6)
    np.testing.assert_allclose(way(start, 0 * end, 3, "spherical")[1], start / 2, rtol=1e-6)


def test_an_attribute_is_given_and_taken(model):
    images = faces(80, key=6)
    brightness = images.mean(axis=(1, 2, 3))
    order = np.argsort(brightness)
    direction = model.attribute(images[order[-25:]], images[order[:25]])
    moved = model.along(images[:3], direction, [-1, 0, 1])
    assert moved.shape == (3, 3, 16, 16, 3) and close(moved[:, 1], images[:3])
    means = moved.mean(axis=(2, 3, 4))
    assert (np.diff(means, axis=1) > 0).all()
    with pytest.raises(InputError, match="direction of shape"):
        model.along(images[:1], direction[1:])


def test_drawing_a_level_anew_leaves_all_others(model):
    images = faces(2, key=7)
    for level, name in enumerate(model.levels):
        drawn = model.resample(images, level, n=3, key=0)
        assert drawn.shape == (2, 3, 16, 16, 3)
        np.testing.assert_array_equal(drawn, model.resample(images, name, n=3, key=0))
        assert len(np.unique(drawn[0].reshape(3, -1), axis=0)) == 3
        latents = np.asarray(model.encode(images))
        for other, columns in model.levels.items():
            again = model.encode(drawn.reshape(-1, 16, 16, 3)).reshape(2, 3, -1)
            change = np.abs(again - latents[:, None])[..., columns].mean()
            # what was drawn anew changes by about 2 / sqrt(pi); the others only by the bins of the pixels
            assert (change > 0.8) == (other == name), (name, other, change)
    # a temperature of 0 is the middle of the law, the same in every draw
    still = model.resample(images, 0, n=2, key=0, temperature=0.0)
    np.testing.assert_array_equal(still[:, 0], still[:, 1])
    with pytest.raises(InputError, match="z_0, z_1"):
        model.resample(images, "z_7")


def test_one_image_may_be_a_file_or_an_array(model, tmp_path):
    (path,) = fk.data.write_folder(faces(1, key=8), tmp_path).iterdir()
    one = faces(1, key=8)
    for given in (path, str(path), one[0], one):
        np.testing.assert_array_equal(model.encode(given), model.encode(one))
    with pytest.raises(InputError, match=r"none\.png"):
        model.interpolate(tmp_path / "none.png", path)
    for wrong in ({"steps": 1}, {"how": "curved"}):
        with pytest.raises(InputError, match="expected"):
            model.interpolate(path, path, **wrong)


# -- neighbours -------------------------------------------------------------------------------------------------------


def test_the_nearest_training_image_is_found_mirrored_too(model):
    train = faces(240)
    found = model.nearest(np.concatenate([train[[7]], train[[9], :, ::-1]]), k=2)
    assert found.images.shape == (2, 2, 16, 16, 3) and found.distances.shape == (2, 2)
    np.testing.assert_array_equal(found.images[:, 0], train[[7, 9]])
    np.testing.assert_allclose(found.distances[:, 0], 0.0, atol=0.1)
    assert (found.distances[:, 1] > 1).all()
    given = model.nearest(train[0], k=1, folder=train[:3])
    np.testing.assert_array_equal(given.images[0, 0], train[0])
    with pytest.raises(InputError, match="1 to 240"):
        model.nearest(train[:1], k=241)


def distance(x, t):
    """Of two images, place by place, as `Neighbours` defines it."""
    from scipy.ndimage import convolve

    across = np.outer([1, 2, 0, -2, -1], [1, 4, 6, 4, 1]) / 128
    gradients = [
        [convolve(c.astype(float), kernel, mode="nearest") for kernel in (across, across.T) for c in p.T]
        for p in (x, t)
    ]
    a, b = (np.pad(each, ((0, 0), (2, 2), (2, 2))) for each in gradients)
    height, width = a.shape[1] - 4, a.shape[2] - 4
    total = 0.0
    for i in range(height):
        for j in range(width):
            inside = [(p, q) for p in (0, 1, 2) for q in (0, 1, 2) if 0 < i + p < height + 1 and 0 < j + q < width + 1]
            total += min(
                sum(np.sum((a[:, i + p + 1, j + q + 1] - b[:, i + p + s, j + q + r]) ** 2) for p, q in inside) / 9
                for s in (0, 1, 2)
                for r in (0, 1, 2)
            )
    return np.sqrt(total / (height * width))


def test_distances_are_those_of_many_loops():
    a, b = faces(3, key=1), faces(4, key=2)
    plain = [[distance(x, t) for t in b] for x in a]
    found = Neighbours.fit(b, mirrored=False).nearest(a, 4)
    np.testing.assert_allclose(found.distances, np.sort(plain, axis=1), rtol=1e-4)
    np.testing.assert_array_equal(found.images, b[np.argsort(plain, axis=1)])
    # of an image and its mirror image the one that is nearer at half size
    assert np.all(Neighbours.fit(b, mirrored=True).nearest(b[:, :, ::-1], 1).distances < 1e-3)


def test_what_is_drawn_a_little_elsewhere_is_the_same_image():
    places = [(row, column) for row in range(5, 23, 4) for column in range(5, 23, 4)]
    strokes = np.zeros((len(places), 28, 28, 1), np.uint8)
    for i, (row, column) in enumerate(places):
        strokes[i, row, 4:24] = strokes[i, 4:24, column] = 255
    known = Neighbours.fit(strokes, mirrored=False)
    moved = np.roll(strokes, (1, 1), axis=(1, 2))
    found = known.nearest(moved, 1)
    np.testing.assert_array_equal(found.images[:, 0], strokes)
    assert found.distances.max() < 1e-3
    further = known.nearest(np.roll(moved, (1, 1), axis=(1, 2)), 1).distances
    assert further.min() > 5


def test_local_outlier_is_distance_beyond_that_of_the_neighbours():
    generator = np.random.default_rng(0)

    def around(image, n, spread):
        return np.clip(image + generator.normal(0, spread, (n, *image.shape)), 0, 255).astype(np.uint8)

    dense, sparse = generator.uniform(80, 170, (2, 16, 16, 1))
    known = Neighbours.fit(np.concatenate([around(dense, 60, 5), around(sparse, 60, 20)]), mirrored=False)
    assert known.spacing[60:].min() > 2 * known.spacing[:60].max()
    # new ones of either kind are as far as their neighbours are from each other
    usual = [known.local_outlier(around(middle, 40, spread)) for middle, spread in ((dense, 5), (sparse, 20))]
    np.testing.assert_allclose([each.mean() for each in usual], 0.0, atol=0.5)
    # what lies at the edge of the dense kind is not farther from all than the sparse ones are, but it is novel
    assert known.local_outlier(around(dense, 40, 20)).min() > max(each.max() for each in usual)
    # an image is not its own neighbour
    own = known.local_outlier(known.images[:60], own=60)
    np.testing.assert_allclose(own.mean(), 0.0, atol=0.5)
    assert known.local_outlier(known.images[:60]).max() < own.min()


def test_a_single_image_has_no_neighbours_of_its_own():
    alone = Neighbours.fit(faces(1), mirrored=False)
    assert alone.nearest(faces(2), 1).distances.shape == (2, 1)
    assert alone.spacing.tolist() == [0.0]


def test_thumbnails_are_means_at_a_whole_fraction():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 70, 3), dtype=np.uint8)
    small = thumbnails(pixels)
    assert small.shape == (2, 32, 23, 3)
    assert abs(int(small[1, 2, 3, 0]) - pixels[1, 6:9, 9:12, 0].mean()) <= 0.5
    np.testing.assert_array_equal(thumbnails(small), small)


# -- the empirical prior ----------------------------------------------------------------------------------------------


def spiked(n, key, variances=(25.0, 9.0), dim=200, shift=0.0):
    """Normal numbers, but for the first directions, which have these variances."""
    z = np.random.default_rng(key).normal(size=(n, dim))
    z[:, : len(variances)] *= np.sqrt(variances)
    return z + shift


def test_only_directions_beyond_chance_are_kept():
    plain = Empirical.fit(spiked(300, 0, ()), {"z_0": 200}).levels["z_0"]
    assert len(plain.variances) == 0
    level = Empirical.fit(spiked(300, 1), {"z_0": 200}).levels["z_0"]
    assert len(level.variances) == 2
    # the largest sample variance would be 25.7 by the law of large matrices; what serves best lies below 25
    np.testing.assert_allclose(level.variances, [24, 7.6], rtol=0.25)
    assert (np.abs(level.directions[[0, 1], [0, 1]]) > 0.9).all()
    np.testing.assert_allclose(level.directions @ level.directions.T, np.eye(2), atol=1e-4)
    # fewer rows than numbers
    few = Empirical.fit(spiked(100, 2), {"z_0": 200}).levels["z_0"]
    assert len(few.variances) == 2 and np.abs(few.directions[0, 0]) > 0.85
    np.testing.assert_allclose(few.directions @ few.directions.T, np.eye(2), atol=1e-4)


def test_the_empirical_prior_draws_what_it_was_fitted_to_and_shrinks_to_normal():
    z = spiked(2000, 3, shift=np.r_[np.zeros(100), np.full(100, 0.5)])
    prior = Empirical.fit(z, {"z_0": 100, "z_1": 100})
    drawn = prior.sample(4000, key=0)
    np.testing.assert_allclose(drawn.var(axis=0)[:3], [25, 9, 1], rtol=0.12)
    assert drawn.mean(axis=0)[100:].mean() == pytest.approx(0.5, abs=0.06)
    normal = prior.sample(4000, key=0, shrink=1.0)
    np.testing.assert_allclose(normal.var(axis=0), 1.0, atol=0.12)
    np.testing.assert_allclose(normal.mean(axis=0), 0.0, atol=0.08)
    some = prior.sample(4000, key=0, shrink={"z_0": 1.0}, temperature={"z_1": 0.0})
    np.testing.assert_array_equal(some[:, :100], normal[:, :100])
    np.testing.assert_allclose(some[:, 100:], prior.levels["z_1"].mean[None].repeat(4000, axis=0), rtol=1e-6)
    for wrong in ({"shrink": 1.5}, {"shrink": {"z_3": 1.0}}, {"temperature": -1.0}):
        with pytest.raises(InputError, match="expected"):
            prior.sample(2, key=0, **wrong)
    again = Empirical.from_tree(prior.to_tree())
    np.testing.assert_allclose(again.sample(9, key=0), prior.sample(9, key=0), atol=0.05)


def test_images_are_drawn_from_either_prior(model):
    empirical = model.sample(40, key=1, prior="empirical", temperature=1.0)
    assert empirical.shape == (40, 16, 16, 3) and empirical.dtype == np.uint8
    np.testing.assert_array_equal(empirical, model.sample(40, key=1, prior="empirical", temperature=1.0))
    assert np.abs(empirical.mean() - faces(100, 9).mean()) < 15
    with pytest.raises(InputError, match="'normal' or 'empirical'"):
        model.sample(2, prior="uniform")


def test_what_was_kept_of_the_training_images_is_saved(model, tmp_path):
    model.save(tmp_path)
    loaded = fk.load(tmp_path)
    np.testing.assert_array_equal(loaded.neighbours.images, model.neighbours.images)
    np.testing.assert_array_equal(loaded.neighbours.spacing, model.neighbours.spacing)
    assert loaded.neighbours.mirrored
    assert loaded.sample(3, key=0, prior="empirical").shape == (3, 16, 16, 3)
    new = faces(5, key=11)
    np.testing.assert_allclose(loaded.anomaly_map(new), model.anomaly_map(new), atol=1e-2)
    scores = loaded.score(new)
    for name, column in model.score(new).items():
        same = np.testing.assert_allclose if column.dtype.kind == "f" else np.testing.assert_array_equal
        # other programs may be compiled with constants in other places, and round differently
        same(scores[name], column, **({"rtol": 1e-4, "atol": 1e-5} if column.dtype.kind == "f" else {}))
    np.testing.assert_array_equal(loaded.sample(3, key=1), model.sample(3, key=1))
    assert loaded.metrics == pytest.approx(model.metrics)
    assert (tmp_path / "skipped.csv").read_text().startswith("path,reason")


# -- anomaly scores and maps -------------------------------------------------------------------------------------


def test_scores_tell_anomalous_images_in_both_directions(model):
    normal = model.score(faces(100, key=12))
    assert normal["flag"].mean() < 0.3  # 24 held-out images set the threshold of 0.1
    grey = np.full((8, 16, 16, 3), 90, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    for other in (grey, noise):
        scores = model.score(other)
        assert scores["flag"].all() and (scores["radius_p"] < 0.05).all()
        assert fk.diagnostics.auroc(normal["score"], scores["score"]) > 0.97
    # what a PNG file needs less than the others is what the likelihood owes to being simple
    assert model.score(grey)["bits_per_dim"].max() < np.quantile(normal["bits_per_dim"], 0.1)
    assert model.score(grey)["complexity"].min() > np.median(normal["complexity"])
    assert np.mean(normal["radius_p"] < 0.1) < 0.25


@pytest.mark.parametrize(
    ("column", "reverse"), [("upside_down", lambda x: x[:, ::-1]), ("inverted", lambda x: 255 - x)]
)
def test_images_that_are_turned_round_are_likelier_as_they_were(model, column, reverse):
    usual, other = (model.score(pixels) for pixels in (faces(60, key=16), reverse(faces(60, key=16))))
    # each is compared with the other
    np.testing.assert_allclose(other[column], -usual[column], atol=1e-4)
    assert fk.diagnostics.auroc(usual[column], other[column]) > 0.99
    assert fk.diagnostics.auroc(usual["score"], other["score"]) > 0.95 and np.mean(other["flag"]) > 0.6


def test_blurred_images_are_soft(model):
    from scipy.ndimage import gaussian_filter

    sharp = faces(60, key=16)
    usual, soft = (model.score(pixels) for pixels in (sharp, gaussian_filter(sharp, (0, 2, 2, 0))))
    # little is left to lose
    assert np.abs(soft["blur_gap"]).mean() < 0.2 * np.abs(usual["blur_gap"]).mean()
    assert fk.diagnostics.auroc(usual["blur_gap"], soft["blur_gap"]) > 0.85


@pytest.mark.parametrize("start", [8, 9])
def test_what_is_pasted_is_anomalous_on_the_grid_and_off_it(model, start):
    pasted = faces(60, key=16).copy()
    side = pasted.shape[1] // 2
    pasted[:, start : start + side, start : start + side] = 0
    usual, other = (model.score(pixels) for pixels in (faces(60, key=16), pasted))
    assert fk.diagnostics.auroc(usual["local_energy"], other["local_energy"]) > 0.7
    assert fk.diagnostics.auroc(usual["score"], other["score"]) > 0.95


def test_what_no_training_image_looks_like_is_anomalous(model):
    usual, elsewhere = faces(60, key=16), np.roll(faces(60, key=16), 4, axis=2)
    local_outlier = [model.score(pixels)["local_outlier"] for pixels in (usual, elsewhere)]
    np.testing.assert_allclose(local_outlier[1], model.neighbours.local_outlier(elsewhere))
    assert fk.diagnostics.auroc(*local_outlier) > 0.95


def test_long_scoring_says_how_far_it_is(model, capsys):
    quiet, shown = (model.score(faces(3, key=5), show_progress=show) for show in (False, True))
    np.testing.assert_array_equal(quiet["score"], shown["score"])
    err = capsys.readouterr().err
    assert err.count("scoring images: 100 %") == 1 and "3 of 3" in err


def test_discoveries_are_the_rows_that_benjamini_and_hochberg_reject(model):
    noise = np.random.default_rng(1).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    scores = model.score(np.concatenate([faces(60, key=13), noise]))
    rejected = fk.diagnostics.benjamini_hochberg(scores["p_value"], model.config.alpha)
    np.testing.assert_array_equal(scores["discovery"], rejected)
    assert scores["discovery"][60:].all()
    # beyond the largest of 30 calibration scores lies a share of new ones with mean and standard deviation 0.03
    assert scores["discovery"][:60].mean() < 0.15
    assert (scores["q_value"] >= scores["p_value"]).all()


def test_the_anomaly_map_shows_where_the_odd_part_is(model):
    plain = faces(40, key=14)
    odd = plain.copy()
    odd[:, 11:15, 11:15] = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3))
    maps = model.anomaly_map(odd) - model.anomaly_map(plain)
    assert maps.shape == (40, 16, 16)
    inside = maps[:, 11:15, 11:15].mean()
    assert inside > 1 and inside > 5 * np.abs(maps[:, :8, :8]).mean()
    usual = model.anomaly_map(faces(200, key=15))
    np.testing.assert_allclose(usual.mean(), 0.0, atol=0.2)


def test_maps_are_standardised_place_by_place_in_both_directions():
    generator = np.random.default_rng(0)
    centre = np.array([[0.0, 5.0], [-3.0, 1.0]])
    usual = centre + [[1.0, 2.0], [1.0, 2.0]] * generator.normal(size=(4000, 2, 2))
    maps = standardise_maps([centre[None] - [[0.0, 4.0], [-3.0, 0.0]]], [usual], (4, 6))
    assert maps.shape == (1, 4, 6)
    # less likely than usual is positive: log-densities go down
    np.testing.assert_allclose(maps[0, ::2, ::3], [[0, 1.8], [-2.3, 0]], atol=0.3)
    np.testing.assert_array_equal(maps[0, :2, 3:], maps[0, 0, 3])


def test_png_bits_grow_with_what_there_is_to_tell():
    blank = np.zeros((1, 32, 32, 3), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    few, many = (float(png_bits(noise, bits)[0]) for bits in (2, 8))
    assert png_bits(blank, 8)[0] < 0.5 < 2 < few < many
    # noise cannot be compressed
    assert many == pytest.approx(8, rel=0.05)


def test_temperatures_by_level_change_that_level_alone(model):
    hot = {"z_0": 1.0, "z_1": 1.0}
    both, cold = (model.sample(32, key=0, temperature=t).astype(float) for t in (hot, {**hot, "z_1": 0.0}))

    def detail(x):
        return np.abs(np.diff(x, axis=2)).mean()

    assert detail(cold) < 0.9 * detail(both)
    with pytest.raises(InputError, match="z_9"):
        model.sample(2, temperature={"z_9": 1.0})
