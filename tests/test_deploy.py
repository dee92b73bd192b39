"""The files of deploy/: they parse, their commands are those of the command line, and AWS Batch (moto's) takes them."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from command import call

from flowknife._cluster import batch_node

DEPLOY = Path(__file__).parents[1] / "deploy"
pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="deploy/ is not part of this package")


@pytest.fixture(scope="module")
def options():
    """The options that each verb has."""
    verbs = {"score": ["score"], "sample": ["sample"], "simulate": ["simulate"], "fit": ["fit", "images"]}
    return {verb: set(re.findall(r"--[a-z-]+", call(*words, "--help").stdout)) for verb, words in verbs.items()}


def objects(name):
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


def test_kubernetes_jobs_are_indexed_and_their_commands_exist(options):
    service, policy, job = objects("fit.yaml")
    (shards,) = objects("shards.yaml")
    for found in (job, shards):
        spec, pod = found["spec"], found["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert (found["apiVersion"], found["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
        assert pod["securityContext"]["runAsNonRoot"] and pod["restartPolicy"] == "Never"
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
        used = {word.partition("=")[0] for word in container["args"] if word.startswith("--")}
        assert used <= options[container["args"][0]]
    # all processes come, they find the first one by its name, and nobody else reaches its port
    args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    name, labels = job["metadata"]["name"], job["spec"]["template"]["metadata"]["labels"]
    assert f"--coordinator={name}-0.{service['metadata']['name']}:12355" in args
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == labels
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    assert (
        job["spec"]["completions"] == job["spec"]["parallelism"] and f"--processes={job['spec']['completions']}" in args
    )
    assert (
        f"--shard=auto/{shards['spec']['completions']}" in shards["spec"]["template"]["spec"]["containers"][0]["args"]
    )


def test_slurm_scripts_are_shell_and_call_the_command_line(options, tmp_path):
    flowknife = tmp_path / "flowknife"
    flowknife.write_text('#!/bin/sh\necho "$@"\n')
    flowknife.chmod(0o755)
    (tmp_path / "srun").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "7"}
    environment |= {"SLURM_ARRAY_TASK_MAX": "10"}
    words = {}
    for name, arguments in {
        "fit.sbatch": "images data --out run",
        "shards.sbatch": "score run new --out s.csv",
    }.items():
        command = ["bash", DEPLOY / "slurm" / name, *arguments.split()]
        words[name] = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
    assert words["fit.sbatch"] == ["fit", "images", "data", "--out", "run", "--resume", "--distributed", "auto"]
    assert words["shards.sbatch"] == ["score", "run", "new", "--out", "s.csv", "--shard", "7/10"]
    assert {"--resume", "--distributed"} <= options["fit"] and "--shard" in options["score"]


def test_the_image_is_slim_and_not_root():
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    known = {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "LABEL", "USER", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in lines} <= known
    stages = [value for word, value in lines if word == "FROM"]
    assert len(stages) == 2 and all("slim" in stage for stage in stages)
    assert [value for word, value in lines if word == "USER"] == ["flowknife"]
    assert json.loads(dict(lines)["ENTRYPOINT"]) == ["flowknife"]
    # what it copies exists, and is not ignored
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for value in (value for word, value in lines if word == "COPY" and not value.startswith("--from")):
        for source in shlex.split(value)[:-1]:
            assert (DEPLOY.parent / source).exists() and f"!{source}" in kept


@pytest.fixture
def submit(monkeypatch):
    """deploy/aws-batch/submit.py as a module."""
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    spec = importlib.util.spec_from_file_location("submit", DEPLOY / "aws-batch" / "submit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_definitions_are_filled_in(submit):
    size = {"vcpus": 8, "memory": 30_000, "gpus": 1}
    single, many = (
        submit.definition(name, image="mine:1", file_system="fs-1", **size) for name in ("flowknife", submit.MANY)
    )
    container = many["nodeProperties"]["nodeRangeProperties"][0]["container"]
    for found in (single["containerProperties"], container):
        assert found["image"] == "mine:1" and found["user"] == "10001"
        assert {"type": "GPU", "value": "1"} in found["resourceRequirements"]
        assert found["volumes"][0]["efsVolumeConfiguration"]["fileSystemId"] == "fs-1"
    assert (
        "volumes"
        not in submit.definition(submit.SINGLE, image="mine:1", file_system=None, **size)["containerProperties"]
    )


def test_aws_batch_takes_them(submit, capsys):
    moto = pytest.importorskip("moto")
    boto3 = pytest.importorskip("boto3")
    with moto.mock_aws():
        batch = boto3.client("batch")
        submit.main(["register", "--image", "mine:1", "--file-system", "fs-1"])
        names = {found["jobDefinitionName"] for found in batch.describe_job_definitions()["jobDefinitions"]}
        assert names == {"flowknife", "flowknife-multi-node"}
        requests = []
        batch.meta.events.register("provide-client-params.batch.SubmitJob", lambda params, **_: requests.append(params))
        assert capsys.readouterr().out.count("job-definition/flowknife") == 2
        command = ["fit", "images", "/data/train", "--out", "/data/runs/cats"]
        for options in ({}, {"nodes": 3}, {"shards": 5}):
            with pytest.raises(Exception, match=r"(?i)queue|not|exist"):  # there is no queue: what is asked is checked
                submit.submit(batch, "mine", command, **options)
        one, many, array = requests
        assert one["containerOverrides"]["command"] == command
        override = many["nodeOverrides"]["nodePropertyOverrides"][0]["containerOverrides"]
        assert many["nodeOverrides"]["numNodes"] == 3 and override["command"] == [*command, "--distributed", "auto"]
        assert array["arrayProperties"] == {"size": 5}
        assert array["containerOverrides"]["command"] == [*command, "--shard", "auto"]


def test_nodes_of_aws_batch_know_who_is_first():
    def node(index, main, address="10.0.0.7"):
        found = {"AWS_BATCH_JOB_NODE_INDEX": str(index), "AWS_BATCH_JOB_NUM_NODES": "3"}
        found["AWS_BATCH_JOB_MAIN_NODE_INDEX"] = str(main)
        return found if index == main else found | {"AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": address}

    for main in range(3):
        found = [batch_node(node(index, main)) for index in range(3)]
        assert sorted(process for _, _, process in found) == [0, 1, 2] and found[main][2] == 0
        assert {count for _, count, _ in found} == {3}
        assert {address for i, (address, _, _) in enumerate(found) if i != main} == {"10.0.0.7"}
        assert found[main][0].count(".") == 3  # its own, which no variable has
    assert batch_node({}) is None
    assert batch_node({"AWS_BATCH_JOB_ARRAY_INDEX": "3"}) is None
