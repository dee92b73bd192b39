"""Run benchmarks by name, such as `python -m benchmarks density`; without a name, all of them."""

import sys

from benchmarks import ablation, anomaly, bits_per_dim, density, glow_step, images, inversion, loading, posteriors

BENCHMARKS = {
    "ablation": ablation.run,
    "anomaly": anomaly.run,
    "bits_per_dim": bits_per_dim.run,
    "density": density.run,
    "glow_step": glow_step.run,
    "images": images.run,
    "inversion": inversion.run,
    "loading": loading.run,
    "posteriors": posteriors.run,
}


def main() -> int:
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"error: got {unknown[0]!r}; expected one of {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in names:
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
