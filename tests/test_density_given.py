"""Densities of rows given others: p(x | c) against the exact answer, in Python and from the shell."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

import flowknife as fk
from flowknife.apps.density._given import read_given
from flowknife.errors import InputError
from tests.command import call, refused, rows_of
from tests.test_golden import GOLDEN

QUICK = {"layers": 2, "width": 16, "depth": 1, "scalar": "affine", "train": {"steps": 150}}
COVARIANCE = np.array([[0.25, 0.1], [0.1, 0.2]])


def mean_of(c):
    return c * [1.5, -0.5] + [3.0, 0.0]


def linear(n, key=0):
    """Rows x = a c + b + noise and their conditions c, one number each."""
    generator = np.random.default_rng(key)
    c = generator.normal(size=(n, 1))
    return mean_of(c) + generator.multivariate_normal(np.zeros(2), COVARIANCE, n), c


def exact(x, c):
    return multivariate_normal([0, 0], COVARIANCE).logpdf(x - mean_of(c))


@pytest.fixture(scope="module")
def flow():
    x, c = linear(1000)
    frame = pd.DataFrame({"c": c[:, 0], "u": x[:, 0], "v": x[:, 1]})
    return fk.density(frame, given="c", key=0, show_progress=False, **QUICK)


def test_the_density_is_that_of_the_linear_gaussian_law(flow):
    x, c = linear(1000, key=1)
    gap = exact(x, c) - flow.log_prob(x, given=c)
    assert flow.names == ("u", "v") and flow.given_names == ("c",)
    assert abs(gap.mean()) < 0.06 and np.abs(gap).mean() < 0.3


@pytest.mark.parametrize("c", [-1.0, 0.7])
def test_it_is_normalised_for_every_condition(flow, c):
    side = np.linspace(-4, 4, 31)
    grid = mean_of(np.array([c])) + np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    total = np.exp(flow.log_prob(grid, given=c)).sum() * (side[1] - side[0]) ** 2
    assert total == pytest.approx(1, abs=0.02)


def test_samples_have_the_mean_and_the_spread_of_their_condition(flow):
    for given in (0.7, [0.7], {"c": 0.7}, pd.DataFrame({"c": [0.7]})):
        drawn = flow.sample(1000, key=0, given=given)
        np.testing.assert_allclose(drawn.mean(axis=0), mean_of(np.array([0.7])), atol=0.08)
        np.testing.assert_allclose(np.cov(drawn.T), COVARIANCE, atol=0.06)
    c = np.repeat([-1.0, 1.0], 500)
    drawn = flow.sample(1000, key=0, given=c)
    for value in (-1.0, 1.0):
        np.testing.assert_allclose(drawn[c == value].mean(axis=0), mean_of(np.array([value])), atol=0.1)


def test_flags_given_the_condition_keep_alpha(flow):
    x, c = linear(1000, key=2)
    # of one run of m calibration rows the share varies by sqrt(alpha / m)
    limit = 4 * (0.05 / flow.flagging.rows) ** 0.5
    assert flow.score(x, given=c)["flag"].mean() == pytest.approx(0.05, abs=limit)
    # usual rows, given another condition
    assert flow.score(x, given=c + 3)["flag"].mean() > 0.9


def test_conditions_of_a_table_are_found_by_their_names(flow, tmp_path):
    x, c = linear(50, key=3)
    frame = pd.DataFrame({"v": x[:, 1], "other": "text", "u": x[:, 0], "c": c[:, 0]})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    expected = flow.log_prob(x, given=c)
    for source in (frame, tmp_path / "rows.csv", str(tmp_path / "rows.csv")):
        np.testing.assert_allclose(flow.log_prob(source), expected, rtol=1e-5)
    np.testing.assert_allclose(flow.decode(flow.encode(x, c), c), x, atol=1e-4)
    np.testing.assert_allclose(flow.log_prob(x, given=0.5), flow.log_prob(x, given=np.full(50, 0.5)), rtol=1e-6)


def test_a_saved_run_knows_its_conditions(flow, tmp_path):
    again = fk.load(flow.save(tmp_path / "run"))
    x, c = linear(50, key=3)
    np.testing.assert_array_equal(again.log_prob(x, given=c), flow.log_prob(x, given=c))
    np.testing.assert_array_equal(again.sample(5, key=0, given=1.0), flow.sample(5, key=0, given=1.0))
    assert all(check.passed for check in again.check()) and all(check.passed for check in again.check(x, given=c))
    assert "Samples are drawn given the c" in again.report(tmp_path / "run").read_text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "c; try given"),
        ({"given": np.zeros((7, 1))}, "7 rows of c for 4 rows"),
        ({"given": np.zeros((4, 2))}, "expected 1"),
        ({"given": {"d": 1.0}}, "a number for each of c"),
        ({"given": [np.nan]}, "missing or infinite"),
    ],
)
def test_a_condition_has_to_be_given_and_fit(flow, given, words):
    x, _ = linear(4)
    for attempt in (lambda: flow.log_prob(x, **given), lambda: flow.sample(4, **given)):
        with pytest.raises(InputError, match=words) as caught:
            attempt()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "given", "words"),
    [
        (np.zeros((9, 2)), "c", "the condition 'c'"),
        (np.zeros((9, 2)), ["x1", "x2"], "only conditions"),
        (np.random.default_rng(0).normal(size=(9, 2)), np.zeros(9), "c1, which never varies"),
        (np.zeros((9, 2)), np.zeros(8), "8 rows of conditions c1 for 9 rows"),
    ],
)
def test_conditions_that_cannot_be_learned_are_refused(x, given, words):
    with pytest.raises(InputError, match=words):
        fk.density(x, given=given, show_progress=False, **QUICK)


@pytest.mark.slow
def test_units_of_the_conditions_do_not_matter():
    """Time stamps in seconds, which single precision cannot tell apart, and a column that explains nearly all."""
    generator = np.random.default_rng(0)
    c = generator.normal(size=1000)
    x = 1e-6 * (5 * c + generator.normal(0, 0.5, 1000))
    flow = fk.density(x, given=1.7e9 + 60 * c, key=0, show_progress=False, **QUICK)
    best = -np.log(0.5e-6) - 0.5 * np.log(2 * np.pi * np.e)
    assert flow.log_prob(x, given=1.7e9 + 60 * c).mean() == pytest.approx(best, abs=0.1)


def test_a_density_of_all_columns_takes_no_condition():
    flow = fk.load(GOLDEN / "format-3" / "density")
    with pytest.raises(InputError, match="expected none"):
        flow.sample(1, given=[0.0])


def test_from_the_shell(tmp_path):
    x, c = linear(1000)  # as many as in the fixture, whose programs are compiled
    frame = pd.DataFrame({"c": c[:, 0], "u": x[:, 0], "v": x[:, 1]})
    frame.to_csv(tmp_path / "data.csv", index=False)
    settings = ["layers=2", "width=16", "depth=1", "scalar=affine", "train.steps=100"]
    settings = [word for setting in settings for word in ("-s", setting)]
    call("fit", "density", tmp_path / "data.csv", "--given", "c", "--out", tmp_path / "run", *settings)
    call("sample", tmp_path / "run", "-n", 300, "--given", "c=0.7", "--seed", 1, "--out", tmp_path / "one.csv")
    drawn = pd.read_csv(tmp_path / "one.csv")
    assert list(drawn.columns) == ["u", "v", "c"] and (drawn["c"] == 0.7).all() and len(drawn) == 300
    np.testing.assert_allclose(drawn[["u", "v"]].mean(), mean_of(np.array([0.7])), atol=0.25)
    pd.DataFrame({"c": [-1.0, 1.0]}).to_csv(tmp_path / "conditions.csv", index=False)
    call("sample", tmp_path / "run", "-n", 4, "--given", tmp_path / "conditions.csv", "--out", tmp_path / "two.csv")
    assert pd.read_csv(tmp_path / "two.csv")["c"].tolist() == [-1.0] * 4 + [1.0] * 4
    call("score", tmp_path / "run", tmp_path / "data.csv", "--out", tmp_path / "scores.csv")
    found = [float(row["log_prob"]) for row in rows_of(tmp_path / "scores.csv")]
    np.testing.assert_allclose(found, fk.load(tmp_path / "run").log_prob(frame), rtol=1e-4)
    call("score", tmp_path / "run", tmp_path / "data.csv", "--given", "c=9", "--out", tmp_path / "far.csv")
    assert np.mean([float(row["log_prob"]) for row in rows_of(tmp_path / "far.csv")]) < np.mean(found) - 5
    call("check", tmp_path / "run", tmp_path / "data.csv", status=None)
    refused("sample", tmp_path / "run", "--out", tmp_path / "x.csv", words=("c", "given"))
    refused("sample", tmp_path / "run", "--given", "d=1", "--out", tmp_path / "x.csv", words="each of c")
    refused("fit", "density", tmp_path / "data.csv", "--given", "d", "--out", tmp_path / "r", words=("'d'", "c, u, v"))


def test_columns_of_a_mapping_and_names_of_a_series_count(flow):
    x, c = linear(5)
    expected = flow.log_prob(x, given=c)
    np.testing.assert_array_equal(flow.log_prob(x, given={"c": c[:, 0]}), expected)
    np.testing.assert_array_equal(flow.log_prob(x, given=pd.Series(c[:, 0], name="c")), expected)
    np.testing.assert_array_equal(flow.log_prob(x, given=pd.Series(c[:, 0])), expected)
    with pytest.raises(InputError, match="got the condition 'u'; expected c"):
        flow.log_prob(x, given=pd.Series(c[:, 0], name="u"))
    with pytest.raises(InputError, match="expected one, or one for each"):
        flow.log_prob(x, given={"c": c[:3, 0]})


def test_a_condition_is_named_once():
    with pytest.raises(InputError, match="got the conditions c, c; expected different columns"):
        fk.density(pd.DataFrame({"c": [1.0, 2.0], "u": [1.0, 2.0]}), given=["c", "c"])


@pytest.mark.parametrize("n", [2.5, "10", True, 0, -1, None])
def test_a_number_of_rows_is_whole(flow, n):
    with pytest.raises(InputError, match="expected at least 1 row, as a whole number"):
        flow.sample(n, given=0.0)


def test_a_row_of_a_data_frame_is_a_condition_by_name():
    names, row = ("c", "d"), pd.Series({"d": 2.0, "c": 1.0}, name="first")
    np.testing.assert_array_equal(read_given(row, names, 3), [[1.0, 2.0]] * 3)
    np.testing.assert_array_equal(read_given(pd.Series([1.0, 2.0]), names, 3), [[1.0, 2.0]] * 3)
    np.testing.assert_array_equal(read_given(row[["c"]], ("c",), 1), [[1.0]])
    with pytest.raises(InputError, match="got numbers named d, e; expected one for each of c, d"):
        read_given(pd.Series({"d": 2.0, "e": 1.0}), names, 3)
