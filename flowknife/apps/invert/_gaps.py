"""Observations with missing numbers, NaN, as a model takes them: the numbers, zeros in the gaps, and a mask beside."""

import numpy as np
from jaxtyping import Float


def masked(rows: Float[np.ndarray, "... m"]) -> Float[np.ndarray, "... k"]:
    """Rows with NaN as numbers and mask, 1 where there is a number."""
    known = ~np.isnan(rows)
    return np.concatenate([np.where(known, rows, 0.0), known], axis=-1).astype(rows.dtype)


def with_gaps(rows: Float[np.ndarray, "... k"]) -> Float[np.ndarray, "... m"]:
    """The inverse of `masked`."""
    size = rows.shape[-1] // 2
    values, known = rows[..., :size], np.asarray(rows[..., size:], float)
    return np.where(known > 0.5, values, np.nan)


def filled(rows: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    """Rows with the median of its column in place of each NaN; 0 in a column of nothing else."""
    known = ~np.isnan(rows)
    middle = np.array([np.median(c[k]) if k.any() else 0.0 for c, k in zip(rows.T, known.T, strict=True)])
    return np.where(known, rows, middle)
