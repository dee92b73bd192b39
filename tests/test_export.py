"""Exports: programs that run without flowknife and give the same numbers, to the last bit."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from safetensors import safe_open

import flowknife as fk
from flowknife._batches import bucket
from flowknife.data import digits
from flowknife.errors import InputError, StorageError
from flowknife.export import model as standalone
from tests.command import call, refused

SMALL = {"layers": 1, "width": 4, "depth": 1, "show_progress": False, "train": {"steps": 3}}
X = fk.data.TOYS["moons"].sample(300, key=0)
PRIOR = fk.Uniform([-2, -2], [2, 2])

WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "flowknife":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
"""
"""A process in which flowknife is not to be found."""

ELSEWHERE = """
import importlib.util, json
import numpy as np

def model_in(folder):
    spec = importlib.util.spec_from_file_location("model", f"{folder}/model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Model()

calls = json.loads(sys.argv[2])
arrays = dict(np.load(sys.argv[1] + "/in.npz"))
found = {}
for i, (folder, method, args, kwargs) in enumerate(calls):
    take = lambda value: arrays[value] if isinstance(value, str) else value
    model = model_in(f"{sys.argv[1]}/{folder}")
    found[str(i)] = getattr(model, method)(*map(take, args), **{k: take(v) for k, v in kwargs.items()})
np.savez(sys.argv[1] + "/out.npz", **found)
assert "flowknife" not in sys.modules
"""


def elsewhere(folder, calls, **arrays):
    """What exports return in a process without flowknife."""
    np.savez(folder / "in.npz", **arrays)
    words = [sys.executable, "-c", WITHOUT + ELSEWHERE, str(folder), json.dumps(calls)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "out.npz") as found:
        return [found[str(i)] for i in range(len(calls))]


