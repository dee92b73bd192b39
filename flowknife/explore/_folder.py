"""Images of a folder that the user named, scored a few at a time while the page is open.

A request contains indices of images, never a path: all images were read before the page was served.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from flowknife.data import ImageSet
from flowknife.data._find import find_images
from flowknife.data.labels import Names, codes_of
from flowknife.errors import InputError
from flowknife.explore._images import FEW
from flowknife.explore._live import Call

_MOST_JUDGED = 5000  # images

_MOST_BYTES = 2**28  # that they take

_MOST_ASKED = 64  # images of one question

_MOST_LISTED = 20  # files that could not be used

Score = Callable[[UInt8[np.ndarray, " d"], int, Any], Mapping[str, Any]]
"""`score(x, n, given)`: the scores of n images, by column."""


class Folder:
    """Images to score, with the scores computed so far.

    Images are scored in random order, so that the first ones are representative. Scores are kept for a page that is
    opened again.

    Args:
        source: a folder, or anything else that `load_images` reads. Of more images than 5,000, or than fit in 256 MiB,
            as many are read, evenly spread.
        read: reads images in the size and colours of the model.
        size: number of values of an image.
        score: scores images.
        classes: of the model; the images of a subfolder with such a name are of this class.
        conditional: the model needs the class of each image.

    Raises:
        InputError: there is no such folder, or nothing usable in it; or an image without a class, where one is needed.
    """

    def __init__(
        self,
        source: Any,
        read: Callable[[Any], ImageSet],
        size: int,
        score: Score,
        classes: Names = (),
        conditional: bool = False,
    ):
        found = find_images(source)
        most = max(min(_MOST_JUDGED, _MOST_BYTES // size), 1)
        self.images = read(found.choose(limit=most))
        codes = codes_of(self.images.folders, classes) if classes else np.full(len(self.images), -1)
        self.codes = np.maximum(codes, -1).astype(np.int32)
        if conditional and np.any(self.codes < 0):
            raise InputError(
                f"got {np.sum(self.codes < 0)} images without a class, for a model of images of classes; expected a "
                f"subfolder for each class: {', '.join(map(str, classes[:8]))}"
            )
        self.order = np.random.default_rng(0).permutation(len(self.images)).astype(np.int32)
        self._conditional, self._score, self._known = conditional, score, []
        self._name = Path(source).name if isinstance(source, (str, Path)) else ""
        self._left_out = max(len(found.candidates) - most, 0)

    def added_to(self, parts: Mapping[str, Any], calls: Mapping[str, Call]) -> tuple[dict[str, Any], dict[str, Call]]:
        """Return the data and functions of a page together with those of the image gallery."""
        own = {"gallery": self.gallery, "gallery_images": self.gallery_images}
        return {**parts, "folder": self.about}, {**calls, **own}

    @property
    def about(self) -> dict[str, Any]:
        """A summary for the page: name and counts."""
        skipped = self.images.skipped
        return {
            "name": self._name or "the images",
            "count": len(self.images),
            "left_out": self._left_out,
            "skipped": len(skipped),
            "some_skipped": [list(each) for each in skipped[:_MOST_LISTED]],
        }

    @property
    def done(self) -> int:
        """Number of scored images."""
        return sum(len(numbers) for numbers, _ in self._known)

    def gallery(self, start: int) -> dict[str, Any]:
        """Scores from the `start`-th scored image on; if there are none yet, a few more images are scored first.

        Raises:
            InputError: for a number beyond the images.
        """
        if type(start) is not int or not 0 <= start <= len(self.order):
            raise InputError(f"got start={str(start)[:20]}; expected a number from 0 to {len(self.order)}")
        if self.done <= start and self.done < len(self.order):
            self._judge(self.order[self.done : self.done + FEW])
        numbers = np.concatenate([self.order[:0], *(numbers for numbers, _ in self._known)])
        names = self._known[0][1] if self._known else ()
        columns = {name: [columns[name] for _, columns in self._known] for name in names}
        return {"numbers": numbers[start:]} | {
            name: None if parts[0] is None else np.concatenate(parts)[start:] for name, parts in columns.items()
        }

    def gallery_images(self, numbers: Any) -> dict[str, Any]:
        """Pixels, names and classes of images by their numbers.

        Raises:
            InputError: for more than 64, or for numbers of no image.
        """
        places = np.asarray(numbers)
        if places.dtype.kind not in "iu" or places.ndim != 1 or not 0 < places.size <= _MOST_ASKED:
            raise InputError(f"got a question about other images; expected 1 to {_MOST_ASKED} numbers")
        if places.min() < 0 or places.max() >= len(self.images):
            raise InputError(f"got the number of no image; expected numbers from 0 to {len(self.images) - 1}")
        pixels = np.asarray(self.images.pixels[places])
        return {"pixels": pixels, "names": [self.images.names[i] for i in places], "codes": self.codes[places]}

    def _judge(self, numbers):
        pixels = np.asarray(self.images.pixels[numbers])
        given = self.codes[numbers] if self._conditional else None
        self._known.append((numbers, self._score(pixels.ravel(), len(numbers), given)))
