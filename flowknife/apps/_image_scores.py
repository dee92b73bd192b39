"""How strange a picture is, and where: what a PNG file says of it, and the latents place by place."""

import io

import numpy as np
from jaxtyping import Float, UInt8

Maps = list[np.ndarray]
"""A number for each place of each level that has places: shapes (n, h, w)."""


def png_bits(pixels: UInt8[np.ndarray, "n h w c"], bits: int) -> Float[np.ndarray, " n"]:
    """Bits per dimension of each picture of `bits` bits as a PNG file: what a simple code needs for it.

    A likelihood is high for whatever is simple; minus log-likelihood less these bits says how much of it was due to
    that (Serrà et al. 2020, arXiv 1909.11480, eq. 2).
    """
    from PIL import Image

    sizes = []
    for picture in pixels >> (8 - bits):
        file = io.BytesIO()
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file, "PNG", optimize=True)
        sizes.append(8 * len(file.getvalue()))
    return np.asarray(sizes) / pixels[0].size


def standardise_maps(maps: Maps, usual: Maps, shape: tuple[int, int]) -> Float[np.ndarray, "n h w"]:
    """How many standard deviations above the usual each place lies, the levels added, shape (n, height, width).

    Args:
        maps: of pictures.
        usual: of held-out pictures; each place is compared with itself in these, a corner with corners.
        shape: (height, width) of the pictures.
    """
    total = np.zeros((len(maps[0]), *shape))
    for level, held in zip(maps, usual, strict=True):
        spread = held.std(axis=0) + 0.1 * held.std()
        total += _enlarged((level - held.mean(axis=0)) / spread, shape)
    return total / np.sqrt(len(maps))


def _enlarged(maps, shape):
    """Maps at the size of the pictures, each value repeated over the pixels that it stands for."""
    rows = np.arange(shape[0]) * maps.shape[1] // shape[0]
    columns = np.arange(shape[1]) * maps.shape[2] // shape[1]
    return maps[:, rows][:, :, columns]
