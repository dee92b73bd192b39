"""Reading the data of the verbs: rows, images and observations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowknife.apps import Posterior
    from flowknife.cli._shards import Shard
    from flowknife.data import ImageSet, Table, White
    from flowknife.data.images import Partition


def read_images(
    data: str,
    shape: Sequence[int],
    crop: float = 1.0,
    partition: "Partition | None" = None,
    white: "White | None" = None,
    shard: "Shard | None" = None,
) -> "tuple[ImageSet, int]":
    """Read images of a folder, an address (s3://...) or an array file, in the given shape (height, width, channels).

    With a shard, only its images are read. The number is that of all images, usable or not.
    """
    from flowknife.data.images import as_images, find_images

    height, width, channels = shape
    form: dict[str, Any] = {"channels": channels, "partition": partition, "crop": crop, "white": white}
    if shard is None:
        read = as_images(data, (height, width), show_progress=True, **form)
        return read, len(read) + len(read.skipped)
    found = find_images(data).choose(partition)
    total = len(found.candidates) + len(found.skipped)
    form["partition"] = None
    return as_images(found.part(shard.part - 1, shard.parts), (height, width), show_progress=True, **form), total


def read_rows(data: str, names: Sequence[str], keep: Sequence[str] = (), *, drop_invalid: bool = False) -> "Table":
    """Read the columns of training, and columns to keep as written; other columns may hold anything.

    Args:
        data: the path of the table.
        names: names of the numeric columns, in order.
        keep: names of columns to keep as written, if they exist.
        drop_invalid: leave out rows with missing or infinite numbers.
    """
    from flowknife.data import load_table

    return load_table(data, columns=names, keep=keep, drop_invalid=drop_invalid, min_rows=1)


def read_observations(
    posterior: "Posterior", data: str, keep: Sequence[str] = (), *, drop_invalid: bool = False
) -> "Table":
    """Read observations (k, m) from a table, one per row; a plain array of m numbers is one observation."""
    from dataclasses import replace

    from flowknife.data import load_table

    length = len(posterior.y_names)
    if data.lower().endswith((".npy", ".npz")):
        table = load_table(data, drop_invalid=drop_invalid, min_rows=1)
        if table.values.shape == (length, 1) != (1, 1):
            return replace(table, values=table.values.T, names=posterior.y_names)
    return read_rows(data, posterior.y_names, keep, drop_invalid=drop_invalid)
