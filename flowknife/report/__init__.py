"""Reports: a self-contained HTML page per run, with its figures."""

from flowknife.report._figures import ends, flagging_text
from flowknife.report._gallery import MOST_SHOWN, write_gallery
from flowknife.report._page import UNITS, Frame, PageImage, Section, ends_svg, write_report
from flowknife.report._run import about, item_of, measured, write_page
from flowknife.report._summary import card, in_html, in_one_line

__all__ = [
    "MOST_SHOWN",
    "UNITS",
    "Frame",
    "PageImage",
    "Section",
    "about",
    "card",
    "ends",
    "ends_svg",
    "flagging_text",
    "in_html",
    "in_one_line",
    "item_of",
    "measured",
    "write_gallery",
    "write_page",
    "write_report",
]
