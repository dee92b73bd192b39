"""Tables and images are read as they were written: the same from every source, and nothing silently something else."""

import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import flowknife as fk
from flowknife import plots
from flowknife.data import White, find_images, load_images, load_table, save_table
from flowknife.data._read import by_name
from flowknife.errors import InputError
from tests.command import call, refused, rows_of

SMALL = {"layers": 1, "width": 8, "depth": 1, "train": {"steps": 5}}
QUICK = {**SMALL, "scalar": "affine"}
SHELL = ["layers=1", "width=8", "depth=1", "scalar=affine", "train.steps=5"]
SHELL = [word for setting in SHELL for word in ("-s", setting)]
ROWS = np.random.default_rng(0).normal(size=(60, 3)) * [1, 10, 100] + [0, 50, -300]


def refusal(function, *arguments, **options):
    """The one line with which it refuses."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def flow():
    """A density of columns that are named by numbers, not in their order."""
    return fk.density(pd.DataFrame(ROWS, columns=[2, 0, 1]), show_progress=False, **QUICK)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the shell on the columns a, b, c."""
    place = tmp_path_factory.mktemp("run")
    save_table(place / "train.csv", ROWS, ["a", "b", "c"])
    call("fit", "density", place / "train.csv", "--out", place / "run", *SHELL)
    return place / "run"


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["1_0", "0x10", "1,5", "٣", "1e", "--1", "2020-01-01", "9007199254740993", "1 2"])
def test_text_that_is_not_exactly_a_number_is_refused(tmp_path, cell):
    (tmp_path / "a.csv").write_text(f'a,b\n1,2\n"{cell}",3\n', encoding="utf-8")
    assert "'a'" in refusal(load_table, tmp_path / "a.csv") and "line 3" in refusal(load_table, tmp_path / "a.csv")
    assert "'a'" in refusal(load_table, pd.DataFrame({"a": ["1", cell], "b": [2, 3]}))


@pytest.mark.parametrize(
    ("cell", "number"), [("+1", 1), (" 1 ", 1), ("1e5", 1e5), (".5", 0.5), ("007", 7), ("true", 1)]
)
def test_numbers_read_the_same_from_text_and_data_frames(tmp_path, cell, number):
    (tmp_path / "a.csv").write_text(f"a,b\n{cell},2\n3,4\n")
    pd.DataFrame({"a": [cell, "3"], "b": [2, 4]}).to_parquet(tmp_path / "a.parquet")
    for source in (tmp_path / "a.csv", tmp_path / "a.parquet", pd.DataFrame({"a": [cell, 3], "b": [2, 4]})):
        np.testing.assert_array_equal(load_table(source).values, [[number, 2], [3, 4]])


@pytest.mark.parametrize("kind", [np.int64, np.uint64, object])
def test_whole_numbers_beyond_double_precision_are_refused(kind):
    assert "9007199254740993" in refusal(load_table, np.array([2**53, 2**53 + 1], dtype=kind))
    assert load_table(np.array([2**53, 2**53 + 2], dtype=kind)).values.tolist() == [[2**53], [2**53 + 2]]


def test_a_first_line_that_may_be_data_is_no_header(tmp_path):
    (tmp_path / "iris.csv").write_text("5.1,3.5,setosa\n4.9,3.0,setosa\n")
    assert "first line" in refusal(load_table, tmp_path / "iris.csv", keep=("setosa",))
    pd.DataFrame(ROWS).to_csv(tmp_path / "counts.csv", index=False)
    assert "first line" in refusal(load_table, tmp_path / "counts.csv")
    (tmp_path / "years.csv").write_text("2019,2020,2021\n0.5,1.5,2.5\n3.5,-1.5,0.25\n")
    assert "counts 2019, 2020, 2021" in refusal(load_table, tmp_path / "years.csv")
    (tmp_path / "whole.csv").write_text("4,5,6\n3,2.5,1.5\n")
    assert load_table(tmp_path / "whole.csv").values.tolist() == [[4, 5, 6], [3, 2.5, 1.5]]


def test_a_decimal_comma_is_named(tmp_path):
    (tmp_path / "german.csv").write_text("a;b\n0,25;1\n0,5;2\n")
    for source in (tmp_path / "german.csv", pd.DataFrame({"a": ["0,25", "0,5"], "b": [1, 2]})):
        assert "'0,25', with a decimal comma where 0.25 is read" in refusal(load_table, source)


@pytest.mark.parametrize(
    "source",
    [
        np.ones((0, 3)),
        np.ones((3, 0)),
        pd.DataFrame(),
        pd.DataFrame({"a": []}),
        [],
        [[]],
        [[1, 2], [3]],
        np.array([[1, 2], [3]], dtype=object),
        np.array([[1, object()]], dtype=object),
    ],
)
def test_what_holds_no_table_is_refused_in_one_line(flow, source):
    for function in (load_table, flow.log_prob, flow.score, flow.encode):
        assert "expected" in refusal(function, source) or "encode" in refusal(function, source)


