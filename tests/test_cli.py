"""The command line: what it writes, and one line with the right exit status for whatever goes wrong."""

import dataclasses
import errno
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import flowknife as fk
from flowknife import apps
from flowknife._files import GENERATOR
from flowknife.cli import app
from flowknife.data import load_table, save_table
from flowknife.diagnostics import Check
from flowknife.errors import InputError
from tests.command import call, refused, rows_of

TINY = ["-s", "train.steps=30", "-s", "layers=2", "-s", "width=16", "-s", "depth=1", "-s", "scalar=affine"]
COLUMNS = ("height", "width", "depth")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def table(place):
    path = place / "points.csv"
    save_table(path, np.random.default_rng(0).normal(size=(300, 3)), COLUMNS)
    return path


@pytest.fixture(scope="module")
def fitted(place, table):
    """What `fit density` said, and the run that it wrote."""
    return call("fit", "density", table, "--out", place / "a run", *TINY), place / "a run"


@pytest.fixture
def density(fitted):
    return fitted[1]


# -- runs of a density ------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(density, monkeypatch):
    """In place of training, the run that is there; returns the arguments of every call."""
    calls = []

    def density_at_once(data, config=None, **options):
        calls.append({"data": data, "config": config, **options})
        fitted = fk.load(density)
        return dataclasses.replace(fitted, record=fitted.record.model_copy(update={"config": config}))

    monkeypatch.setattr(apps, "density", density_at_once)
    return calls


def test_fit_density_writes_a_run_and_says_what_comes_next(fitted):
    result, run = fitted
    record = json.loads((run / "run.json").read_text())
    assert record["application"] == "density" and record["config"]["layers"] == 2
    assert record["metrics"].keys() == {"nll"} and f"{record['metrics']['nll']:.4g} nats" in result.stdout
    assert {path.name for path in run.iterdir()} == {"run.json", "model.safetensors", "history.csv", "card.md"}
    assert "100 %" in result.stderr and "100 %" not in result.stdout
    following = [line.split() for line in result.stdout.splitlines() if line.startswith("  flowknife ")]
    assert [words[1] for words in following] == ["sample", "score", "report"]
    assert f"sample '{run}' -n" in result.stdout  # ready to be pasted


def test_sample_writes_tables_of_many_kinds(tmp_path, density):
    for name in ("new.csv", "new.npy", "deep/new.parquet"):
        result = call("sample", density, "-n", 7, "--seed", 3, "--out", tmp_path / name)
        assert result.stdout == f"wrote 7 rows to {tmp_path / name}\n"
    names = [load_table(tmp_path / name).names for name in ("new.csv", "deep/new.parquet")]
    values = [load_table(tmp_path / name).values for name in ("new.csv", "new.npy", "deep/new.parquet")]
    assert names == [COLUMNS] * 2
    assert values[0].shape == (7, 3) and np.ptp(values, axis=0).max() == 0  # the same seed, the same rows


def test_sample_knows_temperature_and_fresh_draws(tmp_path, density):
    def draw(*options):
        call("sample", density, "-n", 50, "--out", tmp_path / "new.npy", "--overwrite", *options)
        return np.load(tmp_path / "new.npy")

    assert np.ptp(draw("--temperature", 0), axis=0).max() < 1e-5
    first, second = draw(), draw()
    assert np.ptp(first, axis=0).min() > 1 and not np.array_equal(first, second)


def test_score_writes_one_line_per_row(tmp_path, density, table):
    result = call("score", density, table, "--out", tmp_path / "scores.csv")
    rows = rows_of(tmp_path / "scores.csv")
    assert list(rows[0]) == ["row", "log_prob", "score", "p_value", "flag", "q_value", "discovery"] and len(rows) == 300
    assert [int(row["row"]) for row in rows] == list(range(300))
    expected = fk.load(density).score(load_table(table).values)
    np.testing.assert_allclose([float(row["log_prob"]) for row in rows], expected["log_prob"], rtol=1e-6)
    assert [row["flag"] for row in rows] == [str(flag) for flag in expected["flag"]]
    assert f"{expected['flag'].sum()} flagged (p < 0.05)" in result.stdout


