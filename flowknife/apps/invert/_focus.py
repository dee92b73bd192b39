"""Sequential rounds for one observation by truncated proposals (Deistler et al. 2022, arXiv 2210.04815)."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from flowknife._frame import plain_frame
from flowknife._settings import given
from flowknife._types import Key, as_generator
from flowknife.bijections import Chain, TruncatedToNormal
from flowknife.data import simulate
from flowknife.diagnostics import Region
from flowknife.errors import InputError
from flowknife.priors import Prior

_LEVEL = 0.999  # level of the region to which the prior is truncated, if there are enough calibration pairs
_DRAWS = 4000  # posterior draws that determine the bounds of the region
_MARGIN = 0.05  # margin on either side, as a share of the range of the draws
_AT_ONCE, _TRIES = 20_000, 50  # proposals per batch, and batches


def focus(
    posterior: Any, y: np.ndarray, rounds: int, num_simulations: int | None, key: Key, settings: dict[str, Any]
) -> Any:
    """The posterior after `rounds` rounds; see `Posterior.focus`."""
    from flowknife.apps.invert._fit import invert
    from flowknife.apps.invert._pairs import UNLIKE_PRIOR

    if posterior.simulator is None:
        raise InputError(
            "got a posterior without its simulator (it was fitted to pairs, or loaded); expected one that was fitted "
            "with a simulator; try fk.invert(simulator, prior)"
        )
    generator = as_generator(posterior.config.seed if key is None else key)
    count = num_simulations or posterior.used.num_simulations or posterior.record.data.rows
    own = {name: value for name, value in given(posterior.config).items() if name not in ("num_simulations", "noise")}
    own["emulate"] = False  # an emulator would draw from the box around a region
    noise = None if posterior.record.data.exact else posterior.noise
    x, data = np.zeros((0, posterior.prior.dim)), np.zeros((0, len(posterior.y_names)))
    found, log_mass = posterior, posterior.record.data.log_prior_mass
    for _ in range(rounds):
        prior, inside, log_share = _truncated(found, y, generator)
        log_mass += log_share
        kept = inside(x) if len(x) else np.zeros(0, bool)
        drawn = _proposals(prior, inside, max(count - int(kept.sum()), count // 2), generator)
        made = simulate(posterior.simulator, drawn, key=int(generator.integers(2**32)), gaps=posterior.gaps)
        # earlier pairs inside the region are draws of the same proposal
        x, data = np.concatenate([x[kept], made.theta]), np.concatenate([data[kept], made.y])
        own_noise = {} if noise is None or not np.any(noise) else {"noise": noise}
        fitted = invert(
            pairs=(x, data),
            prior=prior,
            names=None,
            y_names=posterior.y_names,
            log_likelihood=posterior.log_likelihood,
            key=int(generator.integers(2**31)),
            show_progress=False,
            **{**own, **own_noise, **settings},
        )
        # they are draws of the region, which is part of the box that represents the prior
        notes = tuple(line for line in fitted.record.notes if not line.startswith(UNLIKE_PRIOR))
        about = fitted.record.data.model_copy(update={"log_prior_mass": log_mass})
        record = fitted.record.model_copy(update={"notes": notes, "data": about})
        found = replace(fitted, record=record, forward=posterior.forward, simulator=posterior.simulator)
    return found


def _truncated(posterior, y, generator):
    """The prior truncated to a box around the region of y.

    Returns:
        the prior, a test whether parameters are inside both box and region, and the log of the prior's mass in the box.
    """
    level = min(_LEVEL, 1 - 1.5 / (posterior.flagging.rows + 1))
    region: Region = posterior.region(y, level)
    prior = posterior.prior
    inner, frame = prior.inner, prior.frame or plain_frame(prior.dim)
    drawn = region.sample(_DRAWS, key=int(generator.integers(2**32)))
    u = np.asarray(inner.bijection.encode(jnp.asarray(frame.to_model(drawn)))[0], np.float64)
    low, high = u.min(axis=0), u.max(axis=0)
    room = _MARGIN * (high - low) + 1e-6
    low, high = low - room, high + room
    box = TruncatedToNormal(np.zeros(inner.dim), np.ones(inner.dim), low, high)
    cut = Prior(
        Chain([inner.bijection, box]),
        **_bounds(inner, low, high),
        names=inner.names,
        units=inner.units,
    )
    if prior.frame is not None:
        cut = Prior(
            cut.bijection,
            **_bounds(inner, low, high),
            names=prior.names,
            units=prior.units,
            frame=prior.frame,
        )

    def inside(rows):  # the box holds draws of the region, not all of it
        return region.contains(rows) & np.isfinite(np.asarray(cut.log_prob(rows)))

    return cut, inside, box.log_mass


def _bounds(inner, low, high):
    """Support and moments of a prior truncated in its own coordinates; kept wide where coordinates are mixed."""
    if _mixed(inner):
        return {"low": np.asarray(inner.low), "high": np.asarray(inner.high)}
    ends = [np.asarray(inner.bijection.decode(jnp.asarray(end, float))[0]) for end in (low, high)]
    return {"low": np.minimum(*ends), "high": np.maximum(*ends)}


def _mixed(inner):
    """Whether a coordinate of the prior moves several parameters."""
    u = jnp.zeros((inner.dim + 1, inner.dim)).at[jnp.arange(1, inner.dim + 1), jnp.arange(inner.dim)].set(0.5)
    x = np.asarray(inner.bijection.decode(u)[0])
    moved = np.abs(x[1:] - x[0]) > 1e-6 * np.maximum(np.abs(x[0]), 1e-6)
    return bool(np.any(moved & ~np.eye(inner.dim, dtype=bool)))


def _proposals(prior, inside, count, generator):
    """Draws of the prior inside the region."""
    parts, found = [], 0
    for _ in range(_TRIES):
        rows = np.asarray(prior.sample(max(count, _AT_ONCE), key=int(generator.integers(2**32))), np.float64)
        rows = rows[inside(rows)]
        parts.append(rows)
        found += len(rows)
        if found >= count:
            return np.concatenate(parts)[:count]
    rows = np.concatenate(parts)
    if len(rows) < min(count, 100):
        raise InputError(
            f"got {len(rows)} draws of the prior inside of the region; expected {count}; its volume is too small a "
            "part of its bounding box; try rounds=1 with a larger num_simulations"
        )
    return rows
