"""The documentation says what the code does: its keys, its YAML, its commands, its links."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from search.cli.main import app
from search.config.published import PublishedSettings
from search.config.reading import apply_overrides, parse_sweep
from search.config.sweep import (
    ClusterSettings,
    ConfirmSettings,
    FidelitySettings,
    RepeatSettings,
    SchedulerSettings,
    SearchSettings,
    StopWhenSettings,
    SweepConfig,
    TrackingSettings,
)
from search.config.yaml_file import parse_yaml
from search.schedules.settings import ScheduleSettings
from spaces.alpha import over_rank
from spaces.domain import Range
from spaces.learning_rates import LARGEST, SMALLEST
from spaces.methods.registry import METHODS, parse_choice
from spaces.search_space import SearchSpace
from spaces.target import TargetModule
from trainables.profiling.settings import ProfileSettings
from trainables.tasks.language.extraction import ExtractSettings
from trainables.tasks.language.generation_settings import GenerationSettings
from trainables.tasks.language.options import OptionColumns
from trainables.tasks.settings import DataSettings, RowsSettings, SplitSettings, TaskSettings
from trainables.training.lm_eval_settings import LmEvalSettings
from trainables.training.settings import TrainSettings

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")),
)
KEYS = "docs/reference/keys.md"
CHOICES = "docs/reference/choices.md"

SECTIONS: Mapping[str, type[BaseModel]] = {
    "Top level": SweepConfig,
    "task": TaskSettings,
    "task.data": DataSettings,
    "task.options": OptionColumns,
    "task.extract": ExtractSettings,
    "task.generation": GenerationSettings,
    "task.rows": RowsSettings,
    "task.split": SplitSettings,
    "profile": ProfileSettings,
    "search": SearchSettings,
    "search.scheduler": SchedulerSettings,
    "search.fidelity": FidelitySettings,
    "search.stop_when": StopWhenSettings,
    "search.repeats": RepeatSettings,
    "train": TrainSettings,
    "cluster": ClusterSettings,
    "tracking": TrackingSettings,
    "confirm": ConfirmSettings,
    "confirm.lm_eval": LmEvalSettings,
    "published": PublishedSettings,
}
OWN = [name for name, method in METHODS.items() if not method.baseline]
BASELINES = [name for name, method in METHODS.items() if method.baseline]
SPACE_KEYS = ["learning_rate", "methods"]
OF_EVERY_CHOICE = {"method", "seed", "learning_rate"}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def table(page: str, before: str) -> dict[str, list[str]]:
    """Key -> the other cells of the first table of the page that stands behind a line."""
    found = re.search(
        rf"^{re.escape(before)}\n(?:[^|\n].*\n|\n)*((?:\|.*\n)+)", text_of(page), re.M
    )
    assert found, f"{page} has no table behind {before}"
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in found.group(1).splitlines()[2:]]
    cells = [[cell.strip() for cell in row] for row in rows]
    return {row[0].strip("`"): row[1:] for row in cells}


def value_of(cell: str) -> Any:
    """The value that a cell such as `{CPU: 1}` writes as YAML."""
    code = re.fullmatch(r"`([^`]+)`", cell)
    assert code, f"{cell!r} is no value in backticks"
    return parse_yaml(code.group(1), "a page")


def plain(value: Any) -> Any:
    """A default as YAML would give it: no models, no tuples."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def flat_fields(model: type[BaseModel]) -> dict[str, Any]:
    """Dotted key -> default of a choice class."""
    fields: dict[str, Any] = {}
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner = flat_fields(field.annotation)
            fields |= {f"{key}.{name}": value for name, value in inner.items()}
        else:
            fields[key] = field.default
    return fields


def fenced(page: str, language: str, mark: str = "") -> list[str]:
    """The code blocks of a page in this language, of those behind <!-- mark --> where given."""
    before = rf"<!-- {mark} -->\n" if mark else ""
    return re.findall(rf"{before}```{language}\n(.*?)```", text_of(page), flags=re.DOTALL)


