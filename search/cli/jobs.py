"""Sweeps that run as jobs of a cluster, as the command line submits, follows and stops them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.cli.output import Result
from search.interrupts import EXIT_INTERRUPTED
from spaces.errors import ConfigError, RanksweepError, UsageError

if TYPE_CHECKING:
    from search.launch.submission.following import Outcome
    from search.launch.submission.job_server import Job, JobServer
    from search.launch.submission.order import Order
    from search.launch.submission.submit import Packed, Prepared

SubmitOption = Annotated[
    str | None,
    typer.Option(
        "--submit",
        metavar="ADDRESS",
        help="Run as a job of the Ray cluster whose dashboard is there (http://HOST:8265).",
    ),
]
DetachOption = Annotated[
    bool, typer.Option("--detach", help="With --submit: return as soon as the job is sent.")
]
RemoteFolderOption = Annotated[
    str | None,
    typer.Option(
        "--remote-folder",
        metavar="DIR",
        help="With --submit: the head node's folder for what a launch keeps; else ~/ranksweep.",
    ),
]
SharedOption = Annotated[
    bool,
    typer.Option(
        "--shared",
        help="With --submit: the sweep's files are at the same paths on every node; send none.",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", metavar="ADDRESS", help="The cluster that it was submitted to."),
]


def refuse_without_submit(**options: object) -> None:
    """Raise UsageError where an option is given that goes with --submit alone."""
    for name, value in options.items():
        if value:
            raise UsageError(
                f"--{name.replace('_', '-')}: goes with --submit ADDRESS; give that too, or leave "
                "it out"
            )


def submit_sweep(address: str, order: Order, *, detach: bool = False) -> Result:
    """Send a sweep to a cluster and follow it to its end, or with `detach` leave it to itself."""
    from search.launch.submission.submit import prepare_to_submit, submit

    prepared = prepare_to_submit(order)
    server = _server(address, "--submit")
    known = {job.id for job in server.jobs_of(prepared.config.name)}
    job = submit(server, prepared)
    if job.id in known:
        _say(f"{job.sweep} runs already, as job {job.id}")
    else:
        _say(f"{job.sweep} is submitted as job {job.id}, in {job.folder} of the head node")
        for note in prepared.places.notes:
            _say(f"note: {note}")
    if detach:
        return Result(_document(server, job), [f"{job.sweep}: {_how_to_go_on(server, job)}"])
    return _followed(server, job)


def dry_submission(address: str, order: Order) -> Result:
    """What would be sent to a cluster, and what it must have; it is not asked."""
    from search.launch.submission.submit import folder_of, packed, prepare_to_submit

    prepared = prepare_to_submit(order)
    folder = folder_of(order, ())
    rows = _rows(prepared)
    with packed(prepared, folder) as sent:
        document = _dry_document(prepared, sent, address, folder, rows)
    places = prepared.places
    lines = [f"{prepared.config.name} would be sent to {address}, to work in {folder} there"]
    for piece in prepared.parcel.pieces:
        files = f"{len(piece.files)} files" if len(piece.files) > 1 else "one file"
        lines.append(f"travels: {piece.key}, {files}, {_size(piece.bytes)}")
    lines += [f"sent: {what}, {_size(size)}" for what, size in sent.sizes.items()]
    lines += [f"rows: {', '.join(f'{n:,} {split}' for split, n in rows.items())}"] if rows else []
    for name, why in places.required.items():
        lines.append(f"the cluster's environment must have {name}, for {why}")
    if places.wanted:
        lines.append(
            f"set here and used: {', '.join(places.wanted)}; the cluster's environment needs them, "
            "or roles in their place"
        )
    lines += [f"note: {note}" for note in places.notes]
    lines.append("base, profile and cost are looked at by the job, before it starts anything")
    return Result(document, lines)


def follow_job(name: str, address: str) -> Result:
    """Follow a sweep that was submitted to a cluster to its end, from its first line on."""
    from search.launch.submission.submit import last_job
    from search.paths import check_sweep_name

    check_sweep_name(name)
    server = _server(address, "--address")
    return _followed(server, last_job(server, name))


def stop_job(name: str, address: str, *, now: bool = False) -> Result:
    """End a sweep that was submitted to a cluster as Ctrl-C would, and wait until it has ended."""
    from search.launch.submission.submit import last_job
    from search.paths import check_sweep_name
    from spaces.errors import JobError

    check_sweep_name(name)
    server = _server(address, "--address")
    job = last_job(server, name)
    if job.has_ended:
        raise JobError(
            f"the sweep {name!r} is not running at {server.address} (its job {job.id} has ended: "
            f"{job.status.lower()}); there is nothing to stop"
        )
    job = server.stop(job, at_once=now)
    return Result(
        _document(server, job),
        [f"{name}: its job {job.id} has ended ({job.status.lower()}); submit it with --resume to "
         "go on"],
    )  # fmt: skip


def _server(address: str, option: str) -> JobServer:
    from search.launch.ray_environment import set_ray_environment

    set_ray_environment("auto")
    # Not at the top: Ray reads at import what was set above.
    from search.launch.submission.job_server import JobServer

    return JobServer(address, option)


def _followed(server: JobServer, job: Job) -> Result:
    from search.launch.submission.following import follow

    try:
        outcome = follow(server, job, _say)
    except KeyboardInterrupt:
        job = server.job(job.id)
        _say(f"detached; {job.sweep} goes on: {_how_to_go_on(server, job)}")
        return Result(_document(server, job), exit_code=EXIT_INTERRUPTED)
    return _result(server, outcome)


def _result(server: JobServer, outcome: Outcome) -> Result:
    job = outcome.job
    document: dict[str, Any] = _document(server, job)
    if isinstance(outcome.document, dict):
        document = {**outcome.document, "job": document}
    drawn = [outcome.drawn.rstrip("\n")] if outcome.drawn else []
    if job.status == "STOPPED":
        _say(f"{job.sweep} was stopped; submit it with --resume to go on")
        return Result(document, drawn, exit_code=EXIT_INTERRUPTED)
    if job.status == "FAILED":
        error = RanksweepError(outcome.error)
        error.exit_code = job.exit_code or RanksweepError.exit_code
        if error.exit_code == EXIT_INTERRUPTED:  # by a signal that Ray did not send
            return Result(document, drawn, exit_code=EXIT_INTERRUPTED)
        if not drawn:
            raise error
        return Result(document, drawn, error)
    return Result(document, drawn, outcome.error)


def _document(server: JobServer, job: Job) -> dict[str, Any]:
    return {
        "name": job.sweep,
        "job": job.id,
        "address": server.address,
        "folder": job.folder,
        "status": job.status,
    }


def _how_to_go_on(server: JobServer, job: Job) -> str:
    where = f"{job.sweep} --address {server.address}"
    return f"`ranksweep watch {where}` follows it, `ranksweep stop {where}` ends it"


def _dry_document(
    prepared: Prepared, sent: Packed, address: str, folder: str, rows: dict[str, int]
) -> dict[str, Any]:
    return {
        "name": prepared.config.name,
        "address": address,
        "folder": folder,
        "travels": [
            {"key": piece.key, "files": sorted(piece.files), "bytes": piece.bytes}
            for piece in prepared.parcel.pieces
        ],
        "sent": dict(sent.sizes),
        "rows": rows,
        "required": dict(prepared.places.required),
        "wanted": list(prepared.places.wanted),
        "notes": list(prepared.places.notes),
    }


def _rows(prepared: Prepared) -> dict[str, int]:
    """Rows of each split where they lie here: read as the job will, so that a fault is told now."""
    from trainables.tasks.rows import load_rows

    if not prepared.parcel.data:
        return {}
    return {split: len(part) for split, part in load_rows(prepared.config.task).every_split.items()}


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def refuse_gone(gone: bool, address: str | None) -> None:
    """Raise ConfigError where both options of `stop` are given that contradict each other."""
    if gone and address is not None:
        raise ConfigError(
            "--gone: closes a record in MLflow, and --address asks the cluster; give one of them"
        )
