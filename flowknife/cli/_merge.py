"""Parts that several processes wrote, and `flowknife merge`, which joins them where none is missing or double.

Part 2 of 4 of scores.csv is scores.part-2-of-4.csv, and scores.part-2-of-4.json says of what it is a part: of which
run, data and options, how many items there are in all, and the SHA-256 of the part. The second file is written last.
"""

import csv
import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowknife._files import open_file, read_file, replacing
from flowknife.cli._app import app, verb
from flowknife.cli._files import Replace, require_output, write_columns
from flowknife.cli._shards import Shard
from flowknife.errors import InputError, StorageError

if TYPE_CHECKING:
    import numpy as np

_MOST = 2**28  # bytes of what is said of a part, which lists what was skipped


def part_file(out: Path, shard: Shard) -> Path:
    """Where a part of `out` is."""
    stem, dot, ending = out.name.partition(".")
    return out.with_name(f"{stem}.part-{shard.part}-of-{shard.parts}{dot}{ending}")


def _said_file(part: Path) -> Path:
    return part.with_name(re.sub(r"(\.part-\d+-of-\d+).*", r"\1.json", part.name))


def run_digest(run: Path) -> str:
    """What tells a run from others: the SHA-256 of its record, which has those of its files."""
    try:
        return hashlib.sha256(read_file(run / "run.json")).hexdigest()
    except OSError:
        raise InputError(f"got {run}, which is no run; expected a run directory, as flowknife fit writes it") from None


def tell_part(out: Path, shard: Shard, said: Mapping[str, Any], total: int, rows: int, more: Mapping[str, Any]) -> None:
    """Say of what `out` is a part, now that it is written.

    Args:
        out: the part.
        shard: which one.
        said: what all parts have in common: run, data, options.
        total: items of all parts.
        rows: of this part.
        more: what only this part has.
    """
    found = {"part": [*shard], "of": dict(said), "total": total, "rows": rows, "sha256": _sha256(out), **more}
    with replacing(_said_file(out)) as place:
        place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def is_done(out: Path, shard: Shard, said: Mapping[str, Any]) -> bool:
    """Whether this part is there, whole.

    Raises:
        StorageError: it is there, of something else.
    """
    if not _said_file(out).exists():
        out.unlink(missing_ok=True)  # of a process that was killed before it said what it is
        return False
    found = _read_said(_said_file(out))
    if found["of"] != json.loads(json.dumps(dict(said))):
        raise StorageError(
            f"got {out}, a part of something else; expected a new file; try another --out or --overwrite"
        )
    if out.exists() and found["sha256"] == _sha256(out):
        return True
    out.unlink(missing_ok=True)
    return False


def draws_in_shard(out: Path, shard: Shard, n: int, seed: int | None, given: Any) -> tuple[int, Any]:
    """How many of `n` draws a shard makes, and its key.

    Raises:
        InputError: without a seed, or for draws that are not one table or array.
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

    All parts have to be there, of the same run, data and options, as they were written, and every item once; else
    nothing is written, and one line says what is missing or double. Scores are those of all items together: the most
    anomalous images come first, and q-values count all of them.
    """
    import numpy as np

    parts = _parts(out)
    require_output(out, *(path for path, _ in parts), overwrite=overwrite)
    first = parts[0][1]
    rows = sum(said["rows"] for _, said in parts)
    if first["of"]["verb"] == "sample":
        _require_all(out, rows, first["total"])
        if out.suffix == ".npy":
            with replacing(out) as place, place.open("wb") as stream:
                np.save(stream, np.concatenate([np.load(path) for path, _ in parts]), allow_pickle=False)
        else:
            write_columns(out, _joined([_read(path) for path, _ in parts]))
        typer.echo(f"wrote {rows:,} draws of {len(parts)} parts to {out}")
        return
    left_out = sum(said["left_out"] + len(said["skipped"]) for _, said in parts)
    _require_all(out, rows + left_out, first["total"])
    columns = _joined([_read(path) for path, _ in parts])
    if len(columns["path" if "path" in columns else "row"]) != rows:
        raise StorageError(f"got parts of {out} with other rows than they say; try to score again")
    write_columns(out, _of_all(columns, parts))
    _tell(out, parts)
    flagged = sum(str(flag) == "True" for flag in columns.get("flag", ()))
    more = f"; {flagged:,} flagged (p < {first['alpha']:g})" if "flag" in columns else ""
    typer.echo(f"wrote {rows:,} scores of {len(parts)} parts to {out}{more}; none missing, none double")


