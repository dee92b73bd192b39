"""What the command line writes: never over an input or a file of the user's, never two runs to one place."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import flowknife as fk
from flowknife import apps, storage
from flowknife._files import GENERATOR, claimed, content_of, is_own, own_extras
from flowknife.data import save_table
from flowknife.errors import StorageError
from flowknife.plots import mapping_animation
from flowknife.report import Section, write_report
from tests.command import call, refused

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "points.csv"
    save_table(path, np.random.default_rng(0).normal(size=(100, 3)), NAMES)
    return path


@pytest.fixture(scope="module")
def fitted(table):
    quick = {"layers": 1, "width": 4, "depth": 1, "scalar": "affine", "train": {"steps": 1}, "show_progress": False}
    flow = fk.density(str(table), **quick)
    flow.save(table.parent / "run")
    return flow


@pytest.fixture
def run(tmp_path, table, fitted):
    return shutil.copytree(table.parent / "run", tmp_path / "run")


def _asked(fitted, config):
    return dataclasses.replace(fitted, record=fitted.record.model_copy(update={"config": config}))


@pytest.fixture
def at_once(fitted, monkeypatch):
    """In place of training, a result that is there."""
    monkeypatch.setattr(apps, "density", lambda data, config, **options: _asked(fitted, config))


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["figures/mine.png", "report.html", "history.csv", "model.safetensors", "skipped.csv", "run.json", "a/b"]
)
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_folder_of_the_users_is_no_place_for_a_run(tmp_path, table, at_once, name, overwrite):
    mine = tmp_path / "D" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    refused("fit", "density", table, "--out", tmp_path / "D", *overwrite, words=("not empty", str(tmp_path / "D")))
    assert snapshot(tmp_path) == {mine.relative_to(tmp_path): b"mine"}


def test_overwriting_removes_only_what_flowknife_wrote(run, table, at_once):
    call("report", run)
    own = own_extras(run)
    assert {path.name for path in own} >= {"report.html", "samples.png", "latents.png"}
    mine = run / "figures" / "mine.png"
    shutil.copy(run / "figures" / "samples.png", mine)
    (run / "figures" / "latents.png").write_bytes(b"edited by hand")
    (run / "notes.txt").write_text("mine")
    call("fit", "density", table, "--out", run, "--overwrite", "-s", "seed=9")
    assert json.loads((run / "run.json").read_text())["config"]["seed"] == 9
    left = {path.as_posix() for path in snapshot(run)}
    runs = {"run.json", "model.safetensors", "history.csv", "card.md"}
    assert left == runs | {"notes.txt", "figures/mine.png", "figures/latents.png"}


def test_a_run_that_cannot_be_written_leaves_the_old_one_with_its_report(run, table, at_once, monkeypatch):
    (run / "report.html").write_text(GENERATOR)
    before = snapshot(run)

    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "write_json", full)
    refused("fit", "density", table, "--out", run, "--overwrite", words="No space left")
    assert snapshot(run) == before


def test_a_report_replaces_only_its_own_figures(run):
    (run / "figures").mkdir()
    (run / "figures" / "samples.png").write_bytes(b"mine")
    refused("report", run, words=("samples.png", "did not write"))
    (run / "figures" / "samples.png").unlink()
    (run / "report.html").write_text("mine")
    refused("report", run, words="report.html")
    assert (run / "report.html").read_text() == "mine"
    (run / "report.html").unlink()
    for _ in range(2):  # its own it may
        call("report", run)
    assert is_own(run / "report.html")


def test_save_refuses_files_of_others(tmp_path, fitted):
    (tmp_path / "history.csv").write_text("mine")
    with pytest.raises(StorageError, match=r"history\.csv"):
        fitted.save(tmp_path)
    assert snapshot(tmp_path).keys() == {(tmp_path / "history.csv").relative_to(tmp_path)}


def test_a_demo_replaces_only_runs_of_demos(run, tmp_path):
    before = snapshot(run)
    refused("demo", "moons", "--out", run, words="holds a run")
    (tmp_path / "report.html").write_text("mine")
    refused("demo", "--out", tmp_path, words="report.html")
    assert snapshot(run) == before and not (tmp_path / "moons").exists()


# -- inputs -----------------------------------------------------------------------------------------------------------


def linked(tmp_path, table, how):
    place = tmp_path / "x.csv"
    shutil.copy(table, place)
    if how == "same":
        return place, place
    if how == "relative":
        return place, tmp_path / "run" / ".." / "x.csv"
    link = tmp_path / "link.csv"
    if how == "hard link":
        link.hardlink_to(place)
    else:
        link.symlink_to(place)
    return place, link


def test_a_file_that_exists_is_replaced_only_on_request(tmp_path, run, table):
    notes = tmp_path / "notes.csv"
    for verb in (["sample", run, "-n", 2], ["score", run, table]):
        notes.write_text("mine")
        refused(*verb, "--out", notes, words=("exists", "--overwrite"))
        assert notes.read_text() == "mine"
        call(*verb, "--out", notes, "--overwrite")
        assert notes.read_text() != "mine"


@pytest.mark.parametrize("how", ["same", "relative", "symbolic link", "hard link"])
def test_an_output_that_is_an_input_is_refused(tmp_path, run, table, how):
    place, other = linked(tmp_path, table, how)
    before = place.read_bytes()
    for data, out in ((place, other), (other, place)):
        refused("score", run, data, "--out", out, words=(str(out), "an input"))
    assert place.read_bytes() == before


def test_a_file_of_the_run_is_no_output(run, table):
    before = snapshot(run)
    refused("sample", run, "--out", run / "history.csv", words="a file of the run")
    refused("score", run, table, "--out", run / "history.csv", words="a file of the run")
    refused("fit", "density", run / "history.csv", "--out", run, "--overwrite", words="would be replaced")
    assert snapshot(run) == before
    call("sample", run, "--out", run / "new.csv")  # a new file may lie there


def test_a_image_that_is_read_is_not_written(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"image")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "c.png").write_bytes(b"image")
    before = snapshot(tmp_path)
    run = tmp_path / "none"
    refused("interpolate", run, tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "b.png", words="an input")
    folders = ("--positive", tmp_path / "set", "--negative", tmp_path)
    refused("attribute", run, *folders, "--out", tmp_path / "set" / "c.png", words="an input")
    assert snapshot(tmp_path) == before


def test_pages_and_lists_are_told_by_their_marks(tmp_path):
    write_report(tmp_path, "Title", [Section("One", "Text.")])
    mapping_animation(tmp_path / "mapping.gif", np.zeros((2, 3, 2)), np.zeros(3), seconds=0.1)
    shutil.copy(tmp_path / "mapping.gif", tmp_path / "copy.gif")
    assert is_own(tmp_path / "report.html") and is_own(tmp_path / "mapping.gif") and not is_own(tmp_path / "copy.gif")
    (tmp_path / "skipped.csv").write_text("path,reason\n")
    assert is_own(tmp_path / "skipped.csv")
    (tmp_path / "skipped.csv").write_text("name,why\n")
    assert not is_own(tmp_path / "skipped.csv") and not is_own(tmp_path / "missing.png")


# -- claims -----------------------------------------------------------------------------------------------------------


def test_a_folder_is_claimed_by_one(tmp_path, table, at_once):
    with claimed(tmp_path / "run"):
        refused("fit", "density", table, "--out", tmp_path / "run", words=(str(os.getpid()), "another --out"))
        with claimed(tmp_path / "other"):
            assert content_of(tmp_path / "other") == []
    assert not (tmp_path / "run").exists() and not (tmp_path / "other").exists()
    (tmp_path / "run" / ".flowknife-draft").mkdir(parents=True)  # left by a process that was killed
    call("fit", "density", table, "--out", tmp_path / "run")
    assert content_of(tmp_path / "run") == ["card.md", "history.csv", "model.safetensors", "run.json"]


DYING = """
import os, sys
from pathlib import Path
from flowknife._files import claimed
with claimed(Path(sys.argv[1])):
    os._exit(9)  # as if it was killed
