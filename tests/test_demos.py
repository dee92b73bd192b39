"""Demos: registered, shown on one page, and left out where their data are missing."""

import json
import re

import numpy as np
import pytest

import flowknife as fk
from flowknife import demos, storage
from flowknife._record import DataRecord, Record, TrainingRecord
from flowknife.data import digits
from flowknife.errors import InputError
from flowknife.report import Section, ends_svg
from tests.command import call, refused


def fake(name):
    def demo(folder, quick):
        settings = {"quick": quick}
        data, training = DataRecord(kind="rows", rows=1), TrainingRecord(steps=0, seconds=0.0)
        record = Record[dict](application=name, config=settings, used=settings, data=data, training=training, demo=True)
        storage.write_run(folder, record, {}, {})
        (folder / "report.html").write_text(name)
        return Section(f"Title of {name}", "text", [fk.report.PageImage(ends_svg(["x"], ["z"]).encode())])

    return demo


def missing(folder, quick):
    raise InputError("the data need a package that is not installed")


def test_demo_runs_all_and_shows_them_on_one_page(tmp_path, monkeypatch):
    monkeypatch.setattr(demos, "DEMOS", {"one": fake("one"), "two": fake("two"), "three": missing})
    for _ in range(2):  # again, over what is there
        result = call("demo", "--out", tmp_path / "demo")
    assert result.stdout == f"report: {tmp_path / 'demo' / 'report.html'}\n"
    assert "three: left out" in result.stderr
    page = (tmp_path / "demo" / "report.html").read_text()
    shown = re.findall("<h2>(.*?)</h2>|<figcaption>(.*?)</figcaption>|(not installed)", page)
    titles = ["Title of one", "Title of two"]
    overview = ["2 jobs, one network", *(f"{title}." for title in titles)]
    assert ["".join(words) for words in shown] == [*overview, *titles, "three", "not installed"]
    assert json.loads((tmp_path / "demo" / "two" / "run.json").read_text())["used"]["quick"] is True

    result = call("demo", "two", "--full", "--out", tmp_path / "alone")
    assert result.stdout == f"report: {tmp_path / 'alone' / 'report.html'}\n"
    assert json.loads((tmp_path / "alone" / "run.json").read_text())["used"]["quick"] is False
    refused("demo", "three", "--out", tmp_path / "left", words="not installed")
    refused("demo", "one", "--out", tmp_path, words="not empty")


def test_other_images_are_no_digits():
    images, names = demos.other_images(digits()[0][:3])
    assert images.shape == (len(names), 8, 8, 1) and images.dtype == np.uint8 and len(set(names)) == len(names)
    by_name = dict(zip(names, images, strict=True))
    assert by_name["white 1"].min() == 255 and np.ptp(by_name["grey 1"]) == 0
    assert np.array_equal(by_name["inverted 2"], 255 - digits()[0][1])
    assert by_name["blurred 2"].std() < digits()[0][1].std() < by_name["noise 1"].std() * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", list(demos.DEMOS))
def test_every_demo_runs(tmp_path, name):
    call("demo", name, "--out", tmp_path / name)
    assert {"run.json", "model.safetensors", "report.html"} <= {path.name for path in (tmp_path / name).iterdir()}


def test_every_job_has_its_demo():
    assert list(demos.DEMOS) == ["moons", "images", "classify-images", "ring", "kinematics", "gravity", "noise"]
