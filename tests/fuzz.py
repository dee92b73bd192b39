"""Damaged and hostile files: seeds, what is done to them, and how each is opened.

Whatever a file holds, opening it ends in a result or in an error of `flowknife.errors`, within one second of computing
and one gibibyte of memory, and no number that is not finite comes out. `python -m tests.fuzz --minutes 10 --workers 2`
counts what it has tried, and writes an input of each kind that broke this to a folder.
"""

import argparse
import contextlib
import copy
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flowknife as fk
from flowknife import apps, storage
from flowknife._frame import Frame
from flowknife._record import DataRecord, Record, Stopped, TrainingRecord
from flowknife.anomaly._neighbours import Neighbours
from flowknife.apps import _result
from flowknife.apps.classify._models import table_model
from flowknife.apps.images import _empirical
from flowknife.architectures import coupling_flow, lattice
from flowknife.bijections import Affine, Chain
from flowknife.cli._settings import configured
from flowknife.data import find_images, load_images, load_table
from flowknife.data._cache import ImageCache
from flowknife.data._pairs import read_pairs
from flowknife.data.tables import read_columns
from flowknife.diagnostics import Typicality
from flowknife.errors import FlowknifeError
from flowknife.inn import INN, Block
from flowknife.laws import Pixels
from flowknife.multiscale import image_model
from flowknife.priors import Prior

SECONDS = 1.0
"""Of computing; what takes longer is a hang."""
MEMORY = 2**30
"""Bytes that opening one file may add."""
_WAIT = 120  # seconds of the clock, after which an input is cut off: it waits for something; others may be at work


class Hang(BaseException):
    """An input that did not come to an end."""


# -- what is changed ---------------------------------------------------------------------------------------------------

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**53 + 1, 2**70, -(2**70), 10**400, 1e300, 0.5, -0.0),
    *(
        "",
        "x",
        "z",
        "relu",
        "\x1b[31mred",
        "a\nb",
        "<b>",
        "../../x",
        "é\ud800",
        "=1+1",
        "nan",
        "y" * 10_000,
        "0" * 5000,
    ),
    *(
        [],
        {},
        [[]],
        [None],
        [1, 2],
        [1e300, 1],
        {"a": {"b": None}},
        {"class": "Chain", "fields": {}},
        {"array": "/model"},
    ),
    *(float("nan"), float("inf"), float("-inf")),
)


def _places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*place, key)
        yield from _places(item, (*place, key))


def changed_text(rng: random.Random, value: Any) -> str:
    """The JSON of nested plain values with one to three changes."""
    value, deep = json.loads(json.dumps(value)), 0
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            break
        *way, key = rng.choice(places)
        inside = _inside(value, way)
        old, other = inside[key], json.dumps(_inside(value, rng.choice(places)))
        how = rng.randrange(8)
        if how == 0:
            del inside[key]
        elif how == 1 and isinstance(old, (int, float)) and not isinstance(old, bool):
            inside[key] = rng.choice(
                (-old, old + 1, old - 1, old * 1000, float(max(min(old, 2**999), -(2**999))), [old])
            )
        elif how == 2:
            inside[key] = json.loads(other)
        elif how == 3 and isinstance(inside, dict):
            inside[str(rng.choice(_ODD[:30]))] = inside.pop(key)
        elif how == 4 and isinstance(inside, list):
            inside.insert(key, json.loads(json.dumps(old)))
        elif how == 5:
            inside[key], deep = "deep", rng.choice((5, 90, 3000))
        else:
            inside[key] = copy.deepcopy(rng.choice(_ODD))  # which the next change may change
    return json.dumps(value).replace('"deep"', "[" * deep + "]" * deep)


def changed_json(rng: random.Random, content: bytes) -> bytes:
    """A text of JSON with other values, or with other bytes."""
    if rng.random() < 0.3:
        return changed_bytes(rng, content)
    with contextlib.suppress(RecursionError):
        return changed_text(rng, json.loads(content)).encode("utf-8", "surrogatepass")
    return content


def _inside(value, way):
    for step in way:
        value = value[step]
    return value


