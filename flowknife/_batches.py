"""Batches of one size, so that one compiled program serves every number of rows."""

import numpy as np

_NUMBERS_AT_ONCE = 800_000  # images are encoded in batches of at most so many numbers


def in_batches(rows):
    """(number of rows, rows) of batches of one size, the last one filled up: one compiled program serves all."""
    size = int(np.clip(2 ** np.floor(np.log2(_NUMBERS_AT_ONCE / rows[0].size)), 1, 64))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield len(part), np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