# -- pages that are made from the code -------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> Mapping[Path, str]:
    """Page -> its text, as docs/generate.py makes it now."""
    pages: Mapping[Path, str] = runpy.run_path(str(ROOT / "docs/generate.py"))["pages"]()
    return pages


def test_the_reference_is_what_the_code_says(made: Mapping[Path, str]) -> None:
    assert set(made) == set((ROOT / "docs/reference").glob("*.md"))
    for page, text in made.items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name} has drifted: `make docs`"


def test_every_key_and_every_option_has_a_meaning(made: Mapping[Path, str]) -> None:
    for text in made.values():
        heads = re.findall(r"^\| (?:key|option) \|.*$", text, flags=re.MULTILINE)
        assert heads
        for row in re.findall(r"^\| (?:`|<code>).*$", text, flags=re.MULTILINE):
            cells = [cell.strip() for cell in row.split("|")[1:-1]]
            assert all(cells), row


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert built.returncode == 0, built.stderr
    for page in PAGES:
        if page.startswith("docs/"):
            assert (tmp_path / page.removeprefix("docs/")).with_suffix(".html").is_file(), page


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 250


# -- keys and defaults -----------------------------------------------------------------------------


@pytest.mark.parametrize("section", SECTIONS)
def test_the_reference_lists_the_keys_of_a_section(section: str) -> None:
    assert list(table(KEYS, f"## {section}")) == list(SECTIONS[section].model_fields)


def test_the_reference_has_every_section() -> None:
    assert re.findall(r"^## (.+)$", text_of(KEYS), flags=re.MULTILINE) == list(SECTIONS)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_reference_gives_the_defaults_of_a_section(section: str) -> None:
    for key, (_, default, _) in table(KEYS, f"## {section}").items():
        field = SECTIONS[section].model_fields[key]
        if default == "required":
            assert field.is_required(), key
        elif default.startswith("*"):
            assert field.default is not PydanticUndefined, key
        elif isinstance(field.default, BaseModel):
            # "{}" stands for a section whose every key has its default.
            assert type(field.default)(**value_of(default)) == field.default, key
        else:
            assert value_of(default) == plain(field.default), key


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("Top level", "name"),
        ("Top level", "store"),
        ("Top level", "confirm"),
        ("search", "metric"),
        ("search", "mode"),
        ("search", "objectives"),
        ("search", "scheduler"),
        ("tracking", "uri"),
        ("tracking", "experiment"),
    ],
)
def test_a_default_that_depends_on_others_is_told_as_one(section: str, key: str) -> None:
    _, default, _ = table(KEYS, f"## {section}")[key]
    assert re.fullmatch(r"\*.+\*", default)


def test_the_page_of_the_sweep_gives_the_space_that_is_searched_by_default() -> None:
    documented = table("docs/sweep.md", "<!-- keys: space -->")
    assert list(documented) == SPACE_KEYS
    sizes = re.search(r"between ([0-9.]+) and\s+([0-9.]+)", text_of("docs/sweep.md"))
    assert sizes is not None
    assert [float(each) for each in sizes.groups()] == [SMALLEST, LARGEST]


