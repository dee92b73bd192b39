"""Reports: one self-contained page per run, with its pictures."""

from flowknife.report._classify import report_classify
from flowknife.report._density import report_density
from flowknife.report._figures import ends
from flowknife.report._gallery import MOST_SHOWN, write_gallery
from flowknife.report._images import report_images
from flowknife.report._invert import report_invert
from flowknife.report._page import UNITS, Frame, Picture, Section, ends_svg, write_report

__all__ = [
    "MOST_SHOWN",
    "UNITS",
    "Frame",
    "Picture",
    "Section",
    "ends",
    "ends_svg",
    "report_classify",
    "report_density",
    "report_images",
    "report_invert",
    "write_gallery",
    "write_report",
]
