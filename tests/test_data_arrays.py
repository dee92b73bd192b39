"""Images in one file: which array is taken, and what is refused."""

import numpy as np
import pytest

from flowknife.data import digits, find_images, load_images
from flowknife.errors import InputError

X = digits()[0][:10]


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.npz:train", "two.npz", "two.npz:train", "two.npz:test"])
def test_a_file_is_as_good_as_its_array(tmp_path, name):
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "x.npz", train=X)
    # of the other arrays none can be images
    np.savez(tmp_path / "two.npz", train=X, labels=np.arange(10), test=X[:3, :, :, 0] if "test" in name else X[0, 0])
    expected = load_images(X[:3] if "test" in name else X, 6)
    found = load_images(f"{tmp_path}/{name}", 6)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.names == expected.names
    if ":" not in name:
        np.testing.assert_array_equal(load_images(tmp_path / name, 6).pixels, expected.pixels)


def test_words_that_are_python_objects_do_not_stand_in_the_way(tmp_path):
    np.savez(tmp_path / "x.npz", x=X, name=np.array(["a", None], dtype=object))
    assert len(load_images(tmp_path / "x.npz", 8)) == 10


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("both.npz", ("a, b", "expected one of images", "both.npz:a")),
        ("both.npz:c", ("'c'", "a, b")),
        ("none.npz", ("u, v", "uint8")),
        ("float.npy", ("float64", "uint8")),
        ("table.npz:u", ("shape (3,)",)),
        ("missing.npy", ("missing.npy", "No such file")),
        ("missing.npz:x", ("missing.npz", "No such file")),
        ("text.npy", ("text.npy", "cannot be read")),
        ("text.npz", ("text.npz", "cannot be read")),
        ("objects.npz:x", ("objects.npz", "cannot be read")),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, name, words):
    np.savez(tmp_path / "both.npz", a=X, b=X)
    np.savez(tmp_path / "none.npz", u=np.zeros(3), v=np.zeros(3))
    np.savez(tmp_path / "table.npz", u=np.zeros(3), v=np.zeros(3))
    np.save(tmp_path / "float.npy", np.zeros((2, 8, 8)))
    np.savez(tmp_path / "objects.npz", x=np.array([None], dtype=object), y=X)
    for text in ("text.npy", "text.npz"):
        (tmp_path / text).write_text("no array")
    with pytest.raises(InputError) as caught:
        find_images(f"{tmp_path}/{name}")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_folder_may_be_called_like_a_file(tmp_path):
    (tmp_path / "x.npy").mkdir()
    with pytest.raises(InputError, match="empty folder"):
        load_images(tmp_path / "x.npy", 8)