def changed_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes that are flipped, cut off, repeated, moved, or replaced by others."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not data:
            break
        at = rng.randrange(len(data))
        end = min(len(data), at + rng.choice((1, 2, 4, 8, 64, 1024)))
        how = rng.randrange(9)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 10, 13, 34, 44, 91, 123))
        elif how == 2:
            del data[at:end]
        elif how == 3:
            data[at:at] = data[at:end] * rng.choice((1, 2, 50))
        elif how == 4:
            del data[at:]
        elif how == 5:
            data[at:end] = rng.randbytes(end - at)
        elif how == 6:
            size = rng.choice((2, 4, 8))
            data[at : at + size] = (
                rng.choice((0, 1, 2**31 - 1, 2**15, -1)).to_bytes(size, rng.choice(("little", "big")), signed=True)
                if size > 2
                else b"\xff\xff"
            )
        elif how == 7:
            data[at:end] = rng.choice(
                (
                    b"nan",
                    b"inf",
                    b"1e999",
                    b'"',
                    b"\r",
                    b"\x00",
                    b"\xef\xbb\xbf",
                    b",,,,",
                    b"9" * 400,
                    b"=1+1",
                    b"[" * 2000,
                    b"&a [*a]",
                    b"!!python/object:os.system",
                )
            )
        else:
            other = rng.randrange(len(data))
            data[at:end] = data[other : other + end - at]
    return bytes(data)


def _numpy_bytes(rng: random.Random, content: bytes) -> bytes:
    """A .npy file with another header, whose length is right."""
    start = 10 + struct.unpack("<H", content[8:10])[0]
    head = content[10:start].decode("latin1").rstrip("\n ")
    pieces = {
        "'<f4'": ("'<f8'", "'|O'", "'<U5'", "'<M8[s]'", "'|V9'", "'>f4'", "'<c8'", "'|b1'", "'<f2'", "'<U0'"),
        "'<f8'": ("'<f4'", "'|O'", "'<U5'", "'<M8[s]'", "'|V9'", "'>f8'", "'<c16'", "'<g'", "'<S8'", "[('a', '<f8')]"),
        "False": ("True", "None", "1", "'x'"),
        "(": ("(-1, ", "(9999999999, ", "(0, ", "((", "(1e9, ", "(True, ", "(2**40, ", "(" * 300),
        ")": (", 0)", ", 4611686018427387904)", ", 1, 1, 1)", "", "))", "'"),
        "'shape'": ("'shape\\n'", "'form'"),
    }  # fmt: skip
    for _ in range(rng.choice((1, 1, 2))):
        old = rng.choice([piece for piece in pieces if piece in head] or ["("])
        head = head.replace(old, rng.choice(pieces[old]), 1)
    head = head.encode("latin1") + b"\n"
    return content[:8] + struct.pack("<H", len(head)) + head + content[start:]


