"""What is emitted is what other schedulers take: it runs the schedule and holds no secret."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import typer
import yaml
from apscheduler.triggers.cron import CronTrigger

from search.cli.schedule_emit import add_emit
from search.schedules.emit import FORMS, Form, as_text, emitted
from search.schedules.emitted.systemd import calendar_events
from search.schedules.emitted.to_emit import Host, Pod, ToEmit, cron_lines
from search.schedules.settings import ScheduleSettings
from spaces.errors import ConfigError, UsageError

SCHEMAS = json.loads((Path(__file__).parent / "kubernetes_schemas.json").read_text())
POD = Pod(
    "registry.example.org/ranksweep:1",
    namespace="ml",
    limits={"nvidia.com/gpu": "1"},
    workers=2,
    claim="models",
)
HOST = Host(("/opt/a venv/bin/ranksweep",), Path("/srv/100% sweeps"), Path("/etc/ranksweep.env"))
ANALYZE = shutil.which("systemd-analyze")


@pytest.fixture
def schedule(tmp_path: Path) -> ToEmit:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "tiny.yaml").write_text("base: hub:a/b\ntask: {name: tiny}\n")
    raw = {
        "name": "nightly",
        "sweep": "sweeps/tiny.yaml",
        "on": {"checkpoints": [{"under": "s3://bucket/runs"}]},
        "submit": "http://head:8265",
        "shared": True,
        "remote_folder": "/mnt/sweeps",
        "set": {"search.trials": 6},
        "notify": [{"url": "env:SLACK"}],
    }
    (tmp_path / "schedule.yaml").write_text(yaml.safe_dump(raw))
    return ToEmit(
        name="nightly",
        file=tmp_path / "schedule.yaml",
        sweep=tmp_path / "sweeps" / "tiny.yaml",
        raw=raw,
        crons=("0 3 * * *",),
        timezone="Europe/Berlin",
        submit="http://head:8265",
        store="s3://bucket/ranksweep",
        tracking="https://mlflow.example.org",
        variables=("SLACK",),
    )


def documents(schedule: ToEmit, to: Form, pod: Pod = POD) -> list[dict[str, Any]]:
    """What is emitted for Kubernetes, each document held against its schema."""
    (text,) = emitted(schedule, to, pod=pod).values()
    found = list(yaml.safe_load_all(text))
    for each in found:
        jsonschema.validate(each, SCHEMAS[each["kind"]])
    return found


def test_a_cron_job_runs_one_look_at_a_time(schedule: ToEmit) -> None:
    config, job = documents(schedule, "cronjob")
    spec = job["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("0 3 * * *", "Europe/Berlin")
    assert spec["concurrencyPolicy"] == "Forbid"
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["ranksweep", "schedule", "once", "/etc/ranksweep/schedule.yaml"]
    assert container["image"] == POD.image
    secret = "ranksweep-nightly-secrets"
    assert container["envFrom"] == [{"secretRef": {"name": secret, "optional": False}}]
    reference = {"secretKeyRef": {"name": secret, "key": "SLACK"}}
    assert {"name": "SLACK", "valueFrom": reference} in container["env"]

    mounted = {each["path"]: each["key"] for each in pod["volumes"][0]["configMap"]["items"]}
    assert pod["volumes"][0]["configMap"]["name"] == config["metadata"]["name"]
    for file in (schedule.file, schedule.sweep):
        name = str(file.relative_to(schedule.file.parent))
        assert config["data"][mounted[name]] == file.read_text()


def test_several_times_are_several_jobs(schedule: ToEmit) -> None:
    config, *jobs = documents(
        replace(schedule, crons=("0 3 * * *", "30 12 * * 7"), every=7200.0), "cronjob"
    )
    assert [job["spec"]["schedule"] for job in jobs] == [
        "0 3 * * *",
        "30 12 * * 0",
        "0 */2 * * *",
    ]
    assert len({job["metadata"]["name"] for job in jobs}) == 3
    assert {job["metadata"]["labels"]["app.kubernetes.io/instance"] for job in jobs} == {
        config["metadata"]["name"]
    }


@pytest.mark.parametrize("pod", [POD, Pod("image")], ids=["workers", "head alone"])
def test_a_ray_job_runs_the_sweeps_on_its_own_cluster(schedule: ToEmit, pod: Pod) -> None:
    config, job = documents(schedule, "rayjob", pod)
    assert "ranksweep schedule once /etc/ranksweep/schedule.yaml" in job["spec"]["entrypoint"]
    copy = yaml.safe_load(config["data"]["schedule.yaml"])
    assert {"submit", "shared", "remote_folder"}.isdisjoint(copy)
    ScheduleSettings.model_validate(copy)
    assert copy["on"] == schedule.raw["on"]
    assert copy["set"] == {"search.trials": 6, "cluster.address": "auto"}
    groups = job["spec"]["rayClusterSpec"].get("workerGroupSpecs", [])
    assert [group["replicas"] for group in groups] == ([2] if pod.workers else [])


def test_workers_that_do_not_see_the_models_are_refused(schedule: ToEmit) -> None:
    with pytest.raises(UsageError, match=r"--workers: .*--claim"):
        emitted(schedule, "rayjob", pod=Pod("image", workers=1))


@pytest.mark.parametrize("name", ["Nightly.Sweeps_1", "x" * 100, "a--b"])
def test_any_name_of_a_schedule_is_one_of_kubernetes(schedule: ToEmit, name: str) -> None:
    found = documents(replace(schedule, name=name, every=300.0), "cronjob")
    names = [each["metadata"]["name"] for each in found]
    other = documents(replace(schedule, name=f"{name}."), "cronjob")[0]["metadata"]["name"]
    assert other not in names
    for each in names:
        assert len(each) <= 52
        assert each == each.strip("-")
        assert set(each) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_a_crontab_looks_from_the_folder_and_logs(schedule: ToEmit) -> None:
    lines = as_text(emitted(schedule, "crontab", host=HOST)).splitlines()
    assert "CRON_TZ=Europe/Berlin" in lines
    (line,) = [each for each in lines if "schedule once" in each]
    times, command = " ".join(line.split()[:5]), line.split(maxsplit=5)[5]
    CronTrigger.from_crontab(times)
    assert command.startswith(
        "cd '/srv/100\\% sweeps' && set -a && . /etc/ranksweep.env && set +a && "
        "'/opt/a venv/bin/ranksweep' schedule once "
    )
    assert command.endswith("2>&1 | logger -t ranksweep-nightly")
    assert "%" not in command.replace("\\%", "")


@pytest.mark.parametrize(
    ("line", "plain"),
    [
        ("*/15 8-17 1,15 jan-mar mon-fri", "*/15 8-17 1,15 1,2,3 1,2,3,4,5"),
        ("5/20 * * * sun", "5,25,45 * * * 0"),
        ("0 0 * * 5-7", "0 0 * * 0,5,6"),
        ("0 0 * * 0-7", "0 0 * * *"),
        ("0 22 * * fri-mon", "0 22 * * 0,1,5,6"),
    ],
)
def test_a_cron_time_is_written_as_every_cron_reads_it(
    schedule: ToEmit, line: str, plain: str
) -> None:
    assert cron_lines(replace(schedule, crons=(line,))) == (plain,)


def minutes(matches: Callable[[datetime], bool], days: int = 32) -> list[datetime]:
    start = datetime(2026, 11, 1, tzinfo=UTC)
    moments = (start + timedelta(minutes=each) for each in range(0, days * 1440, 5))
    return [moment for moment in moments if matches(moment)]


def named_by_systemd(event: str, moment: datetime) -> bool:
    """Whether a calendar event of lists and stars alone names a minute."""
    *days, date, time = event.split()
    _, month, day = date.split("-")
    hour, minute, _ = time.split(":")
    fields = [
        (month, moment.month),
        (day, moment.day),
        (hour, moment.hour),
        (minute, moment.minute),
    ]
    listed = all(text == "*" or value in map(int, text.split(",")) for text, value in fields)
    return listed and (not days or moment.strftime("%a") in days[0].split(","))


@pytest.mark.parametrize(
    ("line", "due"),
    [
        ("*/20 3 * * *", lambda t: t.hour == 3 and t.minute % 20 == 0),
        ("0 9 * * mon-fri", lambda t: (t.hour, t.minute) == (9, 0) and t.weekday() < 5),
        (
            "0 9 13 * 5",
            lambda t: (t.hour, t.minute) == (9, 0) and (t.day == 13 or t.weekday() == 4),
        ),
        ("0 9 */2 * 5", lambda t: (t.hour, t.minute) == (9, 0) and t.day % 2 and t.weekday() == 4),
        ("30 5 1 12 *", lambda t: (t.month, t.day, t.hour, t.minute) == (12, 1, 5, 30)),
    ],
)
def test_a_timer_comes_when_cron_would(
    schedule: ToEmit, line: str, due: Callable[[datetime], bool]
) -> None:
    events = calendar_events(replace(schedule, crons=(line,), timezone=None))
    found = minutes(lambda moment: any(named_by_systemd(event, moment) for event in events))
    assert found == minutes(due) != []


@pytest.mark.command
@pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze on this machine")
def test_systemd_takes_the_units(schedule: ToEmit, tmp_path: Path) -> None:
    program = tmp_path / "a 100% $program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    host = Host((str(program), "$HOME 5%"), tmp_path, Path("/etc/ranksweep.env"))
    several = replace(
        schedule, crons=("0 3 * * *", "*/15 8-17 13 * mon-fri", "5/20 * * jan 0"), every=300.0
    )
    units = emitted(several, "systemd", host=host)
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    assert sorted(units) == [
        "ranksweep-nightly-once.service",
        "ranksweep-nightly-once.timer",
        "ranksweep-nightly.service",
    ]
    done = subprocess.run(
        [str(ANALYZE), "verify", *(str(tmp_path / name) for name in units)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ranksweep" not in done.stderr
    assert done.returncode == 0
    for event in calendar_events(several):
        subprocess.run([str(ANALYZE), "calendar", event], check=True, capture_output=True)


def with_password(schedule: ToEmit) -> ToEmit:
    schedule.sweep.write_text("tracking: {uri: postgresql://me:hunter2@db/x}\n")
    return schedule


def with_webhook(schedule: ToEmit) -> ToEmit:
    return replace(schedule, raw={"notify": [{"url": "https://hooks.example.org/very-secret"}]})


def with_much(schedule: ToEmit) -> ToEmit:
    schedule.sweep.write_text("# " + "x" * 1_000_000)
    return schedule


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_password, "holds an address with a password"),
        (with_webhook, r"notify\[0\]\.url: .* write env:NAME"),
        (with_much, "a ConfigMap takes"),
        (lambda s: replace(s, store="file://x"), "store: is a folder"),
        (lambda s: replace(s, tracking="sqlite:///x.db"), "tracking: is a file"),
        (lambda s: replace(s, every=2700.0), r"when.every: 2700 s"),
        (lambda s: replace(s, crons=("0 0 last * *",)), "when.cron: 'last'"),
        (lambda s: replace(s, sweep=s.file / "none.yaml"), "cannot be read as text"),
    ],
)
def test_what_may_or_can_not_travel_is_refused(
    schedule: ToEmit, change: Callable[[ToEmit], ToEmit], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        emitted(change(schedule), "cronjob", pod=POD)
    assert "secret" not in str(refused.value).replace("a Secret", "")
    assert "hunter2" not in str(refused.value)


@pytest.fixture
def command(schedule: ToEmit) -> Callable[..., None]:
    group = typer.Typer()
    group.callback()(lambda: None)
    asked: list[Path] = []

    def read(file: Path) -> ToEmit:
        asked.append(file)
        return schedule

    add_emit(group, read)

    def run(*arguments: str) -> None:
        typer.main.get_command(group)(
            args=["emit", "schedule.yaml", *arguments], standalone_mode=False
        )
        assert asked == [Path("schedule.yaml")]

    return run


@pytest.mark.parametrize("to", FORMS)
def test_the_command_prints_what_is_emitted(
    to: Form, schedule: ToEmit, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command("--to", to, "--image", "image", "--limit", "cpu=4", "--json")
    document = json.loads(capsys.readouterr().out)
    pod = Pod("image", limits={"cpu": "4"})
    assert document == {"to": to, "files": emitted(schedule, to, pod=pod, host=Host.this())}


def test_the_command_writes_files(
    tmp_path: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command("--to", "systemd", "--out", str(tmp_path))
    assert (tmp_path / "ranksweep-nightly-once.timer").is_file()
    assert f"{tmp_path}/ranksweep-nightly.service is written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to", "cronjob"), "--image: a cronjob runs in a container"),
        (("--to", "cronjob", "--image", "i", "--limit", "cpu"), "--limit: 'cpu' is no NAME=N"),
        (("--to", "cronjob", "--image", "a b"), "--image: 'a b' names no image"),
        (("--to", "crontab", "--out", "/no/such"), "--out: /no/such is no folder"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: tuple[str, ...], said: str, command: Callable[..., None]
) -> None:
    with pytest.raises((ConfigError, UsageError), match=said.replace("(", r"\(")):
        command(*arguments)
