"""What is documented is so: settings, examples of docstrings, code of the pages."""

import doctest
import importlib
import pkgutil
import re
import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import flowknife as fk
from flowknife import estimators
from flowknife._settings import described
from flowknife.data import digits, write_folder
from tests.command import call
from tests.settings import CONFIGS, texts


@pytest.mark.parametrize("path", texts(), ids=lambda path: path.name)
def test_documented_settings_are_those_of_the_classes(path):
    assert path.read_text(encoding="utf-8") == texts()[path], "out of date; try make settings"


@pytest.mark.parametrize("application", CONFIGS)
def test_every_setting_has_a_meaning_and_a_default(application):
    known = described(CONFIGS[application])
    for key, (default, meaning) in known.items():
        assert default and not meaning.startswith(("default", "one of", ";")), key
        assert (default == "chosen") == ("; default: " in meaning), key
    assert set(CONFIGS[application].chosen) <= set(known)
    nested = [field for field in CONFIGS[application].model_fields.values() if not field.description]
    assert not nested


@pytest.mark.parametrize("width", [80, 120])
def test_help_shows_every_setting_within_the_width_of_the_terminal(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    for application, kind in CONFIGS.items():
        text = call("fit", application, "--help").stdout
        shown = " ".join(text.split())
        for key, (default, meaning) in described(kind).items():
            assert f"{key}={default} {meaning}" in shown, key
        assert all(len(line) <= width for line in text.splitlines() if "flowknife fit" not in line)


ROOT = Path(__file__).parents[1]
FITS = {f"apps.{name}._fit" for name in fk.apps.APPLICATIONS}
DOORS = {f"estimators.{name}" for name in ("_anomalies", "_density", "_supervised")}
TRAINING = {*FITS, *DOORS}  # examples that train
PROGRAMS = ("__main__", "tracking._pyfunc")  # run by others
MODULES = [each.name for each in pkgutil.walk_packages(fk.__path__, "flowknife.") if not each.name.endswith(PROGRAMS)]


def run_doctests(names):
    count = 0
    runner = doctest.DocTestRunner()
    for module in map(importlib.import_module, names):
        for test in doctest.DocTestFinder(exclude_empty=True).find(module, globs=dict(vars(module))):
            runner.run(test)
            count += len(test.examples)
    assert runner.failures == 0
    return count


def test_examples_in_docstrings_have_their_heading():
    """Without `Examples:` above it the API page shows code as a quotation."""
    odd = []
    for path in sorted(Path(fk.__file__).parent.rglob("*.py")):
        texts = path.read_text(encoding="utf-8").split('"""')[1::2]
        odd += [path.name for text in texts if ">>> " in text and "Examples:" not in text.partition(">>> ")[0]]
    assert not odd


def test_examples_in_docstrings_run():
    names = [name for name in MODULES if name.removeprefix("flowknife.") not in TRAINING]
    assert run_doctests(["flowknife", *names]) > 20


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(TRAINING))
def test_examples_in_docstrings_that_train_run(module):
    assert run_doctests([f"flowknife.{module}"]) > 0


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page):
    """The Python code of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_pages_is_python(page):
    for code in blocks(page):
        compile(code, str(page), "exec")


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """A folder with data where the pages have theirs, and fits of two steps; returns the names that pages use."""
    monkeypatch.chdir(tmp_path)
    images = digits()[0][:80]
    for name in ("cats", "train", "new", "new-tabbies", "other", "open-eyes", "shut-eyes"):
        write_folder(images, tmp_path / "data" / name)
    for folder in ("data/breeds", "data/val"):
        write_folder(images, tmp_path / folder, ["tabby", "siamese"] * 40)
    harvest = np.random.default_rng(0).normal(size=(200, 4))
    pd.DataFrame(harvest, columns=["rain", "soil", "wheat", "maize"]).to_csv("harvest.csv", index=False)
    Path("new.csv").write_bytes(Path("harvest.csv").read_bytes())
    write_folder(images[:2], tmp_path)
    (tmp_path / "000000.png").rename("mine.png")
    (tmp_path / "000001.png").rename("yours.png")
    small = {"show_progress": False, "train": {"steps": 2}}
    vectors = {"layers": 1, "width": 4, "depth": 1, **small}
    tiny = {
        "density": vectors,
        "classify": vectors,
        "invert": {**vectors, "num_simulations": 40},
        "images": {"architecture": "wavelet", "image_size": 16, "levels": 3, "width": 8, **small},
        "fit": {"steps": 2, "show_progress": False},
    }
    for name, settings in tiny.items():
        monkeypatch.setattr(fk, name, partial(in_quick_form, getattr(fk, name), settings))
    for name in ("Density", "Images", "Classifier", "Posterior"):  # reports have tests of their own
        monkeypatch.setattr(getattr(fk, name), "report", lambda self, folder, **others: Path(folder, "report.html"))
    x = fk.data.TOYS["moons"].sample(5000, key=0)
    labels = ["cat", "dog"] * 2500
    y = np.array([1.0, 1.0])
    few = {"layers": 1, "width": 4, "depth": 1, "steps": 2, "minutes": None}
    for name in ("AnomalyDetector", "FlowDensity", "FlowClassifier", "FlowRegressor", "FlowTransformer"):
        door = getattr(fk, name)
        monkeypatch.setattr(fk, name, lambda *args, door=door, **given: door(*args, **{**given, **few}))
    pyod = estimators.PyODDetector
    monkeypatch.setattr(estimators, "PyODDetector", lambda **given: pyod(**{**given, **few}))
    return {
        "x": x,
        "y": x,
        "labels": labels,
        "simulator": np.square,
        "y_observed": y,
        "features": x,
        "new_features": x[:9],
        "prior": fk.Uniform([-2, -2], [2, 2]),
    }


def in_quick_form(fit, quick, *args, **settings):
    if "pairs" in settings:
        quick = {key: value for key, value in quick.items() if key != "num_simulations"}
    return fit(*args, **{**settings, **quick})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_code_of_pages_runs(page, quick):
    names = {"__name__": "page", "fk": fk, **quick}
    for code in blocks(page):
        exec(compile(code, str(page), "exec"), names)


@pytest.fixture
def example(tmp_path, monkeypatch, capsys):
    """Runs a program of docs/examples and returns the numbers that it prints."""

    def run(name):
        monkeypatch.setattr("sys.argv", [name, str(tmp_path / "run")])
        runpy.run_path(str(ROOT / "docs" / "examples" / f"{name}.py"), run_name="__main__")
        return [float(number) for number in re.findall(r": (-?[0-9.]+)", capsys.readouterr().out)]

    return run


def test_every_example_is_shown():
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    shown = re.findall(r'--8<-- "examples/(.*)\.py"', page)
    assert sorted(shown) == sorted(path.stem for path in (ROOT / "docs" / "examples").glob("*"))


@pytest.mark.slow
def test_example_of_a_density(example):
    entropy, nll = example("density")
    assert 0 < nll - entropy < 0.3


@pytest.mark.slow
def test_example_of_anomalies(example):
    normal, anomalous = example("anomalies")
    assert 0 < normal < 15 and anomalous > 80


@pytest.mark.slow
def test_example_of_a_posterior(example):
    shares = example("posterior")
    assert len(shares) == 4 and min(shares) > 10 and 95 < sum(shares) < 105
