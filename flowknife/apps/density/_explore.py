"""The interactive page of a density: rows, scores that calibrate, and the units of the columns."""

from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from flowknife.errors import InputError
from flowknife.explore import Live, count_of, described_frame, live_page, rows_of, seed_of, thinned, write_page

if TYPE_CHECKING:
    from flowknife.apps.density._result import Density

_ROWS = 1500  # shown


def explore_density(flow: "Density", folder: str | Path) -> Path:
    """Write `explore.html` of a fitted density into `folder`; return the page's path."""
    if flow.encoding is not None:
        raise InputError("got a table with categories, dates or gaps; expected one of numbers; try flowknife explore")
    return write_page(flow, folder, "density", _parts(flow))


def _parts(flow):
    """What the page shows."""
    rows = flow.joint_frame.from_model(flow.reference[:_ROWS])
    x, given = np.split(rows, [len(flow.columns)], axis=1)
    scores = -flow._held_out_log_prob if flow.flagging.rows else np.zeros(0)
    return {
        "names": list(flow.columns),
        "frame": described_frame(flow.frame),
        "given_frame": described_frame(flow.given_frame),
        "given_names": list(flow.given_names),
        "rows": x,
        "given": given,
        "given_usual": [float(value) for value in np.median(given, axis=0)],
        "scores": thinned(scores),
    }


def live_density(flow: "Density") -> Live:
    """A live page: what it shows, and what it may ask."""
    size, latent, conditions = len(flow.columns), flow.frame.dim, len(flow.given_names)

    def given_of(given, rows):
        return None if given is None or not conditions else rows_of(given, rows, conditions).astype(float)

    def values(x, n, given, rows):
        numbers = rows_of(x, n, size).astype(float)
        return np.concatenate([numbers, flow.conditions(given_of(given, rows), len(numbers))], axis=1)

    def sample(n, seed=0, temperature=1.0, given=None):
        options = {"key": seed_of(seed), "temperature": temperature, "given": given_of(given, 1)}
        return flow.sample_numbers(count_of(n), **options).astype(float)

    def encode(x, n, given=None, rows=1):
        return flow._encoded(flow._filled(flow.joint_frame.to_model(values(x, n, given, rows)))[0])

    def decode(z, n, given=None, rows=1):
        return flow.decode_numbers(jnp.asarray(rows_of(z, n, latent), jnp.float32), given_of(given, rows)).astype(float)

    def log_prob(x, n, given=None, rows=1):
        return flow._log_prob_at(values(x, n, given, rows)).astype(float)

    calls = {"sample": sample, "encode": encode, "decode": decode, "log_prob": log_prob}
    return live_page(flow, "density", {**_parts(flow), "latent": latent}, calls)
