"""Interactive pages: the model itself in one HTML file, evaluated by the browser."""

from flowknife.explore._export import describe, described_frame, layer, packed, thinned
from flowknife.explore._kernel import kernel
from flowknife.explore._page import EVALUATOR, as_json, assembled, write_page

__all__ = [
    "EVALUATOR",
    "as_json",
    "assembled",
    "describe",
    "described_frame",
    "kernel",
    "layer",
    "packed",
    "thinned",
    "write_page",
]
