"""Rows of images: interpolation, attributes, resampled levels, nearest images, anomaly maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, SupportsFloat

import numpy as np
from jaxtyping import UInt8

from flowknife._files import replacing
from flowknife.errors import InputError
from flowknife.plots import _style as style
from flowknife.plots._sheet import Block, checked_images, sheet
from flowknife.plots._style import Values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FRAME_MS = 120
_HOLD_MS = 600  # pause at both ends
_GIF_SIDE = 256
_STRONGEST = 3.0  # standard deviations at which the colour of a heat map saturates


def along(images: Values, strengths: Sequence[SupportsFloat], heading: str = "") -> "Figure":
    """Images moved along a latent direction, one row for each image.

    Args:
        images: uint8, shape (n, k, H, W, C).
        strengths: step size of each column.
        heading: a sentence above all.

    Raises:
        InputError: if the strengths do not fit, or for anything but uint8 images.
    """
    rows = [checked_images(row) for row in np.asarray(images)]
    if not rows or len(rows[0]) != len(strengths):
        raise InputError(
            f"got {len(strengths)} strengths for images of shape {np.shape(images)}; expected (n, k, H, W, C) and k"
        )
    captions = [f"{float(strength):+g}" if float(strength) else "0" for strength in strengths]
    blocks = [Block(row, captions=captions if i == len(rows) - 1 else ()) for i, row in enumerate(rows)]
    return sheet(blocks, len(captions), heading or "Images moved along a latent direction; 0 is the image itself.")


def nearest(images: Values, neighbours: Values, distances: Values, reference: SupportsFloat | None = None) -> "Figure":
    """Images above their nearest training images.

    Args:
        images: samples, uint8, shape (n, H, W, C).
        neighbours: neighbours of each image, uint8, shape (n, k, h, w, C), the nearest first; they may be smaller.
        distances: distances to the neighbours, in grey levels, shape (n, k).
        reference: the median distance of held-out images to their nearest training image.

    Raises:
        InputError: if shapes do not fit, or for anything but uint8 images.
    """
    images, distances = checked_images(images), np.asarray(distances, np.float64)
    near = np.asarray(neighbours)
    if near.ndim != 5 or near.shape[:2] != distances.shape or len(near) != len(images):
        raise InputError(
            f"got neighbours of shape {near.shape} and distances of shape {distances.shape} for "
            f"{len(images)} images; expected (n, k, h, w, C) and (n, k)"
        )
    blocks = [Block(images, "Simulated", colour=style.MODEL)]
    for i in range(near.shape[1]):
        label = "Nearest in training" if i == 0 else f"Neighbour {i + 1}"
        captions = [f"{distance:.1f}" for distance in distances[:, i]]
        blocks.append(Block(enlarged(checked_images(near[:, i]), images.shape[1:3]), label, captions, style.REAL))
    rest = "" if reference is None else f"; of new real images: {float(reference):.1f}"
    return sheet(
        blocks,
        len(images),
        "Generated or memorised? Each image above its nearest training images, with the RMS distance in grey levels. "
        f"Median distance to the nearest: {np.median(distances[:, 0]):.1f}{rest}.",
    )


def resampled(image: Values, rows: Sequence[tuple[str, Values]]) -> "Figure":
    """The effect of each level: an image, and copies with the latent of one level resampled.

    Args:
        image: the image itself, uint8, shape (H, W, C).
        rows: pairs (name of the level, uint8 images with that level resampled, shape (n, H, W, C)).

    Raises:
        InputError: if there is no row, or for anything but uint8 images.
    """
    if not rows:
        raise InputError("got no rows; expected at least one pair (level, images)")
    itself = checked_images(np.asarray(image)[None], "image")
    blocks = [
        Block(np.concatenate([itself, checked_images(images, name)]), f"{name} resampled") for name, images in rows
    ]
    columns = max(len(block.images) for block in blocks)
    return sheet(
        blocks,
        columns,
        "The image, then copies with one level of its latent resampled and the others kept.",
    )


def anomaly_maps(images: Values, maps: Values, captions: Sequence[str] = ()) -> "Figure":
    """Each image above its anomaly map.

    Args:
        images: uint8, shape (n, H, W, C).
        maps: at each position, standard deviations by which it is less likely than in held-out images, shape (n, H, W).
        captions: one below each image.

    Raises:
        InputError: if images, maps and captions do not fit.
    """
    images = checked_images(images)
    captions = list(captions) or [""] * len(images)
    heat = heat_maps(images, maps)
    if len(captions) != len(images):
        raise InputError(f"got {len(captions)} captions for {len(images)} images; expected one each")
    columns, blocks = min(len(images), 10), []
    for start in range(0, len(images), columns):
        part = slice(start, start + columns)
        blocks += [Block(images[part], "Image"), Block(heat[part], "Surprisal", captions[part])]
    return sheet(
        blocks,
        columns,
        "Anomaly maps: orange where an image is less likely than held-out images, blue where it is more likely; "
        f"full colour at {_STRONGEST:g} standard deviations.",
    )


def heat_maps(images: Values, maps: Values) -> UInt8[np.ndarray, "n h w 3"]:
    """Images in pale grey, overlaid with the colours of their maps: orange for positive values, blue for negative ones.

    Args:
        images: uint8, shape (n, H, W, C).
        maps: standard deviations, shape (n, H, W).

    Raises:
        InputError: if they do not fit.
    """
    images, maps = checked_images(images), np.asarray(maps, np.float64)
    if maps.shape != images.shape[:3]:
        raise InputError(
            f"got maps of shape {maps.shape} for images of shape {images.shape}; expected {images.shape[:3]}"
        )
    more, less = (np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) for code in (style.MODEL, style.REAL))
    grey = 150 + images.mean(axis=-1, keepdims=True) * (105 / 255)
    strength = np.clip(np.nan_to_num(maps) / _STRONGEST, -1, 1)[..., None]
    # deviations up to one standard deviation are normal and stay pale
    cover = np.abs(strength) ** 1.5 * 0.9
    colour = np.where(strength > 0, more, less)
    return np.round((1 - cover) * grey + cover * colour).astype(np.uint8)


def interpolation_animation(path: str | Path, images: Values) -> Path:
    """Write a looping GIF from the first image to the last and back.

    Args:
        path: the file to write.
        images: uint8, shape (k, H, W, C), at least 2.

    Raises:
        InputError: if there are fewer than 2 images, or for anything but uint8 images.
        StorageError: if the file cannot be written.
    """
    from PIL import Image

    images = checked_images(images)
    if len(images) < 2:
        raise InputError("got 1 image; expected at least 2, the ends of the way")
    scale = max(_GIF_SIDE // max(images.shape[1:3]), 1)
    shown = enlarged(images, (images.shape[1] * scale, images.shape[2] * scale))
    there = [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in shown]
    loop = there + there[-2:0:-1]
    times = [_HOLD_MS if i in (0, len(there) - 1) else _FRAME_MS for i in range(len(loop))]
    with replacing(path) as place:
        loop[0].save(place, "GIF", save_all=True, append_images=loop[1:], duration=times, loop=0)
    return Path(path)


def enlarged(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images enlarged to (height, width) by repeating pixels."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, images.shape[1:3], strict=True))
    return images[:, rows][:, :, columns]
