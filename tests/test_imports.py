"""What importing costs, and that every public name is what it says."""

import ast
import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flowknife as fk
from flowknife import _xla
from flowknife.apps import APPLICATIONS

ROOT = Path(__file__).parents[1]
STUB = Path(fk.__file__).with_suffix(".pyi")
HEAVY = {"jax", "jaxlib", "numpy", "scipy", "equinox", "optax", "matplotlib", "sklearn", "pandas", "PIL", "fsspec"}


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_flowknife_imports_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import flowknife; "
        "new = {m for m in set(sys.modules) - before if m.split('.')[0] not in sys.stdlib_module_names}; "
        "print(*sorted(new))"
    )
    assert fresh(code).split() == ["flowknife", "lazy_loader"]


def test_importtime_of_flowknife_has_no_heavy_module():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import flowknife"], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "flowknife" in imported and not imported & {*HEAVY, "typer", "pydantic", "yaml", "rich"}


def test_a_fit_imports_no_library_that_it_does_not_use():
    # scipy.stats alone would take a third of the time
    used = "import sys, flowknife as fk; fk.density, fk.invert; print(*(m for m in sys.argv[1:] if m in sys.modules))"
    unused = ["scipy.stats", "scipy.optimize", "matplotlib", "sklearn", "pandas", "PIL", "fsspec", "rich", "typer"]
    assert fresh(used.replace("sys.argv[1:]", repr(unused))).split() == []


def test_no_help_imports_a_heavy_module_and_each_shows_examples():
    code = """
import contextlib, io, sys
import typer
from flowknife.cli import app

def walk(command, path):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        app([*path, "--help"], prog_name="flowknife")
    assert "Examples:" in out.getvalue() and "  flowknife " in out.getvalue(), path
    print(" ".join(path) or "-")
    for name, inner in getattr(command, "commands", {}).items():
        walk(inner, [*path, name])

walk(typer.main.get_command(app), [])
print("heavy:", *{m.split(".")[0] for m in sys.modules} & HEAVY)
""".replace("HEAVY", repr(HEAVY))
    *verbs, heavy = fresh(code).splitlines()
    assert heavy == "heavy:"
    expected = {"-", "demo", "fit", "fit density", "fit images", "sample", "score", "report", "info", "check"}
    assert expected <= set(verbs)


def test_python_m_flowknife_runs_the_command_line():
    done = subprocess.run([sys.executable, "-m", "flowknife", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("Usage: flowknife ") and done.stderr == ""


@pytest.mark.parametrize("name", dir(fk))
def test_every_public_name_is_there(name):
    assert getattr(fk, name).__name__.split(".")[-1] == name


def test_the_stub_exports_what_is_public():
    imported = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ImportFrom)]
    names = [(alias.name, alias.asname) for node in imported for alias in node.names]
    assert sorted(name for name, _ in names) == sorted(dir(fk)) == sorted(fk.__all__)
    assert all(name == exported for name, exported in names)  # without it type checkers take the name for private


def test_functions_win_over_modules_of_their_name():
    for name in ("density", "images"):
        importlib.import_module(f"flowknife.apps.{name}")
    assert callable(fk.density) and callable(fk.images) and not callable(fk.data)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        fk.no_such_name  # noqa: B018


OLDER, FAST = "--xla_cpu_use_fusion_emitters=false", "--xla_backend_optimization_level=1"


@pytest.mark.parametrize(
    ("chosen", "accelerator", "then"),
    [
        ("", False, f"{OLDER} {FAST}"),
        ("", True, OLDER),
        ("--xla_a=1", False, f"--xla_a=1 {OLDER} {FAST}"),
        ("--xla_cpu_use_fusion_emitters=true", False, f"--xla_cpu_use_fusion_emitters=true {FAST}"),
        ("--xla_backend_optimization_level=3", False, f"--xla_backend_optimization_level=3 {OLDER}"),
    ],
)
def test_the_compiler_flags_of_the_user_stay(chosen, accelerator, then, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", chosen)
    monkeypatch.setattr(_xla.jaxlib, "__version__", "0.10.2")
    monkeypatch.setattr(_xla, "_has_accelerator", lambda: accelerator)
    for _ in range(2):
        _xla.choose()
        assert os.environ["XLA_FLAGS"] == then


@pytest.mark.parametrize(("version", "then"), [("0.12.0.1", FAST), ("0.13.0", "")])
def test_versions_of_the_compiler_that_may_not_know_a_flag_are_left_alone(version, then, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(_xla.jaxlib, "__version__", version)
    monkeypatch.setattr(_xla, "_has_accelerator", lambda: False)
    _xla.choose()
    assert os.environ["XLA_FLAGS"] == then


def test_the_layers_in_the_guide_are_those_that_are_checked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers, independence = project["tool"]["importlinter"]["contracts"]
    checked = [[name.strip(" ()") for name in layer.split("|")] for layer in layers["layers"]]
    drawing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```text\n")[1].split("```")[0]
    drawn = [[name.strip() for name in line.split("  ")[0].split("|")] for line in drawing.splitlines()]
    assert drawn == checked
    assert "ignore_imports" not in layers
    assert independence["modules"] == [f"flowknife.apps.{name}" for name in sorted(APPLICATIONS)]


def test_validators_are_functions():
    """What pydantic sees of a class as a validator, such as an enum, differs among the versions of Python."""
    used = [
        argument.id
        for path in Path(fk.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("Validator")
        for argument in call.args
        if isinstance(argument, ast.Name)
    ]
    assert used and [name for name in used if name.lstrip("_")[0].isupper()] == []
