"""What the machine, its file system or a server does to a command, told in one line."""

from __future__ import annotations

import errno
import re

from search.redaction import redacted_text
from spaces.errors import one_line

_OF_THE_SYSTEM = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within your quota",
    errno.EACCES: "check the permissions, or work in a folder of your own",
    errno.EPERM: "check the permissions, or work in a folder of your own",
    errno.EROFS: "work in a folder that can be written to",
    errno.EMFILE: "allow more open files (`ulimit -n 65536`)",
    errno.ENFILE: "allow more open files (`ulimit -n 65536`)",
    errno.ENOMEM: "free some memory, or take a machine with more",
    errno.EAGAIN: "allow more processes (`ulimit -u`)",
    errno.ENOLCK: "work in a folder of a local disk, whose file system has locks",
    errno.EADDRINUSE: "end what listens at that address, or take another",
}
_OF_A_PACKAGE = {
    "sqlalchemy": "check that the database runs, its file, and the free space",
    "sqlite3": "check the database's file, its folder's permissions and the free space",
    "optuna": "check the database of the sweep's study",
    "alembic": "the database was made by another version; name another, or install that version",
    "mlflow": "check the tracking server or database (`ranksweep doctor --tracking URI`)",
    "ray": "see Ray's newest logs, and `ranksweep doctor`",
    "obstore": "check the store (`ranksweep doctor --store URI`)",
    "botocore": "check the address and the credentials in the environment",
    "boto3": "check the address and the credentials in the environment",
    "huggingface_hub": "check the network, HF_TOKEN and the name on the hub",
    "requests": "check the network and the proxy variables",
    "urllib3": "check the network and the proxy variables",
    "httpx": "check the network and the proxy variables",
    "filelock": "see who holds it, or remove it where nobody does",
}
_SAID = (
    (r"getpwuid\(\): uid not found", "name this user: set USER, and HOME to a folder of its own"),
    (r"can't start new thread", "allow more processes (`ulimit -u`)"),
    (r"flock", "work in a folder of a local disk, whose file system has locks"),
    (r"home directory", "set HOME to a folder that can be written to"),
    (r"CUDA|NVIDIA|cuDNN|NCCL", "check the driver with `nvidia-smi`, and `ranksweep doctor`"),
)


def fault_of_the_place(error: BaseException) -> str | None:
    """The reason and a remedy, in one line; None where the error tells of a defect of our own."""
    remedy = _remedy(error)
    if remedy is None:
        return None
    if isinstance(error, OSError) and error.strerror:
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        reason = ": ".join([*files[:1], error.strerror])
    else:
        reason = one_line(error)
    return f"{redacted_text(reason)[:300].rstrip('.;')}; {remedy}"


def _remedy(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return "free some memory, or take a machine with more"
    if isinstance(error, ImportError):
        return "see `ranksweep doctor` for what is missing, and install it again"
    if isinstance(error, UnicodeEncodeError):
        return "set LANG=C.UTF-8 or PYTHONUTF8=1"
    text = str(error)
    said = next((remedy for sign, remedy in _SAID if re.search(sign, text)), None)
    if said is not None:
        return said
    for kind in type(error).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _OF_A_PACKAGE:
            return _OF_A_PACKAGE[package]
    if isinstance(error, OSError):
        return _OF_THE_SYSTEM.get(error.errno or 0, "check that place, and that it can be reached")
    return None
