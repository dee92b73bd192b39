"""Anomaly features of an image (against transformed copies and its PNG code length) and their detector."""

import io
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from flowknife._progress import Report, unreported
from flowknife.anomaly._features import SMALL, bits_at, bits_of, level_bits, look
from flowknife.anomaly._maps import (
    _moved,
)
from flowknife.anomaly._neighbours import Neighbours
from flowknife.diagnostics import Typicality

_MOVES = (1, 2)  # pixels, down and to the right

UPWARD = {"upside_down": 1.0, "negative": 1.0, "softness": 1.0, "spot": 1.0, "novelty": 1.6, "complexity": 0.5}
"""The columns that `compare` puts before the others, each with its weight; the more, the stranger."""


class Comparison(NamedTuple):
    """What `compare` saw.

    Attributes:
        levels: the `level_features`.
        latents: `(n, H W C)`, coarsest first.
        given: what a detector is given, `(n, u + k + c)`: the columns `UPWARD`, the levels, the changes.
    """

    levels: np.ndarray
    latents: np.ndarray
    given: np.ndarray


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


def with_complexity(model, features, bits, pixels):
    """What a detector is given: bits/dim less those of a PNG file, then the features of the levels, `(n, 1 + k)`."""
    complexity = bits - png_bits(pixels, model.partition.left[0].law.bits)
    return np.concatenate([complexity[:, None], features], axis=1)


def compare(model, pixels, neighbours: Neighbours, own=0, report: Report = unreported) -> Comparison:
    """A `look` at every picture and at changed forms of it, of which only what the detector is given is kept.

    Args:
        model: of the pictures.
        pixels: pictures.
        neighbours: training pictures.
        own: so many of the first pictures are the first of the training pictures.
        report: told how far it is.

    In the columns `UPWARD`, differences to the same picture in another form, in bits/dim. A picture and its reversal
    are equally simple, so how much less likely it is than upside down, and than its negative (the mean over the coarse
    levels, which say what the whole looks like), says what the likelihood of each, apart, cannot: which way up, and
    which way round in brightness, the pictures of this model are. About zero where they have no such way. How much less
    likely the blurred form is, at the finest level, says how soft the picture was.

    Photographs do not know the model's grid of places; what was pasted or painted may happen to lie along it, and shows
    no edge then. So each picture is moved by a pixel, and by two: the largest spot of all positions counts, and how the
    levels change with the position.

    A digit that no training picture shows is made of the same strokes, and no less likely to a flow, which knows best
    what pixels have to do with their neighbours. That no training picture looks like it, the neighbours tell.
    """
    parts = iter(range(4 + len(_MOVES)))

    def next_part() -> Report:
        i = next(parts)
        return lambda fraction, text="": report((i + fraction) / (4 + len(_MOVES)), text)

    seen = look(model, pixels, next_part())
    own_bits = level_bits(model, seen.levels)
    whole = _levels_of_the_whole(model)
    finest = range(own_bits.shape[1] - 1, own_bits.shape[1])

    def beyond(changed, levels):
        """How many bits/dim a picture takes more than its changed form, at each of these levels."""
        return own_bits[:, levels] - bits_at(model, changed, levels, next_part())

    upside_down, negative = (beyond(changed, whole).mean(axis=1) for changed in (pixels[:, ::-1], 255 - pixels))
    softness = -beyond(_blurred(pixels), finest)[:, 0]
    spots, changes = [seen.spot], []
    for by in _MOVES:
        moved = look(model, _moved(pixels, by), next_part())
        spots.append(moved.spot)
        changes.append(own_bits - level_bits(model, moved.levels))
    upward = [upside_down, negative, softness, np.max(spots, axis=0), neighbours.novelty(pixels, own)]
    given = with_complexity(model, seen.levels, bits_of(model, seen.levels), pixels)
    return Comparison(seen.levels, seen.latents, np.column_stack([*upward, given, *changes]))


def _levels_of_the_whole(model) -> range:
    """The coarsest levels, one at least, that together have no more latents than a small picture has numbers."""
    sizes = np.cumsum([block.size for block in model.partition.right])
    return range(max(int(np.sum(sizes <= SMALL)), 1))


def _blurred(pixels):
    """By a Gaussian of one pixel."""
    from scipy.ndimage import gaussian_filter

    return np.rint(gaussian_filter(pixels.astype(np.float32), (0, 1, 1, 0))).astype(np.uint8)


def fit_detector(model, training, held_out) -> Typicality:
    """Fitted to what is given of training pictures, calibrated with what is given of others.

    How the levels change as a picture moves has a distance of its own: in one of all columns it would drown.
    """
    columns = training.shape[1]
    changes = range(columns - len(_MOVES) * len(model.partition.right), columns)
    return Typicality.fit(training, held_out, upward=dict(enumerate(UPWARD.values())), apart=changes)
