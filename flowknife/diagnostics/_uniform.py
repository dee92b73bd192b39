"""An exact test of uniformity of ranks, whose acceptance region is the band in the figure.

If n ranks are uniform, the number below a point z is binomial, Bin(n, z). The test statistic is the smallest
two-sided binomial p-value over all points; the simultaneous band holds the counts whose binomial p-value is above a
gamma, chosen such that uniform ranks stay inside at every point with probability 1 - alpha (Säilynoja, Bürkner &
Vehtari 2022, arXiv 2103.10522, sec. 2.2). That probability is exact here: a binomial path is a Poisson process given
its last value, and a Poisson process passes a band by one convolution per point (Moscovich & Nadler 2017, arXiv
1503.04363).
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

MOST_POINTS = 100


def rank_edges(draws: int) -> Int[np.ndarray, " k"]:
    """The ranks 1 ... draws at which counts are compared, at most 100, evenly spread.

    For uniform ranks on 0 ... draws, P(rank < edge) = edge / (draws + 1) exactly.
    """
    return np.unique(np.round(np.linspace(0, draws + 1, min(draws, MOST_POINTS) + 2)[1:-1]).astype(int))


def counts_below(ranks: Int[np.ndarray, " n"], edges: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    """Number of ranks below each edge."""
    return np.searchsorted(np.sort(ranks), edges, side="left")


def uniformity_p_value(counts: Int[np.ndarray, " k"], n: int, z: Float[np.ndarray, " k"]) -> float:
    """P-value of the smallest two-sided binomial p-value, for counts of n ranks below each point z."""
    from scipy.stats import binom

    gamma = float(np.min(2 * np.minimum(binom.cdf(counts, n, z), binom.cdf(n - counts, n, 1 - z))))
    # counts exactly as extreme as the observed ones are outside too, whatever the rounding
    return float(np.clip(1 - _stay_probability(n, z, *_bounds(n, z, gamma * (1 + 1e-9))), 0, 1))


def uniform_band(
    n: int, z: Float[np.ndarray, " k"], alpha: float
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Lower and upper ends of the simultaneous 1 - alpha band of the ECDF of n uniform ranks at the points z."""
    lower, upper = _band(n, tuple(map(float, z)), float(alpha))
    return lower / n, upper / n


@lru_cache(maxsize=64)
def _band(n, z, alpha):
    z = np.asarray(z)
    # gamma lies between the pointwise and the fully corrected level
    low, high = np.log(alpha / (len(z) + 1)), np.log(alpha)
    for _ in range(25):
        middle = (low + high) / 2
        inside = _stay_probability(n, z, *_bounds(n, z, np.exp(middle))) >= 1 - alpha
        low, high = (middle, high) if inside else (low, middle)
    return _bounds(n, z, np.exp(low))


def _bounds(n, z, gamma):
    """The smallest and the largest count at each point whose two-sided binomial p-value is at least gamma."""
    from scipy.stats import binom

    half = min(gamma / 2, 1.0)
    return binom.ppf(half, n, z).astype(int).clip(0, n), (n - binom.ppf(half, n, 1 - z)).astype(int).clip(0, n)


def _stay_probability(n, z, lower, upper):
    """The probability that the counts of n uniform ranks lie within [lower, upper] at every point."""
    from scipy.stats import poisson

    if np.any(lower > upper):
        return 0.0
    mass, start, last = np.ones(1), 0, 0.0
    for point, low, high in zip([*z, 1.0], [*lower, n], [*upper, n], strict=True):
        step = poisson.pmf(np.arange(high - start + 1), n * (point - last))
        mass = np.convolve(mass, step)[low - start : high - start + 1]
        start, last = low, point
    return float(mass.sum() / poisson.pmf(n, n))
