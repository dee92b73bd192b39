"""Interactive pages of models that were never trained, which compiles little: what the browser is tested with."""

import shutil
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowknife as fk
from flowknife import laws
from flowknife._types import built
from flowknife.architectures import coupling_flow
from flowknife.bijections import Affine, Chain, PrincipalRotation
from flowknife.explore import as_json, assembled, describe, thinned
from tests.catalogue import perturbed

_OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@contextmanager
def browser():
    """Chromium; without it, or without playwright, the test is left out."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=_OPTIONS.split())
        yield started
        started.close()


EVIL = "<img src=x onerror=alert(1)>"
"""A name that would be markup, were it not shown as text."""

_CHECKS = [
    {"name": "round trip", "value": 0.0004, "limit": 0.01, "passed": True, "note": ""},
    {"name": f"distance of {EVIL}", "value": 0.2, "limit": 0.06, "passed": False, "note": "try more rows"},
]


def _page(job, model, **parts):
    trust = {"checks": _CHECKS, "flagging": "P-values are calibrated.", "partial": ""}
    about = {"title": f"{EVIL}: {job}", "lead": "", "alpha": 0.05, "trust": trust, "metrics": [("nll", "0.3", "nats")]}
    return assembled("a page", as_json(about | {"job": job, "model": describe(model)} | parts))


def _frame(dim):
    return {"origin": [0.0] * dim, "scale": [1.0] * dim, "constant": []}


def _flow(dim, rng, cond_dim=0, **sizes):
    sizes = {"layers": 2, "width": 16} | sizes
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles fastest
    return perturbed(built(coupling_flow, dim, cond_dim=cond_dim, key=key, **sizes), rng, 0.1)


def _density(dim, rng, given=0):
    rows = rng.normal(size=(200, dim + given))
    bijection = Chain([Affine(np.zeros(dim), np.ones(dim)), _flow(dim, rng, given)])
    cond = [fk.Block("y", given)] if given else []
    return _page(
        "density",
        fk.INN([fk.Block("x", dim)], [fk.Block("z", dim)], bijection, cond),
        names=["a", EVIL, "c", "d"][:dim],
        frame=_frame(dim),
        given_frame=_frame(given),
        given_names=["rooms"][:given],
        rows=rows[:, :dim],
        given=rows[:, dim:],
        given_usual=[0.0] * given,
        scores=thinned(rng.gamma(dim, 1, 300) + dim),
    )


def _classes(dim, rng):
    labels = rng.integers(3, size=200)
    rows = rng.normal(size=(200, dim)) + 4 * np.eye(3, dim)[labels]
    law = laws.ClassMixture(3, dim).fit(jnp.asarray(rows), jnp.asarray(labels))
    return _page(
        "classify",
        fk.INN([fk.Block("x", dim)], [fk.Block("y", dim, law)], Chain([_flow(dim, rng)])),
        names=["a", "b", "c", "d"][:dim],
        frame=_frame(dim),
        rows=rows,
        labels=labels,
        classes=["one", "two", EVIL],
        log_prior=np.log(np.ones(3) / 3),
        temperature=1.0,
        pad=None,
        scores=thinned(rng.gamma(dim, 1, 300) + dim),
    )


def _inverse(dim, data, rng, scene, **sizes):
    x, y = rng.normal(size=(200, dim)), rng.normal(size=(200, data))
    if scene["kind"] == "arm":
        right = [fk.Block("y", data, laws.Given(0.02)), fk.Block("z", dim - data)]
        model = fk.INN([fk.Block("x", dim)], right, _flow(dim, rng, **sizes))
    else:
        bijection = Chain([PrincipalRotation(dim), _flow(dim, rng, data)])
        model = fk.INN([fk.Block("x", dim)], [fk.Block("z", dim)], bijection, [fk.Block("y", data)])
    return _page(
        "invert",
        model,
        names=[EVIL, *(f"x{i}" for i in range(1, dim))],
        units=["km"] * dim,
        y_names=[*(f"y{i}" for i in range(1, data)), EVIL],
        y_units=[""] * data,
        x_frame=_frame(dim),
        y_frame=_frame(data),
        conditional=scene["kind"] != "arm",
        forward=scene["kind"] == "arm",
        support=None,
        observations=y,
        parameters=x,
        detector=None,
        scene=scene,
    )


def pages() -> dict[str, str]:
    """A page of every kind by name."""
    rng = np.random.default_rng(0)
    edges, stations = list(np.linspace(0, 16, 9)), list(np.linspace(1, 15, 5))
    basin = {"kind": "basin", "contrast": -2.0, "height": 0.001, "edges": edges, "stations": stations}
    profile = {"kind": "profile", "periods": [0.4, 0.8, 1.6], "depths": [0.0, 0.1, 0.3]}
    arm = {"kind": "arm", "lengths": [0.5, 0.5, 1.0]}
    return {
        "density": _density(2, rng),
        "given": _density(3, rng, 1),
        "one": _density(1, rng),
        "classes": _classes(2, rng),
        "table": _classes(4, rng),
        "arm": _inverse(4, 2, rng, arm, layers=8, width=64),
        "basin": _inverse(8, 5, rng, basin),
        "profile": _inverse(2, 3, rng, profile),
        "plane": _inverse(2, 2, rng, {"kind": "plain"}),
        "number": _inverse(2, 1, rng, {"kind": "plain"}),
    }
