"""Networks and maps of single numbers, as plain values and arrays."""

import math
from functools import singledispatch
from typing import Any

import numpy as np

from flowknife import bijections as b
from flowknife import nets
from flowknife.errors import InputError

Node = dict[str, Any]


def unknown(part: Any) -> InputError:
    """The note on a part that the page cannot evaluate."""
    return InputError(
        f"got a model with a {type(part).__name__}, which the interactive page cannot evaluate; expected layers of "
        "vectors; try the report without interactive"
    )


# -- maps of single numbers -------------------------------------------------------------------------------------------

_PLAIN: dict[type, str] = {
    b.Shift: "shift",
    b.SigmoidScale: "sigmoid_scale",
    b.Sigmoid: "sigmoid",
    b.Logit: "logit",
    b.Softplus: "softplus",
    b.Exp: "exp",
    b.Tanh: "tanh",
}


def scalar_map(scalar: b.Scalar) -> Node:
    """A map of single numbers as one of the page, see `page/scalars.js`."""
    if isinstance(scalar, b.ShiftScale):
        least = scalar.bound if scalar.least is None else scalar.least
        return {"kind": "shift_scale", "bound": scalar.bound, "least": least}
    if isinstance(scalar, b.Composed):
        return {"kind": "composed", "scalars": [scalar_map(part) for part in scalar.scalars]}
    if isinstance(scalar, b.Spline):
        sizes = {name: getattr(scalar, name) for name in ("bins", "tail", "min_bin", "min_slope")}
        return {"kind": "spline", **sizes}
    if isinstance(scalar, b.Log):
        return {"kind": "log", "least": float(np.finfo(np.float32).tiny)}
    if type(scalar) not in _PLAIN:
        raise unknown(scalar)
    return {"kind": _PLAIN[type(scalar)]}


# -- networks ---------------------------------------------------------------------------------------------------------


@singledispatch
def network(net) -> Node:
    """A network as one of the page, see `page/nets.js`."""
    raise unknown(net)


def _dense(dense, given=slice(0, 0), mask=None):
    """A dense layer, with the rows of its weights that belong to a condition apart."""
    weight = np.asarray(dense.weight) if mask is None else np.asarray(dense.weight) * mask.astype(np.float32)
    of_x = np.delete(weight, given, axis=0)
    node = {"weight": of_x.ravel(), "bias": np.asarray(dense.bias), "given": None}
    return node | ({"given": weight[given].ravel()} if len(of_x) < len(weight) else {})


def _after(in_shape):
    """The rows of the weights of a first layer that belong to the condition, which comes after x."""
    return slice(math.prod(in_shape), None)


@network.register
def _(net: nets.MLP):
    first, *others = net.layers
    dense = [_dense(first, _after(net.in_shape)), *map(_dense, others)]
    return {"kind": "mlp", "activation": net.activation, "layers": dense}


@network.register
def _(net: nets.ResidualMLP):
    return {
        "kind": "residual",
        "activation": net.activation,
        "first": _dense(net.proj_in, _after(net.in_shape)),
        "blocks": [[_dense(dense) for dense in block] for block in net.blocks],
        "last": _dense(net.proj_out),
    }


@network.register
def _(net: nets.MaskedMLP):
    given = [slice(0, net.cond_dim), *[slice(0, 0)] * (len(net.layers) - 1)]
    parts = zip(net.layers, given, net._masks(), strict=True)
    return {"kind": "mlp", "activation": net.activation, "layers": [_dense(*part) for part in parts]}


@network.register
def _(net: nets.Embedding):
    return {
        "kind": "embedding",
        "knots": np.asarray(net.knots.value).ravel(),
        "scores": np.asarray(net.scores.value).ravel(),
        "mean": np.asarray(net.mean.value),
        "axes": None if net.axes is None else np.asarray(net.axes.value).ravel(),
        "net": None if net.net is None else network(net.net),
    }
