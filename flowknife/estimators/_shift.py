"""Density ratio between rows from shifted conditions and training rows."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from flowknife.apps import Density, density
from flowknife.errors import CalibrationWarning

_MOST = 10.0  # log ratios are clipped at this distance from their median, in nats, so that no row dominates


@dataclass(frozen=True)
class Shift:
    """The ratio of the densities of new and of old rows in some columns, up to a constant.

    Attributes:
        old: density of the old rows.
        new: density of the new rows.
        columns: indices of the columns.
        centre: median of the log ratio among old rows.
        calibration: anomaly scores of the calibration rows.
        rows: the calibration rows.
    """

    old: Density
    new: Density
    columns: np.ndarray
    centre: float
    calibration: np.ndarray
    rows: np.ndarray

    @classmethod
    def fit(
        cls,
        old: np.ndarray,
        new: np.ndarray,
        columns: np.ndarray,
        calibration: tuple[np.ndarray, np.ndarray],
        options: dict[str, Any],
    ) -> "Shift":
        """Fit both densities with the same settings; calibration rows come with their scores."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)  # these densities flag nothing
            before, after = (density(rows[:, columns], **options) for rows in (old, new))
        log_ratio = after.log_prob(old[:, columns]) - before.log_prob(old[:, columns])
        rows, scores = calibration
        return cls(before, after, columns, float(np.median(log_ratio[np.isfinite(log_ratio)])), scores, rows)

    def __call__(self, rows: np.ndarray) -> Float[np.ndarray, " n"]:
        """The ratio at rows, relative to its median among old rows."""
        rows = rows[:, self.columns]
        log_ratio = np.nan_to_num(self.new.log_prob(rows) - self.old.log_prob(rows), nan=0.0, posinf=_MOST)
        return np.exp(np.clip(log_ratio - self.centre, -_MOST, _MOST))

    @property
    def weights(self) -> Float[np.ndarray, " m"]:
        """The ratio at the calibration rows."""
        return self(self.rows)
