"""Calibration of posteriors: ranks and coverage, from draws and true parameters.

All tests use the same property: over theta ~ prior and observations y ~ p(y | theta), the true theta is distributed
like another draw from its posterior. They differ in the statistic by which theta and the draws are ranked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from flowknife._types import Key, as_generator, as_key, keys_of
from flowknife.diagnostics._check import SMALLEST_P, Check, Values, p_text
from flowknife.diagnostics._uniform import counts_below, rank_edges, uniform_band, uniformity_p_value
from flowknife.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """Ranks of the true parameters among posterior draws: uniform on 0 ... draws for exact posteriors.

    Attributes:
        name: name of the test.
        names: names of the components.
        ranks: number of draws below the truth, shape (n_obs, d).
        draws: number of draws for each observation.
        p_values: exact p-values of uniformity, one for each component, shape (d,).
        verdict: a summary in one sentence.
    """

    name: str
    names: tuple[str, ...]
    ranks: Int[np.ndarray, "n d"] = field(repr=False)
    draws: int
    p_values: Float[np.ndarray, " d"] = field(repr=False)
    verdict: str

    @property
    def p_value(self) -> float:
        """The smallest p-value, after Bonferroni's correction for the number of components."""
        return float(min(1.0, len(self.p_values) * self.p_values.min()))

    @property
    def check(self) -> Check:
        """The check that the ranks are uniform."""
        return Check.of_p_value(f"{self.name}: ranks of the truth", self.p_value)

    @property
    def points(self) -> Float[np.ndarray, " k"]:
        """Points in (0, 1) at which the distribution functions are compared."""
        return rank_edges(self.draws) / (self.draws + 1)

    @property
    def ecdf(self) -> Float[np.ndarray, "k d"]:
        """The share of ranks below each of `points`, for each component; equal to `points` in expectation."""
        edges = rank_edges(self.draws)
        return np.stack([counts_below(column, edges) for column in self.ranks.T], axis=1) / len(self.ranks)

    def band(self, level: float = 0.95) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Lower and upper end, at `points`, of the simultaneous band for exact posteriors.

        All curves stay inside with probability `level`, simultaneously over points (Säilynoja et al. 2022, arXiv
        2103.10522) and over components (Bonferroni). A curve leaves the band if and only if its p-value is below (1 -
        level) / d.
        """
        return uniform_band(len(self.ranks), self.points, (1 - level) / len(self.names))


def sbc_ranks(samples: Values, theta: Values, key: Key = 0) -> Int[np.ndarray, "n d"]:
    """Rank of each true parameter among the draws of its posterior.

        r = #{draws < theta} + (a random share of the ties)

    Args:
        samples: draws, shape (n_obs, n_draws, d).
        theta: the true parameters of the observations,  shape (n_obs, d).
        key: breaks ties, which occur only for discrete parameters.

    Returns:
        integers 0 ... n_draws, shape (n_obs, d).

    Raises:
        InputError: for shapes that do not fit, or NaN.
    """
    samples, theta = _draws_and_truth(samples, theta)
    below = np.sum(samples < theta[:, None], axis=1)
    ties = np.sum(samples == theta[:, None], axis=1)
    share = as_generator(key).random(ties.shape)
    return below + np.minimum((share * (ties + 1)).astype(int), ties)


def _draws_and_truth(samples, theta):
    samples, theta = np.asarray(samples, float), np.asarray(theta, float)
    if samples.ndim != 3 or samples.size == 0 or theta.shape != samples.shape[::2]:
        raise InputError(
            f"got samples of shape {samples.shape} and theta of shape {theta.shape}; expected (n_obs, n_draws, d) and "
            "(n_obs, d)"
        )
    if np.isnan(samples).any() or np.isnan(theta).any():
        raise InputError(f"got {int(np.isnan(samples).sum() + np.isnan(theta).sum())} NaN; expected numbers only")
    return samples, theta


def sbc(samples: Values, theta: Values, names: Sequence[str] | None = None, key: Key = 0) -> Ranks:
    """Simulation-based calibration: are the ranks of the true parameters uniform (Talts et al. 2018, arXiv 1804.06788)?

    Args:
        samples: draws from the posterior of each observation, independent, shape (n_obs, n_draws, d).
        theta: the true parameters of the observations,  drawn from the prior, shape (n_obs, d).
        names: names of the d parameters; `x1`, `x2`, ... if None.
        key: breaks ties.

    Raises:
        InputError: for shapes that do not fit, or NaN.

    Examples:
        >>> import numpy as np
        >>> g = np.random.default_rng(0)
        >>> y = g.normal(size=(200, 1, 2))  # of the prior N(0, 1/2) + noise N(0, 1/2): theta | y ~ N(y / 2, 1/4)
        >>> truth, draws = y / 2 + g.normal(size=(200, 1, 2)) / 2, y / 2 + g.normal(size=(200, 99, 2)) / 2
        >>> sbc(draws, truth[:, 0]).check.passed
        True
    """
    ranks = sbc_ranks(samples, theta, key)
    draws = np.shape(samples)[1]
    names = component_names(names, ranks.shape[1])

    def fault(u):
        shift, spread = u.mean() - 0.5, np.abs(u - 0.5).mean() - 0.25
        # standard deviations of U(0, 1) and of |U(0, 1) - 1/2|
        if abs(shift) / 12**-0.5 > abs(spread) / 48**-0.5:
            return "draws too low" if shift > 0 else "draws too high"
        return "overconfident" if spread > 0 else "underconfident"

    return _judged("simulation-based calibration", names, ranks, draws, fault)


def component_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names of components, by default `x1`, `x2`, ...

    Raises:
        InputError: if there is not one for each.
    """
    names = tuple(f"x{i + 1}" for i in range(count)) if names is None else tuple(map(str, names))
    if len(names) != count:
        raise InputError(f"got {len(names)} names; expected {count}, one per component")
    return names


