"""The laws of every bijection, on every row of the catalogue, in double precision and away from its initial values."""

import dataclasses
import itertools
import math
from functools import partial
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowknife import bijections
from flowknife._types import split_trainable
from flowknife.bijections import (
    LU,
    ActNorm,
    Affine,
    Bijection,
    Chain,
    Channels,
    Checkerboard,
    Coupling,
    Elementwise,
    Group,
    InvertibleConv1x1,
    MaskedAutoregressive,
    Permute,
    PrincipalRotation,
    Repeat,
    Reshape,
    Scalar,
    Shift,
    Spline,
    Split,
    Squeeze,
)
from flowknife.errors import InputError
from tests.catalogue import DRAW, ROWS, perturbed

# These programs run for milliseconds: compile them fast, not well.
quick_jit = partial(eqx.filter_jit, compiler_options={"xla_backend_optimization_level": 0})
NAMES = [row.name for row in ROWS]
SPLINES = [Spline(), Spline(bins=1), Spline(bins=32, tail=5.0), Spline(bins=4, tail=1.0, min_bin=0.05, min_slope=0.1)]


# -- the catalogue ----------------------------------------------------------------------------------------------------


def _classes_in(value):
    """The class of every module in a module."""
    if isinstance(value, eqx.Module):
        yield type(value)
        for item in dataclasses.fields(value):
            yield from _classes_in(getattr(value, item.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _classes_in(item)


def test_the_catalogue_has_a_row_for_every_exported_class():
    made = [eqx.filter_eval_shape(row.make, jax.random.key(0)) for row in ROWS]
    roots = {type(bijection) for bijection in made}
    parts = {part for bijection in made for part in _classes_in(bijection)}
    exported = {getattr(bijections, name) for name in bijections.__all__}
    concrete = {cls for cls in exported if issubclass(cls, Bijection) and cls not in (Bijection, Scalar)}
    assert {cls.__name__ for cls in concrete - roots} == set()
    assert {cls.__name__ for cls in exported - parts - {Bijection, Scalar}} == set()
    assert len(set(NAMES)) == len(NAMES)


# -- laws of every row ------------------------------------------------------------------------------------------------


def _encode(bijection, x, cond, rows):
    """Encoded points, the first `rows` of the Jacobian of (log_det, y), and a gradient to everything that has one."""
    trained, rest = split_trainable(bijection)
    (y, log_det), pull = jax.vjp(lambda *args: eqx.combine(args[0], rest).encode(*args[1:]), trained, x, cond)
    size = math.prod(bijection.out_shape)

    def row(i, carry):
        jacobian, total = carry
        # points know nothing of each other, so one pull gives this row for all of them
        weight = (jnp.arange(-1, size) == i - 1).astype(x.dtype)
        gradient = pull(
            (jnp.broadcast_to(weight[1:].reshape(bijection.out_shape), y.shape), 0 * log_det + 0.5 * weight[0])
        )
        return jacobian.at[i].set(gradient[1]), jax.tree.map(jnp.add, total, gradient)

    zeros = jax.tree.map(jnp.zeros_like, (trained, x, cond))
    jacobian, gradient = jax.lax.fori_loop(0, rows, row, (jnp.zeros((1 + size, *x.shape)), zeros))
    return (y, log_det), gradient, jnp.moveaxis(jacobian[1:], 0, 2)


def _decode(bijection, y, cond):
    """Decoded points, and a gradient to everything that has one."""
    trained, rest = split_trainable(bijection)
    decoded, pull = jax.vjp(lambda *args: eqx.combine(args[0], rest).decode(*args[1:]), trained, y, cond)
    return decoded, pull((jnp.ones_like(decoded[0]), jnp.full_like(decoded[1], 0.5)))


def _round_trip_one_by_one(bijection, x, cond):
    def one(x, cond):
        y, log_det = bijection.encode(x, cond)
        return (y, log_det), bijection.decode(y, cond)

    return jax.vmap(jax.vmap(one))(x, cond)


@pytest.fixture(scope="module", params=ROWS, ids=NAMES)
def facts(request):
    """What compiled programs say about one row: two draws of its parameters and of a batch of points, as numpy arrays."""
    row, traces = request.param, []

    @quick_jit
    def encode(*args):
        traces.append("encode")
        return _encode(*args)

    @quick_jit
    def decode(*args):
        traces.append("decode")
        return _decode(*args)

    def tell(bijection, x, y, cond):
        encoded, gradient, jacobian = encode(bijection, x, cond, jnp.asarray(1 + math.prod(bijection.out_shape)))
        decoded, gradient_back = decode(bijection, y, cond)
        told = {
            "x": x,
            "y": y,
            "encoded": encoded,
            "decoded": decoded,
            "decoded again": decode(bijection, encoded[0], cond)[0],
            "encoded again": encode(bijection, decoded[0], cond, jnp.asarray(0))[0],
            "jacobian": jacobian,
            "gradients": {"encode": gradient, "decode": gradient_back},
        }
        if type(bijection).initialise is not Bijection.initialise:
            fitted, start = quick_jit(type(bijection).initialise)(bijection, x, cond)
            told["initialised"] = start, encode(fitted, x, cond, jnp.asarray(0))[0][0]
        return jax.tree.map(np.asarray, told)

    with jax.enable_x64(True):
        drawn = [row.draw(seed) for seed in (0, 1)]
        runs = [tell(*one) for one in drawn]
    bijection, x, _, cond = jax.tree.map(_single, drawn[0])
    single = quick_jit(_round_trip_one_by_one)(bijection, x, cond)
    yield SimpleNamespace(row=row, bijection=bijection, runs=runs, single=single, traces=traces)
    if next(_finished) % 16 == 0:  # a process on Linux has room for some 65,000 pieces of compiled code
        jax.clear_caches()


_finished = itertools.count(1)


def _single(value):
    """The same array as it is made in single precision."""
    if not eqx.is_array(value):
        return value
    return jnp.asarray(np.asarray(value), {np.float64: jnp.float32, np.int64: jnp.int32}.get(value.dtype.type))


def _close(a, b, tolerance=1e-8):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_log_det_is_that_of_the_jacobian(facts):
    size = math.prod(facts.bijection.shape)
    for run in facts.runs:
        _close(run["encoded"][1], np.linalg.slogdet(run["jacobian"].reshape(*facts.row.batch, size, size))[1])


def test_decode_undoes_encode_and_tells_the_same_log_det(facts):
    for run in facts.runs:
        _close(run["decoded again"][0], run["x"])
        _close(run["decoded again"][1], run["encoded"][1])


def test_encode_undoes_decode_and_tells_the_same_log_det(facts):
    for run in facts.runs:
        _close(run["encoded again"][0], run["y"])
        _close(run["encoded again"][1], run["decoded"][1])


def test_single_precision_and_points_one_by_one_are_nearly_the_same(facts):
    run, (encoded, decoded) = facts.runs[0], facts.single
    # every element of an event adds its rounding error to log_det
    loose = 1e-4 * max(1, math.prod(facts.bijection.shape) ** 0.5)
    assert {value.dtype for value in (*encoded, *decoded)} == {np.dtype(np.float32)}
    _close(decoded[0], run["x"], 1e-4)
    _close(decoded[1], encoded[1], loose)
    _close(encoded[0], run["encoded"][0], loose)
    _close(encoded[1], run["encoded"][1], loose)


def test_shapes_and_precision_are_those_of_the_input(facts):
    for run in facts.runs:
        assert run["encoded"][0].shape == (*facts.row.batch, *facts.bijection.out_shape)
        assert run["decoded"][0].shape == (*facts.row.batch, *facts.bijection.shape)
        assert run["encoded"][1].shape == run["decoded"][1].shape == facts.row.batch
        assert {value.dtype for value in (*run["encoded"], *run["decoded"])} == {np.dtype(np.float64)}


def test_other_parameters_need_no_other_compilation(facts):
    assert facts.traces == ["encode", "decode"]


def test_every_parameter_and_every_input_has_a_finite_gradient(facts):
    for path, *gradients in _leaves_of_both(facts.runs):
        assert np.all(np.isfinite(gradients)), path
        if not path.endswith(facts.row.idle) and gradients[0].size:
            assert np.any(np.not_equal(gradients, 0)), f"{path} has no effect"


def _leaves_of_both(runs):
    first, second = (jax.tree_util.tree_leaves_with_path(run["gradients"]) for run in runs)
    for (path, a), (_, b) in zip(first, second, strict=True):
        yield jax.tree_util.keystr(path), a, b


def test_initialise_returns_what_the_fitted_bijection_encodes(facts):
    for run in facts.runs:
        if "initialised" in run:
            _close(*run["initialised"], 1e-10)
