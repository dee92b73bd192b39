"""Diagnostics of classifiers: accuracy, confusion, calibration of probabilities."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from flowknife.diagnostics._check import Check, Values
from flowknife.errors import InputError


def accuracy(labels: Values, predicted: Values) -> float:
    """Share of items whose predicted label is the true one.

    Args:
        labels: true labels, shape (n,).
        predicted: predicted labels, shape (n,), or probabilities, shape (n, K), whose largest one is the prediction.

    Raises:
        InputError: for shapes that do not fit.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    predicted = predicted.argmax(axis=1) if predicted.ndim == 2 else predicted
    if labels.ndim != 1 or labels.size == 0 or predicted.shape != labels.shape:
        raise InputError(f"got {labels.shape} labels and {predicted.shape} predictions; expected (n,) and as many")
    return float(np.mean(labels == predicted))


def confusion(labels: Values, predicted: Values, classes: int) -> Int[np.ndarray, "k k"]:
    """Counts of items by true class (row) and predicted class (column).

    Args:
        labels: true classes, integers 0 ... K - 1, shape (n,).
        predicted: predicted classes, shape (n,).
        classes: K.

    Raises:
        InputError: for shapes that do not fit or labels outside 0 ... K - 1.

    Examples:
        >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    predicted = _whole(predicted, classes, "predictions")
    labels = _whole(labels, classes, "labels")
    if labels.shape != predicted.shape:
        raise InputError(f"got {labels.size} labels and {predicted.size} predictions; expected as many")
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _whole(values, classes, name):
    values = np.asarray(values)
    whole = values.astype(int) if values.dtype.kind in "iufb" and np.isfinite(values).all() else None
    if whole is None or values.ndim != 1 or np.any(whole != values) or np.any((whole < 0) | (whole >= classes)):
        raise InputError(
            f"got {name} of shape {values.shape} and dtype {values.dtype}; expected (n,) whole numbers 0 to "
            f"{classes - 1}, the places of the classes"
        )
    return whole


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, in bins of the probability of the predicted class.

    Attributes:
        edges: edges of the bins, shape (bins + 1,).
        confidence: mean probability of the predicted class in each bin, NaN in an empty one, shape (bins,).
        accuracy: share of correct predictions in each bin, NaN in an empty one, shape (bins,).
        counts: items in each bin, shape (bins,).
    """

    edges: Float[np.ndarray, " k_plus_1"] = field(repr=False)
    confidence: Float[np.ndarray, " k"] = field(repr=False)
    accuracy: Float[np.ndarray, " k"] = field(repr=False)
    counts: Int[np.ndarray, " k"] = field(repr=False)

    @property
    def error(self) -> float:
        """The expected calibration error sum_b n_b / n |accuracy_b - confidence_b| (Guo et al. 2017, eq. 3)."""
        return float(np.sum(self._weights * np.abs(self._gap)))

    @property
    def noise(self) -> float:
        """Expected `error` of perfectly calibrated probabilities, which is positive because bins hold few items."""
        spread = np.sqrt(self.confidence * (1 - self.confidence) / np.maximum(self.counts, 1))
        return float(np.sum(self._weights * np.sqrt(2 / np.pi) * np.nan_to_num(spread)))

    @property
    def check(self) -> Check:
        """The check that the error exceeds that of calibrated probabilities by less than 0.05."""
        return Check("expected calibration error", self.error, 0.05 + self.noise)

    @property
    def verdict(self) -> str:
        """A summary in one sentence."""
        gap = float(np.sum(self._weights * self._gap))
        error = f"expected calibration error {self.error:.3f}, of which {self.noise:.3f} is sampling noise"
        if self.error < 2 * self.noise + 0.005:
            return f"The probabilities are calibrated, as far as {self.counts.sum():,} items can show: {error}."
        kind = "over" if gap < 0 else "under"
        return f"The classifier is {kind}confident by {abs(gap):.3f} on average: {error}."

    @property
    def _weights(self):
        return self.counts / self.counts.sum()

    @property
    def _gap(self):
        return np.nan_to_num(self.accuracy - self.confidence)


def reliability(probabilities: Values, labels: Values, bins: int = 15) -> Reliability:
    """Confidence against accuracy in bins of equal width (Guo et al. 2017, arXiv 1706.04599, sec. 2).

    Args:
        probabilities: class probabilities, shape (n, K), rows summing to 1.
        labels: true classes, integers 0 ... K - 1, shape (n,).
        bins: number of bins of [0, 1], closed at the right.

    Raises:
        InputError: for shapes that do not fit, or rows that are not probabilities.
    """
    probabilities = np.asarray(probabilities, float)
    if probabilities.ndim != 2 or probabilities.size == 0 or bins < 1:
        raise InputError(
            f"got probabilities of shape {probabilities.shape} and bins={bins}; expected (n, K) and at least 1 bin"
        )
    labels = _whole(labels, probabilities.shape[1], "labels")
    if len(labels) != len(probabilities):
        raise InputError(f"got {len(labels)} labels for {len(probabilities)} rows of probabilities; expected as many")
    if not (np.all(probabilities >= 0) and np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-3)):
        raise InputError("got rows that are negative or do not sum to 1; expected probabilities; try a softmax")
    confidence = np.minimum(probabilities.max(axis=1), 1.0)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = np.where(counts > 0, counts, np.nan)
    means = [np.bincount(place, weights=values, minlength=bins) / filled for values in (confidence, right)]
    return Reliability(edges, *means, counts)


def expected_calibration_error(probabilities: Values, labels: Values, bins: int = 15) -> float:
    """Mean distance of accuracy from confidence over bins of confidence; see `reliability`."""
    return reliability(probabilities, labels, bins).error
