"""The report of a density: data and samples, the density, the mapping and its animation."""

from pathlib import Path
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import numpy as np

from flowknife import plots
from flowknife._files import require_own
from flowknife.data._cells import is_missing
from flowknife.data.encoding import Coded
from flowknife.report._figures import flagging_text, keep, training, trust, which
from flowknife.report._page import PageImage, Section
from flowknife.report._run import write_page

if TYPE_CHECKING:
    from flowknife.apps.density._result import Density


_POINTS = 2000

_UNUSUAL = 5  # rows that the report explains

_COLUMNS = 6  # drawn at most


def report_density(flow: "Density", folder: str | Path) -> Path:
    """Write figures and `report.html` of a fitted density into `folder`; return the page's path."""
    data = flow.joint_frame.from_model(flow.reference[:_POINTS])
    given = data[:, len(flow.columns) :]
    generated = flow.sample_numbers(len(data), key=0, given=given if flow.given_names else None)
    generated = np.concatenate([generated, given], axis=1)
    wide = f" The first {_COLUMNS} of {data.shape[1]} columns are drawn." if data.shape[1] > _COLUMNS else ""
    shown = slice(0, _COLUMNS)
    names = [*flow.columns, *flow.given_names][shown]
    if flow.given_names:
        wide += f" Samples are drawn given the {', '.join(flow.given_names)} of the data."
    sections = [
        Section(
            "Data and samples",
            "Samples of the model should be indistinguishable from the data." + wide,
            [keep(plots.samples(data[:, shown], generated[:, shown], names), folder, "samples")],
        )
    ]
    if flow.encoding:
        wide += " Categories are shown as numbers, in alphabetical order, and dates as days since 1970."
    if data.shape[1] == flow.frame.dim == 2 and not flow.encoding:
        sections += [_density_section(flow, data, folder), _mapping_section(flow, data, folder)]
    rows = flow.joint_frame.from_model((flow.held_out if flow.flagging.rows else flow.reference)[:5000])
    z = flow.encode(Coded(rows))
    sections += [
        Section(
            "Latents",
            f"{which(flow.flagging)} rows, encoded, should follow N(0, I).",
            [keep(plots.latents(z), folder, "latents")],
        ),
        Section("Flags", flagging_text(flow.flagging)),
        _unusual_section(flow, rows),
    ]
    sections.append(trust(flow))
    sections += training(flow.history, folder, flow.record.training.sentence)
    return write_page(flow, folder, sections)


def _unusual_section(flow, rows):
    """The least likely rows, and the columns that make them unusual."""
    log_prob = flow.log_prob(Coded(rows))
    first = np.argsort(log_prob, kind="stable")[:_UNUSUAL]
    found = flow.explain(Coded(rows[first])).reasons(2)
    values = flow.encoding.decode(rows[first]) if flow.encoding else dict(zip(flow.names, rows[first].T, strict=False))
    table = [("Log density", "Column", "Value", "Most likely", "Gain in nats")]
    for row in range(len(first)):
        for place in range(1, 3):
            if f"reason_{place}" in found:
                name, likely = found[f"reason_{place}"][row], found[f"likely_{place}"][row]
                log_density = f"{log_prob[first[row]]:.1f}" if place == 1 else ""
                shown = (_shown(values[name][row]), _shown(likely), f"{found[f'gain_{place}'][row]:.1f}")
                table.append((log_density, str(name), *shown))
    return Section(
        "Unusual rows",
        f"The least likely of the {which(flow.flagging).lower()} rows, and the columns that make them unusual: the "
        "gain in log density if this column alone had its most likely value.",
        table=table,
    )


def _shown(value):
    if is_missing(value):
        return "missing"
    return f"{value:.5g}" if isinstance(value, (float, np.floating)) else str(value)


def _density_section(flow, data, folder):
    low, high = data.min(axis=0), data.max(axis=0)
    margin = 0.15 * (high - low)
    figure = plots.density(flow.log_prob, low - margin, high + margin, data[:500])
    return Section("Density", "The exact, normalised density at every point.", [keep(figure, folder, "density")])


def _mapping_section(flow, data, folder):
    z = flow.encode(data)
    angle = np.arctan2(*(data - data.mean(axis=0)).T[::-1])
    lines = _grid()
    bent = np.split(flow.decode(np.concatenate(lines)), len(lines))
    still = keep(plots.mapping(data, z, bent, lines, angle), folder, "mapping")
    stages = [data[:800], *_stages(flow, data[:800])]
    path = Path(folder) / "figures" / "mapping.gif"
    require_own(path)
    plots.mapping_animation(path, np.stack(stages), angle[:800])
    return Section(
        "Mapping",
        "The map between data space and latent space. Each point has the same colour in both.",
        [still, PageImage(path, "From the data through the layers of the network to the latent space and back.")],
    )


def _grid():
    """A grid of straight lines in the latent plane."""
    t = np.linspace(-3, 3, 200)
    ticks = np.linspace(-3, 3, 13)
    return [np.stack([t, np.full_like(t, c)], 1) for c in ticks] + [np.stack([np.full_like(t, c), t], 1) for c in ticks]


def _stages(flow, x):
    """The points after the standardisation and after every second coupling."""
    *start, repeat = flow.model.bijection.bijections
    arrays, structure = eqx.partition(repeat.layer, eqx.is_array)

    @jax.jit
    def through(x):
        def layer(x, own):
            return (y := eqx.combine(own, structure).encode(x)[0]), y

        return jax.lax.scan(layer, x, arrays)[1]

    x = flow.frame.to_model(x)
    for part in start:
        x, _ = part.encode(x)
    layers = np.asarray(through(x))
    # counted from the last one, so that the animation ends with the latent space itself
    return [np.asarray(x), *layers[::-1][::2][::-1]]