def _png_bytes(rng: random.Random, content: bytes) -> bytes:
    """A PNG with another chunk, whose checksum is right; often another size."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = struct.unpack(">I", content[at : at + 4])[0]
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + size]])
        at += 12 + size
    chunk = rng.choice([*chunks, *chunks[:1] * 3])
    if chunk is chunks[0] and rng.random() < 0.7:
        sides = [rng.choice((0, 1, 8, 5000, 9999, 30_000, 2**31 - 1)) for _ in range(2)]
        tail = bytes([rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 5)), 0, 0, rng.choice((0, 1))])
        chunk[1] = struct.pack(">II", *sides) + tail
    else:
        chunk[1] = changed_bytes(rng, chunk[1])
    if rng.random() < 0.1:
        chunks.insert(1, [b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000), 1)])
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _split_model(content: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _joined_model(head: Any, body: bytes) -> bytes:
    text = json.dumps(head).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


def changed_model(rng: random.Random, content: bytes) -> bytes:
    """A model file with another tree, other sizes, or other numbers."""
    head, body = _split_model(content)
    how = rng.randrange(10)
    with contextlib.suppress(RecursionError, ValueError):
        if how < 5:
            head["__metadata__"]["flowknife"] = changed_text(rng, json.loads(head["__metadata__"]["flowknife"]))
            return _joined_model(head, body)
        if how == 5:
            metadata = head.pop("__metadata__")
            arrays = json.loads(changed_text(rng, head))
            return _joined_model({"__metadata__": metadata, **arrays}, body)
        if how == 6:  # two arrays change their places
            names = [name for name in head if name != "__metadata__"]
            one, other = rng.choice(names), rng.choice(names)
            head[one], head[other] = head[other], head[one]
            return _joined_model(head, body)
        if how == 7:
            at = rng.randrange(len(body) // 4) * 4
            number = rng.choice((float("nan"), float("inf"), 1e30, -1.0, 0.0, 1e-40))
            return _joined_model(head, body[:at] + struct.pack("<f", number) + body[at + 4 :])
        if how == 8:
            size = rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(content)))
            return struct.pack("<Q", size) + content[8:]
    return changed_bytes(rng, content)


# -- seeds -------------------------------------------------------------------------------------------------------------


def _record(kind: type, of: str, **data: Any) -> Record:
    return Record[kind.settings](
        application=kind.application,
        config=kind.settings(),
        used=kind.settings(),
        data=DataRecord(kind=of, rows=40, source="x.csv", **data),
        training=TrainingRecord(steps=200, seconds=1.0, stopped=Stopped.BUDGET),
        metrics={"nll": 1.0},
    )


def small_runs() -> dict[str, Any]:
    """A result of every application, as small as it can be, not trained; nothing is compiled for them."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 2)).astype(np.float32)
    frame = Frame(np.zeros(2), np.ones(2))
    history = {"step": [100.0, 200.0], "train": [2.0, 1.5], "validation": [2.1, 1.75]}

    def flow(dim, cond_dim=0):
        couplings = coupling_flow(dim, cond_dim=cond_dim, layers=2, width=2, depth=1, key=0)
        return Chain([Affine(jnp.zeros(dim), jnp.ones(dim)), couplings])

    density = INN([Block("x", 2)], [Block("z", 2)], flow(2))
    common = {"history": history, "frame": frame, "reference": rows, "held_out": rows}
    runs = {
        "density": fk.Density(model=density, record=_record(fk.Density, "rows", names=("a", "b")), **common),
        "classify": fk.Classifier(
            model=table_model(Affine(jnp.zeros(2), jnp.ones(2)), "mixture", 2, layers=1, width=2, depth=1, key=0),
            log_prior=np.log(np.full(2, 0.5, np.float32)),
            temperature=1.0,
            reference_labels=np.arange(20) % 2,
            held_out_labels=np.arange(20) % 2,
            detector=None,
            record=_record(fk.Classifier, "rows", names=("a", "b"), classes=("one", "two")),
            **common,
        ),
    }
    prior = fk.Uniform(low=[-2.0, -2.0], high=[2.0, 2.0], names=["u", "v"])
    pairs = {"x": rows, "y": rows[:, :1]}
    model = INN([Block("x", 2)], [Block("z", 2)], flow(2, 1), [Block("y", 1)])
    runs["invert"] = fk.Posterior(
        model=model,
        prior=prior,
        held_out=pairs,
        reference=pairs,
        frame=Frame(np.zeros(1), np.ones(1)),
        noise=(0.1,),
        history=history,
        record=_record(fk.Posterior, "pairs", names=("u", "v"), y_names=("d",)),
    )
    images = rng.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    bijection = lattice((8, 8, 1), 32, levels=2, width=2, features=2, key=0)
    model = image_model((8, 8, 1), Pixels(5), bijection)
    features = rng.normal(size=(12, 4))
    levels = {
        block.name: _empirical.Level(
            np.zeros(block.size, np.float32), np.eye(1, block.size, dtype=np.float32), np.full(1, 2.0, np.float32)
        )
        for block in model.partition.right
    }
    runs["images"] = fk.Images(
        model=model,
        detector=Typicality(
            mean=np.zeros(4),
            scale=np.ones(4),
            precisions=np.eye(4)[None],
            upward=np.array([0]),
            weights=np.ones(1),
            usual=np.sort(np.abs(features[:, :2]), axis=0),
            held_out=np.sort(np.abs(features[:, 3])),
        ),
        held_out_bits=np.full(12, 3.0),
        held_out_squares=rng.uniform(1, 9, (12, len(levels))),
        held_out=images,
        reference=images[:0],
        empirical=_empirical.Empirical(levels),
        neighbours=Neighbours(images, False, np.ones(12)),
        history=history,
        record=_record(fk.Images, "images"),
    )
    return runs


def write_small(result: Any, folder: Path) -> Path:
    """Write a result without measuring it, which would compile programs."""
    return storage.write_run(folder, result.record, {"model": result.model, **result._tree()}, result.history)


