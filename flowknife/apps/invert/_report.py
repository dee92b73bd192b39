"""The report of an inverse problem: one observation, all that explains it, and whether the posterior can be trusted."""

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import numpy as np

from flowknife import plots
from flowknife.errors import InputError
from flowknife.problems import PROBLEMS, Problem
from flowknife.report._figures import flagging_text, keep, training, trust, write_page
from flowknife.report._page import Section

if TYPE_CHECKING:
    from flowknife.apps.invert._result import Posterior


_DRAWS = 4000

_EXACT = ("kinematics", "ballistics", "two_moons", "gaussian_linear")  # reference posteriors that take no time

_ILLUSTRATED = ("kinematics", "ballistics", "gravity", "dispersion", "two_moons")

_PLACES = {"gravity": ("stations", "distance (km)", "anomaly (mGal)"), "dispersion": ("periods", "period (s)", "km/s")}

_NOISES = 4  # numbers of the noise that are drawn

_STRETCH = 2.0  # of the observations that a simulator cannot have made


def report_invert(posterior: "Posterior", folder: str | Path) -> Path:
    """Write figures and `report.html` of a posterior into `folder`; return the page's path."""
    examples = posterior.example_pairs
    truth, y = examples["x"][0], examples["y"][0]
    drawn = posterior.sample(_DRAWS, y=y, key=0)
    problem = _problem(posterior)
    sections = [
        _one_observation(posterior, problem, drawn, y, truth, folder),
        *_predictions(posterior, problem, drawn, y, folder),
        *_noise(posterior, y, truth, folder),
        _calibration(posterior, folder),
        _misspecification(posterior, folder),
        trust(posterior),
        *training(posterior.history, folder, posterior.record.training.sentence),
    ]
    return write_page(posterior, folder, "Inverse problem", sections)


def _problem(posterior) -> Problem | None:
    """The problem that was inverted, if it is one of ours, with the noise it had."""
    make: Any = PROBLEMS.get(posterior.record.data.problem or "")
    if make is None:
        return None
    levels = set(posterior.noise)
    return make(noise=levels.pop()) if "noise" in signature(make).parameters and len(levels) == 1 else make()


def _one_observation(posterior, problem, drawn, y, truth, folder):
    known = problem is not None and problem.name in _EXACT and eqx.tree_equal(posterior.prior, problem.prior)
    exact = problem.reference_posterior(y, _DRAWS, key=0) if known else None
    units = posterior.prior.units
    corner = plots.corner(drawn, posterior.names, truth, exact, units)
    figures = []
    if problem is not None and problem.name in _ILLUSTRATED:
        figures.append(keep(plots.problem(problem, drawn, y, truth), folder, "problem"))
    figures.append(keep(corner, folder, "corner"))
    compared = " The blue lines are draws of the exact posterior." if known else ""
    return Section(
        "All that explains one observation",
        f"An observation {'that was kept from' if posterior.flagging.rows else 'of the'} training, the parameters that "
        f"made it, and draws of the posterior, which should explain it as well.{compared}",
        figures,
    )


def _explained(posterior, theta):
    """Noise-free data of parameters: by the simulator, else by the network; None where neither can tell."""
    for forward in (posterior.forward, posterior.predict):
        try:
            if forward is not None:
                return np.asarray(forward(theta), float)
        except InputError:  # a simulator that is not installed, a network without a forward direction
            continue
    return None


def _predictions(posterior, problem, drawn, y, folder):
    predicted = _explained(posterior, drawn[:1000])
    if predicted is None:
        return []
    spread = np.asarray(posterior.noise)
    predicted = predicted + spread * np.random.default_rng(0).standard_normal(predicted.shape)
    units: tuple[str, ...] = ("",) * len(y) if problem is None else problem.y_units
    names = [f"{name} ({unit})" if unit else name for name, unit in zip(posterior.y_names, units, strict=True)]
    if problem is not None and problem.name in _PLACES:
        where, across, up = _PLACES[problem.name]
        figure = plots.predictive(predicted, y, names, problem.geometry[where], (across, up))
    else:
        figure = plots.predictive(predicted, y, names)
    noise = ", with the noise of the data added" if np.any(spread) else ""
    return [
        Section(
            "What the posterior predicts",
            f"The draws, sent through the forward model{noise}, beside the observation.",
            [keep(figure, folder, "predictive")],
        )
    ]


def _noise(posterior, y, truth, folder):
    """The noise that a model of (x, noise) <-> [y, z] finds in the data."""
    if "noise" not in [block.name for block in posterior.model.partition.left]:
        return []
    _, drawn = posterior.sample_noise(_DRAWS, y=y, key=0)
    true = y - _explained(posterior, truth[None])[0]
    shown = np.linspace(0, len(y) - 1, min(_NOISES, len(y))).astype(int)
    names = [f"noise of {posterior.y_names[i]}" for i in shown]
    figure = plots.corner(drawn[:, shown], names, true[shown])
    return [
        Section(
            "Noise",
            "The noise stands on the left beside the parameters, so each draw tells how much of the observation it "
            f"takes for noise. Before, its standard deviation was {_some(posterior.noise)}.",
            [keep(figure, folder, "noise")],
        )
    ]


def _some(values):
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _calibration(posterior, folder):
    if not posterior.flagging.rows:
        return Section(
            "Is the posterior right?",
            "This was not measured, since no pairs were held out. Check it with pairs that it was not trained on: "
            "`flowknife check RUN PAIRS`.",
        )
    found = posterior.calibration
    sentences = [
        f"{title}: {found[name].verdict}"
        for title, name in (
            ("Ranks of the true parameters", "ranks"),
            ("Central intervals", "coverage"),
            ("Balls around random points (TARP)", "tarp"),
            ("Regions of highest density", "highest density"),
        )
        if name in found
    ]
    if "resimulation" in found:
        error, spread = found["resimulation"].mean_squared, np.sum(np.square(posterior.noise))
        noise = f", of which {spread:.3g} is the noise of the data" if spread else ""
        sentences.append(f"Draws simulated anew miss their observation by {error:.3g} in the mean square{noise}.")
    return Section(
        "Is the posterior right?",
        "Over many held-out observations the truth must look like one more draw of its own posterior.\n\n"
        + "\n\n".join(sentences),
        [
            keep(plots.calibration(found["ranks"]), folder, "calibration"),
            keep(plots.coverage(found["coverage"], found["tarp"], found.get("highest density")), folder, "coverage"),
        ],
    )


def _misspecification(posterior, folder):
    title = "Would it notice data that the simulator cannot make?"
    if not posterior.flagging.rows:
        return Section(title, flagging_text(posterior.flagging))
    held = posterior.held_out_pairs["y"]
    centre = held.mean(axis=0)
    stretched = centre + _STRETCH * (held - centre)
    usual, anomalous = (posterior.misspecification(rows).p_values for rows in (held, stretched))
    return Section(
        title,
        f"P-values of held-out observations, and of others, which are the same {_STRETCH:g} times as far from their "
        "mean. `score` gives this p-value for new observations; no posterior can be trusted where it is small. "
        + flagging_text(posterior.flagging),
        [keep(plots.anomaly_scores(usual, anomalous, posterior.config.alpha), folder, "p_values")],
    )