# -- columns by name --------------------------------------------------------------------------------------------------


def test_columns_named_by_numbers_are_matched_by_name(flow):
    frame = pd.DataFrame(ROWS, columns=[2, 0, 1])
    expected = flow.log_prob(ROWS)
    for other in (frame, frame[[0, 1, 2]], frame[[1, 2, 0]].assign(more="text")):
        np.testing.assert_array_equal(flow.log_prob(other), expected)
        np.testing.assert_array_equal(flow.score(other)["log_prob"], expected)
        np.testing.assert_array_equal(flow.encode(other), flow.encode(ROWS))
    assert "without 1" in refusal(flow.log_prob, frame[[0, 2]])
    assert "several columns" in refusal(flow.log_prob, pd.concat([frame, frame[[0]]], axis=1))


def test_columns_of_an_array_are_those_that_a_data_frame_counts():
    flow = fk.density(ROWS, show_progress=False, **QUICK)
    frame = pd.DataFrame(ROWS)
    np.testing.assert_array_equal(flow.log_prob(frame[[2, 0, 1]]), flow.log_prob(ROWS))
    np.testing.assert_array_equal(flow.log_prob(frame.assign(more=1.0)), flow.log_prob(ROWS))
    assert "4 columns without names" in refusal(flow.log_prob, np.ones((5, 4)).tolist())
    some = fk.density(pd.DataFrame(np.c_[ROWS, ROWS])[[1, 3, 5]], show_progress=False, **QUICK)
    wide = pd.DataFrame(np.c_[ROWS, ROWS])
    np.testing.assert_array_equal(some.log_prob(wide), some.log_prob(wide[[5, 1, 3]]))


MIXED = pd.DataFrame(ROWS, columns=["a", "b", "c"])[["c", "a", "b"]].assign(label="x")


@pytest.mark.slow
def test_rows_of_a_classifier_are_matched_by_name():
    frame = pd.DataFrame(ROWS, columns=["a", "b", "c"])
    clf = fk.classify(frame, ROWS[:, 0] > 0, show_progress=False, **QUICK)
    np.testing.assert_array_equal(clf.predict_proba(MIXED), clf.predict_proba(frame))
    assert "without b" in refusal(clf.predict, frame[["a", "c"]])


@pytest.mark.slow
def test_observations_and_parameters_are_matched_by_name():
    posterior = fk.invert(pairs=(MIXED[["a"]], MIXED[["b", "c"]]), show_progress=False, **SMALL)
    assert posterior.names == ("a",) and posterior.y_names == ("b", "c")
    np.testing.assert_array_equal(posterior.sample(2, y=MIXED, key=0), posterior.sample(2, y=ROWS[:, 1:], key=0))
    np.testing.assert_array_equal(posterior.log_prob(MIXED, MIXED), posterior.log_prob(ROWS[:, :1], ROWS[:, 1:]))


def test_estimators_match_columns_that_are_named_by_numbers():
    frame = pd.DataFrame(ROWS)
    door = fk.FlowDensity(layers=1, width=8, depth=1, scalar="affine", steps=5, random_state=0).fit(frame)
    np.testing.assert_array_equal(door.score_samples(frame[[2, 1, 0]]), door.score_samples(frame))


# -- the shell --------------------------------------------------------------------------------------------------------


def test_score_takes_other_columns_and_carries_one_along(run, tmp_path):
    save_table(tmp_path / "plain.csv", ROWS[:4], ["a", "b", "c"])
    call("score", run, tmp_path / "plain.csv", "--out", tmp_path / "plain-scores.csv")
    frame = pd.DataFrame(ROWS[:4], columns=["a", "b", "c"])[["c", "a", "b"]]
    frame.insert(0, "zip", ["00501", "501", "x, y", ""])
    frame["note"] = [np.nan, "a", "b", "c"]
    frame.to_csv(tmp_path / "more.csv", index=False)
    call("score", run, tmp_path / "more.csv", "--id", "zip", "--out", tmp_path / "scores.csv")
    found = rows_of(tmp_path / "scores.csv")
    assert list(found[0])[:2] == ["row", "zip"] and [row["zip"] for row in found] == ["00501", "501", "x, y", ""]
    expected = [row["log_prob"] for row in rows_of(tmp_path / "plain-scores.csv")]
    assert [row["log_prob"] for row in found] == expected
    out = ("--out", tmp_path / "no.csv")
    refused("score", run, tmp_path / "more.csv", "--id", "nowhere", *out, words="--id nowhere")
    frame.drop(columns="b").to_csv(tmp_path / "less.csv", index=False)
    refused("score", run, tmp_path / "less.csv", *out, words="without b")


# -- images -----------------------------------------------------------------------------------------------------------

GREYS = np.random.default_rng(1).integers(0, 1001, (16, 16))


def write(folder, *images, suffix=".png"):
    folder.mkdir(parents=True)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{i}{suffix}")
    return folder


