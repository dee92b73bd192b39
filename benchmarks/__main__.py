"""Run benchmarks: `python -m benchmarks [NAME ...]`; without a name, every row that is compared with peers.

Options: `--minutes 25` limits the time of all rows; `--repeats N`; `--small` is a trial with tiny sizes; `--list`;
`--tables` writes the tables from the files of results; `--environments` only installs the peers.
"""

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

from benchmarks import environments, harness, tables
from benchmarks.rows import ROWS

# Longer ones, each with its own words about how to run it; they print, and write no file of results.
STUDIES = (
    "ablation",
    "anomaly",
    "bits_per_dim",
    "density",
    "guarantees",
    "images",
    "inversion",
    "loading",
    "posteriors",
    "scale",
)
NAMES = (*ROWS, *STUDIES)


def main(arguments: list[str] | None = None) -> int:
    """Run what was named and return the exit code: 1 if a row has no result at all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="what all rows together may take")
    parser.add_argument("--repeats", type=int, help="samples of each system")
    parser.add_argument("--small", action="store_true", help="tiny sizes; the results go to .bench/results")
    parser.add_argument("--list", action="store_true", help="print the names and what they are")
    parser.add_argument("--tables", action="store_true", help="write the tables from the files of results")
    parser.add_argument("--environments", action="store_true", help="make the environments of the peers")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        print(f"error: got {unknown[0]!r}; expected one of {', '.join(NAMES)}", file=sys.stderr)
        return 2
    if given.list:
        print("\n".join(f"{name:<26}{ROWS[name].title if name in ROWS else 'see its file'}" for name in NAMES))
        return 0
    if given.environments:
        return _environments()
    if given.tables:
        print("\n".join(f"wrote {path.relative_to(environments.ROOT)}" for path in tables.update()) or "up to date")
        return 0
    return _run(given)


def _environments() -> int:
    failed = 0
    for name in (*environments.names(), environments.INSTALLED):
        try:
            print(f"{name}: {environments.python_of(name)}", flush=True)
        except environments.Unable as error:
            failed = 1
            print(f"{name}: {error}", flush=True)
    return failed


def _run(given: argparse.Namespace) -> int:
    """Run what was named, one after the other; a row that fails says so, and the next one runs."""
    small = given.small or os.environ.get("SMALL") == "1"
    folder = environments.PLACE / "results" if small else tables.RESULTS
    names, start, empty = given.names or list(ROWS), time.monotonic(), []
    for i, name in enumerate(names):
        if name in STUDIES:
            importlib.import_module(f"benchmarks.{name}").run()
            continue
        spent = time.monotonic() - start
        left = 60 * given.minutes - spent
        print(f"[{i + 1}/{len(names)}, {spent / 60:.1f} min] {name}", flush=True)
        if left < 10:
            empty.append(name)
            print(f"  not run: the {given.minutes:g} minutes are over", flush=True)
            continue
        try:
            result = harness.run_row(name, ROWS[name], small=small, repeats=given.repeats, most=left)
        except Exception as error:  # of one row, which must not end the others
            empty.append(name)
            print(f"  failed: {type(error).__name__}: {error}", flush=True)
            continue
        if not any("medians" in system for system in result["systems"].values()):
            empty.append(name)
            print("\n".join(f"  {label}: {each['unable']}" for label, each in result["systems"].items()), flush=True)
            continue
        _show(result, tables.write(result, folder))
    if not small and any(name in ROWS for name in names):
        tables.update()
    if empty:
        print(f"without a result: {', '.join(empty)}", flush=True)
    return 1 if empty else 0


def _show(result: dict, path: Path) -> None:
    measures = ROWS[result["row"]].measures
    for label, system in result["systems"].items():
        if "medians" not in system:
            print(f"  {label:<28}{system['unable']}")
            continue
        found = system["medians"]
        told = [f"{m.title} {tables.number(found[n], m.digits)}" for n, m in measures.items() if found[n] is not None]
        ratio = next(iter(result["ratios"].get(label, {}).values()), None)
        ended = f" (ended early: {system['ended']})" if "ended" in system else ""
        print(f"  {label:<28}{', '.join(told)}{'' if ratio is None else f', {ratio:.2f}x'}{ended}")
    print(f"  {result['seconds']:.0f} s, {path.relative_to(environments.ROOT)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
