"""The live page of a classifier of images: the cloud of latents, images of every class, probabilities."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import logsumexp

from flowknife._batches import map_batches
from flowknife.errors import InputError
from flowknife.explore import Folder, Live, live_page, rows_of, seed_of
from flowknife.explore._images import Cloud, cloud_calls, cloud_parts, compile_calls, few, in_cloud, pixels_of
from flowknife.multiscale import decode_batch, encode_batch

if TYPE_CHECKING:
    from flowknife.apps.classify._result import Classifier

_DIRECTIONS = 12  # sliders, at most


def live_images(classifier: "Classifier", images: Any = None) -> Live:
    """The live page: its content and the functions that it can call; `images` are scored while it is open."""
    model, shape, classes = classifier.model, classifier.shape, classifier.classes
    size = int(np.prod(shape))
    ends = np.cumsum([block.size for block in model.partition.right])
    levels = {
        block.name: slice(int(end - block.size), int(end))
        for block, end in zip(model.partition.right, ends, strict=True)
    }
    items, labels = classifier.examples
    shown, codes = items[: in_cloud(size)], np.asarray(labels[: in_cloud(size)], int)

    def encode(x, n, given=None):
        pixels = pixels_of(x, n, shape)
        return map_batches(lambda part: [encode_batch(model, part, {})], pixels, few(n))[0]

    def decode(z, n, given=None):
        latents = np.asarray(rows_of(z, n, size), np.float32)
        return map_batches(lambda part: [decode_batch(model, part, {})], latents, few(n))[0]

    def sample(n, seed=0, temperature=0.7, given=None):
        if n not in range(1, 65) or (given is not None and given not in range(len(classes))):
            raise InputError("got a question about other images; expected 1 to 64, and the number of a class")
        label = None if given is None else classes[given]
        return classifier.sample(n, label=label, key=seed_of(seed), temperature=temperature)

    def look(x, n):
        return pixels_of(x, n, shape), classifier._look(pixels_of(x, n, shape))

    def log_prob(x, n, given=None):
        return logsumexp(look(x, n)[1][0] + classifier.log_prior, axis=1)

    def score(x, n, given=None):
        pixels, seen = look(x, n)
        joint = seen[0] + classifier.log_prior
        anomaly = np.asarray(classifier._anomaly(pixels, seen), float)
        p = classifier._p_values(anomaly) if classifier.flagging.rows else None
        return {
            "p": p,
            "score": anomaly,
            "bits": -logsumexp(joint, axis=1) / size / np.log(2),
            "probability": classifier._probability(joint).astype(float),
        }

    z = map_batches(lambda part: [encode_batch(model, part, {})], shown)[0]
    means = {name: z[codes == k].mean(axis=0) for k, name in enumerate(classes) if np.any(codes == k)}
    cloud = Cloud(z, levels, np.array(list(means.values())))

    prepare = partial(compile_calls, encode, decode, shown)
    parts = cloud_parts(cloud, shown, codes, classes, bool(classifier.flagging.rows)) | {
        "classifies": True,
        # from the mean of all latents to that of each class
        "directions": [
            {"name": f"towards {name}", "level": "", "step": (mean - z.mean(axis=0)).astype(np.float32)}
            for name, mean in list(means.items())[:_DIRECTIONS]
        ],
    }
    calls = cloud_calls(cloud, encode, decode, shape, 1.0, classifier.white)
    calls |= {"sample": sample, "log_prob": log_prob, "score": score}
    if images is not None:
        parts, calls = Folder(images, classifier._images, size, score, classes).added_to(parts, calls)
    return live_page(
        classifier,
        "images",
        parts,
        calls,
        slow=frozenset({"log_prob", "score", "gallery"}),
        prepare=prepare,
    )
