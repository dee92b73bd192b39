"""Interactive pages: the model itself answers, in one HTML file by the browser, or live by a server on this machine."""

from flowknife.explore._export import describe, described_frame, layer, packed, thinned
from flowknife.explore._folder import Folder
from flowknife.explore._kernel import kernel
from flowknife.explore._live import Live, count_of, rows_of, seed_of
from flowknife.explore._page import EVALUATOR, as_json, assembled, live_page, trust_of, write_page
from flowknife.explore._server import application, require_server, serve

__all__ = [
    "EVALUATOR",
    "Folder",
    "Live",
    "application",
    "as_json",
    "assembled",
    "count_of",
    "describe",
    "described_frame",
    "kernel",
    "layer",
    "live_page",
    "packed",
    "require_server",
    "rows_of",
    "seed_of",
    "serve",
    "thinned",
    "trust_of",
    "write_page",
]
