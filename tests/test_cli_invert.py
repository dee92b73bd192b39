"""The command line on inverse problems: problems by name and pairs in files, observations in, draws out."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

import flowknife as fk
from flowknife import apps
from flowknife.data import load_table, save_table
from flowknife.data._pairs import read_pairs
from flowknife.diagnostics import Check
from tests.command import call, refused, rows_of

TINY = ["-s", "layers=1", "-s", "width=8", "-s", "depth=1", "-s", "features=0", "-s", "num_simulations=240"]
TINY += ["-s", "train.steps=5", "-s", "train.weight_decay=0", "-s", "train.batch_size=32", "-s", "train.validation=0.5"]
NAMES = ("base", "angle1", "angle2", "angle3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def fitted(place):
    return call("fit", "invert", "kinematics", "--out", place / "arm", *TINY), place / "arm"


@pytest.fixture(scope="module")
def arm(fitted):
    return fitted[1]


@pytest.fixture(scope="module")
def observations(place):
    """Two observations, the second of which no arm can reach."""
    path = place / "observations.csv"
    save_table(path, [[1.7, 0.1], [40.0, -40.0]], ["hand1", "hand2"])
    return path


@pytest.fixture(scope="module")
def pairs(place):
    """Pairs of three parameters and two data, in one table."""
    x = np.random.default_rng(0).normal(size=(120, 3))
    save_table(place / "pairs.csv", np.c_[x[:, :2] + x[:, 2:], x], ["late", "early", "mass", "speed", "angle"])
    return place / "pairs.csv"


@pytest.fixture
def trained(arm, monkeypatch):
    """In place of training, the run that is there; returns the arguments of every call."""
    calls = []

    def invert_at_once(simulator=None, prior=None, config=None, **options):
        calls.append({"simulator": simulator, "prior": prior, "config": config, **options})
        return fk.load(arm)

    monkeypatch.setattr(apps, "invert", invert_at_once)
    return calls


def test_fit_invert_writes_a_run_and_says_what_comes_next(fitted):
    result, run = fitted
    record = json.loads((run / "run.json").read_text())
    assert record["application"] == "invert" and record["data"]["problem"] == "kinematics"
    assert record["data"]["names"] == list(NAMES) and record["data"]["y_names"] == ["hand1", "hand2"]
    assert f"{record['metrics']['nll']:.4g} nats" in result.stdout
    following = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("  flowknife ")]
    assert following == ["invert", "score", "report"]


def test_info_shows_both_ends_and_the_condition(arm):
    text = call("info", arm).stdout
    assert re.search(r"left end +x 4", text) and re.search(r"right end +z 4, Normal, given y 2", text)


def test_invert_writes_draws_with_the_number_of_their_observation(tmp_path, arm, observations):
    for name in ("draws.csv", "draws.npy", "deep/draws.npz"):
        result = call("invert", arm, observations, "-n", 5, "--seed", 1, "--out", tmp_path / name)
        assert result.stdout == f"wrote 5 draws for each of 2 observations to {tmp_path / name}\n"
        assert "1 of 2 observations is unlike the simulations" in result.stderr
    tables = [load_table(tmp_path / name) for name in ("draws.csv", "draws.npy", "deep/draws.npz")]
    assert tables[0].names == ("observation", *NAMES) and tables[0].values.shape == (10, 5)
    np.testing.assert_array_equal(tables[0].values[:, 0], np.repeat([0, 1], 5))
    for table in tables[1:]:
        np.testing.assert_array_equal(table.values, tables[0].values)
    assert rows_of(tmp_path / "draws.csv")[0]["observation"] == "0"
    y = np.array([[1.7, 0.1], [40.0, -40.0]], np.float32)
    expected = fk.load(arm).sample(5, y=y, key=1)
    np.testing.assert_allclose(tables[0].values[:, 1:], expected.reshape(10, 4), rtol=1e-6)


def test_sample_of_a_posterior_asks_for_an_observation(tmp_path, arm, observations):
    draws = [tmp_path / "a.npy", tmp_path / "b.npy"]
    call("sample", arm, "-n", 3, "--given", observations, "--seed", 0, "--out", draws[0])
    call("invert", arm, observations, "-n", 3, "--seed", 0, "--out", draws[1])
    np.testing.assert_array_equal(np.load(draws[0]), np.load(draws[1]))
    refused("sample", arm, "--out", tmp_path / "c.csv", words="--given")
    refused("sample", arm, "--label", "1", "--given", observations, "--out", tmp_path / "c.csv", words="--label")


def test_observations_come_in_any_order_of_columns_and_some_may_be_left_out(tmp_path, arm, observations):
    save_table(
        tmp_path / "mixed.csv",
        [[0.1, 9, 1.7], [np.nan, 9, 1.0], [-40, 9, 40], [1, np.nan, 1]],
        ["hand2", "other", "hand1"],
    )
    np.save(tmp_path / "one.npy", np.array([1.7, 0.1]))
    arguments = ("invert", arm, tmp_path / "mixed.csv", "-n", 2, "--seed", 0, "--out", tmp_path / "a.csv")
    refused(*arguments, words=("missing or infinite", "--drop-invalid"))
    result = call(*arguments, "--drop-invalid")
    assert "left out 1 row" in result.stderr
    assert [row["observation"] for row in rows_of(tmp_path / "a.csv")] == ["0", "0", "2", "2", "3", "3"]
    call("invert", arm, tmp_path / "one.npy", "-n", 2, "--seed", 0, "--out", tmp_path / "one.csv")
    assert len(rows_of(tmp_path / "one.csv")) == 2


def test_score_tells_which_observations_the_simulator_cannot_make(tmp_path, arm, observations):
    result = call("score", arm, observations, "--out", tmp_path / "scores.csv")
    rows = rows_of(tmp_path / "scores.csv")
    assert list(rows[0]) == ["row", "score", "p_value", "flag", "q_value", "discovery"]
    assert [row["flag"] for row in rows] == ["False", "True"] and "1 flagged" in result.stdout


def test_check_takes_pairs(tmp_path, arm, monkeypatch):
    judged = []
    monkeypatch.setattr(
        apps.Posterior, "check", lambda self, data=None, given=None: judged.append(data) or [Check("ranks", 0.0, 1.0)]
    )
    x, y = np.zeros((3, 4)), np.ones((3, 2))
    np.savez(tmp_path / "pairs.npz", x=x, y=y)
    save_table(tmp_path / "pairs.csv", np.c_[y, x], ["hand1", "hand2", *NAMES])
    for arguments in ([], [tmp_path / "pairs.npz"], [tmp_path / "pairs.csv"]):
        call("check", arm, *arguments)
    assert judged[0] is None
    posterior = fk.load(arm)
    for source in judged[1:]:
        pair = read_pairs(source, posterior.names, posterior.y_names)
        np.testing.assert_array_equal(pair.x, x)
        np.testing.assert_array_equal(pair.y, y)


def test_report_of_a_posterior_is_written(tmp_path, arm, monkeypatch):
    given = []
    monkeypatch.setattr(
        apps.Posterior, "report", lambda self, run, others, interactive: given.append(run) or run / "report.html"
    )
    assert call("report", arm).stdout == f"report: {arm / 'report.html'}\n" and given == [arm]
    refused("report", arm, "--others", tmp_path, words="--others")


@pytest.mark.slow
def test_pairs_of_a_table_keep_their_names(tmp_path, pairs):
    names, options = ("mass", "speed", "angle"), " ".join(TINY).replace("-s num_simulations=240", "").split()
    table = load_table(pairs)
    for source in (pairs, pd.read_csv(pairs)):
        found = read_pairs(source, names)
        np.testing.assert_allclose(np.column_stack([found.y, found.x]), table.values, rtol=1e-6)
        assert found.names == names and found.y_names == ("late", "early")
        assert read_pairs(source, names, ["early"]).y.shape == (120, 1)
    call("fit", "invert", pairs, "--out", tmp_path / "run", "--parameters", ",".join(names), *options)
    posterior = fk.load(tmp_path / "run")
    assert posterior.names == names
    assert posterior.y_names == ("late", "early") and posterior.record.data.prior_estimated


def test_pairs_of_two_arrays_have_numbers_for_names(tmp_path, trained):
    x, y = np.zeros((20, 3)), np.ones((20, 2, 2))
    np.savez(tmp_path / "pairs.npz", x=x, y=y)
    call("fit", "invert", tmp_path / "pairs.npz", "--out", tmp_path / "run", "-s", "noise=0.1")
    assert trained[0]["simulator"] is None and trained[0]["config"].noise == 0.1
    found = read_pairs(trained[0]["pairs"])
    assert [found.x.shape, found.y.shape, found.names] == [(20, 3), (20, 4), ()]


def test_fit_invert_refuses_in_one_line(tmp_path, pairs):
    def fit(data, *options, words):
        refused("fit", "invert", data, "--out", tmp_path / "run", *options, words=words)
        assert not (tmp_path / "run").exists()

    fit("kinematic", words=("'kinematic'", "ballistics", "try kinematics"))
    fit("kinematics", "--parameters", "a", words="--parameters")
    fit(tmp_path / "missing.npz", words="missing.npz")
    fit(tmp_path / "missing.csv", "--parameters", "a", words="no file")
    fit(pairs, words=("no names of parameters", "--parameters late"))
    fit(pairs, "--parameters", "mass,weight", words=("'weight'", "angle"))
    fit(pairs, "--parameters", "mass, weight", words="no column 'weight'")
    fit(pairs, "--parameters", "late,early,mass,speed,angle", words="only parameters")
    for name, x, y, words in (
        ("length", np.zeros((20, 2)), np.zeros((19, 1)), "as many rows"),
        ("one", np.zeros((1, 2)), np.zeros((1, 1)), "1 usable pairs of 1"),
        ("scalar", np.zeros((20, 2)), np.float64(1), "as many rows"),
    ):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
        fit(tmp_path / f"{name}.npz", words=words)
    np.savez(tmp_path / "other.npz", theta=np.zeros(3), y=np.zeros(3))
    fit(tmp_path / "other.npz", words=("theta", "expected x and y"))


def test_observations_that_cannot_be_used_are_told(tmp_path, arm, observations):
    save_table(tmp_path / "long.csv", np.zeros((2, 3)), ["a", "b", "c"])
    for verb in ("invert", "score"):
        refused(verb, arm, tmp_path / "long.csv", "--out", tmp_path / "a.csv", words=("a, b, c", "hand1, hand2"))
        refused(verb, arm, tmp_path / "no.csv", "--out", tmp_path / "a.csv", words="no file")
    refused("invert", arm, observations, "--out", tmp_path / "a.png", words=("a.png", ".csv"))
    refused("classify", arm, observations, "--out", tmp_path / "a.csv", words=("invert", "classify"))
    assert not list(tmp_path.glob("a.*"))


def test_draws_are_refined_where_the_likelihood_is_known(tmp_path, arm, observations):
    """x ~ N(0, 1), y = 2 x + N(0, 0.5^2), so that x given y is N(8 y / 17, 1 / 17); the simulator is in a file."""
    prior = fk.Normal([0.0], [1.0], names=["a"])
    tiny = {"layers": 1, "width": 8, "depth": 1, "features": 0, "show_progress": False, "key": 0}
    posterior = fk.invert(
        lambda x: 2 * x, prior, noise=0.5, num_simulations=400, train={"steps": 5, "weight_decay": 0}, **tiny
    )
    run = posterior.save(tmp_path / "run")
    (tmp_path / "doubled_file.py").write_text("def doubled(x):\n    return 2 * x\n")
    save_table(tmp_path / "y.csv", [[1.7]], ["y1"])
    given = tmp_path / "y.csv", "--refine", "--out", tmp_path / "draws.csv"
    named = "--simulator", tmp_path / "doubled_file.py:doubled"
    call("invert", run, *given, *named, "-n", "500", "--seed", "1")
    drawn = load_table(tmp_path / "draws.csv", columns=["a"]).values
    assert drawn.shape == (500, 1) and len(np.unique(drawn)) > 450
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [0.8, 17**-0.5], atol=0.045)
    other = "--out", tmp_path / "none.csv"
    refused("invert", run, tmp_path / "y.csv", "--refine", *other, words=("not known", "--simulator FILE.py:NAME"))
    refused("invert", run, tmp_path / "y.csv", *named, *other, words="--simulator without --refine")
    refused("invert", arm, observations, "--refine", *other, words=("not known", "try noise="))
    refused(
        "sample",
        run,
        "--given",
        *given,
        *named,
        "--overwrite",
        "--temperature",
        "0.5",
        words="--temperature with --refine",
    )
    assert not (tmp_path / "none.csv").exists()


def test_a_run_of_another_kind_is_no_posterior(tmp_path, arm, observations):
    run = shutil.copytree(arm, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "application": "density"}))
    refused("invert", run, observations, "--out", tmp_path / "a.csv", words="run")