def test_the_page_of_the_sweep_gives_the_learning_rates_of_a_base() -> None:
    """MiniLM's, with the target modules of the examples."""
    shapes = 6 * [(384, 384)] * 4 + 6 * [(1536, 384), (384, 1536)]
    targets = [TargetModule(str(number), shape) for number, shape in enumerate(shapes)]
    space = SearchSpace.parse({}).fitted(targets)
    rows = table("docs/sweep.md", "<!-- keys: learning rates -->")
    found = {
        method: {"low": domain.low, "high": domain.high, "log": domain.log}
        for method in space.methods
        if isinstance(domain := space.domains[method]["learning_rate"], Range)
    }
    assert {method: value_of(cells[0]) for method, cells in rows.items()} == found


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_lists_the_keys_of_a_method_with_its_defaults(method: str) -> None:
    choice_class = METHODS[method].choice_class
    fields = flat_fields(choice_class)
    if "alpha" in fields:
        fields["alpha_over_rank"] = pytest.approx(over_rank(choice_class, {}), rel=1e-5)
    rows = table(CHOICES, f"## {method}")
    documented = {key: value_of(default) for key, (_, default, *_) in rows.items()}
    shared = OF_EVERY_CHOICE - METHODS[method].default_space.keys()
    assert documented == {k: v for k, v in fields.items() if k not in shared}


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_gives_the_default_space_of_a_method(method: str) -> None:
    documented: dict[str, Any] = {}
    for key, cells in table(CHOICES, f"## {method}").items():
        if cells[-1] != "-":
            *outer, last = key.split(".")
            place = documented
            for name in outer:
                place = place.setdefault(name, {})
            place[last] = value_of(cells[-1])
    assert documented == plain(METHODS[method].default_space)


def test_the_page_of_the_methods_has_every_method() -> None:
    own = table("docs/methods.md", "# The methods, as they are built")
    assert [re.sub(r"\[`(\w+)`\].*", r"\1", name) for name in own] == OWN
    baselines = table("docs/methods.md", "## Baselines")
    assert set(baselines) == set(BASELINES)


def test_the_readme_names_every_method() -> None:
    for method in METHODS:
        assert f"`{method}`" in text_of("README.md")


# -- examples --------------------------------------------------------------------------------------


def test_the_sweeps_of_the_pages_are_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where a metric of one's own is found
    sweeps = [text for page in PAGES for text in fenced(page, "yaml", "sweep")]
    assert len(sweeps) >= 3
    for text in sweeps:
        parse_sweep(parse_yaml(text, "a page"))


def test_the_choices_of_the_pages_are_choices() -> None:
    choices = [text for page in PAGES for text in fenced(page, "yaml", "choice")]
    assert len(choices) >= 3
    for text in choices:
        parse_choice(parse_yaml(text, "a page"))


def test_the_schedules_of_the_pages_are_schedules() -> None:
    for page in PAGES:
        for text in fenced(page, "yaml", "schedule"):
            ScheduleSettings.model_validate(parse_yaml(text, page, words=("on",)))


def test_every_yaml_block_is_marked_for_what_it_is() -> None:
    for page in PAGES:
        marked = [
            text for mark in ("sweep", "choice", "schedule") for text in fenced(page, "yaml", mark)
        ]
        assert sorted(fenced(page, "yaml")) == sorted(marked), page


def commands() -> Iterator[str]:
    """Every `ranksweep` command line of the pages, those inside of a Ray job too."""
    for page in PAGES:
        for block in fenced(page, "sh"):
            for line in map(str.strip, block.replace("\\\n", " ").splitlines()):
                words = shlex.split(line, comments=True)
                if words[:1] == ["ranksweep"]:
                    yield line.partition(" > ")[0]
                elif words[:3] == ["ray", "job", "submit"]:
                    parts = words[-1].split(" && ")
                    yield from (part for part in parts if part.startswith("ranksweep "))


def parse_command(line: str) -> None:
    """Let the command line parse a command without running it; raises typer's usage errors."""
    arguments = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    context = command.make_context("ranksweep", arguments)
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_the_command_line_takes_a_command_of_the_pages(line: str) -> None:
    parse_command(line)


def test_a_command_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(typer.TyperException):
        parse_command("ranksweep launch sweep.yaml --no-such-option")
    with pytest.raises(typer.TyperException):
        parse_command("ranksweep plan --profile ba219e0a")


def test_every_command_has_an_example() -> None:
    root: Any = typer.main.get_command(app)
    names = {
        f"{name} {inner}" if inner else name
        for name, command in root.commands.items()
        if not command.hidden
        for inner in getattr(command, "commands", {"": None})
    }
    # A sweep's name stands between the two words of `trials SWEEP list`.
    shown = [
        re.sub(r"^(trials) \S+", r"\1", line.removeprefix("ranksweep ")) for line in commands()
    ]
    assert {name for name in names if not any(line.startswith(name) for line in shown)} == set()


