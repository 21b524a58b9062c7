# SPDX-License-Identifier: LGPL-2.1-or-later
"""The runner of the tests: what it counts, and that nothing outlives a budget."""

from __future__ import annotations

import importlib.util
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
RUNNER = ROOT / "packaging" / "test"


def load(name: str) -> ModuleType:
    """Import a module of the runner under a name that meets no other."""
    spec = importlib.util.spec_from_file_location(f"ccorch_runner_{name}", RUNNER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


process = load("process")
results = load("results")

JUNIT = """<testsuites><testsuite>
<testcase name="good"/>
<testcase name="bad"><failure>x</failure></testcase>
<testcase name="worse"><error>x</error></testcase>
<testcase name="both"><failure>x</failure><error>y</error></testcase>
<testcase name="none"><skipped/></testcase>
<testcase name="noted"><properties/><system-out>words</system-out></testcase>
</testsuite></testsuites>"""


def test_outcomes_are_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT)
    assert str(results.read(path)) == "2 passed, 3 failed, 1 skipped"


@pytest.mark.parametrize("content", [None, "", "<testsuites><testsu"])
def test_a_file_that_was_not_finished_counts_for_nothing(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "junit.xml"
    if content is not None:
        path.write_text(content)
    assert results.read(path) is None


def test_last_line_leaves_skips_out_when_there_are_none() -> None:
    assert str(results.Count(3) + results.Count(1, 2)) == "4 passed, 2 failed"


def run(command: list[str], log: Path, timeout: float) -> int:
    status = process.run(command, log=log, cwd=log.parent, environment=os.environ, timeout=timeout)
    assert isinstance(status, int)
    return status


def test_output_of_all_commands_is_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run(["sh", "-c", "echo one; echo two >&2"], log, 30) == 0
    assert run(["sh", "-c", "echo no kvm here; exit 77"], log, 30) == process.NOT_POSSIBLE
    text = log.read_text()
    assert text.index("one") < text.index("two") < text.index("no kvm here")
    assert process.last_line(log) == "no kvm here"


def _gone(pid: int, timeout: float = 10) -> bool:
    """Tell whether *pid* ends within *timeout* seconds: a signal that was sent is not yet taken."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout)[0])
    finally:
        os.close(descriptor)


def test_nothing_outlives_the_budget(tmp_path: Path) -> None:
    log = tmp_path / "log"
    pid_file = tmp_path / "pid"
    script = f"sleep 1000 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file}; wait"
    started = time.monotonic()
    with pytest.raises(process.OverBudget):
        run(["sh", "-c", script], log, 1.0)
    assert time.monotonic() - started < process.GRACE
    assert _gone(int(pid_file.read_text()))


def test_unknown_tier_is_one_sentence() -> None:
    command = [sys.executable, str(RUNNER), "run", "untit"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("no tier is called untit; there are lint, unit,")


def test_make_without_a_goal_helps() -> None:
    ended = subprocess.run(["make", "-s", "-C", str(ROOT)], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0
    for goal in ("run", "stop", "attach", "ctl", "test", "test-quick", "lint", "bench", "deb", "clean"):
        assert f"make {goal}" in ended.stdout
