"""The kind of items of a run: rows of a table, images, or observations. All verbs read and write data through it.

A new application adds an entry to `KINDS`, or uses an existing kind.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowknife._files import is_own, is_run
from flowknife.cli._app import say
from flowknife.cli._data import read_images, read_observations, read_rows
from flowknife.cli._files import encoded_writer, image_writer, row_writer
from flowknife.cli._images import number_in
from flowknife.errors import InputError, counted

if TYPE_CHECKING:
    import numpy as np

    from flowknife.cli._shards import Shard
    from flowknife.data import Table
    from flowknife.data.images import Partition


@dataclass(frozen=True)
class Choice:
    """A selection of the data to read.

    Attributes:
        drop_invalid: for rows, leave out those with missing or infinite values.
        partition: for images, the partition in `list_eval_partition.txt`.
        id: for tables, the column that identifies the rows.
        given: their condition, see `given_in`.
        shard: only the items of one of several processes.
    """

    drop_invalid: bool = False
    partition: "Partition | None" = None
    id: str | None = None
    given: str | None = None
    shard: "Shard | None" = None

    def for_rows(self) -> bool:
        """Whether to drop invalid rows.

        Raises:
            InputError: for options of images.
        """
        if self.partition is not None:
            raise InputError("got --partition for a table; expected a folder of images; try without")
        return self.drop_invalid

    def carried(self, table: "Table", data: str) -> "dict[str, np.ndarray]":
        """The column of `id`, by name.

        Raises:
            InputError: there is no such column.
        """
        if self.id is None:
            return {}
        if self.id in table.names:
            return {self.id: table.values[:, table.names.index(self.id)]}
        if self.id not in table.kept:
            raise InputError(f"got --id {self.id} for {data!r}, which has no such column; expected one of its columns")
        return {self.id: table.kept[self.id]}


@dataclass(frozen=True)
class Items:
    """Data read for a model.

    Attributes:
        values: the input of the model.
        labels: labels of the items, if they are known.
        numbers: row numbers in the file.
        carried: columns of the file to copy to the output, by name.
        left_out: number of rows left out.
        skipped: unusable files, with the reasons.
        given: conditions of the items; None for none.
        total: number of items of all shards, usable or not; None if not counted.
    """

    values: Any
    labels: Any = None
    numbers: "np.ndarray | None" = None
    carried: "Mapping[str, np.ndarray]" = field(default_factory=dict)
    left_out: int = 0
    skipped: tuple[Any, ...] = ()
    given: Any = None
    total: int | None = None

    def part(self, shard: "Shard | None") -> "Items":
        """The rows of one of N processes: every N-th row of the file."""
        import numpy as np

        from flowknife.data.encoding import Coded

        if shard is None or self.numbers is None:
            return self
        total = len(self.numbers) + self.left_out
        own = self.numbers % shard.parts == shard.part - 1
        values = Coded(self.values.values[own]) if isinstance(self.values, Coded) else self.values[own]
        by_row = isinstance(self.given, np.ndarray) and len(self.given) == len(own)
        return replace(
            self,
            values=values,
            labels=None if self.labels is None else self.labels[own],
            numbers=self.numbers[own],
            carried={name: column[own] for name, column in self.carried.items()},
            left_out=len(range(shard.part - 1, total, shard.parts)) - int(own.sum()),
            given=self.given[own] if by_row else self.given,
            total=total,
        )

    @classmethod
    def of_table(
        cls, table: "Table", carried: "Mapping[str, np.ndarray]", labels: Any = None, conditions: int = 0
    ) -> "Items":
        """Items from the rows of a table, some of which may have been left out."""
        import numpy as np

        numbers = np.delete(np.arange(len(table.values) + table.dropped), table.dropped_rows)
        values, given = np.split(table.values, [table.values.shape[1] - conditions], axis=1)
        return cls(values, labels, numbers, carried, table.dropped, given=given if conditions else None)


@dataclass(frozen=True)
class Kind:
    """How the verbs read and write one kind of items.

    Attributes:
        word: noun for the items, in the plural.
        read: (fitted, DATA, choice) -> the items to score.
        judged: (fitted, DATA, choice) -> the data and conditions for `check`.
        writer: (fitted, FILE, count) -> a function that writes draws; an unsuitable FILE is refused before drawing.
    """

    word: str
    read: Callable[[Any, str, Choice], Items]
    judged: Callable[[Any, str, Choice], tuple[Any, Any]]
    writer: Callable[[Any, Path, int], Callable[[Any], Any]]


def _rows(fitted, data, choice):
    from flowknife.data._pairs import LABEL

    # the table of a classifier may include the labels
    label = (fitted.record.data.label_column or LABEL) if fitted.application == "classify" else None
    conditions = fitted.given_names if choice.given is None else ()
    names = (*fitted.names, *conditions)
    keep = [name for name in (label, choice.id) if name is not None and name not in names]
    if fitted.encoding is not None:
        return _encoded_rows(fitted, data, choice, conditions, keep, label)
    table = read_rows(data, names, keep, drop_invalid=choice.for_rows())
    items = Items.of_table(table, choice.carried(table, data), table.kept.get(label), len(conditions))
    return items if choice.given is None else replace(items, given=given_in(fitted, choice.given))


def _encoded_rows(fitted, data, choice, conditions, keep, label):
    """Rows of a table with categories, dates or missing values."""
    from flowknife.data.encoding import Coded

    table = fitted.encoding.read(data, conditions, keep, drop_invalid=choice.for_rows())
    items = Items.of_table(table, _carried(fitted, choice, table, data), table.kept.get(label), len(conditions))
    given = items.given if choice.given is None else given_in(fitted, choice.given)
    return replace(items, values=Coded(items.values), given=given)


def _carried(fitted, choice, table, data):
    if choice.id not in fitted.names:
        return choice.carried(table, data)
    return {choice.id: fitted.encoding.decoded(choice.id, table.values)}


def _images(fitted, data, choice):
    if choice.id is not None:
        raise InputError("got --id for images, which are identified by their paths; expected a table; try without")
    if choice.drop_invalid:
        raise InputError("got --drop-invalid for images; files that cannot be used are always left out; try without")
    crop = getattr(fitted.config, "crop", 1.0)
    shape = fitted.held_out.shape[1:]
    images, total = read_images(data, shape, crop, choice.partition, fitted.white, choice.shard)
    return Items(images, skipped=images.skipped, given=choice.given, total=total)


def _observations(posterior, data, choice):
    keep = () if choice.id is None else (choice.id,)
    table = read_observations(posterior, data, keep, drop_invalid=choice.for_rows())
    return Items.of_table(table, choice.carried(table, data))


def _pairs(posterior, data, choice):
    choice.for_rows()
    return data, None


def _judged_rows(fitted, data, choice):
    items = _rows(fitted, data, choice)
    return (items.values if items.labels is None else (items.values, items.labels)), items.given


def _judged_images(fitted, data, choice):
    return _images(fitted, data, choice).values, None


def _row_writer(fitted, out, n):
    names = (*fitted.names, *fitted.given_names)
    if fitted.encoding is None:
        return row_writer(out, names)
    return encoded_writer(out, names, fitted.encoding)


def _image_writer(fitted, out, n):
    return image_writer(out, n)


def _draw_writer(posterior, out, n):
    return row_writer(out, ("observation", *posterior.names))


ROWS = Kind("rows", _rows, _judged_rows, _row_writer)
IMAGES = Kind("images", _images, _judged_images, _image_writer)
OBSERVATIONS = Kind("draws", _observations, _pairs, _draw_writer)

KINDS: Mapping[str, Callable[[Any], Kind]] = {
    "density": lambda fitted: ROWS,
    "images": lambda fitted: IMAGES,
    "classify": lambda fitted: IMAGES if fitted.of_images else ROWS,
    "invert": lambda fitted: OBSERVATIONS,
}
"""The kind of items of each application."""


def kind_of(fitted: Any) -> Kind:
    """The kind of items of a run."""
    return KINDS[fitted.application](fitted)


def given_in(fitted: Any, text: str) -> Any:
    """Parse `--given`: a class of images, or conditions of rows as NAME=NUMBER,... or a table.

    Raises:
        InputError: for a table without the conditions of training.
    """
    if fitted.application == "images":
        return text
    if "=" in text and not Path(text).exists():
        pairs = [part.rpartition("=") for part in text.split(",")]
        return {name.strip(): number_in(number, "--given") for name, _, number in pairs}
    return read_rows(text, fitted.given_names).values


def only_for(applications: Sequence[str], fitted: Any, **options: Any) -> None:
    """Refuse options that have no effect for this run.

    Raises:
        InputError: an option is given for a run of another application.
    """
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given and fitted.application not in applications:
        other = {("classify", "--given"): "--label", ("images", "--label"): "--given"}
        instead = other.get((fitted.application, given[0]), f"without {given[0]}")
        raise InputError(
            f"got {given[0]} for a run of {fitted.application}; expected a run of {' or '.join(applications)}; try "
            f"{instead}"
        )


def numbered(columns, items: Items):
    """Columns with row numbers of the original file, and with the carried columns.

    Raises:
        InputError: a carried column has the name of another column.
    """
    if items.numbers is None:
        return columns
    for name in items.carried:
        if name in columns:
            raise InputError(
                f"got --id {name}, the name of a column that is written anyway; expected another; rename it"
            )
    return {"row": items.numbers, **items.carried, **{name: each for name, each in columns.items() if name != "row"}}


def tell_left_out(items: Items, out: Path) -> None:
    """Report the number of rows left out, and list unusable images next to `out`."""
    from flowknife.data import write_skipped

    if items.left_out:
        say(f"left out {counted(items.left_out, 'row')} with missing or infinite values", err=True)
    if items.skipped:
        # a run has its own list from training, and a file of the user may have the name
        names = ("skipped.csv", f"{out.stem}-skipped.csv", *(f"{out.stem}-skipped-{i}.csv" for i in range(2, 1000)))
        places = [out.with_name(name) for name in names[is_run(out.parent) :]]
        path = next(place for place in places if place != out and (is_own(place) or not place.exists()))
        write_skipped(path, items.skipped)
        say(f"skipped {counted(len(items.skipped), 'file')}, listed with the reasons in {path}", err=True)
