"""Objects by name, in a local folder or on S3, Google Cloud Storage or Azure, through obstore."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, from_url

from search.paths import STORE_SCHEMES, private_files, store_uri
from search.redaction import redacted, redacted_text
from spaces.errors import ConfigError, StoreError, nearest

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

PROBES = "probes"
FIRST_DEADLINE = timedelta(seconds=5)
"""How long the first request tries: a wrong address should be told soon."""
DEADLINE = timedelta(seconds=90)
"""How long every later request tries: a server that answered once may be starting again."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*(/[A-Za-z0-9][A-Za-z0-9._=-]*)*")
_CONNECTION_FAILURES = (
    ("ConnectionRefused", "nobody listens at the address (connection refused)"),
    ("dns error", "the host name of the address is not known"),
    ("TimedOut", "no answer in time"),
    ("timed out", "no answer in time"),
    ("ConnectionReset", "the connection was closed by the server"),
    ("IncompleteMessage", "the connection was closed by the server"),
)
_AWS_FILES = (
    ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
    ("AWS_CONFIG_FILE", "~/.aws/config"),
)


@dataclass(frozen=True)
class ProbeStep:
    """One thing a store must be able to do, and whether it can; `detail` says why not."""

    name: str
    ok: bool
    detail: str = ""


@dataclass
class _Connection:
    """What the views of one store share: its clients, and what is known of it by now."""

    uri: str
    folder: Path | None
    opened: dict[bool, ObjectStore] = field(default_factory=dict)
    answered: bool = False
    creates_once: bool | None = None


