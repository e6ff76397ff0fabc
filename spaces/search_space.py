"""The search space: which methods a sweep tries, and between which values of their keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product, zip_longest
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from spaces.alpha import ALPHA_OVER_RANK, FIELD, over_rank, with_alpha
from spaces.choice import Choice, choice_error, section_of, validated
from spaces.domain import (
    Domain,
    Evenly,
    Fixed,
    Options,
    Range,
    Suggests,
    Value,
    all_of,
    capped,
    closest,
    holds,
    listed,
    middle,
    parse_domain,
    restricted,
    suggest,
)
from spaces.errors import ChoiceError, ConfigError, nearest
from spaces.learning_rates import range_of_first_updates
from spaces.methods.registry import METHODS, Method, method_named
from spaces.refusals import unknown_key
from spaces.target import TargetModule

LARGEST_GRID = 10_000
"""Choices that a grid may have."""

_UNWRITTEN = Range(1e-6, 1.0, log=True)
"""Stands for learning rates that nobody wrote until they are made."""
_SECTION_KEYS = ("learning_rate", "methods")
_ALWAYS_SEARCHED = "lora"
_DRAWS = 200
"""Choices that stand for all of an arm."""


@dataclass(frozen=True)
class Arm:
    """A method, or a method with some keys fixed, that is given trials of its own."""

    name: str
    method: str
    values: Mapping[str, Value]
    """Flat key -> value of what is fixed."""

    @property
    def params(self) -> dict[str, Value]:
        """Optuna's parameters that stand for the arm."""
        fixed = {f"{self.method}.{key}": value for key, value in self.values.items()}
        return {"method": self.method, **fixed}


