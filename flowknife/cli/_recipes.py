"""`flowknife recipes`: the named configurations for `fit --recipe`."""

from typing import Annotated

import typer

from flowknife.cli._app import app, show, verb


@verb(
    app,
    "recipes",
    "flowknife recipes",
    "flowknife recipes cats-64",
    "flowknife fit images data/cats --recipe cats-64 --out runs/cats",
)
def _recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A recipe to show in full.")] = None,
) -> None:
    """List the recipes, with their cost and expected result.

    Training times are for 2 CPU cores.

    With a NAME, show the recipe in full: data, command and settings, in the form of a settings file.
    """
    from flowknife.recipes import RECIPES, recipe

    if name is not None:
        _show(recipe(name))
        return
    rows = [(each.name, each.about, each.cost, each.reaches) for each in RECIPES.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    heading = ""
    for row, each in zip(rows, RECIPES.values(), strict=True):
        if each.application != heading:
            heading = each.application
            typer.secho(heading, bold=True)
        typer.echo("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _show(recipe):
    import yaml

    show(
        f"{recipe.name}: {recipe.about}",
        {
            "data": recipe.data,
            "cost": f"{recipe.cost} of training on 2 CPU cores",
            "expected": recipe.expected or recipe.reaches,
            "run it": recipe.command,
            "try it out": recipe.smoke,
        },
    )
    typer.secho("settings", bold=True)
    for line in yaml.safe_dump(dict(recipe.settings), sort_keys=False).splitlines():
        typer.echo(f"  {line}")
