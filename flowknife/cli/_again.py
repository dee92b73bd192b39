"""A fit with the settings of an earlier run: `flowknife fit --from RUN`, and the option --from of each job."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flowknife._progress import note, silenced
from flowknife.errors import InputError

Source = Annotated[Path | None, typer.Option("--from", metavar="RUN", help="Use the settings of an earlier run.")]


def configuration_of(run: Path, application: str) -> dict[str, Any]:
    """The settings that a run used, nested as in a settings file; with the same data they give the same weights.

    Raises:
        InputError: it is a run of another application.
        StorageError: there is no run.
    """
    from flowknife.apps import APPLICATIONS
    from flowknife.storage import read_application, read_run

    found = read_application(run)
    if found != application:
        raise InputError(
            f"got --from {run}, a run of {found}; expected one of {application}; try flowknife fit {found}"
        )
    record = read_run(run, APPLICATIONS[application].settings)
    if record.used.train.minutes is not None:
        note("the run had a time budget: the number of steps, and so the weights, may differ")
    return record.used.model_dump(exclude_none=True, mode="json")


def again(
    ctx: Any,
    source: Annotated[Path | None, typer.Option("--from", metavar="RUN", help="Repeat the fit of a run.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="RUN", help="With --from, where to write.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="With --from, a setting to change.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="With --from, print only errors.")] = False,
) -> None:
    """`flowknife fit` without a job."""
    if ctx.invoked_subcommand is not None:
        if source or out or settings:
            raise InputError(f"got options before {ctx.invoked_subcommand}; expected them after it")
        return
    if source is None or out is None:
        raise typer.BadParameter("expected a job, such as density, or both --from RUN and --out RUN")
    from flowknife.storage import read_run

    record = read_run(source)
    words = [_data_of(source, record), "--out", str(out), "--from", str(source)]
    for name, value in _options_of(record).items():
        words += [name, value] if value else [name]
    for setting in settings or ():
        words += ["--set", setting]
    group: Any = ctx.command
    verb = group.get_command(ctx, record.application)
    with verb.make_context(record.application, words, parent=ctx) as inner, silenced(quiet):
        verb.invoke(inner)


# typer passes a context for this annotation, but of another class
again.__annotations__ = {**again.__annotations__, "ctx": typer.Context}


def _data_of(run, record) -> str:
    """The source of the data of a run.

    Raises:
        InputError: they were in memory, or do not exist any more.
    """
    if record.data.problem:
        return record.data.problem
    source = record.data.source
    if (
        "://" in source
        or Path(source.partition(".npz:")[0] + (".npz" if ".npz:" in source else "")).expanduser().exists()
    ):
        return source
    raise InputError(
        f"got --from {run}, whose data were {source or 'in memory'}, which does not exist here; expected the data; try "
        f"flowknife fit {record.application} DATA --from {run} --out ..."
    )


def _options_of(record) -> dict[str, str]:
    """The options of the run other than its settings."""
    data, options = record.data, {}
    if data.given_names:
        options["--given"] = ",".join(data.given_names)
    if record.application == "images" and data.classes:
        options["--given"] = "class"
    if record.application == "classify" and data.label_column:
        options["--label"] = data.label_column
    if record.application == "invert" and not data.problem and data.names and not data.source.endswith(".npz"):
        options["--parameters"] = ",".join(data.names)
    if data.left_out and data.kind == "rows":
        options["--drop-invalid"] = ""
    return options
