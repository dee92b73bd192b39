"""Architectures for vectors, and layers that are chosen by name."""

from functools import partial
from typing import Any

import jax
import numpy as np

from flowknife import nets
from flowknife._types import Key, Shape, as_key, built
from flowknife.bijections import (
    LU,
    Bijection,
    Chain,
    Channels,
    Composed,
    Conditioned,
    Coupling,
    Orthogonal,
    Permute,
    PrincipalRotation,
    Regression,
    Repeat,
    Scalar,
    Shift,
    ShiftScale,
    Spline,
)
from flowknife.bijections._chain import Memory
from flowknife.bijections._coupling import MakeNet
from flowknife.errors import InputError


def condition_shape(cond_dim: int) -> Shape | None:
    """Event shape of a condition of this length, None for 0."""
    if cond_dim < 0:
        raise InputError(f"got cond_dim={cond_dim}; expected the length of the condition, 0 for none")
    return (cond_dim,) if cond_dim else None


SCALARS = {"additive": Shift(), "affine": ShiftScale(), "spline": Composed([ShiftScale(), Spline()])}
MIXINGS = ("lu", "orthogonal", "permute")

_LONG = 32  # longer conditions are reduced to principal components


def scalar_named(scalar: str | Scalar) -> Scalar:
    if isinstance(scalar, Scalar):
        return scalar
    if scalar not in SCALARS:
        raise InputError(f"got scalar={scalar!r}; expected one of {', '.join(SCALARS)}, or a Scalar")
    return SCALARS[scalar]


def _mixing(mixing: str, shape: Shape, key: jax.Array) -> Bijection:
    if mixing == "lu":
        return LU(shape, key=key)
    if mixing == "orthogonal":
        return Orthogonal(shape, key=key)
    if mixing == "permute":
        return Permute.random(shape, key=key)
    raise InputError(f"got mixing={mixing!r}; expected one of {', '.join(MIXINGS)}")


def coupling_flow(
    dim: int,
    *,
    cond_dim: int = 0,
    layers: int = 8,
    width: int = 64,
    depth: int = 2,
    scalar: str | Scalar = "spline",
    mixing: str = "lu",
    net: MakeNet | None = None,
    memory: Memory = "standard",
    key: Key = None,
) -> Bijection:
    """Couplings of a vector, each after a linear mixing: the default for tables.

    With "spline", each element goes through an affine map and a rational-quadratic spline (arXiv 1906.04032).

    Args:
        dim: length of x; with 1, couplings depend only on the condition.
        cond_dim: length of the condition, 0 for none.
        layers: number of couplings, scanned.
        width: hidden units of each network.
        depth: hidden layers of each network.
        scalar: "spline", "affine", "additive" or any `Scalar`.
        mixing: "lu" (trained), "orthogonal" or "permute" (fixed).
        net: constructor of the couplings' networks; default `MLP` of this width and depth.
        memory: "reversible" recomputes activations in the backward pass, see `Repeat`.
        key: random key of the initial weights.

    Returns:
        a bijection of shape `(dim,)`.
    """
    make_net = partial(nets.MLP, width=width, depth=depth) if net is None else net
    cond_shape = condition_shape(cond_dim)

    def layer(key):
        mix, couple = jax.random.split(key)
        return Chain(
            [
                _mixing(mixing, (dim,), mix),
                Coupling(Channels(dim), scalar_named(scalar), make_net, cond_shape=cond_shape, key=couple),
            ]
        )

    return Repeat(layer, layers, memory=memory, key=key)


def flow_given(
    dim: int,
    y: np.ndarray,
    *,
    features: int = 64,
    hidden: int = 128,
    embedding: Any = None,
    key: Key = None,
    **couplings: Any,
) -> Bijection:
    """A flow of a vector given y: linear regression on y, whitening, and couplings conditioned on features of y.

    The first two are fitted in closed form (`initialise`), so training starts at the linear-Gaussian density of x given
    y.

    Args:
        dim: length of x.
        y: training rows of the condition, shape (n, k).
        features: learned features of y in addition to its normal scores, see `nets.Embedding`.
        hidden: hidden units of the network that learns them.
        embedding: a network of features of y that replaces these, with `in_shape` and `features`, such as
            `nets.ObservationEmbedding`.
        key: random key of the initial weights.
        **couplings: arguments of `coupling_flow`.

    Returns:
        a bijection of shape `(dim,)` with a condition of shape `(k,)`.
    """
    embed_key, flow_key = jax.random.split(as_key(key))
    if embedding is None:
        embedding = nets.Embedding(y, most=_LONG, learned=features, width=hidden, key=embed_key)
    flow = built(coupling_flow, dim, cond_dim=embedding.features, key=flow_key, **couplings)
    start = [Regression(dim, embedding.features), PrincipalRotation(dim, back=True)]
    return Conditioned(Chain([*start, flow]), embedding)
