"""The split of all jobs: rows for training, for early stopping, and for the calibration of p-values.

Rows used for training or early stopping never calibrate: the chosen weights are biased towards them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int

from flowknife._types import as_generator

SHARE = 0.15
"""Default share of held-out rows; 0.1 without calibration."""

_STOPPING_ALONE = 0.1
_FEWEST = 3  # one for early stopping, two for calibration
_RANKS = 3  # p-values below alpha: with fewer, the false-alarm rate varies much, and few discoveries are possible
_SHARE_OF_FEW = 0.15
_FEW_STOPPING = 15  # with fewer rows early stopping is too noisy; of a small table a tenth


class Sizes(NamedTuple):
    """Numbers of rows for early stopping and for calibration; all others are for training."""

    stopping: int
    calibration: int


class Split(NamedTuple):
    """Row indices of the three disjoint parts, each in random order."""

    train: Int[np.ndarray, " t"]
    stopping: Int[np.ndarray, " s"]
    calibration: Int[np.ndarray, " c"]


_MOST = Sizes(5000, 5000)  # unless a share is set: more rows change no decision


def fewest_calibration_rows(alpha: float | int, ranks: int = 1) -> int:
    """The smallest m for which `ranks` of the m + 1 ranks of a new row have a p-value below `alpha`.

        m = min {m : ranks / (m + 1) < alpha}

    With fewer rows than for `ranks=1`, no row can ever be flagged.
    """
    rows = max(int(ranks / alpha) - 2, 0)
    while not ranks / (rows + 1) < alpha:
        rows += 1
    return rows


def rounded(count: int) -> int:
    """`count` rounded down to four leading binary digits: few different sizes, each at most an eighth smaller."""
    return count - count % (1 << max(count.bit_length() - 4, 0))


def split_sizes(
    rows: int,
    share: float | int | None,
    alpha: float | int | None,
    *,
    most: Sizes = _MOST,
    spare: int | None = None,
) -> Sizes:
    """Numbers of held-out rows: one rule for all jobs.

    Early stopping gets a third of the held-out rows, but at most a twentieth of all rows (in a small table a tenth, up
    to 15 rows, unless a share is set). Calibration gets the rest (in a small table up to 15 %, for three ranks below
    `alpha`). If that is too little to flag anything at the rate `alpha`, calibration takes the rows it needs: from
    training, if it needs at most a third of all rows and no share is set, otherwise from early stopping. If it is
    enough, the number of calibration rows is reduced to the one whose false-alarm rate is closest below `alpha`. The
    remaining rows go to training (or to early stopping, if a share is set).

    Args:
        rows: number of rows.
        share: share of the rows that is held out in total; 0 for none, None for the default `SHARE`.
        alpha: the false-alarm rate; None without calibration, where all held-out rows are for early stopping.
        most: largest number of rows of either part, unless a share is set.
        spare: largest number of held-out rows; default all but one.
    """
    spare = rows - 1 if spare is None else spare
    if share == 0 or spare < 1:
        return Sizes(0, 0)
    if alpha is None:
        wanted = max(round((_STOPPING_ALONE if share is None else share) * rows), 1)
        return Sizes(min(wanted, spare, most.stopping if share is None else rows), 0)
    wanted = round((SHARE if share is None else share) * rows)
    held_out = min(max(wanted, min(_FEWEST, rows // 2)), spare)
    stopping = min(max(min(round(held_out / 3), round(rows / 20)), 1), held_out)
    calibration = held_out - stopping
    if share is None:
        few = min(round(_SHARE_OF_FEW * rows), fewest_calibration_rows(alpha, _RANKS))
        calibration = min(max(calibration, few), most.calibration, spare - stopping)
        stopping = rounded(min(max(stopping, min(round(rows / 10), _FEW_STOPPING)), most.stopping, spare - calibration))
    if calibration < 2:  # one score gives no small p-value, and a detector needs several to estimate location and scale
        return Sizes(stopping + calibration, 0)
    needed = fewest_calibration_rows(alpha)
    if calibration < needed:
        if share is None and 3 * needed <= rows and needed <= spare - stopping:
            return Sizes(stopping, needed)
        if share is not None and held_out - max(held_out // 5, 1) >= needed:
            return Sizes(held_out - needed, needed)
        return Sizes(stopping, calibration)
    ranks = int(alpha * (calibration + 1)) + 1
    while (best := fewest_calibration_rows(alpha, ranks)) > calibration:
        ranks -= 1
    return Sizes(stopping if share is None else held_out - best, best)


def split(rows: int, sizes: Sizes, key: Array, *, groups: Int[np.ndarray, " n"] | None = None) -> Split:
    """Divide rows at random.

    Args:
        rows: number of rows.
        sizes: sizes of the held-out parts, see `split_sizes`.
        key: JAX key.
        groups: group of each row, such as its class; one random row of each group is always in the training part.
    """
    order = as_generator(key).permutation(rows)
    if groups is not None:
        first = np.zeros(rows, bool)
        first[np.unique(groups[order], return_index=True)[1]] = True
        order = np.concatenate([order[~first], order[first]])
    stopping, calibration, train = np.split(order, [sizes.stopping, sizes.stopping + sizes.calibration])
    return Split(train, stopping, calibration)
