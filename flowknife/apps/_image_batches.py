"""An image model at work on many pictures: compiled, and in batches of one size."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from flowknife._progress import Report, progress, unreported
from flowknife._types import as_key
from flowknife.apps._features import largest_spot, level_features
from flowknife.data import ImageSet, White, load_images
from flowknife.multiscale import local_log_probs

DRAWN_AT_ONCE = 16  # pictures
SMALL = 3072  # numbers of a picture of 32 x 32 in colour
_LOOKED_AT = 1000  # images whose grey levels are counted
_NUMBERS_AT_ONCE = 800_000  # pictures are encoded in batches of at most so many numbers


class Look(NamedTuple):
    """What a model says of pictures: the `level_features`, the latents `(n, H W C)`, the finest `largest_spot`."""

    levels: np.ndarray
    latents: np.ndarray
    spot: np.ndarray


def as_pictures(
    folder,
    size,
    show_progress,
    channels: Any = "auto",
    partition: Any = None,
    crop: float = 1.0,
    white: White | None = None,
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
            white=white,
            on_progress=lambda done, total: report(done / total, f"{done} of {total}"),
        )


def grey_facts(data: ImageSet, bits: int) -> dict[str, str]:
    """What became white where images were scaled, and how many grey levels are left where these are few.

    Warns:
        UserWarning: fewer than 8 grey levels are left of more.
    """
    facts = {"white": data.white.told()} if data.white.told() else {}
    seen = np.unique(data.pixels[:_LOOKED_AT])
    left = len(np.unique(seen >> (8 - bits)))
    if left < min(8, 2**bits, len(seen)):
        facts["grey levels"] = f"{left}, few: values reach from {seen[0]} to {seen[-1]} of 255"
        warnings.warn(
            f"got images with {left} grey levels at {bits} bits (values from {seen[0]} to {seen[-1]} of 255); expected "
            "8 or more; try brighter images, or bits=8",
            stacklevel=3,
        )
    return facts


def in_batches(rows):
    """(number of rows, rows) of batches of one size, the last one filled up: one compiled program serves all."""
    size = int(np.clip(2 ** np.floor(np.log2(_NUMBERS_AT_ONCE / rows[0].size)), 1, 64))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield len(part), np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])


@eqx.filter_jit
def _look(model, pixels, key):
    right = model.right_end(model.left_end(pixels, key=key))
    terms = model.block_terms(right)
    latents = jnp.concatenate([z.reshape(len(pixels), -1) for z in right.blocks.values()], axis=1)
    levels = [(right.blocks[name], term) for name, term in terms.items()]
    return level_features(levels), latents, largest_spot(levels[-1][0])


def level_bits(model, features):
    """Bits/dim of each level, coarsest first: the last of the `level_features`."""
    return features[:, -len(model.partition.right) :]


def level_squares(model, latents):
    """|z|^2 of each level, coarsest first, `(n, levels)`."""
    ends = np.cumsum([block.size for block in model.partition.right])[:-1]
    return np.stack([np.sum(part**2, axis=1) for part in np.split(latents, ends, axis=1)], axis=1)


def bits_of(model, features):
    """Bits/dim of whole pictures, from those of their levels."""
    sizes = np.array([block.size for block in model.partition.right])
    return level_bits(model, features) @ sizes / sizes.sum()


def look(model, pixels, report: Report = unreported) -> Look:
    """A `Look` at every picture."""
    # the same noise for every batch: pictures differ by what they show, not by a draw
    levels, latents, spot = _of_all(pixels, lambda part: _look(model, part, as_key(0)), report)
    return Look(levels.astype(np.float64), latents, spot)


def _of_all(pixels, program: Callable[[Any], Sequence[Any]], report: Report = unreported) -> list[np.ndarray]:
    """The arrays that a program returns for each batch, of all pictures."""
    parts, done = [], 0
    for count, part in in_batches(pixels):
        parts.append([np.asarray(array)[:count] for array in program(part)])
        done += count
        report(done / len(pixels), f"{done} of {len(pixels)}")
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


@eqx.filter_jit
def _bits_at(model, pixels, key, first, last):
    terms = model.block_log_probs(pixels, key=key)
    blocks = model.partition.right[first:last]
    return jnp.stack([-terms[block.name] / (block.size * math.log(2)) for block in blocks], axis=1)


def bits_at(model, pixels, levels: range, report: Report = unreported):
    """Bits/dim of the levels in this range alone, `(n, len(levels))`; what they do not need is never computed."""
    if pixels[0].size <= SMALL:  # computing all takes less than compiling another program
        return level_bits(model, look(model, pixels, report).levels)[:, levels]
    (bits,) = _of_all(pixels, lambda part: [_bits_at(model, part, as_key(0), levels.start, levels.stop)], report)
    return bits.astype(np.float64)


@eqx.filter_jit
def _local(model, pixels):
    return local_log_probs(model, pixels, as_key(0))


def local_maps(model, pixels):
    """Log-density at each place, in nats per latent, for every level that has places: arrays (n, h, w)."""
    return _of_all(pixels, lambda part: _local(model, part))


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
    blocks = zip(model.partition.right, jnp.split(z, ends, axis=-1), strict=True)
    return model.decode({block.name: part.reshape(len(z), *block.shape) for block, part in blocks})["image"]