def colours_of_16_bits(path, pixels):
    """A PNG file of 16-bit colours, which Pillow cannot write."""
    height, width, _ = pixels.shape

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    "make",
    [
        lambda place: write(place / "x", GREYS.astype(np.uint16)),
        lambda place: write(place / "x", GREYS.astype(np.uint16), suffix=".tif"),
        lambda place: write(place / "x", GREYS.astype(np.int32), suffix=".tif"),
        lambda place: write(place / "x", (GREYS / 1023).astype(np.float32), suffix=".tif"),
        lambda place: write(place / "x", (GREYS * 4).astype(np.uint16)),
        lambda place: GREYS[None].astype(np.uint16),
        lambda place: GREYS[None].astype(np.int64),
    ],
)
def test_values_are_scaled_by_the_bits_of_the_set(tmp_path, make):
    pixels = load_images(make(tmp_path), 16).pixels[0, :, :, 0]
    np.testing.assert_allclose(pixels, GREYS * 255 / 1023, atol=0.75)


def test_colours_of_16_bits_keep_their_low_bytes(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 1001, (16, 16, 3))
    colours_of_16_bits(tmp_path / "a.png", pixels)
    found = load_images(tmp_path, 16)
    np.testing.assert_allclose(found.pixels[0], pixels * 255 / 1023, atol=0.51)
    assert found.white.whole == 1023


def test_truth_values_are_black_and_white(tmp_path):
    truth = np.random.default_rng(3).random((5, 8, 8)) < 0.5
    for source in (truth, truth.astype(np.uint8), write(tmp_path / "x", *truth.astype(np.uint8))):
        np.testing.assert_array_equal(load_images(source, 8).pixels[..., 0], 255 * truth)


def test_the_scale_of_training_is_kept(tmp_path):
    dark = write(tmp_path / "dark", (GREYS // 4).astype(np.uint16))
    pixels = load_images(dark, 16, white=White(whole=1023.0)).pixels[0, :, :, 0]
    np.testing.assert_allclose(pixels, (GREYS // 4) * 255 / 1023, atol=0.51)
    with pytest.raises(InputError, match="would be black"):
        load_images(dark, 16, white=White())
    assert "8 bits" in refusal(load_images, GREYS[None].astype(int), 16, white=White())


def test_a_list_beside_the_folder_is_for_those_who_ask(tmp_path):
    write(tmp_path / "x", *[np.full((8, 8), i, np.uint8) for i in range(3)])
    (tmp_path / "list_eval_partition.txt").write_text("0.png 12\n1.png 1\n2.png 0\n")
    assert find_images(tmp_path / "x").partitions_inside is None
    assert load_images(tmp_path / "x", 8, partition="train").names == ("2.png",)


def test_other_names_of_jpeg_are_images(tmp_path):
    for suffix in (".jfif", ".jpe", ".JPE"):
        Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / f"a{suffix}", "JPEG")
    assert len(load_images(tmp_path, 8)) == 3


# -- names in figures -------------------------------------------------------------------------------------------------

ODD = ("$\\frac{$", "a_b^{c", "two\nlines", "😀", "long " * 60, "not text \udcff", "nul\0")


def test_names_are_text_in_every_figure(tmp_path):
    made = [plots.confusion(np.eye(7), ODD), plots.samples(ROWS[:, :2], ROWS[:, :2], ODD[:2])]
    for i, figure in enumerate(made):
        figure.savefig(tmp_path / f"{i}.png", dpi=30)
        assert (tmp_path / f"{i}.png").stat().st_size


def test_names_of_files_that_are_no_text_are_written(tmp_path):
    from flowknife.cli._files import write_columns

    write_columns(tmp_path / "a.csv", {"path": np.array(["a\udcff.png", "b.png"]), "score": np.array([1.0, 2.0])})
    assert [row["path"] for row in rows_of(tmp_path / "a.csv")] == ["a\\udcff.png", "b.png"]


def test_a_row_of_a_data_frame_is_read_by_name():
    names = ("y1", "y2")
    assert by_name(pd.Series({"y2": 2.0, "y1": 1.0, "x": 0.0}), names) == [1.0, 2.0]
    assert by_name({"y2": 2.0, "y1": 1.0}, names) == [1.0, 2.0]
    assert by_name(pd.Series([1.0, 2.0], index=[1, 0]), ("0", "1")) == [2.0, 1.0]
    for plain in (pd.Series([1.0, 2.0]), [1.0, 2.0], np.ones(2)):
        assert by_name(plain, names) is None
    for wrong in ({"y1": 1.0, "z": 2.0}, pd.Series([1.0, 2.0, 3.0], index=["y1", "y2", "y1"])):
        with pytest.raises(InputError, match="expected one for each of y1, y2"):
            by_name(wrong, names)


def test_parameters_of_pairs_are_named_once():
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 3.0]})
    assert "got the names a, a; expected different ones" in refusal(fk.invert, pairs=frame, names=["a", "a"])
    assert "no column 'mass'" in refusal(fk.invert, pairs=frame, names="mass")
