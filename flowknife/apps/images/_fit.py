"""Fit an image model, its reference distribution and its anomaly score."""

import os
import time
from typing import Any

import jax
import numpy as np

from flowknife._batches import IMAGES_AT_ONCE
from flowknife._interrupts import finish
from flowknife._progress import progress
from flowknife._record import DataRecord, Record, described
from flowknife._settings import asked, require_applicable
from flowknife._split import Sizes, split, split_sizes
from flowknife._types import Key, as_key, as_seed, built, keys_of
from flowknife.anomaly._features import bits_of, level_squares
from flowknife.anomaly._neighbours import Neighbours, thumbnails
from flowknife.anomaly._scores import features_of, fit_detector
from flowknife.apps._track import tracked
from flowknife.apps.images._config import ImagesConfig
from flowknife.apps.images._empirical import Empirical
from flowknife.apps.images._result import Images
from flowknife.apps.images._training import train_images
from flowknife.architectures import dequantiser, glow, jet, lattice, realnvp, wavelet
from flowknife.bijections import Bijection
from flowknife.data import ImageSet, find_images, fingerprint
from flowknife.data._find import PARTITION_FILE
from flowknife.data.images import as_images, default_size, grey_levels_note
from flowknife.data.labels import label_codes, labels_of, one_hot
from flowknife.diagnostics import Flagging
from flowknife.errors import InputError
from flowknife.inn import INN, Block
from flowknife.laws import Pixels
from flowknife.multiscale import image_model
from flowknife.tracking import Track
from flowknife.train import Checkpoints, about_fit, take

_MINUTES = 15

_LOOKED_AT = 1000  # training images to which the detector is fitted, at most

_NUMBERS_LOOKED_AT = 8_000_000  # fewer if images are large, at least 100: 651 for 64x64 in colour

_REMEMBERED = 10_000  # training images kept for nearest-neighbour comparisons, at most

_NUMBERS_REMEMBERED = 8_000_000  # in their thumbnails: 2604 for 32x32 in colour

_MOST_CALIBRATING = 5000  # images, unless a share is set: more change no decision

_NUMBERS_CALIBRATING = 30_000_000  # fewer if images are large: 2441 for 64x64 in colour, 300 for 256x256

_FEWEST_CALIBRATING = 300

_CALIBRATION_SHARE = 0.15  # largest share of the time budget, unless a share of the images is set

_ENOUGH_CALIBRATING = 1000  # images that calibrate, regardless of the time budget: p-values down to 0.001

_MOST_STOPPING = 1000  # images: they are evaluated often

_KEPT_IMAGES = 400  # held-out images kept with the run


