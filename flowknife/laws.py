"""Laws of blocks: densities on the right, sources on the left.

A law on the right is a normalised density of its block. A source on the left provides the block's values: data
unchanged, dequantised images, or noise and padding drawn anew for every batch.

Shapes: a block of event shape `shape` holds arrays `(*batch, *shape)`; log densities have shape `batch`, in nats.
"""

import abc
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float

from flowknife._types import Constant, Shape
from flowknife._xla import precise
from flowknife.bijections import Bijection
from flowknife.bijections._linear import shrunk_covariance
from flowknife.errors import InputError

Temperature = float | Float[Array, ""]

LARGEST_TEMPERATURE = 1e6
"""Draws at higher temperatures soon overflow."""

_LOG_2PI = math.log(2 * math.pi)


Scale = float | tuple[float, ...]
"""A standard deviation: one for all elements, or one for each along the last axis."""


def normal_log_prob(x: Float[Array, "..."], shape: Shape, scale: Scale = 1.0) -> Float[Array, "..."]:
    """Log N(x; 0, scale^2 I), summed over the event axes."""
    width = np.asarray(scale, x.dtype)
    terms = -0.5 * (x / width) ** 2 - 0.5 * _LOG_2PI - np.log(width)
    return jnp.sum(terms, axis=tuple(range(x.ndim - len(shape), x.ndim)))


def as_temperature(value: Any) -> Any:
    """A temperature, or several by name, as plain numbers; a traced one stays as it is.

    Raises:
        InputError: for anything but single numbers from 0 to `LARGEST_TEMPERATURE`.
    """
    if isinstance(value, Mapping):
        return {name: as_temperature(each) for name, each in value.items()}
    if isinstance(value, Tracer):
        return value
    try:
        number = math.nan if isinstance(value, str) or np.ndim(value) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= LARGEST_TEMPERATURE:
        raise InputError(
            f"got temperature={value!r}; expected one number from 0 to {LARGEST_TEMPERATURE:g}; try 0.7 or 1"
        )
    return number


def require_finite_draws(rows: np.ndarray, temperature: Any) -> np.ndarray:
    """Return draws `(n, ...)` unchanged if they are finite.

    Raises:
        InputError: if a draw overflowed.
    """
    bad = int(np.sum(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1)))
    if bad:
        raise InputError(
            f"got {bad} of {len(rows)} draws beyond the range of numbers at temperature={temperature}; expected finite "
            "ones; try a lower temperature, or logarithms of columns with heavy tails"
        )
    return rows


