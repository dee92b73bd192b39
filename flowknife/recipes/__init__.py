"""Recipes: named configurations with a known cost and an expected result.

Examples:
    >>> from flowknife.recipes import recipe
    >>> recipe("mnist-24").settings["image_size"], recipe("mnist-24").cost
    (24, '4 min')
"""

import difflib

from flowknife.errors import InputError
from flowknife.recipes._recipe import Expected, Recipe
from flowknife.recipes.classify import CLASSIFY
from flowknife.recipes.density import DENSITY
from flowknife.recipes.images import IMAGES
from flowknife.recipes.invert import INVERT

RECIPES: dict[str, Recipe] = {each.name: each for each in (*DENSITY, *IMAGES, *CLASSIFY, *INVERT)}
"""Every recipe by its name."""


def recipe(name: str, application: str | None = None) -> Recipe:
    """The recipe of this name.

    Args:
        name: as in `RECIPES`.
        application: density, images, classify or invert, if the recipe must be for this application.

    Raises:
        InputError: there is no such recipe.
    """
    known = {each.name: each for each in RECIPES.values() if application in (None, each.application)}
    if name in known:
        return known[name]
    of = f", which is for {RECIPES[name].application}" if name in RECIPES else ""
    close = difflib.get_close_matches(name, known, n=1)
    advice = f"; try {close[0]}" if close else ""
    raise InputError(f"got the recipe {name!r}{of}; expected one of {', '.join(known)}{advice}")


__all__ = ["RECIPES", "Expected", "Recipe", "recipe"]
