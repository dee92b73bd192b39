"""Training of a generative classifier: the closed-form start, then the information-bottleneck loss."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import logsumexp

from flowknife._frame import LocalSpread
from flowknife._interrupts import until_interrupted
from flowknife._mixed import Mixed
from flowknife._types import as_generator, keys_of
from flowknife.apps._tables import filled
from flowknife.apps.classify._models import class_law, coarse_blocks, coarse_part, fit_start, given_label, labels_of
from flowknife.bijections import Affine
from flowknife.data import Augmentation, augment
from flowknife.inn import INN
from flowknife.laws import ClassMixture
from flowknife.multiscale import level_part
from flowknife.objectives import Augmented, BlockNLL, Dequantised, Noisy, class_log_probs, information_bottleneck
from flowknife.stages import Stage, Trained, closed_form_start, fit_stages
from flowknife.train import Checkpoints, Training, fit

_START_NUMBERS = 30_000_000  # largest number of values that the closed-form start is fitted to

_NUMBERS_PER_STEP = 100_000

Items = tuple[np.ndarray, np.ndarray]
"""Rows or images, and their labels."""


def log_prior_of(model: INN, log_prior: Array) -> Array:
    """Log p(class): trained with the mixture law, otherwise the class frequencies."""
    law = class_law(model)
    return jax.nn.log_softmax(law.log_weights) if isinstance(law, ClassMixture) else log_prior


class _Bottleneck(eqx.Module):
    """The information-bottleneck loss of a batch with labels; see `information_bottleneck`.

    Attributes:
        data: name of the data block.
        beta: weight of the labels.
        log_prior: log p(class), if the model does not learn it.
        size: dimension of the blocks.
        blocks: right-hand blocks whose terms are included; None for all.
    """

    data: str = eqx.field(static=True)
    beta: Array
    log_prior: Array
    size: int = eqx.field(static=True)
    blocks: tuple[str, ...] | None = eqx.field(static=True, default=None)

    def __call__(self, model, batch, key):
        log_joint = class_log_probs(model, batch[self.data], key=key, blocks=self.blocks)
        log_joint = log_joint + log_prior_of(model, self.log_prior)
        return information_bottleneck(log_joint, labels_of(model, batch), self.beta, self.size)


def train_table(
    model: INN,
    train: Items,
    stopping: Items | None,
    training: Training,
    *,
    beta: float,
    smoothing: float,
    mixed: Mixed | None,
    log_prior: Float[np.ndarray, " k"],
    key: jax.Array,
    show_progress: bool,
    checkpoints: Checkpoints,
) -> Trained:
    """Train on rows with noise of `smoothing` standard deviations; discrete columns are only dequantised."""
    rows, labels = filled(train[0], mixed), train[1]
    noise_key, key = keys_of(key, 2)
    size = rows.shape[1]
    spread = np.where(np.isin(np.arange(size), mixed.places if mixed else ()), 0.0, _spread(rows, labels))
    noise = LocalSpread.of(rows, spread).scaled(smoothing)
    objective = Noisy(_Bottleneck("x", jnp.asarray(beta), jnp.asarray(log_prior), size), "x", noise)
    if mixed is not None:
        objective = Dequantised(objective, "x", mixed, nat=2 / (1 + beta) / size)
    drawn = as_generator(noise_key).normal(size=rows.shape).astype(rows.dtype)
    noisy = rows + np.asarray(noise(rows)) * drawn
    model = model.initialised(noisy, key=noise_key)
    model = fit_start(model, noisy, labels)
    # wide tables overfit more easily, so steps are smaller
    training = training.completed(
        steps=int(np.clip(20 * len(rows) ** 0.5, 500, 6000)),
        batch_size=512,
        learning_rate=max(4e-3 * (2 / max(size, 2)) ** 0.5, 5e-4),
        patience=10,
    ).with_defaults()
    train_rows = partial(
        fit,
        model,
        _batch(model, "x", train),
        training.left(checkpoints.began).model_copy(update={"validation": 0.0}),  # held-out rows are in `stopping`
        objective=objective,
        held_out=None if stopping is None else _batch(model, "x", stopping),
        key=key,
        label="classes",
        show_progress=show_progress,
        throw=True,
        checkpoints=checkpoints.part("classes"),
    )
    result, _ = until_interrupted(train_rows)
    return Trained(result.model, result.history, training, result.record)


def train_images(
    model: INN,
    train: Items,
    stopping: Items | None,
    training: Training,
    *,
    beta: float,
    augmentation: Augmentation,
    log_prior: Float[np.ndarray, " k"],
    key: jax.Array,
    show_progress: bool,
    checkpoints: Checkpoints,
) -> Trained:
    """Train the coarsest level with its classes on augmented images, then the finer levels one by one."""
    pixels, labels = train
    coarse = coarse_blocks(model)
    size, names = sum(block.size for block in coarse), tuple(block.name for block in coarse)
    loss = _Bottleneck("image", jnp.asarray(beta), jnp.asarray(log_prior), size, names)
    details = [block.name for block in model.partition.right if block.name not in names]
    start_key, move_key, key = jax.random.split(key, 3)

    training = training.completed(
        minutes=8,
        steps=5000,
        batch_size=int(np.clip(2 ** round(np.log2(_NUMBERS_PER_STEP / pixels[0].size)), 16, 128)),
        learning_rate=1e-3,
        weight_decay=0.3,
        average=0.995,
        evaluate_every=100,
        patience=40,
    ).with_defaults()
    model = closed_form_start(model, pixels, augmentation, bool(augmentation.flip), start_key)
    most = max(_START_NUMBERS // pixels[0].size, 16)
    model = fit_start(model, augment(move_key, jnp.asarray(pixels[:most]), augmentation), labels[:most])

    # half of the time for the level with the classes, the rest for the finer levels
    stages = [
        # held-out images are augmented too: with few images, that makes the loss less noisy
        Stage(0, max(len(details), 1), label="classes", where=coarse_part, objective=Augmented(loss, augmentation)),
        *(
            Stage(i, 1, label=f"details {i} of {len(details)}", where=level_part(i), objective=BlockNLL(name))
            for i, name in enumerate(details, start=1)
        ),
    ]
    data, held_out = (None if items is None else _batch(model, "image", items) for items in (train, stopping))
    return fit_stages(model, data, held_out, training, stages, key, show_progress, checkpoints=checkpoints)


def fit_temperature(log_joint: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"]) -> float:
    """T of softmax(log_joint / T) with the lowest cross-entropy (Guo et al. 2017, arXiv 1706.04599, sec. 4.2).

    The prior log T ~ N(0, 1), with the weight of one item, keeps T finite if the classes are perfectly separated.
    """

    def loss(log_temperature):
        scaled = np.asarray(log_joint, np.float64) / np.exp(log_temperature)
        total = logsumexp(scaled, axis=1)
        return np.sum(total - scaled[np.arange(len(labels)), labels]) + 0.5 * log_temperature**2

    grid = np.linspace(-3, 6, 181)
    return float(np.exp(grid[np.argmin([loss(value) for value in grid])]))


def _spread(rows, labels):
    """Standard deviation of each column within the classes: noise in these units does not blur the classes."""
    total = np.asarray(Affine.standardise(rows).scale.value)
    within = [rows[labels == k].var(axis=0) * np.sum(labels == k) for k in np.unique(labels[labels >= 0])]
    return np.maximum(np.sqrt(sum(within) / np.sum(labels >= 0)), 0.1 * total)


def _batch(model, name, items):
    rows, labels = items
    known = {block: np.asarray(value) for block, value in given_label(model, jnp.asarray(labels)).items()}
    return {name: rows, **known}