@tracked
def images(
    folder: Any,
    config: ImagesConfig | None = None,
    *,
    given: Any = None,
    key: Key = None,
    show_progress: bool = True,
    checkpoints: str | os.PathLike[str] | None = None,
    resume: bool = False,
    track: Track = None,  # in effect by `tracked`
    **settings: Any,
) -> "Images":
    """Fit a model to the images of a folder, to draw new images and to detect anomalous ones.

    Args:
        folder: a folder of PNG or JPEG files of any mode and size, all subfolders mixed, or its address
            (s3://bucket/folder); or a uint8 array of images (n, H, W) or (n, H, W, 1 or 3), or FILE.npy, FILE.npz or
            FILE.npz:NAME that holds one; or paths. If the folder has a `list_eval_partition.txt`, as CelebA has, only
            the training images are used.
        config: settings; default `ImagesConfig()`: 5 bits, the wavelet flow (the lattice flow for images that are
            mostly of one value), at most 15 minutes.
        given: learn p(image | class): "class" for a folder with one subfolder per class, or one label for each image.
        key: int, JAX key or None; None means `config.seed`.
        show_progress: show progress bars.
        checkpoints: a folder for checkpoints: a new one or, with `resume`, that of the same fit.
        resume: continue from the checkpoints, if there are any.
        track: tracker of the fit, "tensorboard:DIR", "mlflow:URI" or a `tracking.Tracker`; or a list of trackers.
        **settings: fields of `ImagesConfig`, merged over those in `config`; `train` and `augment` may be dicts.

    Returns:
        the trained model with its held-out calibration.

    Raises:
        InputError: for a folder without usable images, or an image without a class in a class-conditional fit. Single
            unusable files are listed in `.skipped`.
        StorageError: `checkpoints` belongs to another fit, or to this one while `resume` is False.
        Interrupted: on Ctrl-C during training; its `result` is the model with the best weights so far.

    Warns:
        CalibrationWarning: without calibration images, or with too few to flag anything.

    Examples:
        >>> import flowknife as fk
        >>> pixels, labels = fk.data.digits()
        >>> quick = {"architecture": "glow", "levels": 1, "steps_per_level": 1, "width": 8, "train": {"steps": 100}}
        >>> model = fk.images(pixels[:300], given=labels[:300], show_progress=False, **quick)
        >>> model.sample(2, key=0, given=7).shape, model.log_prob(pixels[:3], given=labels[:3]).shape
        ((2, 8, 8, 1), (3,))
    """
    began = time.monotonic()
    config = asked(ImagesConfig, config, settings, as_seed(key))
    found = folder if isinstance(folder, ImageSet) else find_images(folder)
    size = config.image_size or default_size(found, config.crop)
    _require_uncut(folder, size, config.crop)
    partition = None if isinstance(found, ImageSet) or found.partitions_inside is None else "train"
    data = as_images(found, size, show_progress, partition=partition, crop=config.crop)
    if len(data) < 8:
        raise InputError(f"got {len(data)} usable images; expected at least 8, better some hundreds")
    classes, codes = ((), None) if given is None else _classes(data, given)
    known = one_hot(codes, len(classes))
    key = as_key(config.seed if key is None else key)
    own = {"data": fingerprint(data), "pixels": list(data.pixels.shape), "classes": list(map(str, classes))}
    if codes is not None:
        own["given"] = fingerprint(codes)
    kept = Checkpoints(checkpoints, about_fit("images", config, **own), resume=resume, began=began, show=show_progress)
    model_key, split_key, fit_key = keys_of(key, 3)

    training = config.train.completed(minutes=_MINUTES)
    sizes = split_sizes(
        len(data),
        training.validation,
        config.alpha,
        most=_most_held_out(data.pixels),
        spare=len(data) - max(len(classes), 1),
    )
    parts = split(len(data), sizes, split_key, groups=codes)
    stopping, held_out = data.pixels[parts.stopping], data.pixels[parts.calibration]
    train = take(data.pixels, parts.train)
    train_known, stopping_known, held_known = ({name: rows[part] for name, rows in known.items()} for part in parts)
    shape = data.pixels.shape[1:]
    used = config.used(
        architecture=config.architecture or ("lattice" if _flat(train, config.bits) else "wavelet"),
        image_size=size,
        flip=_symmetric(train[:_LOOKED_AT]),
    )
    require_applicable(config, config.applies, {"architecture": str(used.architecture)})
    flip = bool(used.augment.flip)
    model = built(_model, shape, used, len(classes), key=model_key)
    detector = _Detector((train, train_known), (held_out, held_known), flip, show_progress)
    reserve = 0.0
    if training.minutes:
        most = np.inf if training.validation else _CALIBRATION_SHARE * 60 * training.minutes
        reserve = detector.within(most, max(_ENOUGH_CALIBRATING, int(2 / config.alpha)), model)
    trained = train_images(
        model,
        {"image": train, **train_known},
        {"image": stopping, **stopping_known} if len(stopping) else None,
        training,
        augmentation=used.augment,
        flip=flip,
        parallel=used.parallel or 1,
        key=fit_key,
        show_progress=show_progress,
        checkpoints=kept,
        reserve=reserve,
    )
    Flagging(len(detector.held_out), config.alpha, "images").warn()
    notes = [grey_levels_note(data, config.bits)]
    if partition is None and not isinstance(found, ImageSet) and found.partitions:
        notes.append(f"{PARTITION_FILE} next to the folder was not used")
    record = Record[ImagesConfig](
        application="images",
        config=config,
        used=used.model_copy(update={"train": trained.training}),
        data=DataRecord(
            kind="images",
            rows=len(data),
            source=described(folder),
            fingerprint=own["data"],
            left_out=len(data.skipped),
            partition=partition,
            white=data.white,
            classes=classes,
        ),
        training=trained.record,
        notes=tuple(filter(None, notes)),
    )
    return finish(
        lambda: Images(
            model=trained.model,
            **detector.fit(trained.model),
            history=trained.history,
            skipped=data.skipped,
            record=record,
        ),
        interrupted=trained.record.partial,
    )


def _classes(data, given):
    """The class labels, and the class number of each image."""
    if isinstance(given, str) and given != "class":
        raise InputError(f'got given={given!r}; expected "class", for a folder of class folders, or a label per image')
    labels = labels_of(data, None if isinstance(given, str) else given)
    classes, codes = label_codes(labels, len(data))
    if np.any(codes < 0):
        first = data.names[int(np.argmax(codes < 0))]
        raise InputError(f"got {np.sum(codes < 0)} images without a class, such as {first}; expected one for each")
    return classes, codes


