"""How good the choices are that a search finds: some ways of searching recorded surfaces.

Some hundred real trials (see record_surface.py) and a regression over them stand in for training:
any choice of the space is answered at once, with the noise that seeds make. Three regressions are
there, for what stands in must not be what searches: a Gaussian process and a random forest over the
methods' own keys, and the nearest recorded trials. The searches are real:
`search.tuning.searcher.StudySearcher`, one trial after another, without Ray.

    python benchmarks/search_quality.py
    python benchmarks/search_quality.py --surfaces digits --stand-ins forest --ways TPE plan
    python benchmarks/search_quality.py --check

`--check` compares the area under a Pareto front with Monte Carlo, and does nothing else.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from record_surface import SHARES, Record, read_surface
from results import Run

if TYPE_CHECKING:
    from search.surrogate.observation import RelatedSweep
    from spaces.choice import Choice
    from spaces.domain import Domain
    from spaces.planner import Planner
    from spaces.profile import Profile
    from spaces.search_space import SearchSpace

Floats = NDArray[np.float64]

METRIC = "accuracy"
WORST = {"digits": 0.1, "movie": 0.5, "tweets": 0.5, "choices": 0.5}
"""Accuracy of the reference point: about that of who always guesses the largest class."""
HISTORY = {"digits": "parity", "movie": "tweets", "tweets": "movie"}
"""Surface -> the one of another task on its base that is known before."""
STAND_INS = ("forest", "nearest", "gp")
JUDGED_AFTER = (5, 10, 15, 20, 30, 50, 100)
FOLDS = 5
DRAWN = 500  # choices of each method that are looked through for the best there is
NEIGHBOURS = 4


@dataclass(frozen=True)
class Way:
    """A way of searching: Optuna by itself with its own sampler, or as `ranksweep launch` does."""

    optuna_s_own: Literal["RandomSampler", "TPESampler", "GPSampler"] | None = None
    sampler: str = "tpe"
    allocation: str = "equal"
    history: bool = False
    looks: bool = False
    trials: int = 100


WAYS = {
    "random": Way("RandomSampler"),
    "TPE": Way("TPESampler"),
    "GP of Optuna": Way("GPSampler", trials=30),
    "tpe": Way(),
    "plan, equal": Way(sampler="plan", trials=15),
    "plan": Way(sampler="plan", allocation="free", trials=30),
    "plan, history": Way(sampler="plan", allocation="free", history=True, trials=15),
    "plan, looks": Way(sampler="plan", allocation="free", looks=True, trials=15),
}
"""The last ones cost seconds a search, so they are followed for as long as the goals ask."""
GOALS = (("plan", 15, "TPE", 100), ("plan, history", 5, "TPE", 50))
"""A way after so many trials, to be at least as good as another after so many."""
OBJECTIVES = {"front": (METRIC, "trainable_params"), "best": (METRIC,)}


# What stands in for training ----------------------------------------------------------------------


@dataclass(frozen=True)
class Surface:
    """A recorded task: what a choice is worth, and what a trial of it would say."""

    space: SearchSpace
    profile: Profile
    model: Any
    noise: float
    """Standard deviation of the metric between seeds of one choice."""
    explained: float
    """R^2 of the cross-validated regression."""
    ceiling: float
    """R^2 of a regression that knew everything but the noise."""

    @property
    def planner(self) -> Planner:
        """Makes plans by the task's profile."""
        from spaces.planner import Planner

        return Planner(self.profile.targets, self.profile)

    def params(self, choice: Choice) -> int:
        """The exact count of a choice's trainable parameters."""
        return self.planner.params(choice)

    def truth(self, choice: Choice, params: int, rows: float = 1.0) -> float:
        """The metric that a choice has on average over seeds, by the regression."""
        row = features(self.space, choice, params, rows)
        return float(np.clip(self.model.predict(np.array([row]))[0], 0.0, 1.0))


