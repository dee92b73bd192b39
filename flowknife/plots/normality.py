"""Latents against their distribution: values against N(0, 1), radii against chi, p-values against uniform."""

from math import lgamma, log
from typing import TYPE_CHECKING

import numpy as np

from flowknife.errors import InputError
from flowknife.plots import _style as style
from flowknife.plots._style import Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS_OF_P = 20  # at most


def latents(z: Values) -> "Figure":
    """All latent values against N(0, 1): a histogram and a Q-Q plot.

    Args:
        z: latents, shape (n, d); all n * d values are pooled.

    Raises:
        InputError: if no value is finite.
    """
    from scipy.special import ndtr, ndtri

    values = style.finite(z, "z")
    figure = style.blank(9.4, 4.3)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    style.panel(left, "Values", "latent value", "density")
    _normal_histogram(left, values, None)
    style.legend(left, loc="upper right")

    style.panel(right, "Quantiles", "quantile of N(0, 1)", "quantile of the latent values")
    # even steps in the normal quantile show the tails; even steps in probability would cluster in the middle
    reach = min(4.0, float(-ndtri(0.5 / values.size)))
    expected = np.linspace(-reach, reach, min(values.size, 61))
    right.set(xlim=(-reach - 0.3, reach + 0.3))
    right.axline((0, 0), slope=1, color=style.INK, linewidth=1.0, linestyle=(0, (4, 3)))
    right.plot(
        expected,
        np.quantile(values, ndtr(expected), method="hazen"),
        "o",
        color=style.REAL,
        markersize=3.6,
        markeredgewidth=0,
    )
    moments = f"mean {_plain(values.mean())} and standard deviation {values.std():.2f}"
    style.headline(figure, f"Latent values have {moments}; N(0, 1) has 0 and 1.")
    return figure


def _plain(value: float) -> str:
    """Two decimals, with a proper minus sign and without a negative zero."""
    return f"{round(float(value), 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")


def latent_histogram(z: Values, others: Values | None = None) -> "Figure":
    """Histogram of all latent values of some inputs, and of others, against N(0, 1).

    Args:
        z: latents of any shape.
        others: latents of other inputs.

    Raises:
        InputError: if no value is finite.
    """
    values = style.finite(z, "z")
    anomalous = None if others is None or np.size(others) == 0 else style.finite(others, "others")
    figure = style.blank(7.2, 4.1)
    axes = style.panel(figure.add_subplot(), xlabel="latent value", ylabel="density")
    _normal_histogram(axes, values, anomalous)
    style.legend(axes, loc="upper right")
    rest = "" if anomalous is None else f", those of the others {anomalous.std():.2f}"
    style.headline(figure, f"Latent values have standard deviation {values.std():.2f}{rest}; N(0, 1) has 1.")
    return figure


def _normal_histogram(axes: "Axes", values: np.ndarray, others: np.ndarray | None) -> None:
    low, high = _histograms(axes, values, others, np.array([-3.5, 3.5]))
    grid = np.linspace(low, high, 400)
    law = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
    axes.plot(grid, law, color=style.INK, linewidth=1.2, linestyle=(0, (4, 3)), label="N(0, 1)")


def _histograms(
    axes: "Axes", values: np.ndarray, others: np.ndarray | None, law_range: np.ndarray
) -> tuple[float, float]:
    """Two histograms of unit area; the number of values beyond the axis is in its label."""
    series = [values] if others is None else [values, others]
    low, high = style.span(law_range, *series, margin=0.05)
    low = max(low, 0.0) if law_range.min() >= 0 else low
    # Scott's rule without outliers, independent of the range of the others
    width = 3.5 * np.subtract(*np.quantile(values, [0.75, 0.25])) / 1.349 / values.size ** (1 / 3)
    bins = int(np.clip((high - low) / width, 12, 300)) if width > 0 else 30
    edges = np.linspace(low, high, bins + 1)
    for data, colour, label in zip(series, (style.REAL, style.OTHER), ("latents", "others"), strict=False):
        weight = np.full(data.size, 1 / (data.size * (edges[1] - edges[0])))
        axes.hist(data, list(edges), weights=weight, color=colour, alpha=0.4, label=label)
    beyond = sum(int(((data < low) | (data > high)).sum()) for data in series)
    if beyond:
        axes.set_xlabel(f"{axes.get_xlabel()}  ({beyond:,} beyond this axis)")
    axes.set_xlim(low, high)
    return low, high


