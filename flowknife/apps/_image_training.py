"""Training of an image flow: closed-form start, then level after level, or all levels together."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowknife._feeds import Rows
from flowknife.apps._levels import independent_levels, joint_nll, latent_sizes, level_nll, level_part
from flowknife.data import Augmentation, augment
from flowknife.inn import INN
from flowknife.laws import Pixels
from flowknife.objectives import Objective
from flowknife.train import Training, fit

_NUMBERS_FOR_START = 60_000_000  # closed-form parts are fitted to at most so many numbers
_NUMBERS_PER_STEP = 100_000

History = dict[str, list[float]]


def train_images(
    model: INN,
    pixels: Rows,
    held_out: np.ndarray,
    training: Training,
    *,
    augmentation: Augmentation,
    flip: bool,
    key: jax.Array,
    show_progress: bool,
) -> tuple[INN, History, Training, float]:
    """Train an image model; 15 minutes at most, unless `training` says otherwise.

    Args:
        model: the model to start from.
        pixels: training pictures, uint8 (n, H, W, C).
        held_out: pictures for early stopping.
        training: settings; a time budget is for all levels together, epochs and steps are for each.
        augmentation: changes of the training pictures; those for early stopping stay as they are.
        flip: mirror half of the pictures of every batch.
        key: JAX key.
        show_progress: show progress bars.

    Returns:
        the model, the columns of the training curve (with the level, -1 where all are trained together), the settings
        with their defaults, and seconds.
    """
    together = not independent_levels(model.bijection)
    batch = 2 ** round(np.log2(_NUMBERS_PER_STEP / pixels[0].size))
    training = training.or_else(minutes=15, batch_size=int(np.clip(batch, 8, 32)))
    training = training.or_else(
        # levels of few layers each bear large steps
        learning_rate=1e-3 if together else 5e-3,
        average=0.995,
        # looking at the held-out pictures takes about a tenth of the time
        evaluate_every=max(60, 3 * len(held_out) // training.batch_size),
        patience=8,
    )
    start_key, key = jax.random.split(key)
    model = closed_form_start(model, pixels, augmentation, flip, start_key)
    # the time of a level grows slower than its size, since the large ones are the regular ones
    shares = np.sqrt([1.0] if together else latent_sizes(model.bijection))
    order = list(range(len(shares)))
    if model.partition.left[0].law.noise is not None:
        # the noise within the bins belongs to the finest level, and the others have to do with it
        order = [order[-1], *order[:-1]]
    stages = []
    for i, level in enumerate(order):
        objective = joint_nll if together else level_nll(level)
        stages.append(
            Stage(
                level=-1 if together else level,
                share=shares[level] / shares[order[i:]].sum(),
                label="images" if together else f"level {level}, {i + 1} of {len(shares)}",
                where=(lambda whole: whole) if together else level_part(level),
                objective=_augmented(objective, augmentation, flip),
                held_out_objective=objective,
            )
        )
    model, history, spent = fit_stages(model, pixels, held_out, training, stages, key, show_progress)
    return model, history, training, spent


class Stage(NamedTuple):
    """What is trained at one time.

    Attributes:
        level: 0 is the coarsest, -1 all together.
        share: of the time that is left.
        label: what the progress bar says.
        where: the part of the model.
        objective: of that part.
        held_out_objective: that of held-out rows.
    """

    level: int
    share: float
    label: str
    where: Callable[[INN], Any]
    objective: Objective
    held_out_objective: Objective


def fit_stages(
    model: INN,
    data: Any,
    held_out: Any,
    training: Training,
    stages: Sequence[Stage],
    key: jax.Array,
    show_progress: bool,
) -> tuple[INN, History, float]:
    """Train one part after another within one time budget; what one leaves of its time the others have.

    Returns:
        the model, the columns of the training curve, with the level, and seconds.
    """
    history: History = {}
    spent = 0.0
    for stage in stages:
        minutes = training.minutes and max((training.minutes - spent / 60) * stage.share, 0.01)
        result = fit(
            model,
            data,
            training.model_copy(update={"minutes": minutes}),
            objective=stage.objective,
            held_out_objective=stage.held_out_objective,
            where=stage.where,
            held_out=held_out,
            key=jax.random.fold_in(key, max(stage.level, 0)),
            label=stage.label,
            show_progress=show_progress,
            throw=True,
        )
        model = result.model
        spent += result.seconds
        columns = {"level": [float(stage.level)] * len(result.history["step"]), **result.history}
        history = {name: history.get(name, []) + column for name, column in columns.items()}
    return model, history, spent


def closed_form_start(model, train, augmentation, flip, key):
    """Fit what has a closed form (colours, whitenings, actnorm) to as many training pictures as fit in memory."""
    # actnorm needs the output of every layer before it, a wavelet flow's whitenings need none
    most = _NUMBERS_FOR_START if independent_levels(model.bijection) else _NUMBERS_FOR_START // 20
    count = max(most // train[0].size // (2 if flip else 1), 16)
    rows = augment(key, jnp.asarray(train[:count]), augmentation, flip=False)
    rows = jnp.concatenate([rows, rows[:, :, ::-1]]) if flip else rows
    # the noise within the bins starts as uniform: there is no need to ask its network about all rows at once
    image = model.partition.left[0]
    x = Pixels(image.law.bits).prepare(key, rows, rows.shape[:1], image.shape)
    fitted = eqx.filter_jit(lambda f, x: f.initialise(x)[0])(model.bijection, x)
    return eqx.tree_at(lambda m: m.bijection, model, fitted)


def _augmented(objective, augmentation, flip):
    """The objective on pictures that are changed anew for every batch."""

    def augmented(model, batch, key):
        augment_key, key = jax.random.split(key)
        return objective(model, {"image": augment(augment_key, batch["image"], augmentation, flip)}, key)

    return augmented
