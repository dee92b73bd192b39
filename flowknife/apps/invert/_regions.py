"""Conformal regions and intervals of a posterior; their coverage is valid for any model."""

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from flowknife.diagnostics import Cells, Region, conformal_quantile
from flowknife.diagnostics._regions import require_level

LOCAL = 2000  # calibration pairs of local regions, at most: each needs its own draws

DRAWS = 200  # draws of each posterior for comparing log densities; five times as many for intervals

_FEWEST = 40  # calibration pairs of a cell

_SPREAD = 1e-3  # smallest range of draws, in nats or as a share of the prior's width


def region(posterior: Any, y: np.ndarray, level: float, local: bool) -> Region:
    """The region of one observation (m,); see `Posterior.region`."""
    bound = float(bounds(posterior, y[None], level, local)[0])
    return Region(level, bound, partial(posterior.log_prob, y=y), lambda n, key: posterior.sample(n, y=y, key=key))


def bounds(posterior: Any, y: np.ndarray, level: float, local: bool) -> Float[np.ndarray, " k"]:
    """Thresholds of the log density for the regions of observations (k, m)."""
    score = posterior.local_scores if local else posterior.calibration_scores
    overall = conformal_quantile(score, level)
    if not local:
        return np.full(len(y), -overall)
    cells, own = posterior.calibration_cells
    quantile, fewest = np.full(len(y), overall), max(_FEWEST, 2 / (1 - level))
    cell = cells(posterior.features_of(y))
    for one in np.unique(cell):
        inside = score[own == one]
        # the region of a cell with too few calibration pairs would be unbounded
        if len(inside) >= fewest:
            quantile[cell == one] = conformal_quantile(inside, _cautious(level, len(inside)))
    return exceeded(_drawn(posterior, y), quantile)


def _cautious(level, count):
    """The level plus one standard error of the coverage that results from `count` calibration pairs.

    With few pairs, the coverage equals the level only on average over calibration sets. With this level it is reached
    in five of six calibration sets.
    """
    return min(level + np.sqrt(level * (1 - level) / count), count / (count + 1))


def scores(posterior: Any, local: bool, most: int | None = None) -> Float[np.ndarray, " m"]:
    """Conformity scores of calibration pairs: -log p(x | y), or its rank among draws."""
    pairs = {name: part[:most] for name, part in posterior.held_out_pairs.items()}
    log_prob = posterior.log_prob(pairs["x"], pairs["y"])
    return ranked(log_prob, _drawn(posterior, pairs["y"])) if local else -log_prob


def ranked(log_prob: Float[np.ndarray, " m"], drawn: Float[np.ndarray, "m n"]) -> Float[np.ndarray, " m"]:
    """The share of draws with a higher log density, interpolated; below all draws, the distance is added.

        r = 1 - F(log p),   r = 1 + (min - log p) / (max - min)  below the lowest draw

    If the posterior is exact, r is uniform for every observation (as in CP4SBI, arXiv 2508.17077).
    """
    drawn = np.sort(drawn, axis=1)
    share = np.linspace(1.0, 0.0, drawn.shape[1])
    inside = np.array([np.interp(one, levels, share) for one, levels in zip(log_prob, drawn, strict=True)])
    return inside + np.maximum(drawn[:, 0] - log_prob, 0.0) / _range(drawn)


def exceeded(drawn: Float[np.ndarray, "k n"], rank: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """The log density of this rank, the inverse of `ranked`."""
    drawn = np.sort(drawn, axis=1)
    share = np.linspace(0.0, 1.0, drawn.shape[1])
    inside = np.array([np.interp(1 - one, share, levels) for one, levels in zip(rank, drawn, strict=True)])
    return inside - np.maximum(rank - 1, 0.0) * _range(drawn)


def _range(drawn):
    return np.maximum(drawn[:, -1] - drawn[:, 0], _SPREAD)


def cells(posterior: Any) -> tuple[Cells, np.ndarray]:
    """A partition of observations, by training pairs, and the cell of each calibration pair."""
    pairs, held = posterior.training_pairs, posterior.held_out_pairs["y"][:LOCAL]
    rank = ranked(posterior.log_prob(pairs["x"], pairs["y"]), _drawn(posterior, pairs["y"]))
    found = Cells.of(posterior.features_of(pairs["y"]), rank, most=len(held) // (2 * _FEWEST))
    return found, found(posterior.features_of(held))


def _drawn(posterior, y):
    """Log densities of draws for each observation, (k, n)."""
    return posterior.log_prob(posterior.sample(DRAWS, y=y, key=0), y)


def intervals(posterior: Any, y: np.ndarray, level: float) -> Float[np.ndarray, "k 2 d"]:
    """Lower and upper ends of the intervals for observations (k, m); see `Posterior.intervals`."""
    require_level(level)
    pairs = posterior.held_out_pairs
    least = _SPREAD * np.ptp(pairs["x"], axis=0)
    low, high, width = _central(posterior, pairs["y"], level, least)
    beyond = np.maximum(low - pairs["x"], pairs["x"] - high) / width
    more = np.array([conformal_quantile(column, level) for column in beyond.T])
    low, high, width = _central(posterior, y, level, least)
    with np.errstate(invalid="ignore"):
        ends = np.stack([low - more * width, high + more * width], axis=1)
    return np.clip(ends, np.asarray(posterior.prior.low), np.asarray(posterior.prior.high))


def _central(posterior, y, level, least):
    """Ends of the central intervals of draws, and their widths, at least `least`."""
    drawn = posterior.sample(5 * DRAWS, y=y, key=0)
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2), axis=1)
    return low, high, np.maximum(high - low, least)
