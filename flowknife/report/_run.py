"""The page of one run: its name, when and from what it was made, its settings as asked and as used, its versions."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, SupportsFloat

from flowknife import __version__
from flowknife._files import is_run
from flowknife._interrupts import PARTIAL
from flowknife._settings import given, leaves
from flowknife.report._figures import ends
from flowknife.report._page import Section, write_report
from flowknife.storage import read_run

_KINDS = {"density": "density", "images": "image model", "classify": "classifier", "invert": "inverse problem"}
_ITEMS = {"density": "row", "images": "image", "classify": "item", "invert": "pair"}


def write_page(
    result: Any,
    folder: str | Path,
    sections: Sequence[Section],
    metrics: Mapping[str, SupportsFloat | str] | None = None,
) -> Path:
    """Write `report.html` of a result into `folder`, with its metrics, run data, settings and ends.

    Args:
        result: of an application.
        folder: the run directory, whose name is the title of the page.
        sections: in reading order.
        metrics: more than those of the result.

    Returns:
        The path of the page.
    """
    name, facts = Path(folder).resolve().name, run_facts(result, folder)
    partial = f"Partial: {result.facts[PARTIAL]}." if PARTIAL in result.facts else ""
    return write_report(
        folder,
        f"{name}: {_KINDS[result.application]}",
        sections,
        {**result.metrics, **(metrics or {})},
        facts,
        ends(result.model),
        settings=settings_rows(result),
        item=item_of(result),
        warning=partial,
        lead=_lead(facts),
    )


def _lead(facts: Mapping[str, object]) -> str:
    """When and to what the model was fitted."""
    parts = [f"{word} {facts[name]}" for name, word in (("fitted", "Fitted"), ("data", "to")) if name in facts]
    return f"{' '.join(parts)}." if parts else ""


def item_of(result: Any) -> str:
    """What one item of a result is called, for units: row, image or pair."""
    if result.application == "classify":
        return "image" if result.of_images else "row"
    return _ITEMS[result.application]


def run_facts(result: Any, folder: str | Path) -> dict[str, object]:
    """When and from what a run was made, and with which versions; what `run.json` does not say is left out."""
    record = read_run(folder) if is_run(Path(folder)) else {}
    created = record.get("created", _written(Path(folder) / "run.json"))
    versions = record.get("versions", {"flowknife": __version__})
    facts = {
        "run": str(Path(folder).resolve()) if record else "",
        "fitted": created,
        "data": record.get("data", {}).get("source", ""),
        **result.facts,
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
        "report drawn": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
    return {name: value for name, value in facts.items() if value not in ("", None)}


def _written(path: Path) -> str:
    if not path.is_file():
        return ""
    return f"{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%d %H:%M} UTC"


def settings_rows(result: Any) -> list[tuple[str, str, str]]:
    """Every setting of a run: its dotted key, the value asked for (empty if none was), and the value used."""
    asked = dict(leaves(given(result.config)))
    used = dict(leaves(result.used.model_dump(exclude_none=True)))
    return [(key, str(asked.get(key, "")), str(used.get(key, "chosen in training"))) for key in {**used, **asked}]
