"""Application 2: pictures on the left, one latent per scale on the right.

One exact likelihood has two sides: draw from it and there are new pictures, evaluate it and there is an anomaly score.
"""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from flowknife._settings import validated
from flowknife._types import Key, as_key
from flowknife.apps._image_config import ImagesConfig
from flowknife.apps._image_training import train_images
from flowknife.apps._images import Images, as_pictures, bits_of, look
from flowknife.apps._levels import image_model
from flowknife.architectures import glow, levels_for, realnvp, wavelet
from flowknife.bijections import Bijection
from flowknife.data import fingerprint
from flowknife.diagnostics import Typicality
from flowknife.errors import InputError

_LOOKED_AT = 2000  # training pictures that the detector is fitted to
_KEPT_IMAGES = 400  # held-out pictures kept with the run


def images(
    folder: Any,
    config: ImagesConfig | None = None,
    *,
    key: Key = None,
    show_progress: bool = True,
    **settings: Any,
) -> "Images":
    """Learn the pictures of a folder: to draw new ones, and to tell what is not one of them.

    Args:
        folder: a folder of PNG or JPEG files of any mode and size, all subfolders mixed; or a uint8 array of pictures
            (n, H, W) or (n, H, W, 1 or 3); or paths.
        config: settings; default `ImagesConfig()`: 5 bits, the wavelet flow, 15 minutes at most.
        key: int, JAX key or None; None means `config.seed`.
        show_progress: show progress bars.
        **settings: fields of `ImagesConfig` that replace those in `config`; `train` may be a dict.

    Returns:
        the trained model with its held-out calibration.

    Raises:
        InputError: for a folder without usable pictures. Single files that cannot be used are listed in `.skipped`.
    """
    base = {} if config is None else config.model_dump(exclude_unset=True)
    config = validated(ImagesConfig, {**base, **settings})
    size = config.image_size or default_size(folder)
    data = as_pictures(folder, size, show_progress)
    if len(data) < 8:
        raise InputError(f"got {len(data)} usable pictures; expected at least 8, better some hundreds")
    model_key, split_key, fit_key = jax.random.split(as_key(config.seed if key is None else key), 3)

    share = config.train.validation if "validation" in config.train.model_fields_set else 0.2
    order = np.asarray(jax.random.permutation(split_key, len(data)))
    held = max(round(share * len(data)), 4)
    # what decides when to stop must not calibrate: its pictures have become the model's favourites
    stopping, held_out, train = np.split(data.pixels[order], [max(held // 4, 1), held])
    flip = config.augment.flip if config.augment.flip is not None else _symmetric(train)

    shape = data.pixels.shape[1:]
    # compiled as a whole: the many small draws of initial weights would take longer one by one
    model = eqx.filter_jit(lambda k: image_model(shape, config.bits, _bijection(shape, config, k)))(model_key)
    model, history, training, seconds = train_images(
        model, train, stopping, config.train, flip=flip, key=fit_key, show_progress=show_progress
    )
    features, _ = look(model, held_out)
    train_features, _ = look(model, train[:_LOOKED_AT])
    return Images(
        model=model,
        detector=Typicality.fit(train_features, features),
        held_out_bits=bits_of(model, features),
        held_out=held_out[:_KEPT_IMAGES],
        config=config.model_copy(update={"image_size": size, "train": training}),
        history=history,
        skipped=data.skipped,
        facts={
            "pictures": len(data),
            "held out": len(held_out),
            "skipped files": len(data.skipped),
            "mirrored": flip,
            "seconds": round(seconds, 1),
            "fingerprint": fingerprint(data),
        },
    )


def default_size(folder):
    """The median shorter side of a few pictures, to the nearest size that halves well, at most 64."""
    if hasattr(folder, "shape"):
        side = min(folder.shape[1:3])
    else:
        from PIL import Image

        sides = []
        for path in sorted(Path(folder).rglob("*"))[:200] if isinstance(folder, (str, Path)) else list(folder)[:200]:
            try:
                with Image.open(path) as picture:
                    sides.append(min(picture.size))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                continue
        side = float(np.median(sides)) if sides else 64
    return min((8, 16, 24, 28, 32, 48, 64), key=lambda size: abs(size - side))


def _symmetric(pixels):
    """Whether the mean picture is its own mirror image, but for 2 % of its variation over the picture."""
    mean = pixels.mean(axis=0, dtype=np.float64)
    variation = np.sum((mean - mean.mean(axis=(0, 1))) ** 2)
    return bool(np.sum((mean - mean[:, ::-1]) ** 2) < 0.02 * 4 * variation)


def _bijection(shape, config, key) -> Bijection:
    if config.architecture == "wavelet":
        width = config.width
        return wavelet(shape, levels=config.levels, width=width, features=width, coarse_width=width, key=key)
    if config.architecture == "glow":
        levels = config.levels or levels_for(shape)
        return glow(shape, levels=levels, steps=config.steps_per_level, width=config.width, key=key)
    return realnvp(shape, width=config.width, key=key)
