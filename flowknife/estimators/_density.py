"""A density and a transformer as scikit-learn estimators."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from sklearn.base import ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted

from flowknife.apps import DensityConfig, density
from flowknife.diagnostics import Scores
from flowknife.errors import InputError
from flowknife.estimators._base import TableEstimator


@dataclass(kw_only=True, eq=False, repr=False)
class DensityEstimator(TableEstimator):
    """Base of the estimators that fit a `Density`; in addition to the settings of `TableEstimator`.

    Args:
        scalar: map that the couplings apply to each number.
        mixing: linear map between the couplings.
        smoothing: noise on the training rows, in standard deviations.
        ensemble: fits from different seeds that are averaged.
    """

    scalar: Literal["spline", "affine", "additive"] | None = None
    mixing: Literal["lu", "orthogonal", "permute"] | None = None
    smoothing: float | int | None = None
    ensemble: int | None = None

    def _fit(self, X):
        self.flow_ = density(self._rows(X, reset=True), **self._options(DensityConfig, self._seed()))


@dataclass(kw_only=True, eq=False, repr=False)
class FlowDensity(DensityMixin, DensityEstimator):
    """The density of the rows of a table, by a normalising flow.

    Args:
        alpha: rows with a p-value below it are flagged in `scores`.

    Attributes:
        flow_: the fitted `Density`.

    Examples:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(400, 2))
        >>> model = FlowDensity(layers=2, steps=20, random_state=0).fit(x)
        >>> model.score_samples(x).shape, model.sample(5).shape
        ((400,), (5, 2))
    """

    alpha: float | None = None

    def fit(self, X: Any, y: Any = None) -> "FlowDensity":
        """Fit the density."""
        self._fit(X)
        return self

    def score_samples(self, X: Any) -> Float[np.ndarray, " n"]:
        """Log density of each row, in nats."""
        rows = self._rows(X)
        return self.flow_.log_prob(rows).astype(np.float64)

    def scores(self, X: Any) -> Scores:
        """Columns of each row, such as p_value and flag; see `Scores`."""
        rows = self._rows(X)
        return self.flow_.score(rows)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the rows."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> Any:
        """Draw new rows, shape (n_samples, d); reproducible if `random_state` is a number.

        With categories, dates or missing values the result is a DataFrame.
        """
        check_is_fitted(self)
        return self.flow_.sample(n_samples, key=self._seed())


@dataclass(kw_only=True, eq=False, repr=False)
class FlowTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityEstimator):
    """Maps rows to the latent of a normalising flow, where they are standard normal and independent, and back.

    Columns that are constant in training have no latent; `inverse_transform` restores them.

    Attributes:
        flow_: the fitted `Density`.

    Examples:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(400, 2))
        >>> model = FlowTransformer(layers=2, steps=20, random_state=0).fit(x)
        >>> bool(np.allclose(model.inverse_transform(model.transform(x)), x, atol=1e-3))
        True
        >>> model.get_feature_names_out().tolist()
        ['flowtransformer0', 'flowtransformer1']
    """

    def fit(self, X: Any, y: Any = None) -> "FlowTransformer":
        """Fit the density."""
        self._fit(X)
        self._n_features_out = self.flow_.frame.dim
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "n k"]:
        """The latent of each row."""
        rows = self._rows(X)
        return self.flow_.encode(rows).astype(np.float64)

    def inverse_transform(self, X: Any) -> Any:
        """The row of each latent; with categories, dates or missing values a DataFrame."""
        check_is_fitted(self)
        z = check_array(X, dtype=np.float64)
        if z.shape[1] != self._n_features_out:
            raise InputError(f"got {z.shape[1]} numbers per latent; expected {self._n_features_out}")
        return self.flow_.decode(z)
