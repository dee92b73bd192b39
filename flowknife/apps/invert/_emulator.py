"""More pairs for training: an emulator, learnt from the pairs, draws data for new parameters.

A posterior learnt from few pairs fits their noise. The data given the parameters are easier to learn if there are few
parameters, since they often are a smooth function of them with noise:

    y = m(u) + s(u) e,    u = parameters in the coordinates in which the prior is N(0, I)

A network computes m and s; held-out pairs choose between a narrow and a wide one. e are residuals of the pairs, drawn
with replacement, so that they keep their correlations and tails. Held-out pairs also decide whether emulated pairs made
the posterior better.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float

from flowknife import nets
from flowknife._batches import ROWS_AT_ONCE, map_batches
from flowknife._types import as_generator, keys_of
from flowknife.bijections import Affine, Chain, Channels, Composed, Coupling, Shift, ShiftScale
from flowknife.inn import INN, Block
from flowknife.priors import Prior
from flowknife.train import Training

_NEEDED = 0.05  # nats
_TIMES, _MOST, _NUMBERS = 100, 1_000_000, 20_000_000  # emulated pairs: for each pair, in all, and numbers in them
_FURTHEST = 8.0  # largest |u|, and largest log of a scale


def emulator_settings(training: Training) -> Training:
    """How the emulator trains, by the settings for posteriors: it needs longer, and a tenth of the pairs to stop."""
    return _longer(training, 4).model_copy(update={"weight_decay": 0.1, "validation": None})


def further_settings(training: Training) -> Training:
    """How a posterior continues on emulated pairs: longer and with smaller steps, but free, since there are many."""
    rate = 0.5 * (training.learning_rate or 0.0)  # chosen by now
    return _longer(training, 2).model_copy(update={"learning_rate": rate, "weight_decay": 0.0})


def _longer(training, times):
    steps, epochs = (None if end is None else times * end for end in (training.steps, training.epochs))
    return training.model_copy(update={"steps": steps, "epochs": epochs})


def overfitted(history: Mapping[str, Sequence[float]]) -> bool:
    """Whether more pairs would help: the loss of held-out pairs is clearly above that of training pairs."""
    return bool(history["train"]) and history["validation"][-1] - history["train"][-1] > _NEEDED


def emulated_count(x: np.ndarray, y: np.ndarray) -> int:
    """The number of emulated pairs, in bounded memory."""
    return min(_TIMES * len(x), _MOST, _NUMBERS // (x.shape[1] + y.shape[1]))


def emulated(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n m"],
    prior: Prior,
    width: int,
    depth: int,
    key: jax.Array,
    train: Callable[[list[INN], dict[str, np.ndarray], jax.Array], INN],
) -> dict[str, np.ndarray]:
    """Pairs of new parameters from the prior and emulated data, up to a hundred times as many as the given pairs.

    Args:
        x: parameters in the units of the model.
        y: their data.
        prior: prior of x in the units of the model.
        width: hidden units of the networks of the posterior.
        depth: their residual blocks; emulators have twice as many.
        key: JAX key.
        train: `(models, pairs, key) -> model` trains several emulators and returns the best one.
    """
    model_key, train_key, draw_key = keys_of(key, 3)
    (u,) = _mapped(lambda rows: prior.bijection.encode(rows)[:1], x)
    u = np.clip(u, -_FURTHEST, _FURTHEST)  # infinite at the end of a support
    # a narrow network fits less of the noise; a simulator with much structure needs the wide one
    models = [_emulator(y, u.shape[1], size, 2 * depth, model_key) for size in (max(1, 3 * width // 8), width)]
    model = train(models, {"y": y, "parameters": u}, train_key)
    (residuals,) = _mapped(lambda rows: model.bijection.encode(*rows)[:1], (y, u))
    count = emulated_count(x, y)
    generator = as_generator(draw_key)
    u = generator.standard_normal((count, u.shape[1])).astype(u.dtype)
    residuals = residuals[generator.integers(len(residuals), size=count)]
    new = _mapped(lambda rows: (prior.bijection.decode(rows[1])[0], model.bijection.decode(*rows)[0]), (residuals, u))
    usable = np.all([np.isfinite(part).all(axis=1) for part in new], axis=0)
    return {name: part[usable].astype(x.dtype) for name, part in zip(("x", "y"), new, strict=True)}


def _mapped(function, rows):
    return map_batches(jax.jit(function), rows, ROWS_AT_ONCE)


def _emulator(y, parameters, width, depth, key):
    """The network y <-> e, with u as its condition."""
    size = y.shape[1]
    net = Partial(nets.ResidualMLP, width=width, depth=depth)
    moved = Composed([Shift(), ShiftScale(bound=_FURTHEST)])
    coupling = Coupling(Channels(size, 0), moved, net, cond_shape=parameters, key=key)
    bijection = Chain([Affine.standardise(y), coupling])
    return INN([Block("y", size)], [Block("z", size)], bijection, [Block("parameters", parameters)])