def features(space: SearchSpace, choice: Choice, params: int, rows: float = 1.0) -> list[float]:
    """A choice as numbers: log10 parameters, learning rate and alpha / rank, the methods, every
    method's own keys, and the share of the training rows.

    A key of another method, or one that the choice does not read, is in the middle.
    """
    at, rate = space.params_of(choice), choice.learning_rate
    row = [math.log10(params), math.log10(rate), math.log10(scale_of(choice)), math.log10(rows)]
    row += [float(choice.method == method) for method in space.methods]
    for method, domains in space.domains.items():
        for key, domain in domains.items():
            if key in ("learning_rate", "alpha_over_rank"):
                continue  # one for all, put in front
            row += _place(domain, at.get(f"{method}.{key}"))
    return row


def scale_of(choice: Choice) -> float:
    """alpha over the rank that the choice itself names."""
    values = choice.as_dict()
    return float(values["alpha"] / (values.get("rank") or values["mean_rank"]))


def _place(domain: Domain, value: Any) -> list[float]:
    """Where a value is in its domain, from 0 to 1; one number each where they have no order."""
    from spaces.domain import Fixed, Range

    if isinstance(domain, Fixed):
        return []
    if isinstance(domain, Range):
        if value is None:
            return [0.5]
        scale = math.log if domain.log else float
        return [(scale(value) - scale(domain.low)) / (scale(domain.high) - scale(domain.low))]
    if isinstance(domain.values[0], str):
        return [
            1 / len(domain.values) if value is None else float(value == v) for v in domain.values
        ]
    ordered = sorted(domain.values)
    return [0.5 if value is None else ordered.index(value) / (len(ordered) - 1)]


class Nearest:
    """The mean of the nearest recorded trials, weighed by their distance, learning rate, scale,
    parameters and share of the rows counting double."""

    def fit(self, X: Floats, y: Floats) -> Nearest:
        """Keep the trials."""
        self._spread = X.std(axis=0) + 1e-9
        self._spread[:4] /= 2
        self._X, self._y = X / self._spread, y
        return self

    def predict(self, X: Floats) -> Floats:
        """The value at each row."""
        squares = ((X[:, None] / self._spread - self._X[None]) ** 2).sum(axis=2)
        nearest = np.argsort(squares, axis=1)[:, :NEIGHBOURS]
        weights = 1 / (np.take_along_axis(squares, nearest, axis=1) + 0.1)
        return np.asarray((weights * self._y[nearest]).sum(axis=1) / weights.sum(axis=1))


def regression(stand_in: str, columns: int) -> Any:
    """What stands in for training, not fitted yet."""
    if stand_in == "nearest":
        return Nearest()
    if stand_in == "forest":
        from sklearn.ensemble import RandomForestRegressor

        return RandomForestRegressor(100, min_samples_leaf=2, max_features=0.5, random_state=0)
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    smooth = Matern(np.ones(columns), (0.1, 30.0), nu=2.5)
    kernel = ConstantKernel() * smooth + WhiteKernel(0.1, (1e-3, 1.0))
    return GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)


@cache
def fit(task: str, stand_in: str) -> Surface:
    """The surface of a recording: one regression over all trials, the repeats among them."""
    from sklearn.base import clone
    from sklearn.model_selection import GroupKFold

    from spaces.methods.registry import from_record

    space, records, profile = of_recording(task)
    X = np.array(
        [features(space, from_record(r.choice), r.trainable_params, r.rows) for r in records]
    )
    y = np.array([record.value for record in records])
    full = np.array([record.rows == 1.0 for record in records])
    same = [str(record.choice) for record in records]
    guessed = np.zeros_like(y)
    for train, test in GroupKFold(FOLDS).split(X, y, same):
        model = regression(stand_in, X.shape[1])
        model = model if stand_in == "nearest" else clone(model)
        guessed[test] = model.fit(X[train], y[train]).predict(X[test])
    noise = noise_of([record for record in records if record.rows == 1.0])
    spread = float(y[full].var())
    return Surface(
        space, profile, regression(stand_in, X.shape[1]).fit(X, y), noise,
        explained=1 - float(np.mean((y - guessed)[full] ** 2)) / spread,
        ceiling=1 - noise**2 / spread,
    )  # fmt: skip


