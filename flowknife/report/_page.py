"""A self-contained report page: text, tables and figures in a single HTML file.

Figures and styles are embedded, and there are no scripts or external resources. So the page works offline, and can be
printed or sent by mail.

    write_report("runs/moons", "Two moons", sections, metrics={"nll": 0.31}, facts={"seed": "0"},
                 frame=Frame(left=["x 2"], right=["z ~ N(0, I)"]))
"""

import base64
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import isfinite
from pathlib import Path
from typing import SupportsFloat

from flowknife._files import GENERATOR, replacing, require_own
from flowknife.errors import InputError

UNITS = {
    "nll": ("Negative log-likelihood, held out", "nats per item"),
    "nll_given_label": ("Negative log-likelihood given the label, held out", "nats per item"),
    "prior_nll": ("Negative log-likelihood under the prior, held out", "nats per item"),
    "log_prob": ("Log-likelihood, held out", "nats per item"),
    "bits_per_dim": ("Bits per dimension, held out", "bits/dim"),
    "accuracy": ("Accuracy, held out", "share of items"),
    "cross_entropy": ("Cross entropy of the labels, held out", "nats per item"),
    "expected_calibration_error": ("Expected calibration error, held out", "0 is perfect"),
    "auroc": ("Area under the ROC curve", "1 is perfect, 0.5 is chance"),
    "c2st": ("Classifier two-sample test", "0.5 is perfect, 1 is worst"),
    "mmd": ("Maximum mean discrepancy", "0 is perfect"),
    "round_trip": ("Round-trip error", "largest absolute difference"),
    "seconds": ("Training time", "s"),
    "minutes": ("Training time", "min"),
    "parameters": ("Trained parameters", "numbers"),
}
"""Title and unit of each metric. Other names may include their unit, as in `"error (km)"`."""

KINDS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
    b"\xff\xd8\xff": "image/jpeg",
    b"<svg": "image/svg+xml",
    b"<?xml": "image/svg+xml",
}


