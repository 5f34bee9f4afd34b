# SPDX-License-Identifier: MIT
"""A plugin of pytest that writes every failure to a file when it happens, so that a run that is cut off shows them.

python -m pytest -p benchmarks.speed._failures --failures FILE
"""

from __future__ import annotations

from pathlib import Path

import pytest

MARK = "=== "
"""What the line that names a failed test begins with."""
SHOWN = 2500
"""Characters of a failure that are written, the last ones."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the file be named."""
    parser.addoption("--failures", type=Path, required=True, help="file that every failure is added to")


def pytest_configure(config: pytest.Config) -> None:
    """Write in the process alone that hears of all tests, where several run them."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Failures(config.getoption("--failures")))


class Failures:
    """Adds failures to a file that is empty at first."""

    def __init__(self, file: Path) -> None:
        """Empty the file."""
        self._file = file
        file.write_text("", encoding="utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a test that failed, or what it is set up with."""
        self._add(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Add a file that cannot be collected."""
        self._add(report)

    def _add(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"{MARK}{report.nodeid}\n{str(report.longrepr)[-SHOWN:]}\n")


def failed(file: Path) -> list[str]:
    """Return the names of the tests that failed."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
