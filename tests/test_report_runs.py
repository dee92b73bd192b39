"""The reports of classifiers and of inverse problems hold their figures and say what they show."""

import re
from dataclasses import replace

import numpy as np
import pytest

import flowknife as fk
from flowknife.anomaly._neighbours import Neighbours
from flowknife.report import ends
from tests.test_golden import GOLDEN

TINY = {"layers": 1, "width": 8, "depth": 1, "show_progress": False}
TRAIN = {"steps": 5, "batch_size": 32, "weight_decay": 0.0}


def page(path):
    """The text of a report, and the names of its figures; each figure is inside the page."""
    text, figures = path.read_text(), {file.stem for file in (path.parent / "figures").iterdir()}
    assert text.count("data:image/png") == len(figures)
    return text, figures


@pytest.fixture(scope="module")
def arm():
    settings = {"num_simulations": 200, "features": 0, "train": TRAIN}
    return fk.invert(fk.problems.kinematics(), **settings, **TINY)


@pytest.fixture(scope="module")
def rows():
    return fk.load(GOLDEN / "format-3" / "classify")


@pytest.mark.slow
def test_report_of_a_posterior(tmp_path, arm):
    text, figures = page(arm.report(tmp_path))
    every = {"problem", "corner", "predictive", "calibration", "coverage", "p_values"}
    assert every <= figures and "noise" not in figures
    assert "draws of the exact posterior" in text
    for verdict in (arm.calibration["ranks"].verdict, arm.calibration["coverage"].verdict):
        assert verdict in text.replace("&lt;", "<")
    frame = ends(arm.model)
    assert frame.left == ["x 4, Data"] and frame.right == ["z 4, Normal, given y 2"]


@pytest.mark.slow
def test_report_of_pairs_whose_simulator_nobody_knows(tmp_path, arm):
    data = arm.record.data.model_copy(update={"problem": None})
    record = arm.record.model_copy(update={"data": data})
    _, figures = page(replace(arm, record=record, forward=None, history={}).report(tmp_path))
    assert figures == {"corner", "calibration", "coverage", "p_values", "recovery", "contraction", "promised"}


def test_report_of_a_classifier(tmp_path, rows):
    text, figures = page(rows.report(tmp_path))
    every = {"confusion", "reliability", "samples", "held_out", "latents", "p_values", "history"}
    assert figures == every
    assert rows.reliability().verdict.replace("'", "&#x27;") in text
    assert re.search(r"Accuracy, held out</th><td>[\d.]+</td>", text)
    assert "with each column shuffled" in text


def test_report_of_a_classifier_shows_other_items(tmp_path, rows):
    text, _ = page(rows.report(tmp_path, others=np.full((20, 2), 50.0)))
    assert re.search(r"20 other items against [\d,]+ held-out items: 1\.000", text) and "shuffled" not in text


@pytest.mark.slow
def test_report_of_a_classifier_of_images(tmp_path):
    images, labels = fk.data.digits()
    known = labels < 3
    model = fk.classify(images[known], labels[known], train=TRAIN, **TINY)
    _, figures = page(model.report(tmp_path / "a"))
    assert {"confusion", "reliability", "samples", "held_out", "latents", "p_values", "outliers"} <= figures
    text, _ = page(model.report(tmp_path / "b", others=images[labels == 7][:20]))
    assert "negatives" not in text


@pytest.mark.slow
def test_report_of_noisy_data_shows_the_noise(tmp_path):
    settings = {"num_simulations": 200, "form": "partitioned", "train": TRAIN}
    posterior = fk.invert(fk.problems.gravity(noise=0.2), **settings, **TINY)
    text, figures = page(posterior.report(tmp_path))
    assert "noise" in figures and "standard deviation of the noise is 0.2" in text


@pytest.fixture(scope="module")
def digits():
    settings = {"architecture": "glow", "levels": 2, "steps_per_level": 1, "width": 8}
    return fk.images(fk.data.digits()[0][:80], train={"steps": 5, "batch_size": 16}, show_progress=False, **settings)


@pytest.mark.slow
def test_report_of_an_image_model_shows_what_one_does_with_it(tmp_path, digits):
    known = replace(digits, neighbours=Neighbours.fit(fk.data.digits()[0][:80], mirrored=False))
    grey = np.full((3, 8, 8), 90, np.uint8)
    text, figures = page(known.report(tmp_path, others=grey))
    drawn = {"images", "temperatures", "level_temperatures", "nearest", "interpolation", "resampled"}
    assert drawn | {"anomaly_maps", "clusters", "outliers", "cloud", "p_values"} <= figures
    assert "Benjamini-Hochberg" in text
