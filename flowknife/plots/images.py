"""Figures of images: grids of real and simulated images, extremes, outliers, and images in latent space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat

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
    sheet,
    tile_size,
    write,
)
from flowknife.plots._style import Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLOUD_COLUMNS = 5


def image_grid(
    images: Values,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    heading: str | None = None,
) -> "Figure":
    """Images in a grid.

    Args:
        images: uint8, shape (n, H, W, C).
        columns: images in a row; chosen for a landscape format if None.
        titles: one below each image.
        heading: a sentence above all.

    Raises:
        InputError: if the images are not uint8 images or the titles do not fit.
    """
    images = checked_images(images)
    columns = _columns(len(images)) if columns is None else max(min(columns, len(images)), 1)
    titles = () if titles is None else [str(title) for title in titles]
    if titles and len(titles) != len(images):
        raise InputError(f"got {len(titles)} titles for {len(images)} images; expected one each")
    return sheet([Block(images, captions=titles)], columns, heading or "")


def _columns(count: int) -> int:
    """Columns of a landscape grid, preferably without a single image in the last row."""
    ideal = min(max(round(np.sqrt(1.7 * count)), 1), 12)
    near = [c for c in range(max(ideal - 1, 1), min(ideal + 2, 12) + 1) if count % c == 0]
    return min(near, key=lambda c: abs(c - ideal), default=ideal)


def real_regenerated_simulated(real: Values, regenerated: Values, simulated: Values) -> "Figure":
    """Three blocks: real images, the same images encoded and decoded, and samples of the model.

    Args:
        real: uint8, shape (n, H, W, C).
        regenerated: decode(encode(real)), same shape.
        simulated: shape (m, H, W, C).

    Raises:
        InputError: if regenerated does not match real, or for anything but uint8 images.
    """
    real, regenerated = checked_images(real, "real"), checked_images(regenerated, "regenerated")
    simulated = checked_images(simulated, "simulated")
    if real.shape != regenerated.shape:
        raise InputError(
            f"got regenerated of shape {regenerated.shape}; expected {real.shape}, one for each real image"
        )
    largest = int(np.abs(real.astype(int) - regenerated.astype(int)).max())
    differ = "exactly" if largest == 0 else f"to within {largest} of 255 levels"
    blocks = [
        Block(real, "Real", colour=style.REAL),
        Block(regenerated, "Regenerated", colour=style.QUIET),
        Block(simulated, "Simulated", colour=style.MODEL),
    ]
    columns = min(max(len(real), len(simulated)), 10)
    return sheet(blocks, columns, f"The model reconstructs real images {differ}, and generates new ones.")


def compare(groups: Sequence[tuple[str, Values]], heading: str = "") -> "Figure":
    """Blocks of images under their names, for visual comparison.

    Args:
        groups: pairs (name, uint8 images of shape (n, H, W, C)).
        heading: a sentence above all.

    Raises:
        InputError: if there is no group, or for anything but uint8 images.
    """
    if not len(groups):
        raise InputError("got no groups; expected at least one pair (name, images)")
    blocks = [Block(checked_images(images, name), name) for name, images in groups]
    return sheet(blocks, min(max(len(block.images) for block in blocks), 10), heading)


def temperatures(rows: Sequence[tuple[SupportsFloat, Values]]) -> "Figure":
    """Simulated images, one row for each temperature of the latent.

    Args:
        rows: pairs (temperature, uint8 images of shape (n, H, W, C)).

    Raises:
        InputError: if there is no row, or for anything but uint8 images.
    """
    if not len(rows):
        raise InputError("got no rows; expected at least one pair (temperature, images)")
    blocks = [Block(checked_images(images), f"T\xa0=\xa0{float(temperature):g}") for temperature, images in rows]
    columns = min(max(len(block.images) for block in blocks), 12)
    return sheet(
        blocks,
        columns,
        "Images drawn at several temperatures T of the latent: a lower T gives typical, a higher T varied images.",
    )


def interpolation(images: Values) -> "Figure":
    """A strip of images that interpolates in latent space from the first to the last image.

    Args:
        images: uint8, shape (k, H, W, C).

    Raises:
        InputError: if the images are not uint8 images.
    """
    images = checked_images(images)
    columns = len(images) if len(images) <= 12 else -(-len(images) // (-(-len(images) // 12)))
    return sheet([Block(images)], columns, "Interpolation in latent space, from the first image to the last.")


def closest_farthest(
    closest_images: Values, closest_radii: Values, farthest_images: Values, farthest_radii: Values
) -> "Figure":
    """The images closest to the centre of the latent space and those farthest from it, with their radii |z|.

    Args:
        closest_images: uint8, shape (n, H, W, C).
        closest_radii: shape (n,).
        farthest_images: shape (m, H, W, C).
        farthest_radii: shape (m,).

    Raises:
        InputError: if images and radii do not fit.
    """
    blocks = []
    for images, radii, label in (
        (closest_images, closest_radii, "Closest to the centre"),
        (farthest_images, farthest_radii, "Farthest from the centre"),
    ):
        images, radii = checked_images(images, f"images {label.lower()}"), np.asarray(radii, dtype=np.float64)
        if radii.shape != (len(images),):
            raise InputError(f"got {radii.size} radii for {len(images)} images; expected one each")
        blocks.append(Block(images, label, [_radius(r) for r in radii]))
    columns = min(max(len(block.images) for block in blocks), 8)
    return sheet(
        blocks, columns, "Images by their latent radius |z|: closest to the centre above, farthest from it below."
    )


def _radius(radius: float) -> str:
    return f"{radius:.{1 if radius >= 10 else 2}f}" if np.isfinite(radius) else "–"


def outliers(
    images: Values,
    p_values: Values,
    names: Sequence[str] | None = None,
    most: int = 40,
    alpha: float | int = 0.05,
) -> "Figure":
    """Images sorted by anomaly p-value, smallest first.

    Args:
        images: uint8, shape (n, H, W, C).
        p_values: shape (n,); NaN goes last.
        names: names of the images, such as their files.
        most: largest number of images to show.
        alpha: images with a smaller p-value are flagged, as in `score`.

    Raises:
        InputError: if images, p-values and names do not fit.
    """
    images, p_values = checked_images(images), np.asarray(p_values, dtype=np.float64)
    names = [""] * len(images) if names is None else [style.shortened(name, 200) for name in names]
    if p_values.shape != (len(images),) or len(names) != len(images):
        raise InputError(f"got {len(images)} images, {p_values.size} p-values, {len(names)} names; expected one each")
    order = np.argsort(p_values, kind="stable")[:most]
    captions = [f"p {_probability(p_values[i])}\n{names[i]}".rstrip("\n") for i in order]
    flagged = int((p_values < alpha).sum())
    blocks = [
        Block(images[part], label, [captions[i] for i in rank], colour)
        for part, rank, label, colour in _split(order, flagged, alpha)
    ]
    columns = min(max(len(block.images) for block in blocks), 8)
    shown = (
        f"The {len(order)} most anomalous of {len(images):,} images"
        if len(order) < len(images)
        else "All images by p-value"
    )
    return sheet(blocks, columns, f"{shown}, smallest p first; {flagged:,} of {len(images):,} have p < {alpha:g}.")


def _split(order: np.ndarray, flagged: int, alpha: float | int) -> list[tuple[np.ndarray, range, str, str]]:
    """The flagged images, then the rest; empty parts are left out."""
    cut = min(flagged, len(order))
    parts = [
        (order[:cut], range(cut), f"Flagged, p\xa0<\xa0{alpha:g}", style.OTHER),
        (order[cut:], range(cut, len(order)), "Not flagged", style.QUIET),
    ]
    return [part for part in parts if len(part[0])]


def _probability(p: float) -> str:
    if not np.isfinite(p):
        return "unknown"
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


@dataclass(frozen=True)
class _Group:
    """Points of one kind in the latent space, the first of them with a number and an image."""

    label: str
    points: np.ndarray
    images: np.ndarray
    colour: str
    marker: str
    first: int

    @property
    def numbers(self) -> list[str]:
        return [str(self.first + i) for i in range(len(self.images))]


def latent_cloud(
    train: Values,
    simulated: Values,
    other: Values | None = None,
    simulated_images: Values | None = None,
    other_images: Values | None = None,
    most: int = 10,
) -> "Figure":
    """Latents of images in two principal directions, with some of the images, numbered, at the side.

    Args:
        train: latents of training images, shape (n, 2).
        simulated: latents of simulated images, shape (m, 2).
        other: latents of images of another kind, shape (k, 2).
        simulated_images: images of the first rows of `simulated`, uint8, shape (at most m, H, W, C).
        other_images: images of the first rows of `other`.
        most: numbered images of each kind.

    Raises:
        InputError: if there are more images than points, or a shape does not fit.
    """
    train = style.points(train, "train", 2)
    groups = [_group("Simulated", simulated, simulated_images, style.MODEL, "o", 1, most)]
    if other is not None and np.size(other):
        first = 1 + len(groups[0].images)
        groups.append(_group("Others", other, other_images, style.OTHER, "s", first, most))

    shown = [group for group in groups if len(group.images)]
    side = round(4.9 * INCH) if shown else 0
    tiles = [tile_size(group.images, CLOUD_COLUMNS, side, largest=0.9) for group in shown]
    heights = [rows_height(len(group.images), CLOUD_COLUMNS, tile, 1) for group, tile in zip(shown, tiles, strict=True)]
    top, title, cloud = round(0.55 * INCH), round(0.24 * INCH), round((5.9 if shown else 7.2) * INCH)
    height = max(round(5.6 * INCH), top + sum(heights) + len(shown) * (title + 4 * GAP))
    figure, paper = canvas(cloud + side + MARGIN, height)
    kinds = "training and simulated images" if len(groups) == 1 else "training, simulated and other images"
    write(paper, MARGIN, MARGIN, f"Latents of {kinds} in two principal directions.", size=12)
    for group, tile, extent in zip(shown, tiles, heights, strict=True):
        write(paper, cloud, top, group.label, size=10, colour=group.colour)
        block = Block(group.images, captions=group.numbers, colour=group.colour)
        place(paper, block, cloud, top + title, CLOUD_COLUMNS, tile, 1)
        top += title + extent + 4 * GAP

    width = cloud + side + MARGIN
    square = round(5.6 * INCH)
    box = (0.6 * INCH / width, 1 - 0.9 * square / height, (cloud - INCH) / width, 0.81 * square / height)
    _scatter_groups(figure.add_axes(box), train, groups)
    return figure


def _group(
    label: str, points: Values, images: Values | None, colour: str, marker: str, first: int, most: int
) -> _Group:
    table = style.points(points, label.lower(), 2)
    stack = (
        np.zeros((0, 1, 1, 1), np.uint8)
        if images is None or not np.size(images)
        else checked_images(images, f"{label.lower()} images")
    )
    if len(stack) > len(table):
        raise InputError(f"got {len(stack)} {label.lower()} images for {len(table)} points; expected at most one each")
    return _Group(label, table, stack[:most], colour, marker, first)


def _scatter_groups(axes: "Axes", train: np.ndarray, groups: Sequence[_Group]) -> None:
    style.panel(axes, xlabel="first principal direction of the latent", ylabel="second principal direction")
    kept = style.thin(len(train), 4000)
    axes.scatter(*train[kept].T, s=style.marker_size(len(kept)), c=style.REAL, alpha=0.4, linewidths=0, label="real")
    for group in groups:
        count = len(group.images)
        look: dict[str, Any] = {"c": group.colour, "marker": group.marker}
        axes.scatter(*group.points[count:].T, s=26, alpha=0.75, linewidths=0, label=group.label.lower(), **look)
        axes.scatter(*group.points[:count].T, s=125, edgecolors="white", linewidths=0.8, zorder=4, **look)
        for point, number in zip(group.points, group.numbers, strict=False):
            if not np.isfinite(point).all():
                continue
            text: dict[str, Any] = {
                "fontsize": 7,
                "color": "white",
                "ha": "center",
                "va": "center_baseline",
                "zorder": 5,
            }
            axes.text(point[0], point[1], number, family=style.family(), clip_on=True, **text)
    axes.set_xlim(*style.span(train[:, 0], *(group.points[:, 0] for group in groups), margin=0.06))
    axes.set_ylim(*style.span(train[:, 1], *(group.points[:, 1] for group in groups), margin=0.06))
    style.legend(axes, loc="best")
