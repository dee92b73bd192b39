"""Training objectives. An objective maps (model, batch, key) to a scalar loss; `nll` is the default for every job.

Objectives with parameters are modules: their arrays are arguments of the compiled training program, so that fits with
equal shapes share one.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from flowknife._frame import LocalSpread
from flowknife._mixed import Mixed
from flowknife._types import Key
from flowknife.data import Augmentation, augment
from flowknife.inn import INN, RightEnd
from flowknife.laws import ClassMixture, Given, Pad, beyond_range, normal_log_prob

Batch = Mapping[str, Array]
Objective = Callable[[INN, Batch, Array], Float[Array, ""]]


def split_batch(model: INN, batch: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
    """(left-hand blocks, known values) of a batch that holds both by name."""
    known = {block.name for block in model.partition.known}
    return (
        {name: value for name, value in batch.items() if name not in known},
        {name: value for name, value in batch.items() if name in known},
    )


def nll(model: INN, batch: Batch, key: Array) -> Float[Array, ""]:
    """Mean negative log-likelihood of the left end given the known values, in nats per row: -E log p(x | y)."""
    left, known = split_batch(model, batch)
    return -jnp.mean(model.log_prob(left, key=key, **known))


@eqx.filter_jit
def log_probs(model: INN, batch: Batch, key: Array) -> Float[Array, " n"]:
    """Log p(x | y) of each row of a batch, in nats; training and fitted models share the compiled program."""
    left, known = split_batch(model, batch)
    return model.log_prob(left, key=key, **known)


class BlockNLL(eqx.Module):
    """Mean negative term of one right-hand block, in nats per element: -E log p(z_b | blocks before it) / size of z_b.

    Terms of other blocks are never computed.

    Args:
        name: the block.
    """

    name: str = eqx.field(static=True)

    def __call__(self, model: INN, batch: Batch, key: Array) -> Float[Array, ""]:
        left, known = split_batch(model, batch)
        size = next(block.size for block in model.partition.right if block.name == self.name)
        return -jnp.mean(model.block_log_probs(left, key=key, **known)[self.name]) / size


class Noisy(eqx.Module):
    """An objective with Gaussian noise on one block, drawn anew for every batch.

    Args:
        objective: of the noisy batch.
        block: name of the block, rows of numbers.
        noise: standard deviation at each number.
    """

    objective: Objective
    block: str = eqx.field(static=True)
    noise: LocalSpread

    def __call__(self, model: INN, batch: Batch, key: Array) -> Float[Array, ""]:
        noise_key, key = jax.random.split(key)
        rows = batch[self.block]
        noisy = rows + self.noise(rows) * jax.random.normal(noise_key, rows.shape)
        return self.objective(model, {**batch, self.block: noisy}, key)


class Dequantised(eqx.Module):
    """An objective with the discrete columns of one block dequantised, drawn anew for every batch.

    The loss is the bound -E log q(v) / r(v | x) of the negative log-likelihood; see `flowknife._mixed`.

    Args:
        objective: of the continuous batch.
        block: name of the block.
        mixed: its discrete columns.
        nat: weight of one nat of a row's log density in the objective.
    """

    objective: Objective
    block: str = eqx.field(static=True)
    mixed: Mixed
    nat: float = 1.0

    def __call__(self, model: INN, batch: Batch, key: Array) -> Float[Array, ""]:
        draw_key, key = jax.random.split(key)
        rows = batch[self.block]
        filled, weight = self.mixed.fill(rows, jax.random.uniform(draw_key, (*rows.shape[:-1], self.mixed.draws)))
        return self.objective(model, {**batch, self.block: filled}, key) - self.nat * jnp.mean(weight)


class Augmented(eqx.Module):
    """An objective with random image augmentation, drawn anew for every batch.

    Args:
        objective: of the changed batch.
        augmentation: the largest changes.
        flip: mirror half of the images; default as in `augmentation`.
    """

    objective: Objective
    augmentation: Augmentation = eqx.field(static=True)
    flip: bool | None = eqx.field(static=True, default=None)

    def __call__(self, model: INN, batch: Batch, key: Array) -> Float[Array, ""]:
        augment_key, key = jax.random.split(key)
        images = augment(augment_key, batch["image"], self.augmentation, self.flip)
        return self.objective(model, {**batch, "image": images}, key)


class Weighted(eqx.Module):
    """A weighted sum of objectives, each with its own random key."""

    terms: tuple[tuple[float, Objective], ...]

    def __call__(self, model: INN, batch: Batch, key: Array) -> Float[Array, ""]:
        keys = jax.random.split(key, len(self.terms))
        values = [weight * term(model, batch, k) for (weight, term), k in zip(self.terms, keys, strict=True)]
        return sum(values[1:], values[0])


def class_block_log_probs(model: INN, right: RightEnd) -> dict[str, Float[Array, "*batch _"]]:
    """`INN.block_log_probs` given each class: arrays `(*batch, K)`, or `(*batch, 1)` for class-independent blocks.

    Args:
        model: with a `ClassMixture`, or a one-hot `Given` vector, on the right.
        right: the right end of data.
    """
    terms = {}
    for block in model.partition.right:
        law, value = block.law, right.blocks[block.name]
        if isinstance(law, ClassMixture):
            term = law.class_log_probs(value, block.shape) - jax.nn.log_softmax(law.log_weights)
        elif isinstance(law, Given):
            term = law.log_prob(value[..., None, :], block.shape, jnp.eye(block.size))
        else:
            term = law.log_prob(value, block.shape)[..., None]
        terms[block.name] = term + right.log_dets[block.name][..., None]
    return terms


def class_log_probs(
    model: INN, x: Any, *, key: Key = None, blocks: Collection[str] | None = None
) -> Float[Array, "*batch k"]:
    """Log p(x | class k) of data for every class, in nats, of shape `(*batch, K)`.

    Padding on the left is sampled and its density divided out: the mean of exp(...) over many draws is p(x | k).

    Args:
        model: with a `ClassMixture`, or a one-hot `Given` vector, on the right.
        x: as for `INN.log_prob`.
        key: random key for noise, padding and dequantisation.
        blocks: names of the right-hand blocks whose terms are summed; default all.
    """
    left = model.left_end(x, key=key)
    right = model.right_end(left)
    terms = class_block_log_probs(model, right)
    padding = [block for block in model.partition.left if isinstance(block.law, Pad)]
    of_padding = [normal_log_prob(left.blocks[b.name], b.shape, b.law.scale)[..., None] for b in padding]
    chosen = [term for name, term in terms.items() if blocks is None or name in blocks]
    return beyond_range(sum([*chosen[1:], *(-term for term in of_padding)], chosen[0]), right.missing[..., None])


def information_bottleneck(
    log_joint: Float[Array, "*batch k"], labels: Int[Array, "*batch"], beta: Float[ArrayLike, ""], size: int
) -> Float[Array, ""]:
    """The generative and the discriminative term of the joint likelihood of data and label, weighted by beta.

        2 / (1 + beta) L_x / D - 2 beta / (1 + beta) L_y,   L_x = -log p(x),   L_y = log p(y | x)

    Mean over the batch. beta = 1/D is the plain likelihood of (x, y), up to a factor; with larger beta, classification
    is better and the density of x worse (Ardizzone et al. 2020, arXiv 2001.06448, eqs. 13 to 17). The true distribution
    minimises both terms.

    Args:
        log_joint: log p(x, y = k) for every class.
        labels: class of each item; items with -1 (unknown) have no term L_y.
        beta: weight of the labels.
        size: dimension D of x.
    """
    log_x = jax.nn.logsumexp(log_joint, axis=-1)
    own = jnp.take_along_axis(log_joint, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    log_label = jnp.where(labels < 0, 0.0, own - log_x)
    return -2 / (1 + beta) * jnp.mean(log_x / size + beta * log_label)


def matching_latent(model: INN, batch: Batch, key: Array) -> Float[Array, ""]:
    """MMD^2 between (z, y) of the encoded batch and (N(0, I), y): z is normal and independent of y.

    Ardizzone et al. 2019 (arXiv 1808.04730, eq. 3); y is detached, so that only z is trained. The kernel is
    sum_a a^2 / (a^2 + d^2), a in {0.05, 0.2, 0.9}, d the distance per root of the dimension, y in standard deviations.
    """
    left, known = split_batch(model, batch)
    encode_key, draw_key = jax.random.split(key)
    right = model.encode(left, key=encode_key, **known)
    rows = len(next(iter(right.values())))
    latent = [block.name for block in model.partition.right if not block.law.known]
    z = jnp.concatenate([right[name].reshape(rows, -1) for name in latent], axis=-1)
    others = [jnp.asarray(value).reshape(rows, -1) for value in known.values()]
    y = jax.lax.stop_gradient(jnp.concatenate([_standardised(other) for other in others], axis=-1))
    drawn = jax.random.normal(draw_key, z.shape)
    return _mmd2(jnp.concatenate([z, y], axis=-1), jnp.concatenate([drawn, y], axis=-1))


def matching_data(model: INN, batch: Batch, key: Array) -> Float[Array, ""]:
    """MMD^2 between the data and samples given the known values, which trains the backward direction too.

    Ardizzone et al. 2019 (arXiv 1808.04730, sec. 3.3), with y joined to both sides, so that samples belong to their y;
    the kernel is that of `matching_latent`.
    """
    left, known = split_batch(model, batch)
    decoded = model.sample_left(key, (), **known)
    rows = len(next(iter(known.values())))
    names = [block.name for block in model.partition.data]
    x = jnp.concatenate([jnp.asarray(left[name]).reshape(rows, -1) for name in names], axis=-1)
    drawn = jnp.concatenate([decoded[name].reshape(rows, -1) for name in names], axis=-1)
    loc, scale = jnp.mean(x, axis=0), jnp.std(x, axis=0) + 1e-6
    y = jnp.concatenate([_standardised(jnp.asarray(value).reshape(rows, -1)) for value in known.values()], axis=-1)
    ends = [jnp.concatenate([(side - loc) / scale, y], axis=-1) for side in (x, drawn)]
    return _mmd2(*ends)


class Independence(eqx.Module):
    """Penalty on the dependence of z and y, for a model x <-> [y, z] of data with a known prior density.

        E[(log q(y, z) - log q(y, z*) - (log N(z) - log N(z*)))^2],   z* ~ N(0, I)
        log q(y, z) = log p(x(y, z)) + log|dx / d(y, z)|

    It is zero if and only if q(y, z) = q(y) N(z). Differences beyond 30 nats are clipped, since z* may be far from the
    data.

    Args:
        log_prior: log p of rows x of the only data block, in nats.
    """

    log_prior: Callable[[Array], Array]

    def __call__(self, model: INN, batch: Batch, key: Array) -> Float[Array, ""]:
        left, known = split_batch(model, batch)
        right = model.encode(left, key=key, **known)
        latent = [block for block in model.partition.right if not block.law.known]
        keys = jax.random.split(key, len(latent))
        fresh = right | {b.name: jax.random.normal(k, right[b.name].shape) for b, k in zip(latent, keys, strict=True)}
        data = model.partition.data[0].name

        def log_q(values):
            blocks, log_det = model.decode_end(values, **known)
            drawn = [block for block in model.partition.left if block.law.drawn]
            of_drawn = sum(normal_log_prob(blocks[block.name], block.shape, block.law.scale) for block in drawn)
            return self.log_prior(blocks[data]) + of_drawn - log_det

        def log_normal(values):
            return sum(block.law.log_prob(values[block.name], block.shape) for block in latent)

        change = log_q(right) - log_q(fresh) - (log_normal(right) - log_normal(fresh))
        return jnp.mean(jnp.clip(change, -30.0, 30.0) ** 2)


def _standardised(rows):
    return (rows - jnp.mean(rows, axis=0)) / (jnp.std(rows, axis=0) + 1e-6)


def _mmd2(x: Float[Array, "n d"], y: Float[Array, "n d"]) -> Float[Array, ""]:
    """The biased, non-negative estimate with a heavy-tailed kernel, whose gradient decays slowly."""

    def kernel(a, b):
        squared = jnp.sum((a[:, None] - b[None]) ** 2, axis=-1) / a.shape[-1]
        return sum(width**2 / (width**2 + squared) for width in (0.05, 0.2, 0.9))

    return jnp.mean(kernel(x, x)) + jnp.mean(kernel(y, y)) - 2 * jnp.mean(kernel(x, y))
