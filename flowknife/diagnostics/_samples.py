"""Two-sample tests."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowknife._types import Key, as_key
from flowknife.diagnostics._check import Values
from flowknife.errors import InputError

_ROWS_AT_ONCE = 64  # rows of x per batch: a test of 10,000 rows takes less than 10 MB of memory


def mmd2(x: Values, y: Values, widths: Sequence[float] = (0.05, 0.2, 0.9)) -> float:
    """Squared maximum mean discrepancy, the unbiased estimate.

        MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)
        k(a, b) = sum_h 1 / (1 + |a - b|^2 / h^2)

    (Gretton et al. 2012, JMLR 13, 723, eq. 3; kernel and widths of Kruse et al. 2021, arXiv 2101.10763). If both have
    the same distribution, its expectation is 0, so it may be negative.

    Args:
        x: samples, shape (n, d).
        y: samples, shape (m, d).
        widths: h, in the units of x.

    Raises:
        InputError: for shapes that do not fit, fewer than two rows, or non-finite values.

    Examples:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(500, 2))
        >>> mmd2(x, x + 1.0) > 0.1
        True
    """
    x, y = _two_tables(x, y)
    if np.size(widths) == 0 or np.min(widths) <= 0:
        raise InputError(f"got widths {widths}; expected positive numbers; try (0.05, 0.2, 0.9)")
    # centred, since far from zero single precision would lose the distances
    centre = x.mean(axis=0)
    rows = jnp.asarray(x - centre), jnp.asarray(y - centre)
    return float(_mmd2(*rows, jnp.asarray(widths, dtype=rows[0].dtype)))


@eqx.filter_jit
def _mmd2(x, y, widths):
    def mean_kernel(a, b):
        columns = b.T  # distances to all rows of b are summed column by column, in vectorised form

        def row(point) -> Float[Array, ""]:
            squared = jnp.sum((point[:, None] - columns) ** 2, axis=0)
            return jnp.mean(sum(h**2 / (h**2 + squared) for h in widths))

        return jnp.mean(jax.lax.map(row, a, batch_size=_ROWS_AT_ONCE))

    def without_diagonal(a):
        # k(a, a) is the number of widths
        n = len(a)
        return (n * mean_kernel(a, a) - len(widths)) / (n - 1)

    return without_diagonal(x) + without_diagonal(y) - 2 * mean_kernel(x, y)


def c2st(x: Values, y: Values, key: Key = 0, folds: int = 5, *, early_stopping: bool = False) -> float:
    """Classifier two-sample test: accuracy of a network that separates samples of x from samples of y.

    0.5 if the distributions are equal, 1 if they do not overlap. As in the benchmark of Lueckmann et al. 2021 (arXiv
    2101.04653): both are z-scored by the mean and the standard deviation of x, and the accuracy of a network with two
    hidden layers of 10 d ReLU units, trained by Adam until its loss converges, is averaged over the folds.

    Args:
        x: samples of the reference, shape (n, d).
        y: samples to compare, shape (n, d).
        key: random key of the folds and the initial weights.
        folds: number of folds of the cross-validation.
        early_stopping: end training when the accuracy on a tenth of the rows stops improving. This takes seconds where
            convergence takes minutes, as for samples that are nearly equal, and finds differences as well.

    Returns:
        the accuracy, between about 0.5 and 1.

    Raises:
        InputError: for tables of different size, or without scikit-learn.
    """
    x, y = _two_tables(x, y)
    if len(x) != len(y) or not 2 <= folds <= len(x):
        raise InputError(
            f"got {len(x)} and {len(y)} rows for {folds} folds; expected as many of each, since otherwise guessing is "
            f"right more than half the time; try the first {min(len(x), len(y))} of each"
        )
    try:
        from sklearn.model_selection import KFold, cross_val_score
        from sklearn.neural_network import MLPClassifier
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise InputError(
            'got no scikit-learn; expected it for the classifier test; try pip install "flowknife[sklearn]"'
        ) from None

    scale = x.std(axis=0, ddof=1)
    scale = np.where(scale > 0, scale, 1.0)
    rows = np.concatenate([(x - x.mean(axis=0)) / scale, (y - x.mean(axis=0)) / scale])
    side = np.repeat([0, 1], len(x))
    seed = int(jax.random.bits(as_key(key)))
    hidden = (10 * x.shape[1], 10 * x.shape[1])
    network = MLPClassifier(hidden, max_iter=10_000, early_stopping=early_stopping, random_state=seed)
    shuffled = KFold(n_splits=folds, shuffle=True, random_state=seed)
    with threadpool_limits(1, "blas"):  # products this small gain nothing from threads, and wait long on a busy machine
        return float(np.mean(cross_val_score(network, rows, side, cv=shuffled, scoring="accuracy")))


def _two_tables(x, y):
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1:] != y.shape[1:] or x.shape[1] == 0 or min(len(x), len(y)) < 2:
        raise InputError(
            f"got samples of shape {x.shape} and {y.shape}; expected (n, d) and (m, d), n and m at least 2"
        )
    wild = int(np.sum(~np.isfinite(x)) + np.sum(~np.isfinite(y)))
    if wild:
        raise InputError(f"got {wild} values that are not finite; expected numbers only")
    return x, y
