"""Compositions: one after another, the same many times, backwards, and changes of shape alone."""

import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp

from flowknife._types import Key, Shape, as_key, as_shape
from flowknife.bijections._base import Bijection, batch_of
from flowknife.errors import InputError


class Chain(Bijection):
    """Composition y = f_n(... f_2(f_1(x))); log-determinants add up.

    Args:
        bijections: from left (data) to right (latent); each one's `out_shape` is the next one's `shape`.

    Raises:
        InputError: for an empty chain or shapes that do not fit.
    """

    bijections: tuple[Bijection, ...]

    def __init__(self, bijections: Sequence[Bijection]):
        self.bijections = tuple(bijections)
        if not self.bijections:
            raise InputError("got an empty Chain; expected at least one bijection; try Chain([ActNorm(shape)])")
        for i, (first, second) in enumerate(zip(self.bijections, self.bijections[1:], strict=False)):
            if first.out_shape != second.shape:
                raise InputError(
                    f"got {type(first).__name__} with out_shape {first.out_shape} before {type(second).__name__} with "
                    f"shape {second.shape} at positions {i} and {i + 1} of a Chain; expected equal shapes; "
                    "try a Reshape between them"
                )

    @property
    def shape(self) -> Shape:
        return self.bijections[0].shape

    @property
    def out_shape(self) -> Shape:
        return self.bijections[-1].out_shape

    def encode(self, x, cond=None):
        log_det = jnp.zeros(batch_of(x, self.shape), x.dtype)
        for bijection in self.bijections:
            x, term = bijection.encode(x, cond)
            log_det = log_det + term
        return x, log_det

    def decode(self, y, cond=None):
        log_det = jnp.zeros(batch_of(y, self.out_shape), y.dtype)
        for bijection in reversed(self.bijections):
            y, term = bijection.decode(y, cond)
            log_det = log_det + term
        return y, log_det

    def initialise(self, x, cond=None):
        fitted = []
        for bijection in self.bijections:
            bijection, x = bijection.initialise(x, cond)
            fitted.append(bijection)
        return Chain(fitted), x


class Repeat(Bijection):
    """The same architecture `times` times in a row, parameters stacked and the layers scanned.

    Compile time does not grow with depth. Each layer has its own parameters; only the structure is shared.

    Args:
        make: builds one layer from a key; its left and right shapes must be equal.
        times: number of layers.
        key: source of the layers' keys.
    """

    layer: Bijection  # array leaves carry a leading axis of length `times`
    times: int = eqx.field(static=True)

    def __init__(self, make: Callable[[jax.Array], Bijection], times: int, *, key: Key = None):
        if times < 1:
            raise InputError(f"got times={times}; expected at least 1 layer")
        self.layer = eqx.filter_vmap(make)(jax.random.split(as_key(key), times))
        self.times = times
        if self.layer.shape != self.layer.out_shape:
            raise InputError(
                f"got a layer from {self.layer.shape} to {self.layer.out_shape}; expected equal shapes, since its "
                "output is the input of the next; try a Chain for layers that reshape"
            )

    @property
    def shape(self) -> Shape:
        return self.layer.shape

    def _scan(self, step, x, reverse=False):
        arrays, structure = eqx.partition(self.layer, eqx.is_array)

        def body(carry, layer_arrays):
            return step(eqx.combine(layer_arrays, structure), *carry)

        start = (x, jnp.zeros(batch_of(x, self.shape), x.dtype))
        return jax.lax.scan(body, start, arrays, length=self.times, reverse=reverse)

    def encode(self, x, cond=None):
        def step(layer, x, log_det):
            x, term = layer.encode(x, cond)
            return (x, log_det + term), None

        return self._scan(step, x)[0]

    def decode(self, y, cond=None):
        def step(layer, y, log_det):
            y, term = layer.decode(y, cond)
            return (y, log_det + term), None

        return self._scan(step, y, reverse=True)[0]

    def initialise(self, x, cond=None):
        def step(layer, x, log_det):
            layer, x = layer.initialise(x, cond)
            return (x, log_det), eqx.filter(layer, eqx.is_array)

        (x, _), arrays = self._scan(step, x)
        layer = eqx.combine(arrays, eqx.filter(self.layer, eqx.is_array, inverse=True))
        return eqx.tree_at(lambda repeat: repeat.layer, self, layer), x


class Inverse(Bijection):
    """The same bijection with its ends exchanged: encode is the other's decode, log_det changes sign."""

    bijection: Bijection

    @property
    def shape(self) -> Shape:
        return self.bijection.out_shape

    @property
    def out_shape(self) -> Shape:
        return self.bijection.shape

    def encode(self, x, cond=None):
        y, log_det = self.bijection.decode(x, cond)
        return y, -log_det

    def decode(self, y, cond=None):
        x, log_det = self.bijection.encode(y, cond)
        return x, -log_det


class Conditioned(Bijection):
    """The same bijection given features of the condition, y = f(x; e(cond)), computed once for all layers of f.

    Args:
        bijection: f.
        embedding: e, a network of one argument.
    """

    bijection: Bijection
    embedding: Callable[..., jax.Array]

    def __init__(self, bijection: Bijection, embedding: Callable[..., jax.Array]):
        self.bijection, self.embedding = bijection, embedding

    @property
    def shape(self) -> Shape:
        return self.bijection.shape

    @property
    def out_shape(self) -> Shape:
        return self.bijection.out_shape

    def encode(self, x, cond=None):
        return self.bijection.encode(x, self.embedding(cond))

    def decode(self, y, cond=None):
        return self.bijection.decode(y, self.embedding(cond))

    def initialise(self, x, cond=None):
        bijection, y = self.bijection.initialise(x, self.embedding(cond))
        return Conditioned(bijection, self.embedding), y


class Reshape(Bijection):
    """The same numbers in another shape, row-major; log_det = 0.

    Args:
        shape: left event shape.
        out_shape: right event shape, with as many elements.
    """

    shape: Shape = eqx.field(static=True)
    target: Shape = eqx.field(static=True)

    def __init__(self, shape: int | Shape, out_shape: int | Shape):
        self.shape, self.target = as_shape(shape), as_shape(out_shape)
        if math.prod(self.shape) != math.prod(self.target):
            raise InputError(f"got shapes {self.shape} and {self.target}; expected as many elements in both")

    @property
    def out_shape(self) -> Shape:
        return self.target

    def encode(self, x, cond=None):
        batch = batch_of(x, self.shape)
        return x.reshape(*batch, *self.target), jnp.zeros(batch, x.dtype)

    def decode(self, y, cond=None):
        batch = batch_of(y, self.target)
        return y.reshape(*batch, *self.shape), jnp.zeros(batch, y.dtype)