def _judged(name, names, ranks, draws, fault):
    """The ranks with their p-values and a verdict, in which `fault` describes the departure of fractional ranks."""
    edges = rank_edges(draws)
    p_values = np.array(
        [
            uniformity_p_value(counts_below(column, edges), len(ranks), edges / (draws + 1))
            for column in np.asarray(ranks).T
        ]
    )
    corrected = np.minimum(1.0, len(names) * p_values)
    wrong = [i for i in np.argsort(p_values) if corrected[i] < SMALLEST_P]
    sentences = []
    for i in wrong[:3]:
        found = f"{fault((ranks[:, i] + 0.5) / (draws + 1))} ({p_text(corrected[i])})"
        sentences.append(f"{names[i]}: {found}" if len(names) > 1 else found[0].upper() + found[1:])
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    verdict = f"{'; '.join(sentences)}{more}."
    if not wrong:
        verdict = f"No departure found in {len(ranks):,} observations ({p_text(corrected.min())})."
    return Ranks(name, tuple(names), ranks, draws, p_values, verdict)


def tarp(samples: Values, theta: Values, key: Key = 0, references: Values | None = None) -> Ranks:
    """Tests of accuracy with random points: a joint test of all components (Lemos et al. 2023, arXiv 2302.03026).

    Truth and draws are ordered by their distance from a random reference point, in units of the range of `theta`; the
    ECDF of the ranks is the expected coverage of balls around the reference.

    Args:
        samples: draws, shape (n_obs, n_draws, d).
        theta: true parameters, shape (n_obs, d).
        key: draws the references, uniform over the range of `theta`, and breaks ties.
        references: shape (n_obs, d), in units of `theta`. References that depend on the observation also detect a
            posterior that ignores its observation; random ones do not.

    Raises:
        InputError: for shapes that do not fit, or NaN.
    """
    samples, theta = _draws_and_truth(samples, theta)
    key, tie_key = keys_of(as_key(key), 2)
    low, width = theta.min(axis=0), np.ptp(theta, axis=0)
    width = np.where(width > 0, width, 1.0)
    if references is None:
        centres = as_generator(key).random(theta.shape)
    else:
        centres = (np.asarray(references, float) - low) / width
        if centres.shape != theta.shape:
            raise InputError(f"got references of shape {centres.shape}; expected {theta.shape}, one per observation")
    away, true = (
        np.linalg.norm((values - low) / width - points, axis=-1)[..., None]
        for values, points in ((samples, centres[:, None]), (theta, centres))
    )

    def fault(u):
        shift, spread = u.mean() - 0.5, np.abs(u - 0.5).mean() - 0.25
        if abs(shift) / 12**-0.5 > abs(spread) / 48**-0.5:
            return "draws too near the references" if shift > 0 else "draws too far from the references"
        return "overconfident or biased" if spread > 0 else "underconfident"

    return _judged("TARP", ("distance",), sbc_ranks(away, true, tie_key), samples.shape[1], fault)