def radius_histogram(radii: Values, dimension: int | np.integer, others: Values | None = None) -> "Figure":
    r"""Latent radii |z| against their density under N(0, I) of this dimension.

    `log p(r) = (d - 1) log r - r^2 / 2 - (d / 2 - 1) log 2 - log Gamma(d / 2)`, the chi distribution.

    Args:
        radii: shape (n,); NaN is left out.
        dimension: d, the number of latent values of one input.
        others: radii of other inputs.

    Raises:
        InputError: if the dimension is below 1 or no radius is finite.
    """
    from scipy.special import gammaincinv

    if dimension < 1:
        raise InputError(f"got dimension={dimension}; expected the number of latent values of one input, at least 1")
    values = style.finite(radii, "radii")
    anomalous = None if others is None or np.size(others) == 0 else style.finite(others, "others")
    centre, *ends = np.sqrt(2 * gammaincinv(dimension / 2, [0.5, 1e-4, 1 - 1e-4]))
    figure = style.blank(7.2, 4.1)
    axes = style.panel(figure.add_subplot(), xlabel="latent radius |z|", ylabel="density")
    low, high = _histograms(axes, values, anomalous, np.array(ends))
    grid = np.linspace(max(low, 1e-6), high, 800)
    law = np.exp((dimension - 1) * np.log(grid) - grid**2 / 2 - (dimension / 2 - 1) * log(2) - lgamma(dimension / 2))
    axes.plot(
        grid,
        law,
        color=style.INK,
        linewidth=1.2,
        linestyle=(0, (4, 3)),
        label=f"law of |z| in {dimension:,} dimensions",
    )
    style.legend(axes, loc="upper right")
    rest = "" if anomalous is None else f", that of the others {np.median(anomalous):.4g}"
    style.headline(
        figure, f"The median latent radius is {np.median(values):.4g}{rest}; under N(0, I) it is {centre:.4g}."
    )
    return figure


def anomaly_scores(held_p: Values, other_p: Values | None = None, alpha: float | int = 0.05) -> "Figure":
    """Anomaly p-values of held-out normal inputs, which should be uniform, and of others, which should be small.

    Args:
        held_p: p-values of held-out normal inputs.
        other_p: p-values of other inputs.
        alpha: inputs with a smaller p-value are flagged, as in `score`.

    Raises:
        InputError: if no value is finite or one lies outside [0, 1].
    """
    series = [("held out", style.finite(held_p, "held_p"), style.REAL)]
    if other_p is not None and np.size(other_p):
        series.append(("others", style.finite(other_p, "other_p"), style.OTHER))
    for _, values, _ in series:
        if values.min() < 0 or values.max() > 1:
            raise InputError(f"got p-values from {values.min():.3g} to {values.max():.3g}; expected them in [0, 1]")

    figure = style.blank(9.4, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    style.panel(left, "Share of inputs per bin", "p-value")
    style.panel(right, "Share of inputs flagged", "flagged if p is below")
    bins = int(np.clip(round(1 / alpha), 2, _BINS_OF_P))
    for label, values, colour in series:
        # bins are open at the right, so that the first one contains exactly the inputs flagged at alpha = 1 / bins
        place = np.clip(np.floor(values * bins + 1e-9).astype(int), 0, bins - 1)
        share = np.bincount(place, minlength=bins) / values.size
        left.bar((np.arange(bins) + 0.5) / bins, share, 1 / bins, color=colour, alpha=0.45, label=label, linewidth=0)
        ordered = np.sort(values)
        steps = np.concatenate([[0.0], ordered, [1.0]])
        rise = np.concatenate([[0.0], np.arange(1, values.size + 1) / values.size, [1.0]])
        right.step(steps, rise, where="post", color=colour, linewidth=1.6)
        right.scatter(alpha, (values < alpha).mean(), s=36, color=colour, zorder=4, edgecolors="white", clip_on=False)
    left.axhline(1 / bins, color=style.INK, linewidth=1.0, linestyle=(0, (4, 3)), label="uniform")
    right.axline((0, 0), slope=1, color=style.INK, linewidth=1.0, linestyle=(0, (4, 3)))
    right.axvline(alpha, color=style.RULE, linewidth=1.0, zorder=0)
    left.set_xlim(0, 1)
    left.set_ylim(0, 1.25 * left.dataLim.y1)
    right.set_xlim(0, 1)
    right.set_ylim(0, 1.01)
    handles, labels = left.get_legend_handles_labels()
    style.legend(left, handles=[*handles[1:], handles[0]], labels=[*labels[1:], labels[0]], loc="upper right")
    shares = [f"{(values < alpha).mean():.1%}" for _, values, _ in series]
    rest = f" and {shares[1]} of the others" if len(shares) == 2 else ""
    style.headline(
        figure, f"At a false-alarm rate of {100 * alpha:.3g}%, {shares[0]} of the held-out inputs{rest} are flagged."
    )
    return figure
