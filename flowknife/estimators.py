"""Estimators for scikit-learn: `AnomalyDetector`, `FlowDensity`, `FlowClassifier`, `FlowRegressor`.

Each fits in a pipeline, is cloned, searched and cross-validated like any estimator. What it fitted is in `flow_`, with
all that a result of `flowknife.apps` can do. They work on any table of numbers, features of other networks
too. Needs scikit-learn: `pip install "flowknife[sklearn]"`.

>>> import flowknife as fk
>>> detector = fk.AnomalyDetector(contamination=0.01)
>>> detector.fit(x_train).predict(x_test)  # doctest: +SKIP
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from flowknife._split import Sizes, split
from flowknife._types import as_key
from flowknife.apps import classify, density, invert
from flowknife.data.tables import in_order, names_in
from flowknife.diagnostics import Scores, adjusted_p_values, conformal_p_values
from flowknife.errors import CalibrationWarning, InputError

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, DensityMixin, OutlierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    raise InputError('scikit-learn is not installed; try pip install "flowknife[sklearn]"') from None

Settings = Mapping[str, Any] | None
"""Settings of the application behind a door, such as {"layers": 4, "train": {"minutes": 1}}."""


class AnomalyDetector(OutlierMixin, BaseEstimator):
    """Detects rows that are unlike the training rows, at a chosen false-alarm rate.

    A density is fitted to one part of the rows and calibrated with the other (split-conformal; Bates et al. 2023, arXiv
    2104.08279): of new rows of the same kind a share `contamination` is flagged and no more, whatever the data.

    Args:
        contamination: the rate of false alarms among normal rows, between 0 and 0.5.
        calibration: share of the rows that is held out for calibration and for nothing else.
        settings: fields of `DensityConfig`.
        random_state: seed of the split and of training.
        verbose: show a progress bar.

    Attributes:
        flow_: the fitted `Density`.
        calibration_scores_: log density of the calibration rows, ascending, shape (m,).
        offset_: rows of smaller log density are flagged.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(400, 2))
        >>> quick = {"layers": 2, "train": {"steps": 20}}
        >>> detector = AnomalyDetector(contamination=0.05, settings=quick, random_state=0).fit(x)
        >>> detector.predict([[0.0, 0.0], [9.0, 9.0]]).tolist()
        [1, -1]
    """

    def __init__(
        self,
        contamination: float | int = 0.01,
        *,
        calibration: float | int = 0.25,
        settings: Settings = None,
        random_state: Any = None,
        verbose: bool = False,
    ):
        self.contamination = contamination
        self.calibration = calibration
        self.settings = settings
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> "AnomalyDetector":
        """Fit the density and calibrate it.

        Raises:
            InputError: for a rate out of range, or too few rows to keep it.
        """
        if not 0 < self.contamination <= 0.5:
            raise InputError(f"got contamination={self.contamination}; expected more than 0, at most 0.5; try 0.01")
        if not 0 < self.calibration < 1:
            raise InputError(f"got calibration={self.calibration}; expected a share between 0 and 1; try 0.25")
        X = _rows(self, X, reset=True)
        generator = check_random_state(self.random_state)
        count = round(self.calibration * len(X))
        # the smallest p-value that m calibration rows can give is 1 / (m + 1)
        least = math.ceil(1 / self.contamination - 1 - 1e-9)
        if count < least:
            raise InputError(
                f"got n_samples = {len(X)}, {count} of them for calibration; expected at least {least} for a rate of "
                f"{self.contamination:g}; try more rows, or contamination={1 / (count + 1):.2g}"
            )
        parts = split(len(X), Sizes(0, count), as_key(_seed(generator)))
        options: dict[str, Any] = {"alpha": self.contamination, **_options(self, generator)}
        with warnings.catch_warnings():
            # as many rows as were asked for above; at a rate of exactly 1 / (count + 1) `predict` flags, p < alpha not
            warnings.simplefilter("ignore", CalibrationWarning)
            self.flow_ = density(X[parts.train], calibration=X[parts.calibration], **options)
        self.calibration_scores_ = np.sort(self.flow_.log_prob(X[parts.calibration]).astype(np.float64))
        self.offset_ = float(self.calibration_scores_[math.floor(self.contamination * (count + 1) + 1e-9) - 1])
        return self

    def score_samples(self, X: Any) -> Float[np.ndarray, " n"]:
        """Log density of each row, in nats; the smaller, the more anomalous."""
        check_is_fitted(self)
        return self.flow_.log_prob(_rows(self, X)).astype(np.float64)

    def p_values(self, X: Any) -> Float[np.ndarray, " n"]:
        """Split-conformal p-value of each row; see `flowknife.diagnostics.benjamini_hochberg` for many rows at once."""
        return conformal_p_values(-self.score_samples(X), -self.calibration_scores_)

    def scores(self, X: Any) -> Scores:
        """Columns of each row, with p_value, q_value and flag (as `predict` has it); see `Scores`."""
        log_prob = self.score_samples(X)
        p_value = conformal_p_values(-log_prob, -self.calibration_scores_)
        q_value = adjusted_p_values(p_value)
        decisions = {"flag": log_prob < self.offset_, "q_value": q_value, "discovery": q_value <= self.contamination}
        rows = {"row": np.arange(len(log_prob)), "log_prob": log_prob, "score": -log_prob}
        return Scores({**rows, "p_value": p_value, **decisions})

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"]:
        """Log density minus `offset_`: negative where the p-value is at most `contamination`."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """1 for rows like those of training, -1 for others, shape (n,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)


