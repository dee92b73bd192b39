"""What is promised, measured: sharpness, coverage, refinement, false discoveries, alarms, evidence and odds.

PARTS="sharp coverage refine discoveries alarms evidence" PROBLEMS="decay,gravity" python -m benchmarks guarantees

`TRAIN_SECONDS` is the time of each fit (`coverage`: 0 for the default), `PAIRS` the number of new pairs, `OBSERVATIONS`
how many are compared with the exact posterior, `REPEATS` how often rows are drawn again, `NOISE` whether the simulator
adds the noise of the curves ("inside") or `fk.invert(noise=...)` does ("given").
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import flowknife as fk
from benchmarks import dispersion
from flowknife._frame import plain_frame
from flowknife.apps.invert._regions import bounds
from flowknife.diagnostics import c2st, monitored

QUIET = {"key": 0, "show_progress": False}


# -- curves whose posteriors are exact by a grid ----------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A curve of at most three parameters, seen with Gaussian noise.

    Attributes:
        prior: of the parameters.
        forward: parameters (n, d) -> the curve at its times (n, m), in JAX.
        noise: standard deviation of each number.
        points: of the grid, along each parameter.
    """

    prior: Any
    forward: Callable[[Any], Any]
    noise: float
    points: int = 60

    def simulate(self, x, key):
        y = self.forward(x)
        return y + self.noise * jax.random.normal(key, y.shape)

    def parameters(self, u: np.ndarray) -> np.ndarray:
        """Parameters at u, in whose coordinates the prior is N(0, I)."""
        inside = np.asarray(self.prior.inner.bijection.decode(jnp.asarray(u, jnp.float32))[0], np.float64)
        return (self.prior.frame or plain_frame(self.prior.dim)).from_model(inside)

    def log_likelihood(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        residual = (y - np.asarray(_run(self.forward, jnp.asarray(x, jnp.float32)), np.float64)) / self.noise
        return -0.5 * np.sum(residual**2, axis=-1) - len(y) * np.log(self.noise * (2 * np.pi) ** 0.5)

    def exact(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean and standard deviation of each parameter given y, and log p(y), by a grid that closes in."""
        dim = self.prior.dim
        low, high = np.full(dim, -5.0), np.full(dim, 5.0)
        for last in (False, False, False, True):
            axes = [np.linspace(*ends, self.points) for ends in zip(low, high, strict=True)]
            u = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, dim)
            x = self.parameters(u)
            level = self.log_likelihood(x, y) + stats.norm.logpdf(u).sum(axis=-1)
            weight = np.exp(level - level.max())
            if last:
                break
            shaped = weight.reshape((self.points,) * dim)
            for i, axis in enumerate(axes):
                own = shaped.max(axis=tuple(j for j in range(dim) if j != i))
                some = np.flatnonzero(own > 1e-6)
                step = axis[1] - axis[0]
                low[i], high[i] = axis[some[0]] - step, axis[some[-1]] + step
        cell = np.prod([axis[1] - axis[0] for axis in axes])
        evidence = float(level.max() + np.log(weight.sum() * cell))
        weight = weight / weight.sum()
        mean = weight @ x
        return mean, np.sqrt(weight @ (x - mean) ** 2), evidence


_run = jax.jit(lambda forward, x: forward(x), static_argnums=0)

_HOURS = np.array([0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24])
_SECONDS = np.linspace(0.0, 10.0, 20)
_DAYS = np.linspace(3.0, 60.0, 20)


def dose(x):
    """One compartment, swallowed: concentration after 100 mg, of absorption, elimination (1/h) and volume (l)."""
    absorbed, eliminated, volume = (x[..., i : i + 1] for i in range(3))
    apart = jnp.where(jnp.abs(absorbed - eliminated) < 1e-4, 1e-4, absorbed - eliminated)
    return 100 * absorbed / (volume * apart) * (jnp.exp(-eliminated * _HOURS) - jnp.exp(-absorbed * _HOURS))


def decay(x):
    """An exponential decay with an offset."""
    return x[..., :1] * jnp.exp(-x[..., 1:2] * _SECONDS) + x[..., 2:]


def epidemic(x):
    """Share of infected in an SIR model, of the rates of infection and recovery (1/day), from 1 % infected."""
    rate, recovery = x[..., 0], x[..., 1]
    step = 0.5

    def slope(state):
        s, i = state
        return -rate * s * i, rate * s * i - recovery * i

    def move(state, _):
        one = slope(state)
        half = slope(tuple(a + 0.5 * step * b for a, b in zip(state, one, strict=True)))
        again = slope(tuple(a + 0.5 * step * b for a, b in zip(state, half, strict=True)))
        end = slope(tuple(a + step * b for a, b in zip(state, again, strict=True)))
        state = tuple(
            a + step / 6 * (p + 2 * q + 2 * r + s) for a, p, q, r, s in zip(state, one, half, again, end, strict=True)
        )
        return state, state[1]

    start = jnp.full_like(rate, 0.99), jnp.full_like(rate, 0.01)
    _, infected = jax.lax.scan(move, start, None, length=120)
    return jnp.moveaxis(infected[np.round(_DAYS / step).astype(int) - 1], 0, -1)


CURVES = {
    "dose": Curve(
        fk.LogNormal([0.0, -2.0, 3.0], [0.5, 0.5, 0.3], names=["absorption", "elimination", "volume"]), dose, 0.15
    ),
    "decay": Curve(fk.Uniform([1.0, 0.05, 0.0], [10.0, 1.5, 3.0], names=["size", "rate", "offset"]), decay, 0.3),
    "epidemic": Curve(
        fk.Uniform([0.15, 0.03], [1.0, 0.3], names=["infection", "recovery"]), epidemic, 0.03, points=150
    ),
}


def measured(curve: Curve, posterior: Any, count: int, draws: int = 4000) -> dict[str, np.ndarray]:
    """Width beside the exact one and distance of the means in exact widths, (count, d); nats above the exact -log p."""
    x = np.asarray(curve.prior.sample(count, key=77), np.float64)
    y = np.asarray(curve.simulate(jnp.asarray(x, jnp.float32), jax.random.key(78)), np.float64)
    drawn = posterior.sample(draws, y=y, key=79)
    exact = [curve.exact(one) for one in y]
    mean, width, evidence = (np.array(part) for part in zip(*exact, strict=True))
    log_prior = np.asarray(curve.prior.log_prob(x), np.float64)
    log_p = np.array([curve.log_likelihood(a[None], b)[0] for a, b in zip(x, y, strict=True)]) + log_prior - evidence
    return {
        "ratio": drawn.std(axis=1) / width,
        "shift": np.abs(drawn.mean(axis=1) - mean) / width,
        "above": log_p - posterior.log_prob(x, y),
    }


def sharp(settings: dict[str, Any] | None = None) -> None:
    """Widths and means beside exact posteriors, with defaults and 10,000 simulations."""
    count = int(os.environ.get("OBSERVATIONS", "30"))
    print(f"{'curve':<10}{'noise':<8}{'width / exact':<24}{'shift / exact width':<24}{'nats above':>11}{'seconds':>9}")
    for name in _chosen(CURVES):
        curve = CURVES[name]
        for where in os.environ.get("NOISE", "inside given").split():
            start = time.perf_counter()
            fixed = {"num_simulations": 10_000, **QUIET, **(settings or {})}
            if where == "given":
                posterior = fk.invert(curve.forward, curve.prior, noise=curve.noise, **fixed)
            else:
                posterior = fk.invert(curve.simulate, curve.prior, **fixed)
            seconds = time.perf_counter() - start
            found = measured(curve, posterior, count)
            ratio, shift = (_row(np.median(found[part], axis=0)) for part in ("ratio", "shift"))
            above = found["above"].mean()
            print(f"{name:<10}{where:<8}{ratio:<24}{shift:<24}{above:>11.3f}{seconds:>9.0f}", flush=True)


# -- coverage ---------------------------------------------------------------------------------------------------------


def _heavy(x, key):
    """Data whose noise is heavy-tailed and grows with the parameters."""
    y = jnp.stack([x[..., 0] + x[..., 1] ** 2, x[..., 0] * x[..., 1], x[..., 1]], axis=-1)
    return y + (0.1 + 0.3 * jnp.abs(y)) * jax.random.t(key, 3.0, y.shape)


def _counts(x, key):
    """Counts of three sources with two detectors."""
    rates = jnp.exp(x) @ jnp.asarray([[1.0, 0.2], [0.3, 1.0], [0.5, 0.5]])
    return jax.random.poisson(key, rates).astype(jnp.float32)


OWN = {
    "heavy tails": (_heavy, fk.Normal([0.0, 0.0], [1.0, 1.0])),
    "counts": (_counts, fk.Normal([1.0, 1.0, 1.0], [0.7, 0.7, 0.7])),
}
COVERED = ("two_moons", "gaussian_linear", "kinematics", "ballistics", "gravity", "dispersion", *OWN)


def _covered(name: str, count: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """A posterior that was trained for some seconds, and new pairs."""
    seconds = float(os.environ.get("TRAIN_SECONDS", "10"))
    settings = {"train": {"minutes": seconds / 60} if seconds else {}, **QUIET}
    noise = {"gravity": 0.1, "dispersion": 0.01, "kinematics": 0.01, "ballistics": 0.01}.get(name)
    if name == "dispersion":  # its simulations are stored
        theta, clean = (np.asarray(part, np.float64) for part in fk.problems.pairs())
        noisy = clean + noise * np.random.default_rng(0).normal(size=clean.shape)
        prior, most = fk.problems.dispersion().prior, min(count, 5000)
        return fk.invert(pairs=(theta[:-5000], noisy[:-5000]), prior=prior, **settings), theta[-most:], noisy[-most:]
    if name in OWN:
        simulator, prior = OWN[name]
        x = np.asarray(prior.sample(count, key=7))
        return fk.invert(simulator, prior, **settings), x, np.asarray(simulator(jnp.asarray(x), jax.random.key(8)))
    problem = fk.problems.PROBLEMS[name]()
    posterior = fk.invert(problem, **({} if noise is None else {"noise": noise}), **settings)
    x = np.asarray(problem.prior.sample(count, key=7))
    y = np.asarray(problem.simulate(x, key=8), np.float64)
    return posterior, x, y + (noise or 0.0) * np.random.default_rng(0).normal(size=y.shape)


def coverage() -> None:
    """Coverage of 90 % regions over new pairs, and in ten cells of the observation."""
    count = int(os.environ.get("PAIRS", "2000"))
    head = f"{'problem':<18}{'calibration':>12}{'before':>8}{'global':>8}{'local':>8}{'worst cell: global':>20}"
    print(f"{head}{'local':>8}{'nll':>8}")
    for name in _chosen(COVERED):
        posterior, x, y = _covered(name, count)
        log_prob = posterior.log_prob(x, y)
        inside = {kind: log_prob >= bounds(posterior, y, 0.9, kind == "local") for kind in ("global", "local")}
        some = slice(0, 300)
        drawn = posterior.log_prob(posterior.sample(200, y=y[some], key=1), y[some])
        before = np.mean(np.mean(drawn > log_prob[some, None], axis=1) <= 0.9)
        # the cells are tenths along the direction in which observations differ most
        scores = np.argsort(np.argsort(y, axis=0), axis=0) / len(y) - 0.5
        along = scores @ np.linalg.svd(scores, full_matrices=False)[2][0]
        cell = np.minimum((10 * np.argsort(np.argsort(along)) / len(y)).astype(int), 9)
        worst = {kind: min(held[cell == c].mean() for c in range(10)) for kind, held in inside.items()}
        row = f"{name:<18}{posterior.flagging.rows:>12}{before:>8.1%}{inside['global'].mean():>8.1%}"
        row += f"{inside['local'].mean():>8.1%}{worst['global']:>20.1%}{worst['local']:>8.1%}"
        print(f"{row}{-log_prob.mean():>8.2f}", flush=True)


# -- refinement -------------------------------------------------------------------------------------------------------


REFINED = {
    "gaussian_linear": fk.problems.gaussian_linear,
    "gravity": partial(fk.problems.gravity, noise=0.1),
    "dispersion": partial(dispersion.coarse, noise=0.01),
}


def refine() -> None:
    """C2ST of refined draws against the exact posterior, or a reference."""
    count, draws = int(os.environ.get("OBSERVATIONS", "20")), int(os.environ.get("DRAWS", "2000"))
    print(f"{'problem':<18}{'C2ST <= 0.52':>13}{'median':>8}{'worst':>8}{'before':>8}{'handed over':>13}{'s each':>8}")
    for name in _chosen(REFINED):
        problem = REFINED[name]()
        settings = {**QUIET, "train": {"minutes": float(os.environ.get("TRAIN_SECONDS", "60")) / 60}}
        pairs = fk.problems.pairs() if name == "dispersion" else None
        posterior = fk.invert(problem, pairs=pairs, noise=problem.noise, **settings)
        x = np.asarray(problem.prior.sample(count, key=7))
        y = np.asarray(problem.simulate(x, key=8), np.float64)
        y = y[np.isfinite(y).all(axis=1)]
        found, plain, handed, spent = [], [], 0, 0.0
        for i, row in enumerate(y):
            start = time.perf_counter()
            refined = posterior.refine(row, draws, key=i)
            spent += time.perf_counter() - start
            handed += refined.method != "weights"
            reference = problem.reference_posterior(row, draws, key=100 + i)
            found.append(c2st(reference, refined.draws, early_stopping=True))
            if i < 20:
                plain.append(c2st(reference, posterior.sample(draws, y=row, key=i), early_stopping=True))
            sys.stderr.write(f"{name} {i + 1}: {found[-1]:.3f}, {refined.method}, {spent / (i + 1):.1f} s each\n")
        share = np.mean(np.array(found) <= 0.52)
        row = f"{name:<18}{share:>13.0%}{np.median(found):>8.3f}{np.max(found):>8.3f}{np.median(plain):>8.3f}"
        print(f"{row}{f'{handed} of {len(found)}':>13}{spent / len(y):>8.1f}", flush=True)


# -- anomalies --------------------------------------------------------------------------------------------------------


def _rows(count: int, shift: float, anomalies: int, generator: np.random.Generator) -> np.ndarray:
    """A condition, N(shift, 1), and two readings that depend on it; the first rows have another reading."""
    condition = generator.normal(shift, 1.0, count)
    noise = generator.normal(size=(count, 2)) @ np.array([[0.3, 0.2], [0.0, 0.2]])
    readings = np.stack([condition, 0.5 * condition**2], axis=1) + noise
    readings[:anomalies] += np.array([1.5, -1.5])
    return np.column_stack([condition, readings])


def discoveries() -> None:
    """Realised rate of false discoveries, and power, at fdr=0.1, on rows of the same kind and on shifted ones."""
    repeats = int(os.environ.get("REPEATS", "200"))
    print(f"{'rows':<10}{'asked':>7}{'realised':>10}{'error':>8}{'found':>8}{'bound held':>12}")
    for shift in (0.0, 1.0):
        rates, found, held = [], [], []
        for i in range(repeats):
            generator = np.random.default_rng(i)
            settings = {"steps": 150, "layers": 3, "random_state": i}
            with np.errstate(all="ignore"):
                detector = fk.AnomalyDetector(fdr=0.1, **settings).fit(_rows(2000, 0.0, 0, generator))
            new = _rows(300, shift, 30, generator)
            if shift:
                detector = detector.shifted(new, columns=[0])
            flagged = detector.predict(new) == -1
            rates.append(flagged[30:].sum() / max(flagged.sum(), 1))
            found.append(flagged[:30].mean())
            if not shift:
                held.append(rates[-1] <= detector.false_discoveries(new))
        row = f"{'shifted' if shift else 'clean':<10}{0.1:>7}{np.mean(rates):>10.3f}"
        row += f"{np.std(rates) / repeats**0.5:>8.3f}{np.mean(found):>8.2f}"
        print(f"{row}{f'{np.mean(held):.1%}' if held else '-':>12}", flush=True)


def alarms() -> None:
    """False alarms of a monitor over streams without a change, and how soon a change is found."""
    repeats = int(os.environ.get("REPEATS", "500"))
    print(f"{'alpha':<8}{'false alarms':>13}{'shift':>8}{'found':>8}{'rows later':>12}")
    for alpha in (0.1, 0.01):
        generator = np.random.default_rng(0)
        false = [
            monitored(generator.normal(size=500), generator.normal(size=200), alpha, i).alarm is not None
            for i in range(repeats)
        ]
        for shift in (0.5, 1.0, 2.0):
            late = []
            for i in range(100):
                scores = np.concatenate([generator.normal(size=250), generator.normal(shift, 1.0, 250)])
                alarm = monitored(scores, generator.normal(size=500), alpha, i).alarm
                late.append(np.nan if alarm is None or alarm < 250 else alarm - 250)
            row = f"{alpha:<8}{np.mean(false):>13.3f}{shift:>8}{np.mean(np.isfinite(late)):>8.2f}"
            print(f"{row}{np.nanmedian(late):>12.0f}", flush=True)


# -- evidence and odds ------------------------------------------------------------------------------------------------


def evidence() -> None:
    """Evidences, odds and likelihoods of linear Gaussian models, in nats from the exact ones."""
    count = int(os.environ.get("OBSERVATIONS", "30"))
    problem = fk.problems.gaussian_linear()
    y = np.asarray(problem.simulate(problem.prior.sample(count, key=7), key=8), np.float64)
    posterior = fk.invert(problem, num_simulations=2000, **QUIET)
    exact = stats.norm.logpdf(y, 0.0, 0.2**0.5).sum(axis=1)
    off = np.abs([posterior.evidence(row, key=i).log_evidence for i, row in enumerate(y)] - exact)
    print(f"evidence, 10 data: off by {np.median(off):.3f} nats in the median, {off.max():.3f} at most", flush=True)

    for dim in (2, 5):
        models = {
            "narrow": (_noisy_means, fk.Normal(np.zeros(dim), 0.5)),
            "wide": (_noisy_means, fk.Normal(np.zeros(dim), 1.0)),
        }
        compared = fk.compare(models, num_simulations=10_000, **QUIET)
        rows = np.random.default_rng(0).normal(size=(count, dim)) * np.sqrt(0.75**2 + 0.25)
        widths = {name: np.sqrt(scale**2 + 0.25) for name, scale in (("narrow", 0.5), ("wide", 1.0))}
        one, two = (stats.norm.logpdf(rows, 0.0, widths[name]).sum(axis=1) for name in ("narrow", "wide"))
        odds = compared.odds(rows)
        off = np.abs(odds.log_bayes_factor("narrow", "wide") - (one - two))
        wrong = np.abs(odds.probability[:, 0] - 1 / (1 + np.exp(two - one)))
        print(
            f"log odds, {dim} data: off by {np.median(off):.3f} nats in the median, {off.max():.3f} at most; "
            f"probabilities by {wrong.max():.3f} at most; temperature {compared.temperature:.2f}",
            flush=True,
        )
    prior = fk.Normal([0.0, 0.0], [1.0, 1.0])
    learned = fk.likelihood(_noisy_means, prior, num_simulations=10_000, **QUIET)
    x = np.asarray(prior.sample(count, key=7), np.float64)
    rows = x + 0.5 * np.random.default_rng(0).normal(size=x.shape)
    off = np.abs(learned.log_prob(rows, x) - stats.norm.logpdf(rows, x, 0.5).sum(axis=1))
    print(f"likelihood, 2 data: off by {np.median(off):.3f} nats in the median, {off.max():.3f} at most", flush=True)


def _noisy_means(x, key):
    return x + 0.5 * jax.random.normal(key, x.shape)


PARTS = {part.__name__: part for part in (sharp, coverage, refine, discoveries, alarms, evidence)}


def _chosen(names):
    asked = os.environ.get("PROBLEMS")
    return [name for name in names if asked is None or name in asked.split(",")]


def _row(values):
    return " ".join(f"{value:.2f}" for value in values)


def run() -> None:
    """Print the tables of the parts that were asked for."""
    for name in os.environ.get("PARTS", " ".join(PARTS)).split():
        print(f"\n{name}: {PARTS[name].__doc__}", flush=True)
        PARTS[name]()
