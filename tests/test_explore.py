"""The evaluator of interactive pages, run by Node.js, against the models in Python: every layer, every job."""

import json
import shutil
import subprocess
from dataclasses import replace
from functools import partial
from importlib import resources

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowknife as fk
from flowknife.errors import InputError
from flowknife.explore import EVALUATOR, kernel, layer, packed
from tests.catalogue import ROWS, classes_in, perturbed, quick_jit

TINY = {"layers": 2, "width": 8, "depth": 1, "show_progress": False}
TRAIN = {"steps": 3, "batch_size": 32, "weight_decay": 0.0}
CLOSE = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def node():
    """Node.js, that of playwright or of the system; without one the test is left out."""
    try:
        from playwright._impl._driver import compute_driver_executable

        return compute_driver_executable()[0]
    except ImportError:
        return shutil.which("node") or pytest.skip("no Node.js: pip install playwright, or apt-get install nodejs")


def evaluated(code, given):
    """What JavaScript makes of `given`: `code` is the body of a function of it, in which the evaluator is in scope."""
    page = resources.files("flowknife.explore").joinpath("page")
    parts = [page.joinpath(f"{name}.js").read_text() for name in EVALUATOR]
    start = "const all = JSON.parse(require('fs').readFileSync(0, 'utf8')); startKernel(unpacked(all.kernel));"
    numbers = "(_, v) => (ArrayBuffer.isView(v) ? Array.from(v, (n) => (Number.isFinite(n) ? n : String(n))) : v)"
    run = f"const answer = ((given) => {{ {code} }})(all.given); if (!kernel) throw Error('no kernel');"
    script = "\n".join([*parts, start, run, f"process.stdout.write(JSON.stringify(answer, {numbers}));"])
    text = json.dumps(packed({"given": given, "kernel": kernel()}))
    done = subprocess.run([node(), "-e", script], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def _as_numbers(module, dtype):
    """The same numbers in another precision, by numpy, which compiles nothing."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf), dtype) if eqx.is_inexact_array(leaf) else leaf, module
    )


def wide(module):
    """The same numbers in double precision."""
    return _as_numbers(module, np.float64)


def narrow(module):
    """In single precision, as a run has them."""
    return _as_numbers(module, np.float32)


# -- every layer ------------------------------------------------------------------------------------------------------

_LAYERS = """
return given.map(({ node, x, y, n, cond }) => {
  const own = makeLayer(unpacked(node)), values = unpacked(cond);
  const known = values && { data: values, rows: n, size: values.length / n };
  const there = new Float64Array(n), back = new Float64Array(n);
  return [own.encode(unpacked(x), n, known, there), there, own.decode(unpacked(y), n, known, back), back];
});
"""


@quick_jit
def _both_ways(bijection, x, y, cond):
    return (*bijection.encode(x, cond), *bijection.decode(y, cond))


def _is_of_vectors(bijection):
    return len(bijection.shape) <= 1 and len(bijection.out_shape) <= 1


def _one_of_each_kind(rows):
    """Rows of vectors of which each has a part that those before it have not."""
    seen, found = set(), []
    for row in rows:
        bijection = eqx.filter_eval_shape(row.make, jax.random.key(0))
        kinds = set(classes_in(bijection))
        if _is_of_vectors(bijection) and kinds - seen:
            seen |= kinds
            found.append(row)
    return found


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_layer_of_vectors_is_evaluated_as_in_python(every):
    tasks, expected, left_out = [], {}, []
    rows = [row for row in ROWS if not row.slow]
    for row in rows if every else _one_of_each_kind(rows):
        bijection, x, y, cond = row.draw(0)
        bijection = narrow(bijection)
        try:
            described = layer(bijection)
        except InputError:
            assert not _is_of_vectors(bijection), row.name
            left_out.append(row.name)
            continue
        numbers = [None if part is None else np.asarray(part).ravel() for part in (x, y, cond)]
        tasks.append(dict(zip(("node", "x", "y", "cond"), (described, *numbers), strict=True)) | {"n": 6})
        expected[row.name] = [np.asarray(part).ravel() for part in _both_ways(wide(bijection), x, y, cond)]
    found = evaluated(_LAYERS, tasks)
    assert len(expected) > len(left_out) and bool(left_out) == every
    for (name, right), own in zip(expected.items(), found, strict=True):
        for what, value, mine in zip(("encode", "log_det", "decode", "log_det back"), right, own, strict=True):
            CLOSE(mine, value, err_msg=f"{name}: {what}")


def test_one_condition_serves_all_rows(key):
    flow = narrow(
        perturbed(fk.architectures.coupling_flow(3, cond_dim=2, layers=2, width=8, key=key), np.random.default_rng(0))
    )
    x, cond = np.random.default_rng(1).normal(size=(5, 3)), np.array([0.3, -1.2])
    code = """
      const own = makeLayer(unpacked(given.node)), x = unpacked(given.x), cond = unpacked(given.cond);
      const given5 = (rows) => ({ data: rowsOf(cond, rows, 2), rows, size: 2 });
      return [1, 5].map((rows) => own.encode(x, 5, given5(rows), new Float64Array(5)));
    """
    one, each = evaluated(code, {"node": layer(flow), "x": x.ravel(), "cond": cond})
    CLOSE(one, each)


def test_the_kernel_multiplies_as_javascript_does():
    code = """
      const random = new Random(1);
      return given.sizes.map(([n, k, m]) => {
        const x = random.normals(n * k), w = packed(random.normals(k * m), k, m);
        const out = random.normals(n * m), same = out.slice();
        addProduct(x, n, w, out);
        addPlainly(x, n, w, same);
        return Math.max(...out.map((v, i) => Math.abs(v - same[i])));
      });
    """
    assert max(evaluated(code, {"sizes": [[8, 8, 8], [300, 64, 64], [9, 13, 7], [301, 2, 64], [11, 64, 51]]})) < 1e-12


def test_normal_scores_are_as_precise_as_scipy():
    from scipy import special

    p = np.concatenate([10.0 ** -np.arange(1.0, 30), np.linspace(0.01, 0.99, 99), 1 - 10.0 ** -np.arange(2.0, 9)])
    code = "const p = unpacked(given); return [p.map(normalScore), p.map((v) => normalBelow(normalScore(v)))];"
    scores, back = evaluated(code, p)
    np.testing.assert_allclose(scores, special.ndtri(p), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(back, p, rtol=1e-9)


def test_a_layer_of_images_is_refused_in_words(key):
    with pytest.raises(InputError, match="got a model with a Haar, which the interactive page cannot evaluate"):
        layer(fk.bijections.Haar((4, 4, 1)))


# -- every job --------------------------------------------------------------------------------------------------------


def page_of(result, folder):
    """What the page of a result reads."""
    text = result.report(folder, interactive=True).read_text()
    return json.loads(text.split('<script type="application/json" id="model">')[1].split("</script>")[0])


def moved(result):
    """The result with weights away from their start, so that no layer is the identity."""
    return replace(result, model=narrow(perturbed(result.model, np.random.default_rng(3), 0.1)))


def in_double(result):
    """The same result, whose model computes in double precision."""
    return replace(result, model=wide(result.model))


@pytest.mark.parametrize("given", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_density(tmp_path, given):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)) * [1, 50, 1e-3, 0] + [0, 1e6, 0, 7]
    own, condition = (x[:, [0, 1, 3]], x[:, 2:3]) if given else (x, None)
    flow = moved(fk.density(own, given=condition, train=TRAIN, **TINY))
    page = page_of(flow, tmp_path)
    rows = x[:7, [0, 1, 3]] if given else x[:7]
    known = x[:7, 2:3] if given else None
    rows[-1, -1] = 8.0  # impossible, for a constant column
    z = rng.normal(size=(5, flow.frame.dim)).astype(np.float32)
    usual = known[:1] if given else None
    code = """
      const own = new DensityEngine(given.page), [x, z, known] = unpacked([given.x, given.z, given.known]);
      const first = known && known.subarray(0, 1), log = own.logProb(x, 7, { given: known, rows: 7 });
      const p = Array.from(log.subarray(0, 6), (v) => own.pValue(v));
      return [log, own.encode(x, 7, { given: known, rows: 7 }), own.decode(z, 5, { given: first }), p,
        own.sample(4000, { seed: 1, given: first })];
    """
    asked = {"page": page, "x": rows.ravel(), "z": z.ravel(), "known": None if known is None else known.ravel()}
    log, encoded, decoded, p, drawn = evaluated(code, asked)
    with jax.enable_x64(True):
        exact = in_double(flow)
        right = exact.log_prob(rows, given=known)
        assert right[-1] == -np.inf and log[-1] == "-Infinity"
        CLOSE(log[:-1], right[:-1])
        CLOSE(np.reshape(encoded, (7, -1)), exact.encode(rows, given=known))
        CLOSE(np.reshape(decoded, (5, -1)), exact.decode(z, given=usual))
        CLOSE(
            p, exact.score(rows[:-1], given=None if known is None else known[:-1])["p_value"], atol=0.03
        )  # ties: some rows calibrate
    ours = flow.sample(4000, key=0, given=usual)
    np.testing.assert_allclose(
        np.mean(np.reshape(drawn, ours.shape), axis=0), ours.mean(axis=0), atol=0.15 * max(ours.std(), 1e-3)
    )


@pytest.mark.parametrize("law", ["mixture", pytest.param("label", marks=pytest.mark.slow)])
def test_classify(tmp_path, law):
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    x = rng.normal(size=(300, 2)) + 4 * np.eye(3, 2)[labels]
    model = moved(fk.classify(x, labels, law=law, train=TRAIN, **TINY))
    page = page_of(model, tmp_path)
    assert (page["pad"] is None) == (law == "mixture")
    code = """
      const own = new ClassifierEngine(given.page), x = unpacked(given.x), joint = own.joint(x, 9);
      const drawn = own.sample(300, { label: 1, seed: 3 });
      return [own.probabilitiesOf(joint), own.logProb(x, 9), drawn, own.decode(own.encode(x, 9), 9)];
    """
    probability, log, drawn, back = evaluated(code, {"page": page, "x": x[:9].ravel()})
    with jax.enable_x64(True):
        exact = in_double(model)
        # the padding's draws are in single precision there, as they are in use
        CLOSE(probability, exact.predict_proba(x[:9]))
        CLOSE(log, exact.log_prob(x[:9]))
    CLOSE(np.reshape(back, (9, 2)), x[:9])
    ours = model.sample(300, label=1, key=0)
    np.testing.assert_allclose(np.mean(np.reshape(drawn, (300, 2)), axis=0), ours.mean(axis=0), atol=0.3 * ours.std())


def _blurred(x):
    return jnp.stack([x[..., 0] + x[..., 1], x[..., 1] * x[..., 2]], axis=-1)


PRIOR = fk.priors.Product(
    {
        "u": fk.Uniform(-1.0, 2.0),
        "n": fk.priors.Truncated(0.0, 1.0, -0.5, 3.0),
        "l": fk.LogNormal(0.0, 0.5),
    }
)


@pytest.mark.parametrize(
    "settings",
    [
        {"features": 4},
        {"form": "partitioned"},
        {"form": "partitioned", "noise": 0.1, "features": 4},
    ],
    ids=["conditional", "partitioned", "noisy"],
)
@pytest.mark.slow
def test_invert(tmp_path, settings):
    posterior = moved(fk.invert(_blurred, PRIOR, num_simulations=300, train=TRAIN, **settings, **TINY))
    page = page_of(posterior, tmp_path)
    x, y = (posterior.example_pairs[name] for name in ("x", "y"))
    outside = x[:1] + np.array([[5.0, 0, 0]])
    points = np.concatenate([x[:5], outside])
    far = np.array([[40.0, -3.0]])
    seen = np.concatenate([y[:6], far])
    code = """
      const own = new PosteriorEngine(given.page), [x, y] = unpacked([given.x, given.y]), first = y.subarray(0, 2);
      const p = Array.from({ length: 7 }, (_, i) => own.pValue(y.subarray(2 * i, 2 * i + 2)));
      return [own.logProb(x, 6, { y: first }), p,
        own.decode(own.encode(x, 5, { y: first }), 5, { y: first }), given.page.forward ? own.predict(x, 5) : null,
        own.sample(2000, { y: first, seed: 5 })];
    """
    log, p, back, predicted, drawn = evaluated(code, {"page": page, "x": points.ravel(), "y": seen.ravel()})
    with jax.enable_x64(True):
        exact = in_double(posterior)
        right = exact.log_prob(points, y[0])
        assert right[-1] == -np.inf and log[-1] == "-Infinity"
        CLOSE(log[:-1], right[:-1])
        if page["forward"]:
            CLOSE(np.reshape(predicted, (5, 2)), exact.predict(x[:5]))
    CLOSE(np.reshape(back, (5, 3)), x[:5], atol=1e-4)
    CLOSE(p, posterior.misspecification(seen).p_values, atol=1e-3)
    ours = posterior.sample(2000, y=y[0], key=0)
    np.testing.assert_allclose(
        np.median(np.reshape(drawn, (2000, 3)), axis=0), np.median(ours, axis=0), atol=0.15 * max(ours.std(), 0.1)
    )


# -- the file ---------------------------------------------------------------------------------------------------------


def test_a_model_of_images_gets_the_report(tmp_path, capsys, monkeypatch):
    model = object.__new__(fk.Images)  # nothing of it is asked for
    monkeypatch.setattr(fk.Images, "_report", lambda self, folder, others: folder / "report.html")
    assert model.report(tmp_path, interactive=True).name == "report.html"
    assert "note: no interactive page: got a model of images" in capsys.readouterr().err
