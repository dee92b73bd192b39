"""The laws of every bijection, on every row of the catalogue, in double precision and away from its initial values."""

import itertools
import math
from functools import partial
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from flowknife import bijections, nets
from flowknife._types import split_trainable
from flowknife.bijections import (
    LU,
    ActNorm,
    Affine,
    Bijection,
    Chain,
    Channels,
    Checkerboard,
    Composed,
    Coupling,
    Exp,
    Haar,
    Householder,
    Inverse,
    InvertibleConv1x1,
    LeadingRotation,
    Logit,
    MaskedAutoregressive,
    Matrix,
    Orthogonal,
    Permute,
    PixelsToNormal,
    PrincipalRotation,
    Regression,
    Repeat,
    Reshape,
    Scalar,
    Shift,
    ShiftScale,
    Sigmoid,
    Softplus,
    Spline,
    Split,
    Squeeze,
    Tanh,
)
from flowknife.errors import InputError
from flowknife.laws import ClassMixture
from tests.catalogue import CONV, MLP, ROWS, classes_in, perturbed, quick_jit

NAMES = [row.name for row in ROWS]
SPLINES = [Spline(), Spline(bins=2), Spline(bins=32, tail=5.0), Spline(bins=4, tail=1.0, min_bin=0.05, min_slope=0.1)]


# -- the catalogue ----------------------------------------------------------------------------------------------------


def test_the_catalogue_has_a_row_for_every_exported_class():
    made = [eqx.filter_eval_shape(row.make, jax.random.key(0)) for row in ROWS]
    roots = {type(bijection) for bijection in made}
    parts = {part for bijection in made for part in classes_in(bijection)}
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


def _has_blocks(bijection):
    default = Bijection.encode_blocks, Bijection.encode_local
    return (type(bijection).encode_blocks, type(bijection).encode_local) != default


@quick_jit
def _blocks(bijection, x, cond):
    return [_joined(bijection, x, cond, local) for local in (False, True)]


def _joined(bijection, x, cond, local):
    """The right end and the log-determinant, joined from blocks and terms, and whether shapes are as stated."""
    found = bijection.encode_blocks(x, cond, local=local)
    batch = x.shape[: x.ndim - len(bijection.shape)]
    flat = [block.reshape(*batch, -1) for block, _ in found]
    terms = [term.reshape(*batch, -1).sum(axis=-1) for _, terms in found for term in terms]
    fits = [block.shape == (*batch, *shape) for (block, _), shape in zip(found, bijection.block_shapes, strict=True)]
    return jnp.concatenate(flat, axis=-1), sum(terms), jnp.asarray(fits)


def _round_trip_in_parts(bijection, x, cond):
    """Each point encoded by itself, each row of the batch decoded by itself."""
    encoded = jax.vmap(jax.vmap(bijection.encode))(x, cond)
    return encoded, jax.vmap(bijection.decode)(encoded[0], cond)


PARAMS = [pytest.param(row, marks=pytest.mark.slow if row.slow else ()) for row in ROWS]


@pytest.fixture(scope="module", params=PARAMS, ids=NAMES)
def facts(request):
    """What compiled programs say about two draws of a row's parameters and points, as numpy arrays."""
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
        facts = {
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
            facts["initialised"] = start, encode(fitted, x, cond, jnp.asarray(0))[0][0]
        if _has_blocks(bijection):
            facts["blocks"] = _blocks(bijection, x, cond)
        return jax.tree.map(np.asarray, facts)

    with jax.enable_x64(True):
        drawn = [row.draw(seed) for seed in (0, 1)]
        runs = [tell(*one) for one in drawn]
    bijection, x, _, cond = jax.tree.map(_single, drawn[0])
    single = quick_jit(_round_trip_in_parts)(bijection, x, cond)
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


def test_blocks_and_their_terms_add_up_to_encode(facts):
    for run in facts.runs:
        for flat, log_det, fits in run.get("blocks", []):
            _close(flat, run["encoded"][0].reshape(flat.shape))
            _close(log_det, run["encoded"][1])
            assert np.all(fits)


def test_decode_undoes_encode_and_tells_the_same_log_det(facts):
    for run in facts.runs:
        _close(run["decoded again"][0], run["x"])
        _close(run["decoded again"][1], run["encoded"][1])


def test_encode_undoes_decode_and_tells_the_same_log_det(facts):
    for run in facts.runs:
        _close(run["encoded again"][0], run["y"])
        _close(run["encoded again"][1], run["decoded"][1])


def test_single_precision_and_parts_of_a_batch_give_nearly_the_same(facts):
    run, (encoded, decoded) = facts.runs[0], facts.single
    # every element of an event adds its rounding error to log_det
    loose = 1e-4 * max(1, math.prod(facts.bijection.shape) ** 0.5)
    assert {value.dtype for value in (*encoded, *decoded)} == {np.dtype(np.float32)}
    _close(decoded[0], run["x"], 1e-4)
    _close(decoded[1], encoded[1], loose)
    _close(encoded[0], run["encoded"][0], loose)
    _close(encoded[1], run["encoded"][1], loose)


def _products(function, *args):
    """The precision of every matrix product and convolution of a function and its gradient."""
    jaxpr, found = jax.make_jaxpr(jax.value_and_grad(function))(*args), []
    todo = [jaxpr.jaxpr]
    while todo:
        for equation in todo.pop().eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                found.append(equation.params["precision"])
            todo += jaxprs_in_params(equation.params)
    return found


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name in ("LU", "coupling_flow, 2, affine", "glow, one level")]
)
def test_products_are_in_float32_on_every_device(row):
    bijection = row.make(jax.random.key(0))
    cond = None if row.cond_shape is None else jnp.ones((2, *row.cond_shape))

    def total(method, x):
        y, log_det = method(x, cond)
        return jnp.sum(y) + jnp.sum(log_det)

    calls = [(bijection.encode, bijection.shape), (bijection.decode, bijection.out_shape)]
    found = [
        precision for method, shape in calls for precision in _products(partial(total, method), jnp.ones((2, *shape)))
    ]
    assert set(found) == {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}


