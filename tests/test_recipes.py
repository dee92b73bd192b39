"""Recipes: each is valid and honest, runs, and is overruled by what is said later."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

import flowknife as fk
from flowknife import apps
from flowknife.data import digits, load_images, write_folder
from flowknife.errors import InputError
from flowknife.recipes import RECIPES, recipe
from tests.command import call, refused, rows_of
from tests.settings import CONFIGS

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
TINY = {"architecture": "glow", "levels": 1, "steps_per_level": 1, "width": 8}


@pytest.fixture
def asked(monkeypatch):
    """The configuration that `fit images` asks for, without training."""
    seen = []

    def stop(data, config, given=None, **places):
        seen.append(config)
        raise InputError("enough")

    monkeypatch.setattr(apps, "images", stop)
    return seen


@pytest.mark.parametrize("each", RECIPES.values(), ids=RECIPES)
def test_a_recipe_is_valid_and_says_what_it_reaches(each):
    config = each.config
    assert isinstance(config, CONFIGS[each.application])
    assert config.model_dump(include=set(each.settings)).keys() == each.settings.keys()
    assert each.about and each.data and each.minutes > 0
    assert config.train.minutes in (None, each.minutes)
    if each.expected is None:
        assert each.reaches == "not measured"
    else:
        assert np.isfinite(each.expected.value) and each.expected.data and each.expected.minutes > 0
        assert each.reaches.startswith(f"{each.expected.value:g} {each.expected.unit}")
        assert str(each.expected).startswith(f"{each.expected.value:g} {each.expected.unit} on {each.expected.data}")


def test_recipes_of_images_fit_their_data():
    for each in RECIPES.values():
        if each.application == "images":
            assert each.config.image_size == (int(re.findall(r"\d+", each.name)[0]) if "-" in each.name else None)
    digit = np.pad(np.random.default_rng(0).integers(0, 256, (3, 20, 20), dtype=np.uint8), [(0, 0), (4, 4), (4, 4)])
    crop = recipe("mnist-24").config.crop
    np.testing.assert_array_equal(load_images(digit, 24, crop=crop).pixels[..., 0], digit[:, 2:-2, 2:-2])
    aligned = np.zeros((218, 178), np.uint8)
    aligned[35:183, 15:163] = 255  # 148 pixels a side, from the middle
    assert load_images(aligned[None], 148, crop=recipe("celeba-64").config.crop).pixels.min() == 255


def test_the_page_of_recipes_is_up_to_date():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    expected = [f"| `{each.name}` | {each.about} | {each.cost} | {each.reaches} |" for each in RECIPES.values()]
    assert sorted(rows) == sorted(expected)


def test_the_verb_lists_every_recipe():
    lines = call("recipes").stdout.splitlines()
    told = [re.split(r" {2,}", line.strip()) for line in lines if line.startswith("  ")]
    assert told == [[each.name, each.about, each.cost, each.reaches] for each in RECIPES.values()]
    assert [line for line in lines if not line.startswith("  ")] == ["density", "images", "classify", "invert"]


@pytest.mark.parametrize("name", ["cats-64", "mnist-24", "kinematics"])
def test_the_verb_shows_one_in_full(tmp_path, name):
    each = recipe(name)
    text, _, settings = call("recipes", name).stdout.partition("settings\n")
    for part in (each.about, each.data, each.command, each.smoke, str(each.expected or "not measured")):
        assert part in text
    assert yaml.safe_load(settings) == each.settings  # what is shown is a settings file


@pytest.mark.parametrize("each", RECIPES.values(), ids=RECIPES)
def test_the_command_of_a_recipe_is_one(each):
    for line in (each.command, each.smoke):
        program, fit, application, _, *options = shlex.split(line)
        assert (program, fit, application) == ("flowknife", "fit", each.application)
        assert options[:3] == ["--recipe", each.name, "--out"]


def test_an_unknown_recipe_is_told_with_those_that_there_are(tmp_path):
    line = refused("fit", "images", tmp_path, "--out", tmp_path / "run", "--recipe", "cats-46", words="'cats-46'")
    names = [each.name for each in RECIPES.values() if each.application == "images"]
    assert ", ".join(names) in line and line.endswith("try cats-64") and "kinematics" not in line
    refused("recipes", "cats", words=("'cats'", *RECIPES))
    options = ("--out", tmp_path / "run", "--recipe", "cats-64")
    refused("fit", "density", tmp_path / "x.csv", *options, words=("'cats-64'", "for images", "density-ring"))
    assert not (tmp_path / "run").exists()


def test_files_go_over_recipes_and_settings_over_files(tmp_path, asked):
    (tmp_path / "f.yaml").write_text("width: 16\nbits: 7\ntrain: {clip: 2}\naugment.zoom: 0.1\n")
    options = ["--recipe", "mnist-24", "--config", tmp_path / "f.yaml", "-s", "bits=3", "-s", "augment.rotation=10"]
    refused("fit", "images", "data", "--out", tmp_path / "run", *options, words="enough")
    expected = {
        "image_size": 24,
        "architecture": "lattice",
        "crop": 24 / 28,
        "width": 16,
        "bits": 3,
        "augment": {"flip": False, "zoom": 0.1, "rotation": 10},
        "train": {"minutes": 4, "clip": 2},
    }
    assert asked[0] == apps.ImagesConfig.model_validate(expected)
    assert recipe("mnist-24").settings["bits"] == 8 and "zoom" not in recipe("mnist-24").settings["augment"]


@pytest.mark.parametrize("end", ["train.steps=20", "train.epochs=20", "train.minutes=20"])
def test_an_end_of_training_takes_the_place_of_the_recipes(tmp_path, asked, end):
    options = ["--recipe", "cats-64", "-s", end, "-s", "train.clip=2"]
    refused("fit", "images", "data", "--out", tmp_path / "run", *options, words="enough")
    train = {"clip": 2, end.partition("=")[0].removeprefix("train."): 20}
    assert asked[0].train == fk.Training.model_validate(train)
    assert asked[0].train.model_fields_set == train.keys()


@pytest.fixture(scope="module")
def framed(tmp_path_factory):
    """Digits of 8 x 8 pixels in the middle of 16 x 16 pixels of noise, as files; and the digits."""
    place = tmp_path_factory.mktemp("framed")
    inside = digits()[0][:60]
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 1), dtype=np.uint8)
    images[:, 4:12, 4:12] = inside
    write_folder(images, place / "folder")
    np.savez(place / "all.npz", images=images, inside=inside)
    return place, images, inside


@pytest.mark.slow
def test_smoke_mode_runs_and_says_what_to_expect(tmp_path, framed):
    options = ("--recipe", "digits-8", "--set", "train.steps=2", "-s", "width=8", "-s", "crop=0.5")
    text = call("fit", "images", framed[0] / "folder", "--out", tmp_path / "run", *options).stdout
    assert re.search(r"recipe +digits-8\n", text) and re.search(r"expected +1\.89 bits", text)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["recipe"] == "digits-8" and record["config"]["architecture"] == "lattice"
    assert record["config"]["train"]["steps"] == 2 and record["config"]["train"].get("minutes") is None


@pytest.mark.slow
def test_a_run_cuts_everything_as_its_training_images(tmp_path, framed):
    place, images, inside = framed
    settings = {**TINY, "crop": 0.5, "train": {"steps": 2, "batch_size": 16}, "show_progress": False, "key": 0}
    model = fk.images(images, **settings)
    assert model.shape == (8, 8, 1)  # half of the usual side
    known = {image.tobytes() for image in inside}
    assert {image.tobytes() for image in model.held_out} <= known
    assert fk.images(place / "folder", **settings).record.data.fingerprint != ""
    model.save(tmp_path / "run")
    model = fk.load(tmp_path / "run")
    assert model.config.crop == 0.5
    bits = model.score(inside)["bits_per_dim"]  # of the size already: taken as they are
    for same in (images, place / "folder", f"{place / 'all.npz'}:images"):
        np.testing.assert_array_equal(model.score(same)["bits_per_dim"], bits)
    np.testing.assert_array_equal(model.decode(model.encode(place / "folder" / "000000.png"))[0] >> 3, inside[0] >> 3)
    call("score", tmp_path / "run", place / "folder", "--out", tmp_path / "scores.csv")
    rows = sorted(rows_of(tmp_path / "scores.csv"), key=lambda row: row["path"])
    np.testing.assert_allclose([float(row["bits_per_dim"]) for row in rows], bits, 1e-6)


@pytest.mark.parametrize("crop", [0, 1.5, -1])
def test_a_crop_is_a_share(framed, crop):
    with pytest.raises(InputError, match=f"crop={crop};"):
        fk.images(framed[1], crop=crop)


def test_a_crop_of_images_that_have_the_size_already_is_refused(framed):
    place, _, inside = framed
    for images in (inside, load_images(place / "folder", 8)):
        with pytest.raises(InputError, match=r"crop=0\.5 for images in memory of 8 x 8"):
            fk.images(images, crop=0.5, image_size=8)
