"""Conformal regions: where a density is high enough, with a coverage that holds however good the density is."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from flowknife._types import Key, as_count, as_generator
from flowknife.errors import InputError

_CELLS, _FEWEST = 8, 80  # cells of observations at most, and items of each at least
_TAILS = 0.8, 0.9  # ranks of scores beyond which a cell may have more than others
_CUTS = np.linspace(0.1, 0.9, 9)  # quantiles of a feature at which a cell may be divided
_LEAST_VARIANCE = 0.03  # of a target in a cell: where hardly any item is beyond, chance decides
_AT_ONCE = 4000  # draws
_MOST = 1_000_000  # draws, after which a thousandth of the rows must have been found


def conformal_quantile(scores: Float[np.ndarray, " m"], level: float) -> float:
    """The bound that a new score stays below with a probability of at least `level`.

        q = the ceil((m + 1) level)-th smallest of m scores, infinite where m < level / (1 - level)

    The probability is between `level` and level + 1 / (m + 1), if the new item comes from the same distribution as the
    m items and had as little part in training (Vovk et al. 2005; Lei et al. 2018, arXiv 1604.04173, theorem 2.2).

    Args:
        scores: of items that had no part in training; larger is more unusual, NaN counts as largest.
        level: between 0 and 1.

    Raises:
        InputError: for a level out of range.
    """
    if not 0 < level < 1:
        raise InputError(f"got level={level}; expected a number between 0 and 1; try 0.9")
    ordered = np.sort(np.nan_to_num(np.asarray(scores, float), nan=np.inf, posinf=np.inf))
    rank = math.ceil((len(ordered) + 1) * level - 1e-9)
    return float(ordered[rank - 1]) if rank <= len(ordered) else np.inf


@dataclass(frozen=True)
class Cells:
    """A partition of observations into cells whose items have conformity scores of about one distribution.

    Attributes:
        splits: `(cell, column, threshold)` in the order in which cells were divided: of its items those above the
            threshold became the next cell.
    """

    splits: tuple[tuple[int, int, float], ...] = ()

    @classmethod
    def of(cls, features: Float[np.ndarray, "n k"], scores: Float[np.ndarray, " n"]) -> "Cells":
        """Divide greedily where the ranks of the scores, or their tails, differ most: a regression tree.

        Regions are bounded by the tail of the scores, which may differ where their mean does not.

        The items must not be those that calibrate; then the coverage of regions that are calibrated cell by cell holds
        in each cell (Cabezas et al. 2025, arXiv 2402.07357, LOCART).
        """
        n, columns = features.shape
        ranks = np.argsort(np.argsort(scores)) / max(n, 1)
        targets = np.column_stack([ranks, *(ranks > tail for tail in _TAILS)])
        # of the largest of so many splits of noise
        significant = 2 * np.log(len(_CUTS) * targets.shape[1] * columns + 1) + 4
        cell, splits, found = np.zeros(n, int), [], [_best_split(features, targets, np.arange(n))]
        while len(splits) + 1 < _CELLS:
            best = int(np.argmax([gain for gain, *_ in found]))
            gain, column, threshold = found[best]
            if gain < significant:
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
    """(gain, column, threshold): the split of some items that lowers the variance of one of their targets most."""
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
    """Where a log density is at least `bound`: a new item lies in it with a probability of at least `level`.

    The bound comes from calibration items. So the promise holds for any density, on average over all new items that
    come from the same distribution as those; a better density makes the region smaller.

    Attributes:
        level: the coverage that is promised.
        bound: of the log density; -inf, and the region is everything, where there are too few calibration items.
        log_prob: the log density of rows (n, d).
        draw: `draw(n, key)`, n rows of this density.
    """

    level: float
    bound: float
    log_prob: Callable[[Any], np.ndarray] = field(repr=False)
    draw: Callable[[int, Any], np.ndarray] = field(repr=False)

    def contains(self, x: Any) -> Bool[np.ndarray, " n"]:
        """Whether each row of `x`, shape (n, d), lies in the region."""
        return self.log_prob(x) >= self.bound

    def sample(self, n: int, *, key: Key = None) -> Float[np.ndarray, "n d"]:
        """Draw `n` rows of the density, given that they lie in the region.

        Raises:
            InputError: if hardly any draw lies in it.
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
        return np.concatenate(found)[:n]

    def volume(self, n: int = 20_000, *, key: Key = None) -> float:
        """The volume of the region, in the units of x, from `n` draws of the density.

            V = E[1(log p(x) >= bound) / p(x)],  x ~ p

        The terms are at most exp(-bound). Infinite where the region is everything.
        """
        if self.bound == -np.inf:
            return np.inf
        log_prob = self.log_prob(self.draw(as_count(n, "draw"), as_generator(key).integers(2**32)))
        inside = log_prob >= self.bound
        return float(np.sum(np.exp(self.bound - log_prob[inside])) / n * np.exp(-self.bound))