@pytest.mark.parametrize("net", [nets.MLP, nets.ResidualMLP, nets.ConvNet, nets.PatchMLP, nets.ConvResNet, nets.ViT])
def test_products_of_networks_are_in_float32_on_every_device(net):
    shape = (4,) if net in (nets.MLP, nets.ResidualMLP) else (4, 4, 3)
    if net is nets.ConvResNet:
        run, cond = net(shape, 4, key=0), None
    else:
        run, cond = net(shape, shape, shape, key=0), jnp.ones((2, *shape))
    found = _products(lambda x: jnp.sum(run(x, cond)), jnp.ones((2, *shape)))
    assert set(found) == {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}


def test_products_of_slopes_and_classes_are_in_float32_on_every_device():
    coupling = Coupling(Channels(4), ShiftScale(), MLP, key=0)
    law, x = ClassMixture(3, 4), jnp.ones((2, 4))
    sample = lambda x: jnp.sum(law.sample(jax.random.key(0), (2,), (4,)) * x)  # noqa: E731
    for function in (
        lambda x: jnp.sum(coupling.encode_each(x)[1]),
        lambda x: jnp.sum(law.log_prob(x, (4,))),
        lambda x: jnp.sum(law.residual(x, (4,), jnp.zeros(2, int))),
        sample,
    ):
        found = _products(function, x)
        assert set(found) == {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}


def test_the_precision_of_products_that_the_user_chooses_is_kept():
    flow = LU(3, key=0)
    with jax.default_matmul_precision("tensorfloat32"):
        found = _products(lambda x: jnp.sum(flow.encode(x)[0]), jnp.ones((2, 3)))
    assert found and {str(precision) for precision in found} == {"(Precision.HIGH, Precision.HIGH)"}


def test_the_condition_is_stated(facts):
    assert facts.bijection.cond_shape == facts.row.cond_shape


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


# -- maps of single numbers -------------------------------------------------------------------------------------------


@quick_jit
def _encode_scalar(scalar, x, raw):
    return scalar.encode(x, jnp.broadcast_to(raw, (*x.shape, scalar.num_params)))


@quick_jit
def _there_and_back(scalar, x, raw):
    y, log_slope = scalar.encode(x, raw)
    return y, log_slope, *scalar.decode(y, raw)


@quick_jit
def _pulled(scalar, method, x, raw):
    """One direction of the map, and the gradient of the sum of what it returns."""
    (y, log_slope), pull = jax.vjp(getattr(scalar, method), x, raw)
    return y, log_slope, *pull((jnp.ones_like(y), jnp.ones_like(log_slope)))


@pytest.mark.parametrize("scalar", [Shift(), ShiftScale(), *SPLINES, Composed([ShiftScale(), Spline(), Shift()])])
def test_raw_parameters_of_zero_are_the_identity(scalar):
    x = np.concatenate([np.linspace(-8.0, 8.0, 1001), [-1e6, 1e6]]).astype(np.float32)
    raw = np.zeros((*x.shape, scalar.num_params), np.float32)
    y, log_slope, back, log_slope_back = _there_and_back(scalar, x, raw)
    for found in (y, back):
        np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-6)
    for found in (log_slope, log_slope_back):
        np.testing.assert_allclose(found, 0, atol=1e-5)


