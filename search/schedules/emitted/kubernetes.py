"""A schedule on Kubernetes: a CronJob that looks once, or a RayJob on a cluster of its own."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

import yaml

from search.schedules.emitted.to_emit import Pod, ToEmit, cron_lines
from search.schedules.settings import OF_A_SUBMISSION
from spaces.errors import UsageError

FILES_AT = "/etc/ranksweep"
WORK_AT = "/work"
CACHE_AT = f"{WORK_AT}/cache"
LONGEST_NAME = 45
"""Characters of a name: Kubernetes adds up to 11 to a CronJob's 52, and several lines a number."""
_LARGEST_CONFIG = 1_000_000
_PASSWORD = re.compile(r"\w://[^\s/'\"@]+:[^\s/'\"@]+@")

Document = dict[str, Any]


def cron_jobs(schedule: ToEmit, pod: Pod) -> str:
    """YAML of a ConfigMap with the schedule's files, and of one CronJob for each of its times.

    A look that takes longer than the pause is not joined by another (`Forbid`); the claims in the
    store keep several CronJobs, and whatever else runs the schedule, from doing anything twice.
    Raises UsageError where a file may not or cannot travel.
    """
    name = _name(schedule.name)
    files = _Files(schedule)
    documents = [files.config_map(name, pod)]
    lines = cron_lines(schedule)
    for number, line in enumerate(lines, 1):
        called = name if len(lines) == 1 else f"{name}-{number}"
        zone = {} if schedule.timezone is None else {"timeZone": schedule.timezone}
        documents.append(
            {
                "apiVersion": "batch/v1",
                "kind": "CronJob",
                "metadata": _metadata(called, name, pod),
                "spec": {
                    "schedule": line,
                    **zone,
                    "concurrencyPolicy": "Forbid",
                    "startingDeadlineSeconds": 600,
                    "successfulJobsHistoryLimit": 3,
                    "failedJobsHistoryLimit": 3,
                    "jobTemplate": {
                        "spec": {
                            "backoffLimit": 0,  # the schedule has tries of its own
                            "template": {"spec": _pod_of_look(schedule, files, name, pod)},
                        }
                    },
                },
            }
        )
    return _yaml(documents)


def ray_job(schedule: ToEmit, pod: Pod) -> str:
    """YAML of a ConfigMap with the schedule's files, and of a RayJob of KubeRay: one look, whose
    sweeps run on a Ray cluster that is started for it and removed after it.

    The schedule's copy runs its sweeps on that cluster, in place of the address that it submits to.
    Raises UsageError as `cron_jobs` does.
    """
    if pod.workers and pod.claim is None:
        raise UsageError(
            "--workers: pods beside the head do not see the models that are brought to it; name a "
            "volume that all of them can mount with --claim, or leave --workers out"
        )
    name = _name(schedule.name)
    files = _Files(schedule, on_cluster=True)
    command = ["env", f"--chdir={WORK_AT}", *_once(files)]
    head = _pod_spec(schedule, files, name, pod, "ray-head", limited=not pod.workers)
    worker = _pod_spec(schedule, files, name, pod, "ray-worker", limited=True)
    workers: Document = {
        "groupName": "workers",
        "replicas": pod.workers,
        "minReplicas": pod.workers,
        "maxReplicas": pod.workers,
        "rayStartParams": {},
        "template": {"spec": worker},
    }
    job: Document = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(name, name, pod),
        "spec": {
            "entrypoint": shlex.join(command),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "backoffLimit": 0,
            "submissionMode": "K8sJobMode",
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "headGroupSpec": {"rayStartParams": {}, "template": {"spec": head}},
                **({"workerGroupSpecs": [workers]} if pod.workers else {}),
            },
        },
    }
    return _yaml([files.config_map(name, pod), job])


class _Files:
    """The files of a schedule in a ConfigMap, where they stand to each other as they do here."""

    def __init__(self, schedule: ToEmit, *, on_cluster: bool = False) -> None:
        _refuse_local_places(schedule)
        paths = [path.absolute() for path in (schedule.file, schedule.sweep, *schedule.files)]
        root = Path(os.path.commonpath([path.parent for path in paths]))
        self.schedule = f"{FILES_AT}/{_within(paths[0], root)}"
        self._texts: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        for path in dict.fromkeys(paths):
            inside = _within(path, root)
            key = re.sub(r"[^A-Za-z0-9._-]+", ".", inside)
            if key in self._texts:
                key = f"{hashlib.sha256(inside.encode()).hexdigest()[:8]}.{key}"
            self._texts[key], self._paths[key] = _text(path), inside
        own = next(iter(self._texts))
        _refuse_webhooks(schedule.raw, schedule.file)
        if on_cluster:
            self._texts[own] = _on_its_cluster(schedule.raw)
        size = sum(map(len, map(str.encode, self._texts.values())))
        if size > _LARGEST_CONFIG:
            raise UsageError(
                f"{schedule.file}: its files are {size:,} bytes together, and a ConfigMap takes "
                f"{_LARGEST_CONFIG:,}; leave data to the hub, a bucket or the image"
            )

    def config_map(self, name: str, pod: Pod) -> Document:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": _metadata(name, name, pod),
            "data": self._texts,
        }

    def volume(self, name: str) -> Document:
        items = [{"key": key, "path": path} for key, path in self._paths.items()]
        return {"configMap": {"name": name, "items": items}}


