"""The verbs that evaluate data with a run: `score`, `classify`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flowknife.cli._app import DropInvalid, OfPartition, Run, app, say, verb
from flowknife.cli._files import Replace, require_output, write_columns
from flowknife.cli._kinds import Choice, kind_of, numbered, only_for, tell_left_out
from flowknife.cli._merge import is_done, part_file, run_digest, tell_part
from flowknife.cli._shards import ShardText, shard_of
from flowknife.errors import InputError, counted, printable

Id = Annotated[str | None, typer.Option("--id", metavar="COLUMN", help="A column of the table to copy to the output.")]
Scores = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE.csv", help="The table to write; also .parquet, with pandas.")
]


@verb(
    app,
    "score",
    "flowknife score runs/points new.csv --out scores.csv",
    "flowknife score runs/points new.csv --explain --out scores.csv",
    "flowknife score runs/cats data/val --out scores.csv --gallery anomalies.html",
    "flowknife score runs/arm observations.csv --out scores.csv",
)
def _score(
    run: Run,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A table with the columns of training, or a folder.")],
    out: Scores,
    gallery: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="A page of the 500 most anomalous images with their anomaly maps; images only."
        ),
    ] = None,
    given: Annotated[
        str | None,
        typer.Option(
            metavar="VALUES",
            help="The class of all images, or conditions of all rows as in a=1,b=2; default: those in DATA.",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Name the columns that make a row unusual; densities only.")
    ] = False,
    identity: Id = None,
    partition: OfPartition = None,
    drop_invalid: DropInvalid = False,
    shard: ShardText = None,
    overwrite: Replace = False,
) -> None:
    """Compute the anomaly score of each row, image or observation.

    The table has one line per item, with a p-value and a flag. At most a share alpha of new normal items is flagged
    (the setting alpha is 0.05 by default). Observations are compared with simulations. A run without held-out data
    (train.validation=0) gives scores without p-values.

    The most anomalous images come first. Unusable images are listed with the reasons in skipped.csv next to FILE.csv.

    With --shard, only a part is scored, into a separate file next to FILE.csv. An existing part is not scored again,
    and `flowknife merge FILE.csv` joins the parts.
    """
    from flowknife.apps import load
    from flowknife.diagnostics import ranked

    whole, own = out, shard_of(shard)
    source: dict[str, Any] = {
        "verb": "score",
        "data": data,
        "given": given,
        "explain": explain,
        "id": identity,
        "partition": partition,
    }
    if own is not None:
        if gallery is not None:
            raise InputError("got --gallery with --shard; expected one of them; try a gallery of the images themselves")
        out = part_file(whole, own)
        source |= {"run": run_digest(run), "drop_invalid": drop_invalid, "partition": partition}
        if not overwrite and is_done(out, own, source):
            typer.echo(f"{out} holds shard {own} already: there is nothing to score")
            return
    _require_table(out, data, run, overwrite)
    if gallery is not None:
        require_output(gallery, data, run=run, overwrite=overwrite)
    if gallery is not None and gallery.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"got --gallery {gallery}; expected a file that ends in .html")
    fitted: Any = load(run)
    only_for(["images"], fitted, gallery=gallery)
    only_for(["density", "images"], fitted, given=given)
    only_for(["density"], fitted, explain=explain or None)
    choice = Choice(drop_invalid, partition, identity, given, own)
    items = kind_of(fitted).read(fitted, data, choice).part(own)
    options = {"show_progress": True} if fitted.application in ("images", "classify") else {}
    options |= {} if items.given is None else {"given": items.given}
    options |= {"explain": True} if explain else {}
    columns = numbered(fitted.score(items.values, **options), items)
    order = ranked(columns) if fitted.application == "images" else slice(None)
    write_columns(out, {name: column[order] for name, column in columns.items()})
    if own is not None:
        alpha = fitted.config.alpha if "flag" in columns else None
        more = {"skipped": [list(item) for item in items.skipped], "left_out": items.left_out, "alpha": alpha}
        more["ranked"] = fitted.application == "images"
        tell_part(out, own, source, items.total or 0, len(next(iter(columns.values()))), more)
    if gallery is not None:
        _write_gallery(gallery, fitted, items, columns)
    tell_left_out(items, out)
    count = len(next(iter(columns.values())))
    say(f"wrote {counted(count, 'score')} to {out}{_flagged(fitted, columns)}")


def _flagged(fitted, scores):
    """The number of flagged scores; if none can be flagged, a line with the reason."""
    if fitted.flagging.note:
        say(printable(f"note: {fitted.flagging.note}"), err=True)
    return f"; {int(scores['flag'].sum()):,} flagged (p < {fitted.config.alpha:g})" if "flag" in scores else ""


def _write_gallery(path, model, items, scores):
    from flowknife.diagnostics import ranked
    from flowknife.report import MOST_SHOWN, write_gallery

    first = ranked(scores)[:MOST_SHOWN]
    shown, given = items.values.pixels[first], items.given
    if model.classes and given is None:
        given = [items.values.folders[i] for i in first]
    write_gallery(path, shown, model.anomaly_map(shown, given), scores, model.config.alpha)
    say(f"gallery: {path}")


def _require_table(out, data, run, overwrite):
    if not out.name.lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")):
        raise InputError(f"got --out {out} for a table of words and numbers; expected a file that ends in .csv")
    require_output(out, data, run=run, overwrite=overwrite)


@verb(
    app,
    "classify",
    "flowknife classify runs/flowers new.csv --out classes.csv",
    "flowknife classify runs/digits data/val --out classes.csv",
)
def _classify(
    run: Run,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A table with the columns of training, or a folder.")],
    out: Scores,
    identity: Id = None,
    partition: OfPartition = None,
    drop_invalid: DropInvalid = False,
    overwrite: Replace = False,
) -> None:
    """Classify each row or image.

    The table has one line per item: the most probable label, the probability of every class, the p-value of belonging
    to any class, and a flag if that is small.
    """
    import numpy as np

    from flowknife.apps import load

    _require_table(out, data, run, overwrite)
    fitted: Any = load(run)
    if fitted.application != "classify":
        raise InputError(f"got a run of {fitted.application}; expected one of classify; try flowknife score")
    items = kind_of(fitted).read(fitted, data, Choice(drop_invalid, partition, identity))
    scores = numbered(fitted.score(items.values), items)
    probabilities = fitted.predict_proba(items.values)
    labels, places = scores["label"], probabilities.argmax(axis=1)
    which = "path" if "path" in scores else "row"
    columns = {which: scores[which], **items.carried, "label": labels}
    columns |= {f"p({name})": p for name, p in zip(fitted.classes, probabilities.T, strict=True)}
    write_columns(out, columns | {name: scores[name] for name in ("p_value", "flag") if name in scores})
    tell_left_out(items, out)
    codes = np.full(len(labels), -1) if items.labels is None else fitted.codes(items.labels)
    known = codes != -1
    agreed = f"; {np.mean(codes[known] == places[known]):.1%} as labelled" if known.any() else ""
    say(f"wrote {counted(len(labels), 'class', 'classes')} to {out}{_flagged(fitted, scores)}{agreed}")