@pytest.fixture
def untyped():
    """Types go unchecked, as in use: the size of a batch that is left open is no int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def flow():
    return fk.density(np.insert(X, 1, 3.0, axis=1), **SMALL)  # a column that never varies


@pytest.fixture(scope="module")
def posterior():
    return fk.invert(lambda x: x**2, PRIOR, num_simulations=80, **SMALL)


def assert_agree(place, results, expected, **arrays):
    """Compare what exports return elsewhere with what results return here, by (result, method, arguments, options)."""
    for name, result in results.items():
        result.export(place / name)
    calls = [(name, method, args, dict(options)) for name, method, args, *options in expected]
    found = elsewhere(place, calls, **arrays)
    for asked, own, other in zip(expected, expected.values(), found, strict=True):
        if asked[1] == "predict_proba":  # scipy's softmax
            np.testing.assert_allclose(other, own, rtol=1e-12)
        else:
            assert own.dtype == other.dtype and np.array_equal(own, other), asked
    return found


def test_an_exported_program_makes_the_batches_of_flowknife():
    for count in (0, 1, 64, 255, 256, 257, 1024, 1025, 10_000):
        for most in (None, 64, 16_384):
            assert standalone._bucket(count, most) == bucket(count, most)


@pytest.mark.usefixtures("untyped")
def test_an_exported_density_agrees_to_the_last_bit_without_flowknife(place, flow):
    rows = np.insert(X[:100], 1, [3.0, 4.0] * 50, axis=1)
    z = flow.encode(rows)
    expected = {
        ("flow", "log_prob", ("rows",)): flow.log_prob(rows),
        ("flow", "encode", ("rows",)): z,
        ("flow", "decode", ("z",)): flow.decode(z),
        ("flow", "sample", (70,), ("key", 3)): flow.sample(70, key=3),
    }
    found = assert_agree(place, {"flow": flow}, expected, rows=rows, z=z)
    assert np.isneginf(found[0][1::2]).all()


@pytest.mark.slow
@pytest.mark.usefixtures("untyped")
def test_exports_of_other_jobs_agree_to_the_last_bit_without_flowknife(place, posterior):
    given = fk.density(X[:, 0], given=X[:, 1] + 1e6, **SMALL)
    classifier = fk.classify(X, (X[:, 0] > 0).tolist(), **SMALL)
    theta, y = np.array([[1.0, -1.0], [5.0, 0.0]]), np.array([[1.0, 1.0], [0.5, 2.0]])
    expected = {
        ("given", "log_prob", ("left",), ("given", "right")): given.log_prob(X[:, 0], given=X[:, 1] + 1e6),
        ("given", "sample", (3,), ("given", "one"), ("key", 1)): given.sample(3, given=1e6, key=1),
        ("classifier", "log_prob", ("x",)): np.stack([classifier.log_prob(X, c) for c in classifier.classes], 1),
        ("classifier", "predict_proba", ("x",)): classifier.predict_proba(X),
        ("classifier", "sample", (5,), ("given", 1), ("key", 2)): classifier.sample(5, label=True, key=2),
        ("posterior", "log_prob", ("theta", "y")): posterior.log_prob(theta, y),
        ("posterior", "sample", (9,), ("given", "y"), ("key", 4)): posterior.sample(9, y=y, key=4),
        ("posterior", "sample", (9,), ("given", "first"), ("key", 4)): posterior.sample(9, y=y[0], key=4),
    }
    results = {"given": given, "classifier": classifier, "posterior": posterior}
    arrays = {"x": X, "left": X[:, :1], "right": X[:, 1:] + 1e6, "one": np.array([1e6])}
    assert_agree(place, results, expected, **arrays, theta=theta, y=y, first=y[0])


@pytest.mark.slow
@pytest.mark.usefixtures("untyped")
def test_exports_of_images_agree_to_the_last_bit(tmp_path):
    images = digits()[0][:120]
    small = {"image_size": 16, "levels": 2, "width": 8, "train": {"steps": 3}, "show_progress": False}
    model = fk.images(images, architecture="wavelet", **small)
    pixels = model.examples
    z = model.encode(pixels)
    expected = {
        ("images", "log_prob", ("x",)): model.log_prob(pixels),
        ("images", "encode", ("x",)): z,
        ("images", "decode", ("z",)): model.decode(z),
        ("images", "sample", (20,), ("key", 1)): model.sample(20, key=1),
    }
    assert_agree(tmp_path, {"images": model}, expected, x=pixels, z=z)


def test_an_export_replaces_only_an_export(tmp_path, flow):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(StorageError, match="not empty"):
        flow.export(tmp_path / "mine", overwrite=True)
    flow.export(tmp_path / "model")
    with pytest.raises(StorageError, match="overwrite=True"):
        flow.export(tmp_path / "model")
    flow.export(tmp_path / "model", overwrite=True)
    with pytest.raises(InputError, match="onnx"):
        flow.export(tmp_path / "other", format="torch")


def test_the_command_line_exports_a_run(tmp_path, flow):
    flow.save(tmp_path / "run")
    said = call("export", tmp_path / "run", tmp_path / "model").stdout
    assert said.startswith(f"wrote {tmp_path / 'model'}\n") and "model.py encode" in said
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names >= {"model.py", "about.json", "weights.npz", "log_prob.stablehlo", "sample.stablehlo"}
    refused("export", tmp_path / "run", tmp_path / "model", words="--overwrite")
    for name in ("weights.npz", "about.json", "encode.stablehlo"):
        path = tmp_path / "model" / name
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(ValueError, match=name):
            standalone.Model(tmp_path / "model").encode(np.zeros((1, 3)))
        path.write_bytes(content)


def test_the_layout_of_a_model_file_is_as_documented(tmp_path, flow):
    run = flow.save(tmp_path / "run")
    with safe_open(run / "model.safetensors", framework="numpy") as file:
        header = json.loads(file.metadata()["flowknife"])
        names = set(file.keys())
    node, path = header["tree"]["dict"]["model"], "/model"
    assert node["class"] == "INN"
    for step in ("bijection", "bijections"):
        node, path = node["fields"][step] if isinstance(node, dict) else node, f"{path}/{step}"
    assert any(name.startswith(f"{path}/0/") for name in names)


def test_the_program_of_the_page_computes_a_density_in_pytorch(tmp_path, monkeypatch, flow):
    torch = pytest.importorskip("torch", reason="no torch: pip install torch")
    monkeypatch.chdir(tmp_path)
    flow.save("runs/moons")
    page = (Path(__file__).parents[1] / "docs/howto/elsewhere.md").read_text(encoding="utf-8")
    (code,) = (
        block for block in re.findall(r"^``` \{\.python\}\n(.*?)^```", page, re.S | re.M) if "import torch" in block
    )
    names = {}
    exec(code, names)
    rows = np.insert(X[:50], 1, 3.0, axis=1)
    np.testing.assert_allclose(names["log_prob"](torch.tensor(rows)).numpy(), flow.log_prob(rows), atol=1e-5, rtol=1e-5)


# -- NumPyro ----------------------------------------------------------------------------------------------------------

numpyro = pytest.importorskip("numpyro")


def test_a_density_is_a_distribution_of_numpyro(key):
    flow = fk.density(1e6 + 1000 * X, **SMALL)
    law = flow.numpyro()
    rows = 1e6 + 1000 * X[:5]
    np.testing.assert_allclose(law.log_prob(rows), flow.log_prob(rows), atol=1e-2)
    assert law.event_shape == (2,) and law.sample(key, (4, 3)).shape == (4, 3, 2)
    assert abs(np.asarray(law.sample(key, (500,))).mean() - rows.mean()) < 1000


@pytest.mark.slow
def test_a_posterior_is_a_distribution_within_the_support_of_its_prior(key, posterior):
    y = np.array([1.0, 1.0])
    law = posterior.numpyro(y)
    theta = np.array([[1.0, -1.0], [0.3, 1.7]])
    np.testing.assert_allclose(law.log_prob(theta), posterior.log_prob(theta, y), rtol=1e-4)
    drawn = np.asarray(law.sample(key, (200,)))
    assert (abs(drawn) <= 2).all() and bool(law.support(drawn).all())
    from numpyro.distributions import biject_to

    u = np.array([[0.3, -4.0]])  # at -5 the distance to the edge is a few steps of float32
    inside = biject_to(law.support)(u)
    assert (abs(np.asarray(inside)) <= 2).all()
    np.testing.assert_allclose(biject_to(law.support).inv(inside), u, rtol=1e-3)


@pytest.mark.slow
def test_a_posterior_is_a_prior_and_a_guide(posterior):
    import jax
    from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO

    y = np.array([1.0, 1.0])

    def model():
        theta = numpyro.sample("theta", posterior.numpyro(y))
        numpyro.sample("more", numpyro.distributions.Normal(theta.sum(), 0.5), obs=0.0)

    chain = MCMC(NUTS(model), num_warmup=50, num_samples=50, progress_bar=False)
    chain.run(jax.random.key(0))
    assert (abs(np.asarray(chain.get_samples()["theta"])) <= 2).all()

    def guide():
        numpyro.sample("theta", posterior.numpyro(y))

    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    state = svi.init(jax.random.key(0))
    assert np.isfinite(svi.update(state)[1])


@pytest.mark.slow
def test_nuts_and_svi_find_a_posterior_that_is_known():
    """The prior N(m, 0.5^2) is learnt from draws of it; with one datum of N(theta, 0.3^2) the posterior is Gaussian."""
    import equinox as eqx
    import jax
    from numpyro import distributions as dist
    from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO

    centre, data = np.array([1.0, -2.0]), np.array([1.6, -2.3])
    draws = np.random.default_rng(0).normal(centre, 0.5, (4000, 2))
    flow = fk.density(draws, layers=2, width=16, train={"steps": 300}, key=0, show_progress=False)
    precision = 1 / 0.5**2 + 1 / 0.3**2
    mean, spread = (centre / 0.5**2 + data / 0.3**2) / precision, precision**-0.5

    def model():
        theta = numpyro.sample("theta", flow.numpyro())
        numpyro.sample("data", dist.Normal(theta, 0.3).to_event(1), obs=data)

    chain = MCMC(NUTS(model), num_warmup=300, num_samples=1500, progress_bar=False)
    chain.run(jax.random.key(0))
    found = np.asarray(chain.get_samples()["theta"])
    np.testing.assert_allclose(found.mean(axis=0), mean, atol=0.04)
    np.testing.assert_allclose(found.std(axis=0), spread, rtol=0.12)

    law = flow.numpyro()
    weights, rest = fk.train.split_trainable(law.model)

    def guide():
        law.model = eqx.combine(numpyro.param("weights", weights), rest)
        numpyro.sample("theta", law)

    svi = SVI(model, guide, numpyro.optim.Adam(5e-3), Trace_ELBO(num_particles=32))
    trained = svi.run(jax.random.key(1), 800, progress_bar=False)
    law.model = eqx.combine(trained.params["weights"], rest)
    found = np.asarray(law.sample(jax.random.key(2), (4000,)))
    np.testing.assert_allclose(found.mean(axis=0), mean, atol=0.04)
    np.testing.assert_allclose(found.std(axis=0), spread, rtol=0.12)
    # the evidence bound of the exact posterior is the evidence, N(data; m, 0.5^2 + 0.3^2)
    evidence = dist.Normal(centre, 0.34**0.5).log_prob(data).sum()
    assert -np.mean(trained.losses[-100:]) == pytest.approx(float(evidence), abs=0.15)
