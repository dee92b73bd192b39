"""Networks for inverse problems, and their objective.

conditional:   x          <->  z ~ N(0, I), given y
partitioned:   x          <->  y ~ N(observation, scale^2 I),  z ~ N(0, I)         of data without noise
x, noise   <->  y, z                                                of data with noise
"""

import jax
import numpy as np
from jax.tree_util import Partial

from flowknife import nets
from flowknife._frame import LocalSpread, robust_spread
from flowknife._types import built
from flowknife.architectures import coupling_flow, flow_given
from flowknife.bijections import Affine, Bijection, Chain, Channels, Coupling, Shift, Split
from flowknife.errors import InputError
from flowknife.inn import INN, Block
from flowknife.laws import Given, Noise
from flowknife.objectives import Independence, Noisy, Objective, Weighted, matching_data, matching_latent, nll

_ROBUST = 3.0  # limit in robust spreads on the scale of the law of noise-free data

_NOISE_SHARE = 0.1  # width of the law of noisy data, relative to the noise


def objective_of(config, prior, noise: LocalSpread) -> Objective:
    """The negative log-likelihood with the optional terms; the data of a conditional model get their noise here."""
    terms: list[tuple[float, Objective]] = [(1.0, nll)]
    if config.matching:
        terms += [(config.matching, matching_latent), (config.matching, matching_data)]
    if config.independence:
        terms += [(config.independence, Independence(prior.log_prob))]
    total = Weighted(tuple(terms)) if len(terms) > 1 else nll
    # a partitioned model draws the noise itself
    return Noisy(total, "y", noise) if config.form == "conditional" else total


def _couplings(config, dim, key) -> Bijection:
    net = Partial(nets.ResidualMLP, width=config.width, depth=config.depth)
    return built(coupling_flow, dim, layers=config.layers, net=net, key=key)


def _flow_given(config, dim, y, key) -> Bijection:
    """From x to z given y: linear regression on y, whitening, and couplings that take features of y."""
    net = Partial(nets.ResidualMLP, width=config.width, depth=config.depth)
    if config.embedding is not None:
        embed_key, key = jax.random.split(key)
        sizes = {"learned": config.features, "width": 2 * config.width}
        embedding = nets.ObservationEmbedding(config.embedding, config.observation, y, **sizes, key=embed_key)
        return flow_given(dim, y, layers=config.layers, net=net, key=key, embedding=embedding)
    return flow_given(dim, y, features=config.features, hidden=2 * config.width, layers=config.layers, net=net, key=key)


def conditional_model(config, prior, y, noise, key) -> INN:
    """The network x <-> z with y as a condition."""
    bijection = Chain([prior.bijection, _flow_given(config, prior.dim, y, key)])
    return INN([Block("x", prior.dim)], [Block("z", prior.dim)], bijection, cond=[Block("y", y.shape[1])])


def partitioned_model(config, prior, y, noise, key) -> INN:
    """The network x <-> [y, z], or (x, noise) <-> [y, z] with as many z as x."""
    dim, data = prior.dim, y.shape[1]
    spread = Affine.standardise(y)
    if not np.any(noise) and data >= dim:
        raise InputError(
            f"got {data} data without noise for {dim} parameters; expected fewer data than parameters, or noise of the "
            'data; try noise=..., or form="conditional"'
        )
    if not np.any(noise):
        # a robust spread: values over many decades keep more of their small end
        width = np.minimum(np.asarray(spread.scale.value), _ROBUST * robust_spread(y))
        law = Given(tuple(float(config.scale * value) for value in width))
        flow = _couplings(config, dim, key)
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
    """(x, noise) -> (x, F(x) + noise) -> [y, z]: a learned forward model F, followed by a flow of x given y.

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
    net = Partial(nets.ResidualMLP, width=2 * config.width, depth=config.depth)
    forward = built(Coupling, Channels(dim + data, dim), Shift(), net, key=forward_key)
    flow = _flow_given(config, dim, standard, flow_key)
    units = Affine(-np.asarray(spread.loc.value / spread.scale.value), 1 / np.asarray(spread.scale.value))
    return Chain([ends, forward, Split(Channels(dim + data, data, swap=True), units, flow)])
