"""Anomaly features of an image (against transformed copies, its PNG file, training images) and their detector."""

import io
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from flowknife._batches import IMAGES_AT_ONCE
from flowknife._progress import Report, unreported
from flowknife.anomaly._features import NOTHING, SMALL, Given, bits_at, bits_of, level_bits, look
from flowknife.anomaly._maps import moved
from flowknife.anomaly._neighbours import Neighbours
from flowknife.diagnostics import Typicality


def _blurred(pixels):
    """Blur with a Gaussian of one pixel."""
    from scipy.ndimage import gaussian_filter

    return np.rint(gaussian_filter(pixels.astype(np.float32), (0, 1, 1, 0))).astype(np.uint8)


class View(NamedTuple):
    """A transformed copy of an image, to be compared with the image.

    Attributes:
        name: name of the transformation.
        change: the transformation of a batch of images.
        levels: levels whose bits/dim are compared.
    """

    name: str
    change: Callable[[np.ndarray], np.ndarray]
    levels: Literal["coarse", "finest", "all"]


VIEWS = (
    # An image and its flipped or inverted copy are equally simple. So complexity cancels in the difference of their
    # likelihoods, which tells whether orientation and brightness are those of the training images. The coarse levels
    # are compared, since they describe the whole image.
    View("upside_down", lambda pixels: pixels[:, ::-1], "coarse"),
    View("inverted", lambda pixels: 255 - pixels, "coarse"),
    # Blurring removes detail from a sharp image, but changes a blurred image little.
    View("blurred", _blurred, "finest"),
    # Photographs are not aligned to the model's grid. The edges of a pasted patch may be, and then show only after a
    # shift of the image.
    View("moved_1", lambda pixels: moved(pixels, 1), "all"),
    View("moved_2", lambda pixels: moved(pixels, 2), "all"),
)

ONE_SIDED = {
    "upside_down": 1.0,
    "inverted": 1.0,
    "blur_gap": 1.0,
    "local_energy": 1.0,
    # the only feature that detects images of the same strokes that resemble no training image
    "local_outlier": 1.6,
    # it varies most among normal images
    "complexity": 0.5,
}
"""The one-sided features (larger is more anomalous) and their weights (chosen by AUROC, see benchmarks/README.md)."""


class Features(NamedTuple):
    """Anomaly features of n images.

    Attributes:
        one_sided: the features of `ONE_SIDED` by name, each of shape (n,).
        levels: the `level_features`, shape (n, k).
        shifts: change of each level's bits/dim when the image is shifted, shape (n, c).
        latents: the latents, coarsest first, shape (n, H W C).
    """

    one_sided: dict[str, np.ndarray]
    levels: np.ndarray
    shifts: np.ndarray
    latents: np.ndarray

    @property
    def matrix(self) -> Float[np.ndarray, "n _"]:
        """All features of each image, in the order of the attributes."""
        return np.column_stack([*self.one_sided.values(), self.levels, self.shifts])


def png_bits(pixels: UInt8[np.ndarray, "n h w c"], bits: int) -> Float[np.ndarray, " n"]:
    """Bits per dimension of each image of `bits` bits as a PNG file.

    Simple images have a high likelihood. Subtracting the code length from the negative log-likelihood corrects for this
    complexity (Serrà et al. 2020, arXiv 1909.11480, eq. 2).
    """
    from PIL import Image

    sizes = []
    for image in pixels >> (8 - bits):
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG", optimize=True)
        sizes.append(8 * len(file.getvalue()))
    return np.asarray(sizes) / pixels[0].size


def complexity(
    pixels: UInt8[np.ndarray, "n h w c"], bits_per_dim: Float[np.ndarray, " n"], bits: int
) -> Float[np.ndarray, " n"]:
    """Bits/dim under a model minus bits/dim of a PNG file, for images of `bits` bits."""
    return bits_per_dim - png_bits(pixels, bits)


def features_of(
    model,
    pixels,
    neighbours: Neighbours,
    own: int = 0,
    report: Report = unreported,
    given: Given = NOTHING,
    most: int = IMAGES_AT_ONCE,
) -> Features:
    """The anomaly features of images.

        upside_down, inverted: bits/dim of the image minus bits/dim of the changed one, mean over the coarse levels
        blur_gap:              bits/dim of the blurred image minus bits/dim of the image, at the finest level
        local_energy:          log of the largest mean square of the finest latents at one position, over all shifts
        local_outlier:         local outlier score among the training images, see `Neighbours`
        complexity:            bits/dim under the model minus bits/dim of a PNG file

    Args:
        model: the image model.
        pixels: images, uint8 (n, H, W, C).
        neighbours: thumbnails of training images.
        own: number of leading images that are also the first training images.
        report: progress callback.
        given: conditions of the images, also used for their transformed copies.
        most: largest batch size.
    """

    def part(i: int) -> Report:
        return lambda fraction, text="": report((i + fraction) / (1 + len(VIEWS)), text)

    plain = look(model, pixels, part(0), given, most)
    own_bits = level_bits(model, plain.levels)
    ranges = {"coarse": _coarse_levels(model), "finest": range(own_bits.shape[1])[-1:], "all": range(own_bits.shape[1])}
    excess, energies = {}, [plain.local_energy]
    for i, view in enumerate(VIEWS, start=1):
        changed, levels = view.change(pixels), ranges[view.levels]
        if view.levels == "all":
            found = look(model, changed, part(i), given, most)
            energies.append(found.local_energy)
            bits = level_bits(model, found.levels)
        else:
            bits = bits_at(model, changed, levels, part(i), given, most)
        excess[view.name] = own_bits[:, levels] - bits
    one_sided = {
        "upside_down": excess["upside_down"].mean(axis=1),
        "inverted": excess["inverted"].mean(axis=1),
        "blur_gap": -excess["blurred"][:, 0],
        "local_energy": np.max(energies, axis=0),
        "local_outlier": neighbours.local_outlier(pixels, own),
        "complexity": complexity(pixels, bits_of(model, plain.levels), model.partition.left[0].law.bits),
    }
    shifts = np.concatenate([excess[view.name] for view in VIEWS if view.levels == "all"], axis=1)
    return Features({name: one_sided[name] for name in ONE_SIDED}, plain.levels, shifts, plain.latents)


def _coarse_levels(model) -> range:
    """The coarsest levels, at least one, with at most `SMALL` latents in total."""
    sizes = np.cumsum([block.size for block in model.partition.right])
    return range(max(int(np.sum(sizes <= SMALL)), 1))


def fit_detector(features: Features, training: int) -> Typicality:
    """The detector of images: fitted to the first `training` rows of the features, calibrated on the others.

    The shifts have their own Mahalanobis distance; pooled with the other features, their signal would be diluted.
    """
    matrix, shifts = features.matrix, features.shifts.shape[1]
    weights = dict(enumerate(ONE_SIDED.values()))
    apart = range(matrix.shape[1] - shifts, matrix.shape[1])
    return Typicality.fit(matrix[:training], matrix[training:], upward=weights, apart=apart)
