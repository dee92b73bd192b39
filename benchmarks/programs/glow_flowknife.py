"""A training step of Glow: images of 32x32x3, three levels, width 128, batches of 32, Adam."""

import common
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import flowknife as fk
from flowknife._types import split_trainable


def main():
    s = common.settings()
    shape = (s["side"], s["side"], 3)
    options = {"levels": s["levels"], "steps": s["steps"], "width": s["width"], "memory": s["memory"]}
    make = eqx.filter_jit(lambda k: fk.architectures.glow(shape, **options, key=k))
    flow = make(jax.random.key(0))
    model = fk.INN([fk.Block("image", shape, fk.laws.Pixels())], [fk.Block("z", int(np.prod(shape)))], flow)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (s["batch"], *shape)), jnp.uint8)
    trained, rest = split_trainable(eqx.filter_jit(lambda m: m.initialise(x, key=0))(model))
    adam = optax.adam(1e-3)

    @eqx.filter_jit(donate="all")
    def update(state):
        trained, moments = state
        loss, gradient = jax.value_and_grad(lambda t: -jnp.mean(eqx.combine(t, rest).log_prob(x, key=1)))(trained)
        change, moments = adam.update(gradient, moments)
        return (optax.apply_updates(trained, change), moments), loss

    parameters = int(sum(array.size for array in jax.tree.leaves(trained)))
    state = [(trained, adam.init(trained))]

    def step():
        state[0], loss = update(state[0])
        loss.block_until_ready()

    step()

    def sample():
        return {"ms": 1000 * common.mean_of(step, s["calls"]), "mebibytes": common.peak_mebibytes()}

    about = {"parameters": parameters, "architecture": f"{s['steps']} steps per level, memory {s['memory']}"}
    common.serve({**about, "versions": common.versions("flowknife", "jax", "optax")}, sample)


main()
