"""Register the job definitions of this folder, and submit a command to AWS Batch. It needs boto3.

python submit.py register --image 1234.dkr.ecr.eu-west-1.amazonaws.com/flowknife:1 --file-system fs-0abc
python submit.py submit --queue mine -- fit images /data/train --out /data/runs/cats --resume
python submit.py submit --queue mine --nodes 4 -- fit images /data/train --out /data/runs/cats --resume
python submit.py submit --queue mine --shards 100 -- score /data/runs/cats /data/new --out /data/scores.parquet
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import boto3

FOLDER = Path(__file__).parent
SINGLE, MANY = "flowknife", "flowknife-multi-node"


def definition(name: str, image: str, file_system: str | None, vcpus: int, memory: int, gpus: int) -> dict[str, Any]:
    """A job definition of this folder, with an image, a file system and a size."""
    found = json.loads((FOLDER / {SINGLE: "job.json", MANY: "multi-node.json"}[name]).read_text(encoding="utf-8"))
    if name == SINGLE:
        container = found["containerProperties"]
    else:
        container = found["nodeProperties"]["nodeRangeProperties"][0]["container"]
    container["image"] = image
    sizes = {"VCPU": vcpus, "MEMORY": memory, "GPU": gpus}
    container["resourceRequirements"] = [{"type": kind, "value": str(value)} for kind, value in sizes.items() if value]
    if file_system is None:
        del container["volumes"], container["mountPoints"]
    else:
        container["volumes"][0]["efsVolumeConfiguration"]["fileSystemId"] = file_system
    return found


def register(batch: Any, **options: Any) -> list[str]:
    """Register both job definitions; the addresses of their new revisions."""
    found = [definition(name, **options) for name in (SINGLE, MANY)]
    return [batch.register_job_definition(**each)["jobDefinitionArn"] for each in found]


def submit(batch: Any, queue: str, command: list[str], name: str = "flowknife", nodes: int = 1, shards: int = 1) -> str:
    """Submit a command of flowknife: on one machine, on several that train together, or as an array of shards."""
    if nodes > 1 and shards > 1:
        raise SystemExit("got --nodes and --shards; expected one of them: a shard is a job of its own")
    job: dict[str, Any] = {"jobName": name, "jobQueue": queue}
    if nodes > 1:
        overrides = [{"targetNodes": "0:", "containerOverrides": {"command": [*command, "--distributed", "auto"]}}]
        job |= {
            "jobDefinition": MANY,
            "nodeOverrides": {"numNodes": nodes, "nodePropertyOverrides": overrides},
        }
    else:
        command = [*command, "--shard", "auto"] if shards > 1 else command
        job |= {"jobDefinition": SINGLE, "containerOverrides": {"command": command}}
        job |= {"arrayProperties": {"size": shards}} if shards > 1 else {}
    return batch.submit_job(**job)["jobId"]


def main(words: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    new = verbs.add_parser("register", help="register the job definitions")
    new.add_argument("--image", required=True)
    new.add_argument("--file-system", help="of EFS, mounted at /data; without one, data and runs do not outlive a job")
    new.add_argument("--vcpus", type=int, default=4)
    new.add_argument("--memory", type=int, default=15_000, help="MiB")
    new.add_argument("--gpus", type=int, default=0)
    job = verbs.add_parser("submit", help="submit a command")
    job.add_argument("--queue", required=True)
    job.add_argument("--name", default="flowknife")
    job.add_argument("--nodes", type=int, default=1, help="machines that train one model together")
    job.add_argument("--shards", type=int, default=1, help="jobs that share the items of score, sample or simulate")
    job.add_argument("command", nargs="+", help="of flowknife, after --")
    given = vars(parser.parse_args(words))
    verb, batch = given.pop("verb"), boto3.client("batch")
    if verb == "register":
        print("\n".join(register(batch, **given)))
    else:
        print(submit(batch, **given))


if __name__ == "__main__":
    main(sys.argv[1:])