"""


def test_what_killed_processes_left_does_not_stay(tmp_path):
    left = [".flowknife-abc/model.safetensors", ".card.md.0123456789abcdef", ".run.json.ffff456789abcdef"]
    kept = [".hidden", ".card.md.mine", ".notes.md.0123456789abcdef", ".flowknife-new/run.json", "card.md"]
    for name in (*left, *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with claimed(tmp_path):
        assert not any((tmp_path / name).exists() for name in left)
        assert all((tmp_path / name).exists() for name in kept)


def test_the_claim_of_a_dead_process_is_taken_over(tmp_path):
    subprocess.run([sys.executable, "-c", DYING, tmp_path / "run"], check=False)
    (claim,) = (tmp_path / "run").iterdir()
    with claimed(tmp_path / "run"):
        assert json.loads(claim.read_text())["process"] == os.getpid()
    (tmp_path / "run").mkdir(exist_ok=True)
    # a number that another process has by now; a process of another machine; half a claim
    holder = {"process": os.getpid(), "began": "long ago"}
    for other, free in ((holder, Path("/proc/self/stat").exists()), ({"host": "elsewhere"}, False), (None, False)):
        text = "{" if other is None else json.dumps({"host": os.uname().nodename, **holder, **other})
        claim.write_text(text)
        if free:
            with claimed(tmp_path / "run"):
                pass
            continue
        with pytest.raises(StorageError, match="delete"), claimed(tmp_path / "run"):
            pass
        claim.unlink()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_the_claim_of_a_process_that_nobody_waits_for_is_taken_over(tmp_path):
    """A zombie, which in a container without an init process stays."""
    with subprocess.Popen([sys.executable, "-c", DYING, tmp_path / "run"]) as process:
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.05)
        with claimed(tmp_path / "run"):
            (claim,) = (tmp_path / "run").iterdir()
            assert json.loads(claim.read_text())["process"] == os.getpid()
