"""Figures of posteriors: marginals, calibration and coverage, and posterior predictive."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife.diagnostics import Coverage, Ranks
from flowknife.errors import InputError
from flowknife.plots import _style as style
from flowknife.plots._style import Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COMPONENTS = 8
MASSES = (0.9, 0.5)
CELLS = 64
FEW = 200  # fewer draws are too few for regions
PALE, MIDDLE = "#f8dcc4", "#efb585"  # lighter shades of the colour of the model


def corner(
    samples: Values,
    names: Sequence[str] | None = None,
    truth: Values | None = None,
    reference: Values | None = None,
    units: Sequence[str] | None = None,
) -> "Figure":
    """Corner plot of a posterior: one-dimensional marginals on the diagonal, pairs below it.

    Highest-density regions contain 50 % and 90 % of the draws. They are computed from smoothed histograms; fewer than
    200 draws are shown as points.

    Args:
        samples: draws, shape (n, d). At most eight components are shown, evenly spread.
        names: names of the d components; `x1`, `x2`, ... if None.
        truth: true parameters, shape (d,).
        reference: draws of a reference posterior, shape (m, d).
        units: units of the d components, "" for none.

    Raises:
        InputError: for shapes that do not fit.
    """
    samples = style.points(samples, "samples")
    columns = samples.shape[1]
    labels = _labels(names, units, columns)
    exact = None if reference is None else style.points(reference, "reference", columns)
    true = None if truth is None else np.asarray(truth, float).ravel()
    if true is not None and true.shape != (columns,):
        raise InputError(f"got {true.size} numbers of the truth; expected ({columns},), one number per component")
    shown = style.thin(columns, MOST_COMPONENTS)
    count = len(shown)
    kept = {"model": samples[:, shown]} if exact is None else {"model": samples[:, shown], "exact": exact[:, shown]}
    limits = [_limits([t[:, i] for t in kept.values()], None if true is None else true[shown[i]]) for i in range(count)]

    side = {1: 5.4, 2: 2.9, 3: 2.3, 4: 1.95, 5: 1.75, 6: 1.55, 7: 1.4, 8: 1.3}[count] * count
    figure = style.blank(side + 0.4, min(side, 4.2) + 0.6 if count == 1 else side + 0.8)
    grid = figure.subplots(count, count, sharex="col", squeeze=False)
    for row, column, axes in style.corner(grid, [labels[i] for i in shown]):
        if row == column:
            _marginal(axes, [t[:, row] for t in kept.values()], limits[row])
        else:
            _pair(axes, [t[:, [column, row]] for t in kept.values()], limits[column], limits[row])
        if true is not None:
            _cross(axes, true[shown[column]], None if row == column else true[shown[row]])
    if exact is not None or true is not None:
        _corner_legend(figure, grid, exact is not None, true is not None)
    drawn = f"{len(samples):,} draws of the posterior" + (
        "" if exact is None else f" and {len(exact):,} of a reference"
    )
    more = f"; {count} of {columns} components" if count < columns else ""
    regions = "" if count == 1 or len(samples) < FEW else "; regions hold 50% and 90%"
    style.headline(figure, f"{drawn}{regions}{more}.")
    return figure


def _labels(names, units, count):
    names = [f"x{i + 1}" for i in range(count)] if names is None else [style.shortened(name) for name in names]
    units = [""] * count if units is None else [str(unit) for unit in units]
    if len(names) != count or len(units) != count:
        raise InputError(f"got {len(names)} names and {len(units)} units; expected {count} each, one per component")
    return [f"{name} ({unit})" if unit else name for name, unit in zip(names, units, strict=True)]


def _limits(series, truth):
    """Limits that contain nearly all draws, and the true value."""
    low, high = style.span(*series, margin=0.02)
    kept = [values[np.isfinite(values)] for values in series]
    ends = [np.quantile(values, [0.0005, 0.9995]) for values in kept if len(values)]
    if ends and np.ptp(ends) > 0:
        room = 0.08 * np.ptp(ends)
        low, high = max(low, np.min(ends) - room), min(high, np.max(ends) + room)
    if truth is not None and np.isfinite(truth) and not low < truth < high:
        room = 0.05 * (max(high, truth) - min(low, truth))
        low, high = min(low, truth - room), max(high, truth + room)
    return float(low), float(high)


def _marginal(axes: "Axes", series: list[np.ndarray], limits: tuple[float, float]) -> None:
    """Histograms of unit area with common bins, for draws (filled) and reference (line)."""
    count = int(np.clip(1.6 * np.sqrt(min(len(values) for values in series)), 8, 60))
    edges = np.linspace(*limits, count + 1)
    filled: dict[str, Any] = {"color": style.MODEL, "alpha": 0.45}
    line: dict[str, Any] = {"color": style.REAL, "histtype": "step", "linewidth": 1.4}
    for values, look in zip(series, (filled, line), strict=False):
        values = values[np.isfinite(values)]
        weight = 1 / (max(len(values), 1) * (edges[1] - edges[0]))
        axes.hist(values, list(edges), weights=np.full(len(values), weight), **look)
    axes.set_xlim(*limits)
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _pair(axes: "Axes", tables: list[np.ndarray], across: tuple[float, float], up: tuple[float, float]) -> None:
    for table, colour, filled in zip(tables, (style.MODEL, style.REAL), (True, False), strict=False):
        table = table[np.isfinite(table).all(axis=1)]
        if len(table) < FEW:
            axes.scatter(*table.T, s=9, c=colour, alpha=0.6, linewidths=0)
            continue
        x, y, density = _smooth(table, across, up)
        levels = _mass_levels(density)
        if filled:
            beyond = table[style.thin(len(table), 1500)]
            axes.scatter(*beyond.T, s=2.5, c=colour, alpha=0.3, linewidths=0)
            axes.contourf(x, y, density, [*levels, np.inf], colors=[PALE, colour], alpha=0.9)
        else:
            axes.contour(x, y, density, levels, colors=[colour], linewidths=1.1)
    axes.set(xlim=across, ylim=up)


def _smooth(table, across, up):
    """Cell centres, and a histogram smoothed by a Gaussian of three quarters of Scott's width."""
    from scipy.ndimage import gaussian_filter

    heat, x, y = np.histogram2d(*table.T, bins=CELLS, range=[across, up])
    cells = [(limits[1] - limits[0]) / CELLS for limits in (across, up)]
    # less than Scott's width, so that several narrow modes do not merge
    widths = [
        np.clip(0.75 * len(table) ** (-1 / 6) * np.std(values) / cell, 0.6, 4.0)
        for values, cell in zip(table.T, cells, strict=True)
    ]
    centres = [(edges[1:] + edges[:-1]) / 2 for edges in (x, y)]
    return *centres, gaussian_filter(heat, widths, mode="constant").T


