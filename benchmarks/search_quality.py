"""How good the choices are that a search finds: some ways of searching a recorded surface.

Some hundred real trials (see record_surface.py) and a regression over them stand in for training:
any choice of the space is answered at once, with the noise that seeds make. The searches are real:
`search.tuning.searcher.StudySearcher` over Optuna, one trial after another, without Ray.

    python benchmarks/search_quality.py
    python benchmarks/search_quality.py --check

`--check` compares the area under a Pareto front with Monte Carlo, and does nothing else.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from record_surface import Record, read_surface
from results import Run

if TYPE_CHECKING:
    from spaces.choice import Choice
    from spaces.domain import Domain
    from spaces.planner import Planner
    from spaces.profile import Profile
    from spaces.search_space import SearchSpace

Floats = NDArray[np.float64]

SURFACE, OTHER = "digits", "parity"
METRIC = "accuracy"
CHANCE = 0.1  # accuracy of the reference point: to guess one of ten digits
JUDGED_AFTER = (25, 50, 100)
FOLDS = 5
DRAWN = 500  # choices of each method that are looked through for the best there is


@dataclass(frozen=True)
class Way:
    """A way of searching: Optuna by itself with its own sampler, or as `ranksweep launch` does."""

    optuna_s_own: Literal["RandomSampler", "TPESampler"] | None = None
    allocation: Literal["equal", "free"] = "equal"
    warm_start: bool = False


WAYS = {
    "random": Way("RandomSampler"),
    "TPE": Way("TPESampler"),
    "default": Way(),
    "default, warm start": Way(warm_start=True),
    "allocation: free": Way(allocation="free"),
}
COMPARED = (
    ("default", "random"),
    ("default", "TPE"),
    ("default, warm start", "default"),
    ("allocation: free", "default"),
)
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

    def truth(self, choice: Choice, params: int) -> float:
        """The metric that a choice has on average over seeds, by the regression."""
        row = features(self.space, choice, params)
        return float(np.clip(self.model.predict([row])[0], 0.0, 1.0))


def features(space: SearchSpace, choice: Choice, params: int) -> list[float]:
    """A choice as numbers: log10 parameters, learning rate, the methods, every method's own keys.

    A key of another method, or one that the choice does not read, is in the middle.
    """
    at, rate = space.params_of(choice), choice.learning_rate
    row = [math.log10(params), *_place(space.domains[choice.method]["learning_rate"], rate)]
    row += [float(choice.method == method) for method in space.methods]
    for method, domains in space.domains.items():
        for key, domain in domains.items():
            if key == "learning_rate":
                continue  # one for all, put in front
            row += _place(domain, at.get(f"{method}.{key}"))
    return row


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


def regression(columns: int) -> Any:
    """A Gaussian process with a length of its own for every column, and noise."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    smooth = Matern(np.ones(columns), (0.1, 30.0), nu=2.5)
    kernel = ConstantKernel() * smooth + WhiteKernel(0.1, (1e-3, 1.0))
    return GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)


def fit(task: str) -> Surface:
    """The surface of a recording: one regression over all trials, the repeats among them."""
    from sklearn.model_selection import GroupKFold, cross_val_predict

    from spaces.methods.registry import parse_choice
    from spaces.search_space import SearchSpace

    recorded, records, profile = read_surface(task)
    space = SearchSpace.parse(recorded["space"])
    space = space.fitted(profile.targets, profile.top_percent_grid)
    X = np.array([features(space, parse_choice(r.choice), r.trainable_params) for r in records])
    y = np.array([record.value for record in records])
    model = regression(X.shape[1])
    same = [str(record.choice) for record in records]
    guessed = cross_val_predict(model, X, y, groups=same, cv=GroupKFold(FOLDS))
    noise = noise_of(records)
    return Surface(
        space, profile, model.fit(X, y), noise,
        explained=1 - float(np.mean((y - guessed) ** 2) / y.var()),
        ceiling=1 - noise**2 / float(y.var()),
    )  # fmt: skip


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
    """The trials of one search in order: what was seen, what is true, and log10 parameters."""

    seen: Floats
    true: Floats
    log_params: Floats


