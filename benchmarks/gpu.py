"""What an accelerator does: one script for a machine with JAX, this folder, and what `make bench-gpu` put into it.

    python benchmarks/gpu.py                                  # all parts, in at most 8 minutes
    PARTS="train memory" python benchmarks/gpu.py             # some of train, memory, bf16, precision, mnist, cats
    MNIST=mnist.npz CATS=cats.npz MINUTES=5 PARTS=cats ...    # images: arrays `x_train` and `x_test`, or `x`
    SMALL=1 JAX_PLATFORMS=cpu python benchmarks/gpu.py        # a trial

Each image part trains for `MINUTES`, or for its share of what is left of `LIMIT` (seconds in all, 480): for five
minutes of each, run them one by one. Without a file, images are random and the part only shows that it runs. Every
result is one line of JSON; all of them are in `$OUT/gpu.json` (default `.bench/gpu.json`).
"""

import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# what the machine has itself comes first: its JAX knows its accelerator
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "programs")]
sys.path.append(str(ROOT / ".bench" / "gpu"))

START = time.monotonic()
SMALL = os.environ.get("SMALL") == "1"
LIMIT = float(os.environ.get("LIMIT", "480"))
MINUTES = float(os.environ.get("MINUTES", "0.1" if SMALL else "5"))
SHAPES = {"2-D": (2, 256, 64), "8-D": (8, 256, 128), "64-D": (64, 512, 256)}
_ENDING = 45  # seconds that an image part may take beyond its minutes


def left() -> float:
    """Seconds until the limit."""
    return LIMIT - (time.monotonic() - START)


def train():
    """Milliseconds per step of `fk.fit`, beside the rate of plain products of the same shapes."""
    import flows_flowknife
    import work_flowknife

    import flowknife as fk

    for words, (dim, batch, width) in SHAPES.items():
        for scalar in ("affine", "spline"):
            if left() < 30:
                return
            s = {"dim": dim, "batch": batch, "width": width, "layers": 8, "scalar": scalar, "kind": "coupling"}
            s |= {"seconds": 0.5, "short": 10}
            s |= {"seconds": 0.05, "short": 5, "layers": 2, "batch": 32, "width": 16} if SMALL else {}
            flow, architecture = flows_flowknife.build(s)
            model = fk.INN([fk.Block("x", dim)], [fk.Block("z", dim)], flow)
            sample = flows_flowknife.train(s, model)
            step = sorted(sample()["ms"] for _ in range(3))[1]
            products = 1000 * work_flowknife._seconds(work_flowknife.products(s), s["seconds"])
            flop = work_flowknife.work(s)
            yield {
                "row": f"{scalar}, {words}",
                "architecture": architecture,
                "ms": step,
                "products_ms": products,
                "mflop": flop / 1e6,
                "gflops": flop / step / 1e6,
            }


