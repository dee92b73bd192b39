"""Processes that are killed at random moments: a fit goes on to the same bits, a save leaves the old run or the new.

`KILLS=50 make check-slow ARGS="-k killed"` chooses the number of kills of fits, which is spread over the jobs, and of
saves; `KILLS_SEED` chooses the moments.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flowknife as fk
from flowknife._files import CHECKPOINTS, content_of
from flowknife.data import digits, save_table
from flowknife.storage import read_history, read_model, read_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL"),
]

SMALL = ["--set=layers=2", "--set=width=8", "--set=depth=1", "--set=train.batch_size=32"]
EVERY = 20  # steps between checkpoints
SEED = os.environ.get("KILLS_SEED", "0")


def kills_of_each(jobs):
    """Of one job; in all, KILLS or three of each."""
    return -(-int(os.environ.get("KILLS", 3 * jobs)) // jobs)


def words(every=EVERY, **training):
    return [
        f"--set=train.checkpoint_every={every}",
        *(f"--set=train.{name}={value}" for name, value in training.items()),
    ]


# -- fits -------------------------------------------------------------------------------------------------------------


def density(folder):
    save_table(folder / "points.csv", np.random.default_rng(0).normal(size=(400, 3)), ("a", "b", "c"))
    return ["density", folder / "points.csv", *SMALL, *words(steps=1500)]


def images(folder):
    np.savez(folder / "digits.npz", x=digits()[0][:300])
    levels = ["--set=levels=2", "--set=width=8", "--set=architecture=wavelet", "--set=train.batch_size=16"]
    return ["images", f"{folder / 'digits.npz'}:x", *levels, *words(steps=200)]


def streamed(folder):
    """Images that do not fit in the memory they may take: they stay on disk, and each round is read by itself."""
    write_images(folder / "digits", 200)
    levels = ["--set=levels=1", "--set=width=8", "--set=architecture=wavelet", "--set=train.batch_size=16"]
    return ["images", folder / "digits", *levels, *words(steps=250)]


def candidates(folder):
    x = np.random.default_rng(0).normal(size=(400, 2))
    np.savez(folder / "pairs.npz", x=x, y=x + x[:, ::-1] ** 2)
    # the budget is far away: three candidates, whose steps the fit chooses
    return ["invert", folder / "pairs.npz", *SMALL, *words(minutes=60, schedule="constant", patience=5)]


def simulations(folder):
    return ["invert", "kinematics", *SMALL, "--set=num_simulations=400", *words(steps=600)]


def rows_of_classes(folder):
    x = np.random.default_rng(0).normal(size=(400, 2))
    np.savez(folder / "rows.npz", x=x, labels=(x[:, 0] * x[:, 1] > 0).astype(int))
    return ["classify", folder / "rows.npz", *SMALL, *words(steps=1000)]


def images_of_classes(folder):
    write_images(folder / "digits", 150, classes=3)
    return ["classify", folder / "digits", *SMALL[:-1], "--set=train.batch_size=16", *words(5, steps=60)]


JOBS = (density, images, streamed, candidates, simulations, rows_of_classes, images_of_classes)


def write_images(folder, count, classes=0):
    pixels, labels = digits()
    chosen = np.flatnonzero(labels < classes)[:count] if classes else range(count)
    for i in chosen:
        place = folder / str(labels[i]) if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i, ..., 0]).save(place / f"{i}.png")


def start(*arguments, **environment):
    environment = {**os.environ, "PYTHONPATH": str(Path(fk.__file__).parents[1]), **environment}
    command = [sys.executable, "-m", "flowknife", "fit", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def states(run):
    """The files of checkpoints, each with the time at which it was written."""
    found = {}
    for path in (run / CHECKPOINTS).rglob("*.safetensors"):
        try:
            found[path] = path.stat().st_mtime_ns
        except FileNotFoundError:  # removed in the meantime
            continue
    return found


def killed(process, run, before, chance):
    """Kill a process: one time in five at any moment, else at one after its next checkpoint; False if it had ended."""
    if chance.random() < 0.2:
        wait = chance.uniform(0, 15)
    else:
        while process.poll() is None and states(run) == before:
            time.sleep(0.005)
        wait = chance.uniform(0, 0.4)
    try:
        process.wait(timeout=wait)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    return False


def outcome(run):
    """What has to be the same: the model, the numbers in the record, and the history without the time it took."""
    record = json.loads((run / "run.json").read_text())
    with (run / "history.csv").open() as stream:
        history = [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(stream)]
    training = {name: value for name, value in record["training"].items() if name != "seconds"}
    return (run / "model.safetensors").read_bytes(), record["metrics"], training, history


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_fits_that_are_killed_end_bit_by_bit_the_same(tmp_path, job):
    command, wanted, kills = job(tmp_path), kills_of_each(len(JOBS)), 0
    own = {"FLOWKNIFE_CACHE": str(tmp_path / "cache")}
    if job is streamed:
        own["FLOWKNIFE_MAX_MEMORY"] = "10000"
    whole = start(*command, "--out", tmp_path / "whole", **own)
    errors = whole.communicate()[1]
    assert whole.returncode == 0, errors
    expected = outcome(tmp_path / "whole")
    chance = random.Random(f"{SEED} {job.__name__}")
    for attempt in range(wanted + 20):  # a process may end before it is killed: then another fit begins
        run, begun = tmp_path / f"run-{attempt}", kills
        while True:
            before = states(run)
            process = start(*command, "--out", run, "--resume", **own)
            if kills < wanted and killed(process, run, before, chance):
                kills += 1
                # what was there is where the fit went on, and nothing of it was made again
                assert not [path for path, when in states(run).items() if before.get(path, when) != when]
                continue
            errors = process.communicate()[1]
            assert process.returncode == 0, errors
            break
        assert not (run / CHECKPOINTS).exists() and not list(run.glob(".*"))
        assert outcome(run) == expected, f"after {kills - begun} kills"
        if kills == wanted:
            break
    print(f"{job.__name__}: {kills} kills in {attempt + 1} fits, the same bits")
    assert kills == wanted, "the process was faster than the signals"
    if job is streamed:
        assert list((tmp_path / "cache" / "images").iterdir())  # on disk they were


# -- saves ------------------------------------------------------------------------------------------------------------

# Forks a process for each line that it is sent, "OLD NEW SECONDS", which saves the run NEW, and kills it after so many
# seconds; without a number of seconds it is left to end, and the time that took is the answer.
SAVER = """
import os, signal, sys, time
import numpy as np
from flowknife.storage import write_run
from tests.test_storage import RECORD

