"""Training one model on several devices and in several processes.

Every process runs the same program, step by step. Parameters are on all devices, a batch is divided among them along
one axis, and XLA sums the gradients of all devices. Values that differ between processes, such as the time, are taken
from the first process, and only the first process writes files. With a single device all of this is skipped.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flowknife.errors import InputError, TrainingError

BATCH = "batch"
"""The axis along which a batch is divided."""

HEARTBEAT = 30
"""Seconds after which a process that is silent counts as lost."""

_WAIT = 300  # seconds for all processes to come together


# -- joining a cluster ------------------------------------------------------------------------------------------------


def join(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None, **options: Any
) -> None:
    """Connect to the other processes; call it before any JAX computation.

    Args:
        coordinator: HOST:PORT of the first process; default: as the cluster announces it.
        processes: number of processes.
        process_id: index of this process, from 0.
        **options: passed to `jax.distributed.initialize`, such as certificates where the installed JAX supports them.

    Raises:
        InputError: no cluster is found, or the other processes do not connect in time or cannot reach each other.
    """
    _register_batch()
    settings: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT, "initialization_timeout": _WAIT, **options}
    try:
        jax.distributed.initialize(coordinator, processes, process_id, **settings)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"got no cluster to join ({reason}); expected Slurm, Open MPI, Kubernetes, Cloud TPU or a multi-node job "
            "of AWS Batch, or the same HOST:PORT for all; try --coordinator HOST:PORT --processes N --process-id I"
        ) from None
    # Connections between the processes are made by their first sum, for which each waits half a minute at most. Now all
    # are here; later one may still read its data. Sums after the first wait for as long as the others live.
    try:
        from_first(np.zeros(1))
    except (RuntimeError, ValueError) as error:
        if not is_of_runtime(error):
            raise
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(
            f"got processes that cannot reach each other ({reason}); expected open ports between all of them, and host "
            "names that others resolve; try without a firewall between them"
        ) from None


_BATCH_PORT = 12_355
_INDEX, _NODES = "AWS_BATCH_JOB_NODE_INDEX", "AWS_BATCH_JOB_NUM_NODES"
_MAIN, _MAIN_ADDRESS = "AWS_BATCH_JOB_MAIN_NODE_INDEX", "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"


def batch_node(environment: Mapping[str, str] = os.environ) -> tuple[str, int, int] | None:
    """(address of the first process, number of processes, index of this one) in a multi-node job of AWS Batch.

    The main node is the first process. No variable holds its own address, so it asks its host. None outside of AWS
    Batch.

    Examples:
        >>> batch_node({"AWS_BATCH_JOB_NODE_INDEX": "0", "AWS_BATCH_JOB_NUM_NODES": "3",
        ...     "AWS_BATCH_JOB_MAIN_NODE_INDEX": "1", "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.7"})
        ('10.0.0.7', 3, 1)
    """
    if not all(environment.get(name, "").isdigit() for name in (_INDEX, _NODES, _MAIN)):
        return None
    index, nodes, main = (int(environment[name]) for name in (_INDEX, _NODES, _MAIN))
    # the main node comes first, the others keep their order
    process = 0 if index == main else index + (index < main)
    return environment.get(_MAIN_ADDRESS) or _own_address(), nodes, process


def _own_address() -> str:
    """The address of this machine by which others reach it."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # nothing is sent: the system only chooses the interface
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostbyname(socket.gethostname())


def _register_batch() -> None:
    """Register AWS Batch as a cluster that JAX detects, like Slurm and others."""
    from jax._src.clusters import ClusterEnv

    if any(kind.name == "aws_batch" for kind in ClusterEnv._cluster_types):
        return

    class AWSBatch(ClusterEnv):
        name = "aws_batch"

        @classmethod
        def is_env_present(cls):
            return batch_node() is not None

        @classmethod
        def get_coordinator_address(cls, timeout_secs=None, override_coordinator_port=None):
            return f"{(batch_node() or ('', 0, 0))[0]}:{override_coordinator_port or _BATCH_PORT}"

        @classmethod
        def get_process_count(cls):
            return (batch_node() or ("", 0, 0))[1]

        @classmethod
        def get_process_id(cls):
            return (batch_node() or ("", 0, 0))[2]


def many_processes() -> bool:
    """Whether other processes take part."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the first process, which writes the files and whose values the others use."""
    return jax.process_index() == 0


# -- placement of arrays ----------------------------------------------------------------------------------------------