class ObjectStorage:
    """Objects by name: get, put, create if absent, delete, list, move.

    `uri` is `file://dir` (relative to the current directory, or `file:///dir`), a bare path, or
    `s3://`, `gs://`, `az://` with bucket and prefix. Credentials, region, endpoint and encryption
    come from the environment as the provider defines it; for S3 also from AWS's profile files. A
    local folder is created 0700 and its files under umask 077, at the first write; a folder that is
    there already keeps its mode. A request is tried again with growing pauses until DEADLINE.

    Raises:
        ConfigError: a URI that names no store.
        StoreError: the store cannot be reached, read or written, or a name could leave its prefix.
    """

    def __init__(self, uri: str) -> None:
        folder = _local_folder(uri)
        self.uri = uri if folder is None else store_uri(folder)
        """The store's URI, absolute for a local store. It may hold credentials: show `name`."""
        self.name = redacted(self.uri)
        """The store's URI as it may be shown."""
        self._prefix = ""
        self._connection = _Connection(self.uri, folder)
        if folder is None:
            self._client(to_write=False)  # a URI that cannot be opened is told at once

    def under(self, prefix: str) -> ObjectStorage:
        """The objects whose names start with `prefix/`, named without it."""
        view = ObjectStorage.__new__(ObjectStorage)
        view.uri, view.name, view._connection = self.uri, self.name, self._connection
        view._prefix = f"{self._whole(prefix)}/"
        return view

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the same objects with a connection of its own."""
        return _opened, (self.uri, self._prefix)

    @property
    def is_local(self) -> bool:
        """Whether the objects are files of this machine."""
        return self._connection.folder is not None

    # Requests ---------------------------------------------------------------------------------

    def get(self, name: str) -> bytes | None:
        """The bytes of an object; None when it is absent."""
        with self._failing_as("read", self._whole(name)) as whole:
            try:
                return bytes(self._client(to_write=False).get(whole).bytes())
            except FileNotFoundError as absent:
                if _missing_bucket(absent):
                    raise
                return None

    def put(self, name: str, content: bytes) -> None:
        """Write an object, over what is there."""
        with self._failing_as("write", self._whole(name)) as whole, private_files():
            self._client(to_write=True).put(whole, content)

    def create(self, name: str, content: bytes) -> bool:
        """Create an object if it is absent: False when another one is there already.

        An object that holds the same bytes counts as created by this call: a request whose answer
        was lost is sent again. Whoever must tell writers apart gives each its own bytes.
        """
        with self._failing_as("write", self._whole(name)) as whole, private_files():
            try:
                self._client(to_write=True).put(whole, content, mode="create")
                return True
            except (AlreadyExistsError, PreconditionError):
                pass
        return self.get(name) == content

    def delete(self, name: str) -> bool:
        """Remove an object: False when the store can tell that it was not there."""
        with self._failing_as("remove", self._whole(name)) as whole:
            try:
                client = self._client(to_write=False)
                client.head(whole)
                client.delete(whole)
            except FileNotFoundError:
                return False
        return True

    def move(self, source: str, target: str) -> bool:
        """Give an object another name: False when it is not there (any more)."""
        with self._failing_as("move", self._whole(source)) as whole, private_files():
            try:
                self._client(to_write=True).rename(whole, self._whole(target))
            except FileNotFoundError:
                return False
        return True

    def list(self, prefix: str) -> tuple[str, ...]:
        """The names of all objects under `prefix/`."""
        with self._failing_as("list", self._whole(prefix)) as whole:
            try:
                chunks = self._client(to_write=False).list(whole)
                found = [meta["path"] for chunk in chunks for meta in chunk]
            except FileNotFoundError as absent:
                if _missing_bucket(absent):
                    raise
                return ()
        return tuple(path.removeprefix(self._prefix) for path in found)

    def reach(self) -> None:
        """Ask for an object that is not there. Raises StoreError where nobody answers."""
        self.get(self._probe_name())

    # What the store can do --------------------------------------------------------------------

    def creates_once(self) -> bool:
        """Whether the store honours create-if-absent; found out by trying, once.

        Some look-alikes of S3 take the condition and write all the same.
        """
        if self._connection.creates_once is None:
            name = self._probe_name()
            self.create(name, secrets.token_bytes(16))
            self._connection.creates_once = not self.create(name, secrets.token_bytes(16))
            self.delete(name)
        return self._connection.creates_once

    def clock(self) -> datetime:
        """The store's own time: when it says that a throwaway object of now was written."""
        name = self._probe_name()
        self.put(name, secrets.token_bytes(16))
        try:
            with self._failing_as("read", self._whole(name)) as whole:
                written: datetime = self._client(to_write=False).head(whole)["last_modified"]
        finally:
            self.delete(name)
        return written

    def probe(self) -> tuple[ProbeStep, ...]:
        """Try on a throwaway object what a store must be able to do; it is removed again.

        Stops at the first step that fails, for the later ones rest on it.
        """
        name, content = self._probe_name(), secrets.token_bytes(16)
        tries: dict[str, Callable[[], str]] = {
            # read first: some servers make a bucket that is not there when it is written to
            "write": lambda: (
                ""
                if self.get(name) is None and self.create(name, content)
                else "the object was there"
            ),
            "create if absent": lambda: (
                "an object that is there was created again"
                if self.create(name, secrets.token_bytes(16))
                else ""
            ),
            "read": lambda: "" if self.get(name) == content else "differs",
            "list": lambda: "" if name in self.list(PROBES) else "the object is not listed",
            "remove": lambda: (
                "" if self.delete(name) and self.get(name) is None else "the object is there"
            ),
        }
        steps: list[ProbeStep] = []
        for step, attempt in tries.items():
            try:
                problem = attempt()
            except StoreError as error:
                steps.append(ProbeStep(step, False, str(error)))
                break
            steps.append(ProbeStep(step, not problem, problem))
        if not steps[-1].ok and len(steps) > 1:
            try:
                self.delete(name)
            except StoreError:
                steps.append(ProbeStep("remove", False, f"{name} is left behind"))
        return tuple(steps)

    # Inside -----------------------------------------------------------------------------------

    @staticmethod
    def _probe_name() -> str:
        return f"{PROBES}/{secrets.token_hex(16)}"

    def _whole(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise StoreError(
                f"store: {name[:80]!r} cannot name an object; use parts of letters, digits, '.', "
                "'_', '=' and '-', the first a letter or a digit, with '/' between them"
            )
        return self._prefix + name

    def _client(self, *, to_write: bool) -> Any:
        """The client. Raises FileNotFoundError where a local folder is not there to be read."""
        shared = self._connection
        patient = shared.answered or self.is_local
        if patient not in shared.opened:
            shared.opened[patient] = (
                self._open_remote(DEADLINE if patient else FIRST_DEADLINE)
                if shared.folder is None
                else self._open_local(shared.folder, to_write)
            )
        return shared.opened[patient]

    def _open_local(self, folder: Path, to_write: bool) -> ObjectStore:
        if not to_write and not folder.exists():
            raise FileNotFoundError(folder)
        with self._failing_as("open", ""):
            with private_files():
                folder.mkdir(parents=True, exist_ok=True)
            # Folders that a removal leaves empty go with it.
            return LocalStore(prefix=folder, automatic_cleanup=True)

    def _open_remote(self, deadline: timedelta) -> ObjectStore:
        patient = deadline == DEADLINE
        client: ClientConfig = {"timeout": "120s" if patient else "10s", "connect_timeout": "5s"}
        retry: RetryConfig = {
            "max_retries": 1000,  # the deadline is what ends it
            "retry_timeout": deadline,
            "backoff": {"max_backoff": timedelta(seconds=4)},
        }
        try:
            options = {}
            if self.uri.startswith("s3://"):
                # One object at a time is removed, and some gateways answer S3's DeleteObjects
                # without the names that obstore then looks for.
                options = {**_aws_options(), "disable_bulk_delete": True}
            if _plain_http_endpoint(options):
                client["allow_http"] = True
            return from_url(self.uri, client_options=client, retry_config=retry, **options)
        except (BaseError, ValueError) as error:
            remedy = "use file://, s3://, gs:// or az:// with a bucket"
            if "Missing" in str(error):  # one of a pair of keys
                remedy = "set both keys in the environment, or neither"
            raise ConfigError(
                f"store: {self.name} cannot be opened: {self._reason(error)}; {remedy}"
            ) from error

    @contextmanager
    def _failing_as(self, verb: str, path: str) -> Iterator[str]:
        """Raise what fails meanwhile as a StoreError of `path`, which is what this gives."""
        try:
            yield path
            self._connection.answered = True
        except (BaseError, OSError, ValueError) as error:
            place = f"{self.name}/{path}".rstrip("/")
            raise StoreError(
                f"store: cannot {verb} {place}: {self._reason(error)}; {self._remedy(error)}"
            ) from error

    def _remedy(self, error: Exception) -> str:
        if self.is_local:
            return "check the folder's permissions and the free space"
        refused = re.search(r"status code: 40[13]", str(error)) is not None
        if refused or isinstance(error, PermissionDeniedError | UnauthenticatedError):
            return "check the credentials in the environment and what they may do in this bucket"
        if _missing_bucket(error):
            return "create the bucket, or name another"
        return "check the address, the credentials in the environment and the network"

    def _reason(self, error: Exception) -> str:
        """An error in one short line, without anything secret of the URI or the environment."""
        whole = str(error).strip()
        answer = re.search(r"status code: ([0-9]{3}[A-Za-z ]*)", whole)
        code = re.search(r"<Code>([^<]{1,60})</Code>", whole)
        if answer:
            text = f"the server answers {answer.group(1).strip()}"
            text = f"{text} ({code.group(1)})" if code else text
        elif found := next((said for sign, said in _CONNECTION_FAILURES if sign in whole), None):
            text = found
        else:
            lines = whole.splitlines() or [type(error).__name__]
            text = redacted_text(lines[0].rstrip(" .;:{"))
        parts = urlsplit(self.uri)
        secret = [parts.query, parts.username, parts.password]
        secret += [value for key, value in os.environ.items() if _is_secret(key)]
        for value in secret:
            if value:
                text = text.replace(value, "***")
        return text


def _opened(uri: str, prefix: str) -> ObjectStorage:
    storage = ObjectStorage(uri)
    storage._prefix = prefix
    return storage


def _missing_bucket(error: Exception) -> bool:
    """Whether the bucket is not there: an error, while an absent object is an answer."""
    return any(code in str(error) for code in ("NoSuchBucket", "ContainerNotFound"))


def _is_secret(variable: str) -> bool:
    provider = variable.startswith(("AWS_", "AZURE_", "GOOGLE_"))
    return provider and any(
        word in variable for word in ("SECRET", "TOKEN", "PASSWORD", "ACCESS_KEY", "ACCOUNT_KEY")
    )


def _local_folder(uri: str) -> Path | None:
    """The absolute folder of a local store; None for a remote one; ConfigError for neither."""
    if not uri.strip():
        raise ConfigError("store: no URI is given; use file://, s3://, gs:// or az://")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri).expanduser().absolute()
    if scheme == "file":
        if not rest.strip("/"):
            raise ConfigError(f"store: {uri} names no folder; use file://DIR or file:///DIR")
        return Path(unquote(rest)).expanduser().absolute()
    if scheme not in STORE_SCHEMES:
        raise ConfigError(
            f"store: no storage has the scheme '{scheme}://'; {nearest(scheme, STORE_SCHEMES)}"
        )
    return None


