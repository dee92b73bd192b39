"""Draws from a posterior by weighted proposals, exact up to the number of proposals.

Proposals theta_i ~ q carry the weights w_i = p(theta_i, y) / q(theta_i). Their mean is the evidence p(y), their
effective number is (sum w)^2 / sum w^2 (Kong 1992), and drawing among them by weight gives draws from the posterior
(Rubin 1988, sampling-importance-resampling).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flowknife.errors import InputError

Propose = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
"""(generator, m) -> m proposals, or fewer, of shape (m, d), and log weights (m,), -inf where the posterior is zero."""

_MOST_AT_ONCE = 2**17


@dataclass(frozen=True)
class Weighted:
    """Proposals of shape (m, d) and their log weights, those of weight zero left out.

    Attributes:
        theta: proposals with a weight.
        log_weight: their weights.
        count: how many proposals there were, also those without weight.
    """

    theta: np.ndarray
    log_weight: np.ndarray
    count: int

    @classmethod
    def gather(
        cls, propose: Propose, generator: np.random.Generator, enough: float | int, most: int = 2**23
    ) -> "Weighted":
        """Propose until the effective number is `enough`, or `most` proposals were made."""
        parts, count, size, weighted = [], 0, min(_MOST_AT_ONCE, max(1024, int(2 * enough))), None
        while weighted is None or (weighted.effective < enough and count < most):
            theta, log_weight = propose(generator, size)
            kept = np.isfinite(log_weight)
            parts.append((theta[kept], log_weight[kept]))
            count += len(theta)
            weighted = cls(np.concatenate([t for t, _ in parts]), np.concatenate([w for _, w in parts]), count)
            size = min(2 * size, _MOST_AT_ONCE)
        return weighted

    @property
    def weight(self) -> np.ndarray:
        """Weights that add up to one."""
        if self.log_weight.size == 0:
            return self.log_weight
        weight = np.exp(self.log_weight - self.log_weight.max())
        return weight / weight.sum()

    @property
    def effective(self) -> float:
        """Effective number of proposals."""
        return 1 / float(np.sum(self.weight**2)) if self.log_weight.size else 0.0

    @property
    def log_evidence(self) -> float:
        """Log p(y), in nats."""
        peak = self.log_weight.max()
        return float(peak + np.log(np.exp(self.log_weight - peak).sum() / self.count))

    def draw(self, generator: np.random.Generator, n: int) -> np.ndarray:
        """Draw n by systematic resampling, which repeats proposals as little as possible.

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