def mesh() -> Mesh | None:
    """All devices of all processes along one axis; None for a single one, or where `jax.default_device` chose one."""
    if not many_processes() and (jax.device_count() == 1 or jax.config.values["jax_default_device"] is not None):
        return None
    return Mesh(np.array(jax.devices()), (BATCH,))


def everywhere(tree: Any, devices: Mesh | None) -> Any:
    """Replicate the arrays of a tree on all devices."""
    if devices is None:
        return tree
    sharding = NamedSharding(devices, PartitionSpec())

    def put(leaf):
        if not eqx.is_array(leaf):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        if leaf.sharding == sharding:
            return leaf
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


def divided(read: Callable[[Any], np.ndarray], shape: Sequence[int], devices: Mesh, axis: int) -> jax.Array:
    """An array divided among the devices along an axis; `read` returns the part at an index, for own devices only."""
    spec = PartitionSpec(*[None] * axis, BATCH)
    return jax.make_array_from_callback(tuple(shape), NamedSharding(devices, spec), read)


def pinned(tree: Any, devices: Mesh | None, *axes: str) -> Any:
    """In a compiled program: constrain arrays to be divided along their first axis (`BATCH`), or replicated."""
    if devices is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(devices, PartitionSpec(*axes)))


def here(tree: Any) -> Any:
    """Replicated arrays as local arrays of this process."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)) if eqx.is_array(leaf) else leaf, tree)


def own_rows(array: jax.Array, place: Any) -> np.ndarray:
    """This process's part of `array[place]`, for an array that is divided along its second axis."""
    if array.is_fully_addressable:
        return np.asarray(array[place])
    parts = {shard.index[1].start or 0: np.asarray(shard.data)[place] for shard in array.addressable_shards}
    return np.concatenate([parts[start] for start in sorted(parts)])


# -- values shared by all processes -----------------------------------------------------------------------------------


def agreed(*numbers: float | int) -> list[float]:
    """The first process's values of these numbers."""
    return [float(number) for number in (from_first(np.asarray(numbers, np.float32)) if many_processes() else numbers)]


def anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if not many_processes():
        return flag
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.any(process_allgather(np.asarray(flag))))


def from_first(tree: Any) -> Any:
    """The first process's arrays of a tree; every process passes arrays of the same shapes."""
    if not many_processes():
        return tree
    from jax.experimental.multihost_utils import broadcast_one_to_all

    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, (np.ndarray, jax.Array))]
    keys = [i for i in places if jnp.issubdtype(leaves[i].dtype, jax.dtypes.prng_key)]
    plain = [np.asarray(jax.random.key_data(leaves[i]) if i in keys else leaves[i]) for i in places]
    for place, value in zip(places, broadcast_one_to_all(plain), strict=True):
        array = np.asarray(value) if isinstance(tree, np.ndarray) else jnp.asarray(np.asarray(value))
        leaves[place] = jax.random.wrap_key_data(jnp.asarray(array)) if place in keys else array
    return jax.tree.unflatten(structure, leaves)


def plain_from_first(value: Any) -> Any:
    """The first process's value of a plain value, as in JSON."""
    if not many_processes():
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8) if is_first() else np.zeros(0, np.uint8)
    (size,) = from_first(np.asarray([len(text)], np.int32))
    return json.loads(from_first(np.resize(text, int(size)) if len(text) else np.zeros(int(size), np.uint8)).tobytes())


def is_of_runtime(error: Exception) -> bool:
    """Whether an error comes from JAX's runtime, as where another process is gone.

    Most are a `JaxRuntimeError`; from JAX 0.12 on a collective reports a `ValueError` that begins with its status.

    Examples:
        >>> is_of_runtime(ValueError("UNKNOWN: Gloo all-reduce failed")), is_of_runtime(ValueError("got rows"))
        (True, False)
    """
    return isinstance(error, jax.errors.JaxRuntimeError) or bool(_STATUS.match(str(error)))


_STATUS = re.compile(
    r"(CANCELLED|UNKNOWN|DEADLINE_EXCEEDED|FAILED_PRECONDITION|ABORTED|INTERNAL|UNAVAILABLE|DATA_LOSS): "
)


def lost(error: Exception) -> TrainingError:
    """The error that reports the loss of another process."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return TrainingError(
        f"lost another process of this fit ({reason[:200]}); its progress is in the checkpoints; try the same "
        "command with --resume, with any number of processes"
    )
