"""The networks inside couplings: their start, their shapes, and what each of them may look at."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowknife import nets
from flowknife.errors import InputError
from tests.catalogue import perturbed, quick_jit

# name: (constructor, in_shape, out_shape)
NETS = {
    "MLP": (partial(nets.MLP, width=6), (3,), (4,)),
    "MLP of images": (partial(nets.MLP, width=6, depth=1, activation="tanh"), (2, 2, 1), (2, 2, 3)),
    "ResidualMLP": (partial(nets.ResidualMLP, width=6, activation="silu"), (3,), (2, 2)),
    "ConvNet": (partial(nets.ConvNet, width=6), (4, 5, 2), (4, 5, 3)),
    "PatchMLP": (partial(nets.PatchMLP, width=6, activation="elu"), (4, 5, 2), (4, 5, 3)),
    "ViT": (partial(nets.ViT, width=8, heads=2), (4, 5, 2), (4, 5, 3)),
}
IMAGE_NETS = {name: NETS[name] for name in ("ConvNet", "PatchMLP", "ViT")}


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def perturb(net, seed=0):
    return perturbed(net, np.random.default_rng(seed))


def built(make, *shapes):
    """A network away from its initial values."""
    return perturb(quick_jit(lambda: make(*shapes, key=0))())


@quick_jit
def run(net, x, cond=None):
    return net(x, cond)


def cond_shapes(in_shape):
    return [None, (2,), (*in_shape[:-1], 2)] if len(in_shape) == 3 else [None, (2,)]


CASES = [(name, cond_shape) for name in NETS for cond_shape in cond_shapes(NETS[name][1])]


@pytest.mark.parametrize(("name", "cond_shape"), CASES)
def test_networks_start_at_zero(name, cond_shape):
    make, in_shape, out_shape = NETS[name]
    x, cond = draw(0, 3, *in_shape), None if cond_shape is None else draw(1, 3, *cond_shape)
    y = quick_jit(lambda x, cond: make(in_shape, out_shape, cond_shape, key=0)(x, cond))(x, cond)
    np.testing.assert_array_equal(y, np.zeros((3, *out_shape)))


@pytest.mark.parametrize(("name", "cond_shape"), CASES)
def test_any_batch_axes_are_a_loop_over_events(name, cond_shape):
    make, in_shape, out_shape = NETS[name]
    net = built(make, in_shape, out_shape, cond_shape)
    x, cond = draw(0, 2, 3, *in_shape), None if cond_shape is None else draw(1, 2, 3, *cond_shape)
    first = None if cond is None else cond[0]
    look = quick_jit(lambda net, x, cond, first: (net(x, cond), jax.vmap(jax.vmap(net))(x, cond), net(x[0], first)))
    y, each, one = map(np.asarray, look(net, x, cond, first))
    assert y.shape == (2, 3, *out_shape)
    np.testing.assert_allclose(y, each, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y[0], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "cond_shape"), [case for case in CASES if case[1] is not None])
def test_every_output_listens_to_the_condition(name, cond_shape):
    make, in_shape, out_shape = NETS[name]
    net = built(make, in_shape, out_shape, cond_shape)
    x = draw(0, *in_shape)
    assert np.all(run(net, x, draw(1, *cond_shape)) != run(net, x, draw(2, *cond_shape)))


@pytest.mark.parametrize(
    ("name", "cond_shape"),
    [case for case in CASES if case[1] is not None],
)
def test_one_condition_serves_a_whole_batch(name, cond_shape):
    make, in_shape, out_shape = NETS[name]
    net = built(make, in_shape, out_shape, cond_shape)
    x, cond = draw(0, 3, *in_shape), draw(1, *cond_shape)
    each = np.broadcast_to(cond, (3, *cond_shape))
    np.testing.assert_allclose(run(net, x, cond), run(net, x, each), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", IMAGE_NETS)
def test_a_condition_without_space_is_the_same_at_every_pixel(name):
    make, in_shape, out_shape = NETS[name]
    vector = built(make, in_shape, out_shape, (2,))
    image = built(make, in_shape, out_shape, (*in_shape[:-1], 2))
    x, cond = draw(0, 3, *in_shape), draw(1, 3, 2)
    everywhere = np.broadcast_to(cond[:, None, None, :], (*x.shape[:-1], 2))
    np.testing.assert_allclose(run(vector, x, cond), run(image, x, everywhere), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "reach"), [("ConvNet", 2), ("PatchMLP", 1)])
def test_a_pixel_looks_at_its_neighbourhood_only(name, reach):
    make, _, _ = NETS[name]
    net = built(make, (7, 7, 1), (7, 7, 1))
    influence = np.asarray(quick_jit(jax.grad(lambda x: net(x)[3, 3, 0]))(draw(0, 7, 7, 1)))[..., 0] != 0
    row, column = np.indices((7, 7))
    expected = np.maximum(abs(row - 3), abs(column - 3)) <= reach
    assert not np.any(influence & ~expected)
    if name == "PatchMLP":  # the rectifiers of ConvNet may close some paths
        np.testing.assert_array_equal(influence, expected)


@pytest.mark.parametrize("name", IMAGE_NETS)
def test_away_from_the_edge_a_shifted_image_gives_a_shifted_output(name):
    make, _, _ = NETS[name]
    net = built(make, (9, 9, 2), (9, 9, 3))
    if name != "ConvNet":
        net = eqx.tree_at(lambda net: net.position, net, jnp.zeros_like(net.position))  # which tells positions apart
    x = draw(0, 9, 9, 2)
    y, shifted = (np.asarray(run(net, image)) for image in (x, np.roll(x, (1, 2), axis=(0, 1))))
    np.testing.assert_allclose(shifted[4:6, 5:6], y[3:5, 3:4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("outputs", [4, 2])  # neighbourhoods are gathered on the side with fewer channels
@pytest.mark.parametrize("size", [1, 3, 5])
def test_conv_is_the_convolution_of_xla(size, outputs):
    conv = built(partial(nets.Conv, size=size), 3, outputs)

    @quick_jit
    def both(conv, x):
        kernel = conv.dense.weight.reshape(size, size, 3, outputs)
        expected = jax.lax.conv_general_dilated(
            x, kernel, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return conv(x), expected + conv.dense.bias

    np.testing.assert_allclose(*both(conv, draw(0, 2, 6, 5, 3)), rtol=1e-4, atol=1e-5)


def test_a_pixel_of_a_transformer_looks_at_the_whole_image():
    net = built(partial(nets.ViT, width=8, heads=2), (4, 5, 1), (4, 5, 2))
    influence = quick_jit(jax.grad(lambda x: net(x)[2, 3, 0]))(draw(0, 4, 5, 1))
    assert np.all(influence != 0)


def test_dense_starts_with_the_variance_of_he_initialisation():
    weight = nets.Dense(200, 300, key=0).weight
    np.testing.assert_allclose(np.var(weight), 2 / 200, rtol=0.02)
    np.testing.assert_allclose(np.mean(weight), 0, atol=2e-3)


def test_residual_blocks_start_as_the_identity():
    @quick_jit
    def both(x):
        net = nets.ResidualMLP((3,), (2,), width=5, depth=3, activation="relu", zero=False, key=0)
        return net(x), net.proj_out(jax.nn.relu(net.proj_in(x)))

    np.testing.assert_allclose(*both(draw(0, 4, 3)), rtol=1e-6)


@pytest.mark.parametrize(
    ("dim", "width", "depth", "cond_dim"),
    [
        (5, 16, 2, 0),
        (4, 7, 1, 3),
        (3, 12, 3, 1),
        (1, 4, 1, 2),
        (6, 4, 2, 0),
    ],
)
def test_masked_mlp_looks_at_all_elements_before_and_none_after(dim, width, depth, cond_dim):
    net = built(partial(nets.MaskedMLP, width=width, depth=depth), dim, 2, cond_dim)
    jacobian = quick_jit(jax.jacrev(lambda x, cond: net(x, cond), argnums=(0, 1)))
    by_x, by_cond = map(np.asarray, jacobian(draw(0, dim), draw(1, cond_dim)))
    assert by_x.shape == (dim, 2, dim)
    before = np.tri(dim, k=-1, dtype=bool)
    np.testing.assert_array_equal(by_x != 0, np.broadcast_to(before[:, None, :], by_x.shape))
    assert np.all(by_cond != 0)


def test_masked_mlp_starts_at_zero():
    y = quick_jit(lambda x: nets.MaskedMLP(3, 2, width=8, key=0)(x))(draw(0, 2, 4, 3))
    np.testing.assert_array_equal(y, np.zeros((2, 4, 3, 2)))


@pytest.mark.parametrize("squeeze", [1, 2])
def test_context_networks_look_at_an_image(squeeze):
    net = built(partial(nets.ConvResNet, depth=1, squeeze=squeeze, scale=0.5), (4, 6, 2), 5)
    x = draw(0, 2, 3, 4, 6, 2)
    look = quick_jit(lambda net, x: (net(x), jax.vmap(jax.vmap(net))(x), jax.grad(lambda x: net(x).sum())(x[0, 0])))
    features, each, influence = map(np.asarray, look(net, x))
    assert features.shape == ((2, 3, 2, 3, 5) if squeeze == 2 else (2, 3, 4, 6, 5))
    np.testing.assert_allclose(features, each, rtol=1e-4, atol=1e-5)
    assert np.all(influence != 0)


def test_every_activation_is_known_by_its_name():
    x = draw(0, 3)

    @quick_jit
    def run_each(x):
        make = partial(nets.MLP, (3,), (1,), width=8, zero=False, key=0)
        return jnp.stack([make(activation=name)(x) for name in nets.ACTIVATIONS])

    outputs = np.asarray(run_each(x))
    assert np.all(np.isfinite(outputs))
    assert len(np.unique(np.round(outputs, 6))) == len(nets.ACTIVATIONS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nets.MLP((2,), (2,), activation="swish", key=0),
        lambda: nets.ResidualMLP((2,), (2,), activation="", key=0),
        lambda: nets.ConvNet((4, 4, 1), (4, 4, 1), activation="swish", key=0),
        lambda: nets.ConvResNet((4, 4, 1), 3, activation="swish", key=0),
        lambda: nets.ConvNet((4,), (4,), key=0),
        lambda: nets.ConvNet((4, 4, 1), (2, 2, 1), key=0),
        lambda: nets.PatchMLP((4, 4), (4, 4), key=0),
        lambda: nets.ViT((4, 4), (4, 4), key=0),
        lambda: nets.ViT((4, 4, 1), (4, 4, 1), width=9, heads=2, key=0),
    ],
)
def test_what_cannot_be_built_says_so_in_one_line(make):
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)