@dataclass(frozen=True)
class SearchSpace:
    """The domain of every searched key of every method; other keys keep the choice's default.

    Keys of a nested section are written with a dot, as `partition.threshold`. Optuna's parameters
    are `method` and `<method>.<key>`; a key with one value is no parameter, nor is one that the
    choice would not read: the threshold of the rule `all`, the signal of a `uniform` allocation.
    Values that contradict each other are reconciled in the choice that comes out:
    `supplementary_rank` is at most `rank`, `min_rank` no more than the allocation leaves,
    `initial_rank` at least `rank`. The key `alpha_over_rank` stands for alpha, and a method has one
    of the two.
    """

    methods: tuple[str, ...]
    domains: Mapping[str, Mapping[str, Domain]]
    written: frozenset[tuple[str, str]] = frozenset()
    """The (method, key) pairs that the user wrote, which are never narrowed in silence."""
    rates_follow: frozenset[str] = frozenset()
    """The methods whose learning rates nobody wrote: they are those of first updates of a size."""

    @classmethod
    def parse(cls, section: Mapping[str, Any] | None) -> SearchSpace:
        """The space of a sweep's section `space`: its keys `learning_rate` and `methods`.

        `methods` is a list of names or a mapping, by default of all that are no baselines. A method
        takes its default space; what the mapping says of a key stands in place of that key's
        default, and nothing else changes, but that `alpha` stands in place of `alpha_over_rank`
        too. The section's `learning_rate` is that of every method whose default space has none of
        its own; where none is written, each has the range that gives its default choice first
        updates between two sizes, on a base that is not known yet: `fitted` has that of the base's.
        `lora` is always added. Raises ConfigError or ChoiceError with the key under `space`.
        """
        section = {} if section is None else section
        if not isinstance(section, Mapping):
            raise ConfigError("space: not a mapping; write learning_rate and methods")
        for key in section:
            if key not in _SECTION_KEYS:
                raise ConfigError(f"space.{key}: {unknown_key(str(key), _SECTION_KEYS)}")
        learning_rate = section.get("learning_rate")
        shared: dict[str, Domain] = {"learning_rate": _UNWRITTEN}
        if learning_rate is not None:
            shared = _parse_keys(
                METHODS[_ALWAYS_SEARCHED], {"learning_rate": learning_rate}, "space"
            )
        domains: dict[str, Mapping[str, Domain]] = {}
        written: set[tuple[str, str]] = set()
        for name, keys in _written_methods(section.get("methods")).items():
            where = f"space.methods.{name}"
            method = METHODS[name]
            own = _parse_keys(method, keys, where)
            merged = {**shared, **_parse_keys(method, method.default_space, where), **own}
            if "alpha" in own:
                _refuse_both(own, where)
                merged.pop(ALPHA_OVER_RANK, None)
            domains[name] = {key: merged[key] for key in _fields_of(method) if key in merged}
            written.update((name, key) for key in own)
            _refuse_contradiction(method, domains[name], where)
        follow = frozenset(
            name for name, own in domains.items() if own["learning_rate"] is _UNWRITTEN
        )
        return cls(tuple(domains), domains, frozenset(written), follow)._with_learning_rates(())

    def suggest(self, trial: Suggests) -> Choice:
        """The choice that a trial stands for."""
        name = trial.suggest_categorical("method", self.methods)
        values: dict[str, Value] = {}
        for key, domain in self.domains[name].items():
            if key not in METHODS[name].unread_keys(values):
                values[key] = suggest(domain, trial, f"{name}.{key}")
        return _choice(METHODS[name], values)

    def arms(self, keys: Sequence[str]) -> tuple[Arm, ...]:
        """Every method, divided by the values that it may give to `keys` (flat, as `rank`).

        Raises ChoiceError for a key that no method searches over a list of values.
        """
        for key in keys:
            found = [domains[key] for domains in self.domains.values() if key in domains]
            if not found:
                known = dict.fromkeys(name for each in self.domains.values() for name in each)
                raise ChoiceError(
                    f"search.arms: no method of the space searches {key[:60]!r}; "
                    f"{nearest(key, known)}"
                )
            if not any(isinstance(domain, Options) for domain in found):
                what = "a range" if any(isinstance(d, Range) for d in found) else "a single value"
                raise ChoiceError(
                    f"search.arms: {key} has {what} and no list of values in the space; list the "
                    "values to compare in space.methods"
                )
        arms: dict[str, Arm] = {}
        for method in self.methods:
            divided = self._divided(method, keys)
            for combination in product(*(divided[key].values for key in divided)):
                values = dict(zip(divided, combination, strict=True))
                arm = self._arm(method, values)
                arms.setdefault(arm.name, arm)
        return tuple(arms.values())

    def grid(self, keys: Sequence[str] = ()) -> tuple[Choice, ...]:
        """Every choice of the space as a grid, those of one arm of `arms(keys)` in turn with the
        others'.

        Raises ChoiceError where a domain is a range without steps, or there are more than
        `LARGEST_GRID` choices.
        """
        of_arms: dict[str, dict[Choice, None]] = {arm.name: {} for arm in self.arms(keys)}
        for count, choice in enumerate(self._every_choice()):
            if count >= LARGEST_GRID:
                raise ChoiceError(
                    f"search.sampler: the grid has more than {LARGEST_GRID:,} points; shorten the "
                    "lists of the space"
                )
            of_arms[self.arm_of(choice, keys)].setdefault(choice)
        turns = zip_longest(*of_arms.values())
        return tuple(choice for turn in turns for choice in turn if choice is not None)

    def as_grid(self) -> SearchSpace:
        """The space without the default range of `alpha_over_rank`, whose values have no end.

        A method has its default alpha then, unless one of the two keys is written.
        """
        domains = {
            name: {
                key: domain
                for key, domain in domains.items()
                if key != ALPHA_OVER_RANK or (name, key) in self.written
            }
            for name, domains in self.domains.items()
        }
        return replace(self, domains=domains)

    def _every_choice(self) -> Iterator[Choice]:
        space = self.as_grid()
        for name, domains in space.domains.items():
            for values in space._combinations(name, list(domains), {}):
                yield _choice(METHODS[name], values)

    def _combinations(
        self, name: str, keys: Sequence[str], chosen: dict[str, Value]
    ) -> Iterator[dict[str, Value]]:
        """What `suggest` may choose for the keys of a method that follow the chosen ones."""
        if not keys:
            yield chosen
            return
        key, *rest = keys
        if key in METHODS[name].unread_keys(chosen):
            yield from self._combinations(name, rest, chosen)
            return
        values = all_of(self.domains[name][key])
        if values is None:
            raise ChoiceError(
                f"{self._written_at(name, key)}: is a range without end of values, and "
                "search.sampler: grid tries each; list them, or give the range a step"
            )
        for value in values:
            yield from self._combinations(name, rest, {**chosen, key: value})

    def _written_at(self, name: str, key: str) -> str:
        own = (name, key) in self.written or key in METHODS[name].default_space
        return f"space.methods.{name}.{key}" if own else f"space.{key}"

    def arm_of(self, choice: Choice, keys: Sequence[str]) -> str:
        """The name of the arm of `arms(keys)` that a choice belongs to."""
        values = flat_values(choice)
        divided = self._divided(self._known(choice.method), keys)
        return self._arm(choice.method, {key: values[key] for key in divided}).name

    def _divided(self, method: str, keys: Sequence[str]) -> dict[str, Options]:
        domains = self.domains[method]
        return {key: d for key in keys if isinstance(d := domains.get(key), Options)}

    def _arm(self, method: str, values: Mapping[str, Value]) -> Arm:
        unread = METHODS[method].unread_keys(values)
        read = {key: value for key, value in values.items() if key not in unread}
        shown = [f"{key}={json.dumps(v) if isinstance(v, bool) else v}" for key, v in read.items()]
        return Arm(" ".join([method, *shown]), method, read)

    def default_choice(self, method: str, fixed: Mapping[str, Value] | None = None) -> Choice:
        """The paper's default, each key moved to the nearest value that the space holds.

        `fixed` gives some keys (flat) another value; alpha / rank stays as it is with another rank
        alone. The learning rate is the geometric middle of its domain. Raises ChoiceError where the
        space lacks the method.
        """
        found = METHODS[self._known(method)]
        defaults = flat_values(found.choice_class(method=method)) | dict(fixed or {})
        if fixed and "alpha" in fixed and ALPHA_OVER_RANK not in fixed:
            defaults[ALPHA_OVER_RANK] = over_rank(found.choice_class, defaults)
        values: dict[str, Value] = {}
        for key, domain in self.domains[method].items():
            if key not in found.unread_keys(values):
                values[key] = (
                    middle(domain) if key == "learning_rate" else closest(domain, defaults[key])
                )
        return _choice(found, values)

    def keeping(self, kept: Mapping[str, Mapping[str, Domain]]) -> SearchSpace:
        """The space with method -> flat key -> domain of keys that stay as they are said here.

        Where alpha is said, it stands in place of `alpha_over_rank`.
        """
        domains = {}
        for name, own in self.domains.items():
            merged = {**own, **kept.get(name, {})}
            if "alpha" in kept.get(name, {}):
                merged.pop(ALPHA_OVER_RANK, None)
            domains[name] = {key: merged[key] for key in _fields_of(METHODS[name]) if key in merged}
        said = {name for name, own in kept.items() if "learning_rate" in own}
        return replace(self, domains=domains, rates_follow=self.rates_follow - said)

    def mean_length(self, arm: Arm) -> float:
        """How many times the epochs of a trial the choices of an arm take, on average over all."""
        drawn = _Arms(arm.params)
        return sum(self.suggest(drawn).length for _ in range(_DRAWS)) / _DRAWS

    def params_of(self, choice: Choice) -> dict[str, Value]:
        """Optuna's parameters that `suggest` turns into `choice`, to be enqueued.

        Raises ChoiceError naming the key whose value the space does not hold.
        """
        method = METHODS[self._known(choice.method)]
        values = flat_values(choice)
        params: dict[str, Value] = {"method": choice.method}
        for key, domain in self.domains[choice.method].items():
            if key in method.unread_keys(values):
                continue
            value = values[key]
            if not holds(domain, value):
                value = _value_behind(method, key, domain, values)
            if not isinstance(domain, Fixed):
                params[f"{choice.method}.{key}"] = closest(domain, value)
        return params

    def lora_of_budget(self, params: int, targets: Sequence[TargetModule]) -> Choice:
        """The LoRA of the space whose parameters are nearest to `params`; of two, the smaller.

        Raises ChoiceError where no rank of the space fits the targets.
        """
        domain = self.domains[_ALWAYS_SEARCHED].get("rank", Fixed(8))
        limit = min((target.rank_limit for target in targets), default=None)
        ranks = sorted(rank for rank in listed(domain) if limit is None or rank <= limit)
        if not ranks:
            raise ChoiceError(
                "space.methods.lora.rank: every rank is above min(out, in) of a target module; "
                "add a lower one"
            )
        per_rank = sum(sum(target.shape) for target in targets)
        rank = min(ranks, key=lambda candidate: abs(candidate * per_rank - params))
        return self.default_choice(_ALWAYS_SEARCHED, {"rank": rank})

    def fitted(
        self, targets: Sequence[TargetModule], top_percent_grid: Sequence[float] | None = None
    ) -> SearchSpace:
        """The space without default values that these matrices or a profile's grid cannot take, and
        with the learning rates that go with the values that are left.

        Raises ChoiceError naming the key where the user wrote such a value.
        """
        fitted = {
            name: {
                key: self._fitted_domain(name, key, domain, targets, top_percent_grid)
                for key, domain in domains.items()
            }
            for name, domains in self.domains.items()
        }
        return replace(self, domains=fitted)._with_learning_rates(targets)

    def _with_learning_rates(self, targets: Sequence[TargetModule]) -> SearchSpace:
        """The space with the learning rates that nobody wrote as the other keys make them."""
        rates = {
            name: {"learning_rate": range_of_first_updates(self.default_choice(name), targets)}
            for name in self.rates_follow
        }
        domains = {name: {**own, **rates.get(name, {})} for name, own in self.domains.items()}
        return replace(self, domains=domains)

    def _fitted_domain(
        self,
        name: str,
        key: str,
        domain: Domain,
        targets: Sequence[TargetModule],
        grid: Sequence[float] | None,
    ) -> Domain:
        where = f"space.methods.{name}.{key}"
        if key == "top_percent" and grid is not None:
            allowed = tuple(float(value) for value in grid)
            outside = isinstance(domain, Range) or any(
                value not in allowed for value in listed(domain)
            )
            if outside and (name, key) in self.written:
                shown = ", ".join(f"{value:g}" for value in allowed)
                raise ChoiceError(
                    f"{where}: holds a value that is not in profile.top_percent [{shown}]; use "
                    "only these or add it there"
                )
            return restricted(domain, allowed, min(allowed, key=lambda value: abs(value - 5)))
        searched = {
            other: listed(values)
            for other, values in self.domains[name].items()
            if not isinstance(values, Range)
        }
        limit = METHODS[name].largest_values(targets, searched).get(key)
        if limit is None:
            return domain
        greatest = domain.high if isinstance(domain, Range) else max(listed(domain))
        if greatest > limit and (name, key) in self.written:
            raise ChoiceError(
                f"{where}: {greatest} is above {limit}, the largest that every target module can "
                "take; lower it"
            )
        return capped(domain, limit)

    def _known(self, method: str) -> str:
        if method not in self.domains:
            raise ChoiceError(
                f"method: {method!r} is not in the space; {nearest(method, self.methods)}"
            )
        return method


