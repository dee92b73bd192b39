"""Anomaly maps: where an image is less likely than held-out images are at the same position."""

import numpy as np
from jaxtyping import Float

from flowknife._batches import IMAGES_AT_ONCE
from flowknife.anomaly._features import NOTHING, Given, local_maps

Maps = list[np.ndarray]
"""A number for each position of each level with positions: shapes (n, h, w)."""

_POSITIONS = (0, 1, 2, 3)  # shifts for maps: in most models a position of the finest level is four pixels wide


def moved(pixels, by):
    """Images shifted down and to the right; the border is repeated."""
    height, width = pixels.shape[1:3]
    return np.pad(pixels, ((0, 0), (by, 0), (by, 0), (0, 0)), mode="edge")[:, :height, :width]


def maps_by_position(model, pixels, given: Given = NOTHING, most: int = IMAGES_AT_ONCE) -> list[Maps]:
    """Maps of the log density, for each shift of the images on the model's grid."""
    return [local_maps(model, moved(pixels, by), given, most) for by in _POSITIONS]


def anomaly_maps_of(maps: list[Maps], reference: list[Maps], shape: tuple[int, int]) -> Float[np.ndarray, "n h w"]:
    """Mean of the `standardise_maps` over all shifts, each shifted back, which is finer than the grid of a level."""
    found = [standardise_maps(here, normal, shape) for here, normal in zip(maps, reference, strict=True)]
    back = [
        np.pad(each, ((0, 0), (0, by), (0, by)), mode="edge")[:, by:, by:]
        for by, each in zip(_POSITIONS, found, strict=True)
    ]
    return np.mean(back, axis=0)


def standardise_maps(maps: Maps, reference: Maps, shape: tuple[int, int]) -> Float[np.ndarray, "n h w"]:
    """Standard deviations by which each position is less likely than in held-out images, over all levels, (n, h, w).

    Args:
        maps: maps of the images.
        reference: maps of held-out images, which are compared position by position.
        shape: (height, width) of the images.
    """
    total = np.zeros((len(maps[0]), *shape))
    for level, normal in zip(maps, reference, strict=True):
        spread = normal.std(axis=0) + 0.1 * normal.std()
        total += _enlarged((normal.mean(axis=0) - level) / spread, shape)
    return total / np.sqrt(len(maps))


def _enlarged(maps, shape):
    """Maps at the size of the images, with each value repeated over its pixels."""
    rows = np.arange(shape[0]) * maps.shape[1] // shape[0]
    columns = np.arange(shape[1]) * maps.shape[2] // shape[1]
    return maps[:, rows][:, :, columns]
