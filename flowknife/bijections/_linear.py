"""Linear maps of the last axis: permutations, rotations, triangular factors, principal rotation, regression.

Each acts on the last axis of an event of any rank. The positions along the other event axes (such as pixels) share the
map, and each of them contributes to log_det. On an image of shape (height, width, channels) such a map is an invertible
1x1 convolution.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from flowknife._types import Constant, Key, Shape, as_key, as_shape
from flowknife._xla import precise
from flowknife.bijections._base import Bijection, batch_of, promoted
from flowknife.errors import InputError


def _per_position(log_det: Float[Array, ""], x: Float[Array, "..."], shape: Shape) -> Float[Array, "..."]:
    """log_det of one position, multiplied by the number of positions of an event, with the batch shape of `x`."""
    return jnp.broadcast_to(log_det * math.prod(shape[:-1]), batch_of(x, shape))


class Permute(Bijection):
    """y_i = x_{p(i)} along the last axis; log_det = 0.

    Args:
        indices: the permutation p of 0 ... n-1.
        shape: event shape; default `(n,)`.
    """

    indices: Constant
    shape: Shape = eqx.field(static=True)

    def __init__(self, indices: Sequence[int] | ArrayLike, shape: int | Shape | None = None):
        self.shape = np.shape(indices) if shape is None else as_shape(shape)
        if not isinstance(indices, Tracer) and sorted(np.asarray(indices)) != list(range(self.shape[-1])):
            raise InputError(f"got indices {indices!r}; expected each of 0 to {self.shape[-1] - 1} once")
        self.indices = Constant(jnp.asarray(indices))

    @classmethod
    def random(cls, shape: int | Shape, *, key: Key = None) -> "Permute":
        """A uniformly drawn permutation."""
        shape = as_shape(shape)
        return cls(jax.random.permutation(as_key(key), shape[-1]), shape)

    def encode(self, x, cond=None):
        return jnp.take(x, self.indices.value, axis=-1), jnp.zeros(batch_of(x, self.shape), x.dtype)

    def decode(self, y, cond=None):
        return jnp.take(y, jnp.argsort(self.indices.value), axis=-1), jnp.zeros(batch_of(y, self.shape), y.dtype)


class Orthogonal(Bijection):
    """y = Q x with a fixed random rotation Q (Haar measure); log_det = 0.

    Args:
        shape: event shape.
        key: random key of Q.
    """

    matrix: Constant
    shape: Shape = eqx.field(static=True)

    def __init__(self, shape: int | Shape, *, key: Key = None):
        self.shape = as_shape(shape)
        self.matrix = Constant(jax.random.orthogonal(as_key(key), self.shape[-1]))

    def encode(self, x, cond=None):
        return x @ self.matrix.value.T, jnp.zeros(batch_of(x, self.shape), x.dtype)

    def decode(self, y, cond=None):
        return y @ self.matrix.value, jnp.zeros(batch_of(y, self.shape), y.dtype)


class Householder(Bijection):
    """y = H_k ... H_1 x, a trainable orthogonal map, H_i = I - 2 v_i v_i^T / |v_i|^2; log_det = 0.

    Tomczak & Welling 2016, arXiv 1611.09630, sec. 3.

    Args:
        shape: event shape.
        reflections: number k of reflections; default: the length of the last axis, which can represent every rotation.
        key: random key of the initial vectors.
    """

    vectors: Float[Array, "k n"]
    shape: Shape = eqx.field(static=True)

    def __init__(self, shape: int | Shape, reflections: int | None = None, *, key: Key = None):
        self.shape = as_shape(shape)
        count = self.shape[-1] if reflections is None else reflections
        self.vectors = jax.random.normal(as_key(key), (count, self.shape[-1]))

    def _reflect(self, x, reverse):
        def step(x, v):
            return x - 2 * (x @ v)[..., None] * v / jnp.sum(v**2), None

        x, _ = promoted(self.vectors, x)
        return jax.lax.scan(step, x, self.vectors, reverse=reverse)[0], jnp.zeros(batch_of(x, self.shape), x.dtype)

    def encode(self, x, cond=None):
        return self._reflect(x, reverse=False)

    def decode(self, y, cond=None):
        return self._reflect(y, reverse=True)


class LU(Bijection):
    """y = P L (U + diag(s)) x, with L unit lower, U strictly upper triangular, P fixed and |s| trained as log|s|.

    log_det = sum log|s| per position. Kingma & Dhariwal 2018, arXiv 1807.03039, eq. 10. Starts at a random rotation,
    or at the identity.

    Args:
        shape: event shape.
        identity: start at the identity instead of a random rotation.
        key: random key of the initial rotation.
    """

    permutation: Constant
    sign: Constant
    lower: Float[Array, "n n"]
    upper: Float[Array, "n n"]
    log_diagonal: Float[Array, " n"]
    shape: Shape = eqx.field(static=True)

    def __init__(self, shape: int | Shape, *, identity: bool = False, key: Key = None):
        self.shape = as_shape(shape)
        n = self.shape[-1]
        start = jnp.eye(n) if identity else jax.random.orthogonal(as_key(key), n)
        permutation, lower, upper = jax.scipy.linalg.lu(start)
        self.permutation, self.sign = Constant(permutation), Constant(jnp.sign(jnp.diag(upper)))
        self.lower, self.upper = jnp.tril(lower, -1), jnp.triu(upper, 1)
        self.log_diagonal = jnp.log(jnp.abs(jnp.diag(upper)))

    def _factors(self):
        lower = jnp.tril(self.lower, -1) + jnp.eye(self.shape[-1], dtype=self.lower.dtype)
        return lower, jnp.triu(self.upper, 1) + jnp.diag(self.sign.value * jnp.exp(self.log_diagonal))

    def _log_det(self, x):
        return _per_position(jnp.sum(self.log_diagonal), x, self.shape)

    def encode(self, x, cond=None):
        lower, upper = self._factors()
        if self._few(x):  # for few rows, applying the factors costs less than computing their product
            y = x @ upper.T @ lower.T @ self.permutation.value.T
        else:
            y = x @ (self.permutation.value @ lower @ upper).T
        return y, self._log_det(x)

    def decode(self, y, cond=None):
        if self._few(y):
            rows = self._solved((y @ self.permutation.value).reshape(-1, self.shape[-1]).T)
            return rows.T.reshape(y.shape), self._log_det(y)
        # the inverse is computed once: two solves for each row take several times as long
        return y @ self._solved(self.permutation.value.T).T, self._log_det(y)

    def _few(self, rows):
        """Whether there are fewer rows than columns; False for the symbolic number of rows of an exported program."""
        return not jax.export.is_symbolic_dim(rows.size) and rows.size < self.shape[-1] ** 2

    def _solved(self, columns):
        """(L U)^-1 of each column."""
        lower, upper = self._factors()
        columns = jax.scipy.linalg.solve_triangular(lower, columns, lower=True, unit_diagonal=True)
        return jax.scipy.linalg.solve_triangular(upper, columns, lower=False)


class Matrix(Bijection):
    """y = W x with a plain trainable matrix; log_det = log|det W| per position, at O(n^3).

    Args:
        shape: event shape.
        key: random key of the initial rotation.
    """

    weight: Float[Array, "n n"]
    shape: Shape = eqx.field(static=True)

    def __init__(self, shape: int | Shape, *, key: Key = None):
        self.shape = as_shape(shape)
        self.weight = jax.random.orthogonal(as_key(key), self.shape[-1])

    def _log_det(self, x):
        return _per_position(jnp.linalg.slogdet(self.weight)[1], x, self.shape)

    def encode(self, x, cond=None):
        return x @ self.weight.T, self._log_det(x)

    def decode(self, y, cond=None):
        return jnp.linalg.solve(self.weight, y.reshape(-1, self.shape[-1]).T).T.reshape(y.shape), self._log_det(y)


def shrunk_covariance(
    rows: Float[Array | np.ndarray, "m n"],
) -> tuple[Float[Array | np.ndarray, " n"], Float[Array | np.ndarray, "n n"]]:
    """Eigenvalues (ascending) and eigenvectors (columns) of the shrunk covariance of centred rows.

    S* = w v I + (1 - w) S with v the mean variance and w the share of the eigenvalues' spread that is sampling noise
    (Ledoit & Wolf 2004, J. Multivariate Anal. 88, 365, lemmas 3.2 to 3.4). It is invertible even with fewer rows than
    columns. NumPy arrays are processed by NumPy, since JAX would compile for every number of rows.
    """
    xp = np if isinstance(rows, np.ndarray) else jnp
    count, n = rows.shape
    covariance = rows.T @ rows / count
    level = xp.trace(covariance) / n
    spread = xp.sum(covariance**2) - n * level**2
    noise = (xp.mean(xp.sum(rows**2, axis=1) ** 2) - xp.sum(covariance**2)) / count
    weight = xp.clip(noise / xp.maximum(spread, xp.finfo(rows.dtype).tiny), 0.0, 1.0)
    variances, axes = xp.linalg.eigh(covariance)
    shrunk = weight * level + (1 - weight) * xp.maximum(variances, 0.0)
    return xp.where(level > 0, shrunk, 1.0), axes  # identical rows, or a single row, have no information


class PrincipalRotation(Bijection):
    """y = diag(v)^(-1/2) R (x - m): rotation to principal axes and whitening, fitted in closed form.

    With `back`, y = R^T diag(v)^(-1/2) R (x - m), the whitening that changes x least: each y_i still corresponds to x_i
    (ZCA, Bell & Sejnowski 1997, doi 10.1016/S0042-6989(97)00121-1).

    m and R come from the mean and the covariance of the data; v are its eigenvalues, shrunk towards their mean by the
    Ledoit-Wolf weight (2004, J. Multivariate Anal. 88, 365), so that they are positive even with fewer rows than
    columns. A Gaussian with the shrunk covariance becomes exactly N(0, I). The layer has no trainable parameters;
    `initialise` fits it once.

    Args:
        shape: event shape; the last axis is rotated.
        whiten: divide by the standard deviations; otherwise a pure rotation (log_det = 0).
        back: rotate back after whitening.
    """

    mean: Constant
    rotation: Constant
    log_scale: Constant
    initialised: Constant
    shape: Shape = eqx.field(static=True)
    whiten: bool = eqx.field(static=True)
    back: bool = eqx.field(static=True)

    def __init__(self, shape: int | Shape, *, whiten: bool = True, back: bool = False):
        self.shape, self.whiten, self.back = as_shape(shape), whiten, back
        n = self.shape[-1]
        self.mean, self.log_scale = Constant(jnp.zeros(n)), Constant(jnp.zeros(n))
        self.rotation, self.initialised = Constant(jnp.asarray(np.eye(n))), Constant(jnp.asarray(False))

    @property
    def variances(self) -> Float[Array, " n"]:
        """The (shrunk) variance along each principal axis, largest first."""
        return jnp.exp(2 * self.log_scale.value)

    def _log_det(self, x):
        return _per_position(-jnp.sum(self.log_scale.value), x, self.shape)

    def encode(self, x, cond=None):
        y = (x - self.mean.value) @ self.rotation.value.T
        y = y * jnp.exp(-self.log_scale.value)
        return y @ self.rotation.value if self.back else y, self._log_det(x)

    def decode(self, y, cond=None):
        y = y @ self.rotation.value.T if self.back else y
        x = (y * jnp.exp(self.log_scale.value)) @ self.rotation.value
        return x + self.mean.value, self._log_det(y)

    @eqx.filter_jit
    @precise
    def fit(self, x: ArrayLike) -> "PrincipalRotation":
        """Fit mean, rotation and variances to rows `x` of shape `(rows, ..., n)`."""
        rows = jnp.reshape(jnp.asarray(x), (-1, self.shape[-1]))
        mean = jnp.mean(rows, axis=0)
        variances, axes = shrunk_covariance(rows - mean)
        level = jnp.mean(variances)
        # the floor leaves constant columns in their own units
        floor = 1e-6 * jnp.maximum(level, jnp.finfo(rows.dtype).tiny)
        log_scale = 0.5 * jnp.log(jnp.maximum(variances, floor))[::-1] * self.whiten
        return eqx.tree_at(
            lambda layer: (layer.mean.value, layer.rotation.value, layer.log_scale.value, layer.initialised.value),
            self,
            (mean, axes.T[::-1], log_scale, jnp.asarray(True)),
        )

    def initialise(self, x, cond=None):
        done = self.initialised.value
        fitted = jax.tree.map(lambda old, new: jnp.where(done, old, new.astype(old.dtype)), self, self.fit(x))
        return fitted, fitted.encode(x)[0]


class Regression(Bijection):
    """y = x - (b + A c): subtracts the linear regression of x on the condition c; log_det = 0.

    A is the ridge regression on the batch of `initialise`, with the ridge that has the smallest leave-one-out error
    (Allen 1974, doi 10.1080/00401706.1974.10489157). The layer has no trainable parameters. Followed by a
    `PrincipalRotation`, it maps a linear-Gaussian conditional density to N(0, I) before training starts.

    Args:
        dim: length of x.
        cond_dim: length of c.
    """

    matrix: Constant
    offset: Constant
    initialised: Constant
    shape: Shape = eqx.field(static=True)

    def __init__(self, dim: int, cond_dim: int):
        self.shape = (dim,)
        self.matrix, self.offset = Constant(jnp.zeros((cond_dim, dim))), Constant(jnp.zeros(dim))
        self.initialised = Constant(jnp.asarray(False))

    @property
    def cond_shape(self) -> Shape:
        return self.matrix.value.shape[-2:-1]

    def _predicted(self, cond):
        return cond @ self.matrix.value + self.offset.value

    def encode(self, x, cond=None):
        return x - self._predicted(cond), jnp.zeros(batch_of(x, self.shape), x.dtype)

    def decode(self, y, cond=None):
        return y + self._predicted(cond), jnp.zeros(batch_of(y, self.shape), y.dtype)

    def initialise(self, x, cond=None):
        if cond is None:
            raise InputError(f"got a Regression without a condition; expected cond of shape (..., *{self.cond_shape})")
        done = self.initialised.value
        matrix, offset = _ridge(cond.reshape(-1, cond.shape[-1]), x.reshape(-1, self.shape[0]))
        fitted = eqx.tree_at(
            lambda layer: (layer.matrix.value, layer.offset.value, layer.initialised.value),
            self,
            (
                jnp.where(done, self.matrix.value, matrix.astype(self.matrix.value.dtype)),
                jnp.where(done, self.offset.value, offset.astype(self.offset.value.dtype)),
                jnp.asarray(True),
            ),
        )
        return fitted, fitted.encode(x, cond)[0]


def _ridge(c: Float[Array, "n k"], x: Float[Array, "n d"]) -> tuple[Float[Array, "k d"], Float[Array, " d"]]:
    """(A, b) of x = b + A^T c, with the ridge r of smallest leave-one-out error, sum_i |e_i / (1 - h_i)|^2.

    With the singular values s_j of the centred conditions, U S V^T, the residuals e and the leverages h are

        e = (I - U U^T) x + sum_j u_j r / (s_j^2 + r) u_j^T x,    1 - h_i = 1 - 1/n - sum_j u_ij^2 s_j^2 / (s_j^2 + r)

    Both vanish with r where there are as many conditions as rows, and are summed such that their ratio does not.
    """
    rows = len(c)
    c_mean, x_mean = jnp.mean(c, axis=0), jnp.mean(x, axis=0)
    target = x - x_mean
    left, values, right = jnp.linalg.svd(c - c_mean, full_matrices=False)
    rounding = values[0] * max(c.shape) * jnp.finfo(c.dtype).eps
    values = jnp.where(values > rounding, values, 0.0)
    projected = left.T @ target  # (m, d)
    unexplained, free = target - left @ projected, (1 - 1 / rows) - jnp.sum(left**2, axis=1)

    def solve(ridge):
        damped = ridge / (values**2 + ridge)
        residual = unexplained + left @ (damped[:, None] * projected)
        kept = jnp.maximum(free + left**2 @ damped, 1e-7)
        error = jnp.sum((residual / kept[:, None]) ** 2)
        return error, right.T @ ((values / (values**2 + ridge))[:, None] * projected)

    level = jnp.sum(values**2) / c.shape[1]
    errors, matrices = jax.lax.map(solve, jnp.where(level > 0, level, 1.0) * jnp.logspace(-6, 2, 9, dtype=x.dtype))
    best = matrices[jnp.argmin(errors)]
    return best, x_mean - c_mean @ best
