"""The monotone rational-quadratic spline."""

import functools
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowknife.bijections._elementwise import Scalar
from flowknife.errors import InputError

# softplus(0 + this) = 1, so that raw parameters of zero give slope one
_UNIT_SLOPE = float(np.log(np.expm1(1.0)))


class Spline(Scalar):
    """Monotone rational-quadratic spline on [-tail, tail], the identity outside.

    With s = h/w the slope of a bin of width w and height h, d0 and d1 the derivatives at its two knots, and
    t = (x - x0)/w in [0, 1]:

        y = y0 + h (s t^2 + d0 t(1-t)) / (s + (d0 + d1 - 2s) t(1-t))

    Durkan et al. 2019, arXiv 1906.04032, eq. 4, and eqs. 6-8 for the inverse by its stable root. The derivative at
    both ends is 1, so the map is continuously differentiable on the whole line. `num_params` = 3 bins - 1.

    Args:
        bins: number of bins.
        tail: half the width of the interval, in units of x.
        min_bin: smallest width and height of a bin, as a share of the interval.
        min_slope: smallest derivative at a knot.
    """

    bins: int = eqx.field(static=True, default=8)
    tail: float = eqx.field(static=True, default=3.0)
    min_bin: float = eqx.field(static=True, default=1e-3)
    min_slope: float = eqx.field(static=True, default=1e-3)

    def __check_init__(self):
        if self.bins < 1 or self.tail <= 0 or not 0 < self.bins * self.min_bin < 1 or not 0 < self.min_slope < 1:
            raise InputError(
                f"got a spline of {self.bins} bins, tail {self.tail:g}, min_bin {self.min_bin:g}, min_slope "
                f"{self.min_slope:g}; expected bins and tail above zero, bins * min_bin and min_slope between 0 and 1"
            )

    @property
    def num_params(self) -> int:
        return 3 * self.bins - 1

    def _knots(self, raw):
        """Lower knots and sizes of the bins, each of shape (bins, ...), in units of x."""
        size = self.min_bin + (1 - self.min_bin * self.bins) * jax.nn.softmax(raw, axis=0)
        size = 2 * self.tail * size
        # a product with a triangular matrix of ones, since a cumulative sum is slow on a CPU
        below = np.tril(np.ones((self.bins, self.bins), size.dtype), -1)
        return jnp.tensordot(below, size, 1, precision=jax.lax.Precision.HIGHEST) - self.tail, size

    def _slopes(self, raw):
        """Derivatives at the inner knots."""
        return self.min_slope + (1 - self.min_slope) * jax.nn.softplus(raw + _UNIT_SLOPE)

    def _bin_by_mask(self, value, cond, by_height):
        """The bin of each value and its parameters x0, w, y0, h, d0, d1."""
        # bins come first: sums over a short last axis take twice the time
        widths, heights, slopes = jnp.split(jnp.moveaxis(cond, -1, 0), [self.bins, 2 * self.bins])
        x0, w = self._knots(widths)
        y0, h = self._knots(heights)
        inner = self._slopes(slopes)
        one = jnp.ones_like(y0[:1])
        d0, d1 = jnp.concatenate([one, inner]), jnp.concatenate([inner, one])
        lower = y0 if by_height else x0
        above = (value >= lower).astype(value.dtype)
        # a sum over a mask instead of a gather: its gradient is a product instead of a scatter, which can be fused
        chosen = above.at[0].set(1) - jnp.concatenate([above[1:], jnp.zeros_like(above[:1])])
        return tuple(jnp.sum(chosen * part, axis=0) for part in (x0, w, y0, h, d0, d1))

    def _sizes(self, raw):
        """Sizes of the bins, one array for each."""
        top = functools.reduce(jnp.maximum, raw)
        powers = [jnp.exp(one - top) for one in raw]
        scale = 2 * self.tail * (1 - self.min_bin * self.bins) / functools.reduce(operator.add, powers)
        return [2 * self.tail * self.min_bin + scale * power for power in powers]

    def _bin_by_bin(self, value, cond, by_height):
        """Like `_bin_by_mask`, in one pass over the bins, which takes a fifth of the time on a CPU."""
        bins = self.bins
        widths, heights = (self._sizes([cond[..., first + i] for i in range(bins)]) for first in (0, bins))
        one = jnp.ones_like(value)
        slopes = [one, *(self._slopes(cond[..., i]) for i in range(2 * bins, 3 * bins - 1)), one]
        x0 = y0 = jnp.full_like(value, -self.tail)
        found = x0, widths[0], y0, heights[0], slopes[0], slopes[1]
        for i in range(1, bins):
            x0, y0 = x0 + widths[i - 1], y0 + heights[i - 1]
            here = x0, widths[i], y0, heights[i], slopes[i], slopes[i + 1]
            above = value >= (y0 if by_height else x0)
            found = tuple(jnp.where(above, new, old) for new, old in zip(here, found, strict=True))
        return found

    def _log_slope(self, t, s, d0, d1):
        u = t * (1 - t)
        slope = d1 * t**2 + 2 * s * u + d0 * (1 - t) ** 2
        return 2 * jnp.log(s) + jnp.log(slope) - 2 * jnp.log(s + (d0 + d1 - 2 * s) * u)

    def encode(self, x, cond=None):
        inside = jnp.abs(x) < self.tail
        # clipped before the formula, since outside the interval its gradient would be NaN even if not selected
        x0, w, y0, h, d0, d1 = _bin(self, False, jnp.clip(x, -self.tail, self.tail), cond)
        s = h / w
        t = jnp.clip((x - x0) / w, 0.0, 1.0)
        u = t * (1 - t)
        y = y0 + h * (s * t**2 + d0 * u) / (s + (d0 + d1 - 2 * s) * u)
        return jnp.where(inside, y, x), jnp.where(inside, self._log_slope(t, s, d0, d1), 0.0)

    def decode(self, y, cond=None):
        inside = jnp.abs(y) < self.tail
        x0, w, y0, h, d0, d1 = _bin(self, True, jnp.clip(y, -self.tail, self.tail), cond)
        s = h / w
        v = jnp.clip((y - y0) / h, 0.0, 1.0)
        bend = v * (d0 + d1 - 2 * s)
        a, b, c = s - d0 + bend, d0 - bend, -s * v
        root = jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 1e-20))
        t = jnp.clip(-2 * c / (b + root), 0.0, 1.0)
        x = x0 + w * t
        return jnp.where(inside, x, y), jnp.where(inside, self._log_slope(t, s, d0, d1), 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _bin(spline, by_height, value, cond):
    """x0, w, y0, h, d0, d1 of the bin of each value; with a custom gradient, which uses another method."""
    return spline._bin_by_bin(value, cond, by_height)


@_bin.defjvp
def _bin_jvp(spline, by_height, primals, tangents):
    # the gradient of a sum over a mask takes half the time of that of a pass over the bins
    return jax.jvp(lambda value, cond: spline._bin_by_mask(value, cond, by_height), primals, tangents)
