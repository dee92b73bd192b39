"""A value and its upper limit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float

from flowknife._frame import robust_spread

Values = ArrayLike | Sequence[Any]
"""Numbers in any form: an array of NumPy or JAX, (nested) lists."""

SMALLEST_P = 0.01
"""Smaller p-values fail a check, so that an exact model fails one such check in a hundred."""


ROUND_TRIP = 0.01
"""Largest error of a round trip to the latent and back, in standard deviations."""

_EXTREME = 16  # number of extreme rows to keep


@dataclass(frozen=True)
class Check:
    """A value and its upper limit.

    Attributes:
        name: name of the quantity.
        value: the number.
        limit: the largest value that passes.
        note: explanation and advice, or "".

    Examples:
        >>> print(Check("share of rows flagged", 0.04, 0.1))
        passed  share of rows flagged: 0.04, at most 0.1
    """

    name: str
    value: float
    limit: float
    note: str = ""

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        note = f"; {self.note}" if self.note else ""
        return f"{verdict}  {self.name}: {self.value:.3g}, at most {self.limit:.3g}{note}"

    @property
    def passed(self) -> bool:
        """Whether the value is at most its limit; False for NaN."""
        return bool(self.value <= self.limit)

    @classmethod
    def of_p_value(cls, name: str, p_value: float) -> "Check":
        """The check that a p-value is at least 0.01, as -log10 p <= 2, which grows with the departure."""
        # below 1e-12, rounding errors of 1 - probability dominate
        value = -np.log10(np.maximum(p_value, 1e-12))
        return cls(f"{name}, -log10 p", float(value), float(-np.log10(SMALLEST_P)))

    @classmethod
    def of_round_trip(cls, x: Values, back: Values, names: Sequence[str], like: Values | None = None) -> "Check":
        """The check that every number is recovered by the round trip to a hundredth of its column's spread.

        Args:
            x: rows in the user's units, shape (n, d).
            back: the same rows after the round trip.
            names: names of the columns.
            like: rows that define the robust spread; default `x`.
        """
        x, back = np.asarray(x, np.float64), np.asarray(back, np.float64)
        like = x if like is None else np.asarray(like, np.float64)
        spread, size = robust_spread(like), np.abs(like).max(axis=0)
        # a constant has no spread: it must be recovered up to rounding in single precision
        least = spread[spread > 0].min() if np.any(spread > 0) else 1.0
        spread = np.where(spread > 0, spread, 1e-4 * np.where(size > 0, size, least))
        error = np.abs(back - x) / spread
        worst = np.max(np.where(np.isnan(error), np.inf, error), axis=0)
        name = names[int(np.argmax(worst))]
        return cls(f"round trip, in standard deviations (worst: {name})", float(worst.max()), ROUND_TRIP)

    @classmethod
    def of_steps(cls, missing: int, least: int) -> "Check":
        """The check that every stage of training made the minimum number of steps."""
        return cls(f"training steps short of the minimum of {least}", float(missing), 0.0)


def p_text(p_value: float) -> str:
    """A p-value in words."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def kept_rows(rows: Float[np.ndarray, "n d"], most: int) -> np.ndarray:
    """Indices of up to `most` rows: the first ones, including those farthest from the centre of all rows."""
    if len(rows) <= most:
        return np.arange(len(rows))
    spread = robust_spread(rows)
    away = np.abs(rows - np.median(rows, axis=0)) / np.where(spread > 0, spread, np.inf)
    extreme = np.argsort(-away.max(axis=1), kind="stable")[: min(_EXTREME, most)]
    first = np.setdiff1d(np.arange(most), extreme)[: most - len(extreme)]
    return np.sort(np.concatenate([first, extreme]))
