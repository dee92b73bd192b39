"""Parts written by several processes, and `flowknife merge`, which joins them after checking that they are complete.

A part may come from an untrusted source: its description is read in typed fields, and its rows like any table.

Part 2 of 4 of scores.csv is scores.part-2-of-4.csv, with the description scores.part-2-of-4.json: run, data and
options, the total number of items, and the SHA-256 of the part. The description is written last.
"""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
import typer

from flowknife._files import read_file, read_json, replacing, sha256_of
from flowknife.cli._app import app, verb
from flowknife.cli._files import Replace, require_output, write_columns
from flowknife.cli._shards import Shard
from flowknife.errors import InputError, StorageError, counted, reason_of

if TYPE_CHECKING:
    import numpy as np

_MOST = 2**25  # bytes of the description of a part, which lists skipped files


class _About(pydantic.BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """The description of a part.

    Attributes:
        part: number of the part, and number of parts.
        of: the common description of all parts: run, data, options.
        total: number of items of all parts.
        rows: number of rows of this part.
        sha256: checksum of its file.
        skipped: unusable files, with the reasons.
        left_out: number of unusable rows.
        alpha: items with a smaller p-value are flagged; None if none can be flagged.
        ranked: whether items are sorted, the most anomalous first.
    """

    part: list[int] = pydantic.Field(min_length=2, max_length=2)
    of: dict[str, Any]
    total: int = pydantic.Field(ge=0, lt=2**50)
    rows: int = pydantic.Field(ge=0, lt=2**50)
    sha256: str
    skipped: list[Annotated[list[str], pydantic.Field(min_length=2, max_length=2)]] = []
    left_out: int = pydantic.Field(0, ge=0, lt=2**50)
    alpha: float | None = pydantic.Field(None, gt=0, lt=1)
    ranked: bool = False


def part_file(out: Path, shard: Shard) -> Path:
    """The path of a part of `out`."""
    stem, dot, ending = out.name.partition(".")
    return out.with_name(f"{stem}.part-{shard.part}-of-{shard.parts}{dot}{ending}")


def _about_file(part: Path) -> Path:
    return part.with_name(re.sub(r"(\.part-\d+-of-\d+).*", r"\1.json", part.name))


def run_digest(run: Path) -> str:
    """Identifies a run: the SHA-256 of its record, which contains the checksums of its files."""
    try:
        return hashlib.sha256(read_file(run / "run.json")).hexdigest()
    except OSError:
        raise InputError(
            f"got {run}, which is not a run; expected a run directory, as flowknife fit writes it"
        ) from None


def tell_part(
    out: Path, shard: Shard, source: Mapping[str, Any], total: int, rows: int, more: Mapping[str, Any]
) -> None:
    """Write the description of the finished part `out`.

    Args:
        out: the part.
        shard: number of the part.
        source: the common description of all parts: run, data, options.
        total: number of items of all parts.
        rows: number of rows of this part.
        more: further fields of this part.
    """
    found = {"part": [*shard], "of": dict(source), "total": total, "rows": rows, "sha256": sha256_of(out), **more}
    with replacing(_about_file(out)) as place:
        place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def is_done(out: Path, shard: Shard, source: Mapping[str, Any]) -> bool:
    """Whether this part exists and is complete.

    Raises:
        StorageError: the file exists, but is not this part.
    """
    if not _about_file(out).exists():
        out.unlink(missing_ok=True)  # from a process that was killed before it wrote the description
        return False
    found = _read_about(_about_file(out))
    if found.of != json.loads(json.dumps(dict(source))):
        raise StorageError(
            f"got {out}, a part of something else; expected a new file; try another --out or --overwrite"
        )
    if out.is_file() and found.part == [*shard] and found.sha256 == sha256_of(out):
        return True
    out.unlink(missing_ok=True)
    return False


def draws_in_shard(out: Path, shard: Shard, n: int, seed: int | None, given: Any) -> tuple[int, Any]:
    """The number of draws of a shard, out of `n`, and its key.

    Raises:
        InputError: without a seed, or for draws that are not written to a table or array.
    """
    import jax

    from flowknife._types import as_key

    if seed is None:
        raise InputError("got --shard without --seed; expected a seed, so that a part can be drawn again; try --seed 0")
    if given is not None:
        raise InputError("got --given with --shard; expected draws that are given nothing; try one part of the table")
    if not out.name.lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".npy")):
        raise InputError(f"got --out {out} with --shard; expected a file that ends in .csv, .tsv, .parquet or .npy")
    own = n // shard.parts + (shard.part <= n % shard.parts)
    if not own:
        raise InputError(f"got -n {n} for {shard.parts} shards; expected a draw for each of them at least")
    return own, jax.random.fold_in(as_key(seed), shard.part)


