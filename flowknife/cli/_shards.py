"""Shards: the number of one of several processes that share a task, given or from the variables of a cluster."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import typer

from flowknife.errors import InputError

ShardText = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="The I-th of N parts, from 1/N to N/N. auto, or auto/N: from the variables of an array job of AWS Batch "
        "or Slurm, or of an indexed job of Kubernetes.",
    ),
]


class Shard(NamedTuple):
    """The `part`-th of `parts`, counted from 1."""

    part: int
    parts: int

    def __str__(self) -> str:
        return f"{self.part} of {self.parts}"


_INDEX = {  # variables of an array job: its index, the first index, the number of jobs
    "AWS_BATCH_JOB_ARRAY_INDEX": ("", "AWS_BATCH_JOB_ARRAY_SIZE"),
    "SLURM_ARRAY_TASK_ID": ("SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"),
    "JOB_COMPLETION_INDEX": ("", ""),
}


def shard_of(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard | None:
    """Parse a shard.

    Raises:
        InputError: the text is not a shard, or there is no array job.

    Examples:
        >>> shard_of("2/4", {}), shard_of("auto/4", {"JOB_COMPLETION_INDEX": "0"})
        (Shard(part=2, parts=4), Shard(part=1, parts=4))
    """
    if text is None:
        return None
    found = re.fullmatch(r"(?:(\d{1,9})|auto)(?:/(\d{1,9}))?", text.strip())
    if found is None or (found[1] and not found[2]):
        raise InputError(f"got --shard {text}; expected I/N; try 1/4, or auto in an array job")
    if found[1]:
        part, parts = int(found[1]), int(found[2])
    else:
        name = next((name for name in _INDEX if environment.get(name, "").isdigit()), None)
        if name is None:
            raise InputError(f"got --shard {text} outside of an array job ({', '.join(_INDEX)}); try --shard 1/4")
        first, count = _INDEX[name]
        part = int(environment[name]) - int(environment.get(first, "0")) + 1
        parts = int(found[2] or environment.get(count, "0"))
        if not parts:
            raise InputError(f"got --shard {text}, and {name} without the number of parts; try --shard auto/4")
    if not 1 <= part <= parts:
        raise InputError(f"got --shard {part}/{parts}; expected from 1/{parts} to {parts}/{parts}")
    return Shard(part, parts)
