"""Simulates the pairs that `flowknife.problems.pairs` reads: `python -m flowknife.problems.make_dispersion [FILE]`.

Needs disba and about ten seconds. Models without a fundamental mode are drawn again and counted.
"""

import sys
from pathlib import Path

import numpy as np

from flowknife.problems._dispersion import _FILE, dispersion, phase_velocities

COUNT = 20_000
LEVELS = 2**16 - 1


def simulate(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, int]:
    """Parameters, noiseless data, and the number of models that had to be drawn again."""
    prior = dispersion().prior
    parts, missing, failed, draw = [], count, 0, 0
    while missing:
        theta = np.asarray(prior.sample(missing, key=seed + draw), np.float64)
        y = phase_velocities(theta)
        good = np.all(np.isfinite(y), axis=-1)
        parts.append((theta[good], y[good]))
        missing, failed, draw = int(np.sum(~good)), failed + int(np.sum(~good)), draw + 1
    return np.concatenate([theta for theta, _ in parts]), np.concatenate([y for _, y in parts]), failed


def scaled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values as 16-bit integers, with the lowest value and the step of each column."""
    low, step = values.min(axis=0), np.ptp(values, axis=0) / LEVELS
    return np.round((values - low) / step).astype(np.uint16), low, step


def main(path: Path) -> None:
    """Write the file."""
    theta, y, failed = simulate(COUNT)
    stored = {}
    for name, values in (("theta", theta), ("y", y)):
        stored[name], stored[f"{name}_low"], stored[f"{name}_step"] = scaled(values)
    np.savez_compressed(path, **stored)
    sys.stdout.write(f"{path}: {COUNT:,} pairs, {failed} models drawn again, {path.stat().st_size / 1e6:.2f} MB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name(_FILE))
