"""Sums up what the long tests tried, for the docs."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest

from tests.steps.promise import Tally

FIGURES = "figures"
PACKAGES = ("SQLAlchemy", "starlette", "anyio", "asyncpg", "aiosqlite", "starlette-admin")

Count = Callable[[str, Tally], None]


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Count:
    """Adds a tally to the line of that name in the summary."""

    def add(line: str, tally: Tally) -> None:
        record_property(FIGURES, [line, tally.cases, len(tally.violations)])

    return add


def pytest_terminal_summary(terminalreporter: Any) -> None:
    cases: Counter[str] = Counter()
    violations: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "call":
                continue  # the reports of its set-up and its end have the same properties
            for name, value in report.user_properties:
                if name == FIGURES:
                    cases[value[0]] += value[1]
                    violations[value[0]] += value[2]
    if not cases:
        return
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    terminalreporter.section("requests that were cancelled")
    terminalreporter.line(f"Python {platform.python_version()}, {versions}")
    terminalreporter.line(f"{'':45}{'cases':>9}{'violations':>12}")
    for line in sorted(cases):
        terminalreporter.line(f"{line:45}{cases[line]:>9,}{violations[line]:>12,}")
    total, violated = sum(cases.values()), sum(violations.values())
    terminalreporter.line(f"{'total':45}{total:>9,}{violated:>12,}")