@pytest.mark.parametrize("spline", SPLINES)
@pytest.mark.parametrize("size", [1.0, 10.0])
def test_a_spline_rises_and_joins_the_identity_smoothly(spline, size, float64):
    tail = spline.tail
    raw = np.random.default_rng(0).normal(0, size, (8, 1, spline.num_params))
    ends = tail * np.array([-1 + 1e-12, 1 - 1e-12])
    x = np.broadcast_to(np.concatenate([np.linspace(-1.2 * tail, 1.2 * tail, 2001), ends]), (8, 2003))
    y, log_slope = map(np.asarray, _encode_scalar(spline, x, raw))
    assert np.all(np.diff(y[:, :-2], axis=1) > 0)
    outside = np.abs(x) >= tail
    np.testing.assert_array_equal(y[outside], x[outside])
    assert np.all(log_slope[outside] == 0)
    np.testing.assert_allclose(y[:, -2:], x[:, -2:], atol=1e-6)
    np.testing.assert_allclose(log_slope[:, -2:], 0, atol=1e-4)


@pytest.mark.parametrize("spline", SPLINES)
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1000.0])
def test_a_spline_is_finite_at_every_number(spline, size):
    tail = np.float32(spline.tail)
    special = [0, 1e-38, 1e-8, 1e6, 3e38, np.nextafter(tail, np.float32(0)), tail, np.nextafter(tail, np.float32(9))]
    x = np.asarray([*special, *np.negative(special)], np.float32)
    draws = np.random.default_rng(0).normal(0, size, (20, 1, spline.num_params))
    raw = np.broadcast_to(draws.astype(np.float32), (20, len(x), spline.num_params))
    for method in ("encode", "decode"):
        y, log_slope, by_x, by_raw = map(np.asarray, _pulled(spline, method, np.broadcast_to(x, (20, len(x))), raw))
        assert all(np.all(np.isfinite(value)) for value in (y, log_slope, by_x, by_raw))
        inside = np.abs(x) <= tail
        assert np.all(np.abs(y[:, inside]) <= tail * (1 + 2e-6))  # the rounding of a sum of 32 bins
        np.testing.assert_array_equal(y[:, ~inside], np.broadcast_to(x[~inside], (20, (~inside).sum())))


@pytest.mark.parametrize("spline", SPLINES)
def test_a_spline_is_the_same_with_and_without_a_gradient(spline):
    rng = np.random.default_rng(1)
    raw, x = rng.normal(size=(1000, spline.num_params)), rng.uniform(-1.2 * spline.tail, 1.2 * spline.tail, 1000)
    for method in (spline.encode, spline.decode):
        alone = method(jnp.asarray(x, jnp.float32), jnp.asarray(raw, jnp.float32))
        beside, _ = jax.vjp(method, jnp.asarray(x, jnp.float32), jnp.asarray(raw, jnp.float32))
        for one, other in zip(alone, beside, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spline", SPLINES)
def test_a_spline_round_trip_in_single_precision(spline):
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(5000, spline.num_params)).astype(np.float32)
    x = rng.uniform(-1.2 * spline.tail, 1.2 * spline.tail, 5000).astype(np.float32)
    _, log_slope, back, log_slope_back = map(np.asarray, _there_and_back(spline, x, raw))
    # where the spline is flat, the rounding of y alone moves x by its inverse slope
    assert np.all(np.abs(back - x) < 1e-6 * spline.tail * (1 + np.exp(-log_slope)))
    # near a steep knot the rounding of x moves the slope: of 600,000 numbers the worst was 2.3e-4
    assert np.all(np.abs(log_slope_back - log_slope) < 4e-4 * (1 + np.exp(-log_slope)))


