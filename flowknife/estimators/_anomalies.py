"""Detectors of anomalous rows, with the interfaces of scikit-learn and PyOD."""

import math
import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import OutlierMixin
from sklearn.utils import _safe_indexing
from sklearn.utils.metaestimators import available_if

from flowknife._split import Sizes, split
from flowknife._types import as_key
from flowknife.apps import DensityConfig, density
from flowknife.diagnostics import (
    Monitoring,
    Scores,
    adjusted_p_values,
    benjamini_hochberg,
    conformal_p_values,
    conformal_quantile,
    false_discovery_bound,
    monitored,
    weighted_conformal_p_values,
    weighted_discoveries,
)
from flowknife.errors import CalibrationWarning, InputError
from flowknife.estimators._density import DensityEstimator
from flowknife.estimators._shift import Shift, Shifted

_ROUNDING = 1e-9  # 0.1 x 300 must count as 30, despite rounding errors


def _of_novelties(detector):
    if not detector.novelty:
        raise AttributeError("got novelty=False, which calibrates no p-values; try novelty=True")
    return True


def _of_training(detector):
    if detector.novelty:
        raise AttributeError("got novelty=True, where contamination is a rate among new rows; try novelty=False")
    return True


@dataclass(kw_only=True, eq=False, repr=False)
class AnomalyDetector(OutlierMixin, DensityEstimator):
    """Detects anomalous rows at a chosen false-alarm rate.

    A density is fitted to one part of the rows and calibrated on the other (split-conformal; Bates et al. 2023, arXiv
    2104.08279). At most a share `contamination` of new normal rows is flagged, for any data.

    With `novelty=False`, a share `contamination` of the training rows themselves is flagged, as in `LocalOutlierFactor`
    of scikit-learn; then there are no p-values.

    With `fdr`, `predict` controls the false discovery rate over all rows of a call: at most a share `fdr` of the
    flagged rows is expected to be normal (Benjamini & Hochberg 1995 on conformal p-values; Bates et al. 2023, theorem
    2). More precisely, the bound is `fdr` times the share of normal rows. `false_discoveries` is a confidence bound of
    this share for a single call.

    If new rows differ from the training rows for harmless reasons, `shifted` returns a detector for them. `monitor`
    detects changes in a stream.

    Args:
        contamination: false-alarm rate among normal rows, above 0 and at most 0.5.
        fdr: false discovery rate among flagged rows, which replaces `contamination`; default None.
        calibration: share of the rows that is held out for calibration only.
        novelty: detect anomalies in new rows (True) or in the training rows (False).

    Attributes:
        flow_: the fitted `Density`.
        calibration_scores_: log density of the calibration rows (of all rows with `novelty=False`), ascending.
        offset_: rows with a smaller log density are flagged (without `fdr`).
        ratio_: for a `shifted` detector, the density ratio of new to old rows; None otherwise.
        held_out_: for a `shifted` detector, scores and weights of the calibration rows; None otherwise.

    Examples:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(400, 2))
        >>> detector = AnomalyDetector(contamination=0.05, layers=2, steps=20, random_state=0).fit(x)
        >>> detector.predict([[0.0, 0.0], [9.0, 9.0]]).tolist()
        [1, -1]
    """

    contamination: float | int = field(default=0.01, kw_only=False)
    fdr: float | None = None
    calibration: float | int = 0.25
    novelty: bool = True

    def fit(self, X: Any, y: Any = None) -> "AnomalyDetector":
        """Fit the density and calibrate it.

        Raises:
            InputError: for a rate out of range, or too few rows for the rate.
        """
        if not (isinstance(self.contamination, Real) and 0 < self.contamination <= 0.5):
            raise InputError(f"got contamination={self.contamination!r}; expected more than 0, at most 0.5; try 0.01")
        if not (isinstance(self.calibration, Real) and 0 < self.calibration < 1):
            raise InputError(f"got calibration={self.calibration!r}; expected a share between 0 and 1; try 0.25")
        if self.fdr is not None and not self.novelty:
            raise InputError(f"got fdr={self.fdr!r} with novelty=False, which has no p-values; try novelty=True")
        if self.fdr is not None and not (isinstance(self.fdr, Real) and 0 < self.fdr < 1):
            raise InputError(f"got fdr={self.fdr!r}; expected a false discovery rate between 0 and 1; try 0.1")
        X = self._rows(X, reset=True)
        self.ratio_: Shift | None = None
        self.held_out_: Shifted | None = None
        options = {"alpha": self.contamination, **self._options(DensityConfig, self._seed())}
        with warnings.catch_warnings():
            # at a rate of exactly 1 / (count + 1), `predict` can flag rows, but p < alpha cannot
            warnings.simplefilter("ignore", CalibrationWarning)
            calibrate = self._fit_new if self.novelty else self._fit_training
            scores, self.offset_ = calibrate(X, options)
        self.calibration_scores_ = np.sort(scores)
        return self

    def _fit_new(self, X, options):
        """Log densities of the calibration rows, and the threshold below which a row is flagged."""
        count = round(self.calibration * len(X))
        # with m calibration rows the smallest p-value is 1 / (m + 1)
        least = math.ceil(1 / self.contamination - 1 - _ROUNDING)
        if count < least:
            raise InputError(
                f"got n_samples = {len(X)}, {count} of them for calibration; expected at least {least} for a rate of "
                f"{self.contamination:g}; try more rows, or contamination={1 / (count + 1):.2g}"
            )
        parts = split(len(X), Sizes(0, count), as_key(options["key"]))
        train, calibration = (_safe_indexing(X, rows) for rows in (parts.train, parts.calibration))
        self.flow_ = density(train, calibration=calibration, **options)
        scores = self.flow_.log_prob(calibration).astype(np.float64)
        return scores, -conformal_quantile(-scores, 1 - self.contamination)

    def _fit_training(self, X, options):
        """Log densities of all rows, and the threshold below which a row is flagged."""
        self.flow_ = density(X, **options)
        scores = self.flow_.log_prob(X).astype(np.float64)
        return scores, float(np.sort(scores)[math.floor(self.contamination * len(X) + _ROUNDING)])

    def score_samples(self, X: Any) -> Float[np.ndarray, " n"]:
        """Log density of each row, in nats; the smaller, the more anomalous."""
        rows = self._rows(X)
        return self.flow_.log_prob(rows).astype(np.float64)

    @available_if(_of_novelties)
    def p_values(self, X: Any) -> Float[np.ndarray, " n"]:
        """Split-conformal p-value of each row, weighted if the detector is `shifted`."""
        return self._p_values(self._judged(self._rows(X)))

    def _judged(self, rows):
        """Scores of rows, larger for anomalous ones, and their weights, which are equal without a shift."""
        log_prob = self.flow_.log_prob(rows).astype(np.float64)
        return Shifted(log_prob, -log_prob, np.ones(len(rows))) if self.ratio_ is None else self.ratio_(rows, log_prob)

    def _p_values(self, judged):
        if self.held_out_ is None:
            return conformal_p_values(judged.score, -self.calibration_scores_)
        held_out = self.held_out_
        return weighted_conformal_p_values(judged.score, held_out.score, judged.weight, held_out.weight)

    @available_if(_of_novelties)
    def scores(self, X: Any) -> Scores:
        """Columns of each row, with p_value, q_value and flag (as by `predict`); see `Scores`."""
        judged = self._judged(self._rows(X))
        p_value = self._p_values(judged)
        q_value, rate = adjusted_p_values(p_value), self.contamination if self.fdr is None else self.fdr
        flag = self._flagged(judged)
        decisions = {"flag": flag, "q_value": q_value, "discovery": q_value <= rate if self.fdr is None else flag}
        columns = {"row": np.arange(len(p_value)), "log_prob": judged.log_prob, "score": judged.score}
        return Scores({**columns, "p_value": p_value, **decisions})

    def _flagged(self, judged):
        if self.fdr is None and self.ratio_ is None:
            return judged.log_prob < self.offset_
        if self.fdr is None:
            return self._p_values(judged) <= self.contamination
        if self.ratio_ is None or self.held_out_ is None:
            return benjamini_hochberg(self._p_values(judged), self.fdr)
        held_out = self.held_out_
        weights = judged.weight, held_out.weight
        return weighted_discoveries(judged.score, held_out.score, *weights, self.fdr, self.ratio_.key)

    @available_if(_of_novelties)
    def false_discoveries(self, X: Any, confidence: float = 0.9) -> float:
        """An upper bound on the share of normal rows among the rows of X that `predict` flags.

        It holds with probability `confidence` (over calibration rows and X), if new normal rows have the distribution
        of the training rows; see `diagnostics.false_discovery_bound`.

        Raises:
            InputError: for a detector that is `shifted`.
        """
        self._require_unshifted("fdr=0.1")
        judged = self._judged(self._rows(X))
        p_value, flagged = self._p_values(judged), self._flagged(judged)
        return false_discovery_bound(p_value, flagged, len(self.calibration_scores_), confidence, self._seed())

    @available_if(_of_novelties)
    def monitor(self, X: Any, alpha: float | int = 0.01) -> Monitoring:
        """Detect whether and when the rows of a stream began to differ from the calibration rows.

        The probability of a false alarm is at most `alpha`, over the whole stream, however long it is; see
        `diagnostics.monitored`. A single anomaly is not a change; use `predict` to detect it.

        Args:
            X: rows in the order in which they arrived.
            alpha: the probability of a false alarm.

        Raises:
            InputError: for a detector that is `shifted`, since weighted p-values are not independent of each other.
        """
        self._require_unshifted("a detector fitted to rows of the new conditions")
        return monitored(-self.score_samples(X), -self.calibration_scores_, float(alpha), self._seed())

    @available_if(_of_novelties)
    def shifted(self, X: Any, columns: int | str | Sequence[int | str] | None = None) -> "AnomalyDetector":
        """A copy of the detector for rows from shifted conditions, with weighted conformal p-values.

        Calibration rows are weighted by the ratio of two densities, of `X` and of the training rows, in the columns
        that describe the conditions. Rows are scored by the density of the other columns given the conditions, so that
        a rare condition is not an anomaly. The guarantees hold if normal rows differ only in the distribution of these
        conditions, as far as both densities are correct. Anomalies must not be visible in these columns: otherwise they
        count as a new condition, and are not found.

        Args:
            X: rows of the new conditions, at least a few hundred; they may contain anomalies.
            columns: the columns that describe the conditions, one or several, by position or name; default all.

        Raises:
            InputError: for an unknown column, or a detector of non-numeric tables.
        """
        self._require_numbers("a shift")
        new = self._rows(X)
        places = self._places(columns)
        old = self.flow_.frame.from_model(self.flow_.reference)
        detector = copy(self)
        detector.ratio_ = Shift.fit(old, new, places, self._options(DensityConfig, self._seed()))
        detector.held_out_ = detector._judged(self.flow_.calibration_rows)
        return detector

    def _require_unshifted(self, instead: str) -> None:
        """Refuse a shifted detector, which judges rows by weighted p-values of another score."""
        if getattr(self, "ratio_", None) is not None:
            raise InputError(f"got a shifted detector; expected one of rows like the training rows; try {instead}")

    def _places(self, columns):
        names, count = list(getattr(self, "feature_names_in_", ())), len(self.flow_.names)
        columns = [columns] if isinstance(columns, (int, np.integer, str)) else columns
        places = range(count) if columns is None else [names.index(c) if c in names else c for c in columns]
        odd = [place for place in places if not isinstance(place, (int, np.integer)) or not 0 <= place < count]
        if odd or not len(places):
            raise InputError(
                f"got columns {list(columns or ())}; expected places from 0 to {count - 1}"
                + (f", or names among {', '.join(map(str, names))}" if names else "")
            )
        return np.array(places, int)

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"]:
        """Log density minus `offset_`: negative where the p-value is at most `contamination`.

        Raises:
            InputError: for a detector that is `shifted`, whose decision depends on weights.
        """
        self._require_unshifted("p_values")
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """1 for normal rows, -1 for anomalous ones, shape (n,); with `fdr` the decision is for all rows together."""
        return np.where(self._flagged(self._judged(self._rows(X))), -1, 1)

    @available_if(_of_training)
    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and predict the training rows; only with `novelty=False`."""
        return self.fit(X).predict(X)


@dataclass(kw_only=True, eq=False, repr=False)
class PyODDetector(DensityEstimator):
    """A detector with the interface of PyOD: larger scores are more anomalous, and the label of an anomaly is 1.

    Args:
        contamination: share of the training rows that is flagged.

    Attributes:
        detector_: the fitted `AnomalyDetector`, with `novelty=False`.
        decision_scores_: scores of the training rows.
        threshold_: larger scores are flagged.
        labels_: labels of the training rows, 0 or 1.

    Examples:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(400, 2))
        >>> detector = PyODDetector(contamination=0.05, layers=2, steps=20, random_state=0).fit(x)
        >>> int(detector.labels_.sum()), detector.predict([[0.0, 0.0], [9.0, 9.0]]).tolist()
        (20, [0, 1])
    """

    contamination: float | int = field(default=0.1, kw_only=False)

    def fit(self, X: Any, y: Any = None) -> "PyODDetector":
        """Fit the density, and flag the training rows."""
        self.detector_ = AnomalyDetector(**self.get_params(), novelty=False).fit(X)
        self.decision_scores_, self.threshold_ = self.decision_function(X), -self.detector_.offset_
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        return self

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"]:
        """Negative log density of each row, in nats."""
        return -self.detector_.score_samples(X)

    def predict(self, X: Any) -> np.ndarray:
        """1 for anomalous rows, 0 for others, shape (n,)."""
        return (self.decision_function(X) > self.threshold_).astype(int)

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and return `labels_`."""
        return self.fit(X).labels_
