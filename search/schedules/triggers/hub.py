"""A model of the Hugging Face hub: the newest commit of a revision that is followed."""

from __future__ import annotations

import os

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from search.redaction import redacted_text
from search.schedules.trigger import Look, Sighting
from search.schedules.triggers.memory import note, recalled
from search.schedules.triggers.settings import Existing, HubSettings
from search.schedules.triggers.whole_model import lacking_in_names
from search.store.objects import ObjectStorage
from spaces.errors import RanksweepError, one_line

TIMEOUT_S = 20.0


class Hub:
    """A trigger: what a branch or tag of a repository points to now. HF_ENDPOINT names another hub,
    HF_TOKEN opens what is not public."""

    def __init__(self, settings: HubSettings, *, existing: Existing = "newest") -> None:
        self._repo, self._revision = settings.repo, settings.revision
        self._existing = existing
        self.name = f"hub {settings.repo}@{settings.revision}"

    def look(self, memory: ObjectStorage) -> Look:
        """The newest commit. Raises RanksweepError where the hub cannot be asked."""
        info = self._info()
        if not info.sha:
            raise RanksweepError("the hub names no commit; check `revision`")
        before = recalled(memory)
        passed = before.get("passed", info.sha if self._existing == "skip" else "")
        note(memory, before, {"passed": passed})
        if info.sha == passed:
            return Look()
        short = f"{self._repo}@{info.sha[:8]}"
        names = [file.rfilename for file in info.siblings or ()]
        if reason := lacking_in_names(names):
            return Look(waiting=(f"{short}: {reason}",))
        changed = info.last_modified.isoformat() if info.last_modified is not None else ""
        base = f"hub:{self._repo}@{info.sha}"
        at = f"{changed} {info.sha}"
        return Look((Sighting(self.name, short, base, at, family=self._repo),))

    def _info(self) -> huggingface_hub.ModelInfo:
        api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        try:
            return api.model_info(self._repo, revision=self._revision, timeout=TIMEOUT_S)
        except OfflineModeIsEnabled:
            reason, remedy = "HF_HUB_OFFLINE is set", "unset it, or leave `on.hub` out"
        except GatedRepoError:
            reason, remedy = "it is gated", "ask for access, and set HF_TOKEN"
        except RepositoryNotFoundError:
            reason = "there is no such repository, or it is private"
            remedy = "check `repo`, and set HF_TOKEN where it is private"
        except RevisionNotFoundError:
            reason, remedy = f"there is no revision {self._revision}", "check `revision`"
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else "an error"
            reason, remedy = f"the hub answers {status}", "it is asked again at the next look"
            if status in (401, 403, 404):  # of a look-alike, which does not say why
                remedy = "check `repo` and `revision`, and set HF_TOKEN where it is private"
        except HFValidationError as error:
            reason, remedy = one_line(error), "check `repo`"
        except Exception as error:  # of the library beneath, which is another in each version
            reason = redacted_text(one_line(error))[:200]
            remedy = "check the network and the proxy variables"
        raise RanksweepError(f"{reason}; {remedy}")