def flat_values(choice: Choice) -> dict[str, Value]:
    """Flat key -> value of a choice, `alpha_over_rank` beside alpha where it has one."""
    values = dict(_flattened(METHODS[choice.method], choice.as_dict(), "choice"))
    if "alpha" in values:
        values[ALPHA_OVER_RANK] = over_rank(type(choice), values)
    return values


class _Arms(Evenly):
    """Draws choices of one arm."""

    def __init__(self, fixed: Mapping[str, Value]) -> None:
        super().__init__()
        self._fixed = fixed

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._fixed.get(name, super().suggest_categorical(name, choices))


def _written_methods(written: object) -> dict[str, Mapping[str, Any]]:
    """Method name -> what is written of its keys, lora always among them."""
    where = "space.methods"
    if written is None:
        written = [name for name, method in METHODS.items() if not method.baseline]
    keys: dict[str, Mapping[str, Any]] = {}
    if isinstance(written, Mapping):
        for name, own in written.items():
            method_named(name, where)
            if own is not None and not isinstance(own, Mapping):
                raise ConfigError(
                    f"{where}.{name}: not a mapping; write its keys, or {{}} for its default"
                )
            keys[name] = own or {}
    elif isinstance(written, list | tuple):
        for name in written:
            method_named(name, where)
            if name in keys:
                raise ConfigError(f"{where}: lists {name} twice; list it once")
            keys[name] = {}
    else:
        raise ConfigError(f"{where}: neither a list of names nor a mapping; write one of them")
    return keys if _ALWAYS_SEARCHED in keys else {_ALWAYS_SEARCHED: {}, **keys}


