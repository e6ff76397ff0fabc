"""What this machine, its cluster, its store and its tracking server can do, and why not."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from humanize import naturalsize
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from search.check import Check
from search.launch.ray_environment import (
    carried_path,
    check_listens,
    local_remedy,
    own_cpus,
    ray_environment,
    short_folder,
    token_remedy,
    wants_own_token,
)
from search.paths import SweepPaths, nearest_there
from search.redaction import redacted
from search.store.profiles import ProfileStore
from search.tracking.mlflow import absolute_uri, connect, experiment_names, sqlite_file
from spaces.errors import RanksweepError, reason_of

_DISTRIBUTION = "ranksweep"
SMALLEST_DISK = 2 * 2**30

# Run in a process of its own: a Ray that hangs must not hang the doctor, and this process must not
# be left connected to a cluster.
_RAY_SCRIPT = """
import importlib.util, json, socket, sys, ray
from ray._private.services import canonicalize_bootstrap_address
from ray.job_config import JobConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

class OwnPath(JobConfig):
    def _runtime_env_has_working_dir(self):
        return True

def missing(names):
    def is_there(name):
        try:
            return importlib.util.find_spec(name) is not None
        except Exception:  # something else has the name of its package
            return False
    return [name for name in names if not is_there(name)]

address, options, carried, names = sys.argv[1], *map(json.loads, sys.argv[2:])
if address == "auto":
    host, _, port = canonicalize_bootstrap_address(address).rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
job = OwnPath(_py_driver_sys_path=carried)
ray.init(address=address, log_to_driver=False, logging_level="ERROR", job_config=job, **options)
try:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, scheduling_strategy=there, max_retries=0)(missing)
        asked[node["NodeManagerAddress"] + " " + node["NodeID"][:6]] = task.remote(names)
    lacks = {}
    for node, answer in asked.items():
        try:
            lacks[node] = ", ".join(ray.get(answer, timeout=60))
        except Exception as error:
            lacks[node] = str(error).strip().splitlines()[-1]
    total = ray.cluster_resources()
    print("RANKSWEEP", json.dumps({"nodes": len(nodes), "CPU": total.get("CPU", 0),
                                   "GPU": total.get("GPU", 0), "lacks": lacks}))
finally:
    ray.shutdown()
"""
NEEDED = (
    *("search.launch", "trainables.resident", "spaces.methods"),
    *("torch", "deepspeed", "transformers", "peft"),
)
"""What a worker imports, and so every node must have."""


def examine(
    store_uri: str | None = None,
    tracking_uri: str | None = None,
    ray_address: str = "local",
    *,
    root: Path = Path(".ranksweep"),
    ray_timeout: float = 90.0,
) -> list[Check]:
    """Try everything that a sweep needs; nothing that is started outlives the call.

    The URIs default to those under `root`. `ray_address` is `local` (a Ray of one CPU is started on
    loopback and stopped again), `auto` or `host:port`; `ray_timeout` is in seconds.
    """
    paths = SweepPaths(root)
    return [
        check_python(),
        *check_packages(),
        *check_devices(),
        *check_ray(ray_address, ray_timeout),
        *check_store(store_uri or paths.store_uri),
        check_tracking(tracking_uri or paths.tracking_uri),
        check_disk(paths.root),
    ]


def exit_code(checks: Sequence[Check]) -> int:
    """1 when any check is not ok, else 0."""
    return int(any(check.ok is False for check in checks))


def checks_json(checks: Sequence[Check]) -> dict[str, Any]:
    """The checks as JSON can hold them, with the verdict over all of them."""
    return {"ok": exit_code(checks) == 0, "checks": [asdict(check) for check in checks]}


# This machine ---------------------------------------------------------------------------------


def check_python() -> Check:
    """Whether this Python is one that ranksweep is made for."""
    wanted = _requires_python()
    running = platform.python_version()
    return Check.tried(
        "python", running in wanted, f"{running} ({wanted})", f"use a Python {wanted}"
    )


def check_packages() -> list[Check]:
    """Whether each package that ranksweep depends on is there, in a version within its bounds."""
    checks = []
    for requirement in _requirements():
        name = f"package {requirement.name}"
        bounds = str(requirement.specifier) or "any version"
        remedy = f"pip install '{requirement}'"
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            checks.append(Check(name, False, f"not installed ({bounds})", remedy))
            continue
        fits = requirement.specifier.contains(installed, prereleases=True)
        checks.append(Check.tried(name, fits, f"{installed} ({bounds})", remedy))
    return checks


def check_devices() -> list[Check]:
    """The processors that torch can train on, with their memory."""
    memory = psutil.virtual_memory().total
    checks = [Check("cpu", True, f"{own_cpus()} cores, {_size(memory)} of memory")]
    try:
        import torch  # here, for its absence is a finding
    except (ImportError, OSError) as error:
        return [*checks, Check("torch", False, reason_of(error), "install torch again")]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            detail = f"{properties.name}, {_size(properties.total_memory)}"
            checks.append(Check(f"cuda:{index}", True, detail))
    elif Path("/dev/nvidia0").exists():
        checks.append(
            Check(
                "cuda",
                False,
                f"there is an NVIDIA device, but torch {torch.__version__} cannot use it",
                "install a CUDA build of torch that fits the driver",
            )
        )
    else:
        checks.append(Check("cuda", None, "no device; training runs on the CPU"))
    return checks


def check_disk(root: Path) -> Check:
    """Whether there is room for a sweep's files where they are written."""
    place = nearest_there(root)
    free = shutil.disk_usage(place).free
    enough, needed = free >= SMALLEST_DISK, _size(SMALLEST_DISK)
    return Check.tried("disk", enough, f"{_size(free)} free in {place}", f"free at least {needed}")