@verb(app, "merge", "flowknife merge scores.csv", "flowknife merge draws.parquet")
def _merge(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The --out of the shards.")],
    overwrite: Replace = False,
) -> None:
    """Join the parts of several shards into one file.

    All parts must exist, unchanged and from the same run, data and options, and contain every item once. Otherwise
    nothing is written, and the error names the missing or duplicate item. Scores are combined over all items: the most
    anomalous images come first, and q-values count all items.
    """
    parts = _parts(out)
    require_output(out, *(path for path, _ in parts), overwrite=overwrite)
    first = parts[0][1]
    rows, left_out = (sum(getattr(about, name) for _, about in parts) for name in ("rows", "left_out"))
    _require_all(out, rows + left_out + sum(len(about.skipped) for _, about in parts), first.total)
    if first.of.get("verb") == "sample":
        _write_draws(out, parts)
        typer.echo(f"wrote {counted(rows, 'draw')} of {counted(len(parts), 'part')} to {out}")
        return
    columns = _joined([_read(path, about) for path, about in parts])
    write_columns(out, _of_all(columns, parts))
    _tell(out, parts)
    flagged = sum(str(flag) == "True" for flag in columns.get("flag", ()))
    more = f"; {flagged:,} flagged (p < {first.alpha:g})" if "flag" in columns and first.alpha else ""
    typer.echo(
        f"wrote {counted(rows, 'score')} of {counted(len(parts), 'part')} to {out}{more}; none missing, none double"
    )


def _write_draws(out, parts):
    import numpy as np

    if out.suffix != ".npy":
        write_columns(out, _joined([_read(path, about) for path, about in parts]))
        return
    found = [_array(path, about) for path, about in parts]
    if len({(array.shape[1:], array.dtype) for array in found}) > 1:
        raise StorageError(f"got parts of {out} of other shapes; expected the same in all")
    with replacing(out) as place, place.open("wb") as stream:
        np.save(stream, np.concatenate(found), allow_pickle=False)


def _tell(out, parts):
    from flowknife.cli._kinds import Items, tell_left_out
    from flowknife.data import Skipped

    skipped = tuple(sorted(Skipped(*item) for _, about in parts for item in about.skipped))
    tell_left_out(Items(None, skipped=skipped, left_out=sum(about.left_out for _, about in parts)), out)


def _require_all(out, found, total):
    if found != total:
        raise StorageError(f"got {found:,} items in the parts of {out}; expected {total:,}, each once")


def _of_all(columns, parts) -> "dict[str, np.ndarray]":
    """The columns of all items in order, with q-values over all items."""
    import numpy as np

    from flowknife.diagnostics import ranked
    from flowknife.diagnostics._anomalies import adjusted_p_values

    which = "path" if "path" in columns else "row"
    if which not in columns:
        raise StorageError("got parts without a column path or row; expected scores, as flowknife score writes them")
    double = [name for name, times in Counter(map(str, columns[which])).items() if times > 1]
    if double:
        raise StorageError(f"got {which} {double[0]} in two parts; expected every item once")
    within = {"score": (-np.inf, np.inf), "p_value": (0, 1)}
    numbers = {name: _numbers(columns, name, *within[name]) for name in within if name in columns}
    alpha = parts[0][1].alpha
    if "q_value" in columns:
        if "p_value" not in columns or alpha is None:
            raise StorageError("got parts with a q_value and without p_value or alpha; expected scores with both")
        q = adjusted_p_values(numbers["p_value"])
        columns = {**columns, "q_value": q, "discovery": q <= alpha}
    # restores the order of the file, since shards took every N-th row
    order = np.argsort(_numbers(columns, "row", 0, 2**53) if which == "row" else columns[which].astype(str))
    columns = {name: column[order] for name, column in columns.items()}
    if which == "path" and numbers and parts[0][1].ranked:
        order = ranked({name: column[order] for name, column in numbers.items()})
        columns = {name: column[order] for name, column in columns.items()}
    return columns


