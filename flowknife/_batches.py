"""Evaluation in padded batches of few sizes: few compiled programs, bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from flowknife._progress import Report, unreported

ROWS_AT_ONCE = 16_384
IMAGES_AT_ONCE = 64
_FEWEST = 64
_STEP = 1024  # from here on sizes are its multiples, below they are powers of two
_NUMBERS_AT_ONCE = 800_000  # of a batch, at most: an image network holds some hundred times as many


def bucket(count: int, most: int | None = None) -> int:
    """The batch size for a number of items: at least 64, a power of two or a multiple of 1,024, at most `most`."""
    size = max(_FEWEST, 1 << max(count - 1, 0).bit_length()) if count <= _STEP else -(-count // _STEP) * _STEP
    return size if most is None else min(size, most)


def in_batches(items: np.ndarray, most: int = IMAGES_AT_ONCE) -> Iterator[tuple[int, np.ndarray]]:
    """Batches of equal size, the last padded with its first item; without items, one batch of zeros.

    Args:
        items: shape (n, ...).
        most: size of a batch, at most.

    Yields:
        the number of items, and the batch.
    """
    fitting = 2 ** int(np.floor(np.log2(max(_NUMBERS_AT_ONCE / max(items[:1].size, 1), 1))))
    size = min(bucket(len(items), most), fitting)
    for start in range(0, max(len(items), 1), size):
        part = items[start : start + size]
        filling = part[:1] if len(part) else np.zeros((1, *items.shape[1:]), items.dtype)
        yield len(part), np.concatenate([part, np.repeat(filling, size - len(part), axis=0)])


def map_batches(
    program: Callable[[np.ndarray], Sequence[Any]],
    items: np.ndarray,
    most: int = IMAGES_AT_ONCE,
    report: Report = unreported,
) -> list[np.ndarray]:
    """The arrays that a program returns for each batch, joined over all items.

    Args:
        program: from a batch to arrays with one row for each of its items.
        items: shape (n, ...).
        most: size of a batch, at most.
        report: progress callback.
    """
    parts, done = [], 0
    for count, part in in_batches(items, most):
        parts.append([np.asarray(array)[:count] for array in program(part)])
        done += count
        report(done / max(len(items), 1), f"{done} of {len(items)}")
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def draw_batches(program: Callable[[Array, int], Any], n: int, key: Array, most: int = IMAGES_AT_ONCE) -> np.ndarray:
    """`n` draws of a program, in batches of one size.

    Args:
        program: `program(key, size)`, an array of `size` draws.
        n: number of draws, at least 1.
        key: JAX key.
        most: size of a batch, at most.
    """
    size = bucket(n, most)
    keys = jax.random.split(key, -(-n // size))
    return np.concatenate([np.asarray(program(each, size)) for each in keys])[:n]
