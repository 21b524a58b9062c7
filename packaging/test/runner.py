# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs tiers one after the other and keeps the books."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import apt
import coverage_report
import environments
import process
import results
from tiers import OUT, ROOT, Step, Tier

TAIL = 60
"""Lines of a failed step's output that are shown; the log has all."""


@dataclass
class Outcome:
    """What became of a tier: its tests, other steps that failed, and what could not run here (with the reason)."""

    tier: Tier
    tests: results.Count = field(default_factory=results.Count)
    broken: list[str] = field(default_factory=list)
    impossible: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return not self.broken and not self.tests.failed

    @property
    def word(self) -> str:
        if not self.good:
            return "FAILED"
        ran = self.tests.passed or self.tests.skipped or not self.impossible
        return "ok" if ran else "not run"


class Runner:
    """Runs tiers. *unusable* names venvs that could not be made, and why."""

    def __init__(self, environment: Mapping[str, str], unusable: Mapping[Path, str]) -> None:
        self._unusable = unusable
        coverage_data = OUT / "coverage"
        coverage_data.mkdir(parents=True, exist_ok=True)
        # A venv that happens to be active must not decide what is tested.
        dropped = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTEST_ADDOPTS")
        self._plain = {name: value for name, value in environment.items() if name not in dropped}
        self._measured = self._plain | coverage_report.variables(coverage_data, ROOT / "pyproject.toml")

    def run(self, tier: Tier, blocked: str) -> Outcome:
        """Run all steps of *tier*, within its budget. *blocked* says why it cannot run here, if so."""
        outcome = Outcome(tier)
        if blocked:
            outcome.impossible.append(blocked)
            return outcome
        log = OUT / f"{tier.name}.log"
        log.unlink(missing_ok=True)
        started = time.monotonic()
        for step in tier.steps():
            left = tier.budget * 60 - (time.monotonic() - started)
            if not self._step(tier, step, log, left, outcome):
                break
        outcome.seconds = time.monotonic() - started
        return outcome

    def _step(self, tier: Tier, step: Step, log: Path, left: float, outcome: Outcome) -> bool:
        """Run one step; False when those after it make no sense."""
        if step.venv.folder in self._unusable:
            outcome.impossible.append(f"{step.title}: {self._unusable[step.venv.folder]}")
            return True
        command = list(step.command)
        if step.root:
            root = apt.privilege(ask=False)
            if root is None:
                outcome.impossible.append(f"{step.title}: needs root, and there is no sudo without a password")
                return True
            keep = [f"{name}={os.environ[name]}" for name in ("CI", "CCORCH_TEST_ARGS") if name in os.environ]
            command = [*root, "env", *keep, *command] if root else command
        if step.junit is not None:
            step.junit.unlink(missing_ok=True)
        before = log.stat().st_size if log.exists() else 0
        environment = self._measured if step.measured else self._plain
        try:
            status = process.run(command, log=log, cwd=ROOT, environment=environment, timeout=left)
        except process.OverBudget:
            outcome.broken.append(f"{step.title} was ended: {tier.name} may take {tier.budget:g} minutes in all")
            self._count(step, outcome)
            self._show_tail(log, before)
            return False
        if status == process.NOT_POSSIBLE:
            outcome.impossible.append(f"{step.title}: {process.last_line(log)}")
            return True
        self._count(step, outcome)
        if status == 0:
            return True
        if step.junit is None or not outcome.tests.failed:
            outcome.broken.append(f"{step.title} ended with status {status}")
        self._show_tail(log, before)
        # Without its package there is nothing to test in a machine; linters on the other hand don't need each other.
        return step.junit is not None or tier.name == "lint"

    @staticmethod
    def _count(step: Step, outcome: Outcome) -> None:
        if step.junit is not None:
            outcome.tests += results.read(step.junit) or results.Count()

    @staticmethod
    def _show_tail(log: Path, offset: int) -> None:
        with log.open("rb") as stream:
            stream.seek(offset)
            lines = stream.read().decode(errors="replace").splitlines()
        if len(lines) > TAIL:
            print(f"    ... {len(lines) - TAIL} lines more in {log.relative_to(ROOT)}")
        for line in lines[-TAIL:]:
            print(f"    {line}")


def forget_old_results() -> None:
    """Remove what an earlier run left, so that nothing old is counted."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True, exist_ok=True)


def make_venvs(recipes: set[environments.Recipe]) -> dict[Path, str]:
    """Make the venvs that are missing; return those that could not be made, with the reason."""
    unusable = {}
    for recipe in sorted(recipes, key=lambda recipe: recipe.folder):
        if recipe.state() != "ready":
            print(f"Making {recipe.folder.relative_to(ROOT)} ...", flush=True)
        try:
            environments.make(recipe, OUT / "venvs.log")
        except environments.Unavailable as reason:
            unusable[recipe.folder] = str(reason)
            print(f"  {reason}")
    return unusable
