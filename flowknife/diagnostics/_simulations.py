"""Data against simulations: re-simulation error and misspecification."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from flowknife._types import Key, as_generator
from flowknife.diagnostics._anomalies import Typicality
from flowknife.diagnostics._check import Check, Values, p_text
from flowknife.errors import InputError


@dataclass(frozen=True)
class Resimulation:
    """Squared distance between the data and the predictions of posterior draws.

    Attributes:
        mean_squared: E|f(x) - y|^2, summed over components, in squared units of y.
        components: E(f(x) - y)^2 of each component, shape (m,).
        failed: share of draws whose simulation is not finite; these are left out.
    """

    mean_squared: float
    components: Float[np.ndarray, " m"] = field(repr=False)
    failed: float


def resimulation_error(y_resimulated: Values, y: Values) -> Resimulation:
    """Error of resimulation E|f(x) - y|^2 over draws x of the posterior of y (Kruse et al. 2021, arXiv 2101.10763).

    It is small for any collapsed posterior that explains y, so it needs to be combined with a test of the spread. If y
    has noise of standard deviation s, the error of an exact posterior is s^2 for each component, not 0, since draws and
    true parameters are exchangeable.

    Args:
        y_resimulated: noise-free simulations of the draws, shape (..., m).
        y: observations, shape (m,), or with batch axes that broadcast, e.g. (n_obs, 1, m).

    Raises:
        InputError: for shapes that do not fit, or without a finite simulation.
    """
    resimulated, y = np.asarray(y_resimulated, float), np.asarray(y, float)
    try:
        squared = (resimulated - y) ** 2
    except ValueError:
        squared = np.zeros(())
    if squared.ndim < 1 or squared.shape != resimulated.shape:
        raise InputError(
            f"got simulations of shape {resimulated.shape} and y of shape {y.shape}; expected (..., m) and (m,)"
        )
    squared = squared.reshape(-1, resimulated.shape[-1])
    usable = np.isfinite(squared).all(axis=1)
    if not usable.any():
        raise InputError(f"got {len(usable)} simulations, none of them finite; expected numbers")
    components = squared[usable].mean(axis=0)
    return Resimulation(float(components.sum()), components, float(1 - usable.mean()))


@dataclass(frozen=True)
class Misspecification:
    """Whether observations are plausible under the simulator.

    Attributes:
        p_values: cross-conformal p-values, one for each observation, shape (n,).
        scores: Mahalanobis distances from the simulations, shape (n,).
        verdict: a summary in one sentence.
    """

    p_values: Float[np.ndarray, " n"] = field(repr=False)
    scores: Float[np.ndarray, " n"] = field(repr=False)
    verdict: str

    @property
    def p_value(self) -> float:
        """The smallest p-value, after Bonferroni's correction for the number of observations."""
        return float(min(1.0, len(self.p_values) * self.p_values.min()))

    @property
    def check(self) -> Check:
        """The check that the simulator can have produced the observations."""
        return Check.of_p_value("observations against simulations", self.p_value)


def misspecification(
    simulated: Values, observed: Values, key: Key = 0, *, calibration: Values | None = None
) -> Misspecification:
    """P-value for the hypothesis that the simulator produced an observation; if small, distrust the posterior.

    Half the simulations give the shrunk covariance of a Mahalanobis distance; the other half, or those for
    `calibration`, give its mean and its cross-conformal p-values (see `Typicality`). The test depends on the features;
    with latents or learned summaries as features this is the test of Schmitt et al. 2021 (arXiv 2112.08866) for single
    observations. For other scores, such as -log p(y), use `conformal_p_values`. No p-value is below 2 / (n + 2),
    or 1 / (c + 1) with c simulations for calibration.

    Args:
        simulated: features of simulations from the prior predictive, shape (n, k).
        observed: features of observations, shape (m, k), or (k,) for one.
        key: splits the simulations.
        calibration: features of other simulations, shape (c, k), for calibration; then all of `simulated` determine the
            distance. With c = 0, every p-value is 1.

    Raises:
        InputError: for fewer than 4 simulations (2, with others for calibration) or shapes that do not fit.
    """
    simulated, observed = np.asarray(simulated, float), np.atleast_2d(np.asarray(observed, float))
    fewest = 4 if calibration is None else 2
    if simulated.ndim != 2 or len(simulated) < fewest or observed.ndim != 2 or observed.shape[1] != simulated.shape[1]:
        raise InputError(
            f"got {simulated.shape} simulated and {observed.shape} observed features; expected (n, k), n >= {fewest}, "
            "and (m, k) or (k,)"
        )
    if calibration is None:
        order = as_generator(key).permutation(len(simulated))
        half = len(simulated) // 2
        simulated, calibrating = simulated[order[:half]], simulated[order[half:]]
    else:
        calibrating = np.asarray(calibration, float)
    detector = Typicality.fit(simulated, calibrating)
    p_values, scores = detector.p_values(observed), detector.score(observed)
    return Misspecification(p_values, scores, _verdict(p_values, len(calibrating)))


def _verdict(p_values, calibrating):
    count, smallest = len(p_values), p_text(float(p_values.min()))
    unlike = int(np.sum(count * p_values < 0.05))
    if count == 1 and unlike:
        return f"The observation is unlike the simulations ({smallest}): its posterior cannot be trusted."
    if unlike:
        are = "is" if unlike == 1 else "are"
        return (
            f"{unlike:,} of {count:,} observations {are} unlike the simulations (smallest {smallest}): no posterior of "
            "theirs can be trusted."
        )
    if count / (calibrating + 1) >= 0.05:  # the smallest possible p-value, after Bonferroni's correction
        what = "the observation looks like the" if count == 1 else f"{count:,} observations look like"
        return (
            f"{calibrating:,} simulations for calibration are too few to say whether {what} simulations "
            f"(smallest {smallest}); try at least {20 * count:,}."
        )
    if count == 1:
        return f"The observation looks like the simulations ({smallest})."
    return f"The {count:,} observations look like simulations (smallest {smallest})."
