"""The command `schedule emit`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from search.cli.app import JsonOption
from search.cli.output import Result, prints_result, write_out
from spaces.errors import ConfigError

if TYPE_CHECKING:
    from search.schedules.emitted.to_emit import ToEmit


def add_emit(group: typer.Typer, read: Callable[[Path], ToEmit]) -> None:
    """Give a group of commands `emit`; `read` is what reads a schedule's file for it."""

    @group.command()
    @prints_result
    def emit(
        schedule: Annotated[Path, typer.Argument(metavar="SCHEDULE.yaml", help="The schedule.")],
        to: Annotated[
            Literal["cronjob", "crontab", "systemd", "rayjob"],
            typer.Option("--to", help="Who is to run it."),
        ],
        *,
        image: Annotated[
            str | None,
            typer.Option("--image", metavar="IMAGE", help="Image of a pod, with ranksweep in it."),
        ] = None,
        namespace: Annotated[
            str | None, typer.Option("--namespace", metavar="NAME", help="Namespace of Kubernetes.")
        ] = None,
        secret: Annotated[
            str | None,
            typer.Option(
                "--secret",
                metavar="NAME",
                help="Secret whose keys become the pod's environment; else ranksweep-...-secrets.",
            ),
        ] = None,
        limits: Annotated[
            list[str] | None,
            typer.Option("--limit", metavar="NAME=N", help="Resource, such as nvidia.com/gpu=1."),
        ] = None,
        workers: Annotated[
            int,
            typer.Option("--workers", min=0, help="Pods of a RayJob beside the head of its Ray."),
        ] = 0,
        claim: Annotated[
            str | None,
            typer.Option(
                "--claim",
                metavar="NAME",
                help="PersistentVolumeClaim for the models that are brought.",
            ),
        ] = None,
        environment: Annotated[
            Path | None,
            typer.Option(
                "--environment",
                metavar="FILE",
                help="Lines NAME=VALUE that cron or systemd reads before each start.",
            ),
        ] = None,
        out: Annotated[
            Path | None,
            typer.Option("--out", metavar="DIR", help="Write the files there; else print them."),
        ] = None,
        json_output: JsonOption = False,
    ) -> Result:
        """Print what Kubernetes, KubeRay, cron or systemd needs to run a schedule."""
        from search.schedules.emit import as_text, emitted
        from search.schedules.emitted.to_emit import Host, Pod

        if image is not None and (not image.strip() or any(map(str.isspace, image))):
            raise ConfigError(f"--image: {image!r} names no image; write for example repo/name:tag")
        pod = image and Pod(image, namespace, secret, _limits(limits or []), workers, claim)
        files = emitted(read(schedule), to, pod=pod or None, host=Host.this(environment))
        if out is None:
            return Result({"to": to, "files": files}, [as_text(files).rstrip("\n")])
        written = [out / name for name in files]
        if not out.is_dir():
            raise ConfigError(f"--out: {out} is no folder; make it, or name another")
        for path, content in zip(written, files.values(), strict=True):
            write_out(path, content.encode())
        return Result({"to": to, "files": files}, [f"{path} is written" for path in written])


def _limits(given: list[str]) -> dict[str, str]:
    limits = {}
    for each in given:
        name, equals, amount = each.partition("=")
        if not (equals and name.strip() and amount.strip()):
            raise ConfigError(f"--limit: {each!r} is no NAME=N; write for example cpu=4")
        limits[name.strip()] = amount.strip()
    return limits
