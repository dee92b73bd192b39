"""What people meet first: representations, notebooks, cards, settings as files, fits again, completion, --quiet."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import types

import equinox as eqx
import numpy as np
import pytest
import yaml

import flowknife as fk
from flowknife import _progress
from flowknife._progress import note, progress
from flowknife._settings import validated
from flowknife.apps import APPLICATIONS
from tests.command import call, refused

SMALL = {"layers": 1, "width": 4, "depth": 1, "scalar": "affine", "show_progress": False, "train": {"steps": 3}}
WORDS = ["-s", "layers=1", "-s", "width=4", "-s", "depth=1", "-s", "scalar=affine", "-s", "train.steps=3"]
X = fk.data.TOYS["moons"].sample(200, key=0)


@pytest.fixture(scope="module")
def flow():
    return fk.density(X, **SMALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("doors")
    np.savetxt(place / "x.csv", X, delimiter=",", header="a,b", comments="")
    call("fit", "density", place / "x.csv", "--out", place / "run", *WORDS, "-s", "seed=7")
    return place / "run"


# -- notebooks --------------------------------------------------------------------------------------------------------


def test_a_result_says_what_it_is_in_one_line(flow):
    text = repr(flow)
    assert text.startswith("Density(x 2 <-> z 2, 200 rows, 3 steps") and len(text) < 120 and "\n" not in text


def test_arrays_of_what_is_returned_are_not_printed(flow):
    rooms = (fk.diagnostics, fk.data, fk.train, fk.sampling)
    kinds = [kind for room in rooms for kind in vars(room).values() if isinstance(kind, type)]
    printed = [
        part
        for kind in kinds
        if dataclasses.is_dataclass(kind) and not issubclass(kind, eqx.Module) and "__repr__" in vars(kind)
        for part in dataclasses.fields(kind)
        if part.repr and kind.__repr__.__qualname__ != "ImageSet.__repr__"
    ]
    assert len(printed) > 20
    assert not [part.name for part in printed if re.search("ndarray|Array|INN", str(part.type))]
    assert repr(flow.explain(X[:2])) == "Explanation(2 rows of x1, x2)"
    pixels = fk.data.load_images(np.zeros((1, 4, 4), np.uint8), size=4)
    assert repr(pixels) == "ImageSet(1 image of 4x4x1)"


def test_a_notebook_shows_metrics_and_a_figure(flow):
    html = flow._repr_html_()
    assert html.count("data:image/png;base64,") == 1 and "<script" not in html
    assert "200 rows" in html and "3 steps" in html and f"{flow.metrics['nll']:.4g}".lstrip("-") in html
    assert flow._repr_html_() is html  # drawn once


def test_a_figure_is_shown_by_itself(flow):
    figure = fk.plots.history(flow.history)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert set(flow.figures()) == {"history", "samples"}


@pytest.fixture
def notebook(monkeypatch):
    """A notebook that notes what it displays."""
    shown = []

    class Handle:
        def update(self, html):
            shown.append(html.data)

    def display(html, display_id):
        shown.append(html.data)
        return Handle()

    class ZMQInteractiveShell:
        pass

    python = types.ModuleType("IPython")
    python.get_ipython = ZMQInteractiveShell
    python.display = types.ModuleType("IPython.display")
    python.display.HTML = lambda data: types.SimpleNamespace(data=data)
    python.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", python)
    monkeypatch.setitem(sys.modules, "IPython.display", python.display)
    return shown


def test_progress_in_a_notebook_is_one_bar(notebook, capsys):
    with progress("density <1>") as report:
        report(0.25, "loss 1.5")
        report(1.0, "loss 1.25")
    assert all("<progress" in html and "&lt;1&gt;" in html for html in notebook)
    assert "100 %" in notebook[-1] and "loss 1.25" in notebook[-1] and capsys.readouterr().err == ""


# -- cards ------------------------------------------------------------------------------------------------------------


def test_a_card_lies_beside_a_run_and_says_what_it_is(run):
    text = (run / "card.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "flowknife" and "density" in head["tags"]
    record = json.loads((run / "run.json").read_text())
    assert f"{record['metrics']['nll']:.4g}".lstrip("-") in text and "200 rows" in text and "columns: a, b" in text
    assert "seed=7" in text and "fk.load" in text


def test_a_card_of_the_user_stays(tmp_path, flow):
    flow.save(tmp_path / "run")
    (tmp_path / "run" / "card.md").write_text("mine")
    flow.save(tmp_path / "run")
    assert (tmp_path / "run" / "card.md").read_text() == "mine"


# -- settings as files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["density", "cats-64"])
def test_settings_are_shown_as_a_file_that_fit_reads(name):
    text = call("config", "show", name).stdout
    application = "density" if name == "density" else "images"
    expected = (
        APPLICATIONS[application].settings() if name == "density" else fk.recipes.recipe(name, application).config
    )
    assert validated(APPLICATIONS[application].settings, yaml.safe_load(text)).model_dump() == expected.model_dump()


def test_settings_of_a_run_are_those_that_it_used(run):
    used = yaml.safe_load(call("config", "show", run).stdout)
    asked = yaml.safe_load(call("config", "show", run, "--asked").stdout)
    assert used["smoothing"] > 0 and used["train"]["batch_size"] and used["seed"] == 7
    assert asked == {"layers": 1, "width": 4, "depth": 1, "scalar": "affine", "seed": 7, "train": {"steps": 3}}


def test_unknown_names_of_settings_get_the_nearest(tmp_path):
    refused("config", "show", "cats-46", words="cats-64")
    refused("config", "show", "densty", words="try density")


@pytest.mark.parametrize("job", sorted(APPLICATIONS))
def test_the_schema_knows_every_setting(job):
    schema = json.loads(call("config", "schema", job).stdout)
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(APPLICATIONS[job].settings.model_fields)
    assert schema["properties"]["seed"]["description"] and schema["$defs"]["Training"]["properties"]["minutes"]


# -- fits again -------------------------------------------------------------------------------------------------------


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_a_run_can_be_fitted_again(tmp_path, run):
    call("fit", "--from", run, "--out", tmp_path / "again")
    assert weights(tmp_path / "again") == weights(run)
    call("fit", "density", run.parent / "x.csv", "--from", run, "--out", tmp_path / "third", "-s", "seed=8")
    assert weights(tmp_path / "third") != weights(run)


def test_a_run_without_its_data_cannot(tmp_path, flow, run):
    flow.save(tmp_path / "run")
    refused("fit", "--from", tmp_path / "run", "--out", tmp_path / "again", words="fit density DATA --from")
    table = run.parent / "x.csv"
    words = "a run of density; expected one of images"
    refused("fit", "images", table, "--from", run, "--out", tmp_path / "again", words=words)
    assert "--out RUN" in call("fit", "--from", run, status=2).stderr.replace("\n", " ")


# -- the shell --------------------------------------------------------------------------------------------------------


def test_quiet_prints_nothing_but_errors(tmp_path, run):
    table = run.parent / "x.csv"
    result = call("fit", "density", table, "--out", tmp_path / "run", *WORDS, "-q")
    assert result.stdout == "" and result.stderr == ""
    result = call("score", run, table, "--out", tmp_path / "scores.csv", "--quiet")
    assert result.stdout == "" and result.stderr == ""
    assert call("info", run, "-q").stdout and not _progress.is_silenced()
    refused("score", run, tmp_path / "none.csv", "--out", tmp_path / "other.csv", "-q", words="none.csv")


def test_notes_and_bars_are_silent_within_silence(capsys):
    with _progress.silenced(), progress("label") as report:
        note("a note")
        report(1.0)
    assert capsys.readouterr().err == ""
    note("a note")
    assert capsys.readouterr().err == "note: a note\n"


def test_the_shell_completes_verbs():
    words = {"_FLOWKNIFE_COMPLETE": "complete_bash", "COMP_WORDS": "flowknife expo", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "flowknife"], env={**os.environ, **words}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["export"]
    assert "--install-completion" in call("--help").stdout


def test_no_line_of_help_is_cut(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = call("--help").stdout
    assert "…" not in text and "..." not in text.split("Commands:")[1]
    for verb in ("score", "export"):
        assert not re.search(r"\.\.\.$", call(verb, "--help").stdout, re.MULTILINE)


def test_counts_of_one_are_singular(tmp_path, run):
    rows = (run.parent / "x.csv").read_text().splitlines()
    (tmp_path / "one.csv").write_text("\n".join([*rows[:2], "1,"]) + "\n")
    result = call("score", run, tmp_path / "one.csv", "--drop-invalid", "--out", tmp_path / "scores.csv")
    assert "left out 1 row with" in result.stderr and "wrote 1 score to" in result.stdout
    assert call("sample", run, "-n", 1, "--out", tmp_path / "new.csv").stdout.startswith("wrote 1 row to")
