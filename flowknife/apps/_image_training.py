"""Training of an image flow: closed-form start, then level after level, or all levels together."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowknife._feeds import Rows
from flowknife.apps._levels import independent_levels, joint_nll, latent_sizes, level_nll, level_part
from flowknife.data import Augmentation, augment
from flowknife.inn import INN
from flowknife.laws import Pixels
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
    history: History = {}
    spent = 0.0
    order = list(range(len(shares)))
    if model.partition.left[0].law.noise is not None:
        # the noise within the bins belongs to the finest level, and the others have to do with it
        order = [order[-1], *order[:-1]]
    for i, level in enumerate(order):
        share = shares[level] / shares[order[i:]].sum()
        minutes = training.minutes and max((training.minutes - spent / 60) * share, 0.01)
        objective = joint_nll if together else level_nll(level)
        result = fit(
            model,
            pixels,
            training.model_copy(update={"minutes": minutes}),
            objective=_augmented(objective, augmentation, flip),
            held_out_objective=objective,
            where=(lambda whole: whole) if together else level_part(level),
            held_out=held_out,
            key=jax.random.fold_in(key, level),
            label="images" if together else f"level {level}, {i + 1} of {len(shares)}",
            show_progress=show_progress,
            throw=True,
        )
        model = result.model
        spent += result.seconds
        columns = {"level": [-1.0 if together else float(level)] * len(result.history["step"]), **result.history}
        history = {name: history.get(name, []) + column for name, column in columns.items()}
    return model, history, training, spent


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
