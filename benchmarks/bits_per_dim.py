"""Bits/dim of new images after equal time: `fk.images` with its defaults beside normflows' Glow.

    DATA=images.npz BITS=8 MINUTES=30 PEER=other/bin/python OUT=folder python -m benchmarks bits_per_dim

`DATA` holds uint8 images `x_train` and `x_test`, (n, H, W) or (n, H, W, C). `PEER` is the Python of an environment
with torch and normflows, such as `.bench/normflows/bin/python`; without it only ours is measured. The peer's Glow
has levels of eight steps, width 96, and trains by Adamax with warm-up in channels-last layout, the best setting found
for it here. `OUT` receives our run, and images of samples: ours, the peer's and those of a Gaussian, and the training
images nearest to ours.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import flowknife as fk
from benchmarks.images import principal_gaussian
from flowknife.apps import Images

_THEIRS = """
import sys, time
import numpy as np, torch, normflows as nf
path, bits, minutes, samples = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
data = np.load(path)
torch.manual_seed(0)

def tensor(x):
    x = x.reshape(*x.shape[:3], -1).transpose(0, 3, 1, 2) >> (8 - bits)
    return torch.from_numpy(np.ascontiguousarray(x)).contiguous(memory_format=torch.channels_last)

train, test = tensor(data["x_train"]), tensor(data["x_test"])
channels, side = train.shape[1], train.shape[2]
levels, priors, merges, flows = 2 if side % 8 else 3, [], [], []
for i in range(levels):
    c = channels * 2 ** (levels + 1 - i)
    flows.append([nf.flows.GlowBlock(c, 96) for _ in range(8)] + [nf.flows.Squeeze()])
    merges += [nf.flows.Merge()] if i else []
    s = side // 2 ** (levels - i)
    priors.append(nf.distributions.DiagGaussian((c // 2 if i else c, s, s)))
model = nf.MultiscaleFlow(priors, flows, merges).to(memory_format=torch.channels_last)
optimiser = torch.optim.Adamax(model.parameters(), 5e-4, weight_decay=1e-5)
dim, values = channels * side * side, 2**bits

def loss_of(x):
    # bits/dim of discrete images: the numbers are scaled to [0, 1)
    v = (x.float() + torch.rand(x.shape)) / values
    return model.forward_kld(v.contiguous(memory_format=torch.channels_last)) / dim / np.log(2) + bits

start, step = time.time(), 0
while time.time() - start < 60 * minutes:
    for group in optimiser.param_groups:
        group["lr"] = 5e-4 * min(1, (step + 1) / 100)
    loss = loss_of(train[torch.randint(len(train), (64,))])
    if torch.isfinite(loss):
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 50.0)
        optimiser.step()
    step += 1
with torch.no_grad():
    parts = [float(loss_of(part)) * len(part) for part in test.split(200)]
    model.set_temperature(0.7)
    drawn, _ = model.sample(64)
drawn = torch.nan_to_num(drawn * values).floor().clamp(0, values - 1) * 2 ** (8 - bits)
np.save(samples, drawn.numpy().astype(np.uint8).transpose(0, 2, 3, 1))
print("RESULT", sum(parts) / len(test), step)
"""


def run() -> None:
    """Print bits/dim of all test images, and what each side did in its time."""
    bits, minutes = int(os.environ.get("BITS", "8")), float(os.environ.get("MINUTES", "30"))
    if "DATA" not in os.environ:
        print("bits_per_dim: got no DATA; expected a file of images x_train and x_test; try DATA=images.npz")
        return
    out = Path(os.environ.get("OUT") or tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    data = np.load(os.environ["DATA"])
    start = time.perf_counter()
    ours = fk.images(data["x_train"], bits=bits, train={"minutes": minutes}, augment={"flip": False}, key=0)
    seconds = time.perf_counter() - start
    found = -ours.log_prob(data["x_test"]).mean() / np.prod(ours.shape) / np.log(2)
    print(
        f"ours ({ours.used.architecture}): {found:.4f} bits/dim, {seconds / 60:.1f} minutes, all included", flush=True
    )
    ours.save(out / "run")
    theirs = peer(bits, minutes, out / "peer.npy") if "PEER" in os.environ else None
    print(contact_sheets(ours, data["x_train"], theirs, out), flush=True)


def peer(bits: int, minutes: float, samples: Path) -> np.ndarray:
    """Train the peer, print its bits/dim, and return 64 samples at T = 0.7."""
    settings = [os.environ["DATA"], str(bits), str(minutes), str(samples)]
    command = [os.environ["PEER"], "-W", "ignore", "-c", _THEIRS, *settings]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=sys.stderr, text=True).stdout
    _, theirs, steps = output.split()[-3:]
    print(f"normflows' Glow: {float(theirs):.4f} bits/dim, {minutes:g} minutes, {steps} steps", flush=True)
    return np.load(samples)


def contact_sheets(ours: Images, train: np.ndarray, theirs: np.ndarray | None, out: Path) -> Path:
    """64 samples of each at T = 0.7, and the training images nearest to ours."""
    train = train.reshape(-1, *ours.shape)
    drawn = ours.sample(64, key=0, temperature=0.7)
    groups = [("Flow, T = 0.7", drawn), principal_gaussian(train, 64)]
    if theirs is not None:
        groups.append(("normflows' Glow, T = 0.7", theirs))
    fk.plots.compare(groups, "Samples beside those of others.").savefig(out / "samples.png")
    found, usual = ours.nearest(drawn[:12], k=5), np.median(ours.nearest(ours.held_out, k=1).distances)
    fk.plots.nearest(drawn[:12], found.images, found.distances, usual).savefig(out / "nearest.png")
    return out / "samples.png"
