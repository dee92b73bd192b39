"""A model of vectors as plain values and arrays, for the evaluator of the page (`page/layers.js`).

What a browser should not compute is computed here, in double precision: products of matrices and their inverses,
masked weights, the layers of a stack one by one. The evaluator then knows a dozen kinds of layers.
"""

import base64
import math
from functools import singledispatch
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowknife import bijections as b
from flowknife import laws
from flowknife._frame import Frame
from flowknife.explore._parts import Node, network, scalar_map, unknown
from flowknife.inn import INN, Block


def describe(model: INN) -> Node:
    """Both ends of a model and its layers, with arrays of NumPy.

    Raises:
        InputError: for a layer, network or law that the page does not know, such as those of images.
    """
    ends = model.partition
    return {
        "left": [_block(block) for block in ends.left],
        "right": [_block(block) | {"law": _law(block.law, block)} for block in ends.right],
        "layer": layer(model.bijection),
    }


def packed(value: Any) -> Any:
    """Plain values with arrays as base64, `{"f4": ...}`, `{"f8": ...}`, `{"i4": ...}`: what `unpacked` of a page reads.

    Single precision stays single; whole numbers have 32 bits. Bytes are `{"u1": ...}`.
    """
    if isinstance(value, bytes):
        return {"u1": base64.b64encode(value).decode("ascii")}
    if isinstance(value, dict):
        return {name: packed(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [packed(item) for item in value]
    if isinstance(value, np.ndarray):
        kind = {"f": f"f{min(value.dtype.itemsize, 8)}", "i": "i4", "u": "i4", "b": "i4"}[value.dtype.kind]
        return {kind: base64.b64encode(np.asarray(value, f"<{kind}").tobytes()).decode("ascii")}
    return value.item() if isinstance(value, np.generic) else value


def finite(value: Any) -> Any:
    """Plain values, None in the place of a number that JSON has no word for."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_MOST_SCORES = 10_000


def thinned(scores: np.ndarray) -> np.ndarray:
    """Sorted scores; of very many as many quantiles, which changes a p-value by less than 1e-4."""
    ordered = np.sort(np.asarray(scores, np.float64))
    if len(ordered) <= _MOST_SCORES:
        return ordered
    return ordered[np.round(np.linspace(0, len(ordered) - 1, _MOST_SCORES)).astype(int)]


def described_frame(frame: Frame) -> Node:
    """Origin and scale of columns, and which are constant."""
    return {"origin": list(frame.origin), "scale": list(frame.scale), "constant": list(frame.constant)}


# -- ends -------------------------------------------------------------------------------------------------------------


def _block(block: Block) -> Node:
    return {"name": block.name, "size": block.size}


@singledispatch
def _law(law, block):
    raise unknown(law)


@_law.register
def _(law: laws.Normal, block):
    return {"kind": "normal"}


@_law.register
def _(law: laws.Given, block):
    return {"kind": "given", "scale": np.broadcast_to(np.asarray(law.scale, float), block.shape).ravel()}


@_law.register
def _(law: laws.Padding, block):
    return {"kind": "padding", "scale": np.full(block.size, law.scale)}


@_law.register
def _(law: laws.ClassMixture, block):
    whitening = np.asarray(law.whitening.value, np.float64)
    return {
        "kind": "mixture",
        "means": np.asarray(law.means),
        "log_weights": np.asarray(law.log_weights),
        "whitening": whitening,
        "inverse": np.linalg.inv(whitening),
    }


# -- layers -----------------------------------------------------------------------------------------------------------


@singledispatch
def layer(bijection: Any) -> Node:
    """A bijection as a layer of the page.

    Raises:
        InputError: for one that the page does not know.
    """
    raise unknown(bijection)


def _wide(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64)


def _linear(shape, weight, inverse, log_det=0.0, mean=None):
    """The layer y = (x - mean) A at each position, x = y B + mean."""
    positions = math.prod(shape[:-1])
    mean = np.zeros(shape[-1]) if mean is None else _wide(mean)
    return {"kind": "linear", "mean": mean, "weight": weight, "inverse": inverse, "log_det": positions * float(log_det)}


def _affine(shape, loc, scale):
    loc, scale = (np.ascontiguousarray(np.broadcast_to(_wide(part), shape)).ravel() for part in (loc, scale))
    return {"kind": "affine", "loc": loc, "scale": scale}


def _places(split):
    """Which elements of a flat event are kept, and which move."""
    kept, moved = split.split(_numbered(split.shape))
    return {"kept": np.asarray(kept, int).ravel(), "moved": np.asarray(moved, int).ravel()}


def _numbered(shape):
    """An event whose elements are their own places in a flat row."""
    return jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape)


@layer.register
def _(bijection: b.Chain):
    return {"kind": "chain", "layers": [layer(part) for part in bijection.bijections]}


@layer.register
def _(bijection: b.Repeat):
    arrays, structure = eqx.partition(bijection.layer, eqx.is_array)
    stacked = jax.tree.map(np.asarray, arrays)
    each = [jax.tree.map(lambda array, i=i: array[i], stacked) for i in range(bijection.times)]
    return {"kind": "chain", "layers": [layer(eqx.combine(own, structure)) for own in each]}


@layer.register
def _(bijection: b.Inverse):
    return {"kind": "inverse", "layer": layer(bijection.bijection)}


@layer.register
def _(bijection: b.Reshape):
    return {"kind": "chain", "layers": []}


@layer.register
def _(bijection: b.Affine):
    return _affine(bijection.shape, bijection.loc.value, bijection.scale.value)


@layer.register
def _(bijection: b.ActNorm):
    return _affine(bijection.shape, -_wide(bijection.shift), np.exp(-_wide(bijection.log_scale)))


@layer.register
def _(bijection: b.Permute | b.Squeeze):
    return {"kind": "permute", "places": np.asarray(bijection.encode(_numbered(bijection.shape))[0], int).ravel()}


@layer.register
def _(bijection: b.Orthogonal):
    matrix = _wide(bijection.matrix.value)
    return _linear(bijection.shape, matrix.T, np.linalg.inv(matrix.T))


@layer.register
def _(bijection: b.Householder):
    matrix = np.eye(bijection.shape[-1])
    for v in _wide(bijection.vectors):
        matrix = matrix - 2 * np.outer(matrix @ v, v) / (v @ v)
    return _linear(bijection.shape, matrix, matrix.T)


@layer.register
def _(bijection: b.LU):
    lower = np.tril(_wide(bijection.lower), -1) + np.eye(bijection.shape[-1])
    diagonal = _wide(bijection.sign.value) * np.exp(_wide(bijection.log_diagonal))
    matrix = _wide(bijection.permutation.value) @ lower @ (np.triu(_wide(bijection.upper), 1) + np.diag(diagonal))
    return _linear(bijection.shape, matrix.T, np.linalg.inv(matrix.T), np.sum(_wide(bijection.log_diagonal)))


@layer.register
def _(bijection: b.Matrix):
    matrix = _wide(bijection.weight)
    return _linear(bijection.shape, matrix.T, np.linalg.inv(matrix.T), np.linalg.slogdet(matrix)[1])


@layer.register
def _(bijection: b.InvertibleConv1x1):
    return layer(bijection.linear)


@layer.register
def _(bijection: b.PrincipalRotation):
    rotation, scale = _wide(bijection.rotation.value), np.exp(_wide(bijection.log_scale.value))
    back = rotation if bijection.back else np.eye(len(scale))
    weight, inverse = rotation.T / scale @ back, back.T * scale @ rotation
    return _linear(bijection.shape, weight, inverse, -np.sum(np.log(scale)), bijection.mean.value)


@layer.register
def _(bijection: b.LeadingRotation):
    frame, tilt, angles = (_wide(part.value) for part in (bijection.frame, bijection.tilt, bijection.angles))
    less, sin = np.cos(angles) - 1, np.sin(angles)
    turn = np.block([[frame * less @ frame.T, -frame * sin @ tilt.T], [tilt * sin @ frame.T, tilt * less @ tilt.T]])
    inverse = np.block([[frame * less @ frame.T, frame * sin @ tilt.T], [-tilt * sin @ frame.T, tilt * less @ tilt.T]])
    one = np.eye(len(turn))
    return _linear(bijection.shape, one + turn, one + inverse, mean=bijection.mean.value)


@layer.register
def _(bijection: b.Regression):
    return {
        "kind": "regression",
        "matrix": np.asarray(bijection.matrix.value),
        "offset": np.asarray(bijection.offset.value),
    }


@layer.register
def _(bijection: b.Elementwise):
    raw = np.zeros(0) if bijection.raw is None else np.asarray(bijection.raw).ravel()
    return {
        "kind": "elementwise",
        "scalar": scalar_map(bijection.scalar),
        "raw": raw,
        "size": math.prod(bijection.shape),
    }


@layer.register
def _(bijection: b.Scalar):
    return {"kind": "scalar", "scalar": scalar_map(bijection)}


@layer.register
def _(bijection: b.Coupling):
    return {
        "kind": "coupling",
        **_places(bijection.split),
        "channels": bijection.split.moved_shape[-1],
        "scalar": scalar_map(bijection.scalar),
        "net": network(bijection.net),
    }


@layer.register
def _(bijection: b.MaskedAutoregressive):
    return {
        "kind": "autoregressive",
        "size": bijection.shape[0],
        "scalar": scalar_map(bijection.scalar),
        "net": network(bijection.net),
    }


@layer.register
def _(bijection: b.Conditioned):
    return {"kind": "conditioned", "layer": layer(bijection.bijection), "embedding": network(bijection.embedding)}


@layer.register
def _(bijection: b.Concatenate):
    sizes = [part.shape[0] for part in bijection.bijections]
    return {"kind": "concatenate", "sizes": sizes, "layers": [layer(part) for part in bijection.bijections]}


@layer.register
def _(bijection: b.Split):
    return {
        "kind": "split",
        **_places(bijection.split),
        "inner": layer(bijection.inner),
        "factored": None if bijection.factored is None else layer(bijection.factored),
        "context": None if bijection.context is None else network(bijection.context),
    }


def _floor(array):
    """The smallest probability whose normal score is finite, see `_normal_score` of the bijections."""
    return 1e8 * float(np.finfo(array.dtype).tiny)


@layer.register
def _(bijection: b.HistogramToNormal):
    names = ("left", "right", "below", "above", "weight")
    tables = {name: np.asarray(getattr(bijection, name).value) for name in names}
    shape = bijection.shape
    return {
        "kind": "histogram",
        "size": math.prod(shape),
        "floor": _floor(tables["weight"]),
        **{name: table.ravel() for name, table in tables.items()},
    }


@layer.register
def _(bijection: b.TruncatedToNormal):
    parts = {name: np.asarray(getattr(bijection, name).value).ravel() for name in ("mean", "scale", "low", "high")}
    return {"kind": "truncated", "floor": _floor(parts["mean"]), **parts}
