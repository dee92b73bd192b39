"""Importance sampling of a posterior, exact in the limit of many proposals.

Proposals theta_i ~ q carry the weights w_i = p(theta_i, y) / q(theta_i). Their mean estimates the evidence p(y), the
effective sample size is (sum w)^2 / sum w^2 (Kong 1992), and resampling by weight gives draws from the posterior (Rubin
1988, sampling-importance-resampling).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from flowknife.errors import InputError
from flowknife.sampling._pareto import pareto_smoothed

Propose = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
"""(generator, m) -> m proposals, or fewer, of shape (m, d), and log weights (m,), -inf where the posterior is zero."""

_MOST_AT_ONCE = 2**17


@dataclass(frozen=True)
class Weighted:
    """Proposals of shape (m, d) and their log weights, without those of zero weight.

    Attributes:
        theta: proposals with positive weight.
        log_weight: their log weights.
        count: total number of proposals, including those of zero weight.
    """

    theta: np.ndarray = field(repr=False)
    log_weight: np.ndarray = field(repr=False)
    count: int

    @classmethod
    def gather(
        cls, propose: Propose, generator: np.random.Generator, enough: float | int, most: int = 2**23
    ) -> "Weighted":
        """Propose until the effective sample size is `enough`, or until `most` proposals."""
        size = min(_MOST_AT_ONCE, max(1024, int(2 * enough)))
        weighted = cls.proposed(propose, generator, size)
        while weighted.effective < enough and weighted.count < most:
            size = min(2 * size, _MOST_AT_ONCE)
            weighted = weighted.joined(cls.proposed(propose, generator, size))
        return weighted

    @classmethod
    def proposed(cls, propose: Propose, generator: np.random.Generator, count: int) -> "Weighted":
        """`count` proposals."""
        theta, log_weight = propose(generator, count)
        kept = np.isfinite(log_weight)
        return cls(theta[kept], log_weight[kept], len(theta))

    def joined(self, other: "Weighted") -> "Weighted":
        """The proposals of both; their weights have a common scale."""
        theta, log_weight = (
            np.concatenate([getattr(one, name) for one in (self, other)]) for name in ("theta", "log_weight")
        )
        return Weighted(theta, log_weight, self.count + other.count)

    @property
    def weight(self) -> np.ndarray:
        """Normalised weights."""
        if self.log_weight.size == 0:
            return self.log_weight
        weight = np.exp(self.log_weight - self.log_weight.max())
        return weight / weight.sum()

    @property
    def effective(self) -> float:
        """Effective sample size."""
        return 1 / float(np.sum(self.weight**2)) if self.log_weight.size else 0.0

    @cached_property
    def _pareto(self):
        return pareto_smoothed(self.log_weight) if self.log_weight.size else (self.log_weight, np.inf)

    @property
    def k_hat(self) -> float:
        """Pareto shape of the tail of the weights, which are reliable up to 0.7; see `pareto_smoothed`."""
        return float(self._pareto[1])

    @property
    def smoothed(self) -> "Weighted":
        """A copy with Pareto-smoothed weights."""
        return replace(self, log_weight=self._pareto[0])

    @property
    def log_evidence(self) -> float:
        """Log p(y), in nats."""
        peak = self.log_weight.max()
        return float(peak + np.log(np.exp(self.log_weight - peak).sum() / self.count))

    @property
    def log_evidence_error(self) -> float:
        """Standard error of `log_evidence`, estimated from the weights."""
        return float(np.sqrt(max(1 / self.effective - 1 / self.count, 0.0))) if self.log_weight.size else np.inf

    def draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        """Draw n by systematic resampling, with as few repetitions as possible.

        Raises:
            InputError: if no proposal has a weight.
        """
        if self.log_weight.size == 0:
            raise InputError(
                f"got an observation that none of {self.count:,} parameters explains; expected one that the prior can "
                "produce; try y = problem.simulate(problem.prior.sample())"
            )
        ends = np.cumsum(self.weight)
        chosen = np.searchsorted(ends / ends[-1], (np.arange(n) + generator.random()) / n)
        return self.theta[generator.permutation(chosen)]


def tempered(log_weight: np.ndarray, enough: float | int) -> np.ndarray:
    """Normalised weights to the power `tempering` gives: 1, or smaller to reach this effective sample size."""
    return _raised(log_weight, tempering(log_weight, enough))


def tempering(log_weight: np.ndarray, enough: float | int) -> float:
    """The largest power, at most 1, at which the weights have an effective sample size of `enough`."""
    low, high = 0.0, 1.0
    if 1 / np.sum(_raised(log_weight, high) ** 2) >= enough:
        return high
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if 1 / np.sum(_raised(log_weight, middle) ** 2) >= enough else (low, middle)
    return low


def _raised(log_weight, power):
    raised = np.exp(power * (log_weight - log_weight.max()))
    return raised / raised.sum()
