# SPDX-License-Identifier: MIT
"""The package's source files as text and as syntax trees."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "art_wdro"
SOURCES = sorted(PACKAGE.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def names(statement: ast.stmt) -> set[str]:
    """What a statement defines."""
    if isinstance(statement, (ast.ClassDef, Function)):
        return {statement.name}
    targets: list[ast.expr] = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def definition(file: Path, name: str) -> str:
    """The source of a constant, function or class; "Class.method" names what is inside of one. Empty if not there."""
    found: ast.AST = tree(file)
    for part in name.split("."):
        inside = [node for node in getattr(found, "body", []) if part in names(node)]
        if not inside:
            return ""
        found = inside[0]
    return ast.get_source_segment(file.read_text(encoding="utf-8"), found) or ""
