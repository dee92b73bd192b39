"""Of flows: the round trip, the law of the latents, and how strange an item is."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from flowknife.bijections import Bijection
from flowknife.bijections._linear import shrunk_covariance
from flowknife.errors import InputError


def round_trip_error(bijection: Bijection, x: ArrayLike, cond: Array | None = None) -> float:
    """Largest |decode(encode(x)) - x|, in units of the spread of x.

    Args:
        bijection: the map.
        x: points `(*batch, *shape)`.
        cond: condition, where the map has one.
    """

    @eqx.filter_jit
    def there_and_back(bijection, x):
        return bijection.decode(bijection.encode(x, cond)[0], cond)[0]

    x = jnp.asarray(x)
    return float(jnp.max(jnp.abs(there_and_back(bijection, x) - x)) / jnp.maximum(jnp.std(x), 1e-12))


def conformal_p_values(scores: Float[np.ndarray, " n"], held_out: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """Split-conformal p-values: the share of held-out normal scores at least as extreme.

        p = (1 + #{held-out >= score}) / (1 + m)

    If a new item comes from the same distribution as the held-out ones, P(p <= a) <= a for every a, whatever the score
    (Vovk et al. 2005; Bates et al. 2023, arXiv 2104.08279).

    Args:
        scores: larger is stranger; NaN counts as strangest.
        held_out: scores of normal items that were not trained on.
    """
    ordered = np.sort(np.asarray(held_out, float))
    scores = np.nan_to_num(np.asarray(scores, float), nan=np.inf, posinf=np.inf)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1 + at_least) / (1 + len(ordered))


def auroc(normal: Float[np.ndarray, " n"], other: Float[np.ndarray, " m"]) -> float:
    """Area under the ROC curve: the probability that an `other` score exceeds a `normal` one, ties counted half."""
    normal, other = np.asarray(normal, float), np.asarray(other, float)
    ordered = np.sort(normal)
    below = np.searchsorted(ordered, other, side="left") + np.searchsorted(ordered, other, side="right")
    return float(np.mean(below) / (2 * len(ordered)))


class Typicality(eqx.Module):
    """How far a feature vector is from those of normal items, in both directions.

        score = sqrt((f - m)^T S^-1 (f - m))

    with the mean m and the (shrunk) covariance S of the features of training items; p-values come from items that were
    held out. Fed with the spread of the latents and the likelihood of every level of a flow, it is a two-sided
    typical-set test: a blurred or a blank picture, of *higher* likelihood than the training pictures, is as strange as
    a noisy one. Raw likelihood is not (Nalisnick et al. 2019, arXiv 1810.09136).

    Attributes:
        mean: m, shape (k,).
        scale: standard deviation of each feature, shape (k,).
        precision: inverse covariance of the features in these units, shape (k, k).
        held_out: sorted scores of the held-out items, shape (m,).
    """

    mean: Float[np.ndarray, " k"]
    scale: Float[np.ndarray, " k"]
    precision: Float[np.ndarray, "k k"]
    held_out: Float[np.ndarray, " m"]

    @classmethod
    def fit(cls, features: Float[np.ndarray, "n k"], held_out: Float[np.ndarray, "m k"]) -> "Typicality":
        """Fit the mean and the covariance to training features, and calibrate with held-out features.

        Raises:
            InputError: for fewer than 2 training or held-out rows.
        """
        if min(len(features), len(held_out)) < 2:
            raise InputError(
                f"got {len(features)} training and {len(held_out)} held-out rows; expected at least 2 each"
            )
        mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-9)
        variances, axes = shrunk_covariance(jnp.asarray((features - mean) / scale))
        precision = np.asarray((axes / np.maximum(variances, 1e-6)) @ axes.T, float)
        fitted = cls(mean, scale, precision, np.zeros(0))
        return cls(mean, scale, precision, np.sort(fitted.score(held_out)))

    def score(self, features: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
        """Scores of items; larger is stranger."""
        difference = (np.asarray(features, float) - self.mean) / self.scale
        return np.sqrt(np.einsum("ni,ij,nj->n", difference, self.precision, difference))

    def p_values(self, features: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
        """Split-conformal p-values of new items."""
        return conformal_p_values(self.score(features), self.held_out)


def principal_plane(x: Float[np.ndarray, "n d"], *others: Float[np.ndarray, "_ d"]) -> list[Float[np.ndarray, "_ 2"]]:
    """The rows of `x`, and of each of `others`, on the plane of the two leading principal axes of `x`.

    Works on the n x n Gram matrix, so d may be large.
    """
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=0)
    centred = x - mean
    values, vectors = np.linalg.eigh(centred @ centred.T)
    axes = (centred.T @ vectors[:, ::-1][:, :2]) / np.sqrt(np.maximum(values[::-1][:2], 1e-300))
    return [(np.asarray(rows, np.float64) - mean) @ axes for rows in (x, *others)]


def ks_normal(z: Float[np.ndarray, "..."]) -> float:
    """Kolmogorov-Smirnov distance between all the numbers in `z` and N(0, 1)."""
    z = np.sort(np.ravel(z))
    normal = np.asarray(jax.scipy.stats.norm.cdf(z))
    steps = np.arange(len(z) + 1) / len(z)
    return float(max(np.max(normal - steps[:-1]), np.max(steps[1:] - normal)))
