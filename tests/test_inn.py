"""The model between two partitioned ends: densities, samples and posteriors against what is known in closed form."""

import inspect
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from flowknife import nets
from flowknife.architectures import coupling_flow
from flowknife.bijections import ActNorm, Affine, Chain, Channels, Coupling, Matrix, Reshape, ShiftScale
from flowknife.errors import InputError
from flowknife.inn import _ARGUMENTS, INN, Block, Partition
from flowknife.laws import ClassMixture, Data, Given, Noise, Normal, Pad, Padding, Pixels
from tests.catalogue import MLP, perturbed, quick_jit


def linear(matrix):
    """The map y = W x."""
    matrix = jnp.asarray(matrix, jnp.float32)
    return eqx.tree_at(lambda layer: layer.weight, Matrix(len(matrix), key=0), matrix)


def points(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def conditional(dim, cond_shape, seed=0):
    """A coupling that moves all of x, steered by the condition alone."""
    make = quick_jit(lambda: Coupling(Channels(dim, kept=0), ShiftScale(), MLP, cond_shape=cond_shape, key=seed))
    coupling = make()
    return perturbed(coupling, np.random.default_rng(seed), 1.0)


W = np.array([[1.0, 0.5, 0.0], [-0.3, 2.0, 0.4], [0.2, 0.0, -1.5]])
NORMAL = scipy.stats.norm.logpdf


# -- densities against their closed forms -----------------------------------------------------------------------------


def test_a_linear_flow_is_a_gaussian():
    inn = INN([Block("x", 3)], [Block("z", 3)], linear(W))
    x = points(0, 50, 3)
    expected = scipy.stats.multivariate_normal(np.zeros(3), np.linalg.inv(W.T @ W)).logpdf(x)
    np.testing.assert_allclose(inn.log_prob(x), expected, rtol=1e-5)
    draws = inn.sample(0, 40_000)
    np.testing.assert_allclose(np.cov(draws.T), np.linalg.inv(W.T @ W), atol=0.03)


def test_a_known_block_makes_the_density_a_posterior():
    inn = INN([Block("x", 3)], [Block("y", 1, Given(0.3)), Block("z", 2)], linear(W))
    x, y = points(0, 50, 3), points(1, 50, 1)
    inverse = np.linalg.inv(W)
    covariance = inverse @ np.diag([0.3**2, 1, 1]) @ inverse.T
    means = np.pad(y, ((0, 0), (0, 2))) @ inverse.T
    expected = [scipy.stats.multivariate_normal(m, covariance).logpdf(v) for m, v in zip(means, x, strict=True)]
    np.testing.assert_allclose(inn.log_prob(x, y=y), expected, rtol=1e-4)
    np.testing.assert_allclose(inn.encode(x)["y"], x @ W[:1].T, atol=1e-5)

    draws = inn.sample(0, 40_000, y=y[0])
    np.testing.assert_allclose(np.mean(draws, axis=0), means[0], atol=0.02)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.02)


def test_noise_on_both_ends_gives_the_bayesian_posterior():
    # x ~ N(0, 1), y = a x + eps: whitened, y and z are a rotation of x and eps / sigma
    a, sigma, scale = 2.0, 0.5, 1e-3
    c = np.hypot(a, sigma)
    inn = INN(
        [Block("x", 1), Block("eps", 1, Noise(sigma, added_to="y"))],
        [Block("y", 1, Given(scale)), Block("z", 1)],
        linear([[a, 1.0], [sigma / c, -a / sigma / c]]),
    )
    draws = inn.sample(0, 40_000, y=jnp.asarray([1.7]))
    assert np.mean(draws) == pytest.approx(a * 1.7 / c**2, abs=0.005)
    assert np.std(draws) == pytest.approx(sigma / c, rel=0.02)

    # the noise in y is the noise on the left: the known value is hit exactly, whatever the draw
    x = points(0, 200, 1)
    right = inn.encode(x, key=3)
    log_p = inn.log_prob(x, y=a * x, key=3)
    expected = NORMAL(0, scale=scale) + NORMAL(right["z"][:, 0]) + np.log(c / sigma)
    np.testing.assert_allclose(log_p, expected, atol=1e-2)
    eps = right["y"] - a * x
    assert np.std(eps) == pytest.approx(sigma, rel=0.15)
    # a caller who gives the noise gives noisy data too
    by_hand = inn.log_prob({"x": x, "eps": np.asarray(eps)}, y=np.asarray(right["y"]))
    np.testing.assert_allclose(by_hand, expected, atol=1e-2)
    both = inn.sample_left(0, 5, y=jnp.asarray([1.7]))
    np.testing.assert_allclose(a * both["x"] + both["eps"], np.full((5, 1), 1.7), atol=5 * scale)


