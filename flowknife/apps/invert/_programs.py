"""Compiled programs of posteriors; the models of an ensemble are averaged."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flowknife._types import as_generator
from flowknife.inn import INN


@eqx.filter_jit
def sample(model: INN, key: Any, n: int, temperature: Any, y: Any) -> Any:
    """Draws (k, n, d) given observations (k, m)."""
    return jnp.moveaxis(model.sample_left(key, n, temperature=temperature, y=y)["x"], 0, -2)


@eqx.filter_jit
def sample_common(model: INN, key: Any, n: int, temperature: Any, y: Any) -> Any:
    """Like `sample`, with the same latents for each observation."""
    return jax.vmap(lambda row: model.sample_left(key, n, temperature=temperature, y=row)["x"])(y)


@eqx.filter_jit
def sample_noise(model: INN, key: Any, n: int, y: Any) -> Any:
    """Draws of parameters and of the noise of the data."""
    blocks = model.sample_left(key, n, y=y)
    return tuple(jnp.moveaxis(blocks[name], 0, -2) for name in ("x", "noise"))


@eqx.filter_jit
def log_density(models: Sequence[INN], x: Any, y: Any) -> Any:
    """Log p(x | y) of rows x given rows y; for a model of (x, noise), at the noise that makes x explain y exactly."""
    found = [log_density_of(model, x, y) for model in models]
    return found[0] if len(found) == 1 else jax.nn.logsumexp(jnp.stack(found), axis=0) - jnp.log(len(found))


def log_density_of(model: INN, x: Any, y: Any) -> Any:
    """Like `log_density`, for one model."""
    names = [block.name for block in model.partition.left]
    if "noise" not in names:
        return model.log_prob(x, y=y)
    noise = y - model.encode({"x": x, "noise": jnp.zeros_like(y)})["y"]
    law = model.partition.right[0]
    at_centre = law.law.log_prob(y, law.shape, y)  # contribution of the law of y, a constant there
    return model.log_prob({"x": x, "noise": noise}, y=y) - at_centre


@eqx.filter_jit
def forward(model: INN, x: Any) -> Any:
    """Noise-free data of parameters, from a model with the data on its right."""
    left = {"x": x}
    for block in model.partition.left[1:]:
        left[block.name] = jnp.zeros((*x.shape[:-1], *block.shape))
    return model.encode(left)["y"]


@eqx.filter_jit
def climb(models: Sequence[INN], prior: Any, x: Any, y: Any, steps: Any, rate: Any) -> Any:
    """Gradient ascent of log p(x | y), in coordinates where the prior is standard normal."""
    u, _ = prior.bijection.encode(x)
    optimiser = optax.adam(1.0)

    def loss(u):
        values = log_density(models, prior.bijection.decode(u)[0], y)
        return -jnp.sum(values), values

    def step(i, carry):
        u, state, best, best_value = carry
        (_, values), slope = jax.value_and_grad(loss, has_aux=True)(u)
        better = (values > best_value)[:, None]
        best, best_value = jnp.where(better, u, best), jnp.maximum(values, best_value)
        updates, state = optimiser.update(jnp.nan_to_num(slope), state)
        return u + rate * (1 - i / steps) * updates, state, best, best_value

    start = (u, optimiser.init(u), u, jnp.full(len(u), -jnp.inf))
    *_, best, value = jax.lax.fori_loop(0, steps, step, start)
    return prior.bijection.decode(best)[0], value


def pooled(models: Sequence[INN], n: int, key: Any, draw: Callable[..., tuple[np.ndarray, ...]]) -> Any:
    """Arrays (k, n, d) of draws, an equal share from each model, in random order.

    Args:
        models: one or more models.
        n: total number of draws.
        key: JAX key.
        draw: `draw(model, key, n)` returns a tuple of arrays (k, n, d).
    """
    if len(models) == 1:
        return draw(models[0], key, n)
    order_key, *keys = jax.random.split(key, 1 + len(models))
    generator = as_generator(order_key)
    shares = np.bincount(generator.permutation(len(models))[np.arange(n) % len(models)], minlength=len(models))
    parts = [draw(model, k, int(c)) for model, k, c in zip(models, keys, shares, strict=True) if c]
    order = generator.permutation(n)
    return tuple(np.concatenate(arrays, axis=-2)[..., order, :] for arrays in zip(*parts, strict=True))
