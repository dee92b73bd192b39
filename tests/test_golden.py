"""Golden runs: runs of every application that an earlier version wrote are read, and give the numbers they gave.

`python -m tests.test_golden` writes those of the format of this version to tests/golden/format-N. A format that has
been released is never written anew: `load` reads it, or refuses it by name.
"""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowknife as fk
from flowknife._record import FORMAT
from flowknife.apps import APPLICATIONS
from flowknife.diagnostics import Typicality
from tests import fuzz
from tests.catalogue import perturbed
from tests.command import call

GOLDEN = Path(__file__).with_name("golden")
RUNS = sorted(path.parent.relative_to(GOLDEN).as_posix() for path in GOLDEN.glob("format-*/*/expected.json"))
MOST_BYTES = 150_000  # of the runs of one format


def items_of(application):
    """Items to look at, not those of training: plain numbers, which do not depend on any version."""
    if application == "images":
        steps = np.arange(8)
        return np.stack([np.add.outer(steps * a, steps * b) % 256 for a, b in ((5, 9), (0, 30), (40, 3))])[..., None]
    return np.array([[0.0, 0.5], [1.0, -1.0], [-0.3, 2.0], [4.0, 4.0]])


def numbers_of(result: Any) -> dict[str, list]:
    """What a run says of these items, by name."""
    items = items_of(result.application)
    if result.application == "images":
        items = items.astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fk.errors.CalibrationWarning)
        scores = result.score(items[:, :1] if result.application == "invert" else items)
    found = {name: column for name, column in scores.items() if column.dtype.kind == "f"}
    if result.application == "invert":
        found["log_prob"] = result.log_prob(items, items[:, :1])
    elif result.application == "classify":
        found["probability of each class"] = result.predict_proba(items)
    else:
        found["log_prob"] = result.log_prob(items)
    return {name: np.asarray(column).tolist() for name, column in found.items()}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_that_was_written_earlier_gives_the_same_numbers(run):
    folder = GOLDEN / run
    result = fk.load(folder)
    expected = json.loads((folder / "expected.json").read_text())
    found = numbers_of(result)
    assert set(expected) <= set(found)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-3, atol=2e-3, err_msg=name)
    assert result.application in call("info", folder).stdout
    given = {"y": [0.5]} if result.application == "invert" else {}
    drawn = result.sample(3, key=0, **given)
    assert len(drawn) == 3 and np.isfinite(drawn).all()


def test_there_is_a_small_golden_run_of_every_application_of_this_format():
    assert {run.split("/")[1] for run in RUNS if run.startswith(f"format-{FORMAT}/")} == set(APPLICATIONS)
    sizes = [path.stat().st_size for path in (GOLDEN / f"format-{FORMAT}").rglob("*") if path.is_file()]
    assert sum(sizes) < MOST_BYTES


# -- writing ----------------------------------------------------------------------------------------------------------

TINY = {"layers": 2, "width": 4, "depth": 1, "alpha": 0.2, "show_progress": False, "key": 0}
BRIEF = {"steps": 120, "batch_size": 16}


def fitted(application):
    """A small result of an application, of toy data."""
    rng = np.random.default_rng(0)
    x = np.tanh(rng.normal(size=(60, 2)) @ [[1.0, 0.4], [0.0, 0.8]]) + 0.1 * rng.normal(size=(60, 2))
    if application == "density":
        return fk.density(x, names=["a", "b"], **TINY, train=BRIEF)
    if application == "classify":
        return fk.classify(x, np.where(x[:, 0] > 0, "right", "left"), names=["a", "b"], **TINY, train=BRIEF)
    if application == "invert":
        y = x[:, :1] ** 2 + 0.1 * rng.normal(size=(60, 1))
        return fk.invert(pairs=(x, y), names=["u", "v"], **TINY, train=BRIEF)
    # not trained, which takes long to compile; away from its initial values
    images = fuzz.small_runs()["images"]
    features, held_out = rng.normal(size=(40, 24)), rng.normal(size=(12, 24))  # as many as scores of two levels have
    detector = Typicality.fit(features, held_out, upward={0: 1.0, 1: 0.5})
    own = {"detector": detector, "held_out_bits": np.linspace(4.0, 6.0, 12)}
    return dataclasses.replace(images, model=perturbed(images.model, rng), **own)


def main() -> None:
    """Write the golden runs of the format of this version that are not there."""
    for application in APPLICATIONS:
        run = GOLDEN / f"format-{FORMAT}" / application
        if run.exists():
            print(f"{run} is there")
            continue
        fuzz.write_small(fitted(application), run)
        # of the files as they are read, not of what was trained
        (run / "expected.json").write_text(json.dumps(numbers_of(fk.load(run)), indent=1) + "\n")
        print(f"wrote {run}, {sum(path.stat().st_size for path in run.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
