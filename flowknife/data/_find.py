"""Candidate images: the files of a folder, of a store, of a list, or the rows of an array."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from flowknife._batches import IMAGES_AT_ONCE
from flowknife._files import read_file
from flowknife.data._arrays import array_file, read_images
from flowknife.data._decode import Content
from flowknife.data._stores import Entry, Store, is_url
from flowknife.errors import InputError

IMAGE_SUFFIXES = frozenset(
    [".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".pgm", ".ppm", ".pbm", ".pnm", ".bmp", ".webp", ".tif", ".tiff", ".gif"]
)
"""File name extensions, in lower case, that `load_images` looks for in a folder."""

PARTITION_FILE = "list_eval_partition.txt"
"""The partition file of CelebA."""

Partition = Literal["train", "validation", "test"]

_PARTITIONS: dict[str, Partition] = {"0": "train", "1": "validation", "2": "test"}


_NO_IMAGE = "not an image"
_MOST_NESTED = 100  # folders
_MOST_LIST = 2**27  # bytes of a partition file


class Skipped(NamedTuple):
    """An unusable file, and the reason."""

    path: str
    reason: str


class Candidate(NamedTuple):
    """A file or row that may be an image.

    Attributes:
        name: its path within the folder.
        folder: its top-level folder, "" if it is in none.
        content: a file, pixels, or a file in a store.
    """

    name: str
    folder: str
    content: Content | Entry

    @property
    def stamp(self) -> str:
        """A text that changes when the file does."""
        if isinstance(self.content, Path):
            try:
                status = self.content.stat()
            except OSError:
                return ""
            return f"{status.st_mtime_ns} {status.st_size}"
        return self.content.stamp if isinstance(self.content, Entry) else ""


@dataclass(frozen=True)
class Found:
    """The candidate images of a source; `load_images` accepts it in place of the source.

    Attributes:
        source: a short description.
        place: its address, or the full path of the folder; "" if it has none.
        candidates: the candidates, sorted by name.
        skipped: the files that are not images.
        store: the store of the files; None for local files.
        lists: possible paths of a partition file.
        folders: all top-level folders.
        beside: those of `lists` that are next to the folder.
    """

    source: str
    place: str
    candidates: tuple[Candidate, ...]
    skipped: tuple[Skipped, ...] = ()
    store: Store | None = None
    lists: tuple[Path | Entry, ...] = ()
    folders: tuple[str, ...] = ()
    beside: tuple[Path | Entry, ...] = ()

    @cached_property
    def partitions(self) -> dict[str, Partition] | None:
        """The partition of each file name; None without a partition file for these images in or next to the folder."""
        return self._partition_of(self.lists)

    @cached_property
    def partitions_inside(self) -> dict[str, Partition] | None:
        """The same from a partition file inside the folder; one next to the folder is used on request only."""
        return self._partition_of([place for place in self.lists if place not in self.beside])

    def _partition_of(self, lists):
        names = {item.name.rpartition("/")[2] for item in self.candidates}
        for place in lists:
            text = self.store.read([place])[0] if self.store and isinstance(place, Entry) else _text(place)
            if isinstance(text, bytes):
                pairs = (line.split() for line in text.decode("utf-8", "replace").splitlines())
                partition = {
                    pair[0]: _PARTITIONS[pair[1]] for pair in pairs if len(pair) == 2 and pair[1] in _PARTITIONS
                }
                if not names.isdisjoint(partition):
                    return partition
        return None

    def part(self, number: int, parts: int) -> "Found":
        """Part `number` of `parts`, counted from 0: every `parts`-th block of images, starting with block `number`.

        A block is one evaluation batch. Dequantisation noise is drawn per batch, so that scores of a part equal those
        of the same images in a run over all of them.

        Raises:
            InputError: there are fewer blocks than parts.
        """
        blocks = range(number * IMAGES_AT_ONCE, len(self.candidates), parts * IMAGES_AT_ONCE)
        if not blocks:
            raise InputError(
                f"got {len(self.candidates):,} images for {parts} parts; expected {IMAGES_AT_ONCE} for each at least; "
                f"try {max(-(-len(self.candidates) // IMAGES_AT_ONCE), 1)} parts"
            )
        chosen = tuple(item for start in blocks for item in self.candidates[start : start + IMAGES_AT_ONCE])
        # its names give it its own place in the cache
        return replace(self, place="", candidates=chosen, skipped=self.skipped if number == 0 else ())

    def choose(self, partition: Partition | None = None, limit: int | None = None) -> "Found":
        """Only the images of a partition, and at most `limit`, evenly spread.

        Raises:
            InputError: there is no partition file, or this partition is empty.
        """
        chosen, skipped = self.candidates, self.skipped
        if partition is not None:
            if partition not in _PARTITIONS.values():
                raise InputError(f"got partition={partition!r}; expected {', '.join(_PARTITIONS.values())} or None")
            if self.partitions is None:
                raise InputError(
                    f"got partition={partition!r} for the {self.source} without {PARTITION_FILE}; expected that file "
                    "in it or next to it; try partition=None"
                )
            chosen = tuple(item for item in chosen if self.partitions.get(item.name.rpartition("/")[2]) == partition)
            skipped = tuple(item for item in skipped if item.path != PARTITION_FILE)
            if not chosen:
                raise InputError(f"got no image of the {self.source} in the partition {partition!r}; try another")
        if limit is not None and limit < len(chosen):
            chosen = tuple(chosen[i * len(chosen) // limit] for i in range(limit))
        return replace(self, candidates=chosen, skipped=skipped)

    def read(self, candidates: Sequence[Candidate]) -> Sequence[Content | str]:
        """The contents to decode: paths of local files, bytes of others; or the reason why a file cannot be read."""
        if self.store is None:
            return [item.content for item in candidates if not isinstance(item.content, Entry)]
        return self.store.read([item.content for item in candidates if isinstance(item.content, Entry)])


def find_images(source: Any) -> Found:
    """All candidate images in `source`, see `load_images`; no file is opened.

    Raises:
        InputError: there is no such folder, or the array is of another type or shape.
    """
    if isinstance(source, Found):
        return source
    if hasattr(source, "__array__"):
        images = check_images(source)
        return Found(type(source).__name__, "", tuple(Candidate(f"{i:06d}", "", row) for i, row in enumerate(images)))
    if is_url(source):
        return _list(source)
    if isinstance(source, (str, os.PathLike)):
        if file := array_file(source):
            return replace(find_images(read_images(*file)), source=f"file {os.fspath(source)!r}")
        return _walk(Path(source).expanduser())
    try:
        paths = list(source)
        if any(map(is_url, paths)):
            raise InputError("got a list with addresses in it; expected paths; try the address of their folder")
        candidates = tuple(Candidate(Path(path).as_posix(), "", Path(path)) for path in paths)
    except TypeError:
        kind = type(source).__name__
        raise InputError(f"got a {kind}; expected a folder, a list of paths, or a uint8 array (n, H, W, C)") from None
    return Found(type(source).__name__, "", candidates)


def check_images(images: Any) -> np.ndarray:
    """The images as an array of shape (n, H, W) or (n, H, W, 3), of integers or booleans.

    Raises:
        InputError: for another type or shape, or negative numbers.
    """
    images = np.asarray(images)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise InputError(f"got images of shape {images.shape}; expected (n, H, W), (n, H, W, 1) or (n, H, W, 3)")
    if images.dtype.kind not in "bui":
        advice = "try (255 * x).round().astype('uint8') if x runs from 0 to 1"
        raise InputError(f"got images of type {images.dtype}; expected uint8 from 0 to 255; {advice}")
    if images.dtype.kind == "i" and images.size and images.min() < 0:
        raise InputError(f"got images with the value {images.min()}; expected uint8 from 0 to 255")
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images


def _list(url: str) -> Found:
    """The files below an address; the counterpart of `_walk` for folders."""
    store = Store(url)
    candidates, skipped = [], []
    lists = []
    for entry in store.entries():
        folders, _, file = entry.name.rpartition("/")
        if any(part.startswith(".") for part in entry.name.split("/")):
            continue
        if Path(file).suffix.lower() in IMAGE_SUFFIXES:
            candidates.append(Candidate(entry.name, folders.partition("/")[0], entry))
        else:
            skipped.append(Skipped(entry.name, _NO_IMAGE))
            lists += [entry] if entry.name == PARTITION_FILE else []
    # only images named as in CelebA have a partition file, so others save the request
    beside: list[Entry] = []
    if not lists and candidates and re.fullmatch(r"\d{6}\.\w+", candidates[0].name):
        beside = [there] if (there := store.beside(PARTITION_FILE)) else []
    folders = tuple({name.partition("/")[0] for name, _ in skipped if "/" in name})
    lists, there = (*lists, *beside), tuple(beside)
    return Found(f"folder {url!r}", url, tuple(candidates), tuple(skipped), store, lists, folders, there)


def _walk(folder: Path) -> Found:
    """The files under `folder` with an image extension, sorted, and all other files that are not hidden."""
    if not folder.exists():
        advice = (
            "try the address as text, not as Path" if re.match(r"\w+:[\\/]\w", os.fspath(folder)) else "check the name"
        )
        raise InputError(f"there is no folder {os.fspath(folder)!r}; expected a folder of images; {advice}")
    if not folder.is_dir():
        raise InputError(f"got the file {os.fspath(folder)!r}; expected a folder of images; try the folder it lies in")
    candidates, skipped, seen = [], [], set()
    top: list[str] = []
    deepest = len(folder.parts) + _MOST_NESTED

    def name_of(path: str | Path) -> str:
        return Path(path).relative_to(folder).as_posix()

    def unreadable(error: OSError) -> None:
        skipped.append(Skipped(name_of(error.filename), "folder cannot be read"))

    for place, subfolders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        here = Path(place)
        if here == folder:
            top = [name for name in subfolders if not name.startswith(".")]
        try:
            real = here.stat()
        except OSError:  # deleted in the meantime, or a link to itself
            subfolders.clear()
            continue
        if (real.st_dev, real.st_ino) in seen:  # a link to a parent folder would never end
            subfolders.clear()
            continue
        seen.add((real.st_dev, real.st_ino))
        if len(here.parts) >= deepest and subfolders:
            skipped.append(Skipped(name_of(here), f"folders nested more than {_MOST_NESTED} deep"))
            subfolders.clear()
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for path in (here / name for name in files if not name.startswith(".")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                parents = path.relative_to(folder).parts[:-1]
                candidates.append(Candidate(name_of(path), parents[0] if parents else "", path))
            else:
                skipped.append(Skipped(name_of(path), _NO_IMAGE))
    candidates.sort(key=lambda candidate: candidate.name)
    lists = (folder / PARTITION_FILE, folder.resolve().parent / PARTITION_FILE)
    return Found(
        f"folder {os.fspath(folder)!r}",
        os.path.realpath(folder),
        tuple(candidates),
        tuple(skipped),
        lists=lists,
        folders=tuple(top),
        beside=lists[1:],
    )


def _text(path) -> bytes | None:
    try:
        return read_file(path, _MOST_LIST)
    except OSError:
        return None
