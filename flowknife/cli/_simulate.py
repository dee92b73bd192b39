"""`flowknife simulate`: pairs of parameters and data on disk."""

import importlib
import multiprocessing
import sys
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from flowknife.cli._app import Explained, app, show, verb
from flowknife.cli._shards import ShardText, shard_of
from flowknife.errors import InputError, printable


@verb(
    app,
    "simulate",
    "flowknife simulate kinematics -n 100000 --out sims",
    "flowknife simulate mine.py -n 100000 --workers 8 --out sims",
    "flowknife simulate mine.py:run -n 100000 --dask tcp://scheduler:8786 --out sims",
    "flowknife simulate mine.py -n 1000000 --shard auto --out /shared/sims",
)
def _simulate(
    simulator: Annotated[
        str,
        typer.Argument(
            metavar="SIMULATOR",
            help="The name of a problem, or a Python file with the function simulator (or FILE.py:NAME) and its prior.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder of simulations to write.")],
    n: Annotated[int, typer.Option("-n", min=8, help="Number of simulations.")] = 10_000,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes on this machine; default: this process simulates.")
    ] = None,
    dask: Annotated[str | None, typer.Option(metavar="ADDRESS", help="The scheduler of a Dask cluster.")] = None,
    prior: Annotated[str, typer.Option(metavar="NAME", help="Name of the prior in the file.")] = "prior",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same simulations.")] = 0,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Simulations per file; default a 128th of all, at most 10,000.")
    ] = None,
    shard: ShardText = None,
) -> None:
    """Simulate pairs of parameters and data to disk.

    The same command again resumes an interrupted run, with any number of workers; the simulations are bitwise the same.
    `flowknife fit invert FOLDER` trains with them.
    """
    from flowknife.apps import simulate

    if workers is not None and dask is not None:
        raise InputError("got --workers and --dask; expected one of them; try without --workers")
    part = shard_of(shard)
    function, its_prior = _simulator(simulator, prior)
    with _executor(workers, dask) as executor:
        try:
            made = simulate(function, its_prior, n, out=out, executor=executor, key=seed, chunk=chunk, shard=part)
        except KeyboardInterrupt:
            raise Explained(f"finished simulations are in {out}; the same command resumes") from None
    if made is None:
        typer.echo(f"simulated shard {part}; other shards of {out} are not complete yet")
        return
    found: dict[str, object] = {"rows": f"{made.rows:,}", "failed": f"{made.failed:,}", "sha256": made.sha256}
    if made.failed:
        found["first failure"] = printable(made.reason)
    show(f"simulations: {out}", found)
    typer.secho("next", bold=True)
    typer.echo(f"  flowknife fit invert {out} --out runs/mine")


def _simulator(text: str, prior: str) -> tuple[Any, Any]:
    """A problem by name, or the simulator and the prior of a Python file."""
    from flowknife.problems import PROBLEMS

    if text in PROBLEMS:
        return PROBLEMS[text](), None
    module, path, function = _module_of(text, f"a problem ({', '.join(PROBLEMS)}) or a Python file")
    return _named(module, path, function), _named(module, path, prior)


def simulator_in(text: str) -> Any:
    """The simulator of a Python file, FILE.py or FILE.py:NAME."""
    return _named(*_module_of(text, "a Python file"))


def _module_of(text, expected):
    """The module of a file, its path, and the name of the function."""
    name, _, function = text.partition(":") if not Path(text).exists() else (text, "", "")
    path = Path(name).expanduser()
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"got {text!r}; expected {expected}; try mine.py:simulator")
    # imported by name from its folder, as in workers
    sys.path.insert(0, str(path.resolve().parent))
    try:
        module = importlib.import_module(path.stem)
    except ImportError as error:
        raise InputError(f"got {path}, which cannot be imported ({error}); try python {path}") from None
    if Path(module.__file__ or "").resolve() != path.resolve():
        raise InputError(
            f"got {path}, and another module {path.stem} is imported instead; try another name of the file"
        )
    return module, path, function or "simulator"


def _named(module, path, wanted):
    if not hasattr(module, wanted):
        raise InputError(f"got {path} without {wanted}; expected a function and a prior; try {path}:NAME --prior NAME")
    return getattr(module, wanted)


@contextmanager
def _executor(workers: int | None, dask: str | None) -> Generator[Any, None, None]:
    if dask is not None:
        try:
            from distributed import Client
        except ImportError:
            raise InputError("got --dask, and dask is not installed; try pip install distributed") from None
        try:
            client = Client(dask, timeout=30)
        except OSError as error:
            raise InputError(f"got --dask {dask}, where no scheduler answers ({error})") from None
        with client:
            yield client.get_executor()
    elif workers is None:
        yield None
    else:
        executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
        try:
            yield executor
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
