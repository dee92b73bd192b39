"""The verbs that use a run: `sample`, `score`, `classify`, `invert`, `report`, `info`, `check`."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flowknife._files import is_own, is_run
from flowknife.cli._app import DropInvalid, Run, app, end, say, show, verb, with_units
from flowknife.cli._files import Replace, require_output, write_columns
from flowknife.cli._images import number_in
from flowknife.cli._kinds import ROWS, Choice, Items, given_in, kind_of, only_for
from flowknife.cli._merge import draws_in_shard, is_done, part_file, run_digest, tell_part
from flowknife.cli._shards import ShardText, shard_of
from flowknife.cli._simulate import simulator_in
from flowknife.errors import InputError, counted, printable

Seed = Annotated[int | None, typer.Option(min=0, help="The same seed makes the same draws.")]
OfPartition = Annotated[
    Literal["train", "validation", "test"] | None,
    typer.Option(help="Only the images of this partition, by list_eval_partition.txt in the folder or next to it."),
]
Id = Annotated[str | None, typer.Option("--id", metavar="COLUMN", help="A column of the table to copy to the output.")]
Refine = Annotated[
    bool,
    typer.Option("--refine", help="Draws of the exact posterior, where the likelihood is known; a posterior only."),
]
Forward = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:NAME", help="With --refine: the simulator without its noise, if the run is of your own one."
    ),
]
Scores = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE.csv", help="The table to write; .parquet too, with pandas.")
]


@verb(
    app,
    "sample",
    "flowknife sample runs/points -n 1000 --out new.csv",
    "flowknife sample runs/cats -n 64 --temperature 0.7 --out cats.png",
    "flowknife sample runs/cats -n 64 --temperature z_0=1,z_1=0.7 --prior empirical --out cats.png",
    "flowknife sample runs/digits -n 20 --label 7 --out sevens.png",
    "flowknife sample runs/cats -n 16 --given tabby --out tabbies.png",
    "flowknife sample runs/yield -n 100 --given rain=20,soil=3 --out yields.csv",
    "flowknife sample runs/arm -n 1000 --given observations.csv --out poses.csv",
    "flowknife sample runs/basin -n 1000 --given anomalies.csv --refine --out depths.csv",
)
def _sample(
    run: Run,
    out: Annotated[Path, typer.Option("--out", "-o", help="A table file; for images FILE.png, FILE.npy or a folder.")],
    n: Annotated[int, typer.Option("-n", min=1, help="Number of draws.")] = 16,
    temperature: Annotated[
        str | None,
        typer.Option(
            metavar="T", help="Scale of the latent: 1, for images 0.7, if left out; of blocks by name z_0=1,z_1=0.7."
        ),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(help="normal, or empirical: where the latents of the training images lie; images only."),
    ] = None,
    shrink: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of the empirical prior, from 0, as fitted, to 1, normal; images only."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="The class to draw from; a classifier only.")] = None,
    given: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|VALUES",
            help="What is given: a class of images; conditions of rows, a=1,b=2 or a table; observations to explain.",
        ),
    ] = None,
    refine: Refine = False,
    simulator: Forward = None,
    seed: Seed = None,
    shard: ShardText = None,
    overwrite: Replace = False,
) -> None:
    """Draw new rows or images from a fitted model.

    Images come on one contact sheet (FILE.png), as an array (FILE.npy), or as one file each in a new folder. Of
    conditions or observations in a table, each row is given to -n draws; conditions are written next to the draws.

    With --shard a part of the -n draws is made, into a file of its own next to FILE; `flowknife merge FILE` joins them.
    """
    import numpy as np

    from flowknife.apps import load

    own, total, key = shard_of(shard), n, seed
    said: dict[str, Any] = {
        "verb": "sample",
        "given": given,
        "temperature": temperature,
        "prior": prior,
        "label": label,
        "seed": seed,
    }
    if own is not None:
        whole, out = out, part_file(out, own)
        said |= {"run": run_digest(run), "shrink": shrink}
        n, key = draws_in_shard(whole, own, n, seed, given)
        if not overwrite and is_done(out, own, said | {"n": total}):
            typer.echo(f"{out} holds shard {own} already: there is nothing to draw")
            return
    require_output(out, given, run=run, overwrite=overwrite)
    if prior not in (None, "normal", "empirical"):
        raise InputError(f"got --prior {prior!r}; expected normal or empirical")
    fitted: Any = load(run)
    only_for(["classify"], fitted, label=label)
    only_for(["density", "images", "invert"], fitted, given=given)
    only_for(["images"], fitted, prior=prior, shrink=shrink)
    only_for(["invert"], fitted, refine=refine or None, simulator=simulator)
    options: dict[str, Any] = {"prior": prior, "shrink": shrink}
    options = {name: value for name, value in options.items() if value is not None}
    if temperature is not None:
        options["temperature"] = _temperature(temperature, fitted)
    if fitted.application == "invert":
        if given is None:
            raise InputError("got a posterior and no observation; expected what it should explain; try --given FILE")
        if refine and temperature is not None:
            raise InputError("got --temperature with --refine; expected one of them; try without --temperature")
        _explain(_refinable(fitted, refine, simulator), given, out, n, seed, refine=refine, **options)
        return
    if label is not None:
        options["label"] = _class_of(fitted, label)
    kind = kind_of(fitted)
    if given is not None:
        options["given"] = given_in(fitted, given)
    if given is not None and fitted.application == "density":
        options["given"], n = _each(fitted, options["given"], n)
    write = kind.writer(fitted, out, n)
    draw = fitted.sample if fitted.encoding is None else fitted.sample_numbers
    drawn = draw(n, key=key, **options)
    write(np.column_stack([drawn, options["given"]]) if kind is ROWS and given is not None else drawn)
    if own is not None:
        tell_part(out, own, said | {"n": total}, total, n, {})
    say(f"wrote {counted(n, kind.word.removesuffix('s'))} to {out}")


def _each(fitted, given, n):
    """Conditions for n draws given each row of them, and how many draws that are."""
    rows = fitted.conditions(given, 1 if isinstance(given, Mapping) else len(given)).repeat(n, axis=0)
    return rows, len(rows)


def _temperature(text, fitted):
    """One number, or numbers by the name of a block of the latent."""
    if "=" in text and fitted.application != "images":
        raise InputError(f"got --temperature {text} for a run of {fitted.application}; expected one number such as 0.7")
    pairs = [part.rpartition("=") for part in text.split(",")] if "=" in text else [("", "", text)]
    numbers = {name.strip(): number_in(number, "--temperature") for name, _, number in pairs}
    if min(numbers.values()) < 0:
        raise InputError(f"got --temperature {text}; expected 0 or more")
    return numbers if "=" in text else numbers[""]


def _class_of(classifier, label):
    """The class that is written like this."""
    (code,) = classifier.codes([label])
    if code < 0:
        names = ", ".join(map(str, classifier.classes[:12]))
        raise InputError(
            f"got --label {label}; expected one of {names}{', ...' if len(classifier.classes) > 12 else ''}"
        )
    return classifier.classes[code]


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
            metavar="FILE.html", help="A page with the 500 most anomalous images with their anomaly maps; images only."
        ),
    ] = None,
    given: Annotated[
        str | None,
        typer.Option(
            metavar="VALUES",
            help="The class of all images, or conditions of all rows as in a=1,b=2; if left out, those in DATA.",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Name the columns that make a row unusual; a density only.")
    ] = False,
    identity: Id = None,
    partition: OfPartition = None,
    drop_invalid: DropInvalid = False,
    shard: ShardText = None,
    overwrite: Replace = False,
) -> None:
    """Score each row, image or observation: how anomalous is it?

    One line each, with a p-value and a flag. Of new data of the same kind as in training a share alpha is flagged
    (alpha is a setting, 0.05). Observations are compared with what the simulator makes. A run that held nothing out
    (train.validation=0) gives scores without p-values.

    The most anomalous images come first. Those that cannot be used are listed with the reasons in skipped.csv next to
    FILE.csv.

    With --shard only a part is scored, into a file of its own next to FILE.csv; a part that is there is not scored
    again, and `flowknife merge FILE.csv` joins all of them.
    """
    from flowknife.apps import load
    from flowknife.diagnostics import ranked

    whole, own = out, shard_of(shard)
    said: dict[str, Any] = {
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
        said |= {"run": run_digest(run), "drop_invalid": drop_invalid, "partition": partition}
        if not overwrite and is_done(out, own, said):
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
    columns = _numbered(fitted.score(items.values, **options), items)
    order = ranked(columns) if fitted.application == "images" else slice(None)
    write_columns(out, {name: column[order] for name, column in columns.items()})
    if own is not None:
        alpha = fitted.config.alpha if "flag" in columns else None
        more = {"skipped": [list(item) for item in items.skipped], "left_out": items.left_out, "alpha": alpha}
        more["ranked"] = fitted.application == "images"
        tell_part(out, own, said, items.total or 0, len(next(iter(columns.values()))), more)
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


def _numbered(columns, items: Items):
    """Columns whose rows are called by their number in the file that they come from, and what is carried along.

    Raises:
        InputError: a column that is carried along has the name of another.
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
    """Say which rows were left out, and list unusable images next to `out`."""
    from flowknife.data import write_skipped

    if items.left_out:
        say(f"left out {counted(items.left_out, 'row')} with missing or infinite values", err=True)
    if items.skipped:
        # a run has such a list of its own, of what training left out; and a file of the user's may have the name
        names = ("skipped.csv", f"{out.stem}-skipped.csv", *(f"{out.stem}-skipped-{i}.csv" for i in range(2, 1000)))
        places = [out.with_name(name) for name in names[is_run(out.parent) :]]
        path = next(place for place in places if place != out and (is_own(place) or not place.exists()))
        write_skipped(path, items.skipped)
        say(f"skipped {counted(len(items.skipped), 'file')}, listed with the reasons in {path}", err=True)


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

    One line each: the most probable label, the probability of every class, the p-value of belonging to any of them, and
    a flag where that is small.
    """
    import numpy as np

    from flowknife.apps import load

    _require_table(out, data, run, overwrite)
    fitted: Any = load(run)
    if fitted.application != "classify":
        raise InputError(f"got a run of {fitted.application}; expected one of classify; try flowknife score")
    items = kind_of(fitted).read(fitted, data, Choice(drop_invalid, partition, identity))
    scores = _numbered(fitted.score(items.values), items)
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


@verb(
    app,
    "invert",
    "flowknife invert runs/arm observations.csv -n 1000 --out poses.csv",
    "flowknife invert runs/basin anomalies.npy -n 200 --seed 0 --out depths.npz",
    "flowknife invert runs/basin anomalies.npy -n 200 --refine --out depths.npz",
    "flowknife invert runs/mine observations.csv --refine --simulator mine.py:forward --out causes.csv",
)
def _invert(
    run: Run,
    observations: Annotated[
        str, typer.Argument(metavar="OBSERVATIONS", help="A table, one observation in each row: .csv, .npy, .npz, ...")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A table file: .csv, .npy, .npz, ...")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many for each observation.")] = 1000,
    refine: Refine = False,
    simulator: Forward = None,
    seed: Seed = None,
    drop_invalid: DropInvalid = False,
    overwrite: Replace = False,
) -> None:
    """Draw parameters that explain each observation.

    The first column of FILE is the number of the observation, from 0; the others are the parameters.

    With --refine the draws are weighted by the likelihood, or Markov chains go on from them, until they are exact. The
    likelihood is known for a problem by name, and for a simulator of your own with Gaussian noise (the setting noise),
    which --simulator names.
    """
    from flowknife.apps import load

    require_output(out, observations, run=run, overwrite=overwrite)
    fitted: Any = load(run)
    if fitted.application != "invert":
        raise InputError(f"got a run of {fitted.application}; expected one of invert; try flowknife sample")
    _explain(_refinable(fitted, refine, simulator), observations, out, n, seed, drop_invalid, refine=refine)


def _refinable(posterior, refine, simulator):
    """The posterior with the simulator that was named; refused, where its draws cannot be refined.

    Raises:
        InputError: the likelihood is not known, or there is a simulator for nothing.
    """
    from flowknife.data import predicted

    if simulator is not None:
        if not refine:
            raise InputError("got --simulator without --refine, which alone needs it; try --refine")
        posterior = replace(posterior, forward=partial(predicted, simulator_in(simulator)))
    if not refine:
        return posterior
    try:
        posterior.likelihood  # noqa: B018, it is computed once, before anything is drawn
    except InputError as error:
        if posterior.forward is not None:
            raise
        raise InputError(f"{error}, or --simulator FILE.py:NAME") from None
    return posterior


def _explain(posterior, observations, out, n, seed, drop_invalid=False, **options):
    """Write `n` draws of the posterior of each observation, and report which are unlike the simulations."""
    import numpy as np

    kind = kind_of(posterior)
    write = kind.writer(posterior, out, n)
    items = kind.read(posterior, observations, Choice(drop_invalid))
    drawn = posterior.sample(n, y=items.values, key=seed, **options)
    scores = _numbered(posterior.score(items.values), items)
    rows = [np.repeat(scores["row"], n), drawn.reshape(-1, drawn.shape[-1])]
    as_text = "sv" in "".join(out.suffixes)  # where whole numbers stay whole, and single precision has few digits
    write(np.column_stack([part.astype(str) for part in rows] if as_text else rows))
    tell_left_out(items, out)
    if posterior.flagging.note:
        say(printable(f"note: {posterior.flagging.note}"), err=True)
    if flagged := int(np.sum(scores.get("flag", 0))):
        alpha = posterior.config.alpha
        are = "is" if flagged == 1 else "are"
        say(f"{flagged} of {counted(len(drawn), 'observation')} {are} unlike the simulations (p < {alpha:g})", err=True)
    each = f"each of {len(drawn):,} observations" if len(drawn) > 1 else "the observation"
    say(f"wrote {counted(n, 'draw')} for {each} to {out}")


@verb(
    app,
    "report",
    "flowknife report runs/points",
    "flowknife report runs/cats --others data/dogs",
    "flowknife report runs/arm --interactive",
)
def _report(
    run: Run,
    others: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images or rows of other things, to compare with the held-out ones."),
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Write RUN/explore.html instead, a page with the model in it.")
    ] = False,
) -> None:
    """Draw the figures of a run and write its report.

    The report is RUN/report.html, one page that opens offline; its figures are in RUN/figures. With --interactive it is
    RUN/explore.html, in which the model itself answers, in the browser and offline: of rows and of inverse problems.
    """
    from flowknife.apps import load

    fitted: Any = load(run)
    only_for(["images", "classify"], fitted, others=others)
    if interactive and others is not None:
        raise InputError("got --others with --interactive; expected one of them; try without --others")
    if others is not None and Path(others).expanduser().resolve().is_relative_to((run / "figures").resolve()):
        raise InputError(f"got --others {others}, among the figures that the report overwrites; expected another place")
    shown = None if others is None else kind_of(fitted).read(fitted, others, Choice()).values
    say(f"report: {fitted.report(run, others=shown, interactive=interactive)}")


@verb(app, "info", "flowknife info runs/points")
def _info(run: Run) -> None:
    """Show the two ends, the metrics and the settings of a run."""
    from flowknife.apps import load
    from flowknife.report import about, ends

    fitted: Any = load(run)
    record, frame = fitted.record, ends(fitted.model)
    both = {"left end": "; ".join(frame.left), "right end": "; ".join(frame.right)}
    show(f"{record.application}: {run}", both)
    show("metrics", with_units(fitted))
    names = {name: list(getattr(record.data, name)) for name in ("names", "given_names", "y_names", "classes")}
    show("record", about(fitted) | _flat({name: value for name, value in names.items() if value}))
    for title, settings in {"settings asked for": record.config, "settings used": record.used}.items():
        show(title, _flat(settings.model_dump(exclude_none=True)))
    show("versions", record.versions)


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


@verb(
    app,
    "check",
    "flowknife check runs/points",
    "flowknife check runs/cats data/val",
    "flowknife check runs/arm pairs.npz",
)
def _check(
    run: Run,
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Data as in training to check with; held-out if left out.")
    ] = None,
    partition: OfPartition = None,
) -> None:
    """Measure whether a run can be trusted.

    The exit status is 1 if a number is beyond its limit.
    """
    from flowknife.apps import load

    if data is None and partition is not None:
        raise InputError("got --partition without DATA; expected the folder that has it; try the one of training")
    fitted: Any = load(run)
    judged = (None, None) if data is None else kind_of(fitted).judged(fitted, data, Choice(partition=partition))
    checks = fitted.check(judged[0], given=judged[1])
    if fitted.record.training.partial:
        typer.echo(f"partial: {fitted.record.training.sentence}")
    width = max(len(check.name) for check in checks)
    for check in checks:
        verdict = "passed" if check.passed else "FAILED"
        typer.echo(f"{verdict}  {check.name:<{width}}  {check.value:.3g}, at most {check.limit:.3g}")
        if check.note:
            typer.echo(printable(f"        {check.note}"))
    if failed := sum(not check.passed for check in checks):
        end(1, f"error: {failed} of {len(checks)} checks failed")
