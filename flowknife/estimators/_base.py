"""Base classes of the estimators: settings as arguments, matching of columns by name, and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from flowknife._settings import Settings
from flowknife.apps._tables import models_more
from flowknife.data.encoding import in_numbers, remedy, suggesting
from flowknife.data.tables import in_order, names_in
from flowknife.errors import InputError
from flowknife.train import Training

try:
    from sklearn.base import BaseEstimator
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    raise InputError('scikit-learn is not installed; try pip install "flowknife[sklearn]"') from None


@dataclass(kw_only=True, eq=False, repr=False)
class FlowEstimator(BaseEstimator):
    """Base of the estimators: settings of training, and sizes of the network.

    Args:
        layers: couplings.
        width: hidden units of each coupling's network.
        depth: hidden layers of each coupling's network.
        epochs: passes over the training rows; training ends at whichever of `epochs`, `steps` and `minutes` is first.
        steps: optimiser steps.
        minutes: time budget of the whole fit.
        batch_size: rows per step.
        learning_rate: peak learning rate.
        optimiser: optimisation algorithm.
        schedule: schedule of the learning rate after the warm-up.
        decay: final / peak rate of the exponential schedule.
        warmup: steps of linear warm-up.
        clip: largest global norm of the gradient.
        weight_decay: decoupled weight decay, per unit of learning rate.
        average: decay of the moving average of the weights.
        matmul: precision of the matrix products of training, on GPUs and TPUs.
        validation: share of the rows held out for early stopping and calibration.
        evaluate_every: steps between evaluations.
        patience: evaluations without improvement before stopping; 0: train to the end.
        random_state: seed of the split, of training and of draws.
        verbose: show a progress bar.
    """

    layers: int | None = None
    width: int | None = None
    depth: int | None = None
    epochs: float | int | None = None
    steps: int | None = None
    minutes: float | int | None = None
    batch_size: int | None = None
    learning_rate: float | int | None = None
    optimiser: Literal["adam", "adamax", "nadam", "amsgrad"] | None = None
    schedule: Literal["cosine", "exponential", "constant"] | None = None
    decay: float | int | None = None
    warmup: int | None = None
    clip: float | int | None = None
    weight_decay: float | int | None = None
    average: float | int | None = None
    matmul: Literal["float32", "tensorfloat32", "bfloat16"] | None = None
    validation: float | int | None = None
    evaluate_every: int | None = None
    patience: int | None = None
    random_state: Any = None
    verbose: bool = False

    def _seed(self) -> int:
        """The first seed of `random_state`; fixed if that is a number."""
        return seed_of(check_random_state(self.random_state))

    def _options(self, config: type[Settings], seed: int) -> dict[str, Any]:
        """The arguments of a fit with settings of the class `config`."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        settings = {name: value for name, value in own.items() if name in config.model_fields}
        train = {name: value for name, value in own.items() if name in Training.model_fields}
        return {**settings, "train": train, "key": seed, "show_progress": bool(self.verbose)}

    def _rows(self, X: Any, reset: bool = False) -> Any:
        """Rows in the columns of training: an array of numbers, or the original table if it may be non-numeric."""
        if not reset:
            check_is_fitted(self)
        X = self._by_name(X, reset)
        if self._models_more():
            return validate_data(self, X, reset=reset, skip_check_array=True)
        return self._validated(X, dtype=np.float64, reset=reset, ensure_min_samples=2 if reset else 1)

    def _models_more(self) -> bool:
        """Whether rows may be non-numeric."""
        return False

    def _remedy(self, X: Any) -> str:
        """Advice on converting rows to finite numbers; "" for numeric rows."""
        return f"columns of numbers: {helps}" if (helps := in_numbers(X, None)) else ""

    def _validated(self, X: Any, *y: Any, **how: Any) -> Any:
        """Validated rows of finite numbers, and targets; the error for other rows includes advice."""

        def advice():
            helps = self._remedy(X)
            return f"try {helps}" if helps else ""

        with suggesting(advice, of=ValueError):
            return validate_data(self, X, *y, **how)

    def _by_name(self, X: Any, reset: bool = False) -> Any:
        """The columns of a DataFrame in the order of training; scikit-learn compares names only if all are strings."""
        if reset:
            self._columns = names_in(X)
        elif self._columns is not None and not all(isinstance(name, str) for name in getattr(X, "columns", "x")):
            X = in_order(X, self._columns)
        return X


@dataclass(kw_only=True, eq=False, repr=False)
class TableEstimator(FlowEstimator):
    """Base of the estimators for tables that may be non-numeric; in addition to the settings of `FlowEstimator`.

    Args:
        categories: names of categorical columns; "auto": all columns of text or booleans; None: none.
        dates: names of date columns; "auto": all columns that hold only dates; None: none.
        missing: "model" to model missing values; None: they are refused.
    """

    categories: Literal["auto"] | Sequence[str] | None = None
    dates: Literal["auto"] | Sequence[str] | None = None
    missing: Literal["refuse", "model"] | None = None

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "model"
        tags.input_tags.categorical = tags.input_tags.string = self.categories is not None
        return tags

    def _models_more(self) -> bool:
        return models_more(self)

    def _remedy(self, X: Any) -> str:
        return remedy(X, None, drop_invalid=False, shell=False)

    def _require_numbers(self, what: str) -> None:
        """Refuse an operation that needs purely numeric rows."""
        if self._models_more():
            raise InputError(f"got categories, dates or missing values; {what} takes numbers; try a fit to numbers")


def seed_of(generator: np.random.RandomState) -> int:
    """The next seed of a generator."""
    return int(generator.randint(2**31 - 1))
