"""The command line on classifiers of rows and of images."""

import json
import re

import numpy as np
import pandas as pd
import pytest

import flowknife as fk
from flowknife import apps
from flowknife.data import digits, load_table, save_table, write_folder
from flowknife.data._pairs import read_labelled
from flowknife.diagnostics import Check
from tests.command import call, refused, rows_of

SIZES = {"layers": 1, "width": 8, "depth": 1, "scalar": "affine"}
STEPS = {"steps": 5, "batch_size": 32}
TINY = [f"--set={name}={value}" for name, value in SIZES.items()]
TINY += [f"--set=train.{name}={value}" for name, value in STEPS.items()]
SPECIES = ("cat", "dog")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def table(place):
    """Rows of two species far apart, three of them without a name."""
    generator = np.random.default_rng(0)
    species = generator.integers(2, size=200)
    rows = generator.normal(size=(200, 2)) + 8 * species[:, None]
    lines = [
        f"{a:.6f},{SPECIES[k] if i > 2 else ''},{b:.6f}"
        for i, (k, (a, b)) in enumerate(zip(species, rows, strict=True))
    ]
    path = place / "animals.csv"
    path.write_text("\n".join(["height,species,length", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def fitted(place, table):
    return call("fit", "classify", table, "--label", "species", "--out", place / "animals", *TINY), place / "animals"


@pytest.fixture(scope="module")
def animals(fitted):
    return fitted[1]


@pytest.fixture(scope="module")
def folder(place):
    """Images of zeros and ones, 8 x 8, in one folder each, and a file that cannot be used."""
    images, labels = digits()
    chosen = labels < 2
    write_folder(images[chosen][:80], place / "digits", labels[chosen][:80])
    (place / "digits" / "0" / "broken.png").write_bytes(b"")
    return place / "digits"


@pytest.fixture(scope="module")
def images(place, folder):
    call("fit", "classify", folder, "--out", place / "zeros and ones", *TINY)
    return place / "zeros and ones"


def test_fit_classify_writes_a_run_and_says_what_comes_next(fitted):
    result, run = fitted
    record = json.loads((run / "run.json").read_text())
    assert record["application"] == "classify" and record["data"]["label_column"] == "species"
    assert record["data"]["names"] == ["height", "length"] and record["data"]["unlabelled"] == 3
    assert re.search(r"accuracy +[\d.]+ share of rows", result.stdout)
    following = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("  flowknife ")]
    assert following == ["sample", "classify", "report"]


def test_classify_writes_labels_and_probabilities(tmp_path, animals, table):
    result = call("classify", animals, table, "--out", tmp_path / "classes.csv")
    rows = rows_of(tmp_path / "classes.csv")
    assert list(rows[0]) == ["row", "label", "p(cat)", "p(dog)", "p_value", "flag"] and len(rows) == 200
    model, x = fk.load(animals), load_table(_without_species(table, tmp_path)).values
    assert [row["label"] for row in rows] == model.predict(x).tolist()
    shares = np.array([[float(row[f"p({name})"]) for name in SPECIES] for row in rows])
    np.testing.assert_allclose(shares, model.predict_proba(x), atol=1e-6)
    assert re.search(r"wrote 200 classes .*; \d+\.\d% as labelled", result.stdout)


def _without_species(table, folder):
    path = folder / "bare.csv"
    path.write_text("\n".join(",".join(line.split(",")[::2]) for line in table.read_text().splitlines()))
    return path


def test_classify_needs_no_labels(tmp_path, animals, table):
    for name, data in (("a.csv", table), ("b.csv", _without_species(table, tmp_path))):
        result = call("classify", animals, data, "--out", tmp_path / name)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text() and "labelled" not in result.stdout


def test_sample_draws_a_class(tmp_path, animals):
    call("sample", animals, "-n", 6, "--label", "dog", "--seed", 1, "--out", tmp_path / "dogs.csv")
    drawn = load_table(tmp_path / "dogs.csv")
    assert drawn.names == ("height", "length")
    np.testing.assert_allclose(drawn.values, fk.load(animals).sample(6, label="dog", key=1), rtol=1e-5)
    call("sample", animals, "-n", 6, "--out", tmp_path / "any.csv")
    assert load_table(tmp_path / "any.csv").values.shape == (6, 2)
    refused("sample", animals, "--label", "cow", "--out", tmp_path / "a.csv", words=("--label cow", "cat, dog"))
    refused("sample", animals, "--given", "a.csv", "--out", tmp_path / "a.csv", words=("--given", "invert"))


def test_score_and_check_take_the_table_of_training(tmp_path, animals, table, monkeypatch):
    call("score", animals, table, "--out", tmp_path / "scores.csv")
    assert {"row", "p_value", "flag"} <= set(rows_of(tmp_path / "scores.csv")[0])
    judged = []
    monkeypatch.setattr(
        apps.Classifier, "check", lambda self, data, given: judged.append(data) or [Check("alarms", 0.0, 1.0)]
    )
    call("check", animals, table)
    call("check", animals, _without_species(table, tmp_path))
    assert isinstance(judged[0], tuple) and judged[1].shape == (200, 2)
    assert judged[0][0].shape == (200, 2) and set(judged[0][1]) == {"cat", "dog", ""}


@pytest.mark.slow
def test_images_are_classified(tmp_path, images, folder):
    text = call("info", images).stdout
    assert re.search(r"left end +image 8 x 8 x 1", text)
    result = call("classify", images, folder, "--out", tmp_path / "classes.csv")
    rows = rows_of(tmp_path / "classes.csv")
    assert list(rows[0]) == ["path", "label", "p(0)", "p(1)", "p_value", "flag"] and len(rows) == 80
    assert "skipped 1 file" in result.stderr and len(rows_of(tmp_path / "skipped.csv")) == 1
    call("sample", images, "-n", 3, "--label", "1", "--seed", 0, "--out", tmp_path / "ones.npy")
    assert np.load(tmp_path / "ones.npy").shape == (3, 8, 8, 1)


def test_labels_come_from_a_column_or_an_array(tmp_path):
    save_table(tmp_path / "a.csv", [[1, 2, 0], [3, 4, 1], [5, 6, 1]], ["a", "b", "label"])
    np.savez(tmp_path / "a.npz", x=[[1, 2], [3, 4], [5, 6]], labels=[0, 1, 1])
    (tmp_path / "bare.csv").write_text("1,2,0\n3,4,1\n5,6,1\n")
    save_table(tmp_path / "a.npy", [[1, 2, 0], [3, 4, 1], [5, 6, 1]])
    frame = pd.DataFrame({"a": [1, 3, 5], "kind": [0, 1, 1], "b": [2, 4, 6]})
    for source, column in (("a.csv", None), ("a.npz", None), ("a.npy", "x3"), ("bare.csv", "x3"), (frame, "kind")):
        found = read_labelled(tmp_path / source if isinstance(source, str) else source, column)
        np.testing.assert_array_equal(found.table.values, [[1, 2], [3, 4], [5, 6]])
        np.testing.assert_array_equal(found.labels, [0, 1, 1])


def test_python_takes_the_table_that_the_shell_takes(animals, table):
    model, shell = fk.classify(table, "species", train=STEPS, show_progress=False, **SIZES), fk.load(animals)
    assert model.record.data == shell.record.data and model.names == ("height", "length")
    rows = load_table(table, columns=model.names).values
    np.testing.assert_allclose(model.log_prob(rows), shell.log_prob(rows), rtol=1e-5)
    frame = pd.read_csv(table)
    again = fk.classify(frame, "species", train=STEPS, show_progress=False, **SIZES)
    assert again.record.data.fingerprint == shell.record.data.fingerprint and again.classes == shell.classes
    assert len(model.check(frame)) == len(model.check())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,2\n3,4\n", ("'label'", "a, b", "--label b")),
        ("a,label\n1,cat\n3,cat\n5,cat\n", ("1 class", "at least 2")),
        ("a,label\n1,cat\n,dog\n5,cat\n", ("missing or infinite", "'a'")),
        ("a,colour,label\n1,red,cat\n2,red,dog\n3,red,cat\n", ("'colour'", "'red'")),
        ("a,label\n1,cat\n2\n", "line 3"),
        ("a,label\n", "no rows"),
        ("", "no rows"),
        ("a,a,label\n1,2,cat\n", "a name twice"),
        ("1,0\n2,1\n3,0\n", ("'label'", "x1, x2")),
    ],
)
def test_fit_classify_refuses_in_one_line(tmp_path, content, words):
    (tmp_path / "a.csv").write_text(content)
    refused("fit", "classify", tmp_path / "a.csv", "--out", tmp_path / "run", words=words)
    assert not (tmp_path / "run").exists()


def test_fit_classify_refuses_folders_without_classes(tmp_path, place):
    images, labels = digits()
    write_folder(images[:12], tmp_path / "flat")
    refused("fit", "classify", tmp_path / "flat", "--out", tmp_path / "run", words="subfolder")
    write_folder(images[labels == 3][:12], tmp_path / "threes", labels[labels == 3][:12])
    refused("fit", "classify", tmp_path / "threes", "--out", tmp_path / "run", words="class")
    refused("fit", "classify", tmp_path / "no", "--out", tmp_path / "run", words="no")
    np.savez(tmp_path / "a.npz", x=np.zeros((5, 2)), labels=np.zeros(4))
    refused("fit", "classify", tmp_path / "a.npz", "--out", tmp_path / "run", words="as many rows")


def test_other_runs_do_not_classify(tmp_path, animals, table):
    refused("invert", animals, table, "--out", tmp_path / "a.csv", words=("classify", "invert"))
    refused("classify", animals, table, "--out", tmp_path / "a.npy", words=".csv")
    refused("classify", animals, tmp_path / "no.csv", "--out", tmp_path / "a.csv", words="no.csv")