def beyond_range(log_prob: Float[Array, "..."], missing: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Log densities with -inf in place of NaN that comes from overflow.

    Values that large have a density below the smallest number in every model of this library. Rows with NaN in the data
    (`missing`) keep NaN.
    """
    return jnp.where(jnp.isnan(log_prob) & ~missing, -jnp.inf, log_prob)


def _normal(key, shape):
    """Standard normal draws; a key gives the same draws in single and double precision."""
    return jax.random.normal(key, shape, jnp.float32)


class Law(eqx.Module):
    """The density of a right-hand block."""

    @property
    def known(self) -> bool:
        """Whether the block is conditioned on a value that the caller passes."""
        return False

    def given_shape(self, shape: Shape) -> Shape:
        """Event shape of that value: the block's own, unless the value is a label."""
        return shape

    @abc.abstractmethod
    def log_prob(self, block: Array, shape: Shape, given: Array | None = None) -> Array:
        """Log density of the block, of shape `batch`; `given` is the known value, if any."""

    @abc.abstractmethod
    def sample(
        self, key: Array, batch: Shape, shape: Shape, given: Array | None = None, temperature: Temperature = 1.0
    ) -> Array:
        """Draw a block of shape `(*batch, *shape)`: the centre plus `temperature` times the law's noise."""


class Normal(Law):
    """N(0, I), the law of a latent."""

    def log_prob(self, block, shape, given=None):
        return normal_log_prob(block, shape)

    def sample(self, key, batch, shape, given=None, temperature=1.0):
        return temperature * _normal(key, (*batch, *shape))


class Given(Law):
    """N(value, scale^2 I) around a value known at training time: data, or a one-hot label.

    Args:
        scale: standard deviation, in units of the block; a tuple has one for each element of the last axis.
    """

    scale: Scale = eqx.field(static=True, default=0.1)

    @property
    def known(self) -> bool:
        return True

    def log_prob(self, block, shape, given=None):
        return normal_log_prob(block - self._value(given, shape), shape, self.scale)

    def sample(self, key, batch, shape, given=None, temperature=1.0):
        noise = jnp.asarray(self.scale, float) * _normal(key, (*batch, *shape))
        return self._value(given, shape) + temperature * noise

    @staticmethod
    def _value(given, shape):
        if given is None:
            raise InputError(f"got no value of a known block; expected an array of shape (..., {shape}); try y=...")
        return jnp.asarray(given, float)


class Padding(Law):
    """N(0, scale^2 I), for dimensions without information.

    Args:
        scale: standard deviation.
    """

    scale: float = eqx.field(static=True, default=0.05)

    def log_prob(self, block, shape, given=None):
        return normal_log_prob(block, shape, self.scale)

    def sample(self, key, batch, shape, given=None, temperature=1.0):
        return temperature * self.scale * _normal(key, (*batch, *shape))


class ClassMixture(Law):
    """Gaussian mixture with one component per class: sum_k w_k N(z; mu_k, (W_k^T W_k)^-1).

    With a known label k the density is the joint term of that class, w_k N(z; mu_k, ...). The label -1 means unknown.
    Means and weights are trained. The whitenings W_k start at the identity (Ardizzone et al. 2020, arXiv 2001.06448)
    and are never trained; `fit` sets all three in closed form, which makes the law alone a quadratic discriminant
    analysis.

    With as many dimensions as classes, means start at 5 / sqrt(2 floor(D/K)) times a tiled identity (ibid., app. C);
    with fewer, at points spread over a ball, the nearest two 5 apart.

    Args:
        classes: number K of classes.
        dim: number D of elements of the block.
    """

    means: Float[Array, "k d"]
    log_weights: Float[Array, " k"]
    whitening: Constant  # (K, D, D), upper triangular

    def __init__(self, classes: int, dim: int):
        if classes < 2 or dim < 1:
            raise InputError(f"got {classes} classes in {dim} dimensions; expected at least 2 classes and 1 dimension")
        self.means = jnp.asarray(_spread(classes, dim) if dim < classes else _tiled(classes, dim))
        self.log_weights = jnp.zeros(classes)
        self.whitening = Constant(jnp.tile(jnp.eye(dim), (classes, 1, 1)))

    @property
    def known(self) -> bool:
        return True

    def given_shape(self, shape):
        return ()

    def fit(self, block: Array | np.ndarray, labels: Array | np.ndarray, scale: ArrayLike = 1.0) -> "ClassMixture":
        """Means, shrunk covariances and weights of the rows of each class, in closed form.

        A class with fewer than two rows keeps its covariance; a class without rows also keeps its mean.

        Args:
            block: rows `(n, *shape)`.
            labels: shape `(n,)`; rows with -1 (unknown) are ignored.
            scale: the covariances are shrunk in the units of z * scale, towards a multiple of the identity there.
        """
        z, codes = np.asarray(block).reshape(len(block), -1) * np.asarray(scale), np.asarray(labels)
        means, whitening = np.array(self.means), np.array(self.whitening.value)
        counts = np.array([np.sum(codes == k) for k in range(len(means))])
        for k in np.flatnonzero(counts):
            centre = z[codes == k].mean(axis=0)
            means[k] = centre / scale
            if counts[k] > 1:
                variances, axes = (np.asarray(a, float) for a in shrunk_covariance(z[codes == k] - centre))
                precision = (axes / np.maximum(variances, 1e-9 * variances.max())) @ axes.T
                whitening[k] = np.linalg.cholesky(precision).T * scale
        # an unseen class counts as half a row
        log_weights = np.log(np.maximum(counts, 0.5) / np.maximum(counts, 0.5).sum())
        return eqx.tree_at(
            lambda law: (law.means, law.whitening.value, law.log_weights),
            self,
            tuple(jnp.asarray(a, self.means.dtype) for a in (means, whitening, log_weights)),
        )

    @precise
    def residual(self, block: Array, shape: Shape, label: Array) -> Array:
        """The whitened residual of a block given its class, of shape `(*batch, D)`: W_k (z - mu_k)."""
        difference = self._flat(block, shape) - self.means[label]
        return jnp.einsum("...ij,...j->...i", self.whitening.value[label], difference)

    @precise
    def class_log_probs(self, block: Array, shape: Shape) -> Array:
        """Log w_k + log N(z; mu_k, ...) for every class, of shape `(*batch, K)`."""
        flat = self._flat(block, shape)
        # in this order: onnxruntime takes the size of the batch from the first operand
        white = jnp.einsum("...kj,kij->...ki", flat[..., None, :] - self.means, self.whitening.value)
        distance = jnp.sum(white**2, axis=-1)
        diagonal = jnp.diagonal(self.whitening.value, axis1=-2, axis2=-1)
        normaliser = jnp.sum(jnp.log(diagonal), axis=-1) - 0.5 * flat.shape[-1] * _LOG_2PI
        return jax.nn.log_softmax(self.log_weights) + normaliser - 0.5 * distance

    def log_prob(self, block, shape, given=None):
        terms = self.class_log_probs(block, shape)
        mixture = jax.nn.logsumexp(terms, axis=-1)
        if given is None:
            return mixture
        given = jnp.broadcast_to(self._label(given), mixture.shape)
        own = jnp.take_along_axis(terms, jnp.maximum(given, 0)[..., None], axis=-1)[..., 0]
        return jnp.where(given < 0, mixture, own)

    @precise
    def sample(self, key, batch, shape, given=None, temperature=1.0):
        label_key, key = jax.random.split(key)
        drawn = jax.random.categorical(label_key, self.log_weights, shape=batch)
        label = drawn if given is None else jnp.where(self._label(given) < 0, drawn, self._label(given))
        noise = _normal(key, (*batch, self.means.shape[-1]))
        noise = jnp.einsum("...ij,...j->...i", jnp.linalg.inv(self.whitening.value)[label], noise)
        return (self.means[label] + temperature * noise).reshape(*batch, *shape)

    def _flat(self, block, shape):
        return block.reshape(*block.shape[: block.ndim - len(shape)], -1)

    def _label(self, given):
        given, classes = jnp.asarray(given), len(self.means)
        expected = f"expected whole numbers 0 to {classes - 1}, or -1 for an unknown label"
        if not jnp.issubdtype(given.dtype, jnp.integer):
            raise InputError(f"got labels of type {given.dtype}; {expected}; try labels.astype(int)")
        if not isinstance(given, Tracer) and given.size and not (given.min() >= -1 and given.max() < classes):
            raise InputError(f"got labels from {given.min()} to {given.max()}; {expected}")
        return given


def _tiled(classes, dim):
    repeats = dim // classes
    return 5.0 / math.sqrt(2 * repeats) * np.tile(np.eye(classes), (1, repeats + 1))[:, :dim]


def _spread(classes, dim):
    """Points in a ball by farthest-point traversal (Gonzalez 1985), scaled so that the nearest two are 5 apart."""
    rng = np.random.default_rng(0)
    inside = rng.normal(size=(2000, dim))
    inside *= rng.random((2000, 1)) ** (1 / dim) / np.linalg.norm(inside, axis=1, keepdims=True)
    candidates = np.concatenate([np.eye(dim), -np.eye(dim), inside])
    chosen, nearest = candidates[:1], np.full(len(candidates), np.inf)
    while len(chosen) < classes:
        nearest = np.minimum(nearest, np.linalg.norm(candidates - chosen[-1], axis=1))
        chosen = np.concatenate([chosen, candidates[[np.argmax(nearest)]]])
    closest = min(np.linalg.norm(chosen[:k] - chosen[k], axis=1).min() for k in range(1, classes))
    return 5.0 / closest * chosen


class Source(eqx.Module):
    """Provides the values of a left-hand block."""

    @property
    def drawn(self) -> bool:
        """Whether the model draws the block itself, so that the caller does not pass it."""
        return False

    def prepare(self, key: Array | None, value: Any, batch: Shape, shape: Shape) -> Array:
        """The block's continuous values for one batch; `key` is for random draws."""
        return value

    def log_noise(self, value: Array, shape: Shape) -> Array | float:
        """Log density, given the data, of the noise that `prepare` has added; subtracted in `log_prob`."""
        return 0.0

    def restore(self, value: Array) -> Array:
        """Convert the network's continuous values back to data."""
        return value


class Data(Source):
    """Data, unchanged."""


# bounds of u in (0, 1): 255 + u must differ from 255, and must not be rounded up to 256
_LEAST_NOISE = 2**-16


class Pixels(Source):
    """Images of whole numbers 0 ... 255, reduced to `bits` and dequantised by noise.

        v = x + u,   x the image's levels 0 ... 2^bits - 1,   u in (0, 1) ~ q(u | x)

    E[log p(v) - log q(u | x)] is a lower bound of the log-probability of the discrete image, so that bits/dim =
    -log p / (D log 2) compares with papers. By default q is uniform, log q = 0 (Theis et al. 2016, arXiv 1511.01844,
    sec. 3.1). With `noise`, q is a flow trained together with p (variational dequantisation, Ho et al. 2019, arXiv
    1902.00275, eq. 6), and the bound is tighter. `INN.log_prob` is an estimate of the bound from one draw of u; the
    log of a mean of exp(log_prob) over several draws is a tighter bound (ibid., eq. 13).

    Args:
        bits: 1 to 8.
        noise: bijection from u to N(0, I), with the image scaled to (-1, 1) as its condition, see
            `architectures.dequantiser`; None for uniform noise.
    """

    bits: int = eqx.field(static=True, default=8)
    noise: Bijection | None = None

    def __check_init__(self):
        if not 1 <= self.bits <= 8:
            raise InputError(f"got bits={self.bits}; expected 1 to 8")

    def prepare(self, key, value, batch, shape):
        level = jnp.floor(jnp.asarray(value, float) / 2 ** (8 - self.bits))
        if key is None:  # the centre of each bin, where rounding errors cannot reach another bin
            return level + 0.5
        if self.noise is None:
            return level + jax.random.uniform(key, level.shape, jnp.float32, maxval=1 - _LEAST_NOISE)
        latent = _normal(key, (*batch, *self.noise.out_shape))
        u, _ = self.noise.decode(latent, self._centred(level))
        return level + jnp.clip(u, _LEAST_NOISE, 1 - _LEAST_NOISE)

    def log_noise(self, value, shape):
        if self.noise is None:
            return 0.0
        # the value contains the draw: its integer part is the image, its fractional part is u
        level = jax.lax.stop_gradient(jnp.floor(value))
        latent, log_det = self.noise.encode(value - level, self._centred(level))
        return normal_log_prob(latent, self.noise.out_shape) + log_det

    def _centred(self, level):
        return (level + 0.5) / 2 ** (self.bits - 1) - 1

    def restore(self, value):
        level = jnp.clip(jnp.floor(value), 0, 2**self.bits - 1)
        # the centre of the bin, so that an image of few bits is not darker than the original
        return (level * 2 ** (8 - self.bits) + (2 ** (8 - self.bits) - 1) / 2).astype(jnp.uint8)


class Noise(Source):
    """N(0, scale^2 I), drawn fresh for every batch; the same draw is added to the known block `added_to`.

    With `added_to="y"` the pair (x, eps) <-> (y + eps, z) is a Bayesian inverse problem with noise in its data
    (Zhang & Curtis 2021, doi 10.1029/2021JB022320).

    Args:
        scale: standard deviation, in units of the block; a tuple has one for each element of the last axis.
        added_to: name of the known right-hand block that receives the same draw, or None.
    """

    scale: Scale = eqx.field(static=True, default=1.0)
    added_to: str | None = eqx.field(static=True, default=None)

    @property
    def drawn(self) -> bool:
        return True

    def prepare(self, key, value, batch, shape):
        if value is not None:
            return value
        return jnp.asarray(self.scale, float) * _normal(key, (*batch, *shape))


class Pad(Source):
    """Extra dimensions filled with N(0, scale^2), so that the left end is as long as the right.

    Args:
        scale: standard deviation.
    """

    scale: float = eqx.field(static=True, default=0.05)

    @property
    def drawn(self) -> bool:
        return True

    def prepare(self, key, value, batch, shape):
        return self.scale * _normal(key, (*batch, *shape)) if value is None else value
