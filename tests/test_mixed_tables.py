"""Tables with categories, truth values, dates and missing values; and which columns make a row unusual."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowknife as fk
from flowknife._frame import Frame
from flowknife._mixed import Mixed
from flowknife._record import DataRecord, Record, TrainingRecord
from flowknife.apps.classify._config import ClassifyConfig
from flowknife.apps.density._config import DensityConfig
from flowknife.apps.density._report import _shown
from flowknife.bijections import Affine
from flowknife.data.encoding import Encoding
from flowknife.errors import InputError
from tests.command import call, refused, rows_of

pd = pytest.importorskip("pandas")

SIZES = {"layers": 1, "width": 8, "depth": 1, "scalar": "affine", "mixing": "permute"}
STEPS = {"steps": 3, "batch_size": 32}
QUICK = {**SIZES, "train": STEPS, "show_progress": False}
OF_CLASSES = {**{name: SIZES[name] for name in ("layers", "width", "depth")}, "train": STEPS, "show_progress": False}
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
    sizes = [f"--set={name}={value}" for name, value in SIZES.items()]  # as in the fixture: its programs are compiled
    sizes += [f"--set=train.{name}={value}" for name, value in STEPS.items()]
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


# -- classes of such rows ---------------------------------------------------------------------------------------------


def test_class_probabilities_of_categories_are_those_of_their_cells():
    """The latent of class k is N(mu_k, I): a category has the mass of its cell, a gap that of its own."""
    from scipy.stats import norm

    generator = np.random.default_rng(0)
    city, gone = generator.choice(3, 400, p=[0.6, 0.3, 0.1]), generator.random(400) < 0.25
    rows = np.stack([city, np.where(gone, 0.5, generator.normal(size=400)), gone], axis=1).astype(np.float32)
    mixed = Mixed.of(rows, {0: 3, 2: 2}, [(1, 2)])
    law = fk.laws.ClassMixture(2, 3)
    means = np.array([[-0.7, 0.5, 0.4], [0.6, -0.5, -0.3]])
    law = eqx.tree_at(lambda law: law.means, law, jnp.asarray(means, jnp.float32))
    config = ClassifyConfig()
    names, known = ("city", "spent"), {"city": ("a", "b", "c")}
    data = DataRecord(kind="rows", rows=400, names=names, categories=known, missing={"spent": 0.5}, classes=(0, 1))
    classifier = fk.Classifier(
        model=fk.INN([fk.Block("x", 3)], [fk.Block("y", 3, law)], Affine(np.zeros(3), np.ones(3))),
        log_prior=np.log([0.5, 0.5]).astype(np.float32),
        temperature=1.0,
        frame=Frame(np.zeros(3), [1.0, 4.0, 1.0]),
        reference=rows,
        reference_labels=np.zeros(400, int),
        held_out=rows[:50],
        held_out_labels=np.zeros(50, int),
        detector=None,
        mixed=mixed,
        history={},
        record=Record[ClassifyConfig](
            application="classify",
            config=config,
            used=config,
            data=data,
            training=TrainingRecord(steps=1, seconds=0.0),
        ),
    )
    table = pd.DataFrame({"city": ["a", "b", "c", "a", "d"], "spent": [4.0, 0.0, -4.0, np.nan, 1.0]})
    edges = norm.ppf(np.asarray(mixed.bounds))
    cells = [np.diff(norm.cdf(edges[i] - means[:, [place]]), axis=1) for i, place in enumerate((0, 2))]
    density = norm.pdf(table["spent"].to_numpy() / 4 - means[:, [1]]) / 4
    places = [0, 1, 2, 0]
    expected = np.log(
        cells[0][:, places] * np.where(np.arange(4) == 3, cells[1][:, [1]], cells[1][:, [0]] * density[:, :4])
    )
    found = np.stack([classifier.log_prob(table, label=k) for k in (0, 1)])
    np.testing.assert_allclose(found[:, :3], expected[:, :3], atol=0.05)
    np.testing.assert_allclose(found[:, 3], expected[:, 3], atol=0.3)  # what stands in place of the number is drawn
    odds = np.log(classifier.predict_proba(table)[:3, 1] / classifier.predict_proba(table)[:3, 0])
    np.testing.assert_allclose(odds, expected[1, :3] - expected[0, :3], atol=0.05)
    assert classifier.log_prob(table)[4] == -np.inf
    np.testing.assert_allclose(classifier.predict_proba(table)[4], 0.5, atol=1e-6)
    drawn = classifier.sample(20_000, label=1, key=0)
    np.testing.assert_allclose([np.mean(drawn["city"] == name) for name in "abc"], cells[0][1], atol=0.015)
    np.testing.assert_allclose(drawn["spent"].isna().mean(), cells[1][1, 1], atol=0.015)


def sizes_of(settings):
    return [word for name in settings for word in ("--set", name)]


AUTO = sizes_of(["categories=auto", "dates=auto", "missing=model"])
TINY = sizes_of(["layers=1", "width=8", "depth=1", "train.steps=3"])


@pytest.fixture(scope="module")
def labelled(table):
    return table.assign(kind=np.where(table["member"], "gold", "plain"))


@pytest.fixture(scope="module")
def classifier(labelled):
    return fk.classify(labelled, "kind", **MODELLED, **OF_CLASSES)


def test_a_classifier_has_the_columns_of_the_table(classifier, labelled, table, tmp_path):
    with pytest.raises(InputError) as caught:
        fk.classify(labelled, "kind", **OF_CLASSES)
    assert 'try categories="auto", dates="auto", missing="model"' in str(caught.value)
    assert classifier.classes == ("gold", "plain") and classifier.names == tuple(table.columns)
    drawn = classifier.sample(300, key=0, label="gold")
    assert list(drawn.columns) == list(table.columns) and set(drawn["city"].dropna()) <= {"Bern", "Chur", "Genf"}
    assert drawn["member"].dtype == bool and drawn["since"].dtype.kind == "M" and drawn["spent"].isna().any()
    probability = classifier.predict_proba(table)
    assert np.isfinite(classifier.log_prob(table)).all() and set(classifier.predict(table)) <= {"gold", "plain"}
    # a row has the same probabilities in any company
    np.testing.assert_allclose(classifier.predict_proba(table.iloc[[7]])[0], probability[7], rtol=1e-4)
    again = fk.load(classifier.save(tmp_path / "run"))
    np.testing.assert_array_equal(again.predict_proba(table), probability)
    pd.testing.assert_frame_equal(again.sample(5, key=1), classifier.sample(5, key=1))
    names = " ".join(check.name for check in again.check(labelled))
    assert "share of errors" in names and "cross entropy" in names
    with pytest.raises(InputError, match="categories"):
        classifier.export(tmp_path / "out")


@pytest.mark.slow
def test_labels_beside_such_a_table_may_be_an_array(labelled, table):
    beside = fk.classify(table, labelled["kind"], **MODELLED, **OF_CLASSES)
    assert beside.record.data.label_column is None and beside.encoding.columns[-1] == "missing(spent)"
    gone = table.drop(columns="city").assign(spent=table["spent"])
    some = fk.classify(gone, labelled["kind"], drop_invalid=True, categories="auto", dates="auto", **OF_CLASSES)
    assert some.record.data.rows == int(gone["spent"].notna().sum()) and not some.record.data.missing


def test_the_shell_classifies_such_tables(labelled, tmp_path):
    labelled.to_csv(tmp_path / "people.csv", index=False)
    run, new, classes = tmp_path / "run", tmp_path / "new.csv", tmp_path / "classes.csv"
    data = (tmp_path / "people.csv", "--label", "kind", "--out", run)
    refused("fit", "classify", *data, words="--set categories=auto --set dates=auto --set missing=model")
    call("fit", "classify", *data, *TINY, *AUTO)
    call("sample", run, "-n", 40, "--label", "gold", "--seed", 0, "--out", new)
    drawn = rows_of(new)
    assert {row["city"] for row in drawn} <= {"", "Bern", "Chur", "Genf"} and "" in {row["spent"] for row in drawn}
    call("classify", run, new, "--id", "since", "--out", classes)
    assert [row["since"] for row in rows_of(classes)] == [row["since"] for row in drawn]
    assert "as labelled" in call("classify", run, tmp_path / "people.csv", "--out", tmp_path / "again.csv").stdout
    call("check", run, tmp_path / "people.csv", status=None)


@pytest.mark.slow
def test_the_report_of_a_classifier_of_such_tables(classifier, tmp_path):
    assert "Decisions" in classifier.report(classifier.save(tmp_path / "run")).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_classifier_learns_what_categories_and_gaps_say():
    """The class is in a category and in whether a number is missing: the error of Bayes' rule is known."""

    def drawn(n, seed):
        generator = np.random.default_rng(seed)
        kind = generator.random(n) < 0.5
        city = np.where(generator.random(n) < 0.8, np.where(kind, "Bern", "Genf"), "Chur")
        gone = generator.random(n) < np.where(kind, 0.5, 0.1)
        spent = np.where(gone, np.nan, generator.normal(np.where(kind, 0.5, -0.5)))
        return pd.DataFrame({"city": city, "spent": spent, "kind": np.where(kind, "a", "b")})

    # without a city: gone, with odds 5; or a number x, with odds (0.5 / 0.9) exp(x)
    from scipy.stats import norm

    edge = np.log(0.9 / 0.5)
    wrong = 0.2 * 0.5 * (0.1 + 0.5 * norm.cdf(edge - 0.5) + 0.9 * norm.sf(edge + 0.5))
    model = fk.classify(drawn(2000, 0), "kind", **MODELLED, train={"steps": 600}, show_progress=False, key=0)
    test = drawn(6000, 1)
    assert np.mean(model.predict(test) != test["kind"]) == pytest.approx(wrong, abs=0.012)
    assert all(check.passed for check in model.check()), [check for check in model.check() if not check.passed]
    rows = model.sample(6000, label="a", key=0)
    assert rows["spent"].isna().mean() == pytest.approx(0.5, abs=0.06)
    assert np.mean(rows["city"] == "Bern") == pytest.approx(0.8, abs=0.05)


