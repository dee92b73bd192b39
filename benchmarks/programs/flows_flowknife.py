"""Flows of flowknife; a training step is one of `fk.fit`, as long as it takes there."""

import time
from functools import partial

import common
import jax
import numpy as np

import flowknife as fk
from flowknife import architectures, bijections, nets

_TRIES = 3

SCALARS = {"affine": bijections.ShiftScale(), "spline": bijections.Spline()}


def build(s):
    """The flow that all systems share, or with `defaults` that of `fk.density`."""
    dim, layers, width = s["dim"], s["layers"], s["width"]
    if s["kind"] == "autoregressive":

        def layer(key):
            one, two = jax.random.split(key)
            made = bijections.MaskedAutoregressive(dim, SCALARS[s["scalar"]], width=width, key=one)
            return bijections.Chain([made, bijections.Permute.random(dim, key=two)])

        return bijections.Repeat(layer, layers, key=0), "autoregressive, permutations, GELU"
    if s.get("defaults"):
        flow = architectures.coupling_flow(dim, layers=layers, width=width, scalar=s["scalar"], key=0)
        return flow, "coupling as in fk.density: LU, GELU, spline after an affine map"
    net = partial(nets.MLP, width=width, depth=2, activation="relu")
    flow = architectures.coupling_flow(
        dim, layers=layers, scalar=SCALARS[s["scalar"]], mixing="permute", net=net, key=0
    )
    return flow, "coupling, permutations, ReLU"


def fitted(s, model, steps):
    x = common.normal_rows(s["dim"], 32 * s["batch"])
    options = {"batch_size": s["batch"], "validation": 0.0, "learning_rate": 1e-3, "matmul": s.get("matmul")}
    return fk.fit(model, x, steps=steps, initialise=False, show_progress=False, key=0, **options)


def train(s, model):
    """Milliseconds that each further step of a fit takes: of a long fit and a short one, the difference."""

    def seconds(steps):
        start = time.perf_counter()
        fitted(s, model, steps)
        return time.perf_counter() - start

    seconds(s["short"])  # compiles
    count = s["short"]
    for _ in range(2):  # what a fit takes beside its steps matters less the more there are
        count = max(s["short"], round(count * s["seconds"] / max(seconds(count), 1e-5)))

    def sample():
        for _ in range(_TRIES):  # beside other work a short fit may take longer than a long one
            spent = seconds(s["short"] + count) - seconds(s["short"])
            if spent > 0:
                return {"ms": 1000 * spent / count}
        raise RuntimeError(f"{_TRIES} short fits took longer than long ones; the machine is too busy")

    return sample


def first(s, model):
    def sample():
        fitted(s, model, 1)
        return {"seconds": common.since_start()}

    return sample


def evaluate(s, _):
    x = common.normal_rows(s["dim"], max(s["rows"]))
    options = {"layers": s["layers"], "width": s["width"], "scalar": s["scalar"], "train": {"steps": 20}}
    flow = fk.density(x[:2000], key=0, show_progress=False, **options)
    call = {"log_prob": lambda n: flow.log_prob(x[:n]), "sample": lambda n: flow.sample(n, key=0)}[s["what"]]
    for n in s["rows"]:
        call(n)

    def sample():
        return {str(n): 1000 * common.median_of(lambda n=n: call(n), 1 if n > 100_000 else 7) for n in s["rows"]}

    return sample


def density(s, _):
    """`fk.density` with its defaults, from the start of the process."""

    def sample():
        with np.load(s["data"]) as arrays:
            train, test, entropy = arrays["train"], arrays["test"], float(arrays["entropy"])
        flow = fk.density(train, key=s["repeat"], show_progress=False)
        seconds = common.since_start()
        above = -float(flow.log_prob(test).astype(float).mean()) - entropy
        within = seconds if above <= s["close"] else None
        return {"seconds": seconds, "nats": above, "within": within, "curve": [(round(seconds, 2), above)]}

    return sample


def main():
    s = common.settings()
    about = {"versions": common.versions("flowknife", "jax", "equinox", "optax"), "architecture": "as it is by default"}
    if s["job"] == "density":
        common.serve(about, density(s, None))
        return
    flow, about["architecture"] = build(s)
    model = fk.INN([fk.Block("x", s["dim"])], [fk.Block("z", s["dim"])], flow)
    trained = jax.tree.leaves(fk._types.split_trainable(flow)[0])
    about["parameters"] = int(sum(array.size for array in trained))
    common.serve(about, {"train": train, "first": first, "evaluate": evaluate}[s["job"]](s, model))


if __name__ == "__main__":
    main()