def test_the_scale_of_an_affine_map_is_bounded():
    raw = jnp.asarray([[1.0, 1e6], [1.0, -1e6]])
    y, log_slope = ShiftScale(bound=1.5).encode(jnp.asarray([2.0, 2.0]), raw)
    np.testing.assert_allclose(log_slope, [1.5, -1.5])
    np.testing.assert_allclose(y, 2.0 * np.exp([1.5, -1.5]) + 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("scalar", "encode", "ends"),
    [
        (Sigmoid(), lambda x: 1 / (1 + np.exp(-x)), (0.0, 1.0)),
        (Softplus(), lambda x: np.log1p(np.exp(x)), (0.0, np.inf)),
        (Exp(), np.exp, (0.0, np.inf)),
        (Tanh(), np.tanh, (-1.0, 1.0)),
    ],
)
def test_maps_onto_intervals(scalar, encode, ends):
    x = np.linspace(-6, 6, 101)
    y, _ = scalar.encode(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(y, encode(x), rtol=1e-5)
    assert np.all(y > ends[0])
    assert np.all(y < ends[1])
    far = scalar.encode(jnp.asarray([-80.0, 80.0]))
    assert np.all(np.isfinite(far))


def test_logit_is_the_inverse_of_sigmoid():
    x = jnp.linspace(0.01, 0.99, 33)
    for ours, theirs in zip(Logit().encode(x), Inverse(Sigmoid()).encode(x), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_standardise_centres_columns_and_leaves_constant_ones_alone():
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(1e4, 5.0, 500), np.full(500, 1e7 / 3), np.zeros(500)], axis=1).astype(np.float32)
    affine = Affine.standardise(x)
    y, _ = affine.encode(jnp.asarray(x))
    np.testing.assert_allclose(np.mean(y, axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.std(y, axis=0), [1, 0, 0], atol=1e-3)
    np.testing.assert_array_equal(affine.scale.value[1:], 1)


def test_affine_takes_lists_of_numbers():
    np.testing.assert_array_equal(Affine([1.0, 0.0], [2.0, 0.5]).encode(jnp.asarray([3.0, 3.0]))[0], [1.0, 6.0])


# -- layers fitted in closed form -------------------------------------------------------------------------------------


def test_actnorm_normalises_its_first_batch_and_no_other():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal([3.0, -1.0, 7.0], [2.0, 0.1, 0.0], (200, 2, 2, 3)), jnp.float32)
    fitted, y = ActNorm((2, 2, 3)).initialise(x)
    np.testing.assert_allclose(np.mean(y, axis=(0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(np.std(y, axis=(0, 1, 2)), [1, 1, 0], atol=2e-2)
    again, z = fitted.initialise(10 * x + 5)
    assert eqx.tree_equal(again, fitted)
    np.testing.assert_array_equal(z, fitted.encode(10 * x + 5)[0])


def test_repeat_fits_every_layer_to_the_output_of_the_one_before():
    def make(key):
        return Chain([ActNorm(3), LU(3, key=key), Coupling(Channels(3), ShiftScale(), MLP, key=key)])

    x = jnp.asarray(np.random.default_rng(0).normal(5.0, 3.0, (300, 3)), jnp.float32)
    initialise = quick_jit(lambda repeat, x: repeat.initialise(x))
    fitted, y = initialise(quick_jit(lambda: Repeat(make, 4, key=0))(), x)
    np.testing.assert_allclose(y, quick_jit(lambda fitted, x: fitted.encode(x)[0])(fitted, x), atol=1e-5)
    one = quick_jit(lambda layer, x: (layer.bijections[0].encode(x)[0], layer.encode(x)[0]))
    for layer in _layers(fitted):
        normalised, x = one(layer, x)
        np.testing.assert_allclose(np.mean(normalised, axis=0), 0, atol=1e-3)
        np.testing.assert_allclose(np.std(normalised, axis=0), 1, atol=1e-2)
    assert eqx.tree_equal(initialise(fitted, x + 1.0)[0], fitted)


def _layers(repeat):
    arrays, structure = eqx.partition(repeat.layer, eqx.is_array)
    return [eqx.combine(jax.tree.map(lambda a, i=i: a[i], arrays), structure) for i in range(repeat.times)]


@pytest.mark.parametrize("back", [False, True])
def test_principal_rotation_whitens_and_is_fitted_once(back):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(20_000, 4)) @ rng.normal(size=(4, 4)) + 3.0, jnp.float32)
    fitted, y = PrincipalRotation(4, back=back).initialise(x)
    np.testing.assert_allclose(np.mean(y, axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(y.T), np.eye(4), atol=5e-3)
    np.testing.assert_allclose(fitted.variances, np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1], rtol=5e-3)
    assert eqx.tree_equal(fitted.initialise(2 * x)[0], fitted)
    if back:
        matrix = fitted.encode(jnp.eye(4))[0] - fitted.encode(jnp.zeros(4))[0]
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-5)


def test_principal_rotation_holds_with_fewer_rows_than_columns_and_constant_columns():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5_020, 40)) * np.linspace(3, 0.1, 40)
    x[:, 7] = 2.0
    few, rest = jnp.asarray(x[:20], jnp.float32), jnp.asarray(x[20:], jnp.float32)
    fitted = PrincipalRotation(40).fit(few)
    y, log_det = fitted.encode(rest)
    assert np.all(np.isfinite(y))
    assert np.all(np.isfinite(log_det))
    # without the shrinkage, rows not seen would leave the unit sphere by orders of magnitude
    assert np.mean(y**2) < 5
    np.testing.assert_allclose(fitted.decode(y)[0], rest, atol=1e-4)