def hpd_coverage(log_prob_samples: Values, log_prob_truth: Values, key: Key = 0) -> Ranks:
    """Coverage of highest-posterior-density regions.

    The true parameters lie in the region of mass a if less than a share a of the draws has a higher density. The ECDF
    of these ranks against `points` is the coverage of each region against its mass.

    Args:
        log_prob_samples: log q(draw | y), shape (n_obs, n_draws).
        log_prob_truth: log q(theta | y), shape (n_obs,).
        key: breaks ties.

    Raises:
        InputError: for shapes that do not fit, or NaN.
    """
    drawn, true = np.asarray(log_prob_samples, float), np.asarray(log_prob_truth, float)
    ranks = sbc_ranks(-drawn[..., None], -true[..., None], key)

    def fault(u):
        return "overconfident" if u.mean() > 0.5 else "underconfident"

    return _judged("highest-density coverage", ("density",), ranks, drawn.shape[1], fault)


@dataclass(frozen=True)
class Coverage:
    """Empirical coverage of central intervals.

    Attributes:
        names: names of the components.
        levels: nominal levels, shape (k,).
        observed: share of observations whose interval contains the true value, shape (k, d).
        low, high: ends of the central 95 % interval of `observed` for exact posteriors, for each level, shape (k,).
        p_values: two-sided p-values of each level and component, shape (k, d).
        verdict: a summary in one sentence.
    """

    names: tuple[str, ...]
    levels: Float[np.ndarray, " k"] = field(repr=False)
    observed: Float[np.ndarray, "k d"] = field(repr=False)
    low: Float[np.ndarray, " k"] = field(repr=False)
    high: Float[np.ndarray, " k"] = field(repr=False)
    p_values: Float[np.ndarray, "k d"] = field(repr=False)
    verdict: str

    @property
    def p_value(self) -> float:
        """The smallest p-value, after Bonferroni's correction for levels and components."""
        return float(min(1.0, self.p_values.size * self.p_values.min()))

    @property
    def check(self) -> Check:
        """The check that the intervals have their nominal coverage."""
        return Check.of_p_value("coverage of central intervals", self.p_value)


def coverage(
    samples: Values,
    theta: Values,
    levels: Sequence[float] | Float[np.ndarray, " k"] = (0.5, 0.8, 0.9, 0.95),
    names: Sequence[str] | None = None,
    key: Key = 0,
) -> Coverage:
    """Coverage of the central interval of each component at nominal levels, with binomial bands.

    The interval of level a contains the true value if |u - 1/2| <= a / 2, with u = (rank + U[0, 1)) / (draws + 1),
    which is exactly uniform for exact posteriors and any number of draws.

    Args:
        samples: draws, shape (n_obs, n_draws, d).
        theta: true parameters, shape (n_obs, d).
        levels: nominal levels between 0 and 1.
        names: names of the d parameters; `x1`, `x2`, ... if None.
        key: breaks ties, and draws U.

    Raises:
        InputError: for shapes that do not fit, NaN, or levels outside (0, 1).
    """
    from scipy.stats import binom

    level = np.asarray(levels, float)
    if level.ndim != 1 or level.size == 0 or not np.all((level > 0) & (level < 1)):
        raise InputError(f"got levels {levels}; expected numbers between 0 and 1; try (0.5, 0.9)")
    tie_key, key = keys_of(as_key(key), 2)
    ranks = sbc_ranks(samples, theta, tie_key)
    n, names = len(ranks), component_names(names, ranks.shape[1])
    u = (ranks + as_generator(key).random(ranks.shape)) / (np.shape(samples)[1] + 1)
    hits = np.stack([np.sum(np.abs(u - 0.5) <= a / 2, axis=0) for a in level])
    chance = level[:, None]
    p_values = np.minimum(1.0, 2 * np.minimum(binom.cdf(hits, n, chance), binom.sf(hits - 1, n, chance)))
    corrected = float(min(1.0, p_values.size * p_values.min()))
    worst, component = np.unravel_index(np.argmin(p_values), p_values.shape)
    found = (
        f"the {level[worst]:.0%} interval of {names[component]} holds {hits[worst, component] / n:.1%} of the truths"
    )
    verdict = (
        f"Not calibrated: {found} ({p_text(corrected)})."
        if corrected < SMALLEST_P
        else f"No departure found in {n:,} observations ({p_text(corrected)})."
    )
    low, high = (binom.ppf(q, n, level) / n for q in (0.025, 0.975))
    return Coverage(names, level, hits / n, low, high, p_values, verdict)
