"""Observations with missing numbers (NaN): zeros in the gaps, with a mask as further columns."""

import numpy as np
from jaxtyping import Float


def masked(rows: Float[np.ndarray, "... m"]) -> Float[np.ndarray, "... k"]:
    """Rows with NaN as numbers and mask; the mask is 1 for a number that is present."""
    known = ~np.isnan(rows)
    return np.concatenate([np.where(known, rows, 0.0), known], axis=-1).astype(rows.dtype)


def with_gaps(rows: Float[np.ndarray, "... k"]) -> Float[np.ndarray, "... m"]:
    """The inverse of `masked`."""
    size = rows.shape[-1] // 2
    values, known = rows[..., :size], np.asarray(rows[..., size:], float)
    return np.where(known > 0.5, values, np.nan)


def filled(rows: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    """Rows with each NaN replaced by the median of its column; 0 if the whole column is NaN."""
    known = ~np.isnan(rows)
    middle = np.array([np.median(c[k]) if k.any() else 0.0 for c, k in zip(rows.T, known.T, strict=True)])
    return np.where(known, rows, middle)