def _mass_levels(density):
    """The densities above which 90 % and 50 % of the mass lie, ascending."""
    ordered = np.sort(density.ravel())[::-1]
    share = np.cumsum(ordered) / max(ordered.sum(), 1e-300)
    levels = [ordered[np.searchsorted(share, mass)] for mass in MASSES]
    # a contour needs ascending, positive levels
    low = max(levels[0], 1e-9 * ordered[0], 1e-300)
    return [low, max(levels[1], low * (1 + 1e-6))]


def _cross(axes: "Axes", x: float, y: float | None) -> None:
    axes.axvline(x, color=style.INK, linewidth=0.9, linestyle=(0, (4, 3)))
    if y is not None:
        axes.axhline(y, color=style.INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.plot(x, y, "o", color=style.INK, markersize=3.5)


def _corner_legend(figure: "Figure", grid: np.ndarray, exact: bool, true: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list = [Patch(color=style.MODEL, alpha=0.45, label="model")]
    if exact:
        handles.append(Line2D([], [], color=style.REAL, linewidth=1.4, label="reference"))
    if true:
        handles.append(Line2D([], [], color=style.INK, linewidth=0.9, linestyle=(0, (4, 3)), label="truth"))
    if len(grid) == 1:
        style.legend(grid[0, 0], handles=handles, loc="best")
        return
    # the empty corner of the grid, where panels are hidden, not removed, so that the layout keeps its space
    place = grid[0, 1]
    place.set_visible(True)
    place.set_axis_off()
    style.legend(place, handles=handles, loc="upper left")


def calibration(ranks: Ranks, level: float = 0.95) -> "Figure":
    """ECDF of the ranks of the true parameters minus that of uniform ranks, with the band for exact posteriors.

    Args:
        ranks: the result of `diagnostics.sbc`, `tarp` or `hpd_coverage`.
        level: probability that all curves of exact posteriors stay inside the band.
    """
    figure = style.blank(8.0, 4.4)
    axes = style.panel(
        figure.add_subplot(), xlabel="share of draws below the truth", ylabel="ECDF of the ranks \N{MINUS SIGN} uniform"
    )
    lower, upper = ranks.band(level)
    x, curves = ranks.points, ranks.ecdf
    ends = np.concatenate([[0.0], x, [1.0]])
    low, high = (np.pad(edge - x, 1) for edge in (lower, upper))
    axes.fill_between(ends, low, high, color=style.RULE, alpha=0.6, linewidth=0, label=f"{level:.0%} band")
    axes.axhline(0, color=style.INK, linewidth=1.0, linestyle=(0, (4, 3)))
    colours = (style.REAL, style.MODEL, style.OTHER) if len(ranks.names) <= 3 else style.CATEGORIES
    # if there are many components, only the worst have a colour and a name
    named = sorted(np.argsort(ranks.p_values, kind="stable")[: len(colours)])
    for component in range(len(ranks.names)):
        look: dict[str, Any] = {"color": style.MESH, "linewidth": 0.8, "zorder": 1.5}
        if component in named:
            name = style.shortened(ranks.names[component])
            look = {"color": colours[named.index(component)], "linewidth": 1.5, "label": name}
        axes.plot(ends, np.pad(curves[:, component] - x, 1), **look)
    axes.set_xlim(0, 1)
    style.legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    style.headline(figure, f"{ranks.name[0].upper()}{ranks.name[1:]}. {ranks.verdict}")
    return figure


def coverage(central: Coverage | None = None, tarp: Ranks | None = None, hpd: Ranks | None = None) -> "Figure":
    """Nominal against empirical coverage of central intervals, balls around random points and highest-density regions.

    Args:
        central: the result of `diagnostics.coverage`, drawn with the pointwise 95 % band for exact posteriors.
        tarp: the result of `diagnostics.tarp`, with the simultaneous band.
        hpd: the result of `diagnostics.hpd_coverage`, with the simultaneous band.

    Raises:
        InputError: if none is given.
    """
    joint = [
        (ranks, colour, label)
        for ranks, colour, label in (
            (tarp, style.REAL, "balls around random points (TARP)"),
            (hpd, style.MODEL, "regions of highest density"),
        )
        if ranks is not None
    ]
    panels = (central is not None) + bool(joint)
    if not panels:
        raise InputError("got nothing to draw; expected at least one of central, tarp and hpd")
    figure = style.blank(4.7 * panels + 0.4, 5.3)
    columns = list(figure.subplots(1, panels, squeeze=False)[0])
    if central is not None:
        axes = columns.pop(0)
        style.panel(axes, "Central intervals, component by component", "nominal coverage", "empirical coverage")
        _central(axes, central)
        _diagonal(axes)
    if joint:
        axes = columns.pop(0)
        style.panel(axes, "All components jointly", "nominal coverage", "" if central else "empirical coverage")
        for index, (ranks, colour, label) in enumerate(joint):
            ends = np.concatenate([[0.0], ranks.points, [1.0]])
            lower, upper = (np.concatenate([[0.0], edge, [1.0]]) for edge in ranks.band())
            name = "95% bands" if index == 0 else None
            axes.fill_between(ends, lower, upper, color=style.RULE, alpha=0.5, linewidth=0, label=name)
            values = np.concatenate([[0.0], ranks.ecdf[:, 0], [1.0]])
            axes.plot(ends, values, color=colour, linewidth=1.6, label=label)
        _diagonal(axes)
    verdicts = [result.verdict for result in (central, tarp, hpd) if result is not None]
    style.headline(figure, verdicts[0] if len(verdicts) == 1 else _joint_verdict(central, tarp, hpd))
    return figure


def _joint_verdict(*results: Coverage | Ranks | None) -> str:
    names = ("Central intervals", "TARP", "Highest-density regions")
    given = [(name, result) for name, result in zip(names, results, strict=True) if result is not None]
    wrong = [
        f"{name}: {result.verdict[0].lower()}{result.verdict[1:]}" for name, result in given if not result.check.passed
    ]
    smallest = min(result.p_value for _, result in given)
    return " ".join(wrong) or f"No departure from nominal coverage (smallest p = {smallest:.2g})."


def _central(axes: "Axes", central: Coverage) -> None:
    order = np.argsort(central.levels)
    x = central.levels[order]
    axes.fill_between(
        x,
        central.low[order],
        central.high[order],
        color=style.RULE,
        alpha=0.6,
        linewidth=0,
        label="95% band, level by level",
    )
    if len(x) == 1:
        axes.vlines(x, central.low, central.high, color=style.RULE, linewidth=6)
    names = [style.shortened(name) for name in central.names]
    count = len(names)
    colours = (style.REAL, style.MODEL, style.OTHER) if count <= 3 else style.CATEGORIES
    for component in range(count):
        named = count <= len(colours)
        axes.plot(
            x,
            central.observed[order, component],
            "o-",
            color=colours[component] if named else style.REAL,
            markersize=4,
            linewidth=1.2,
            alpha=0.9 if named else 0.35,
            label=names[component] if named else (f"{count} components" if component == 0 else None),
        )


def _diagonal(axes: "Axes") -> None:
    axes.axline((0, 0), slope=1, color=style.INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    style.legend(axes, loc="upper left")


def predictive(
    y_samples: Values,
    y: Values,
    names: Sequence[str] | None = None,
    positions: Values | None = None,
    labels: tuple[str, str] = ("component of y", "y"),
) -> "Figure":
    """Posterior predictive draws against the observation.

    Up to four components are shown as histograms. More are drawn over their positions, with bands of the central 50 %
    and 90 % of the predictions.

    Args:
        y_samples: predictions, shape (n, m); add the noise if the observed data have it.
        y: the observation, shape (m,).
        names: names of the m components.
        positions: positions of the components (such as stations or periods), shape (m,), for the bands.
        labels: labels of the two axes of the bands, with units.

    Raises:
        InputError: for shapes that do not fit.
    """
    drawn = style.points(y_samples, "y_samples")
    observed = np.atleast_1d(np.asarray(y, float))
    count = drawn.shape[1]
    place = np.arange(1.0, count + 1) if positions is None else np.asarray(positions, float)
    if observed.shape != (count,) or place.shape != (count,):
        raise InputError(
            f"got y of shape {observed.shape} and positions of shape {place.shape}; expected ({count},), one number "
            "per component"
        )
    words = _labels(names, None, count)
    low, high = (np.nanquantile(drawn, q, axis=0) for q in (0.05, 0.95))
    inside = int(np.sum((observed >= low) & (observed <= high)))
    if count <= 4 and positions is None:
        figure = style.blank(max(3.0 * count, 5.4) + 0.4, 3.7)
        for axes, values, value, name in zip(
            figure.subplots(1, count, squeeze=False)[0], drawn.T, observed, words, strict=True
        ):
            style.panel(axes, xlabel=name)
            axes.locator_params(nbins=4)
            _marginal(axes, [values], _limits([values], value))
            axes.axvline(value, color=style.REAL, linewidth=1.8)
    else:
        figure = style.blank(8.4, 4.4)
        axes = style.panel(figure.add_subplot(), xlabel=labels[0], ylabel=labels[1])
        order = np.argsort(place, kind="stable")
        for mass, tint in ((0.9, PALE), (0.5, MIDDLE)):
            lower, upper = (np.nanquantile(drawn, (1 + sign * mass) / 2, axis=0)[order] for sign in (-1, 1))
            name = f"{mass:.0%} of the predictions"
            axes.fill_between(place[order], lower, upper, color=tint, linewidth=0, label=name)
        axes.plot(place[order], np.nanmedian(drawn, axis=0)[order], color=style.MODEL, linewidth=1.4, label="median")
        axes.plot(place, observed, "o", color=style.REAL, markersize=4.5, markeredgecolor="white", label="observed")
        if names is not None and positions is None and count <= 24:
            axes.set_xticks(place, words, rotation=45 if max(map(len, words)) > 4 else 0)
        style.legend(axes, loc="best")
    style.headline(
        figure, f"{inside} of {count} observed values lie within the central 90% of {len(drawn):,} predictions."
    )
    return figure
