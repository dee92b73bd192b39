"""Applications 5, 6 and 7, inverse problems: parameters on the left, data and a latent on the right.

All parameters that explain an observation are `sample(n, y=observation)`. Two forms of one model give the same density
p(x | y): *conditional*, x <-> z with y fed to every coupling, and *partitioned*, x <-> [y, z], or (x, noise) <-> [y, z]
for data with noise, where the same draw of the noise is added to y.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np

from flowknife import nets, priors
from flowknife._progress import progress
from flowknife._settings import validated
from flowknife._types import Key, as_key
from flowknife.apps._posterior import InvertConfig, Posterior
from flowknife.architectures import coupling_flow
from flowknife.bijections import (
    Affine,
    Bijection,
    Chain,
    Channels,
    Conditioned,
    Coupling,
    PrincipalRotation,
    Regression,
    Shift,
    Split,
)
from flowknife.data import Simulations, given_pairs, predicted, simulate
from flowknife.data.tables import in_order, names_in
from flowknife.errors import InputError
from flowknife.inn import INN, Block
from flowknife.laws import Given, Noise
from flowknife.objectives import Objective, independence, matching_data, matching_latent, nll
from flowknife.problems import Problem
from flowknife.train import Training, fit

_KEPT = 1000  # held-out pairs kept with the run
_START_ROWS = 20_000  # what has a closed form is fitted to at most so many pairs
_SHARP = 0.01  # noise added to data without any, in standard deviations
_FEW = 50_000  # pairs; with more, nothing is gained by weight decay
_LONG = 32  # longer observations are summarised
_NOISE_SHARE = 0.1  # width of the law of noisy data, in units of the noise


def invert(
    simulator: Any = None,
    prior: priors.Prior | None = None,
    config: InvertConfig | None = None,
    *,
    pairs: Any = None,
    executor: Any = None,
    key: Key = None,
    show_progress: bool = True,
    **settings: Any,
) -> Posterior:
    """Learn the posterior p(x | y) of an inverse problem, for every observation y at once.

    Args:
        simulator: a Python function y = simulator(x) or simulator(x, key=...), of one row or of a batch, NumPy or JAX;
            or a problem of `flowknife.problems`, which brings its prior and its noise along.
        prior: the distribution of the parameters; its support is that of every posterior sample. With pairs alone it
            is estimated from them, component by component (uniform, normal or log-normal, whichever is likeliest).
        config: settings; default `InvertConfig()`.
        pairs: (x, y) that exist already, arrays of equal length, instead of a simulator.
        executor: something with `map`, as in `concurrent.futures`, for a slow simulator.
        key: int, JAX key or None; None means `config.seed`.
        show_progress: show progress bars.
        **settings: fields of `InvertConfig` that replace those in `config`; `train` may be a dict.

    Returns:
        the posterior.

    Raises:
        InputError: for a simulator or pairs that cannot be used.

    Example:
        >>> import flowknife as fk
        >>> prior = fk.Uniform(low=[-2, -2], high=[2, 2])
        >>> posterior = fk.invert(
        ...     lambda x: x**2, prior, num_simulations=500, layers=2, train={"steps": 20}, show_progress=False
        ... )
        >>> posterior.sample(3, y=[1.0, 1.0], key=1).shape
        (3, 2)
    """
    base = {} if config is None else config.model_dump(exclude_unset=True)
    config = validated(InvertConfig, {**base, **settings})
    if config.independence and config.form == "conditional":
        raise InputError('got independence of a conditional model; expected a partitioned one; try form="partitioned"')
    keys = jax.random.split(as_key(config.seed if key is None else key), 6)
    task = _task(simulator, prior, pairs, config)
    data = task.pairs or _simulated(task, config.num_simulations, keys[0], executor, show_progress)
    prior = task.prior or priors.likeliest(data.theta, names=task.names)
    _check_inside(prior, data.theta)
    x, y = data.theta.astype(np.float32), data.y.astype(np.float32)
    noise = _noise_of(task.noise, y)
    sharp = data.exact and config.form == "conditional" and config.noise is None and not np.any(noise)
    if sharp:  # p(x | y) of an exact y lies on a surface, where a density has no bound
        noise = _SHARP * y.std(axis=0)
    order = np.asarray(jax.random.permutation(keys[1], len(x)))
    held = min(max(round(config.train.validation * len(x)), 2), len(x) // 2)
    held_out, train = ({"x": x[rows], "y": y[rows]} for rows in (order[:held], order[held:]))

    noisy, held_noisy = (
        part["y"] + noise * np.asarray(jax.random.normal(k, part["y"].shape))
        for part, k in zip((train, held_out), jax.random.split(keys[2]), strict=True)
    )
    make = _partitioned if config.form == "partitioned" else _conditional
    model = make(config, prior, noisy, noise, keys[3])
    model = eqx.filter_jit(lambda m, x, y: m.initialise(x, key=keys[4], y=y))(
        model, train["x"][:_START_ROWS], (train["y"] if config.form == "partitioned" else noisy)[:_START_ROWS]
    )
    candidates = _candidates(config.train, len(train["x"]))
    results = [
        fit(
            model,
            train,
            training,
            objective=_objective(config, prior, noise),
            held_out=held_out,
            key=keys[5],
            label="posterior" if len(candidates) == 1 else f"posterior, {i + 1} of {len(candidates)}",
            show_progress=show_progress,
            throw=True,
        )
        for i, training in enumerate(candidates)
    ]
    best = int(np.argmin([result.loss for result in results]))
    result, training = results[best], candidates[best]
    return Posterior(
        model=result.model,
        prior=prior,
        held_out={"x": held_out["x"][:_KEPT], "y": held_noisy[:_KEPT]},
        y_names=task.y_names or tuple(f"y{i + 1}" for i in range(y.shape[1])),
        noise=tuple(float(value) for value in noise),
        config=config.model_copy(update={"train": training}),
        history=result.history,
        facts={
            **({"problem": task.name} if task.name else {}),
            "pairs": len(x),
            "failed simulations": data.failed,
            **({"why they failed": data.reason} if data.failed else {}),
            **({} if task.prior else {"prior": "estimated from the pairs"}),
            **({"noise": f"none in the data; {_SHARP:g} standard deviations added"} if sharp else {}),
            "form": config.form,
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "stopped because": result.message,
        },
        forward=task.forward,
    )


def _candidates(training: Training, rows: int) -> list[Training]:
    """Training settings by the number of pairs; of several candidates the held-out pairs choose.

    Few pairs of many parameters need a strong pull towards the linear-Gaussian posterior of the start; few pairs of a
    posterior with fine structure are spoiled by it. Who asks for so many steps gets them once.
    """
    few, chosen = rows <= _FEW, training.model_fields_set
    steps = int(np.clip(40 * rows**0.5, 1000, 20_000))
    training = training.or_else(steps=steps, batch_size=256, learning_rate=2e-3 if few else 1e-3, patience=15)
    if not few or chosen & {"weight_decay", "steps", "epochs"}:
        return [training]
    pulls = (0.0, 1.0, 5.0)
    share = {"minutes": training.minutes / len(pulls)} if training.minutes else {}
    return [training.model_copy(update={"weight_decay": pull, **share}) for pull in pulls]


@dataclass(frozen=True)
class _Task:
    """What there is to invert: pairs, or a way to simulate them."""

    pairs: Simulations | None = None
    simulator: Callable[..., Any] | None = None
    prior: priors.Prior | None = None
    noise: float | Sequence[float] = 0.0
    name: str = ""
    y_names: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    forward: Callable[..., Any] | None = None


def _task(simulator, prior, pairs, config) -> _Task:
    noise = 0.0 if config.noise is None else config.noise
    if (simulator is None) == (pairs is None):
        got = "neither a simulator nor pairs" if pairs is None else "a simulator and pairs"
        raise InputError(f"got {got}; expected one of them; try invert(simulator, prior) or invert(pairs=(x, y))")
    if prior is not None and not isinstance(prior, priors.Prior):
        raise InputError(
            f"got {type(prior).__name__} as the prior; expected one of flowknife.priors; try fk.Uniform(low, high)"
        )
    if pairs is not None:
        if not isinstance(pairs, (tuple, list)) or len(pairs) != 2:
            raise InputError(f"got {type(pairs).__name__} as pairs; expected two arrays, (x, y)")
        theta, y = pairs
        y_names = names_in(y) or ()
        named = names_in(theta)
        if prior is not None and named is not None:
            theta = in_order(theta, prior.names)
        prior_names = named if prior is None else None
        return _Task(pairs=given_pairs(theta, y), prior=prior, noise=noise, y_names=y_names, names=prior_names)
    if isinstance(simulator, Problem):
        return _of_problem(simulator, prior, config.noise)
    if not callable(simulator):
        raise InputError(f"got {type(simulator).__name__} as the simulator; expected a function y = simulator(x)")
    if prior is None:
        raise InputError("got a simulator without a prior; expected both; try prior=fk.Uniform(low, high)")
    # with noise of our own to add, the simulator is the noise-free forward model
    forward = partial(predicted, simulator) if np.any(noise) else None
    return _Task(simulator=simulator, prior=prior, noise=noise, forward=forward)


def _of_problem(problem: Problem, prior, noise) -> _Task:
    noise = problem.noise if noise is None else noise
    task = _Task(
        simulator=problem.forward,
        prior=prior or problem.prior,
        noise=noise or 0.0,
        name=problem.name,
        y_names=problem.y_names,
        forward=problem.forward,
    )
    if noise is None:  # randomness of another kind, which only the simulation knows
        return replace(task, simulator=lambda theta, key: problem.simulate(key, theta), forward=None)
    return task


def _simulated(task, count, key, executor, show_progress) -> Simulations:
    draw_key, simulate_key = jax.random.split(key)
    theta = np.asarray(task.prior.sample(draw_key, count))
    with progress("simulating", show_progress) as report:
        return simulate(
            task.simulator,
            theta,
            key=simulate_key,
            executor=executor,
            on_progress=lambda done, total: report(done / total, f"{done:,} of {total:,}"),
        )


def _check_inside(prior, theta):
    if theta.shape[1] != prior.dim:
        raise InputError(f"got parameters of {theta.shape[1]} numbers and a prior of {prior.dim}; expected as many")
    outside = np.any((theta < np.asarray(prior.low)) | (theta > np.asarray(prior.high)), axis=1)
    if outside.any():
        raise InputError(
            f"got {outside.sum()} of {len(theta)} parameters outside of the prior, the first in row "
            f"{np.argmax(outside) + 1}; expected all inside; try wider bounds"
        )


def _noise_of(noise, y) -> np.ndarray:
    scale = np.asarray(noise, np.float32)
    if scale.ndim > 1 or scale.size not in (1, y.shape[1]) or not np.all(np.isfinite(scale) & (scale >= 0)):
        raise InputError(f"got noise={noise}; expected a standard deviation, or one for each of {y.shape[1]} data")
    return np.broadcast_to(scale.reshape(-1), y.shape[1:])


def _objective(config, prior, noise) -> Objective:
    """The negative log-likelihood with the optional terms; data of a conditional model get their noise here."""
    terms: list[tuple[float, Objective]] = [(1.0, nll)]
    if config.matching:
        terms += [(config.matching, matching_latent), (config.matching, matching_data)]
    if config.independence:
        terms += [(config.independence, independence(prior.log_prob))]

    def objective(model, batch, key):
        noise_key, *keys = jax.random.split(key, 1 + len(terms))
        if config.form == "conditional":  # a partitioned model draws the noise itself
            batch = {**batch, "y": batch["y"] + noise * jax.random.normal(noise_key, batch["y"].shape)}
        return sum(weight * term(model, batch, k) for (weight, term), k in zip(terms, keys, strict=True))

    return objective


def _couplings(config, dim, cond_dim, key) -> Bijection:
    net = partial(nets.ResidualMLP, width=config.width, depth=config.depth)
    # compiled as a whole: the many small draws of initial weights would take longer one by one
    make = eqx.filter_jit(lambda k: coupling_flow(dim, cond_dim=cond_dim, layers=config.layers, net=net, key=k))
    return make(key)


def _flow_given(config, dim, y, key) -> Bijection:
    """Between x and z given y: what y says linearly, whitening, and couplings that look at features of y."""
    embed_key, flow_key = jax.random.split(key)
    embedding = nets.Embedding(y, most=_LONG, learned=config.features, width=2 * config.width, key=embed_key)
    flow = _couplings(config, dim, embedding.features, flow_key)
    start = [Regression(dim, embedding.features), PrincipalRotation(dim, back=True)]
    return Conditioned(Chain([*start, flow]), embedding)


def _conditional(config, prior, y, noise, key) -> INN:
    """The network x <-> z with y as a condition."""
    bijection = Chain([prior.bijection, _flow_given(config, prior.dim, y, key)])
    return INN([Block("x", prior.dim)], [Block("z", prior.dim)], bijection, cond=[Block("y", y.shape[1])])


def _partitioned(config, prior, y, noise, key) -> INN:
    """The network x <-> [y, z], or (x, noise) <-> [y, z] with as many z as x."""
    dim, data = prior.dim, y.shape[1]
    spread = Affine.standardise(y)
    if not np.any(noise) and data >= dim:
        raise InputError(
            f"got {data} data without noise for {dim} parameters; expected fewer data than parameters, or noise of the "
            'data; try noise=..., or form="conditional"'
        )
    if not np.any(noise):
        law = Given(tuple(float(config.scale * value) for value in np.asarray(spread.scale.value)))
        flow = _couplings(config, dim, 0, key)
        loc, scale = (np.zeros(dim), np.ones(dim))
        scale[:data] = 1 / np.asarray(spread.scale.value)
        loc[:data] = -np.asarray(spread.loc.value) * scale[:data]
        bijection = Chain([prior.bijection, flow, Affine(loc, scale)])
        return INN([Block("x", dim)], [Block("y", data, law), Block("z", dim - data)], bijection)
    law = Given(tuple(float(_NOISE_SHARE * value) for value in noise))
    return INN(
        [Block("x", dim), Block("noise", data, Noise(tuple(map(float, noise)), added_to="y"))],
        [Block("y", data, law), Block("z", dim)],
        _noisy_bijection(config, prior, y, spread, key),
    )


def _noisy_bijection(config, prior, y, spread, key) -> Bijection:
    """(x, noise) -> (x, F(x) + noise) -> [y, z]: a forward model that is learned, then x given its noisy data.

    Both steps are triangular, so their log-determinants are exact and the noise keeps its law.
    """
    dim, data = prior.dim, y.shape[1]
    forward_key, flow_key = jax.random.split(key)
    standard = np.asarray((y - np.asarray(spread.loc.value)) / np.asarray(spread.scale.value), np.float32)
    ends = Split(
        Channels(dim + data, dim),
        prior.bijection,
        Affine(np.zeros(data), np.asarray(spread.scale.value)),
    )
    net = partial(nets.ResidualMLP, width=2 * config.width, depth=config.depth)
    forward = eqx.filter_jit(lambda k: Coupling(Channels(dim + data, dim), Shift(), net, key=k))(forward_key)
    flow = _flow_given(config, dim, standard, flow_key)
    units = Affine(-np.asarray(spread.loc.value / spread.scale.value), 1 / np.asarray(spread.scale.value))
    return Chain([ends, forward, Split(Channels(dim + data, data, swap=True), units, flow)])
