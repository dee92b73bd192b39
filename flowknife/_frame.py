"""Origin and scale of every column of a table in double precision, and the local spread of its values.

Networks compute in single precision, where 1.7e9 and 1.7e9 + 60 are one number. So a model sees

    model = (value - origin) / scale        exactly in float64, then rounded to float32

and everything that leaves it is converted back to the user's units. Scales are powers of two, so division by them is
exact. A density in the user's units is that of the model times the Jacobian, `log_det`.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

_FAR = 100.0  # a median further from zero than this, in spreads, becomes the origin
_PLAIN = 2.0**10  # no scaling for spreads within this factor of one
_HEAVY = 10.0  # standard deviations per robust spread; a normal column has 1, an exponential one 1.2
_LOCAL_STEP = 0.25  # in normal scores: the local spread is the slope of the quantiles over twice this step
_LOCAL_TIMES = 3.0  # the local spread counts as narrower than the whole column by this factor
_KNOTS = 129


class Frame(eqx.Module):
    """Origin and scale of each column, and the constant columns, which the model does not see.

    Args:
        origin: subtracted from the values, one number per column.
        scale: the differences are divided by it; positive, one number per column.
        constant: indices of the columns whose value is always `origin`.
    """

    origin: tuple[float, ...] = eqx.field(static=True)
    scale: tuple[float, ...] = eqx.field(static=True)
    constant: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, origin: Any, scale: Any, constant: Any = ()):
        self.origin, self.scale = (tuple(float(value) for value in np.ravel(part)) for part in (origin, scale))
        self.constant = tuple(int(place) for place in constant)

    @classmethod
    def of(cls, values: np.ndarray, drop_constant: bool = False, noise: Any = 0.0) -> "Frame":
        """The frame of the columns of a table: robust, so that one outlier does not move it.

        The origin is the median where that is far from zero, and zero elsewhere: around zero single precision keeps
        values of every size. The scale is one unless the values are tiny or huge.

        Args:
            values: shape (n, d).
            drop_constant: hide constant columns without added noise from the model.
            noise: standard deviations of noise that is added to the columns later.
        """
        values, noise = np.asarray(values, np.float64), np.broadcast_to(noise, np.shape(values)[1:])
        middle, spread = np.median(values, axis=0), np.maximum(robust_spread(values), noise)
        origin = np.where(np.abs(middle) > _FAR * spread, middle, 0.0)
        constant = np.flatnonzero(_constant(values) & (noise == 0)) if drop_constant else ()
        return cls(origin, _powers_of_two(spread), constant)

    @classmethod
    def where_needed(cls, centre: Any, spread: Any) -> "Frame | None":
        """The frame of values with this centre and spread; None where single precision needs none."""
        centre, spread = np.broadcast_arrays(np.asarray(centre, np.float64), np.asarray(spread, np.float64))
        with np.errstate(over="ignore"):
            far = np.abs(centre) > 10 * _FAR * spread
        extreme = (spread < 1e-15) | (spread > 1e15)
        if not np.any(far | extreme):
            return None
        return cls(np.where(far, centre, 0.0), np.where(far | extreme, _powers_of_two(spread), 1.0))

    def plain_at(self, places: Any) -> "Frame":
        """The same frame, except that the columns at these indices keep their values."""
        plain = np.isin(np.arange(len(self.origin)), np.asarray(places, int))
        constant = np.isin(np.arange(len(self.origin)), np.asarray(self.constant, int))
        origin = np.where(plain & ~constant, 0.0, self.origin)
        return Frame(origin, np.where(plain, 1.0, self.scale), self.constant)

    @property
    def dim(self) -> int:
        """Number of columns that the model sees."""
        return len(self.origin) - len(self.constant)

    @property
    def kept(self) -> np.ndarray:
        """Indices of the columns that the model sees."""
        return np.setdiff1d(np.arange(len(self.origin)), np.asarray(self.constant, int))

    @property
    def log_det(self) -> float:
        """log|d model / d value|; added to a log density of the model, it gives the one in the user's units."""
        return -float(np.sum(np.log(self.scale_kept)))

    @property
    def scale_kept(self) -> np.ndarray:
        """Scale of each column that the model sees."""
        return np.asarray(self.scale)[self.kept]

    def to_model(self, values: Any) -> Float[np.ndarray, "..."]:
        """Values (..., columns) in the units of the model, as float32; values beyond its range become infinite."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.inside(values).astype(np.float32)

    def inside(self, values: Any) -> Any:
        """Values (..., columns) in this frame, (..., dim), in double precision; in compiled code, in the model's."""
        values = _wide(values)[..., self.kept]
        with np.errstate(over="ignore", invalid="ignore"):
            return (values - np.asarray(self.origin)[self.kept].astype(values.dtype)) / self.scale_kept.astype(
                values.dtype
            )

    def from_model(self, rows: Any) -> Any:
        """Rows of the model (..., dim) in the user's units, float64, with the constant columns in their places."""
        rows = _wide(rows)
        with np.errstate(over="ignore", invalid="ignore"):
            rows = rows * self.scale_kept.astype(rows.dtype)
        return self._spread_out(rows) + np.asarray(self.origin).astype(rows.dtype)

    def _spread_out(self, rows):
        """Rows (..., dim) with zeros inserted for the constant columns."""
        if not self.constant:
            return rows
        place = np.zeros(len(self.origin), int)
        place[self.kept] = np.arange(self.dim) + 1
        module = np if isinstance(rows, np.ndarray) else jnp
        return module.concatenate([module.zeros((*rows.shape[:-1], 1), rows.dtype), rows], axis=-1)[..., place]

    def widths_to_model(self, widths: Any) -> Float[np.ndarray, "..."]:
        """Differences, such as standard deviations, of the columns that the model sees."""
        return (np.asarray(widths, np.float64)[..., self.kept] / self.scale_kept).astype(np.float32)

    def widths_from_model(self, widths: Any) -> Any:
        """Differences in the user's units; those of constant columns are zero."""
        widths = _wide(widths)
        return self._spread_out(widths * self.scale_kept.astype(widths.dtype))

    def possible(self, values: Any) -> Any:
        """Whether rows have the values of the constant columns, up to rounding, shape (...)."""
        places = np.asarray(self.constant, int)
        values = _wide(values)[..., places]
        origin = np.asarray(self.origin)[places].astype(values.dtype)
        same = abs(values - origin) <= 4 * np.finfo(values.dtype).eps * abs(origin)
        if isinstance(values, np.ndarray) and not same.all():
            # 0.1 in single precision must equal 0.1 in double precision
            same |= (values == _written(origin)) & (origin == _narrow(origin))
            same |= (origin == _written(values)) & (values == _narrow(values))
        return same.all(axis=-1)

    def join(self, *others: "Frame") -> "Frame":
        """The frame of several tables side by side."""
        frames = (self, *others)
        starts = np.cumsum([0, *(len(frame.origin) for frame in frames)])
        return Frame(
            sum((frame.origin for frame in frames), ()),
            sum((frame.scale for frame in frames), ()),
            [int(start) + place for frame, start in zip(frames, starts, strict=False) for place in frame.constant],
        )