def _tables() -> dict[str, bytes]:
    rows = np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32)
    text = "a,b,c\n" + "\n".join(",".join(f"{value:.4f}" for value in row) for row in rows) + "\n"
    numpy, packed, several = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(numpy, rows)
    np.savez(packed, values=rows.astype(np.float64))
    np.savez_compressed(several, x=rows, y=rows)
    found = {
        "t.csv": text.encode(),
        "t.tsv": text.replace(",", "\t").encode(),
        "t.csv.gz": gzip.compress(text.encode(), mtime=0),
        "words.csv": (text.replace("a,b,c", "a,b,label").replace("\n-", "\nyes") + '1,2,"two\nlines"\n').encode(),
        "t.npy": numpy.getvalue(),
        "t.npz": packed.getvalue(),
        "pairs.npz": several.getvalue(),
    }
    with contextlib.suppress(ImportError):
        import pandas

        parquet = io.BytesIO()
        pandas.DataFrame(rows, columns=["a", "b", "c"]).to_parquet(parquet)
        found["t.parquet"] = parquet.getvalue()
    return found


def _pictures() -> dict[str, bytes]:
    from PIL import Image

    pixels = np.random.default_rng(2).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    found = {}
    for suffix, kind, options in (
        ("png", "PNG", {}),
        ("jpg", "JPEG", {"progressive": True}),
        ("bmp", "BMP", {}),
        ("webp", "WEBP", {"lossless": True}),
        ("gif", "GIF", {}),
        ("tif", "TIFF", {"compression": "tiff_lzw"}),
        ("ppm", "PPM", {}),
    ):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind, **options)
        found[f"i.{suffix}"] = stream.getvalue()
    wide = io.BytesIO()
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(wide, "PNG")
    found["wide.png"] = wide.getvalue()
    return found


_SETTINGS = {
    "s": b"seed: 3\nlayers: &n 4\nscalar: spline\nsmoothing: null\nwidth: *n\n"
    b"train: {steps: 20, batch_size: 128, learning_rate: 1e-3}\ntrain.patience: 5\n# a comment\nalpha: 0.05\n",
    "train": b"{steps: 20, batch_size: 128}",
    "alpha": b"0.07",
}


# -- how files are opened ----------------------------------------------------------------------------------------------


def _require_finite(tree: Any) -> None:
    """No array of a model that was read holds what is not a number."""
    for leaf in jax.tree.leaves(tree):
        values = np.asarray(leaf) if isinstance(leaf, (jax.Array, np.ndarray, float)) else np.zeros(0)
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise AssertionError("a number that is not finite was read")


