"""Application 5, ill-conditioned parameter estimation: infer the pose of a robot arm from the position of its hand."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from flowknife._types import as_generator
from flowknife.priors import Normal
from flowknife.problems._problem import Problem
from flowknife.sampling._importance import Weighted

LENGTHS = (0.5, 0.5, 1.0)
"""Lengths of the three segments."""

_SCALE = np.array([0.25, 0.5, 0.5, 0.5])


def joints(theta):
    """The four joints of the arm, hand included, shape (*batch, 4, 2).

    Args:
        theta: height of the base and three angles in radians, each relative to the segment before; shape (*batch, 4).
    """
    direction = jnp.cumsum(theta[..., 1:], axis=-1)
    steps = jnp.asarray(LENGTHS)[:, None] * jnp.stack([jnp.cos(direction), jnp.sin(direction)], axis=-1)
    base = jnp.stack([jnp.zeros_like(theta[..., 0]), theta[..., 0]], axis=-1)[..., None, :]
    return jnp.concatenate([base, base + jnp.cumsum(steps, axis=-2)], axis=-2)


def kinematics(noise: float | int = 0.0) -> Problem:
    """A planar arm with a sliding base and three joints; its hand is at y.

        y1 = l1 cos t2 + l2 cos(t2 + t3) + l3 cos(t2 + t3 + t4)
        y2 = t1 + l1 sin t2 + l2 sin(t2 + t3) + l3 sin(t2 + t3 + t4),    l = (1/2, 1/2, 1)

    with t1 ~ N(0, 0.25^2) and t2, t3, t4 ~ N(0, 0.5^2). Without noise the posterior lies on a two-dimensional surface.

    Args:
        noise: standard deviation of y.

    The reference is exact: two parameters are drawn from their prior, and the other two are solved for y, weighted by
    their prior divided by the area dy that they cover. If t1, t2 are drawn, this area is l2 l3 |sin t4| dt3 dt4, which
    vanishes for a stretched arm; if t2, t4 are drawn, it vanishes for a horizontal one. So both proposals are used,
    weighted by the mean of their densities (the balance heuristic, Veach & Guibas 1995, doi 10.1145/218380.218498).
    Ardizzone et al. 2019, arXiv 1808.04730; constants of Kruse et al. 2021, arXiv 2101.10763, sec. 3.1.
    """
    return Problem(
        name="kinematics",
        prior=Normal(0.0, _SCALE, names=("base", "angle1", "angle2", "angle3"), units=("", "rad", "rad", "rad")),
        forward=_hand,
        reference=partial(_reference, noise),
        y_names=("hand1", "hand2"),
        y_units=("", ""),
        noise=noise,
        source="Ardizzone et al. 2019, arXiv 1808.04730; Kruse et al. 2021, arXiv 2101.10763",
    )


def _hand(theta):
    return joints(jnp.asarray(theta))[..., -1, :]


def _reference(noise, key, y, n):
    numbers = as_generator(key)
    # many more than n, so that few are drawn twice
    return Weighted.gather(lambda g, m: propose(g, m, y, noise), numbers, 12 * n).draw(numbers, n)


def propose(numbers: np.random.Generator, m: int, y: np.ndarray, noise: float | int) -> tuple[np.ndarray, np.ndarray]:
    """Arms whose hand is at y (plus noise), four for each of m draws, and their log weights; see `kinematics`."""
    l1, l2, l3 = LENGTHS
    hand = (y + noise * numbers.standard_normal((m, 2)))[:, None]  # (m, 1, 2)
    drawn = _SCALE * numbers.standard_normal((m, 1, 4))
    base, t2, _, t4 = np.moveaxis(drawn, -1, 0)
    sign = np.array([1.0, -1.0])

    def forearm(t4):
        """Length and angle of the line from the elbow to the hand, the angle relative to the second segment."""
        return np.hypot(l2 + l3 * np.cos(t4), l3 * np.sin(t4)), np.arctan2(l3 * np.sin(t4), l2 + l3 * np.cos(t4))

    # t1 and t2 drawn: a forearm of the required length, bent in either direction
    reach = hand - np.stack([l1 * np.cos(t2), base + l1 * np.sin(t2)], axis=-1)
    bent = _arccos((np.sum(reach**2, axis=-1) - l2**2 - l3**2) / (2 * l2 * l3)) * sign
    first = base, t2, np.arctan2(reach[..., 1], reach[..., 0]) - forearm(bent)[1] - t2, bent

    # t2 and t4 drawn: a forearm of known length, pointing up or down, and the resulting height of the base
    length, offset = forearm(t4)
    tilt = _arccos((hand[..., 0] - l1 * np.cos(t2)) / length) * sign
    second = hand[..., 1] - l1 * np.sin(t2) - length * np.sin(tilt), t2, tilt - offset - t2, t4

    theta = np.concatenate([np.stack(np.broadcast_arrays(*arm), axis=-1) for arm in (first, second)], axis=1)
    theta[..., 2] = np.pi - (np.pi - theta[..., 2]) % (2 * np.pi)
    p1, p2, p3, p4 = np.moveaxis(np.exp(-0.5 * (theta / _SCALE) ** 2) / (np.sqrt(2 * np.pi) * _SCALE), -1, 0)
    length, offset = forearm(theta[..., 3])
    # the area of (y1, y2) that (dt3, dt4) covers, and that (dt1, dt3) covers, is density of y per density of the draws
    density = p1 * p2 * l2 * l3 * np.abs(np.sin(theta[..., 3]))
    density = density + p2 * p4 * length * np.abs(np.sin(theta[..., 1] + theta[..., 2] + offset))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_weight = np.log(4 * p1 * p2 * p3 * p4 / density)
    return theta.reshape(-1, 4), np.where(np.isfinite(log_weight), log_weight, -np.inf).ravel()


def _arccos(cosine):
    """The arc cosine, NaN if it is not defined."""
    return np.arccos(np.where(np.abs(cosine) < 1, cosine, np.nan))
