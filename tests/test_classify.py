"""Generative classification: Bayes' rule of normalised densities, labels of any kind, and what is refused."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowknife as fk
from flowknife._split import Sizes, split
from flowknife.apps.classify._models import image_model, look_at_images, look_at_rows, table_model
from flowknife.apps.classify._training import fit_temperature
from flowknife.bijections import Affine
from flowknife.data import White
from flowknife.data.labels import as_codes, label_codes
from flowknife.diagnostics import auroc
from flowknife.errors import InputError
from flowknife.laws import ClassMixture
from flowknife.objectives import class_log_probs, information_bottleneck
from tests.catalogue import perturbed

QUICK = {"layers": 2, "width": 16, "show_progress": False, "key": 0}
WINDS = np.array(["east", "northeast", "north", "northwest", "west", "southwest", "south", "southeast"])


def ring(n, key, labels="some"):
    x = fk.data.TOYS["ring"].sample(n, key=key)
    return x, fk.data.ring_labels(x, labels)


@pytest.fixture(scope="module")
def rings():
    """A quick classifier of the ring's eight modes."""
    return fk.classify(*ring(1500, 0, "all"), train={"steps": 100}, **QUICK)


@pytest.fixture(scope="module")
def words():
    """A quick classifier with classes named by words, few of them labelled, and a column far from zero.

    It has as many rows and classes as `rings`, and so its compiled programs.
    """
    x, codes = ring(1500, 1, "all")
    names = WINDS.astype(object)[codes]
    names[np.random.default_rng(0).random(len(names)) < 0.8] = None
    return fk.classify(x + np.array([1e9, 0.0]), names, train={"steps": 200}, **QUICK)


# -- the laws ---------------------------------------------------------------------------------------------------------


def test_the_ring_is_told_apart_and_modelled(rings):
    x, labels = ring(1000, 5, "all")
    assert np.mean(rings.predict(x) == labels) > 0.997
    assert -rings.log_prob(x, labels).mean() < -0.381 + 0.1
    assert rings.metrics["accuracy"] > 0.99
    assert rings.metrics["nll_given_label"] < -0.381 + 0.2
    assert rings.metrics["expected_calibration_error"] < 0.02


def test_samples_of_a_label_lie_in_its_mode(rings):
    for label in (0, 5):
        x = rings.sample(250, label=label, key=0)
        assert np.mean(fk.data.ring_labels(x) == label) > 0.99
    mixed = rings.sample(8, label=np.arange(8), key=0)
    np.testing.assert_array_equal(fk.data.ring_labels(mixed), np.arange(8))
    drawn = fk.data.ring_labels(rings.sample(1000, key=1))
    np.testing.assert_allclose(np.bincount(drawn) / 1000, 1 / 8, atol=0.04)