# What a sweep talks to ------------------------------------------------------------------------


def check_ray(address: str = "local", timeout: float = 90.0) -> list[Check]:
    """Whether a Ray starts here (`local`) or answers at `address`, within `timeout` seconds.

    And whether each of its nodes has the packages that a worker needs.
    """
    name = f"ray {redacted(address)}"
    try:
        if address not in ("local", "auto"):
            check_listens(address)
        options = _local_options() if address == "local" else {}
    except RanksweepError as error:
        return [Check.failed(name, error)]
    process = subprocess.Popen(
        # -P: what lies in the working directory is no package of ours or Ray's
        [sys.executable, "-P", "-c", _RAY_SCRIPT, address]
        + [json.dumps(each) for each in (options, carried_path(), NEEDED)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_ray_variables(address),
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return [Check(name, False, f"no answer in {timeout:g} s", _ray_remedy(address))]
    finally:
        _end_with_children(process)
    for line in output.splitlines():
        if line.startswith("RANKSWEEP "):
            return _ray_found(name, address, json.loads(line.removeprefix("RANKSWEEP ")))
    said = [line.strip() for line in errors.splitlines() if line.strip()]
    token = any("authentication token" in line.lower() for line in said)
    remedy = token_remedy() if token else _ray_remedy(address)
    return [Check(name, False, (said or ["no reason given"])[-1][:300], remedy)]


def _local_options() -> dict[str, Any]:
    options = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    folder = short_folder()
    return options if folder is None else {**options, "_temp_dir": folder}


def _ray_variables(address: str) -> dict[str, str]:
    variables = os.environ | ray_environment(address)
    if address == "local" and wants_own_token(variables):
        # Else Ray writes a token of its own into the home.
        variables["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return variables


def _ray_found(name: str, address: str, found: Mapping[str, Any]) -> list[Check]:
    verb = "starts" if address == "local" else "answers"
    sizes = ", ".join(f"{key} {found[key]:g}" for key in ("nodes", "CPU", "GPU"))
    checks = [Check(name, True, f"{verb} ({sizes})")]
    for node, lacks in found["lacks"].items():
        if lacks:
            remedy = "install the same ranksweep on every node, with all that it depends on"
            checks.append(Check(f"node {node}", False, f"has no {lacks}", remedy))
    return checks


def check_store(uri: str) -> list[Check]:
    """Whether the store can be written, read, listed and removed from, and creates only once."""
    try:
        store = ProfileStore(uri)
    except RanksweepError as error:
        return [Check.failed("store", error)]
    checks = []
    for step in store.objects.probe():
        detail = f"{store.name}{': ' + step.detail if step.detail else ''}"
        remedy = "choose another with --store or RANKSWEEP_STORE"
        checks.append(Check.tried(f"store: {step.name}", step.ok, detail, remedy))
    return checks


def check_tracking(uri: str) -> Check:
    """Whether MLflow answers with its experiments; a local database is not created for that."""
    shown = redacted(uri)
    try:
        file = sqlite_file(absolute_uri(uri))
        if file is not None and not os.path.exists(file):
            above = nearest_there(file.parent)
            writable = above.is_dir() and os.access(above, os.W_OK | os.X_OK)
            detail = f"{shown} is not there yet"
            if not writable:
                why = "is read-only" if above.is_dir() else "is no folder"
                detail += f", and {above} {why}"
            return Check.tried(
                "tracking", writable, detail, "name another database with --tracking"
            )
        found = experiment_names(connect(uri), uri)
    except RanksweepError as error:
        return Check.failed("tracking", error)
    return Check("tracking", True, f"{shown} answers: {len(found)} experiments")


# Inside ---------------------------------------------------------------------------------------


def _requires_python() -> SpecifierSet:
    try:
        text = metadata.metadata(_DISTRIBUTION).json.get("requires_python", "")
    except metadata.PackageNotFoundError:
        text = _project().get("requires-python", "")
    return SpecifierSet(str(text))


def _requirements() -> list[Requirement]:
    """What ranksweep depends on here, extras left out.

    From the installed distribution; from pyproject.toml where the sources run as they stand.
    """
    try:
        lines = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        lines = _project().get("dependencies", [])
    found = [Requirement(line) for line in lines]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def _project() -> dict[str, Any]:
    file = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if not file.is_file():
        return {}
    project: dict[str, Any] = tomllib.loads(file.read_text()).get("project", {})
    return project


def _ray_remedy(address: str) -> str:
    if address == "local":
        return local_remedy(short_folder())
    return "check cluster.address, and that the cluster runs this Python and this Ray"


def _end_with_children(process: subprocess.Popen[str]) -> None:
    """End a process that still runs, with all that it has started."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(timeout=3)
    except subprocess.TimeoutExpired:
        process.kill()
    for each in family:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.communicate()


def _size(count: float) -> str:
    return naturalsize(count, binary=True)
