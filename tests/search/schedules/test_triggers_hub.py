"""A revision of the hub is followed by its commits, through a stand-in for the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from pydantic import ValidationError

from search.schedules.trigger import Look
from search.schedules.triggers.hub import Hub
from search.schedules.triggers.settings import Existing, HubSettings
from search.store.objects import ObjectStorage
from spaces.errors import RanksweepError
from tests.search.schedules.receiver import receiving

SETTINGS = HubSettings(repo="org/encoder")
WHOLE = ("config.json", "model.safetensors", "tokenizer.json")


class StandIn:
    """What the hub says of `org/encoder`."""

    def __init__(self) -> None:
        self.status, self.commit = 200, "a" * 40
        self.files: tuple[str, ...] = WHOLE

    def answer(self, _: str, path: str) -> tuple[int, bytes]:
        if path.partition("?")[0] != "/api/models/org/encoder/revision/main":
            return 404, b"{}"
        info = {
            "id": "org/encoder",
            "sha": self.commit,
            "lastModified": "2026-11-30T01:00:00.000Z",
            "siblings": [{"rfilename": name} for name in self.files],
        }
        return self.status, json.dumps(info).encode()


def look(tmp_path: Path, existing: Existing = "newest") -> Look:
    memory = ObjectStorage(f"file://{tmp_path}/store").under("t")
    return Hub(SETTINGS, existing=existing).look(memory)


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("existing", ["newest", "skip"])
def test_each_new_commit_is_a_base(
    existing: Existing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = StandIn()
    with receiving(hub.answer) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        before = look(tmp_path, existing)
        hub.commit = "b" * 40
        (after,) = look(tmp_path, existing).found
    assert [each.base for each in before.found] == [f"hub:org/encoder@{'a' * 40}"] * (
        existing == "newest"
    )
    assert before.waiting == ()
    assert (after.base, after.subject) == (f"hub:org/encoder@{'b' * 40}", "org/encoder@bbbbbbbb")
    assert (after.trigger, after.family) == ("hub org/encoder@main", "org/encoder")


def test_a_commit_without_all_of_its_weights_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = StandIn()
    shard, index = "model-00001-of-00002.safetensors", "model.safetensors.index.json"
    hub.files = ("config.json", index, shard, "tokenizer.json")
    with receiving(hub.answer) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        found = look(tmp_path)
    assert found == Look(
        waiting=("org/encoder@aaaaaaaa: has no model-00002-of-00002.safetensors yet",)
    )


@pytest.mark.parametrize(
    ("status", "said"), [(404, "check `repo`"), (401, "set HF_TOKEN"), (503, "answers 503")]
)
def test_a_hub_that_does_not_say_is_told_in_one_line(
    status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = StandIn()
    hub.status = status
    with receiving(hub.answer) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        with pytest.raises(RanksweepError, match=said) as failed:
            look(tmp_path)
    assert "\n" not in str(failed.value)


def test_a_hub_that_is_away_or_not_to_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://user:hunter2@127.0.0.1:9")
    with pytest.raises(RanksweepError, match="check the network") as failed:
        look(tmp_path)
    assert "hunter2" not in str(failed.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RanksweepError, match="HF_HUB_OFFLINE is set; unset it"):
        look(tmp_path)


@pytest.mark.parametrize("repo", ["encoder", "hub:org/encoder", "org/encoder@main", "a/b/c"])
def test_what_is_no_repository_is_refused(repo: str) -> None:
    with pytest.raises(ValidationError):
        HubSettings(repo=repo)
