"""Simulations on disk: the same set whoever makes it, larger than memory, and trained from."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from command import call, refused

import flowknife as fk
from flowknife.data._chunks import MANIFEST, chunk_file
from flowknife.data._pools import of_chunk, seeded
from flowknife.data.sets import read_set
from flowknife.errors import InputError, StorageError

PRIOR = fk.Uniform(low=[1, 1], high=[2, 2], names=["mass", "speed"])
QUICK = {"layers": 2, "width": 8, "train": {"steps": 10, "batch_size": 32}, "show_progress": False}
SPAWN = multiprocessing.get_context("spawn")


def energy(theta):
    return [theta[0] * theta[1] ** 2 / 2, theta[0] * theta[1]]


def noisy(theta):
    return [theta[0] + np.random.normal(), theta[1]]  # noqa: NPY002


def with_key(theta, key):
    return theta + jax.random.normal(key, (2,))


def sometimes(theta):
    if theta[0] > 1.9:
        raise ArithmeticError("no solution")
    return [np.inf if theta[1] > 1.9 else theta[1]]


def made(simulator, folder, n=300, **options):
    return fk.simulate(simulator, PRIOR, n, out=folder, show_progress=False, **options)


def bytes_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("chunk-*"))}


@pytest.fixture(scope="module")
def spawned():
    with ProcessPoolExecutor(2, mp_context=SPAWN) as executor:
        yield executor


@pytest.mark.parametrize("simulator", [energy, noisy, with_key])
def test_no_number_depends_on_who_simulates(simulator, spawned, tmp_path):
    here, there = made(simulator, tmp_path / "a", chunk=64), made(simulator, tmp_path / "b", chunk=64, executor=spawned)
    assert here.sha256 == there.sha256 and bytes_of(here.folder) == bytes_of(there.folder)
    assert here.exact == (simulator is energy) and here.names == ("mass", "speed")
    assert here.theta[:].std() > 0.2 and len(np.unique(here.theta[:], axis=0)) == 300  # every chunk has its own draws
    if simulator is not with_key:
        np.testing.assert_allclose(here.y[:][:, -1], there.y[:][:, -1])
    assert made(simulator, tmp_path / "c", chunk=64, key=1).sha256 != here.sha256


def test_the_streams_of_chunks_differ_from_each_other_and_from_that_of_the_set():
    drawn = []
    for seed in ([0, 0], *(of_chunk([0, 0], number) for number in range(3))):
        with seeded(seed):
            drawn.append(np.random.normal())  # noqa: NPY002
    assert len(set(drawn)) == 4


def test_it_goes_on_where_it_was_stopped(tmp_path):
    whole = made(noisy, tmp_path / "whole", chunk=50)
    calls = 0

    def stops(theta):
        nonlocal calls
        calls += 1
        if calls == 120:
            raise KeyboardInterrupt
        return noisy(theta)

    stops.__name__ = stops.__qualname__ = noisy.__qualname__  # the same function to the manifest
    stops.__module__ = noisy.__module__
    with pytest.raises(KeyboardInterrupt):
        made(stops, tmp_path / "stopped", chunk=50)
    kept = bytes_of(tmp_path / "stopped")
    assert 0 < len(kept) < 6
    with pytest.raises(StorageError, match=rf"{len(kept)} of 6 chunks"):
        read_set(tmp_path / "stopped")
    damaged = chunk_file(tmp_path / "stopped", 0)
    damaged.write_bytes(damaged.read_bytes()[:-8])
    left = tmp_path / "stopped" / f".{damaged.name}.0123456789abcdef"  # of a process that was killed
    left.write_bytes(b"")
    assert made(noisy, tmp_path / "stopped", chunk=50).sha256 == whole.sha256
    assert not left.exists()
    assert made(noisy, tmp_path / "stopped", chunk=50).sha256 == whole.sha256  # nothing is left to make
    with pytest.raises(StorageError, match=r"rows=300 there, 400 here"):
        made(noisy, tmp_path / "stopped", n=400, chunk=50)


def test_shards_of_one_folder_are_one_set(tmp_path):
    whole = made(energy, tmp_path / "whole", chunk=64)
    found = [made(energy, tmp_path / "parts", chunk=64, shard=(part, 3)) for part in (2, 1, 3)]
    assert found[:2] == [None, None] and found[2].sha256 == whole.sha256
    with pytest.raises(InputError, match=r"shard=\(4, 3\)"):
        made(energy, tmp_path / "parts", chunk=64, shard=(4, 3))


def test_failures_are_counted_and_rows_are_read_from_any_chunk(tmp_path):
    found = made(sometimes, tmp_path / "sims", chunk=64)
    theta, y = found.theta[:], found.y[:]
    bad = (theta[:, 0] > 1.9) | (theta[:, 1] > 1.9)
    assert found.failed == bad.sum() > 10 and found.reason
    np.testing.assert_array_equal(found.usable(), np.flatnonzero(~bad))
    np.testing.assert_array_equal(np.isnan(y[:, 0]), theta[:, 0] > 1.9)
    rows = np.array([299, 0, 64, 63, 128, 5])
    np.testing.assert_array_equal(found.theta[rows], theta[rows])
    np.testing.assert_array_equal(found.theta[70:80], theta[70:80])
    assert found.y.shape == (300, 1) and found.theta[7].shape == (2,)
    found.verify()
    path = chunk_file(found.folder, 2)
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(StorageError, match="damaged"):
        found.verify()


def test_noise_without_a_key_is_refused_in_threads(tmp_path):
    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(InputError, match="def simulator"):
            made(noisy, tmp_path / "a", executor=executor)
        assert made(energy, tmp_path / "b", executor=executor).rows == 300


def test_what_a_folder_promises_is_compared_with_its_files(tmp_path):
    found = made(energy, tmp_path / "sims", chunk=64)
    manifest, first = tmp_path / "sims" / MANIFEST, chunk_file(tmp_path / "sims", 0)
    text, content = manifest.read_text(), first.read_bytes()

    def refuses(words, **about):
        said = json.loads(text)
        said["about"] |= about
        manifest.write_text(json.dumps(said))
        with pytest.raises(StorageError, match=words):
            fk.invert(pairs=tmp_path / "sims", **QUICK)

    refuses("another number of rows", rows=2**40)
    manifest.write_text(text)
    first.write_bytes(content[:-8] + bytes(8))  # one number
    with pytest.raises(StorageError, match=r"chunk-00000000.*checksum"):
        fk.invert(pairs=found.folder, **QUICK)
    with first.open("r+b") as stream:  # an endless file that takes no place on the disk
        stream.truncate(2**36)
    with pytest.raises(StorageError, match="chunk-00000000"):
        fk.invert(pairs=found.folder, **QUICK)
    first.unlink()
    with pytest.raises(StorageError, match="without chunk-00000000"):
        fk.invert(pairs=found.folder, **QUICK)
    assert made(energy, tmp_path / "sims", chunk=64).sha256 == found.sha256


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="other files"):
        made(energy, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_a_fit_from_disk_is_that_from_memory(tmp_path, monkeypatch):
    made(energy, tmp_path / "sims", n=600, chunk=100)
    in_memory = fk.invert(pairs=tmp_path / "sims", noise=0.1, **QUICK)
    assert in_memory.names == ("mass", "speed") and in_memory.record.data.rows == 600
    # as if it were larger than memory: some rows stand for all, and batches are read as they are needed
    from flowknife.apps.invert import _task

    monkeypatch.setattr(_task, "_SHARE", 0.0)
    monkeypatch.setattr(_task, "_STAND_FOR", 600)
    streamed = fk.invert(pairs=tmp_path / "sims", noise=0.1, **QUICK)
    assert streamed.record.data.rows == 600
    assert streamed.metrics["nll"] == pytest.approx(in_memory.metrics["nll"], abs=1e-4)


@pytest.mark.slow
def test_command(tmp_path):
    (tmp_path / "mine20.py").write_text(
        "import flowknife as fk\nprior = fk.Uniform(low=[1, 1], high=[2, 2])\n"
        "def simulator(x):\n    return [x[0] * x[1], x[0]]\n"
    )
    out = tmp_path / "sims"
    said = call("simulate", tmp_path / "mine20.py", "-n", 64, "--out", out).stdout
    assert json.loads((out / MANIFEST).read_text())["sha256"] in said
    assert "other simulations" in refused("simulate", tmp_path / "mine20.py", "-n", 65, "--out", out)
    assert "--prior NAME" in refused("simulate", f"{tmp_path}/mine20.py:other", "--out", tmp_path / "x")
    assert "expected a problem" in refused("simulate", "nothing", "--out", tmp_path / "x")
    run = ["layers=1", "width=8", "depth=1", "features=0", "noise=0.1", "train.steps=5", "train.batch_size=32"]
    run = [word for setting in run for word in ("-s", setting)]
    call("fit", "invert", out, "--out", tmp_path / "run", *run)
    assert fk.load(tmp_path / "run").prior.names == ("x1", "x2")


SCRIPT = """
import multiprocessing, sys, time
from concurrent.futures import ProcessPoolExecutor
import flowknife as fk
from slow20 import slow

