"""Application 2: pictures on the left, one latent per scale on the right.

One exact likelihood has two sides: draw from it and there are new pictures, evaluate it and there is an anomaly score.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from flowknife._progress import progress
from flowknife._settings import validated
from flowknife._types import Key, as_key
from flowknife.apps._image_training import train_images
from flowknife.apps._levels import image_model, level_features, level_terms
from flowknife.architectures import glow, levels_for, realnvp, wavelet
from flowknife.bijections import Bijection
from flowknife.data import ImageSet, Skipped, fingerprint, load_images, write_skipped
from flowknife.diagnostics import Check, Typicality, ks_normal, round_trip_error
from flowknife.errors import InputError
from flowknife.inn import INN
from flowknife.storage import load_tree, read_history, read_run, write_run
from flowknife.train import Training

_LOOKED_AT = 2000  # training pictures that the detector is fitted to
_KEPT_IMAGES = 400  # held-out pictures kept with the run
_NUMBERS_AT_ONCE = 800_000  # pictures are encoded in batches of at most so many numbers
_DRAWN_AT_ONCE = 16  # pictures
_DETECTOR = ("mean", "scale", "precision", "held_out")


class Augmentation(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Changes of the training pictures, drawn anew for every batch; never applied to what is scored."""

    flip: bool | None = pydantic.Field(
        None, description="mirror half of the pictures; default: if the mean picture is symmetric"
    )


class ImagesConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Settings of `images`."""

    seed: int = 0
    image_size: int | None = pydantic.Field(
        None, ge=4, description="side in pixels; default: the pictures', at most 64"
    )
    bits: int = pydantic.Field(5, ge=1, le=8, description="bits per channel; 8 compares with papers, 5 learns faster")
    architecture: Literal["wavelet", "glow", "realnvp"] = "wavelet"
    levels: int | None = pydantic.Field(None, ge=1, description="scales; default: by image size")
    steps_per_level: int = pydantic.Field(8, ge=1, description="steps of glow per level")
    width: int = pydantic.Field(128, ge=8, description="hidden channels")
    alpha: float = pydantic.Field(0.05, gt=0, lt=1, description="pictures with a p-value below are flagged")
    augment: Augmentation = Augmentation()
    train: Training = Training()


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
    size = config.image_size or _default_size(folder)
    data = _read(folder, size, show_progress)
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
    features, _ = _features(model, held_out)
    train_features, _ = _features(model, train[:_LOOKED_AT])
    return Images(
        model=model,
        detector=Typicality.fit(train_features, features),
        held_out_bits=_bits(model, features),
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


def _default_size(folder):
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


def _read(folder, size, show_progress, channels: Any = "auto") -> ImageSet:
    if isinstance(folder, ImageSet):
        return folder
    with progress("reading pictures", show_progress) as report:
        return load_images(
            folder, size, channels=channels, on_progress=lambda done, total: report(done / total, f"{done} of {total}")
        )


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


def _batches(rows):
    """(number of rows, rows) of batches of one size, the last one filled up: one compiled program serves all."""
    size = int(np.clip(2 ** np.floor(np.log2(_NUMBERS_AT_ONCE / rows[0].size)), 1, 64))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield len(part), np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])


@eqx.filter_jit
def _look(model, pixels, key):
    image = model.partition.left[0]
    terms = level_terms(model.bijection, image.law.prepare(key, pixels, (), image.shape))
    return level_features(terms), jnp.concatenate([z.reshape(len(pixels), -1) for z, _ in terms], axis=1)


def _bits(model, features):
    """Bits/dim of whole pictures, from those of their levels."""
    sizes = np.array([block.size for block in model.partition.right])
    return features[:, -len(sizes) :] @ sizes / sizes.sum()


def _features(model, pixels):
    """Features of every picture, `(n, k)`, see `level_features`; and its latents, `(n, H W C)`, coarsest first."""
    # the same noise for every batch: pictures differ by what they show, not by a draw
    looks = [(count, _look(model, part, as_key(0))) for count, part in _batches(pixels)]
    features, latents = ([np.asarray(look[i])[:count] for count, look in looks] for i in (0, 1))
    return np.concatenate(features).astype(np.float64), np.concatenate(latents)


@dataclass(frozen=True)
class Images:
    """A trained image model.

    Attributes:
        model: the network, image <-> z_0 ... z_L (z_0 the coarsest).
        detector: the typicality test over levels, calibrated on held-out pictures.
        held_out_bits: bits/dim of the held-out pictures.
        held_out: held-out pictures, uint8 (n, H, W, C).
        config: settings.
        history: columns of the training curve.
        skipped: files that could not be used, and why.
        facts: what is worth knowing about the run.
    """

    model: INN = field(repr=False)
    detector: Typicality = field(repr=False)
    held_out_bits: np.ndarray = field(repr=False)
    held_out: np.ndarray = field(repr=False)
    config: ImagesConfig
    history: dict[str, list[float]] = field(repr=False)
    skipped: tuple[Skipped, ...] = field(repr=False)
    facts: dict[str, Any]

    application = "images"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the pictures."""
        height, width, channels = self.model.partition.left[0].shape
        return height, width, channels

    def sample(self, n: int, key: Key = None, temperature: Any = 0.7) -> np.ndarray:
        """Draw `n` new pictures, uint8 (n, H, W, C).

        Args:
            n: number of pictures.
            key: int, JAX key or None.
            temperature: scale of the latents, one number, or one per level by name ("z_0" is the coarsest).
        """
        if n < 1:
            raise InputError(f"got n={n}; expected at least 1 picture")
        keys = jax.random.split(as_key(key), -(-n // _DRAWN_AT_ONCE))
        temperature = jax.tree.map(jnp.asarray, temperature)  # an argument of the compiled function, not part of it
        return np.concatenate([np.asarray(_draw(self.model, k, temperature)) for k in keys])[:n]

    def encode(self, pictures: Any) -> np.ndarray:
        """Latents (n, H W C) of pictures, coarsest level first; `decode` gives back every bin of every pixel."""
        batches = _batches(self._pixels(pictures).pixels)
        return np.concatenate([np.asarray(_encode(self.model, part))[:count] for count, part in batches])

    def latents(self, pictures: Any) -> np.ndarray:
        """Latents (n, H W C) that follow N(0, I): the noise within the bins, left out by `encode`, is drawn."""
        return _features(self.model, self._pixels(pictures).pixels)[1]

    def decode(self, z: Any) -> np.ndarray:
        """Pictures, uint8 (n, H, W, C), of latents (n, H W C)."""
        return np.concatenate(
            [np.asarray(_decode(self.model, part))[:count] for count, part in _batches(np.asarray(z))]
        )

    def log_prob(self, pictures: Any) -> np.ndarray:
        """Log-probability of the discrete pictures of `config.bits` bits, in nats, shape (n,)."""
        features, _ = _features(self.model, self._pixels(pictures).pixels)
        return -_bits(self.model, features) * np.prod(self.shape) * np.log(2)

    def score(self, pictures: Any) -> dict[str, np.ndarray]:
        """How strange each picture is.

        Args:
            pictures: as for `images`; files that cannot be used are left out (read them with
                `flowknife.data.load_images` to learn why).

        Returns:
            columns by name: path; bits_per_dim; radius, |z| / sqrt(dimensions); typicality, the distance of bits/dim
            from that of held-out pictures in standard deviations; score, the combined two-sided score over all levels;
            p_value, split-conformal; flag, p_value < alpha.
        """
        data = self._pixels(pictures)
        features, latents = _features(self.model, data.pixels)
        bits, held = _bits(self.model, features), self.held_out_bits
        p_value = self.detector.p_values(features)
        return {
            "path": np.asarray(data.names),
            "bits_per_dim": bits,
            "radius": np.sqrt(np.mean(latents**2, axis=1)),
            "typicality": np.abs(bits - held.mean()) / held.std(),
            "score": self.detector.score(features),
            "p_value": p_value,
            "flag": p_value < self.config.alpha,
        }

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Held-out `nll` in nats per picture and `bits_per_dim`."""
        bits = float(self.held_out_bits.mean())
        return {"nll": bits * float(np.prod(self.shape)) * float(np.log(2)), "bits_per_dim": bits}

    def check(self, pictures: Any = None) -> list[Check]:
        """Round trip, latents and false alarms of held-out pictures, or of `pictures`, against what they should be."""
        pixels = self.held_out if pictures is None else self._pixels(pictures).pixels
        features, z = _features(self.model, pixels)
        levels = self.model.partition.left[0].law.prepare(as_key(0), pixels[:64], (), self.shape)
        alarms = np.mean(self.detector.p_values(features) < self.config.alpha)
        return [
            Check("round trip, in standard deviations", round_trip_error(self.model.bijection, levels[:16]), 1e-2),
            Check("distance of the latents from N(0, 1)", ks_normal(z), 0.1),
            Check(
                "share of pictures flagged",
                float(alarms),
                self.config.alpha + 4 * (self.config.alpha / len(pixels)) ** 0.5,
            ),
        ]

    def save(self, folder: str | Path) -> Path:
        """Write a run directory; `flowknife.load` reads it."""
        record = {
            "application": self.application,
            "config": self.config.model_dump(exclude_none=True),
            "metrics": self.metrics,
            "data": {"fingerprint": self.facts["fingerprint"]},
            "facts": self.facts,
        }
        detector = {name: np.asarray(getattr(self.detector, name)) for name in _DETECTOR}
        tree = {
            "model": self.model,
            "detector": detector,
            "held_out_bits": self.held_out_bits,
            "held_out": self.held_out,
        }
        run = write_run(folder, record, tree, self.history)
        write_skipped(run / "skipped.csv", self.skipped)
        return run

    @classmethod
    def load(cls, folder: str | Path) -> "Images":
        """Read a run directory that `save` wrote."""
        record, tree = read_run(folder), load_tree(Path(folder) / "model.safetensors")
        return cls(
            model=tree["model"],
            detector=Typicality(**{name: np.asarray(tree["detector"][name]) for name in _DETECTOR}),
            held_out_bits=np.asarray(tree["held_out_bits"]),
            held_out=np.asarray(tree["held_out"]),
            config=ImagesConfig.model_validate(record["config"]),
            history=read_history(folder),
            skipped=(),
            facts=record["facts"],
        )

    def report(self, folder: str | Path, others: Any = None) -> Path:
        """Write the pictures and `report.html` into `folder`; return the page's path.

        Args:
            folder: the run directory.
            others: pictures of other things to show beside the held-out ones.
        """
        from flowknife.report import report_images

        return report_images(self, folder, others)

    def _pixels(self, pictures) -> ImageSet:
        height, width, channels = self.shape
        data = _read(pictures, (height, width), show_progress=False, channels=channels)
        if data.pixels.shape[1:] != self.shape:
            raise InputError(f"got pictures of shape {data.pixels.shape[1:]}; expected {self.shape}, as in training")
        return data


@eqx.filter_jit
def _encode(model, pixels):
    image = model.partition.left[0]
    return model.bijection.encode(image.law.prepare(None, pixels, (), image.shape))[0]


@eqx.filter_jit
def _draw(model, key, temperature):
    return model.sample(key, _DRAWN_AT_ONCE, temperature=temperature)


@eqx.filter_jit
def _decode(model, z):
    ends = np.cumsum([block.size for block in model.partition.right])[:-1]
    parts = jnp.split(z, ends, axis=-1)
    return model.decode({b.name: part for b, part in zip(model.partition.right, parts, strict=True)})["image"]
