"""The report page of a run: metadata, metrics, sections, requested and used settings, versions."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, SupportsFloat

from flowknife._record import Record
from flowknife._settings import given, leaves
from flowknife.report._figures import ends
from flowknife.report._page import Section, metric_rows, write_report


def write_page(
    result: Any,
    folder: str | Path,
    sections: Sequence[Section],
    metrics: Mapping[str, SupportsFloat | str] | None = None,
) -> Path:
    """Write `report.html` of a result into `folder`, with its metrics, run data, settings and ends.

    Args:
        result: the result of an application.
        folder: the run directory, whose name is the title of the page.
        sections: in reading order.
        metrics: additional metrics.

    Returns:
        The path of the page.
    """
    training = result.record.training
    return write_report(
        folder,
        f"{Path(folder).resolve().name}: {result.title}",
        sections,
        {**result.metrics, **(metrics or {})},
        about(result) | _versions(result),
        ends(result.model),
        settings=settings_rows(result),
        item=item_of(result),
        warning=f"Partial: {training.sentence}." if training.partial else "",
        lead=_lead(result.record),
    )


def _lead(record: Record) -> str:
    """The date and the data of the fit."""
    source = f" to {record.data.source}" if record.data.source else ""
    return f"Fitted {record.created:%Y-%m-%d %H:%M} UTC{source}."


def _versions(result: Any) -> dict[str, str]:
    versions = ", ".join(f"{package} {version}" for package, version in result.record.versions.items())
    return {"versions": versions, "report drawn": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}


def item_of(result: Any) -> str:
    """The noun for one item of a result, for units: row, image or pair."""
    return result.record.data.kind.removesuffix("s")


def measured(result: Any) -> list[tuple[str, str, str]]:
    """Title, value and unit of each metric of a result, in words."""
    return metric_rows(result.metrics, item_of(result))


_LEFT_OUT = {"rows": "rows left out", "images": "skipped files", "pairs": "failed simulations"}


def about(result: Any) -> dict[str, str]:
    """The record of a result in words, by short titles."""
    record: Record = result.record
    data, training = record.data, record.training
    rows: dict[str, object] = {
        "partial": training.sentence if training.partial else "",
        "data": data.source,
        data.kind: f"{data.rows:,}",
        _LEFT_OUT[data.kind]: data.left_out,
        "reason of failure": data.reason,
        "partition": data.partition,
        "without label": data.unlabelled,
        "label column": data.label_column,
        "white": data.white.describe(),
        "prior": "estimated from the pairs" if data.prior_estimated else "",
        "steps": f"{training.steps:,}",
        "seconds": f"{training.seconds:g}",
        "stopped because": "" if training.partial else training.sentence,
        "fingerprint": data.fingerprint,
        "recipe": record.recipe,
        "created": f"{record.created:%Y-%m-%d %H:%M} UTC",
        "note": "; ".join(record.notes),
        "p-values": result.flagging.note,
    }
    return {name: str(value) for name, value in rows.items() if value}


def settings_rows(result: Any) -> list[tuple[str, str, str]]:
    """Every setting of a run: its dotted key, the requested value (or ""), and the used value."""
    asked = dict(leaves(given(result.config)))
    used = dict(leaves(result.used.model_dump(exclude_none=True)))
    return [(key, str(asked.get(key, "")), str(used.get(key, "chosen in training"))) for key in {**used, **asked}]