def _pod_of_look(schedule: ToEmit, files: _Files, name: str, pod: Pod) -> Document:
    spec = _pod_spec(schedule, files, name, pod, "ranksweep", limited=True)
    spec["containers"][0]["command"] = _once(files)
    # A sweep that is stopped closes its trials and tells MLflow.
    return {"restartPolicy": "Never", "terminationGracePeriodSeconds": 300, **spec}


def _once(files: _Files) -> list[str]:
    return ["ranksweep", "schedule", "once", files.schedule]


def _pod_spec(
    schedule: ToEmit, files: _Files, name: str, pod: Pod, container: str, *, limited: bool
) -> Document:
    secret = pod.secret or f"{name}-secrets"
    named = [
        {"name": each, "valueFrom": {"secretKeyRef": {"name": secret, "key": each}}}
        for each in schedule.variables
    ]
    inside: Document = {
        "name": container,
        "image": pod.image,
        "workingDir": WORK_AT,
        "env": [{"name": "RANKSWEEP_CACHE", "value": CACHE_AT}, *named],
        "envFrom": [{"secretRef": {"name": secret, "optional": not named}}],
    }
    if limited and pod.limits:
        inside["resources"] = {"limits": dict(pod.limits)}
    volumes: dict[str, tuple[str, Document]] = {
        "files": (FILES_AT, files.volume(name)),
        "work": (WORK_AT, {"emptyDir": {}}),
        "memory": ("/dev/shm", {"emptyDir": {"medium": "Memory"}}),  # Ray wants more than 64 MB
    }
    if pod.claim is not None:
        volumes["cache"] = (CACHE_AT, {"persistentVolumeClaim": {"claimName": pod.claim}})
    inside["volumeMounts"] = [
        {"name": volume, "mountPath": at, **({"readOnly": True} if at == FILES_AT else {})}
        for volume, (at, _) in volumes.items()
    ]
    return {
        "containers": [inside],
        "volumes": [{"name": volume, **what} for volume, (_, what) in volumes.items()],
    }


def _name(name: str) -> str:
    """A schedule's name as Kubernetes takes it; the digits of its hash follow where it is cut."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    called = f"ranksweep-{plain}"
    if plain == name and len(called) <= LONGEST_NAME:
        return called
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{called[: LONGEST_NAME - 9].rstrip('-')}-{digest}"


def _metadata(called: str, name: str, pod: Pod) -> Document:
    labels = {
        "app.kubernetes.io/name": "ranksweep",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "ranksweep",
    }
    namespace = {} if pod.namespace is None else {"namespace": pod.namespace}
    return {"name": called, **namespace, "labels": labels}


def _within(path: Path, root: Path) -> str:
    return PurePath(os.path.relpath(path, root)).as_posix()


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            f"{path}: cannot be read as text, and must travel with the schedule; check the file"
        ) from None
    if _PASSWORD.search(text):
        raise UsageError(
            f"{path}: holds an address with a password, which would stand in a ConfigMap; give it "
            "by the environment (RANKSWEEP_STORE, MLFLOW_TRACKING_URI)"
        )
    return text


def _refuse_local_places(schedule: ToEmit) -> None:
    """Raise UsageError where what a schedule knows would end with the pod that it runs in."""
    scheme, separator, _ = schedule.store.partition("://")
    if schedule.store and (not separator or scheme == "file"):
        raise UsageError(
            "store: is a folder, which ends with the pod, and with it what the schedule has seen; "
            "name s3://, gs:// or az:// in the schedule"
        )
    if schedule.tracking.startswith("sqlite"):
        raise UsageError(
            "tracking: is a file, which ends with the pod, and with it the results; name an MLflow "
            "server in the schedule"
        )


def _refuse_webhooks(raw: Mapping[str, Any], file: Path) -> None:
    """Raise UsageError where a webhook, whose address is its secret, stands in the schedule."""
    receivers = raw.get("notify")
    for index, each in enumerate(receivers if isinstance(receivers, list) else ()):
        url = each.get("url") if isinstance(each, Mapping) else None
        if isinstance(url, str) and not url.startswith("env:"):
            raise UsageError(
                f"notify[{index}].url: {file} has the webhook's address in it, which would stand "
                "in a ConfigMap; write env:NAME, and put it into a Secret under that name"
            )


def _on_its_cluster(raw: Mapping[str, Any]) -> str:
    """The schedule, its sweeps run on the Ray cluster that it is started on."""
    kept = {key: value for key, value in raw.items() if key not in OF_A_SUBMISSION}
    overrides = kept.get("set")
    given = overrides if isinstance(overrides, Mapping) else {}
    kept["set"] = {**given, "cluster.address": "auto"}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _yaml(documents: Sequence[Document]) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """YAML in which a text of several lines stands as it is, and nothing is named by an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _block)
