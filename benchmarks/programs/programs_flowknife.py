"""How many programs a job of flowknife compiles, and how long that takes, with an empty cache of programs."""

import warnings

import common
import jax
import numpy as np

import flowknife as fk

_COMPILED, _FOUND = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"


def density():
    flow = fk.density(fk.data.TOYS["moons"].sample(2000, key=0), key=0, train={"steps": 100}, show_progress=False)
    flow.log_prob(flow.sample(1000, key=0))


def table():
    x = np.random.default_rng(0).normal(size=(59, 13))
    fk.density(x, key=0, show_progress=False).score(x)


def classify():
    labels = np.arange(1000) % 2
    x = np.random.default_rng(0).normal(size=(1000, 4)) + labels[:, None]
    model = fk.classify(x, labels, key=0, train={"steps": 100}, show_progress=False)
    model.predict_proba(x)


def invert():
    posterior = fk.invert(
        fk.problems.two_moons(), num_simulations=2000, key=0, train={"steps": 100}, show_progress=False
    )
    posterior.sample(1000, y=[0.0, 0.0], key=0)
    posterior.check()


def images():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    model = fk.images(pixels, key=0, levels=1, width=16, train={"steps": 30}, show_progress=False)
    model.score(pixels[:20])
    model.sample(4, key=0)


def main():
    s = common.settings()
    warnings.simplefilter("ignore")
    counts = {"programs": 0, "found": 0, "compiling": 0.0}

    def on_duration(event, seconds, **_):
        if event == _COMPILED:
            counts["programs"] += 1
            counts["compiling"] += seconds

    def on_event(event, **_):
        counts["found"] += event == _FOUND

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)

    def sample():
        jobs = {"density": density, "table": table, "classify": classify, "invert": invert, "images": images}
        jobs[s["work"]]()
        return {**counts, "seconds": common.since_start()}

    common.serve({"versions": common.versions("flowknife", "jax")}, sample)


main()