def test_probabilities_are_bayes_rule_of_the_densities(rings):
    x = np.random.default_rng(0).normal(0, 2, (50, 2))
    joint = np.stack([rings.log_prob(x, label) + p for label, p in enumerate(rings.log_prior)], axis=1)
    marginal = np.logaddexp.reduce(joint, axis=1)
    np.testing.assert_allclose(rings.log_prob(x), marginal, rtol=1e-5)
    np.testing.assert_allclose(rings.predict_proba(x, calibrated=False), np.exp(joint - marginal[:, None]), atol=1e-5)
    heated = np.exp((joint - marginal[:, None]) / rings.temperature)
    np.testing.assert_allclose(rings.predict_proba(x), heated / heated.sum(axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_array_equal(rings.predict(x), rings.predict_proba(x).argmax(axis=1))


@pytest.mark.parametrize("law", ["mixture", "label"])
def test_each_class_has_a_normalised_density(law):
    unit = Affine(np.array([0.5, -1.0, 0.0]), np.array([1.0, 2.0, 0.7]))
    dim = 2 if law == "mixture" else 3  # three dimensions hold two labels and a latent
    unit = Affine(unit.loc.value[:dim], unit.scale.value[:dim])
    model = eqx.filter_jit(lambda key: table_model(unit, law, 2, key=key, layers=2, width=8, scalar="affine"))(
        jax.random.key(0)
    )
    model = perturbed(model, np.random.default_rng(0), 0.1)
    reach, count = (12, 301) if dim == 2 else (15, 151)
    # in the latent's units, where the density is neither narrow nor far away
    axis = np.linspace(-reach, reach, count, dtype=np.float32)
    grid = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    width = np.array([1.0] * dim if dim == 2 else [0.25] * dim, np.float32)
    x = np.asarray(unit.decode(jnp.asarray(grid * width))[0])
    cell = np.prod((axis[1] - axis[0]) * width * np.asarray(unit.scale.value))
    mass = np.exp(np.asarray(look_at_rows(model, jnp.asarray(x), jax.random.key(0)))).sum(axis=0) * cell
    np.testing.assert_allclose(mass, 1.0, atol=0.02)


@pytest.mark.slow
def test_padding_is_averaged_out():
    # one column and three classes: the density of x given a class, by many draws of the padding, is still normalised
    unit = Affine(np.array([0.0]), np.array([1.0]))
    model = eqx.filter_jit(lambda key: table_model(unit, "label", 3, key=key, layers=1, width=4, scalar="affine"))(
        jax.random.key(1)
    )
    assert [block.name for block in model.partition.left] == ["x", "pad"]
    x = jnp.linspace(-6, 6, 201, dtype=jnp.float32)[:, None]
    pad = jax.random.normal(jax.random.key(2), (20_000, 1, 3)) * 0.05
    blocks = {"x": jnp.broadcast_to(x, (20_000, 201, 1)), "pad": jnp.broadcast_to(pad, (20_000, 201, 3))}
    by_class = jax.jit(lambda: jax.nn.logsumexp(class_log_probs(model, blocks), axis=0))() - np.log(20_000)
    mass = np.exp(np.asarray(by_class)).sum(axis=0) * 0.06
    np.testing.assert_allclose(mass, 1.0, atol=0.15)


def test_a_mixture_fits_gaussian_classes_exactly():
    rng = np.random.default_rng(0)
    covariance = np.array([[2.0, 0.6], [0.6, 0.5]])
    z = np.concatenate([rng.multivariate_normal([3, 1], covariance, 3000), rng.normal(-2, 0.3, (1000, 2))])
    labels = np.repeat([0, 1], [3000, 1000])
    law = ClassMixture(3, 2).fit(jnp.asarray(z, jnp.float32), jnp.asarray(labels))
    np.testing.assert_allclose(law.means[:2], [[3, 1], [-2, -2]], atol=0.1)
    precision = law.whitening.value[0].T @ law.whitening.value[0]
    np.testing.assert_allclose(np.linalg.inv(precision), covariance, atol=0.15)
    np.testing.assert_allclose(jax.nn.softmax(law.log_weights), [0.75, 0.25, 0.0], atol=1e-3)
    np.testing.assert_array_equal(law.means[2], ClassMixture(3, 2).means[2])  # a class without rows stays
    drawn = law.sample(jax.random.key(0), (20_000,), (2,), jnp.zeros(20_000, int))
    np.testing.assert_allclose(np.cov(np.asarray(drawn).T), covariance, atol=0.15)
    residual = law.residual(drawn, (2,), jnp.zeros(20_000, int))
    np.testing.assert_allclose(np.cov(np.asarray(residual).T), np.eye(2), atol=0.05)


@pytest.mark.parametrize(("classes", "dim"), [(8, 1), (8, 2), (10, 3), (50, 7)])
def test_more_classes_than_dimensions_start_apart(classes, dim):
    means = np.asarray(ClassMixture(classes, dim).means)
    distance = np.linalg.norm(means[:, None] - means, axis=-1)[~np.eye(classes, dtype=bool)]
    assert distance.min() == pytest.approx(5.0, rel=1e-5)


def test_the_bottleneck_weighs_data_against_labels():
    rng = np.random.default_rng(0)
    log_joint, labels = jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray([0, 2, -1, 1, 1])
    log_x = np.logaddexp.reduce(np.asarray(log_joint), axis=1)
    own = np.where(labels < 0, 0.0, np.asarray(log_joint)[np.arange(5), np.maximum(labels, 0)] - log_x)
    for beta in (0.0, 1.0, 4.0):
        expected = 2 / (1 + beta) * -np.mean(log_x) / 7 - 2 * beta / (1 + beta) * np.mean(own)
        assert float(information_bottleneck(log_joint, labels, beta, 7)) == pytest.approx(expected, rel=1e-5)


def test_the_temperature_undoes_a_known_one():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(4000, 5))
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(5, p=p) for p in probability])
    assert fit_temperature(3.0 * logits, labels) == pytest.approx(3.0, rel=0.1)


