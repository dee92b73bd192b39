"""One environment per peer, made by uv at the versions of `peers/NAME.txt`, below `.bench`."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
PLACE = ROOT / ".bench"
OWN = "own"
"""The name of the environment that the benchmarks themselves run in."""
INSTALLED = "flowknife"
"""The name of an environment with flowknife as a user installs it, and nothing else."""

_MINUTES = 10  # for one environment


class Unable(Exception):
    """A system cannot do a row; the message says why."""


def names() -> list[str]:
    """The peers."""
    return sorted(path.stem for path in PEERS.glob("*.txt"))


def wanted(name: str) -> list[str]:
    """What `uv pip install` is given for an environment."""
    if name == INSTALLED:
        return ["--constraint", "requirements.lock", "--editable", "."]  # so that changes are seen
    return ["--requirements", str((PEERS / f"{name}.txt").relative_to(ROOT))]


def stamp(name: str) -> str:
    """What an environment is made from: it is made again when that changes."""
    parts = [sys.version, *wanted(name)]
    given = [ROOT / "requirements.lock", ROOT / "pyproject.toml"] if name == INSTALLED else [PEERS / f"{name}.txt"]
    return sha256("\n".join([*parts, *(path.read_text(encoding="utf-8") for path in given)]).encode()).hexdigest()


def python_of(name: str) -> str:
    """The interpreter of an environment, which is made first where there is none.

    Raises:
        Unable: if it cannot be made.
    """
    if name == OWN:
        return sys.executable
    folder = PLACE / name
    python, made = folder / "bin" / "python", folder / ".made"
    if made.exists() and made.read_text() == stamp(name) and python.exists():
        return str(python)
    print(f"  making the environment {name}", flush=True)
    _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
    _uv("pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), *wanted(name))
    made.write_text(stamp(name))
    return str(python)


def _uv(*arguments: str) -> None:
    # torch for the CPU: from the folder of wheels that pip is told of, else from PyTorch's own index
    wheels = os.environ.get("PIP_FIND_LINKS")
    found = {"UV_FIND_LINKS": wheels} if wheels else {"UV_TORCH_BACKEND": "cpu"}
    environment = {**found, **os.environ}
    problem = "no uv"
    for uv in ([sys.executable, "-m", "uv"], ["uv"]):
        try:
            subprocess.run(
                [*uv, *arguments],
                check=True,
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60 * _MINUTES,
            )
            return
        except FileNotFoundError:
            continue
        except subprocess.TimeoutExpired:
            problem = f"uv {arguments[0]} took more than {_MINUTES} minutes"
            break
        except subprocess.CalledProcessError as error:
            if "No module named uv" in error.stderr:
                continue
            problem = " ".join(error.stderr.split())[-300:]
            break
    raise Unable(f"the environment could not be made: {problem}")
