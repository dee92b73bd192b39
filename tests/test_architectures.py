"""Ready stacks: finite from the start at any depth, normalised, and invertible after training."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowknife.architectures import (
    MIXINGS,
    SCALARS,
    coupling_flow,
    dequantiser,
    glow,
    jet,
    levels_for,
    realnvp,
    wavelet,
)
from flowknife.bijections import Haar, MaskedAutoregressive, Repeat, ShiftScale, Spline
from flowknife.data import TOYS
from flowknife.errors import InputError
from flowknife.inn import INN, Block
from flowknife.laws import Pixels
from flowknife.train import fit
from tests.catalogue import AFFINE_SPLINE, perturbed, quick_jit


def density(bijection):
    return INN([Block("x", bijection.shape)], [Block("z", bijection.out_shape)], bijection)


def images(count, shape, seed=0):
    """Whole-number images of smooth waves with a little noise."""
    rng = np.random.default_rng(seed)
    row, column = np.indices(shape[:2]) / shape[0]
    phase, slope = rng.uniform(0, 6, (count, 1, 1, 1)), rng.normal(0, 3, (2, count, 1, 1, 1))
    wave = np.sin(phase + slope[0] * row[..., None] + slope[1] * column[..., None])
    values = 127.5 + 90 * wave + rng.normal(0, 8, (count, *shape))
    return np.clip(values, 0, 255).astype(np.uint8)


# -- densities --------------------------------------------------------------------------------------------------------

PLANAR = {
    "coupling_flow, affine": lambda key: coupling_flow(2, layers=3, width=16, scalar="affine", key=key),
    "coupling_flow, spline": lambda key: coupling_flow(2, layers=3, width=16, key=key),
    "coupling_flow, orthogonal": lambda key: coupling_flow(2, layers=3, width=16, mixing="orthogonal", key=key),
    "realnvp": lambda key: realnvp(2, layers=4, width=16, key=key),
    "masked autoregressive": lambda key: MaskedAutoregressive(2, AFFINE_SPLINE, width=16, key=key),
}


@pytest.mark.parametrize("name", PLANAR)
def test_a_density_of_the_plane_integrates_to_one(name):
    inn = density(perturbed(quick_jit(PLANAR[name])(jax.random.key(0)), np.random.default_rng(0)))
    draws = np.asarray(eqx.filter_jit(inn.sample)(0, 20_000))
    low, high = draws.min(axis=0), draws.max(axis=0)
    axes = np.linspace(low - 0.2 * (high - low), high + 0.2 * (high - low), 401).T
    grid = jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1), jnp.float32)
    p = np.exp(np.asarray(eqx.filter_jit(inn.log_prob)(grid), np.float64))
    assert np.trapezoid(np.trapezoid(p, axes[1]), axes[0]) == pytest.approx(1, abs=0.01)
    assert not np.allclose(np.cov(draws.T), np.eye(2), atol=0.1)  # not the Gaussian it starts from


# -- at the start -----------------------------------------------------------------------------------------------------

VECTORS = {
    "coupling_flow": lambda layers: coupling_flow(6, layers=layers, key=0),
    "coupling_flow, affine": lambda layers: coupling_flow(6, layers=layers, scalar="affine", mixing="permute", key=0),
    "realnvp": lambda layers: realnvp(6, layers=layers, key=0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VECTORS)
def test_a_hundred_layers_start_finite_and_train(name):
    inn = density(VECTORS[name](100))
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(1500, 6)) @ rng.normal(size=(6, 6)) + np.sin(rng.normal(size=(1500, 1)))).astype(np.float32)
    start = -np.mean(quick_jit(inn.log_prob)(x))
    assert np.isfinite(start)
    result = fit(inn, x, steps=50, batch_size=64, key=0, show_progress=False)
    assert (result.stopped, result.steps) == ("budget", 50)
    assert result.loss < start - 0.1
    assert np.all(np.isfinite(quick_jit(result.model.sample)(0, 100)))


@pytest.mark.parametrize("name", VECTORS)
def test_the_program_does_not_grow_with_the_number_of_layers(name):
    def length(layers):
        flow = eqx.filter_eval_shape(VECTORS[name], layers)
        x = jax.ShapeDtypeStruct((4, 6), jnp.float32)
        return len(str(eqx.filter_make_jaxpr(lambda flow, x: flow.encode(x))(flow, x)[0]))

    assert length(100) < 1.1 * length(4)


def test_couplings_start_without_effect():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 5)), jnp.float32)
    for scalar in SCALARS:
        flow = quick_jit(lambda scalar: coupling_flow(5, layers=3, width=8, scalar=scalar, key=0))(scalar)
        y, log_det = quick_jit(flow.encode)(x)
        np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-4)
        np.testing.assert_allclose(log_det, 0, atol=1e-4)
    flow = quick_jit(lambda: realnvp(5, layers=4, width=8, key=0))()
    np.testing.assert_allclose(quick_jit(flow.encode)(x)[0], x, atol=1e-5)


def test_every_element_is_moved_and_sees_every_other():
    for make in (coupling_flow, realnvp):
        flow = quick_jit(lambda make: make(5, layers=6, width=8, key=0))(make)
        flow = perturbed(flow, np.random.default_rng(0))
        jacobian = quick_jit(jax.jacfwd(lambda x, flow=flow: flow.encode(x)[0]))(jnp.ones(5))
        assert np.all(jacobian != 0)


def test_layers_differ_and_depend_on_the_key():
    for make in (lambda key: coupling_flow(4, layers=2, width=8, key=key), lambda key: realnvp(4, layers=4, key=key)):
        first, same, other = (jax.tree.leaves(make(key)) for key in (0, jax.random.key(0), 1))
        assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
        changed = [a for a, b in zip(first, other, strict=True) if not np.array_equal(a, b)]
        assert changed
        assert all(not np.allclose(a[0], a[1]) for a in changed)


def test_a_conditional_flow_listens_to_its_condition():
    x, c = np.random.default_rng(0).normal(size=(2, 10, 3)).astype(np.float32)
    for make in (coupling_flow, realnvp):
        made = quick_jit(lambda make: make(3, cond_dim=3, layers=2, width=8, key=0))(make)
        flow = perturbed(made, np.random.default_rng(0))
        encode = quick_jit(flow.encode)
        y, other = (encode(jnp.asarray(x), jnp.asarray(cond))[0] for cond in (c, c + 1))
        assert np.all(y != other)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("scalar", [*SCALARS, ShiftScale(bound=1.0), Spline(bins=2)], ids=str)
def test_every_choice_can_be_built(mixing, scalar):
    flow = eqx.filter_eval_shape(lambda: coupling_flow(3, layers=2, scalar=scalar, mixing=mixing, key=0))
    assert flow.shape == flow.out_shape == (3,)


def test_realnvp_has_as_many_layers_as_it_is_told():
    def parameters(layers):
        flow = eqx.filter_eval_shape(lambda: realnvp(4, layers=layers, width=8, key=0))
        return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(flow))

    assert parameters(5) > parameters(4)


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "levels"), [((8, 8, 1), 1), ((16, 16, 3), 2), ((32, 64, 3), 3), ((4, 4, 1), 1), ((12, 20, 1), 1)]
)
def test_levels_for_an_image_size(shape, levels):
    assert levels_for(shape) == levels
    assert eqx.filter_eval_shape(lambda: glow(shape, width=4, steps=1, key=0)).out_shape == (np.prod(shape),)


@pytest.mark.parametrize("shape", [(2, 2, 1), (4, 6, 3), (8, 8, 1), (28, 28, 1), (16, 8, 3)])
def test_realnvp_takes_every_even_image(shape):
    flow = eqx.filter_eval_shape(lambda: realnvp(shape, width=4, key=0))
    assert (flow.shape, flow.out_shape) == (shape, (np.prod(shape),))


@pytest.mark.parametrize(("shape", "patch"), [((8, 8, 1), 1), ((8, 4, 3), 2), ((28, 28, 1), 4), ((64, 64, 3), 8)])
def test_jet_takes_every_image_of_whole_patches(shape, patch):
    flow = eqx.filter_eval_shape(lambda: jet(shape, patch=patch, couplings=2, width=8, key=0))
    assert (flow.shape, flow.out_shape) == (shape, (np.prod(shape),))


@pytest.mark.parametrize(
    "make",
    [
        lambda memory: coupling_flow(4, layers=6, memory=memory, key=0),
        lambda memory: realnvp(4, layers=6, memory=memory, key=0),
        lambda memory: glow((8, 8, 1), steps=6, width=8, memory=memory, key=0),
        lambda memory: jet((8, 8, 1), couplings=6, width=8, memory=memory, key=0),
    ],
)
def test_every_scanned_stack_can_rebuild_its_activations(make):
    def stacks(memory):
        flow = eqx.filter_eval_shape(make, memory)
        found = jax.tree.leaves(flow, is_leaf=lambda part: isinstance(part, Repeat))
        return [part.memory for part in found if isinstance(part, Repeat)]

    assert stacks("reversible")
    assert set(stacks("reversible")) == {"reversible"}
    assert set(stacks("standard")) == {"standard"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda **kw: glow((8, 8, 1), levels=1, steps=2, width=8, **kw),
        lambda **kw: realnvp((8, 8, 1), width=8, **kw),
        lambda **kw: jet((8, 8, 1), couplings=2, width=8, depth=1, memory="reversible", **kw),
    ],
)
def test_an_image_flow_learns_what_its_class_says(make):
    shape, rng = (8, 8, 1), np.random.default_rng(0)
    label = rng.integers(0, 2, 300)
    x = np.clip(rng.normal(60 + 130 * label[:, None, None, None], 8, (300, *shape)), 0, 255).astype(np.uint8)
    flow = make(cond_dim=2, key=0)
    inn = INN([Block("image", shape, Pixels())], [Block("z", 64)], flow, cond=[Block("label", 2)])
    data = {"image": x, "label": np.eye(2, dtype=np.float32)[label]}
    result = fit(inn, data, steps=100, batch_size=32, learning_rate=1e-2, warmup=5, key=0, show_progress=False)

    @quick_jit
    def nll(inn, label):
        return -jnp.mean(inn.log_prob(x, key=1, label=label)) / 64 / np.log(2)

    right, wrong = (nll(result.model, data["label"][:, order]) for order in ([0, 1], [1, 0]))
    assert right < nll(inn.initialise(x[:100], key=0, label=data["label"][:100]), data["label"]) - 0.1
    assert right < wrong - 0.01  # a coupling of a half given the other hardly needs to be told


@pytest.mark.parametrize(
    ("shape", "levels"), [((8, 8, 1), None), ((16, 16, 3), 2), ((32, 64, 3), None), ((8, 4, 1), 2)]
)
def test_wavelet_takes_every_image_that_halves(shape, levels):
    flow = eqx.filter_eval_shape(lambda: wavelet(shape, levels=levels, width=4, features=4, key=0))
    assert (flow.shape, flow.out_shape) == (shape, (np.prod(shape),))


def test_the_coarsest_latent_of_a_wavelet_comes_first_and_knows_no_details():
    shape = (8, 8, 1)
    made = quick_jit(lambda: wavelet(shape, levels=1, width=6, features=6, depth=1, key=0))()
    flow = perturbed(made, np.random.default_rng(0))
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    @quick_jit
    def look(flow, x):
        haar = Haar(shape)
        y, _ = haar.encode(x)
        others = haar.decode(y.at[..., 1:].add(0.5))[0], haar.decode(y.at[..., :1].add(0.5))[0]
        return flow.encode(jnp.stack([x, *others]))[0]

    z, other_details, other_coarse = np.asarray(look(flow, x))
    np.testing.assert_allclose(other_details[:16], z[:16], atol=1e-4)
    assert np.all(np.abs(other_details[16:] - z[16:]) > 1e-4)
    assert np.all(np.abs(other_coarse[:16] - z[:16]) > 1e-4)


@pytest.mark.slow
def test_the_closed_form_start_of_a_wavelet_is_far_better_than_none():
    shape = (8, 8, 1)
    flow = quick_jit(lambda: wavelet(shape, levels=1, width=6, features=6, depth=1, key=0))()
    inn = INN([Block("image", shape, Pixels())], [Block("z", 64)], flow)
    x = images(500, shape)
    held_out = images(200, shape, seed=1)

    @quick_jit
    def bits_and_latents(inn, x, held_out):
        fitted = inn.initialise(x, key=0)
        nll = jnp.stack([-jnp.mean(model.log_prob(held_out, key=0)) for model in (inn, fitted)])
        return nll / 64 / np.log(2), fitted.encode(x, key=0)["z"]

    (before, after), z = bits_and_latents(inn, x, held_out)
    assert after < 7 < before
    np.testing.assert_allclose(np.mean(np.square(z)), 1, atol=0.15)


# -- after training ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trained_flow_is_still_invertible_in_single_precision():
    toy = TOYS["moons"]
    inn = density(coupling_flow(2, key=0))
    result = fit(inn, toy.sample(3000, key=0), steps=300, key=0, show_progress=False)
    held_out = jnp.asarray(toy.sample(2000, key=1))

    @quick_jit
    def judge(inn, x):
        z, log_det = inn.bijection.encode(x)
        return -jnp.mean(inn.log_prob(x)), log_det, inn.bijection.decode(z), inn.sample(0, 2000)

    nll, log_det, (back, log_det_back), draws = judge(result.model, held_out)
    assert toy.entropy - 0.1 < nll < toy.entropy + 0.35
    np.testing.assert_allclose(back, held_out, atol=1e-4)
    np.testing.assert_allclose(log_det_back, log_det, atol=1e-2)
    assert np.mean(toy.log_prob(np.asarray(draws)) > -10) > 0.8


@pytest.mark.slow
def test_a_trained_glow_is_still_invertible_in_single_precision():
    shape = (8, 8, 1)
    inn = INN([Block("image", shape, Pixels())], [Block("z", 64)], glow(shape, levels=2, steps=2, width=8, key=0))
    x = images(300, shape)
    result = fit(
        inn, x, steps=40, batch_size=32, learning_rate=5e-3, warmup=10, evaluate_every=20, key=0, show_progress=False
    )
    assert result.history["train"][-1] < result.history["train"][0] - 1

    @quick_jit
    def round_trip(inn, x):
        values = jnp.asarray(x, jnp.float32) + 0.5
        back, _ = inn.bijection.decode(inn.bijection.encode(values)[0])
        return (back - values) / 255, inn.decode(inn.encode(x, key=0))["image"]

    error, restored = round_trip(result.model, x)
    np.testing.assert_allclose(error, 0, atol=1e-4)
    np.testing.assert_array_equal(restored, x)


# -- what a user can get wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: coupling_flow(3, scalar="cubic"),
        lambda: coupling_flow(3, mixing="qr"),
        lambda: coupling_flow(3, layers=0),
        lambda: coupling_flow(3, key="seed"),
        lambda: realnvp((7, 8, 1)),
        lambda: glow((7, 7, 1)),
        lambda: glow((12, 12, 1), levels=3),
        lambda: glow((8, 8, 1), scalar="cubic"),
        lambda: wavelet((7, 7, 1)),
        lambda: wavelet((8, 8)),
        lambda: wavelet((12, 12, 1), levels=3),
        lambda: eqx.filter_eval_shape(lambda: wavelet((8, 8, 1), levels=0)),
        lambda: glow((8, 8)),
        lambda: realnvp((8, 8)),
        lambda: realnvp(4, layers=0),
        lambda: glow((8, 8, 1), memory="none"),
        lambda: jet((8, 8)),
        lambda: jet((9, 9, 1), patch=3),
        lambda: jet((10, 8, 1)),
        lambda: jet((8, 8, 1), width=10, heads=4),
        lambda: dequantiser((8,)),
    ],
)
def test_what_cannot_be_built_says_so_in_one_line(make):
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)
