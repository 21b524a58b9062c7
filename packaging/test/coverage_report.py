# SPDX-License-Identifier: LGPL-2.1-or-later
"""Coverage of ccorchd and ccorchctl over all tiers together."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REQUIRED = 90.0
"""Percent of lines and branches taken together that a full run has to reach."""


@dataclass(frozen=True)
class Covered:
    """Percentages, and where the details are."""

    lines: float
    branches: float
    together: float
    report: Path


def variables(folder: Path, configuration: Path) -> dict[str, str]:
    """Return the environment that makes each Python of a tier write its data to *folder*."""
    return {"COVERAGE_PROCESS_START": str(configuration), "COVERAGE_FILE": str(folder / ".coverage")}


def _percent(part: float, whole: float) -> float:
    return 100.0 * part / whole if whole else 100.0


def combine(python: Path, root: Path, out: Path, environment: Mapping[str, str]) -> Covered | None:
    """Combine all data below *out*; None when there is none. Raise RuntimeError with coverage's own words otherwise."""
    folders = sorted({path.parent for path in out.rglob(".coverage.*") if path.parent != out / "combined"})
    if not folders:
        return None
    # Folders are searched for files that begin with the name of the result.
    data = out / "combined" / ".coverage"
    data.parent.mkdir(exist_ok=True)
    report = out / "coverage.txt"
    machine_readable = out / "coverage.json"
    clean = {name: value for name, value in environment.items() if not name.startswith("COVERAGE_")}
    settings = clean | {"COVERAGE_FILE": str(data)}

    def coverage(*arguments: str) -> str:
        command = [str(python), "-m", "coverage", *arguments]
        done = subprocess.run(command, cwd=root, env=settings, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
        return done.stdout

    data.unlink(missing_ok=True)
    coverage("combine", "--keep", "--quiet", *map(str, folders))
    report.write_text(coverage("report", "--fail-under=0"), encoding="utf-8")
    coverage("json", "--quiet", "--fail-under=0", "-o", str(machine_readable))
    totals = json.loads(machine_readable.read_text(encoding="utf-8"))["totals"]
    return Covered(
        _percent(totals["covered_lines"], totals["num_statements"]),
        _percent(totals["covered_branches"], totals["num_branches"]),
        float(totals["percent_covered"]),
        report,
    )
