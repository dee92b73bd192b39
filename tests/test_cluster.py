"""One model on several devices, and by several processes: the same losses as on one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from command import call

import flowknife as fk
from flowknife import _cluster

PROGRAM = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (600, 600))
from types import SimpleNamespace
import jax, jax.numpy as jnp, numpy as np
from flowknife import _cluster
kind, out, *cluster = sys.argv[1:]
if cluster:
    _cluster.join(cluster[0], int(cluster[1]), int(cluster[2]))
import flowknife as fk
train = {"steps": 50, "batch_size": 64, "evaluate_every": 10, "patience": 0}
quiet = {"show_progress": False, "width": 16}
if kind == "table":
    x = fk.data.TOYS["moons"].sample(1000, key=0)
    found = fk.density(x, layers=2, train=train, **quiet)
elif kind == "images":
    images, _ = fk.data.digits()
    train |= {"batch_size": 16}
    shape = images.shape[1:]
    flow = jax.jit(lambda: fk.architectures.wavelet(shape, levels=2, width=8, features=8, depth=1, key=0))()
    model = fk.INN([fk.Block("image", shape, fk.laws.Pixels())], [fk.Block("z", flow.out_shape)], flow)
    found = fk.fit(model, images[:800], key=0, **train, show_progress=False)
    found = SimpleNamespace(history=found.history, metrics={"bits_per_dim": found.loss / np.log(2) / np.prod(shape)})
else:
    prior = fk.Uniform(low=[1, 1], high=[2, 2])
    theta = np.asarray(prior.sample(1000, key=0))
    y = np.stack([theta[:, 0] * theta[:, 1], theta[:, 0]], axis=1)
    found = fk.invert(pairs=(theta, y), prior=prior, noise=0.1, layers=2, train=train, **quiet)
if _cluster.is_first():
    said = {"devices": jax.device_count(), **found.history, "metrics": found.metrics}
    with open(out, "w") as stream:
        json.dump(said, stream)
"""


def environment(devices=1):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "XLA_FLAGS": flags.strip()}


def started(*words, devices=1, **options):
    return subprocess.Popen([sys.executable, *map(str, words)], env=environment(devices), **options)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def trained(kind, folder, devices=1, processes=1):
    """What was trained, by so many processes of so many devices."""
    program, out = folder / "program.py", folder / f"{kind}-{devices}-{processes}.json"
    program.write_text(PROGRAM)
    address = f"127.0.0.1:{free_port()}"
    clusters = [(address, processes, i) for i in range(processes)] if processes > 1 else [()]
    running = [started(program, kind, out, *cluster, devices=devices) for cluster in clusters]
    # as long as it takes where others use the machine: the program itself ends after so much time of computing, and one
    # that waits for another one ends within the heartbeat
    assert [process.wait() for process in running] == [0] * len(running)
    return json.loads(out.read_text())


def assert_same(found, expected, devices):
    assert (found["devices"], expected["devices"]) == (devices, 1)
    for name in ("train", "validation"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-5)
    for name in {"nll", "bits_per_dim"} & set(expected["metrics"]):
        assert found["metrics"][name] == pytest.approx(expected["metrics"][name], abs=1e-3)


