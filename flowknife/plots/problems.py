"""Figures of posteriors for each problem: arms, throws, basins, velocities; for others a scatter or corner plot."""

from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife.errors import InputError
from flowknife.plots import _style as style
from flowknife.plots._style import Values
from flowknife.plots.posterior import corner
from flowknife.problems import Problem, Ring

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 200
MOST_POINTS = 6000
LEVELS = (0.05, 0.95)  # ends of the 90 % band of the draws


def problem(problem: Problem | Ring, samples: Values, y: Values | None = None, truth: Values | None = None) -> "Figure":
    """Draws of the parameters of a problem, in a figure specific to the problem.

    Arms, throws, basins and velocities have their own figures; other problems are shown as points in the plane, or as a
    corner plot.

    Args:
        problem: any of `flowknife.problems`.
        samples: parameters, shape (n, dim); for a ring points, shape (n, 2).
        y: the observation, shape (y_dim,); for a ring the labels of the points, shape (n,).
        truth: the true parameters of y, shape (dim,), if known.

    Raises:
        InputError: for arrays of other shapes.
    """
    if isinstance(problem, Ring):
        return scatter(samples, labels=y)
    draw = {"kinematics": arm, "ballistics": trajectories, "gravity": basin, "dispersion": velocity_profile}
    if problem.name in draw:
        return draw[problem.name](problem, samples, y, truth)
    theta, _, truth = _read(problem, samples, y, truth)
    if problem.dim == 2:
        return scatter(theta, names=problem.prior.names, truth=truth)
    return corner(theta, problem.prior.names, truth, units=problem.prior.units)


def arm(problem: Problem, samples: Values, y: Values | None = None, truth: Values | None = None) -> "Figure":
    """Robot arms in sampled poses, whose hands should all be at y.

    Args:
        problem: `kinematics`.
        samples: poses, shape (n, 4).
        y: target position of the hand, shape (2,).
        truth: the true pose of y, shape (4,).
    """
    from matplotlib.collections import LineCollection

    from flowknife.problems._kinematics import joints

    theta, y, truth = _read(problem, samples, y, truth)
    shown = np.asarray(joints(theta[style.thin(len(theta), MOST_LINES)]))
    figure = style.blank(7.2, 5.9)
    axes = style.panel(figure.add_subplot(), xlabel="y1", ylabel="y2")
    axes.add_collection(LineCollection(list(shown), colors=style.MODEL, linewidths=0.7, alpha=_alpha(len(shown))))
    axes.axvline(0, color=style.MESH, linewidth=3, zorder=0)
    hands = shown[:, -1]
    axes.scatter(*hands.T, s=9, color=style.MODEL, linewidths=0, zorder=3, label="hands")
    if truth is not None:
        axes.plot(
            *np.asarray(joints(truth)).T, color=style.REAL, linewidth=2.2, marker="o", markersize=5, label="truth"
        )
    _target(axes, y)
    everything = shown.reshape(-1, 2)
    axes.set(xlim=style.span(everything[:, 0], margin=0.08), ylim=style.span(everything[:, 1], margin=0.08))
    axes.set_aspect("equal")
    style.legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # the arm may be anywhere inside
    style.headline(figure, f"{len(shown)} poses of the arm{_miss_distance(problem, theta, y, 'hand')}.")
    return figure


def trajectories(problem: Problem, samples: Values, y: Values | None = None, truth: Values | None = None) -> "Figure":
    """Trajectories from launch to landing, which should all land at y.

    Args:
        problem: `ballistics`.
        samples: parameters, shape (n, 4).
        y: target landing point, shape (1,).
        truth: the true parameters of y, shape (4,).
    """
    from matplotlib.collections import LineCollection

    from flowknife.problems._ballistics import flight_time, path

    theta, y, truth = _read(problem, samples, y, truth)

    def lines(rows):
        share = np.linspace(0, 1, 60)[:, None]
        return np.asarray(path(rows, share * np.asarray(flight_time(rows)))).swapaxes(0, 1)  # (rows, 60, 2)

    shown = lines(theta[style.thin(len(theta), MOST_LINES)])
    figure = style.blank(8.2, 4.6)
    axes = style.panel(figure.add_subplot(), xlabel="distance (m)", ylabel="height (m)")
    axes.add_collection(LineCollection(list(shown), colors=style.MODEL, linewidths=0.7, alpha=_alpha(len(shown))))
    axes.scatter(*shown[:, 0].T, s=6, color=style.OTHER, linewidths=0, zorder=3, label="launched")
    if truth is not None:
        axes.plot(*lines(truth[None])[0].T, color=style.REAL, linewidth=2.2, label="truth", zorder=4)
    _target(axes, None if y is None else np.array([y[0], 0.0]))
    axes.axhline(0, color=style.MESH, linewidth=1.2, zorder=0)
    everything = shown.reshape(-1, 2)
    axes.set(xlim=style.span(everything[:, 0], margin=0.05), ylim=style.span(everything[:, 1], margin=0.08))
    style.legend(axes, loc="upper right")
    style.headline(figure, f"{len(shown)} throws{_miss_distance(problem, theta, y, 'landing', ' m')}.")
    return figure