def test_score_finds_columns_by_name(tmp_path, density, table):
    values = load_table(table).values
    mixed = np.c_[values[:, 1], np.zeros(300), values[:, 2], values[:, 0]]
    save_table(tmp_path / "mixed.csv", mixed, ["width", "other", "depth", "height"])
    for name, data in (("a.csv", table), ("b.csv", tmp_path / "mixed.csv")):
        call("score", density, data, "--out", tmp_path / name)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    save_table(tmp_path / "foreign.csv", values, ["height", "width", "length"])
    words = ("height, width, length", "height, width, depth")
    refused("score", density, table, "--partition", "test", "--out", tmp_path / "c.csv", words="--partition")
    refused("score", density, tmp_path / "foreign.csv", "--out", tmp_path / "c.csv", words=words)
    np.save(tmp_path / "bare.npy", values)  # an array has no names: its columns are taken as they come
    call("score", density, tmp_path / "bare.npy", "--out", tmp_path / "d.csv")
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "d.csv").read_text()


def test_score_leaves_out_invalid_rows_when_asked(tmp_path, density, table):
    values = load_table(table).values[:5].copy()
    values[2, 0] = np.nan
    save_table(tmp_path / "holes.csv", values, COLUMNS)
    arguments = ("score", density, tmp_path / "holes.csv", "--out", tmp_path / "scores.csv")
    refused(*arguments, words="--drop-invalid")
    result = call(*arguments, "--drop-invalid")
    assert [row["row"] for row in rows_of(tmp_path / "scores.csv")] == ["0", "1", "3", "4"]
    assert "left out 1 row" in result.stderr


def test_info_shows_both_ends_and_how_the_run_was_made(density):
    text = call("info", density).stdout
    assert re.search(r"left end +x 3", text) and re.search(r"right end +z 3, Normal", text)
    assert re.search(r"nll +-?\d[\d.]* nats per row", text) and re.search(r"train\.steps +30", text)
    assert re.search(r"names +height, width, depth\n", text) and re.search(r"jax +\d", text)


def test_check_prints_numbers_and_fails_when_one_is_beyond_its_limit(density, table, monkeypatch):
    monkeypatch.setattr(apps.Density, "check", lambda self, data=None, given=None: [Check("round trip", 1e-6, 1e-3)])
    assert call("check", density).stdout == "passed  round trip  1e-06, at most 0.001\n"
    judged = []
    checks = [Check("round trip", 1e-6, 1e-3), Check("latents", float("nan"), 0.1)]
    monkeypatch.setattr(apps.Density, "check", lambda self, data=None, given=None: judged.append(data) or checks)
    result = call("check", density, table, status=1)
    assert "passed  round trip  1e-06" in result.stdout and "FAILED  latents     nan" in result.stdout
    assert result.stderr == "error: 1 of 2 checks failed\n"
    np.testing.assert_array_equal(judged[0], load_table(table).values)


def test_check_of_a_real_run_measures_the_round_trip(density):
    result = CliRunner().invoke(app, ["check", str(density)])
    assert re.search(r"passed  round trip, .* at most 0.01\n", result.stdout)


def test_report_writes_a_page_and_its_figures(place, density):
    run = shutil.copytree(density, place / "reported")
    result = call("report", run)
    assert result.stdout == f"report: {run / 'report.html'}\n"
    assert "data:image/png" in (run / "report.html").read_text()
    assert {"samples.png", "latents.png"} <= {path.name for path in (run / "figures").iterdir()}
    refused("report", run, "--others", place, words="--others")


# -- data that cannot be used -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.csv", None, "no file"),
        ("empty.csv", "", "empty file"),
        ("text.csv", "a,b\n1,red\n2,blue\n", "'b'"),
        ("holes.csv", "a,b\n1,2\n3,\n5,6\n7,8\n", "--drop-invalid"),
        ("ragged.csv", "a,b\n1,2\n3\n", "line 3"),
        ("few.csv", "a,b\n1,2\n", "rows"),
        ("table.xlsx", "", ".csv"),
        ("broken.npy", "nothing of the kind", "damaged"),
        ("folder.csv", Path, "folder"),
    ],
)
def test_fit_density_refuses_in_one_line(tmp_path, name, content, words):
    path = tmp_path / name
    if content is Path:
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    line = refused("fit", "density", path, "--out", tmp_path / "run", words=words)
    assert name in line and not (tmp_path / "run").exists()


