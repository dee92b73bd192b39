"""Demos of every application on included data. Each one trains a model, writes a run and returns a page section.

A demo is a function of (folder, quick). It writes a run with its report into the folder and returns a section for the
page of all demos. To add a demo, add an entry to `DEMOS`.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowknife._files import is_run
from flowknife._progress import of_job
from flowknife._threads import in_threads
from flowknife.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from flowknife.apps import Classifier
    from flowknife.inn import INN
    from flowknife.problems import Ring
    from flowknife.report import Section


def moons(folder: Path, quick: bool) -> "Section":
    """Application 1: the two half moons and N(0, I) mapped to each other; quick, 15 seconds of training."""
    from flowknife.apps import density
    from flowknife.data import TOYS

    toy = TOYS["moons"]
    flow = density(toy.sample(5000, key=0), train={"minutes": 15 / 60} if quick else {})
    flow.save(folder, demo=True)
    flow.report(folder)
    text = (
        "Rows on the left, standard normal numbers on the right, and one map between them. Held-out rows cost "
        f"{flow.metrics['nll']:.3f} nats each; under the true density they cost {toy.entropy:.3f} on average."
    )
    captions = {
        "samples.png": "The data, and samples of the model.",
        "mapping.gif": "The points on their way through the layers of the network, and back.",
    }
    return _section("Distribution mapping", "moons", text, folder, flow.model, captions)


def images(folder: Path, quick: bool) -> "Section":
    """Application 2: handwritten digits, generated, and outliers detected; quick, 96 seconds at half the size."""
    from flowknife.apps import images
    from flowknife.data import load_images

    digits = _digits()
    unseen, rest = digits[:32], digits[32:]
    half = max(digits.shape[1] // 2, 8)
    budget = {"minutes": 1.6, "batch_size": 128}
    small: dict[str, Any] = {"image_size": half, "bits": 4, "levels": 1, "width": 64, "train": budget}
    model = images(rest, **(small if quick else {}))
    unusual, names = other_images(unseen[:8])
    others = replace(load_images(unusual, model.shape[:2], channels=1), names=names)
    model.save(folder, demo=True)
    model.report(folder, others=others)
    flagged = [int(model.score(batch)["flag"].sum()) for batch in (others, unseen)]
    text = (
        "Images on the left, one latent per scale on the right. Random latents decode to new images. "
        f"Anomaly detection flags {flagged[0]} of {len(names)} other images and {flagged[1]} of {len(unseen)} new "
        "digits."
    )
    captions = {
        "images.png": "Real digits, the same digits encoded and decoded, and new ones.",
        "outliers.png": "Noise, blank, inverted and blurred images with their p-values.",
    }
    return _section("Images: generation and anomaly detection", "images", text, folder, model.model, captions)


def classify_images(folder: Path, quick: bool) -> "Section":
    """Application 3: the digits of scikit-learn, classified by the model that draws them."""
    from flowknife.apps import classify
    from flowknife.data import digits

    images, labels = digits()
    model = classify(images, labels, train=_short(1000) if quick else {})
    model.save(folder, demo=True)
    model.report(folder)
    text = (
        "Images on the left, the label and a latent on the right. Left to right the model classifies: "
        f"its accuracy on held-out digits is {model.metrics['accuracy']:.1%}. Right to left, with the label set, it "
        "draws digits of that class."
    )
    captions = {
        "samples.png": "New digits, drawn class by class.",
        "confusion.png": "True and predicted classes of held-out digits.",
    }
    return _section("Classification of images", "classify-images", text, folder, model.model, captions)


def ring(folder: Path, quick: bool) -> "Section":
    """Application 4: eight modes on a ring in four classes: of four modes, of two, and twice of one."""
    from flowknife.apps import classify
    from flowknife.problems import ring

    toy = ring("some")
    points, labels = toy.sample(8000, key=0)
    model = classify(points, labels, train=_short(1200) if quick else {})
    model.save(folder, demo=True)
    model.report(folder)
    text = (
        "Points of the plane on the left, their class and a latent on the right: the same for tables. "
        f"The accuracy on held-out points is {model.metrics['accuracy']:.2%}. Of the points that are drawn for a "
        f"class, {_on_modes(model, toy):.0%} lie within three standard deviations of one of its modes; for exact "
        "draws the share is 99%."
    )
    captions = {"samples.png": "Points drawn for each class.", "latents.png": "The latents of held-out points."}
    return _section("Classification of vectors", "ring", text, folder, model.model, captions)


def _on_modes(model: "Classifier", toy: "Ring") -> float:
    """Share of the points drawn for a class that lie within three standard deviations of one of its modes."""
    import numpy as np

    near = []
    for label in range(toy.classes):
        own = toy.centres[np.asarray(toy.mode_labels) == label]
        away = np.linalg.norm(model.sample(500, label=label, key=0)[:, None] - own, axis=-1)
        near.append(np.mean(away.min(axis=1) < 3 * toy.sd))
    return float(np.mean(near))


def kinematics(folder: Path, quick: bool) -> "Section":
    """Application 5: all poses of a robot arm that put its hand at a given position."""
    from flowknife.apps import invert
    from flowknife.problems import kinematics

    posterior = invert(kinematics(), form="partitioned", train=_short(1800) if quick else {})
    text = (
        "Four joints on the left, the position of the hand and a latent on the right. With the observed position of "
        "the hand set, every draw of the latent decodes to a pose that reaches it"
    )
    captions = {
        "problem.png": "Poses drawn for one position of the hand.",
        "corner.png": "The joint angles of these poses, and samples of the exact posterior.",
    }
    return _inverted("Estimation of ill-conditioned parameters", "kinematics", text, folder, posterior, captions)


def gravity(folder: Path, quick: bool) -> "Section":
    """Application 6: the depths of a basin below sixteen gravity stations."""
    from flowknife.apps import invert
    from flowknife.problems import gravity

    posterior = invert(gravity(), train=_short(600) if quick else {})
    text = (
        "32 depths on the left, a latent on the right, and the 16 gravity anomalies condition every coupling. The "
        "data determine only part of the depths, and the draws show the remaining uncertainty"
    )
    captions = {
        "problem.png": "Basins drawn for one anomaly.",
        "predictive.png": "The anomalies of these basins, and the observed one.",
    }
    return _inverted("Ill-posed inverse problem", "gravity", text, folder, posterior, captions)


def noise(folder: Path, quick: bool) -> "Section":
    """Application 7: velocities below ground and the noise of the data, from the dispersion of surface waves."""
    from flowknife.apps import invert
    from flowknife.problems import dispersion, pairs

    posterior = invert(dispersion(), pairs=pairs(), form="partitioned", train=_short(1000) if quick else {})
    text = (
        "Ten velocities and the noise of the data on the left, the noisy data and a latent on the right. Each draw "
        "explains the observation, partly by the ground and partly by the noise"
    )
    captions = {
        "problem.png": "Velocities drawn for one observation.",
        "noise.png": "The noise level in the same draws, and its true value.",
    }
    return _inverted("Noise as an input", "noise", text, folder, posterior, captions)


def _inverted(title, name, text, folder, posterior, captions) -> "Section":
    """Write the run and the report of an inverse problem, and return its section of the page of all demos."""
    posterior.save(folder, demo=True)
    posterior.report(folder)
    gained = posterior.metrics["prior_nll"] - posterior.metrics["nll"]
    text = f"{text}. An observation gives {gained:.1f} nats of information, averaged over held-out pairs."
    return _section(title, name, text, folder, posterior.model, captions)


def _short(steps: int) -> dict[str, Any]:
    """Training settings of a quick demo: one candidate, `steps` steps, at most 90 seconds."""
    return {"steps": steps, "minutes": 1.5, "weight_decay": 0.0}


DEMOS: "dict[str, Callable[[Path, bool], Section]]" = {
    "moons": moons,
    "images": images,
    "classify-images": classify_images,
    "ring": ring,
    "kinematics": kinematics,
    "gravity": gravity,
    "noise": noise,
}
"""Every demo by name, in the order in which the page shows them."""

_LONG = frozenset({"images", "gravity", "noise"})  # these start first, so that no processor is idle at the end


def run(name: str, folder: Path, quick: bool = True) -> Path:
    """Run one demo into a folder; return the path of its report."""
    DEMOS[name](folder, quick)
    return folder / "report.html"


def run_all(folder: Path, quick: bool = True) -> Path:
    """Run every demo into `folder/NAME` and write `folder/report.html`: the ends of all models, then the results.

    Two demos run at a time, since much of the time of each is compiled and drawn by one processor. A demo whose data
    are not installed is skipped, and the page says so.
    """
    from flowknife.report import Section, write_report

    names = sorted(DEMOS, key=lambda name: name not in _LONG)
    calls = [partial(_section_of, name, folder / name, quick) for name in names]
    found = dict(zip(names, in_threads(calls, min(2, os.cpu_count() or 1)), strict=True))
    sections = [found[name] for name in DEMOS]
    shown = [section for section in sections if section.figures]
    overview = Section(
        f"{len(shown)} jobs, one network",
        "The left end holds the data, the right end what you want to infer. Each job is a choice of these two ends.",
        [replace(section.figures[0], caption=f"{section.title}.") for section in shown],
    )
    results = [replace(section, figures=section.figures[1:]) for section in sections]
    return write_report(folder, "One invertible model: only the two ends differ", [overview, *results])


def _section_of(name: str, folder: Path, quick: bool) -> "Section":
    """The section of one demo, or the reason why it was left out."""
    from flowknife.report import Section

    with of_job(name):
        try:
            return DEMOS[name](folder, quick)
        except InputError as error:
            sys.stderr.write(f"{name}: left out, {error}\n")
            return Section(name, f"Left out: {error}.")


def other_images(digits: "np.ndarray") -> "tuple[np.ndarray, tuple[str, ...]]":
    """Images other than digits, uint8 of the shape of `digits`, and their names.

    Noise, blank images, and inverted and blurred digits: some are more likely under the model than digits, some less.
    """
    import numpy as np
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(0)
    shape = digits.shape[1:]
    blur = max(shape[0] / 14, 1.0)
    kinds: dict[str, Any] = {
        "noise": generator.integers(256, size=(4, *shape)),
        "white": [np.full(shape, 255)],
        "grey": [np.full(shape, 128)],
        "inverted": 255 - digits,
        "blurred": [gaussian_filter(digit.astype(float), (blur, blur, 0)) for digit in digits],
    }
    images = [np.asarray(image) for images in kinds.values() for image in images]
    names = [f"{kind} {i + 1}" for kind, images in kinds.items() for i in range(len(images))]
    return np.stack(images).astype(np.uint8), tuple(names)


def _digits() -> "np.ndarray":
    """The largest installed set of digits, in random order."""
    import numpy as np

    from flowknife.data import digits, mnist_5k

    try:
        images, _ = mnist_5k()
    except InputError:
        images, _ = digits()
    return np.random.default_rng(0).permutation(images)


def is_demo(folder: Path) -> bool:
    """Whether a demo wrote the run in this folder; another demo may then replace it."""
    from flowknife.storage import read_run

    return is_run(folder) and read_run(folder).demo


def _section(title: str, name: str, text: str, folder: Path, model: "INN", captions: dict[str, str]) -> "Section":
    """The section of one demo: its two ends, a few figures, and the path of its report."""
    from flowknife.report import PageImage, Section, ends, ends_svg

    frame = ends(model)
    figures = [
        PageImage(ends_svg(frame.left, frame.right).encode(), "The blocks at the two ends."),
        *(PageImage(folder / "figures" / file, caption) for file, caption in captions.items()),
    ]
    return Section(title, f"{text}\n\nFull report: `{name}/report.html`; the run is in `{name}`.", figures)
