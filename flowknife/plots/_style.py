"""The style of all figures: colours, fonts, axes, and common conversions of arrays.

The style is set on each figure, not in matplotlib's global settings, which threads share.
"""

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from flowknife.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Values = ArrayLike | Sequence[Any] | float | int
"""Numbers in any form: an array of NumPy or JAX, (nested) lists, one number."""

PAPER = "#ffffff"
INK = "#1f2530"
QUIET = "#6b7483"
RULE = "#d5dae1"
MESH = "#aab2bf"

# These three are distinguishable for all common kinds of colour blindness: CIELAB distance of at least 25 in each
# pair under the simulation of Machado et al. 2009 (deuteranopia, protanopia, tritanopia).
REAL = "#2a6ea6"
MODEL = "#e07b28"
OTHER = "#8a2f5d"

# Paul Tol's "muted" qualitative scheme, ordered so that neighbours differ in lightness.
CATEGORIES = ("#332288", "#ddcc77", "#117733", "#88ccee", "#882255", "#44aa99", "#cc6677", "#999933", "#aa4499")

DPI = 144
FAMILIES = ("Inter", "Source Sans 3", "Helvetica Neue", "Arial", "Liberation Sans")


@lru_cache(maxsize=1)
def family() -> list[str]:
    """The first preferred sans-serif font of this machine, then matplotlib's own font."""
    from matplotlib import font_manager

    known = set(font_manager.get_font_names())
    return [*[name for name in FAMILIES if name in known][:1], "DejaVu Sans"]


@lru_cache(maxsize=1)
def figure_type() -> "type[Figure]":
    """The class of all figures, whose text is never parsed as mathematics.

    Names of columns, classes and files may contain dollar signs, backslashes and characters that no font has. The
    figure handles them when it is drawn.
    """
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    class TextFigure(Figure):
        def draw(self, renderer: Any) -> None:
            for axes in self.axes:  # creates the tick labels, which do not exist before
                axes.get_xticklabels(which="both")
                axes.get_yticklabels(which="both")
            for text in self.findobj(Text):
                if "\\mathdefault" not in text.get_text():  # the tick labels of logarithmic axes
                    text.set_parse_math(False)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Glyph .* missing from")
                super().draw(renderer)

        def _repr_png_(self) -> bytes:
            """The figure as PNG for notebooks; not used for figures that pyplot has registered, to show them once."""
            stream = io.BytesIO()
            self.savefig(stream, format="png")
            return stream.getvalue()

    return TextFigure


def blank(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches that lays out its own panels."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.08, wspace=0.03, hspace=0.03)
    return figure_type()(figsize=(width, height), dpi=DPI, facecolor=PAPER, layout=layout)


def shortened(name: Any, most: int = 40) -> str:
    """A name on one line, at most `most` letters long: the middle of a long name is cut."""
    words = " ".join(str(name).encode("utf-8", "backslashreplace").decode("utf-8").split())
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)
    half = most // 2
    return shown if len(shown) <= most else f"{shown[:half]}…{shown[-(most - half - 1) :]}"


def letters(inches: float) -> int:
    """Number of letters of a headline that fit into this width, with a margin of 5 %."""
    return max(int(inches * 11.6), 1)


def headline(figure: "Figure", sentence: str) -> None:
    """Set the headline, left-aligned above the panels."""
    width = letters(figure.get_figwidth() - 0.3)
    figure.suptitle(
        textwrap.fill(sentence, width), x=0.012, ha="left", fontsize=12, color=INK, family=family(), linespacing=1.3
    )


def panel(axes: "Axes", title: str = "", xlabel: str = "", ylabel: str = "") -> "Axes":
    """Apply the common style to axes: two thin spines, grey ticks, a small title at the left."""
    axes.set_facecolor(PAPER)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
    axes.tick_params(color=RULE, labelcolor=QUIET, labelsize=8.5, length=3, labelfontfamily=family())
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, loc="left", fontsize=10, color=INK, family=family(), pad=7)
    axes.set_xlabel(xlabel, fontsize=9.5, color=QUIET, family=family())
    axes.set_ylabel(ylabel, fontsize=9.5, color=QUIET, family=family())
    return axes