def test_fit_density_drops_invalid_rows_only_when_asked(tmp_path, table, trained):
    for options in ([], ["--drop-invalid"]):
        call("fit", "density", table, "--out", tmp_path / f"run{len(options)}", *options)
    assert [(made["data"], made["drop_invalid"]) for made in trained] == [(str(table), False), (str(table), True)]


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.minuts=5", ("'train.minuts'", "train.minutes")),
        ("minutes=5", ("'minutes'", "train.minutes")),
        ("zzz=1", ("'zzz'", "seed", "train.learning_rate")),
        ("layers=0", ("layers=0", "greater than or equal to 1", "couplings", "layers=8")),
        ("layers=many", ("layers='many'", "integer", "layers=8")),
        ("train.steps=0", ("train.steps=0", "leaving train.steps out")),
        ("scalar=cubic", ("'spline', 'affine' or 'additive'", "scalar=spline")),
        ("train=5", ("train=5", "train.epochs")),
        ("train.steps.more=5", ("train.steps=", "integer")),
        ("seed=[1", ("seed=[1", "plain value")),
        ("=1", ("unknown setting ''",)),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(tmp_path, table, setting, words):
    refused("fit", "density", table, "--out", tmp_path / "run", "--set", setting, words=words)


def test_wrong_settings_are_counted(tmp_path, table):
    options = ("--set", "layers=0", "--set", "width=0", "--set", "foo=0")
    refused("fit", "density", table, "--out", tmp_path / "run", *options, words="2 more")


def test_settings_come_from_a_file_and_are_overruled(tmp_path, table, trained):
    (tmp_path / "f.yaml").write_text("seed: 4\nlayers: 1\ntrain: {steps: 9, clip: 2}\ntrain.batch_size: 50\n")
    options = ("-s", "train.steps=10", "-s", "train.learning_rate=1e-3", "-s", "seed=null", "-s", "seed=5")
    call("fit", "density", table, "--out", tmp_path / "run", "--config", tmp_path / "f.yaml", *options)
    train = {"steps": 10, "clip": 2, "batch_size": 50, "learning_rate": 1e-3}
    assert trained[0]["config"] == apps.DensityConfig(seed=5, layers=1, train=fk.Training(**train))


