"""What each part of the anomaly score of images is worth, on kinds of images that had no part in choosing it.

    RUN=run TRAIN=file.npz:x NEW=file.npz:y python -m benchmarks ablation

`RUN` is a run of `flowknife fit images`, `TRAIN` its training images and `NEW` images of the same kind that it was not
trained on (folders, or arrays in an .npz file); without them, a model of scikit-learn's digits is trained for half a
minute. The detector is fitted anew without each part; the table holds the loss of AUROC.
"""

import io
import os

import numpy as np

import flowknife as fk
from flowknife.anomaly._scores import ONE_SIDED, Features, features_of
from flowknife.apps import Images
from flowknife.data import digits, load_images
from flowknife.diagnostics import Typicality, auroc

_EACH = 200  # images of a kind
_TRAINING = 650  # images that the detector is fitted to


def run() -> None:
    """Print the AUROC of the whole score for each kind, and what it loses without each part."""
    if "RUN" in os.environ:
        model = fk.load(os.environ["RUN"])
        train, new = (_read(os.environ[name], model.shape) for name in ("TRAIN", "NEW"))
    else:
        pixels, _ = digits()
        train, new = pixels[:1200], pixels[1200:]
        model = fk.images(train, train={"minutes": 0.5}, key=0)
    generator = np.random.default_rng(0)
    train, new = (part[generator.permutation(len(part))] for part in (train, new))
    kinds = {"new": new[:_EACH], **_kinds(new[_EACH:][:_EACH] if len(new) >= 2 * _EACH else new[:_EACH])}
    looked = {name: _look(model, pixels) for name, pixels in kinds.items()}
    reference = _look(model, train[:_TRAINING], own=_TRAINING), _look(model, model.held_out)
    parts = {"nothing": (), **{name: (name,) for name in (*ONE_SIDED, "levels", "shifts")}}
    table = {part: _areas(looked, reference, without) for part, without in parts.items()}
    names = [name for name in kinds if name != "new"]
    print(f"{'without':<16}" + "".join(f"{name:>16}" for name in names) + f"{'mean':>16}")
    whole = table["nothing"]
    for part, areas in table.items():
        numbers = areas if part == "nothing" else areas - whole
        sign = "" if part == "nothing" else "+"
        print(f"{part:<16}" + "".join(f"{number:>{sign}16.3f}" for number in (*numbers, numbers.mean())))


def _look(model: Images, pixels: np.ndarray, own: int = 0) -> Features:
    return features_of(model.model, pixels, model.neighbours, own=min(own, len(pixels)))


def _areas(looked, reference, without) -> np.ndarray:
    """The AUROC of each kind against new images, of a detector without some parts."""

    def matrix(features):
        kept = [values for name, values in features.one_sided.items() if name not in without]
        groups = [getattr(features, name) for name in ("levels", "shifts") if name not in without]
        return np.column_stack([*kept, *groups])

    weights = [weight for name, weight in ONE_SIDED.items() if name not in without]
    train, held_out = map(matrix, reference)
    shifts = 0 if "shifts" in without else reference[0].shifts.shape[1]
    apart = range(train.shape[1] - shifts, train.shape[1])
    detector = Typicality.fit(train, held_out, upward=dict(enumerate(weights)), apart=apart)
    scores = {name: detector.score(matrix(features)) for name, features in looked.items()}
    return np.array([auroc(scores["new"], each) for name, each in scores.items() if name != "new"])


def _read(place: str, shape: tuple[int, int, int]) -> np.ndarray:
    return load_images(place, shape[:2], channels=shape[2]).pixels


def _kinds(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Kinds of images that were never used to choose features or weights."""
    from PIL import Image
    from scipy.ndimage import zoom
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(1)
    height, width, channels = pixels.shape[1:]

    def jpeg(image):
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if channels == 1 else image).save(file, "JPEG", quality=4)
        return np.asarray(Image.open(file)).reshape(image.shape)

    pepper = pixels.copy()
    specks = generator.random(pixels.shape[:3]) < 0.02
    pepper[specks] = generator.choice([0, 255], (int(specks.sum()), 1))
    bar = pixels.copy()
    bar[:, :, width // 2 : width // 2 + max(width // 16, 1)] = 128
    sample = np.concatenate([image.reshape(-1, *image.shape) for image in load_sample_images().images])
    corners = generator.integers(0, np.array(sample.shape[1:3]) - (height, width), (_EACH, 2))
    crops = np.stack([sample[i % 2, y : y + height, x : x + width] for i, (y, x) in enumerate(corners)])
    coarse = zoom(zoom(pixels, (1, 0.5, 0.5, 1), order=1), (1, 2, 2, 1), order=0)[:, :height, :width]
    kinds = {
        "quarter turn": np.rot90(pixels, axes=(1, 2)) if height == width else pixels[:, ::-1, ::-1],
        "halves swapped": np.roll(pixels, width // 2, axis=2),
        "2 % of specks": pepper,
        "low contrast": (128 + 0.3 * (pixels.astype(float) - 128)).astype(np.uint8),
        "JPEG artefacts": np.stack([jpeg(image) for image in pixels]),
        "grey bar": bar,
        "coarse pixels": coarse,
        "photographs": crops if channels == 3 else crops.mean(axis=-1, keepdims=True).astype(np.uint8),
    }
    return kinds | ({"colours swapped": pixels[..., ::-1]} if channels == 3 else {})
