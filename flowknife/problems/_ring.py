"""Application 4, generative classification: eight modes on a ring with three labellings."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from flowknife._types import Key, as_generator
from flowknife.errors import InputError

CENTRES = np.array(
    [[-2.4142, 1], [-1, 2.4142], [1, 2.4142], [2.4142, 1], [2.4142, -1], [1, -2.4142], [-1, -2.4142], [-2.4142, -1]]
)
CENTRES.setflags(write=False)
LABELS = {"all": (0, 1, 2, 3, 4, 5, 6, 7), "some": (0, 0, 0, 0, 1, 1, 2, 3), "none": (0,) * 8}
"""The class of each mode, clockwise from (-2.4142, 1)."""


@dataclass(frozen=True)
class Ring:
    """Labelled points of the plane: p(x, c) = 1/8 sum over the modes k of class c of N(x; centre_k, 0.2^2 I).

    Attributes:
        mode_labels: class of each of the eight modes.
        sd: standard deviation of each mode.
        entropy: entropy of x in nats, a lower bound of the mean of -log_prob under any model.
        source: reference of the definition.
    """

    mode_labels: tuple[int, ...]
    sd: float = 0.2
    entropy: float = 1.69844106
    name: str = "ring"
    source: str = "Ardizzone et al. 2019, arXiv 1808.04730, sec. 4.1"

    @property
    def centres(self) -> np.ndarray:
        """Centres of the modes, shape (8, 2)."""
        return CENTRES

    @property
    def classes(self) -> int:
        """Number of classes."""
        return max(self.mode_labels) + 1

    def sample(self, n: int, *, key: Key = None) -> tuple[Float[np.ndarray, "n 2"], Int[np.ndarray, " n"]]:
        """Draw n points, float32 of shape (n, 2), and their labels, int of shape (n,)."""
        numbers = as_generator(key)
        mode = numbers.integers(8, size=n)
        x = CENTRES[mode] + self.sd * numbers.standard_normal((n, 2))
        return x.astype(np.float32), np.asarray(self.mode_labels)[mode]

    def _mode_log_probs(self, x):
        """Log N(x; centre, sd^2 I) of every mode, shape (..., 8)."""
        x = np.asarray(x, np.float64)
        if x.ndim == 0 or x.shape[-1] != 2:
            raise InputError(f"got points of shape {x.shape}; expected (..., 2)")
        squares = np.sum((x[..., None, :] - CENTRES) ** 2, axis=-1)
        return -0.5 * squares / self.sd**2 - np.log(2 * np.pi * self.sd**2)

    def log_prob(self, x: ArrayLike) -> np.ndarray:
        """Log p(x) in nats, shape (...), for points of shape (..., 2)."""
        return logsumexp(self._mode_log_probs(x), axis=-1) - np.log(8)

    def log_prob_given(self, x: ArrayLike, label: ArrayLike) -> np.ndarray:
        """Log p(x | label) in nats, shape (...), for points of shape (..., 2) and labels of shape (...)."""
        label = np.asarray(label)
        if label.dtype.kind not in "iu" or np.any((label < 0) | (label >= self.classes)):
            raise InputError(f"got label={label}; expected whole numbers from 0 to {self.classes - 1}")
        own = np.asarray(self.mode_labels) == label[..., None]
        terms = np.where(own, self._mode_log_probs(x), -np.inf)
        return logsumexp(terms, axis=-1) - np.log(np.sum(own, axis=-1))


def ring(labels: str = "all") -> Ring:
    """Eight modes on a ring, labelled.

    Args:
        labels: "all" (8 classes, one mode each), "some" (4 classes of 4, 2, 1 and 1 modes) or "none" (a single class).

    Raises:
        InputError: for other labels.
    """
    if not isinstance(labels, str) or labels not in LABELS:
        raise InputError(f"got labels={labels!r}; expected one of {', '.join(map(repr, LABELS))}")
    return Ring(LABELS[labels])
