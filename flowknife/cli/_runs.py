"""The verbs that use a run: `sample`, `score`, `report`, `info`, `check`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flowknife.cli._app import DropInvalid, Run, app, end, show, verb, with_units
from flowknife.cli._files import picture_writer, read_pictures, read_rows, require_writable, row_writer, write_columns
from flowknife.errors import InputError


@verb(
    app,
    "sample",
    "flowknife sample runs/points -n 1000 --out new.csv",
    "flowknife sample runs/cats -n 64 --temperature 0.7 --out cats.png",
    "flowknife sample runs/cats -n 1000 --seed 0 --out cats",
)
def _sample(
    run: Run,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A table file; for pictures FILE.png, FILE.npy or a folder.")
    ],
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 16,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Scale of the latent: 1, for pictures 0.7, if left out.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed makes the same draws.")] = None,
) -> None:
    """Draw new rows or pictures from a fitted model.

    Pictures come on one contact sheet (FILE.png), as an array (FILE.npy), or as one file each in a new folder.
    """
    from flowknife.apps import Density, load

    require_writable(out.parent)
    fitted = load(run)
    rows = isinstance(fitted, Density)
    write = row_writer(out, fitted.names) if rows else picture_writer(out, n)
    chosen = {} if temperature is None else {"temperature": temperature}
    write(fitted.sample(n, key=seed, **chosen))
    typer.echo(f"wrote {n:,} {'rows' if rows else 'pictures'} to {out}")


@verb(
    app,
    "score",
    "flowknife score runs/points new.csv --out scores.csv",
    "flowknife score runs/cats data/val --out scores.csv",
)
def _score(
    run: Run,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A table with the columns of training, or a folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.csv", help="The table of scores to write.")],
    drop_invalid: DropInvalid = False,
) -> None:
    """Tell how usual each row or picture is.

    One line each, with a p-value and a flag. Of new data of the same kind as in training a share alpha is flagged
    (alpha is a setting, 0.05).

    Pictures that cannot be used are listed with the reasons in skipped.csv beside FILE.csv.
    """
    import numpy as np

    from flowknife.apps import Density, load
    from flowknife.data import write_skipped

    if not out.name.lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
        raise InputError(f"got --out {out} for scores; expected a file that ends in .csv")
    require_writable(out.parent)
    fitted = load(run)
    if isinstance(fitted, Density):
        rows, table = read_rows(fitted, data, drop_invalid)
        kept = np.delete(np.arange(len(rows) + table.dropped), table.dropped_rows)
        columns = {**fitted.score(rows), "row": kept}
        write_columns(out, columns)
        if table.dropped:
            typer.echo(f"left out {table.dropped} rows with missing or infinite values", err=True)
    elif drop_invalid:
        raise InputError("got --drop-invalid for pictures; files that cannot be used are always left out; try without")
    else:
        pictures = read_pictures(fitted, data)
        columns = fitted.score(pictures)
        write_columns(out, columns)
        if pictures.skipped:
            # a run has such a list of its own, of what training left out
            taken = (out.parent / "run.json").exists()
            path = out.with_name(f"{out.stem}-skipped.csv" if taken else "skipped.csv")
            write_skipped(path, pictures.skipped)
            typer.echo(f"skipped {len(pictures.skipped)} files, listed with the reasons in {path}", err=True)
    flags = columns["flag"]
    typer.echo(f"wrote {len(flags):,} scores to {out}; {int(flags.sum()):,} flagged (p < {fitted.config.alpha:g})")


@verb(app, "report", "flowknife report runs/points", "flowknife report runs/cats --others data/dogs")
def _report(
    run: Run,
    others: Annotated[
        str | None, typer.Option(metavar="DIR", help="Pictures of other things, to show beside the held-out ones.")
    ] = None,
) -> None:
    """Draw the figures of a run and write its report.

    The report is RUN/report.html, one page that opens offline; its figures are in RUN/figures.
    """
    from flowknife.apps import Density, load

    fitted = load(run)
    if not isinstance(fitted, Density):
        page = fitted.report(run, read_pictures(fitted, others) if others else None)
    elif others:
        raise InputError("got --others for a density; expected a run of images; try without --others")
    else:
        page = fitted.report(run)
    typer.echo(f"report: {page}")


@verb(app, "info", "flowknife info runs/points")
def _info(run: Run) -> None:
    """Show the two ends, the metrics and the settings of a run."""
    from flowknife.apps import load
    from flowknife.report import ends
    from flowknife.storage import read_run

    record, fitted = read_run(run), load(run)
    frame = ends(fitted.model)
    both = {"left end": "; ".join(frame.left), "right end": "; ".join(frame.right)}
    show(f"{record['application']}: {run}", both)
    show("metrics", with_units(fitted.metrics))
    for part in ("facts", "data", "config", "versions"):
        show(part, _flat(record.get(part, {})))


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, object] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = _some(value) if isinstance(value, list) else value
    return flat


def _some(items: list, most: int = 12) -> str:
    more = f", ... ({len(items)} in all)" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


@verb(app, "check", "flowknife check runs/points", "flowknife check runs/cats data/val")
def _check(
    run: Run,
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Data to check with; held-out if left out.")
    ] = None,
) -> None:
    """Measure whether a run can be trusted.

    The exit status is 1 if a number is beyond its limit.
    """
    from flowknife.apps import Density, load

    fitted = load(run)
    if data is None:
        checks = fitted.check()
    else:
        checks = fitted.check(
            read_rows(fitted, data)[0] if isinstance(fitted, Density) else read_pictures(fitted, data)
        )
    width = max(len(check.name) for check in checks)
    for check in checks:
        verdict = "passed" if check.passed else "FAILED"
        typer.echo(f"{verdict}  {check.name:<{width}}  {check.value:.3g}, at most {check.limit:.3g}")
    if failed := sum(not check.passed for check in checks):
        end(1, f"error: {failed} of {len(checks)} checks failed")