class _Detector:
    """The training and held-out images that an `Images` keeps, with their conditions, and its anomaly detector."""

    def __init__(self, train, held_out, flip, show_progress):
        (train, known), (self.held_out, self.held_known) = train, held_out
        self.show_progress = show_progress
        self.looked_at = np.asarray(train[: min(_LOOKED_AT, max(_NUMBERS_LOOKED_AT // train[0].size, 100))])
        self.known = {name: rows[: len(self.looked_at)] for name, rows in known.items()}
        with progress("remembering training images", show_progress) as report:
            self.neighbours = Neighbours.fit(_small(train), flip, report)

    def within(self, most: float, fewest: int, model) -> float:
        """Reduce the calibration images if `fit` would take more than `most` seconds; returns its duration.

        The time is measured on a few images; `fit` uses the same compiled programs.
        """
        few = slice(0, IMAGES_AT_ONCE)
        given = {name: rows[few] for name, rows in self.known.items()}
        with progress("measuring the time of the calibration", self.show_progress) as report:
            for _ in range(2):
                start = time.monotonic()
                features_of(model, self.looked_at[few], self.neighbours, report=report, given=given)
        each = (time.monotonic() - start) / len(self.looked_at[few])
        kept = int(max(min(most / each, 1e9) - len(self.looked_at), fewest))
        self.held_out = self.held_out[:kept]
        self.held_known = {name: rows[:kept] for name, rows in self.held_known.items()}
        return (len(self.looked_at) + len(self.held_out)) * each

    def fit(self, model) -> dict[str, Any]:
        """Fit the detector, and collect the other attributes of the result."""
        looked_at, held_out, n = self.looked_at, self.held_out, len(self.looked_at)
        given = {name: np.concatenate([rows, self.held_known[name]]) for name, rows in self.known.items()}
        with progress("calibrating the detector", self.show_progress) as report:
            pixels = np.concatenate([looked_at, held_out])
            seen = features_of(model, pixels, self.neighbours, own=n, report=report, given=given)
        # the reference: held-out images, or training images if none were held out
        usual = slice(n, None) if len(held_out) else slice(None)
        shown = (self.held_known if len(held_out) else self.known).get("y", np.zeros((0, 1)))[:_KEPT_IMAGES]
        return {
            "detector": fit_detector(seen, n),
            "held_out_bits": bits_of(model, seen.levels[usual]),
            "held_out_squares": level_squares(model, seen.latents[usual]),
            "held_out": held_out[:_KEPT_IMAGES],
            "reference": looked_at[: 0 if len(held_out) else _KEPT_IMAGES],
            "example_codes": shown.argmax(axis=1),
            "empirical": Empirical.fit(seen.latents[:n], {block.name: block.size for block in model.partition.right}),
            "neighbours": self.neighbours,
        }


def _small(train):
    """Thumbnails of training images; if they are many or large, of the first ones."""
    first = thumbnails(np.asarray(train[:1]))
    count = min(len(train), _REMEMBERED, max(_NUMBERS_REMEMBERED // first.size, 100))
    parts = [range(start, min(start + 500, count)) for start in range(0, count, 500)]
    return np.concatenate([thumbnails(np.asarray(train[part.start : part.stop])) for part in parts])


def _most_held_out(pixels) -> Sizes:
    most = np.clip(_NUMBERS_CALIBRATING // pixels[0].size, _FEWEST_CALIBRATING, _MOST_CALIBRATING)
    return Sizes(_MOST_STOPPING, int(most))


def _require_uncut(source, size, crop):
    """Refuse to crop images that could not be distinguished from cropped ones later."""
    if crop != 1 and (isinstance(source, ImageSet) or getattr(source, "shape", ())[1:3] == (size, size)):
        raise InputError(
            f"got crop={crop:g} for images in memory of {size} x {size} pixels, the size of training; expected "
            "larger ones, or files; try crop=1, or a smaller image_size"
        )


def _symmetric(pixels):
    """Whether the mean image equals its mirror image up to 2 % of its variation over the image."""
    mean = pixels.mean(axis=0, dtype=np.float64)
    variation = np.sum((mean - mean.mean(axis=(0, 1))) ** 2)
    return bool(np.sum((mean - mean[:, ::-1]) ** 2) < 0.02 * 4 * variation)


def _flat(pixels, bits):
    """Whether at least a third of all pixels have the same value."""
    counts = np.bincount((pixels[:_LOOKED_AT] >> (8 - bits)).ravel())
    return bool(np.max(counts) > np.sum(counts) / 3)


def _model(shape, config, classes, key) -> INN:
    noise_key, key = jax.random.split(key)
    learned = config.dequantisation == "variational"
    noise = dequantiser(shape, layers=0, width=64, depth=1, key=noise_key) if learned else None
    cond = [Block("y", classes)] if classes else []
    bijection = _bijection(shape, config, {"width": config.width, "cond_dim": classes, "key": key})
    return image_model(shape, Pixels(config.bits, noise), bijection, cond)


def _bijection(shape, config, every) -> Bijection:
    if config.architecture == "wavelet":
        return wavelet(shape, levels=config.levels, features=config.width, **every)
    if config.architecture == "lattice":
        return lattice(shape, 2**config.bits, levels=config.levels, features=config.width, **every)
    if config.architecture == "glow":
        return glow(
            shape,
            levels=config.levels,
            steps=config.steps_per_level,
            scalar=config.scalar,
            memory=config.memory,
            **every,
        )
    if config.architecture == "jet":
        return jet(shape, couplings=config.steps_per_level, memory=config.memory, **every)
    return realnvp(shape, **every)