@pytest.mark.parametrize(
    ("content", "words"), [("a: [", "no YAML"), ("- 1\n", "a list"), ("5", "an int"), (b"\xff\xfe\x00", "no YAML")]
)
def test_a_settings_file_that_is_none_is_told(tmp_path, table, content, words):
    (tmp_path / "f.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    options = ("--out", tmp_path / "run", "--config", tmp_path / "f.yaml")
    refused("fit", "density", table, *options, words=("f.yaml", words.removeprefix("a ").removeprefix("an ")))
    refused("fit", "density", table, "--out", tmp_path / "run", "--config", tmp_path / "no.yaml", words="no.yaml")


# -- places -----------------------------------------------------------------------------------------------------------


def test_fit_never_overwrites_by_accident(tmp_path, density, table, trained):
    run = shutil.copytree(density, tmp_path / "run")
    before = (run / "run.json").read_bytes()
    refused("fit", "density", table, "--out", run, *TINY, words=(str(run), "--overwrite"))
    refused("fit", "density", table, "--out", run, "--overwrite", "-s", "layers=0", words="layers")
    assert not trained
    assert (run / "run.json").read_bytes() == before  # what fails leaves the old run alone
    (run / "figures").mkdir()
    (run / "figures" / "old.png").write_bytes(b"flowknife/old.png")  # as flowknife marks its figures
    (run / "report.html").write_text(GENERATOR)
    (run / "notes.txt").touch()
    call("fit", "density", table, "--out", run, "--overwrite", "-s", "seed=9")
    assert json.loads((run / "run.json").read_text())["config"]["seed"] == 9
    names = {path.name for path in run.iterdir()}
    assert names == {"run.json", "model.safetensors", "history.csv", "card.md", "notes.txt"}


def test_fit_refuses_a_place_before_it_trains(tmp_path, table, monkeypatch):
    def train(*args, **kwargs):
        raise AssertionError("training began")

    monkeypatch.setattr(apps, "density", train)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    for overwrite in ([], ["--overwrite"]):
        refused("fit", "density", table, "--out", tmp_path / "photos", *overwrite, words="not empty")
    refused("fit", "density", table, "--out", table, words="nothing can be written")
    refused("fit", "density", table, "--out", table / "run", words="nothing can be written")
    assert (tmp_path / "photos" / "cat.png").exists()


@pytest.mark.parametrize("name", ["new.txt", "new", "new.png"])
def test_sample_refuses_an_unknown_ending(tmp_path, density, name):
    refused("sample", density, "--out", tmp_path / name, words=(name, ".csv"))


def test_score_refuses_an_unknown_ending(tmp_path, density, table):
    refused("score", density, table, "--out", tmp_path / "scores.png", words=("scores.png", ".csv"))


def test_outputs_that_cannot_be_written_are_told(density, table):
    inside_a_file = table / "new"
    for arguments in (
        ("sample", density, "--out", inside_a_file / "new.csv"),
        ("score", density, table, "--out", inside_a_file / "scores.csv"),
    ):
        refused(*arguments, words=str(inside_a_file))


def spoil(run, name):
    if name == "nothing":
        shutil.rmtree(run)
    elif name == "file":
        shutil.rmtree(run)
        run.touch()
    elif name == "no run.json":
        (run / "run.json").unlink()
    elif name == "foreign run.json":
        (run / "run.json").write_text('{"name": "something else"}')
    elif name == "damaged run.json":
        (run / "run.json").write_text('{"application": ')
    elif name == "newer run.json":
        (run / "run.json").write_text('{"application": "density", "format": 99}')
    elif name == "unknown application":
        (run / "run.json").write_text('{"application": "origami", "format": 2}')
    elif name == "no model":
        (run / "model.safetensors").unlink()
    elif name == "damaged model":
        content = (run / "model.safetensors").read_bytes()
        (run / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif name == "foreign model":
        from safetensors.numpy import save_file

        save_file({"weight": np.zeros(3)}, run / "model.safetensors")
    return run


@pytest.mark.parametrize(
    "name",
    [
        "nothing",
        "file",
        "no run.json",
        "foreign run.json",
        "damaged run.json",
        "newer run.json",
        "unknown application",
        "no model",
        "damaged model",
        "foreign model",
    ],
)
def test_a_run_that_is_none_is_told_by_every_verb(tmp_path, density, table, name):
    run = spoil(shutil.copytree(density, tmp_path / "run"), name)
    refused("sample", run, "--out", tmp_path / "new.csv", words="run")
    refused("score", run, table, "--out", tmp_path / "new.csv")
    for verb in ("report", "info", "check"):
        refused(verb, run)


# -- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit"],
        ["fit", "origami", "data", "--out", "run"],
        ["fit", "density", "data"],
        ["fit", "density", "data", "--out", "run", "--set", "seed"],
        ["sample", "run"],
        ["sample", "run", "-n", "0", "--out", "new.csv"],
        ["sample", "run", "--shrink", "-1", "--out", "new.csv"],
        ["demo", "origami"],
        ["origami"],
    ],
)
def test_wrong_usage_is_status_two(arguments):
    result = call(*arguments, status=2)
    assert result.stdout == "" and "Usage: flowknife" in result.stderr


def test_version_is_shown():
    assert call("--version").stdout.startswith("flowknife")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted: nothing was written"),
        (InputError("got one\nand two"), 1, "error: got one and two\n"),
        (OSError(errno.ENOSPC, "No space left on device", "model"), 1, "error: No space left on device: model; "),
        (MemoryError(), 1, "error: got more than fits in memory; "),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 1, "error: got more than fits in memory; "),
    ],
)
def test_what_a_user_can_cause_ends_with_one_line(tmp_path, table, monkeypatch, error, status, line):
    def stop(*args, **kwargs):
        raise error

    monkeypatch.setattr(apps, "density", stop)
    result = call("fit", "density", table, "--out", tmp_path / "run", status=status)
    assert result.stderr.startswith(line) and result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [RuntimeError("ours"), FileNotFoundError(errno.ENOENT, "ours", "file")])
def test_a_defect_of_ours_keeps_its_traceback(tmp_path, table, monkeypatch, error):
    def stop(*args, **kwargs):
        raise error

    monkeypatch.setattr(apps, "density", stop)
    with pytest.raises(type(error), match="ours"):
        call("fit", "density", table, "--out", tmp_path / "run")


def test_the_list_of_commands_has_whole_sentences_in_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for path in ([], ["fit"]):
        commands = call(*path, "--help").stdout.partition("Commands:\n")[2]
        assert commands.count("\n  ") >= 3 and "..." not in commands
        assert all(len(line) <= 80 for line in commands.splitlines())
