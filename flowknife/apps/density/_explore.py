"""The interactive page of a density."""

import csv
import io
import tempfile
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
    flow._require_numbers("a page of one file", "explore() (command line: flowknife explore RUN)")
    return write_page(flow, folder, "density", _parts(flow))


def _parts(flow):
    """The content of the page."""
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
    """The live page: its content and the functions that it can call."""
    size, conditions = len(flow.columns), len(flow.given_names)
    latent = sum(block.size for block in flow.model.partition.right)

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

    def read_rows(text):
        """Parse rows from text, with categories by name."""
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "rows.csv"
            place.write_text(str(text), encoding="utf-8", errors="replace")
            try:
                found = flow._values(place)
            except InputError as error:
                raise InputError(str(error).replace(str(place), "rows")) from None
        return {"values": found.astype(float), "rows": len(found)}

    def prepare():
        given = np.zeros(conditions)
        for n in (1, 500, 1600, min(len(flow.reference), _ROWS)):  # the batch sizes that the page requests
            decode(np.zeros(n * latent), n, given)
            encode(np.zeros(n * size), n, given)
        log_prob(np.zeros(size), 1, given)
        sample(1000, given=given)

    calls = {"sample": sample, "encode": encode, "decode": decode, "log_prob": log_prob}
    parts = {**_parts(flow), "latent": latent}
    if flow.encoding is not None:
        calls["read_rows"] = read_rows
        parts["written"] = {"names": [*flow.names, *flow.given_names], "example": _written(flow)}
    return live_page(flow, "density", parts, calls, prepare=prepare)


def _written(flow):
    """Two rows with their categories by name, as in a table file."""
    x, given = np.split(flow.joint_frame.from_model(flow.reference[:2]), [len(flow.columns)], axis=1)
    columns = {**flow.encoding.decode(x), **dict(zip(flow.given_names, given.T, strict=True))}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        table.writerow([_number(v) if isinstance(v, float) else v for v in row])
    return text.getvalue()


def _number(value):
    return "" if np.isnan(value) else f"{value:.5g}"
