"""Tables: what is read, what is refused and how, and that writing and reading are inverse."""

import decimal
import gzip
import os

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from flowknife.data import load_table, save_table
from flowknife.data.tables import TABLE_SUFFIXES
from flowknife.errors import InputError, StorageError

X = np.random.default_rng(0).standard_normal((7, 3))


@pytest.fixture
def write(tmp_path):
    """Write text or bytes to a file of the given name; its path."""

    def write_file(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def refusal(source, **options):
    """The one line with which `load_table` refuses a source."""
    with pytest.raises(InputError) as caught:
        load_table(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "source",
    [
        X,
        X.astype(np.float32),
        X.tolist(),
        jnp.asarray(X),
        X.astype(object),
        np.ma.masked_array(X),
        pd.DataFrame(X),
        [[decimal.Decimal(repr(float(value))) for value in row] for row in X],
    ],
    ids=["float64", "float32", "list", "jax", "object", "masked", "DataFrame", "Decimal"],
)
def test_kinds_of_table_give_the_same_values(source):
    table = load_table(source)
    assert table.values.dtype == np.float32
    np.testing.assert_array_equal(table.values, X.astype(np.float32))
    assert table.names == ("x1", "x2", "x3")
    assert (table.dropped, table.dropped_rows) == (0, ())


def test_one_column_may_come_as_a_vector():
    for source in (X[:, 0], list(X[:, 0]), jnp.asarray(X[:, 0])):
        assert load_table(source).values.shape == (7, 1)
    assert load_table(pd.Series(X[:, 0], name="speed")).names == ("speed",)
    assert load_table(pd.Series(X[:, 0])).names == ("x1",)


def test_whole_numbers_truth_values_and_small_floats_are_numbers():
    frame = pd.DataFrame({"count": [1, 2], "flag": [True, False], "nullable": pd.array([3, 4], dtype="Int64")})
    np.testing.assert_array_equal(load_table(frame).values, [[1, 1, 3], [2, 0, 4]])
    np.testing.assert_array_equal(load_table(jnp.array([[1.5], [2.5]], jnp.bfloat16)).values, [[1.5], [2.5]])
    np.testing.assert_array_equal(load_table(np.array([7, 8], np.uint8)).values, [[7], [8]])


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_saving_and_loading_are_inverse(suffix, dtype, tmp_path):
    values = X.astype(dtype)
    values[:, 0] += 1e6 if dtype == np.float64 else 0  # float64 comes back as such only where it is needed
    path = tmp_path / "new" / f"table{suffix}"
    save_table(path, values, ["a", "b, c", "d"])
    table = load_table(path)
    assert table.values.dtype == dtype
    np.testing.assert_array_equal(table.values, values)
    assert table.names == (("x1", "x2", "x3") if suffix in (".npy", ".npz") else ("a", "b, c", "d"))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_saving_twice_gives_the_same_bytes(tmp_path):
    first, second = tmp_path / "a.csv.gz", tmp_path / "b.csv.gz"
    save_table(first, X)
    save_table(second, X)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[4:8] == b"\0\0\0\0"  # where gzip keeps the time
    assert gzip.decompress(first.read_bytes()).startswith(b"x1,x2,x3\n")


def test_float64_is_kept_only_where_float32_loses_the_variation():
    seconds = 1.7e9 + np.arange(1000.0)
    table = load_table(np.stack([seconds, np.zeros(1000)], axis=1))
    np.testing.assert_array_equal(table.values[:, 0], seconds)
    assert load_table(2000 + np.arange(50.0)).values.dtype == np.float32
    # a constant comes back exactly
    assert load_table(np.full((3, 1), 0.5)).values.dtype == np.float32
    assert np.all(load_table(np.full((3, 1), 0.1)).values == 0.1)
    assert load_table([1e300, -1e300]).values.dtype == np.float64  # beyond the range of float32
    assert load_table([1e-60, 2e-60]).values.dtype == np.float64


@pytest.mark.parametrize(
    ("name", "content", "names", "values"),
    [
        ("plain.csv", "a,b\n1,2\n3,4\n", ("a", "b"), [[1, 2], [3, 4]]),
        ("no_header.csv", "1,2\n3,4", ("x1", "x2"), [[1, 2], [3, 4]]),
        ("no_header_missing.csv", "1,2\n3,4\n,5\n", ("x1", "x2"), [[1, 2], [3, 4]]),
        ("first_row_missing.csv", "1,NA\n1,2\n3,4\n", ("x1", "x2"), [[1, 2], [3, 4]]),
        ("windows.csv", "\ufeffa,b\r\n1,2\r\n\r\n3,4\r\n", ("a", "b"), [[1, 2], [3, 4]]),
        ("semicolon.csv", "a;b\n1;2\n3;4\n", ("a", "b"), [[1, 2], [3, 4]]),
        ("tab.tsv", "a\tb, in m\n1\t2\n3\t4\n", ("a", "b, in m"), [[1, 2], [3, 4]]),
        ("quoted.csv", '"a, b" , c\n"1", "2"\n 3 ,4\n', ("a, b", "c"), [[1, 2], [3, 4]]),
        ("savetxt.csv", "# a,b\n1e0,2\n+3,4\n", ("a", "b"), [[1, 2], [3, 4]]),
        ("truth.csv", "a,b\ntrue,2\nFalse,4\n", ("a", "b"), [[1, 2], [0, 4]]),
        ("unnamed.csv", "a,\n1,2\n3,4\n", ("a", "x2"), [[1, 2], [3, 4]]),
        ("CAPITALS.CSV", "a,b\n1,2\n3,4\n", ("a", "b"), [[1, 2], [3, 4]]),
        ("packed.csv.gz", gzip.compress(b"a,b\n1,2\n3,4\n", mtime=0), ("a", "b"), [[1, 2], [3, 4]]),
        ("index.csv", pd.DataFrame({"a": [1, 3], "b": [2, 4]}).to_csv(), ("a", "b"), [[1, 2], [3, 4]]),
        ("index_only_numbers.csv", pd.DataFrame([[1, 2], [3, 4]]).to_csv(), ("x1", "x2"), [[1, 2], [3, 4]]),
        ("not_an_index.csv", ",b\n5,2\n6,4\n", ("x1", "b"), [[5, 2], [6, 4]]),
    ],
)
def test_dialects_of_text_files(name, content, names, values, write):
    table = load_table(write(name, content), drop_invalid="missing" in name)
    assert table.names == names
    np.testing.assert_array_equal(table.values, values)


@pytest.mark.parametrize("missing", ["", "NA", "NaN", "null", "None", "-", "?", "inf", "-Infinity"])
def test_rows_with_missing_values_are_named_and_can_be_dropped(missing, write):
    path = write("gaps.csv", f"a,b,c\n1,2,3\n4,{missing},6\n7,8,9\n")
    message = refusal(path)
    assert "1 of 3 rows" in message and "rows 1," in message and "'b'" in message
    assert "drop_invalid=True" in message and "--drop-invalid" in message
    table = load_table(path, drop_invalid=True)
    np.testing.assert_array_equal(table.values, [[1, 2, 3], [7, 8, 9]])
    assert (table.dropped, table.dropped_rows) == (1, (1,))


def test_missing_values_of_arrays_and_frames_are_found():
    frame = pd.DataFrame(
        {
            "a": [1.0, 2, 3, 4, 5],
            "b": [1.0, None, 3, 4, 5],
            "c": pd.array([True, False, None, True, True], dtype="boolean"),
            "d": pd.array([1, 2, 3, None, 5], dtype="Int64"),
        }
    )
    assert "3 of 5 rows (rows 1, 2, 3," in refusal(frame)
    assert load_table(frame, drop_invalid=True).dropped_rows == (1, 2, 3)
    assert load_table([[1, None], [2, 3], [4, 5]], drop_invalid=True).dropped_rows == (0,)
    assert load_table(np.ma.masked_array([1, 2, 3], [True, False, False]), drop_invalid=True).dropped_rows == (0,)
    many = np.full((100, 2), np.nan)
    assert "rows 0, 1, 2, 3, 4, ...," in refusal(many)
    assert "100 with missing" in refusal(many, drop_invalid=True)


def test_columns_of_text_are_named_all_at_once(write):
    message = refusal(write("cities.csv", "city,size,land\nParis,2,France\nRome,3,Italy\n"))
    assert "'city' ('Paris' in line 2)" in message and "'land'" in message and "'size'" not in message
    assert "drop" in message and "encode" in message
    frame = pd.DataFrame({"n": [1, 2], "when": pd.to_datetime(["2020-01-01"] * 2), "kind": ["a", "b"]})
    message = refusal(frame.assign(kind=frame["kind"].astype("category")))
    assert "'when' (datetime64" in message and "'kind' ('a' in row 0)" in message and "'n'" not in message


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (3.0, "shape ()"),
        (None, "NoneType"),
        ({"a": [1, 2]}, "dict"),
        ([[1], [2, 3]], "rectangular"),
        ([["a", "b"], ["c", "d"]], "'x1' ('a' in row 0)"),
        (np.ones((4, 2, 2)), "reshape"),
        (np.ones((4, 2), complex), "complex128"),
        (np.zeros(4, [("a", float)]), "'x1'"),
        (np.zeros(4, "V8"), "'x1'"),
        (np.zeros(4, "M8[s]"), "datetime64"),
        (np.ones((4, 0)), "without columns"),
        (pd.DataFrame(index=range(4)), "without columns"),
        (np.ones((0, 3)), "(0)"),
        (np.ones((1, 3)), "at least 2"),
        (pd.DataFrame(np.eye(3), columns=["a", "a", "b"]), "several columns named a"),
    ],
)
def test_objects_that_are_no_tables(source, words):
    assert words in refusal(source)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("ragged.csv", "a,b\n1,2\n3\n", "1 instead of 2 cells in line 3"),
        ("ragged_long.csv", "a,b\n1,2,3\n", "3 instead of 2 cells in line 2"),
        ("comma.csv", "a;b\n1,5;2\n3;4\n", "'1,5'"),
        ("twice.csv", "a,a\n1,2\n3,4\n", "several columns named a"),
        ("empty.csv", "", "empty"),
        ("blank.csv", "\n \n", "empty"),
        ("header_only.csv", "a,b\n", "at least 2"),
        ("latin.csv", "é,b\n1,2\n".encode("latin-1"), "utf-8"),
        ("utf16.csv", "a,b\n1,2\n".encode("utf-16"), "utf-8"),
        ("not_packed.csv.gz", "a,b\n1,2\n", "gzip"),
        ("cut.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 1000, mtime=0)[:30], "ended"),
        ("garbage.npy", "garbage", "damaged"),
        ("empty.npy", b"", "damaged"),
        ("garbage.npz", b"PK\x03\x04garbage", "zip"),
        ("garbage.parquet", "garbage", "damaged"),
        ("notes.txt", "1 2", "unknown kind"),
    ],
)
def test_files_that_are_no_tables(name, content, words, write):
    message = refusal(write(name, content))
    assert words in message and name in message


