"""The clusters of the repository are what their tools take: Ray, Kubernetes, Slurm, Docker."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from packaging.requirements import Requirement

from search.config.reading import apply_overrides
from search.config.sweep import ClusterSettings
from tests.test_docs import parse_command

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "clusters"
ON_MACHINES = [ROOT / "cluster.yaml", EXAMPLES / "gcp.yaml", EXAMPLES / "on-premise.yaml"]
SCHEMAS = json.loads((ROOT / "tests/search/schedules/kubernetes_schemas.json").read_text())
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = {each.name: each for each in map(Requirement, PROJECT["dependencies"])}

machines = pytest.mark.parametrize("file", ON_MACHINES, ids=lambda file: file.stem)


def loaded(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text())
    return found


def requirements(commands: list[str]) -> list[Requirement]:
    """What the `pip install` lines among some commands name, paths of the checkout apart."""
    words = [word for line in commands if "pip install" in line for word in shlex.split(line)]
    named = [word for word in words if re.match(r"[a-z][\w-]*[<>=]", word)]
    return [Requirement(word) for word in named]


def agrees(asked: Requirement) -> bool:
    """Whether it is what the project itself asks for."""
    return asked.name not in REQUIRED or asked.specifier == REQUIRED[asked.name].specifier


def needed_by_pip() -> set[str]:
    """The files and folders that the project is built of."""
    settings = ("setup.py", "setup.cfg", "MANIFEST.in")
    there = {name for name in settings if (ROOT / name).exists()}
    floors = {"search", "trainables", "spaces", "ranksweep"}
    return {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], *floors, *there}


# -- machines --------------------------------------------------------------------------------------


@machines
def test_ray_accepts_the_cluster(file: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(loaded(file))
    validate_config(prepared)
    commands = prepared["head_setup_commands"] + prepared["worker_setup_commands"]
    assert not [each for each in commands if "ray-wheels" in each]  # Ray's default, of no version


@machines
def test_it_runs_the_ray_of_the_project(file: Path) -> None:
    docker = loaded(file)["docker"]
    for image in (docker["head_image"], docker["worker_image"]):
        version = image.partition(":")[2].split("-")[0]
        assert REQUIRED["ray"].specifier.contains(version), image


@machines
def test_it_copies_what_pip_needs_and_installs_it(file: Path) -> None:
    cluster = loaded(file)
    mounts = cluster["file_mounts"]
    assert set(mounts.values()) == needed_by_pip()
    for there, here in mounts.items():
        assert there == f"/home/ray/ranksweep/{here}"
    for commands, named in (
        (cluster["head_setup_commands"], "/home/ray/ranksweep[cluster]"),
        (cluster["worker_setup_commands"], "/home/ray/ranksweep"),
    ):
        words = [word for line in commands for word in shlex.split(line)]
        assert named in words
        assert all(map(agrees, requirements(commands)))


@machines
def test_the_head_gets_the_cpu_build_of_torch_before_anything_asks_for_another(file: Path) -> None:
    cluster = loaded(file)
    (torch,) = [i for i, c in enumerate(cluster["head_setup_commands"]) if "torch>=" in c]
    assert (
        "--index-url https://download.pytorch.org/whl/cpu" in cluster["head_setup_commands"][torch]
    )
    assert not [c for c in cluster["head_setup_commands"][:torch] if "/home/ray/ranksweep" in c]
    assert not [c for c in cluster["worker_setup_commands"] if "whl/cpu" in c]


@machines
def test_the_dashboard_is_on_loopback_and_the_store_known_to_all(file: Path) -> None:
    cluster = loaded(file)
    (start,) = [c for c in cluster["head_start_ray_commands"] if "ray start --head" in c]
    assert "--dashboard-host=127.0.0.1" in start.split()
    given = dict(
        shlex.split(option)[1].split("=", 1)
        for option in cluster["docker"]["run_options"]
        if option.startswith("--env ")
    )
    assert {"RANKSWEEP_STORE", "MLFLOW_TRACKING_URI"} <= given.keys()
    assert not [name for name in given if re.search("SECRET|PASSWORD|TOKEN|KEY", name)]


def test_gpu_nodes_of_a_cloud_have_a_role_of_their_own() -> None:
    aws, gcp = (
        loaded(file)["available_node_types"]["gpu"]["node_config"] for file in ON_MACHINES[:2]
    )
    assert aws["IamInstanceProfile"]["Name"]
    assert gcp["serviceAccounts"][0]["email"]


def test_the_driver_that_torch_asks_for_is_named_everywhere() -> None:
    files = [*ON_MACHINES, EXAMPLES / "slurm.sh", EXAMPLES / "raycluster.yaml", ROOT / "Dockerfile"]
    for file in (*files, ROOT / "docs" / "cluster.md"):
        text = " ".join(file.read_text().replace("#", " ").split())
        assert "580 or newer" in text, file
    # It is that of one minor version of torch: look again when this changes.
    assert str(REQUIRED["torch"].specifier) == "<2.14,>=2.13"


# -- Kubernetes ------------------------------------------------------------------------------------


def documents(name: str) -> dict[str, dict[str, Any]]:
    """The documents of an example by their kind."""
    found = yaml.safe_load_all((EXAMPLES / name).read_text())
    return {each["kind"]: each for each in found}


def cluster_of(name: str) -> dict[str, Any]:
    """The Ray cluster of an example; held against KubeRay's schema, as far as the suite has it."""
    given = documents(name)
    spec = SCHEMAS["RayJob"]["properties"]["spec"]["properties"]["rayClusterSpec"]
    if "RayJob" in given:
        jsonschema.validate(given["RayJob"], SCHEMAS["RayJob"])
        cluster: dict[str, Any] = given["RayJob"]["spec"]["rayClusterSpec"]
    else:
        cluster = given["RayCluster"]["spec"]
        assert given["RayCluster"]["apiVersion"] == "ray.io/v1"
    jsonschema.validate(cluster, spec)
    return cluster


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """The specs of the pods: the head's, then those of the workers."""
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_takes_the_cluster_and_what_is_kept_lies_on_a_volume(name: str) -> None:
    cluster = cluster_of(name)
    assert REQUIRED["ray"].specifier.contains(cluster["rayVersion"])
    head, *workers = pods(cluster)
    shared = documents("raycluster.yaml")
    for pod in (head, *workers):
        assert pod["serviceAccountName"] == shared["ServiceAccount"]["metadata"]["name"]
        (container,) = pod["containers"]
        mounted = {each["name"] for each in container["volumeMounts"]}
        assert mounted == {each["name"] for each in pod["volumes"]}
        assert container["envFrom"]
    (container,) = head["containers"]
    places = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    claims = {
        each["name"]: each["persistentVolumeClaim"]["claimName"]
        for each in head["volumes"]
        if "persistentVolumeClaim" in each
    }
    claim = shared["PersistentVolumeClaim"]
    assert claims[places[container["workingDir"]]] == claim["metadata"]["name"]
    assert claim["spec"]["resources"]["requests"]["storage"]
    assert all("nvidia.com/gpu" in w["containers"][0]["resources"]["limits"] for w in workers)


