"""Where the time of a training step goes: each program does what the one before does, and one thing more.

products    the matrix products of the networks, forward and backward, and nothing else
networks    with biases and activations
flow        the negative log-likelihood and its gradient
update      with Adam alone
step        a step of `fk.fit`: batches taken from the rows, clipping, the average of the weights, the finite-check
"""

import itertools
from functools import partial

import common
import equinox as eqx
import flows_flowknife
import jax
import jax.numpy as jnp
import optax

import flowknife as fk
from flowknife._types import split_trainable


def shapes(s):
    """(rows, inputs, outputs) of the products of one coupling's network."""
    moved = s["dim"] - s["dim"] // 2
    each = {"affine": 2, "spline": 23}[s["scalar"]]
    sizes = [s["dim"] - moved, s["width"], s["width"], moved * each]
    return [(s["batch"], a, b) for a, b in itertools.pairwise(sizes)]


def work(s):
    """Floating-point operations of the products of a step: one forward, and two of the same size backward.

    The input of the first network needs its gradient too, since the layers before it are trained through it.
    """
    return 3 * s["layers"] * sum(2 * m * k * n for m, k, n in shapes(s))


def _weights(s, key):
    keys = jax.random.split(key, len(shapes(s)))
    return [jax.random.normal(k, (s["layers"], a, b)) / a**0.5 for k, (_, a, b) in zip(keys, shapes(s), strict=True)]


def products(s, activation=False):
    """The gradient of the networks alone, layers scanned as in `Repeat`; what passes between them is one matrix."""
    weights = _weights(s, jax.random.key(0))
    biases = [jnp.zeros((s["layers"], w.shape[-1])) for w in weights]
    x = jnp.asarray(common.normal_rows(shapes(s)[0][1], s["batch"]))

    def loss(parameters, x):
        def layer(x, own):
            ws, bs = own
            hidden = x
            for i, w in enumerate(ws):
                hidden = hidden @ w
                if activation:
                    hidden = hidden + bs[i]
                    hidden = jax.nn.relu(hidden) if i < len(ws) - 1 else hidden
            return hidden[:, : x.shape[1]], jnp.sum(hidden[:, x.shape[1] :])

        x, rest = jax.lax.scan(layer, x, parameters)
        return jnp.sum(x) + jnp.sum(rest)

    return partial(jax.jit(jax.value_and_grad(loss, argnums=(0, 1))), (weights, biases), x)


def flow(s, model, update=False):
    x = jnp.asarray(common.normal_rows(s["dim"], s["batch"]))
    trained, rest = split_trainable(model)
    adam = optax.adam(1e-3)
    state = [(trained, adam.init(trained))]

    @eqx.filter_jit
    def gradient(trained, x):
        return jax.value_and_grad(lambda t: -jnp.mean(eqx.combine(t, rest).log_prob(x)))(trained)

    @eqx.filter_jit
    def updated(state, x):
        trained, moments = state
        loss, grads = jax.value_and_grad(lambda t: -jnp.mean(eqx.combine(t, rest).log_prob(x)))(trained)
        change, moments = adam.update(grads, moments)
        return (optax.apply_updates(trained, change), moments), loss

    def step():
        state[0], loss = updated(state[0], x)
        return loss

    return step if update else partial(gradient, trained, x)


def matmul_rate(size=1024):
    """GFLOP/s of a product of two large square matrices: what the machine can do at best here."""
    a = jnp.ones((size, size))
    product = jax.jit(lambda a: a @ a)
    return 2 * size**3 / _seconds(lambda: product(a), 0.3) / 1e9


def _seconds(call, seconds):
    jax.block_until_ready(call())

    def once():
        jax.block_until_ready(call())

    return common.per_call(once, seconds, least=3)


def main():
    s = common.settings()
    architecture, words = flows_flowknife.build(s)
    model = fk.INN([fk.Block("x", s["dim"])], [fk.Block("z", s["dim"])], architecture)
    step = flows_flowknife.train(s, model)
    parts = {
        "products": products(s),
        "networks": products(s, activation=True),
        "flow": flow(s, model),
        "update": flow(s, model, update=True),
    }
    flop = work(s)

    def sample():
        found = {name: 1000 * _seconds(call, s["seconds"]) for name, call in parts.items()}
        found["step"] = step()["ms"]
        rates = {"rate": flop / found["step"] / 1e6, "products_rate": flop / found["products"] / 1e6}
        return {"mflop": flop / 1e6, **found, **rates, "best_rate": matmul_rate()}

    common.serve({"architecture": words, "versions": common.versions("flowknife", "jax")}, sample)


if __name__ == "__main__":
    main()