def plain_frame(columns: int) -> Frame:
    """The frame that changes nothing."""
    return Frame(np.zeros(columns), np.ones(columns))


def _wide(values):
    """An array in double precision; a traced array stays as it is."""
    return values if isinstance(values, Tracer) else np.asarray(values, np.float64)


def _narrow(values):
    """Rounded to single precision."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(np.float64)


def _written(values):
    """The float64 number with the same shortest decimal form as the value in single precision."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(str).astype(np.float64)


def _powers_of_two(spread):
    spread = np.where((spread > 0) & np.isfinite(spread), spread, 1.0)
    plain = (spread < _PLAIN) & (spread > 1 / _PLAIN)
    return np.where(plain, 1.0, 2.0 ** np.round(np.log2(spread)))


def _constant(values):
    """Which columns have values that differ by rounding errors at most."""
    return np.ptp(values, axis=0) <= 4 * np.finfo(np.float64).eps * np.abs(values).max(axis=0)


def robust_spread(values: np.ndarray) -> Float[np.ndarray, " d"]:
    """Standard deviation from the quartiles, exact for a normal column; the plain one if the quartiles are equal."""
    values = np.asarray(values, np.float64)
    low, high = np.quantile(values, [0.25, 0.75], axis=0)
    quartiles = (high - low) / 1.349
    magnitude = np.abs(values).max(axis=0)
    size = np.where(magnitude > 0, magnitude, 1.0)
    deviation = np.std(values / size, axis=0) * size
    found = np.where(quartiles > 4 * np.finfo(np.float64).eps * magnitude, quartiles, deviation)
    return np.where(_constant(values), 0.0, found)