def test_the_job_launches_what_its_cluster_holds() -> None:
    job = documents("rayjob.yaml")["RayJob"]["spec"]
    (worker,) = job["rayClusterSpec"]["workerGroupSpecs"]
    words = shlex.split(job["entrypoint"])
    assert words[:3] == ["env", "--chdir=/work", "ranksweep"]
    parse_command(shlex.join(words[2:]))
    asked = cluster_asked_for(words)
    assert asked.groups == worker["replicas"]
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert asked.resources_per_worker["CPU"] <= int(limits["cpu"])
    assert asked.resources_per_worker["GPU"] == int(limits["nvidia.com/gpu"])


def cluster_asked_for(words: list[str]) -> ClusterSettings:
    """The section `cluster` that the --set options of a command make."""
    overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    return ClusterSettings.model_validate(apply_overrides({}, overrides)["cluster"])


# -- Slurm -----------------------------------------------------------------------------------------

STUBS = {
    "scontrol": "#!/bin/sh\nprintf 'node1\\nnode2\\n'\n",
    # As Slurm's and Ray's: what is theirs is passed over, and the command run.
    "srun": '#!/bin/sh\nwhile [ "$1" != ray ]; do shift; done\nexec "$@"\n',
    "ray": """#!/bin/sh
echo "$*" > "$OUT/ray"
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
""",
    "ranksweep": """#!PYTHON
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
out = pathlib.Path(os.environ["OUT"])
(out / "new").write_text(json.dumps(sys.argv))
(out / "new").rename(out / "launch")
if "--resume" not in sys.argv:
    time.sleep(30)
""",
}