def _parse_keys(method: Method, written: Mapping[str, Any], where: str) -> dict[str, Domain]:
    """The domains of the written keys, flat. Raises ChoiceError."""
    fields = _fields_of(method)
    domains = {}
    for key, value in _flattened(method, written, where):
        field = fields.get(key)
        if field is None:
            *outer, last = key.split(".")
            beside = [known.removeprefix(".".join([*outer, ""])) for known in fields]
            names = dict.fromkeys(name.split(".")[0] for name in beside)
            raise ChoiceError(f"{where}.{key}: {unknown_key(last, names)}")
        kind: Any = field.annotation
        bounded: Any = Annotated[kind, *field.metadata] if field.metadata else kind
        adapter = TypeAdapter[Any](bounded, config=ConfigDict(allow_inf_nan=False, strict=True))

        def check(given: object, place: str, adapter: TypeAdapter[Any] = adapter) -> Value:
            try:
                return adapter.validate_python(given)
            except ValidationError as error:
                raise choice_error(error, place, None) from error

        number = kind if kind in (int, float) else None
        domains[key] = parse_domain(value, f"{where}.{key}", number, check)
    return domains


def _fields_of(method: Method) -> dict[str, FieldInfo]:
    """Flat key -> field of every key that can have a domain, in the order they are suggested."""
    fields: dict[str, FieldInfo] = {}
    for key, field in method.choice_class.model_fields.items():
        section = section_of(field)
        if section:
            fields.update({f"{key}.{inner}": own for inner, own in section.model_fields.items()})
        elif key != "method":
            fields[key] = field
        if key == "alpha":
            fields[ALPHA_OVER_RANK] = FIELD
    return fields


