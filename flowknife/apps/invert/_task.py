"""The task of `invert`: a simulator, a problem, or existing pairs in memory or on disk."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from flowknife import priors
from flowknife._trees import load_tree
from flowknife.apps.invert._config import InvertConfig
from flowknife.data import Simulations, given_pairs, predicted, takes_key
from flowknife.data._memory import memory_budget, room_in_memory
from flowknife.data._pairs import is_table, read_pairs
from flowknife.data.encoding import in_numbers, suggesting
from flowknife.data.sets import PRIOR, SimulationSet, is_set, read_set
from flowknife.data.tables import in_order
from flowknife.errors import InputError, StorageError
from flowknife.problems import PROBLEMS, Problem, problem_of

_SHARE = 0.1  # share of the memory for pairs read from disk; fits hold a few copies

_STAND_FOR = 200_000  # subset of the pairs for computations before training, such as units and closed-form layers


@dataclass(frozen=True)
class Task:
    """An inverse problem: pairs, or a simulator with a prior."""

    prior: priors.Prior
    estimated: bool = False  # whether the prior was estimated from the pairs
    pairs: Simulations | None = None
    stored: SimulationSet | None = None  # pairs on disk; `pairs` is a subset
    simulator: Callable[..., Any] | None = None
    noise: float | Sequence[float] = 0.0
    name: str = ""
    y_names: tuple[str, ...] = ()
    forward: Callable[..., Any] | None = None

    def forward_without_noise(self, made: Simulations) -> Callable[..., Any] | None:
        """The noise-free simulator; None for a function that drew its own random numbers for these simulations."""
        return self.forward if self.name or made.exact else None


def task_of(simulator: Any, prior: Any, pairs: Any, config: InvertConfig, names: Any, y_names: Any) -> Task:
    """The task for the arguments of `invert`.

    Raises:
        InputError: for a simulator, a prior or pairs that do not fit together.
    """
    noise = 0.0 if config.noise is None else config.noise
    names, y_names = ((each,) if isinstance(each, str) else each for each in (names, y_names))
    if (simulator is None) == (pairs is None) and not isinstance(simulator, Problem):
        got = "neither a simulator nor pairs" if pairs is None else "a simulator and pairs"
        raise InputError(f"got {got}; expected one of them; try invert(simulator, prior) or invert(pairs=(x, y))")
    if prior is not None and not isinstance(prior, priors.Prior):
        raise InputError(
            f"got {type(prior).__name__} as the prior; expected one of flowknife.priors; try fk.Uniform(low, high)"
        )
    problem = simulator if isinstance(simulator, Problem) else None
    if problem is not None:
        prior = prior or problem.prior
    if prior is not None and names is not None and tuple(names) != prior.names:
        raise InputError(
            f"got names={list(names)} and a prior of {', '.join(prior.names)}; expected the same names; try to name "
            f"the prior, as in fk.Uniform(low, high, names={list(names)})"
        )
    if is_set(pairs):
        return _of_set(read_set(pairs), problem, prior, config.noise, names, y_names)
    if pairs is not None:
        with suggesting(lambda: _as_numbers(pairs)):
            found = read_pairs(pairs, names or (prior and prior.names), y_names or (problem and problem.y_names))
            x = found.x if prior is None else in_order(found.x, prior.names)
            given = given_pairs(x, found.y, gaps=config.embedding is not None)
        if problem is not None:
            return replace(of_problem(problem, prior, config.noise, found.y_names), pairs=given)
        estimated = priors.likeliest(given.theta, names=found.names or None) if prior is None else None
        return Task(estimated or prior, estimated=bool(estimated), pairs=given, noise=noise, y_names=found.y_names)
    if any(simulator is make for make in PROBLEMS.values()):
        raise InputError(f"got the function {simulator.__name__}; expected a problem; try {simulator.__name__}()")
    if problem is not None:
        return of_problem(problem, prior, config.noise, y_names)
    if not callable(simulator):
        raise InputError(f"got {type(simulator).__name__} as the simulator; expected a function y = simulator(x)")
    if prior is None:
        raise InputError("got a simulator without a prior; expected both; try prior=fk.Uniform(low, high)")
    # if noise is added here, a simulator without a key is the noise-free forward model
    forward = partial(predicted, simulator) if np.any(noise) and not takes_key(simulator) else None
    return Task(prior, simulator=simulator, noise=noise, forward=forward, y_names=tuple(y_names or ()))


def _as_numbers(pairs):
    """Advice on encoding pairs with text or dates as numbers; or "".

    Observations are conditions and have no density, so one-hot columns are sufficient for categories.
    """
    ways = []
    for part in (pairs,) if is_table(pairs) else pairs if isinstance(pairs, (tuple, list)) else ():
        with suppress(InputError):
            ways.append(in_numbers(part, None))
    helps = "; ".join(filter(None, ways))
    return f"pairs are numbers: try {helps}" if helps else ""


def of_problem(problem: Problem, prior: Any, noise: Any, y_names: Any) -> Task:
    """The task of a problem, with its own prior and noise unless others are given."""
    noise = problem.noise if noise is None else noise
    task = Task(
        simulator=problem.forward,
        prior=prior,
        noise=noise or 0.0,
        name=problem.name,
        y_names=tuple(y_names or problem.y_names),
        forward=problem.forward,
    )
    if noise is None:  # non-Gaussian randomness, which only the simulator provides
        return replace(task, simulator=partial(_draw, problem), forward=None)
    return task


def _of_set(stored: SimulationSet, problem, prior, noise, names, y_names) -> Task:
    """Simulations on disk: all of them are read if they fit easily into memory, else a subset."""
    problem = problem or problem_of(stored.problem, stored.theta.shape[1], stored.y.shape[1])
    prior = prior or stored_prior(stored) or (None if problem is None else problem.prior)
    if prior is None:
        raise InputError(f"got {stored.folder}, which holds no prior; expected one; try prior=...")
    if names is not None and tuple(names) != prior.names:
        raise InputError(f"got names={list(names)} and a prior of {', '.join(prior.names)}; expected the same names")
    if prior.dim != stored.theta.shape[1]:
        raise InputError(
            f"got {stored.folder} of {stored.theta.shape[1]} parameters and a prior of {prior.dim}; expected one of as "
            "many; try the prior that was simulated from"
        )
    usable, size = stored.usable(), 8 * (stored.theta.shape[1] + stored.y.shape[1])
    room, some = room_in_memory(), min(len(usable), _STAND_FOR)
    if some * size > room:
        raise StorageError(
            f"got {stored.folder} with {size / 2**20:,.1f} MiB for each simulation; expected {some:,} of them to fit "
            f"in memory ({room / 2**20:,.0f} MiB)"
        )
    if len(stored.y_names) not in (0, stored.y.shape[1]):
        raise StorageError(
            f"got {stored.folder} with {len(stored.y_names)} names for {stored.y.shape[1]} data; expected one for each"
        )
    fits = len(usable) * size <= memory_budget() * _SHARE
    if fits:  # checksums are verified if everything is read; for larger sets that would take too long
        stored.verify()
    rows = usable if fits else np.sort(np.random.default_rng(0).choice(usable, some, replace=False))
    pairs = replace(given_pairs(stored.theta[rows], stored.y[rows]), exact=stored.exact)
    pairs = replace(pairs, failed=stored.failed, reason=stored.reason)
    y_names = tuple(y_names or stored.y_names)
    if problem is not None:
        task = replace(of_problem(problem, prior, noise, y_names), pairs=pairs)
    else:
        task = Task(prior, pairs=pairs, noise=noise or 0.0, y_names=y_names)
    return task if fits else replace(task, stored=stored)


def _draw(problem, theta, key):
    return problem.simulate(theta, key=key)


def stored_prior(found: SimulationSet) -> priors.Prior | None:
    """The prior of a set of simulations; None if it has none."""
    place = found.folder / PRIOR
    if not place.exists():
        return None
    prior = load_tree(place)
    if not isinstance(prior, priors.Prior):
        raise StorageError(f"got {place}, which holds a {type(prior).__name__}; expected a prior")
    return prior
