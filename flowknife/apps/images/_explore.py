"""The live page of an image model: the cloud of latents, new and changed images, anomalies."""

from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife._batches import map_batches
from flowknife.anomaly._features import bits_of
from flowknife.anomaly._maps import anomaly_maps_of, maps_by_position
from flowknife.apps.images._empirical import by_level
from flowknife.errors import InputError
from flowknife.explore import Folder, Live, live_page, rows_of, seed_of, trust_of
from flowknife.explore._images import Cloud, cloud_calls, cloud_parts, compile_calls, few, in_cloud, pixels_of
from flowknife.laws import LARGEST_TEMPERATURE
from flowknife.multiscale import decode_batch, encode_batch

if TYPE_CHECKING:
    from flowknife.apps.images._result import Images

_DIRECTIONS = 8  # sliders, at most

_CHECKED = 128  # held-out images for the checks

_COMPARED = 96  # held-out images that the anomaly map compares with


def live_images(model: "Images", images: Any = None) -> Live:
    """The live page: its content and the functions that it can call; `images` are scored while it is open."""
    shape, levels, classes = model.shape, model.levels, model.classes
    size = int(np.prod(shape))
    shown = model.examples[: in_cloud(size)]
    shown_codes = model.example_codes[: len(shown)] if classes else np.full(len(shown), -1)

    def known(given, n):
        if not classes:
            return {}
        codes = np.broadcast_to(np.asarray(given if given is not None else 0, int).ravel(), n)
        if not np.isin(codes, range(len(classes))).all():
            raise InputError(f"got a class beyond {len(classes) - 1}; expected the number of one")
        return model._known(np.asarray(classes)[codes], n)

    def encode(x, n, given=None):
        pixels = pixels_of(x, n, shape)
        return map_batches(lambda part: [encode_batch(model.model, *part)], (pixels, known(given, n)), few(n))[0]

    def decode(z, n, given=None):
        latents = np.asarray(rows_of(z, n, size), np.float32)
        return map_batches(lambda part: [decode_batch(model.model, *part)], (latents, known(given, n)), few(n))[0]

    def sample(n, seed=0, temperature=0.7, given=None):
        scales = by_level(temperature, levels, "temperature", 1.0, LARGEST_TEMPERATURE)
        if n not in range(1, 65):
            raise InputError(f"got n={str(n)[:20]}; expected 1 to 64 images")
        noise = np.random.default_rng(seed_of(seed)).standard_normal((n, size), np.float32)
        for name, columns in levels.items():
            noise[:, columns] *= scales[name]
        return decode(noise, n, given)

    def features(x, n, given):
        return model._features(pixels_of(x, n, shape), known(given, n), most=few(n))

    def log_prob(x, n, given=None):
        return -bits_of(model.model, features(x, n, given).levels) * size * np.log(2)

    def score(x, n, given=None):
        found = features(x, n, given)
        p = model.detector.p_values(found.matrix) if model.flagging.rows else None
        bits = bits_of(model.model, found.levels)
        scores = model.detector.score(found.matrix).astype(float)
        return {"p": p, "score": scores, "bits": bits}

    @cache
    def reference():
        pixels = shown[:_COMPARED]
        return maps_by_position(model.model, pixels, known(shown_codes[:_COMPARED], len(pixels)))

    def anomaly_map(x, n, given=None):
        maps = maps_by_position(model.model, pixels_of(x, n, shape), known(given, n), few(n))
        if not maps[0]:
            return np.zeros((n, *shape[:2]), np.float32)
        return anomaly_maps_of(maps, reference(), shape[:2]).astype(np.float32)

    data = (shown, known(shown_codes, len(shown)))
    cloud = Cloud(map_batches(lambda part: [encode_batch(model.model, *part)], data)[0], levels)

    def trust():  # on some of the held-out images, since all of them take minutes
        part = slice(0, _CHECKED)
        return trust_of(replace(model, held_out=model.held_out[part], example_codes=model.example_codes[part]))

    prepare = partial(compile_calls, encode, decode, shown)
    parts = cloud_parts(cloud, shown, shown_codes, classes, bool(model.flagging.rows))
    parts["directions"] = _directions(model, cloud)
    calls = cloud_calls(cloud, encode, decode, shape, model.config.crop, model.white)
    calls |= {"sample": sample, "log_prob": log_prob, "score": score, "anomaly_map": anomaly_map, "trust": trust}
    if images is not None:
        folder = Folder(images, model._pixels, size, score, classes, conditional=bool(classes))
        parts, calls = folder.added_to(parts, calls)
    return live_page(
        model,
        "images",
        parts,
        calls,
        slow=frozenset({"log_prob", "score", "anomaly_map", "gallery"}),
        prepare=prepare,
    )


def _directions(model, cloud) -> list[dict[str, Any]]:
    """Directions along which the latents of training images vary most: name, level, and one standard deviation.

    Two for each level, the coarsest first. For the coarsest level, principal axes of the latents fill in where there
    are no significant directions.
    """
    found = [
        (name, i + 1, direction * np.sqrt(variance))
        for name, level in model.empirical.levels.items()
        for i, (direction, variance) in enumerate(zip(level.directions[:2], level.variances, strict=False))
    ]
    coarsest, columns = next(iter(model.levels.items()))
    if not any(name == coarsest for name, *_ in found):
        part = cloud.z[:, columns] - cloud.z[:, columns].mean(axis=0)
        _, scales, axes = np.linalg.svd(part, full_matrices=False)
        two = zip(scales[:2], axes, strict=False)
        found = [(coarsest, i + 1, axis * scale / np.sqrt(len(part))) for i, (scale, axis) in enumerate(two)] + found
    return [
        {"name": f"{name}, axis {i}", "level": name, "step": step.astype(np.float32)}
        for name, i, step in found[:_DIRECTIONS]
    ]
