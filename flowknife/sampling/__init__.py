"""Sampling from unnormalised densities: importance sampling and Markov chains.

`Weighted` holds proposals with their importance weights, smoothed by a generalised Pareto tail; `nuts_chains` is
Hamiltonian Monte Carlo and needs gradients; `metropolis` needs none, and `annealed` finds several modes.
"""

from flowknife.sampling._chains import (
    Target,
    annealed,
    metropolis,
    nuts_chains,
    posterior_chains,
    require_blackjax,
    whitening,
)
from flowknife.sampling._importance import Propose, Weighted, tempered, tempering
from flowknife.sampling._pareto import TRUSTED, pareto_smoothed

__all__ = [
    "TRUSTED",
    "Propose",
    "Target",
    "Weighted",
    "annealed",
    "metropolis",
    "nuts_chains",
    "pareto_smoothed",
    "posterior_chains",
    "require_blackjax",
    "tempered",
    "tempering",
    "whitening",
]