# -- scikit-learn and inverse problems --------------------------------------------------------------------------------


@pytest.mark.slow
def test_estimators_take_such_tables_as_they_are(table):
    pytest.importorskip("sklearn")
    sizes = {"layers": 1, "width": 8, "depth": 1, "steps": 3, "batch_size": 32, "random_state": 0}
    with pytest.raises(ValueError, match=r"try categories=\"auto\", dates=\"auto\", missing=\"model\"$"):
        fk.FlowDensity(**sizes).fit(table)
    detector = fk.AnomalyDetector(contamination=0.1, **MODELLED, **sizes).fit(table)
    odd = table.iloc[:3].copy()
    odd.loc[0, "city"] = "Rome"
    assert detector.predict(odd)[0] == -1 and detector.p_values(table).shape == (N,)
    assert list(detector.feature_names_in_) == list(table.columns)
    with pytest.raises(ValueError, match=r"pandas\.get_dummies"):
        fk.FlowRegressor(**sizes).fit(table[["city", "year"]], table["children"])


@pytest.mark.slow
def test_other_estimators_take_such_tables_as_they_are(table):
    pytest.importorskip("sklearn")
    sizes = {"layers": 1, "width": 8, "depth": 1, "steps": 3, "batch_size": 32, "random_state": 0}
    flow = fk.FlowTransformer(**MODELLED, **sizes).fit(table)
    back = flow.inverse_transform(flow.transform(table))
    assert (back["city"].fillna("") == table["city"].fillna("")).all()
    kind = np.where(table["member"], "gold", "plain")
    classifier = fk.FlowClassifier(**MODELLED, **sizes).fit(table, kind)
    assert set(classifier.predict(table)) <= {"gold", "plain"} and classifier.n_features_in_ == table.shape[1]


