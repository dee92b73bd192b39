"""Figures of recovery, contraction, nominal against empirical coverage, and change detection in a stream."""

from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife.diagnostics import Monitoring, Reached, Sharpness
from flowknife.plots import _style as style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 6  # largest number of parameters
_POINTS = 300


def recovery(found: Sharpness) -> "Figure":
    """Posterior mean against the true value for each parameter, with normal 90 % intervals."""
    shown = style.thin(len(found.names), _MOST)
    columns = {1: 1, 2: 2, 4: 2}.get(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure = style.blank(3.1 * columns + 0.4, 3.0 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.ravel()[len(shown) :]:
        axes.set_visible(False)
    inside = []
    for axes, i in zip(grid.ravel(), shown, strict=False):
        truth, mean, spread = (part[:_POINTS, i] for part in (found.truth, found.mean, found.spread))
        style.panel(axes, style.shortened(found.names[i]), "truth", "posterior mean")
        look: dict[str, Any] = {"color": style.MODEL, "alpha": 0.35, "linewidth": 0.8, "fmt": "o", "markersize": 2.5}
        axes.errorbar(truth, mean, yerr=1.645 * spread, **look)
        axes.axline((float(truth.mean()), float(truth.mean())), slope=1, color=style.INK, linewidth=1.0, linestyle="--")
        axes.locator_params(nbins=4)
        inside.append(np.corrcoef(truth, mean)[0, 1] if np.std(mean) > 0 else 0.0)
    style.headline(
        figure,
        f"Posterior means follow the truth with correlations of {min(inside):.2f} to {max(inside):.2f}. "
        "Bars: 90%; dashed: where both are equal.",
    )
    return figure


def contraction(found: Sharpness) -> "Figure":
    """Width of posteriors relative to the prior and to the exact posterior, for each parameter."""
    known = len(found.exact_ratio) > 0
    figure = style.blank(4.7 * (1 + known) + 0.4, 4.4)
    panels = list(figure.subplots(1, 1 + known, squeeze=False)[0])
    across = "contraction: 0 is as wide as the prior, 1 a point"
    axes = style.panel(
        panels[0], "Width beside the prior's", across, "|mean \N{MINUS SIGN} truth|, in posterior widths"
    )
    score = np.abs(found.mean - found.truth) / np.maximum(found.spread, 1e-300)
    for i in style.thin(len(found.names), _MOST):
        shrunk = 1 - found.spread[:, i] ** 2 / found.prior_spread[i] ** 2
        axes.plot(
            shrunk[:_POINTS], score[:_POINTS, i], "o", markersize=3, alpha=0.5, label=style.shortened(found.names[i])
        )
    axes.axhline(1.96, color=style.INK, linewidth=1.0, linestyle="--", label="95% lie below, if widths are right")
    axes.set_xlim(min(-0.05, axes.get_xlim()[0]), 1.02)
    axes.set_ylim(bottom=0)
    style.legend(axes, loc="best")
    if known:
        axes = style.panel(panels[1], "Width beside the exact posterior's", "", "ratio of widths")
        shown = style.thin(len(found.names), 12)
        axes.axhspan(1 / 1.15, 1.15, color=style.RULE, alpha=0.6, linewidth=0, label="within 15%")
        axes.axhline(1.0, color=style.INK, linewidth=1.0, linestyle="--")
        for place, i in enumerate(shown):
            ratios = found.exact_ratio[:, i]
            axes.plot(np.full(len(ratios), place), ratios, "o", color=style.MODEL, markersize=3.5, alpha=0.6)
        names = [style.shortened(found.names[i]) for i in shown]
        axes.set_xticks(range(len(shown)), names, rotation=45 if max(map(len, names)) > 4 or len(names) > 6 else 0)
        style.legend(axes, loc="best")
    style.headline(figure, found.verdict)
    return figure


def promised(found: Reached) -> "Figure":
    """Nominal against empirical coverage of regions, before and after calibration."""
    figure = style.blank(5.4, 5.0)
    axes = style.panel(figure.add_subplot(), "", "promised coverage", "reached coverage")
    error = 2 * np.sqrt(found.levels * (1 - found.levels) / found.count)
    ends = found.levels - error, np.minimum(found.levels + error, 1)
    axes.fill_between(found.levels, *ends, color=style.RULE, alpha=0.6, linewidth=0, label="2 standard errors")
    axes.plot(found.levels, found.before, "o-", color=style.OTHER, markersize=4, label="as the model has it")
    for (kind, reached), colour in zip(found.after.items(), (style.MODEL, style.REAL), strict=False):
        axes.plot(found.levels, reached, "o-", color=colour, markersize=4, label=f"calibrated, {kind}")
    axes.axline((0.5, 0.5), slope=1, color=style.INK, linewidth=1.0, linestyle="--")
    low = min(float(found.levels[0]), float(found.before.min())) - 0.05
    axes.set(xlim=(low, 1.0), ylim=(low, 1.02))
    style.legend(axes, loc="upper left")
    style.headline(figure, found.verdict)
    return figure


def monitoring(found: Monitoring) -> "Figure":
    """Log capital of the test martingale of a stream, and the p-value of each row."""
    figure = style.blank(8.4, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    rows = np.arange(1, len(found.p_values) + 1)
    style.panel(upper, "", "", "log10 of the capital")
    upper.plot(rows, found.log_wealth / np.log(10), color=style.MODEL, linewidth=1.4)
    level = -np.log10(found.alpha)
    upper.axhline(level, color=style.INK, linewidth=1.0, linestyle="--", label=f"alarm, false with {found.alpha:g}")
    if found.alarm is not None:
        upper.axvline(found.alarm + 1, color=style.REAL, linewidth=1.2, label="alarm")
        upper.axvline((found.change or 0) + 1, color=style.OTHER, linewidth=1.2, linestyle=":", label="began to differ")
    style.legend(upper, loc="upper left")
    style.panel(lower, "", "row", "p-value")
    lower.plot(rows, found.p_values, "o", color=style.MODEL, markersize=1.8, alpha=0.6)
    style.headline(figure, found.verdict)
    return figure