def basin(problem: Problem, samples: Values, y: Values | None = None, truth: Values | None = None) -> "Figure":
    """Gravity anomaly (above) and depth of the basin (below): the 90 % band of the draws, and some draws.

    Args:
        problem: `gravity`.
        samples: depths, km, shape (n, prisms).
        y: the anomaly, mGal, shape (stations,).
        truth: the true depths of y.
    """
    theta, y, truth = _read(problem, samples, y, truth)
    edges, stations = problem.geometry["edges"], problem.geometry["stations"]
    theta = theta[style.thin(len(theta), 1000)]
    fitted = np.asarray(problem.forward(theta))
    figure = style.blank(8.6, 6.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.5])
    style.panel(above, "Gravity anomaly", ylabel="mGal")
    style.panel(below, "Basin", xlabel="distance (km)", ylabel="depth (km)")
    above.plot(stations, fitted[style.thin(len(fitted), 40)].T, color=style.MODEL, linewidth=0.7, alpha=0.25)
    above.fill_between(stations, *np.quantile(fitted, LEVELS, axis=0), color=style.MODEL, alpha=0.3, linewidth=0)
    above.plot(stations, np.median(fitted, axis=0), color=style.MODEL, linewidth=1.4, label="of the draws")
    if y is not None:
        above.errorbar(stations, y, problem.noise or None, fmt="o", color=style.REAL, markersize=4, label="observed")
    style.legend(above, loc="upper center")
    _steps(below, edges, theta, truth)
    below.set_xlim(edges[0], edges[-1])
    top = max(np.quantile(theta, 0.995, axis=0).max(), 0.0 if truth is None else truth.max())
    below.set_ylim(1.08 * top, 0)
    style.legend(below, loc="lower left")
    style.headline(
        figure, f"Depths of the basin: median and 90 % band of {len(theta):,} draws{_fit(fitted, y, 'mGal')}."
    )
    return figure


def velocity_profile(
    problem: Problem, samples: Values, y: Values | None = None, truth: Values | None = None
) -> "Figure":
    """Shear velocity against depth (left) and phase velocity against period (right).

    Without disba, which computes the curves of the draws, the right panel shows only the observation.

    Args:
        problem: `dispersion`.
        samples: shear velocities, km/s, shape (n, 10).
        y: the phase velocities, km/s, shape (14,).
        truth: the true shear velocities of y.
    """
    theta, y, truth = _read(problem, samples, y, truth)
    theta = theta[style.thin(len(theta), 1000)]
    depth = np.concatenate([[0.0], np.cumsum(problem.geometry["thickness"])])
    figure = style.blank(9.0, 5.4)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.2])
    style.panel(left, "Below ground", "shear velocity (km/s)", "depth (km)")
    style.panel(right, "Surface waves", "period (s)", "phase velocity (km/s)")
    _steps(left, depth, theta, truth, upright=True)
    left.set_ylim(depth[-1], 0)
    style.legend(left, loc="lower left")
    periods = problem.geometry["periods"]
    try:
        fitted = np.asarray(problem.forward(theta[style.thin(len(theta), 60)]))
    except InputError:  # no disba
        fitted = None
    if fitted is not None:
        right.plot(periods, fitted.T, color=style.MODEL, linewidth=0.7, alpha=0.35)
        right.plot(periods, np.nanmedian(fitted, axis=0), color=style.MODEL, linewidth=1.4, label="of the draws")
    if y is not None:
        right.errorbar(periods, y, problem.noise or None, fmt="o", color=style.REAL, markersize=4, label="observed")
    if fitted is not None or y is not None:
        style.legend(right, loc="upper left")
    right.set_xscale("log")
    right.set_xticks([0.4, 0.6, 1, 2, 3], ["0.4", "0.6", "1", "2", "3"], minor=False)
    right.tick_params(which="minor", bottom=False, labelbottom=False)
    fit = "" if fitted is None else _fit(fitted, y, "km/s")
    style.headline(figure, f"Velocities below ground: median and 90 % band of {len(theta):,} draws{fit}.")
    return figure


