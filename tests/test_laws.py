"""The laws of blocks: each is a normalised density, and its samples follow it."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowknife.architectures import coupling_flow, dequantiser
from flowknife.bijections import Chain, Reshape
from flowknife.errors import InputError
from flowknife.inn import INN, Block
from flowknife.laws import ClassMixture, Data, Given, Noise, Normal, Pad, Padding, Pixels, normal_log_prob
from flowknife.train import fit
from tests.catalogue import perturbed, quick_jit


def mixture(classes, dim, seed=0):
    """A class mixture that training has moved."""
    rng = np.random.default_rng(seed)
    law = ClassMixture(classes, dim)
    means = jnp.asarray(rng.normal(0, 1.5, (classes, dim)), jnp.float32)
    weights = jnp.asarray(rng.normal(0, 1, classes), jnp.float32)
    return eqx.tree_at(lambda law: (law.means, law.log_weights), law, (means, weights))


# name: (law, event shape, given value)
LAWS = {
    "Normal, 1": (Normal(), (1,), None),
    "Normal, 2": (Normal(), (2,), None),
    "Normal, scalar": (Normal(), (), None),
    "Given": (Given(0.5), (2,), np.array([1.0, -2.0], np.float32)),
    "Given, image": (Given(0.7), (1, 2, 1), np.ones((1, 2, 1), np.float32)),
    "Padding": (Padding(0.3), (2,), None),
    "ClassMixture, 1": (mixture(3, 1), (1,), None),
    "ClassMixture, 2": (mixture(4, 2), (2,), None),
}


def grid(shape, reach=8.0, per_axis=801):
    """Points of a grid of at most two dimensions, as events, and the volume of a cell."""
    axis = np.linspace(-reach, reach, per_axis, dtype=np.float32)
    size = math.prod(shape)
    points = np.stack(np.meshgrid(*[axis] * size, indexing="ij"), axis=-1).reshape(-1, *shape)
    return jnp.asarray(points), (axis[1] - axis[0]) ** size


@pytest.mark.parametrize("name", LAWS)
def test_a_law_integrates_to_one(name):
    law, shape, given = LAWS[name]
    points, cell = grid(shape)
    log_p = np.asarray(quick_jit(lambda law, points, given: law.log_prob(points, shape, given))(law, points, given))
    assert log_p.shape == points.shape[:1]
    assert np.sum(np.exp(log_p)) * cell == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_law(name, temperature):
    law, shape, given = LAWS[name]
    draws = 40_000
    x = law.sample(jax.random.key(0), (draws,), shape, given, temperature)
    assert x.shape == (draws, *shape)
    if isinstance(law, ClassMixture):
        weights = np.asarray(jax.nn.softmax(law.log_weights))
        mean = weights @ law.means
        covariance = temperature**2 * np.eye(shape[0]) + np.cov(law.means.T, aweights=weights, ddof=0)
    else:
        scale = temperature * getattr(law, "scale", 1.0)
        mean = np.zeros(math.prod(shape)) if given is None else given.ravel()
        covariance = scale**2 * np.eye(math.prod(shape))
    flat = np.asarray(x, np.float64).reshape(draws, -1)
    errors = np.sqrt(np.diag(np.atleast_2d(covariance)) / draws)
    assert np.all(np.abs(flat.mean(axis=0) - mean) < 4 * errors)
    np.testing.assert_allclose(np.cov(flat.T), np.squeeze(covariance), atol=0.03 * np.max(covariance))


@pytest.mark.parametrize("name", LAWS)
def test_a_sample_is_decided_by_its_key(name):
    law, shape, given = LAWS[name]
    one, same, other = (law.sample(jax.random.key(seed), (5,), shape, given) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.any(np.isclose(one, other, atol=1e-6))


@pytest.mark.parametrize("name", LAWS)
def test_any_batch_axes_are_a_loop_over_events(name):
    law, shape, given = LAWS[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, *shape)), jnp.float32)

    @quick_jit
    def look(law, x, given):
        each = [[law.log_prob(event, shape, given) for event in row] for row in x]
        return law.log_prob(x, shape, given), jnp.asarray(each)

    log_p, each = look(law, x, given)
    assert log_p.shape == (2, 3)
    np.testing.assert_allclose(log_p, each, rtol=1e-5)
    assert law.sample(jax.random.key(0), (), shape, given).shape == shape


def test_a_given_value_may_differ_for_each_event():
    law, values = Given(0.2), jnp.asarray([[0.0, 0.0], [5.0, -5.0]])
    x = law.sample(jax.random.key(0), (1000, 2), (2,), values)
    np.testing.assert_allclose(np.mean(x, axis=0), values, atol=0.03)
    at_values = -math.log(2 * math.pi * 0.2**2)
    np.testing.assert_allclose(law.log_prob(values, (2,), values), at_values, rtol=1e-6)


def test_a_known_block_needs_its_value():
    for ask in (
        lambda: Given().log_prob(jnp.zeros((3, 2)), (2,)),
        lambda: Given().sample(jax.random.key(0), (3,), (2,)),
    ):
        with pytest.raises(InputError, match="value"):
            ask()


# -- class mixture ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "dim"), [(3, 12), (4, 4), (5, 17), (3, 2)])
def test_class_means_start_apart_by_five_standard_deviations(classes, dim):
    means = np.asarray(ClassMixture(classes, dim).means)
    assert means.shape == (classes, dim)
    own = means[np.arange(classes) < dim]
    if dim % classes == 0:
        distances = np.linalg.norm(own[:, None] - own[None], axis=-1)[~np.eye(len(own), dtype=bool)]
        np.testing.assert_allclose(distances, 5.0, rtol=1e-6)
    np.testing.assert_allclose(means.max(), 5 / math.sqrt(2 * max(dim // classes, 1)), rtol=1e-6)


def test_a_label_gives_the_joint_density_of_its_class():
    law = mixture(3, 2)
    points, cell = grid((2,))
    weights = jax.nn.softmax(law.log_weights)
    for label in range(3):
        joint = np.exp(law.log_prob(points, (2,), jnp.asarray(label)))
        assert joint.sum() * cell == pytest.approx(float(weights[label]), abs=1e-4)
        peak = points[np.argmax(joint)]
        np.testing.assert_allclose(peak, law.means[label], atol=0.02)


def test_the_label_minus_one_means_unknown():
    law = mixture(3, 2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    by_class = law.class_log_probs(x, (2,))
    mixed = law.log_prob(x, (2,), jnp.asarray([2, -1, 0, -1]))
    unknown = jax.nn.logsumexp(by_class, axis=-1)
    expected = [by_class[0, 2], unknown[1], by_class[2, 0], unknown[3]]
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)
    np.testing.assert_allclose(law.log_prob(x, (2,)), unknown, rtol=1e-6)


def test_a_labelled_sample_comes_from_its_class():
    law, labels = mixture(3, 4), jnp.asarray([2, 0, 1])
    x = law.sample(jax.random.key(0), (5000, 3), (2, 2), labels)
    np.testing.assert_allclose(np.mean(x, axis=0).reshape(3, 4), law.means[labels], atol=0.06)
    cold = law.sample(jax.random.key(0), (3,), (2, 2), labels, 0.0)
    np.testing.assert_array_equal(cold.reshape(3, 4), law.means[labels])


def test_a_sample_of_an_unknown_label_comes_from_all_classes():
    law = ClassMixture(2, 2)
    x = law.sample(jax.random.key(0), (4000,), (2,), jnp.full(4000, -1))
    nearest = np.argmax(law.class_log_probs(x, (2,)), axis=-1)
    assert np.mean(nearest == 0) == pytest.approx(0.5, abs=0.05)


def test_a_mixture_follows_its_weights():
    law = eqx.tree_at(lambda law: law.log_weights, ClassMixture(2, 2), jnp.log(jnp.asarray([0.2, 0.8])))
    x = law.sample(jax.random.key(0), (20_000,), (2,))
    nearest = np.argmax(law.class_log_probs(x, (2,)), axis=-1)
    assert np.mean(nearest == 0) == pytest.approx(0.2, abs=0.012)


# -- sources of the left end ------------------------------------------------------------------------------------------


def test_eight_bit_images_come_back_unchanged():
    x = jnp.arange(256, dtype=jnp.uint8)
    source = Pixels()
    values = source.prepare(jax.random.key(0), x, (), (256,))
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(np.floor(values), x)
    restored = source.restore(values)
    assert restored.dtype == jnp.uint8
    np.testing.assert_array_equal(restored, x)


def test_no_image_leaves_its_bin():
    x = jnp.full((1000, 1000), 255, jnp.uint8)
    values = Pixels().prepare(jax.random.key(0), x, (), x.shape)
    assert np.max(values) < 256


@pytest.mark.parametrize("bits", range(1, 9))
def test_fewer_bits_keep_the_leading_ones(bits):
    x = jnp.arange(256, dtype=jnp.uint8)
    source = Pixels(bits)
    values = source.prepare(jax.random.key(0), x, (), (256,))
    assert np.min(values) >= 0
    assert np.max(values) < 2**bits
    restored = np.asarray(source.restore(values))
    np.testing.assert_array_equal(restored >> (8 - bits), np.arange(256) >> (8 - bits))
    assert len(np.unique(restored)) == 2**bits
    assert abs(restored.mean() - 127.5) <= 0.5  # no darker than the original
    again = source.restore(source.prepare(jax.random.key(1), jnp.asarray(restored), (), (256,)))
    np.testing.assert_array_equal(again, restored)


def test_dequantisation_is_uniform_within_a_bin():
    values = Pixels().prepare(jax.random.key(0), jnp.full(50_000, 7, jnp.uint8), (), (50_000,)) - 7
    counts, _ = np.histogram(values, bins=10, range=(0, 1))
    assert counts.sum() == 50_000
    assert ((counts - 5000) ** 2 / 5000).sum() < 28  # chi-square with 9 degrees of freedom, p = 0.001


def test_values_beyond_white_and_black_are_clipped():
    np.testing.assert_array_equal(Pixels().restore(jnp.asarray([-3.2, 256.0, 1e9])), [0, 255, 255])


# -- variational dequantisation ----------------------------------------------------------------------------------------


def image_flow(shape, noise=None, seed=None):
    """A density of images of one bit, with its parts moved away from their start."""
    size = math.prod(shape)
    flow = Chain([Reshape(shape, size), coupling_flow(size, layers=2, width=8, depth=1, key=0)])
    inn = INN([Block("image", shape, Pixels(1, noise=noise))], [Block("z", size)], flow)
    return inn if seed is None else perturbed(inn, np.random.default_rng(seed))


@pytest.mark.slow
def test_trained_noise_starts_as_uniform_noise():
    shape = (2, 4, 1)
    law = Pixels(8, noise=dequantiser(shape, width=8, depth=1, key=0))
    x = jnp.full((2000, *shape), 255, jnp.uint8)
    v = law.prepare(jax.random.key(0), x, (2000,), shape)
    assert np.min(v) > 255
    assert np.max(v) < 256
    np.testing.assert_allclose(np.mean(v - 255), 0.5, atol=0.01)
    np.testing.assert_allclose(np.var(v - 255), 1 / 12, atol=0.003)
    np.testing.assert_allclose(law.log_noise(v, shape), 0, atol=0.02)
    assert Pixels().log_noise(v, shape) == 0


@pytest.mark.slow
def test_trained_noise_bounds_the_probability_of_every_bin():
    shape = (1, 2, 1)
    inn = image_flow(shape, dequantiser(shape, width=8, depth=1, key=0), seed=0)
    images = jnp.asarray([[0, 0], [0, 255], [255, 0], [255, 255]], jnp.uint8).reshape(4, *shape)
    middle = (jnp.arange(200) + 0.5) / 200
    grid = jnp.stack(jnp.meshgrid(middle, middle, indexing="ij"), axis=-1).reshape(-1, 1, *shape)
    levels = jnp.asarray(images > 0, jnp.float32)

    @jax.jit
    def judge():
        draws = inn.log_prob(jnp.broadcast_to(images, (4000, *images.shape)), key=0)
        z, log_det = inn.bijection.encode(levels + grid)
        return draws, normal_log_prob(z, (2,)) + log_det, inn.partition.left[0].law.log_noise(levels + grid, shape)

    draws, log_p, log_q = (np.asarray(value, np.float64) for value in judge())
    q = np.exp(log_q)
    assert log_q.std() > 0.1  # far from uniform
    np.testing.assert_allclose(q.mean(axis=0), 1, atol=0.01)
    bound = np.mean(q * (log_p - log_q), axis=0)
    inside = np.mean(np.exp(log_p), axis=0)
    assert np.all(np.exp(bound) < inside)
    assert np.exp(bound).sum() < 1
    # what is drawn follows q: the mean of log_prob is the bound
    assert np.all(np.abs(draws.mean(axis=0) - bound) < 5 * draws.std(axis=0) / 4000**0.5 + 0.01)


@pytest.mark.slow
def test_trained_noise_gives_a_higher_bound_where_a_flow_is_smooth():
    shape = (2, 2, 1)
    rng = np.random.default_rng(0)
    x = np.where(rng.random((400, *shape)) < 0.1, 255, 0).astype(np.uint8)  # a dark background with few bright pixels
    bounds = []
    for noise in (None, dequantiser(shape, width=16, depth=1, key=0)):
        result = fit(
            image_flow(shape, noise), x, steps=250, batch_size=64, learning_rate=5e-3, key=0, show_progress=False
        )
        repeated = np.broadcast_to(x, (20, *x.shape))
        bounds.append(float(np.mean(eqx.filter_jit(result.model.log_prob)(repeated, key=1))))
        restored = np.asarray(eqx.filter_jit(result.model.sample)(0, 200))
        assert set(np.unique(restored)) <= {63, 191}
    exact = 4 * (0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert bounds[0] + 0.05 < bounds[1] < exact + 0.15


@pytest.mark.parametrize("source", [Noise(0.5), Pad(0.5)])
def test_noise_is_drawn_by_the_model_unless_it_is_given(source):
    assert source.drawn
    assert not Data().drawn
    values = source.prepare(jax.random.key(0), None, (20_000,), (2,))
    assert values.shape == (20_000, 2)
    np.testing.assert_allclose(np.std(values, axis=0), 0.5, rtol=0.03)
    given = jnp.ones((3, 2))
    np.testing.assert_array_equal(source.prepare(jax.random.key(0), given, (3,), (2,)), given)


@pytest.mark.parametrize(
    "make", [lambda: Pixels(0), lambda: Pixels(9), lambda: ClassMixture(1, 3), lambda: ClassMixture(3, 0)]
)
def test_what_cannot_be_built_says_so_in_one_line(make):
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)
