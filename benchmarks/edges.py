"""Whether the best choices lie inside of the default spaces, on the recorded surfaces.

Two models of what a choice is worth are fitted to a surface: a Gaussian process over the features
of plans, one for all methods, and a random forest over a method's own keys. Each predicts choices
drawn evenly from the method's default space. Along every key whose values have an order the space
is cut into ten parts (a list into its values), and of each part the best tenth of the predictions
is averaged: the best that can be had there. A key is at an edge where the first or the last part is
better than every part inside by more than half of the noise, the standard deviation between seeds;
an end that no choice can be beyond, as one round or a retention of 1, is none.

    python benchmarks/edges.py digits parity movie tweets
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from results import Run

if TYPE_CHECKING:
    from spaces.choice import Choice
    from spaces.domain import Domain
    from spaces.profile import Profile
    from spaces.search_space import SearchSpace

SURFACES = Path(__file__).resolve().parent / "surfaces"
MODELS = ("plans", "keys")
PARTS = 10
TOLERATED = 0.5
"""How much better than inside an edge may be, in standard deviations between seeds."""
LEAST_TRIALS = 8
"""Trials of a method that a forest over its keys is grown of."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Surface:
    """The recorded trials of a task at all of its rows; `noise` is that between seeds, NaN where no
    choice was repeated."""

    task: str
    profile: Profile
    choices: list[Choice]
    values: Floats
    noise: float


@dataclass(frozen=True)
class Along:
    """A key along which the space is cut: the value in each part's middle, and the best there."""

    key: str
    middles: list[float]
    best: Floats
    open_ends: tuple[bool, bool]
    """Whether a choice may have a value below the first part, and above the last one."""
    real: list[float]
    """The key's values in the best tenth of the recorded trials of the method."""

    def beyond(self, noise: float) -> float:
        """How much better an edge is than every other part, in units of the noise; of two parts
        none is inside."""
        if len(self.best) < 3:
            return -math.inf
        below, above = self.open_ends
        return max(
            float(self.best[0] - self.best[1:].max()) / noise if below else -math.inf,
            float(self.best[-1] - self.best[:-1].max()) / noise if above else -math.inf,
        )


def read(task: str, folder: Path) -> Surface:
    """A surface of the folder. Raises SystemExit where there is none."""
    from spaces.methods.registry import from_record
    from spaces.profile import Profile

    path = folder / f"{task}.jsonl"
    if not path.is_file():
        raise SystemExit(f"{path}: no recording; make it with record_surface.py {task}")
    first, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    lines = [line for line in lines if line.get("rows", 1.0) == 1.0]
    values = np.array([line[first["metric"]][-1] for line in lines])
    profile = path.with_suffix(".safetensors")
    return Surface(
        task, Profile.from_bytes(profile.read_bytes(), profile.name),
        [from_record(line["choice"]) for line in lines], values,
        _noise([str(line["choice"]) for line in lines], values),
    )  # fmt: skip


def _noise(choices: Sequence[str], values: Floats) -> float:
    """Standard deviation between seeds, pooled over the choices that were repeated; NaN of none."""
    groups = [values[[other == each for other in choices]] for each in dict.fromkeys(choices)]
    repeated = [group for group in groups if len(group) > 1]
    if not repeated:
        return math.nan
    squares = sum(float(np.sum((group - group.mean()) ** 2)) for group in repeated)
    return math.sqrt(squares / sum(len(group) - 1 for group in repeated))


# Models -------------------------------------------------------------------------------------------


def of_plans(choices: Sequence[Choice], profile: Profile) -> Floats:
    """The features of the plans of choices [n, features]."""
    from spaces.features import FEATURES, plan_features
    from spaces.planner import Planner

    planner = Planner(profile.targets, profile)
    rows = [plan_features(planner.plan(each), each.learning_rate, profile) for each in choices]
    return np.array([[row.get(name, 0.0) for name in FEATURES] for row in rows])