@cache
def of_recording(task: str) -> tuple[SearchSpace, list[Record], Profile]:
    """(space, trials, profile) of a recording; the space has alpha as the recording had it."""
    from spaces.search_space import SearchSpace

    recorded, records, profile = read_surface(task)
    space = SearchSpace.parse(recorded["space"])
    return space.fitted(profile.targets, profile.top_percent_grid), records, profile


def noise_of(records: Sequence[Record]) -> float:
    """Standard deviation between seeds, pooled over the choices that were repeated."""
    by_choice: dict[str, list[float]] = {}
    for record in records:
        by_choice.setdefault(str(record.choice), []).append(record.value)
    repeated = [values for values in by_choice.values() if len(values) > 1]
    squares = sum(float(np.sum((np.array(v) - np.mean(v)) ** 2)) for v in repeated)
    return math.sqrt(squares / sum(len(v) - 1 for v in repeated))


# One search --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The trials of one search in order: what was seen, what is true, log10 parameters, and what
    had been spent by their end, in trials on all rows. Trials that ended at a look are left out."""

    seen: Floats
    true: Floats
    log_params: Floats
    spent: Floats

    def after(self, trials: float) -> Found:
        """What had been found for the cost of so many trials."""
        some = self.spent <= trials + 1e-9
        return Found(self.seen[some], self.true[some], self.log_params[some], self.spent[some])


class Trainer:
    """Answers choices at once, and keeps what it answered."""

    def __init__(self, surface: Surface, seed: int) -> None:
        self._surface, self._noise = surface, np.random.default_rng([seed, 1])
        self._spent, self._rows = 0.0, list[tuple[float, float, float, float]]()

    def look(self, choice: Choice, rows: float) -> tuple[float, int]:
        """What a trial on a share of the rows says, and its parameters."""
        params = self._surface.params(choice)
        true = self._surface.truth(choice, params, rows)
        seen = float(np.clip(true + self._noise.normal(0.0, self._surface.noise), 0.0, 1.0))
        self._spent += rows
        if rows == 1.0:
            self._rows.append((seen, true, math.log10(params), self._spent))
        return seen, params

    @property
    def spent(self) -> float:
        """The cost so far, in trials on all rows."""
        return self._spent

    @property
    def found(self) -> Found:
        """All trials on all rows."""
        return Found(*np.array(self._rows).reshape(-1, 4).T)


def search(task: str, stand_in: str, name: str, kind: str, seed: int, trials: int) -> Found:
    """Search the surface of a task in one way."""
    surface, way, objectives = fit(task, stand_in), WAYS[name], OBJECTIVES[kind]
    trials, trainer = min(trials, way.trials), Trainer(surface, seed)
    if way.optuna_s_own is not None:
        _search_by_itself(surface.space, way.optuna_s_own, objectives, seed, trials, trainer)
    else:
        _search_as_launched(task, surface, way, objectives, seed, trials, trainer)
    return trainer.found


def _search_by_itself(
    space: SearchSpace, sampler: str, objectives: Sequence[str], seed: int, trials: int,
    trainer: Trainer,
) -> None:  # fmt: skip
    """Optuna as it comes: it chooses the method too, and nothing is enqueued."""
    import optuna

    from search.study.study import directions

    study = optuna.create_study(
        directions=directions(objectives, "max"),
        sampler=getattr(optuna.samplers, sampler)(seed=seed),
    )
    for _ in range(trials):
        trial = study.ask()
        study.tell(trial, trainer.look(space.suggest(trial), 1.0)[: len(objectives)])


def _search_as_launched(
    task: str, surface: Surface, way: Way, objectives: Sequence[str], seed: int, trials: int,
    trainer: Trainer,
) -> None:  # fmt: skip
    """The searcher, sampler and first choices of `ranksweep launch`."""
    import optuna

    from search.config.sweep import FidelitySettings, SearchSettings
    from search.study.proposals import Proposals
    from search.study.study import directions, make_sampler
    from search.tuning.rungs import Contender, Rungs
    from search.tuning.searcher import StudySearcher
    from spaces.methods.registry import parse_choice
    from trainables.training.settings import TrainSettings

    study = optuna.create_study(
        directions=directions(objectives, "max"), sampler=make_sampler(way.sampler, seed)
    )
    settings = SearchSettings(
        metric=METRIC, objectives=objectives, trials=5 * trials if way.looks else trials,
        allocation=way.allocation, sampler=way.sampler, seed=seed,
        fidelity=FidelitySettings(rows=(*SHARES, 1.0)) if way.looks else None,
    )  # fmt: skip
    searcher = StudySearcher(
        Proposals(
            study, surface.space, surface.planner, settings, TrainSettings(epochs=1),
            enqueue=first_of(surface), history=history_of(task) if way.history else (),
        )
    )  # fmt: skip
    rungs = Rungs(settings.objective, 3.0, pareto=len(objectives) > 1)
    for number in range(settings.trials):
        if trainer.spent >= trials:
            return
        suggested = searcher.suggest(name := str(number))
        if not isinstance(suggested, dict):
            raise SystemExit(f"the search ended after {number} trials: {searcher.shortfall}")
        choice = parse_choice(suggested["choice"])
        who = Contender(choice.method, surface.params(choice), 1, 1)
        for share in SHARES if way.looks else ():
            seen, _ = trainer.look(choice, share)
            searcher.on_trial_result(name, {"look": share, "epoch": 0, METRIC: seen})
            rungs.note(who, name, share, seen)
            if not rungs.goes_on(who, name, share):
                searcher.on_trial_complete(name)
                break
        else:
            seen, _ = trainer.look(choice, 1.0)
            searcher.on_trial_complete(name, {"epoch": 1, METRIC: seen})


def first_of(surface: Surface) -> list[Choice]:
    """What a launch tries first on this surface."""
    from search.study.first_choices import first_choices

    return first_choices(surface.space, surface.planner)


@cache
def history_of(task: str) -> tuple[RelatedSweep, ...]:
    """The recorded trials of the other task on the same base, as an earlier sweep."""
    from search.surrogate.observation import Observation, RelatedSweep
    from spaces.features import plan_features
    from spaces.methods.registry import from_record
    from spaces.planner import Planner

    _, records, profile = of_recording(HISTORY[task])
    planner = Planner(profile.targets, profile)
    known = []
    for record in (record for record in records if record.rows == 1.0):
        choice = from_record(record.choice)
        found = plan_features(planner.plan(choice), choice.learning_rate, profile)
        known.append(
            Observation(found, choice.method, record.value, params=record.trainable_params)
        )
    return (RelatedSweep(HISTORY[task], "base", True, tuple(known)),)


# Judging -----------------------------------------------------------------------------------------


def area(accuracy: Floats, log_params: Floats, reference: tuple[float, float]) -> float:
    """The hypervolume of points: accuracy above and log10 parameters below the reference."""
    order = np.argsort(log_params)
    heights = np.maximum.accumulate(np.maximum(accuracy[order] - reference[0], 0.0))
    edges = np.minimum(np.append(log_params[order], reference[1]), reference[1])
    return float(heights @ np.diff(edges))


def on_front(accuracy: Floats, log_params: Floats) -> NDArray[np.bool_]:
    """Which points no other is better than in accuracy and as small; of equals, the first."""
    order = np.lexsort((-accuracy, log_params))
    best = np.maximum.accumulate(np.append(-np.inf, accuracy[order]))[:-1]
    mask = np.zeros(len(order), dtype=np.bool_)
    mask[order] = accuracy[order] > best
    return mask


def area_found(found: Found, reference: tuple[float, float]) -> float:
    """The area of the front that a user is shown, by its true accuracies."""
    shown = on_front(found.seen, found.log_params)
    return area(found.true[shown], found.log_params[shown], reference)


def regret(found: Found, best: float) -> float:
    """How much better the best choice there is would be than the one that was seen as best."""
    return best - float(found.true[int(np.argmax(found.seen))])


def mean_and_half(values: Floats) -> tuple[float, float]:
    """Mean and half the width of its 95 % confidence interval (Student's t)."""
    from scipy.stats import t

    n = len(values)
    return float(values.mean()), float(t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))


