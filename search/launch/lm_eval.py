"""lm-eval in a launch: what is asked for is checked before anything starts, and the untouched base
is measured once a sweep."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from search.config.sweep import SweepConfig
from search.paths import SweepPaths, private_files
from search.progress import Progress
from search.queries.lm_eval_scores import as_metrics, settings_tags
from search.tracking.tracker import Tracker
from spaces.errors import CancelledJobError, ConfigError, JobError, TrackingError
from trainables.bases.parts import head_class
from trainables.resident.jobs import BaseJob
from trainables.tasks.kinds.registry import kind_of
from trainables.training.lm_eval_settings import LmEvalSettings
from trainables.training.lm_eval_tasks import LmEvalTasks, check_package

if TYPE_CHECKING:
    from trainables.resident.groups import ResidentWorkers

logger = logging.getLogger(__name__)


def lm_eval_tasks(config: SweepConfig) -> LmEvalTasks | None:
    """What lm-eval is asked for; None where it is not."""
    if config.confirm is None or config.confirm.lm_eval is None:
        return None
    return LmEvalTasks(config.confirm.lm_eval, str(Path.cwd()))


def asked_tags(config: SweepConfig) -> dict[str, str]:
    """The tag of a sweep's run that says which scores are its own; none where it asks for none."""
    asked = lm_eval_tasks(config)
    return {} if asked is None else {"lm_eval_digest": asked.settings.digest}


def check_lm_eval(config: SweepConfig, *, load_all: bool = False) -> None:
    """Refuse what lm-eval could not measure hours later; with `load_all` its data are fetched.

    Raises ConfigError: lm-eval is missing, the base does not write, or a task is not there.
    """
    asked = lm_eval_tasks(config)
    if asked is None:
        return
    check_package()
    if not head_class(kind_of(config.task.kind).head).writes:
        raise ConfigError(
            f"confirm.lm_eval: does not go with kind {config.task.kind}; lm-eval needs a model "
            "that writes, which the kinds multiple_choice, causal and generation train"
        )
    asked.check(load_all=load_all)


def scores_of_base(
    asked: LmEvalTasks,
    *,
    workers: ResidentWorkers,
    tracker: Tracker,
    sweep_run_id: str,
    paths: SweepPaths,
    view: Progress,
) -> Mapping[str, float]:
    """lm-eval's scores of the untouched base, measured once a sweep and logged as a run.

    None of them where it fails, which is said: the confirmations go on without.
    """
    scores: Mapping[str, float] | None = _kept(paths, asked.settings)
    if scores is None:
        view.message("confirm: lm-eval measures the untouched base")
        try:
            scores = workers.run(BaseJob(job_id="base", lm_eval=asked)).lm_eval
        except CancelledJobError:  # with the launch; the next one does it again
            return {}
        except JobError as error:
            view.message(f"the untouched base has no scores of lm-eval: {error}")
            return {}
        _keep(paths, asked.settings, scores)
    try:
        tracker.log_base(sweep_run_id, as_metrics(scores), settings_tags(asked.settings))
    except TrackingError as error:
        view.message(
            f"lm-eval's scores of the untouched base are not logged ({error}); launch "
            "with --resume once MLflow answers"
        )
    return scores


def _kept(paths: SweepPaths, settings: LmEvalSettings) -> dict[str, float] | None:
    """The scores that an earlier launch of the sweep has measured with these settings."""
    try:
        found = json.loads(paths.base_scores.read_text())
        same = found["settings"] == settings.of_scores
        return (
            {str(name): float(value) for name, value in found["scores"].items()} if same else None
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is not used: %s", paths.base_scores, error)
        return None


def _keep(paths: SweepPaths, settings: LmEvalSettings, scores: Mapping[str, float]) -> None:
    document = json.dumps({"settings": settings.of_scores, "scores": dict(scores)}, indent=2)
    try:
        with private_files():
            paths.base_scores.write_text(document)
    except OSError as error:  # a full disk must not end the confirmation
        logger.warning("lm-eval's scores of the untouched base are not kept: %s", error)