def of_keys(choices: Sequence[Choice], space: SearchSpace) -> Floats:
    """The keys of choices of one method [n, keys], logarithms where the space has them.

    The learning rate comes times alpha / rank, as an update grows with both: where trials were
    recorded at one alpha alone, as TASO's of digits at 1, nothing else tells of another.
    """
    from spaces.search_space import flat_values

    domains = space.domains[choices[0].method]
    names = [key for key, domain in domains.items() if _ordered(domain)]
    words = [key for key in domains if key not in names]
    rows = []
    for each in choices:
        values = flat_values(each)
        row = [_on_scale(domains[key], values[key]) for key in names]
        row[names.index("learning_rate")] += math.log2(values["alpha_over_rank"])
        for key in words:
            row += [float(values[key] == option) for option in _options(domains[key])]
        rows.append(row)
    return np.array(rows)


def process(X: Floats, y: Floats) -> Any:
    """A Gaussian process with a length for every feature, and noise."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    smooth = Matern(np.ones(X.shape[1]), (0.2, 30.0), nu=2.5)
    kernel = ConstantKernel() * smooth + WhiteKernel(0.1, (1e-3, 1.0))
    model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    return make_pipeline(StandardScaler(), model).fit(X, y)


def forest(X: Floats, y: Floats) -> Any:
    """A random forest; its out-of-bag score is the R^2 of trials it has not seen."""
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(
        500, min_samples_leaf=2, max_features=0.5, oob_score=True, random_state=0
    ).fit(X, y)


# Edges --------------------------------------------------------------------------------------------


def _ordered(domain: Domain) -> bool:
    from spaces.domain import Range

    return isinstance(domain, Range) or not isinstance(_options(domain)[0], str | bool)


def _options(domain: Domain) -> tuple[Any, ...]:
    from spaces.domain import listed

    return tuple(sorted(listed(domain)))


def _on_scale(domain: Domain, value: float) -> float:
    """A value on the scale that its domain is cut on: log2 where all values are positive."""
    from spaces.domain import Range

    if isinstance(domain, Range):
        return math.log2(value) if domain.log else float(value)
    return math.log2(value) if min(_options(domain)) > 0 else float(value)


def drawn(space: SearchSpace, method: str, count: int) -> list[Choice]:
    """Choices of a method's space, drawn evenly."""
    from spaces.domain import Evenly

    class OfMethod(Evenly):
        def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
            return method if name == "method" else super().suggest_categorical(name, choices)

    draws = OfMethod(0)
    return [space.suggest(draws) for _ in range(count)]


