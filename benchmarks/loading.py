"""How fast images are read, augmented and fed to training.

    python -m benchmarks loading

Files of 256 x 256 pixels become images of 64 x 64; training from memory and from disk makes the same steps.
"""

import os
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import flowknife as fk
from flowknife.architectures import glow

SIDE, SIZE, COUNT = 256, 64, 400


def run() -> None:
    """Print images per second of reading and of augmenting, and what training loses by waiting for the disk."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["FLOWKNIFE_CACHE"] = str(Path(place) / "cache")
        for suffix in ("jpg", "png"):
            _write(Path(place) / suffix, suffix)
            print(f"{suffix}, {SIDE} to {SIZE}: {_rate(lambda s=suffix: fk.data.load_images(Path(place) / s, SIZE))}")
        first = _rate(lambda: fk.data.load_images(Path(place) / "jpg", SIZE, max_memory=1))
        print(f"jpg, decoded into the cache: {first}")
        print(f"from the cache: {_rate(lambda: fk.data.load_images(Path(place) / 'jpg', SIZE, max_memory=1))}")
        _waiting(fk.data.load_images(Path(place) / "jpg", SIZE, max_memory=1).pixels)
    _augmenting()


def _write(folder: Path, suffix: str) -> None:
    """Smooth images with some noise, which compress like photographs."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float)
        noisy = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:06d}.{suffix}")


def _rate(read) -> str:
    wall, processor = time.perf_counter(), time.process_time()
    count = len(read())
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return f"{count / wall:,.0f} images/s, {count / processor:,.0f} per second of one core"


def _waiting(stored: np.ndarray) -> None:
    """Seconds per step of a small flow that trains from memory and from disk."""
    shape = stored.shape[1:]
    flow = fk.INN(
        [fk.Block("image", shape, fk.laws.Pixels(5))],
        [fk.Block("z", int(np.prod(shape)))],
        glow(shape, levels=1, steps=1, width=16, key=0),
    )
    seconds = {}
    for name, pixels in (("memory", np.array(stored)), ("disk", stored)) * 2:  # the first of each compiles
        training = {"steps": 40, "batch_size": 16, "evaluate_every": 10, "validation": 0.1}
        seconds[name] = fk.fit(flow, pixels, **training, key=0, show_progress=False).seconds
    lost = max(1 - seconds["memory"] / seconds["disk"], 0)
    print(f"40 steps from memory: {seconds['memory']:.2f} s, from disk: {seconds['disk']:.2f} s, waiting: {lost:.1%}")


def _augmenting(n: int = 64) -> None:
    """Images per second of `augment` alone, in batches of `n`."""
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8))
    everything = {"zoom": 0.1, "shear": 0.1, "rotation": 10.0, "shift": 0.05, "brightness": 0.1}
    for name, settings, flip in (("mirrored", {}, True), ("everything", everything, True)):
        settings = fk.data.Augmentation(**settings)
        step = jax.jit(lambda key, x, s=settings, f=flip: fk.data.augment(key, x, s, f))
        step(jax.random.key(0), pixels).block_until_ready()
        times = []
        for i in range(20):
            start = time.process_time()
            step(jax.random.key(i), pixels).block_until_ready()
            times.append(time.process_time() - start)
        print(f"augment, {name}: {n / np.median(times):,.0f} images per second of one core")