def heavy_tails(values: np.ndarray, names: Any) -> str:
    """A one-line warning about columns with heavy tails, with the remedy; "" if there are none."""
    values = np.asarray(values, np.float64)
    spread = robust_spread(values)
    size = np.maximum(np.abs(values).max(axis=0), 1e-300)
    deviation = np.std(values / size, axis=0) * size
    heavy = np.flatnonzero((spread > 0) & (deviation > _HEAVY * spread))
    if not len(heavy):
        return ""
    worst = heavy[np.argmax(deviation[heavy] / spread[heavy])]
    positive = bool(np.all(values[:, heavy].min(axis=0) > 0))
    remedy = "its logarithm (or a LogNormal prior of a parameter)" if positive else "numpy.arcsinh(value / spread)"
    others = f" and {len(heavy) - 1} more" if len(heavy) > 1 else ""
    return (
        f"got heavy tails in {names[worst]}{others}: a standard deviation of {deviation[worst]:.2g}, but a middle half "
        f"as narrow as that of a normal column with {spread[worst]:.2g}; try {remedy}, or check the outliers"
    )


class LocalSpread(NamedTuple):
    """The local spread of a column around each value: the slope of its quantiles against normal scores.

    For a normal column it is the standard deviation everywhere. For values over many decades it grows with the value.

    Attributes:
        knots: values, increasing, shape (d, k).
        spreads: the spread there, at most that of the whole column, shape (d, k).
    """

    knots: Array
    spreads: Array

    @classmethod
    def of(cls, rows: np.ndarray, most: Any) -> "LocalSpread":
        """The local spread of the columns of `rows`, at most `most`, one number per column."""
        from scipy.special import ndtri

        rows = np.sort(np.asarray(rows, np.float64), axis=0)
        scores = ndtri((np.arange(len(rows)) + 0.5) / len(rows))
        grid = np.linspace(scores[0], scores[-1], _KNOTS)
        low, high = (np.clip(grid + step, scores[0], scores[-1]) for step in (-_LOCAL_STEP, _LOCAL_STEP))
        knots, spreads = [], []
        for column, limit in zip(rows.T, np.broadcast_to(most, rows.shape[1:]), strict=True):
            at = np.interp(grid, scores, column)
            run = np.maximum(high - low, 1e-9)
            slope = (np.interp(high, scores, column) - np.interp(low, scores, column)) / run
            some = np.flatnonzero(slope > 0)
            if len(some):  # among ties, the nearest slope that is defined
                slope = np.interp(np.arange(_KNOTS), some, slope[some])
            knots.append(at)
            spreads.append(np.minimum(_LOCAL_TIMES * slope, limit) if len(some) else np.full(_KNOTS, limit))
        return cls(*(jnp.asarray(np.reshape(part, (-1, _KNOTS)), jnp.float32) for part in (knots, spreads)))

    @classmethod
    def constant(cls, widths: Any) -> "LocalSpread":
        """The same spread everywhere, one number per column."""
        spreads = jnp.asarray(widths, jnp.float32)[:, None]
        return cls(jnp.zeros_like(spreads), spreads)

    def scaled(self, share: float) -> "LocalSpread":
        """This spread times `share`."""
        return self._replace(spreads=share * self.spreads)

    def __call__(self, x: Float[Array | np.ndarray, "... d"]) -> Float[Array, "... d"]:
        """The spread at each number of rows `x`."""
        if self.spreads.shape[1] == 1:
            return jnp.broadcast_to(self.spreads[:, 0], jnp.shape(x))
        return jax.vmap(jnp.interp, in_axes=(-1, 0, 0), out_axes=-1)(jnp.asarray(x), self.knots, self.spreads)
