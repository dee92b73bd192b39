"""Figures of classifiers: confusion, reliability, latents and samples by class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flowknife.diagnostics import Reliability, principal_plane
from flowknife.errors import InputError
from flowknife.plots import _style as style
from flowknife.plots._sheet import Block, checked_images, sheet
from flowknife.plots._style import Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NUMBERS = 20
MOST_POINTS = 3000


def confusion(matrix: Values, names: Sequence[str] | None = None) -> "Figure":
    """Confusion matrix: the share of each true class (row) that was predicted as each class (column).

    Args:
        matrix: counts, shape (K, K), e.g. of `diagnostics.confusion`.
        names: names of the K classes; 0, 1, ... if None.

    Raises:
        InputError: if the matrix is not square, holds anything but counts, or the names do not fit.
    """
    counts = np.asarray(matrix, float)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size or not np.all(counts >= 0):
        raise InputError(f"got a matrix of shape {counts.shape}; expected counts of shape (K, K), none negative")
    classes = len(counts)
    names = _names(names, classes)
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1)

    side = float(np.clip(0.55 * classes, 2.6, 8.5))
    figure = style.blank(side + 2.0, side + 1.4)
    axes = style.panel(figure.add_subplot(), xlabel="predicted class", ylabel="true class")
    axes.imshow(share, cmap=style.intensity(), vmin=0, vmax=1.15)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    crowded = max(map(len, names)) * classes > 11 * side
    axes.set_xticks(range(classes), names, rotation=60 if crowded else 0, ha="right" if crowded else "center")
    axes.set_yticks(range(classes), names)
    if classes <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(counts):
            if value:
                ink = style.PAPER if share[row, column] > 0.5 else style.INK
                axes.text(
                    column, row, f"{value:,.0f}", ha="center", va="center", fontsize=8, color=ink, family=style.family()
                )
    right, total = np.trace(counts), counts.sum()
    wrong = counts - np.diag(np.diag(counts))
    row, column = np.unravel_index(np.argmax(wrong), wrong.shape)
    worst = (
        f"; most often {names[row]} is predicted as {names[column]} ({wrong[row, column]:,.0f})" if wrong.any() else ""
    )
    style.headline(figure, f"{right:,.0f} of {total:,.0f} right ({right / max(total, 1):.1%}){worst}.")
    return figure


def _names(names, count):
    names = [str(i) for i in range(count)] if names is None else [style.shortened(name) for name in names]
    if len(names) != count:
        raise InputError(f"got {len(names)} names; expected {count}, one per class")
    return names


def reliability(result: Reliability) -> "Figure":
    """Reliability diagram: accuracy against confidence with sampling noise, and a histogram of the confidence.

    Args:
        result: the result of `diagnostics.reliability`.
    """
    filled = result.counts > 0
    confidence, accuracy, counts = result.confidence[filled], result.accuracy[filled], result.counts[filled]
    figure = style.blank(5.6, 6.4)
    upper, lower = figure.subplots(2, 1, height_ratios=[3.4, 1], sharex=True)
    style.panel(upper, ylabel="accuracy")
    style.panel(lower, xlabel="confidence, the probability of the predicted class", ylabel="items")
    upper.axline((0, 0), slope=1, color=style.INK, linewidth=1.0, linestyle=(0, (4, 3)), label="calibrated")
    noise = 1.96 * np.sqrt(confidence * (1 - confidence) / counts)
    low, high = (np.clip(confidence + sign * noise, 0, 1) for sign in (-1, 1))
    upper.vlines(confidence, low, high, color=style.RULE, linewidth=7, label="95% of calibrated classifiers")
    upper.plot(confidence, accuracy, "o-", color=style.MODEL, markersize=5, linewidth=1.4, label="this classifier")
    start = max(float(result.edges[:-1][filled].min()), 0.0)
    upper.set(xlim=(start, 1.0), ylim=(min(start, float(accuracy.min())) - 0.02, 1.02))
    style.legend(upper, loc="best")
    lower.bar(result.edges[:-1], result.counts, np.diff(result.edges), align="edge", color=style.MESH, linewidth=0)
    style.headline(figure, result.verdict)
    return figure


def latent_classes(
    z: Values, labels: Values, names: Sequence[str] | None = None, outliers: Values | None = None
) -> "Figure":
    """Latents coloured by class, in the two directions that separate the classes best; 2-d latents are unchanged.

    Args:
        z: latents, shape (n, d).
        labels: classes, integers 0 ... K - 1, shape (n,); negative for unknown.
        names: names of the K classes.
        outliers: latents of other items, shape (m, d).

    Raises:
        InputError: for shapes that do not fit.
    """
    z = style.points(z, "z")
    classes = _labels(labels, len(z), names)
    names = _names(names, max(int(classes.max()) + 1, 1) if names is None else len(names))
    outside = (
        np.zeros((0, z.shape[1]))
        if outliers is None or not np.size(outliers)
        else style.points(outliers, "outliers", z.shape[1])
    )
    if z.shape[1] == 1:
        raise InputError("got latents of one number; expected at least two; try plots.latent_histogram")
    kept = style.thin(len(z), MOST_POINTS)
    plane, beside = z[kept], outside
    if z.shape[1] > 2:
        centre, directions = _separating_plane(plane, classes[kept])
        plane, beside = ((points - centre) @ directions for points in (plane, outside))
    figure = style.blank(7.6, 5.6)
    axes = style.panel(figure.add_subplot(), **_directions(z.shape[1]))
    _scatter_classes(axes, plane, classes[kept], names)
    if len(beside):
        axes.scatter(*beside.T, s=22, c=style.INK, marker="x", linewidths=0.9, label="outliers")
    # far outliers must not compress the classes to a dot
    limits = np.array([style.span(plane[:, i], margin=0.4 if len(beside) else 0.05) for i in range(2)])
    axes.set(xlim=limits[0], ylim=limits[1])
    beyond = int(np.sum(np.any((beside < limits[:, 0]) | (beside > limits[:, 1]), axis=1)))
    if beyond:
        axes.set_xlabel(f"{axes.get_xlabel()}  ({beyond:,} outliers beyond these axes)")
    style.legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    many = f" and {len(outside):,} outliers" if len(outside) else ""
    style.headline(figure, f"Latents of {len(z):,} items of {len(names)} classes{many}.")
    return figure


def _labels(labels, count, names):
    labels = np.asarray(labels)
    whole = labels.astype(int) if labels.dtype.kind in "iufb" else None
    top = np.inf if names is None else len(names)
    if whole is None or whole.shape != (count,) or np.any(whole != labels) or np.any(whole >= top):
        raise InputError(
            f"got labels of shape {labels.shape} and dtype {labels.dtype}; expected ({count},) whole numbers, the "
            f"places of the {'' if names is None else f'{len(names)} '}classes"
        )
    return whole


def _directions(dimension):
    if dimension == 2:
        return {"xlabel": "z1", "ylabel": "z2"}
    return {"xlabel": "first direction that separates the classes", "ylabel": "second direction"}


def _separating_plane(z, classes):
    """Mean, and two principal directions of the class means; for two classes the second is from within the classes."""
    centre, known = z.mean(axis=0), np.unique(classes[classes >= 0])
    members = [z[classes == label] for label in known] or [z]
    means = np.stack([np.sqrt(len(points)) * (points.mean(axis=0) - centre) for points in members])
    within = np.concatenate([points - points.mean(axis=0) for points in members])
    _, sizes, between = np.linalg.svd(means, full_matrices=False)
    found = between[sizes > 1e-6 * max(sizes.max(), 1e-300)][:2] if len(known) > 1 else between[:0]
    _, _, rest = np.linalg.svd(within - within @ found.T @ found, full_matrices=False)
    return centre, np.concatenate([found, rest])[:2].T


def _scatter_classes(axes: "Axes", plane: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> None:
    """Points in the colour of their class, drawn in random order so that no class hides another."""
    from matplotlib.colors import to_rgba_array

    colours = to_rgba_array([*_colours(len(names)), style.MESH])
    order = np.random.default_rng(0).permutation(len(plane))
    index = np.where(classes < 0, len(names), classes)[order]
    size = style.marker_size(len(plane))
    axes.scatter(*plane[order].T, s=size, c=colours[index], alpha=0.65, linewidths=0)
    for label, (name, colour) in enumerate(zip([*names, "unknown"], colours, strict=True)):
        if np.any(index == label):
            axes.scatter([], [], s=24, color=colour, linewidths=0, label=name)


def _colours(count):
    """One colour per class: the qualitative scheme, then evenly spaced shades."""
    if count <= 3:
        return [style.REAL, style.MODEL, style.OTHER][:count]
    if count <= len(style.CATEGORIES):
        return list(style.CATEGORIES[:count])
    return [style.continuous()(i / (count - 1)) for i in range(count)]


def class_samples(
    x_by_class: Sequence[Values],
    names: Sequence[str] | None = None,
    heading: str | None = None,
    reference: Values | None = None,
    columns: Sequence[str] | None = None,
) -> "Figure":
    """Samples for each class: rows of images, or points coloured by class.

    Args:
        x_by_class: one array for each class: uint8 images (n, H, W, C), or vectors (n, d); vectors with d > 2 are
            projected onto two principal directions of the standardised columns.
        names: names of the classes; 0, 1, ... if None.
        heading: heading, if the items are not samples of a model.
        reference: vectors that define the principal directions, so that figures are comparable; default those shown.
        columns: names of the two columns of vectors (n, 2); x1 and x2 if None.

    Raises:
        InputError: for no class, names that do not fit, or arrays that are neither.
    """
    if not len(x_by_class):
        raise InputError("got no class; expected one array for each class")
    names = _names(names, len(x_by_class))
    if np.ndim(x_by_class[0]) == 4:
        blocks = [Block(checked_images(x, f"class {name}"), name) for x, name in zip(x_by_class, names, strict=True)]
        across = min(max(len(block.images) for block in blocks), 12)
        return sheet(blocks, across, heading or "Images drawn from the model, class by class.")
    first = style.points(x_by_class[0], f"class {names[0]}")
    tables = [style.points(x, f"class {name}", first.shape[1]) for x, name in zip(x_by_class, names, strict=True)]
    if first.shape[1] == 1:
        raise InputError("got vectors of one number; expected at least two; try plots.samples for each class")
    tables = [table[style.thin(len(table), max(MOST_POINTS // len(tables), 50))] for table in tables]
    classes = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    plane = np.concatenate(tables)
    plain = first.shape[1] == 2
    if not plain:
        plane = principal_plane(plane if reference is None else style.points(reference, "reference"), plane)[1]
    limits = [style.span(plane[:, i], margin=0.05) for i in range(2)]
    flatness = np.ptp(limits[1]) / np.ptp(limits[0])
    equal = plain and 0.4 < flatness < 2.5
    figure = style.blank(7.2, float(np.clip(5.2 * flatness + 1.1, 3.2, 5.6)) if equal else 5.6)
    across, up = ("x1", "x2") if columns is None else map(style.shortened, columns)
    if not plain:
        across, up = "first principal direction", "second principal direction"
    axes = style.panel(figure.add_subplot(), xlabel=across, ylabel=up)
    _scatter_classes(axes, plane, classes, names)
    axes.set(xlim=limits[0], ylim=limits[1])
    if equal:
        axes.set_aspect("equal")
    style.legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    style.headline(figure, heading or f"Rows drawn from the model for each of {len(names)} classes.")
    return figure
