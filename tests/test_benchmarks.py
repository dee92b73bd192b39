"""The harness of the benchmarks: rows are complete, processes take turns, failures stay in their place, tables fit."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import environments, harness, prepared, tables
from benchmarks.__main__ import NAMES, STUDIES, main
from benchmarks.rows import ROWS, Measure, Row, Side

MS = {"ms": Measure("ms")}

# Each process notes when it measures, in the file that the row names.
PROGRAM = """
import json, os, sys
settings = json.loads(sys.argv[1])
print(json.dumps({"about": {"parameters": settings["number"], "cache": os.environ["FLOWKNIFE_CACHE"]}}), flush=True)
for _ in sys.stdin:
    if settings.get("fails"):
        raise ValueError("it does not work")
    if settings.get("sleeps"):
        __import__("time").sleep(60)
    with open(settings["notes"], "a") as notes:
        print(settings["number"], file=notes)
    print(json.dumps({"sample": {"ms": settings["number"]}}), flush=True)
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "PROGRAMS", tmp_path)
    monkeypatch.setattr(harness, "busy_cores", lambda: 0.0)  # which takes a second
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def of(number, **settings):
    return Side("program", settings={"number": number, **settings})


def row_of(programs, sides, **fields):
    return Row("a row", MS, sides, {"notes": str(programs / "notes")}, **fields)


