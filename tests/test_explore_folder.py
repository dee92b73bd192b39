"""Images of a folder on a live page: judged a few at a time, asked for by number, shown by p-value."""

import json

import numpy as np
import pytest
from PIL import Image

import flowknife as fk
from flowknife.data import load_images
from flowknife.errors import InputError
from flowknife.explore import Folder, _folder
from tests.pages import EVIL, browser
from tests.test_explore_live import RUNS, SHAPE, ask, asked, fake, served

SIDE = SHAPE[0]
SIZE = SIDE * SIDE


def written(folder, count, names=None):
    """A folder of grey images, each a little lighter than the one before, and a file that is none."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(np.full((SIDE, SIDE), 200 * i // count, np.uint8)).save(folder / f"{i:03d}{names or ''}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def read(found):
    return load_images(found, SIDE, channels=1)


def score(x, n, given=None):
    p = x.reshape(n, SIZE).mean(axis=1) / 255
    return {"p": p, "score": 1 - p, "bits": p}


def every(folder):
    """All that is known in the end, by column."""
    parts, done = [], 0
    while done < len(folder.images):
        parts.append(folder.gallery(done))
        done += len(parts[-1]["numbers"])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_each_image_is_judged_once_and_stays_known(tmp_path):
    seen = []

    def counted(x, n, given):
        seen.append(n)
        return score(x, n)

    folder = Folder(written(tmp_path / EVIL, 19), read, SIZE, counted)
    found = every(folder)
    assert seen == [8, 8, 3] and sorted(found["numbers"]) == list(range(19))
    np.testing.assert_allclose(found["p"] * 255, [200 * i // 19 for i in found["numbers"]])
    again = folder.gallery(0)  # a page that is opened again
    assert seen == [8, 8, 3] and all(np.array_equal(again[name], found[name]) for name in found)
    assert folder.gallery(19)["numbers"].size == 0
    about = folder.about
    assert (about["name"], about["count"], about["left_out"], about["skipped"]) == (EVIL, 19, 0, 1)
    assert about["some_skipped"][0][0] == "broken.png"
    images = folder.gallery_images(np.array([7, 2], np.int32))
    assert images["names"] == ["007.png", "002.png"]
    assert np.array_equal(images["pixels"], folder.images.pixels[[7, 2]])


def test_of_many_images_some_are_read_evenly_spread(tmp_path, monkeypatch):
    monkeypatch.setattr(_folder, "_MOST_BYTES", 5 * SIZE)
    folder = Folder(written(tmp_path, 19), read, SIZE, score)
    assert (folder.about["count"], folder.about["left_out"]) == (5, 15)
    assert folder.images.names == tuple(f"{i:03d}.png" for i in (0, 4, 8, 12, 16))


@pytest.mark.parametrize("numbers", [[], [19], [-1], [0.5], ["../../etc/passwd"], [[0]], list(range(19)) * 4, None])
def test_what_is_no_number_of_an_image_is_refused(tmp_path, numbers):
    folder = Folder(written(tmp_path, 19), read, SIZE, score)
    with pytest.raises(InputError, match="expected"):
        folder.gallery_images(numbers)
    for start in (-1, 20, 0.5, "0", None, True):
        with pytest.raises(InputError, match="expected a number from 0 to 19"):
            folder.gallery(start)


def test_a_model_of_classes_takes_them_from_subfolders(tmp_path):
    given = []

    def known(x, n, codes):
        given.extend(codes)
        return score(x, n)

    for name in ("cat", "dog"):
        written(tmp_path / name, 3)
    folder = Folder(tmp_path, read, SIZE, known, classes=("dog", "cat"), conditional=True)
    found = every(folder)
    assert given == folder.codes[found["numbers"]].tolist() and folder.codes.tolist() == [1, 1, 1, 0, 0, 0]
    with pytest.raises(InputError, match="got 3 images without a class"):
        Folder(tmp_path, read, SIZE, known, classes=("dog", "cow"), conditional=True)


@pytest.mark.slow
def test_a_model_of_images_judges_a_folder_as_its_page_does(tmp_path):
    model = fk.load(RUNS / "images")
    live = model._live(written(tmp_path, 9))
    found = ask(live, "gallery", start=0)
    images = ask(live, "gallery_images", numbers=found["numbers"])
    own = ask(live, "score", x=images["pixels"], n=8)
    assert json.loads(live.content)["folder"]["count"] == 9 and "gallery" in live.slow
    for name, value in own.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    with pytest.raises(InputError, match="nowhere"):
        model._live(tmp_path / "nowhere")


def test_models_of_rows_take_no_images(tmp_path):
    with pytest.raises(InputError, match="got images="):
        fk.load(RUNS / "density")._live(tmp_path)


def test_the_gallery_of_a_folder_in_a_browser(tmp_path):
    said = []
    with browser() as chromium, served(fake(False, written(tmp_path / EVIL, 60, EVIL))) as address:
        assert asked(address, "/api/gallery_images", b'{"numbers": ["../../etc/passwd"]}')[0] == 400
        page = chromium.new_page(viewport={"width": 390, "height": 900}, reduced_motion="reduce")
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        wall = "[aria-label='image of the folder'] button"
        page.wait_for_function("() => document.body.innerText.includes('of 60 images are flagged')")

        page.wait_for_function(f"() => document.querySelectorAll(`{wall}`).length === 48")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth && !document.querySelector('img')")
        assert EVIL in page.inner_text("main") and "1 file could not be used" in page.inner_text("main")
        first = page.inner_text(f"{wall} >> nth=0")
        assert "p < 0.001" in first and f"000{EVIL}.png" in first
        # a click opens it above, with its map
        page.click(f"{wall} >> nth=1")
        page.wait_for_function("() => document.querySelector('.card h3').textContent.startsWith('001')")
        page.wait_for_function("() => document.querySelector('.card .verdict').classList.contains('bad')")
        # by keys: the next ones, and the other order
        page.get_by_role("button", name="Next").focus()
        page.keyboard.press("Enter")
        page.wait_for_function(f"() => document.querySelectorAll(`{wall}`).length === 12")
        page.get_by_label("First", exact=True).select_option(label="the most usual")
        page.wait_for_function(f"() => document.querySelector(`{wall}`).textContent.includes('059')")
        page.focus(f"{wall} >> nth=0")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('.card h3').textContent.startsWith('059')")
        assert page.evaluate("document.getElementById('trouble')") is None
    assert said == []
