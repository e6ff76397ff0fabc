"""Every back end keeps one contract: what is written is read, created once, listed and removed."""

from __future__ import annotations

import http.server
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from search.store.objects import ObjectStorage
from spaces.errors import ConfigError, StoreError
from tests.seaweed import BUCKET, SECRET_KEY, Seaweed


@pytest.fixture
def storage(store_uri: str) -> ObjectStorage:
    return ObjectStorage(store_uri)


# The contract ---------------------------------------------------------------------------------


def test_what_is_put_is_what_is_got(storage: ObjectStorage) -> None:
    assert storage.get("a/b.json") is None
    storage.put("a/b.json", b"first")
    storage.put("a/b.json", b"second")
    assert storage.get("a/b.json") == b"second"
    assert storage.get("a") is None


@pytest.mark.parametrize("size", [0, 1, 20_000_000])
def test_an_object_of_any_size_comes_back_whole(storage: ObjectStorage, size: int) -> None:
    content = os.urandom(size)
    storage.put("large", content)
    assert storage.get("large") == content


def test_an_object_is_created_once(storage: ObjectStorage) -> None:
    assert storage.create("lease/1.json", b"mine")
    assert not storage.create("lease/1.json", b"yours")
    assert storage.get("lease/1.json") == b"mine"


def test_creating_the_same_bytes_again_agrees(storage: ObjectStorage) -> None:
    assert storage.create("lease/1.json", b"mine")
    assert storage.create("lease/1.json", b"mine")


def test_of_sixteen_racing_creators_one_wins(store_uri: str) -> None:
    barrier = threading.Barrier(16)

    def race(number: int) -> bool:
        own = ObjectStorage(store_uri)
        barrier.wait()
        return own.create("prize", str(number).encode())

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(race, range(16)))
    assert sum(won) == 1
    assert ObjectStorage(store_uri).get("prize") == str(won.index(True)).encode()


def test_names_are_listed_under_their_prefix_alone(storage: ObjectStorage) -> None:
    assert storage.list("a") == ()
    for name in ("a/1", "a/b/2", "ab/3", "c"):
        storage.put(name, b"")
    assert sorted(storage.list("a")) == ["a/1", "a/b/2"]


def test_a_view_names_objects_without_its_prefix(storage: ObjectStorage) -> None:
    view = storage.under("profiles").under("key")
    view.put("x", b"1")
    assert storage.get("profiles/key/x") == b"1"
    assert view.list("x") == ()
    view.put("part/y", b"2")
    assert view.list("part") == ("part/y",)


def test_an_object_is_removed_and_moved(storage: ObjectStorage) -> None:
    storage.put("a", b"1")
    assert storage.move("a", "q/a")
    assert not storage.move("a", "q/b")
    assert storage.get("a") is None
    assert storage.delete("q/a")
    assert not storage.delete("q/a")


def test_the_back_end_is_found_to_create_once_and_nothing_is_left(storage: ObjectStorage) -> None:
    assert storage.creates_once()
    assert all(step.ok for step in storage.probe())
    assert storage.list("probes") == ()


@pytest.mark.parametrize(
    "name", ["../x", "a/../b", "/a", "a//b", "a/", "", ".hidden", "a/.b", "a b", "a\x00b", "a%2fb"]
)
def test_no_name_leaves_its_prefix(storage: ObjectStorage, name: str) -> None:
    for request in (storage.get, storage.delete, storage.list, storage.under):
        with pytest.raises(StoreError, match="cannot name an object"):
            request(name)
    with pytest.raises(StoreError, match="cannot name an object"):
        storage.put(name, b"")


def test_a_local_folder_is_its_owners_alone(tmp_path: Path) -> None:
    storage = ObjectStorage(f"file://{tmp_path / 'store'}")
    storage.create("a/b", b"")
    storage.put("a/c", b"")
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


# Servers that refuse, lack a bucket, stop, or lie ----------------------------------------------