def test_principal_rotation_of_rows_that_do_not_differ_only_moves_them():
    rows = jnp.full((1, 3), 2.0)
    z, log_det = PrincipalRotation(3, back=True).fit(rows).encode(rows + jnp.arange(3.0))
    np.testing.assert_allclose(z, [[0.0, 1.0, 2.0]], atol=1e-6)
    np.testing.assert_allclose(log_det, 0.0, atol=1e-6)


def test_leading_rotation_brings_the_leading_subspace_to_the_front_and_changes_little_else():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    rows = rng.normal(size=(400, 12)) * np.array([9.0, 6.0, 4.0] + [0.5] * 9) @ axes + 3.0
    layer = LeadingRotation(12, 5, 3).fit(rows.astype(np.float32))
    turn = np.asarray(layer.encode(jnp.eye(12, dtype=jnp.float32) + layer.mean.value)[0])
    np.testing.assert_allclose(turn @ turn.T, np.eye(12), atol=1e-5)
    leading = np.linalg.svd(rows - rows.mean(axis=0))[2][:3]
    np.testing.assert_allclose(np.linalg.norm((leading @ turn)[:, :5], axis=1), 1, atol=1e-5)
    # of all such rotations it moves the axes least: it turns three planes by acute angles, the rest stays
    eigenvalues = np.linalg.eigvals(turn)
    assert np.sum(np.abs(eigenvalues - 1) > 1e-3) <= 6
    assert np.all(eigenvalues.real > -1e-5)


def test_leading_rotation_seeks_fewer_directions_in_few_rows():
    rows = jax.random.normal(jax.random.key(0), (40, 6))
    angles = LeadingRotation(6, 3, 3).fit(rows).angles.value
    assert np.sum(np.abs(angles) > 0) == 2


def test_pixels_become_normal_whatever_their_values():
    rng = np.random.default_rng(0)
    values = np.where(rng.random((500, 4, 4, 1)) < 0.7, 0, rng.integers(1, 8, (500, 4, 4, 1)))
    noisy = jnp.asarray(values + rng.random(values.shape), jnp.float32)
    layer, y = PixelsToNormal((4, 4, 1), 8).initialise(noisy)
    assert (np.mean(y), np.std(y)) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))
    # the density of a value's bin is its share of the data, whatever lies within the bin
    log_p = layer.encode(noisy)[1] - 0.5 * jnp.sum(y**2 + np.log(2 * np.pi), axis=(1, 2, 3))
    shares = (np.bincount(values.ravel(), minlength=8) + 1) / (values.size + 8)
    np.testing.assert_allclose(log_p, np.log(shares)[values].sum(axis=(1, 2, 3)), rtol=1e-3)
    far = layer.decode(jnp.full((1, 4, 4, 1), 30.0))[0]
    assert np.all((far >= 7) & (far < 8))
    assert np.all(np.asarray(layer.decode(jnp.full((1, 4, 4, 1), -30.0))[0]) < 1)


def test_a_pure_principal_rotation_keeps_distances():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(100, 3)) * [1.0, 5.0, 0.2], jnp.float32)
    y, log_det = PrincipalRotation(3, whiten=False).fit(x).encode(x)
    np.testing.assert_allclose(np.linalg.norm(y - y[0], axis=1), np.linalg.norm(x - x[0], axis=1), rtol=1e-4)
    np.testing.assert_array_equal(log_det, 0)
    assert np.all(np.diff(np.var(y, axis=0)) < 0)


# -- what each layer is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Orthogonal, Householder, LU, Matrix])
def test_linear_layers_start_as_rotations(make):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(10, 6)), jnp.float32)
    y, log_det = make(6, key=0).encode(x)
    assert not np.allclose(y, x, atol=1e-2)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)
    np.testing.assert_allclose(log_det, 0, atol=1e-5)
    assert not np.allclose(y, make(6, key=1).encode(x)[0], atol=1e-2)


def test_lu_may_start_as_the_identity():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(10, 6)), jnp.float32)
    np.testing.assert_array_equal(LU(6, identity=True).encode(x)[0], x)


def test_permute_takes_elements_in_the_order_of_its_indices():
    np.testing.assert_array_equal(Permute([2, 0, 1]).encode(jnp.asarray([10.0, 11.0, 12.0]))[0], [12.0, 10.0, 11.0])


