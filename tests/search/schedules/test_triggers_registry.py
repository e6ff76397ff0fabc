"""New versions of registered models, and what an alias points to, are brought as bases."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.schedules.trigger import Look
from search.schedules.triggers.registered_layout import hub_reference, laid_out
from search.schedules.triggers.registry import Registry
from search.schedules.triggers.settings import Existing, RegistrySettings
from search.store.objects import ObjectStorage
from search.tracking.registry_models import RegisteredModels
from spaces.errors import TrackingError
from tests.mlflow_server import MlflowServer
from tests.search.schedules.whole_models import files_of, model_files, weights, write

Register = Callable[..., str]


class Looker:
    """A trigger on a registry, with its memory in a store."""

    def __init__(
        self, uri: str, folder: Path, existing: Existing = "all", **settings: str | None
    ) -> None:
        self._settings = RegistrySettings.model_validate(settings)
        self._uri, self._folder, self._existing = uri, folder, existing
        self._memory = ObjectStorage(f"file://{folder / 'store'}").under("triggers/a")

    def look(self) -> Look:
        trigger = Registry(
            self._settings,
            tracking_uri=self._uri,
            cache=self._folder / "cache",
            existing=self._existing,
        )
        return trigger.look(self._memory)


@pytest.fixture
def client(database: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=database, registry_uri=database)


@pytest.fixture
def register(client: Any, tmp_path: Path) -> Register:
    """Registers files as the next version of a model; gives the folder that they lie in."""

    def registered(name: str, files: dict[str, bytes], **tags: str) -> str:
        if not client.search_registered_models(f"name='{name}'"):
            client.create_registered_model(name)
        number = len(client.search_model_versions(f"name='{name}'")) + 1
        folder = write(tmp_path / "artifacts" / name / str(number), files)
        client.create_model_version(name, folder.as_uri(), tags=tags)
        return str(folder)

    return registered


def subjects(look: Look) -> list[str]:
    return [each.subject for each in look.found]


def brought(look: Look) -> list[dict[str, bytes]]:
    return [files_of(Path(each.base.removeprefix("path:"))) for each in look.found]


def test_each_version_is_brought_as_a_folder_of_its_own(
    database: str, register: Register, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    looker = Looker(database, tmp_path, model="encoder")
    assert looker.look() == Look()
    assert caplog.messages == ["registry encoder: no such model is registered yet"]
    register("encoder", model_files(1) | {"optimizer.pt": b"x"})
    register("encoder", {f"checkpoint/{name}": each for name, each in model_files(2).items()})
    register("decoder", model_files(3))

    look = looker.look()
    assert subjects(look) == ["encoder version 1", "encoder version 2"]
    assert brought(look) == [model_files(1), model_files(2)]
    assert [Path(each.base).name for each in look.found] == ["encoder-v1", "encoder-v2"]
    assert look.found[0].at < look.found[1].at
    assert {each.family for each in look.found} == {"encoder"}
    assert looker.look() == look


@pytest.mark.parametrize(("existing", "there"), [("all", [1, 2]), ("newest", [2]), ("skip", [])])
def test_of_the_versions_that_are_there_at_first_what_is_asked_for_counts(
    database: str, register: Register, tmp_path: Path, existing: Existing, there: list[int]
) -> None:
    for number in (1, 2):
        register("encoder", model_files(number))
    looker = Looker(database, tmp_path, existing, model="enc*")
    assert subjects(looker.look()) == [f"encoder version {number}" for number in there]
    register("encoder", model_files(3))
    register("encore", model_files(4))
    assert subjects(looker.look())[len(there) :] == ["encoder version 3", "encore version 1"]


def test_an_alias_is_followed(
    client: Any,
    database: str,
    register: Register,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number in (1, 2):
        register("encoder", model_files(number))
    looker = Looker(database, tmp_path, "skip", model="encoder", alias="Candidate")
    assert looker.look() == Look()
    assert "none with the alias Candidate" in caplog.text
    client.set_registered_model_alias("encoder", "candidate", "2")
    assert subjects(looker.look()) == ["encoder version 2"], "it was not there at the first look"
    client.set_registered_model_alias("encoder", "candidate", "1")
    assert subjects(looker.look()) == ["encoder version 1"]

    there = Looker(database, tmp_path / "other", "skip", model="encoder", alias="candidate")
    assert there.look().found == ()
    client.set_registered_model_alias("encoder", "candidate", "2")
    assert subjects(there.look()) == ["encoder version 2"]
    client.set_registered_model_alias("encoder", "candidate", "1")
    assert subjects(there.look()) == ["encoder version 1"], "that it is again is news"


def test_what_ranksweep_has_registered_never_counts(
    client: Any,
    database: str,
    register: Register,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    register("task-encoder", model_files(), **{"ranksweep.task": "task"})
    register("mixed", model_files())
    register("mixed", model_files(2))
    client.set_model_version_tag("mixed", "1", "ranksweep.run", "1")
    assert subjects(Looker(database, tmp_path, model="*").look()) == ["mixed version 2"]

    champion = Looker(database, tmp_path / "other", model="task-encoder")
    assert champion.look() == Look()
    assert "only what ranksweep has registered" in caplog.text


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (model_files() | {"model.safetensors": weights()[:-1]}, "that is not whole"),
        ({}, "has no files where it was registered from"),
        ({"MLmodel": b"flavors: {sklearn: {}}", "model.pkl": b""}, "is no model of transformers"),
        ({"MLmodel": b"", "peft/adapter_config.json": b"{}"}, "holds an adapter"),
    ],
)
def test_a_version_that_is_not_whole_is_waited_for(
    database: str, register: Register, tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    folder = register("encoder", files)
    looker = Looker(database, tmp_path, model="encoder")
    for _ in range(2):
        look = looker.look()
        assert look.found == ()
        assert look.waiting[0].startswith("encoder version 1: ")
        assert said in look.waiting[0]
    models = tmp_path / "cache" / "models"
    assert not models.exists() or list(models.iterdir()) == []

    for left in files:
        (Path(folder) / left).unlink()
    write(Path(folder), model_files(7) | {"more": b""})
    assert brought(looker.look()) == [model_files(7)], "its files are others now"


def test_a_version_that_cannot_be_brought_keeps_no_other_from_being_seen(
    database: str, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"MLmodel": b"flavors: {sklearn: {}}"}
    for files in (model_files(1), broken, model_files(3)):
        register("encoder", files)
    fetch, files_there = RegisteredModels.fetch, RegisteredModels.files

    def no_room(models: RegisteredModels, version: Any, *rest: Any) -> Path:
        if version.version == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return fetch(models, version, *rest)

    def no_rights(models: RegisteredModels, version: Any) -> dict[str, int]:
        if version.version == 1:
            raise TrackingError("tracking: error code 403; set MLFLOW_TRACKING_TOKEN")
        return files_there(models, version)

    looker = Looker(database, tmp_path, model="encoder")
    for name, put, said in (("fetch", no_room, "No space left"), ("files", no_rights, "code 403")):
        with monkeypatch.context() as patch:
            patch.setattr(RegisteredModels, name, put)
            look = looker.look()
        assert subjects(look) == ["encoder version 3"]
        assert [each.partition(": ")[0] for each in look.waiting] == [
            "encoder version 1",
            "encoder version 2",
        ]
        assert said in look.waiting[0]
    register("encoder", model_files(4))
    assert subjects(looker.look()) == [f"encoder version {number}" for number in (1, 3, 4)]


def test_a_model_of_the_transformers_flavour_is_one_folder() -> None:
    names = [
        "artifacts/MLmodel",
        "artifacts/model/config.json",
        "artifacts/model/model.safetensors",
        "artifacts/components/tokenizer/tokenizer.json",
        "artifacts/components/image_processor/preprocessor_config.json",
        "artifacts/requirements.txt",
    ]
    assert laid_out(names) == {
        "config.json": names[1],
        "model.safetensors": names[2],
        "tokenizer.json": names[3],
        "preprocessor_config.json": names[4],
    }
    assert laid_out(["a/config.json", "b/config.json"]) == {}, "which of the two?"


def test_a_version_that_refers_to_the_hub_is_a_base_of_the_hub(
    database: str, register: Register, tmp_path: Path
) -> None:
    mlmodel = b"flavors: {transformers: {source_model_name: o/m, source_model_revision: abc}}"
    register("encoder", {"MLmodel": mlmodel, "components/tokenizer/tokenizer.json": b"{}"})
    (found,) = Looker(database, tmp_path, model="encoder").look().found
    assert found.base == "hub:o/m@abc"
    assert hub_reference(b"flavors: {transformers: {source_model_name: /local}}") is None
    assert hub_reference(b"{") is None


def test_a_registry_that_is_not_there_yet_is_not_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    looker = Looker(f"sqlite:///{tmp_path}/none.db", tmp_path, model="encoder")
    assert looker.look() == Look()
    assert caplog.messages == [f"registry encoder: there is no database {tmp_path}/none.db yet"]
    assert not (tmp_path / "none.db").exists()


@pytest.mark.server
def test_what_mlflow_writes_for_transformers_comes_from_its_server(
    server: MlflowServer,
    tiny_sweep: dict[str, Any],
    tmp_path: Path,
    tracked_to: Callable[[str], None],
) -> None:
    import mlflow
    from transformers import AutoModel, AutoTokenizer

    base = Path(tiny_sweep["base"].removeprefix("path:"))
    tracked_to(server.uri)
    with mlflow.start_run():
        mlflow.transformers.log_model(
            {"model": AutoModel.from_pretrained(base),
             "tokenizer": AutoTokenizer.from_pretrained(base)},
            name="model", task="feature-extraction", pip_requirements=["torch"],
            registered_model_name="encoder",
        )  # fmt: skip
    looker = Looker(server.uri, tmp_path, model="encoder")
    look = looker.look()
    (files,) = brought(look)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert files["model.safetensors"] == (base / "model.safetensors").read_bytes()
    AutoTokenizer.from_pretrained(look.found[0].base.removeprefix("path:"))
    assert looker.look() == look
