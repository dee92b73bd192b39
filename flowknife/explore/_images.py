"""What live pages of images share: a few images at a time, places in the cloud of latents, files of the reader."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from flowknife.data import White
from flowknife.data._decode import Form, decode
from flowknife.diagnostics import principal_plane
from flowknife.errors import InputError
from flowknife.explore._live import rows_of

FEW = 8
"""Images of one call, computed at once; a single one is computed alone, so that it follows a slider."""

_MOST_NUMBERS = 8_000_000  # of the latents of the cloud

_MOST_IMAGES = 400


def in_cloud(size: int) -> int:
    """How many images of so many numbers the cloud shows."""
    return max(min(_MOST_IMAGES, _MOST_NUMBERS // size), 16)


def few(n: int) -> int:
    """The largest batch in which n images are computed."""
    return 1 if n == 1 else FEW


def compile_calls(encode: Callable[..., Any], decode: Callable[..., Any], shown: UInt8[np.ndarray, "n h w c"]) -> None:
    """Compile what a page asks first, so that it need not wait for it."""
    zeros = np.zeros((FEW, shown[0].size), np.float32)
    for n in (1, FEW):
        decode(zeros[:n].ravel(), n)
    encode(shown[:1].ravel(), 1)


class Cloud:
    """The latents of some images on a plane, of each level and of all.

    It is the plane of their principal axes, or the one that tells centres of classes apart, where there are three.

    Attributes:
        z: latents of the images, shape (n, d).
        levels: the columns of each level by name.
        parts: the columns of each level by name, and all columns as "all" if there are several levels.
        centres: mean latents of classes, (k, d).
    """

    def __init__(
        self, z: Float[np.ndarray, "n d"], levels: Mapping[str, slice], centres: Float[np.ndarray, "k d"] | None = None
    ):
        every = {"all": slice(0, z.shape[1])} if len(levels) > 1 else {}
        self.z, self.levels, self.parts, self.centres = z, levels, {**levels, **every}, centres

    def places(self, z: Any = None) -> dict[str, np.ndarray]:
        """Where latents lie, by level, shape (n, 2) each; default: those of the cloud."""
        z = self.z if z is None else z
        return {name: self._place(z[:, columns], columns).astype(np.float32) for name, columns in self.parts.items()}

    def _place(self, z, columns):
        own = self.z[:, columns]
        if self.centres is None or len(self.centres) < 3:
            return principal_plane(own, z)[1]
        mean, spread = own.mean(axis=0), np.maximum(own.std(axis=0), 1e-6)
        apart = (self.centres[:, columns] - self.centres[:, columns].mean(axis=0)) / spread
        return (z - mean) / spread @ np.linalg.svd(apart, full_matrices=False)[2][:2].T


def cloud_parts(
    cloud: Cloud, shown: UInt8[np.ndarray, "n h w c"], codes: Any, classes: Sequence[Any], held_out: bool
) -> dict[str, Any]:
    """The content of a page about the cloud of some images.

    Args:
        cloud: their latents.
        shown: the images.
        codes: the number of each image's class, -1 without one.
        classes: labels of the classes.
        held_out: whether there are held-out images, and so p-values.
    """
    return {
        "shape": list(shown.shape[1:]),
        "levels": [[name, columns.start, columns.stop] for name, columns in cloud.levels.items()],
        "images": shown.tobytes(),
        "codes": np.asarray(codes, int),
        "classes": [str(name) for name in classes],
        "places": cloud.places(),
        "held_out": held_out,
    }


def cloud_calls(
    cloud: Cloud,
    encode: Callable[..., Any],
    decode: Callable[..., Any],
    shape: tuple[int, int, int],
    crop: float,
    white: White,
) -> dict[str, Callable[..., Any]]:
    """The functions by which a page moves between images, latents and places in the cloud.

    Args:
        cloud: the latents of some images.
        encode: images of the page -> latents.
        decode: latents of the page -> images.
        shape: (height, width, channels) of the model's images.
        crop: the share of an image of the reader that is kept.
        white: the pixel values that become 255.
    """

    def read(file):
        pixels = image_in(file, shape, crop, white)
        return {"pixels": pixels, "places": cloud.places(encode(pixels.ravel(), 1))}

    def places(z, n):
        return cloud.places(rows_of(z, n, cloud.z.shape[1]))

    return {"encode": encode, "decode": decode, "read": read, "places": places}


def image_in(file: Any, shape: tuple[int, int, int], crop: float, white: White) -> UInt8[np.ndarray, "1 h w c"]:
    """An image of the reader, in the size and the channels of the model.

    Args:
        file: what the image file holds, bytes.
        shape: (height, width, channels) of the model's images.
        crop: the share that is kept.
        white: the pixel values that become 255.

    Raises:
        InputError: it is no image that can be used.
    """
    height, width, channels = shape
    if not isinstance(file, np.ndarray) or file.dtype != np.uint8:
        raise InputError("got no file; expected an image")
    found = decode(file.tobytes(), Form(width, height, 1 if channels == 1 else 3, crop, white))
    if isinstance(found, str):
        raise InputError(f"got a file that cannot be used ({found}); expected an image, such as a PNG or JPEG file")
    return found[None]


def pixels_of(x: Any, n: Any, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "n h w c"]:
    """Images that the page sent.

    Raises:
        InputError: for anything else.
    """
    values = np.asarray(x)
    if values.dtype != np.uint8 or not isinstance(n, int) or not 0 < n <= 64 or values.size != n * np.prod(shape):
        raise InputError(f"got {values.size} numbers; expected 1 to 64 images of shape {shape}")
    return values.reshape(n, *shape)
