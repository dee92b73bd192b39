"""Whether wheel and sdist install into an empty environment and work from another folder: `make smoke`.

Builds both, and for each of the interpreters that are here (Python 3.11 and newer, the newest release of each) makes an
environment with nothing else in it, installs the wheel or the sdist, and runs a first use of every kind outside of the
sources. Prints one line for each; the exit status is 1 where one failed.

    python tests/smoke.py [PYTHON ...] [--lock requirements.lock]
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import importlib.resources, sys
import numpy as np
import flowknife as fk

assert "site-packages" in fk.__file__, fk.__file__
assert importlib.resources.files("flowknife").joinpath("py.typed").is_file()
x = np.random.default_rng(0).normal(size=(300, 2))
flow = fk.density(x, layers=1, train={"steps": 5}, show_progress=False)
flow.save("run")
assert set(flow.figures()) == {"history", "samples"}
assert fk.load("run").log_prob(x).shape == (300,)
open("x.parquet", "wb").write(b"PAR1PAR1")
for missing in (lambda: flow.export("out"), lambda: fk.FlowDensity(), lambda: fk.density(x, track="tensorboard:logs"),
                lambda: fk.density(x, track="mlflow:file:m"), lambda: flow.numpyro(),
                lambda: fk.images("s3://bucket/images"), lambda: fk.density("x.parquet")):
    try:
        missing()
    except fk.errors.InputError as error:
        assert 'pip install' in str(error), error
    else:
        raise SystemExit("an extra that is not installed was not missed")
print("python:", sys.version.split()[0], end="; ")
"""

COMMANDS = (
    ["--version"],
    ["fit", "density", "x.csv", "--out", "shell", "--set", "train.steps=5", "-s", "layers=1", "-q"],
    ["score", "shell", "x.csv", "--out", "scores.csv"],
    ["fit", "--from", "shell", "--out", "again", "-q"],
    ["config", "schema", "density", "--out", "schema.json"],
)


def interpreters() -> list[str]:
    """The newest release of each Python from 3.11 on that is on the path or among those of pyenv."""
    places = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    found = [
        path for place in places for path in place.glob("python3.[0-9]*") if path.name[7:].replace(".", "").isdigit()
    ]
    found += Path("~/.pyenv/versions").expanduser().glob("*/bin/python")
    newest: dict[tuple[int, ...], tuple[tuple[int, ...], str]] = {}
    for path in found:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        version = tuple(map(int, re.findall(r"\d+", done.stdout)[:3]))
        if done.returncode == 0 and version >= (3, 11) and version > newest.get(version[:2], ((), ""))[0]:
            newest[version[:2]] = version, str(path)
    return [path for _, (_, path) in sorted(newest.items())]


def run(*words: str | Path, cwd: Path, quiet: bool = True) -> str:
    """What a command prints; its error output where it fails."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))[:120]}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def smoke(python: str, package: Path, lock: Path | None) -> str:
    """Install a package into an empty environment of this interpreter, and use it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", python, folder / "env", cwd=folder)
        own = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
        pinned = ["--constraint", lock] if lock else []
        run(
            *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", own / "python", *pinned, package),
            cwd=folder,
        )
        work = folder / "elsewhere"
        work.mkdir()
        said = run(own / "python", "-c", PROGRAM, cwd=work)
        rows = "\n".join(f"{i % 17},{i % 5}" for i in range(200))
        (work / "x.csv").write_text(f"a,b\n{rows}\n", encoding="utf-8")
        for words in COMMANDS:
            run(own / "flowknife", *words, cwd=work)
        return said


def main() -> None:
    """Build, then try every interpreter with the wheel and with the sdist."""
    parser = argparse.ArgumentParser(description="Install flowknife into empty environments and use it.")
    parser.add_argument("python", nargs="*", help="interpreters; default those that are here")
    parser.add_argument("--lock", type=Path, help="versions to install")
    asked = parser.parse_args()
    lock = asked.lock.resolve() if asked.lock else None
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        run(sys.executable, "-m", "uv", "build", "--quiet", "--out-dir", place, ROOT, cwd=Path(place))
        packages = sorted(path for path in Path(place).iterdir() if path.name.endswith((".whl", ".tar.gz")))
        for python in asked.python or interpreters():
            for package in packages:
                try:
                    print(f"{smoke(shutil.which(python) or python, package, lock)} {package.name}: works", flush=True)
                except RuntimeError as error:
                    failed += 1
                    print(f"{python} {package.name}: FAILED {error}", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