def test_numpy_files_hold_one_plain_array(tmp_path):
    np.savez(tmp_path / "two.npz", left=X, right=X)
    assert "left, right" in refusal(tmp_path / "two.npz")
    np.save(tmp_path / "objects.npy", np.array([1, "a"], dtype=object), allow_pickle=True)
    assert "Python objects are not loaded" in refusal(tmp_path / "objects.npy")
    np.save(tmp_path / "cut.npy", X)
    os.truncate(tmp_path / "cut.npy", 150)
    assert "damaged" in refusal(tmp_path / "cut.npy")


def test_places_that_are_no_files(tmp_path, monkeypatch, write):
    assert "no file" in refusal(tmp_path / "nowhere.csv")
    assert "folder" in refusal(tmp_path)
    path = write("secret.csv", "a\n1\n2\n")
    monkeypatch.setattr("os.open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied")))
    assert "no permission" in refusal(str(path))


def test_saving_refuses_what_would_not_read_back(tmp_path):
    for values, names, suffix in [
        (np.ones((2, 2, 2)), None, ".csv"),
        (X, ["a"], ".csv"),
        (X, ["1", "2", "3"], ".csv"),
        (X, None, ".txt"),
        (np.array([["a", None]], dtype=object), None, ".npz"),
    ]:
        with pytest.raises(InputError, match="expected"):
            save_table(tmp_path / f"table{suffix}", values, names)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch):
    path = tmp_path / "table.npy"
    save_table(path, X)
    before = path.read_bytes()

    def full_disk(stream, *_, **__):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        save_table(path, 2 * X)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match="another place"):
        save_table(path / "inside_a_file.csv", X)


def test_home_folder_may_be_abbreviated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_table(tmp_path / "table.csv", X)
    assert load_table("~/table.csv").values.shape == (7, 3)
