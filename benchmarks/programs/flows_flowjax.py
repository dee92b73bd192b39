"""Flows of FlowJAX; its training step is the compiled one of `flowjax.train.fit_to_data`."""

import time

import common
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import paramax
from flowjax.bijections import Affine, RationalQuadraticSpline
from flowjax.distributions import StandardNormal
from flowjax.flows import coupling_flow, masked_autoregressive_flow
from flowjax.train.losses import MaximumLikelihoodLoss
from flowjax.train.train_utils import step as library_step


def build(s):
    """Seven knots within the interval are eight bins."""
    make = masked_autoregressive_flow if s["kind"] == "autoregressive" else coupling_flow
    return make(
        jax.random.key(0),
        base_dist=StandardNormal((s["dim"],)),
        transformer=RationalQuadraticSpline(knots=7, interval=3) if s["scalar"] == "spline" else Affine(),
        flow_layers=s["layers"],
        nn_width=s["width"],
        nn_depth=2,
    )


def parts(flow):
    return eqx.partition(flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable))


class Training:
    """The state of training, and one step of it."""

    def __init__(self, flow, x, batch, rate=1e-3):
        self.params, self.static = parts(flow)
        # the rate is a part of the state, so that a schedule compiles nothing anew
        self.adam = optax.inject_hyperparams(optax.adam)(rate)
        self.state, self.loss = self.adam.init(self.params), MaximumLikelihoodLoss()
        self.x, self.batch, self.place = x, batch, 0
        self.generator, self.key = np.random.default_rng(0), jax.random.key(1)
        self.order = self.generator.permutation(len(x))

    def step(self, rate=None):
        if rate is not None:
            self.state.hyperparams["learning_rate"] = jnp.asarray(rate)
        if self.place + self.batch > len(self.x):
            self.order, self.place = self.generator.permutation(len(self.x)), 0
        rows = self.x[self.order[self.place : self.place + self.batch]]
        self.place += self.batch
        self.params, self.state, self.last = library_step(
            self.params,
            self.static,
            rows,
            optimizer=self.adam,
            opt_state=self.state,
            loss_fn=self.loss,
            key=self.key,
        )


def _training(s, flow):
    return Training(flow, common.normal_rows(s["dim"], 32 * s["batch"]), s["batch"])


def train(s, flow):
    training = _training(s, flow)

    def step():
        training.step()
        training.last.block_until_ready()

    count = common.steps_within(step, s["seconds"])

    def sample():
        start = time.perf_counter()
        for _ in range(count):
            training.step()
        training.last.block_until_ready()
        return {"ms": 1000 * (time.perf_counter() - start) / count}

    return sample


def first(s, flow):
    training = _training(s, flow)

    def sample():
        training.step()
        training.last.block_until_ready()
        return {"seconds": common.since_start()}

    return sample


@eqx.filter_jit
def score(params, static, x):
    return paramax.unwrap(eqx.combine(params, static)).log_prob(x)


@eqx.filter_jit
def draw(params, static, key, n):
    return paramax.unwrap(eqx.combine(params, static)).sample(key, (n,))


def density(s, flow):
    with np.load(s["data"]) as arrays:
        train, test, entropy = arrays["train"], arrays["test"], float(arrays["entropy"])
    center, scale = train.mean(0), train.std(0)
    train, test, lost = (train - center) / scale, (test - center) / scale, float(np.log(scale).sum())
    training = Training(flow, train, s["batch"])

    def nats():
        scores = [np.asarray(score(training.params, training.static, part), float) for part in common.chunks(test)]
        return -float(np.concatenate(scores).mean()) + lost - entropy

    def step(rate):
        training.step(rate)
        training.last.block_until_ready()

    def sample():
        return common.trained(s, step, nats)

    return sample


def evaluate(s, flow):
    x = common.normal_rows(s["dim"], max(s["rows"]))
    params, static = parts(flow)
    key = jax.random.key(2)

    def scored(n):
        return np.concatenate([np.asarray(score(params, static, part)) for part in common.chunks(x[:n])])

    def drawn(n):
        sizes = [min(common.ROWS_AT_ONCE, n - i) for i in range(0, n, common.ROWS_AT_ONCE)]
        return np.concatenate([np.asarray(draw(params, static, key, size)) for size in sizes])

    call = {"log_prob": scored, "sample": drawn}[s["what"]]
    for n in s["rows"]:  # each size compiles
        call(min(n, common.ROWS_AT_ONCE))
        call(n % common.ROWS_AT_ONCE or 1)

    def sample():
        return {str(n): 1000 * common.median_of(lambda n=n: call(n), 1 if n > 100_000 else 7) for n in s["rows"]}

    return sample


def main():
    s = common.settings()
    flow = build(s)
    numbers = jax.tree.leaves(parts(flow)[0])
    about = {
        "parameters": int(sum(array.size for array in numbers)),
        "architecture": f"{s['kind']}, permutations, ReLU",
        "versions": common.versions("flowjax", "jax", "equinox"),
    }
    common.serve(about, {"train": train, "first": first, "density": density, "evaluate": evaluate}[s["job"]](s, flow))


main()
