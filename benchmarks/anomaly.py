"""AUROC of every anomaly feature for each kind of outlier, in both directions.

    CATS_RUN=run CATS=folder MNIST_RUN=run MNIST=file.npz python -m benchmarks anomaly

`CATS_RUN` and `MNIST_RUN` are runs of `flowknife fit images`, one of them is enough. `CATS` holds images of the kind
of `CATS_RUN` that were not trained on, in a folder or as an array in an .npz file; so does `MNIST` of digits; without
it those of scikit-learn are taken. Further kinds join where they are named: `SILHOUETTES` and `FACES`.

    DIGITS=file.npz MINUTES=4 python -m benchmarks anomaly

trains models of some digits and asks them about the others, the hardest question; `DIGITS` holds `x_train`, `y_train`,
`x_test` and `y_test`.
"""

import os
from pathlib import Path

import numpy as np

import flowknife as fk
from flowknife.apps import Images
from flowknife.data import digits, load_images
from flowknife.diagnostics import auroc

_EACH = 200  # images of a kind at most
SCORES = {
    "bits_per_dim": 1,
    "typicality": 1,
    "radius_p": -1,
    "upside_down": 1,
    "inverted": 1,
    "blur_gap": 1,
    "local_energy": 1,
    "local_outlier": 1,
    "complexity": 1,
    "score": 1,
}
"""The columns of `Images.score` that are compared, and the sign with which they grow with anomaly."""


def run() -> None:
    """Print a table for each run that is given; without any, for a model of digits trained on the spot."""
    runs = {name: os.environ[f"{name}_RUN"] for name in ("CATS", "MNIST") if f"{name}_RUN" in os.environ}
    if "DIGITS" in os.environ:
        _other_digits(Path(os.environ["DIGITS"]), float(os.environ.get("MINUTES", "4")))
        return
    for name, folder in runs.items():
        model = fk.load(folder)
        _table(f"{name.lower()}, {folder}", model, _some(name, model.shape), _others(name, model.shape))
    if not runs:
        pixels, _ = digits()
        model = fk.images(pixels[:1200], train={"minutes": 0.5}, key=0)
        normal = pixels[1200 : 1200 + _EACH]
        _table("digits of scikit-learn, half a minute", model, normal, _changed(normal) | _plain(model.shape))


