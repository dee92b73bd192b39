"""Recipes for images. Bits/dim are those of the discrete image, so 5 and 8 bits cannot be compared.

Without a suffix, images in colour have 5 bits per channel, which learn faster.
"""

from typing import Any

from flowknife.recipes._recipe import Expected, Recipe

_FACES = "a folder of animal faces, PNG or JPEG, subfolders included; some thousand of one kind, such as cats"
_CELEBA = (
    "CelebA, aligned and cropped: the folder img_align_celeba of JPEG files of 178 x 218 pixels, with "
    "list_eval_partition.txt in it; only the training images of that list are used; score the others with "
    "`--partition test`"
)
_CELEBA_CROP = 148 / 178  # the square around the face that papers take (Dinh et al. 2016, arXiv 1605.08803, sec. 4.1)
_IN_ITS_FORM = "181 cat faces, laid out as the test images of CelebA"
_NOT_CELEBA = "on one core; tests the setup only, as CelebA itself was not available"
_MNIST = "the 60,000 training digits: a folder of PNG files, or FILE.npz:NAME that holds uint8 (n, 28, 28)"
_NEW_CATS = "181 new cat faces, of 2,081"
_ANY = "a folder of images, its address, or a file that holds an array of them"
_DIGITS = "the digits of scikit-learn, flowknife.data.digits(), as a folder or as an .npy file"


def _wavelet(size: int, minutes: int, bits: int = 5, **more: Any) -> dict[str, Any]:
    return {"image_size": size, "bits": bits, "architecture": "wavelet", **more, "train": {"minutes": minutes}}


def _lattice(size: int, minutes: int, **more: Any) -> dict[str, Any]:
    # digits that are mirrored are digits no more
    more = {"bits": 8, **more, "augment": {"flip": False}}
    return {"image_size": size, "architecture": "lattice", **more, "train": {"minutes": minutes}}


IMAGES = (
    Recipe(
        "cats-64",
        "images",
        "animal faces, 64x64, 5 bits",
        _FACES,
        "data/cats",
        _wavelet(64, 30),
        30,
        Expected(1.39, "bits/dim", _NEW_CATS, 30, "a plain Glow in 10 minutes: 1.65"),
    ),
    Recipe(
        "cats-64-8bit",
        "images",
        "animal faces, 64x64, 8 bits",
        _FACES,
        "data/cats",
        _wavelet(64, 30, 8),
        30,
        Expected(3.30, "bits/dim", _NEW_CATS, 30, "on one core; the Glow of normflows in the same time: 3.48"),
    ),
    Recipe(
        "cats-256",
        "images",
        "animal faces, 256x256, 5 bits",
        f"{_FACES}; 256 pixels a side or more",
        "data/cats",
        _wavelet(256, 60),
        60,
        Expected(
            0.83,
            "bits/dim",
            "285 cat faces held out, enlarged from 64x64",
            45,
            "on one core; larger photographs contain more detail and need more",
        ),
    ),
    Recipe(
        "celeba-48",
        "images",
        "faces of people, 48x48, 5 bits",
        _CELEBA,
        "data/img_align_celeba",
        _wavelet(48, 60, crop=_CELEBA_CROP),
        60,
        Expected(1.60, "bits/dim", _IN_ITS_FORM, 10, _NOT_CELEBA),
    ),
    Recipe(
        "celeba-64",
        "images",
        "faces of people, 64x64, 5 bits",
        _CELEBA,
        "data/img_align_celeba",
        _wavelet(64, 120, crop=_CELEBA_CROP),
        120,
        Expected(1.43, "bits/dim", _IN_ITS_FORM, 10, _NOT_CELEBA),
    ),
    Recipe(
        "mnist-28",
        "images",
        "handwritten digits, 28x28, 8 bits",
        _MNIST,
        "mnist.npz:x_train",
        _lattice(28, 4),
        4,
        Expected(
            1.13, "bits/dim", "the 10,000 test digits", 4, "the Glow of normflows in 30 minutes on one core: 2.16"
        ),
    ),
    Recipe(
        "mnist-24",
        "images",
        "the same without their margin, 24x24",
        _MNIST,
        "mnist.npz:x_train",
        _lattice(24, 4, crop=24 / 28),
        4,
        Expected(1.47, "bits/dim", "the 10,000 test digits", 4),
    ),
    Recipe(
        "digits-8",
        "images",
        "small digits, 8x8, 5 bits",
        _DIGITS,
        "digits.npy",
        _lattice(8, 1, bits=5),
        1,
        Expected(1.89, "bits/dim", "297 new digits, of 1,797", 0.35),
    ),
    Recipe(
        "small",
        "images",
        "any images, a first look",
        _ANY,
        "data/train",
        {"width": 64, "train": {"minutes": 5}},
        5,
        Expected(1.45, "bits/dim", f"{_NEW_CATS}, 64x64 and 5 bits", 5),
    ),
    Recipe(
        "base",
        "images",
        "any images",
        _ANY,
        "data/train",
        {"width": 128, "train": {"minutes": 30}},
        30,
        Expected(1.39, "bits/dim", f"{_NEW_CATS}, 64x64 and 5 bits", 30),
    ),
    Recipe(
        "large",
        "images",
        "any images, at leisure",
        _ANY,
        "data/train",
        {"width": 256, "train": {"minutes": 60}},
        60,
        Expected(
            1.37, "bits/dim", f"{_NEW_CATS}, 64x64 and 5 bits", 48, "on one core, when no level improved any more"
        ),
    ),
)
"""Recipes of `flowknife fit images`."""
