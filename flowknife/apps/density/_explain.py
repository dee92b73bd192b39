"""Which columns make a row unusual: the gain in log density if one column had its most likely value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from flowknife.data._cells import array_of
from flowknife.errors import counted

if TYPE_CHECKING:
    from flowknife.apps.density._result import Density

_REASONS = 3  # number of columns to report
_GRID = 33  # quantiles of the training rows
_FINE, _ZOOMS = 9, 3  # numbers between the neighbours of the best one, and how often: a 16,000th of a quantile step
_DRAWS = 16  # draws of the continuous rows that represent a row with categories
_ROWS_AT_ONCE = 2048
_BATCH = 1024  # rows with a changed value per batch; a fixed number, so that one program is compiled


class Explanation(NamedTuple):
    """The gain of each column in each row, and its most likely value.

    Attributes:
        names: names of the d columns.
        gains: gains in nats, shape (n, d).
        likely: by column name, its most likely value given the other columns of the row, n values.
    """

    names: tuple[str, ...]
    gains: Float[np.ndarray, "n d"]
    likely: Mapping[str, np.ndarray]

    def __repr__(self) -> str:
        return f"Explanation({counted(len(self.gains), 'row')} of {', '.join(self.names)})"

    def reasons(self, most: int = _REASONS) -> dict[str, np.ndarray]:
        """The columns with the largest gains, as columns reason_1, gain_1, likely_1, reason_2, ... for each row."""
        order = np.argsort(-self.gains, axis=1, kind="stable")[:, :most]
        rows = np.arange(len(order))
        found: dict[str, np.ndarray] = {}
        for place, column in enumerate(order.T, 1):
            values = [self.likely[self.names[own]][row] for row, own in zip(rows, column, strict=True)]
            found[f"reason_{place}"] = np.array([self.names[own] for own in column], dtype=str)
            found[f"gain_{place}"] = self.gains[rows, column]
            found[f"likely_{place}"] = array_of(
                [getattr(value, "item", lambda value=value: value)() for value in values]
            )
        return found


@dataclass(frozen=True)
class _Column:
    """A column in rows of the model: its index, that of its missing-value indicator, its size if discrete."""

    place: int
    flag: int | None
    size: int | None


LogProb = Callable[[np.ndarray, int, int], np.ndarray]
"""From rows of the model, a number of draws and the size of a batch to log densities."""


def explained(flow: "Density", values: np.ndarray, log_prob: LogProb) -> Explanation:
    """The gains of rows in the user's units, the conditions last."""
    parts = [_explained(flow, values[i : i + _ROWS_AT_ONCE], log_prob) for i in range(0, len(values), _ROWS_AT_ONCE)]
    gains, best = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    own = flow.joint_frame.from_model(best.reshape(-1, best.shape[-1])).reshape(*best.shape[:2], -1)
    likely = {}
    for place, name in enumerate(flow.names):
        changed = own[:, place, : len(flow.columns)]
        likely[name] = flow.encoding.decoded(name, changed) if flow.encoding else changed[:, place]
    return Explanation(flow.names, gains, likely)


def _explained(flow, values, log_prob):
    """Gains (n, d), and for each column the row of the model in which it is changed, (n, d, dim)."""
    rows = flow.joint_frame.to_model(values)
    kept = {int(place): i for i, place in enumerate(flow.frame.kept)}
    sizes = dict(flow.encoding.sizes) if flow.encoding else {}
    flags = {i: flow.encoding.flag(name) if flow.encoding else None for i, name in enumerate(flow.names)}
    own = _log_probs(log_prob, rows)
    gains, best = np.zeros((len(rows), len(flow.names))), np.repeat(rows[:, None], len(flow.names), axis=1)
    impossible = _impossible(flow, values)
    for i in range(len(flow.names)):
        flag = kept.get(flags[i]) if flags[i] is not None else None
        if i in kept:
            column = _Column(kept[i], flag, sizes.get(i))
        elif flag is not None:
            column = _Column(flag, None, 2)
        else:
            continue
        top, best[:, i] = _best(flow, rows, own, column, log_prob)
        with np.errstate(invalid="ignore"):
            gains[:, i] = np.maximum(np.nan_to_num(top - own, nan=0.0, posinf=np.inf), 0.0)
    gains[impossible] = np.inf
    return gains, best


def _impossible(flow, values):
    """Which values are impossible: other values of constant columns, and unknown categories."""
    frame, columns = flow.frame, len(flow.columns)
    found = np.zeros((len(values), len(flow.names)), bool)
    for place in set(frame.constant) & set(range(len(flow.names))):
        at = np.tile(frame.origin, (len(values), 1))
        at[:, place] = values[:, :columns][:, place]
        found[:, place] = ~frame.possible(at)
    for place in flow.encoding.sizes if flow.encoding else ():
        if place < len(flow.names):
            found[:, place] |= values[:, place] < 0
    return found


def _best(flow, rows, own, column, log_prob):
    """The largest log density over the values of one column, and the rows that attain it.

    A number is compared with other numbers. A missing value is compared, as a probability, with the probability of not
    being missing.
    """
    gone = np.zeros(len(rows), bool) if column.flag is None else rows[:, column.flag] > 0.5
    places = [column.place] if column.flag is None else [column.place, column.flag]
    top, best, each = np.where(gone, -np.inf, own), rows, np.arange(len(rows))

    def try_each(numbers):
        """Replace the column by numbers (n, c) and keep the better rows; returns all log densities."""
        nonlocal top, best
        changed = np.repeat(rows, numbers.shape[1], axis=0).astype(np.float32)
        changed[:, places] = 0.0  # not missing
        changed[:, column.place] = numbers.ravel()
        found = _log_probs(log_prob, changed).reshape(numbers.shape)
        first = found.argmax(axis=1)
        better = found[each, first] > top
        top = np.where(better, found[each, first], top)
        best = np.where(better[:, None], changed.reshape(*numbers.shape, -1)[each, first], best)
        return found

    if column.size is not None:
        try_each(np.tile(np.arange(column.size, dtype=float), (len(rows), 1)))
        return top, best
    reference = flow.reference if column.flag is None else flow.reference[flow.reference[:, column.flag] < 0.5]
    grid = np.quantile(reference[:, column.place].astype(np.float64), np.linspace(0, 1, _GRID))
    numbers = np.broadcast_to(grid, (len(rows), _GRID))
    found = coarse = try_each(numbers)
    for _ in range(_ZOOMS):
        first, last = found.argmax(axis=1), numbers.shape[1] - 1
        ends = numbers[each, np.maximum(first - 1, 0)], numbers[each, np.minimum(first + 1, last)]
        numbers = np.linspace(*ends, _FINE, axis=1)
        found = try_each(numbers)
    if gone.any():
        widths = (
            np.gradient(grid) * flow.frame.widths_from_model(np.ones(flow.frame.dim))[flow.frame.kept][column.place]
        )
        there = logsumexp(coarse, b=np.maximum(widths, 0.0), axis=1)
        top = np.where(gone, there, top)
        best = np.where((gone & (there <= own))[:, None], rows, best)
    return top, best


def _log_probs(log_prob, rows):
    """Log densities with -inf in place of NaN, which comes from overflow."""
    padded = rows if len(rows) >= _BATCH else np.resize(rows, (_BATCH, rows.shape[1]))
    found = log_prob(padded, _DRAWS, _BATCH)[: len(rows)]
    return np.where(np.isnan(found), -np.inf, found)