def test_padding_and_pad_are_paid_for_by_their_density():
    inn = INN([Block("x", 1), Block("pad", 2, Pad(0.1))], [Block("z", 2), Block("rest", 1, Padding(0.2))], linear(W))
    x = points(0, 20, 1)
    right = inn.encode(x, key=1)
    expected = NORMAL(right["z"]).sum(axis=1) + NORMAL(right["rest"], scale=0.2)[:, 0]
    expected += np.linalg.slogdet(W)[1]
    np.testing.assert_allclose(inn.log_prob(x, key=1), expected, rtol=1e-4, atol=1e-5)
    pad = np.concatenate([right["z"], right["rest"]], axis=1) @ np.linalg.inv(W).T
    np.testing.assert_allclose(pad[:, 0], x[:, 0], atol=1e-5)
    assert 0.05 < np.std(pad[:, 1:]) < 0.2
    assert inn.sample(0, 7).shape == (7, 1)


def test_labels_known_unknown_and_mixed():
    law = ClassMixture(3, 3)
    inn = INN([Block("x", 3)], [Block("y", 3, law)], linear(W))
    x = points(0, 6, 3)
    z, log_det = x @ W.T, np.linalg.slogdet(W)[1]
    joint = np.log(1 / 3) + NORMAL(z[:, None, :] - np.asarray(law.means)).sum(axis=-1) + log_det
    unknown = scipy.special.logsumexp(joint, axis=1)
    labels = np.array([0, 1, 2, 2, -1, -1])

    @quick_jit
    def look(inn, x, labels):
        known = [inn.log_prob(x), inn.log_prob(x, y=None), inn.log_prob(x, y=np.array(1)), inn.log_prob(x, y=labels)]
        return known, inn.encode(inn.sample(0, 2000, y=1))["y"], inn.sample(0, 4, y=np.arange(3))

    found, of_class, of_each = look(inn, x, labels)
    mixed = np.where(labels < 0, unknown, joint[np.arange(6), labels])
    np.testing.assert_allclose(found, [unknown, unknown, joint[:, 1], mixed], rtol=1e-5)
    np.testing.assert_allclose(np.mean(of_class, axis=0), law.means[1], atol=0.1)
    assert of_each.shape == (4, 3, 3)


@pytest.mark.parametrize("bits", [8, 5])
def test_pixels_give_the_probability_of_the_discrete_image(bits):
    levels = 2**bits
    affine = Affine(np.full((1, 1, 1), 0.5 * levels), np.full((1, 1, 1), 0.2 * levels))
    inn = INN([Block("image", (1, 1, 1), Pixels(bits))], [Block("z", 1)], Chain([affine, Reshape((1, 1, 1), 1)]))
    pixel = np.uint8(150)
    images = np.full((4000, 1, 1, 1), pixel)
    edges = np.array([0, 1]) + (int(pixel) >> (8 - bits))
    probability = np.diff(scipy.stats.norm.cdf(edges, 0.5 * levels, 0.2 * levels))
    assert np.mean(np.exp(inn.log_prob(images, key=0))) == pytest.approx(probability[0], rel=1e-3)

    images = inn.sample(0, 1000)
    assert images.shape == (1000, 1, 1, 1)
    assert images.dtype == np.uint8
    assert np.mean(images) == pytest.approx(127.5, abs=6)
    restored = inn.decode(inn.encode(images, key=0))["image"]
    np.testing.assert_array_equal(restored, images)