def test_haar_gives_block_means_first_and_keeps_the_norm():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 3)), jnp.float32)
    y, _ = Haar((4, 6, 3)).encode(x)
    means = np.asarray(x).reshape(2, 2, 3, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(y[..., :3], 2 * means, atol=1e-6)
    np.testing.assert_allclose(np.sum(y**2), np.sum(x**2), rtol=1e-6)
    flat, _ = Haar((4, 6, 3)).encode(jnp.ones((4, 6, 3)))
    np.testing.assert_allclose(flat[..., 3:], 0, atol=1e-6)


def test_squeeze_puts_the_pixels_of_a_block_side_by_side():
    x = jnp.arange(16.0).reshape(4, 4, 1)
    np.testing.assert_array_equal(Squeeze((4, 4, 1)).encode(x)[0][0], [[0, 1, 4, 5], [2, 3, 6, 7]])


@pytest.mark.parametrize("swap", [False, True])
def test_checkerboard_splits_by_colour(swap):
    shape = (4, 6, 2)
    split = Checkerboard(shape, swap)
    row, column = np.indices(shape[:2])
    white = np.broadcast_to(((row + column) % 2 == 1)[..., None], shape)
    kept, moved = split.split(jnp.asarray(white, jnp.float32))
    assert kept.shape == split.kept_shape
    assert moved.shape == split.moved_shape
    assert np.all(kept == swap)
    assert np.all(moved != swap)


@pytest.mark.parametrize(
    "split",
    [Channels(5), Channels(5, 1, swap=True), Checkerboard((4, 2, 3)), Checkerboard((4, 2, 3), True)],
    ids=["channels", "channels swapped", "checkerboard", "checkerboard swapped"],
)
def test_splits_put_back_what_they_take(split):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *split.shape)), jnp.float32)
    kept, moved = split.split(x)
    np.testing.assert_array_equal(split.merge(kept, moved), x)
    other_kept, other_moved = split.split(split.merge(kept, moved + 1.0))
    np.testing.assert_array_equal(other_kept, kept)
    np.testing.assert_array_equal(other_moved, moved + 1.0)


@pytest.mark.parametrize("split", [Channels(5, 2), Channels(5, 2, swap=True)])
def test_a_coupling_moves_its_part_only_and_looks_at_the_kept_part_only(split):
    coupling = perturbed(quick_jit(lambda: Coupling(split, ShiftScale(), MLP, key=0))(), np.random.default_rng(0))
    kept, moved = (np.asarray(part, int) for part in split.split(jnp.arange(5.0)))
    jacobian = np.asarray(quick_jit(_jacobian)(coupling, np.ones(5, np.float32)))
    expected = np.eye(5, dtype=bool)
    expected[np.ix_(moved, kept)] = True
    np.testing.assert_array_equal(jacobian != 0, expected)
    unmoved = np.setdiff1d(np.arange(5), moved)
    np.testing.assert_array_equal(jacobian[unmoved], np.eye(5)[unmoved])


@pytest.mark.parametrize(
    ("split", "scalar", "net"),
    [
        (Channels(5, 2), Spline(), MLP),
        (Channels((2, 2, 3)), ShiftScale(), CONV),
        (Checkerboard((4, 2, 1), swap=True), ShiftScale(), CONV),
    ],
)
def test_a_coupling_tells_the_slope_of_each_element(split, scalar, net):
    coupling = perturbed(quick_jit(lambda: Coupling(split, scalar, net, key=0))(), np.random.default_rng(0))
    x = jax.random.normal(jax.random.key(1), split.shape)
    look = quick_jit(lambda coupling, x: (*coupling.encode_each(x), *coupling.encode(x), _jacobian(coupling, x)))
    y, log_slopes, encoded, log_det, jacobian = map(np.asarray, look(coupling, x))
    np.testing.assert_allclose(y, encoded, atol=1e-6)
    np.testing.assert_allclose(log_slopes.sum(), log_det, rtol=1e-5)
    slopes = np.diagonal(jacobian.reshape(x.size, x.size))
    np.testing.assert_allclose(np.exp(log_slopes).ravel(), slopes, rtol=1e-4)


def _jacobian(bijection, x):
    return jax.jacfwd(lambda x: bijection.encode(x)[0])(x)


def test_a_coupling_starts_as_the_identity():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(10, 6)), jnp.float32)
    for scalar in (Shift(), ShiftScale(), Spline()):
        y, log_det = quick_jit(lambda x, scalar: Coupling(Channels(6), scalar, MLP, key=0).encode(x))(x, scalar)
        np.testing.assert_allclose(y, x, atol=1e-5)
        np.testing.assert_allclose(log_det, 0, atol=1e-5)


def test_an_autoregressive_element_looks_at_those_before_it_only():
    make = quick_jit(lambda: MaskedAutoregressive(5, ShiftScale(), width=20, key=0))
    flow = perturbed(make(), np.random.default_rng(0))
    jacobian = quick_jit(_jacobian)(flow, np.ones(5, np.float32))
    np.testing.assert_array_equal(jacobian != 0, np.tri(5, dtype=bool))


