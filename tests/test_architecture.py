# SPDX-License-Identifier: MIT
"""The house is as docs/architecture.md draws it: its floors, its arrows, its journeys, the length of its functions."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from inspect import getmro, isclass
from pathlib import Path

import pytest

import art_wdro
from art_wdro import functional
from tests.sources import PACKAGE, SOURCES, Function, definition, tree

ROOT = PACKAGE.parent
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
DOORS = {"__init__", "__main__"}
FLOORS = 8
LINES, PARAMETERS = 70, 8
"""Most lines of a function, and most parameters of one that users do not call."""


def place(file: Path) -> str:
    """The folder, or the module of the package itself, that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[str]:
    """The places of the package that a file imports from, wherever it does."""
    for node in ast.walk(tree(file)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if names == ["art_wdro"]:
            names = [f"art_wdro.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("art_wdro."))


def floors_of_the_imports() -> list[set[str]]:
    """The places by floor, lowest first: each on the lowest one that its imports allow."""
    arrows: dict[str, set[str]] = {}
    for file in SOURCES:
        own = place(file)
        arrows.setdefault(own, set()).update(set(imported(file)) - {own})
    floors: dict[str, int] = {}
    for name in TopologicalSorter(arrows).static_order():  # raises CycleError where there is a circle
        floors[name] = 1 + max((floors[below] for below in arrows[name]), default=-1)
    inside = {name: floor for name, floor in floors.items() if name not in DOORS}
    return [{name for name in inside if inside[name] == floor} for floor in range(1 + max(inside.values()))]


def floors_of_the_drawing() -> list[set[str]]:
    """The places by floor, lowest first, as drawn."""
    lines = re.findall(r"^ floor (\d+) +(.*)$", PAGE, re.M)
    assert [int(number) for number, _ in lines] == list(range(len(lines), 0, -1))
    return [set(re.findall(r"(\w+)(?:/|\.py)", names)) for _, names in reversed(lines)]


def test_the_drawing_is_that_of_the_imports():
    assert floors_of_the_drawing() == floors_of_the_imports()
    assert len(floors_of_the_imports()) <= FLOORS


def test_the_linter_keeps_the_same_floors():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    layers = config["importlinter:contract:floors"]["layers"].strip().split("\n")
    found = [set(re.findall(r"art_wdro\.(\w+)", layer)) for layer in layers]
    assert found[0] == {"__main__"}
    assert found[:0:-1] == floors_of_the_drawing()


def test_every_place_has_its_sentence():
    sentences = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.M))
    entries = {place(file) for file in SOURCES if place(file) not in DOORS}
    assert sentences == {
        name: (ast.get_docstring(tree(path)) or "").split("\n")[0]
        for name in entries
        for path in [PACKAGE / name / "__init__.py" if (PACKAGE / name).is_dir() else PACKAGE / f"{name}.py"]
    }


def test_the_packages_own_modules():
    own = {file.stem for file in PACKAGE.glob("*.py")} - DOORS
    assert {name for name in own if name.startswith("_")} == {"_ranks", "_version"}


def test_a_private_folder_exports_nothing_and_a_public_one_hides_its_files():
    for folder in {file.parent for file in SOURCES} - {PACKAGE}:
        body = tree(folder / "__init__.py").body
        if folder.name.startswith("_"):
            assert len(body) == 1, folder
            assert ast.get_docstring(tree(folder / "__init__.py")), folder
        else:
            assert import_module(f"art_wdro.{folder.name}").__all__
            assert all(file.name.startswith("_") for file in folder.glob("*.py")), folder


def test_every_file_of_the_journeys_is_there():
    files = set(re.findall(r"`(\w+/\w+\.py)`", PAGE)) - {"tests/test_architecture.py"}
    assert len(files) > 40
    assert {file for file in files if not (PACKAGE / file).is_file()} == set()


@pytest.mark.parametrize(("name", "file"), re.findall(r"`(\w+)` in `([\w/]+\.py)`", re.sub(r"\s+", " ", PAGE)))
def test_a_function_of_the_journeys_is_in_its_file(name, file):
    body = tree(PACKAGE / file).body
    classes = [node.name for node in body if isinstance(node, ast.ClassDef)]
    assert any(definition(PACKAGE / file, prefix + name) for prefix in ("", *(f"{cls}." for cls in classes)))


@cache
def public() -> set[str]:
    """Qualified names of what users call: functions, constructors, and methods, inherited ones of ours included."""
    found = {*functional.__all__}
    for name in art_wdro.__all__:
        value = getattr(art_wdro, name)
        found.add(f"{name}.__init__" if isclass(value) else name)
        for base in getmro(value) if isclass(value) else ():
            if base.__module__.startswith("art_wdro"):
                found |= {f"{base.__name__}.{method}" for method in vars(base) if not method.startswith("_")}
    return found


def functions(body: list[ast.stmt], owner: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions with their qualified names, those inside of others too."""
    for node in body:
        inside = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        name = f"{owner}{getattr(node, 'name', '')}"
        if isinstance(node, Function):
            yield name, node
        yield from functions(inside, f"{name}." if isinstance(node, (ast.ClassDef, Function)) else owner)


def excess(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef, method: bool) -> list[str]:
    """In what a function is too long; parameters are those with names, but for `self` and `cls`."""
    lines = (node.end_lineno or 0) - node.lineno + 1
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    parameters = len(given) - (method and bool(given) and given[0].arg in ("self", "cls"))
    constructor = name in public() and name.endswith(".__init__")  # its docstring is as long as its list of parameters
    found = [f"{lines} lines"] if lines > LINES and not constructor else []
    return found + ([f"{parameters} parameters"] if parameters > PARAMETERS and name not in public() else [])


def test_functions_are_short():
    found = {
        f"{file.relative_to(PACKAGE)}: {name} has {amount}"
        for file in SOURCES
        for name, node in functions(tree(file).body)
        for amount in excess(name, node, "." in name)
    }
    assert found == set()
