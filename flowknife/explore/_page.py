"""One file that answers: the model, its evaluator and the page around them, without anything to fetch.

The content security policy allows the page's own script and style, by their hashes, and nothing else;
'wasm-unsafe-eval' lets that script compile WebAssembly, and evaluates no text. What came from a user stands in a block
of JSON, which no browser runs, and is shown as text.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from flowknife._files import GENERATOR, replacing, require_own
from flowknife.errors import InputError
from flowknife.explore._export import describe, finite, packed
from flowknife.explore._kernel import kernel
from flowknife.explore._live import Call, Live
from flowknife.report import flagging_text, measured

EVALUATOR = ("numbers", "nets", "scalars", "layers", "model", "engines")
"""Scripts that evaluate a model, and need no browser."""

_INTERFACE = (
    *("live", "plot", "parts", "explain", "density", "scenes", "corner", "inversion", "classification"),
    *("pixels", "cloud", "folder", "images", "main"),
)
_LARGEST = 5_000_000  # bytes of a page
NAME = "explore.html"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
{generator}
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header></header>
<main><noscript><p>This page computes with the model in it, which takes JavaScript.</p></noscript></main>
<script type="application/json" id="model">{model}</script>
<script>{script}</script>
</body>
</html>
"""


@cache
def script(*names: str) -> str:
    """Some of the page's scripts as one, whose names are seen by nothing outside of it."""
    parts = [_read(f"{name}.js") for name in names or (*EVALUATOR, *_INTERFACE)]
    return "(() => {\n" + "\n".join(parts) + "\n})();\n"


def _read(name: str) -> str:
    return resources.files("flowknife.explore").joinpath("page", name).read_text(encoding="utf-8")


def write_page(result: Any, folder: str | Path, job: str, parts: Mapping[str, Any]) -> Path:
    """Write `explore.html` of a result into a folder, whole or not at all.

    Args:
        result: of an application.
        folder: the run directory, whose name is the title of the page; made if there is none.
        job: which page is built around the model, a key of `PAGES` in `page/main.js`.
        parts: what that page shows, by name: plain values and arrays.

    Returns:
        The path of the page.

    Raises:
        InputError: the page cannot evaluate the model, or is larger than 5 MB.
        StorageError: the folder cannot be written, or has an `explore.html` that flowknife did not write.
    """
    title = f"{Path(folder).resolve().name}: {result.title}"
    page = assembled(title, content_of(result, title, job, parts))
    if len(page) > _LARGEST:
        raise InputError(
            f"got a model for whose page {len(page) / 1e6:.1f} MB are needed; expected at most {_LARGEST / 1e6:g} MB; "
            "try the report without interactive, or smaller layers"
        )
    path = Path(folder) / NAME
    require_own(path)
    with replacing(path) as place:
        place.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def assembled(title: str, content: str, live: bool = False) -> str:
    """The page around its content; a live one may ask the server that it came from."""
    style, code = _read("style.css"), script()
    return _PAGE.format(
        policy=policy_of(live), generator=GENERATOR, title=escape(title), style=style, model=content, script=code
    )


def policy_of(live: bool = False) -> str:
    """The content security policy: the page's own script and style."""
    asks = "connect-src 'self'; " if live else ""
    return (
        f"default-src 'none'; img-src data:; {asks}script-src '{_hash(script())}' 'wasm-unsafe-eval'; "
        f"style-src '{_hash(_read('style.css'))}'; base-uri 'none'; form-action 'none'"
    )


def live_page(result: Any, job: str, parts: Mapping[str, Any], calls: Mapping[str, Call], **options: Any) -> Live:
    """A page that the model in Python answers, see `Live`; `parts` as for `write_page`."""
    name = result.folder.resolve().name if result.folder else result.application
    title = f"{name}: {result.title}"
    content = content_of(result, title, job, {**parts, "live": True, "trust": None})
    return Live(title, content, {"trust": lambda: trust_of(result), **calls}, **options)


def content_of(result: Any, title: str, job: str, parts: Mapping[str, Any]) -> str:
    """What the page reads, as JSON."""
    # first: what the page cannot evaluate, it cannot show
    model = None if "live" in parts else describe(result.model)
    everything = {
        "title": title,
        "lead": result.record.data.source and f"Fitted to {result.record.data.source}.",
        "job": job,
        "names": list(result.names),
        "alpha": result.config.alpha,
        "metrics": measured(result),
        "model": model,
        **parts,
    }
    if "trust" not in parts:  # a live page asks for it later, since the checks of images take minutes
        everything["trust"] = trust_of(result)
    return as_json(everything)


def as_json(content: Mapping[str, Any]) -> str:
    """What the page reads, without a character that could end its block."""
    return json.dumps(finite(packed({**content, "kernel": kernel()})), allow_nan=False).replace("<", "\\u003c")


def trust_of(result: Any) -> dict[str, Any]:
    """The checks, how p-values come about, and whether training was cut short."""
    checks = [] if not result.flagging.rows else result.check()
    rows = [
        {
            "name": each.name,
            "value": float(each.value),
            "limit": float(each.limit),
            "passed": each.passed,
            "note": each.note,
        }
        for each in checks
    ]
    training = result.record.training
    partial = f"Partial: {training.sentence}." if training.partial else ""
    return {"checks": rows, "flagging": flagging_text(result.flagging), "partial": partial}


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
