"""One number with the limit it has to keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import ArrayLike

Values = ArrayLike | Sequence[Any]
"""Numbers in any form: an array of NumPy or JAX, (nested) lists."""

SMALLEST_P = 0.01
"""A p-value below fails a check: an exact model fails one such check in a hundred."""


@dataclass(frozen=True)
class Check:
    """One number with the limit it has to keep.

    Attributes:
        name: what was measured, in a few words.
        value: the number.
        limit: the largest value that passes.
        note: what it means and what to try, where that needs words.
    """

    name: str
    value: float
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the value keeps its limit; NaN does not."""
        return bool(self.value <= self.limit)

    @classmethod
    def of_p_value(cls, name: str, p_value: float) -> "Check":
        """The check that a p-value is at least 0.01, as -log10 p <= 2, which grows with the departure."""
        # below 1e-12 rounding errors of 1 - probability speak
        value = -np.log10(np.maximum(p_value, 1e-12))
        return cls(f"{name}, -log10 p", float(value), float(-np.log10(SMALLEST_P)))


def p_text(p_value: float) -> str:
    """A p-value as it stands in a sentence."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"
