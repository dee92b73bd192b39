"""A rotation of the leading principal directions to the first coordinates."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from flowknife._types import Constant, Shape
from flowknife._xla import precise
from flowknife.bijections._base import Bijection, batch_of
from flowknife.errors import InputError

_ROWS_PER_DIRECTION = 16  # directions fitted to fewer rows describe these rows rather than the distribution


class LeadingRotation(Bijection):
    """y = Q (x - m): the leading principal directions become the first coordinates, the others change least.

    Q is the direct rotation (Davis & Kahan 1970, doi 10.1137/0707001) of some directions among the first coordinates
    into the span V of the k leading principal directions of the data: of all such rotations, the one nearest to the
    identity. So the other coordinates change little. From the singular values of the first rows of V come the cosines c
    and sines s of the angles between the two subspaces, and with a = A^T x_1, b = W^T x_2

        y_1 = x_1 + A ((c - 1) a + s b),   y_2 = x_2 + W (-s a + (c - 1) b)

    The layer has no trainable parameters, `initialise` fits it once, and log_det = 0. It costs two products with a
    (dim, k) matrix.

    Args:
        dim: length of x.
        first: number of the first coordinates.
        leading: k, at most `first`.
    """

    mean: Constant
    frame: Constant  # A, (first, k)
    tilt: Constant  # W, (dim - first, k)
    angles: Constant  # (k,)
    initialised: Constant
    shape: Shape = eqx.field(static=True)

    def __init__(self, dim: int, first: int, leading: int):
        if not 0 < leading <= first < dim:
            raise InputError(
                f"got {leading} leading directions in the first {first} of {dim} coordinates; expected "
                "0 < leading <= first < dim"
            )
        self.shape = (dim,)
        self.mean, self.frame = Constant(jnp.zeros(dim)), Constant(jnp.eye(first, leading))
        self.tilt, self.angles = Constant(jnp.zeros((dim - first, leading))), Constant(jnp.zeros(leading))
        self.initialised = Constant(jnp.asarray(False))

    def _turn(self, x, sign):
        first, others = jnp.split(x, [len(self.frame.value)], axis=-1)
        cos, sin = jnp.cos(self.angles.value), sign * jnp.sin(self.angles.value)
        a, b = first @ self.frame.value, others @ self.tilt.value
        first = first + ((cos - 1) * a + sin * b) @ self.frame.value.T
        others = others + ((cos - 1) * b - sin * a) @ self.tilt.value.T
        return jnp.concatenate([first, others], axis=-1)

    def encode(self, x, cond=None):
        return self._turn(x - self.mean.value, 1.0), jnp.zeros(batch_of(x, self.shape), x.dtype)

    def decode(self, y, cond=None):
        return self._turn(y, -1.0) + self.mean.value, jnp.zeros(batch_of(y, self.shape), y.dtype)

    @eqx.filter_jit
    @precise
    def fit(self, x: ArrayLike) -> "LeadingRotation":
        """Fit mean and rotation to rows `x` of shape `(rows, dim)`; with few rows, to fewer directions."""
        rows = jnp.asarray(x)
        mean = jnp.mean(rows, axis=0)
        first, most = self.frame.value.shape
        count = max(min(most, len(rows) // _ROWS_PER_DIRECTION), 1)
        leading = _leading_directions(rows - mean, count)
        frame, cosines, turned = jnp.linalg.svd(leading[:first], full_matrices=False)
        tilt = leading[first:] @ turned.T
        sines = jnp.linalg.norm(tilt, axis=0)
        turns = sines > 1e-4
        tilt = jnp.where(turns, tilt / jnp.where(turns, sines, 1.0), 0.0)
        angles = jnp.where(turns, jnp.arctan2(sines, cosines), 0.0)
        return eqx.tree_at(
            lambda q: (q.mean.value, q.frame.value, q.tilt.value, q.angles.value, q.initialised.value),
            self,
            (mean, *(_padded(part, most) for part in (frame, tilt, angles)), jnp.asarray(True)),
        )

    def initialise(self, x, cond=None):
        done = self.initialised.value
        fitted = self.fit(x.reshape(-1, *self.shape))
        fitted = jax.tree.map(lambda old, new: jnp.where(done, old, new.astype(old.dtype)), self, fitted)
        return fitted, fitted.encode(x)[0]


def _padded(part, size):
    """Pad the last axis with zeros, for planes without rotation."""
    return jnp.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, size - part.shape[-1])])


def _leading_directions(rows: Float[Array, "n d"], count: int) -> Float[Array, "d k"]:
    """Orthonormal principal directions, from the smaller of the two Gram matrices."""
    n, dim = rows.shape
    if dim <= n:
        directions = jnp.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :count]
    else:
        directions = rows.T @ jnp.linalg.eigh(rows @ rows.T)[1][:, ::-1][:, :count]
    return jnp.linalg.qr(directions)[0]
