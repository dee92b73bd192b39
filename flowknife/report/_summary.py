"""Summaries of a result: one line, HTML for notebooks, and the model card of a run."""

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from flowknife._files import CARD_MARK
from flowknife._settings import given, leaves
from flowknife.errors import counted
from flowknife.report._figures import ends
from flowknife.report._run import about, item_of, measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def in_one_line(result: Any) -> str:
    """One line on a result: its ends, the size of its data, and the metrics that need no computation."""
    frame, data, training = ends(result.model), result.record.data, result.record.training
    known: Mapping[str, float | None] = result.__dict__.get("metrics") or result.record.metrics
    units = {"nll": f"nats per {item_of(result)}", "bits_per_dim": "bits/dim"}
    parts = [
        f"{'; '.join(_short(frame.left))} <-> {'; '.join(_short(frame.right))}",
        f"{data.rows:,} {data.kind}",
        counted(training.steps, "step"),
        *(f"{name} {known[name]:.4g} {units[name]}" for name in units if known.get(name) is not None),
    ]
    return f"{type(result).__name__}({', '.join(parts)})"


def _short(blocks):
    """Blocks by name and shape; at most the first two."""
    names = [block.partition(",")[0] for block in blocks]
    return names if len(names) < 4 else [*names[:2], "..."]


_STYLE = (
    "display:inline-block;border:1px solid #d5dae1;border-radius:8px;padding:0.8em 1em;max-width:46em;"
    "font-family:system-ui,-apple-system,Segoe UI,Helvetica,Arial,sans-serif;line-height:1.45"
)
_CELL = "text-align:left;padding:0.15em 1em 0.15em 0;border:0;background:none"


def in_html(result: Any) -> str:
    """The HTML summary for notebooks: ends, metrics and a figure."""
    record, frame = result.record, ends(result.model)
    rows = [(title, f"{value} {unit}") for title, value, unit in measured(result)]
    rows += [("Data", f"{record.data.rows:,} {record.data.kind}" + _of(record.data.source))]
    rows += [("Training", f"{counted(record.training.steps, 'step')}, {record.training.seconds:g} s")]
    rows += [("p-values", result.flagging.note)] if result.flagging.note else []
    table = "".join(
        f'<tr><th style="{_CELL};font-weight:normal;opacity:0.7">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(value)}</td></tr>'
        for name, value in rows
    )
    both = " &harr; ".join(escape("; ".join(end)) for end in (frame.left, frame.right))
    warning = f"<p><strong>{escape(record.training.sentence)}</strong></p>" if record.training.partial else ""
    picture = "".join(_image(figure) for name, figure in result.figures().items() if name != "history")
    return (
        f'<div style="{_STYLE}"><div style="font-weight:600">{escape(result.title.capitalize())}</div>'
        f'<div style="opacity:0.7">{both}</div>{warning}<table style="border:0;margin:0.5em 0">{table}</table>'
        f"{picture}</div>"
    )


def _of(source):
    return f" of {source}" if source else ""


def _image(figure: "Figure") -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=80)
    content = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img src="data:image/png;base64,{content}" style="max-width:100%;height:auto" alt="samples of the model">'


_USES = {
    "density": "samples, densities and anomaly scores of rows like the training data",
    "images": "new images, and anomaly scores of images like the training data",
    "classify": "class probabilities, samples of a class, and detection of items of unknown classes",
    "invert": "the parameters that explain an observation, with their uncertainty",
}

_LIMITS = {
    "density": "Rows from another distribution are flagged, but the model does not describe them.",
    "images": "Neither does a low likelihood prove an anomaly nor a high one normality; use the score and its p-value.",
    "classify": "Probabilities are valid for items like the training data, at the class frequencies of training.",
    "invert": "A posterior is only as accurate as the simulator, the noise and the prior of the fit.",
}


def card(result: Any) -> str:
    """The model card of a run in Markdown: purpose, data, metrics and usage."""
    record, frame = result.record, ends(result.model)
    facts = {name: text for name, text in about(result).items() if name not in ("created",)}
    asked = dict(leaves(given(result.config)))
    example = {
        "density": "flow.sample(1000); flow.log_prob(x); flow.score(x)",
        "images": "flow.sample(16); flow.score(images)",
        "classify": "flow.predict_proba(x); flow.sample(10, label=...)",
        "invert": "flow.sample(1000, y=y_observed)",
    }[record.application]
    lines = [
        "---",
        "library_name: flowknife",
        f"tags: [normalizing-flow, {record.application}]",
        "---",
        CARD_MARK,
        "",
        f"# {result.title.capitalize()} of {record.data.rows:,} {record.data.kind}",
        "",
        f"**For** {_USES[record.application]}. Fitted on {record.created:%Y-%m-%d} with flowknife "
        f"{record.versions['flowknife']}.",
        "",
        f"The two ends: {'; '.join(frame.left)} ↔ {'; '.join(frame.right)}.",
        "",
        *([f"**Partial**: {record.training.sentence}.", ""] if record.training.partial else []),
        "## Use",
        "",
        "```python",
        "import flowknife as fk",
        "",
        "flow = fk.load(FOLDER)  # the folder of this file",
        example,
        "```",
        "",
        "## Metrics",
        "",
        "| metric | value | unit |",
        "|---|---|---|",
        *(f"| {title} | {value} | {unit} |" for title, value, unit in measured(result)),
        "",
        "## Data and training",
        "",
        *(f"- {name}: {_plain(text)}" for name, text in facts.items()),
        *(
            f"- {_TITLES[kind]}: {_plain(', '.join(map(str, values)))}"
            for kind, values in _names(record.data)
            if values
        ),
        f"- requested settings: {', '.join(f'{key}={value}' for key, value in asked.items()) or 'none'}",
        "",
        "## Limits",
        "",
        f"{_LIMITS[record.application]} `flowknife check` tests whether the model can be trusted. The model file has "
        "some of the data, for calibration and figures.",
        "",
    ]
    return "\n".join(lines)


_TITLES = {"names": "columns", "given_names": "conditions", "y_names": "data", "classes": "classes"}


def _names(data):
    return [(kind, _some(getattr(data, kind))) for kind in _TITLES]


def _some(values, most=20):
    return (*values[:most], "...") if len(values) > most else values


def _plain(text):
    return " ".join(str(text).split())
