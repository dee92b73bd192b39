"""The report of an inverse problem: the posterior of one observation, predictions, calibration, misspecification."""

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import numpy as np

from flowknife import plots
from flowknife.errors import InputError
from flowknife.problems import PROBLEMS, Problem, problem_of
from flowknife.report._figures import flagging_text, keep, training, trust
from flowknife.report._page import Section
from flowknife.report._run import write_page

if TYPE_CHECKING:
    from flowknife.apps.invert._result import Posterior


_DRAWS = 4000

_EXACT = ("kinematics", "ballistics", "two_moons", "gaussian_linear")  # cheap reference posteriors

_ILLUSTRATED = ("kinematics", "ballistics", "gravity", "dispersion", "two_moons")

_PLACES = {"gravity": ("stations", "distance (km)", "anomaly (mGal)"), "dispersion": ("periods", "period (s)", "km/s")}

_NOISES = 4  # components of the noise in the figure

_STRETCH = 2.0  # factor for observations outside the range of the simulator


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
        *_promises(posterior, folder),
        _misspecification(posterior, folder),
        trust(posterior),
        *training(posterior.history, folder, posterior.record.training.sentence),
    ]
    return write_page(posterior, folder, sections)


def _problem(posterior) -> Problem | None:
    """The problem of `flowknife.problems` that was inverted, with its noise; None for any other."""
    found = problem_of(posterior.record.data.problem, posterior.prior.dim, len(posterior.y_names))
    if found is None:
        return None
    make: Any = PROBLEMS[found.name]
    levels = set(posterior.noise)
    return make(noise=levels.pop()) if "noise" in signature(make).parameters and len(levels) == 1 else found


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
        "Posterior of one observation",
        f"Posterior draws for one {'held-out' if posterior.flagging.rows else 'training'} observation, and the "
        f"parameters that it was simulated from.{compared}",
        figures,
    )


def _explained(posterior, theta):
    """Noise-free data of parameters, from the simulator or the network; None if neither has a forward direction."""
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
            "Posterior predictive",
            f"Posterior predictive: the forward model of the draws{noise}, and the observation.",
            [keep(figure, folder, "predictive")],
        )
    ]


def _noise(posterior, y, truth, folder):
    """The posterior of the noise, for a model of (x, noise) <-> [y, z]."""
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
            "The noise is a block of the left end, so each posterior draw has parameters and the noise of the "
            f"observation. The prior standard deviation of the noise is {_some(posterior.noise)}.",
            [keep(figure, folder, "noise")],
        )
    ]


def _some(values):
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _calibration(posterior, folder):
    if not posterior.flagging.rows:
        return Section(
            "Calibration of the posterior",
            "Not measured, since no pairs were held out. Check the run with pairs that were not used in training: "
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
        sentences.append(f"Mean squared distance between simulated draws and their observation: {error:.3g}{noise}.")
    return Section(
        "Calibration of the posterior",
        "Over many held-out observations the true parameters must be distributed like a draw of their posterior.\n\n"
        + "\n\n".join(sentences),
        [
            keep(plots.calibration(found["ranks"]), folder, "calibration"),
            keep(plots.coverage(found["coverage"], found["tarp"], found.get("highest density")), folder, "coverage"),
        ],
    )


def _promises(posterior, folder):
    """Nominal and empirical coverage, and the sharpness of posteriors."""
    if not posterior.flagging.rows:
        return []
    found = posterior.calibration
    sharp = found["sharpness"]
    figures = [
        keep(plots.recovery(sharp), folder, "recovery"),
        keep(plots.contraction(sharp), folder, "contraction"),
    ]
    sharpness = Section(
        "Sharpness",
        f"Truth against posterior mean of held-out pairs, and how much narrower posteriors are than the prior. "
        f"{sharp.verdict}",
        figures,
    )
    if "regions" not in found:
        return [sharpness]
    regions = Section(
        "Promised and reached coverage",
        "Calibrated regions, `region(y)`, contain the true parameters at their nominal rate, if these come from the "
        "prior and the data from the simulator. Each half of the held-out pairs tests regions that the other half "
        f"calibrated. {found['regions'].verdict}",
        [keep(plots.promised(found["regions"]), folder, "promised")],
    )
    return [regions, sharpness]


def _misspecification(posterior, folder):
    title = "Misspecification"
    if not posterior.flagging.rows:
        return Section(title, flagging_text(posterior.flagging))
    held = posterior.held_out_pairs["y"]
    centre = held.mean(axis=0)
    stretched = centre + _STRETCH * (held - centre)
    normal, anomalous = (posterior.misspecification(rows).p_values for rows in (held, stretched))
    return Section(
        title,
        "P-values for the hypothesis that the simulator can produce an observation: for held-out observations, and for "
        f"others, which are the same observations moved {_STRETCH:g} times as far from their mean. `score` gives this "
        "p-value for new observations; where it is small, the posterior cannot be trusted. "
        + flagging_text(posterior.flagging),
        [keep(plots.anomaly_scores(normal, anomalous, posterior.config.alpha), folder, "p_values")],
    )
