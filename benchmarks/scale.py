"""A simulation of many devices: what bounds training and scoring at 1, 8, 64 and 512 (`python -m benchmarks scale`).

Every step takes as long as the slowest device, plus the sum of the gradients over all. Machines fail at random, and a
fit then goes on from its last checkpoint. The numbers at the top are measured or assumed, as docs/notes/scale.md says.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cluster:
    """What a cluster is made of.

    Attributes:
        devices: of all machines.
        per_machine: devices of one machine.
        network: bytes per second between two machines.
        inside: bytes per second between two devices of a machine.
        latency: seconds of one message.
        days: between two failures of one machine.
        restart: seconds until a fit runs again.
    """

    devices: int
    per_machine: int = 8
    network: float = 1.25e9
    inside: float = 1e11
    latency: float = 5e-5
    days: float = 30.0
    restart: float = 180.0

    @property
    def machines(self) -> int:
        """Number of machines."""
        return -(-self.devices // self.per_machine)

    def reduced(self, size: float) -> float:
        """Seconds to sum `size` bytes over all devices: rings in every machine, then a ring of the machines."""
        own = min(self.devices, self.per_machine)
        ring = 2 * (own - 1) / own * size / self.inside + 2 * (own - 1) * self.latency / 10
        others = self.machines
        return ring + 2 * (others - 1) / others * size / self.network + 2 * np.log2(others) * self.latency


def steps(cluster: Cluster, seconds: float, size: float, rng: np.random.Generator, count: int = 4000) -> np.ndarray:
    """The times of `count` steps: a device takes `seconds`, give or take 5 %, and now and then pauses for a second."""
    own = seconds * rng.lognormal(0, 0.05, (count, cluster.devices)) + (rng.random((count, cluster.devices)) < 1e-5)
    return own.max(axis=1) + cluster.reduced(size)


def training(cluster: Cluster, rows: int, rate: float, size: float, rng: np.random.Generator) -> tuple[float, float]:
    """(items per second, share of one device's rate that each keeps) of batches of `rows` for each device."""
    step = steps(cluster, rows / rate, size, rng).mean()
    failures = cluster.machines / (cluster.days * 86_400)  # per second
    lost = failures * (cluster.restart + 30.0)  # half a minute since the last checkpoint
    found = rows * cluster.devices / step / (1 + lost)
    return found, found / (rate * cluster.devices)


def run() -> None:
    """Print the tables of docs/notes/scale.md."""
    rng, size, rate = np.random.default_rng(0), 20e6, 2000.0
    print("| devices | a batch of 256 for each: items/s, efficiency | a batch of 2,048 for all | sum of gradients |")
    print("|---|---|---|---|")
    for devices in (1, 8, 64, 512):
        cluster = Cluster(devices)
        weak, strong = (training(cluster, rows, rate, size, rng) for rows in (256, 2048 // devices))
        words = [f"{found:,.0f}, {share:.0%}" for found, share in (weak, strong)]
        print(f"| {devices} | {' | '.join(words)} | {1000 * cluster.reduced(size):.1f} ms |")
    slow = Cluster(512, network=1.25e10)
    print(f"512 devices, 100 Gbit/s: {training(slow, 256, rate, size, rng)[1]:.0%}")
