"""Tables with categories, truth values, dates and missing values; and which columns make a row unusual."""

import jax
import numpy as np
import pytest

import flowknife as fk
from flowknife._frame import Frame
from flowknife._mixed import Mixed
from flowknife._record import DataRecord, Record, TrainingRecord
from flowknife.apps.density._config import DensityConfig
from flowknife.apps.density._report import _shown
from flowknife.bijections import Affine
from flowknife.data.encoding import Encoding
from flowknife.errors import InputError
from tests.command import call, refused, rows_of

pd = pytest.importorskip("pandas")

QUICK = {"layers": 1, "width": 8, "depth": 1, "train": {"steps": 3, "batch_size": 32}, "show_progress": False}
MODELLED = {"categories": "auto", "dates": "auto", "missing": "model"}
N = 240


def people(n=N, seed=0):
    generator = np.random.default_rng(seed)
    member = generator.random(n) < 0.3
    spent = generator.lognormal(3 + member)
    city = generator.choice(["Bern", "Genf", "Chur"], n, p=[0.6, 0.3, 0.1]).astype(object)
    city[::40] = None
    return pd.DataFrame(
        {
            "city": city,
            "member": member,
            "since": np.datetime64("2024-01-01") + generator.integers(0, 300, n),
            "spent": np.where(generator.random(n) < 0.2, np.nan, spent),
            "children": generator.integers(0, 3, n),
            "year": 2024,
        }
    )


@pytest.fixture(scope="module")
def table():
    return people()


@pytest.fixture(scope="module")
def flow(table):
    return fk.density(table, **MODELLED, **QUICK)


# -- columns as numbers, and back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["frame", "csv", "parquet"])
def test_columns_come_back_from_numbers_as_they_are_in_the_table(table, form, tmp_path):
    source = table
    if form != "frame":
        source = tmp_path / f"people.{form}"
        table.to_csv(source, index=False) if form == "csv" else table.to_parquet(source, index=False)
    encoding = Encoding.of(source, list(table.columns), categories="auto", dates="auto", missing=True)
    assert dict(encoding.categories) == {"city": ("Bern", "Chur", "Genf"), "member": (False, True)}
    assert dict(encoding.dates) == {"since": "D"} and set(encoding.missing) == {"city", "spent"}
    assert encoding.columns == (*table.columns, "missing(spent)") and encoding.sizes == {0: 4, 1: 2, 6: 2}
    coded = encoding.read(source)
    assert np.isfinite(coded.values).all() and coded.names == encoding.columns
    back = pd.DataFrame(encoding.decode(coded.values))
    for name in ("member", "since", "children", "year"):
        assert (back[name].to_numpy() == table[name].to_numpy()).all(), name
    np.testing.assert_array_equal(back["city"].isna(), table["city"].isna())
    np.testing.assert_array_equal(back["city"].dropna(), table["city"].dropna())
    np.testing.assert_allclose(back["spent"], table["spent"], rtol=1e-6)


def test_dates_with_a_time_keep_their_seconds():
    frame = pd.DataFrame({"at": ["2024-01-01 12:00:01", "2024-01-02", "", "1969-12-31T23:59:59"], "x": range(4)})
    encoding = Encoding.of(frame, ["at", "x"], dates=["at"], missing=True)
    found = encoding.decode(encoding.read(frame).values)["at"]
    assert found.dtype == "datetime64[s]" and np.isnat(found).tolist() == [False, False, True, False]
    assert found[0] == np.datetime64("2024-01-01T12:00:01") and found[3] == np.datetime64("1969-12-31T23:59:59")


def test_by_default_one_line_names_the_columns_and_the_settings(table):
    with pytest.raises(InputError) as caught:
        fk.density(table, **QUICK)
    line = str(caught.value)
    assert "'city' ('Bern' in row 1)" in line and "'since'" in line and "\n" not in line
    assert 'try categories="auto", dates="auto", missing="model"' in line and "--set missing=model" in line
    with pytest.raises(InputError, match=r"columns 'spent'.*modelled: try missing=\"model\" \(command"):
        fk.density(table[["spent", "children"]], **QUICK)


def test_columns_that_are_not_what_is_said_of_them_are_refused(table):
    with pytest.raises(InputError, match="no column 'town'"):
        fk.density(table, categories=["town"], **QUICK)
    with pytest.raises(InputError, match="'city' as dates"):
        fk.density(table, dates=["city"], **QUICK)
    with pytest.raises(InputError, match="categories that repeat"):
        fk.density(table.assign(name=[f"n{i}" for i in range(N)]), **MODELLED, **QUICK)
    with pytest.raises(InputError, match="missing or infinite"):
        fk.density(table.drop(columns="city"), categories="auto", dates="auto", **QUICK)