def test_repeat_is_the_chain_of_its_layers_and_is_traced_once():
    def make(key):
        return Chain([LU(3, key=key), Coupling(Channels(3), ShiftScale(), MLP, key=key)])

    x = jnp.asarray(np.random.default_rng(0).normal(size=(10, 3)), jnp.float32)
    repeat = perturbed(quick_jit(lambda: Repeat(make, 3, key=0))(), np.random.default_rng(0))
    both = quick_jit(lambda repeat, x: (repeat.encode(x), Chain(_layers(repeat)).encode(x)))
    for ours, theirs in zip(*both(repeat, x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)

    def length(times):
        return len(str(jax.make_jaxpr(lambda x: Repeat(make, times, key=0).encode(x))(x)))

    assert length(50) < 1.1 * length(2)


def _deep(kind, memory, times=64):
    """Many layers given a condition: affine, spline, or the step of a glow."""
    grid = (4, 4, 4) if kind == "glow" else (4,)
    scalar = Spline(bins=4) if kind == "spline" else ShiftScale()
    net = partial(nets.ConvNet, width=6) if kind == "glow" else MLP

    def make(key):
        mix, couple = jax.random.split(key)
        first = [ActNorm(grid), InvertibleConv1x1(grid, key=mix)] if kind == "glow" else [Permute.random(4, key=mix)]
        return Chain([*first, Coupling(Channels(grid), scalar, net, cond_shape=(2,), key=couple)])

    return Repeat(make, times, memory=memory, key=0)


def _gradients(flow, method, x, cond):
    trained, rest = split_trainable(flow)

    def loss(trained, x, cond):
        y, log_det = getattr(eqx.combine(trained, rest), method)(x, cond)
        return jnp.sum(jnp.sin(y)) + jnp.sum(log_det**2)

    return quick_jit(jax.grad(loss, argnums=(0, 1, 2)))(trained, x, cond)


@pytest.mark.parametrize(
    ("kind", "method", "double", "tolerance"),
    [
        ("affine", "encode", True, 1e-8),
        ("affine", "encode", False, 1e-3),
        ("spline", "decode", True, 1e-8),
        *(
            pytest.param(*rest, marks=pytest.mark.slow)
            for rest in (
                ("glow", "encode", True, 1e-8),
                ("spline", "encode", True, 1e-8),
                ("spline", "encode", False, 1e-3),
                ("spline", "decode", False, 1e-3),
                ("glow", "encode", False, 1e-3),
            )
        ),
    ],
)
def test_rebuilt_activations_give_the_same_gradients(kind, method, double, tolerance):
    with jax.enable_x64(double):
        rng = np.random.default_rng(0)
        standard = perturbed(_deep(kind, "standard"), rng, 0.1)
        reversible = eqx.tree_at(lambda flow: flow.layer, _deep(kind, "reversible"), standard.layer)
        x, cond = jnp.asarray(rng.normal(size=(5, *standard.shape)), float), jnp.asarray(rng.normal(size=(5, 2)), float)
        expected = jax.tree.leaves(_gradients(standard, method, x, cond))
        got = jax.tree.leaves(_gradients(reversible, method, x, cond))
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert np.linalg.norm(b) > 0
        assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b)


@pytest.mark.slow
def test_rebuilt_activations_need_no_more_memory_with_more_layers():
    def temporary(memory, times):
        flow = _deep("glow", memory, times)
        trained, rest = split_trainable(flow)
        x, cond = jnp.zeros((256, *flow.shape)), jnp.zeros((256, 2))

        def loss(trained):
            y, log_det = eqx.combine(trained, rest).encode(x, cond)
            return jnp.sum(y**2) + jnp.sum(log_det)

        compiled = jax.jit(jax.grad(loss)).lower(trained).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary("reversible", 32) < 1.3 * temporary("reversible", 8)
    assert temporary("standard", 32) > 2 * temporary("standard", 8)


@pytest.mark.parametrize("memory", ["standard", "reversible"])
def test_a_gradient_may_skip_an_output_a_condition_or_whole_numbers(memory):
    flow = perturbed(_deep("affine", memory, times=2), np.random.default_rng(0))
    x, labels = jnp.ones((3, 4)), jnp.asarray([[0, 1], [1, 0], [1, 1]])
    by_x = jax.jit(jax.grad(lambda x: jnp.sum(flow.encode(x, labels)[0])))(x)
    expected = jax.jit(jax.grad(lambda x: jnp.sum(Chain(_layers(flow)).encode(x, labels.astype(float))[0])))(x)
    np.testing.assert_allclose(by_x, expected, rtol=1e-4, atol=1e-5)


