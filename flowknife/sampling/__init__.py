"""Sampling from unnormalised densities: importance sampling and Markov chains.

`Weighted` holds proposals with their importance weights, smoothed by a generalised Pareto tail; `nuts_chains` is
Hamiltonian Monte Carlo and needs gradients; `metropolis` needs none.
"""

from flowknife.sampling._chains import (
    Target,
    metropolis,
    nuts_chains,
    posterior_chains,
    require_blackjax,
    whitening,
)
from flowknife.sampling._importance import Propose, Weighted, tempered
from flowknife.sampling._pareto import TRUSTED, pareto_smoothed

__all__ = [
    "TRUSTED",
    "Propose",
    "Target",
    "Weighted",
    "metropolis",
    "nuts_chains",
    "pareto_smoothed",
    "posterior_chains",
    "require_blackjax",
    "tempered",
    "whitening",
]
