# SPDX-License-Identifier: MIT
"""The notebooks in version control are their text, executed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "examples/notebooks"
TEXTS = sorted(FOLDER.glob("*.py"))
LARGEST = 1_000_000
"""Bytes of a notebook, pictures and all."""


def cells_of(text: str) -> list[tuple[str, str]]:
    """The cells of a notebook as text, in the py:percent format: kind and source."""
    cells = []
    for head, body in re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n?)*)", text, re.M):
        kind = "markdown" if head.strip() == "[markdown]" else "code"
        source = re.sub(r"^# ?", "", body, flags=re.M) if kind == "markdown" else body
        cells.append((kind, source.strip("\n")))
    return cells


def wrong(text: str, notebook: dict[str, Any]) -> list[str]:
    """What a notebook has that its text has not, or the other way round, and what was not executed, or failed."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    found = [] if cells == cells_of(text) else ["other cells"]
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if [cell["execution_count"] for cell in code] != list(range(1, len(code) + 1)):
        found.append("not executed in order")
    outputs = [output for cell in code for output in cell["outputs"]]
    if any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs):
        found.append("errors")
    return found if any("image/png" in output.get("data", {}) for output in outputs) else [*found, "no picture"]


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.stem)
def test_a_notebook_is_its_text_executed(file):
    path = file.with_suffix(".ipynb")
    assert path.stat().st_size < LARGEST
    assert wrong(file.read_text(encoding="utf-8"), json.loads(path.read_text(encoding="utf-8"))) == []


def test_every_notebook_has_its_text():
    assert len(TEXTS) == 5
    assert [file.with_suffix(".py") for file in sorted(FOLDER.glob("*.ipynb"))] == TEXTS


def test_what_is_wrong_is_seen():
    text = TEXTS[0].read_text(encoding="utf-8")
    notebook = json.loads(TEXTS[0].with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert wrong(text + "\n# %%\nmore = 1\n", notebook) == ["other cells"]
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["execution_count"] = None
    code["outputs"].append({"output_type": "stream", "name": "stderr", "text": []})
    assert wrong(text, notebook) == ["not executed in order", "errors"]
    assert wrong(text, {"cells": []}) == ["other cells", "no picture"]
