"""The result of `score`: columns of scores, p-values and flags, one row for each item."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flowknife.diagnostics._anomalies import adjusted_p_values
from flowknife.diagnostics._check import Values
from flowknife.diagnostics._conformal import Flagging
from flowknife.errors import InputError, counted


class Scores(Mapping[str, np.ndarray]):
    """Named columns with one row for each item; a mapping from names to arrays.

    Every job has the columns

    - row or path: identifies the item;
    - score: larger is more anomalous;
    - p_value: conformal p-value; this and the following columns need held-out items for calibration;
    - flag: p_value < alpha. At most a share alpha of new items of the same distribution is flagged, in expectation;
    - q_value: the p-value adjusted for the number of items (Benjamini-Hochberg);
    - discovery: q_value <= alpha. At most a share alpha of the discoveries is normal, in expectation.

    Args:
        columns: arrays of one length by name.
        note: the reason why there are no p-values, or "".

    Raises:
        InputError: for columns of several lengths.

    Examples:
        >>> scores = Scores({"row": [0, 1], "score": [0.5, 2.0]})
        >>> list(scores), scores["score"].tolist(), scores.rows
        (['row', 'score'], [0.5, 2.0], 2)
    """

    def __init__(self, columns: Mapping[str, Any], note: str = ""):
        self._columns = {name: np.asarray(column) for name, column in columns.items()}
        self.note = note
        if len(lengths := {len(column) for column in self._columns.values()}) > 1:
            raise InputError(f"got columns of {' and '.join(map(str, sorted(lengths)))} rows; expected as many in all")

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._columns:
            why = f"; {self.note}" if self.note else ""
            raise KeyError(f"got {name!r}; expected one of {', '.join(self._columns)}{why}")
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"Scores({counted(self.rows, 'row')}: {', '.join(self)})"

    @property
    def rows(self) -> int:
        """Number of items."""
        return max((len(column) for column in self._columns.values()), default=0)

    def to_frame(self) -> Any:
        """Convert to a pandas DataFrame.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise InputError('pandas is not installed; try pip install "flowknife[tables]"') from None
        return pandas.DataFrame(self._columns)


def scored(columns: Mapping[str, Any], flagging: Flagging, p_values: Values) -> Scores:
    """Scores, with the columns p_value, flag, q_value and discovery if there are calibration rows.

    Warns:
        CalibrationWarning: if nothing can be flagged, at the line that called `score`.
    """
    flagging.warn(stacklevel=4)
    if not flagging.rows:
        return Scores(columns, flagging.note)
    p, q = np.asarray(p_values), adjusted_p_values(p_values)
    decisions = {"p_value": p, "flag": p < flagging.alpha, "q_value": q, "discovery": q <= flagging.alpha}
    return Scores({**columns, **decisions}, flagging.note)
