"""The applications end to end, small: what is saved is what is loaded, and scores keep their promises."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowknife as fk
from flowknife import stages as stages_module
from flowknife._record import TrainingRecord
from flowknife._types import split_trainable
from flowknife.apps.images import _training
from flowknife.apps.images._fit import _model
from flowknife.architectures import dequantiser, glow, lattice, realnvp, wavelet
from flowknife.architectures._vectors import SCALARS
from flowknife.bijections import Coupling, PixelsToNormal
from flowknife.data import Augmentation
from flowknife.diagnostics import Typicality, auroc, conformal_p_values, ks_normal, principal_plane
from flowknife.diagnostics._anomalies import _surprisal
from flowknife.errors import InputError, StorageError
from flowknife.laws import Pixels
from flowknife.multiscale import image_model, independent_levels, level_part, local_log_probs
from flowknife.objectives import BlockNLL
from tests.catalogue import perturbed, quick_jit


@pytest.fixture(scope="module")
def flow():
    """A density of two columns in very different units, one of them far from zero."""
    x = fk.data.TOYS["moons"].sample(800, key=0).astype(np.float64) * [1.0, 1000.0] + [1e9, 0.0]
    return x, fk.density(x, layers=4, train={"steps": 300, "batch_size": 256}, key=1, show_progress=False)


def test_a_density_is_in_the_units_of_the_table(flow):
    x, density = flow
    toy = fk.data.TOYS["moons"]
    new = toy.sample(1000, key=5).astype(np.float64) * [1.0, 1000.0] + [1e9, 0.0]
    nll = -density.log_prob(new).mean() - np.log(1000.0)
    assert toy.entropy - 0.02 < nll < toy.entropy + 0.3
    drawn = density.sample(1000, key=3)
    np.testing.assert_allclose(drawn.mean(axis=0), x.mean(axis=0), atol=0.15 * x.std(axis=0).max())
    back = density.decode(density.encode(x[:50]))
    np.testing.assert_allclose((back - x[:50]) / x.std(axis=0), 0.0, atol=1e-2)


def test_of_new_rows_a_share_alpha_is_flagged(flow):
    _, density = flow
    new = fk.data.TOYS["moons"].sample(1000, key=6).astype(np.float64) * [1.0, 1000.0] + [1e9, 0.0]
    scores = density.score(new)
    # 80 held-out rows set the threshold: its own standard deviation is 0.024
    assert abs(scores["flag"].mean() - 0.05) < 0.07
    far = density.score(new[:10] + np.array([50.0, 0.0]))
    assert far["flag"].all()


def test_a_density_survives_saving(flow, tmp_path):
    x, density = flow
    density.save(tmp_path / "run")
    loaded = fk.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.log_prob(x[:20]), density.log_prob(x[:20]))
    np.testing.assert_array_equal(loaded.sample(5, key=1), density.sample(5, key=1))
    assert loaded.config == density.config
    assert loaded.metrics == pytest.approx(density.metrics)
    assert all(check.passed for check in loaded.check() if check.name.startswith("round trip"))


def test_a_density_refuses_rows_of_another_width(flow):
    with pytest.raises(InputError, match="columns x1, x2"):
        flow[1].log_prob(np.zeros((4, 3)))


@pytest.mark.parametrize("columns", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_other_widths_train(columns):
    x = np.random.default_rng(0).normal(size=(200, columns))
    density = fk.density(x, layers=2, train={"steps": 20}, key=0, show_progress=False)
    assert np.isfinite(density.log_prob(x)).all()
    assert density.sample(50, key=0).shape == (50, columns)


def _blobs(n, key, size=16):
    """Images of a bright blob whose place, size and brightness vary."""
    generator = np.random.default_rng(key)
    grid = np.arange(size)
    centre = generator.normal(size / 2, size / 10, (2, n, 1, 1))
    width = generator.uniform(1.5, 3.0, (n, 1, 1))
    square = (grid[None, :, None] - centre[0]) ** 2 + (grid[None, None, :] - centre[1]) ** 2
    blob = generator.uniform(120, 200, (n, 1, 1)) * np.exp(-square / (2 * width**2))
    return np.clip(blob + generator.normal(30, 6, blob.shape), 0, 255).astype(np.uint8)[..., None]


def test_an_unknown_application_is_refused(flow, tmp_path):
    flow[1].save(tmp_path)
    record = (tmp_path / "run.json").read_text().replace('"density"', '"dentistry"')
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(StorageError, match="dentistry"):
        fk.load(tmp_path)


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="at least 8"):
        fk.images(_blobs(5, 0), show_progress=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"architecture": "jet", "levels": 2}, "levels=2 for architecture=jet"),
        ({"architecture": "wavelet", "memory": "reversible"}, "glow or jet only"),
        ({"scalar": "spline"}, "scalar=spline for architecture=lattice"),
        ({"architecture": "realnvp", "steps_per_level": 4}, "leaving steps_per_level out"),
    ],
)
def test_settings_that_an_architecture_does_not_have_are_refused(settings, words):
    flat = np.zeros((16, 8, 8), np.uint8)
    with pytest.raises(InputError, match=words):
        fk.images(flat, show_progress=False, **settings)


@pytest.mark.parametrize("scalar", ["affine", "additive", "spline"])
def test_the_couplings_of_glow_are_chosen(scalar):
    config = fk.apps.ImagesConfig.model_validate(
        {"architecture": "glow", "levels": 1, "steps_per_level": 1, "width": 8, "scalar": scalar}
    )
    used = config.used("glow", 8, flip=False)
    made = eqx.filter_eval_shape(lambda: _model((8, 8, 1), used, 0, jax.random.key(0)))
    layers = jax.tree.leaves(made, is_leaf=lambda layer: isinstance(layer, Coupling))
    (coupling,) = (layer for layer in layers if isinstance(layer, Coupling))
    assert eqx.tree_equal(coupling.scalar, SCALARS[scalar])


@pytest.mark.parametrize(
    ("make", "independent", "maps"),
    [
        pytest.param(lambda key: wavelet((8, 8, 3), width=8, features=8, key=key), True, 1, marks=pytest.mark.slow),
        pytest.param(
            lambda key: wavelet((40, 36, 1), levels=2, width=4, features=4, key=key), True, 2, marks=pytest.mark.slow
        ),
        pytest.param(lambda key: lattice((8, 8, 1), 32, width=8, features=8, key=key), True, 1, marks=pytest.mark.slow),
        (lambda key: glow((8, 8, 3), levels=2, steps=1, width=8, key=key), False, 2),
        pytest.param(lambda key: realnvp((8, 8, 1), width=8, key=key), False, 2, marks=pytest.mark.slow),
    ],
    ids=["wavelet", "large wavelet", "lattice", "glow", "realnvp"],
)
def test_the_levels_add_up_to_the_likelihood(make, independent, maps, key):
    bijection = perturbed(quick_jit(make)(key), np.random.default_rng(0))
    x = np.random.default_rng(0).integers(0, 256, (3, *bijection.shape), np.uint8)

    @quick_jit
    def look(model, x):
        found = model.log_prob(x, key=0), model.block_log_probs(x, key=0), local_log_probs(model, x, 0)
        left = model.left_end(x, key=0).array
        return *found, model.bijection.encode(left), model.bijection.bijections[0].encode(left)[1]

    model = quick_jit(lambda bijection: image_model(bijection.shape, Pixels(5), bijection))(bijection)
    log_prob, terms, maps_found, (z, log_det), first_log_det = jax.tree.map(np.asarray, look(model, x))
    normal = -0.5 * np.sum(z**2, axis=-1) - 0.5 * z.shape[-1] * np.log(2 * np.pi)
    np.testing.assert_allclose(log_prob, normal + log_det, rtol=1e-4)
    np.testing.assert_allclose(sum(terms.values()), log_prob, rtol=1e-4)
    if isinstance(bijection.bijections[0], PixelsToNormal):  # has positions, and the coarsest latent has none
        pixels = maps_found.pop(0)
        np.testing.assert_allclose(pixels.sum(axis=(1, 2)), first_log_det, rtol=1e-4)
    assert len(maps_found) == maps
    for block, found in zip(model.partition.right[-maps:], maps_found, strict=True):
        whole = found.sum(axis=(1, 2)) * block.size / found[0].size
        np.testing.assert_allclose(whole, terms[block.name], rtol=1e-4, atol=1e-2)
    assert independent_levels(bijection) is independent


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 36])
def test_a_level_part_is_all_that_a_level_depends_on(size, key):
    shape, sizes = (size, size, 1), {"width": 4, "features": 4, "key": key}
    model = eqx.filter_jit(lambda: image_model(shape, Pixels(5), wavelet(shape, levels=2, **sizes)))()
    batch = {"image": jnp.asarray(_blobs(4, 0, size=size))}
    for level in range(len(model.partition.right)):
        gradient = _gradient(BlockNLL(f"z_{level}"), model, batch, key)
        whole, own = (_size(tree) for tree in (gradient, level_part(level)(gradient)))
        assert 0 < whole == pytest.approx(own, rel=1e-4)


@pytest.mark.slow
def test_learned_noise_is_trained_with_the_finest_level_and_counted_there(key):
    shape = (8, 8, 1)
    noise = dequantiser(shape, layers=0, width=4, depth=1, key=key)
    model = eqx.filter_jit(lambda: image_model(shape, Pixels(5, noise), wavelet(shape, width=4, features=4, key=key)))()
    model = eqx.tree_at(lambda m: m.partition.left[0].law.noise, model, perturbed(noise, np.random.default_rng(0)))
    x = jnp.asarray(_blobs(4, 0, size=8))
    continuous = model.left_end(x, key=key)
    z, log_det = model.bijection.encode(continuous.array)
    bound = np.sum(-0.5 * z**2 - 0.5 * np.log(2 * np.pi), axis=-1) + log_det
    bound -= model.partition.left[0].law.log_noise(continuous.array, shape)
    np.testing.assert_allclose(sum(model.block_log_probs(x, key=key).values()), bound, rtol=1e-4)
    coarse, fine = (_gradient(BlockNLL(f"z_{level}"), model, {"image": x}, key) for level in (0, 1))
    assert _size(level_part(1)(coarse)[-1]) > 0 < _size(level_part(1)(fine)[-1])
    assert _size(level_part(1)(fine)) == pytest.approx(_size(fine), rel=1e-4)


@eqx.filter_jit
def _gradient(objective, model, batch, key):
    trained, rest = split_trainable(model)
    return eqx.filter_grad(lambda params: objective(eqx.combine(params, rest), batch, key))(trained)


def _size(tree):
    return sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))


def test_conformal_p_values_are_uniform_for_normal_items():
    generator = np.random.default_rng(0)
    p = conformal_p_values(generator.normal(size=20_000), generator.normal(size=4_000))
    for level in (0.01, 0.05, 0.5):
        assert abs(np.mean(p <= level) - level) < 0.02
    assert conformal_p_values(np.array([np.nan, np.inf]), np.arange(9.0)).tolist() == [0.1, 0.1]


def test_auroc_counts_ties_half():
    assert auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == pytest.approx(0.875)


def test_typicality_is_two_sided_and_calibrated():
    generator = np.random.default_rng(0)
    mix = generator.normal(size=(4, 4))
    detector = Typicality.fit(generator.normal(size=(500, 4)) @ mix, generator.normal(size=(300, 4)) @ mix)
    new = detector.p_values(generator.normal(size=(5000, 4)) @ mix)
    assert abs(np.mean(new < 0.05) - 0.05) < 0.03
    for sign in (-1, 1):
        assert detector.p_values(sign * 8.0 * np.ones((1, 4)) @ mix)[0] < 0.01


def test_more_of_an_upward_feature_is_more_anomalous_than_less():
    generator = np.random.default_rng(0)
    train, held_out = generator.normal(size=(1000, 30)), generator.normal(size=(1000, 30))
    usual, more = np.zeros((1, 30)), 6.0 * np.eye(30)[:1]
    two_sided, upward = (Typicality.fit(train, held_out, upward=columns) for columns in ({}, {0: 1.0}))
    assert two_sided.score(more) == pytest.approx(two_sided.score(-more), rel=0.1)
    assert upward.score(more) > 2 * upward.score(-more) and two_sided.score(-more) > 2 * two_sided.score(usual)
    np.testing.assert_allclose(upward.score(-more), two_sided.score(-more), rtol=0.01)
    assert upward.p_values(more) < two_sided.p_values(more)
    # its weight is a factor of its surprisal, and of nothing else
    heavy = Typicality.fit(train, held_out, upward={0: 2.0})
    squares = [np.square(each.score(more)) - np.square(two_sided.score(more)) for each in (upward, heavy)]
    np.testing.assert_allclose(squares[1], 4 * squares[0])


def test_what_is_usual_is_where_held_out_items_are():
    generator = np.random.default_rng(0)
    # a model knows its training items better: theirs are narrower, and elsewhere
    train, held_out, new = 0.4 * generator.normal(size=(2000, 6)) - 1, *generator.normal(size=(2, 1500, 6))
    detector = Typicality.fit(train, held_out, upward=dict.fromkeys(range(6), 1.0))
    p = detector.p_values(new)
    for level in (0.02, 0.1, 0.5):
        assert abs(np.mean(p <= level) - level) < 0.03
    # each surprisal is what it is of new items, so that no column drowns the others
    surprisals = np.stack([_surprisal(t, u) for t, u in zip(detector._graded(new).T, detector.usual.T, strict=True)])
    np.testing.assert_allclose(surprisals.mean(axis=1), 1.0, atol=0.15)


def test_a_tail_is_no_lighter_than_held_out_items_allow():
    generator = np.random.default_rng(0)
    train, held_out = generator.normal(size=(1000, 3)), generator.normal(size=(200, 3))
    held_out[:2, 0] = 40.0
    detector = Typicality.fit(train, held_out, upward={0: 1.0, 1: 1.0})
    far = np.zeros((1, 3))
    far[0, 0] = 40.0
    surprisals = [_surprisal(t, u) for t, u in zip(detector._graded(far).T, detector.usual.T, strict=True)]
    # of 200 the largest: about log 200, not the hundreds that a normal tail would have
    assert np.log(200) < surprisals[1] < np.log(200) + 3.1
    # where nothing contradicts it, the tail stays as it is
    as_seen = Typicality.fit(train, held_out[2:], upward={0: 1.0, 1: 1.0})
    np.testing.assert_allclose(detector.usual[:, 2], as_seen.usual[:, 2], atol=0.05)


def test_cross_conformal_p_values_keep_their_promise_with_few_held_out_items():
    flagged = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        train, held_out, new = (generator.standard_t(4, size=(n, 8)) for n in (200, 40, 500))
        detector = Typicality.fit(0.5 * train, held_out, upward={0: 1.0, 1: 2.0}, apart=(6, 7))
        flagged.append(np.mean(detector.p_values(new) <= 0.1))
    assert abs(np.mean(flagged) - 0.1) < 0.02


def test_columns_apart_are_not_drowned_by_the_others():
    generator = np.random.default_rng(0)
    train, held_out = (generator.normal(size=(n, 40)) for n in (2000, 500))
    anomalous = generator.normal(size=(500, 40))
    anomalous[:, 38:] *= 3.0
    together, apart = (Typicality.fit(train, held_out, apart=columns) for columns in ((), (38, 39)))
    areas = [auroc(detector.score(held_out), detector.score(anomalous)) for detector in (together, apart)]
    assert areas[0] < 0.8 and areas[1] > areas[0] + 0.05
    # every group sees its own columns only
    only = np.zeros((1, 40))
    only[0, 38] = 9.0
    assert (apart.precisions[0] @ only[0] == 0).all() and (apart.precisions[1] @ only[0] != 0).any()


def test_scores_are_surprisals_in_one_unit_however_heavy_the_tail():
    # of an exponential T, -log P(T >= t) = t; and of any increasing function of T as well, as far as T was seen
    quantiles = -np.log1p(-(np.arange(2000) + 0.5) / 2000)
    t = np.array([0.1, 1.0, 3.0, 5.0])
    np.testing.assert_allclose(_surprisal(t, quantiles), t, rtol=0.02)
    np.testing.assert_allclose(_surprisal(np.exp(t[:3]), np.exp(quantiles)), t[:3], rtol=0.02)
    np.testing.assert_allclose(_surprisal(np.array([20.0]), quantiles), 20, rtol=0.03)  # as far as nothing was seen
    # continuous where the counting ends, and of few values as well
    edge = quantiles[-41]
    np.testing.assert_allclose(*(_surprisal(np.array([edge + step]), quantiles) for step in (0, 1e-6)), rtol=0.01)
    assert np.isfinite(_surprisal(np.array([0.0, 3.0]), np.array([1.0, 2.0]))).all()
    assert np.isnan(_surprisal(np.array([np.nan]), quantiles)).all()


def test_a_detector_is_told_from_one_of_another_version():
    generator = np.random.default_rng(0)
    detector = Typicality.fit(generator.normal(size=(200, 30)), generator.normal(size=(300, 30)), upward={0: 1.0})
    tree = detector.to_tree()
    np.testing.assert_array_equal(Typicality.from_tree(tree).score(np.eye(30)), detector.score(np.eye(30)))
    with pytest.raises(InputError, match="fitting again"):
        Typicality.from_tree({name: array for name, array in tree.items() if name != "weights"})
    with pytest.raises(InputError, match="got 29 features"):
        detector.score(np.zeros((1, 29)))


def test_ks_distance_of_a_shifted_normal():
    z = np.random.default_rng(0).normal(size=20_000)
    assert ks_normal(z) < 0.015
    # the distance of N(0.5, 1) from N(0, 1) is 2 Phi(0.25) - 1
    assert ks_normal(z + 0.5) == pytest.approx(0.1974, abs=0.015)


def test_principal_plane_finds_the_plane():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 3)) * [5.0, 2.0, 0.1] @ np.linalg.qr(generator.normal(size=(3, 3)))[0]
    plane, again = principal_plane(x, x)
    np.testing.assert_allclose(plane, again)
    np.testing.assert_allclose(np.var(plane, axis=0).sum(), 3, rtol=1e-2)  # of three columns of variance 1
    scaled, _ = principal_plane(x * [1, 10, 100] + [5, 0, 0], x)
    np.testing.assert_allclose(np.abs(scaled), np.abs(plane), atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows", "goal"), [("ring", 8000, 0.03), ("checkerboard", 50_000, 0.10)])
def test_defaults_come_close_to_the_entropy(name, rows, goal):
    toy = fk.data.TOYS[name]
    density = fk.density(toy.sample(rows, key=1), key=0, show_progress=False)
    assert -density.log_prob(toy.sample(50_000, key=2)).mean() - toy.entropy < goal


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 2])
def test_the_coarse_grid_of_large_images_starts_with_all_of_them(classes, monkeypatch, key):
    pixels = _blobs(256, 0, size=36)
    given = {"y": np.eye(classes, dtype=np.float32)[np.arange(256) % classes]} if classes else {}
    bijection = wavelet((36, 36, 1), levels=2, width=4, features=4, cond_dim=classes, key=key)
    model = image_model(bijection.shape, Pixels(5), bijection, [fk.Block("y", classes)] if classes else [])
    # at full size there is room for 64 images, at the size of the coarse grid for all
    monkeypatch.setattr(stages_module, "_NUMBERS_FOR_START", 256 * 18 * 18)
    started = stages_module.closed_form_start(model, pixels, Augmentation(), False, key, given.get("y"))
    z = started.encode(jnp.asarray(pixels), key=key, **given)["z_0"]
    # 1/8 if fitted to a quarter of them, and the noise within the bins is another one here
    assert np.sqrt(np.mean(jnp.mean(z, axis=0) ** 2)) < 0.09


@pytest.mark.parametrize(
    ("settings", "decays"),
    [
        ({"architecture": "lattice"}, [1.0, 1.0]),
        ({"architecture": "wavelet"}, [1.0, 0.0]),  # the finest level has the learned noise
        pytest.param({"architecture": "wavelet", "train": {"weight_decay": 0.5}}, [0.5, 0.5], marks=pytest.mark.slow),
        pytest.param({"architecture": "glow"}, [0.0], marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_weights_decay_where_levels_are_trained_one_by_one(settings, decays, monkeypatch):
    seen = {}

    def fit_stages(model, pixels, held_out, training, stages, *args, **options):
        seen.update({stage.level: stage.settings["weight_decay"] for stage in stages})
        return stages_module.Trained(model, {}, training, TrainingRecord(steps=0, seconds=0.0))

    monkeypatch.setattr(_training, "fit_stages", fit_stages)
    fk.images(_blobs(64, 0), width=8, key=0, show_progress=False, **settings)
    assert [seen[level] for level in sorted(seen)] == decays
    assert [_training._weight_decay(n) for n in (8, 2000, 8000, 60_000)] == [1.0, 1.0, 0.5, 0.18]


@pytest.mark.slow
def test_levels_trained_at_the_same_time_are_those_trained_one_by_one(key):
    settings = {"width": 8, "dequantisation": "uniform", "train": {"steps": 5, "batch_size": 16}, "key": 0}
    one, both = (fk.images(_blobs(64, 0), show_progress=False, parallel=n, **settings) for n in (1, 2))
    for a, b in zip(*map(_arrays, (one, both)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert one.history["level"] == both.history["level"]


def _arrays(images):
    return jax.tree.leaves(eqx.filter(images.model, eqx.is_array))
