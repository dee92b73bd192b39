"""Interactive pages: the model itself in one HTML file, evaluated by the browser."""

from flowknife.explore._export import describe, described_frame, layer, packed, thinned
from flowknife.explore._kernel import kernel
from flowknife.explore._page import EVALUATOR, NAME, content_of, script, write_page

__all__ = [
    "EVALUATOR",
    "NAME",
    "content_of",
    "describe",
    "described_frame",
    "layer",
    "packed",
    "script",
    "thinned",
    "write_page",
]
