"""The contract of every bijection, stated once.

A bijection maps the left end to the right end of a network and back:

    y, log_det = bijection.encode(x, cond)      left  -> right   (data -> latent)
    x, log_det = bijection.decode(y, cond)      right -> left    (latent -> data)

- Arrays are batch-first: `x` has shape `(*batch, *shape)`, `y` has shape `(*batch, *out_shape)`, and `cond` has shape
  `(*batch, *cond_shape)`. `log_det` has shape `batch`.
- `cond_shape` is None for a bijection that takes no condition, which is the default. A bijection made of others takes
  the condition of its parts, `merge_cond_shapes(parts)`, and refuses parts that take conditions of different shapes.
  `INN` compares it with its own conditions, so that no condition is ignored.
- One sign: `log_det` is log|det d(right)/d(left)| in *both* methods, so that `decode(encode(x))` returns the same
  number again and no caller has to negate anything.
- `initialise(x, cond)` fits what can be fitted in closed form to one batch (actnorm, principal rotations) and
  returns the new bijection together with `encode(x)`. The default has nothing to fit.

To write a new bijection: subclass `Bijection`, give `shape` (a static field or a property), `cond_shape` if it takes a
condition, and the two methods; export it in `bijections/__init__.py` and add a row to the catalogue in
`tests/catalogue.py`; every law is then tested.
"""

import abc
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowknife._types import Shape
from flowknife.errors import InputError

Cond = Float[Array, "..."] | None


class Bijection(eqx.Module):
    """An invertible map with a tractable Jacobian determinant; see the module's docstring for the contract."""

    shape: eqx.AbstractVar[Shape]

    @property
    def out_shape(self) -> Shape:
        """Event shape of the right end; the same as `shape` unless a bijection reshapes."""
        return self.shape

    @property
    def cond_shape(self) -> Shape | None:
        """Event shape of the condition; None for a bijection that takes none."""
        return None

    @abc.abstractmethod
    def encode(self, x: Float[Array, "..."], cond: Cond = None) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Map left to right.

        Args:
            x: array of shape `(*batch, *shape)`.
            cond: condition of shape `(*batch, *cond_shape)`; None if `cond_shape` is None.

        Returns:
            `y` of shape `(*batch, *out_shape)` and log|det dy/dx| of shape `batch`.
        """

    @abc.abstractmethod
    def decode(self, y: Float[Array, "..."], cond: Cond = None) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Map right to left.

        Args:
            y: array of shape `(*batch, *out_shape)`.
            cond: condition of shape `(*batch, *cond_shape)`; None if `cond_shape` is None.

        Returns:
            `x` of shape `(*batch, *shape)` and log|det dy/dx| at that `x`, of shape `batch`.
        """

    def initialise(self, x: Float[Array, "..."], cond: Cond = None) -> tuple["Bijection", Float[Array, "..."]]:
        """Fit what has a closed form to one batch; return the fitted bijection and `encode(x)`."""
        return self, self.encode(x, cond)[0]


def merge_cond_shapes(parts: Iterable[Any]) -> Shape | None:
    """The shape of the one condition that all `parts`, bijections or networks, share; None if none takes one.

    Raises:
        InputError: for parts that take conditions of different shapes.
    """
    taken = {net_cond_shape(part): type(part).__name__ for part in parts}
    taken.pop(None, None)
    if len(taken) > 1:
        (one, first), (other, second), *_ = taken.items()
        raise InputError(
            f"got a {first} with a condition of shape {one} and a {second} with a condition of shape {other} in one "
            "bijection; expected one shape, since all parts are given the same condition; try the same cond_dim in both"
        )
    return next(iter(taken), None)


def net_cond_shape(net: Any) -> Shape | None:
    """The shape of a network's (or a bijection's) condition; None for one that takes none, or does not say."""
    return getattr(net, "cond_shape", None)


def net_out_shape(net: Callable[..., Array], *shapes: Shape) -> Shape:
    """The shape of what a network returns for inputs of these event shapes.

    Raises:
        InputError: for a network that cannot take such inputs.
    """
    inputs = [jax.ShapeDtypeStruct(shape, jnp.zeros(()).dtype) for shape in shapes]
    try:
        return jax.eval_shape(lambda *x: net(*x), *inputs).shape
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"got a {type(net).__name__} for inputs of shape {', '.join(map(str, shapes))}, which it does not take "
            f"({reason}); expected a network built for them"
        ) from None


def batch_of(x: Float[Array, "..."], shape: Shape) -> Shape:
    """The batch shape of `x`, given the shape of one event."""
    return x.shape[: x.ndim - len(shape)]


def sum_event(x: Float[Array, "..."], shape: Shape) -> Float[Array, "..."]:
    """Sum `x` of shape `(*batch, *shape)` over its event axes."""
    return jnp.sum(x, axis=tuple(range(x.ndim - len(shape), x.ndim)))


def promoted(module: Any, x: Float[Array, "..."], cond: Cond = None) -> tuple[Float[Array, "..."], Cond]:
    """Both in the precision that `module` computes in: a loop over layers needs one that stays the same."""
    arrays = [leaf for leaf in jax.tree.leaves((module, cond)) if eqx.is_inexact_array(leaf)]
    dtype = jnp.result_type(x, *arrays)
    return jnp.asarray(x, dtype), None if cond is None else jnp.asarray(cond, dtype)