@pytest.fixture(scope="module", params=["table", "images", "inversion"])
def alone(request, tmp_path_factory):
    """A kind of model, and what one device trained."""
    return request.param, trained(request.param, tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
def test_four_devices_train_as_one(alone, tmp_path):
    kind, expected = alone
    assert_same(trained(kind, tmp_path, devices=4), expected, devices=4)


@pytest.mark.slow
def test_two_processes_train_as_one(alone, tmp_path):
    kind, expected = alone
    assert_same(trained(kind, tmp_path, processes=2), expected, devices=2)


LATE = """
import sys, time
import jax, numpy as np
from flowknife import _cluster
_cluster.join(sys.argv[1], 2, int(sys.argv[2]))
jax.devices()
time.sleep(35 * int(sys.argv[2]))
assert _cluster.from_first(np.asarray([5.0 + int(sys.argv[2])])) == [5.0]
"""


@pytest.mark.slow
def test_a_process_may_read_its_data_for_longer_than_another(tmp_path):
    """Longer than the half minute that JAX waits while connections are made."""
    address = f"127.0.0.1:{free_port()}"
    running = [started("-c", LATE, address, i) for i in range(2)]
    assert [process.wait() for process in running] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_others_and_another_number_goes_on(victim, tmp_path):
    data, run = tmp_path / "moons.csv", tmp_path / "run"
    rows = np.random.default_rng(0).normal(size=(500, 2))
    np.savetxt(data, rows, delimiter=",", header="a,b", comments="")
    own = ["-s", "layers=1", "-s", "width=8", "-s", "train.patience=0", "-s", "train.checkpoint_every=10"]
    words = ["fit", "density", str(data), "--out", str(run), *own, "-s", "train.steps=4000"]
    cluster = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process-id"]
    running = [
        started("-m", "flowknife", *words, *cluster, i, stderr=subprocess.PIPE, text=True, start_new_session=True)
        for i in range(2)
    ]
    while not list(run.glob("checkpoints/training/step-*")):
        assert [process.poll() for process in running] == [None, None]
        time.sleep(0.2)
    os.killpg(running[victim].pid, signal.SIGKILL)
    _, told = running[1 - victim].communicate(timeout=120)
    running[victim].communicate()
    assert running[1 - victim].returncode == 1
    assert sum(line.startswith("error: lost") for line in told.splitlines()) == 1 and "Check failure" not in told
    said = call(*words, "--resume")
    assert "resuming from the checkpoints" in said.stderr and (run / "run.json").exists()


def test_one_device_needs_nothing():
    assert _cluster.mesh() is None and _cluster.is_first() and not _cluster.many_processes()
    tree = {"a": np.arange(3)}
    assert _cluster.everywhere(tree, None) is tree and _cluster.from_first(tree) is tree
    assert _cluster.agreed(1, 0.5) == [1.0, 0.5] and not _cluster.anywhere(False)


def test_held_out_images_have_the_noise_that_they_have_on_one_device(monkeypatch):
    """Noise within the bins of pixels depends on the size of a batch."""
    images, shape = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 1)).astype(np.uint8), (2, 2, 1)
    flow = fk.bijections.Chain([fk.bijections.ActNorm(shape), fk.bijections.Reshape(shape, (4,))])
    model = fk.INN([fk.Block("image", shape, fk.laws.Pixels())], [fk.Block("z", 4)], flow)

    def trained():
        settings = {"steps": 4, "batch_size": 8, "evaluate_every": 2, "validation": 0.5}
        return fk.fit(model, images, key=0, **settings, show_progress=False).history["validation"]

    expected = trained()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (_cluster.BATCH,))  # of one device, in the way of several
    monkeypatch.setattr(_cluster, "mesh", lambda: mesh)
    np.testing.assert_allclose(trained(), expected, rtol=1e-6)


def test_what_the_runtime_reports_is_told_from_other_errors():
    assert _cluster.is_of_runtime(jax.errors.JaxRuntimeError("INTERNAL: nobody answers"))
    assert _cluster.is_of_runtime(ValueError("UNKNOWN: Gloo all-reduce failed"))
    assert not _cluster.is_of_runtime(ValueError("got 3 rows; expected INTERNAL: ones"))


@pytest.mark.parametrize(
    "words",
    [
        ["--coordinator", "host:1"],
        ["--distributed", "auto", "--processes", "2"],
        ["--coordinator", "host", "--processes", "2", "--process-id", "0"],
        ["--coordinator", "host:1", "--processes", "2", "--process-id", "2"],
    ],
)
def test_options_that_do_not_go_together_are_refused(words, tmp_path):
    found = call("fit", "density", "x.csv", "--out", tmp_path / "run", *words, status=1)
    assert found.stderr.startswith("error: got") and not (tmp_path / "run").exists()