# -- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes", "codes"),
    [
        ([3, 1, 3], (1, 3), [1, 0, 1]),
        (np.array([0.0, 1.0, np.nan]), (0, 1), [0, 1, -1]),
        (["b", "a", None, ""], ("a", "b"), [1, 0, -1, -1]),
        (np.array([2, -1, 0]), (-1, 0, 2), [2, 0, 1]),
        ([True, False], (0, 1), [1, 0]),
    ],
)
def test_labels_of_any_kind_become_numbers(labels, classes, codes):
    names, found = label_codes(labels, len(labels))
    assert names == classes
    assert found.tolist() == codes
    known = [i for i in range(len(codes)) if codes[i] >= 0]
    np.testing.assert_array_equal(as_codes([classes[codes[i]] for i in known], names), [codes[i] for i in known])


def test_classes_that_do_not_occur_may_be_told():
    names, codes = label_codes([0, 0, 0], 3, classes=8)
    assert names == tuple(range(8)) and codes.tolist() == [0, 0, 0]


def test_a_split_keeps_every_class_in_training(key):
    codes = np.array([0] * 50 + [1] * 2 + [2], np.int32)
    train, stopping, calibration = split(53, Sizes(25, 25), key, groups=codes)
    assert set(codes[train]) == {0, 1, 2}
    assert sorted([*train, *stopping, *calibration]) == list(range(53))
    assert (len(stopping), len(calibration)) == (25, 25)


def test_rows_without_labels_are_used(words):
    assert words.classes == tuple(sorted(WINDS))
    assert words.record.data.unlabelled > 1100
    x, codes = ring(1000, 6, "all")
    x = x + np.array([1e9, 0.0])
    assert np.mean(words.predict(x) == WINDS[codes]) > 0.97
    assert abs(words.sample(100, label="east", key=0)[:, 0].mean() - 1e9) < 10
    assert words.score(x[:3])["label"].dtype.kind == "U"


@pytest.mark.slow
def test_a_column_of_a_data_frame_may_be_the_label():
    pandas = pytest.importorskip("pandas")
    x, codes = ring(300, 0)
    frame = pandas.DataFrame({"a": x[:, 0], "species": codes, "b": x[:, 1]})
    model = fk.classify(frame, "species", train={"steps": 5}, **QUICK)
    assert model.names == ("a", "b") and model.classes == (0, 1, 2, 3)
    np.testing.assert_array_equal(model.predict(frame[["b", "a"]]), model.predict(x))


# -- what it is good for ----------------------------------------------------------------------------------------------


def test_what_is_of_no_class_is_flagged_and_a_share_alpha_of_the_rest(rings):
    x, _ = ring(1000, 7, "all")
    scores = rings.score(x)
    # 112 held-out rows set the threshold: its own standard deviation is 0.02
    assert abs(scores["flag"].mean() - 0.05) < 0.08
    middle = np.random.default_rng(0).normal(0, 0.5, (200, 2))
    assert rings.score(middle)["flag"].all()
    assert auroc(scores["score"], rings.score(middle)["score"]) > 0.99
    p_value = rings.score(x)["p_value"]
    by_class = [np.mean(p_value[rings.predict(x) == label] < 0.1) for label in range(8)]
    assert max(by_class) < 0.35  # no class is more anomalous than the others


def test_a_classifier_survives_saving(words, tmp_path):
    words.save(tmp_path / "run")
    loaded = fk.load(tmp_path / "run")
    x = ring(50, 8)[0] + np.array([1e9, 0.0])
    np.testing.assert_array_equal(loaded.predict(x), words.predict(x))
    np.testing.assert_array_equal(loaded.predict_proba(x), words.predict_proba(x))
    np.testing.assert_array_equal(loaded.sample(5, label="west", key=1), words.sample(5, label="west", key=1))
    np.testing.assert_array_equal(loaded.score(x)["p_value"], words.score(x)["p_value"])
    assert loaded.metrics == pytest.approx(words.metrics)
    assert (loaded.classes, loaded.config, loaded.temperature) == (words.classes, words.config, words.temperature)