class _TracedOnce:
    """`INN.require_sound`, for models of the same shapes once: numbers are not what it looks at."""

    def __init__(self) -> None:
        self.whole, self.known = INN.require_sound, set()

    def __call__(self, model: INN) -> None:
        leaves, structure = jax.tree.flatten(model)
        key = structure, tuple((leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else repr(leaf) for leaf in leaves)
        try:
            known = key in self.known
        except TypeError:  # a damaged file has lists where words should be
            known, key = False, None
        if not known:
            self.whole(model)
            self.known.add(key)


class _ReadOnce:
    """`storage.read_model`, for each of some whole files once; any other is read."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def __call__(self, folder: Any, record: Record) -> Any:
        checksum = record.files.get("model.safetensors", "")
        if checksum in self.found and self.found[checksum] is None:
            self.found[checksum] = storage.read_model(folder, record)
        return self.found.get(checksum) or storage.read_model(folder, record)


@contextlib.contextmanager
def repeated_once(whole: Iterator[str] | list[str] = ()) -> Iterator[None]:
    """In the block nothing is computed twice that gives the same: for the search, which opens the same runs again.

    Args:
        whole: checksums of the model files that stay as they are.
    """
    traced, read, drawn, draw = _TracedOnce(), _ReadOnce(), {}, Prior.sample
    read.found = dict.fromkeys(whole)

    def drawn_once(prior, n, *, key=None):
        place = id(prior), n, repr(key if isinstance(key, int) else jax.random.key_data(key))
        if len(drawn) > 1000:
            drawn.clear()
        if place not in drawn:
            drawn[place] = prior, draw(prior, n, key=key)  # with the prior, whose number no other one has then
        return drawn[place][1]

    INN.require_sound, _result.read_model, Prior.sample = (lambda model: traced(model)), read, drawn_once
    try:
        yield
    finally:
        INN.require_sound, _result.read_model, Prior.sample = traced.whole, storage.read_model, draw


def _opened(folder: Path) -> Any:
    from flowknife.report import about, ends

    result = apps.load(folder)
    shown = f"{about(result)} {ends(result.model)} {result!r} {result.flagging} {result.history}"
    _require_finite((result.model, result.reference, result.held_out))
    return shown


@dataclass
class Target:
    """One kind of file.

    Attributes:
        seeds: whole files, by name.
        change: makes a damaged file of the content of one.
        use: opens a file that was written to a folder of its own: `use(folder, name, content)`.
    """

    seeds: dict[str, bytes]
    change: Callable[[random.Random, bytes], bytes]
    use: Callable[[Path, str, bytes], Any]


def _either(rng, content, special):
    with contextlib.suppress(Exception):  # what is changed is not always what the other one expects
        if rng.random() < 0.6:
            return special(rng, content)
    return changed_bytes(rng, content)


def _change_numpy(rng, content):
    if content[:2] != b"PK":
        return _either(rng, content, _numpy_bytes)
    import zipfile

    packed = io.BytesIO()
    with (
        warnings.catch_warnings(action="ignore"),  # of a name that is there twice
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(packed, "w") as new,
    ):
        for name in old.namelist():
            new.writestr(
                name if rng.random() < 0.9 else rng.choice(("x", "../x.npy", "y.npy")),
                _either(rng, old.read(name), _numpy_bytes),
                rng.choice((0, 8)),
            )
    return packed.getvalue() if rng.random() < 0.7 else changed_bytes(rng, content)


def _change_table(rng, content):
    return _change_numpy(rng, content) if content[:2] in (b"PK", b"\x93N") else changed_bytes(rng, content)


def _change_image(rng, content):
    return _either(rng, content, _png_bytes) if content[:4] == b"\x89PNG" else changed_bytes(rng, content)


def _change_packed(rng, content):
    return (
        gzip.compress(changed_bytes(rng, gzip.decompress(content)), mtime=0)
        if rng.random() < 0.5
        else changed_bytes(rng, content)
    )


def _use_table(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    how = {"words.csv": lambda: read_columns(path, keep=("label",)), "pairs.npz": lambda: read_pairs(path)}
    read = how.get(name, lambda: load_table(path, drop_invalid=True, min_rows=1))
    table = read()
    values = getattr(table, "values", None)
    if name not in how and not np.isfinite(values).all():
        raise AssertionError("a table with a number that is not finite")


def _use_image_array(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    found = load_images(find_images(path), 8)
    if found.pixels.shape[1:3] != (8, 8) or found.pixels.dtype != np.uint8:
        raise AssertionError("no images")


def _use_settings(folder, name, content):
    path = folder / "s.yaml"
    path.write_bytes(content)
    found = configured(fk.DensityConfig, path, []) if name == "s" else None
    with contextlib.suppress(UnicodeDecodeError):
        found = configured(fk.DensityConfig, None, [f"{name}={content.decode()}"]) if name != "s" else found
    return repr(found)


def _use_image(folder, name, content):
    (folder / name).write_bytes(content)
    (folder / "good.bmp").write_bytes(_GOOD)
    found = load_images(folder, 8)
    if found.pixels.shape[1:3] != (8, 8) or len(found) + len(found.skipped) != 2:
        raise AssertionError("a file was lost")


def _cache_of(folder):
    return ImageCache(folder, (4, 4, 1))


_CACHED = np.random.default_rng(3).integers(0, 256, (6, 4, 4, 1), dtype=np.uint8)
_ITEMS = [(f"{i}.png", f"stamp {i}") for i in range(6)]


def _cache_seeds() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "c"
        _cache_of(place).put(_ITEMS, [*_CACHED[:5], "damaged"])
        return {f"c{path.suffix}": path.read_bytes() for path in place.iterdir()}


def _use_cache(folder, name, content):
    for other, whole in _CACHE_SEEDS.items():
        (folder / other).write_bytes(content if other == name else whole)
    cache = _cache_of(folder)
    found = cache.get(_ITEMS)
    pixels = [cache.recall(item) for item in _ITEMS] if found is None else list(found[0])
    for image, right in zip(pixels, _CACHED, strict=False):
        if isinstance(image, np.ndarray) and not np.array_equal(np.broadcast_to(image, right.shape), right):
            raise AssertionError("a wrong image came out of the cache")


_CACHE_SEEDS: dict[str, bytes] = {}
_GOOD = b""


def targets(folder: Path, every: bool = False) -> dict[str, Target]:
    """Every kind of file; the runs among the seeds are written to `folder`.

    Args:
        folder: a new place.
        every: live pages of all jobs too, whose calls are programs.
    """
    global _CACHE_SEEDS, _GOOD
    from tests.fuzz_formats import more_targets

    results = small_runs()
    runs = {name: write_small(result, folder / name) for name, result in results.items()}
    files = {name: {path.name: path.read_bytes() for path in run.iterdir()} for name, run in runs.items()}
    _CACHE_SEEDS, _GOOD = _cache_seeds(), _pictures()["i.bmp"]

    def use_run(place, name, content, part):
        record = json.loads(files[name]["run.json"])
        for other, whole in files[name].items():
            (place / other).write_bytes(content if other == part else whole)
        if part != "run.json":  # whoever changes a file on purpose changes its checksum too
            record["files"][part] = hashlib.sha256(content).hexdigest()
            (place / "run.json").write_text(json.dumps(record))
        _opened(place)

    def of_runs(part, change):
        seeds = {name: files[name][part] for name in runs}
        return Target(seeds, change, lambda place, name, content: use_run(place, name, content, part))

    tables = _tables()
    packed = {"t.csv.gz": tables.pop("t.csv.gz")}
    array = io.BytesIO()
    np.save(array, np.zeros((3, 9, 9), np.uint8))
    return {
        "model": of_runs("model.safetensors", changed_model),
        "record": of_runs("run.json", changed_json),
        "history": of_runs("history.csv", changed_bytes),
        "table": Target(tables, _change_table, _use_table),
        "packed": Target(packed, _change_packed, _use_table),
        "array": Target({"i.npy": array.getvalue(), "t.npz": tables["t.npz"]}, _change_numpy, _use_image_array),
        "settings": Target(_SETTINGS, changed_bytes, _use_settings),
        "image": Target(_pictures(), _change_image, _use_image),
        "cache": Target(_CACHE_SEEDS, changed_bytes, _use_cache),
        **more_targets(folder, results, every),
    }  # fmt: skip


# -- the search --------------------------------------------------------------------------------------------------------


@dataclass
class Failure:
    """An input that broke a promise."""

    target: str
    seed: str
    number: int
    why: str
    content: bytes = field(repr=False)


_PROCESS = Path("/proc/self")


def peak_memory() -> int:
    """The most memory of this process since the last call, in bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        peak = _peak()
        (_PROCESS / "clear_refs").write_text("5")
        return peak
    return 0


def _peak():
    with (_PROCESS / "status").open("rb") as stream:
        return int(stream.read().partition(b"VmHWM:")[2].split(maxsplit=1)[0]) * 1024


def _at_hand():
    """Bytes of memory that this process has now, and a peak that is at most half of MEMORY above it."""
    try:
        with (_PROCESS / "statm").open("rb") as stream:
            now = int(stream.read().split()[1]) * _PAGE
        if _peak() - now > MEMORY // 2:  # that of an earlier input, which would hide what the next one takes
            peak_memory()
        return now
    except OSError:
        return 0


_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End the block after so many seconds of the clock, with a `Hang`."""

    def stop(number, frame):
        raise Hang

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def outcome(use: Callable[[], Any]) -> tuple[bool, str]:
    """Whether opening something ended well (True: read, False: refused), and what was wrong with how it ended."""
    before, began = _at_hand(), time.process_time()
    read, why = False, ""
    try:
        with limited(_WAIT), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            use()
        read = True
    except FlowknifeError as error:
        text = str(error)
        if not text.isprintable() or len(text) > 2000:
            why = f"a message that is not one printable line: {text[:200]!r}"
    except Hang:
        return False, "waited without end"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/flowknife/" in frame.filename] or frames
        why = f"{type(error).__name__} in {Path(ours[-1].filename).name}:{ours[-1].lineno}: {str(error)[:100]!r}"
    if (took := time.process_time() - began) > SECONDS:
        why = why or f"took {took:.1f} s"
    if before and (more := _peak() - before) > MEMORY:
        why = why or f"took {more / 2**20:.0f} MiB"
    return read, why


_QUICK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a file system in memory


def search(
    chosen: dict[str, Target], *, seed: int, inputs: int | None = None, seconds: float | None = None
) -> tuple[Counter, list[Failure]]:
    """Try damaged files, of each target in turn: how many were tried, read and refused, and what failed.

    The counts also say what each target took, in milliseconds.
    """
    counts: Counter = Counter()
    failures: list[Failure] = []
    ends = time.monotonic() + seconds if seconds else float("inf")
    with tempfile.TemporaryDirectory(dir=_QUICK) as folder:
        number = 0
        while (inputs is None or number < inputs) and time.monotonic() < ends:
            name = list(chosen)[number % len(chosen)]
            target = chosen[name]
            rng = random.Random(f"{seed} {number}")
            start = rng.choice(list(target.seeds))
            content = target.change(rng, target.seeds[start])
            place = Path(folder) / str(number)

            def use(place=place, target=target, start=start, content=content):
                target.use(place, start, content)

            place.mkdir()
            began = time.perf_counter()
            read, why = outcome(use)
            if why.startswith("took"):  # programs are compiled and modules imported only once
                read, why = outcome(use)
            shutil.rmtree(place, ignore_errors=True)
            counts[f"{name}: {'failed' if why else 'read' if read else 'refused'}"] += 1
            counts[f"{name}: ms"] += round(1000 * (time.perf_counter() - began), 3)  # ty: ignore[invalid-assignment]
            if why:
                failures.append(Failure(name, start, number, why, content))
            number += 1
    return counts, failures


def _search_all(seed: int, seconds: float, names: list[str], live: bool) -> tuple[Counter, list[Failure]]:
    with tempfile.TemporaryDirectory() as folder:
        every = targets(Path(folder), live)
        seeds = every["model"].seeds.values()
        with repeated_once([hashlib.sha256(content).hexdigest() for content in seeds]):
            return search({name: every[name] for name in names or every}, seed=seed, seconds=seconds)


def _inputs(counts: Counter) -> int:
    return sum(count for name, count in counts.items() if not name.endswith(": ms"))


def main() -> None:
    """Search for a time, and print what was found, each kind of failure once."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workers", type=int, default=1, help="processes, each with a seed of its own")
    parser.add_argument("--seed", type=int, default=0, help="of the first process; of the others the next ones")
    parser.add_argument("--targets", nargs="*", default=[])
    parser.add_argument("--live", action="store_true", help="ask live pages of all jobs, whose programs are compiled")
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="where the inputs that failed are written")
    given = parser.parse_args()
    counts, failures, seeds = Counter(), [], range(given.seed, given.seed + given.workers)
    with ProcessPoolExecutor(given.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        work = [pool.submit(_search_all, seed, 60 * given.minutes, given.targets, given.live) for seed in seeds]
        for seed, done in zip(seeds, work, strict=True):
            own, failed = done.result()
            print(f"seed {seed}: {_inputs(own):,} inputs, {len(failed)} failed", flush=True)
            counts += own
            failures += [(seed, failure) for failure in failed]
    print(f"{_inputs(counts):,} inputs in {given.minutes:g} minutes")
    for name in dict.fromkeys(name.partition(":")[0] for name in sorted(counts)):
        own = {end: counts[f"{name}: {end}"] for end in ("read", "refused", "failed")}
        each = counts[f"{name}: ms"] / max(sum(own.values()), 1)
        print(f"  {name}: {', '.join(f'{count:,} {end}' for end, count in own.items())}; {each:.1f} ms each")
    kinds: dict[tuple[str, str], list[tuple[int, Failure]]] = {}
    for seed, failure in failures:
        kinds.setdefault((failure.target, failure.why.split(": ")[0]), []).append((seed, failure))
    for (target, _), found in sorted(kinds.items(), key=lambda kind: -len(kind[1])):
        seed, first = found[0]
        given.out.mkdir(parents=True, exist_ok=True)
        place = f"{target}-{first.seed}-{seed}-{first.number}".replace("/", "-")
        (given.out / place).write_bytes(first.content)
        print(f"  {len(found)} x {target}: {first.why}  ({first.seed}, seed {seed}, number {first.number})")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # whose lock other processes may hold
    main()
