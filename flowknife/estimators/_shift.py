"""Density ratio between rows from shifted conditions and training rows."""

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from flowknife._types import Key
from flowknife.apps import Density, density
from flowknife.errors import CalibrationWarning

_MOST = 10.0  # log ratios are clipped at this distance from their median, in nats, so that no row dominates


class Shifted(NamedTuple):
    """Rows as a detector under shift judges them.

    Attributes:
        log_prob: log density of each row.
        score: anomaly score of each row.
        weight: density ratio of new to old rows at each row, up to a constant.
    """

    log_prob: Float[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Shift:
    """The ratio of the densities of new and of old rows in the columns that describe the conditions.

    The anomaly score is that of the other columns given the conditions, -log p(rest | conditions), for a new condition
    is no anomaly; if the conditions are all columns, it is -log p.

    Attributes:
        old: density of the conditions of old rows.
        new: density of the conditions of new rows.
        columns: indices of the conditions.
        centre: median of the log ratio among old rows.
        partial: whether there are other columns.
        key: key of the random number by which discoveries are selected.
    """

    old: Density
    new: Density
    columns: np.ndarray
    centre: float
    partial: bool
    key: Key

    @classmethod
    def fit(cls, old: np.ndarray, new: np.ndarray, columns: np.ndarray, options: dict[str, Any]) -> "Shift":
        """Fit both densities with the same settings."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)  # these densities flag nothing
            before, after = (density(rows[:, columns], **options) for rows in (old, new))
        log_ratio = after.log_prob(old[:, columns]) - before.log_prob(old[:, columns])
        centre = float(np.median(log_ratio[np.isfinite(log_ratio)]))
        return cls(before, after, columns, centre, len(set(columns.tolist())) < old.shape[1], options["key"])

    def __call__(self, rows: np.ndarray, log_prob: np.ndarray) -> Shifted:
        """Scores and weights of rows, from their log densities; weights are relative to their median among old rows."""
        conditions = rows[:, self.columns]
        before = self.old.log_prob(conditions).astype(np.float64)
        log_ratio = np.nan_to_num(self.new.log_prob(conditions) - before, nan=0.0, posinf=_MOST)
        weight = np.exp(np.clip(log_ratio - self.centre, -_MOST, _MOST))
        return Shifted(log_prob, (before if self.partial else 0.0) - log_prob, weight)