def test_split_puts_the_kept_part_first():
    x = jnp.asarray([[1.0, 2.0, 3.0, 4.0, 5.0]])
    y, log_det = Split(Channels(5, kept=2), Affine(np.zeros(2), np.full(2, 0.5))).encode(x)
    np.testing.assert_array_equal(y, [[2.0, 4.0, 3.0, 4.0, 5.0]])
    np.testing.assert_allclose(log_det, 2 * np.log(2.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Chain([]),
        lambda: Chain([Shift(), LU(3)]),
        lambda: Chain([Reshape(4, (2, 2)), LU(4)]),
        lambda: Repeat(lambda key: LU(3, key=key), 0),
        lambda: Repeat(lambda key: Reshape(4, (2, 2)), 2),
        lambda: Repeat(lambda key: LU(3, key=key), 2, memory="none"),
        lambda: Reshape(4, (2, 3)),
        lambda: Channels(3, kept=3),
        lambda: Channels(3, kept=-1),
        lambda: Checkerboard((3, 4, 1)),
        lambda: Checkerboard((4, 4)),
        lambda: Squeeze((5, 4, 1)),
        lambda: Haar((4, 4)),
        lambda: Split(Channels(5), LU(3)),
        lambda: Split(Channels(5), LU(2), LU(2)),
        lambda: Spline(bins=0),
        lambda: Spline(bins=64, min_bin=0.02),
        lambda: Spline(tail=-1.0),
        lambda: Affine(0.0, 0.0, 3),
        lambda: Affine(0.0, [1.0, np.nan]),
        lambda: Permute([0, 0, 2]),
        lambda: Permute([0, 1], 3),
        lambda: InvertibleConv1x1((2, 2, 3), "qr"),
        lambda: LU(3, key="seed"),
    ],
)
def test_what_cannot_be_built_says_so_in_one_line(make):
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


def test_regression_is_least_squares_where_there_are_many_rows():
    rng = np.random.default_rng(0)
    cond, slope = rng.normal(size=(500, 3)), rng.normal(size=(3, 2))
    x = 1.0 + cond @ slope + 0.1 * rng.normal(size=(500, 2))
    fitted, residual = Regression(2, 3).initialise(jnp.asarray(x), jnp.asarray(cond))
    np.testing.assert_allclose(fitted.matrix.value, slope, atol=0.03)
    np.testing.assert_allclose(np.std(residual, axis=0), 0.1, atol=0.02)


@pytest.mark.parametrize(("rows", "conditions"), [(20, 40), (20, 20), (50, 40), (30, 28)])
@pytest.mark.parametrize("seed", range(3))
def test_regression_has_the_ridge_of_smallest_leave_one_out_error(rows, conditions, seed):
    """Against refits without each row, for what conditions do not explain."""
    rng = np.random.default_rng(seed)
    cond, x = rng.normal(size=(rows, conditions)), rng.normal(size=(rows, 2))

    def solved(cond, x, ridge):
        square = cond.T @ cond + ridge * np.eye(conditions)
        return np.linalg.solve(square, cond.T @ x)

    def error(ridge):
        left = 0.0
        for i in range(rows):
            others = np.arange(rows) != i
            mean, middle = cond[others].mean(axis=0), x[others].mean(axis=0)
            matrix = solved(cond[others] - mean, x[others] - middle, ridge)
            left += np.sum((x[i] - middle - (cond[i] - mean) @ matrix) ** 2)
        return left

    centred = cond - cond.mean(axis=0)
    ridges = np.sum(centred**2) / conditions * np.logspace(-6, 2, 9)
    best = ridges[np.argmin([error(ridge) for ridge in ridges])]
    fitted = Regression(2, conditions).initialise(jnp.asarray(x, jnp.float32), jnp.asarray(cond, jnp.float32))[0]
    np.testing.assert_allclose(fitted.matrix.value, solved(centred, x - x.mean(axis=0), best), rtol=1e-3, atol=1e-5)


def test_regression_on_constant_conditions_is_the_mean():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)), jnp.float32)
    fitted, residual = Regression(2, 3).initialise(x, jnp.ones((20, 3)))
    np.testing.assert_array_equal(fitted.matrix.value, 0.0)
    np.testing.assert_allclose(residual, x - x.mean(axis=0), atol=1e-6)


def test_a_linear_gaussian_condition_is_standard_normal_before_training():
    rng = np.random.default_rng(1)
    cond = rng.normal(size=(4000, 2))
    x = cond @ rng.normal(size=(2, 3)) + rng.normal(size=(4000, 3)) @ rng.normal(size=(3, 3))
    start = Chain([Regression(3, 2), PrincipalRotation(3, back=True)])
    _, z = start.initialise(jnp.asarray(x), jnp.asarray(cond))
    np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=0.05)
    np.testing.assert_allclose(np.asarray(z).T @ cond / 4000, 0.0, atol=0.01)
