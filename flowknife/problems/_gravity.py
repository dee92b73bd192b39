"""Applications 6 and 7: infer the depth of a basin from a gravity anomaly."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from flowknife.priors import GaussianProcess
from flowknife.problems._nuts import nuts_posterior
from flowknife.problems._problem import Problem, check_count

NEWTON = 6.67430e-11
"""Gravitational constant, m^3 / (kg s^2), CODATA 2018."""

WIDTH, CONTRAST, HEIGHT = 16.0, -300.0, 0.001
"""Width of the basin in km, density contrast of its filling in kg/m^3, height of the stations above it in km."""

ATTRACTION = CONTRAST * NEWTON * 1e3 * 1e5
"""Attraction of the filling, in mGal per km: metres per km, mGal per m/s^2."""
_SMALL_NOISE = 0.1


def prism_anomaly(x: ArrayLike, edges: ArrayLike, depth: ArrayLike) -> Array:
    """Vertical attraction of rectangles of infinite strike, from z = 0 down to `depth`, in mGal.

        g = G drho [t ln(t^2 + z^2) + 2 z atan(t / z)]   over t from edge to edge, z from h to h + depth

    with t the horizontal distance to the station and h its height (Telford et al. 1990, sec. 2.7.7, two-dimensional).

    Args:
        x: stations, km, shape (m,).
        edges: edges of the prisms, km, shape (n + 1,).
        depth: depths of the prisms, km, shape (*batch, n).

    Returns:
        shape (*batch, m).
    """
    t = jnp.asarray(edges) - jnp.asarray(x)[:, None]  # (m, n + 1)
    top, bottom = HEIGHT, HEIGHT + jnp.asarray(depth)[..., None, :]  # (*batch, 1, n)

    def term(t):
        # the logarithm of the ratio, since the difference of two logarithms would lose digits far away
        logarithm = t * jnp.log1p((bottom**2 - top**2) / (t**2 + top**2))
        return logarithm + 2 * bottom * jnp.arctan(t / bottom) - 2 * top * jnp.arctan(t / top)

    return ATTRACTION * jnp.sum(term(t[:, 1:]) - term(t[:, :-1]), axis=-1)


def gravity(prisms: int = 32, stations: int = 16, noise: float | int = 0.0) -> Problem:
    """A sedimentary basin, 16 km wide, as vertical prisms; y is its gravity anomaly at stations along the surface.

    The filling is 300 kg/m^3 lighter than the rock around it. Log depth is a Gaussian process: median 0.4 km at the
    rims and 2 km in the middle, standard deviation 0.4, correlation length 1.5 km.

    Args:
        prisms: number N of depths, in km.
        stations: number of data, in mGal, in the middle of equal shares of the width.
        noise: standard deviation of the data, in mGal. A good survey reaches 0.1 to 0.5.

    The reference is Hamiltonian Monte Carlo (NUTS). Without noise it assumes a standard deviation of 0.1 mGal, about 1
    % of the anomaly, since the posterior of noise-free data has no density.
    """
    check_count("prisms", prisms)
    check_count("stations", stations)
    edges = np.linspace(0.0, WIDTH, prisms + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    x = WIDTH * (np.arange(stations) + 0.5) / stations
    prior = GaussianProcess(
        centres,
        mean=np.log(0.4 + 1.6 * np.sin(np.pi * centres / WIDTH) ** 2),
        scale=0.4,
        length=1.5,
        log=True,
        names=[f"depth{i + 1}" for i in range(prisms)],
        units=["km"] * prisms,
    )
    forward = partial(prism_anomaly, x, edges)
    return Problem(
        name="gravity",
        prior=prior,
        forward=forward,
        reference=partial(nuts_posterior, prior, forward, noise if np.any(noise) else _SMALL_NOISE),
        y_names=tuple(f"anomaly{i + 1}" for i in range(stations)),
        y_units=("mGal",) * stations,
        noise=noise,
        geometry={"stations": x, "edges": edges},
        source="Telford et al. 1990, Applied Geophysics, sec. 2.7.7",
    )
