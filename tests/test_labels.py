"""Labels: what is unknown, what is a class, and that classes come back as they were given."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import flowknife as fk
from flowknife.data import save_table, write_folder
from flowknife.data._pairs import read_labelled
from flowknife.data.labels import label_codes
from flowknife.errors import InputError
from tests.command import call, refused, rows_of

QUICK = {"layers": 1, "width": 8, "depth": 1, "scalar": "affine", "train": {"steps": 5, "batch_size": 32}}
# longer, by the same compiled programs
SHELL = ["layers=1", "width=8", "depth=1", "scalar=affine", "train.steps=60", "train.batch_size=32"]
SHELL = [word for setting in SHELL for word in ("-s", setting)]
PLACE = np.arange(60) % 3
ROWS = np.random.default_rng(0).normal(size=(60, 2)) + 20 * PLACE[:, None]


def fitted(labels):
    return fk.classify(ROWS, labels, show_progress=False, **QUICK)


def with_classes(classifier, classes):
    data = classifier.record.data.model_copy(update={"classes": classes})
    return replace(classifier, record=classifier.record.model_copy(update={"data": data}))


@pytest.fixture(scope="module")
def classifier():
    return fitted(PLACE - 1)


@pytest.mark.parametrize(
    "names",
    [
        ("none", "None", "nan"),
        ("NA", "null", "-1"),
        (-1, 0, 1),
        (0.0, 1.0, 2.0),
        ("01", "1", "1.0"),
        ("1e5", "+1", "1_0"),
        (2**53, 2**53 + 1, 2**70),
        ("$x$", "a b", "ä"),
    ],
)
def test_labels_are_classes_and_come_back_as_given(names, classifier):
    classes, codes = label_codes([names[i] for i in PLACE], 60)
    assert sorted(classes) == sorted(names) and np.all(codes >= 0)
    assert {type(name) for name in classes} == {type(name) for name in names}
    like = with_classes(classifier, classes)
    found = like.predict(ROWS).tolist()
    assert set(found) <= set(names) and {type(name) for name in found} <= {type(name) for name in names}
    np.testing.assert_array_equal(like.codes(names), [classes.index(name) for name in names])


def test_minus_one_is_a_class(classifier):
    assert classifier.classes == (-1, 0, 1) and classifier.record.data.unlabelled == 0


def test_truth_values_come_back_as_truth_values(tmp_path):
    classifier = fitted(PLACE > 0)
    assert classifier.classes == (False, True) and classifier.predict(ROWS).dtype == bool
    classifier.save(tmp_path / "run")
    assert all(isinstance(name, bool) for name in fk.load(tmp_path / "run").classes)


@pytest.mark.parametrize("unknown", [None, float("nan"), np.nan, pd.NA, pd.NaT, "", np.datetime64("NaT", "s")])
def test_only_objects_and_empty_cells_are_unknown(unknown, classifier):
    labels = [unknown if i < 5 else ("cat", "dog", "nan")[k] for i, k in enumerate(PLACE)]
    classes, codes = label_codes(labels, 60)
    assert classes == ("cat", "dog", "nan") and np.sum(codes == -1) == 5
    like = with_classes(classifier, classes)
    np.testing.assert_array_equal(like.codes([unknown, "nan", "cow"]), [-1, 2, -2])


def test_labels_that_would_merge_are_refused():
    for labels in ([1, "1", 2] * 20, [0.5, 1.5, 2] * 20, [("a", 1)] * 60, [1 + 2j, 1, 2] * 20):
        with pytest.raises(InputError, match="label"):
            fitted(labels)


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (("0", "1", "2"), (0, 1, 2)),
        (("01", "1", "2"), ("01", "1", "2")),
        (("00501", "501", "x"), ("00501", "501", "x")),
        (("9007199254740992", "9007199254740993", "0"), (0, 2**53, 2**53 + 1)),
        (("1_0", "10", "1"), ("1", "10", "1_0")),
        (("none", "nan", "None"), ("None", "nan", "none")),
        (("-1", "0", "1"), (-1, 0, 1)),
        (("0.0", "1.0", "2.0"), (0.0, 1.0, 2.0)),
        (("0x10", "16", "1e1"), ("0x10", "16", "1e1")),
    ],
)
def test_labels_of_a_text_file_are_as_written(tmp_path, cells, classes):
    lines = [f"{a},{cells[k]},{b}" for (a, b), k in zip(ROWS, PLACE, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["u,label,v", *lines]))
    read = read_labelled(tmp_path / "a.csv")
    np.testing.assert_allclose(read.table.values, ROWS, rtol=1e-6)
    found = label_codes(read.labels, 60)[0]
    assert found == classes and [type(a) for a in found] == [type(a) for a in classes]


def test_the_shell_counts_what_is_as_labelled(tmp_path):
    save_table(tmp_path / "train.csv", np.c_[ROWS, PLACE], ["a", "b", "label"])
    call("fit", "classify", tmp_path / "train.csv", "--out", tmp_path / "run", *SHELL)
    model = fk.load(tmp_path / "run")
    share = f"{np.mean(model.predict(ROWS) == PLACE):.1%} as labelled"
    assert model.classes == (0, 1, 2) and not share.startswith("0.0%")
    result = call("classify", tmp_path / "run", tmp_path / "train.csv", "--out", tmp_path / "classes.csv")
    assert share in result.stdout
    frame = pd.DataFrame(ROWS, columns=["a", "b"]).assign(label=PLACE.astype(float))
    predicted = model.predict(ROWS)
    frame.loc[predicted != PLACE, "label"] = np.nan  # unknown labels are no errors
    frame.to_csv(tmp_path / "some.csv", index=False)
    result = call("classify", tmp_path / "run", tmp_path / "some.csv", "--out", tmp_path / "some-classes.csv")
    assert "100.0% as labelled" in result.stdout
    frame.assign(label="", name=[f"0{i}" for i in range(60)]).to_csv(tmp_path / "none.csv", index=False)
    out = tmp_path / "named.csv"
    result = call("classify", tmp_path / "run", tmp_path / "none.csv", "--id", "name", "--out", out)
    assert "labelled" not in result.stdout and rows_of(out)[7]["name"] == "07"
    call("sample", tmp_path / "run", "-n", 2, "--label", "1", "--out", tmp_path / "ones.csv")
    refused("sample", tmp_path / "run", "--label", "3", "--out", tmp_path / "x.csv", words="--label 3")


@pytest.mark.parametrize("broken", [False, True])
def test_a_class_folder_without_images_is_named(tmp_path, broken):
    write_folder(np.full((20, 8, 8), 9, np.uint8), tmp_path / "x", np.repeat(["none", "nan"], 10))
    (tmp_path / "x" / "bird").mkdir()
    if broken:
        (tmp_path / "x" / "bird" / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="bird"):
        fk.classify(tmp_path / "x", show_progress=False, **QUICK)


def test_a_whole_number_in_two_ways_among_words_is_refused():
    with pytest.raises(InputError, match=r"got the labels 1 and 1\.0; expected labels of one kind"):
        label_codes([1, 1.0, "x"], 3)
    assert label_codes([1.0, 1.0, "x"], 3)[0] == ("1.0", "x")
    with pytest.raises(InputError, match="expected labels of one kind"):
        label_codes([1.0, "1.0"], 2)
