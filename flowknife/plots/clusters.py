"""Latents of slightly changed images, which should cluster around the original among the latents of all images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife.errors import InputError
from flowknife.plots import _style as style
from flowknife.plots._sheet import (
    GAP,
    INCH,
    MARGIN,
    Block,
    canvas,
    checked_images,
    place,
    rows_height,
    tile_size,
    write,
)
from flowknife.plots._style import Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX*<>"


def latent_clusters(cloud: Values, clusters: Values, changes: Sequence[str], images: Values) -> "Figure":
    """Latents of images and of slightly changed copies, in two principal directions.

    Args:
        cloud: latents of many images, shape (n, 2).
        clusters: latents of k images in m versions, shape (k, m, 2), the unchanged one first.
        changes: names of the versions, m of them.
        images: the images in all versions, uint8, shape (k, m, H, W, C).

    Raises:
        InputError: if shapes do not fit.
    """
    cloud, clusters, images = style.points(cloud, "cloud", 2), np.asarray(clusters, np.float64), np.asarray(images)
    if clusters.ndim != 3 or clusters.shape[2] != 2 or len(changes) != clusters.shape[1]:
        raise InputError(f"got clusters of shape {clusters.shape} and {len(changes)} changes; expected (k, m, 2) and m")
    if images.ndim != 5 or images.shape[:2] != clusters.shape[:2]:
        raise InputError(f"got images of shape {images.shape}; expected {(*clusters.shape[:2], 'H', 'W', 'C')}")
    rows = [checked_images(row) for row in images]
    side = round(5.6 * INCH)
    tile = tile_size(rows[0], len(changes), side, largest=0.8)
    left, top, title = round(5.9 * INCH), round(0.75 * INCH), round(0.24 * INCH)
    step = rows_height(len(changes), len(changes), tile, 0) + GAP
    height = max(round(5.6 * INCH), top + title + len(rows) * step + MARGIN)
    width = left + side + MARGIN
    figure, paper = canvas(width, height)
    within, apart = spreads(clusters, cloud)
    sentence = (
        f"Small changes of an image move it by {within:.1f} in this plane; two images are {apart:.1f} apart (medians)."
    )
    write(paper, MARGIN, MARGIN, sentence, size=12)
    for i, name in enumerate(changes):
        write(paper, left + i * (tile[0] + GAP) + tile[0] / 2, top, name, size=7.5, colour=style.QUIET, ha="center")
    for i, row in enumerate(rows):
        colour = style.CATEGORIES[i % len(style.CATEGORIES)]
        place(paper, Block(row), left, top + title + i * step, len(changes), tile, 0)
        middle = top + title + i * step + tile[1] / 2
        paper.scatter([left - 2.5 * GAP], [middle], s=60, c=colour, marker=_MARKERS[i % len(_MARKERS)], clip_on=False)
    square = round(5.6 * INCH)
    box = (0.6 * INCH / width, 1 - 0.9 * square / height, (left - 1.25 * INCH) / width, 0.77 * square / height)
    _scatter(figure.add_axes(box), cloud, clusters)
    return figure


def spreads(clusters: np.ndarray, cloud: np.ndarray) -> tuple[float, float]:
    """Median distance of changed images from their original, and median distance between two images."""
    within = np.linalg.norm(clusters[:, 1:] - clusters[:, :1], axis=-1)
    apart = np.linalg.norm(cloud - np.roll(cloud, 1, axis=0), axis=-1)
    return float(np.median(within)) if within.size else 0.0, float(np.median(apart))


def _scatter(axes: "Axes", cloud: np.ndarray, clusters: np.ndarray) -> None:
    style.panel(axes, xlabel="first principal direction of the latent", ylabel="second principal direction")
    kept = style.thin(len(cloud), 4000)
    axes.scatter(*cloud[kept].T, s=style.marker_size(len(kept)), c=style.MESH, alpha=0.5, linewidths=0)
    for i, points in enumerate(clusters):
        look: dict[str, Any] = {"c": style.CATEGORIES[i % len(style.CATEGORIES)], "marker": _MARKERS[i % len(_MARKERS)]}
        axes.scatter(*points[1:].T, s=34, alpha=0.75, linewidths=0, **look)
        axes.scatter(*points[:1].T, s=110, edgecolors="white", linewidths=0.8, zorder=4, **look)
    flat = clusters.reshape(-1, 2)
    axes.set_xlim(*style.span(cloud[:, 0], flat[:, 0], margin=0.06))
    axes.set_ylim(*style.span(cloud[:, 1], flat[:, 1], margin=0.06))
