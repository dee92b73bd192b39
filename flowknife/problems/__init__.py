"""Inverse problems with priors, forward models and reference posteriors, and a labelled toy for classification.

| problem | application | parameters | data | reference posterior |
|---|---|---|---|---|
| `ring` | 4, classification | | points of the plane, labels | (all densities are known) |
| `kinematics` | 5, ill-conditioned | 4 | 2 | exact |
| `ballistics` | 5, ill-conditioned | 4 | 1 | exact |
| `gravity` | 6 and 7, ill-posed | 32 depths | 16 anomalies | NUTS, needs blackjax |
| `dispersion` | 7, noise in the data | 10 velocities | 14 velocities | importance sampling and MCMC, needs disba |
| `two_moons` | benchmark | 2 | 2 | exact |
| `gaussian_linear` | benchmark | 10 | 10 | exact |

Examples:
    >>> import flowknife as fk
    >>> problem = fk.problems.kinematics()
    >>> theta = problem.reference_posterior([1.7, 0.1], 100, key=0)
    >>> problem.forward(theta)[:2].round(3)
    Array([[1.7, 0.1],
           [1.7, 0.1]], dtype=float32)
"""

from flowknife.problems._ballistics import ballistics
from flowknife.problems._benchmarks import gaussian_linear, two_moons
from flowknife.problems._dispersion import dispersion, pairs
from flowknife.problems._gravity import gravity
from flowknife.problems._kinematics import kinematics
from flowknife.problems._problem import Problem
from flowknife.problems._ring import Ring, ring

PROBLEMS = {make.__name__: make for make in (kinematics, ballistics, gravity, dispersion, two_moons, gaussian_linear)}
"""The constructor of each inverse problem, by name."""


def problem_of(name: str | None, parameters: int, data: int) -> Problem | None:
    """The problem of this name; None if there is none, or if it has other numbers of parameters or data.

    Examples:
        >>> problem_of("two_moons", 2, 2).name, problem_of("gaussian_linear", 3, 3)
        ('two_moons', None)
    """
    if name not in PROBLEMS:
        return None
    found = PROBLEMS[name]()
    return found if (found.prior.dim, len(found.y_names)) == (parameters, data) else None


__all__ = [
    "PROBLEMS",
    "Problem",
    "Ring",
    "ballistics",
    "dispersion",
    "gaussian_linear",
    "gravity",
    "kinematics",
    "pairs",
    "problem_of",
    "ring",
    "two_moons",
]
