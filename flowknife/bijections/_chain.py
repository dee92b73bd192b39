"""Compositions of bijections, repeated layers, inverses, embedded conditions and reshaping."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp

from flowknife._types import Key, Shape, as_key, as_shape
from flowknife.bijections._base import (
    Bijection,
    BlockParts,
    batch_of,
    encode_terms,
    merge_cond_shapes,
    net_out_shape,
    promoted,
)
from flowknife.errors import InputError

Memory = Literal["standard", "reversible"]
"""Memory for the gradient of repeated layers: the activations of every layer, or only the last output."""


class Chain(Bijection):
    """Composition y = f_n(... f_2(f_1(x))); log-determinants add up.

    Args:
        bijections: from left (data) to right (latent); each one's `out_shape` is the next one's `shape`.

    Raises:
        InputError: for an empty chain, shapes that do not fit, or conditions of different shapes.
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
        merge_cond_shapes(self.bijections)

    @property
    def shape(self) -> Shape:
        return self.bijections[0].shape

    @property
    def out_shape(self) -> Shape:
        return self.bijections[-1].out_shape

    @property
    def cond_shape(self) -> Shape | None:
        return merge_cond_shapes(self.bijections)

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

    @property
    def block_shapes(self):
        return self.bijections[-1].block_shapes

    @property
    def block_parts(self):
        shared, own = self.bijections[-1].block_parts
        # a single block depends on the whole chain; several blocks share the layers before they are split
        return BlockParts((*self.bijections[:-1], *shared), own) if len(own) > 1 else BlockParts((), ((self,),))

    @property
    def coarsest(self):
        last = self.bijections[-1]
        return self if last.coarsest is last else last.coarsest

    def encode_coarsest(self, x, cond=None):
        *first, last = self.bijections
        if last.coarsest is last:
            return x
        for bijection in first:
            x, _ = bijection.encode(x, cond)
        return last.encode_coarsest(x, cond)

    def encode_blocks(self, x, cond=None, *, before=(), local=False):
        *first, last = self.bijections
        for bijection in first:
            x, terms = encode_terms(bijection, x, cond, local)
            before = [*before, *terms]
        return last.encode_blocks(x, cond, before=before, local=local)

    def encode_local(self, x, cond=None):
        terms = []
        for bijection in self.bijections:
            x, more = bijection.encode_local(x, cond)
            terms += more
        return x, terms


class Repeat(Bijection):
    """The same architecture repeated `times` times, with stacked parameters and a scan over layers.

    Compile time does not grow with depth. Each layer has its own parameters; only the structure is shared.

    With memory="reversible", only the output is stored for the gradient: the backward pass reconstructs every layer's
    input by inverting the layer (Gomez et al. 2017, arXiv 1707.04585, sec. 3.2). Then training memory does not grow
    with depth either, at the cost of about a third more time. Gradients differ by the rounding errors of the round
    trip.

    Args:
        make: builds one layer from a key; its left and right shapes must be equal.
        times: number of layers.
        memory: "standard" or "reversible".
        key: random key from which the layers' keys are derived.
    """

    layer: Bijection  # array leaves carry a leading axis of length `times`
    times: int = eqx.field(static=True)
    memory: Memory = eqx.field(static=True)

    def __init__(
        self, make: Callable[[jax.Array], Bijection], times: int, *, memory: Memory = "standard", key: Key = None
    ):
        if times < 1:
            raise InputError(f"got times={times}; expected at least 1 layer")
        if memory not in get_args(Memory):
            raise InputError(f"got memory={memory!r}; expected one of {', '.join(get_args(Memory))}")
        self.layer = eqx.filter_vmap(make)(jax.random.split(as_key(key), times))
        self.times, self.memory = times, memory
        if self.layer.shape != self.layer.out_shape:
            raise InputError(
                f"got a layer from {self.layer.shape} to {self.layer.out_shape}; expected equal shapes, since its "
                "output is the input of the next; try a Chain for layers that reshape"
            )

    @property
    def shape(self) -> Shape:
        return self.layer.shape

    @property
    def cond_shape(self) -> Shape | None:
        return self.layer.cond_shape

    def encode(self, x, cond=None):
        run = _scan_rebuilding if self.memory == "reversible" else _scan
        return run((self.layer, *promoted(self.layer, x, cond)), "encode", self.times)

    def decode(self, y, cond=None):
        run = _scan_rebuilding if self.memory == "reversible" else _scan
        return run((self.layer, *promoted(self.layer, y, cond)), "decode", self.times)

    def initialise(self, x, cond=None):
        arrays, structure = eqx.partition(self.layer, eqx.is_array)
        x, cond = promoted(self.layer, x, cond)

        def step(x, layer_arrays):
            layer, x = eqx.combine(layer_arrays, structure).initialise(x, cond)
            return x, eqx.filter(layer, eqx.is_array)

        x, arrays = jax.lax.scan(step, x, arrays, length=self.times)
        return eqx.tree_at(lambda repeat: repeat.layer, self, eqx.combine(arrays, structure)), x

    def encode_local(self, x, cond=None):
        arrays, structure = eqx.partition(self.layer, eqx.is_array)
        x, terms = jax.lax.scan(lambda x, own: eqx.combine(own, structure).encode_local(x, cond), x, arrays)
        return x, [jnp.sum(term, axis=0) for term in terms]