# -- a density of what is discrete ------------------------------------------------------------------------------------


def hand_made(rows, sizes, gaps, matrix=None, names=None, scale=None, **data):
    """A density N(0, I) or, given a matrix A, of A z, of rows with discrete columns."""
    dim = rows.shape[1]
    mixed = Mixed.of(rows, sizes, gaps) if sizes else None
    if matrix is None:
        bijection = Affine(np.zeros(dim), np.ones(dim))
    else:
        from flowknife.bijections import Chain, PrincipalRotation

        sample = np.random.default_rng(0).normal(size=(200_000, dim)) @ matrix.T
        bijection = Chain([PrincipalRotation(dim).fit(sample.astype(np.float32))])
    names = names or tuple(f"x{i + 1}" for i in range(dim))
    config = DensityConfig()
    return fk.Density(
        model=fk.INN([fk.Block("x", dim)], [fk.Block("z", dim)], bijection),
        frame=Frame(np.zeros(dim), np.ones(dim) if scale is None else scale),
        reference=rows.astype(np.float32),
        held_out=rows[:50].astype(np.float32),
        mixed=mixed,
        history={},
        record=Record[DensityConfig](
            application="density",
            config=config,
            used=config,
            data=DataRecord(kind="rows", rows=len(rows), names=names, **data),
            training=TrainingRecord(steps=1, seconds=0.0),
        ),
    )


def test_probabilities_of_independent_columns_are_exact():
    """Under N(0, I) a category has its share in training, and a gap its own, whatever stands in its place."""
    generator = np.random.default_rng(0)
    city, gone = generator.choice(3, 1000, p=[0.7, 0.2, 0.1]), generator.random(1000) < 0.25
    spent = np.where(gone, 0.5, 2 + 3 * generator.normal(size=1000))
    rows = np.stack([city, spent, gone], axis=1).astype(float)
    data = {"categories": {"city": ("a", "b", "c")}, "missing": {"spent": 0.5}}
    flow = hand_made(rows, {0: 3, 2: 2}, [(1, 2)], names=("city", "spent"), scale=[1.0, 4.0, 1.0], **data)
    table = pd.DataFrame({"city": ["a", "b", "c", "a", "d"], "spent": [4.0, 0.0, -4.0, np.nan, 1.0]})
    shares = (np.bincount(city) + 0.5) / 1001.5
    missing = (gone.sum() + 0.5) / 1001
    log_normal = -0.5 * np.array([1.0, 0.0, 1.0]) - 0.5 * np.log(2 * np.pi)
    expected = np.log(shares) + log_normal - np.log(4) + np.log(1 - missing)  # per unit, of which four are one there
    found = flow.log_prob(table)
    np.testing.assert_allclose(found[:3], expected, atol=1e-4)
    # q of what stands in place of the number is N(0, 1), and it is drawn from N(2, 3^2): the mean of q / r is 1
    np.testing.assert_allclose(found[3], np.log(shares[0] * missing), atol=0.25)
    assert found[4] == -np.inf
    # what is missing is as likely as its probability says; a number 1 away from its mode, half a nat less than there
    gains = flow.explain(table).gains
    np.testing.assert_allclose(gains[:3, 1], [0.5, 0.0, 0.5], atol=1e-3)
    np.testing.assert_allclose(gains[3, 1], np.log((1 - missing) / missing), atol=0.3)
    drawn = flow.sample(20_000, key=0)
    np.testing.assert_allclose([np.mean(drawn["city"] == name) for name in "abc"], shares, atol=0.015)
    np.testing.assert_allclose(drawn["spent"].isna().mean(), missing, atol=0.015)


def test_probabilities_of_two_dependent_columns_sum_to_one_and_are_those_of_the_samples():
    generator = np.random.default_rng(1)
    codes = np.stack([generator.choice(2, 500, p=[0.7, 0.3]), generator.choice(3, 500)], axis=1).astype(float)
    matrix = np.array([[1.0, 0.0], [0.9, 0.44]])
    data = {"categories": {"x1": (False, True), "x2": ("a", "b", "c")}}
    flow = hand_made(codes, {0: 2, 1: 3}, [], matrix, **data)
    every = pd.DataFrame([(a, b) for a in (False, True) for b in "abc"], columns=["x1", "x2"])
    probability = np.exp(flow.log_prob(every))
    assert probability.sum() == pytest.approx(1.0, abs=0.05)
    rows = flow.encoding.read(every).values.astype(np.float32)
    better = np.exp(flow._log_prob_of(rows, draws=4096))
    assert better.sum() == pytest.approx(1.0, abs=0.006)
    np.testing.assert_allclose(probability, better, atol=0.03)
    drawn = flow.sample(40_000, key=0)
    shares = [np.mean((drawn["x1"] == a) & (drawn["x2"] == b)) for a, b in every.to_numpy()]
    np.testing.assert_allclose(better, shares, atol=0.01)
    assert shares[0] > 1.3 * np.mean(drawn["x1"] == False) * np.mean(drawn["x2"] == "a")  # noqa: E712


