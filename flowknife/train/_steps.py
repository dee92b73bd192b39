"""The compiled programs of training: a sequence of steps, and the objective of a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from flowknife._cluster import BATCH, pinned
from flowknife.bijections import LU, Matrix, Repeat
from flowknife.inn import INN
from flowknife.objectives import Objective, log_probs

_WIDE, _DEEP = 64, 32  # inputs of a linear mixing, and number of layers, beyond which steps are smaller

OPTIMISERS = {
    "adam": partial(optax.scale_by_adam, b2=0.99),
    "adamax": optax.scale_by_adamax,
    "nadam": partial(optax.scale_by_adam, nesterov=True),
    "amsgrad": optax.scale_by_amsgrad,
}


MATMUL = {None: "default", "float32": "F32_F32_F32", "tensorfloat32": "TF32_TF32_F32", "bfloat16": "BF16_BF16_F32"}
"""Algorithms for matrix products: the precision of the factors and of the sums."""


class Rules(NamedTuple):
    """The static part of training: fits with equal rules and shapes share one compiled program.

    The arrays of an objective that is a module (`equinox.Module`) are arguments of the program; any other objective is
    compiled into it.
    """

    objective: Objective
    where: Callable[[INN], Any]
    optimiser: str
    schedule: str
    devices: Mesh | None = None


class Numbers(NamedTuple):
    """Settings that a compiled program takes as arguments."""

    learning_rate: Array
    decay: Array
    warmup: Array
    clip: Array
    weight_decay: Array
    average: Array

    @classmethod
    def of(cls, training):
        # arrays, since a Python number would be compiled into the loop
        return cls(*(jnp.asarray(getattr(training, name) or 0.0, jnp.float32) for name in cls._fields))


def _optimiser(rule: str, numbers: Numbers) -> optax.GradientTransformation:
    """The optimiser of the settings, without the learning rate."""
    return optax.chain(
        optax.clip_by_global_norm(numbers.clip),
        OPTIMISERS[rule](),
        optax.add_decayed_weights(numbers.weight_decay),
    )


def join(where, params, rest):
    """The whole model with the trained part in its place."""
    model, rest = rest
    return eqx.tree_at(where, model, eqx.combine(params, rest))


@eqx.filter_jit
def fresh(rule, numbers, params):
    """The initial state of an optimiser."""
    return _optimiser(rule, numbers).init(params)


@eqx.filter_jit
def advance(rules, numbers, shares, state, rest, arrays, order, total, first, count, step, elapsed, rate, key):
    """`count` steps on the rows `order[first:]`; stops before the first update with a non-finite number.

    Results do not depend on the number of steps per call: the schedule depends on the step number, and the sum of the
    losses, `total`, is carried from call to call. Several devices divide the rows of every batch among them.
    """
    optimiser = _optimiser(rules.optimiser, numbers)

    def scheduled(i):
        done = jnp.clip(jnp.maximum(elapsed, rate * (step + i)), 0.0, 1.0)
        if rules.schedule == "exponential":
            shape = numbers.decay**done
        else:
            shape = 0.5 * (1 + jnp.cos(jnp.pi * done)) if rules.schedule == "cosine" else jnp.ones_like(done)
        return numbers.learning_rate * shape * jnp.minimum(1.0, (step + i + 1) / jnp.maximum(numbers.warmup, 1))

    def objective(params, batch, key):
        return rules.objective(join(rules.where, params, rest), batch, key)

    def body(carry):
        i, _, total, (params, averaged, opt_state) = carry
        batch = pinned({name: array[order[first + i]] for name, array in arrays.items()}, rules.devices, BATCH)
        loss, grads = jax.value_and_grad(objective)(params, batch, jax.random.fold_in(key, step + i))
        ok = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        updates, new_opt_state = optimiser.update(grads, opt_state, params)
        lr = scheduled(i)
        new_params = jax.tree.map(lambda p, u, share: p - (lr * share * u).astype(p.dtype), params, updates, shares)
        # the decay grows to `average` over the first steps, so that the average forgets the initial weights
        decay = jnp.minimum(numbers.average, (step + i) / (step + i + 10.0))
        new_averaged = jax.tree.map(lambda a, p: (decay * a + (1 - decay) * p).astype(p.dtype), averaged, new_params)
        new = (new_params, new_averaged, new_opt_state)
        state = jax.tree.map(lambda new, old: jnp.where(ok, new, old), new, (params, averaged, opt_state))
        state = pinned(state, rules.devices)
        return i + ok, ok, total + jnp.where(ok, loss, 0.0).astype(total.dtype), state

    start = (jnp.asarray(0), jnp.asarray(True), total, state)
    made, _, total, state = jax.lax.while_loop(lambda c: (c[0] < count) & c[1], body, start)
    return state, total, made


@eqx.filter_jit
def evaluate(objective, where, params, rest, batch, key):
    """The objective of one batch."""
    return objective(join(where, params, rest), batch, key)


@eqx.filter_jit
def log_prob_of_first(where, params, rest, batch, count, key):
    """The sum of the log densities of the first `count` rows of a batch, which devices may share."""
    found = log_probs(join(where, params, rest), batch, key)
    return jnp.sum(jnp.where(jnp.arange(len(found)) < count, found, 0.0))


def step_shares(tree: Any, share: float = 1.0) -> Any:
    """The relative learning rate of each array, a tree like `tree`.

    Each step of Adam changes every weight by about the learning rate, whatever the gradient. The output of a matrix
    with n inputs then changes by up to n times that, and the output of L layers by L times that. For large n or L, the
    first steps would diverge. So the rates of wide mixings fall as 1/n (Yang et al. 2022, arXiv 2203.03466, table 3)
    and those of deep stacks as 1/L; below `_WIDE` inputs and `_DEEP` layers nothing changes.
    """

    def of(node):
        if isinstance(node, Repeat):
            layer = step_shares(node.layer, share * min(1.0, _DEEP / node.times))
            return eqx.tree_at(lambda repeat: repeat.layer, node, layer)
        matrix = share * min(1.0, _WIDE / node.shape[-1]) if isinstance(node, LU | Matrix) else share
        return jax.tree.map(lambda leaf: matrix if leaf.shape[-2:] == (leaf.shape[-1],) * 2 else share, node)

    return jax.tree.map(of, tree, is_leaf=lambda node: isinstance(node, Repeat | LU | Matrix))