@pytest.mark.server
def test_wrong_credentials_are_told_without_the_secret(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(StoreError, match="credentials") as caught:
        ObjectStorage(s3).get("a")
    assert "not-the-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.server
def test_a_bucket_that_is_not_there_is_an_error_and_no_empty_store(s3: str) -> None:
    missing = ObjectStorage("s3://no-such-bucket/prefix")
    for request in (missing.get, missing.list):
        with pytest.raises(StoreError, match="create the bucket"):
            request("a")


@pytest.mark.server
def test_a_server_that_stops_in_the_middle_of_writes_loses_nothing_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Seaweed(tmp_path)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.start()
    try:
        storage = ObjectStorage(f"s3://{BUCKET}/faults")
        storage.put("before", b"1")
        large = os.urandom(30_000_000)
        written = threading.Thread(target=storage.put, args=("large", large))
        restarted = threading.Timer(0.05, server.stop)
        written.start()
        restarted.start()
        restarted.join()
        assert not server.runs
        server.start()
        written.join(100)
        assert not written.is_alive()
        assert storage.get("large") == large
        assert storage.get("before") == b"1"
    finally:
        server.stop()


class _Careless(http.server.BaseHTTPRequestHandler):
    """A look-alike of S3 that keeps objects in memory and ignores every condition."""

    objects: dict[str, bytes]
    headers_seen: list[dict[str, str]]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.headers_seen.append({k.lower(): v for k, v in self.headers.items()})
        self.objects[self.path] = body
        self._answer(200)

    def do_GET(self) -> None:
        self._answer(200 if self.path in self.objects else 404, self.objects.get(self.path, b""))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.objects.pop(self.path, None)
        self._answer(204)

    def do_POST(self) -> None:
        """Removal of many objects in one request: as JuiceFS's gateway, it names none of them."""
        self._answer(200, b"<DeleteResult><Deleted></Deleted></DeleteResult>")

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Sun, 22 Nov 2026 08:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Careless]]:
    handler = type("Careless", (_Careless,), {"objects": {}, "headers_seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.block_on_close = False  # clients keep their connections open
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-look-alike")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    server.server_close()


def test_a_back_end_that_ignores_conditions_is_found_out(careless: type[_Careless]) -> None:
    storage = ObjectStorage("s3://bucket/prefix")
    assert not storage.creates_once()
    assert careless.objects == {}
    failed = {step.name: step.detail for step in storage.probe() if not step.ok}
    assert failed["create if absent"] == "an object that is there was created again"


def test_an_object_is_removed_by_itself_for_some_gateways_cannot_remove_many(
    careless: type[_Careless],
) -> None:
    storage = ObjectStorage("s3://bucket/prefix")
    storage.put("a", b"1")
    storage.put("b", b"2")
    assert storage.delete("a")
    assert list(careless.objects) == ["/bucket/prefix/b"]


def test_encryption_and_its_key_are_asked_for(
    careless: type[_Careless], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms")
    monkeypatch.setenv("AWS_SSE_KMS_KEY_ID", "key-of-the-team")
    ObjectStorage("s3://bucket/prefix").put("a", b"1")
    (headers,) = careless.headers_seen
    assert headers["x-amz-server-side-encryption"] == "aws:kms"
    assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-of-the-team"


# Credentials from profile files ------------------------------------------------------------------


@pytest.fixture
def profile_file(seaweed: Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    known = seaweed.environment
    for name in known:
        monkeypatch.delenv(name, raising=False)
    credentials, config = tmp_path / "credentials", tmp_path / "config"
    credentials.write_text(
        f"[team]\naws_access_key_id = {known['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {SECRET_KEY}\n"
    )
    config.write_text(f"[profile team]\nregion = us-east-1\nendpoint_url = {seaweed.url}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    return credentials


@pytest.mark.server
def test_a_profile_of_awss_files_opens_a_store(
    profile_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "team")
    storage = ObjectStorage(f"s3://{BUCKET}/by-profile")
    storage.put("a", b"1")
    assert storage.get("a") == b"1"


@pytest.mark.server
def test_a_profile_that_the_files_lack_is_a_usage_error(
    profile_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigError, match="AWS_PROFILE"):
        ObjectStorage(f"s3://{BUCKET}/by-profile")


# Google and Azure -------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["gs://bucket/prefix", "az://container/prefix"])
def test_google_and_azure_are_opened_without_being_asked(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    assert ObjectStorage(uri).name == uri
