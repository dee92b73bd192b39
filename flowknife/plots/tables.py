"""Figures of tables: data and samples, a density, a mapping between two planes, a training curve."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife.errors import InputError
from flowknife.plots import _style as style
from flowknife.plots._style import Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 6
MOST_POINTS = 6000


def samples(data: Values, generated: Values, names: Sequence[str] | None = None) -> "Figure":
    """Data against samples of the model: histograms (d = 1), scatter plots (d = 2), a matrix of pairs (d > 2).

    Args:
        data: shape (n, d).
        generated: shape (m, d).
        names: names of the d columns; `x1`, `x2`, ... if None. The matrix shows the first six columns.

    Raises:
        InputError: if the two tables differ in columns, or the names do not fit.
    """
    data = style.points(data, "data")
    generated = style.points(generated, "generated", data.shape[1])
    columns = data.shape[1]
    names = [f"x{i + 1}" for i in range(columns)] if names is None else [style.shortened(name) for name in names]
    if len(names) != columns:
        raise InputError(f"got {len(names)} names; expected {columns}, one per column of the data")
    if columns == 1:
        return _histogram_pair(data[:, 0], generated[:, 0], names[0])
    return _planes(data, generated, names) if columns == 2 else _pairs(data, generated, names)


def _histogram_pair(data: np.ndarray, generated: np.ndarray, name: str) -> "Figure":
    figure = style.blank(7.2, 3.9)
    axes = style.panel(figure.add_subplot(), xlabel=name, ylabel="density")
    _overlay(axes, data, generated, bins=60)
    style.legend(axes)
    style.headline(
        figure, f"{len(data):,} values of the data (filled) and {len(generated):,} drawn from the model (line)."
    )
    return figure


def _overlay(axes: "Axes", data: np.ndarray, generated: np.ndarray, bins: int) -> None:
    """Two histograms of unit area: filled for the data, a line for the model."""
    low, high = style.span(data, generated, margin=0.04)
    count = int(np.clip(2 * np.sqrt(min(len(data), len(generated))), 8, bins))
    edges = np.linspace(low, high, count + 1)
    data, generated = style.finite(data, "data"), style.finite(generated, "generated")
    axes.hist(data, list(edges), density=True, color=style.REAL, alpha=0.35, label="data")
    axes.hist(generated, list(edges), density=True, histtype="step", color=style.MODEL, linewidth=1.6, label="model")
    axes.set_xlim(low, high)


def _planes(data: np.ndarray, generated: np.ndarray, names: Sequence[str]) -> "Figure":
    figure = style.blank(9.0, 4.9)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, table, colour, title in (
        (left, data, style.REAL, "Data"),
        (right, generated, style.MODEL, "Model"),
    ):
        style.panel(axes, title, names[0], names[1] if axes is left else "")
        _dots(axes, table, colour)
    left.set_xlim(*style.span(data[:, 0], generated[:, 0], margin=0.05))
    left.set_ylim(*style.span(data[:, 1], generated[:, 1], margin=0.05))
    style.headline(
        figure, f"{len(data):,} points of the data at the left, {len(generated):,} drawn from the model at the right."
    )
    return figure


def _dots(axes: "Axes", table: np.ndarray, colour: str | np.ndarray, alpha: float = 0.55) -> None:
    kept = style.thin(len(table), MOST_POINTS)
    shades = colour if isinstance(colour, str) else colour[kept]
    axes.scatter(*table[kept, :2].T, s=style.marker_size(len(kept)), c=shades, alpha=alpha, linewidths=0)


def _pairs(data: np.ndarray, generated: np.ndarray, names: Sequence[str]) -> "Figure":
    """Histograms on the diagonal, and below it every pair of columns, with data and model overlaid."""
    from matplotlib.colors import to_rgba

    shown = min(data.shape[1], MOST_COLUMNS)
    side = {3: 2.3, 4: 1.95, 5: 1.75, 6: 1.55}[shown] * shown
    figure = style.blank(side + 0.4, side + 0.6)
    grid = figure.subplots(shown, shown, sharex="col")
    limits = [style.span(data[:, i], generated[:, i], margin=0.06) for i in range(shown)]

    count = min(len(data), len(generated), 1500)
    share = [style.thin(len(table), count) for table in (data, generated)]
    both = np.concatenate([data[share[0]], generated[share[1]]])
    shades = np.array([to_rgba(style.REAL)] * count + [to_rgba(style.MODEL)] * count)
    # drawn in mixed order, since otherwise the model would hide the data
    order = np.random.default_rng(0).permutation(len(both))

    for row, column, axes in style.corner(grid, names):
        if row == column:
            _overlay(axes, data[:, row], generated[:, row], bins=40)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
        else:
            size = 0.6 * style.marker_size(len(both))
            axes.scatter(*both[order][:, [column, row]].T, s=size, c=shades[order], alpha=0.5, linewidths=0)
            axes.set_ylim(*limits[row])
        axes.set_xlim(*limits[column])
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper right", frameon=False, labelcolor=style.INK, prop={"family": style.family()}
    )
    more = f" (the first {shown} of {data.shape[1]} columns)" if data.shape[1] > shown else ""
    style.headline(figure, f"{len(data):,} rows of the data and {len(generated):,} drawn from the model{more}.")
    return figure


def density(
    log_prob: Callable[[np.ndarray], Values],
    low: Values,
    high: Values,
    data: Values | None = None,
    resolution: int = 200,
) -> "Figure":
    """Heat map of the density exp(log_prob) in a window of the plane.

    Args:
        log_prob: maps points of shape (n, 2) to n log densities, in nats.
        low: lower corner of the window, two numbers or one for both axes.
        high: upper corner.
        data: points to overlay, shape (n, 2).
        resolution: cells along each axis.

    Raises:
        InputError: if the window is empty, or log_prob returns another shape than (n,).
    """
    low, high = _corner(low), _corner(high)
    if not (low < high).all() or resolution < 2:
        raise InputError(f"got low={low.tolist()}, high={high.tolist()}, resolution={resolution}; expected low < high")
    cell = (high - low) / resolution
    centres = [low[i] + cell[i] * (np.arange(resolution) + 0.5) for i in range(2)]
    plane = np.stack(np.meshgrid(*centres), axis=-1).reshape(-1, 2)
    values = np.asarray(log_prob(plane), dtype=np.float64)
    if values.shape != (len(plane),):
        raise InputError(f"got log_prob of shape {values.shape}; expected ({len(plane)},), one number per point")
    heat = np.exp(np.nan_to_num(values, nan=-np.inf, posinf=700.0).clip(max=700.0)).reshape(resolution, resolution)

    stretch = float(((high - low)[1] / (high - low)[0]).clip(0.45, 1.4))
    figure = style.blank(7.0, 5.7 * stretch + 1.2)
    axes = style.panel(figure.add_subplot(), xlabel="x1", ylabel="x2")
    # a few cells of a sharp ridge must not make all others pale: the scale ends at the 99.9 % quantile
    top = float(np.quantile(heat, 0.999))
    top = top if 0 < top < 0.5 * heat.max() else float(heat.max()) or 1.0
    image = axes.imshow(
        heat,
        origin="lower",
        extent=(low[0], high[0], low[1], high[1]),
        cmap=style.intensity(),
        vmin=0.0,
        vmax=top,
        interpolation="bilinear",
        aspect="auto",
    )
    if data is not None:
        table = style.points(data, "data", 2)
        table = table[style.thin(len(table), 1500)]
        axes.scatter(*table.T, s=5, c=style.MODEL, alpha=0.6, linewidths=0)
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(low[1], high[1])
    bar = figure.colorbar(
        image, ax=axes, shrink=0.6, aspect=30, pad=0.02, extend="max" if heat.max() > top else "neither"
    )
    style.panel(bar.ax, ylabel="density")
    for spine in (*bar.ax.spines.values(), bar.outline):
        spine.set_visible(False)
    mass = float(heat.sum() * cell.prod())
    dots = ", with points of the data" if data is not None else ""
    style.headline(figure, f"The density of the model{dots}; this window holds {mass:.1%} of it.")
    return figure


def _corner(corner: Values) -> np.ndarray:
    """Two finite numbers, or one for both axes."""
    pair = np.asarray(corner, dtype=np.float64)
    if pair.shape not in ((), (1,), (2,)) or not np.isfinite(pair).all():
        raise InputError(f"got corner {corner!r} of the window; expected two finite numbers, or one for both axes")
    return np.broadcast_to(pair, (2,))


def mapping(
    x: Values,
    z: Values,
    grid_x: Sequence[Values] = (),
    grid_z: Sequence[Values] = (),
    colour: Values | None = None,
) -> "Figure":
    """The two ends of a two-dimensional flow: data at the left, latents at the right, with the same colour per point.

    Args:
        x: data, shape (n, 2).
        z: their latents, shape (n, 2).
        grid_x: the latent grid mapped to the data space, polylines of shape (k, 2).
        grid_z: the same polylines in the latent space, where they are straight.
        colour: one number or label per point.

    Raises:
        InputError: if x, z and colour do not have one row per point.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Circle

    x, z = style.points(x, "x", 2), style.points(z, "z", 2)
    if len(x) != len(z):
        raise InputError(f"got {len(x)} points x and {len(z)} points z; expected the same points at both ends")
    shades = style.point_colours(colour, len(x))

    figure = style.blank(10.4, 5.3)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 0.17, 1])
    style.panel(left, "Data space", "x1", "x2")
    style.panel(right, "Latent space", "z1", "z2")
    for axes, table, lines in ((left, x, grid_x), (right, z, grid_z)):
        axes.add_collection(LineCollection([np.asarray(line) for line in lines], colors=style.MESH, linewidths=0.6))
        _dots(axes, table, shades, alpha=0.8)
    _window(left, x)
    edge = max(3.4, *np.abs(style.span(z, margin=0.04)))
    right.set(xlim=(-edge, edge), ylim=(-edge, edge), aspect="equal")
    for radius in (1, 2, 3):
        right.add_patch(Circle((0, 0), radius, fill=False, edgecolor=style.INK, linewidth=0.9, linestyle=(0, (4, 3))))
    _two_arrows(middle)
    grid = ", and the bent lines are the straight grid of the latent" if len(grid_x) else ""
    style.headline(figure, f"The same points at both ends of the flow, with the same colours{grid}.")
    return figure


