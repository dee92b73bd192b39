"""Every application on data that come along: each demo trains, writes a run and shows what came of it.

A demo is a function of (folder, quick) that writes a run with its report into the folder and returns a section for the
page that shows all demos. A new one is one more entry of `DEMOS`.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowknife.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from flowknife.inn import INN
    from flowknife.report import Section


def moons(folder: Path, quick: bool) -> "Section":
    """Application 1: the two half moons and N(0, I) mapped to each other; quick, 20 seconds of training."""
    from flowknife.apps import density
    from flowknife.data import TOYS

    toy = TOYS["moons"]
    flow = density(toy.sample(5000, key=0), train={"minutes": 20 / 60} if quick else {})
    flow.save(folder)
    flow.report(folder)
    text = (
        "Rows on the left, standard normal numbers on the right, and one map between them. Held-out rows cost "
        f"{flow.metrics['nll']:.3f} nats each; under the true density they cost {toy.entropy:.3f} on average."
    )
    captions = {
        "samples.png": "The data, and rows drawn from the model.",
        "mapping.gif": "The way through the layers of the network, and back.",
    }
    return _section("Distribution mapping", "moons", text, folder, flow.model, captions)


def images(folder: Path, quick: bool) -> "Section":
    """Application 2: handwritten digits, drawn anew and told from what is none; quick, 90 seconds at half the size."""
    from flowknife.apps import images
    from flowknife.data import load_images

    digits = _digits()
    unseen, rest = digits[:32], digits[32:]
    half = max(digits.shape[1] // 2, 8)
    budget = {"minutes": 1.5, "batch_size": 128}
    small: dict[str, Any] = {"image_size": half, "bits": 4, "levels": 1, "width": 64, "train": budget}
    model = images(rest, **(small if quick else {}))
    pictures, names = other_pictures(unseen[:8])
    others = replace(load_images(pictures, model.shape[:2], channels=1), names=names)
    model.save(folder)
    model.report(folder, others)
    flagged = [int(model.score(batch)["flag"].sum()) for batch in (others, unseen)]
    text = (
        "Pictures on the left, one latent per scale on the right. What is drawn from the right is a new picture, and "
        f"what is no digit stands out there: {flagged[0]} of {len(names)} other pictures are flagged, and "
        f"{flagged[1]} of {len(unseen)} digits that were kept from training."
    )
    captions = {
        "pictures.png": "Real digits, the same after the way there and back, and new ones.",
        "outliers.png": "Noise, blank, inverted and blurred pictures with their p-values.",
    }
    return _section("Images: generation and anomaly detection", "images", text, folder, model.model, captions)


DEMOS: "dict[str, Callable[[Path, bool], Section]]" = {"moons": moons, "images": images}
"""Every demo by name, in the order in which the page shows them."""


def run(name: str, folder: Path, quick: bool = True) -> Path:
    """Run one demo into a folder; return the path of its report."""
    DEMOS[name](folder, quick)
    return folder / "report.html"


def run_all(folder: Path, quick: bool = True) -> Path:
    """Run every demo into `folder/NAME` and write `folder/report.html`, which shows them side by side.

    A demo whose data are not installed is left out, and the page says so.
    """
    from flowknife.report import Section, write_report

    sections = []
    for name, demo in DEMOS.items():
        try:
            sections.append(demo(folder / name, quick))
        except InputError as error:
            sections.append(Section(name, f"Left out: {error}."))
            sys.stderr.write(f"{name}: left out, {error}\n")
    return write_report(folder, "One invertible model: only the two ends differ", sections)


def other_pictures(digits: "np.ndarray") -> "tuple[np.ndarray, tuple[str, ...]]":
    """Pictures that are no digits, uint8 of the shape of `digits`, and their names.

    Noise and blank pictures, and the digits themselves inverted and blurred: some of them are likelier than digits,
    some less likely.
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
    pictures = [np.asarray(picture) for pictures in kinds.values() for picture in pictures]
    names = [f"{kind} {i + 1}" for kind, pictures in kinds.items() for i in range(len(pictures))]
    return np.stack(pictures).astype(np.uint8), tuple(names)


def _digits() -> "np.ndarray":
    """The largest set of digits that is installed, in random order."""
    import numpy as np

    from flowknife.data import digits, mnist_5k

    try:
        pictures, _ = mnist_5k()
    except InputError:
        pictures, _ = digits()
    return np.random.default_rng(0).permutation(pictures)


def _section(title: str, name: str, text: str, folder: Path, model: "INN", captions: dict[str, str]) -> "Section":
    """What the page of all demos shows of one: its two ends, a few figures, and where to read more."""
    from flowknife.report import Picture, Section, ends, ends_svg

    frame = ends(model)
    figures = [
        Picture(ends_svg(frame.left, frame.right).encode(), "What stands at the two ends."),
        *(Picture(folder / "figures" / file, caption) for file, caption in captions.items()),
    ]
    return Section(title, f"{text}\n\nMore of it: `{name}/report.html`; the run is in `{name}`.", figures)
