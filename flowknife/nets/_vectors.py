"""Networks of vectors: dense layers, residual blocks, and masked layers for autoregressive flows."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowknife._types import Key, Shape, as_key
from flowknife._xla import precise
from flowknife.errors import InputError

Cond = Any
"""A condition, `(*batch, *cond_shape)`, or None."""

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "silu": jax.nn.silu, "tanh": jnp.tanh, "elu": jax.nn.elu}


def _activation(name):
    if name not in ACTIVATIONS:
        raise InputError(f"got activation={name!r}; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Dense(eqx.Module):
    """y = x W + b on the last axis.

    Args:
        inputs: length of the last axis of x.
        outputs: length of the last axis of y.
        zero: start at W = 0, otherwise at a variance of 2 / inputs (He et al. 2015, arXiv 1502.01852).
        key: random key of the initial weights.
    """

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __init__(self, inputs: int, outputs: int, *, zero: bool = False, key: Key = None):
        scale = 0.0 if zero else np.sqrt(2.0 / max(inputs, 1))
        self.weight = scale * jax.random.normal(as_key(key), (inputs, outputs))
        self.bias = jnp.zeros(outputs)

    @precise
    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        # as one matrix of rows: on a CPU, XLA computes the gradient of a product over several batch axes at half the
        # speed
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        return (rows @ self.weight + self.bias).reshape(*x.shape[:-1], self.weight.shape[-1])


def _size(shape):
    return 0 if shape is None else math.prod(shape)


def _flatten(x, shape):
    return x.reshape(*x.shape[: x.ndim - len(shape)], -1)


def _join_vectors(x, in_shape, cond, cond_shape):
    """X and cond as one flat vector."""
    x = _flatten(x, in_shape)
    if cond_shape is None:
        return x
    cond = _flatten(cond, cond_shape)
    return jnp.concatenate([x, jnp.broadcast_to(cond, (*x.shape[:-1], cond.shape[-1]))], axis=-1)


class MLP(eqx.Module):
    """Dense layers with an activation between; events of any shape are flattened.

    Args:
        in_shape: event shape of x.
        out_shape: event shape of the output.
        cond_shape: event shape of cond, or None.
        width: hidden units.
        depth: hidden layers.
        activation: a name in `ACTIVATIONS`.
        zero: start at output zero.
        key: random key of the initial weights.
    """

    layers: tuple[Dense, ...]
    in_shape: Shape = eqx.field(static=True)
    out_shape: Shape = eqx.field(static=True)
    cond_shape: Shape | None = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        cond_shape: Shape | None = None,
        *,
        width: int = 64,
        depth: int = 2,
        activation: str = "gelu",
        zero: bool = True,
        key: Key = None,
    ):
        self.in_shape, self.out_shape, self.cond_shape = in_shape, out_shape, cond_shape
        self.activation = activation
        _activation(activation)
        sizes = [_size(in_shape) + _size(cond_shape), *[width] * depth, _size(out_shape)]
        keys = jax.random.split(as_key(key), depth + 1)
        self.layers = tuple(
            Dense(sizes[i], sizes[i + 1], zero=zero and i == depth, key=keys[i]) for i in range(depth + 1)
        )

    @precise
    def __call__(self, x: Float[Array, "..."], cond: Cond = None) -> Float[Array, "..."]:
        x = _join_vectors(x, self.in_shape, cond, self.cond_shape)
        for layer in self.layers[:-1]:
            x = _activation(self.activation)(layer(x))
        x = self.layers[-1](x)
        return x.reshape(*x.shape[:-1], *self.out_shape)


class ResidualMLP(eqx.Module):
    """Pre-activation residual blocks h + W2 a(W1 a(h)) between two dense layers (He et al. 2016, arXiv 1603.05027).

    Args as for `MLP`; `depth` counts blocks of two layers. Each block starts as the identity.
    """

    proj_in: Dense
    blocks: tuple[tuple[Dense, Dense], ...]
    proj_out: Dense
    in_shape: Shape = eqx.field(static=True)
    out_shape: Shape = eqx.field(static=True)
    cond_shape: Shape | None = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        cond_shape: Shape | None = None,
        *,
        width: int = 64,
        depth: int = 2,
        activation: str = "gelu",
        zero: bool = True,
        key: Key = None,
    ):
        self.in_shape, self.out_shape, self.cond_shape = in_shape, out_shape, cond_shape
        self.activation = activation
        _activation(activation)
        first, last, *inner = jax.random.split(as_key(key), 2 + 2 * depth)
        self.proj_in = Dense(_size(in_shape) + _size(cond_shape), width, key=first)
        self.proj_out = Dense(width, _size(out_shape), zero=zero, key=last)
        self.blocks = tuple(
            (Dense(width, width, key=inner[2 * i]), Dense(width, width, zero=True, key=inner[2 * i + 1]))
            for i in range(depth)
        )

    @precise
    def __call__(self, x: Float[Array, "..."], cond: Cond = None) -> Float[Array, "..."]:
        act = _activation(self.activation)
        x = self.proj_in(_join_vectors(x, self.in_shape, cond, self.cond_shape))
        for one, two in self.blocks:
            x = x + two(act(one(act(x))))
        x = self.proj_out(act(x))
        return x.reshape(*x.shape[:-1], *self.out_shape)


class MaskedMLP(eqx.Module):
    """An MLP whose outputs for element i depend on elements 1 ... i-1 of x (MADE, arXiv 1502.03509), and on cond.

    Args:
        dim: length n of x.
        num_params: outputs per element.
        cond_dim: length of cond, 0 for none.
        width: hidden units.
        depth: hidden layers.
        key: random key of the initial weights.

    Returns (when called):
        array of shape (..., n, num_params), zero at the start.
    """

    layers: tuple[Dense, ...]
    dim: int = eqx.field(static=True)
    num_params: int = eqx.field(static=True)
    cond_dim: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    activation: ClassVar[str] = "gelu"

    def __init__(
        self, dim: int, num_params: int, cond_dim: int = 0, *, width: int = 64, depth: int = 2, key: Key = None
    ):
        width = max(width, dim)  # every element needs a hidden unit
        self.dim, self.num_params, self.cond_dim, self.width = dim, num_params, cond_dim, width
        sizes = [dim + cond_dim, *[width] * depth, dim * num_params]
        keys = jax.random.split(as_key(key), depth + 1)
        self.layers = tuple(Dense(sizes[i], sizes[i + 1], zero=i == depth, key=keys[i]) for i in range(depth + 1))

    @property
    def cond_shape(self) -> Shape | None:
        """Event shape of cond, or None."""
        return (self.cond_dim,) if self.cond_dim else None

    def _masks(self):
        # every unit has an order: a connection from order a to order b exists only if a <= b, at the output if a < b
        inputs = np.concatenate([np.zeros(self.cond_dim), np.arange(1, self.dim + 1)])
        hidden = np.arange(self.width) % self.dim
        outputs = np.repeat(np.arange(self.dim), self.num_params)
        orders = [inputs, *[hidden] * (len(self.layers) - 1), outputs]
        return [orders[i][:, None] <= orders[i + 1][None, :] for i in range(len(self.layers))]

    @precise
    def __call__(self, x: Float[Array, "..."], cond: Cond = None) -> Float[Array, "..."]:
        if self.cond_dim:
            x = jnp.concatenate([jnp.broadcast_to(cond, (*x.shape[:-1], self.cond_dim)), x], axis=-1)
        for i, (layer, mask) in enumerate(zip(self.layers, self._masks(), strict=True)):
            x = x @ (layer.weight * mask) + layer.bias
            if i < len(self.layers) - 1:
                x = _activation(self.activation)(x)
        return x.reshape(*x.shape[:-1], self.dim, self.num_params)