def corner(grid: np.ndarray, names: Sequence[str]) -> Iterator[tuple[int, int, "Axes"]]:
    """Row, column and axes of the lower triangle of a square grid, whose outer axes are labelled; others are hidden."""
    for row, column in np.ndindex(grid.shape):
        axes = grid[row, column]
        if column > row:
            axes.set_visible(False)
            continue
        panel(axes)
        axes.tick_params(labelsize=7.5)
        axes.locator_params(nbins=4)
        yield row, column, axes
        if row == len(grid) - 1:
            axes.set_xlabel(names[column])
        else:
            axes.tick_params(labelbottom=False)
        if column == 0 and row > 0:
            axes.set_ylabel(names[row])
        elif column > 0:
            axes.tick_params(labelleft=False)


def legend(axes: "Axes", **where: Any) -> None:
    """Add a legend without a frame."""
    names = axes.legend(frameon=False, labelcolor=INK, prop={"family": family(), "size": 9}, handlelength=1.3, **where)
    for handle in names.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)


def continuous() -> "Colormap":
    """Colour map for a number per point: viridis without its palest end, which is invisible on white."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("flowknife", matplotlib.colormaps["viridis"](np.linspace(0, 0.92, 256)))


def intensity() -> "Colormap":
    """Colour map for a density: white at zero, then one hue of increasing darkness."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("flowknife density", [PAPER, "#d3e3f0", "#7fb0d6", REAL, "#133a63", INK])


def point_colours(colour: Values | None, count: int) -> np.ndarray:
    """One RGBA row per point: categorical colours for a few integers, a continuous scale for anything else.

    Raises:
        InputError: if there is not one value for every point.
    """
    from matplotlib.colors import to_rgba, to_rgba_array

    if colour is None:
        return np.tile(to_rgba(REAL), (count, 1))
    value = np.asarray(colour)
    if value.shape != (count,):
        raise InputError(f"got colour of shape {value.shape}; expected ({count},), one value per point")
    labels, index = np.unique(value, return_inverse=True)
    if len(labels) <= len(CATEGORIES) and (value.dtype.kind in "iubOUS" or np.array_equal(labels, np.round(labels))):
        return to_rgba_array((REAL, MODEL, OTHER) if len(labels) <= 3 else CATEGORIES)[index]
    low, high = span(value)
    return continuous()(np.clip((value.astype(float) - low) / (high - low), 0, 1))


def points(x: Values, name: str, dimension: int | None = None) -> np.ndarray:
    """Convert a table of points to float64 of shape (n, d); a vector is one column.

    Raises:
        InputError: if it is empty, not a table, or of another dimension.
    """
    table = np.asarray(x, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.size == 0 or (dimension is not None and table.shape[1] != dimension):
        expected = "(n, d)" if dimension is None else f"(n, {dimension})"
        raise InputError(f"got {name} of shape {np.shape(x)}; expected a table of shape {expected} with n >= 1")
    return table


def finite(values: Values, name: str) -> np.ndarray:
    """All finite values as one vector.

    Raises:
        InputError: if there is none.
    """
    flat = np.asarray(values, dtype=np.float64).ravel()
    kept = flat[np.isfinite(flat)]
    if kept.size == 0:
        raise InputError(f"got {name} without one finite value (of {flat.size}); expected numbers to draw")
    return kept


def thin(count: int, limit: int) -> np.ndarray:
    """At most `limit` indices, evenly spread over `range(count)`, for smaller and reproducible figures."""
    return np.arange(count) if count <= limit else np.linspace(0, count - 1, limit).astype(int)


def span(*series: np.ndarray, margin: float = 0.0) -> tuple[float, float]:
    """Limits around all series, ignoring outliers (beyond six interquartile ranges), widened by `margin`."""
    ends = []
    for values in series:
        kept = np.asarray(values, dtype=np.float64)
        kept = kept[np.isfinite(kept)]
        if kept.size:
            lower, upper = np.quantile(kept, [0.25, 0.75])
            fence = 6 * (upper - lower) or np.inf
            kept = kept[(kept >= lower - fence) & (kept <= upper + fence)]
            ends.append((kept.min(), kept.max()))
    low, high = (min(e[0] for e in ends), max(e[1] for e in ends)) if ends else (0.0, 1.0)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        low, high = low - 0.5, high + 0.5
    room = margin * (high - low)
    return float(low - room), float(high + room)


def marker_size(count: int) -> float:
    """Area of a scatter marker in square points: larger for few points, smaller for many."""
    return float(np.clip(9000 / max(count, 1), 3.0, 22.0))