def search(
    surface: Surface, way: Way, objectives: Sequence[str], *, seed: int, trials: int,
    first: Sequence[Choice], warm: Sequence[Choice],
) -> Found:  # fmt: skip
    """Search the surface in one way."""
    noise = np.random.default_rng([seed, 1]).normal(0.0, surface.noise, trials)
    rows: list[tuple[float, float, float]] = []

    def train(choice: Choice) -> tuple[float, int]:
        params = surface.params(choice)
        true = surface.truth(choice, params)
        seen = float(np.clip(true + noise[len(rows)], 0.0, 1.0))
        rows.append((seen, true, math.log10(params)))
        return seen, params

    if way.optuna_s_own is not None:
        _search_by_itself(surface.space, way.optuna_s_own, objectives, seed, trials, train)
    else:
        enqueued = [*first, *(warm if way.warm_start else ())]
        _search_as_launched(surface, way, objectives, seed, trials, enqueued, train)
    seen, true, log_params = np.array(rows).T
    return Found(seen, true, log_params)


Train = Callable[["Choice"], tuple[float, int]]


def _search_by_itself(
    space: SearchSpace, sampler: str, objectives: Sequence[str], seed: int, trials: int,
    train: Train,
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
        study.tell(trial, train(space.suggest(trial))[: len(objectives)])


def _search_as_launched(
    surface: Surface, way: Way, objectives: Sequence[str], seed: int, trials: int,
    enqueued: Sequence[Choice], train: Train,
) -> None:  # fmt: skip
    """The searcher, sampler and first choices of `ranksweep launch`."""
    import optuna

    from search.config.sweep import SearchSettings
    from search.study.proposals import Proposals
    from search.study.study import directions, make_sampler
    from search.tuning.searcher import StudySearcher
    from spaces.methods.registry import parse_choice
    from trainables.training.settings import TrainSettings

    study = optuna.create_study(
        directions=directions(objectives, "max"), sampler=make_sampler("tpe", seed)
    )
    settings = SearchSettings(
        metric=METRIC, objectives=objectives, trials=trials, allocation=way.allocation
    )
    searcher = StudySearcher(
        Proposals(
            study, surface.space, surface.planner, settings, TrainSettings(epochs=1),
            enqueue=enqueued,
        )
    )  # fmt: skip
    for number in range(trials):
        suggested = searcher.suggest(str(number))
        if not isinstance(suggested, dict):
            raise SystemExit(f"the search ended after {number} trials: {searcher.shortfall}")
        seen, _ = train(parse_choice(suggested["choice"]))
        searcher.on_trial_complete(str(number), {"epoch": 1, METRIC: seen})


def first_of(surface: Surface) -> list[Choice]:
    """What a launch tries first on this surface."""
    from search.study.first_choices import first_choices

    return first_choices(surface.space, surface.planner)


def warm_start(space: SearchSpace, task: str) -> list[Choice]:
    """What a launch takes over from another task on its base: the best choice of each method."""
    from search.study.warm_start import moved_into
    from spaces.methods.registry import parse_choice

    _, records, _ = read_surface(task)
    best = {
        method: max((r for r in records if r.method == method), key=lambda record: record.value)
        for method in space.methods
    }
    return [moved_into(space, parse_choice(record.choice)) for record in best.values()]


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


def area_found(found: Found, trials: int, reference: tuple[float, float]) -> float:
    """The area of the front that a user is shown after some trials, by its true accuracies."""
    seen, true, log_params = (a[:trials] for a in (found.seen, found.true, found.log_params))
    shown = on_front(seen, log_params)
    return area(true[shown], log_params[shown], reference)


def regret(found: Found, trials: int, best: float) -> float:
    """How much better the best choice there is would be than the one that was seen as best."""
    return best - float(found.true[int(np.argmax(found.seen[:trials]))])


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


def measure(
    surface: Surface, seeds: int, trials: int, report: Callable[[str], None]
) -> dict[tuple[str, str], list[Found]]:
    """(way, kind of objectives) -> what each seed found."""
    first, warm = first_of(surface), warm_start(surface.space, OTHER)
    found: dict[tuple[str, str], list[Found]] = {}
    for kind, objectives in OBJECTIVES.items():
        for name, way in WAYS.items():
            started = time.perf_counter()
            found[name, kind] = [
                search(
                    surface, way, objectives, seed=seed, trials=trials, first=first, warm=warm
                )
                for seed in range(seeds)
            ]  # fmt: skip
            report(f"{kind}, {name}: {seeds} searches, {time.perf_counter() - started:.0f} s")
    return found


def judged(
    surface: Surface, found: dict[tuple[str, str], list[Found]], trials: int, largest: float
) -> dict[tuple[str, str, int], Floats]:
    """(way, kind, after so many trials) -> a figure a seed, in percent.

    For "front" the share of the area under the best front that any search, or many random choices,
    have found; for "best" the regret in points of accuracy.
    """
    true, log_params = drawn(surface, DRAWN)
    everything = [run for runs in found.values() for run in runs]
    true = np.concatenate([true, *(run.true for run in everything)])
    log_params = np.concatenate([log_params, *(run.log_params for run in everything)])
    reference = (CHANCE, largest)
    whole, best = area(true, log_params, reference), float(true.max())
    figures = {}
    for (name, kind), runs in found.items():
        for after in (n for n in JUDGED_AFTER if n <= trials):
            figures[name, kind, after] = 100 * np.array(
                [
                    area_found(run, after, reference) / whole
                    if kind == "front"
                    else regret(run, after, best)
                    for run in runs
                ]
            )
    return figures


def show(figures: dict[tuple[str, str, int], Floats], kind: str, after: Sequence[int]) -> None:
    """Print a table: mean and 95 % interval of each way; then how the ways of ours compare."""
    print(f"| way | {' | '.join(f'{n} trials' for n in after)} |")
    print(f"|---|{'---|' * len(after)}")
    for name in WAYS:
        print(f"| {name} | {' | '.join(_shown(figures[name, kind, n]) for n in after)} |")
    for name, other in COMPARED:
        gains = ", ".join(_gain(figures, name, other, kind, n) for n in after)
        print(f"{name} against {other}: {gains}")


def _shown(values: Floats, sign: str = "") -> str:
    mean, half = mean_and_half(values)
    return f"{mean:{sign}.1f} ± {half:.1f}"


def _gain(
    figures: dict[tuple[str, str, int], Floats], name: str, other: str, kind: str, after: int
) -> str:
    """How much better one way is than another, seed by seed; more is better for either kind."""
    sign = 1 if kind == "front" else -1
    gains = sign * (figures[name, kind, after] - figures[other, kind, after])
    mean, half = mean_and_half(gains)
    word = "no difference" if abs(mean) <= half else "better" if mean > 0 else "worse"
    return f"after {after} {word} ({_shown(gains, '+')})"


def record(run: Run, figures: dict[tuple[str, str, int], Floats], kind: str, what: str) -> None:
    """Record the row of a kind of objectives."""
    after = sorted({n for _, k, n in figures if k == kind})
    each = "; ".join(
        f"{name} {', '.join(_shown(figures[name, kind, n]) for n in after)}" for name in WAYS
    )
    gains = "; ".join(
        f"{name} against {other} {', '.join(_gain(figures, name, other, kind, n) for n in after)}"
        for name, other in COMPARED[:-1]
    )
    found = {
        name: {
            str(n): dict(zip(("mean", "half"), mean_and_half(figures[name, kind, n]), strict=True))
            for n in after
        }
        for name in WAYS
    }
    run.record(what, found, each, gains)


def main(arguments: list[str] | None = None) -> None:
    """Search, then print the tables and record the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20, help="searches a way (%(default)s)")
    parser.add_argument("--trials", type=int, default=100, help="of a search (%(default)s)")
    parser.add_argument("--check", action="store_true", help="check the area, and nothing else")
    options = parser.parse_args(arguments)
    if options.check:
        check()
        return
    if options.seeds < 2 or options.trials < JUDGED_AFTER[0]:
        parser.error(f"--seeds must be at least 2, --trials at least {JUDGED_AFTER[0]}")
    import optuna

    warnings.simplefilter("ignore")  # Optuna's about experimental options, the regression's fit
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run = Run.begin()
    surface = fit(SURFACE)
    _, records, _ = read_surface(SURFACE)
    print(run)
    print(f"{SURFACE}: {len(records)} trials of {sum(r.seconds for r in records) / 60:.0f} minutes "
          f"in all; noise {100 * surface.noise:.1f} points; cross-validated R^2 "
          f"{surface.explained:.2f} of {surface.ceiling:.2f} that the noise leaves")  # fmt: skip
    found = measure(
        surface, options.seeds, options.trials,
        lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    largest = math.log10(max(record.trainable_params for record in records))
    figures = judged(surface, found, options.trials, largest)
    after = [n for n in JUDGED_AFTER if n <= options.trials]
    print(f"\nfront of {METRIC} and parameters: % of the best area known, {options.seeds} seeds")
    show(figures, "front", after)
    print(f"\nbest choice by {METRIC} alone: points below the best known, {options.seeds} seeds")
    show(figures, "best", after)
    what = f"{options.seeds} searches of recorded trials, after {', '.join(map(str, after))}"
    record(run, figures, "front", f"{what}: % of the best front's area")
    record(run, figures, "best", f"{what}: accuracy points missed")


if __name__ == "__main__":
    main()