def save(seed):
    own = RECORD.model_copy(update={"config": {"seed": seed}})
    tree = {"w": np.full((200, 1000), seed, np.float32), "v": {str(i): np.full(3, seed, np.float32) for i in range(50)}}
    write_run(sys.argv[1], own, tree, {"seed": [seed] * 1000})

for line in sys.stdin:
    seed, seconds = line.split()
    ready, tell = os.pipe()
    process = os.fork()
    if not process:
        os.write(tell, b"x")
        save(int(seed))
        os._exit(0)
    os.read(ready, 1)
    began = time.monotonic()
    if seconds != "-":
        time.sleep(float(seconds))
        os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    print(time.monotonic() - began, os.WIFSIGNALED(status), flush=True)
    os.close(ready)
    os.close(tell)
"""


def run_of(folder):
    """The one seed in all files of a run."""
    record = read_run(folder)
    tree, (history,) = read_model(folder, record), read_history(folder, record).values()
    seeds = {record.config["seed"], *np.unique(tree["w"]), *np.unique(list(tree["v"].values())), *history}
    assert len(seeds) == 1, f"a mixture of {seeds}"
    return int(seeds.pop())


def test_saves_that_are_killed_leave_the_old_run_or_the_new_one(tmp_path):
    run, wanted, found = tmp_path / "run", int(os.environ.get("KILLS", 50)), Counter()
    environment = {**os.environ, "PYTHONPATH": str(Path(fk.__file__).parents[1])}
    saver = subprocess.Popen(
        [sys.executable, "-c", SAVER, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )

    def save(seed, seconds="-"):
        saver.stdin.write(f"{seed} {seconds}\n")
        saver.stdin.flush()
        took, was_killed = saver.stdout.readline().split()
        return float(took), was_killed == "True"

    chance = random.Random(SEED)
    try:
        save(1)
        usual = np.median([save(seed)[0] for seed in (2, 3, 4)])
        old = new = run_of(run)
        while sum(found.values()) < wanted:
            new += 1
            was_killed = save(new, chance.uniform(0, 1.2 * usual))[1]
            left = run_of(run)
            assert left in (old, new)
            found["old" if left == old else "new"] += was_killed
            old = left
        save(new + 1)  # whatever was left behind is no hindrance, and does not stay
        assert run_of(run) == new + 1
        assert content_of(run) == ["history.csv", "model.safetensors", "run.json"]
    finally:
        saver.communicate()
    print(f"{sum(found.values())} kills of saves: {dict(found)}")
    assert len(found) == 2
