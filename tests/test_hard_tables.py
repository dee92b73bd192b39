"""Tables that are hard on numbers: constant and rare columns, all scales, values beyond the range, both precisions."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowknife as fk
from flowknife._record import Stopped
from flowknife.bijections import LU, Affine, Chain, Elementwise, Repeat, ShiftScale
from flowknife.errors import InputError
from flowknife.laws import LARGEST_TEMPERATURE
from flowknife.train._steps import step_shares
from tests.catalogue import ROWS

FAST = {"layers": 2, "width": 8, "train": {"steps": 20}, "show_progress": False}
AFFINE = {**FAST, "layers": 1, "depth": 1, "scalar": "affine"}
FAR = [1e30, 1e38, 1e300]


def table(n=240):
    """Columns of all kinds, of which the last two never vary."""
    rng = np.random.default_rng(0)
    columns = {
        "normal": rng.normal(size=n),
        "binary": rng.random(n) < 0.5,
        "rare": np.arange(n) == 7,
        "large": 1e8 + 1e8 * rng.normal(size=n),
        "small": 1e-8 * rng.normal(size=n),
        "heavy": rng.standard_cauchy(n),
        "repeated": np.repeat(rng.normal(size=n // 8), 8),
        "third": np.full(n, 0.1),
        "whole": np.full(n, 16_777_217.0),
    }
    return np.column_stack([np.asarray(column, float) for column in columns.values()])


@pytest.fixture(scope="module")
def density():
    return fk.density(table(), **FAST)


@pytest.fixture(scope="module")
def classifier():
    x = np.random.default_rng(0).normal(size=(200, 2))
    x[:140] += 3.0
    return fk.classify(x, np.arange(200) < 140, **AFFINE)


# -- constant columns -------------------------------------------------------------------------------------------------


def test_constant_columns_come_back_exactly(density):
    x = table()
    assert np.all(density.sample(200, key=0)[:, 7:] == x[0, 7:])
    assert np.all(density.decode(density.encode(x[:5]))[:, 7:] == x[0, 7:])
    assert density.encode(x).shape == (len(x), 7)


@pytest.mark.parametrize("column", [7, 8])
@pytest.mark.parametrize("change", [1.0, -1e6])
def test_any_other_value_of_a_constant_column_is_impossible(density, column, change):
    x = table()[:6]
    x[::2, column] += change
    scores = density.score(x)
    assert np.all(scores["log_prob"][::2] == -np.inf)
    assert np.all(np.isfinite(scores["log_prob"][1::2]))
    assert np.all(scores["p_value"][::2] <= scores["p_value"].min())


def test_a_constant_is_the_same_in_both_precisions(density):
    x = table()[:4]
    expected = density.log_prob(x)
    narrow = x.copy()
    narrow[:, 7] = x[:, 7].astype(np.float32)
    assert not np.array_equal(narrow, x)
    np.testing.assert_allclose(density.log_prob(narrow), expected, rtol=1e-6)


def test_a_table_in_which_nothing_varies_is_told():
    with pytest.raises(InputError, match="no column varies"):
        fk.density(np.full((20, 2), 3.0), **FAST)


# -- scales -----------------------------------------------------------------------------------------------------------


def test_a_table_of_all_scales_trains(density):
    assert density.record.training.stopped is Stopped.BUDGET
    assert np.all(np.isfinite(density.log_prob(table())))
    assert np.all(np.isfinite(density.sample(100, key=1)))


@pytest.mark.parametrize("exponent", [-1000, pytest.param(-133, marks=pytest.mark.slow), 126])
def test_a_unit_changes_a_density_by_its_logarithm_alone(exponent):
    x, unit = np.random.default_rng(0).normal(size=(60, 1)), 2.0**exponent
    plain, scaled = (fk.density(x * factor, **AFFINE) for factor in (1.0, unit))
    expected = plain.log_prob(x) - exponent * np.log(2.0)
    np.testing.assert_allclose(scaled.log_prob(x * unit), expected, rtol=1e-3, atol=1e-3)


# -- values beyond single precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", FAR)
@pytest.mark.parametrize("sign", [1, -1])
def test_rows_far_out_are_impossible_and_never_nan(density, value, sign):
    x = table()[:3]
    x[1, 0] = sign * value
    x[2, :7] = sign * value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = density.score(x)
    assert np.all(scores["log_prob"][1:] == -np.inf) and np.isfinite(scores["log_prob"][0])
    assert np.all(scores["p_value"][1:] == scores["p_value"].min())


@pytest.mark.parametrize("value", FAR)
def test_probabilities_far_out_are_the_class_priors(classifier, value):
    x = np.array([[value, 0.0], [value, -value], [3.0, 3.0]])
    scores, probability = classifier.score(x), classifier.predict_proba(x)
    np.testing.assert_allclose(probability.sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(probability[:2], np.exp(classifier.log_prior)[None].repeat(2, axis=0), rtol=1e-5)
    assert np.all(scores["log_prob"][:2] == -np.inf) and np.isfinite(scores["log_prob"][2])
    assert np.all(classifier.predict(x) == scores["label"])
    assert np.all(classifier.log_prob(x, label=True)[:2] == -np.inf)


def test_a_missing_number_stays_missing():
    inn = fk.INN([fk.Block("x", 2)], [fk.Block("z", 2)], Affine(np.zeros(2), np.ones(2)))
    found = inn.log_prob(np.array([[0.0, 0.0], [np.nan, 0.0], [1e30, 0.0]], np.float32))
    assert np.isfinite(found[0]) and np.isnan(found[1]) and found[2] == -np.inf


# -- temperatures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1e39, np.inf, np.nan, -1.0, [0.5, 1.0], "warm", None, 2 * LARGEST_TEMPERATURE])
def test_a_temperature_that_is_none_is_refused(density, classifier, temperature):
    calls = [lambda: density.sample(2, key=0, temperature=temperature)]
    if temperature is not None:  # which is the default of a classifier
        calls.append(lambda: classifier.sample(2, key=0, temperature=temperature))
    for call in calls:
        with pytest.raises(InputError, match="temperature") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_draws_at_any_allowed_temperature_are_finite_or_refused(density):
    assert np.all(density.sample(3, key=0, temperature=0.0)[0] == density.sample(3, key=1, temperature=0)[0])
    assert np.all(np.isfinite(density.sample(5, key=0, temperature=10)))


# -- steps of wide mixings and deep stacks ----------------------------------------------------------------------------


def test_rates_fall_with_the_inputs_of_a_mixing_and_the_layers_of_a_stack():
    def shares(size, times):
        def layer(key):
            return Chain([LU(size, key=key), Elementwise(ShiftScale(), size)])

        repeat = eqx.filter_eval_shape(lambda key: Repeat(layer, times, key=key), jax.random.key(0))
        mixing, scale = step_shares(repeat).layer.bijections
        return mixing.lower, mixing.upper, mixing.log_diagonal, scale.raw

    assert shares(8, 2) == (1.0, 1.0, 1.0, 1.0)
    assert shares(640, 2) == (0.1, 0.1, 1.0, 1.0)
    assert shares(8, 320) == (0.1, 0.1, 0.1, 0.1)


@pytest.mark.slow
def test_a_wide_table_trains_and_separates_other_rows():
    columns = 1500

    def rows(n, seed, kind=1):
        rng, fixed = np.random.default_rng(seed), np.random.default_rng(kind)
        weights, bias, place = fixed.normal(size=(5, columns)), fixed.normal(size=columns), fixed.permutation(columns)
        x = (rng.normal(size=(n, 5)) @ weights + bias + rng.logistic(size=(n, columns)) > 0).astype(float)
        x[:, place[:150]] = place[:150] % 2
        x[:, place[150:350]] = rng.random((n, 200)) < 0.003
        return x

    x = rows(800, 0)
    density = fk.density(x, train={"steps": 60}, show_progress=False)
    assert np.all(np.isfinite(density.history["train"]))
    varies = np.ptp(x, axis=0) > 0
    normal, other = rows(100, 2), rows(100, 3, kind=4)
    for each in (normal, other):  # the constant columns shall not decide
        each[:, ~varies] = x[0, ~varies]
    assert fk.diagnostics.auroc(-density.log_prob(normal), -density.log_prob(other)) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("columns", [[0, 1, 2, 5, 6], [0, 7], [2]])
def test_a_hundred_layers_train(columns):
    density = fk.density(table()[:, columns], layers=100, width=16, depth=1, train={"steps": 150}, show_progress=False)
    assert np.all(np.isfinite(density.history["validation"]))
    assert np.all(np.isfinite(density.log_prob(table()[:, columns])))


# -- both precisions --------------------------------------------------------------------------------------------------


LOOPS = [row for row in ROWS if row.name in ("Householder", "LU", "MaskedAutoregressive", "Repeat, reversible", "Tanh")]


def _single(value):
    if not eqx.is_array(value):
        return value
    return jnp.asarray(value, {np.float64: jnp.float32}.get(value.dtype.type, value.dtype))


@pytest.mark.parametrize("row", LOOPS, ids=[row.name for row in LOOPS])
@pytest.mark.parametrize("end", ["encode", "decode"])
def test_layers_of_one_precision_take_numbers_of_the_other(row, end, float64):
    wide = row.draw(0)
    narrow = jax.tree.map(_single, wide)
    for bijection, x, y, cond in (narrow, (narrow[0], *wide[1:]), (wide[0], *narrow[1:])):
        found = eqx.filter_eval_shape(getattr(bijection, end), x if end == "encode" else y, cond)
        assert [out.shape for out in found] == [x.shape, row.batch]
        if bijection is narrow[0] and x is narrow[1]:
            assert {out.dtype for out in found} == {np.dtype(np.float32)}


@pytest.fixture(scope="module")
def saved(density, classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return density.save(folder / "density"), classifier.save(folder / "classifier")


def test_runs_of_single_precision_are_used_in_double_precision(density, classifier, saved, float64):
    x, rows = table(), np.random.default_rng(1).normal(size=(20, 2))
    loaded, classes = (fk.load(run) for run in saved)
    np.testing.assert_allclose(loaded.log_prob(x), density.log_prob(x), rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(classes.predict_proba(rows), classifier.predict_proba(rows), atol=1e-4)
    assert np.all(np.isfinite(loaded.sample(20, key=0))) and np.all(np.isfinite(classes.sample(20, key=0)))
