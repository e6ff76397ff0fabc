"""The store publishes a profile once, verifies every byte it reads, and heals what is damaged."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from search.paths import SweepPaths
from search.redaction import redacted, redacted_text
from search.store.keys import profile_file_name
from search.store.objects import ObjectStorage
from search.store.profiles import ProfileStore, load_profile, profile_key
from spaces.errors import ConfigError, ProfileError, StoreError
from spaces.profile import Profile
from spaces.target import TargetModule

KEY = hashlib.sha256(b"a key").hexdigest()
OTHER = hashlib.sha256(b"another key").hexdigest()


def profile_bytes(seed: int = 0) -> bytes:
    """A profile file, written without the code under test."""
    draw = np.random.default_rng(seed)
    tensors = {
        "layer.query/hits": draw.integers(0, 5, 4).astype(np.int32),
        "layer.query/row_importance": draw.random(4).astype(np.float32),
    }
    about = {
        "schema_version": 1,
        "scored_steps": 5,
        "top_percent_grid": [1, 5],
        "modules": [{"name": "layer.query", "shape": [4, 3]}],
    }
    return safetensors.numpy.save(tensors, metadata={"ranksweep": json.dumps(about)})


@pytest.fixture
def store(store_uri: str) -> ProfileStore:
    return ProfileStore(store_uri)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "local"


@pytest.fixture
def local(folder: Path) -> ProfileStore:
    return ProfileStore(f"file://{folder}")


def published(store: ProfileStore, key: str = KEY) -> str:
    """The name of the one profile file under a key."""
    names = store.objects.list(f"profiles/{key}")
    (file,) = [name for name in names if name.endswith(".safetensors")]
    return file


def quarantined(store: ProfileStore, key: str = KEY) -> list[str]:
    return sorted(name.split("/")[-1] for name in store.objects.list(f"quarantine/{key}"))


# Publication ----------------------------------------------------------------------------------


def test_what_is_put_is_what_is_got(store: ProfileStore) -> None:
    assert store.get(KEY) is None
    assert store.put(KEY, profile_bytes(3), {"task": "movie"}) is True

    profile = store.get(KEY)

    assert profile is not None
    expected = np.random.default_rng(3).integers(0, 5, 4)
    np.testing.assert_array_equal(profile.require("layer.query", "hits"), expected)


def test_the_manifest_says_what_the_file_is(store: ProfileStore) -> None:
    data = profile_bytes()
    store.put(KEY, data, {"task": "movie", "sha256": "a lie", "key": "a lie"})

    digest = hashlib.sha256(data).hexdigest()
    manifest = json.loads(store.objects.get(f"profiles/{KEY}/manifest.json") or b"")

    assert manifest["task"] == "movie"
    assert manifest["key"] == KEY
    assert manifest["sha256"] == digest
    assert manifest["size"] == len(data)
    assert published(store) == f"profiles/{KEY}/profile-{digest}.safetensors"
    assert store.manifest(KEY) == manifest
    assert store.list() == [manifest]


def test_the_second_to_publish_changes_nothing(store: ProfileStore) -> None:
    store.put(KEY, profile_bytes(1), {"by": "first"})

    assert store.put(KEY, profile_bytes(2), {"by": "second"}) is False

    manifest = store.manifest(KEY)
    assert manifest is not None
    assert manifest["by"] == "first"
    assert manifest["sha256"] == hashlib.sha256(profile_bytes(1)).hexdigest()
    assert store.get(KEY) is not None


def test_of_sixteen_threads_one_publishes(store_uri: str) -> None:
    barrier = threading.Barrier(16)

    def race(number: int) -> tuple[bool, bytes | None]:
        store = ProfileStore(store_uri)
        barrier.wait()
        won = store.put(KEY, profile_bytes(number), {"by": number})
        profile = store.get(KEY)
        return won, None if profile is None else profile.to_bytes()

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(race, range(16)))

    assert sum(won for won, _ in outcomes) == 1
    read = {data for _, data in outcomes}
    assert len(read) == 1, "two racers read different profiles"
    assert None not in read
    winner = next(number for number, (won, _) in enumerate(outcomes) if won)
    manifest = ProfileStore(store_uri).manifest(KEY)
    assert manifest is not None
    assert manifest["by"] == winner


RACER = """
import pathlib, sys, time
from search.store.profiles import ProfileStore
store = ProfileStore(sys.argv[1])
data = pathlib.Path(sys.argv[4]).read_bytes()
print("ready", flush=True)
sys.stdin.readline()
print(store.put(sys.argv[2], data, {"by": sys.argv[3]}), store.get(sys.argv[2]) is not None)
"""


def test_of_several_processes_one_publishes(store_uri: str, tmp_path: Path) -> None:
    racers = []
    for number in range(4):
        file = tmp_path / f"{number}.safetensors"
        file.write_bytes(profile_bytes(number))
        racers.append(
            subprocess.Popen(
                [sys.executable, "-c", RACER, store_uri, KEY, str(number), str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[3],
            )
        )
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outputs = [racer.communicate(timeout=60)[0].strip() for racer in racers]

    assert sorted(outputs) == ["False True", "False True", "False True", "True True"]


# Damage ---------------------------------------------------------------------------------------


def flip_a_byte(store: ProfileStore) -> None:
    data = bytearray(store.objects.get(published(store)) or b"")
    data[-1] ^= 1
    store.objects.put(published(store), bytes(data))


def cut_short(store: ProfileStore) -> None:
    store.objects.put(published(store), (store.objects.get(published(store)) or b"")[:-3])


def empty(store: ProfileStore) -> None:
    store.objects.put(published(store), b"")


def swap_file(store: ProfileStore) -> None:
    store.objects.put(published(store), profile_bytes(77))


def swap_all(store: ProfileStore) -> None:
    manifest = store.objects.get(f"profiles/{OTHER}/manifest.json") or b""
    file = published(store, OTHER)
    store.objects.put(f"profiles/{KEY}/manifest.json", manifest)
    store.objects.put(file.replace(OTHER, KEY), store.objects.get(file) or b"")


def break_manifest(store: ProfileStore) -> None:
    store.objects.put(f"profiles/{KEY}/manifest.json", b'{"file": "profile-')


def point_manifest_outside(store: ProfileStore) -> None:
    manifest = json.loads(store.objects.get(f"profiles/{KEY}/manifest.json") or b"")
    manifest["file"] = "../../../etc/passwd"
    store.objects.put(f"profiles/{KEY}/manifest.json", json.dumps(manifest).encode())


@pytest.mark.parametrize(
    ("damage", "moved"),
    [
        (flip_a_byte, 2),
        (cut_short, 2),
        (empty, 2),
        (swap_file, 2),
        (swap_all, 2),
        (break_manifest, 1),
        (point_manifest_outside, 1),
    ],
)
def test_a_damaged_profile_is_quarantined_aloud_and_can_be_published_again(
    store: ProfileStore,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[ProfileStore], None],
    moved: int,
) -> None:
    store.put(KEY, profile_bytes(), {})
    store.put(OTHER, profile_bytes(9), {})
    damage(store)

    with caplog.at_level(logging.WARNING):
        assert store.get(KEY) is None

    assert any(KEY in record.getMessage() for record in caplog.records)
    assert all("\n" not in record.getMessage() for record in caplog.records)
    assert store.objects.get(f"profiles/{KEY}/manifest.json") is None
    assert "manifest.json" in quarantined(store)
    assert len(quarantined(store)) == moved
    assert store.keys() == (OTHER,)
    assert store.put(KEY, profile_bytes(), {}) is True
    assert store.get(KEY) is not None


def test_a_profile_that_cannot_be_the_one_is_quarantined(
    store: ProfileStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.put(KEY, profile_bytes(), {})
    assert store.get(KEY, lambda profile: None) is not None

    assert store.get(KEY, lambda profile: "it is the profile of another base") is None

    assert "another base" in caplog.text
    assert len(quarantined(store)) == 2
    assert store.keys() == ()


@pytest.mark.server
def test_a_node_fetches_a_remote_profile_once(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKSWEEP_CACHE", str(tmp_path / "cache"))
    ProfileStore(s3).put(KEY, profile_bytes(4), {})
    fetched: list[str] = []
    get = ObjectStorage.get

    def counted(storage: ObjectStorage, name: str) -> bytes | None:
        fetched.append(name)
        return get(storage, name)

    monkeypatch.setattr(ObjectStorage, "get", counted)
    for _ in range(10):
        profile = ProfileStore(s3).get(KEY)
        assert profile is not None
        assert profile.to_bytes() == Profile.from_bytes(profile_bytes(4), "").to_bytes()
    assert sum(name.endswith(".safetensors") for name in fetched) == 1
    # what was removed from the store is not served from the cache
    assert ProfileStore(s3).remove(KEY)
    assert ProfileStore(s3).get(KEY) is None


def test_what_is_no_profile_is_quarantined_though_its_hash_is_right(
    store: ProfileStore,
) -> None:
    store.put(KEY, b"not a safetensors file", {})

    assert store.get(KEY) is None
    assert len(quarantined(store)) == 2


def test_a_second_damage_does_not_overwrite_the_first(store: ProfileStore) -> None:
    for _ in range(2):
        store.put(KEY, profile_bytes(), {})
        flip_a_byte(store)
        assert store.get(KEY) is None

    assert quarantined(store).count("manifest.json") == 2


def test_readers_that_find_the_same_damage_heal_it_together(store_uri: str) -> None:
    damaged = ProfileStore(store_uri)
    damaged.put(KEY, profile_bytes(), {})
    flip_a_byte(damaged)
    barrier = threading.Barrier(12)

    def heal(_: int) -> bool:
        store = ProfileStore(store_uri)
        barrier.wait()
        return store.get(KEY) is None and store.put(KEY, profile_bytes(), {})

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(heal, range(12)))

    store = ProfileStore(store_uri)
    profile = store.get(KEY)
    assert profile is not None
    assert profile.scored_steps == 5


def test_a_manifest_that_points_to_nothing_counts_as_absent(
    store: ProfileStore,
) -> None:
    store.put(KEY, profile_bytes(), {})
    store.objects.delete(published(store))

    assert store.get(KEY) is None
    assert store.keys() == ()
    assert store.put(KEY, profile_bytes(), {}) is True


def test_a_damaged_copy_without_manifest_is_replaced_by_publication(
    store: ProfileStore,
) -> None:
    store.put(KEY, profile_bytes(), {})
    flip_a_byte(store)
    store.objects.delete(f"profiles/{KEY}/manifest.json")

    assert store.put(KEY, profile_bytes(), {}) is True
    assert store.get(KEY) is not None


def test_verify_reports_every_profile(store: ProfileStore) -> None:
    store.put(KEY, profile_bytes(), {})
    store.put(OTHER, profile_bytes(1), {})
    assert all(each.ok for each in store.verify())

    flip_a_byte(store)

    assert {each.key: each.ok for each in store.verify()} == {KEY: False, OTHER: True}
    (again,) = store.verify(KEY)
    assert again.ok is False
    assert again.detail == "not in the store"


def test_remove_takes_everything_of_a_key(store: ProfileStore) -> None:
    store.put(KEY, profile_bytes(1), {})
    store.put(KEY, profile_bytes(2), {})
    store.put(OTHER, profile_bytes(), {})

    assert store.remove(KEY) is True

    assert store.objects.list(f"profiles/{KEY}") == ()
    assert store.get(OTHER) is not None
    assert store.remove(KEY) is False


# Access ---------------------------------------------------------------------------------------


def test_a_local_store_is_readable_by_its_owner_alone(local: ProfileStore, folder: Path) -> None:
    before = os.umask(0o000)
    try:
        local.put(KEY, profile_bytes(), {})
        flip_a_byte(local)
        local.get(KEY)
        local.put(KEY, profile_bytes(), {})
    finally:
        assert os.umask(before) == 0o000, "the process's umask was not put back"

    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_reading_creates_no_store(local: ProfileStore, folder: Path) -> None:
    assert local.get(KEY) is None
    assert local.list() == []
    assert local.verify() == ()
    assert local.remove(KEY) is False
    assert not folder.exists()


@pytest.mark.parametrize("uri", ["file://nested/store", "nested/store"])
def test_a_relative_uri_means_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    store = ProfileStore(uri)
    store.put(KEY, profile_bytes(), {})
    monkeypatch.chdir("/")

    assert (tmp_path / "nested" / "store" / "profiles" / KEY / "manifest.json").is_file()
    assert ProfileStore(store.uri).get(KEY) is not None


@pytest.mark.parametrize("uri", ["", "file://", "ftp://host/dir", "s4://bucket", "s3://"])
def test_a_uri_that_names_no_store_is_a_usage_error(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"^store: .*; ") as caught:
        ProfileStore(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "..", "../" + KEY, KEY[:-1], KEY.upper(), KEY + "\n"])
def test_no_key_leaves_its_prefix(store: ProfileStore, key: str) -> None:
    with pytest.raises(StoreError):
        store.put(key, profile_bytes(), {})
    with pytest.raises(StoreError):
        store.get(key)


def test_a_store_that_cannot_be_written_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = ProfileStore(f"file://{tmp_path}/file/store")

    with pytest.raises(StoreError, match=r"store: cannot .*permissions") as caught:
        store.put(KEY, profile_bytes(), {})
    assert "\n" not in str(caught.value)


def test_an_unreachable_server_is_an_error_without_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAVERYSECRET")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "alsosecret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = ProfileStore("s3://user:hunter2@bucket/prefix?token=topsecret")

    with pytest.raises(StoreError) as caught:
        store.get(KEY)

    message = str(caught.value)
    assert "bucket" in message
    assert "credentials" in message
    assert "\n" not in message
    for secret in ("hunter2", "topsecret", "AKIAVERYSECRET", "alsosecret"):
        assert secret not in message
    assert "hunter2" not in store.name


# Files and keys -------------------------------------------------------------------------------


def test_a_profile_is_loaded_from_a_file_or_by_the_start_of_its_key(
    store: ProfileStore, tmp_path: Path
) -> None:
    store.put(KEY, profile_bytes(1), {})
    file = tmp_path / profile_file_name(hashlib.sha256(profile_bytes(1)).hexdigest())
    file.write_bytes(profile_bytes(1))

    wanted = np.random.default_rng(1).integers(0, 5, 4)
    for ref in (str(file), KEY, KEY[:8]):
        np.testing.assert_array_equal(
            load_profile(ref, store).require("layer.query", "hits"), wanted
        )


def test_a_reference_that_means_no_profile_is_an_error(store: ProfileStore, tmp_path: Path) -> None:
    near = KEY[:6] + OTHER[6:]
    for key in (KEY, near):
        store.put(key, profile_bytes(), {})

    with pytest.raises(StoreError, match="2 keys"):
        load_profile(KEY[:6], store)
    with pytest.raises(StoreError, match="no key"):
        load_profile("ffff" if not KEY.startswith("ffff") else "0000", store)
    with pytest.raises(ProfileError, match="neither a file nor a key"):
        load_profile(str(tmp_path / "missing.safetensors"), store)


# The key of a profile -------------------------------------------------------------------------

TARGETS = [TargetModule("layer.query", (4, 3)), TargetModule("layer.key", (4, 3))]
INPUTS = {
    "base_fingerprint": "b" * 64,
    "train_fingerprint": "t" * 64,
    "targets": TARGETS,
    "settings": {"rank": 8, "learning_rate": 2e-4, "top_percent": [1, 2, 5, 10]},
    "seed": 0,
    "dtype": "float32",
}


def key_with(**changes: object) -> str:
    return profile_key(**{**INPUTS, **changes})  # type: ignore[arg-type]


def test_the_key_is_the_hash_of_the_canonical_json() -> None:
    # RFC 8785 by hand: keys sorted, no spaces, numbers as ECMAScript writes them.
    text = (
        '{"algorithm_version":1,"base":"' + "b" * 64 + '","dtype":"float32","schema_version":1,'
        '"seed":0,"settings":{"learning_rate":0.0002,"rank":8,"top_percent":[1,2,5,10]},'
        '"targets":[{"name":"layer.query","shape":[4,3]},{"name":"layer.key","shape":[4,3]}],'
        '"train":"' + "t" * 64 + '"}'
    )
    assert key_with() == hashlib.sha256(text.encode()).hexdigest()


def test_a_base_in_four_bits_has_profiles_of_its_own() -> None:
    assert key_with(quantization="nf4") != key_with()
    assert key_with(quantization=None) == key_with()


def test_the_key_does_not_depend_on_how_the_settings_are_written() -> None:
    settings = {"top_percent": (1.0, 2.0, 5.0, 10.0), "rank": 8.0, "learning_rate": 0.0002}
    assert key_with(settings=settings) == key_with()
    by_name = {**INPUTS["settings"], "target_modules": ["query", "key"], "seed": 7}  # type: ignore[dict-item]
    assert key_with(settings=by_name) == key_with()


def test_a_profile_with_warm_up_has_the_key_of_an_algorithm_of_its_own() -> None:
    def document(version: int, ratio: str) -> str:
        return (
            f'{{"algorithm_version":{version},"base":"{"b" * 64}","dtype":"float32",'
            f'"schema_version":1,"seed":0,"settings":{{"warmup_ratio":{ratio}}},"targets":[],'
            f'"train":"{"t" * 64}"}}'
        )

    for version, ratio in ((1, 0), (2, 0.1)):
        key = key_with(settings={"warmup_ratio": float(ratio)}, targets=[])
        assert key == hashlib.sha256(document(version, str(ratio)).encode()).hexdigest()


def test_every_input_is_in_the_key() -> None:
    keys = {
        key_with(),
        key_with(base_fingerprint="c" * 64),
        key_with(train_fingerprint="u" * 64),
        key_with(targets=TARGETS[::-1]),
        key_with(targets=TARGETS[:1]),
        key_with(targets=[TargetModule("layer.query", (3, 4)), TARGETS[1]]),
        key_with(settings={**INPUTS["settings"], "rank": 16}),  # type: ignore[dict-item]
        key_with(seed=1),
        key_with(dtype="bfloat16"),
    }
    assert len(keys) == 9


# Paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../up", ".hidden", "a b", "x" * 101, "a\n"]
)
def test_a_sweep_name_cannot_leave_its_folder(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^name: "):
        SweepPaths(name=name)


def test_the_files_of_a_sweep_lie_in_its_folder(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path, "movie-minilm")
    for file in (paths.sweep_file, paths.study_db, paths.tune, paths.log):
        assert file.is_relative_to(tmp_path / "sweeps" / "movie-minilm")
    paths.make_sweep()
    assert paths.tune.is_dir()
    assert stat.S_IMODE(paths.sweep.stat().st_mode) == 0o700
    assert SweepPaths().store_uri == "file://.ranksweep/store"
    assert SweepPaths().tracking_uri == "sqlite:///.ranksweep/mlflow.db"


def test_credentials_are_not_shown() -> None:
    assert redacted("s3://id:key@bucket/dir?sig=abc") == "s3://***@bucket/dir?***"
    assert redacted("postgresql://me:p@ss@host/db") == "postgresql://***@host/db"
    assert redacted("sqlite:///.ranksweep/mlflow.db") == "sqlite:///.ranksweep/mlflow.db"
    assert redacted("hub:org/name@revision") == "hub:org/name@revision"
    text = "GET http://u:p@host:80/x?token=1 failed, see https://docs"
    assert redacted_text(text) == "GET http://***@host:80/x?*** failed, see https://docs"
