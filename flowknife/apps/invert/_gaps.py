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


def set_in_order(rows: Float[np.ndarray, "n k"], shape: tuple[int, ...]) -> Float[np.ndarray, "n k"]:
    """`masked` rows that are sets of this shape, with their elements in ascending order, missing ones last."""
    count, size = (*shape, 1)[:2]
    values, known = (part.reshape(-1, count, size) for part in np.split(rows, 2, axis=1))
    # by the first number of an element, equal ones by the next; missing ones sort as infinite
    keys = np.where(known > 0.5, values, np.inf)
    order = np.lexsort(np.moveaxis(keys[..., ::-1], -1, 0), axis=1)[..., None]
    parts = (np.take_along_axis(part, order, axis=1).reshape(len(rows), -1) for part in (values, known))
    return np.concatenate(list(parts), axis=1)


def filled(rows: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    """Rows with each NaN replaced by the median of its column; 0 if the whole column is NaN."""
    known = ~np.isnan(rows)
    middle = np.array([np.median(c[k]) if k.any() else 0.0 for c, k in zip(rows.T, known.T, strict=True)])
    return np.where(known, rows, middle)
