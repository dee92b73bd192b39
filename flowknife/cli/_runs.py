"""The verbs that show a run: `report`, `info`, `check`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flowknife.cli._app import OfPartition, Run, app, end, say, show, verb, with_units
from flowknife.cli._kinds import Choice, kind_of, only_for
from flowknife.errors import InputError, printable


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
        typer.Option(metavar="DATA", help="Anomalous images or rows to compare with the held-out ones."),
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Write RUN/explore.html instead, with the model inside.")
    ] = False,
) -> None:
    """Draw the figures of a run and write its report.

    The report is RUN/report.html, a page that works offline; its figures are in RUN/figures. With --interactive,
    RUN/explore.html is written instead, where the browser evaluates the model, also offline. This works for models of
    rows and for inverse problems.
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
    for title, settings in {"requested settings": record.config, "settings used": record.used}.items():
        show(title, _flat(settings.model_dump(exclude_none=True)))
    show("versions", record.versions)


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Flatten nested mappings, with dotted names."""
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
        str | None, typer.Argument(metavar="DATA", help="New data of the kind of training; default: held-out data.")
    ] = None,
    partition: OfPartition = None,
) -> None:
    """Check whether a run can be trusted.

    The exit status is 1 if a check fails.
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