def _numbers(columns, name, low, high) -> "np.ndarray":
    try:
        found = columns[name].astype(float)
        if ((found >= low) & (found <= high)).all():
            return found
    except (ValueError, TypeError, OverflowError):
        pass
    raise StorageError(
        f"got parts with a {name} that is not a number from {low} to {high}; expected scores of flowknife score"
    )


def _parts(out) -> list[tuple[Path, _About]]:
    """The parts of `out` in order, with their descriptions.

    Raises:
        StorageError: a part is missing, does not belong to the others, or was changed.
    """
    from flowknife._trees import require_room

    stem = out.name.partition(".")[0]
    pattern = re.compile(re.escape(stem) + r"\.part-([1-9]\d{0,8})-of-([1-9]\d{0,8})\.json", re.ASCII)
    found = {}
    for path in out.parent.iterdir() if out.parent.is_dir() else ():
        if match := pattern.fullmatch(path.name):
            found[int(match[1]), int(match[2])] = path
    if not found:
        raise StorageError(f"got no parts of {out}; expected {part_file(out, Shard(1, 4)).name} and others")
    counts = {parts for _, parts in found}
    if len(counts) > 1:
        raise StorageError(f"got parts of {' and of '.join(map(str, sorted(counts)))}; expected one number of parts")
    (count,) = counts
    if beyond := [number for number, _ in found if number > count]:
        raise StorageError(f"got {found[beyond[0], count]}; expected parts 1 to {count}; try to move it away")
    if len(found) < count:
        missing = (number for number in range(1, count + 1) if (number, count) not in found)
        words = ", ".join(str(number) for number in itertools.islice(missing, 10))
        more = ", ..." if count - len(found) > 10 else ""
        raise StorageError(f"got {len(found)} of {count} parts of {out}, without {words}{more}; expected all of them")
    parts = [
        (part_file(out, Shard(number, count)), _read_about(found[number, count])) for number in range(1, count + 1)
    ]
    first = parts[0][1]
    for number, (path, about) in enumerate(parts, start=1):
        changed = [name for name in {**first.of, **about.of} if first.of.get(name) != about.of.get(name)]
        if changed or (about.total, about.alpha, about.ranked) != (first.total, first.alpha, first.ranked):
            what = changed[0] if changed else "total"
            raise StorageError(f"got {path} with another {what} than {parts[0][0].name}; expected parts of one output")
        if about.part != [number, count]:
            own = " of ".join(map(str, about.part))
            raise StorageError(
                f"got {path}, which is part {own}; expected part {number} of {count}; try its shard again"
            )
        if path.is_file():
            require_room(path, path.stat().st_size, "parts")
        if not path.is_file() or sha256_of(path) != about.sha256:
            raise StorageError(
                f"got {path}, which is not as it was written; expected its checksum; try its shard again"
            )
    return parts


def _read_about(path) -> _About:
    try:
        return _About.model_validate(read_json(path, _MOST))
    except (OSError, ValueError) as error:
        raise StorageError(f"got {path}, which cannot be read ({reason_of(error)}); try its shard again") from None


def _read(path, about: _About) -> "dict[str, np.ndarray]":
    """The columns of a part, text as written."""
    from flowknife.data.tables import columns_as_written

    try:
        found = columns_as_written(path)
    except InputError as error:
        raise StorageError(f"got a part that cannot be read: {error}") from None
    if any(len(column) != about.rows for column in found.values()):
        raise StorageError(f"got {path} whose rows differ from its description; try its shard again")
    return found


def _array(path, about: _About) -> "np.ndarray":
    from flowknife.data._arrays import UnreadableError, arrays_in

    try:
        with arrays_in(path) as content:
            array = content[""]
    except (OSError, UnreadableError, KeyError) as error:
        raise StorageError(f"got {path}, which cannot be read ({reason_of(error)}); try its shard again") from None
    if not array.ndim or len(array) != about.rows:
        raise StorageError(f"got {path} whose rows differ from its description; try its shard again")
    return array


def _joined(parts) -> "dict[str, np.ndarray]":
    import numpy as np

    if any(list(part) != list(parts[0]) for part in parts):
        raise StorageError("got parts with other columns; expected the same in all")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
