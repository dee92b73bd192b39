"""Files of others never hurt: whatever is in them, opening them ends in a result or in one line, and soon."""

import gzip
import hashlib
import io
import json
import os
import re
import stat
import struct
import zlib

import jaxtyping
import numpy as np
import pytest

import flowknife as fk
from flowknife._caches import keep_within
from flowknife._files import open_file, read_file, replacing
from flowknife.cli._settings import configured
from flowknife.data import load_images, load_table, save_table, write_skipped
from flowknife.data._cache import ImageCache, cached_text
from flowknife.data.tables import read_columns
from flowknife.errors import FlowknifeError, InputError, StorageError, TrainingError
from flowknife.report import write_report
from tests import fuzz
from tests.command import call, refused


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return fuzz.targets(tmp_path_factory.mktemp("seeds"))


@pytest.fixture
def as_in_use():
    """Types go unchecked, as they do in use: what is tested are the checks of flowknife itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def searched(every, **options):
    with fuzz.repeated_once():
        counts, failures = fuzz.search(every, **options)
    assert not failures, "\n".join(f"{each.target} {each.seed} {each.number}: {each.why}" for each in failures[:20])
    return counts


def test_whole_files_are_read(every, tmp_path):
    for name, target in every.items():
        for seed, content in target.seeds.items():
            place = tmp_path / name / seed
            place.mkdir(parents=True)
            try:
                target.use(place, seed, content)
            except FlowknifeError:  # an .npz of rows is no array of images
                assert (name, seed) == ("array", "t.npz")


def test_damaged_files_are_read_or_refused(every, as_in_use):
    counts = searched(every, seed=1, inputs=150 * len(every))
    ends = {end: sum(count for name, count in counts.items() if name.endswith(end)) for end in ("read", "refused")}
    assert ends["read"] > 200 and ends["refused"] > 400


@pytest.mark.slow
def test_many_damaged_files_are_read_or_refused(every, as_in_use):
    """For FUZZ_MINUTES, 5 unless they are set; `python -m tests.fuzz` has several processes."""
    counts = searched(every, seed=2, seconds=60 * float(os.environ.get("FUZZ_MINUTES", 5)))
    print(fuzz._inputs(counts), "inputs")


# -- what is no file ---------------------------------------------------------------------------------------------------


def endless(path):
    path.symlink_to("/dev/zero")


def pipe(path):
    os.mkfifo(path)


def loop(path):
    path.symlink_to(path)


def sparse(path):
    with path.open("wb") as stream:
        stream.truncate(2**36)


NO_FILES = [endless, pipe, loop, sparse]
NOTHING_OF_THE_KIND = pytest.mark.skipif(os.name != "posix", reason="has no pipes")


def ends_well(use):
    read, why = fuzz.outcome(use)
    if why.startswith("took"):  # whatever is compiled or imported is so only once
        read, why = fuzz.outcome(use)
    assert not why, why
    return read


@NOTHING_OF_THE_KIND
@pytest.mark.parametrize("make", NO_FILES)
@pytest.mark.parametrize("part", ["run.json", "history.csv", "model.safetensors"])
def test_a_run_with_something_else_in_the_place_of_a_file(make, part, every, tmp_path, as_in_use):
    for name in ("run.json", "history.csv", "model.safetensors"):
        kind = {"run.json": "record", "history.csv": "history", "model.safetensors": "model"}[name]
        (tmp_path / name).write_bytes(every[kind].seeds["density"])
    (tmp_path / part).unlink()
    make(tmp_path / part)
    read = ends_well(lambda: fk.load(tmp_path))
    assert not read or (make, part) == (loop, "history.csv")  # a broken link is no history


@NOTHING_OF_THE_KIND
@pytest.mark.parametrize("make", NO_FILES)
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.npy", "a.npz", "a.parquet", "a.png", "a.yaml"])
def test_data_with_something_else_in_the_place_of_a_file(make, name, tmp_path, as_in_use):
    make(tmp_path / name)
    use = {
        "a.png": lambda: load_images(tmp_path, 8),
        "a.yaml": lambda: configured(fk.DensityConfig, tmp_path / name, []),
    }
    assert not ends_well(use.get(name, lambda: load_table(tmp_path / name)))


def test_a_file_is_read_up_to_what_was_agreed(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_file(tmp_path / "a", 4)
    with pytest.raises(OSError, match="regular"), open_file(tmp_path):
        pass


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [InputError, StorageError, TrainingError])
def test_a_message_is_one_printable_line_of_limited_length(kind):
    assert str(kind("got 1; expected 2; try 3")) == "got 1; expected 2; try 3"
    assert str(kind("red \x1b[31m\nµ\x00")) == "red \\x1b[31m µ\\x00"
    long = str(kind(f"got {'y' * 10**6}; expected less"))
    assert len(long) < 500 and long.endswith("; expected less")
    assert len(str(kind("a b " * 10**5))) < 2001


def test_info_shows_the_words_of_a_run_without_their_terminal_codes(tmp_path, every):
    for kind, name in {"record": "run.json", "history": "history.csv", "model": "model.safetensors"}.items():
        (tmp_path / name).write_bytes(every[kind].seeds["density"])
    record = json.loads((tmp_path / "run.json").read_text())
    record["data"]["source"], record["data"]["names"] = "\x1b]0;title\x07", ["a\x1b[2J", "b\nc"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    shown = call("info", tmp_path).stdout
    assert "\\x1b]0;title" in shown and all(line.isprintable() for line in shown.splitlines())


# -- settings ----------------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "seed: &a [*a]",
        "&a {? *a : 1}",
        "train: " + "[" * 3000,
        "{a: " * 2000,
        "seed: " + "9" * 5000,
        "seed: 1e99999",
        "seed: !!python/object/apply:os.system [echo]",
        "? [a, b]\n: 1",
        "? {a: 1}\n: 1",
        "<<: 3",
        "<<: [1, 2]",
        "\x00",
        "a: " + "x" * 100_000,
        "layers: 1e21",
        "train: {evaluate_every: [[1]]}",
    ],
    ids=range(16),
)
def test_settings_that_would_harm_are_one_line(text, tmp_path, as_in_use):
    (tmp_path / "s.yaml").write_text(text)
    assert not ends_well(lambda: configured(fk.DensityConfig, tmp_path / "s.yaml", []))
    assert not ends_well(lambda: configured(fk.DensityConfig, None, [f"seed={text}"]))


def test_an_alias_is_what_it_stands_for(tmp_path):
    (tmp_path / "s.yaml").write_text("layers: &n 3\nwidth: *n\n")
    config = configured(fk.DensityConfig, tmp_path / "s.yaml", [])
    assert (config.layers, config.width) == (3, 3)


# -- tables ------------------------------------------------------------------------------------------------------------


def test_tables_that_are_made_to_harm_end_soon(tmp_path, as_in_use):
    def ends(name, content, use=load_table):
        (tmp_path / name).write_bytes(content)
        return ends_well(lambda: use(tmp_path / name))

    wide = ",".join(f"c{i}" for i in range(100_000)) + "\n" + ",".join(["1"] * 100_000) + "\n"
    assert ends("wide.csv", wide.encode() + wide.partition("\n")[2].encode())
    assert ends("mac.csv", b"a,b\r1,2\r3,4\r5,6\r")
    long = b"a,label\n" + b"1,x\n" * 30_000 + b"2," + b"y" * 60_000 + b"\n"
    assert ends("long.csv", long, lambda path: read_columns(path, keep=("label",)))
    assert not ends("zeros.csv.gz", gzip.compress(bytes(2**26), 1))
    assert not ends("bomb.csv.gz", gzip.compress(b"0\n" * 2**25, 1))
    assert not ends("line.csv", b"1," * 2**23)
    packed = io.BytesIO()
    np.savez_compressed(packed, x=np.zeros(2**28 + 1, np.uint8))
    assert not ends("bomb.npz", packed.getvalue())
    text = io.BytesIO()
    np.savez(text, x=np.array([["1", "2"], ["3", "4"]]))
    assert not ends("text.npz", text.getvalue())
    nothing = io.BytesIO()
    np.savez(nothing)
    assert not ends("nothing.npz", nothing.getvalue())


def test_nested_parquet_is_one_line(tmp_path):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"a": [[1, 2], [3]], "b": [{"x": 1}, {"x": 2}]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="not numbers"):
        load_table(tmp_path / "t.parquet")


FORMULA = "=cmd|' /C calc'!A0"


def test_no_cell_that_is_written_is_a_formula_and_all_read_back(tmp_path):
    values = np.array([[1.5, FORMULA], [-2.0, "-left"], [3.0, "@x"], [4.0, "plain"]], dtype=object)
    save_table(tmp_path / "t.csv", values, ["x", "+label"])
    cells = [cell for line in (tmp_path / "t.csv").read_text().splitlines() for cell in line.split(",")]
    assert not [cell for cell in cells if cell[0] in "=+@" or (cell[0] == "-" and cell != "-2.0")]
    found = read_columns(tmp_path / "t.csv", keep=("+label",))
    assert found.names == ("x", "+label") and found.kept["+label"].tolist() == values[:, 1].tolist()
    write_skipped(tmp_path / "skipped.csv", [fk.data.Skipped("=1+1.png", "empty file")])
    assert "\n'=1+1.png,empty file\n" in (tmp_path / "skipped.csv").read_text()


# -- images ------------------------------------------------------------------------------------------------------------


def png(width, height, bits, kind, channels):
    """A PNG whose pixels are all 0, of less than a hundredth of its size in memory."""
    rows = zlib.compressobj(1)
    row = bytes(1 + width * channels * bits // 8)
    data = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in chunks
    )


def test_images_that_are_small_on_disk_and_huge_in_memory_are_skipped(tmp_path, monkeypatch, as_in_use):
    clear = png(7500, 7500, 8, 6, 4)
    for i in range(3):
        (tmp_path / f"clear{i}.png").write_bytes(clear)
    (tmp_path / "deep.png").write_bytes(png(6500, 6500, 16, 2, 3))
    (tmp_path / "fine.png").write_bytes(png(64, 64, 8, 2, 3))
    found = {}
    read, why = fuzz.outcome(lambda: found.update(images=load_images(tmp_path, 8)))
    assert read and not why, why
    assert found["images"].names == ("fine.png",)
    assert {item.reason for item in found["images"].skipped} == {"more than 1024 MiB to decode"}


def test_a_jpeg_of_very_many_scans_is_skipped(tmp_path):
    from PIL import Image

    Image.new("L", (3000, 3000)).save(tmp_path / "a.jpg", progressive=True)
    content = (tmp_path / "a.jpg").read_bytes()
    assert load_images(tmp_path, 8).names == ("a.jpg",)
    start = content.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(content[:start] + content[start:-2] * 300 + content[-2:])
    with pytest.raises(InputError, match="scans"):
        load_images(tmp_path, 8)


def test_sixteen_bits_become_eight_as_before(tmp_path):
    from flowknife.data._decode import White, _bytes

    values = np.arange(2**16, dtype=np.uint16)
    for white in (1023.0, 65535.0):
        expected = np.clip(np.rint(values * (255 / white)), 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(_bytes(values, White(whole=white)), expected)


@NOTHING_OF_THE_KIND
def test_folders_within_folders_loops_and_odd_names(tmp_path, as_in_use):
    folder, good = tmp_path / "images", fuzz._pictures()["i.png"]
    folder.mkdir()
    inside = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("n", dir_fd=inside)
        inside, above = os.open("n", os.O_RDONLY, dir_fd=inside), inside
        os.close(above)
    os.close(inside)
    for name in ("a\nb.png", "<script>.png", "=1+1.png"):
        (folder / name).write_bytes(good)
    (folder / "up").symlink_to(folder)
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    found = {}
    read, why = fuzz.outcome(lambda: found.update(images=load_images(folder, 8)))
    assert read and not why, why
    assert len(found["images"]) == 3
    reasons = {item.reason for item in found["images"].skipped}
    assert any("nested" in reason for reason in reasons) and "broken link" in reasons
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        os.system("rm -rf images")  # of a path that is too long for its name


# -- caches ------------------------------------------------------------------------------------------------------------

ITEMS = [(f"{i}.png", "stamp") for i in range(4)]
PIXELS = np.arange(4 * 16, dtype=np.uint8).reshape(4, 4, 4, 1)


def kept(folder):
    ImageCache(folder, (4, 4, 1)).put(ITEMS, list(PIXELS))
    return sorted(folder.iterdir())


def test_an_image_that_was_damaged_in_the_cache_is_decoded_anew(tmp_path):
    _, pixels = kept(tmp_path / "c")
    whole = ImageCache(tmp_path / "c", (4, 4, 1)).get(ITEMS)
    np.testing.assert_array_equal(whole[0], PIXELS)
    content = bytearray(pixels.read_bytes())
    content[-3] ^= 4
    pixels.write_bytes(content)
    cache = ImageCache(tmp_path / "c", (4, 4, 1))
    assert cache.get(ITEMS) is None and cache.recall(ITEMS[3]) is None
    np.testing.assert_array_equal(cache.recall(ITEMS[2]), PIXELS[2])


def test_an_image_is_not_taken_for_that_of_another_file(tmp_path):
    journal, _ = kept(tmp_path / "c")
    journal.write_text(journal.read_text().replace("1.png", "9.png"))
    cache = ImageCache(tmp_path / "c", (4, 4, 1))
    assert cache.recall(("9.png", "stamp")) is None and cache.recall(ITEMS[0]) is not None


def test_the_folder_of_a_cache_is_closed_to_others(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c").chmod(0o777)
    kept(tmp_path / "c")
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700


def test_what_was_used_last_stays_in_a_cache(tmp_path):
    for age, name in enumerate(["new", "used", "old", "oldest"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_bytes(bytes(10_000))
        os.utime(tmp_path / name, (10**9 - age, 10**9 - age))
    keep_within(tmp_path, 45_000, tmp_path / "oldest")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "used", "oldest"}
    keep_within(tmp_path, 0, tmp_path / "oldest")
    assert {path.name for path in tmp_path.iterdir()} == {"oldest"}


@pytest.mark.parametrize("content", [b"", b"64", b"00000000 64", b"\xff\xfe", b"x" * 10**7])
def test_a_damaged_word_of_a_cache_is_computed_again(content, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWKNIFE_CACHE", str(tmp_path))
    assert cached_text(("side",), lambda: "64") == "64"
    (path,) = (tmp_path / "images").iterdir()
    assert cached_text(("side",), pytest.fail) == "64"
    path.write_bytes(content)
    assert cached_text(("side",), lambda: "32") == "32"


# -- writing -----------------------------------------------------------------------------------------------------------


def full(*args):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["t.csv", "t.npy", "t.npz", "t.csv.gz", "skipped.csv"])
def test_a_full_disk_leaves_the_earlier_file(name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_text("earlier")
    write = write_skipped if name == "skipped.csv" else save_table
    values = [fk.data.Skipped("a", "b")] if name == "skipped.csv" else np.ones((3, 2))
    monkeypatch.setattr(type(path), "replace", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        write(path, values)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_none_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="nothing can be written"), replacing(tmp_path / "file" / "a"):
        pass
    with pytest.raises(StorageError, match="nothing can be written"):
        write_report(tmp_path / "file", "Title", [])


def test_a_page_may_do_nothing_but_show_itself(tmp_path):
    page = write_report(tmp_path, "<script>alert(1)</script>", []).read_text()
    assert "Content-Security-Policy" in page and "default-src 'none'" in page and "<script" not in page
    policy = page.split('content="', 1)[1].split('"')[0]
    assert "script-src" not in policy and page.index("Content-Security-Policy") < page.index("<title>")


# -- models ------------------------------------------------------------------------------------------------------------


def test_a_model_with_other_numbers_than_its_checksum_is_refused(every, tmp_path):
    for kind, name in {"record": "run.json", "history": "history.csv", "model": "model.safetensors"}.items():
        (tmp_path / name).write_bytes(every[kind].seeds["density"])
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()
    (tmp_path / "model.safetensors").write_bytes(content)
    refused("info", tmp_path, words=("checksum",))
    record = json.loads((tmp_path / "run.json").read_text())
    record["files"]["model.safetensors"] = hashlib.sha256(content).hexdigest()
    (tmp_path / "run.json").write_text(json.dumps(record))
    refused("info", tmp_path, words=("finite",))


@pytest.mark.parametrize("name", ["size", "squeeze"])
def test_a_layer_of_more_pixels_than_it_has_weights_is_refused(name, every, tmp_path):
    """Its program would be traced without end."""
    head, body = fuzz._split_model(every["model"].seeds["images"])
    text = head["__metadata__"]["flowknife"]
    head["__metadata__"]["flowknife"] = re.sub(rf'"{name}": \d+', f'"{name}": 3000', text)
    (tmp_path / "run").mkdir()
    with pytest.raises(StorageError, match="3000 x 3000 pixels"):
        every["model"].use(tmp_path / "run", "images", fuzz._joined_model(head, body))


@pytest.mark.parametrize(
    ("name", "place", "value"), [("images", "bits", 4), ("invert", "form", "partitioned"), ("density", "layers", "x")]
)
def test_settings_that_are_not_those_of_the_model_are_refused(name, place, value, every, tmp_path):
    for kind, file in {"record": "run.json", "history": "history.csv", "model": "model.safetensors"}.items():
        (tmp_path / file).write_bytes(every[kind].seeds[name])
    fk.load(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    record["config"][place] = value
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(StorageError):
        fk.load(tmp_path)
