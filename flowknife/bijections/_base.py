"""The contract of every bijection, stated once.

A bijection maps the left end to the right end of a network and back:

    y, log_det = bijection.encode(x, cond)      left  -> right   (data -> latent)
    x, log_det = bijection.decode(y, cond)      right -> left    (latent -> data)

- Arrays are batch-first: `x` has shape `(*batch, *shape)`, `y` has shape `(*batch, *out_shape)`, and `cond`, where a
  bijection uses one, `(*batch, *cond_shape)`. `log_det` has shape `batch`.
- One sign: `log_det` is log|det d(right)/d(left)| in *both* methods, so that `decode(encode(x))` returns the same
  number again and no caller has to negate anything.
- `initialise(x, cond)` fits what can be fitted in closed form to one batch (actnorm, principal rotations) and
  returns the new bijection together with `encode(x)`. The default has nothing to fit.

To write a new bijection: subclass `Bijection`, give `shape` (a static field or a property) and the two methods, export
it in `bijections/__init__.py` and add a row to the catalogue in `tests/catalogue.py`; every law is then tested.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowknife._types import Shape

Cond = Float[Array, "..."] | None


class Bijection(eqx.Module):
    """An invertible map with a tractable Jacobian determinant; see the module's docstring for the contract."""

    shape: eqx.AbstractVar[Shape]

    @property
    def out_shape(self) -> Shape:
        """Event shape of the right end; the same as `shape` unless a bijection reshapes."""
        return self.shape

    @abc.abstractmethod
    def encode(self, x: Float[Array, "..."], cond: Cond = None) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Map left to right.

        Args:
            x: array of shape `(*batch, *shape)`.
            cond: condition of shape `(*batch, *cond_shape)`, or None.

        Returns:
            `y` of shape `(*batch, *out_shape)` and log|det dy/dx| of shape `batch`.
        """

    @abc.abstractmethod
    def decode(self, y: Float[Array, "..."], cond: Cond = None) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Map right to left.

        Args:
            y: array of shape `(*batch, *out_shape)`.
            cond: condition of shape `(*batch, *cond_shape)`, or None.

        Returns:
            `x` of shape `(*batch, *shape)` and log|det dy/dx| at that `x`, of shape `batch`.
        """

    def initialise(self, x: Float[Array, "..."], cond: Cond = None) -> tuple["Bijection", Float[Array, "..."]]:
        """Fit what has a closed form to one batch; return the fitted bijection and `encode(x)`."""
        return self, self.encode(x, cond)[0]


def batch_of(x: Float[Array, "..."], shape: Shape) -> Shape:
    """The batch shape of `x`, given the shape of one event."""
    return x.shape[: x.ndim - len(shape)]


def sum_event(x: Float[Array, "..."], shape: Shape) -> Float[Array, "..."]:
    """Sum `x` of shape `(*batch, *shape)` over its event axes."""
    return jnp.sum(x, axis=tuple(range(x.ndim - len(shape), x.ndim)))