def test_checks_and_counts(rings):
    assert all(check.passed for check in rings.check())
    x, labels = ring(1000, 9, "all")
    counts = rings.confusion(x, labels)
    assert counts.sum() == 1000 and np.trace(counts) > 990
    np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(labels, minlength=8))
    assert rings.reliability(x, labels).counts.sum() == 1000
    # labels add the calibration of probabilities, their cross entropy and the share of errors
    assert len(rings.check(x)) == len(rings.check((x, labels))) - 3
    assert rings.encode(x).shape == (1000, 2)


@pytest.mark.slow
def test_the_label_law_classifies_too():
    x, labels = ring(1500, 0, "all")
    model = fk.classify(x, labels, law="label", train={"steps": 300, "learning_rate": 5e-3}, **QUICK)
    new, truth = ring(1000, 5, "all")
    assert np.mean(model.predict(new) == truth) > 0.9
    assert model.encode(new).shape == (1000, 10)
    assert model.sample(3, label=[0, 1, 2], key=0).shape == (3, 2)


def _images(n, key, size=8):
    """Bright bars, upright or level, at random places."""
    rng = np.random.default_rng(key)
    labels = rng.integers(0, 2, n)
    place = rng.integers(1, size - 1, n)
    x = rng.normal(40, 8, (n, size, size))
    for i in range(n):
        bar = (slice(None), place[i]) if labels[i] else (place[i], slice(None))
        x[i][bar] += 150
    return np.clip(x, 0, 255).astype(np.uint8), np.array(["level", "upright"])[labels]


@pytest.fixture(scope="module")
def bars():
    """A small classifier of images, their details apart from their coarse part."""
    x, labels = _images(400, 0)
    still = {"zoom": 0.0, "shear": 0.0, "rotation": 0.0, "shift": 0.0}
    settings = {"width": 32, "augment": still, "train": {"steps": 150, "batch_size": 64, "validation": 0.25}}
    return fk.classify(x, labels, **{**QUICK, **settings})


def test_images_are_classified_drawn_and_judged(bars, tmp_path):
    x, labels = _images(200, 1)
    assert np.mean(bars.predict(x) == labels) > 0.95
    drawn = bars.sample(20, label="upright", key=0)
    assert drawn.shape == (20, 8, 8, 1) and drawn.dtype == np.uint8
    noise = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
    usual, anomalous = bars.score(x), bars.score(noise)
    assert auroc(usual["score"], anomalous["score"]) > 0.98
    assert usual["flag"].mean() < 0.25
    assert bars.metrics["bits_per_dim"] == pytest.approx(bars.metrics["nll"] / 64 / np.log(2))
    data = bars.record.data.model_copy(update={"white": White(whole=1023.0)})
    replace(bars, record=bars.record.model_copy(update={"data": data})).save(tmp_path / "run")
    loaded = fk.load(tmp_path / "run")
    assert loaded.white == White(whole=1023.0)  # the scale of later images
    np.testing.assert_array_equal(loaded.predict(x), bars.predict(x))
    np.testing.assert_allclose(loaded.score(x)["score"], usual["score"], rtol=1e-4)


@pytest.mark.slow
def test_the_levels_of_images_add_up_to_the_model():
    model = eqx.filter_jit(lambda key: image_model((32, 32, 1), 5, "mixture", 3, width=16, key=key, layers=1, depth=1))(
        jax.random.key(0)
    )
    assert [block.name for block in model.partition.right] == ["y", "z_0", "z_1"]
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), dtype=np.uint8)
    by_class, features = look_at_images(model, jnp.asarray(x), jnp.zeros(3), jax.random.key(0))
    left = model.left_end(x, key=jax.random.key(0))
    right = model.right_end(left).blocks
    log_det = eqx.filter_jit(lambda m, x: m.bijection.encode(x)[1])(model, left.array)
    expected = log_det + sum(
        block.law.log_prob(right[block.name], block.shape, jnp.asarray(1)) for block in model.partition.right
    )
    np.testing.assert_allclose(by_class[:, 1] - np.log(3), expected, rtol=1e-4)
    law, shape = model.partition.right[0].law, model.partition.right[0].shape
    own = law.residual(right["y"], shape, jnp.argmax(by_class, axis=1))
    np.testing.assert_allclose(np.exp(2 * features[:, 0]), np.mean(np.asarray(own) ** 2, axis=1), rtol=1e-4)


