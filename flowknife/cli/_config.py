"""`flowknife config`: settings files, and their schema for editors."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flowknife._files import is_run
from flowknife._settings import Settings
from flowknife.cli._app import Group, app, verb, with_examples
from flowknife.errors import InputError

Job = Literal["density", "images", "classify", "invert"]

config = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(
    config,
    name="config",
    help=with_examples(
        "Show settings as a file, or their JSON schema.",
        "flowknife config show cats-64 > cats.yaml",
        "flowknife config show runs/points",
        "flowknife config schema density > density.schema.json",
    ),
)


@verb(
    config,
    "show",
    "flowknife config show cats-64 > cats.yaml",
    "flowknife config show density",
    "flowknife config show runs/points --asked",
)
def _show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A recipe, a run directory, or a job (its defaults).")],
    asked: Annotated[bool, typer.Option("--asked", help="For a recipe or run, only the requested settings.")] = False,
) -> None:
    """Print settings in the form that `flowknife fit JOB --config FILE` reads.

    For a recipe or a job these are all settings, where `null` means open: the fit chooses the value from the data. For
    a run they are the settings that were used.
    """
    import yaml

    application, settings = _settings_of(name, asked)
    typer.echo(f"# flowknife fit {application} DATA --out RUN --config THIS_FILE")
    typer.echo(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), nl=False)


def _settings_of(name: str, asked: bool) -> tuple[str, dict[str, Any]]:
    from flowknife import recipes
    from flowknife.apps import APPLICATIONS
    from flowknife.storage import read_application, read_run

    if name in recipes.RECIPES:
        recipe = recipes.RECIPES[name]
        return recipe.application, _plain(recipe.settings if asked else recipe.config.model_dump(mode="json"))
    if name in APPLICATIONS:
        return name, {} if asked else APPLICATIONS[name].settings().model_dump(mode="json")
    if is_run(Path(name)):
        application = read_application(name)
        record = read_run(name, APPLICATIONS[application].settings)
        used = record.used.model_dump(mode="json")
        return application, _beyond(record.config.model_dump(mode="json"), type(record.config)()) if asked else used
    import difflib

    close = difflib.get_close_matches(name, [*recipes.RECIPES, *APPLICATIONS], n=2)
    advice = f"; try {' or '.join(close)}" if close else "; try flowknife recipes"
    raise InputError(f"got {name!r}; expected a recipe, a job ({', '.join(APPLICATIONS)}) or a run directory{advice}")


def _beyond(settings: Any, defaults: Any) -> dict[str, Any]:
    """The settings that differ from their defaults, nested."""
    found = {}
    for name, value in settings.items():
        default = getattr(defaults, name)
        own = _beyond(value, default) if isinstance(default, Settings) else value
        if own != default and own != {}:
            found[name] = own
    return found


def _plain(settings: Any) -> dict[str, Any]:
    return json.loads(json.dumps(settings, default=lambda value: value.model_dump(mode="json")))


@verb(
    config,
    "schema",
    "flowknife config schema density > density.schema.json",
    "flowknife config schema images --out images.schema.json",
)
def _schema(
    job: Annotated[Job, typer.Argument(metavar="JOB", help="density, images, classify or invert.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write to a file instead of standard output.")
    ] = None,
) -> None:
    """Print the JSON schema of the settings of a job.

    Editors use it to validate and complete a settings file with this first line: `# yaml-language-server:
    $schema=density.schema.json`.
    """
    from flowknife._files import replacing
    from flowknife.apps import APPLICATIONS
    from flowknife.cli._files import require_output

    schema = APPLICATIONS[job].settings.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    text = json.dumps(schema, indent=2)
    if out is None:
        typer.echo(text)
        return
    require_output(out)
    with replacing(out) as place:
        place.write_text(text + "\n", encoding="utf-8")