if __name__ == "__main__":
    prior = fk.Uniform(low=[0, 0], high=[1, 1])
    kind, out = sys.argv[1:3]
    if kind == "pool":
        executor = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
    elif kind == "loky":
        from joblib.externals.loky import get_reusable_executor
        executor = get_reusable_executor(2)
    else:
        from distributed import Client, LocalCluster
        client = Client(LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None))
        executor = client.get_executor()
    print(fk.simulate(slow, prior, 2000, out=out, executor=executor, show_progress=False).sha256)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pool", "loky", "dask"])
def test_killed_again_and_again_the_set_is_the_same(kind, tmp_path):
    """Killed at random times with its workers, with three kinds of executors, the set has the same SHA-256."""
    if kind == "dask":
        pytest.importorskip("distributed")
    (tmp_path / "slow20.py").write_text(
        textwrap.dedent("""
        import time
        import numpy as np

        def slow(theta):
            time.sleep(0.005)
            return [theta[0] + np.random.normal(), theta[1]]
        """)
    )
    (tmp_path / "script.py").write_text(SCRIPT)
    sys.path.insert(0, str(tmp_path))
    try:
        from slow20 import slow
    finally:
        sys.path.remove(str(tmp_path))
    prior = fk.Uniform(low=[0, 0], high=[1, 1])
    expected = fk.simulate(slow, prior, 2000, out=tmp_path / "here", show_progress=False).sha256
    out, generator, killed = tmp_path / "sims", np.random.default_rng(0), 0
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(tmp_path)])}
    for attempt in range(60):
        process = subprocess.Popen(
            [sys.executable, "script.py", kind, out],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            limit = 240 if killed >= 3 else 6 + attempt + 4 * generator.random()
            told, _ = process.communicate(timeout=limit)
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            killed += 1
            time.sleep(0.5)
    assert process.returncode == 0 and told.split()[-1] == expected
    assert killed >= 1
