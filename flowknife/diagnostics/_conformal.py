"""Split-conformal calibration: p-values, flags, and the smallest p-value of a number of calibration rows."""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from flowknife._split import SHARE, fewest_calibration_rows
from flowknife.diagnostics._check import Check
from flowknife.errors import CalibrationWarning, InputError


def conformal_p_values(scores: Float[np.ndarray, " n"], held_out: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """Split-conformal p-values: the share of held-out normal scores at least as extreme.

        p = (1 + #{held-out >= score}) / (1 + m)

    If a new item comes from the same distribution as the held-out ones, P(p <= a) <= a for every a, whatever the score
    (Vovk et al. 2005; Bates et al. 2023, arXiv 2104.08279). No p-value is below 1 / (1 + m).

    Args:
        scores: larger is more anomalous; NaN counts as largest.
        held_out: scores of m normal items that had no part in training, not even in the choice of when to stop.
    """
    ordered = np.sort(np.asarray(held_out, float))
    scores = np.nan_to_num(np.asarray(scores, float), nan=np.inf, posinf=np.inf)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1 + at_least) / (1 + len(ordered))


class Flagging(NamedTuple):
    """The rule by which a result flags: p < alpha, with p-values from `rows` calibration rows.

    Of new rows of the same kind a share alpha is flagged, and no more.

    Attributes:
        rows: number of calibration rows; with none there are no p-values.
        alpha: the rate of false alarms.
        unit: what a row is called, in the plural.
    """

    rows: int
    alpha: float
    unit: str = "rows"

    @property
    def smallest(self) -> float:
        """The smallest p-value that there can be."""
        return 1 / (self.rows + 1)

    @property
    def note(self) -> str:
        """Why nothing can be flagged, and what to do; empty if items can be flagged."""
        unit, needed = self.unit, fewest_calibration_rows(self.alpha)
        if not self.rows:
            return (
                f"there are no p-values, since no {unit} were held out to calibrate them; "
                f"try train.validation={SHARE}, or more {unit}"
            )
        if self.rows >= needed:
            return ""
        return (
            f"no p-value is below {self.smallest:.2g} with {self.rows} calibration {unit}, so that nothing can be "
            f"flagged at alpha={self.alpha:g}, which takes {needed}; try more {unit}, a larger train.validation, or a "
            "larger alpha"
        )

    def checks_of(self, p_value: Float[np.ndarray, " n"] | None = None) -> list[Check]:
        """The share of new rows of the same kind that is flagged, from their p-values; or that nothing can be flagged.

        The second one is a failed check, whose `note` says what to do.
        """
        if self.note:
            missing = fewest_calibration_rows(self.alpha) - self.rows
            name = f"calibration {self.unit} missing for a p-value below {self.alpha:g}"
            return [Check(name, float(missing), 0.0, self.note)]
        if p_value is None:
            return []
        # the rate varies with the rows that are counted, and with those that calibrate
        limit = self.alpha + 4 * (self.alpha / len(p_value) + self.alpha / self.rows) ** 0.5
        return [Check(f"share of {self.unit} flagged", float(np.mean(p_value < self.alpha)), limit)]

    def warn(self, stacklevel: int = 3) -> None:
        """Warn with the `note`, at the line that called `score` or the fit; not at all where items can be flagged."""
        if self.note:
            warnings.warn(self.note, CalibrationWarning, stacklevel=stacklevel)

    def require_held_out(self) -> None:
        """Refuse to check a run on the rows that it was trained on.

        Raises:
            InputError: without calibration rows.
        """
        if not self.rows:
            raise InputError(
                f"got a run without held-out {self.unit}; expected {self.unit} that it was not trained on; try to "
                f"check it with some, or train.validation={SHARE}"
            )

    def named(self, metrics: dict[str, float]) -> dict[str, float]:
        """Metrics by their names: those of training rows, where none were held out, begin with `training_`."""
        return metrics if self.rows else {f"training_{name}": value for name, value in metrics.items()}
