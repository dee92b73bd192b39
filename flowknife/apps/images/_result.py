"""The result of `flowknife.images`: a trained image model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from flowknife._batches import IMAGES_AT_ONCE, draw_batches, map_batches
from flowknife._progress import Report, progress, unreported
from flowknife._settings import Settings
from flowknife._types import Key, as_count, as_key, sizes_agree
from flowknife.anomaly._features import bits_of, level_squares, look
from flowknife.anomaly._maps import anomaly_maps_of, maps_by_position
from flowknife.anomaly._neighbours import Nearest, Neighbours, thumbnails
from flowknife.anomaly._scores import Features, features_of
from flowknife.apps._result import Result
from flowknife.apps.images._config import ImagesConfig
from flowknife.apps.images._empirical import ByLevel, Empirical, by_level
from flowknife.apps.images._latents import DRAWN_AT_ONCE, How, draw_batch, redrawn, way
from flowknife.data import ImageSet, White
from flowknife.data._arrays import array_file
from flowknife.data._cells import array_of
from flowknife.data.images import as_images
from flowknife.data.labels import Names, as_codes, codes_of, one_hot
from flowknife.diagnostics import (
    Check,
    Flagging,
    Scores,
    Typicality,
    image_losses,
    ks_normal,
    radius_p_values,
    reference_check,
    round_trip_error,
    scored,
)
from flowknife.errors import InputError
from flowknife.laws import LARGEST_TEMPERATURE, Pixels, as_temperature
from flowknife.multiscale import decode_batch, encode_batch

_FEWEST_COMPARED = 8  # images needed to fit the simple reference models

_AS_GOOD = 0.02  # bits per dimension by which a model may be worse than simple reference models


@dataclass(frozen=True, kw_only=True, repr=False)
class Images(Result[ImagesConfig]):
    """A trained image model.

    In a class-conditional model every method takes `given`, one class for all images or one for each. It may be left
    out for a folder whose subfolders are classes.

    Attributes:
        model: the network, image <-> z_0 ... z_L (z_0 the coarsest).
        detector: the typicality test over levels, calibrated on held-out images, if there are any.
        held_out_bits: bits/dim of the held-out images, or of training images if none were held out.
        held_out_squares: |z|^2 of each of their levels, shape (n, levels).
        held_out: calibration images, uint8 (n, H, W, C), used neither for training nor for early stopping; none with
            `train.validation=0`.
        reference: training images, if none were held out.
        empirical: the empirical prior of the latents.
        neighbours: thumbnails of training images.
        example_codes: for a model with classes, the class numbers of `examples`.
    """

    application: ClassVar[str] = "images"
    title: ClassVar[str] = "image model"
    settings: ClassVar[type[Settings]] = ImagesConfig
    parts: ClassVar[Mapping[str, Any]] = {"detector": Typicality, "empirical": Empirical, "neighbours": Neighbours}
    kept: ClassVar[tuple[str, ...]] = (
        *parts,
        "held_out_bits",
        "held_out_squares",
        "held_out",
        "reference",
        "example_codes",
    )

    detector: Typicality = field(repr=False)
    held_out_bits: np.ndarray = field(repr=False)
    held_out_squares: np.ndarray = field(repr=False)
    held_out: np.ndarray = field(repr=False)
    reference: np.ndarray = field(repr=False)
    empirical: Empirical = field(repr=False)
    neighbours: Neighbours = field(repr=False)
    example_codes: np.ndarray = field(default_factory=lambda: np.zeros(0, int), repr=False)

    @property
    def white(self) -> White:
        """The pixel values that were mapped to 255."""
        return self.record.data.white

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images."""
        height, width, channels = self.model.partition.left[0].shape
        return height, width, channels

    @property
    def levels(self) -> dict[str, slice]:
        """The columns of each level in the latents, by name, the coarsest first."""
        ends = np.cumsum([block.size for block in self.model.partition.right])
        return {
            b.name: slice(int(end - b.size), int(end)) for b, end in zip(self.model.partition.right, ends, strict=True)
        }

    def sample(
        self,
        n: int,
        *,
        key: Key = None,
        temperature: Any = 0.7,
        prior: Literal["normal", "empirical"] = "normal",
        shrink: ByLevel = 0.0,
        given: Any = None,
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Draw `n` new images, uint8 (n, H, W, C).

        Args:
            n: number of images.
            key: int, JAX key or None.
            temperature: scale of the latents, one number, or one per level by name ("z_0" is the coarsest; 1 for levels
                not named).
            prior: "normal" draws the latents from N(0, I), the law of the model; "empirical" from a Gaussian fitted to
                the training latents, which corrects for their deviation from N(0, I).
            shrink: shrinkage of the empirical prior, from 0 (as fitted) to 1 (N(0, I)); one number, or one per level by
                name.
            given: the class of all, or one for each, if the model has classes.
        """
        n = as_count(n, "image")
        temperatures = by_level(temperature, self.levels, "temperature", 1.0, LARGEST_TEMPERATURE)
        if prior == "empirical":
            return self.decode(self.empirical.sample(n, key=key, temperature=temperatures, shrink=shrink), given)
        if prior != "normal":
            raise InputError(f"got prior={prior!r}; expected 'normal' or 'empirical'")
        # arguments of the compiled function, not part of it
        arguments = {name: jnp.asarray(number) for name, number in temperatures.items()}
        return draw_batches(
            lambda k, size, part: draw_batch(self.model, k, size, arguments, part),
            n,
            as_key(key),
            most=DRAWN_AT_ONCE,
            given=self._known(given, n),
        )

    def encode(self, images: Any, given: Any = None) -> Float[np.ndarray, "n d"]:
        """Latents (n, H W C) of images, coarsest level first; `decode` gives back every bin of every pixel."""
        data, known = self._read(images, given)
        return map_batches(lambda part: [encode_batch(self.model, *part)], (data.pixels, known))[0]

    def latents(self, images: Any, given: Any = None) -> Float[np.ndarray, "n d"]:
        """Latents (n, H W C) that follow N(0, I): the noise within the bins, left out by `encode`, is drawn."""
        data, known = self._read(images, given)
        return look(self.model, data.pixels, given=known).latents

    def decode(self, z: Any, given: Any = None) -> UInt8[np.ndarray, "n h w c"]:
        """Images, uint8 (n, H, W, C), of latents (n, H W C)."""
        z = np.asarray(z)
        return map_batches(lambda part: [decode_batch(self.model, *part)], (z, self._known(given, len(z))))[0]

    def interpolate(
        self, a: Any, b: Any, steps: int = 8, how: How = "spherical", given: Any = None
    ) -> UInt8[np.ndarray, "steps h w c"]:
        """Interpolate between two images in latent space: uint8 (steps, H, W, C).

        Args:
            a: an image, a file or an array (H, W) or (H, W, C); the first image of the result, up to quantisation.
            b: the last image.
            steps: number of images, both ends included.
            how: "spherical" interpolates direction and radius of each level; "linear" interpolates the latents.
            given: the class of both, if the model has classes.
        """
        if steps < 2:
            raise InputError(f"got steps={steps}; expected at least 2, the two images")
        if how not in ("spherical", "linear"):
            raise InputError(f"got how={how!r}; expected 'spherical' or 'linear'")
        start, end = (self.encode(_one(image), given)[0] for image in (a, b))
        parts = [way(start[columns], end[columns], steps, how) for columns in self.levels.values()]
        return self.decode(np.concatenate(parts, axis=1), given)

    def attribute(self, positive: Any, negative: Any, given: Any = None) -> Float[np.ndarray, " d"]:
        """The latent direction (H W C,) of an attribute, from images without it to images with it.

        The difference of the mean latents (Kingma & Dhariwal 2018, arXiv 1807.03039, sec. 6.2); `along` follows it.

        Args:
            positive: images with the attribute, a folder or an array.
            negative: images without it.
            given: the class of all, if the model has classes.
        """
        return self.encode(positive, given).mean(axis=0) - self.encode(negative, given).mean(axis=0)

    def along(
        self,
        images: Any,
        direction: Any,
        strengths: Sequence[float | int] = (-2, -1, 0, 1, 2),
        given: Any = None,
    ) -> UInt8[np.ndarray, "n s h w c"]:
        """Images moved along a latent direction, uint8 (n, len(strengths), H, W, C).

        Args:
            images: one image or several.
            direction: a direction from `attribute`.
            strengths: step sizes; 0 is the image itself, 1 the distance from the negative to the positive mean.
            given: the class of all, or one for each image, if the model has classes.
        """
        direction, z = np.asarray(direction, np.float32), self.encode(images, given)
        if direction.shape != z.shape[1:]:
            raise InputError(f"got a direction of shape {direction.shape}; expected {z.shape[1:]}, as of attribute")
        moved = z[:, None] + np.asarray(strengths, np.float32)[:, None] * direction
        return self._decoded(moved, given)

    def resample(
        self,
        images: Any,
        level: int | str,
        n: int = 8,
        *,
        key: Key = None,
        temperature: float | int = 1.0,
        given: Any = None,
    ) -> UInt8[np.ndarray, "m n h w c"]:
        """Images with the latent of one level resampled and all others kept, uint8 (m, n, H, W, C).

        Args:
            images: one image or m.
            level: name or number of the level; "z_0" or 0 is the coarsest.
            n: number of draws for each image; all images share the draws.
            key: int, JAX key or None.
            temperature: scale of the draws.
            given: the class of all, or one for each image, if the model has classes.
        """
        names = list(self.levels)
        name = names[level] if isinstance(level, int) and level in range(len(names)) else level
        if name not in names:
            raise InputError(f"got level {level!r}; expected one of {', '.join(names)}, or 0 to {len(names) - 1}")
        new = redrawn(self.encode(images, given), self.levels[name], n, key, as_temperature(temperature))
        return self._decoded(new, given)

    def nearest(self, images: Any, k: int = 3, folder: Any = None) -> Nearest:
        """The nearest training images of each image; mirror images count too.

        Samples that lie much nearer to training images than held-out images do are memorised rather than generated.

        Args:
            images: one image or several, such as samples.
            k: number of neighbours for each image.
            folder: images to compare with; default: up to 10,000 thumbnails of training images kept with the run.
        """
        known = self.neighbours
        if folder is not None:
            known = Neighbours.fit(thumbnails(self._pixels(folder).pixels), known.mirrored)
        if not 1 <= k <= len(known.images):
            raise InputError(f"got k={k}; expected 1 to {len(known.images)}, the number of images")
        return known.nearest(self._pixels(images).pixels, k)

    def log_prob(self, images: Any, given: Any = None) -> Float[np.ndarray, " n"]:
        """Log-probability of the discrete images of `config.bits` bits, in nats, shape (n,)."""
        data, known = self._read(images, given)
        features = look(self.model, data.pixels, given=known).levels
        return -bits_of(self.model, features) * np.prod(self.shape) * np.log(2)

    def score(self, images: Any, show_progress: bool = False, given: Any = None) -> Scores:
        """Anomaly score of each image.

        Args:
            images: as for `images`; unusable files are left out (`flowknife.data.load_images` gives the reasons).
            show_progress: show a progress bar.
            given: the class of all, or one for each, if the model has classes; default: the subfolder of each image.

        Returns:
            in addition to the columns of every job (see `Scores`):

            - bits_per_dim: negative log-likelihood, also low for simple images;
            - upside_down, inverted: bits/dim of the image minus bits/dim of the changed one, mean over the coarse
            levels;
            - blur_gap: bits/dim of the finest level after blurring by one pixel, minus bits/dim before;
            - local_energy: log of the largest mean square of the finest latents at one position, for the image and for
            copies shifted by one and by two pixels;
            - local_outlier: distance from the most similar training images, minus the distance between these;
            - complexity: bits/dim under the model minus bits/dim of a PNG file;
            - typicality: distance of bits/dim from that of held-out images, in standard deviations;
            - radius: |z| / sqrt(dimensions), and radius_p, the two-sided p-value of the radii of all levels.

            The score combines all of these features and the levels; its p-value is cross-conformal. Without calibration
            images there are no p-values, and a `CalibrationWarning` gives the reason; see `flagging`.
        """
        data, known = self._read(images, given)
        with progress("scoring images", show_progress) as report:
            features = self._features(data.pixels, known, report)
        bits, held = bits_of(self.model, features.levels), self.held_out_bits
        radii = {}
        if self.flagging.rows:
            squares = level_squares(self.model, features.latents)
            radii["radius_p"] = radius_p_values(squares, self.held_out_squares)
        columns = {
            "path": np.asarray(data.names),
            "bits_per_dim": bits,
            **features.one_sided,
            "typicality": np.abs(bits - held.mean()) / held.std(),
            "radius": np.sqrt(np.mean(features.latents**2, axis=1)),
            **radii,
            "score": self.detector.score(features.matrix),
        }
        return scored(columns, self.flagging, self.detector.p_values(features.matrix))

    @property
    def flagging(self) -> Flagging:
        """How images are flagged; if none can be flagged, its `note` gives the reason."""
        return Flagging(len(self.detector.held_out), self.config.alpha, "images")

    @property
    def examples(self) -> np.ndarray:
        """Example images, uint8 (n, H, W, C): held-out images, or training images if none were held out."""
        return self.held_out if self.flagging.rows else self.reference

    @property
    def classes(self) -> Names:
        """The classes of training, which condition the images; () for a model without conditions."""
        return self.record.data.classes

    @property
    def example_classes(self) -> Any:
        """The classes of `examples`; None without classes."""
        return array_of(self.classes)[self.example_codes] if self.classes else None

    def anomaly_map(self, images: Any, given: Any = None) -> Float[np.ndarray, "n h w"]:
        """The anomaly map of each image: standard deviations from held-out images by position, float (n, H, W).

        At each position of each level, the negative log density is standardised by its values for held-out images at
        that position. The map is the sum over levels. A position of the model's grid covers several pixels, so the map
        is averaged over four shifts of the image. It is positive where an image is less likely than typical (edges,
        noise) and negative where it is more likely (blank areas). Levels without positions are left out; if no level
        has positions, the map is 0.
        """
        data, known = self._read(images, given)
        maps, pixels = maps_by_position(self.model, data.pixels, known), data.pixels
        if not maps[0]:
            return np.zeros(pixels.shape[:3])
        return anomaly_maps_of(maps, self._held_out_maps, self.shape[:2])

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Held-out `nll` in nats per image and `bits_per_dim`.

        If no images were held out: `training_nll` and `training_bits_per_dim`, the same for training images.
        """
        bits = float(self.held_out_bits.mean())
        nll = bits * float(np.prod(self.shape)) * float(np.log(2))
        return self.flagging.named({"nll": nll, "bits_per_dim": bits})

    def _checks(self, images, given, /):
        """The round trip, the distribution of latents, false alarms, and bits per dimension against simple models."""
        if images is None:
            pixels, known = self.held_out, self._known(self.example_classes, len(self.held_out))
        else:
            data, known = self._read(images, given)
            pixels = data.pixels
        cond = jnp.asarray(known["y"][:16]) if known else None
        features = self._features(pixels, known)
        levels = self.model.partition.left[0].law.prepare(as_key(0), pixels[:64], pixels[:64].shape[:1], self.shape)
        return [
            Check(
                "round trip, in standard deviations", round_trip_error(self.model.bijection, levels[:16], cond), 1e-2
            ),
            Check("distance of the latents from N(0, 1)", ks_normal(features.latents), 0.1),
            *self.flagging.checks_of(self.detector.p_values(features.matrix)),
            *self._references(pixels, bits_of(self.model, features.levels), own=images is None),
        ]

    def _references(self, pixels, bits, own) -> list[Check]:
        """The check against simple models, which are fitted to held-out images; by two-fold cross-fitting for these."""
        if len(self.held_out) < _FEWEST_COMPARED:
            return []
        if own:
            half = len(pixels) // 2
            parts = [(pixels[half:], pixels[:half]), (pixels[:half], pixels[half:])]
        else:
            parts = [(self.held_out, pixels)]
        found = [image_losses(train, images, self.config.bits) for train, images in parts]
        simple = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        return [reference_check("bits per dimension", bits, simple, _AS_GOOD)]

    def _fits(self):
        law, height_width_channels = self.model.partition.left[0].law, self.shape
        levels = {name: columns.stop - columns.start for name, columns in self.levels.items()}
        directions = [
            sizes_agree(("d", level.mean), ("k d", level.directions), ("k", level.variances), d=levels.get(name, -1))
            for name, level in self.empirical.levels.items()
        ]
        return (
            self.record.data.kind == "images"
            and isinstance(law, Pixels)
            and law.bits == self.config.bits
            and list(self.empirical.levels) == list(levels)
            and all(directions)
            and sizes_agree(
                ("n l", self.held_out_squares),
                ("n", self.held_out_bits),
                ("m h w c", self.held_out),
                ("o h w c", self.reference),
                l=len(levels),
                **dict(zip("hwc", height_width_channels, strict=True)),
            )
        )

    def _figure(self):
        from flowknife import plots

        given = np.resize(self.example_classes, 16) if self.classes else None
        return {"samples": plots.image_grid(self.sample(16, key=0, given=given))}

    def _exported(self):
        from flowknife.apps.images._export import exported

        return exported(self)

    def _report(self, folder, others):
        from flowknife.apps.images._report import report_images

        return report_images(self, folder, others)

    def _read(self, images, given) -> tuple[ImageSet, dict[str, np.ndarray]]:
        """The images, and their conditions."""
        data = self._pixels(images)
        return data, self._known(given, len(data), data.folders)

    def _known(self, given, n, folders=()) -> dict[str, np.ndarray]:
        """The conditions of n images: their classes, by default their subfolders."""
        if not self.classes:
            if given is not None:
                raise InputError(f"got given={given!r} for a model without classes; expected none; try it without")
            return {}
        names = ", ".join(map(str, self.classes))
        if given is None and (not folders or np.any(codes_of(folders, self.classes) < 0)):
            raise InputError(
                f"got {n} images without a class; expected one of {names}; try given={self.classes[0]!r} "
                f"(command line: --given {self.classes[0]}), or a folder with a subfolder for each class"
            )
        codes = as_codes(folders if given is None else given, self.classes)
        if codes.shape not in ((), (n,)):
            raise InputError(f"got {len(codes)} classes for {n} images; expected one, or one for each")
        return one_hot(np.broadcast_to(codes, n), len(self.classes))

    def _pixels(self, images) -> ImageSet:
        height, width, channels = self.shape
        images = _several(images)
        # an array of this size is already cropped, such as a sample or a held-out image
        crop = 1.0 if getattr(images, "shape", ())[1:3] == (height, width) else self.config.crop
        form = {"channels": channels, "crop": crop, "white": self.white}
        data = as_images(images, (height, width), show_progress=False, **form)
        if data.pixels.shape[1:] != self.shape:
            raise InputError(f"got images of shape {data.pixels.shape[1:]}; expected {self.shape}, as in training")
        return data

    def _decoded(self, z, given):
        """Images of latents (m, n, d); all n of a row have the same class."""
        given = np.repeat(given, z.shape[1]) if np.ndim(given) else given
        return self.decode(z.reshape(-1, z.shape[-1]), given).reshape(*z.shape[:-1], *self.shape)

    def _live(self, images=None):
        from flowknife.apps.images._explore import live_images

        return live_images(self, images)

    def _features(self, pixels, known, report: Report = unreported, most: int = IMAGES_AT_ONCE) -> Features:
        return features_of(self.model, pixels, self.neighbours, report=report, given=known, most=most)

    @cached_property
    def _held_out_maps(self):
        known = self._known(self.example_classes, len(self.examples))
        return maps_by_position(self.model, self.examples, known)


def _one(image):
    if isinstance(image, (str, Path)) and not Path(image).is_file():
        raise InputError(f"got {str(image)!r}, which does not exist; expected an image; check the name")
    return image


def _several(images):
    """Images as a list or array; a single one, a file or an array (H, W) or (H, W, 1 or 3), becomes one of length 1."""
    if isinstance(images, (str, Path)) and Path(images).is_file() and not array_file(images):
        return [images]
    if hasattr(images, "__array__"):
        pixels = np.asarray(images)
        return pixels[None] if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3)) else pixels
    return images