@pytest.mark.slow
def test_a_folder_has_one_class_per_subfolder(tmp_path):
    pytest.importorskip("PIL")
    x, labels = _images(60, 2)
    fk.data.write_folder(x, tmp_path, labels)
    model = fk.classify(tmp_path, **{**QUICK, "width": 8, "train": {"steps": 2, "validation": 0.3}})
    assert model.classes == ("level", "upright")
    assert model.shape == (8, 8, 1)
    assert sorted(set(model.score(tmp_path)["path"]))[0].startswith("level/")


# -- what is refused --------------------------------------------------------------------------------------------------

ROWS = np.random.default_rng(0).normal(size=(40, 2))
TWO = np.arange(40) % 2


@pytest.mark.parametrize(
    ("x", "labels", "settings", "message"),
    [
        (ROWS, np.zeros(40, int), {}, "1 class"),
        (ROWS, [None] * 40, {}, "0 classes"),
        (ROWS, None, {}, "no labels"),
        (ROWS, TWO[:30], {}, "for 40 items"),
        (ROWS, TWO + 0.5, {}, "label 0.5"),
        (ROWS, [(0, 1)] * 40, {}, "label"),
        (ROWS, TWO + 7, {"classes": 8}, "as classes=8"),
        (np.where(ROWS > 2, np.nan, ROWS), TWO, {}, "missing or infinite"),
        (ROWS, TWO, {"bits": 5}, "bits=5 for items=rows"),
        (ROWS, TWO, {"law": "tree"}, "law"),
        (np.zeros((40, 8, 8), np.uint8), TWO, {"smoothing": 0.1}, "smoothing=0.1 for items=images"),
        (np.zeros((40, 8, 8)), TWO, {}, "uint8"),
        (np.zeros((2, 8, 8), np.uint8), [0, 1], {}, "hold out"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(x, labels, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        fk.classify(x, labels, show_progress=False, **settings)
    assert "\n" not in str(caught.value)


def test_an_unknown_class_is_refused(rings):
    for ask in (lambda: rings.sample(3, label=9), lambda: rings.log_prob(ROWS, "north")):
        with pytest.raises(InputError, match="expected one of 0, 1"):
            ask()
    with pytest.raises(InputError, match="the columns x1, x2"):
        rings.predict(np.zeros((3, 4)))


def test_labels_of_a_mixture_are_whole_numbers_in_range():
    law, x = ClassMixture(3, 2), jnp.zeros((4, 2))
    for bad, message in ((jnp.zeros(4), "float"), (jnp.full(4, 3), "from 3 to 3"), (jnp.full(4, -2), "from -2")):
        with pytest.raises(InputError, match=message):
            law.log_prob(x, (2,), bad)
        with pytest.raises(InputError, match=message):
            law.sample(jax.random.key(0), (4,), (2,), bad)


# -- full size --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_modes_of_a_label_are_drawn_in_proportion():
    from scipy.stats import chisquare

    model = fk.classify(*ring(8000, 1, "some"), show_progress=False)
    drawn = fk.data.ring_labels(model.sample(2000, label=0, key=0))
    counts = np.bincount(drawn, minlength=8)
    assert counts[4:].sum() <= 5
    assert chisquare(counts[:4]).pvalue > 0.01


@pytest.mark.slow
def test_digits_are_classified():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, labels = load_digits(return_X_y=True)
    x, new, labels, truth = train_test_split(x, labels, test_size=0.25, stratify=labels, random_state=0)
    assert np.mean(fk.classify(x, labels, show_progress=False).predict(new) == truth) >= 0.975
