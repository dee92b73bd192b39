"""Inverse problems: a prior, a forward model, noise, and reference draws from the posterior."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowknife._types import Key, as_key, as_numbers
from flowknife.errors import InputError
from flowknife.priors import Prior

Reference = Callable[[Array, np.ndarray, int], np.ndarray]
"""(key, y of shape (y_dim,), n) -> draws of the posterior given y, shape (n, dim)."""


@dataclass(frozen=True)
class Problem:
    """An inverse problem whose posterior is known: theta ~ prior, y = forward(theta) + N(0, noise^2).

    Attributes:
        name: its key in `PROBLEMS`.
        prior: prior of the parameters theta.
        forward: parameters of shape (*batch, dim) -> noiseless data of shape (*batch, y_dim), written in JAX.
        reference: draws from the posterior, see `Reference`.
        y_names: names of the data.
        y_units: units of the data.
        noise: standard deviation of the data, one number or one for each; 0 for a deterministic problem, None if the
            noise of `draw` is not Gaussian.
        draw: (key, theta) -> y, if it is not forward + Gaussian noise.
        geometry: arrays for drawing the problem, by name.
        source: reference of the definition.

    A problem with module-level functions can be pickled, and so simulated in a pool of processes.

    Raises:
        InputError: for a prior, forward model or noise of another kind, or names and units that do not fit.
    """

    name: str
    prior: Prior
    forward: Callable[[Any], Array] = field(repr=False)
    reference: Reference = field(repr=False)
    y_names: tuple[str, ...]
    y_units: tuple[str, ...]
    noise: float | int | tuple[float, ...] | None = 0.0
    draw: Callable[[Array, Array], Array] | None = field(default=None, repr=False)
    geometry: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    source: str = ""

    def __post_init__(self):
        if not isinstance(self.prior, Prior):
            raise InputError(
                f"got {type(self.prior).__name__} as the prior of {self.name}; expected one of flowknife.priors"
            )
        for role in ("forward", "reference"):
            if not callable(getattr(self, role)):
                got = type(getattr(self, role)).__name__
                raise InputError(f"got {got} as {role} of {self.name}; expected a function")
        if len(self.y_names) != len(self.y_units):
            got = f"{len(self.y_names)} names and {len(self.y_units)} units of data"
            raise InputError(f"got {got}; expected a name and a unit for each")
        if self.noise is None:
            return
        noise = as_numbers(self.noise, "noise")
        if noise.shape not in ((), (self.y_dim,)) or not np.all(np.isfinite(noise) & (noise >= 0)):
            raise InputError(
                f"got noise={self.noise}; expected a standard deviation, or one for each of {self.y_dim} data"
            )

    @property
    def dim(self) -> int:
        """Number of parameters."""
        return self.prior.dim

    @property
    def y_dim(self) -> int:
        """Number of data."""
        return len(self.y_names)

    def simulate(self, theta: Any, *, key: Key = None) -> Float[Array, "..."]:
        """Draw data y given parameters.

        Args:
            theta: parameters, shape (*batch, dim).
            key: int, JAX key or None.

        Returns:
            data of shape (*batch, y_dim); NaN if the forward model has no solution.

        Raises:
            InputError: for another number of parameters.
        """
        theta = jnp.asarray(theta if isinstance(theta, jax.Array) else as_numbers(theta, "parameters"), float)
        if theta.ndim == 0 or theta.shape[-1] != self.dim:
            names = ", ".join(self.prior.names)
            raise InputError(f"got parameters of shape {theta.shape}; expected (..., {self.dim}): {names}")
        if self.draw is not None:
            return self.draw(as_key(key), theta)
        y = self.forward(theta)
        return y + jnp.asarray(self.noise, y.dtype) * jax.random.normal(as_key(key), y.shape, y.dtype)

    def reference_posterior(self, y: Any, n: int, *, key: Key = None) -> Float[np.ndarray, "n _"]:
        """Draw `n` parameters from the posterior given one observation.

        Args:
            y: observed data, shape (y_dim,).
            n: number of draws.
            key: int, JAX key or None.

        Returns:
            parameters, float64 of shape (n, dim).

        Raises:
            InputError: for data of another shape, or data that no parameters explain.
        """
        y = as_numbers(y, "y")
        if y.shape != (self.y_dim,) or not np.all(np.isfinite(y)):
            raise InputError(f"got y={y}; expected one observation of {self.y_dim} finite numbers")
        check_count("n", n, "draw")
        return np.asarray(self.reference(as_key(key), y, n), np.float64)


def check_count(name: str, value: Any, what: str = "") -> None:
    """Refuse anything but a positive integer."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise InputError(f"got {name}={value!r}; expected a whole number, at least 1{f' {what}' if what else ''}")
