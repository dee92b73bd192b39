"""A full disk: one line, the exit status 1, earlier files as they were, and nothing half-written left behind.

On a small file system in memory, where the tests may mount one; and by the limit for the size of a file,
which has the same effect on everything but the smallest files.
"""

import errno
import itertools
import os
import re
import shutil
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest

import flowknife as fk
from flowknife.data import save_table
from flowknife.errors import StorageError
from tests.command import call

resource = pytest.importorskip("resource")

X = np.random.default_rng(0).normal(size=(400, 2))
QUICK = {"layers": 1, "width": 4, "depth": 1, "scalar": "affine", "show_progress": False}
LARGE = {"layers": 4, "width": 32, "scalar": "spline"}  # more than there is room for
TRAIN = {"steps": 20, "batch_size": 16, "evaluate_every": 10, "patience": 0}


@pytest.fixture(scope="module")
def fitted():
    return fk.density(X, names=["a", "b"], **QUICK, train=TRAIN)


@pytest.fixture(scope="module")
def mount(tmp_path_factory):
    """A file system of five mebibytes, or the reason why there is none."""
    place = tmp_path_factory.mktemp("disk")
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        reason = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        reason = str(error)
    yield place, reason
    if not reason:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(params=["small disk", "file size"])
def disk(request, tmp_path):
    """A folder, and `full(folder, room)`: a block in which so many bytes can be written."""
    if request.param == "file size":

        @contextmanager
        def full(room):
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

        yield tmp_path, full
        return
    place, reason = request.getfixturevalue("mount")
    if reason:
        pytest.skip(f"no tmpfs can be mounted here: {reason}")

    @contextmanager
    def full(room):
        filling = place / "filling"
        with filling.open("wb", buffering=0) as stream:
            try:
                while True:
                    stream.write(bytes(4096))
            except OSError:
                stream.truncate(max(stream.tell() - room, 0))
        try:
            yield
        finally:
            filling.unlink()

    yield place, full
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "filling"}


ROOMS = [0, 4096, 12_288]


@pytest.mark.parametrize("room", ROOMS)
def test_saving_over_a_run(disk, room, fitted):
    folder, full = disk
    fitted.save(folder / "run")
    before = files(folder)
    other = fk.density(X + 1, names=["a", "b"], **{**QUICK, **LARGE}, train={"steps": 1})
    with full(room), pytest.raises(StorageError) as caught:
        other.save(folder / "run")
    assert "\n" not in str(caught.value) and str(folder / "run") in str(caught.value)
    assert files(folder) == before
    assert fk.load(folder / "run").used.layers == 1


@pytest.mark.parametrize("room", ROOMS[:2])
def test_checkpoints_of_a_training(disk, room, fitted, capsys):
    folder, full = disk
    with full(room):
        found = fk.density(
            X,
            names=["a", "b"],
            **QUICK | {"show_progress": True},
            train={**TRAIN, "checkpoint_every": 5},
            checkpoints=folder / "kept",
        )
    np.testing.assert_array_equal(found.log_prob(X[:5]), fitted.log_prob(X[:5]))
    assert capsys.readouterr().err.count("no checkpoint") == 1
    assert not [path for path in files(folder) if path.name.startswith(".")]


OFTEN = [("sample", 0), ("fit", 0), ("score", 12_288), ("report", 4096)]
SELDOM = [pair for pair in itertools.product(("sample", "score", "fit"), ROOMS) if pair not in OFTEN]
VERBS = [*OFTEN, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SELDOM)]


@pytest.mark.parametrize(("verb", "room"), VERBS)
def test_a_command_ends_in_one_line(disk, room, verb, fitted, tmp_path_factory):
    folder, full = disk
    fitted.save(folder / "run")
    data = tmp_path_factory.mktemp("data") / "points.csv"
    save_table(data, X, ["a", "b"])
    (folder / "out.csv").write_text("a,b\n1,2\n")
    # as the model of `fitted`, whose program is compiled
    options = ["--set=layers=1", "--set=width=4", "--set=depth=1", "--set=scalar=affine"]
    options += [f"--set=train.{k}={v}" for k, v in TRAIN.items()]
    command = {
        "sample": ["sample", folder / "run", "-n", 2000, "--out", folder / "out.csv", "--overwrite"],
        "score": ["score", folder / "run", data, "--out", folder / "out.csv", "--overwrite"],
        "report": ["report", folder / "run"],
        "fit": ["fit", "density", data, "--out", folder / "run", "--overwrite", "-s", "seed=1", *options],
    }[verb]
    before = files(folder)
    with full(min(room, 4096) if verb == "fit" else room):
        result = call(*command, status=1)
    lines = [line for line in result.stderr.splitlines() if not re.match(r"note: |.*: \d+ %", line)]
    assert result.stdout == "" and len(lines) == 1 and lines[0].startswith("error: "), result.output
    assert any(os.strerror(number) in lines[0] for number in (errno.ENOSPC, errno.EFBIG)), lines
    assert ".flowknife" not in lines[0]
    after = files(folder)
    assert {path: after.get(path) for path in before} == before
    new = {path.relative_to(folder).parts[1] for path in set(after) - set(before)}
    # whole figures, which the next report replaces; and the checkpoints from which the fit goes on
    assert new <= {"report": {"figures"}, "fit": {"checkpoints"}}.get(verb, set())
    assert not [path for path in set(after) - set(before) if path.name.startswith(".")]
    call(*command, *(["--resume"] if verb == "fit" else []))
    assert not (folder / "run" / "checkpoints").exists()
