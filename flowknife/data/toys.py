"""Two-dimensional toy distributions whose samples, density and entropy are all known.

Every toy is either an exact mixture, or Gaussian noise around smooth curves:

    x = c_k(v) + sd * n,   k ~ U{0, ..., K-1},   v ~ q on [0, 1],   n ~ N(0, I)
    p(x) = 1/K sum_k int_0^1 N(x; c_k(v), sd^2 I) q(v) dv

The integral is taken by Gauss-Legendre quadrature with enough nodes that doubling them changes log p by less than 1e-9,
out to six standard deviations from the curves. `entropy` is -int p ln p, by the trapezoidal rule on a grid much finer
than the noise (spectrally accurate for these densities): halving the spacing changes it by less than 1e-8.

Examples:
    >>> from flowknife.data import TOYS
    >>> x = TOYS["moons"].sample(1000, key=0)
    >>> floor = TOYS["moons"].entropy  # no model has a mean -log_prob below it
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from flowknife.errors import InputError

if TYPE_CHECKING:
    from flowknife._types import Key

RING_CENTRES = np.array(
    [[-2.4142, 1], [-1, 2.4142], [1, 2.4142], [2.4142, 1], [2.4142, -1], [1, -2.4142], [-1, -2.4142], [-2.4142, -1]]
)
RING_CENTRES.setflags(write=False)
"""The modes of `ring`, clockwise (Ardizzone et al. 2019, arXiv 1808.04730)."""

RING_LABELS = {"all": (0, 1, 2, 3, 4, 5, 6, 7), "some": (0, 0, 0, 0, 1, 1, 2, 3), "none": (0,) * 8}
"""The three labellings of these modes in Ardizzone et al. 2019."""


@dataclass(frozen=True)
class Toy:
    """A distribution in the plane with known samples, density and entropy.

    Attributes:
        name: its key in `TOYS`.
        entropy: differential entropy in nats, the floor of the mean of -log_prob under any model.
        source: reference of the definition.
        draw: (n, generator) -> n points, shape (n, 2).
        log_density: points of shape (n, 2) -> log density, shape (n,).
    """

    name: str
    entropy: float
    source: str
    draw: Callable[[int, np.random.Generator], np.ndarray] = field(repr=False)
    log_density: Callable[[np.ndarray], np.ndarray] = field(repr=False)

    def sample(self, n: int, *, key: "Key" = None) -> Float[np.ndarray, "n 2"]:
        """Draw n independent points, float32 of shape (n, 2).

        Raises:
            InputError: n is not a whole number >= 0, or `key` is not an int, a JAX key or None.
        """
        from flowknife._types import as_generator  # here, since toys are read without JAX too

        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0:
            raise InputError(f"got n={n!r}; expected a whole number of points, 0 or more; try n=1000")
        return self.draw(int(n), as_generator(key)).astype(np.float32)

    def log_prob(self, x: ArrayLike) -> np.ndarray:
        """Log density in nats at points of shape (..., 2); float64 of shape (...).

        Raises:
            InputError: the last axis does not have length 2.
        """
        points = np.asarray(x, dtype=np.float64)
        if points.ndim == 0 or points.shape[-1] != 2:
            raise InputError(
                f"got points of shape {points.shape}; expected (..., 2), since {self.name} lies in the plane"
            )
        return self.log_density(points.reshape(-1, 2)).reshape(points.shape[:-1])


def ring_labels(x: ArrayLike, labels: str = "all") -> np.ndarray:
    """Label points of `ring` by their nearest mode: int array of shape (n,). Wrong for 6 points in 10 million.

    Args:
        x: points of shape (n, 2).
        labels: "all" (8 classes), "some" (4 classes of 4, 2, 1 and 1 modes) or "none" (a single class).

    Raises:
        InputError: unknown `labels`.
    """
    if labels not in RING_LABELS:
        raise InputError(f"got labels={labels!r}; expected one of {', '.join(map(repr, RING_LABELS))}")
    distance = np.linalg.norm(np.asarray(x)[:, None, :] - RING_CENTRES, axis=-1)
    return np.array(RING_LABELS[labels])[distance.argmin(axis=1)]


@cache
def ring() -> Toy:
    """Eight modes on a ring: p(x) = 1/8 sum_k N(x; RING_CENTRES[k], 0.2^2 I)."""
    source = "Ardizzone et al. 2019, arXiv 1808.04730"
    return _around_points("ring", RING_CENTRES, noise=0.2, entropy=1.69844106, source=source)


@cache
def eight_gaussians() -> Toy:
    """Eight modes on a circle: p(x) = 1/8 sum_k N(x; 4/1.414 (cos k pi/4, sin k pi/4), (0.5/1.414)^2 I)."""
    angle = np.arange(8) * np.pi / 4
    centres = 4 / 1.414 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    source = "Grathwohl et al. 2019, arXiv 1810.01367"
    return _around_points("eight_gaussians", centres, noise=0.5 / 1.414, entropy=2.83188041, source=source)


@cache
def checkerboard() -> Toy:
    """Uniform on the eight black squares, side 2, of [-4, 4]^2: p(x) = 1/32 where floor(x1/2) + floor(x2/2) is even."""

    def draw(n: int, generator: np.random.Generator) -> np.ndarray:
        column = generator.integers(-2, 2, size=n)
        row = 2 * generator.integers(-1, 1, size=n) + column % 2
        # Midpoints of a fine grid are exact in float32: no rounding can carry a point out of its square.
        inside = (generator.integers(2**20, size=(n, 2)) + 0.5) / 2**20
        return 2 * (np.stack([column, row], axis=-1) + inside)

    def log_density(x: np.ndarray) -> np.ndarray:
        square = np.floor(x / 2)
        black = (np.abs(square + 0.5) < 2).all(axis=-1) & (square.sum(axis=-1) % 2 == 0)
        return np.where(black, -np.log(32), -np.inf)

    return Toy("checkerboard", float(np.log(32)), "Grathwohl et al. 2019, arXiv 1810.01367", draw, log_density)


@cache
def pinwheel() -> Toy:
    """Five twisted arms: x = 2 R(-2 pi k/5 - exp(|u|)/4) u, u ~ N((1, 0), diag(0.3^2, 0.1^2)), k ~ U{0, ..., 4}.

    R(a) rotates by the angle a. The twist depends on |u|, where the original uses u1 (the two differ by u2^2 / 2 u1,
    about 0.005): so it preserves areas, and with w = R(2 pi k/5 + exp(|x/2|)/4) x/2

        p(x) = 1/4 * 1/5 sum_k N(w; (1, 0), diag(0.3^2, 0.1^2))    exactly.
    """
    centre, scale = np.array([1.0, 0.0]), np.array([0.3, 0.1])

    def draw(n: int, generator: np.random.Generator) -> np.ndarray:
        u = centre + scale * generator.standard_normal((n, 2))
        arm = generator.integers(5, size=n)
        return 2 * _rotate(u, -2 * np.pi * arm / 5 - np.exp(np.linalg.norm(u, axis=-1)) / 4)

    def log_density(x: np.ndarray) -> np.ndarray:
        half = x[:, None, :] / 2
        arm = np.arange(5)
        u = _rotate(half, 2 * np.pi * arm / 5 + np.exp(np.linalg.norm(half, axis=-1)) / 4)  # (n, 5, 2)
        exponent = -0.5 * (((u - centre) / scale) ** 2).sum(axis=-1)
        return logsumexp(exponent, axis=-1) - np.log(5 * 4 * 2 * np.pi * scale.prod())

    return Toy("pinwheel", 2.32058849, "Johnson et al. 2016, arXiv 1603.06277", draw, log_density)


@cache
def moons() -> Toy:
    """Two half circles: (cos t, sin t) or (1 - cos t, 1/2 - sin t), t ~ U(0, pi), plus N(0, 0.1^2 I)."""

    def curve(v: np.ndarray, arm: np.ndarray) -> np.ndarray:
        sign = 1 - 2 * arm
        return np.stack([sign * np.cos(np.pi * v) + arm, sign * np.sin(np.pi * v) + arm / 2], axis=-1)

    return _around_curves(
        "moons", curve, arms=2, noise=0.1, nodes=128, entropy=1.00758483, source="scikit-learn, make_moons(noise=0.1)"
    )


@cache
def two_spirals() -> Toy:
    """Two arms: +-(-t cos t, t sin t) / 3, t = 3 pi sqrt(u), u ~ U(0, 1), plus N(0, 0.1^2 I).

    The small uniform jitter of the original, next to its Gaussian noise, is left out.
    """

    def curve(v: np.ndarray, arm: np.ndarray) -> np.ndarray:
        t = 3 * np.pi * v
        return ((1 - 2 * arm) * t / 3)[:, None] * np.stack([-np.cos(t), np.sin(t)], axis=-1)

    source = "after Grathwohl et al. 2019, arXiv 1810.01367"
    return _around_curves(
        "two_spirals", curve, arms=2, noise=0.1, nodes=700, linear=True, entropy=2.54061789, source=source
    )


@cache
def swiss_roll() -> Toy:
    """One spiral: t (cos t, sin t) / 5, t ~ U(1.5 pi, 4.5 pi), plus N(0, 0.2^2 I)."""

    def curve(v: np.ndarray, arm: np.ndarray) -> np.ndarray:
        t = 1.5 * np.pi * (1 + 2 * v)
        return (t / 5)[:, None] * np.stack([np.cos(t), np.sin(t)], axis=-1)

    source = "scikit-learn, make_swiss_roll(noise=1), first and third axis / 5"
    return _around_curves("swiss_roll", curve, arms=1, noise=0.2, nodes=320, entropy=2.66964617, source=source)


@cache
def circles() -> Toy:
    """Two circles: r (cos t, sin t), r from {3, 1.5}, t ~ U(0, 2 pi), plus N(0, 0.24^2 I)."""
    source = "scikit-learn, 3 * make_circles(factor=0.5, noise=0.08)"
    return _around_curves(
        "circles", _circle(3.0, 1.5), arms=2, noise=0.24, nodes=200, entropy=3.26813571, source=source
    )


@cache
def rings() -> Toy:
    """Four circles: r (cos t, sin t), r from {3, 2.25, 1.5, 0.75}, t ~ U(0, 2 pi), plus N(0, 0.08^2 I)."""
    source = "Grathwohl et al. 2019, arXiv 1810.01367"
    return _around_curves(
        "rings", _circle(3.0, 2.25, 1.5, 0.75), arms=4, noise=0.08, nodes=560, entropy=2.62318277, source=source
    )


def _circle(*radii: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def curve(v: np.ndarray, arm: np.ndarray) -> np.ndarray:
        angle = 2 * np.pi * v
        return np.asarray(radii)[arm][:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)

    return curve


def _around_points(name: str, centres: np.ndarray, *, noise: float, entropy: float, source: str) -> Toy:
    """The toy 1/K sum_k N(x; centres[k], noise^2 I)."""
    weights = np.full(len(centres), 1 / len(centres))

    def draw(n: int, generator: np.random.Generator) -> np.ndarray:
        return centres[generator.integers(len(centres), size=n)] + noise * generator.standard_normal((n, 2))

    return Toy(name, entropy, source, draw, lambda x: _log_mixture(x, centres, weights, noise))


def _around_curves(
    name: str,
    curve: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    arms: int,
    noise: float,
    nodes: int,
    entropy: float,
    source: str,
    linear: bool = False,
) -> Toy:
    """The toy 1/K sum_k int_0^1 N(x; curve(v, k), noise^2 I) q(v) dv.

    Args:
        name: key in `TOYS`.
        curve: (positions v in [0, 1], arm numbers), both (n,) -> points (n, 2).
        arms: number K of equally likely curves.
        noise: standard deviation around them.
        nodes: quadrature nodes per curve.
        entropy: in nats.
        source: reference of the definition.
        linear: q(v) = 2 v (equal mass per length on an Archimedean spiral) in place of q(v) = 1.
    """

    def draw(n: int, generator: np.random.Generator) -> np.ndarray:
        u = generator.random(n)
        points = curve(np.sqrt(u) if linear else u, generator.integers(arms, size=n))
        return points + noise * generator.standard_normal((n, 2))

    @cache
    def quadrature() -> tuple[np.ndarray, np.ndarray]:
        position, weight = np.polynomial.legendre.leggauss(nodes)
        v, weight = (position + 1) / 2, weight / 2
        if linear:
            weight = weight * 2 * v
        means = np.concatenate([curve(v, np.full(nodes, arm)) for arm in range(arms)])
        return means, np.tile(weight / arms, arms)

    return Toy(name, entropy, source, draw, lambda x: _log_mixture(x, *quadrature(), noise))


def _log_mixture(x: np.ndarray, means: np.ndarray, weights: np.ndarray, sd: float) -> np.ndarray:
    """Mixture density: log sum_i weights[i] N(x; means[i], sd^2 I), shapes (n, 2), (m, 2), (m,) -> (n,)."""
    result = np.empty(len(x))
    constant = np.log(weights) - np.log(2 * np.pi * sd**2)
    rows = max(1, 2**16 // len(means))  # at a time: a table that fits the processor's cache is four times faster
    for start in range(0, len(x), rows):
        block = x[start : start + rows]
        squares = (block**2).sum(axis=1)[:, None] - 2 * block @ means.T + (means**2).sum(axis=1)
        exponent = constant - squares / (2 * sd**2)
        peak = exponent.max(axis=1, keepdims=True)
        result[start : start + rows] = peak[:, 0] + np.log(np.exp(exponent - peak).sum(axis=1))
    return result


def _rotate(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotate points (..., 2) counter-clockwise by `angle` (...)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], axis=-1)


TOYS: dict[str, Toy] = {
    make.__name__: make()
    for make in (ring, eight_gaussians, checkerboard, moons, pinwheel, two_spirals, swiss_roll, circles, rings)
}
"""Every toy by name."""