@pytest.mark.parametrize("name", ROWS)
def test_rows_name_programs_environments_and_settings_that_exist(name):
    row = ROWS[name]
    assert set(row.small) <= set(row.settings)
    for side in row.sides.values():
        if isinstance(side, Side):
            assert (Path(harness.__file__).parent / "programs" / f"{side.program}.py").is_file()
            assert side.environment in (environments.OWN, environments.INSTALLED, *environments.names())
        else:
            assert len(side.split()) > 2, "a reason is a sentence"
    assert not row.against or row.against in row.sides
    warm = [side.cache for side in row.sides.values() if isinstance(side, Side) and side.cache]
    assert warm == ["cold", "warm"] * (len(warm) // 2), "a warm side uses what the cold one before it left"


def test_peers_have_exact_versions():
    for name in environments.names():
        lines = (environments.PEERS / f"{name}.txt").read_text().split()
        assert lines and all("==" in line for line in lines), name
        assert "torch" not in lines[-1] or lines[-1] == "torch==2.13.0"


def test_processes_take_turns_and_every_round_begins_with_the_next(programs):
    result = harness.run_row("r", row_of(programs, {"a": of(1), "b": of(2), "c": "it cannot do that"}), repeats=3)
    assert (programs / "notes").read_text().split() == ["1", "2", "2", "1", "1", "2"]
    assert result["systems"]["a"]["samples"] == [{"ms": 1}] * 3
    assert result["systems"]["c"] == {"unable": "it cannot do that"}


def test_fresh_samples_are_processes_and_a_cold_one_has_no_cache(programs):
    notes = {"number": 1}
    sides = {
        "cold": Side("program", settings=notes, cache="cold"),
        "warm": Side("program", settings=notes, cache="warm"),
    }
    result = harness.run_row("r", row_of(programs, sides, fresh=True), repeats=2)
    caches = {label: system["cache"] for label, system in result["systems"].items()}
    assert caches["cold"] == caches["warm"]
    assert (programs / "notes").read_text().split() == ["1"] * 4


@pytest.mark.parametrize("fresh", [False, True])
def test_a_side_that_fails_says_why_and_the_others_go_on(programs, fresh):
    sides = {"bad": of(1, fails=True), "good": of(2)}
    systems = harness.run_row("r", row_of(programs, sides, fresh=fresh), repeats=2)["systems"]
    assert systems["bad"] == {"unable": "failed: ValueError: it does not work"}
    assert systems["good"]["medians"] == {"ms": 2}


def test_a_side_without_an_environment_is_unable(programs, monkeypatch):
    def no_environment(name):
        if name == "zuko":
            raise environments.Unable("no network")
        return environments.python_of(environments.OWN)

    monkeypatch.setattr(harness, "python_of", no_environment)
    sides = {"a": of(1), "zuko": Side("program", "zuko", {"number": 2})}
    assert harness.run_row("r", row_of(programs, sides), repeats=1)["systems"]["zuko"] == {"unable": "no network"}


def test_a_row_ends_at_its_limit(programs):
    start = time.monotonic()
    sides = {"slow": of(1, sleeps=True)}
    systems = harness.run_row("r", row_of(programs, sides, limit=1.0), repeats=1)["systems"]
    assert systems["slow"] == {"unable": "no time was left for it"}
    assert time.monotonic() - start < 30


def test_medians_spreads_and_ratios():
    row = Row("a row", {"ms": Measure("ms"), "auroc": Measure("AUROC", "larger"), "mark": Measure("mark")}, {})
    row = replace(row, against="ours")
    ours = harness.summary(row, {"samples": [{"ms": m, "auroc": 0.9, "mark": 1.0} for m in (3.0, 1.0, 2.0)]})
    other = harness.summary(row, {"samples": [{"ms": 8.0, "auroc": 0.45, "mark": None}]})
    assert ours["medians"] == {"ms": 2.0, "auroc": 0.9, "mark": 1.0}
    assert ours["spreads"]["ms"] == [1.0, 3.0]
    assert other["medians"]["mark"] is None, "a mark that is not reached is no number"
    assert harness.ratios(row, {"ours": ours, "other": other}) == {"other": {"ms": 4.0, "auroc": 2.0}}


def test_tables_show_numbers_ratios_and_who_is_unable():
    row = Row("a row", MS, {"flowknife": of(1), "peer": of(2), "third": "it has none"})
    systems = {
        "flowknife": harness.summary(row, {"samples": [{"ms": 2.0}, {"ms": 3.0}, {"ms": 2.5}], "parameters": 1234}),
        "peer": harness.summary(row, {"samples": [{"ms": 10.0}]}),
        "third": {"unable": "it has none"},
    }
    shown = tables.table({"systems": systems, "ratios": harness.ratios(row, systems)}, row).splitlines()
    assert shown[2] == "| flowknife | 2.5 (2.0 to 3.0) | 1,234 |"
    assert shown[3] == "| peer | 10.0; 4.00x | - |"
    assert shown[-1] == "Unable: third: it has none."


def test_results_of_a_busy_machine_are_marked():
    host = {"processor": "p", "cores": 2}
    result = {"title": "a row", "date": "2026-01-01"}
    assert "busy" not in tables.about({**result, "machine": {**host, "busy_cores": [0.1, None]}})
    assert "kept 1.5 cores busy" in tables.about({**result, "machine": {**host, "busy_cores": [0.1, 1.5]}})


def test_tables_are_up_to_date():
    for path, text in tables.pages().items():
        assert path.read_text(encoding="utf-8") == text, "out of date; try make bench-tables"


def test_tables_fill_only_what_is_between_the_marks(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables._BEGIN}\nold\n{tables._END}\nafter\n")
    monkeypatch.setattr(tables, "PLACES", {page: ["start"]})
    text = tables.pages(tmp_path / "none")[page]
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "old" not in text and "Not measured yet." in text


def test_committed_results_have_equal_architectures():
    for name, result in tables.read().items():
        json.dumps(result, allow_nan=False)
        assert not result["trial"], f"{name}: a trial is no result"
        if name.startswith("train-"):
            own = result["systems"]["flowknife"]["parameters"]
            for label, system in result["systems"].items():
                if "parameters" in system and label != "flowknife, as in fk.density":
                    assert abs(system["parameters"] / own - 1) <= 0.05, (name, label)


def test_tables_of_rows_are_split_without_overlap(tmp_path):
    for table, count in (("wine", 59), ("digits", 1000)):
        made = prepared.table({"table": table, "splits": 2}, tmp_path)
        with np.load(made["data"]) as arrays:
            train, normal = arrays["train_1"], arrays["normal_1"]
            assert len(train) == count and train.shape[1] == {"wine": 13, "digits": 20}[table]
            assert not np.any(np.all(np.isclose(normal[:1], train), axis=1))


def test_the_command_lists_and_refuses(capsys):
    assert main(["--list"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == set(NAMES)
    assert main(["nothing"]) == 2
    assert "got 'nothing'; expected one of" in capsys.readouterr().err


def test_every_benchmark_is_a_row_or_a_study():
    parts = {"__init__", "__main__", "dispersion", "environments", "gpu", "harness", "prepared", "rows", "tables"}
    files = {path.stem for path in Path(harness.__file__).parent.glob("*.py")} - parts
    assert files == set(STUDIES)


def test_a_row_that_fails_does_not_end_the_others(programs, monkeypatch, capsys, tmp_path):
    def broken(settings, folder):
        raise OSError("no such data")

    rows = {
        "bad": row_of(programs, {"flowknife": of(1)}, prepare=broken),
        "good": row_of(programs, {"flowknife": of(1)}),
    }
    monkeypatch.setattr("benchmarks.__main__.ROWS", rows)
    monkeypatch.setattr("benchmarks.__main__.NAMES", tuple(rows))
    monkeypatch.setattr(environments, "PLACE", tmp_path)
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    assert main(["bad", "good", "--small"]) == 1
    shown = capsys.readouterr().out
    assert "failed: OSError: no such data" in shown and "without a result: bad" in shown
    assert json.loads((tmp_path / "results" / "good.json").read_text())["systems"]["flowknife"]["medians"] == {"ms": 1}