def test_cells_are_left_by_no_draw():
    rows = np.stack([np.arange(400) % 7 == 0, np.arange(400) % 40], axis=1).astype(float)
    mixed = Mixed.of(rows, {0: 2, 1: 40}, [])
    for uniform in (0.0, 0.5, 1.0):
        filled, weight = mixed.fill(rows.astype(np.float32), np.full((400, 2), uniform, np.float32))
        np.testing.assert_array_equal(mixed.restore(filled), rows)
        assert np.isfinite(weight).all()
    tree = jax.tree.map(np.asarray, mixed.to_tree())
    again = Mixed.from_tree({**tree, "places": mixed.places, "gaps": mixed.gaps})
    np.testing.assert_array_equal(again.bounds, mixed.bounds)


# -- the whole way ----------------------------------------------------------------------------------------------------


def test_samples_scores_and_files_have_the_columns_of_the_table(flow, table, tmp_path):
    drawn = flow.sample(500, key=0)
    assert list(drawn.columns) == list(table.columns)
    assert set(drawn["city"].dropna()) <= {"Bern", "Chur", "Genf"} and drawn["city"].isna().any()
    assert drawn["member"].dtype == bool and drawn["since"].dtype.kind == "M" and drawn["spent"].isna().any()
    log_prob = flow.log_prob(table)
    assert np.isfinite(log_prob).all() and log_prob.shape == (N,)
    # a row has the same density in any company
    np.testing.assert_allclose(flow.log_prob(table.iloc[[7]]), log_prob[7], rtol=1e-5)
    again = fk.load(flow.save(tmp_path / "run"))
    np.testing.assert_array_equal(again.log_prob(table), log_prob)
    pd.testing.assert_frame_equal(again.sample(5, key=1), flow.sample(5, key=1))
    back = flow.decode(flow.encode(table))
    for name in table:
        np.testing.assert_array_equal(back[name].isna(), table[name].isna())
    np.testing.assert_array_equal(back["city"].dropna(), table["city"].dropna())
    assert (abs(back["since"] - table["since"]) <= pd.Timedelta(days=1)).all()


def test_new_tables_with_other_values(flow, table):
    odd = table.iloc[:3].copy()
    odd.loc[0, "city"], odd.loc[1, "year"] = "Rome", 2025
    scores = flow.score(odd, explain=True)
    assert (scores["log_prob"][:2] == -np.inf).all() and np.isfinite(scores["log_prob"][2])
    assert scores["reason_1"].tolist()[:2] == ["city", "year"] and (scores["gain_1"][:2] == np.inf).all()
    assert scores["likely_1"][0] in ("Bern", "Genf", "Chur", None) and scores["likely_1"][1] == 2024
    with pytest.raises(InputError, match="missing or infinite"):
        flow.log_prob(table.assign(children=np.nan))


def test_the_shell_fits_samples_and_scores_such_tables(table, tmp_path):
    table.to_csv(tmp_path / "people.csv", index=False)
    run, new, scores = tmp_path / "run", tmp_path / "new.csv", tmp_path / "scores.csv"
    refused(
        "fit", "density", tmp_path / "people.csv", "--out", run, words="--set categories=auto --set dates=auto --set"
    )
    sizes = [word for name in ("layers=1", "width=8", "depth=1", "train.steps=3") for word in ("--set", name)]
    auto = [word for name in ("categories=auto", "dates=auto", "missing=model") for word in ("--set", name)]
    call("fit", "density", tmp_path / "people.csv", "--out", run, *sizes, *auto)
    call("sample", run, "-n", 50, "--seed", 0, "--out", new)
    drawn = rows_of(new)
    assert {row["city"] for row in drawn} <= {"", "Bern", "Chur", "Genf"}
    assert {row["member"] for row in drawn} <= {"True", "False"} and "" in {row["spent"] for row in drawn}
    assert all(np.datetime64(row["since"]) for row in drawn)
    call("score", run, new, "--explain", "--id", "city", "--out", scores)
    found = rows_of(scores)
    assert [row["city"] for row in found] == [row["city"] for row in drawn]
    assert {row["reason_1"] for row in found} <= set(table.columns)


