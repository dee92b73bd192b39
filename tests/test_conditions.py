"""Conditions: a bijection says which one it takes, and no condition that is given is ignored."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowknife as fk
from flowknife import nets
from flowknife.architectures import coupling_flow, dequantiser, glow, jet, lattice, realnvp, wavelet
from flowknife.bijections import (
    Affine,
    Chain,
    Channels,
    CoarseToFine,
    Concatenate,
    Conditioned,
    Coupling,
    Elementwise,
    Exp,
    Inverse,
    Orthogonal,
    Repeat,
    Reshape,
    Shift,
    Split,
)
from flowknife.errors import InputError
from flowknife.laws import Normal
from tests.catalogue import CONV, MLP, perturbed, quick_jit

IMAGE = (8, 8, 1)
TINY = {"width": 6, "features": 6, "depth": 1}
UNCONDITIONAL = {
    "Affine": lambda key: Affine(np.zeros(4), np.ones(4)),
    "Orthogonal": lambda key: Orthogonal(4, key=key),
    "Elementwise": lambda key: Elementwise(Exp(), 4),
    "Inverse": lambda key: Inverse(Orthogonal(4, key=key)),
    "coupling_flow": lambda key: coupling_flow(4, layers=1, width=4, key=key),
    "realnvp": lambda key: realnvp(4, layers=2, width=4, key=key),
    "realnvp of images": lambda key: realnvp(IMAGE, width=4, key=key),
    "glow": lambda key: glow(IMAGE, levels=1, steps=1, width=4, key=key),
    "jet": lambda key: jet(IMAGE, couplings=1, width=4, depth=1, heads=1, key=key),
    "wavelet": lambda key: wavelet(IMAGE, **TINY, key=key),
    "lattice": lambda key: lattice(IMAGE, 4, **TINY, key=key),
}


def shapes_of(make):
    """The bijection without computing any of its numbers."""
    return eqx.filter_eval_shape(make, jax.random.key(0))


def model(bijection, *cond):
    size = int(np.prod(bijection.shape))
    return fk.INN(
        [fk.Block("x", bijection.shape)],
        [fk.Block("z", size)],
        bijection,
        cond=[fk.Block(f"c{i}", shape) for i, shape in enumerate(cond)],
    )


def said(call, *args):
    """The one line of the error."""
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_a_condition_that_no_layer_takes_is_refused(name):
    bijection = shapes_of(UNCONDITIONAL[name])
    message = said(model, bijection, 3)
    assert "(3,)" in message and "none" in message
    assert model(bijection).partition.cond_shape is None


@pytest.mark.parametrize(
    "make",
    [
        lambda key: coupling_flow(4, cond_dim=5, layers=1, width=4, key=key),
        lambda key: realnvp(4, cond_dim=5, layers=2, width=4, key=key),
        lambda key: realnvp(IMAGE, cond_dim=5, width=4, key=key),
        lambda key: glow(IMAGE, cond_dim=5, levels=2, steps=1, width=4, key=key),
        lambda key: jet(IMAGE, cond_dim=5, couplings=1, width=4, depth=1, heads=1, key=key),
        lambda key: wavelet(IMAGE, cond_dim=5, **TINY, key=key),
        lambda key: wavelet((64, 64, 1), cond_dim=5, **TINY, key=key),
        lambda key: lattice(IMAGE, 4, cond_dim=5, **TINY, key=key),
    ],
)
def test_a_condition_of_another_size_is_refused_with_both_sizes(make):
    bijection = shapes_of(make)
    message = said(model, bijection, 3)
    assert "(3,)" in message and "(5,)" in message
    assert "(5,)" in said(model, bijection)
    assert "(4,)" in said(model, bijection, 1, 3)
    assert model(bijection, 2, 3).partition.cond_shape == (5,)


def test_parts_with_conditions_of_different_sizes_are_refused():
    def couple(size, dim=2):
        return shapes_of(lambda key: coupling_flow(dim, cond_dim=size, layers=1, width=4, key=key))

    for whole in (Chain, Concatenate):
        message = said(whole, [couple(2), Affine(np.zeros(2), np.ones(2)), couple(3)])
        assert "(2,)" in message and "(3,)" in message
        assert whole([couple(2), Affine(np.zeros(2), np.ones(2))]).cond_shape == (2,)
    kept = Channels(4, 2)
    message = said(Split, kept, couple(2), couple(3))
    assert "(2,)" in message and "(3,)" in message
    assert "(7,)" in said(Split, kept, couple(3), couple(7), nets.Joined((2,), (3,)))
    assert Split(kept, couple(3), couple(5), nets.Joined((2,), (3,))).cond_shape == (3,)
    assert Split(kept, couple(0), couple(5), nets.Joined((2,), (3,))).cond_shape == (3,)


def test_features_of_another_size_than_the_layers_take_are_refused():
    flow = shapes_of(lambda key: coupling_flow(2, cond_dim=3, layers=1, width=4, key=key))
    message = said(Conditioned, flow, nets.MLP((5,), (4,), width=4, key=0))
    assert "(4,)" in message and "(3,)" in message
    assert Conditioned(flow, nets.MLP((5,), (3,), width=4, key=0)).cond_shape == (5,)
    assert "in_shape" in said(Conditioned, flow, jnp.sin)
    assert Conditioned(flow, jnp.sin, cond_shape=3).cond_shape == (3,)
    assert "(4,)" in said(Conditioned, flow, jnp.sin, 4)


def test_a_network_that_does_not_know_its_condition_is_refused():
    class Silent(eqx.Module):
        def __call__(self, x, cond=None):
            return x

    def make(in_shape, out_shape, cond_shape, *, key):
        return Silent()

    assert Coupling(Channels(2), Shift(), make).cond_shape is None
    assert "cond_shape" in said(lambda: Coupling(Channels(2), Shift(), make, cond_shape=(3,)))


def test_images_and_conditions_on_different_grids_are_refused():
    message = said(lambda: Coupling(Channels(IMAGE, 0), Shift(), CONV, cond_shape=(4, 4, 2), key=0))
    assert "(4, 4, 2)" in message and "(8, 8, 0)" in message
    conditional = Coupling(Channels((4,), 0), Shift(), MLP, cond_shape=(2,), key=0)
    transform = Chain([Reshape((2, 2, 1), (4,)), conditional])
    assert "(2,)" in said(CoarseToFine, transform, [Affine(np.zeros(4), np.ones(4))], [])
    assert CoarseToFine(Reshape((2, 2, 1), (4,)), [conditional], []).cond_shape == (2,)


def test_a_condition_has_no_law():
    bijection = shapes_of(lambda key: coupling_flow(2, cond_dim=3, layers=1, width=4, key=key))
    with pytest.raises(InputError, match="law of the condition 'y'"):
        fk.INN([fk.Block("x", 2)], [fk.Block("z", 2)], bijection, cond=[fk.Block("y", 3, Normal())])
    with pytest.raises(InputError, match="cond_dim=-1"):
        coupling_flow(2, cond_dim=-1, key=0)


def test_values_for_other_rows_are_refused():
    flow = quick_jit(lambda: coupling_flow(2, cond_dim=3, layers=1, width=4, depth=1, scalar="affine", key=0))()
    inn = model(flow, 2, 1)
    x = np.zeros((5, 2))
    one = inn.log_prob(x, c0=np.ones(2), c1=np.ones((5, 1)))
    np.testing.assert_allclose(one, inn.log_prob(x, c0=np.ones((5, 2)), c1=np.ones(1)), rtol=1e-6)
    message = said(lambda: inn.log_prob(x, c0=np.ones((3, 2)), c1=np.ones(1)))
    assert "(3, 2)" in message and "(5,)" in message
    assert "(4,)" in said(lambda: inn.log_prob(x, c0=np.ones((5, 4)), c1=np.ones(1))).replace("(5, 4)", "(4,)")
    assert "(3, 2)" in said(lambda: inn.decode(x, c0=np.ones((3, 2)), c1=np.ones(1)))


def test_the_learned_prior_of_glow_sees_the_condition():
    made = quick_jit(lambda: glow((8, 8, 1), levels=2, steps=1, width=4, cond_dim=2, key=0))()
    bijection = perturbed(made, np.random.default_rng(0))
    split = bijection.bijections[-1]
    assert isinstance(split, Split)
    kept = jnp.asarray(np.random.default_rng(1).normal(size=(3, *split.split.kept_shape)), jnp.float32)
    moved = jnp.ones((3, *split.split.moved_shape))
    encode = quick_jit(lambda split, cond: split.factored.encode(moved, split.condition(kept, cond))[0])
    drawn = [encode(split, jnp.full((3, 2), c)) for c in (0.0, 1.0)]
    assert np.all(np.max(np.abs(drawn[0] - drawn[1]), axis=(1, 2, 3)) > 1e-3)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda key: wavelet((8, 8, 1), cond_dim=2, levels=2, **TINY, key=key), marks=pytest.mark.slow),
        lambda key: lattice((8, 8, 1), 4, cond_dim=2, levels=2, **TINY, key=key),
        lambda key: glow((8, 8, 1), levels=2, steps=1, width=4, cond_dim=2, key=key),
    ],
)
def test_every_level_sees_the_condition(make):
    flow = perturbed(quick_jit(make)(jax.random.key(0, impl="unsafe_rbg")), np.random.default_rng(0))
    x = jnp.asarray(np.random.default_rng(1).uniform(0.1, 0.9, (3, 8, 8, 1)), jnp.float32)
    encode = quick_jit(lambda flow, x, cond: [z for z, _ in flow.encode_blocks(x, cond)])
    ends = [encode(flow, x, jnp.broadcast_to(jnp.asarray(cond), (3, 2))) for cond in ([1.0, 0.0], [0.0, 1.0])]
    assert len(ends[0]) > 1
    for one, other in zip(*ends, strict=True):
        assert np.all(np.max(np.abs(one - other).reshape(3, -1), axis=1) > 1e-3)


@pytest.mark.slow
def test_the_closed_form_start_has_the_mean_of_each_class():
    flow = wavelet((4, 4, 1), levels=1, cond_dim=2, **TINY, key=0)
    classes = np.arange(200) % 2
    x = np.random.default_rng(0).normal(size=(200, 4, 4, 1)) + 5 * classes[:, None, None, None]
    cond = jnp.eye(2)[classes]
    coarse = flow.initialise(jnp.asarray(x, jnp.float32), cond)[0].encode_blocks(jnp.asarray(x, jnp.float32), cond)[0][
        0
    ]
    means = np.stack([coarse[classes == k].mean(axis=0) for k in (0, 1)])
    np.testing.assert_allclose(means, 0.0, atol=0.05)
    np.testing.assert_allclose(coarse.std(axis=0), 1.0, atol=0.2)


def test_an_unconditional_glow_keeps_its_structure():
    split = shapes_of(lambda key: glow((8, 8, 1), levels=2, steps=1, width=4, key=key)).bijections[-1]
    assert split.context is None
    assert split.factored.cond_shape == split.split.kept_shape


def test_a_dequantiser_takes_the_image_as_its_condition():
    for shape in ((4, 4, 1), (3, 3, 2)):
        noise = shapes_of(lambda key, shape=shape: dequantiser(shape, width=4, depth=1, layers=1, key=key))
        assert noise.cond_shape == shape


def test_repeated_layers_state_the_condition_of_one():
    layers = shapes_of(lambda key: Repeat(lambda k: coupling_flow(2, cond_dim=3, layers=1, width=4, key=k), 3, key=key))
    assert layers.cond_shape == (3,)
