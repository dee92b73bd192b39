"""Recipes for inverse problems whose posterior is known: the protocol of Kruse et al. 2021 (arXiv 2101.10763).

Err_post is the unbiased MMD^2 between 1000 draws and 1000 exact ones of each observation, Err_resim is E|f(x) - y|^2 of
the draws, both averaged over observations.
"""

from flowknife.recipes._recipe import Expected, Recipe

_SIMULATIONS = {"num_simulations": 300_000, "train": {"minutes": 3}}
_DATA = "60 observations"

INVERT = (
    Recipe(
        "kinematics",
        "invert",
        "all poses of a robot arm",
        "the problem kinematics",
        "kinematics",
        {"form": "conditional", "noise": 0.01, **_SIMULATIONS},
        3,
        Expected(0.0015, "Err_post", _DATA, 3, "flow matching, slow sampling: 0.0016"),
    ),
    Recipe(
        "kinematics-partitioned",
        "invert",
        "the same, with the data on the right end",
        "the problem kinematics",
        "kinematics",
        {"form": "partitioned", **_SIMULATIONS},
        3,
        Expected(0.0023, "Err_post", _DATA, 3, "the published invertible network: 0.025"),
    ),
    Recipe(
        "ballistics",
        "invert",
        "all throws that land in one place",
        "the problem ballistics",
        "ballistics",
        {"form": "conditional", "noise": 0.01, **_SIMULATIONS},
        3,
        # Err_post is 0.0000, below the noise of the measure
        Expected(0.0002, "Err_resim", _DATA, 3, "flow matching, slow sampling: 0.000045"),
    ),
)
"""Recipes of `flowknife fit invert`."""