def _window(axes: "Axes", table: np.ndarray) -> None:
    """Limits around the points; equal scales, unless that would compress them to a band."""
    limits = np.array([style.span(table[:, i], margin=0.08) for i in range(2)])
    extent = limits[:, 1] - limits[:, 0]
    if extent.max() < 2.2 * extent.min():
        limits += np.outer(extent.max() - extent, [-0.5, 0.5])
        axes.set_aspect("equal")
    axes.set(xlim=limits[0], ylim=limits[1])


def _two_arrows(axes: "Axes") -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    for height, start, end, word in ((0.56, 0.0, 1.0, "encode"), (0.44, 1.0, 0.0, "decode")):
        arrow = {"arrowstyle": "-|>", "color": style.QUIET, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=(end, height), xytext=(start, height), arrowprops=arrow)
        above = height > 0.5
        text: dict[str, Any] = {"ha": "center", "va": "bottom" if above else "top", "fontsize": 9, "color": style.QUIET}
        axes.text(0.5, height + (0.025 if above else -0.025), word, family=style.family(), **text)


def history(
    train: Values | Mapping[str, Sequence[float]],
    validation: Values | None = None,
    steps: Values | None = None,
    ylabel: str = "negative log-likelihood (nats)",
) -> "Figure":
    """Training curve: the objective on training and held-out data, with its best value marked.

    Args:
        train: objective at each evaluation, NaN if missing; or the `history` of a result, which includes `validation`
            and `steps`. For an image model the curve of its finest level is drawn.
        validation: the same on held-out data.
        steps: training step of each evaluation; 1, 2, ... if None.
        ylabel: name and unit of the objective.

    Raises:
        InputError: if the lengths differ or nothing is finite.
    """
    if isinstance(train, Mapping):
        columns = {name: np.asarray(values, np.float64) for name, values in train.items()}
        if missing := {"train", "validation", "step"} - set(columns):
            raise InputError(f"got no {', '.join(sorted(missing))}; expected the history of a result; try flow.history")
        levels = columns.get("level", np.zeros(len(columns["step"])))
        last = levels == levels.max(initial=0)
        train, validation, steps = (columns[name][last] for name in ("train", "validation", "step"))
    train = np.asarray(train, dtype=np.float64)
    steps = np.arange(1, train.size + 1) if steps is None else np.asarray(steps)
    held_out = np.full(train.shape, np.nan) if validation is None else np.asarray(validation, dtype=np.float64)
    if train.ndim != 1 or steps.shape != train.shape or held_out.shape != train.shape:
        raise InputError(
            f"got {train.size} training values, {held_out.size} held-out values, {steps.size} steps; "
            "expected one of each per record, NaN where none was taken"
        )
    judged = np.isfinite(held_out).any()
    curve = held_out if judged else train
    style.finite(curve, "training curve")
    best = int(np.nanargmin(np.where(np.isfinite(curve), curve, np.nan)))

    figure = style.blank(8.0, 4.1)
    axes = style.panel(figure.add_subplot(), xlabel="training step", ylabel=ylabel)
    axes.grid(axis="y", color=style.RULE, linewidth=0.6)
    for values, colour, label in ((train, style.REAL, "training"), (held_out, style.MODEL, "held out")):
        kept = np.isfinite(values)
        if kept.any():
            dot = "o" if kept.sum() == 1 else None
            axes.plot(steps[kept], values[kept], color=colour, linewidth=1.6, label=label, marker=dot)
    axes.scatter(
        steps[best], curve[best], s=46, color=style.MODEL if judged else style.REAL, zorder=4, edgecolors="white"
    )
    # the first values can be a thousand times higher than all later ones
    settled = [values[values.size // 20 :] for values in (train, held_out)]
    axes.set_ylim(*style.span(*settled, curve[[best]], margin=0.08))
    style.legend(axes, loc="best")
    kind = "held-out" if judged else "training"
    style.headline(figure, f"The {kind} objective is lowest, {curve[best]:.4g}, at step {int(steps[best]):,}.")
    return figure