def _scan(inputs, method, times):
    """Apply all layers by `method`; `inputs` are the stacked layers, the left or right end, and the condition."""
    layers, x, cond = inputs
    arrays, structure = eqx.partition(layers, eqx.is_array)

    def step(carry, layer_arrays):
        x, log_det = carry
        x, term = getattr(eqx.combine(layer_arrays, structure), method)(x, cond)
        return (x, log_det + term), None

    start = (x, jnp.zeros(batch_of(x, layers.shape), x.dtype))
    return jax.lax.scan(step, start, arrays, length=times, reverse=method == "decode")[0]


_scan_rebuilding = eqx.filter_custom_vjp(_scan)


@_scan_rebuilding.def_fwd
def _scan_forward(perturbed, inputs, method, times):
    y, log_det = _scan(inputs, method, times)
    return (y, log_det), y


@_scan_rebuilding.def_bwd
def _scan_backward(y, cotangents, perturbed, inputs, method, times):
    layers, _, cond = inputs
    perturbed_layer, _, perturbed_cond = perturbed
    log_det = jnp.zeros(batch_of(y, layers.shape), y.dtype)
    y_bar, log_det_bar = eqx.combine(cotangents, (jnp.zeros_like(y), log_det))
    arrays, structure = eqx.partition(layers, eqx.is_array)

    def step(carry, layer_arrays):
        y, y_bar, cond_bar = carry
        layer = eqx.combine(layer_arrays, structure)
        x, x_bar, layer_bar, term = _pull_back(layer, y, cond, y_bar, log_det_bar, method, perturbed_layer)
        return (x, x_bar, None if cond is None else cond_bar + term), layer_bar

    start = (y, y_bar, None if cond is None else jnp.zeros(cond.shape, y.dtype))
    # each step writes only its own slice of the stacked gradients
    (_, x_bar, cond_bar), layers_bar = jax.lax.scan(step, start, arrays, length=times, reverse=method == "encode")
    return layers_bar, x_bar, cond_bar if perturbed_cond else None


def _pull_back(layer, y, cond, y_bar, log_det_bar, method, perturbed):
    """From the output of a layer and its cotangent to the input and the cotangents of input, layer and condition."""
    back = "decode" if method == "encode" else "encode"
    if isinstance(layer, Chain):
        # part by part: the identity part of a coupling is unchanged, so one pass of its network serves both directions
        parts, cond_bar = list(zip(layer.bijections, perturbed.bijections, strict=True)), 0.0
        bars = []
        for part, moved in reversed(parts) if method == "encode" else parts:
            y, y_bar, part_bar, term = _pull_back(part, y, cond, y_bar, log_det_bar, method, moved)
            bars, cond_bar = [*bars, part_bar], cond_bar + term
        # cotangents of fixed parts are None, so parts are filled in instead of building a new Chain
        bars = tuple(bars[::-1] if method == "encode" else bars)
        return y, y_bar, eqx.tree_at(lambda chain: chain.bijections, layer, bars), cond_bar
    x, _ = getattr(layer, back)(y, cond)
    trained, rest = eqx.partition(layer, perturbed)
    if cond is None:
        _, pull = jax.vjp(lambda trained, x: getattr(eqx.combine(trained, rest), method)(x), trained, x)
        layer_bar, x_bar = pull((y_bar, log_det_bar))
        return x, x_bar, layer_bar, 0.0
    cond = jnp.asarray(cond, y.dtype)
    _, pull = jax.vjp(lambda trained, x, cond: getattr(eqx.combine(trained, rest), method)(x, cond), trained, x, cond)
    layer_bar, x_bar, cond_bar = pull((y_bar, log_det_bar))
    return x, x_bar, layer_bar, cond_bar


