"""A generative classifier and a distributional regressor as scikit-learn estimators."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from flowknife.apps import ClassifyConfig, InvertConfig, classify, invert
from flowknife.diagnostics import Scores
from flowknife.errors import CalibrationWarning, InputError
from flowknife.estimators._base import FlowEstimator, TableEstimator, seed_of


@dataclass(kw_only=True, eq=False, repr=False)
class FlowClassifier(ClassifierMixin, TableEstimator):
    """A classifier with one density per class, which also detects rows of unknown classes.

    Args:
        law: law of the class: mixture, one Gaussian per class, or label, a one-hot block.
        beta: weight of the labels; 1/dimensions is the plain likelihood.
        scalar: map that the couplings apply to each number.
        smoothing: noise on the training rows, in standard deviations.
        alpha: rows with a p-value below it are flagged in `scores`.

    Attributes:
        flow_: the fitted `Classifier`; its `score(X)["p_value"]` is small for rows of unknown classes.
        classes_: the labels, sorted.

    Examples:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(400, 2))
        >>> model = FlowClassifier(layers=2, steps=20, random_state=0).fit(x, np.where(x[:, 0] > 0, "right", "left"))
        >>> model.classes_.tolist(), model.predict_proba(x).shape
        (['left', 'right'], (400, 2))
    """

    law: Literal["mixture", "label"] | None = None
    beta: float | int | None = None
    scalar: Literal["spline", "affine", "additive"] | None = None
    smoothing: float | int | None = None
    alpha: float | None = None

    def fit(self, X: Any, y: Any) -> "FlowClassifier":
        """Fit the classifier to rows and their labels."""
        X = self._by_name(X, reset=True)
        if self._models_more():
            X, y = validate_data(self, X, column_or_1d(y), skip_check_array=True)
            check_consistent_length(X, y)
        else:
            X, y = self._validated(X, y, dtype=np.float64)
        check_classification_targets(y)
        # class numbers in the order of scikit-learn
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"got labels of {len(self.classes_)} class; expected at least 2")
        self.flow_ = classify(X, codes, **self._options(ClassifyConfig, self._seed()))
        return self

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n k"]:
        """Probability of each class, in the order of `classes_`."""
        rows = self._rows(X)
        probabilities = np.asarray(self.flow_.predict_proba(rows), np.float64)
        return probabilities[:, np.argsort(self.flow_.classes)]

    def scores(self, X: Any) -> Scores:
        """Columns of each row: the class, its probability, and whether the row is of any class; see `Scores`."""
        rows = self._rows(X)
        found = self.flow_.score(rows)
        return Scores({**found, "label": self.classes_[found["label"]]}, found.note)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]


@dataclass(kw_only=True, eq=False, repr=False)
class FlowRegressor(RegressorMixin, FlowEstimator):
    """Regression with the whole distribution p(y | X) of the targets.

    Args:
        draws: number of draws from p(y | X) per row, for means and quantiles; all rows use the same latents, so that a
            prediction depends on its row only.
        form: the features are a condition of every coupling ("conditional"), or a block on the right ("partitioned").
        noise: standard deviation of Gaussian noise in the features (partitioned).
        scale: width of the law of noise-free features (partitioned), in standard deviations.
        features: learned features of a row, in addition to its numbers (conditional).
        matching: weight of MMD terms, added to the likelihood.
        independence: weight of the independence of latent and features, added to the likelihood (partitioned).
        ensemble: fits from different seeds that are averaged.

    Attributes:
        flow_: the fitted `Posterior` of the targets given the features.

    Examples:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(400, 2))
        >>> model = FlowRegressor(layers=2, steps=20, random_state=0).fit(x, x.sum(axis=1))
        >>> model.predict(x).shape, model.predict_quantile(x, [0.1, 0.9]).shape, model.sample(x, 3).shape
        ((400,), (400, 2), (400, 3))
    """

    draws: int = 400
    form: Literal["conditional", "partitioned"] | None = None
    noise: float | int | Sequence[float | int] | None = None
    scale: float | int | None = None
    features: int | None = None
    matching: float | int | None = None
    independence: float | int | None = None
    ensemble: int | None = None

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> "FlowRegressor":
        """Fit p(y | X) to rows and their targets, shape (n,) or (n, k)."""
        X = self._by_name(X, reset=True)
        X, y = self._validated(X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2)
        self._single = y.ndim == 1
        generator = check_random_state(self.random_state)
        options = self._options(InvertConfig, seed_of(generator))
        self._draws_seed = seed_of(generator)  # predictions of a fitted model are reproducible
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)  # nothing is flagged here
            self.flow_ = invert(pairs=(y.reshape(len(y), -1), X), **options)
        return self

    def sample(self, X: Any, n: int = 1) -> np.ndarray:
        """Draws from p(y | X), shape (rows, n) or (rows, n, k); reproducible if `random_state` is a number."""
        rows = self._rows(X)
        drawn = self.flow_.sample(n, y=rows, key=self._seed())
        return drawn[..., 0] if self._single else drawn

    def predict(self, X: Any) -> np.ndarray:
        """Mean of p(y | X), the least-squares prediction, shape (n,) or (n, k)."""
        return self._common_draws(X).mean(axis=1)

    def predict_quantile(self, X: Any, q: Sequence[float | int] | float | int = (0.05, 0.5, 0.95)) -> np.ndarray:
        """Quantiles of p(y | X), shape (n, len(q)) or (n, len(q), k); for a single q (n,) or (n, k)."""
        found = np.quantile(self._common_draws(X), q, axis=1)
        return np.moveaxis(found, 0, 1) if np.ndim(q) else found

    def _common_draws(self, X):
        rows = self._rows(X)
        drawn = self.flow_.sample(self.draws, y=rows, key=self._draws_seed, common=True)
        return drawn[..., 0] if self._single else drawn
