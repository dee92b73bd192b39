"""Pareto-smoothed importance weights (Vehtari et al. 2024, JMLR 25, 72, arXiv 1507.02646)."""

import numpy as np
from jaxtyping import Float

TRUSTED = 0.7
"""The largest k-hat at which importance weights are reliable (Vehtari et al. 2024, sec. 3.3)."""

_SHARE, _ROOTS = 0.2, 3.0  # the tail has min(n / 5, 3 sqrt(n)) of n weights
_FEWEST = 5  # smallest number of weights of a tail


def pareto_smoothed(log_weight: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " n"], float]:
    """Log weights with a smooth tail, and k-hat, the shape of that tail.

    The largest weights are replaced by the expected order statistics of a generalised Pareto distribution fitted to
    them, truncated at the largest raw weight. The weights have 1 / k-hat moments: below 0.5 their mean has a variance,
    above 0.7 no practical number of proposals is enough.

    Args:
        log_weight: finite log weights, up to a constant.

    Returns:
        the smoothed log weights, and k-hat, which is infinite if there are too few weights.
    """
    raw = np.asarray(log_weight, np.float64)
    count = int(np.ceil(min(_SHARE * len(raw), _ROOTS * len(raw) ** 0.5)))
    if count < _FEWEST:
        return raw, np.inf
    top = raw.max()
    order = np.argsort(raw)
    tail, below = order[-count:], raw[order[-count - 1]] - top
    beyond = np.exp(raw[tail] - top) - np.exp(below)
    if beyond[0] <= 0 or np.ptp(beyond) < 1e-12 * beyond[-1]:  # ties: all weights of the tail are equal
        return raw, -np.inf if np.ptp(raw) < 1e-9 else 0.0
    shape, scale = _pareto_fit(beyond)
    if not np.isfinite(shape):
        return raw, np.inf
    share = (np.arange(count) + 0.5) / count
    with np.errstate(over="ignore"):  # beyond the largest raw weight, where it is truncated
        curve = -np.log1p(-share) if abs(shape) < 1e-12 else np.expm1(-shape * np.log1p(-share)) / shape
        expected = scale * curve
    smoothed = raw.copy()
    smoothed[tail] = top + np.minimum(np.log(expected + np.exp(below)), 0.0)
    return smoothed, shape


def _pareto_fit(ordered):
    """Shape and scale of a generalised Pareto distribution (Zhang & Stephens 2009, doi 10.1198/tech.2009.08017).

    The shape is shrunk towards 0.5 with the weight of ten observations (Vehtari et al. 2024, appendix C).
    """
    n = len(ordered)
    points = 30 + int(n**0.5)
    b = 1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    b = b / (3 * ordered[int(n / 4 + 0.5) - 1]) + 1 / ordered[-1]
    k = np.log1p(-b[:, None] * ordered).mean(axis=1)
    likelihood = n * (np.log(-b / k) - k - 1)
    weight = np.exp(likelihood - likelihood.max())
    b = float(np.sum(b * weight) / weight.sum())
    k = float(np.log1p(-b * ordered).mean())
    return (n * k + 10 * 0.5) / (n + 10), -k / b
