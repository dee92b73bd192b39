"""Images given a class: p(image | class), of class folders or of labels, in Python and from the shell."""

import json

import numpy as np
import pytest

import flowknife as fk
from flowknife.data import write_folder
from flowknife.errors import InputError
from tests.command import call, refused, rows_of
from tests.test_golden import GOLDEN

QUICK = {"architecture": "wavelet", "dequantisation": "uniform", "levels": 1, "width": 8, "train": {"steps": 100}}
SHELL = ["-s", "architecture=wavelet", "-s", "dequantisation=uniform", "-s", "levels=1", "-s", "width=8"]
SHELL += ["-s", "train.steps=100"]


def tiny(n, key=0):
    """Dark and bright images of 8 x 8 pixels, by turns, and their classes."""
    generator = np.random.default_rng(key)
    bright = np.arange(n) % 2
    pixels = 60 + 120 * bright[:, None, None] + generator.normal(0, 15, (n, 8, 8))
    return np.clip(pixels, 0, 255).astype(np.uint8), np.array(["dark", "bright"])[bright]


@pytest.fixture(scope="module")
def model():
    return fk.images(tiny(300)[0], given=tiny(300)[1], show_progress=False, **QUICK)


def test_samples_are_of_the_class_that_was_asked_for(model):
    assert model.classes == ("bright", "dark")
    assert model.sample(16, key=0, given="bright").mean() > 150 > 90 > model.sample(16, key=0, given="dark").mean()
    mixed = model.sample(70, key=0, given=["dark", "bright"] * 35).mean(axis=(1, 2, 3))
    assert np.all((mixed > 120) == (np.arange(70) % 2 == 1))
    again = model.sample(16, key=0, given="dark", prior="empirical")
    assert again.mean() < 90


def test_the_density_is_that_given_the_class(model):
    pixels, labels = tiny(40, key=1)
    right, wrong = model.log_prob(pixels, given=labels), model.log_prob(pixels, given=labels[::-1])
    assert np.all(right > wrong)
    scores = model.score(pixels, given=labels)
    np.testing.assert_allclose(scores["bits_per_dim"], -right / 64 / np.log(2), rtol=1e-6)
    assert scores["flag"].mean() < 0.3
    assert np.all(model.score(pixels, given=labels[::-1])["flag"])
    dark = pixels[labels == "dark"]
    one, each = (model.log_prob(dark, given=given) for given in ("dark", ["dark"] * len(dark)))
    np.testing.assert_allclose(one, each, rtol=1e-5)


def test_the_latent_is_that_given_the_class(model):
    pixels, labels = tiny(6, key=2)
    z = model.encode(pixels, given=labels)
    assert np.abs(model.decode(z, given=labels).astype(int) - pixels[..., None]).max() <= 2 ** (7 - 5)
    assert np.abs(model.decode(z, given=labels[::-1]).astype(float) - pixels[..., None]).mean() > 60
    assert model.interpolate(pixels[0], pixels[2], steps=3, given="dark").mean() < 100
    assert model.resample(pixels, 0, n=2, key=0, given=labels).shape == (6, 2, 8, 8, 1)
    direction = model.attribute(pixels[:2], pixels[2:4], given="dark")
    assert model.along(pixels, direction, [0, 1], given=labels).shape == (6, 2, 8, 8, 1)
    assert model.anomaly_map(pixels, given=labels).shape == (6, 8, 8)


@pytest.mark.parametrize("call", ["sample", "log_prob", "score", "encode"])
def test_a_class_has_to_be_said_and_known(model, call):
    argument = 4 if call == "sample" else tiny(4)[0]
    for given in ({}, {"given": "grey"}, {"given": ["dark", "grey", "dark", "dark"]}, {"given": ["dark"] * 3}):
        with pytest.raises(InputError) as caught:
            getattr(model, call)(argument, **given)
        assert "\n" not in str(caught.value)
        assert "3 classes" in str(caught.value) or ("bright" in str(caught.value) and "dark" in str(caught.value))


