"""Evaluation in padded batches of a few sizes, so that few programs are compiled and memory is bounded."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from flowknife._progress import Report, unreported

ROWS_AT_ONCE = 16_384
IMAGES_AT_ONCE = 64
_FEWEST = 256  # a smaller size would save a fraction of a millisecond and cost seconds of compile time
_STEP = 1024  # larger batches are a multiple of this
NUMBERS_AT_ONCE = 800_000  # per batch, at most: the activations of an image network hold about a hundred times as many


def bucket(count: int, most: int | None = None) -> int:
    """The batch size for a number of items: 256 or a multiple of 1,024, at most `most`."""
    size = _FEWEST if count <= _FEWEST else -(-count // _STEP) * _STEP
    return size if most is None else min(size, most)


def in_batches(items: Any, most: int = IMAGES_AT_ONCE) -> Iterator[tuple[int, Any]]:
    """Batches of equal size, the last padded with its first item; without items, one batch of zeros.

    Args:
        items: an array of shape (n, ...), or several of the same n, in a tuple or dict.
        most: size of a batch, at most.

    Yields:
        the number of items, and the batch.
    """
    arrays = jax.tree.leaves(items)
    numbers, count = sum(array[:1].size for array in arrays), len(arrays[0])
    fitting = 2 ** int(np.floor(np.log2(max(NUMBERS_AT_ONCE / max(numbers, 1), 1))))
    size = min(bucket(count, most), fitting)

    def batch(array, start):
        part = array[start : start + size]
        filling = part[:1] if len(part) else np.zeros((1, *array.shape[1:]), array.dtype)
        return np.concatenate([part, np.repeat(filling, size - len(part), axis=0)])

    for start in range(0, max(count, 1), size):
        yield min(size, count - start), jax.tree.map(lambda array, start=start: batch(array, start), items)


def map_batches(
    program: Callable[[Any], Sequence[Any]],
    items: Any,
    most: int = IMAGES_AT_ONCE,
    report: Report = unreported,
) -> list[np.ndarray]:
    """Apply a program to every batch and concatenate the arrays that it returns.

    Args:
        program: maps a batch to arrays with one row per item.
        items: an array of shape (n, ...), or several of the same n, in a tuple or dict.
        most: size of a batch, at most.
        report: progress callback.
    """
    parts, done, total = [], 0, len(jax.tree.leaves(items)[0])
    for count, part in in_batches(items, most):
        parts.append([np.asarray(array)[:count] for array in program(part)])
        done += count
        report(done / max(total, 1), f"{done} of {total}")
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def draw_batches(
    program: Callable[[Array, int, Any], Any], n: int, key: Array, most: int = IMAGES_AT_ONCE, given: Any = None
) -> np.ndarray:
    """`n` draws of a program, in batches of one size.

    Args:
        program: `program(key, size, part of given)`, an array of `size` draws.
        n: number of draws, at least 1.
        key: JAX key.
        most: size of a batch, at most.
        given: conditions of the draws, arrays of n rows in a tuple or dict; None or empty for none.
    """
    size = bucket(n, most)
    keys = jax.random.split(key, -(-n // size))
    rows = jax.tree.map(lambda array: np.resize(array, (len(keys), size, *array.shape[1:])), given)
    drawn = [program(each, size, jax.tree.map(lambda array, i=i: array[i], rows)) for i, each in enumerate(keys)]
    return np.concatenate([np.asarray(part) for part in drawn])[:n]
