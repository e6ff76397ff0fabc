"""What import-linter cannot say of the house: its tests' manners, and who knows of Ray Tune."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = ("search", "trainables", "spaces")


def nodes_of(*folders: str) -> Iterator[tuple[Path, ast.AST]]:
    for folder in folders:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                yield file.relative_to(ROOT), node


def defined(node: ast.AST) -> str:
    """The name that a node defines, if any."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            return name
    return ""


def asked_for(node: ast.AST) -> list[str]:
    """The names of others that a node imports, reads or replaces."""
    match node:
        case ast.ImportFrom(names=names):
            return [alias.name for alias in names]
        case ast.Attribute(value=ast.Name(id="self" | "cls")):
            return []
        case ast.Attribute(attr=name):
            return [name]
        case ast.Call(func=ast.Attribute(attr="setattr"), args=arguments):
            texts = [each.value for each in arguments[:2] if isinstance(each, ast.Constant)]
            return [str(text).rpartition(".")[2] for text in texts]
    return []


def test_no_test_asks_for_a_private_name_of_the_house() -> None:
    names = {defined(node) for _, node in nodes_of(*FLOORS)}
    private = {name for name in names if name.startswith("_") and not name.startswith("__")}
    assert private
    found = [
        f"{file}: {name}"
        for file, node in nodes_of("tests")
        for name in asked_for(node)
        if name in private
    ]
    assert not found


def test_ray_tune_is_known_to_the_tuning_alone() -> None:
    knowing = set()
    for file, node in nodes_of(*FLOORS):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        if any(f"{name}.".startswith("ray.tune.") for name in names):
            knowing.add(file)
    beside = {file.as_posix() for file in knowing if file.parent != Path("search/tuning")}
    assert beside == {"trainables/resident/groups.py"}  # for what its import does
    assert len(knowing) > len(beside)
