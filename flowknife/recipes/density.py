"""Recipes for tables: densities of known entropy, which no model can beat on average."""

from flowknife.recipes._recipe import Expected, Recipe

_SPLINES = {"layers": 8, "width": 64, "depth": 2, "scalar": "spline", "mixing": "lu"}
_NEW = "50,000 new rows"

DENSITY = (
    Recipe(
        "density-ring",
        "density",
        "eight modes on a ring",
        '8,000 rows of flowknife.data.TOYS["ring"]',
        "ring.npy",
        _SPLINES,
        29 / 60,
        Expected(1.721, "nats/row", _NEW, 29 / 60, "the entropy: 1.698"),
    ),
    Recipe(
        "density-eight-gaussians",
        "density",
        "eight narrow modes",
        '8,000 rows of flowknife.data.TOYS["eight_gaussians"]',
        "eight.npy",
        _SPLINES,
        22 / 60,
        Expected(2.851, "nats/row", _NEW, 22 / 60, "the entropy: 2.832"),
    ),
    Recipe(
        "density-checkerboard",
        "density",
        "sharp edges",
        '50,000 rows of flowknife.data.TOYS["checkerboard"]',
        "board.npy",
        _SPLINES,
        43 / 60,
        Expected(3.522, "nats/row", _NEW, 43 / 60, "the entropy: 3.466"),
    ),
)
"""Recipes of `flowknife fit density`."""
