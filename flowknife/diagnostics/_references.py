"""Losses of simple reference models, for comparison on the same rows.

Losses are per row, in nats (images: bits per dimension), on rows that were not used to fit the simple model.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.special import logsumexp, ndtr, softmax

from flowknife._frame import robust_spread
from flowknife.diagnostics._check import Check

_BINS = 32
_WIDE_SHARE = 0.01  # share of a Cauchy density in a histogram, since rows may lie outside of its bins
_FINEST = 0.1  # smallest width of a histogram's bins in spreads, since ties have no density
_PIXELS = 512  # numbers per row up to which a classifier uses all covariances
_OUTLYING = 10.0  # limit of the standard deviation of differences, in interquartile ranges
_DEVIATIONS = 3.0  # standard errors by which a model may be worse by chance

Losses = Float[np.ndarray, " n"]


def reference_check(what: str, model: Losses, references: Mapping[str, Losses], tolerance: float) -> Check:
    """The check that a model's mean loss is no larger than that of the best simple reference.

    The limit is the reference's mean loss plus `tolerance` plus three standard errors of the difference.

    Args:
        what: name of the loss, such as "nll".
        model: losses of the model, one for each row.
        references: losses of simple models on the same rows, by name.
        tolerance: allowed excess of the loss.
    """
    model = np.asarray(model, np.float64)
    means = {name: float(np.mean(losses)) for name, losses in references.items()}
    best = min(means, key=means.__getitem__)
    difference = model - references[best]
    error = 0.0
    if np.all(np.isfinite(difference)):
        # a single extreme row must not widen its own tolerance
        usual = _OUTLYING * np.subtract(*np.quantile(difference, [0.75, 0.25]))
        error = float(min(np.std(difference), max(usual, 1.0))) / len(difference) ** 0.5
    name = f"held-out {what} ({best}: {means[best]:.3g})"
    return Check(name, float(np.mean(model)), means[best] + tolerance + _DEVIATIONS * error)


def gaussian_losses(train: Float[np.ndarray, "m d"], rows: Float[np.ndarray, "n d"]) -> Losses:
    """Negative log density of rows under a Gaussian fitted to other rows, with slightly shrunk covariance."""
    train, rows, scale = _standard(train, rows)
    if not train.shape[1]:
        return np.zeros(len(rows))
    mean, count = train.mean(axis=0), len(train)
    covariance = np.cov(train.T, bias=True).reshape(train.shape[1], -1)
    weight = min(1.0, train.shape[1] / (count + train.shape[1]))
    covariance = (1 - weight) * covariance + weight * np.diag(np.diag(covariance)) + 1e-6 * np.eye(len(covariance))
    root = np.linalg.cholesky(covariance)
    z = np.linalg.solve(root, (rows - mean).T).T
    log_det = np.sum(np.log(np.diag(root))) + np.sum(np.log(scale))
    return 0.5 * np.sum(z**2, axis=1) + 0.5 * rows.shape[1] * np.log(2 * np.pi) + log_det


def histogram_losses(train: Float[np.ndarray, "m d"], rows: Float[np.ndarray, "n d"]) -> Losses:
    """Negative log density of rows under independent histograms of the columns, with bins of about equal counts."""
    train, rows = np.asarray(train, np.float64), np.asarray(rows, np.float64)
    spread, middle = robust_spread(train), np.median(train, axis=0)
    bins = int(np.clip(len(train) ** (1 / 3), 4, _BINS))
    losses = np.zeros(len(rows))
    for i in np.flatnonzero(spread > 0):
        edges = _apart(np.quantile(train[:, i], np.linspace(0, 1, bins + 1)), _FINEST * spread[i])
        counts, _ = np.histogram(train[:, i], edges)
        heights = counts / len(train) / np.diff(edges)
        place = np.searchsorted(edges, rows[:, i], side="right") - 1
        inside = (place >= 0) & (place < len(heights))
        own = np.where(inside, heights[np.clip(place, 0, len(heights) - 1)], 0.0)
        wide = 1 / (np.pi * spread[i] * (1 + ((rows[:, i] - middle[i]) / spread[i]) ** 2))
        losses -= np.log((1 - _WIDE_SHARE) * own + _WIDE_SHARE * wide)
    return losses


def _apart(edges, least):
    """Edges that are at least `least` apart; the last one lies beyond the largest value."""
    kept = [edges[0]]
    for edge in edges[1:]:
        if edge - kept[-1] >= least:
            kept.append(edge)
    return np.array([*kept[: max(len(kept) - 1, 1)], max(np.nextafter(edges[-1], np.inf), kept[-1], kept[0] + least)])


def _standard(train, rows):
    """The columns that vary in `train`, standardised in both tables, and their standard deviations."""
    train, rows = np.asarray(train, np.float64), np.asarray(rows, np.float64)
    varies = robust_spread(train) > 0
    train, rows = train[:, varies], rows[:, varies]
    scale = train.std(axis=0)
    middle = train.mean(axis=0)
    return (train - middle) / scale, (rows - middle) / scale, scale


def class_losses(
    train: Float[np.ndarray, "m d"],
    labels: Int[np.ndarray, " m"],
    rows: Float[np.ndarray, "n d"],
    known: Int[np.ndarray, " n"],
    classes: int,
) -> dict[str, tuple[Losses, Losses]]:
    """Cross-entropy and errors (0 or 1) of simple classifiers, by name.

    These are the class frequencies alone, and Gaussians with a common covariance (linear discriminant analysis;
    diagonal for very wide rows).

    Args:
        train: rows of known class.
        labels: their class numbers.
        rows: rows to classify.
        known: their class numbers.
        classes: number of classes.
    """
    counts = np.bincount(labels, minlength=classes) + 0.5
    log_prior = np.log(counts / counts.sum())
    found = {"class frequencies": np.broadcast_to(log_prior, (len(rows), classes))}
    train, rows, _ = _standard(train, rows)
    if train.shape[1] and len(train) > classes:
        means = np.stack([train[labels == k].mean(axis=0) if np.any(labels == k) else train[0] for k in range(classes)])
        residual = train - means[labels]
        variance = np.mean(residual**2, axis=0) + 1e-3
        if train.shape[1] <= _PIXELS:
            weight = min(1.0, train.shape[1] / len(train))
            covariance = (1 - weight) * residual.T @ residual / len(train) + np.diag(weight * variance)
            root = np.linalg.cholesky(covariance + 1e-4 * np.eye(len(variance)))
            z, centres = np.linalg.solve(root, rows.T).T, np.linalg.solve(root, means.T).T
        else:
            z, centres = rows / np.sqrt(variance), means / np.sqrt(variance)
        scores = z @ centres.T - 0.5 * np.sum(centres**2, axis=1) + log_prior
        seen = np.bincount(labels, minlength=classes) > 0
        scores = np.where(seen, scores, -1e3)
        found["linear classifier"] = scores - logsumexp(scores, axis=1, keepdims=True)
    own = np.arange(len(rows)), known
    return {name: (-log_p[own], (np.argmax(log_p, axis=1) != known).astype(float)) for name, log_p in found.items()}


def cross_entropies(log_joint: Float[np.ndarray, "n k"], known: Int[np.ndarray, " n"]) -> tuple[Losses, Losses]:
    """Cross-entropy and errors (0 or 1) of a classifier, from log probabilities up to a constant for each row."""
    own = np.arange(len(known)), known
    probability = softmax(log_joint, axis=1)
    return -np.log(np.maximum(probability[own], 1e-300)), (np.argmax(log_joint, axis=1) != known).astype(float)


def image_losses(
    train: UInt8[np.ndarray, "m h w c"], images: UInt8[np.ndarray, "n h w c"], bits: int
) -> dict[str, Losses]:
    """Bits per dimension of images under simple models fitted to other images, by name.

    One normal distribution per pixel and channel, and one histogram of the values of all pixels.

    Args:
        train: images, uint8.
        images: images, uint8.
        bits: bits per channel.
    """
    levels = 2**bits
    train, images = (np.asarray(part).astype(np.int64) >> (8 - bits) for part in (train, images))
    mean, spread = train.mean(axis=0), np.maximum(train.std(axis=0), 0.3)
    upper, lower = (images + 0.5 - mean) / spread, (images - 0.5 - mean) / spread
    upper, lower = np.where(images == levels - 1, np.inf, upper), np.where(images == 0, -np.inf, lower)
    mass = np.where(lower > 0, ndtr(-lower) - ndtr(-upper), ndtr(upper) - ndtr(lower))
    counts = np.bincount(train.ravel(), minlength=levels) + 0.5
    shares = {"normal pixels": mass, "histogram of all pixels": (counts / counts.sum())[images]}
    flat = {name: share.reshape(len(images), -1) for name, share in shares.items()}
    return {name: -np.log2(0.99 * share + 0.01 / levels).mean(axis=1) for name, share in flat.items()}
