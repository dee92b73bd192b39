"""One training step of Glow on the CPU beside that of normflows in channels-last: seconds and peak memory.

    PEER=other/bin/python python -m benchmarks glow_step

`PEER` is the Python of an environment of its own: `uv venv .venv-normflows` and
`uv pip install -p .venv-normflows/bin/python torch==2.13.0 normflows==1.7.3 numpy`, the default place.

Images of 32x32x3, three levels, width 128, batches of 32, affine couplings; both run in turn, equally often, each in
a process of its own with as many threads.
"""

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

_PREAMBLE = """
import os, resource, sys, time
steps, memory, repeats = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def report(step):
    step()  # compiles
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    # kilobytes on Linux
    print("RESULT", sorted(seconds)[len(seconds) // 2], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

_OURS = """
import equinox as eqx, jax, jax.numpy as jnp, numpy as np, optax
import flowknife as fk
from flowknife._types import split_trainable

shape = (32, 32, 3)
make = eqx.filter_jit(lambda k: fk.architectures.glow(shape, levels=3, steps=steps, memory=memory, key=k))
flow = make(jax.random.key(0))
model = fk.INN([fk.Block("image", shape, fk.laws.Pixels())], [fk.Block("z", 3072)], flow)
x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (32, *shape)), jnp.uint8)
trained, rest = split_trainable(eqx.filter_jit(lambda m: m.initialise(x, key=0))(model))
adam = optax.adam(1e-3)

@eqx.filter_jit(donate="all")
def update(state):
    trained, moments = state
    loss, gradient = jax.value_and_grad(lambda t: -jnp.mean(eqx.combine(t, rest).log_prob(x, key=1)))(trained)
    change, moments = adam.update(gradient, moments)
    return (optax.apply_updates(trained, change), moments), loss

state = [(trained, adam.init(trained))]

def step():
    state[0], loss = update(state[0])
    loss.block_until_ready()

report(step)
"""

_THEIRS = """
import normflows as nf, torch

torch.set_num_threads(len(os.sched_getaffinity(0)))
torch.manual_seed(0)
levels, priors, merges, flows = 3, [], [], []
for i in range(levels):
    channels = 3 * 2 ** (levels + 1 - i)
    flows.append([nf.flows.GlowBlock(channels, 128) for _ in range(steps)] + [nf.flows.Squeeze()])
    merges += [nf.flows.Merge()] if i else []
    size = 32 // 2 ** (levels - i)
    priors.append(nf.distributions.DiagGaussian((channels // 2 if i else channels, size, size)))
model = nf.MultiscaleFlow(priors, flows, merges).to(memory_format=torch.channels_last)
x = torch.rand(32, 3, 32, 32).contiguous(memory_format=torch.channels_last)
adam = torch.optim.Adam(model.parameters(), 1e-3)

def step():
    adam.zero_grad(set_to_none=True)
    model.forward_kld(x).backward()
    adam.step()

report(step)
"""


def _measure(python: str, program: str, *arguments: object) -> tuple[float, float]:
    """Median seconds of a step and peak memory of the process in MiB."""
    command = [python, "-W", "ignore", "-c", _PREAMBLE + program, *map(str, arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    seconds, mebibytes = re.search(r"RESULT (\S+) (\S+)", output).groups()
    return float(seconds), float(mebibytes)


def run(rounds: int = 5, repeats: int = 10) -> None:
    """Print the seconds of a step with 8 steps per level, and the peak memory with 8 and with 32."""
    peer = os.environ.get("PEER", ".venv-normflows/bin/python")
    if not Path(peer).exists():
        print(f"glow_step: got no {peer}; expected the Python of an environment with normflows, see glow_step.py")
        return
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(_measure(sys.executable, _OURS, 8, "standard", repeats)[0])
        theirs.append(_measure(peer, _THEIRS, 8, "-", repeats)[0])
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"{'Glow, 8 steps per level':<32}{'ours':>9}{'theirs':>9}{'ratio':>8}{'goal':>8}")
    print(f"{'seconds per step':<32}{a:>9.3f}{b:>9.3f}{b / a:>8.2f}{'>= 1':>8}", flush=True)
    for steps in (8, 32):
        a = _measure(sys.executable, _OURS, steps, "reversible", 1)[1]
        b = _measure(peer, _THEIRS, steps, "-", 1)[1]
        print(f"{f'peak MiB, {steps} steps, reversible':<32}{a:>9.0f}{b:>9.0f}{a / b:>8.2f}{'<= 0.5':>8}", flush=True)
