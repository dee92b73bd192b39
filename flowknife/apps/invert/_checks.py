"""Checks of a posterior on held-out pairs: calibration, coverage of regions, and sharpness."""

import time
from typing import Any

import numpy as np

from flowknife.apps.invert._refine import weighed
from flowknife.apps.invert._regions import DRAWS, ranked
from flowknife.diagnostics import (
    Check,
    Sharpness,
    coverage,
    hpd_coverage,
    reached_coverage,
    reference_check,
    resimulation_error,
    sbc,
    tarp,
)
from flowknife.diagnostics._flows import there_and_back
from flowknife.errors import InputError
from flowknife.sampling import TRUSTED

_AS_GOOD = 0.02  # nats per parameter by which a posterior may be worse than the prior

_CHECKED = 300  # held-out observations that are checked

_WEIGHED, _PROPOSALS = 12, 2000  # observations to compare with their exact posterior, and proposals for each

_PATIENCE = 10.0  # time limit of this comparison in seconds

_APART = 0.5  # allowed median disagreement of the means of an ensemble, in posterior widths


def calibration(posterior: Any) -> dict[str, Any]:
    """Calibration measures on held-out pairs, by name; see `Posterior.calibration`."""
    x, y = (posterior.held_out_pairs[name][:_CHECKED] for name in ("x", "y"))
    drawn = posterior.sample(DRAWS, y=y, key=0)
    found: dict[str, Any] = {
        "ranks": sbc(drawn, x, posterior.names),
        "coverage": coverage(drawn, x, names=posterior.names),
        "tarp": tarp(drawn, x),
    }
    density = posterior.log_prob(drawn, y), posterior.log_prob(x, y)
    highest = hpd_coverage(*density)
    # without noise the truth lies on the surface around which the draws scatter, so it always has the highest rank
    if posterior.config.form == "conditional" or any(posterior.noise):
        found["highest density"] = highest
    if len(x) > 1:
        unlikely = {"global": -density[1], "local": ranked(density[1], density[0])}
        mass = (highest.ranks[:, 0] + 0.5) / (highest.draws + 1)
        found["regions"] = reached_coverage(mass, unlikely)
    found["sharpness"] = _sharpness(posterior, x, y, drawn)
    if posterior.config.form == "partitioned" or posterior.forward is not None:
        found["resimulation"] = resimulation_error(
            posterior.predict(drawn[:, :20])[..., :], np.where(np.isnan(y), 0.0, y)[:, None]
        )
    return found


def _sharpness(posterior, x, y, drawn):
    moments = drawn.mean(axis=1), drawn.std(axis=1)
    prior = np.asarray(posterior.prior.sample(4000, key=0), np.float64).std(axis=0)
    ratio, shift, shapes = [], [], []
    try:
        likelihood = posterior.likelihood
    except InputError:
        likelihood = None
    began = time.monotonic()
    for row, mean, spread in zip(y[:_WEIGHED], *moments, strict=False):
        if likelihood is None or time.monotonic() - began > _PATIENCE:
            break
        weighted = weighed(posterior, row, _PROPOSALS, 0)
        shapes.append(weighted.k_hat)
        if weighted.k_hat <= TRUSTED and weighted.effective > 50:
            theta, weight = weighted.theta, weighted.smoothed.weight
            exact = weight @ theta
            wide = np.sqrt(np.maximum(weight @ (theta - exact) ** 2, 1e-300))
            ratio.append(spread / wide)
            shift.append(np.abs(mean - exact) / wide)
    empty = np.zeros((0, x.shape[1]))
    return Sharpness(
        posterior.names,
        x,
        *moments,
        prior_spread=np.maximum(prior, 1e-300),
        exact_ratio=np.array(ratio).reshape(-1, x.shape[1]) if ratio else empty,
        exact_shift=np.array(shift).reshape(-1, x.shape[1]) if shift else empty,
        k_hat=np.array(shapes, float),
    )


def checks(posterior: Any) -> list[Check]:
    """The checks on held-out pairs."""
    x, y = posterior.held_out["x"], posterior.held_out["y"]
    frame = posterior.prior_frame
    trips = []
    for model in posterior.models:
        left = model.left_end(x, key=0, y=y)
        back = frame.from_model(np.asarray(there_and_back(model.bijection, left.array, left.cond))[:, : x.shape[1]])
        trips.append(Check.of_round_trip(posterior.held_out_pairs["x"], back, posterior.names))
    found = [value.check for value in posterior.calibration.values() if hasattr(value, "check")]
    units = frame.log_det
    own, before = (
        -np.asarray(each) - units for each in (posterior.log_density(x, y), posterior.prior.inner.log_prob(x))
    )
    apart = []
    if posterior.members:
        rows = posterior.held_out_pairs["y"][:_WEIGHED]
        median = np.median(posterior.disagreement(rows, key=0), axis=0)
        apart = [
            Check(f"disagreement of {len(posterior.models)} fits, in posterior widths", float(median.max()), _APART)
        ]
    return [
        max(trips, key=lambda check: check.value),
        *found,
        *posterior.calibration["sharpness"].checks,
        *apart,
        reference_check("nll in nats", own, {"the prior": before}, _AS_GOOD * (1 + x.shape[1])),
    ]
