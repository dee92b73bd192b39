"""Training of an image flow: closed-form start, then level after level, or all levels together."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowknife.apps._levels import independent_levels, joint_nll, latent_sizes, level_nll, level_part
from flowknife.inn import INN
from flowknife.train import Training, fit

_NUMBERS_FOR_START = 60_000_000  # closed-form parts are fitted to at most so many numbers
_NUMBERS_PER_STEP = 200_000

History = dict[str, list[float]]


def train_images(
    model: INN,
    pixels: np.ndarray,
    held_out: np.ndarray,
    training: Training,
    *,
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
        flip: mirror half of the pictures of every batch.
        key: JAX key.
        show_progress: show progress bars.

    Returns:
        the model, the columns of the training curve (with the level, -1 where all are trained together), the settings
        with their defaults, and seconds.
    """
    batch = 2 ** round(np.log2(_NUMBERS_PER_STEP / pixels[0].size))
    training = training.or_else(
        minutes=15,
        batch_size=int(np.clip(batch, 16, 256)),
        learning_rate=1e-3,
        average=0.995,
        evaluate_every=60,
        patience=8,
    )
    start_key, key = jax.random.split(key)
    model = _start(model, pixels, flip, start_key)
    together = not independent_levels(model.bijection)
    # the time of a level grows slower than its size, since the large ones are the regular ones
    shares = np.sqrt([1.0] if together else latent_sizes(model.bijection))
    history: History = {}
    spent = 0.0
    for level, share in enumerate(shares):
        minutes = training.minutes and max((training.minutes - spent / 60) * share / shares[level:].sum(), 0.01)
        result = fit(
            model,
            pixels,
            training.model_copy(update={"minutes": minutes}),
            objective=_mirrored(joint_nll if together else level_nll(level), flip),
            where=(lambda whole: whole) if together else level_part(level),
            held_out=held_out,
            key=jax.random.fold_in(key, level),
            label="images" if together else f"level {level + 1} of {len(shares)}",
            show_progress=show_progress,
            throw=True,
        )
        model = result.model
        spent += result.seconds
        columns = {"level": [-1.0 if together else float(level)] * len(result.history["step"]), **result.history}
        history = {name: history.get(name, []) + column for name, column in columns.items()}
    return model, history, training, spent


def _start(model, train, flip, key):
    """Fit what has a closed form (colours, whitenings, actnorm) to as many training pictures as fit in memory."""
    # actnorm needs the output of every layer before it, a wavelet flow's whitenings need none
    most = _NUMBERS_FOR_START if independent_levels(model.bijection) else _NUMBERS_FOR_START // 20
    count = max(most // train[0].size // (2 if flip else 1), 16)
    rows = jnp.asarray(train[:count])
    rows = jnp.concatenate([rows, rows[:, :, ::-1]]) if flip else rows
    return eqx.filter_jit(lambda m, x: m.initialise(x, key=key))(model, rows)


def _mirrored(objective, flip):
    """The objective on pictures of which half are mirrored."""
    if not flip:
        return objective

    def mirrored(model, batch, key):
        flip_key, key = jax.random.split(key)
        x = batch["image"]
        chosen = jax.random.bernoulli(flip_key, 0.5, (x.shape[0], 1, 1, 1))
        return objective(model, {"image": jnp.where(chosen, x[:, :, ::-1], x)}, key)

    return mirrored
