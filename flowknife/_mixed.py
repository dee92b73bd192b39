"""Dequantisation: rows of numbers and categories as continuous rows, for a density of continuous rows.

A model has a density q(v) of continuous rows v. Discrete columns, and numbers that may be missing, are functions of v:

    category c    v_j in the cell (t_c, t_c + 1), Phi(t_c) the share of the categories before c in training
    missing       v_k in the cell "missing" of an indicator column k; v_j, in place of the number, is arbitrary

so that the probability of a row x is the integral of q over the rows v that represent it. It is estimated with draws
v_s of a density r(v | x): N(0, 1) truncated to the cell, and N(mean, spread^2) for a missing number,

    log p(x) = log 1/S sum_s q(v_s) / r(v_s | x).

If the columns are independent, q is N(0, 1) in every cell, and one draw gives the exact probability. Otherwise the mean
of the logarithm is a lower bound, which S tightens (Burda et al. 2016, arXiv 1509.00519, eq. 8); with S = 1 it is what
training maximises (uniform dequantisation, Theis et al. 2016, arXiv 1511.01844, sec. 3.1).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

POINTS = 64
"""Number of draws of the continuous rows that represent a row."""

_EDGE = 1e-4  # share of a cell at either end that is never drawn: rounding must not leave the cell


class Mixed(eqx.Module):
    """The discrete columns with the shares of their values, and the numeric columns with missing values.

    Args:
        places: indices of the discrete columns.
        bounds: cumulative shares of the values, from 0 to 1, shape (columns, values + 1); padded with 1.
        gaps: for each numeric column with missing values, its index and that of its indicator column.
        means: mean of the values drawn in place of missing numbers.
        spreads: standard deviation of these values.
    """

    places: tuple[int, ...] = eqx.field(static=True)
    bounds: Array
    gaps: tuple[tuple[int, int], ...] = eqx.field(static=True)
    means: Array
    spreads: Array

    @classmethod
    def of(cls, rows: np.ndarray, sizes: Mapping[int, int], gaps: Sequence[tuple[int, int]]) -> "Mixed":
        """The shares of the values in rows (n, d).

        Args:
            rows: discrete columns hold 0, 1, ...
            sizes: number of values of each discrete column, by index.
            gaps: for each numeric column with missing values, its index and that of the column that is 1 where it is
                missing, else 0.
        """
        bounds = np.ones((len(sizes), max(sizes.values(), default=1) + 1), np.float32)
        for own, (place, size) in zip(bounds, sizes.items(), strict=True):
            counts = np.bincount(rows[:, place].astype(int), minlength=size)
            # a value that occurs only in held-out rows is rare, but not impossible
            own[: size + 1] = np.concatenate([[0], np.cumsum(counts + 0.5) / (len(rows) + 0.5 * size)])
        own_rows = [rows[rows[:, flag] == 0, place].astype(np.float64) for place, flag in gaps]
        spreads = [max(float(np.std(own)), 1e-6) if len(own) else 1.0 for own in own_rows]
        means = [float(np.mean(own)) if len(own) else 0.0 for own in own_rows]
        return cls(
            tuple(sizes),
            jnp.asarray(bounds),
            tuple((int(place), int(flag)) for place, flag in gaps),
            jnp.asarray(means, jnp.float32),
            jnp.asarray(spreads, jnp.float32),
        )

    @property
    def draws(self) -> int:
        """How many uniform numbers a row takes."""
        return len(self.places) + len(self.gaps)

    @eqx.filter_jit  # compiled as a whole: otherwise every operation would be compiled on its own
    def fill(
        self, rows: Float[Array | np.ndarray, "*n d"], uniform: Float[Array | np.ndarray, "*n k"]
    ) -> tuple[Float[Array, "*n d"], Float[Array, "*n"]]:
        """Continuous rows v that stand for `rows`, and -log r(v | row).

        Args:
            rows: with whole numbers in the discrete columns.
            uniform: numbers from 0 to 1, `draws` for each row.
        """
        rows, count = jnp.asarray(rows), len(self.places)
        places = jnp.asarray(self.places, int)
        codes = jnp.clip(rows[..., places], 0, self.bounds.shape[1] - 2).astype(int)
        each = jnp.arange(count)
        low, high = self.bounds[each, codes], self.bounds[each, codes + 1]
        uniform = jnp.clip(uniform, _EDGE, 1 - _EDGE)
        scores = ndtri(jnp.clip(low + (high - low) * uniform[..., :count], 1e-30, 1 - 6e-8))
        filled = rows.at[..., places].set(scores)
        log_r = jnp.sum(_log_normal(scores) - jnp.log(jnp.maximum(high - low, 1e-30)), axis=-1)
        for i, (place, flag) in enumerate(self.gaps):
            gone, score = rows[..., flag] > 0.5, ndtri(uniform[..., count + i])
            drawn = self.means[i] + self.spreads[i] * score
            filled = filled.at[..., place].set(jnp.where(gone, drawn, filled[..., place]))
            log_r += jnp.where(gone, _log_normal(score) - jnp.log(self.spreads[i]), 0.0)
        return filled, -log_r

    @eqx.filter_jit
    def restore(self, filled: Float[Array | np.ndarray, "*n d"]) -> Float[Array, "*n d"]:
        """The rows that continuous rows represent, the inverse of `fill`; missing numbers keep their drawn values."""
        filled = jnp.asarray(filled)
        places = jnp.asarray(self.places, int)
        edges = ndtri(self.bounds[:, 1:-1])
        codes = jnp.sum(filled[..., places, None] >= edges, axis=-1)
        return filled.at[..., places].set(codes.astype(filled.dtype))

    def averaged(
        self,
        log_prob: Callable[[Array], Array],
        rows: Float[Array | np.ndarray, "n d"],
        points: Float[Array | np.ndarray, "s k"],
    ) -> Float[Array, "n ..."]:
        """Log of the mean of q(v) / r(v | row) over draws of the continuous rows v, compiled once for all draws.

        Args:
            log_prob: log q of continuous rows, (n,) or one for each of several densities, (n, m).
            rows: with whole numbers in the discrete columns.
            points: uniform numbers of each draw, see `points`; the same for all rows.
        """

        def one(point):
            filled, weight = self.fill(rows, jnp.broadcast_to(point, (len(rows), self.draws)))
            found = log_prob(filled)
            return found + weight.reshape(len(rows), *(1,) * (found.ndim - 1))

        drawn = jax.lax.map(one, jnp.asarray(points))
        return jax.nn.logsumexp(drawn, axis=0) - jnp.log(len(points))

    def known(self, rows: Float[Array | np.ndarray, "n d"]) -> np.ndarray:
        """Whether each row has only categories that occurred in training, shape (n,)."""
        return np.all(np.asarray(rows)[:, list(self.places)] >= 0, axis=1)

    def gap_units(self, rows: Float[np.ndarray, "n d"], scale: Float[np.ndarray, " d"]) -> Float[np.ndarray, " n"]:
        """Correction of log|d model / d value| for missing numbers, which have no units.

        Args:
            rows: in the units of the model.
            scale: values per unit of the model, of each column.
        """
        found = np.zeros(len(rows))
        for place, flag in self.gaps:
            found += np.where(rows[:, flag] > 0.5, np.log(scale[place]), 0.0)
        return found

    def fits(self, dim: int) -> bool:
        """Whether the indices are valid for rows of `dim` numbers."""
        places = [*self.places, *(place for gap in self.gaps for place in gap)]
        return not places or (min(places) >= 0 and max(places) < dim)

    def points(self, count: int = POINTS) -> Float[np.ndarray, "count k"]:
        """Uniform numbers for `count` draws, spread evenly (scrambled Sobol points); always the same ones."""
        return _points(self.draws, count)

    def at_random(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`fill` with one fixed draw for each of rows (n, d)."""
        uniform = np.random.default_rng(0).random((len(rows), self.draws), np.float32)
        filled, weight = self.fill(rows, uniform)
        return np.asarray(filled), np.asarray(weight)

    def to_tree(self) -> dict[str, Any]:
        """As arrays and numbers, for a model file."""
        return {
            "places": self.places,
            "gaps": self.gaps,
            "bounds": self.bounds,
            "means": self.means,
            "spreads": self.spreads,
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Mixed":
        """The inverse of `to_tree`.

        Raises:
            ValueError: for arrays that do not belong together.
        """
        places, gaps = tuple(tree["places"]), tuple(map(tuple, tree["gaps"]))
        bounds, means, spreads = (jnp.asarray(tree[name]) for name in ("bounds", "means", "spreads"))
        rising = bool(jnp.all(jnp.diff(bounds) >= 0)) and bool(jnp.all(jnp.isfinite(bounds)))
        if bounds.ndim != 2 or len(bounds) != len(places) or len(means) != len(gaps) or len(spreads) != len(gaps):
            raise ValueError("shares and columns that do not belong together")
        if not rising or not bool(jnp.all(jnp.isfinite(means)) & jnp.all(spreads > 0)):
            raise ValueError("shares of values that do not rise from 0 to 1")
        return cls(places, bounds, gaps, means, spreads)


@cache
def _points(dim, count):
    from scipy.stats.qmc import Sobol

    return Sobol(dim, rng=np.random.default_rng(0)).random(count).astype(np.float32)


def _log_normal(z):
    return -0.5 * (z**2 + jnp.log(2 * jnp.pi))