def _tell(out, parts):
    from flowknife.cli._kinds import Items
    from flowknife.cli._runs import tell_left_out
    from flowknife.data import Skipped

    skipped = tuple(sorted(Skipped(*item) for _, said in parts for item in said["skipped"]))
    tell_left_out(Items(None, skipped=skipped, left_out=sum(said["left_out"] for _, said in parts)), out)


def _require_all(out, found, total):
    if found != total:
        raise StorageError(f"got {found:,} items in the parts of {out}; expected {total:,}, each once")


def _of_all(columns, parts) -> "dict[str, np.ndarray]":
    """The columns in the order of all items, with the q-values of all."""
    import numpy as np

    from flowknife.diagnostics import ranked
    from flowknife.diagnostics._anomalies import adjusted_p_values

    which = "path" if "path" in columns else "row"
    double = [name for name, times in Counter(map(str, columns[which])).items() if times > 1]
    if double:
        raise StorageError(f"got {which} {double[0]} in two parts; expected every item once")
    numbers = {name: columns[name].astype(float) for name in ("score", "p_value") if name in columns}
    if "q_value" in columns:
        q, alpha = adjusted_p_values(numbers["p_value"]), parts[0][1]["alpha"]
        columns = {**columns, "q_value": q, "discovery": q <= alpha}
    # as they were read: the shards took every N-th
    order = np.argsort(columns["row"].astype(int)) if which == "row" else np.argsort(columns[which].astype(str))
    columns = {name: column[order] for name, column in columns.items()}
    if which == "path" and _is_of_images(parts):
        order = ranked({name: column[order] for name, column in numbers.items()})
        columns = {name: column[order] for name, column in columns.items()}
    return columns


def _is_of_images(parts):
    return parts[0][1].get("ranked", False)


def _parts(out) -> list[tuple[Path, dict[str, Any]]]:
    """The parts of `out` in their order, with what is said of them.

    Raises:
        StorageError: one is missing, of something else, or not as it was written.
    """
    stem = out.name.partition(".")[0]
    pattern = re.compile(re.escape(stem) + r"\.part-(\d+)-of-(\d+)\.json")
    found = {}
    for path in out.parent.iterdir() if out.parent.is_dir() else ():
        if match := pattern.fullmatch(path.name):
            found[int(match[1]), int(match[2])] = _read_said(path)
    if not found:
        raise StorageError(f"got no parts of {out}; expected {part_file(out, Shard(1, 4)).name} and others")
    counts = {parts for _, parts in found}
    if len(counts) > 1:
        raise StorageError(f"got parts of {' and of '.join(map(str, sorted(counts)))}; expected one number of parts")
    (count,) = counts
    missing = [number for number in range(1, count + 1) if (number, count) not in found]
    if missing:
        words = ", ".join(map(str, missing[:10]))
        raise StorageError(f"got {len(found)} of {count} parts of {out}, without {words}; expected all of them")
    parts = [(part_file(out, Shard(number, count)), found[number, count]) for number in range(1, count + 1)]
    for path, said in parts:
        changed = [name for name, value in said["of"].items() if parts[0][1]["of"].get(name) != value]
        if changed or said["total"] != parts[0][1]["total"]:
            what = changed[0] if changed else "total"
            raise StorageError(f"got {path} with another {what} than {parts[0][0].name}; expected parts of one whole")
        if not path.exists() or _sha256(path) != said["sha256"]:
            raise StorageError(
                f"got {path}, which is not as it was written; expected its checksum; try its shard again"
            )
    return parts


def _read_said(path) -> dict[str, Any]:
    try:
        found = json.loads(read_file(path, _MOST))
        found["part"], found["of"], found["total"], found["rows"], found["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"got {path}, which cannot be read ({error}); try its shard again") from None
    return found


def _read(path) -> "dict[str, np.ndarray]":
    """The columns of a part: of text as written."""
    import numpy as np

    if path.suffix == ".parquet":
        from flowknife.data.tables import pandas

        frame = pandas().read_parquet(path)
        return {str(name): frame[name].to_numpy() for name in frame.columns}
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        names, *rows = csv.reader(stream, delimiter="\t" if ".tsv" in path.suffixes else ",")
    cells = np.array(rows, object).reshape(len(rows), len(names))
    return {name: cells[:, i] for i, name in enumerate(names)}


def _joined(parts) -> "dict[str, np.ndarray]":
    import numpy as np

    if any(list(part) != list(parts[0]) for part in parts):
        raise StorageError("got parts with other columns; expected the same in all")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _sha256(path) -> str:
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
