"""Training of an image model: level after level, or all levels together."""

from collections.abc import Mapping

import jax
import numpy as np

from flowknife.data import Augmentation
from flowknife.inn import INN
from flowknife.multiscale import independent_levels, joint_nll, level_part
from flowknife.objectives import Augmented, BlockNLL
from flowknife.stages import Stage, Trained, closed_form_start, fit_stages
from flowknife.train import Checkpoints, Rows, Training, whole

_NUMBERS_PER_STEP = 100_000

_FEW = 2000  # images


def train_images(
    model: INN,
    data: Mapping[str, Rows],
    held_out: Mapping[str, np.ndarray] | None,
    training: Training,
    *,
    augmentation: Augmentation,
    flip: bool,
    parallel: int,
    key: jax.Array,
    show_progress: bool,
    checkpoints: Checkpoints,
    reserve: float = 0.0,
) -> "Trained":
    """Train an image model.

    Args:
        model: the model to start from.
        data: training images "image", uint8 (n, H, W, C), and their conditions by name.
        held_out: the same for early stopping, or None.
        training: settings; a time budget is for all levels together, epochs and steps are per level.
        augmentation: changes of the training images; images for early stopping are not augmented.
        flip: mirror half of the images in every batch.
        parallel: number of levels to train at the same time, if they can be trained separately.
        key: JAX key.
        show_progress: show progress bars.
        checkpoints: checkpoints of the fit.
        reserve: seconds of the time budget that are kept for the steps after training.

    Returns:
        the model and a summary of training; its `training` has the settings that all levels share.
    """
    together = not independent_levels(model.bijection)
    training = training.completed(
        # levels with few layers each are stable with large steps
        learning_rate=1e-3 if together else 5e-3,
        average=0.995,
        patience=8,
    )

    start_key, key = jax.random.split(key)
    pixels = data["image"]
    model = closed_form_start(model, pixels, augmentation, flip, start_key, data.get("y"))
    # the time of a level grows more slowly than its size, since large levels are more regular
    blocks = model.partition.right
    sizes = [pixels[0].size] if together else [block.size for block in blocks]
    shares = np.sqrt(sizes)
    order = list(range(len(shares)))
    learned_noise = model.partition.left[0].law.noise is not None
    if learned_noise:
        # the dequantisation noise belongs to the finest level, but affects the others
        order = [order[-1], *order[:-1]]

    most = max(_batch(pixels[0].size, most=32), 8)
    decay = 0.0 if together else _weight_decay(len(pixels))

    def settings(level):
        """Settings that depend on the level, unless they were requested."""
        # in large images, a few are enough for the fine levels, which have many positions
        batch = training.batch_size or _batch(sizes[level], most=most)
        own = training.completed(
            batch_size=batch,
            # evaluating the held-out images takes about a tenth of the time
            evaluate_every=max(60, 3 * len(() if held_out is None else held_out["image"]) // batch),
            # weight decay would pull learned noise back to its start
            weight_decay=0.0 if learned_noise and level == len(sizes) - 1 else decay,
        )
        return {name: getattr(own, name) for name in ("batch_size", "evaluate_every", "weight_decay")}

    stages = []
    for i, level in enumerate(order):
        objective = joint_nll if together else BlockNLL(blocks[level].name)
        stages.append(
            Stage(
                level=-1 if together else level,
                share=shares[level],
                label="images" if together else f"level {level}, {i + 1} of {len(shares)}",
                where=whole if together else level_part(level),
                objective=Augmented(objective, augmentation, flip),
                held_out_objective=objective,
                settings=settings(level),
            )
        )
    alone = 1 if learned_noise else 0
    return fit_stages(
        model,
        data,
        held_out,
        training,
        stages,
        key,
        show_progress,
        checkpoints=checkpoints,
        reserve=reserve,
        alone=alone,
        parallel=parallel,
    )


def _weight_decay(images):
    """Weight decay grows as the data set shrinks: small sets overfit sooner."""
    return round(min((_FEW / images) ** 0.5, 1.0), 2)


def _batch(size, most):
    """Batch size, a power of 2, for about `_NUMBERS_PER_STEP` numbers per step."""
    return int(np.clip(2 ** round(np.log2(_NUMBERS_PER_STEP / size)), 1, most))