def _other_digits(path: Path, minutes: float) -> None:
    """Models of the digits 0 to 4, and of 7; the others are what they have not seen."""
    with np.load(path, allow_pickle=False) as arrays:
        x_train, y_train, x_test, y_test = (arrays[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    order = np.random.default_rng(0).permutation(len(x_test))  # it may be sorted
    x_test, y_test = x_test[order], y_test[order]
    for kept in ((0, 1, 2, 3, 4), (7,)):
        own = x_train[np.isin(y_train, kept)]
        model = fk.images(own, bits=8, augment={"flip": False}, train={"minutes": minutes}, key=0)
        normal = x_test[np.isin(y_test, kept)][: 5 * _EACH]
        others = {f"{digit}": x_test[y_test == digit][:_EACH] for digit in range(10) if digit not in kept}
        _table(f"digits {', '.join(map(str, kept))}, {minutes:g} minutes", model, normal, others)


def _table(title: str, model: Images, normal: np.ndarray, others: dict[str, np.ndarray]) -> None:
    """One row for each kind: the AUROC of each score, then how many are flagged and how many are discoveries."""
    usual = model.score(normal)
    print(f"\n{title}: {len(normal)} normal images, {model.metrics['bits_per_dim']:.3f} bits/dim")
    print(f"flagged of the normal ones at p < {model.config.alpha:g}: {usual['flag'].mean():.3f}")
    print(f"{'AUROC':<16}" + "".join(f"{name:>14}" for name in (*SCORES, "flagged", "discoveries")))
    for kind, pixels in others.items():
        scores = model.score(pixels)
        areas = [auroc(sign * usual[name], sign * scores[name]) for name, sign in SCORES.items()]
        shares = [scores["flag"].mean(), scores["discovery"].mean()]
        print(f"{kind:<16}" + "".join(f"{number:>14.3f}" for number in (*areas, *shares)))
    print("the anomaly map inside a changed square against the rest of the image, mean AUROC")
    for kind, area in _where(model, normal[: _EACH // 4]).items():
        print(f"{kind:<16}{area:>14.3f}")


def _where(model: Images, normal: np.ndarray) -> dict[str, float]:
    """How well the anomaly map finds a square, of a quarter of the side, in which an image was changed."""
    generator = np.random.default_rng(0)
    side = max(normal.shape[1] // 4, 2)
    corners = generator.integers(0, np.array(normal.shape[1:3]) - side + 1, (len(normal), 2))
    changes = {
        "black": np.zeros_like,
        "noise": lambda part: generator.integers(0, 256, part.shape, dtype=np.uint8),
        "of another": None,
        "inverted": lambda part: 255 - part,
        "upside down": lambda part: part[::-1],
    }
    areas = {}
    for kind, change in changes.items():
        changed, inside = normal.copy(), np.zeros(normal.shape[:3], bool)
        for i, (row, column) in enumerate(corners):
            square = slice(row, row + side), slice(column, column + side)
            changed[i][square] = normal[i - 1][square] if change is None else change(normal[i][square])
            inside[i][square] = True
        maps = model.anomaly_map(changed)
        areas[kind] = float(np.mean([auroc(each[~here], each[here]) for each, here in zip(maps, inside, strict=True)]))
    return areas


def _others(name: str, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Kinds of images that are not of the model, as far as they are at hand."""
    own = _some(name, shape)
    kinds = {}
    for other in ("CATS", "MNIST", "SILHOUETTES", "FACES"):
        if other != name and (other == "MNIST" or other in os.environ):
            kinds["digits" if other == "MNIST" else other.lower()] = _some(other, shape)
    return kinds | _texture(shape) | _plain(shape) | _changed(own)


def _some(name: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Images of a kind, in this shape."""
    place = os.environ.get(name)
    if place is None:
        if name != "MNIST":
            raise SystemExit(f"error: got no {name}; expected a folder or an .npz file in the environment")
        return _fitted(digits()[0][:_EACH], shape)
    return _fitted(_first_images(Path(place)) if place.endswith(".npz") else place, shape)


def _fitted(source, shape):
    return load_images(source, shape[:2], channels=shape[2], limit=_EACH).pixels


def _first_images(path: Path) -> np.ndarray:
    """The first array of images in an .npz file, brought to 0 ... 255."""
    with np.load(path, allow_pickle=False) as arrays:
        pixels = next(arrays[name] for name in arrays.files if arrays[name].ndim >= 3)
    if pixels.dtype == np.uint8:
        return pixels
    return np.round(255 * (pixels - pixels.min()) / np.ptp(pixels)).astype(np.uint8)


def _texture(shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Pieces of a photograph of grass, where scikit-image is installed and has it."""
    try:
        from skimage import data

        grass = data.grass()
    except (ImportError, OSError, ValueError):
        return {}
    generator = np.random.default_rng(0)
    side = min(2 * max(shape[:2]), min(grass.shape))
    corners = generator.integers(0, np.array(grass.shape) - side + 1, (50, 2))
    return {"grass": _fitted(np.stack([grass[i : i + side, j : j + side] for i, j in corners]), shape)}


def _plain(shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """White, grey and noise."""
    generator = np.random.default_rng(0)
    greys = np.linspace(40, 215, 20).astype(np.uint8)[:, None, None, None]
    return {
        "white": np.full((10, *shape), 255, np.uint8),
        "grey": np.broadcast_to(greys, (20, *shape)).copy(),
        "noise": generator.integers(0, 256, (50, *shape), dtype=np.uint8),
    }


def _changed(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Images of the model's own kind, changed so that they are of it no more."""
    from scipy.ndimage import gaussian_filter

    height, width = pixels.shape[1:3]

    def square(offset):
        pasted = pixels.copy()
        rows, columns = (slice(side * 3 // 8 + offset, side * 5 // 8 + offset) for side in (height, width))
        pasted[:, rows, columns] = 0
        return pasted

    squares = {"black square": square(0), "... off the grid": square(1)}
    wide = {f"blurred by {px}": gaussian_filter(pixels, (0, px, px, 0)) for px in (1, 2, 4)}
    inverted = {"inverted": 255 - pixels, "upside down": pixels[:, ::-1]}
    grey = pixels.mean(axis=-1, keepdims=True).round().astype(np.uint8)
    in_grey = {"in grey": np.repeat(grey, 3, axis=-1)} if pixels.shape[-1] == 3 else {}
    return wide | inverted | squares | in_grey
