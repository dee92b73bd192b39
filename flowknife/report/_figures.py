"""What every report has: a place for its figures, the frame that names the two ends, and the training curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife._files import mark, require_own
from flowknife._record import Record
from flowknife.diagnostics import Check, Flagging
from flowknife.inn import INN
from flowknife.report._page import Frame, PageImage, Section, write_report
from flowknife.storage import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110


def keep(figure: "Figure", folder: str | Path, name: str, caption: str = "") -> PageImage:
    """Write a figure to `folder/figures/name.png` and return it for a section.

    Raises:
        StorageError: there is a file of this name that flowknife did not write.
    """
    path = Path(folder) / "figures" / f"{name}.png"
    require_own(path)
    with replacing(path) as place:
        figure.savefig(place, dpi=_DPI, format="png", metadata={"Software": mark(path.name)})
    return PageImage(path, caption)


def ends(model: INN) -> Frame:
    """The blocks of both ends, with shapes and laws; what conditions the network is told on the right."""

    def size(block):
        return " x ".join(map(str, block.shape)) or "1"

    def words(block):
        return f"{block.name} {size(block)}, {type(block.law).__name__}"

    ends = model.partition
    given = "".join(f", given {block.name} {size(block)}" for block in ends.cond)
    return Frame([words(block) for block in ends.left], [words(block) + given for block in ends.right])


_LEFT_OUT = {"rows": "rows left out", "images": "skipped files", "pairs": "failed simulations"}


def about(result: Any) -> dict[str, str]:
    """The record of a result in words: what it was fitted to and how, by short titles."""
    record: Record = result.record
    data, training = record.data, record.training
    rows: dict[str, object] = {
        "partial": training.sentence if training.partial else "",
        "data": data.source,
        data.kind: f"{data.rows:,}",
        _LEFT_OUT[data.kind]: data.left_out,
        "why they failed": data.reason,
        "partition": data.partition,
        "without label": data.unlabelled,
        "label column": data.label_column,
        "white": data.white.told(),
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


def write_page(
    result: Any, folder: str | Path, title: str, sections: Sequence[Section], metrics: Mapping[str, float] | None = None
) -> Path:
    """Write `report.html` of a result into `folder`, with its metrics, record and ends; return the page's path.

    Args:
        result: of an application.
        folder: where to write.
        title: of the page.
        sections: in reading order.
        metrics: more than those of the result.
    """
    training = result.record.training
    return write_report(
        folder,
        title,
        sections,
        {**result.metrics, **(metrics or {})},
        about(result),
        ends(result.model),
        warning=f"Partial: {training.sentence}." if training.partial else "",
    )


def trust(result: Any) -> Section:
    """The checks of a result: each number with its limit, those that failed first."""
    if not result.flagging.rows:
        return Section("Checks", f"Nothing was held out, so there is nothing to check: {result.flagging.note}.")
    checks: Sequence[Check] = result.check()
    ordered = sorted(checks, key=lambda check: check.passed)
    lines = [
        f"{'passed' if check.passed else 'FAILED'}: {check.name}: {check.value:.3g}, at most {check.limit:.3g}."
        for check in ordered
    ]
    failed = sum(not check.passed for check in checks)
    verdict = f"{failed} of {len(checks)} checks failed: do not trust this model." if failed else "All checks passed."
    return Section("Checks", "\n\n".join([verdict, *lines]))


def flagging_text(flagging: Flagging) -> str:
    """What the p-values of a run can say, in one sentence."""
    if flagging.note:
        return f"{flagging.note[0].upper()}{flagging.note[1:]}."
    return (
        f"P-values are calibrated on {flagging.rows:,} {flagging.unit} that had no part in training: of new ones of "
        f"the same kind a share {flagging.alpha:g} is flagged, and no p-value is below {flagging.smallest:.2g}."
    )


def which(flagging: Flagging) -> str:
    """Whether the data that a report shows were held out, as the first word of a sentence."""
    return "Held-out" if flagging.rows else "Training"


def training(
    history: Mapping[str, Sequence[float]],
    folder: str | Path,
    text: str = "",
    objective: str = "negative log-likelihood (nats)",
) -> list[Section]:
    """The training curve, one for each level of images that were learnt level by level; nothing without a history."""
    from flowknife import plots

    if not history:
        return []
    columns = {name: np.asarray(values, float) for name, values in history.items()}
    levels = columns.get("level", np.full(len(columns["step"]), -1.0))
    figures = []
    for level in np.unique(levels):
        train, validation, step = (columns[name][levels == level] for name in ("train", "validation", "step"))
        name = "history" if level < 0 else f"history_level_{level:.0f}"
        caption = "" if level < 0 else f"Level {level:.0f}" + (", the coarsest." if level == 0 else ".")
        figures.append(keep(plots.history(train, validation, step, objective), folder, name, caption))
    return [Section("Training", text, figures)]
