"""A trained image model: what one does with it."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowknife._progress import progress
from flowknife._types import Key, as_key
from flowknife.apps._image_config import ImagesConfig
from flowknife.apps._levels import level_features, level_terms
from flowknife.data import ImageSet, Skipped, load_images, write_skipped
from flowknife.diagnostics import Check, Typicality, ks_normal, round_trip_error
from flowknife.errors import InputError
from flowknife.inn import INN
from flowknife.storage import load_tree, read_history, read_run, write_run

_DRAWN_AT_ONCE = 16  # pictures
_NUMBERS_AT_ONCE = 800_000  # pictures are encoded in batches of at most so many numbers
_DETECTOR = ("mean", "scale", "precision", "held_out")


def as_pictures(folder, size, show_progress, channels: Any = "auto") -> ImageSet:
    if isinstance(folder, ImageSet):
        return folder
    with progress("reading pictures", show_progress) as report:
        return load_images(
            folder, size, channels=channels, on_progress=lambda done, total: report(done / total, f"{done} of {total}")
        )


def in_batches(rows):
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


def bits_of(model, features):
    """Bits/dim of whole pictures, from those of their levels."""
    sizes = np.array([block.size for block in model.partition.right])
    return features[:, -len(sizes) :] @ sizes / sizes.sum()


def look(model, pixels):
    """Features of every picture, `(n, k)`, see `level_features`; and its latents, `(n, H W C)`, coarsest first."""
    # the same noise for every batch: pictures differ by what they show, not by a draw
    looks = [(count, _look(model, part, as_key(0))) for count, part in in_batches(pixels)]
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
        batches = in_batches(self._pixels(pictures).pixels)
        return np.concatenate([np.asarray(_encode(self.model, part))[:count] for count, part in batches])

    def latents(self, pictures: Any) -> np.ndarray:
        """Latents (n, H W C) that follow N(0, I): the noise within the bins, left out by `encode`, is drawn."""
        return look(self.model, self._pixels(pictures).pixels)[1]

    def decode(self, z: Any) -> np.ndarray:
        """Pictures, uint8 (n, H, W, C), of latents (n, H W C)."""
        return np.concatenate(
            [np.asarray(_decode(self.model, part))[:count] for count, part in in_batches(np.asarray(z))]
        )

    def log_prob(self, pictures: Any) -> np.ndarray:
        """Log-probability of the discrete pictures of `config.bits` bits, in nats, shape (n,)."""
        features, _ = look(self.model, self._pixels(pictures).pixels)
        return -bits_of(self.model, features) * np.prod(self.shape) * np.log(2)

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
        features, latents = look(self.model, data.pixels)
        bits, held = bits_of(self.model, features), self.held_out_bits
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
        features, z = look(self.model, pixels)
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
        data = as_pictures(pictures, (height, width), show_progress=False, channels=channels)
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
