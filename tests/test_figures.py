"""The figures that `make torture` prints are those of its tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

TESTS = """
import pytest

@pytest.mark.parametrize("violations", [0, 2])
def test_line(record_property, violations):
    record_property("figures", ["some line", 1200, violations])
    assert not violations
"""


@pytest.mark.timeout(300)  # it starts a Python
def test_each_case_is_counted_once(tmp_path: Path) -> None:
    """Whether its test passes or fails."""
    file = tmp_path / "test_lines.py"
    file.write_text(TESTS)
    plugins = ["-p", "no:cacheprovider", "-p", "tests.torture.conftest"]

    result = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "-n", "0", "--rootdir", tmp_path, file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "1 failed, 1 passed" in result.stdout, result.stdout + result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("some line "))
    assert line.split()[2:] == ["2,400", "2"]