def slurm_job(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The script as Slurm starts it on the first of two nodes with four GPUs."""
    (folder / "bin").mkdir()
    for name, text in STUBS.items():
        (folder / "bin" / name).write_text(text.replace("PYTHON", sys.executable))
        (folder / "bin" / name).chmod(0o755)
    environment = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "OUT": str(folder),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_CPUS_PER_TASK": "32",
    }
    return subprocess.Popen(
        ["bash", str(EXAMPLES / "slurm.sh"), *arguments],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_slurm_job_launches_a_group_a_gpu(tmp_path: Path) -> None:
    assert slurm_job(tmp_path, "sweep.yaml", "--resume").wait(20) == 0
    words = json.loads((tmp_path / "launch").read_text())
    command = ["ranksweep", *words[1:]]
    assert command[:2] == ["ranksweep", "launch"]
    assert command[-2:] == ["sweep.yaml", "--resume"], "what a user sets comes last, and holds"
    parse_command(shlex.join(command))
    asked = cluster_asked_for(command)
    assert (asked.address, asked.groups) == ("auto", 8)
    assert asked.resources_per_worker == {"CPU": 7, "GPU": 1}
    started = (tmp_path / "ray").read_text()
    assert "symmetric-run --address node1:6379 --min-nodes 2" in started


def test_ray_knows_how_a_slurm_job_starts_it(tmp_path: Path) -> None:
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    slurm_job(tmp_path, "sweep.yaml", "--resume").wait(20)
    own, _, _ = (tmp_path / "ray").read_text().partition(" -- ")
    left = curate_and_validate_ray_start_args(own.split()[1:])
    assert left == ["--num-cpus", "32", "--num-gpus", "4"]


def test_a_slurm_job_passes_on_that_its_time_is_up(tmp_path: Path) -> None:
    job = slurm_job(tmp_path, "sweep.yaml")
    give_up = time.monotonic() + 20
    while not (tmp_path / "launch").exists():
        assert time.monotonic() < give_up
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 130


def test_a_slurm_job_without_a_sweep_says_how_it_is_used(tmp_path: Path) -> None:
    job = slurm_job(tmp_path)
    _, said = job.communicate(timeout=20)
    assert (job.returncode, said.splitlines()[0][:13]) == (2, "usage: sbatch")


# -- Docker ----------------------------------------------------------------------------------------


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments, lines put together."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_the_images_are_those_of_the_cluster_with_the_project_inside() -> None:
    instructions = dockerfile()
    (ray,) = [value for name, value in instructions if name == "ARG"]
    version = ray.removeprefix("RAY=")
    stages = {
        value.split(" AS ")[1]: value.split(" AS ")[0].replace("${RAY}", version)
        for name, value in instructions
        if name == "FROM"
    }
    docker = loaded(ROOT / "cluster.yaml")["docker"]
    assert stages == {"head": docker["head_image"], "worker": docker["worker_image"]}
    runs = [value for name, value in instructions if name == "RUN"]
    assert all(map(agrees, requirements(runs)))
    assert len([line for line in runs if "/home/ray/ranksweep" in line]) == 2
    assert "whl/cpu" in runs[0]  # the head's, before the project asks for torch
    assert {name for name, _ in instructions} == {"ARG", "FROM", "RUN", "COPY"}


def test_an_image_is_made_of_what_pip_needs_alone() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    let_in = {line.removeprefix("!") for line in patterns if line.startswith("!")}
    assert let_in == needed_by_pip()
    assert any(fnmatch.fnmatch("search/__pycache__", line) for line in patterns[1:])