def test_calibration_rows_may_have_categories_and_gaps_of_their_own(table):
    """A detector splits at random: what only the calibration rows have is rare, and no error."""
    others = table.iloc[:40].assign(city="Rome", children=np.where(np.arange(40) % 2, np.nan, 1.0))
    flow = fk.density(table, calibration=others, **MODELLED, **QUICK)
    assert "Rome" in flow.record.data.categories["city"] and "children" in flow.encoding.gaps
    assert np.isfinite(flow.log_prob(others[["city"]].join(table.iloc[:40].drop(columns="city")))).all()


def test_pairs_of_words_are_refused_with_the_columns_to_make(table):
    with pytest.raises(InputError, match=r"pairs are numbers.*pandas\.get_dummies\(x, columns=\['city'\]\)"):
        fk.invert(pairs=table[["children", "city"]], names=["children"], show_progress=False)
    with pytest.raises(InputError, match="days for dates"):
        fk.invert(pairs=(table[["children"]], table[["since"]]), show_progress=False)


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
    cells = [None, np.float64("nan"), np.datetime64("NaT", "s"), np.float32(0.5), "Bern", np.datetime64("2024-01-31")]
    assert [_shown(cell) for cell in cells] == ["missing", "missing", "missing", "0.5", "Bern", "2024-01-31"]
