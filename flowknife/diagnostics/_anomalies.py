"""Anomaly scores: false-discovery control, combined p-values, and the typicality test."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float, Int

from flowknife._types import sizes_agree
from flowknife.bijections._linear import shrunk_covariance
from flowknife.diagnostics._check import Values
from flowknife.diagnostics._conformal import conformal_p_values
from flowknife.errors import InputError


def adjusted_p_values(p_values: Values) -> Float[np.ndarray, " n"]:
    """Benjamini-Hochberg q-values: the smallest false discovery rate at which each item is a discovery.

        q_(i) = min over j >= i of n p_(j) / j,   p_(1) <= ... <= p_(n)

    (Benjamini & Hochberg 1995, J. R. Stat. Soc. B 57, 289; in this form Yekutieli & Benjamini 1999.)

    Args:
        p_values: one for each item, shape (n,).

    Raises:
        InputError: for anything but a vector of numbers from 0 to 1.

    Examples:
        >>> adjusted_p_values([0.01, 0.03, 0.04, 0.5]).round(4).tolist()
        [0.04, 0.0533, 0.0533, 0.5]
    """
    p = np.asarray(p_values, float)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise InputError(f"got p-values of shape {p.shape}; expected a vector of numbers from 0 to 1")
    from scipy.stats import false_discovery_control

    return false_discovery_control(p, method="bh") if len(p) else p


def benjamini_hochberg(p_values: Values, level: float | int = 0.05) -> Bool[np.ndarray, " n"]:
    """Benjamini-Hochberg: reject so that the false discovery rate is at most `level`.

    Split-conformal p-values are dependent, since they share held-out items, but in a way for which the procedure is
    still valid (Bates et al. 2023, arXiv 2104.08279, theorem 2).

    Args:
        p_values: one for each item, shape (n,).
        level: false-discovery rate.

    Raises:
        InputError: for p-values or a level outside 0 to 1.
    """
    if not 0 < level < 1:
        raise InputError(f"got level={level}; expected a rate between 0 and 1; try 0.05")
    return adjusted_p_values(p_values) <= level


def combined_p_values(p_values: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """Combine several p-values of each item into one, valid under any dependence.

        p = 1/2 - arctan(mean of tan(pi (1/2 - p_j))) / pi

    (the Cauchy combination, Liu & Xie 2020, arXiv 1808.09011; it is most accurate for small p).
    """
    p = np.clip(np.asarray(p_values, float), 1e-300, 0.99)  # a p of 1 would outweigh any small one
    with np.errstate(over="ignore"):
        mean = np.mean(np.where(p < 1e-9, 1 / (np.pi * p), np.tan(np.pi * (0.5 - p))), axis=1)
    return np.where(mean > 1e9, 1 / (np.pi * np.maximum(mean, 1.0)), 0.5 - np.arctan(mean) / np.pi)


def ranked(scores: Mapping[str, np.ndarray]) -> Int[np.ndarray, " n"]:
    """Indices of the items, most anomalous first: by p-value, then by score.

    Args:
        scores: columns by name; `score` and, if present, `p_value` are used.
    """
    return np.lexsort((-scores["score"], scores.get("p_value", np.zeros(len(scores["score"])))))


def radius_p_values(squares: Float[np.ndarray, "n k"], held_out: Float[np.ndarray, "m k"]) -> Float[np.ndarray, " n"]:
    """Two-sided p-values of latent radii |z|^2, combined over the k blocks of the latent.

    Each is compared with c chi^2(v), where c and the degrees of freedom v have the mean and the variance of held-out
    items (Satterthwaite 1946, Biometrics Bull. 2, 110). For a perfect model c = 1 and v is the size of the block; in
    practice the radii vary more.

    Args:
        squares: |z|^2 of each block of each item.
        held_out: the same for normal items that were not used in training.
    """
    from scipy.stats import chi2

    mean, variance = held_out.mean(axis=0), np.maximum(held_out.var(axis=0, ddof=1), 1e-12)
    freedom = 2 * mean**2 / variance
    scaled = squares * freedom / mean
    return combined_p_values(np.minimum(2 * np.minimum(chi2.cdf(scaled, freedom), chi2.sf(scaled, freedom)), 1.0))


def auroc(normal: Float[np.ndarray, " n"], other: Float[np.ndarray, " m"]) -> float:
    """Area under the ROC curve: the probability that an `other` score exceeds a `normal` one, ties counted half."""
    normal, other = np.asarray(normal, float), np.asarray(other, float)
    ordered = np.sort(normal)
    below = np.searchsorted(ordered, other, side="left") + np.searchsorted(ordered, other, side="right")
    return float(np.mean(below) / (2 * len(ordered)))


_BEYOND = 0.02  # the share of training items whose tail is modelled as exponential
_FEWEST_BEYOND = 5
_WIDTH = 0.9  # the quantile whose distance from the median measures the width of a distribution
_FOLDS = 10


_AXES = {
    "mean": "k",
    "scale": "k",
    "precisions": "g k k",
    "upward": "u",
    "weights": "u",
    "usual": "n v",
    "held_out": "m",
}


class Typicality(eqx.Module):
    """Two-sided anomaly score of feature vectors, relative to those of normal items.

        score^2 = sum over groups g of s(d_g)^2 + sum over upward j of (w_j s(f_j))^2
        d_g^2 = (f - m)^T P_g (f - m),   s(t) = -log P(T >= t), the surprisal at t

    with the mean m of the features f of held-out items, and P_g the inverse of the (shrunk) covariance of the features
    of a group among training items, zero elsewhere. The reference distribution of s has the shape of the distribution
    of training items, since these are many, and the location and width (median, 90 % quantile) of held-out items, since
    the model is overfitted to its training items. Beyond its 98 % quantile q, s(t) = -log 0.02 + (t - q) / E[T - q | T
    > q]; this tail is at least as heavy as the largest held-out value requires.

    One-sided features, for which larger values are more anomalous, are listed in `upward`, each with its weight w.
    Features with independent information may form a separate group; pooled with the others, their signal would be
    diluted. As surprisals, all terms have the same unit, and heavy-tailed features do not dominate.

    The p-values are cross-conformal (Vovk 2015, arXiv 1208.0806): each held-out item is scored with the location and
    width of the other nine tenths.

    With the spread of the latents and the likelihood of every level of a flow as features, it is a two-sided
    typical-set test: a blurred or a blank image, of *higher* likelihood than the training images, is as anomalous as a
    noisy one. Raw likelihood is not (Nalisnick et al. 2019, arXiv 1810.09136).

    Attributes:
        mean: m, shape (k,).
        scale: standard deviation of each feature, shape (k,).
        precisions: P_g of the features in these units, shape (g, k, k).
        upward: indices of the u one-sided features.
        weights: their weights w, shape (u,).
        usual: reference values of d_g and of the one-sided features, each sorted, shape (n, g + u).
        held_out: sorted scores of the held-out items, shape (m,).
    """

    mean: Float[np.ndarray, " k"]
    scale: Float[np.ndarray, " k"]
    precisions: Float[np.ndarray, "g k k"]
    upward: Int[np.ndarray, " u"]
    weights: Float[np.ndarray, " u"]
    usual: Float[np.ndarray, "n v"]
    held_out: Float[np.ndarray, " m"]

    def to_tree(self) -> dict[str, np.ndarray]:
        """Its arrays by name, to be saved."""
        return {item.name: np.asarray(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Typicality":
        """The inverse of `to_tree`.

        Raises:
            InputError: for the detector of an earlier version.
        """
        if "weights" not in tree:
            raise InputError("got a detector of an earlier version; expected one of this; try fitting again")
        made = cls(**{item.name: np.asarray(tree[item.name]) for item in fields(cls)})
        arrays = {item.name: getattr(made, item.name) for item in fields(cls)}
        fit = sizes_agree(*((_AXES[name], array) for name, array in arrays.items()))
        groups, places = len(made.precisions), made.upward
        if not fit or made.usual.shape[1] != groups + len(places) or not np.isin(places, range(len(made.mean))).all():
            shapes = {name: array.shape for name, array in arrays.items()}
            raise InputError(f"got a detector with arrays of shapes {shapes}, which do not fit; try a copy of the file")
        return made

    @classmethod
    def fit(
        cls,
        features: Float[np.ndarray, "n k"],
        held_out: Float[np.ndarray, "m k"],
        upward: Mapping[int, float | int] | None = None,
        apart: Sequence[int] = (),
    ) -> "Typicality":
        """Fit the covariances to training features, and calibrate on held-out features.

        Args:
            features: features of training items.
            held_out: features of held-out items; if empty, scores are relative to the training items, and there are no
                p-values.
            upward: one-sided columns, for which larger values are more anomalous, with their weights.
            apart: columns that form a separate group; all others are the first group.

        Raises:
            InputError: for fewer than 2 training rows, or a single held-out one.
        """
        if len(features) < 2 or len(held_out) == 1:
            raise InputError(
                f"got {len(features)} training and {len(held_out)} held-out rows; expected at least 2 each"
            )
        mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-9)
        groups = [np.setdiff1d(np.arange(features.shape[1]), np.array(apart, int)), np.array(apart, int)]
        precisions = np.stack([_precision((features - mean) / scale, group) for group in groups if len(group)])
        columns = np.array(list(upward or {}), int)
        weights = np.array(list((upward or {}).values()), float)
        nothing = np.zeros((0, len(precisions) + len(columns))), np.zeros(0)
        fitted = cls(mean, scale, precisions, columns, weights, *nothing)
        if not len(held_out):
            return replace(fitted._placed(features, features), held_out=np.zeros(0))
        scores = np.empty(len(held_out))
        for fold in np.array_split(np.arange(len(held_out)), min(_FOLDS, len(held_out))):
            others = fitted._placed(features, np.delete(held_out, fold, axis=0))
            scores[fold] = others.score(held_out[fold])
        return replace(fitted._placed(features, held_out), held_out=np.sort(scores))

    def _placed(self, features, held_out):
        """The reference distribution: the shape of the training features, location and width of the held-out ones."""
        centred = replace(self, mean=held_out.mean(axis=0))
        training, others = (centred._graded(items) for items in (features, held_out))
        (at, wide), (other_at, other_wide) = (
            (np.median(items, axis=0), np.quantile(items, _WIDTH, axis=0)) for items in (training, others)
        )
        stretch = np.maximum(other_wide - other_at, 1e-9) / np.maximum(wide - at, 1e-9)
        usual = np.sort(other_at + (training - at) * stretch, axis=0)
        tails = [_no_lighter_tail(column, seen) for column, seen in zip(usual.T, others.T, strict=True)]
        return replace(centred, usual=np.stack(tails, axis=1))

    def score(self, features: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
        """Scores of items; larger is more anomalous.

        Raises:
            InputError: for another number of features than in `fit`.
        """
        features = np.asarray(features, float)
        if features.shape[-1] != len(self.mean):
            raise InputError(
                f"got {features.shape[-1]} features for a detector of {len(self.mean)}; expected those that it was "
                "fitted to; try fitting again, if it is of an earlier version"
            )
        graded = self._graded(features)
        surprisals = np.stack([_surprisal(t, usual) for t, usual in zip(graded.T, self.usual.T, strict=True)])
        surprisals[len(self.precisions) :] *= self.weights[:, None]
        return np.linalg.norm(surprisals, axis=0)

    def _graded(self, features):
        """The terms of the score: the distances d_g, then the one-sided features."""
        difference = (features - self.mean) / self.scale
        squares = np.einsum("ni,gij,nj->ng", difference, self.precisions, difference, optimize=True)
        return np.column_stack([np.sqrt(squares), features[:, self.upward]])

    def tail(self, column: int) -> dict[str, float]:
        """The tail of a column of `usual`: its start, the surprisal `there`, and the mean `excess` beyond."""
        reference = self.usual[:, column]
        beyond, start, there = _tail(reference)
        return {"start": float(start), "there": float(there), "excess": _excess(reference, beyond, start)}

    def p_values(self, features: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
        """Cross-conformal p-values of new items; none is below 1 / (1 + held-out items)."""
        return conformal_p_values(self.score(features), self.held_out)


def _precision(features, group):
    """The inverse covariance of a group of features, embedded in a matrix of all features."""
    variances, axes = shrunk_covariance(np.asarray(features[:, group], np.float64))
    precision = np.zeros((features.shape[1],) * 2)
    precision[np.ix_(group, group)] = (axes / np.maximum(variances, 1e-6)) @ axes.T
    return precision


def _surprisal(t, reference):
    """-log P(T >= t) under the sorted reference values, with an exponential tail beyond the largest."""
    beyond, start, there = _tail(reference)
    excess = _excess(reference, beyond, start)
    return np.where(t <= start, -np.log(conformal_p_values(t, reference)), there + (t - start) / excess)


def _excess(reference, beyond, start):
    """Mean distance of the tail from its start."""
    return max(float(np.mean(reference[-beyond:])) - float(start), 1e-9)


def _tail(reference):
    """Length of the tail of the sorted reference values, its start, and the surprisal there."""
    n = len(reference)
    beyond = max(round(_BEYOND * n), min(_FEWEST_BEYOND, n // 2))
    return beyond, reference[-beyond - 1], np.log((1 + n) / (1 + beyond))


def _no_lighter_tail(reference, held_out):
    """The sorted reference values, with the tail stretched until the largest held-out value is plausible.

    The largest of m values has a surprisal above log m + 3 with a probability of 5 %.
    """
    beyond, start, there = _tail(reference)
    allowed = max(np.log(len(held_out)) + 3, there + 1)
    stretch = np.maximum((_surprisal(np.max(held_out, keepdims=True), reference) - there) / (allowed - there), 1.0)
    return np.concatenate([reference[:-beyond], start + stretch * (reference[-beyond:] - start)])