def test_conditions_pass_no_jacobian_and_steer_the_network():
    flow = conditional(2, (3,))
    inn = INN([Block("x", 2)], [Block("z", 2)], flow, cond=[Block("y", 3)])
    x, y = points(0, 20, 2), points(1, 20, 3)
    z, log_det = flow.encode(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(inn.log_prob(x, y=y), NORMAL(z).sum(axis=1) + log_det, rtol=1e-5)
    assert not np.allclose(inn.log_prob(x, y=y), inn.log_prob(x, y=y + 1))
    # given y the density is a Gaussian, whose mean and scale the network says
    draws = inn.sample(0, 20_000, y=y[0])
    expected = scipy.stats.multivariate_normal(np.mean(draws, axis=0), np.cov(draws.T)).logpdf(x)
    np.testing.assert_allclose(inn.log_prob(x, y=y[0]), expected, atol=0.05, rtol=0.05)


def test_several_conditions_are_one_vector_in_their_order():
    inn = INN([Block("x", 2)], [Block("z", 2)], conditional(2, (5,)), cond=[Block("a", (2, 2)), Block("b", 1)])
    joined = INN([Block("x", 2)], [Block("z", 2)], inn.bijection, cond=[Block("c", 5)])
    x, a, b = points(0, 4, 2), points(1, 4, 2, 2), points(2, 4, 1)
    c = np.concatenate([a.reshape(4, 4), b], axis=1)
    look = quick_jit(lambda inn, x, given: (inn.log_prob(x, **given), inn.sample(0, 3, **given)))
    for ours, theirs in zip(look(inn, x, {"b": b, "a": a}), look(joined, x, {"c": c}), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_single_condition_keeps_its_shape():
    net = partial(nets.ConvNet, width=4)
    shape = (2, 2, 1)
    make = quick_jit(lambda: Coupling(Channels(shape, kept=0), ShiftScale(), net, cond_shape=(2, 2, 3), key=0))
    flow = perturbed(make(), np.random.default_rng(0))
    inn = INN([Block("x", shape)], [Block("z", shape)], flow, cond=[Block("low", (2, 2, 3))])
    x, low = points(0, 4, *shape), points(1, 4, 2, 2, 3)
    look = quick_jit(
        lambda inn, x, low: (inn.bijection.encode(x, low), inn.log_prob(x, low=low), inn.sample(0, 2, low=low))
    )
    (z, log_det), log_p, drawn = look(inn, x, low)
    np.testing.assert_allclose(log_p, NORMAL(z).sum(axis=(1, 2, 3)) + log_det, rtol=1e-5)
    assert drawn.shape == (2, 4, *shape)


# -- samples follow the density ---------------------------------------------------------------------------------------


def test_samples_in_one_dimension_have_the_distribution_of_the_density():
    make = quick_jit(lambda: coupling_flow(1, cond_dim=1, layers=2, width=8, depth=1, key=0))
    flow = perturbed(make(), np.random.default_rng(1), 1.0)
    inn = INN([Block("x", 1)], [Block("z", 1)], flow, cond=[Block("y", 1)])
    y = jnp.asarray([0.7])
    draws = np.sort(np.asarray(eqx.filter_jit(inn.sample)(0, 20_000, y=y))[:, 0])
    edges = np.linspace(draws[0] - 5, draws[-1] + 5, 20_001, dtype=np.float32)
    density = np.exp(eqx.filter_jit(inn.log_prob)(edges[:, None], y=y))
    cdf = np.concatenate([[0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(edges))])
    assert cdf[-1] == pytest.approx(1, abs=1e-3)
    assert scipy.stats.kstest(draws, lambda x: np.interp(x, edges, cdf)).pvalue > 0.01


def test_samples_weighted_by_the_density_integrate_another_density():
    make = quick_jit(lambda: coupling_flow(3, layers=2, width=8, depth=1, key=0))
    flow = perturbed(make(), np.random.default_rng(0))
    inn = INN([Block("x", 3)], [Block("z", 3)], flow)
    draws = eqx.filter_jit(inn.sample)(0, 40_000)
    other = scipy.stats.multivariate_normal(np.mean(draws, axis=0), 0.5 * np.cov(draws.T))
    ratio = np.exp(other.logpdf(draws) - np.asarray(eqx.filter_jit(inn.log_prob)(draws)))
    assert np.mean(ratio) == pytest.approx(1, abs=4 * np.std(ratio) / np.sqrt(len(ratio)))
    assert np.std(ratio) < 10


# -- batches, temperatures, keys --------------------------------------------------------------------------------------

POSTERIOR = INN([Block("x", 3)], [Block("y", 1, Given(0.3)), Block("z", 2)], linear(W))


def test_a_model_with_a_known_block_is_sound():
    POSTERIOR.require_sound()  # what reading a run asks of its model


def test_batch_axes_of_any_number():
    x, y = points(0, 2, 4, 3), points(1, 2, 4, 1)
    log_p = POSTERIOR.log_prob(x, y=y)
    assert log_p.shape == (2, 4)
    np.testing.assert_allclose(log_p[1], POSTERIOR.log_prob(x[1], y=y[1]), rtol=1e-5)
    np.testing.assert_allclose(log_p[1, 2], POSTERIOR.log_prob(x[1, 2], y=y[1, 2]), rtol=1e-5)
    right = POSTERIOR.encode(x)
    assert {name: block.shape for name, block in right.items()} == {"y": (2, 4, 1), "z": (2, 4, 2)}
    np.testing.assert_allclose(POSTERIOR.decode(right)["x"], x, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "batch", "expected"),
    [((), (), (3,)), (5, (), (5, 3)), ((), (4,), (4, 3)), ((2, 5), (4,), (2, 5, 4, 3))],
)
def test_axes_of_a_given_value_follow_those_of_the_draws(n, batch, expected):
    y = 10.0 * points(0, *batch, 1)
    draws = POSTERIOR.sample(0, n, y=y)
    assert draws.shape == expected
    known = POSTERIOR.encode(draws)["y"]
    np.testing.assert_array_less(np.abs(known - y), 0.3 * 5)


def test_given_values_of_different_axes_are_broadcast():
    right = [Block("y", 1, Given(0.1)), Block("z", 1)]
    inn = INN([Block("x", 2)], right, conditional(2, (1,)), cond=[Block("c", 1)])
    draws = inn.sample(0, 6, y=points(0, 4, 1), c=points(1, 1))
    assert draws.shape == (6, 4, 2)


def test_temperature_scales_draws_around_the_mode():
    y = jnp.asarray([2.0])
    warm, cold = (POSTERIOR.encode(POSTERIOR.sample(0, 4000, temperature=t, y=y)) for t in (1.0, 0.5))
    np.testing.assert_allclose(cold["z"], 0.5 * warm["z"], atol=1e-4)
    np.testing.assert_allclose(cold["y"] - y, 0.5 * (warm["y"] - y), atol=1e-4)
    frozen = POSTERIOR.sample(0, 3, temperature=0.0, y=y)
    np.testing.assert_allclose(frozen, np.tile(POSTERIOR.decode({"y": y, "z": jnp.zeros(2)})["x"], (3, 1)), atol=1e-5)
    blocks = POSTERIOR.encode(POSTERIOR.sample(0, 4000, temperature={"z": 0.5}, y=y))
    np.testing.assert_allclose(blocks["z"], 0.5 * warm["z"], atol=1e-4)
    np.testing.assert_allclose(blocks["y"], warm["y"], atol=1e-4)
    traced = jax.jit(lambda t: POSTERIOR.sample(0, 3, temperature=t, y=y))(0.5)
    np.testing.assert_allclose(traced, POSTERIOR.sample(0, 3, temperature=0.5, y=y), atol=1e-5)


def test_keys_are_ints_jax_keys_or_fresh():
    y = jnp.asarray([0.0])
    draws = POSTERIOR.sample(3, 4, y=y)
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        np.testing.assert_array_equal(POSTERIOR.sample(key, 4, y=y), draws)
    assert not np.any(POSTERIOR.sample(4, 4, y=y) == draws)
    assert not np.any(POSTERIOR.sample(None, 4, y=y) == POSTERIOR.sample(None, 4, y=y))
    padded = INN([Block("x", 1), Block("pad", 1, Pad())], [Block("z", 2)], linear(np.eye(2)))
    x = points(0, 5, 1)
    np.testing.assert_array_equal(padded.log_prob(x, key=1), padded.log_prob(x, key=1))
    assert not np.any(padded.log_prob(x) == padded.log_prob(x))


def test_a_key_may_be_an_integer_of_numpy():
    y = jnp.asarray([0.0])
    np.testing.assert_array_equal(POSTERIOR.sample(np.int64(3), 4, y=y), POSTERIOR.sample(3, 4, y=y))


def test_none_at_all_is_a_batch_too():
    y = jnp.asarray([0.0])
    assert POSTERIOR.log_prob(np.zeros((0, 3)), y=y).shape == (0,)
    assert POSTERIOR.sample(0, 0, y=y).shape == (0, 3)


def test_blocks_of_one_end_do_not_share_their_noise():
    inn = INN(
        [Block("a", 1), Block("b", 1, Noise()), Block("c", 1, Noise())],
        [Block("z", 1), Block("w", 1), Block("v", 1)],
        linear(np.eye(3)),
    )
    right = inn.encode(points(0, 100, 1), key=0)
    left = inn.sample_left(0, 100)
    assert not np.any(right["w"] == right["v"])
    assert not np.any(left["b"] == left["c"])


def test_blocks_keep_their_order_and_their_shapes():
    left = [Block("a", (2, 1)), Block("b", 1)]
    inn = INN(left, [Block("z", 2), Block("w", (1, 1))], linear(np.diag([1.0, 2.0, 3.0])))
    a, b = points(0, 4, 2, 1), points(1, 4, 1)
    right = inn.encode({"b": b, "a": a})
    np.testing.assert_allclose(right["z"], np.stack([a[:, 0, 0], 2 * a[:, 1, 0]], axis=1), rtol=1e-6)
    np.testing.assert_allclose(right["w"], 3 * b[..., None], rtol=1e-6)
    back = inn.decode(right)
    np.testing.assert_allclose(back["a"], a, rtol=1e-6)
    draws = inn.sample(0, 5)
    assert {name: value.shape for name, value in draws.items()} == {"a": (5, 2, 1), "b": (5, 1)}
    assert inn.partition.data == inn.partition.left


def test_initialise_fits_what_has_a_closed_form():
    inn = INN([Block("x", 3)], [Block("z", 3)], Chain([ActNorm(3), linear(np.eye(3))]))
    x = 5 + 2 * points(0, 500, 3)
    fitted = inn.initialise(x, key=0)
    z = fitted.encode(x)["z"]
    np.testing.assert_allclose(np.mean(z, axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.std(z, axis=0), 1, atol=1e-2)
    assert np.mean(fitted.log_prob(x)) > np.mean(inn.log_prob(x))


def test_whole_numbers_are_data_too():
    x = np.array([[1, 2, 3], [0, -1, 4]])
    inn = INN([Block("x", 3)], [Block("z", 3)], Affine(np.zeros(3), np.ones(3)))
    np.testing.assert_allclose(inn.log_prob(x), NORMAL(x).sum(axis=1), rtol=1e-5)


# -- what a user can get wrong ----------------------------------------------------------------------------------------

FLOW = INN([Block("x", 3)], [Block("z", 3)], linear(W))
CONDITIONED = INN([Block("x", 2)], [Block("z", 2)], conditional(2, (3,)), cond=[Block("y", 3)])
TWO = INN([Block("a", 2), Block("b", 1)], [Block("z", 3)], linear(W))
THREE = [Block("x", 3)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: FLOW.log_prob(np.zeros((5, 2))),
        lambda: FLOW.log_prob(np.zeros(())),
        lambda: FLOW.log_prob({"x": np.zeros((5, 3)), "y": np.zeros(5)}),
        lambda: FLOW.log_prob({}),
        lambda: FLOW.log_prob(np.zeros((5, 3)), y=np.zeros((5, 1))),
        lambda: FLOW.sample(0, 5, y=np.zeros((5, 1))),
        lambda: FLOW.sample("seed", 5),
        lambda: POSTERIOR.log_prob(np.zeros((5, 3))),
        lambda: POSTERIOR.sample(0, 5),
        lambda: POSTERIOR.sample(0, 5, y=np.zeros(2)),
        lambda: POSTERIOR.sample(0, 5, y=0.0),
        lambda: POSTERIOR.log_prob(np.zeros((5, 3)), y=np.zeros((5, 2))),
        lambda: POSTERIOR.decode(np.zeros((5, 3))),
        lambda: POSTERIOR.decode({"z": np.zeros((5, 2))}),
        lambda: CONDITIONED.log_prob(np.zeros((5, 2))),
        lambda: CONDITIONED.sample(0, 5),
        lambda: CONDITIONED.decode(np.zeros((5, 2))),
        lambda: TWO.log_prob(np.zeros((5, 3))),
        lambda: TWO.log_prob({"a": np.zeros((5, 2))}),
        lambda: TWO.log_prob({"a": np.zeros((5, 2)), "b": np.zeros((4, 1))}),
        lambda: INN([Block("x", 2)], [Block("z", 3)], linear(W)),
        lambda: INN([Block("x", 2)], [Block("z", 2)], linear(W)),
        lambda: Partition(THREE, [Block("z", 2), Block("z", 1)]),
        lambda: Partition(THREE, [Block("y", 3, Given())], [Block("y", 1)]),
        lambda: Partition([Block("x", 3, Normal())], THREE),
        lambda: Partition(THREE, [Block("z", 3, Data())]),
        lambda: FLOW.decode(np.zeros((5, 2))),
        lambda: FLOW.sample(0, 5, temperature={"y": 0.5}),
        lambda: Partition([Block("x", 1), Block("e", 1, Noise(1.0, "d"))], [Block("y", 2, Given())]),
        lambda: Partition([Block("x", 1), Block("e", 1, Noise(1.0, "y"))], [Block("y", 2, Given())]),
        lambda: Partition(THREE, [Block("x", 3, Given())]),
        lambda: INN([Block("e", 3, Noise())], [Block("z", 3)], linear(W)),
    ],
)
def test_errors_say_in_one_line_what_was_got_and_expected(make):
    with pytest.raises(InputError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("got ")
    assert "expected" in message


def test_no_condition_hides_an_argument_of_a_method():
    methods = [each for name, each in inspect.getmembers(INN, inspect.isfunction) if not name.startswith("__")]
    found = [inspect.signature(method).parameters.values() for method in methods]
    taking = [part for part in found if any(one.kind is one.VAR_KEYWORD for one in part)]
    by_name = {one.name for part in taking for one in part if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    assert by_name == set(_ARGUMENTS) and len(taking) > 5


@pytest.mark.parametrize("name", ["self", "x", "z", "key", "n", "temperature"])
def test_a_condition_is_not_named_like_an_argument(name):
    with pytest.raises(InputError, match=f"got a condition named '{name}'; expected another name"):
        Partition([Block("rows", 2)], [Block("latent", 2)], cond=[Block(name, 1)])