def _aws_options() -> dict[str, Any]:
    """What AWS's profile files say, where the environment names no keys of its own.

    obstore reads the environment alone; the files, with their roles and sign-ons, are boto3's.
    """
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE"):
        return {}
    files = [Path(os.environ.get(key, default)).expanduser() for key, default in _AWS_FILES]
    if not os.environ.get("AWS_PROFILE") and not any(file.is_file() for file in files):
        return {}
    import botocore.session
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = botocore.session.get_session()
        settings = session.get_scoped_config()
        provider = Boto3CredentialProvider(session)
        provider()
    except (BotoCoreError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(
            f"store: AWS's profile files give no credentials ({reason}); check AWS_PROFILE and "
            "~/.aws, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    options: dict[str, Any] = {"credential_provider": provider}
    if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        options["region"] = settings.get("region", "us-east-1")
    if not _endpoint_of_environment() and settings.get("endpoint_url"):
        options["endpoint"] = settings["endpoint_url"]
    return options


def _endpoint_of_environment() -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _plain_http_endpoint(options: dict[str, Any]) -> bool:
    """Whether the user has named an endpoint without TLS, as one beside the cluster may be."""
    azure = os.environ.get("AZURE_STORAGE_ENDPOINT") or os.environ.get("AZURE_ENDPOINT", "")
    endpoints = (options.get("endpoint"), _endpoint_of_environment(), azure)
    return any(str(endpoint).startswith("http://") for endpoint in endpoints)
