"""The contract of every bijection.

A bijection maps the left end of a network to its right end and back:

    y, log_det = bijection.encode(x, cond)      left  -> right   (data -> latent)
    x, log_det = bijection.decode(y, cond)      right -> left    (latent -> data)

- Arrays are batch-first: `x` has shape `(*batch, *shape)`, `y` has shape `(*batch, *out_shape)`, and `cond` has shape
  `(*batch, *cond_shape)`. `log_det` has shape `batch`.
- `cond_shape` is None for a bijection that takes no condition, which is the default. A composite bijection takes the
condition of its parts, `merge_cond_shapes(parts)`, which refuses parts with conditions of different shapes. `INN`
compares it with its own conditions, so that no condition is ignored.
- One sign: `log_det` is log|det d(right)/d(left)| in *both* methods, so that `decode(encode(x))` returns the same
number again and callers never negate it.
- `initialise(x, cond)` fits closed-form parameters to one batch (actnorm, principal rotations) and returns the new
bijection together with `encode(x)`. By default there are none.
- Matrix products of these methods, and of the networks that they call, are in float32 on every device (`precise`).

Two parts of the contract are optional; the defaults are correct for a right end of one block.

- A right end may consist of several blocks, such as the levels of a multi-scale flow. `encode_blocks` returns each
block with its share of the log-determinant, `block_shapes` their event shapes, `block_parts` the parameters that each
block depends on, and `coarsest` the flow of the first block.
- The log-determinant of an image flow may be known position by position: `encode_local` returns it as such terms.

To write a new bijection: subclass `Bijection`, give `shape` (a static field or a property), `cond_shape` if it takes a
condition, and the two methods; export it in `bijections/__init__.py` and add a row to the catalogue in
`tests/catalogue.py`; every law is then tested.
"""

import abc
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowknife._types import Shape
from flowknife._xla import precise
from flowknife.errors import InputError

Cond = Float[Array, "..."] | None
Terms = list[Array]
"""Summands of a log-determinant, each of shape `batch`, or `(*batch, height, width)` position by position."""


class BlockParts(NamedTuple):
    """The parts of a bijection on which the blocks of its right end depend.

    Attributes:
        shared: parts that every block may depend on.
        own: for each block, the parts on which only this block depends.
    """

    shared: tuple[Any, ...]
    own: tuple[tuple[Any, ...], ...]


_PRECISE = ("encode", "decode", "initialise", "encode_blocks", "encode_coarsest", "encode_local", "encode_each")


class Bijection(eqx.Module):
    """An invertible map with a tractable Jacobian determinant; see the module's docstring for the contract."""

    shape: eqx.AbstractVar[Shape]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name in _PRECISE:
            own = cls.__dict__.get(name)
            if inspect.isfunction(own):
                setattr(cls, name, precise(own))

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
        """Fit closed-form parameters to one batch; return the fitted bijection and `encode(x)`."""
        return self, self.encode(x, cond)[0]

    # -- blocks of the right end --------------------------------------------------------------------------------------

    @property
    def block_shapes(self) -> tuple[Shape, ...]:
        """Event shape of each block of the right end, in their order; flattened and joined they are the right end."""
        return (self.out_shape,)

    @property
    def block_parts(self) -> BlockParts:
        """The parts on which the blocks depend, for training block by block."""
        return BlockParts((), ((self,),))

    @property
    def coarsest(self) -> "Bijection":
        """The flow of the coarsest block, after all others are factored out; its input is `encode_coarsest`."""
        return self

    def encode_coarsest(self, x: Float[Array, "..."], cond: Cond = None) -> Float[Array, "..."]:
        """The input of `coarsest`."""
        return x

    def encode_blocks(
        self, x: Float[Array, "..."], cond: Cond = None, *, before: Sequence[Array] = (), local: bool = False
    ) -> list[tuple[Float[Array, "..."], Terms]]:
        """`encode`, block by block.

            log|det dy/dx| = sum over blocks of the sum of their terms

        Args:
            x: array of shape `(*batch, *shape)`.
            cond: as for `encode`.
            before: terms of the preceding bijections, which are added to one block.
            local: whether terms may be local, see `encode_local`.

        Returns:
            each block, of shape `(*batch, *its block shape)`, with its terms.
        """
        y, terms = encode_terms(self, x, cond, local)
        return [(y, [*before, *terms])]

    def encode_local(self, x: Float[Array, "..."], cond: Cond = None) -> tuple[Float[Array, "..."], Terms]:
        """`encode`, with the log-determinant as a sum of terms, which may be local (one number per position)."""
        y, log_det = self.encode(x, cond)
        return y, [log_det]


class ScalarBijection(Bijection):
    """A bijection that applies a scalar map to each element, so that its log-determinant is a sum over elements."""

    @abc.abstractmethod
    def encode_each(self, x: Float[Array, "..."], cond: Cond = None) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Like `encode`, with the log-determinant of each element, shape `(*batch, *shape)`."""

    def encode_local(self, x, cond=None):
        y, log_slopes = self.encode_each(x, cond)
        return y, [jnp.sum(log_slopes, axis=-1) if len(self.shape) == 3 else sum_event(log_slopes, self.shape)]


def encode_terms(bijection: Bijection, x: Array, cond: Cond, local: bool) -> tuple[Array, Terms]:
    """`encode_local`, or `encode` with its log-determinant as the only term."""
    if local:
        return bijection.encode_local(x, cond)
    y, log_det = bijection.encode(x, cond)
    return y, [log_det]


def join_blocks(blocks: Sequence[tuple[Array, Terms]], shapes: Sequence[Shape]) -> tuple[Array, Array]:
    """The right end as one flat vector, and its log-determinant, from the result of `encode_blocks`."""
    pairs = zip(blocks, shapes, strict=True)
    flat = [block.reshape(*batch_of(block, shape), math.prod(shape)) for (block, _), shape in pairs]
    return jnp.concatenate(flat, axis=-1), sum_terms([term for _, terms in blocks for term in terms])


def sum_terms(terms: Sequence[Array]) -> Array:
    """The sum of terms of shape `batch`."""
    total, *others = terms
    for term in others:
        total = total + term
    return total


def merge_cond_shapes(parts: Iterable[Any]) -> Shape | None:
    """The condition shape that all `parts`, bijections or networks, share; None if no part takes a condition.

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
    """The condition shape of a network or bijection; None if it takes none or has no `cond_shape`."""
    return getattr(net, "cond_shape", None)


def net_out_shape(net: Callable[..., Array], *shapes: Shape) -> Shape:
    """The output shape of a network for inputs of these event shapes.

    Raises:
        InputError: for a network that does not accept such inputs.
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


def promoted(module: Any, x: Float[Array, "..."], cond: Array | None = None) -> tuple[Float[Array, "..."], Cond]:
    """Both arrays in the precision of `module`: a scan over layers needs constant dtypes."""
    arrays = [leaf for leaf in jax.tree.leaves((module, cond)) if eqx.is_inexact_array(leaf)]
    dtype = jnp.result_type(x, *arrays)
    return jnp.asarray(x, dtype), None if cond is None else jnp.asarray(cond, dtype)