class Inverse(Bijection):
    """The same bijection with its ends exchanged: encode is the other's decode, log_det changes sign."""

    bijection: Bijection

    def __init__(self, bijection: Bijection):
        self.bijection = bijection

    @property
    def shape(self) -> Shape:
        return self.bijection.out_shape

    @property
    def out_shape(self) -> Shape:
        return self.bijection.shape

    @property
    def cond_shape(self) -> Shape | None:
        return self.bijection.cond_shape

    def encode(self, x, cond=None):
        y, log_det = self.bijection.decode(x, cond)
        return y, -log_det

    def decode(self, y, cond=None):
        x, log_det = self.bijection.encode(y, cond)
        return x, -log_det


class Conditioned(Bijection):
    """A bijection given features of the condition, y = f(x; e(cond)), which are computed once for all layers of f.

    Args:
        bijection: the bijection f.
        embedding: the network e, of one argument.
        cond_shape: event shape of the condition; default the embedding's own `in_shape`.

    Raises:
        InputError: if the features do not have the condition shape of f.
    """

    bijection: Bijection
    embedding: Callable[..., jax.Array]
    given_cond_shape: Shape | None = eqx.field(static=True, default=None)

    def __init__(
        self, bijection: Bijection, embedding: Callable[..., jax.Array], cond_shape: int | Shape | None = None
    ):
        self.bijection, self.embedding = bijection, embedding
        self.given_cond_shape = None if cond_shape is None else as_shape(cond_shape)
        features = net_out_shape(embedding, self.cond_shape)
        if features != bijection.cond_shape:
            raise InputError(
                f"got an embedding that returns features of shape {features} for a {type(bijection).__name__} with a "
                f"condition of shape {bijection.cond_shape}; expected equal shapes"
            )

    @property
    def shape(self) -> Shape:
        return self.bijection.shape

    @property
    def out_shape(self) -> Shape:
        return self.bijection.out_shape

    @property
    def cond_shape(self) -> Shape:
        shape = (
            self.given_cond_shape if self.given_cond_shape is not None else getattr(self.embedding, "in_shape", None)
        )
        if shape is None:
            raise InputError(
                f"got a {type(self.embedding).__name__} as an embedding, which has no in_shape; expected the event "
                "shape of the condition; try Conditioned(bijection, embedding, cond_shape=...)"
            )
        return shape

    def encode(self, x, cond=None):
        return self.bijection.encode(x, self.embedding(cond))

    def decode(self, y, cond=None):
        return self.bijection.decode(y, self.embedding(cond))

    def initialise(self, x, cond=None):
        bijection, y = self.bijection.initialise(x, self.embedding(cond))
        return eqx.tree_at(lambda conditioned: conditioned.bijection, self, bijection), y

    @property
    def block_shapes(self):
        return self.bijection.block_shapes

    @property
    def block_parts(self):
        shared, own = self.bijection.block_parts
        return BlockParts((self.embedding, *shared), own) if len(own) > 1 else BlockParts((), ((self,),))

    def encode_blocks(self, x, cond=None, *, before=(), local=False):
        return self.bijection.encode_blocks(x, self.embedding(cond), before=before, local=local)

    def encode_local(self, x, cond=None):
        return self.bijection.encode_local(x, self.embedding(cond))


class Reshape(Bijection):
    """Reshape in row-major order; log_det = 0.

    Args:
        shape: left event shape.
        out_shape: right event shape, with the same number of elements.
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