@pytest.mark.slow
def test_the_report_says_why_rows_are_unusual(flow, tmp_path):
    page = flow.report(flow.save(tmp_path / "run")).read_text(encoding="utf-8")
    assert "Unusual rows" in page and "Most likely" in page


# -- which columns make a row unusual ---------------------------------------------------------------------------------


def test_gains_of_a_gaussian_are_half_the_squared_conditional_distances():
    matrix = np.array([[1.0, 0.0, 0.0], [0.95, 0.3, 0.0], [0.0, 0.0, 2.0]])
    rows = np.random.default_rng(2).normal(size=(500, 3)) @ matrix.T
    flow = hand_made(rows, {}, [], matrix)
    covariance = matrix @ matrix.T
    precision = np.linalg.inv(covariance)
    x = np.array([[0.0, 1.5, 1.0], [0.5, 0.5, -5.0], [1.0, 1.0, 0.0]])
    # the mean of x_j given the others is x_j - (P x)_j / P_jj, its variance 1 / P_jj
    shift = x @ precision / np.diag(precision)
    expected = 0.5 * shift**2 * np.diag(precision)
    found = flow.explain(x)
    np.testing.assert_allclose(found.gains, expected, rtol=0.03, atol=0.01)
    likely = np.stack([found.likely[name] for name in flow.names], axis=1)
    np.testing.assert_allclose(likely, x - shift, atol=0.05)
    scores = flow.score(x, explain=True)
    assert scores["reason_1"].tolist()[1] == "x3" and {*scores["reason_1"][:1], *scores["reason_2"][:1]} == {"x1", "x2"}
    np.testing.assert_allclose(scores["gain_1"], expected.max(axis=1), rtol=0.03, atol=0.01)


def test_gain_of_a_category_is_the_log_ratio_to_the_most_likely_one():
    city = np.repeat([0.0, 1.0, 2.0], [700, 200, 100])
    rows = np.stack([city, np.random.default_rng(0).normal(size=1000)], axis=1)
    flow = hand_made(rows, {0: 3}, [], names=("city", "x"), categories={"city": ("a", "b", "c")})
    found = flow.explain(pd.DataFrame({"city": ["a", "b", "c"], "x": [0.0, 0.0, 3.0]}))
    shares = np.log((np.array([700, 200, 100]) + 0.5) / 1001.5)
    np.testing.assert_allclose(found.gains[:, 0], shares[0] - shares, atol=1e-4)
    np.testing.assert_allclose(found.gains[:, 1], [0.0, 0.0, 4.5], atol=1e-3)
    assert found.likely["city"].tolist() == ["a", "a", "a"]


@pytest.mark.slow
def test_a_fit_learns_what_categories_and_gaps_depend_on():
    table = people(3000).drop(columns=["children", "year"])
    flow = fk.density(table, **MODELLED, train={"steps": 800}, show_progress=False, key=0)
    drawn = flow.sample(6000, key=0)
    for member in (False, True):
        own, theirs = drawn["spent"][drawn["member"] == member], table["spent"][table["member"] == member]
        assert np.log(own[own > 0]).mean() == pytest.approx(np.log(theirs).mean(), abs=0.25)
    for name in ("city", "member"):
        share = table[name].value_counts(normalize=True, dropna=False)
        found = drawn[name].value_counts(normalize=True, dropna=False)
        np.testing.assert_allclose(found.reindex(share.index), share, atol=0.04)
    assert drawn["spent"].isna().mean() == pytest.approx(table["spent"].isna().mean(), abs=0.04)
    # the entropies of the columns: cities, members, days, gaps, and log-normal money
    shares = [[0.585, 0.2925, 0.0975, 0.025], [0.3, 0.7], np.full(300, 1 / 300), [0.2, 0.8]]
    entropy = sum(-np.sum(np.multiply(p, np.log(p))) for p in shares) + 0.8 * (3.3 + 0.5 * np.log(2 * np.pi * np.e))
    nll = -flow.log_prob(people(2000, seed=1)).mean()
    assert -0.05 < nll - entropy < 0.3
    assert all(check.passed for check in flow.check()), [check for check in flow.check() if not check.passed]


def test_a_report_shows_what_is_missing_in_words():
    cells = [None, np.float64("nan"), np.datetime64("NaT"), np.float32(0.5), "Bern", np.datetime64("2024-01-31")]
    assert [_shown(cell) for cell in cells] == ["missing", "missing", "missing", "0.5", "Bern", "2024-01-31"]
