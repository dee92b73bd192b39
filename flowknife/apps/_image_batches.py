"""An image model at work on many pictures: compiled, and in batches of one size."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from flowknife._progress import Report, progress, unreported
from flowknife._types import as_key
from flowknife.apps._image_scores import png_bits
from flowknife.apps._levels import image_terms, largest_spot, level_features
from flowknife.data import ImageSet, load_images
from flowknife.diagnostics import Typicality

DRAWN_AT_ONCE = 16  # pictures
_NUMBERS_AT_ONCE = 800_000  # pictures are encoded in batches of at most so many numbers

_MOVES = (1, 2)  # pixels, down and to the right
UPWARD = ("upside_down", "negative", "softness", "spot", "complexity")
"""The columns that `compare` puts before the others; the more, the stranger."""


class Look(NamedTuple):
    """What a model says of pictures: the `level_features`, the latents `(n, H W C)`, the finest `largest_spot`."""

    levels: np.ndarray
    latents: np.ndarray
    spot: np.ndarray


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


def fit_detector(model, training, held_out) -> Typicality:
    """Fitted to what is given of training pictures, calibrated with what is given of others.

    How the levels change as a picture moves has a distance of its own: in one of all columns it would drown.
    """
    columns = training.shape[1]
    changes = range(columns - len(_MOVES) * len(model.partition.right), columns)
    return Typicality.fit(training, held_out, upward=range(len(UPWARD)), apart=changes)


def as_pictures(
    folder, size, show_progress, channels: Any = "auto", partition: Any = None, crop: float = 1.0
) -> ImageSet:
    if isinstance(folder, ImageSet):
        return folder
    with progress("reading pictures", show_progress) as report:
        return load_images(
            folder,
            size,
            channels=channels,
            partition=partition,
            crop=crop,
            on_progress=lambda done, total: report(done / total, f"{done} of {total}"),
        )


def in_batches(rows):
    """(number of rows, rows) of batches of one size, the last one filled up: one compiled program serves all."""
    size = int(np.clip(2 ** np.floor(np.log2(_NUMBERS_AT_ONCE / rows[0].size)), 1, 64))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield len(part), np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])


@eqx.filter_jit
def _look(model, pixels, key):
    terms = image_terms(model, pixels, key)
    latents = jnp.concatenate([z.reshape(len(pixels), -1) for z, _ in terms], axis=1)
    return level_features(terms), latents, largest_spot(terms[-1][0])


def _level_bits(model, features):
    """Bits/dim of each level, coarsest first: the last of the `level_features`."""
    return features[:, -len(model.partition.right) :]


def bits_of(model, features):
    """Bits/dim of whole pictures, from those of their levels."""
    sizes = np.array([block.size for block in model.partition.right])
    return _level_bits(model, features) @ sizes / sizes.sum()


def look(model, pixels, report: Report = unreported) -> Look:
    """A `Look` at every picture."""
    looks, done = [], 0
    for count, part in in_batches(pixels):
        # the same noise for every batch: pictures differ by what they show, not by a draw
        looks.append([np.asarray(seen)[:count] for seen in _look(model, part, as_key(0))])
        done += count
        report(done / len(pixels), f"{done} of {len(pixels)}")
    levels, latents, spot = (np.concatenate(parts) for parts in zip(*looks, strict=True))
    return Look(levels.astype(np.float64), latents, spot)


def with_complexity(model, features, bits, pixels):
    """What a detector is given: bits/dim less those of a PNG file, then the features of the levels, `(n, 1 + k)`."""
    complexity = bits - png_bits(pixels, model.partition.left[0].law.bits)
    return np.concatenate([complexity[:, None], features], axis=1)


def compare(model, pixels, report: Report = unreported) -> Comparison:
    """A `look` at every picture and at changed forms of it, of which only what the detector is given is kept.

    In the columns `UPWARD`, differences to the same picture in another form, in bits/dim. A picture and its reversal
    are equally simple, so how much less likely it is than upside down, and than its negative (the mean over the
    levels), says what the likelihood of each, apart, cannot: which way up, and which way round in brightness, the
    pictures of this model are. About zero where they have no such way. How much less likely the blurred form is, at the
    finest level, says how soft the picture was.

    Photographs do not know the model's grid of places; what was pasted or painted may happen to lie along it, and shows
    no edge then. So each picture is moved by a pixel, and by two: the largest spot of all positions counts, and how the
    levels change with the position.
    """
    forms = [pixels, pixels[:, ::-1], 255 - pixels, _blurred(pixels), *(_moved(pixels, by) for by in _MOVES)]

    def part(i):
        return lambda fraction, text="": report((i + fraction) / len(forms), text)

    own, *others = [look(model, form, part(i)) for i, form in enumerate(forms)]
    turned, negative, blurred, *moved = [_level_bits(model, own.levels) - _level_bits(model, o.levels) for o in others]
    upward = [
        np.mean(turned, axis=1),
        np.mean(negative, axis=1),
        -blurred[:, -1],
        np.max([own.spot, *(other.spot for other in others[-len(_MOVES) :])], axis=0),
    ]
    given = with_complexity(model, own.levels, bits_of(model, own.levels), pixels)
    return Comparison(own.levels, own.latents, np.column_stack([*upward, given, *moved]))


def _moved(pixels, by):
    """Down and to the right; what comes in repeats the border."""
    height, width = pixels.shape[1:3]
    return np.pad(pixels, ((0, 0), (by, 0), (by, 0), (0, 0)), mode="edge")[:, :height, :width]


def _blurred(pixels):
    """By a Gaussian of one pixel."""
    from scipy.ndimage import gaussian_filter

    return np.rint(gaussian_filter(pixels.astype(np.float32), (0, 1, 1, 0))).astype(np.uint8)


@eqx.filter_jit
def _local(model, pixels):
    terms = image_terms(model, pixels, as_key(0))
    # the logarithm, so that too little stands out as well as too much
    return [jnp.log(jnp.mean(z**2, axis=-1) + 1e-3) for z, _ in terms if z.ndim == 4 and z[0, ..., 0].size > 1]


def local_maps(model, pixels):
    """Log mean square of the latents at each place, for every level that has places: arrays (n, h, w)."""
    looks = [(count, _local(model, part)) for count, part in in_batches(pixels)]
    levels = zip(*(maps for _, maps in looks), strict=True)
    counts = [count for count, _ in looks]
    return [np.concatenate([np.asarray(m[:n]) for n, m in zip(counts, level, strict=True)]) for level in levels]


@eqx.filter_jit
def encode_batch(model, pixels):
    image = model.partition.left[0]
    return model.bijection.encode(image.law.prepare(None, pixels, (), image.shape))[0]


@eqx.filter_jit
def draw_batch(model, key, temperature):
    return model.sample(key, DRAWN_AT_ONCE, temperature=temperature)


@eqx.filter_jit
def decode_batch(model, z):
    ends = np.cumsum([block.size for block in model.partition.right])[:-1]
    parts = jnp.split(z, ends, axis=-1)
    return model.decode({b.name: part for b, part in zip(model.partition.right, parts, strict=True)})["image"]
