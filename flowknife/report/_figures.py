"""Parts of every report: figure files, the two ends of the model, checks, and training curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife._files import mark, replacing, require_own
from flowknife.diagnostics import Check, Flagging
from flowknife.inn import INN
from flowknife.report._page import Frame, PageImage, Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110


def keep(figure: "Figure", folder: str | Path, name: str, caption: str = "") -> PageImage:
    """Write a figure to `folder/figures/name.png` and return it for use in a section.

    Raises:
        StorageError: a file of this name exists that flowknife did not write.
    """
    path = Path(folder) / "figures" / f"{name}.png"
    require_own(path)
    with replacing(path) as place:
        figure.savefig(place, dpi=_DPI, format="png", metadata={"Software": mark(path.name)})
    return PageImage(path, caption)


def ends(model: INN) -> Frame:
    """The blocks of both ends, with shapes and laws; conditions are named on the right."""

    def size(block):
        return " x ".join(map(str, block.shape)) or "1"

    def words(block):
        return f"{block.name} {size(block)}, {type(block.law).__name__}"

    ends = model.partition
    given = "".join(f", given {block.name} {size(block)}" for block in ends.cond)
    return Frame([words(block) for block in ends.left], [words(block) + given for block in ends.right])


def trust(result: Any) -> Section:
    """The checks of a result: each value with its limit, failed checks first."""
    if not result.flagging.rows:
        return Section("Checks", f"No data were held out, so nothing can be checked: {result.flagging.note}.")
    checks: Sequence[Check] = result.check()
    ordered = sorted(checks, key=lambda check: check.passed)
    rows = [
        (check.name, f"{check.value:.3g}", f"{check.limit:.3g}", "passed" if check.passed else "FAILED")
        for check in ordered
    ]
    failed = sum(not check.passed for check in checks)
    verdict = f"{failed} of {len(checks)} checks failed: do not trust this model." if failed else "All checks passed."
    advice = [f"What to do next. {check.name}: {check.note}." for check in ordered if not check.passed and check.note]
    verdict = "\n\n".join([verdict, *advice])
    return Section("Checks", verdict, table=[("Check", "Value", "At most", ""), *rows])


def flagging_text(flagging: Flagging) -> str:
    """How p-values are calibrated and how small they can be, in one sentence."""
    if flagging.note:
        return f"{flagging.note[0].upper()}{flagging.note[1:]}."
    return (
        f"P-values are calibrated on {flagging.rows:,} {flagging.unit} that were not used in training. "
        f"At most {100 * flagging.alpha:g} % of new normal {flagging.unit} are flagged; no p-value is below "
        f"{flagging.smallest:.2g}."
    )


def which(flagging: Flagging) -> str:
    """The data that a report shows: "Held-out" or "Training"."""
    return "Held-out" if flagging.rows else "Training"


def training(
    history: Mapping[str, Sequence[float]],
    folder: str | Path,
    text: str = "",
    objective: str = "negative log-likelihood (nats)",
) -> list[Section]:
    """The training curve, one for each separately trained level; nothing without a history."""
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
    return [Section("Training", text and f"{text[0].upper()}{text[1:].rstrip('.')}.", figures)]