def memory():
    """Temporary memory of a compiled training step of Glow, by depth."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np

    import flowknife as fk
    from flowknife._types import split_trainable

    shape, batch = ((8, 8, 3), 4) if SMALL else ((32, 32, 3), 64)
    for steps in (2, 4) if SMALL else (8, 16, 32):
        for kind in ("standard", "reversible"):
            if left() < 30:
                return
            options = {"levels": 1 if SMALL else 3, "steps": steps, "width": 16 if SMALL else 128, "memory": kind}
            flow = fk.architectures.glow(shape, **options, key=0)
            model = fk.INN([fk.Block("image", shape, fk.laws.Pixels())], [fk.Block("z", int(np.prod(shape)))], flow)
            x = jnp.zeros((batch, *shape), jnp.uint8)
            trained, rest = split_trainable(model)

            def gradient(trained, x, rest=rest):
                return jax.grad(lambda t: -jnp.mean(eqx.combine(t, rest).log_prob(x, key=1)))(trained)

            compiled = jax.jit(gradient).lower(trained, x).compile()
            found = compiled.memory_analysis()
            start = time.perf_counter()
            jax.block_until_ready(compiled(trained, x))
            yield {
                "row": f"Glow, {steps} steps per level, {kind}",
                "batch": batch,
                "temporary_mebibytes": found.temp_size_in_bytes / 2**20,
                "s": time.perf_counter() - start,
            }


def bf16():
    """Milliseconds per step by the precision of matrix products, `train.matmul`."""
    import flows_flowknife
    import jax

    import flowknife as fk

    s = {"dim": 64, "batch": 512, "width": 256, "layers": 8, "scalar": "affine", "kind": "coupling"}
    s |= {"seconds": 0.5, "short": 10}
    s |= {"seconds": 0.05, "short": 5, "layers": 2, "batch": 32, "width": 16} if SMALL else {}
    flow, _ = flows_flowknife.build(s)
    model = fk.INN([fk.Block("x", s["dim"])], [fk.Block("z", s["dim"])], flow)
    for matmul in ("float32", "tensorfloat32", "bfloat16"):
        row = f"affine, 64-D, products in {matmul}"
        if jax.default_backend() == "cpu" and matmul != "float32":
            yield {"row": row, "unable": "a CPU computes in float32"}
            continue
        own = s | {"matmul": matmul}
        sample = flows_flowknife.train(own, model)
        step = sorted(sample()["ms"] for _ in range(3))[1]
        loss = flows_flowknife.fitted(own, model, 20 if SMALL else 500).loss
        yield {"row": row, "ms": step, "nll": loss}


def precision():
    """Milliseconds per gradient of image flows, by the precision of matrix products."""
    import jax
    import numpy as np

    import flowknife as fk

    for shape, batch in (((8, 8, 3), 4),) if SMALL else (((64, 64, 3), 64), ((28, 28, 1), 256)):
        for build in (fk.architectures.wavelet, fk.architectures.glow):
            model = fk.INN(
                [fk.Block("image", shape, fk.laws.Pixels())], [fk.Block("z", int(np.prod(shape)))], build(shape, key=0)
            )
            x = np.zeros((batch, *shape), np.uint8)
            for products in ("tensorfloat32", "float32"):
                if left() < 40:
                    return
                with jax.default_matmul_precision(products):
                    seconds = _gradient_seconds(model, x)
                words = f"{build.__name__}, {shape[0]}x{shape[1]}, gradient of {batch} images"
                yield {"row": f"{words}, products in {products}", "ms": 1000 * seconds}


def _gradient_seconds(model, x):
    """Median time of the gradient of a batch."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from flowknife._types import split_trainable

    trained, rest = split_trainable(model)
    compiled = jax.jit(jax.grad(lambda t: -jnp.mean(eqx.combine(t, rest).log_prob(x, key=1)))).lower(trained).compile()
    times = []
    for _ in range(3 if SMALL else 11):
        start = time.perf_counter()
        jax.block_until_ready(compiled(trained))
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def _images(name, side, channels, bits):
    import numpy as np

    words = f"{name}, {side}x{side}, {bits} bits"

    import flowknife as fk

    if name in os.environ:
        with np.load(os.environ[name]) as arrays:
            names = arrays.files
            train = arrays["x_train" if "x_train" in names else "x"]
            train, new = (train, arrays["x_test"]) if "x_test" in names else (train[:-200], train[-200:])
    else:
        side = min(side, 8) if SMALL else side
        train = np.random.default_rng(0).integers(0, 256, (260, side, side, channels), dtype=np.uint8)
        train, new = train[:200], train[200:]
    if SMALL:
        train, new = train[:200], new[:20]
    # what is left is shared with the image parts that come after
    others = [part for part in ("mnist", "cats") if part in _parts()]
    behind = len(others) - others.index(name.lower())
    minutes = min(MINUTES, (left() / behind - _ENDING) / 60)
    if minutes < 0.05:
        yield {"row": words, "unable": f"{left():.0f} s were left"}
        return
    start = time.monotonic()
    small = {"width": 16, "levels": 1} if SMALL else {}
    model = fk.images(train, bits=bits, train={"minutes": minutes}, key=0, show_progress=False, **small)
    seconds = time.monotonic() - start
    nats = -float(np.mean(model.log_prob(new)))
    yield {
        "row": words,
        "data": "given" if name in os.environ else "random",
        "asked_minutes": minutes,
        "minutes": seconds / 60,
        "bits_per_dim": nats / np.prod(model.shape) / np.log(2),
        "new": len(new),
        "steps": int(max(model.history["step"], default=0)),
        "architecture": model.used.architecture,
    }


def mnist():
    """`fk.images` on MNIST, 8 bits."""
    return _images("MNIST", 28, 1, 8)


def cats():
    """`fk.images` on photographs of 64 x 64, 5 bits."""
    return _images("CATS", 64, 3, 5)


PARTS = {"train": train, "memory": memory, "bf16": bf16, "precision": precision, "mnist": mnist, "cats": cats}


def _parts() -> list[str]:
    return os.environ.get("PARTS", " ".join(PARTS)).split()


def main() -> int:
    """Run the parts that were asked for; one that fails says so, and the next one runs."""
    import jax

    device = jax.devices()[0]
    out = Path(os.environ.get("OUT") or ROOT / ".bench") / "gpu.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    found = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__, "small": SMALL}
    found |= {"results": []}
    print(json.dumps(found), flush=True)
    failed = 0
    for name in _parts():
        try:
            for result in PARTS[name]():
                result = {"part": name, **result, "at": round(time.monotonic() - START, 1)}
                found["results"].append(result)
                print(json.dumps(result), flush=True)
        except Exception as error:  # of one part, which must not end the others
            failed = 1
            found["results"].append({"part": name, "failed": f"{type(error).__name__}: {error}"[:500]})
            print(json.dumps(found["results"][-1]), flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{time.monotonic() - START:.0f} s, {out}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
