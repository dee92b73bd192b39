"""Conformal regions of high density, whose coverage is valid for any density model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from flowknife._types import Key, as_count, as_generator
from flowknife.errors import InputError

_CELLS, _FEWEST = 8, 80  # largest number of cells, and smallest number of items in a cell
_TAILS = 0.8, 0.9  # quantiles of the scores whose exceedances are compared between cells
_CUTS = np.linspace(0.1, 0.9, 9)  # quantiles of a feature at which a cell may be split
_LEAST_VARIANCE = 0.03  # smallest variance of a target in a cell: with few exceedances, splits are random
_AT_ONCE = 4000  # draws per batch
_MOST = 1_000_000  # draws, after which at least a thousandth of the rows must have been found


def require_level(level: float) -> None:
    """Refuse a level out of range.

    Raises:
        InputError: it is not between 0 and 1.
    """
    if not isinstance(level, Real) or not 0 < level < 1:
        raise InputError(f"got level={level!r}; expected a number between 0 and 1; try 0.9")


def conformal_quantile(scores: Float[np.ndarray, " m"], level: float) -> float:
    """An upper bound for a new score that holds with a probability of at least `level`.

        q = the ceil((m + 1) level)-th smallest of m scores, infinite if m < level / (1 - level)

    The probability is between `level` and level + 1 / (m + 1), if the new item has the same distribution as the m items
    and none of them was used in training (Vovk et al. 2005; Lei et al. 2018, arXiv 1604.04173, theorem 2.2).

    Args:
        scores: scores of items that were not used in training; larger is more unusual, NaN counts as largest.
        level: probability between 0 and 1.

    Raises:
        InputError: for a level out of range.
    """
    require_level(level)
    ordered = np.sort(np.nan_to_num(np.asarray(scores, float), nan=np.inf, posinf=np.inf))
    rank = math.ceil((len(ordered) + 1) * level - 1e-9)
    return float(ordered[rank - 1]) if rank <= len(ordered) else np.inf


@dataclass(frozen=True)
class Cells:
    """A partition of observations into cells with similar distributions of conformity scores.

    Attributes:
        splits: `(cell, column, threshold)` in the order of the splits; the items of the cell above the threshold became
            the next cell.
    """

    splits: tuple[tuple[int, int, float], ...] = ()

    @classmethod
    def of(cls, features: Float[np.ndarray, "n k"], scores: Float[np.ndarray, " n"], most: int = _CELLS) -> "Cells":
        """Split greedily where the ranks of the scores, or their tails, differ most, as in a regression tree.

        Tails are compared too, since they determine the thresholds of regions and may differ if means do not. Splits
        need not be significant: differences that are too small to be found here can still reduce coverage by some
        percent.

        The items must not be calibration items. Then regions calibrated cell by cell have valid coverage in each cell
        (Cabezas et al. 2025, arXiv 2402.07357, LOCART).
        """
        n = len(features)
        ranks = np.argsort(np.argsort(scores)) / max(n, 1)
        targets = np.column_stack([ranks, *(ranks > tail for tail in _TAILS)])
        cell, splits, found = np.zeros(n, int), [], [_best_split(features, targets, np.arange(n))]
        while len(splits) + 1 < min(most, _CELLS):
            best = int(np.argmax([gain for gain, *_ in found]))
            gain, column, threshold = found[best]
            if gain == -np.inf:
                break
            new = len(splits) + 1
            cell[(cell == best) & (features[:, column] > threshold)] = new
            splits.append((best, column, threshold))
            found.append((0.0, 0, 0.0))
            for one in (best, new):
                found[one] = _best_split(features, targets, np.flatnonzero(cell == one))
        return cls(tuple(splits))

    def __call__(self, features: Float[np.ndarray, "n k"]) -> Int[np.ndarray, " n"]:
        """The cell of each item."""
        cell = np.zeros(len(features), int)
        for new, (old, column, threshold) in enumerate(self.splits, 1):
            cell[(cell == old) & (features[:, column] > threshold)] = new
        return cell


def _best_split(features, targets, rows):
    """(gain, column, threshold) of the split that reduces the variance of one of the targets most."""
    best = (-np.inf, 0, 0.0)
    if len(rows) < 2 * _FEWEST:
        return best
    own = targets[rows] - targets[rows].mean(axis=0)
    variance = np.maximum(np.mean(own**2, axis=0), _LEAST_VARIANCE)
    for column in range(features.shape[1]):
        values = features[rows, column]
        thresholds = np.quantile(values, _CUTS)
        above = values[:, None] > thresholds
        count = above.sum(axis=0)
        usable = np.minimum(count, len(rows) - count) >= _FEWEST
        if not usable.any():
            continue
        count, total = count[usable, None], above[:, usable].T.astype(float) @ own
        # the difference of two means, in squared standard errors
        gains = np.max(total**2 * len(rows) / (count * (len(rows) - count)) / variance, axis=1)
        place = int(np.argmax(gains))
        best = max(best, (float(gains[place]), column, float(thresholds[usable][place])))
    return best


@dataclass(frozen=True)
class Region:
    """The region where a log density is at least `bound`; it contains a new item with probability at least `level`.

    The bound comes from calibration items. So the coverage is valid for any density, on average over new items from the
    same distribution; a better density gives a smaller region.

    Attributes:
        level: the nominal coverage.
        bound: threshold of the log density; -inf with too few calibration items, where the region is the whole space.
        log_prob: the log density of rows (n, d).
        draw: `draw(n, key)` draws n rows of this density.
    """

    level: float
    bound: float
    log_prob: Callable[[Any], np.ndarray] = field(repr=False)
    draw: Callable[[int, Any], np.ndarray] = field(repr=False)

    def contains(self, x: Any) -> Bool[np.ndarray, " n"]:
        """Whether each row of `x`, shape (n, d), lies in the region."""
        return self.log_prob(x) >= self.bound

    def sample(self, n: int, *, key: Key = None) -> Any:
        """Draw `n` rows of the density, restricted to the region: (n, d), or a DataFrame where the density draws such.

        Raises:
            InputError: if hardly any draw lies in the region.
        """
        n = as_count(n, "row")
        generator, found, drawn = as_generator(key), [], 0
        while sum(map(len, found)) < n:
            rows = self.draw(max(n, _AT_ONCE), int(generator.integers(2**32)))
            found.append(rows[self.contains(rows)])
            drawn += len(rows)
            if drawn > _MOST and sum(map(len, found)) < n * 1e-3:
                raise InputError(
                    f"got {sum(map(len, found))} of {drawn:,} draws inside of the region; expected more; its density "
                    "is far from the calibration items; try a larger level, or a longer training"
                )
        return _joined(found)[:n]

    def volume(self, n: int = 20_000, *, key: Key = None) -> float:
        """The volume of the region, in the units of x, from `n` draws of the density.

            V = E[1(log p(x) >= bound) / p(x)],  x ~ p

        The terms are at most exp(-bound). The volume is infinite if the region is the whole space.
        """
        if self.bound == -np.inf:
            return np.inf
        log_prob = self.log_prob(self.draw(as_count(n, "draw"), as_generator(key).integers(2**32)))
        inside = log_prob >= self.bound
        return float(np.sum(np.exp(self.bound - log_prob[inside])) / n * np.exp(-self.bound))


def _joined(parts):
    """Arrays, or the DataFrames of a table with categories, one below the other."""
    if not hasattr(parts[0], "iloc"):
        return np.concatenate(parts)
    import pandas

    return pandas.concat(parts, ignore_index=True)
