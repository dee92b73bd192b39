"""Simulations on disk, which may exceed memory and come from many workers or machines."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowknife._progress import note, progress
from flowknife._record import described, package_versions
from flowknife._trees import save_tree
from flowknife._types import Key, as_count, as_key, as_seed
from flowknife.apps.invert._config import InvertConfig
from flowknife.apps.invert._task import task_of
from flowknife.data import fingerprint
from flowknife.data._simulate_to import simulate_to
from flowknife.data.sets import PRIOR, SimulationSet
from flowknife.errors import InputError, StorageError
from flowknife.priors import Prior


def simulate(
    simulator: Any,
    prior: Prior | None = None,
    n: int = 10_000,
    *,
    out: str | os.PathLike[str],
    executor: Any = None,
    key: Key = 0,
    chunk: int | None = None,
    shard: tuple[int, int] | None = None,
    y_names: Any = None,
    show_progress: bool = True,
) -> SimulationSet | None:
    """Simulate pairs of parameters and data, and keep them on disk: `invert(pairs=out)` trains with them.

    The simulations do not depend on the executor, the number of workers, or interruptions. The same call again
    simulates only missing chunks. A random simulator takes a `key`, or uses `np.random` or `random`, which are seeded
    for each chunk.

    Args:
        simulator: a function, or a problem, see `invert`.
        prior: the distribution of the parameters; default that of the problem.
        n: number of simulations.
        out: the folder.
        executor: runs the simulator, any object with `submit` or `map`: a pool of spawned processes, loky,
            `dask.distributed` (`client.get_executor()`), `mpi4py.futures`, executorlib; default this process.
        key: int or JAX key.
        chunk: simulations per file and per task of a worker; default a 128th of all, at most 10,000.
        shard: (i, k), from (1, k) to (k, k): simulate only the i-th of k parts, so that k processes with one folder
            share the work.
        y_names: names of the data; default those of the problem.
        show_progress: show a progress bar.

    Returns:
        the simulations; None while parts of other shards are missing.

    Raises:
        InputError: for a simulator that cannot be used.
        StorageError: the folder holds something else, or a worker was lost.

    Examples:
        >>> import tempfile
        >>> import flowknife as fk
        >>> prior = fk.Uniform(low=[-2, -2], high=[2, 2])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = fk.simulate(lambda x: x**2, prior, 500, out=f"{folder}/sims", show_progress=False)
        ...     made.rows, made.failed, made.y[:3].shape
        (500, 0, (3, 2))
    """
    task = task_of(simulator, prior, None, InvertConfig(), None, y_names)
    assert task.simulator is not None
    n = as_count(n, "simulation")
    if chunk is not None:
        chunk = as_count(chunk, "simulation of a chunk")
    if key is None:
        raise InputError("got key=None; expected a seed, so that the call can be resumed; try key=0")
    part, parts = (1, 1) if shard is None else shard
    if not 1 <= part <= parts:
        raise InputError(f"got shard=({part}, {parts}); expected from (1, {parts}) to ({parts}, {parts})")
    made_by = {name: version for name, version in package_versions().items() if name in ("flowknife", "jax", "numpy")}
    about = {
        "simulator": task.name or described(simulator),
        "problem": task.name,
        "prior": fingerprint(np.asarray(task.prior.sample(64, key=0), np.float64)),
        "names": list(task.prior.names),
        "y_names": list(task.y_names),
        "seed": as_seed(key),
        "versions": made_by,
    }
    with progress("simulating", show_progress) as report:
        made = simulate_to(
            out,
            task.simulator,
            partial(_drawn, task.prior),
            n,
            about=about,
            key=as_key(key),
            executor=executor,
            chunk=chunk,
            shard=(part - 1, parts),
            on_progress=lambda done, total: report(done / total, f"{done:,} of {total:,}"),
        )
    if not (place := Path(out) / PRIOR).exists():
        try:
            save_tree(place, task.prior)
        except StorageError as error:  # such as a user-defined bijection
            note(f"the prior is not kept with the simulations: {error}", show_progress)
    return made


def _drawn(prior, count, key) -> np.ndarray:
    return np.asarray(prior.sample(count, key=key), np.float64)
