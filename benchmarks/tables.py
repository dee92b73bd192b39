"""Tables in markdown, made from the files of results."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.environments import ROOT
from benchmarks.rows import ROWS, Row

RESULTS = Path(__file__).parent / "results"
ACCELERATOR = "gpu"  # the file of results of `benchmarks/gpu.py`
PLACES = {
    Path(__file__).parent / "README.md": [name for name in ROWS if name != "work"],
    ROOT / "docs" / "notes" / "speed.md": ["work"],
    ROOT / "docs" / "howto" / "gpu.md": [ACCELERATOR],
}
"""The pages with tables, and the rows that each of them shows between its two marks."""

_BEGIN, _END = "<!-- results: made by `make bench-tables` -->", "<!-- end of results -->"
_BUSY = 0.3  # cores that other programs keep busy, above which numbers are marked


def read(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """All results that there are, in the order of the rows."""
    files = {name: folder / f"{name}.json" for name in ROWS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.exists()}


def write(result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write the file of results of a row."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['row']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


def number(value: float | None, digits: int) -> str:
    """A number as tables have it."""
    return "-" if value is None else f"{value:,.{digits}f}"


def table(result: Mapping[str, Any], row: Row) -> str:
    """One row's table: a line for each system, a column for each measure, ratios in brackets."""
    has_parameters = any("parameters" in system for system in result["systems"].values())
    head = [
        "system",
        *(measure.title for measure in row.measures.values()),
        *(["parameters"] if has_parameters else []),
    ]
    lines = [head, ["---"] * len(head)]
    unable = []
    for label, system in result["systems"].items():
        if "medians" not in system:
            unable.append(f"{label}: {system['unable']}")
            continue
        cells = []
        for name, measure in row.measures.items():
            text = number(system["medians"][name], measure.digits)
            spread = system["spreads"][name]
            if spread and len(system["samples"]) > 1 and spread[0] != spread[1]:
                text += f" ({number(spread[0], measure.digits)} to {number(spread[1], measure.digits)})"
            ratio = result["ratios"].get(label, {}).get(name)
            cells.append(text if ratio is None else f"{text}; {ratio:.2f}x")
        if has_parameters:
            cells.append(f"{system['parameters']:,}" if "parameters" in system else "-")
        lines.append([label, *cells])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text + (f"\n\nUnable: {'; '.join(unable)}." if unable else "")


def about(result: Mapping[str, Any]) -> str:
    """What was measured, when and where."""
    host = result["machine"]
    busy = max((cores for cores in host["busy_cores"] if cores is not None), default=0.0)
    title = result["title"][0].upper() + result["title"][1:]
    words = f"{title}. {host['processor']}, {host['cores']} cores, {result['date']}."
    others = f" **Other programs kept {busy:.1f} cores busy: these numbers say little.**"
    return words + (others if busy > _BUSY else "")


def section(results: Mapping[str, Mapping[str, Any]], names: list[str]) -> str:
    """The tables of some rows, with the versions that they were measured with."""
    shown = {name: results[name] for name in names if name in results}
    if not shown:
        return "Not measured yet.\n"
    parts = [f"### {name}\n\n{about(result)}\n\n{table(result, ROWS[name])}\n" for name, result in shown.items()]
    versions: dict[str, set[str]] = {}
    for result in shown.values():
        for system in result["systems"].values():
            for package, version in system.get("versions", {}).items():
                versions.setdefault(package, set()).add(version)
    listed = ", ".join(f"{package} {' and '.join(sorted(found))}" for package, found in sorted(versions.items()))
    return "\n".join([*parts, f"Versions: {listed}.\n"])


_PARTS = {
    ("train", "bf16", "precision"): {
        "ms": ("ms per step", 2),
        "gflops": ("GFLOP/s", 0),
        "nll": ("loss after 500 steps", 2),
    },
    ("memory",): {"temporary_mebibytes": ("temporary MiB", 0), "s": ("s per gradient", 3)},
    ("mnist", "cats"): {
        "minutes": ("minutes in all", 2),
        "steps": ("steps", 0),
        "bits_per_dim": ("bits per dimension, new images", 3),
        "new": ("new images", 0),
    },
}
"""Of `benchmarks/gpu.py`: the parts that share a table, its columns and their digits."""


def accelerator(found: Mapping[str, Any]) -> str:
    """The tables of what `benchmarks/gpu.py` wrote."""
    parts = [f"{found['device']}, JAX {found['jax']}, {found['date']}."]
    for names, columns in _PARTS.items():
        results = [result for result in found["results"] if result["part"] in names and "row" in result]
        shown = {name: title for name, (title, _) in columns.items() if any(name in result for result in results)}
        if not shown:
            continue
        lines = [["what", *shown.values()], ["---"] * (1 + len(shown))]
        for result in results:
            cells = (number(result.get(name), columns[name][1]) for name in shown)
            lines.append([result["row"], *cells])
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def pages(folder: Path = RESULTS) -> dict[Path, str]:
    """The pages as they should be: what stands between the marks is made anew."""
    results, device = read(folder), folder / f"{ACCELERATOR}.json"
    on_device = "Not measured yet.\n"
    if device.exists():
        on_device = accelerator(json.loads(device.read_text(encoding="utf-8")))
    return {
        path: re.sub(
            rf"(?<={re.escape(_BEGIN)}\n).*?(?={re.escape(_END)})",
            lambda _, names=names: f"\n{on_device if names == [ACCELERATOR] else section(results, names)}\n",
            path.read_text(encoding="utf-8"),
            flags=re.DOTALL,
        )
        for path, names in PLACES.items()
    }


def update() -> list[Path]:
    """Write the tables into the pages, and return those that changed."""
    changed = [path for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return changed
