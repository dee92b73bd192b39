"""The command line on images: what it writes, lists as skipped, and refuses."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flowknife import apps
from flowknife.cli import app
from flowknife.data import digits, write_folder
from tests.command import call, refused, rows_of

TINY = ["-s", "architecture=glow", "-s", "levels=1", "-s", "steps_per_level=1", "-s", "width=8"]
TINY += ["-s", "train.steps=5", "-s", "train.batch_size=16"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def folder(place):
    """Images of 8 x 8 pixels, and three files that cannot be used."""
    path = place / "digits"
    write_folder(digits()[0][:60], path, digits()[1][:60])
    (path / "notes.txt").write_text("no image")
    (path / "broken.png").write_bytes((path / "0" / "000000.png").read_bytes()[:40])
    (path / "empty.png").write_bytes(b"")
    return path


@pytest.fixture(scope="module")
def images(place, folder):
    call("fit", "images", folder, "--out", place / "images", *TINY)
    return place / "images"


def test_fit_images_lists_what_it_skipped(images, folder):
    skipped = {row["path"]: row["reason"] for row in rows_of(images / "skipped.csv")}
    assert skipped.keys() == {"notes.txt", "broken.png", "empty.png"} and skipped["empty.png"] == "empty file"
    record = json.loads((images / "run.json").read_text())
    assert record["application"] == "images" and record["data"]["rows"] == 60
    assert record["metrics"].keys() == {"nll", "bits_per_dim"}
    text = call("info", images).stdout
    assert re.search(r"left end +image 8 x 8 x 1", text) and re.search(r"right end +z_0 64", text)


def test_sample_writes_a_sheet_an_array_or_a_folder(tmp_path, images):
    for name in ("sheet.png", "array.npy", "new/images"):
        result = call("sample", images, "-n", 5, "--seed", 1, "--out", tmp_path / name)
        assert result.stdout == f"wrote 5 images to {tmp_path / name}\n"
    array = np.load(tmp_path / "array.npy")
    assert array.shape == (5, 8, 8, 1) and array.dtype == np.uint8
    files = sorted((tmp_path / "new" / "images").iterdir())
    assert len(files) == 5 and np.array_equal(np.asarray(Image.open(files[4])), array[4, :, :, 0])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 8
    refused("sample", images, "--out", tmp_path / "new" / "images", words="not empty")
    refused("sample", images, "--out", tmp_path / "new.jpg", words=("new.jpg", ".png"))
    refused("sample", images, "--out", tmp_path / "new.csv", words="folder")
    refused("sample", images, "-n", 401, "--out", tmp_path / "large.png", words=("401", "400"))
    (tmp_path / "file").touch()
    refused("sample", images, "--out", tmp_path / "file", words="exists")
    refused("sample", images, "--out", tmp_path / "file", "--overwrite", words="folder")


def test_score_lists_skipped_files_beside_the_scores(tmp_path, place, images, folder):
    result = call("score", images, folder, "--out", tmp_path / "new" / "scores.csv")
    rows = rows_of(tmp_path / "new" / "scores.csv")
    columns = "path bits_per_dim upside_down inverted blur_gap local_energy local_outlier complexity typicality radius"
    assert list(rows[0]) == [*columns.split(), "radius_p", "score", "p_value", "flag", "q_value", "discovery"]
    assert len(rows) == 60 and "0/000000.png" in {row["path"] for row in rows}
    most_anomalous_first = [(float(row["p_value"]), -float(row["score"])) for row in rows]
    assert most_anomalous_first == sorted(most_anomalous_first)
    assert len(rows_of(tmp_path / "new" / "skipped.csv")) == 3 and "skipped 3 files" in result.stderr
    # the list of what training skipped is not overwritten
    run = shutil.copytree(images, tmp_path / "run")
    (run / "skipped.csv").write_text("of training\n")
    call("score", run, folder, "--out", run / "val.csv")
    assert (run / "skipped.csv").read_text() == "of training\n" and len(rows_of(run / "val-skipped.csv")) == 3
    refused("score", images, folder, "--drop-invalid", "--out", tmp_path / "scores.csv", words="--drop-invalid")


def test_report_shows_other_images_in_the_size_of_training(tmp_path, images, monkeypatch):
    write_folder(np.zeros((3, 20, 30, 3), np.uint8), tmp_path / "others")
    given = []
    monkeypatch.setattr(
        apps.Images,
        "report",
        lambda self, run, others=None, interactive=False: given.append(others) or run / "report.html",
    )
    for options in ([], ["--others", tmp_path / "others"]):
        assert call("report", images, *options).stdout == f"report: {images / 'report.html'}\n"
    assert given[0] is None and given[1].pixels.shape == (3, 8, 8, 1)


def test_a_partition_of_the_folder_is_scored_and_checked(tmp_path, place, images):
    folder = place / "parts"
    write_folder(digits()[0][60:90], folder)
    names = sorted(path.name for path in folder.iterdir())
    lines = [f"{name} {0 if i < 10 else 1 if i < 18 else 2}" for i, name in enumerate(names)]
    (folder / "list_eval_partition.txt").write_text("\n".join(lines))
    for partition, expected in (("train", names[:10]), ("validation", names[10:18]), ("test", names[18:])):
        call("score", images, folder, "--partition", partition, "--out", tmp_path / f"{partition}.csv")
        assert {row["path"] for row in rows_of(tmp_path / f"{partition}.csv")} == set(expected)
    result = CliRunner().invoke(app, ["check", str(images), str(folder), "--partition", "test"])
    assert result.exit_code in (0, 1) and "share of images flagged" in result.stdout
    (folder / "list_eval_partition.txt").unlink()
    out = ("--out", tmp_path / "no.csv")
    refused("score", images, folder, "--partition", "test", *out, words="list_eval_partition.txt")
    refused("check", images, "--partition", "test", words="without DATA")
    call("score", images, folder, "--partition", "exam", *out, status=2)


def test_score_and_check_refuse_what_is_no_folder_of_images(tmp_path, images):
    (tmp_path / "none").mkdir()
    table = tmp_path / "points.csv"
    table.write_text("a,b\n1,2\n")
    for data, words in ((tmp_path / "missing", "no folder"), (tmp_path / "none", "empty folder"), (table, "the file")):
        refused("score", images, data, "--out", tmp_path / "scores.csv", words=words)
        refused("check", images, data, words=words)
    assert not (tmp_path / "scores.csv").exists()


def test_fit_images_refuses_in_one_line(tmp_path):
    for name in ("nothing", "text"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / "a.png").write_text("no image")
    for data, words in (("missing", "no folder"), ("nothing", "empty folder"), ("text", "no usable image")):
        refused("fit", "images", tmp_path / data, "--out", tmp_path / "run", words=words)
    assert not (tmp_path / "run").exists()


def test_outputs_that_cannot_be_written_are_told(place, images, folder):
    (place / "file").touch()
    for name in ("new.png", "new.npy", "new"):
        refused("sample", images, "--out", place / "file" / name, words=str(place / "file"))
    refused("score", images, folder, "--out", place / "file" / "scores.csv", words=str(place / "file"))
    refused("sample", images, "--label", "3", "--out", place / "new.png", words=("--label", "classify"))


def test_a_gallery_shows_the_most_anomalous_images_first(tmp_path, images, folder):
    page = tmp_path / "new" / "anomalous.html"
    result = call("score", images, folder, "--out", tmp_path / "scores.csv", "--gallery", page)
    assert f"gallery: {page}" in result.stdout
    text = page.read_text()
    rows = rows_of(tmp_path / "scores.csv")
    assert text.count('loading="lazy"') == 2 * len(rows) == text.count("data:image/png;base64,")
    assert "<script" not in text and "http" not in re.sub(r"http://www.w3.org/\S+|http-equiv", "", text)
    shown = [float(p) for p in re.findall(r"<p>p = ([\d.e-]+),", text)]
    assert shown == sorted(shown) and len(shown) == len(rows)
    assert rows[0]["path"] in text[: text.index("</li>")]
    assert text.count('class="discovery"') == sum(row["discovery"] == "True" for row in rows)
    refused("score", images, folder, "--out", tmp_path / "a.csv", "--gallery", tmp_path / "a.pdf", words=".html")


def test_temperatures_by_level_and_priors_are_read(tmp_path, images):
    for options in (["--temperature", "0.7"], ["--temperature", "z_0=0.7"]):
        call("sample", images, "-n", 3, "--seed", 1, *options, "--out", tmp_path / f"{len(options[1])}.npy")
    same = [np.load(tmp_path / name) for name in ("3.npy", "7.npy")]
    np.testing.assert_array_equal(*same)
    for wrong, words in (
        (["--temperature", "warm"], "'warm'"),
        (["--temperature", "z_5=1"], "z_5"),
        (["--temperature=-1"], "0 or more"),
        (["--temperature", "z_0=nan"], "'nan'"),
        (["--prior", "uniform"], "'uniform'"),
    ):
        refused("sample", images, *wrong, "--out", tmp_path / "a.npy", words=words)


def test_interpolate_writes_a_strip_or_a_motion(tmp_path, images, folder):
    ends = [folder / "0" / "000000.png", next((folder / "1").iterdir())]
    for name, frames in (("new/strip.png", 1), ("motion.gif", 8)):
        result = call("interpolate", images, *ends, "--steps", 5, "--out", tmp_path / name)
        assert result.stdout == f"wrote 5 images to {tmp_path / name}\n"
        with Image.open(tmp_path / name) as image:
            assert getattr(image, "n_frames", 1) == frames
    call("interpolate", images, *ends, "--linear", "--out", tmp_path / "linear.png")
    refused("interpolate", images, *ends, "--out", tmp_path / "a.jpg", words=(".png", ".gif"))
    refused("interpolate", images, tmp_path / "none.png", ends[0], "--out", tmp_path / "a.png", words="none.png")


def test_attribute_moves_images_between_two_folders(tmp_path, images, folder):
    between = ["--positive", folder / "0", "--negative", folder / "1"]
    call("attribute", images, *between, "--out", tmp_path / "held-out.png")
    one = next((folder / "1").iterdir())
    result = call("attribute", images, *between, one, one, "--strengths=-1,0,1", "--out", tmp_path / "mine.png")
    assert result.stdout == f"wrote 2 rows of images to {tmp_path / 'mine.png'}\n"
    with Image.open(tmp_path / "held-out.png") as wide, Image.open(tmp_path / "mine.png") as narrow:
        assert wide.height > narrow.height
    refused("attribute", images, *between, "--strengths", "much", "--out", tmp_path / "a.png", words="'much'")
    refused(
        "attribute",
        images,
        "--positive",
        folder / "0",
        "--negative",
        folder / "none",
        "--out",
        tmp_path / "a.png",
        words="no folder",
    )
