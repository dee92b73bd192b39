"""Which columns make a row unusual: the log density that it would gain, had one column its most likely value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from flowknife.data._cells import array_of

if TYPE_CHECKING:
    from flowknife.apps.density._result import Density

_REASONS = 3  # columns that are named
_GRID = 33  # quantiles of the training rows
_FINE, _ZOOMS = 9, 3  # numbers between the neighbours of the best one, and how often: a 16,000th of a quantile step
_DRAWS = 16  # of the continuous rows that stand for a row with categories
_ROWS_AT_ONCE = 2048
_BATCH = 1024  # rows with another value; always as many, so that one program is compiled


class Explanation(NamedTuple):
    """The gain of each column of each row, and its most likely value.

    Attributes:
        names: of the d columns.
        gains: in nats, shape (n, d).
        likely: the most likely value of each column given the others of the row, n by name.
    """

    names: tuple[str, ...]
    gains: Float[np.ndarray, "n d"]
    likely: Mapping[str, np.ndarray]

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
    """A column of the table among rows of the model: its place, that of the flag of its gaps, its size if discrete."""

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
            top, best[:, i] = _best(flow, rows, own, column, log_prob)
            with np.errstate(invalid="ignore"):
                gains[:, i] = np.nan_to_num(top - own, nan=0.0, posinf=np.inf)
        elif flag is not None:
            top, best[:, i] = _best(flow, rows, own, _Column(flag, None, 2), log_prob)
            with np.errstate(invalid="ignore"):
                gains[:, i] = np.nan_to_num(top - own, nan=0.0, posinf=np.inf)
    gains[impossible] = np.inf
    return gains, best


def _impossible(flow, values):
    """Which values no training row can have: other values of constant columns, and other categories."""
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
    """The largest log density over the values of one column, and the rows that have it."""
    top, best = own, rows

    def try_each(candidates):
        """Candidates (n, c, columns changed): keep what is better; the place of the best of each row."""
        nonlocal top, best
        count = candidates.shape[1]
        changed = np.repeat(rows, count, axis=0).astype(np.float32)
        for place, numbers in zip(places, np.moveaxis(candidates, -1, 0), strict=True):
            changed[:, place] = numbers.ravel()
        found = _log_probs(log_prob, changed).reshape(len(rows), count)
        first = found.argmax(axis=1)
        chosen = found[np.arange(len(rows)), first]
        better = chosen > top
        top = np.where(better, chosen, top)
        best = np.where(better[:, None], changed.reshape(len(rows), count, -1)[np.arange(len(rows)), first], best)
        return first

    if column.size is not None:
        places = [column.place]
        try_each(np.tile(np.arange(column.size, dtype=float)[:, None], (len(rows), 1, 1)))
        return top, best
    places = [column.place] if column.flag is None else [column.place, column.flag]
    if column.flag is not None:
        try_each(np.ones((len(rows), 1, 2)) * [float(flow.mixed.means[_gap(flow, column)]), 1.0])
    reference = flow.reference if column.flag is None else flow.reference[flow.reference[:, column.flag] == 0]
    grid = np.quantile(reference[:, column.place].astype(np.float64), np.linspace(0, 1, _GRID))
    low, high = np.broadcast_to(grid[0], len(rows)), np.broadcast_to(grid[-1], len(rows))
    numbers = np.broadcast_to(grid, (len(rows), _GRID))
    for zoom in range(_ZOOMS + 1):
        if zoom:
            numbers = np.linspace(low, high, _FINE, axis=1)
        first = try_each(np.stack([numbers, np.zeros_like(numbers)], axis=-1)[..., : len(places)])
        last = numbers.shape[1] - 1
        each = np.arange(len(rows))
        low, high = numbers[each, np.maximum(first - 1, 0)], numbers[each, np.minimum(first + 1, last)]
    return top, best


def _gap(flow, column):
    return [place for place, _ in flow.mixed.gaps].index(column.place)


def _log_probs(log_prob, rows):
    """NaN, where numbers are beyond the precision, is impossible."""
    padded = rows if len(rows) >= _BATCH else np.resize(rows, (_BATCH, rows.shape[1]))
    found = log_prob(padded, _DRAWS, _BATCH)[: len(rows)]
    return np.where(np.isnan(found), -np.inf, found)