def _flattened(method: Method, values: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Flat key and value of what stands in a mapping and its sections. Raises ChoiceError."""
    fields = method.choice_class.model_fields
    for key, value in values.items():
        if not (key in fields and section_of(fields[key])):
            yield str(key), value
        elif isinstance(value, Mapping):
            for inner, own in value.items():
                yield f"{key}.{inner}", own
        else:
            raise ChoiceError(f"{where}.{key}: {str(value)[:60]!r} is refused; write a mapping")


def _choice(method: Method, values: Mapping[str, Value]) -> Choice:
    """The choice with these flat values, reconciled with each other, and defaults for the rest."""
    nested: dict[str, Any] = {"method": method.name}
    for key, value in with_alpha(method.choice_class, method.reconciled(values)).items():
        outer, _, inner = key.rpartition(".")
        if outer:
            nested.setdefault(outer, {})[inner] = value
        else:
            nested[inner] = value
    return validated(method.choice_class, nested)


def _refuse_both(own: Mapping[str, Domain], where: str) -> None:
    """Raise ChoiceError where both keys are written that say how updates are scaled."""
    if ALPHA_OVER_RANK in own:
        raise ChoiceError(
            f"{where}.{ALPHA_OVER_RANK}: stands for alpha, which is written too; leave one of the "
            "two out"
        )


def _refuse_contradiction(method: Method, domains: Mapping[str, Domain], where: str) -> None:
    """Raise ChoiceError where no combination of values goes together as written."""
    nearest_to_none: dict[str, tuple[Value, Value]] = {}
    least = float("inf")
    for combination in product(*(_extremes(domain) for domain in domains.values())):
        values = dict(zip(domains, combination, strict=True))
        reconciled = method.reconciled(values)
        contradicted = {
            key: (value, reconciled[key])
            for key, value in values.items()
            if reconciled[key] != value
        }
        if not contradicted:
            return
        gap = sum(abs(value - allowed) for value, allowed in contradicted.values())
        if gap < least:
            least, nearest_to_none = gap, contradicted
    for key, (value, allowed) in nearest_to_none.items():
        wrong = (
            f"above {allowed}, the most that the other keys allow; lower it"
            if value > allowed
            else f"below {allowed}, the least that the other keys allow; raise it"
        )
        raise ChoiceError(f"{where}.{key}: {value} is {wrong}")


def _extremes(domain: Domain) -> tuple[Value, ...]:
    """The least and the greatest of a domain of numbers, where contradictions end; else all."""
    if isinstance(domain, Range):
        return domain.low, domain.high
    values = listed(domain)
    if any(isinstance(value, bool | str) for value in values):
        return values
    return tuple(dict.fromkeys((min(values), max(values))))


def _value_behind(method: Method, key: str, domain: Domain, values: Mapping[str, Value]) -> Value:
    """A value of `domain` that is reconciled to the one in `values`.

    Raises ChoiceError where there is none.
    """
    for candidate in () if isinstance(domain, Range) and not domain.whole else listed(domain):
        if method.reconciled({**values, key: candidate})[key] == values[key]:
            return candidate
    what = f"{method.name}.{key}: {values[key]!r} is not in the space"
    if key == ALPHA_OVER_RANK:
        rank = method.choice_class.RANK_OF_ALPHA
        what = (
            f"{method.name}.alpha: {values['alpha']:g} is {values[key]:g} times {rank} "
            f"{values[rank]}, and {key} {values[key]:g} is not in the space"
        )
    raise ChoiceError(f"{what}; widen space.methods.{method.name}.{key}")