def test_what_is_given_in_training_has_a_class_for_each_image():
    pixels, labels = tiny(20)
    for given, words in (
        ("dark", '"class"'),
        (labels[:5], "5 labels for 20"),
        ([None, *labels[1:]], "1 images without a class"),
        (["dark"] * 20, "at least 2"),
        ("class", "folder"),
    ):
        with pytest.raises(InputError, match=words):
            fk.images(pixels, given=given, show_progress=False, **QUICK)


def test_a_model_of_all_images_alike_takes_no_class():
    model = fk.load(GOLDEN / "format-3" / "images")
    for attempt in (lambda: model.sample(1, given="dark"), lambda: model.log_prob(tiny(2)[0], given="dark")):
        with pytest.raises(InputError, match="without classes"):
            attempt()


@pytest.mark.slow
def test_check_report_and_a_saved_run_know_the_classes(model, tmp_path):
    again = fk.load(model.save(tmp_path / "run"))
    pixels, labels = tiny(20, key=3)
    np.testing.assert_array_equal(again.log_prob(pixels, given=labels), model.log_prob(pixels, given=labels))
    np.testing.assert_array_equal(again.sample(3, key=1, given="dark"), model.sample(3, key=1, given="dark"))
    assert again.classes == model.classes and all(np.isin(again.example_classes, model.classes))
    assert [check.value for check in again.check()] == pytest.approx([check.value for check in model.check()])
    assert all(np.isfinite(check.value) for check in again.check(pixels, given=labels))
    page = again.report(tmp_path / "run").read_text()
    assert "New images of each class" in page and (tmp_path / "run" / "figures" / "classes.png").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("given")
    write_folder(tiny(300)[0], place / "data", tiny(300)[1])  # as many as in the fixture, whose programs are compiled
    call("fit", "images", place / "data", "--given", "class", "--out", place / "run", *SHELL)
    return place


@pytest.mark.slow
def test_the_shell_takes_the_classes_of_a_folder(run, tmp_path):
    record = json.loads((run / "run" / "run.json").read_text())
    assert record["data"]["classes"] == ["bright", "dark"]
    call("sample", run / "run", "-n", 6, "--given", "dark", "--seed", 1, "--out", tmp_path / "dark.npy")
    assert np.load(tmp_path / "dark.npy").mean() < 100
    call("score", run / "run", run / "data", "--out", tmp_path / "folder.csv")
    call("score", run / "run", run / "data" / "dark", "--given", "dark", "--out", tmp_path / "dark.csv")
    rows = [row for row in rows_of(tmp_path / "folder.csv") if row["path"].startswith("dark/")]
    bits = [np.mean([float(row["bits_per_dim"]) for row in each]) for each in (rows, rows_of(tmp_path / "dark.csv"))]
    assert bits[0] == pytest.approx(bits[1], abs=0.05) and len(rows) == 150
    call("check", run / "run", run / "data", status=None)
    refused("sample", run / "run", "--out", tmp_path / "x.npy", words=("without a class", "bright, dark"))
    refused("sample", run / "run", "--given", "grey", "--out", tmp_path / "x.npy", words=("grey", "bright", "dark"))
    refused("score", run / "run", run / "data" / "dark", "--out", tmp_path / "x.csv", words="given='bright'")
    refused("fit", "images", run / "data", "--given", "colour", "--out", tmp_path / "run", words="colour")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["wavelet", "lattice", "jet", "realnvp"])
def test_every_architecture_learns_the_classes(architecture):
    pixels, labels = tiny(200)
    settings = {"architecture": architecture, "width": 8, "train": {"steps": 120}}
    model = fk.images(pixels, given=labels, show_progress=False, **settings)
    assert model.sample(16, key=0, given="bright").mean() > 130 > 110 > model.sample(16, key=0, given="dark").mean()
    pixels, labels = tiny(40, key=1)
    assert np.mean(model.log_prob(pixels, given=labels) > model.log_prob(pixels, given=labels[::-1])) > 0.95