def check() -> None:
    """Compare the area with Monte Carlo, and the front with every pair of points."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = int(rng.integers(1, 12))
        accuracy, log_params = rng.uniform(0, 1, n), rng.uniform(2, 6, n)
        drawn = rng.uniform((0.1, 2.0), (1.0, 5.0), (200_000, 2))
        below = np.zeros(len(drawn), dtype=bool)
        for a, p in zip(accuracy, log_params, strict=True):
            below |= (drawn[:, 0] <= a) & (drawn[:, 1] >= p)
        by_chance, exact = 2.7 * below.mean(), area(accuracy, log_params, (0.1, 5.0))
        if abs(by_chance - exact) > 0.02:
            raise SystemExit(f"area {exact:.4f}, Monte Carlo {by_chance:.4f}")
        front = [
            not any((accuracy[j] >= a and log_params[j] < p) or (accuracy[j] > a and
                    log_params[j] <= p) for j in range(n))
            for a, p in zip(accuracy, log_params, strict=True)
        ]  # fmt: skip
        if front != on_front(accuracy, log_params).tolist():
            raise SystemExit("the front is not that of every pair")
    print("20 fronts: the area is within 0.02 of Monte Carlo's, and the front that of every pair")


def drawn(surface: Surface, count: int) -> tuple[Floats, Floats]:
    """True accuracy and log10 parameters of `count` random choices of each method."""
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    true, log_params = [], []
    for method in surface.space.methods:
        for _ in range(count):
            study.enqueue_trial({"method": method})
            choice = surface.space.suggest(study.ask())
            params = surface.params(choice)
            true.append(surface.truth(choice, params))
            log_params.append(math.log10(params))
    return np.array(true), np.array(log_params)


# All of it ----------------------------------------------------------------------------------------

Figures = dict[tuple[str, int], Floats]
"""(way, after so many trials) -> a figure a seed, in percent."""


def measure(
    task: str, stand_in: str, kind: str, ways: Sequence[str], seeds: int, trials: int, jobs: int
) -> dict[str, list[Found]]:
    """Way -> what each seed found; ways that need a history are left out where there is none."""
    from joblib import Parallel, delayed

    ways = [name for name in ways if not WAYS[name].history or task in HISTORY]
    found: dict[str, list[Found]] = {}
    for name in ways:
        started = time.perf_counter()
        found[name] = Parallel(jobs, backend="multiprocessing")(
            delayed(_quietly)(task, stand_in, name, kind, seed, trials) for seed in range(seeds)
        )
        took = time.perf_counter() - started
        line = f"{task}, {stand_in}, {kind}, {name}: {seeds} searches, {took:.0f} s"
        print(line, file=sys.stderr, flush=True)
    return found


def _quietly(task: str, stand_in: str, name: str, kind: str, seed: int, trials: int) -> Found:
    import optuna

    warnings.simplefilter("ignore")  # Optuna's about experimental options, the regression's fit
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return search(task, stand_in, name, kind, seed, trials)


def judged(
    task: str, surface: Surface, found: Mapping[str, Sequence[Found]], kind: str, trials: int
) -> Figures:
    """The figures of a kind of objectives.

    For "front" the share of the area under the best front that any search, or many random choices,
    have found; for "best" the regret in points of accuracy.
    """
    true, log_params = drawn(surface, DRAWN)
    everything = [run for runs in found.values() for run in runs]
    true = np.concatenate([true, *(run.true for run in everything)])
    log_params = np.concatenate([log_params, *(run.log_params for run in everything)])
    reference = (WORST[task], float(log_params.max()))
    whole, best = area(true, log_params, reference), float(true.max())
    return {
        (name, after): 100 * np.array(
            [
                area_found(run.after(after), reference) / whole
                if kind == "front"
                else regret(run.after(after), best)
                for run in runs
            ]
        )
        for name, runs in found.items()
        for after in JUDGED_AFTER
        if after <= min(trials, WAYS[name].trials)
        if all(len(run.after(after).seen) for run in runs)
    }  # fmt: skip


def show(figures: Figures) -> None:
    """Print a table: mean and 95 % interval of each way."""
    after = sorted({n for _, n in figures})
    print(f"| way | {' | '.join(f'{n} trials' for n in after)} |")
    print(f"|---|{'---|' * len(after)}")
    for name in dict.fromkeys(name for name, _ in figures):
        each = [_shown(figures[name, n]) if (name, n) in figures else "-" for n in after]
        print(f"| {name} | {' | '.join(each)} |")


def _shown(values: Floats, sign: str = "") -> str:
    mean, half = mean_and_half(values)
    return f"{mean:{sign}.1f} ± {half:.1f}"


def goals(figures: Figures, kind: str) -> list[str]:
    """How each goal is met, seed by seed; more is better for a front, less for a regret."""
    sign, lines = 1 if kind == "front" else -1, []
    for name, after, other, later in GOALS:
        if (name, after) not in figures or (other, later) not in figures:
            continue
        mean, half = mean_and_half(sign * (figures[name, after] - figures[other, later]))
        word = "met" if mean >= 0 else "within the noise" if mean + half >= 0 else "MISSED"
        lines.append(
            f"{name} after {after} against {other} after {later}: {mean:+.1f} ± {half:.1f}, {word}"
        )
    return lines


def record(run: Run, figures: Figures, what: str, result: str) -> None:
    """Record the row of a surface, a stand-in and a kind of objectives."""
    by_way: dict[str, dict[int, Floats]] = {}
    for (name, after), values in figures.items():
        by_way.setdefault(name, {})[after] = values
    text = "; ".join(
        f"{name} {', '.join(f'{n}: {_shown(values)}' for n, values in found.items())}"
        for name, found in by_way.items()
    )
    numbers = {
        name: {
            str(n): dict(zip(("mean", "half"), mean_and_half(values), strict=True))
            for n, values in found.items()
        }
        for name, found in by_way.items()
    }
    run.record(what, numbers, text, result)


def main(arguments: list[str] | None = None) -> None:
    """Search, then print the tables and record the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--surfaces", nargs="+", choices=WORST, default=list(WORST), metavar="TASK")
    parser.add_argument("--stand-ins", nargs="+", choices=STAND_INS, default=["forest", "nearest"])
    parser.add_argument("--kinds", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--seeds", type=int, default=20, help="searches a way (%(default)s)")
    parser.add_argument("--trials", type=int, default=100, help="of a search (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="searches at once (%(default)s)")
    parser.add_argument("--check", action="store_true", help="check the area, and nothing else")
    options = parser.parse_args(arguments)
    if options.check:
        check()
        return
    if options.seeds < 2 or options.trials < JUDGED_AFTER[0]:
        parser.error(f"--seeds must be at least 2, --trials at least {JUDGED_AFTER[0]}")
    warnings.simplefilter("ignore")
    run = Run.begin()
    print(run)
    for task in options.surfaces:
        _, records, _ = read_surface(task)
        for stand_in in options.stand_ins:
            surface = fit(task, stand_in)
            print(
                f"\n{task}, {stand_in}: {len(records)} trials of "
                f"{sum(r.seconds for r in records) / 60:.0f} minutes in all; noise "
                f"{100 * surface.noise:.1f} points; cross-validated R^2 {surface.explained:.2f} of "
                f"{surface.ceiling:.2f} that the noise leaves"
            )
            for kind in options.kinds:
                found = measure(
                    task, stand_in, kind, options.ways, options.seeds, options.trials, options.jobs
                )
                figures = judged(task, surface, found, kind, options.trials)
                said = "% of the best area known" if kind == "front" else "points missed"
                what = f"{options.seeds} searches of {task} ({stand_in}), {kind}: {said}"
                print(f"\n{what}")
                show(figures)
                met = "; ".join(goals(figures, kind))
                print(met)
                record(run, figures, what, met)


if __name__ == "__main__":
    main()
