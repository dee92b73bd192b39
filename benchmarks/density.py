"""`fk.density` with its defaults against distributions of known entropy."""

import time

import flowknife as fk

_CASES = {"ring": (8_000, 0.03), "eight_gaussians": (8_000, 0.03), "checkerboard": (50_000, 0.10)}
_TEST_ROWS = 50_000


def run() -> None:
    """Print the distance of the held-out negative log-likelihood from the entropy, the least any model can reach."""
    print(f"{'density':<18}{'rows':>8}{'entropy':>9}{'NLL':>9}{'above':>8}{'goal':>7}{'seconds':>9}")
    for name, (rows, goal) in _CASES.items():
        toy = fk.data.TOYS[name]
        start = time.perf_counter()
        flow = fk.density(toy.sample(rows, key=1), key=0, show_progress=False)
        seconds = time.perf_counter() - start
        nll = -flow.log_prob(toy.sample(_TEST_ROWS, key=2)).mean()
        print(
            f"{name:<18}{rows:>8}{toy.entropy:>9.4f}{nll:>9.4f}{nll - toy.entropy:>8.4f}{goal:>7.2f}{seconds:>9.1f}",
            flush=True,
        )