def scatter(samples: Values, labels: Values | None = None, names: Any = None, truth: Values | None = None) -> "Figure":
    """Points of the plane, coloured by label.

    Args:
        samples: shape (n, 2).
        labels: one for each point.
        names: names of the two columns; default x1, x2.
        truth: the true parameters, shape (2,).

    Raises:
        InputError: for arrays of other shapes.
    """
    table = style.points(samples, "samples", 2)
    first, second = ("x1", "x2") if names is None else map(style.shortened, names)
    shown = style.thin(len(table), MOST_POINTS)
    shades = np.full(len(table), style.MODEL) if labels is None else style.point_colours(labels, len(table))
    figure = style.blank(6.4, 6.2)
    axes = style.panel(figure.add_subplot(), xlabel=first, ylabel=second)
    axes.scatter(*table[shown].T, s=style.marker_size(len(shown)), c=shades[shown], alpha=0.6, linewidths=0)
    _target(axes, truth, "truth")
    if truth is not None:
        style.legend(axes)
    axes.set_aspect("equal")
    kinds = "" if labels is None else f" of {len(np.unique(np.asarray(labels)))} classes"
    style.headline(figure, f"{len(table):,} draws{kinds}.")
    return figure


def _read(problem: Problem, samples: Values, y: Values | None, truth: Values | None):
    """The arrays as float64 in the shapes of the problem; non-finite draws are left out."""
    theta = style.points(samples, "samples", problem.dim)
    theta = theta[np.all(np.isfinite(theta), axis=1)]
    if len(theta) == 0:
        raise InputError("got no sample that is finite; expected some to draw")
    given = []
    for values, name, size in ((y, "y", problem.y_dim), (truth, "truth", problem.dim)):
        if values is not None and np.shape(values) != (size,):
            raise InputError(f"got {name} of shape {np.shape(values)}; expected ({size},)")
        given.append(None if values is None else np.asarray(values, np.float64))
    return theta, *given


def _alpha(count: int) -> float:
    """Opacity of lines, lower for many lines."""
    return float(np.clip(30 / count, 0.12, 0.8))


def _target(axes: "Axes", point: Any, label: str = "observed") -> None:
    """A cross with a white rim at a target."""
    if point is not None:
        x, y = np.asarray(point, np.float64)
        axes.plot(x, y, "x", color=style.PAPER, markersize=13, markeredgewidth=4, zorder=5)
        axes.plot(x, y, "x", color=style.REAL, markersize=11, markeredgewidth=2, zorder=6, label=label)


def _steps(axes: "Axes", edges: np.ndarray, theta: np.ndarray, truth: np.ndarray | None, upright: bool = False) -> None:
    """Piecewise constant values: some draws, their median and 90 % band, and the true values."""
    way = "horizontal" if upright else "vertical"
    low, high = np.quantile(theta, LEVELS, axis=0)
    axes.stairs(high, list(edges), baseline=low, orientation=way, fill=True, color=style.MODEL, alpha=0.25, linewidth=0)
    for row in theta[style.thin(len(theta), 25)]:
        axes.stairs(row, list(edges), baseline=None, orientation=way, color=style.MODEL, linewidth=0.6, alpha=0.35)
    median = np.median(theta, axis=0)
    axes.stairs(median, list(edges), baseline=None, orientation=way, color=style.MODEL, linewidth=1.6, label="median")
    if truth is not None:
        axes.stairs(truth, list(edges), baseline=None, orientation=way, color=style.REAL, linewidth=1.6, label="truth")


def _miss_distance(problem: Problem, theta: np.ndarray, y: np.ndarray | None, what: str, unit: str = "") -> str:
    """The median distance of the predictions from the observation, in words."""
    if y is None:
        return ""
    distance = np.linalg.norm(np.asarray(problem.forward(theta)) - y, axis=-1)
    return f"; the {what} misses y by {np.median(distance):.2g}{unit} (median)"


def _fit(fitted: np.ndarray, y: np.ndarray | None, unit: str) -> str:
    if y is None:
        return ""
    return f"; they fit the data to {np.sqrt(np.nanmean((fitted - y) ** 2)):.2g} {unit} (root mean square)"