@dataclass(frozen=True)
class PageImage:
    """An image of a report: a file or its content (PNG, GIF, JPEG or SVG), and a caption."""

    source: str | Path | bytes
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A titled part of a report. Blank lines in `text` separate paragraphs, `backticks` mark code.

    `table` has rows of equal length, its header first.
    """

    title: str
    text: str = ""
    figures: Sequence[PageImage] = field(default_factory=tuple)
    table: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Frame:
    """The blocks at the two ends of a model, each a name and its shape or law, e.g. "z ~ N(0, I)"."""

    left: Sequence[str]
    right: Sequence[str]


def write_report(
    folder: str | Path,
    title: str,
    sections: Sequence[Section],
    metrics: Mapping[str, SupportsFloat | str] | None = None,
    facts: Mapping[str, object] | None = None,
    frame: Frame | None = None,
    *,
    settings: Sequence[tuple[str, str, str]] = (),
    item: str = "item",
    warning: str = "",
    lead: str = "",
) -> Path:
    """Write `report.html` into a folder, atomically.

    Args:
        folder: the folder; created if it does not exist.
        title: title of the page.
        sections: in reading order.
        metrics: numbers by name; titles and units as in `UNITS`.
        facts: run metadata, such as date, data and versions.
        frame: the two ends of the model, drawn at the top.
        settings: rows of (name, requested value, used value).
        item: noun for one item in units: row, image, pair.
        warning: a sentence below the title, in bold.
        lead: a sentence below the title.

    Returns:
        The path of the page.

    Raises:
        InputError: if a figure is missing or of an unknown kind.
        StorageError: if the folder cannot be written, or has a `report.html` that flowknife did not write.
    """
    parts = [
        f"<header><h1>{escape(title)}</h1>{_warning(warning)}{_prose(lead) if lead else ''}</header>",
        _wide(ends_svg(frame.left, frame.right), "The two ends of the model") if frame else "",
        _metrics_table(metrics or {}, item),
        *(_section(section) for section in sections),
        _facts_list(facts or {}),
        _settings_table(settings),
    ]
    page = PAGE.format(
        title=escape(title), generator=GENERATOR, style=STYLE, body="\n".join(part for part in parts if part)
    )
    path = Path(folder) / "report.html"
    require_own(path)
    with replacing(path) as place:
        place.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _warning(text: str) -> str:
    return f"<p><strong>{escape(text)}</strong></p>" if text else ""


def _wide(content: str, name: str) -> str:
    """An image that fits the screen; on a narrow one a link shows it in full size, in a box that scrolls sideways."""
    place = f"image-{zlib.crc32(content.encode()):08x}"
    links = f'<a class="size" href="#{place}">Full size</a><a class="size fit" href="#at-{place}">Fit to the screen</a>'
    box = f'<div class="wide" id="{place}" tabindex="0" role="group" aria-label="{escape(name)}">{content}</div>'
    return f'<div id="at-{place}">{box}{links}</div>'


def _section(section: Section) -> str:
    paragraphs = [_prose(text) for text in re.split(r"\n\s*\n", section.text.strip()) if text.strip()]
    figures = [_figure(image) for image in section.figures]
    parts = [f"<h2>{escape(section.title)}</h2>", *paragraphs, *_table(section.table), *figures]
    return "<section>" + "\n".join(parts) + "</section>"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in rows[0])
    body = [
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows[1:]
    ]
    return [f'<table class="words"><thead><tr>{head}</tr></thead>\n<tbody>' + "\n".join(body) + "</tbody></table>"]


def _prose(text: str) -> str:
    return "<p>" + re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text.strip())) + "</p>"


def _figure(image: PageImage) -> str:
    content = image.source
    if not isinstance(content, bytes):
        try:
            content = Path(content).read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"got figure {str(content)!r} ({reason}); expected a PNG, GIF, JPEG or SVG file"
            ) from error
    kind = next((kind for magic, kind in KINDS.items() if content.startswith(magic)), None)
    if kind is None:
        name = "bytes" if isinstance(image.source, bytes) else repr(str(image.source))
        raise InputError(f"got figure {name} starting with {content[:8]!r}; expected PNG, GIF, JPEG or SVG content")
    uri = f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    caption = escape(image.caption)
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    shown = _wide(f'<img src="{uri}" alt="{caption}"{_width(content)}>', image.caption or "figure")
    return f"<figure>{shown}{below}</figure>"


def _width(content: bytes) -> str:
    """The width in CSS pixels (96 to the inch) of a PNG with a known resolution, so that it is sharp on any screen."""
    at = content.find(b"pHYs", 8, 4096)
    if not content.startswith(b"\x89PNG") or at < 0 or content[at + 12 : at + 13] != b"\x01":
        return ""
    pixels, per_metre = (int.from_bytes(content[start : start + 4], "big") for start in (16, at + 4))
    return f' width="{round(pixels * 96 * 39.37 / per_metre)}"' if pixels and per_metre else ""


def _metrics_table(metrics: Mapping[str, SupportsFloat | str], item: str) -> str:
    if not metrics:
        return ""
    rows = [
        f'<tr><th scope="row">{escape(label)}</th><td>{escape(value)}</td><td>{escape(unit)}</td></tr>'
        for label, value, unit in metric_rows(metrics, item)
    ]
    head = '<tr><th scope="col">Measured</th><th scope="col">Value</th><th scope="col">Unit</th></tr>'
    return (
        f'<section><table class="metrics"><thead>{head}</thead>\n<tbody>'
        + "\n".join(rows)
        + "</tbody></table></section>"
    )


def metric_rows(metrics: Mapping[str, SupportsFloat | str], item: str) -> list[tuple[str, str, str]]:
    """Title, value and unit of each metric, in words."""
    named = ((*_label_and_unit(name), value) for name, value in metrics.items())
    return [(label, _number(value), unit.replace("item", item)) for label, unit, value in named]


def _label_and_unit(name: str) -> tuple[str, str]:
    if name in UNITS:
        return UNITS[name]
    if (held_out := name.removeprefix("training_")) in UNITS:  # for a run without held-out data
        label, unit = UNITS[held_out]
        return f"{label.removesuffix(', held out')}, training data", unit
    bracket = re.fullmatch(r"(.*\S)\s*\(([^()]+)\)", name.strip())
    label, unit = bracket.groups() if bracket else (name, "")
    label = label.replace("_", " ").strip()
    return label[:1].upper() + label[1:], unit


def _number(value: SupportsFloat | str) -> str:
    """Four significant digits, whole numbers in full, a true minus sign."""
    if isinstance(value, (str, bool)):
        return str(value)
    number = float(value)
    if not isfinite(number):
        return "not finite"
    text = f"{int(number):,}" if number == int(number) and abs(number) < 1e15 else f"{number:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _facts_list(facts: Mapping[str, object]) -> str:
    if not facts:
        return ""
    rows = [f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items()]
    return '<section class="facts"><h2>How this was made</h2>\n<dl>' + "\n".join(rows) + "</dl></section>"


def _settings_table(settings: Sequence[tuple[str, str, str]]) -> str:
    if not settings:
        return ""
    text = "Settings that were not requested have their default, or were chosen from the data."
    return _section(Section("Settings", text, table=[("Setting", "Asked for", "Used"), *settings]))


BOX, SPACE, NETWORK, WIRE, PAD = 36.0, 12.0, 168.0, 64.0, 1.0  # SVG user units, drawn as pixels


def ends_svg(left: Sequence[str], right: Sequence[str]) -> str:
    """Draw the two ends of an invertible model, with the network between them.

    Args:
        left: blocks of the left end; the first word is the name, followed by the shape or law.
        right: blocks of the right end.

    Returns:
        an `<svg>` element with the colours of the page, or default colours outside of a page.

    Raises:
        InputError: if an end has no block.
    """
    if not left or not right:
        raise InputError(f"got {len(left)} blocks left and {len(right)} right; expected at least one at each end")
    widths = [max(_text_width(block) for block in blocks) + 28 for blocks in (left, right)]
    rows = max(len(left), len(right))
    height = max(rows * (BOX + SPACE) - SPACE, 86.0) + 2 * PAD
    middle = height / 2
    start = PAD + widths[0] + WIRE
    end = start + NETWORK
    width = end + WIRE + widths[1] + PAD

    parts = []
    for blocks, box, port, edge in (
        (left, PAD, start, PAD + widths[0]),
        (right, end + WIRE, end, end + WIRE),
    ):
        top = middle - (len(blocks) * (BOX + SPACE) - SPACE) / 2
        for index, block in enumerate(blocks):
            y = top + index * (BOX + SPACE)
            entry = middle + (index - (len(blocks) - 1) / 2) * min(16, 60 / len(blocks))
            bend = (edge + port) / 2
            parts.append(
                f'<path d="M{edge:.1f} {y + BOX / 2:.1f} C{bend:.1f} {y + BOX / 2:.1f} {bend:.1f} {entry:.1f} '
                f'{port:.1f} {entry:.1f}" fill="none" style="stroke:var(--quiet,#6b7483)" stroke-width="1.3"/>'
            )
            parts.append(_box(box, y, widths[0 if blocks is left else 1], block))
    parts.append(_network(start, middle))
    label = escape(
        f"{', '.join(left)} on the left; {', '.join(right)} on the right; an invertible network between them"
    )
    return (
        f'<svg class="ends" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" role="img" aria-label="{label}" '
        f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">{"".join(parts)}</svg>'
    )


def _text_width(block: str) -> float:
    name, _, detail = block.strip().partition(" ")
    return 8.6 * len(name) + 7.0 * len(detail) + (8.0 if detail else 0.0)


def _box(x: float, y: float, width: float, block: str) -> str:
    name, _, detail = block.strip().partition(" ")
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BOX:g}" rx="6" '
        'style="fill:var(--card,#ffffff);stroke:var(--rule,#d5dae1)"/>'
        f'<text x="{x + width / 2:.1f}" y="{y + BOX / 2 + 4.5:.1f}" text-anchor="middle" font-size="14" '
        f'style="fill:var(--ink,#1f2530)"><tspan font-weight="600">{escape(name)}</tspan>'
        + (f'<tspan dx="7" font-size="13" style="fill:var(--quiet,#6b7483)">{escape(detail)}</tspan>' if detail else "")
        + "</text>"
    )


def _network(x: float, middle: float) -> str:
    """The network: a box with an arrow to the right above an arrow to the left."""
    near, far = x + 28, x + NETWORK - 28
    stroke = 'style="stroke:var(--accent,#2a6ea6);fill:none" stroke-width="1.6" stroke-linecap="round"'
    word = 'text-anchor="middle" font-size="13" style="fill:var(--accent,#2a6ea6)"'
    centre = x + NETWORK / 2
    return (
        f'<rect x="{x:.1f}" y="{middle - 42:.1f}" width="{NETWORK:g}" height="84" rx="10" '
        'style="fill:var(--tint,#eaf2f8);stroke:var(--accent,#2a6ea6)"/>'
        f'<text x="{centre:.1f}" y="{middle - 20:.1f}" {word}>encode</text>'
        f'<path d="M{near:.1f} {middle - 10:.1f}H{far:.1f}m-6 -4l6 4l-6 4" {stroke}/>'
        f'<path d="M{far:.1f} {middle + 10:.1f}H{near:.1f}m6 -4l-6 4l6 4" {stroke}/>'
        f'<text x="{centre:.1f}" y="{middle + 29:.1f}" {word}>decode</text>'
    )


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Content security policy: a page may only show its own content, so that injected markup is never executed."""

PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
{{generator}}
<title>{{title}}</title>
<style>{{style}}</style>
</head>
<body>
<main>
{{body}}
</main>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --page: #fafbfc; --card: #ffffff; --ink: #1f2530; --quiet: #5d6675; --rule: #d5dae1;
  --accent: #2a6ea6; --tint: #eaf2f8; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --card: #1c2128; --ink: #e4e7ec; --quiet: #9aa4b2;
  --rule: #343b46; --accent: #7fb4de; --tint: #1b2a38; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.6;
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; font-weight: 650; letter-spacing: -0.015em; margin: 0 0 1.5rem; }
h2 { font-size: 1.25rem; line-height: 1.3; font-weight: 600; margin: 0 0 0.6rem; }
section { margin: 2.75rem 0 0; }
p { max-width: 44rem; margin: 0 0 0.9rem; }
code { font: 0.9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--tint);
  border-radius: 4px; padding: 0.1em 0.35em; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
a.size { display: none; color: var(--accent); font-size: 0.85rem; padding: 0.3rem 0; }
svg.ends { display: block; max-width: 100%; height: auto; margin: 0 0 0.5rem; }
figure { margin: 1.25rem 0 1.75rem; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--rule);
  border-radius: 8px; padding: 10px; }
figcaption { color: var(--quiet); font-size: 0.9rem; margin-top: 0.5rem; max-width: 44rem; }
table { border-collapse: collapse; width: 100%; max-width: 44rem; }
th, td { text-align: left; padding: 0.45rem 1rem 0.45rem 0; border-bottom: 1px solid var(--rule); font-weight: 400; }
thead th { color: var(--quiet); font-size: 0.85rem; }
td:nth-child(2), th:nth-child(2) { text-align: right; font-variant-numeric: tabular-nums; font-weight: 600; }
thead th:nth-child(2) { font-weight: 400; }
td:nth-child(3) { color: var(--quiet); }
table.words { font-size: 0.9rem; }
table.words td:nth-child(n+2), table.words th:nth-child(n+2) { text-align: left; font-weight: 400;
  color: var(--ink); overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.3rem 1.5rem; margin: 0; font-size: 0.9rem; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { main { padding: 1.5rem 1rem 3rem; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 0.6rem; } figure img { padding: 4px; }
  .wide:target svg.ends, .wide:target img { max-width: none; } th, td { padding-right: 0.6rem; }
  table.words td:nth-child(n+2), table.words th:nth-child(n+2) { min-width: 4.2rem; }
  a.size, .wide:target ~ a.fit { display: inline-block; } a.fit, .wide:target ~ a.size:not(.fit) { display: none; } }
@media print { :root { --page: #ffffff; --card: #ffffff; --ink: #000000; --quiet: #444444; --rule: #cccccc;
  --accent: #1d4f7a; --tint: #f2f5f8; } main { max-width: none; padding: 0; }
  figure, table, svg, dl { break-inside: avoid; }
  h1, h2 { break-after: avoid; } figure img { border: 0; padding: 0; } a.size { display: none !important; } }
"""
