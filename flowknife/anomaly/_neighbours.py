"""The training images most similar to an image, and its local outlier score."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from flowknife._batches import in_batches
from flowknife._progress import Report, unreported
from flowknife._types import sizes_agree
from flowknife.errors import InputError

ImageArray = UInt8[np.ndarray, "_ _ _ _"]

_THUMBNAIL = 32  # largest side of the thumbnail of a training image

_CANDIDATES = 40  # images nearest at half size, for which the exact distance is computed

_NEAREST = 5  # neighbours in the mean distance

_AROUND = 20  # neighbours whose own mean distances are compared with it


class Nearest(NamedTuple):
    """The training images most similar to each of n images.

    Attributes:
        images: thumbnails, uint8 (n, k, h, w, C), the nearest first.
        distances: distances of the thumbnails in grey levels per pixel, see `Neighbours`, shape (n, k).
    """

    images: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True)
class Neighbours:
    """Thumbnails of training images, and the mean distance of each from its nearest neighbours.

    The distance of two images is that of their gradients, where each position may shift by one pixel, since such a
    shift of a stroke does not change the object:

        d(x, t)^2 = mean over p of min over |s| <= 1 of mean over |q| <= 1 of |grad x(p + q) - grad t(p + q + s)|^2

    for positions p and offsets q, s in both directions, the image distortion model (Keysers et al. 2007, doi
    10.1109/TPAMI.2007.1153, sec. 4). It is computed only for the images that are nearest without shifts, at half size.

    Attributes:
        images: `thumbnails`, uint8 (n, h, w, C).
        mirrored: whether mirror images are equivalent.
        spacing: mean distance of each from its 5 nearest neighbours, shape (n,).
    """

    images: np.ndarray = field(repr=False)
    mirrored: bool
    spacing: np.ndarray = field(repr=False)

    @classmethod
    def fit(cls, images: ImageArray, mirrored: bool, report: Report = unreported) -> "Neighbours":
        """Compute the distances among `thumbnails`."""
        alone = cls(images, mirrored, np.zeros(len(images)))
        if len(images) == 1:
            return alone
        _, distances = alone._find(images, _NEAREST, own=len(images), report=report)
        return replace(alone, spacing=distances.mean(axis=1))

    def nearest(self, pixels: ImageArray, k: int) -> Nearest:
        """The `k` most similar training images of each image, the nearest first."""
        order, distances = self._find(pixels, k)
        return Nearest(self.images[order], distances)

    def local_outlier(self, pixels: ImageArray, own: int = 0, report: Report = unreported) -> Float[np.ndarray, " n"]:
        """Local outlier score: distance of each image from its neighbours, minus the distance of these from theirs.

        It is the mean distance from the 5 nearest, minus the mean spacing of the 20 nearest, since some kinds of images
        lie closer together than others. This is the local outlier factor (Breunig et al. 2000, doi
        10.1145/335191.335388) with a difference in place of the ratio.

        Args:
            pixels: images.
            own: number of leading images that are also the first training images; they do not count as their own
                neighbours.
            report: progress callback.
        """
        order, distances = self._find(pixels, _AROUND, own, report)
        return distances[:, :_NEAREST].mean(axis=1) - self.spacing[order].mean(axis=1)

    def to_tree(self) -> dict[str, Any]:
        """Arrays for a model file."""
        return {"images": self.images, "mirrored": np.asarray(self.mirrored), "spacing": self.spacing}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Neighbours":
        """The inverse of `to_tree`."""
        images, spacing = np.asarray(tree["images"]), np.asarray(tree["spacing"])
        if images.dtype != np.uint8 or not sizes_agree(("n h w c", images), ("n", spacing)):
            raise InputError(f"got neighbours of shape {images.shape} and {images.dtype}; expected images; try a copy")
        return cls(images, bool(tree["mirrored"]), spacing)

    def _find(self, pixels, k, own=0, report: Report = unreported):
        """The `k` nearest, or as many as there are, and their distances, both (n, k)."""
        k = min(k, len(self.images) - (own > 0))
        candidates = min(max(k, _CANDIDATES), len(self.images) - (own > 0))
        found, done = [], 0
        for count, part in in_batches(thumbnails(pixels)):
            forms = np.stack([part, part[:, :, ::-1]] if self.mirrored else [part])
            squares = np.stack([_squares(_halved(form), self._halved) for form in forms])
            which, least = squares.argmin(axis=0), squares.min(axis=0)
            itself = np.arange(done, min(done + count, own))
            least[itself - done, itself] = np.inf
            near = np.argpartition(least, candidates - 1, axis=1)[:, :candidates]
            which = np.take_along_axis(which, near, axis=1)
            distances = np.asarray(_distances(forms, self._gradients, which, near))
            order = np.argsort(distances, axis=1, kind="stable")[:count, :k]
            found.append([np.take_along_axis(each[:count], order, axis=1) for each in (near, distances)])
            done += count
            report(done / len(pixels), f"{done} of {len(pixels)}")
        near, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return near, distances

    @cached_property
    def _halved(self):
        return _halved(self.images)

    @cached_property
    def _gradients(self):
        return _gradients(self.images)


def thumbnails(pixels: ImageArray) -> ImageArray:
    """Images downsampled by an integer factor to at most 32 pixels, by block means."""
    return np.round(_reduced(pixels, -(-max(pixels.shape[1:3]) // _THUMBNAIL))).astype(np.uint8)


def _halved(images):
    return _reduced(images, 2).reshape(len(images), -1).astype(np.float32)


def _squares(rows, others):
    return np.sum(rows**2, axis=1)[:, None] + np.sum(others**2, axis=1) - 2 * rows @ others.T


def _reduced(pixels, factor):
    """Means over blocks of factor x factor pixels; incomplete blocks at the right and bottom are cropped."""
    factor = min(factor, *pixels.shape[1:3])
    count, height, width, channels = pixels.shape
    rows, columns = height // factor, width // factor
    cut = pixels[:, : rows * factor, : columns * factor].astype(np.float64)
    return cut.reshape(count, rows, factor, columns, factor, channels).mean(axis=(2, 4))


@jax.jit
def _gradients(images):
    """Sobel gradients, vertical and horizontal, shape (n, 2 C, h, w)."""
    x = jnp.moveaxis(jnp.asarray(images, jnp.float32), -1, 1)
    x = jnp.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")

    def along(x, axis, weights):
        size = x.shape[axis] - len(weights) + 1
        parts = (w * jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i, w in enumerate(weights))
        return sum(parts, jnp.zeros(()))

    smooth, slope = np.array([1, 4, 6, 4, 1]) / 16, np.array([-1, -2, 0, 2, 1]) / 8
    down, right = (along(along(x, axis, slope), 5 - axis, smooth) for axis in (2, 3))
    return jnp.concatenate([down, right], axis=1)


@jax.jit
def _distances(forms, gradients, which, near):
    """Distances, shape (n, k), of images (f, n, h, w, C), in form `which` (n, k), from images `near` (n, k)."""
    height, width = gradients.shape[2:]
    own = jax.vmap(_gradients)(forms)

    def around(x):
        """The mean over each position and its eight neighbours, with zeros beyond the border."""
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
        x = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
        return (x[..., :-2] + x[..., 1:-1] + x[..., 2:]) / 9

    def of_one(one):
        forms, which, near = one
        x = forms[which]
        others = jnp.pad(gradients[near], ((0, 0), (0, 0), (1, 1), (1, 1)))
        least = jnp.inf
        for down in range(3):
            for right in range(3):
                moved = others[:, :, down : down + height, right : right + width]
                least = jnp.minimum(least, around(jnp.sum((x - moved) ** 2, axis=1)))
        return jnp.sqrt(jnp.mean(least, axis=(1, 2)))

    return jax.lax.map(of_one, (jnp.moveaxis(own, 1, 0), which, near))
