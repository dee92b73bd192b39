"""Empirical latent prior: a low-rank Gaussian fitted to the training latents, level by level."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from flowknife._types import Key, as_key
from flowknife.errors import InputError
from flowknife.laws import LARGEST_TEMPERATURE

_MOST_DIRECTIONS = 64  # per level

_MOST_NUMBERS = 400_000  # in the directions of a level, to keep runs small

ByLevel = float | int | Mapping[str, Any]
"""One number, or one for each level by name."""


@dataclass(frozen=True)
class Level:
    """N(mean, I + U diag(variances - 1) U^T) of one level's latents.

    Attributes:
        mean: shape (d,).
        directions: orthonormal rows U^T, shape (k, d).
        variances: along the directions, larger than 1, shape (k,).
    """

    mean: np.ndarray
    directions: np.ndarray
    variances: np.ndarray


@dataclass(frozen=True)
class Empirical:
    """Empirical prior: a Gaussian fitted to the latents of training images, level by level.

    Only directions with significantly more variance than N(0, I) are kept; along all others it is N(0, I).

    Attributes:
        levels: the levels by name, the coarsest first.
    """

    levels: dict[str, Level] = field(repr=False)

    @classmethod
    def fit(cls, latents: Float[np.ndarray, "n d"], sizes: Mapping[str, int]) -> "Empirical":
        """Fit it to latents, coarsest level first.

        Args:
            latents: latents of training images, see `Images.latents`.
            sizes: number of latents of each level, by name.
        """
        parts = np.split(latents, np.cumsum(list(sizes.values()))[:-1], axis=1)
        return cls({name: _fit_level(part) for name, part in zip(sizes, parts, strict=True)})

    def sample(
        self, n: int, *, key: Key = None, temperature: ByLevel = 1.0, shrink: ByLevel = 0.0
    ) -> Float[np.ndarray, "n d"]:
        """Draw latents.

        Args:
            n: number of draws.
            key: int, JAX key or None.
            temperature: scale of the draws around the mean, one number or one for each level by name.
            shrink: from 0, the Gaussian as fitted, to 1, N(0, I); one number or one for each level by name.

        Raises:
            InputError: for the name of a level that does not exist, or a number out of range.
        """
        temperatures = by_level(temperature, self.levels, "temperature", 1.0, LARGEST_TEMPERATURE)
        shrinks = by_level(shrink, self.levels, "shrink", 0.0, 1.0)
        keys = jax.random.split(as_key(key), len(self.levels))
        parts = []
        for (name, level), level_key in zip(self.levels.items(), keys, strict=True):
            noise = np.asarray(jax.random.normal(level_key, (n, len(level.mean))))
            kept = 1 - shrinks[name]
            wider = np.sqrt(1 + kept * (level.variances - 1)) - 1
            noise = noise + noise @ level.directions.T * wider @ level.directions
            parts.append(kept * level.mean + temperatures[name] * noise)
        return np.concatenate(parts, axis=1).astype(np.float32)

    def to_tree(self) -> dict[str, Any]:
        """Arrays for a model file, directions in half precision."""
        half = np.float16
        return {
            name: {"mean": lv.mean.astype(half), "directions": lv.directions.astype(half), "variances": lv.variances}
            for name, lv in self.levels.items()
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Empirical":
        """The inverse of `to_tree`."""
        names = ("mean", "directions", "variances")
        return cls({key: Level(*(np.asarray(level[n], np.float32) for n in names)) for key, level in tree.items()})


def _fit_level(z):
    """The significant leading directions of a sample covariance.

    Among n draws of N(0, I) in d dimensions the largest variance is (1 + sqrt(d / n))^2, not 1. A direction beyond that
    edge gets the optimal variance of the spiked model, whose other directions have variance 1 (Donoho, Gavish &
    Johnstone 2018, arXiv 1311.0851, sec. 4: Frobenius loss on the covariance); the mean is shrunk as James & Stein's.
    """
    from scipy.linalg import eigh

    count, size = z.shape
    z = np.asarray(z, np.float32)
    mean = z.mean(axis=0)
    # a single outlier must not define a direction: latents are clipped to four times the typical radius
    centred = z - mean
    radius = np.linalg.norm(centred, axis=1, keepdims=True)
    centred = centred * np.minimum(1.0, 4 * np.median(radius) / np.maximum(radius, 1e-12))
    wide = size > count
    square = (centred @ centred.T if wide else centred.T @ centred).astype(np.float64) / count
    most = min(_MOST_DIRECTIONS, max(_MOST_NUMBERS // size, 1), len(square))
    variances, axes = eigh(square, subset_by_index=[len(square) - most, len(square) - 1])
    variances, axes = variances[::-1], axes[:, ::-1]
    ratio = size / count
    beyond = variances > (1 + np.sqrt(ratio)) ** 2
    variances, axes = variances[beyond], axes[:, beyond]
    directions = (centred.T @ axes / np.sqrt(variances * count)).T if wide else axes.T
    middle = variances + 1 - ratio
    spike = (middle + np.sqrt(np.maximum(middle**2 - 4 * variances, 0))) / 2  # the true variance
    aligned = (1 - ratio / (spike - 1) ** 2) / (1 + ratio / (spike - 1))  # squared cosine between found and true axis
    chance = ratio / max(float(mean @ mean), 1e-12)
    return Level(
        mean=max(1 - chance, 0.0) * mean,
        directions=directions.astype(np.float32),
        variances=(1 + (spike - 1) * np.clip(aligned, 0, 1)).astype(np.float32),
    )


def by_level(value: Any, levels: Collection[str], what: str, default: float, most: float) -> dict[str, float]:
    """Expand one number, or numbers by level name, to one number for each level.

    Args:
        value: the number or numbers.
        levels: the names of all levels.
        what: name of the quantity, for messages.
        default: the number for levels without one.
        most: the largest allowed number; the smallest is 0.

    Raises:
        InputError: for unknown levels or invalid numbers.
    """
    given = value if isinstance(value, Mapping) else dict.fromkeys(levels, value)
    unknown = [name for name in given if name not in levels]
    if unknown:
        raise InputError(f"got {what} of {unknown[0]!r}; expected levels among {', '.join(levels)}")
    try:
        numbers = {name: float(given.get(name, default)) for name in levels}
    except (TypeError, ValueError):
        example = dict.fromkeys(levels, default)
        raise InputError(f"got {what}={value!r}; expected one number, or one by name, such as {example}") from None
    bad = [number for number in numbers.values() if not 0 <= number <= most]
    if bad:
        raise InputError(f"got {what} {bad[0]:g}; expected {'0 or more' if most == np.inf else f'0 to {most:g}'}")
    return numbers