class FlowDensity(DensityMixin, BaseEstimator):
    """The density of the rows of a table, by a normalising flow.

    Args:
        settings: fields of `DensityConfig`.
        random_state: seed.
        verbose: show a progress bar.

    Attributes:
        flow_: the fitted `Density`.
    """

    def __init__(self, *, settings: Settings = None, random_state: Any = None, verbose: bool = False):
        self.settings = settings
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> "FlowDensity":
        """Fit the density."""
        X = _rows(self, X, reset=True)
        self.flow_ = density(X, **_options(self, check_random_state(self.random_state)))
        return self

    def score_samples(self, X: Any) -> Float[np.ndarray, " n"]:
        """Log density of each row, in nats."""
        check_is_fitted(self)
        return self.flow_.log_prob(_rows(self, X)).astype(np.float64)

    def scores(self, X: Any) -> Scores:
        """Columns of each row, such as p_value and flag; see `Scores`."""
        check_is_fitted(self)
        return self.flow_.score(_rows(self, X))

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the rows."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> np.ndarray:
        """New rows, shape (n_samples, d); always the same ones if `random_state` is a number."""
        check_is_fitted(self)
        return self.flow_.sample(n_samples, key=_seed(check_random_state(self.random_state)))


class FlowClassifier(ClassifierMixin, BaseEstimator):
    """A classifier with a density per class, which also detects rows of no class.

    Args:
        settings: fields of `ClassifyConfig`.
        random_state: seed.
        verbose: show a progress bar.

    Attributes:
        flow_: the fitted `Classifier`; its `score(X)["p_value"]` is small for rows of no class.
        classes_: the labels, sorted.
    """

    def __init__(self, *, settings: Settings = None, random_state: Any = None, verbose: bool = False):
        self.settings = settings
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> "FlowClassifier":
        """Fit the classifier to rows and their labels."""
        X, y = validate_data(self, _by_name(self, X, reset=True), y, dtype=np.float64)
        check_classification_targets(y)
        # the places of the classes, in the order of scikit-learn, whatever the labels are
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"got labels of {len(self.classes_)} class; expected at least 2")
        self.flow_ = classify(X, codes, **_options(self, check_random_state(self.random_state)))
        return self

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n k"]:
        """Probability of each class, in the order of `classes_`."""
        check_is_fitted(self)
        probabilities = np.asarray(self.flow_.predict_proba(_rows(self, X)), np.float64)
        return probabilities[:, np.argsort(self.flow_.classes)]

    def scores(self, X: Any) -> Scores:
        """Columns of each row: the class, its probability, and whether the row is of any class; see `Scores`."""
        check_is_fitted(self)
        found = self.flow_.score(_rows(self, X))
        return Scores({**found, "label": self.classes_[found["label"]]}, found.note)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]


class FlowRegressor(RegressorMixin, BaseEstimator):
    """Regression with the whole distribution p(y | X) of the targets.

    Args:
        draws: from p(y | X) for each row, of which means and quantiles are taken.
        settings: fields of `InvertConfig`.
        random_state: seed.
        verbose: show a progress bar.

    Attributes:
        flow_: the fitted `Posterior` of the targets given the features.
    """

    def __init__(self, *, draws: int = 400, settings: Settings = None, random_state: Any = None, verbose: bool = False):
        self.draws = draws
        self.settings = settings
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> "FlowRegressor":
        """Fit p(y | X) to rows and their targets, shape (n,) or (n, k)."""
        X = _by_name(self, X, reset=True)
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2)
        self._single = y.ndim == 1
        self.flow_ = invert(pairs=(y.reshape(len(y), -1), X), **_options(self, check_random_state(self.random_state)))
        return self

    def sample(self, X: Any, n: int = 1) -> np.ndarray:
        """Draws from p(y | X), shape (rows, n) or (rows, n, k); always the same ones if `random_state` is a number."""
        check_is_fitted(self)
        drawn = self.flow_.sample(n, y=_rows(self, X), key=_seed(check_random_state(self.random_state)))
        return drawn[..., 0] if self._single else drawn

    def predict(self, X: Any) -> np.ndarray:
        """Mean of p(y | X), the least-squares prediction, shape (n,) or (n, k)."""
        return self.sample(X, self.draws).mean(axis=1)

    def predict_quantiles(self, X: Any, q: Sequence[float | int] = (0.05, 0.5, 0.95)) -> np.ndarray:
        """Quantiles of p(y | X), shape (n, len(q)) or (n, len(q), k)."""
        return np.moveaxis(np.quantile(self.sample(X, self.draws), q, axis=1), 0, 1)


def _rows(estimator, X, reset=False):
    X = _by_name(estimator, X, reset)
    return validate_data(estimator, X, dtype=np.float64, reset=reset, ensure_min_samples=2 if reset else 1)


def _by_name(estimator, X, reset=False):
    """The columns of a DataFrame in the order of training; scikit-learn compares names only where all are words."""
    if reset:
        estimator._columns = names_in(X)
    elif estimator._columns is not None and not all(isinstance(name, str) for name in getattr(X, "columns", "x")):
        X = in_order(X, estimator._columns)
    return X


def _seed(generator):
    return int(generator.randint(2**31 - 1))


def _options(estimator, generator):
    settings = {} if estimator.settings is None else dict(estimator.settings)
    return {"key": _seed(generator), "show_progress": bool(estimator.verbose), **settings}