@pytest.mark.parametrize(
    "line", [line for line in commands() if "--set" in line and " clone " not in line]
)
def test_the_overrides_of_the_pages_fit_a_sweep(line: str) -> None:
    words = shlex.split(line)
    overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    sweep = parse_yaml(fenced("docs/sweep.md", "yaml", "sweep")[0], "a page")
    parse_sweep(apply_overrides(sweep, overrides))


def test_every_make_target_of_the_pages_exists_and_is_told_by_make_help() -> None:
    targets = re.findall(r"^([a-z-]+):", text_of("Makefile"), flags=re.MULTILINE)
    told = re.findall(r"^([a-z-]+):.*  ## ", text_of("Makefile"), flags=re.MULTILINE)
    assert targets == told
    for page in PAGES:
        named = set(re.findall(r"`make (?:PYTHON=\S+ )?([a-z-]+)`", text_of(page)))
        for block in fenced(page, "sh"):
            named |= set(re.findall(r"^ *make ([a-z-]+)$", block, flags=re.MULTILINE))
        assert named <= set(targets), page


def test_the_hooks_before_a_commit_are_what_make_check_runs() -> None:
    (local,) = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    tools = [hook["entry"].removesuffix(" --force-exclude") for hook in local["hooks"]]
    check = re.findall(r"^\t\$\(BIN\)/(.*)$", text_of("Makefile").partition("\ncheck:")[2], re.M)
    wanted = [line.removesuffix(" .").removesuffix(" --check") for line in check[: len(tools)]]
    assert tools == [f".venv/bin/{line}" for line in wanted]


# -- the rooms -------------------------------------------------------------------------------------


def rooms() -> dict[str, set[str]]:
    """Floor -> the rooms that it has."""
    return {
        floor: {package.parent.name for package in (ROOT / floor).glob("*/__init__.py")}
        for floor in ("search", "trainables", "spaces")
    }


def test_the_map_of_the_house_has_every_room() -> None:
    drawn = text_of("README.md").partition("## The map of the house")[2].split("```")[1]
    mapped: dict[str, set[str]] = {}
    for indent, name in re.findall(r"^( *)([a-z]+)/ ", drawn, flags=re.MULTILINE):
        if indent:
            mapped[list(mapped)[-1]].add(name)
        else:
            mapped[name] = set()
            assert (ROOT / name).is_dir(), name
    assert {floor: mapped[floor] for floor in rooms()} == rooms()


def test_the_architecture_tells_every_room() -> None:
    told = set(table("docs/architecture.md", "## What each room knows"))
    assert told == {f"{floor}/{room}" for floor, names in rooms().items() for room in names}


def test_what_the_architecture_names_is_there() -> None:
    named = re.findall(
        r"`((?:search|trainables|spaces|tests)/[\w/.]*)`", text_of("docs/architecture.md")
    )
    assert named
    for path in named:
        assert (ROOT / path).exists() or (ROOT / f"{path}.py").is_file(), path


# -- links -----------------------------------------------------------------------------------------


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings as GitHub makes them, and those written out."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), flags=re.MULTILINE)
    made = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text_of(page)))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_project_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT))), link


# -- the cluster -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text_of("cluster.yaml"))
    return loaded


def test_a_worker_of_the_pages_fits_a_gpu_node(cluster: dict[str, Any]) -> None:
    lines = [line for line in commands() if "cluster.address=auto" in line]
    assert len(lines) > 1
    for line in lines:
        words = shlex.split(line)
        overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        asked = apply_overrides({}, overrides)["cluster"]
        node = cluster["available_node_types"]["gpu"]
        for name, amount in asked["resources_per_worker"].items():
            assert amount <= node["resources"][name]
        assert asked.get("groups", 1) <= node["max_workers"] <= cluster["max_workers"]