def along_keys(
    space: SearchSpace, method: str, choices: Sequence[Choice], predicted: Floats, surface: Surface
) -> list[Along]:
    """The best that can be had in each part of each key of a method."""
    from spaces.domain import Range
    from spaces.search_space import flat_values

    flat = [flat_values(each) for each in choices]
    own = [(value, flat_values(c)) for c, value in zip(surface.choices, surface.values, strict=True)
           if c.method == method]  # fmt: skip
    own.sort(key=lambda each: -each[0])
    found = []
    for key, domain in space.domains[method].items():
        if not _ordered(domain):
            continue
        at = np.array([_on_scale(domain, values[key]) for values in flat])
        if isinstance(domain, Range):
            edges = np.linspace(
                _on_scale(domain, domain.low), _on_scale(domain, domain.high), PARTS + 1
            )
            part = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, PARTS - 1)
            centres = (edges[:-1] + edges[1:]) / 2
        else:
            centres = np.array([_on_scale(domain, value) for value in _options(domain)])
            part = np.abs(at[:, None] - centres).argmin(axis=1)
        if len(centres) < 2:
            continue
        best = [_best_tenth(predicted[part == each]) for each in range(len(centres))]
        log = _on_scale(domain, 4.0) == 2.0
        found.append(
            Along(
                key, [float(2**c if log else c) for c in centres], np.array(best),
                _open_ends(method, key, domain, surface.profile),
                [values[key] for _, values in own[: max(3, len(own) // 10)]],
            )
        )  # fmt: skip
    return found


def _open_ends(method: str, key: str, domain: Domain, profile: Profile) -> tuple[bool, bool]:
    """Whether a choice may have a value below a domain, and above it."""
    from spaces.domain import ends
    from spaces.errors import ChoiceError
    from spaces.methods.registry import parse_choice

    if key == "top_percent":  # the profile's are all that there are
        low, high = min(profile.top_percent_grid), max(profile.top_percent_grid)
        return low < ends(domain)[0], ends(domain)[1] < high

    def may_be(value: float) -> bool:
        outer, _, inner = key.rpartition(".")
        written = {outer: {inner: value}} if outer else {inner: value}
        try:
            parse_choice({"method": method, **written})
        except ChoiceError:
            return False
        return True

    low, high = ends(domain)
    if key == "alpha_over_rank":
        return True, True
    step = 1 if isinstance(low, int) else 1e-3 * low
    return may_be(low - step), may_be(high + step)


def _best_tenth(values: Floats) -> float:
    return float(np.sort(values)[-max(1, len(values) // 10) :].mean()) if len(values) else -math.inf


def explore(surface: Surface, count: int) -> tuple[float, dict[str, dict[str, list[Along]]]]:
    """The noise, and model -> method -> keys; prints them.

    Where no choice was repeated, the noise is what the process over plans leaves unexplained.
    """
    from spaces.search_space import SearchSpace

    space = SearchSpace.parse(None)
    space = space.fitted(surface.profile.targets, surface.profile.top_percent_grid)
    plans = process(of_plans(surface.choices, surface.profile), surface.values)
    noise = surface.noise
    if math.isnan(noise):
        noise = math.sqrt(plans[-1].kernel_.k2.noise_level) * float(surface.values.std())
    found: dict[str, dict[str, list[Along]]] = {model: {} for model in MODELS}
    print(f"\n{surface.task}: {len(surface.values)} trials, noise {noise:.4f}")
    for method in space.methods:
        choices = drawn(space, method, count)
        own = [place for place, each in enumerate(surface.choices) if each.method == method]
        predicted = {"plans": plans.predict(of_plans(choices, surface.profile))}
        if len(own) >= LEAST_TRIALS:
            grown = forest(
                of_keys([surface.choices[place] for place in own], space), surface.values[own]
            )
            predicted["keys"] = grown.predict(of_keys(choices, space))
            print(f"  {method}: {len(own)} trials, forest's R^2 {grown.oob_score_:.2f}")
        for model, values in predicted.items():
            found[model][method] = along_keys(space, method, choices, values, surface)
            for along in found[model][method]:
                print(f"    {model} {_line(along, noise)}")
    return noise, found


def _line(along: Along, noise: float) -> str:
    beyond = along.beyond(noise)
    word = "EDGE" if beyond > TOLERATED else "    "
    at = along.middles[int(along.best.argmax())]
    curve = " ".join(f"{value:.3f}" for value in along.best)
    real = ", ".join(f"{value:.2g}" for value in along.real[:5])
    return f"{along.key:20} {word} {beyond:+5.2f} best at {at:8.3g}  [{curve}]  real {real}"


def main(arguments: list[str] | None = None) -> None:
    """Fit, print each key's parts, and record the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tasks", nargs="*", default=["digits", "parity", "movie", "tweets"])
    parser.add_argument("--choices", type=int, default=1500, help="drawn of each method")
    parser.add_argument("--surfaces", type=Path, default=SURFACES, help="folder of the recordings")
    parser.add_argument("--only-print", action="store_true", help="record no row")
    options = parser.parse_args(arguments)
    run = Run.begin()
    print(run)
    surfaces = [read(task, options.surfaces) for task in options.tasks]
    found = {each.task: explore(each, options.choices) for each in surfaces}
    keys = [
        (f"{task} {method}.{along.key} ({model})", along.beyond(noise))
        for task, (noise, models) in found.items()
        for model, methods in models.items()
        for method, alongs in methods.items()
        for along in alongs
    ]
    at_edge = [(name, beyond) for name, beyond in keys if beyond > TOLERATED]
    each = ", ".join(f"{name} {beyond:.1f}" for name, beyond in at_edge) or "none"
    print(f"\n{len(at_edge)} of {len(keys)} at an edge: {each}")
    if not options.only_print:
        trials = {each.task: len(each.values) for each in surfaces}
        run.record(
            "keys of the default spaces whose best is at an edge",
            {"keys": len(keys), "at_an_edge": len(at_edge), "trials": trials},
            f"by two models of {', '.join(options.tasks)}, an edge better than all inside by more "
            f"than {TOLERATED:g} of the noise: {each}",
            f"**{len(at_edge)}** of {len(keys)}",
        )


if __name__ == "__main__":
    main()
