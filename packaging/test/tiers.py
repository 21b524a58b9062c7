# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of tiers: what each needs, costs and runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import apt
import environments

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "test"
CACHE = ROOT / ".cache"
MAIN, PYPI = environments.recipes(CACHE)
PYTEST = ("--color=no", "--continue-on-collection-errors")


@dataclass(frozen=True)
class Step:
    """One command of a tier. *junit* is the file pytest will write, *venv* what has to be there first."""

    title: str
    command: tuple[str, ...]
    junit: Path | None = None
    venv: environments.Recipe = MAIN
    root: bool = False
    measured: bool = True


@dataclass(frozen=True)
class Tier:
    """One tier. *expected* is minutes on two cores once everything is there, *budget* minutes it may take."""

    name: str
    about: str
    expected: float
    budget: float
    size: str
    steps: Callable[[], list[Step]]
    packages: tuple[str, ...] = ()
    venvs: tuple[environments.Recipe, ...] = field(default=(MAIN,))


def pytest(
    tier: str, *, venv: environments.Recipe = MAIN, label: str = "", measured: bool = True, extra: str = ""
) -> Step:
    """Return the step that runs a folder of tests here, or one file of it (*extra*)."""
    name = f"{tier}-{label}" if label else tier
    junit = OUT / f"{name}.xml"
    command = [str(venv.executable), "-m", "pytest", extra or f"tests/{tier}", f"--junit-xml={junit}", *PYTEST]
    if tier == "unit":
        command.append("--ignore=tests/unit/test_house.py")  # the lint tier's
    return Step(f"pytest {name}", tuple(command), junit, venv, measured=measured)


def in_machine(tier: str) -> Step:
    """Return the step that runs a folder of tests inside a booted machine that has the package installed."""
    folder = OUT / tier
    command = (sys.executable, str(ROOT / "packaging/test/inside.py"), tier, str(folder))
    return Step(f"pytest {tier} in a booted machine", command, folder / "junit.xml", root=True)


def script(title: str, path: str) -> Step:
    return Step(title, (sys.executable, str(ROOT / path)), measured=False)


def _lint() -> list[Step]:
    tool = [str(MAIN.executable), "-m"]
    typed = ("ccorchd", "ccorchctl", "web", "packaging")
    return [
        Step("ruff check", (*tool, "ruff", "check", "--no-cache", "."), measured=False),
        Step("ruff format", (*tool, "ruff", "format", "--no-cache", "--check", "."), measured=False),
        Step("mypy --strict", (*tool, "mypy", "--strict", "--cache-dir", str(CACHE / "mypy"), *typed), measured=False),
        pytest("lint", extra="tests/unit/test_house.py", measured=False),
    ]


def _unit() -> list[Step]:
    return [pytest("unit"), pytest("unit", venv=PYPI, label="pypi")]


def _bus() -> list[Step]:
    return [pytest("bus")]


def _machine() -> list[Step]:
    command = [*pytest("machine", measured=False).command, "--ignore=tests/machine/test_vm.py"]
    return [Step("pytest machine", tuple(command), OUT / "machine.xml", root=True, measured=False)]


def _system() -> list[Step]:
    return [script("build the package", "packaging/deb.py"), in_machine("system")]


def _vm_machinery() -> Step:
    """Return the step that tests the virtual machine itself, which shares the vm tier's cached image."""
    return pytest("vm", label="machinery", measured=False, extra="tests/machine/test_vm.py")


def _vm() -> list[Step]:
    return [script("build the package", "packaging/deb.py"), pytest("vm", measured=False), _vm_machinery()]


def _claude() -> list[Step]:
    return [
        script("build the package", "packaging/deb.py"),
        script("fetch the Claude binary", "tests/claude/fetch.py"),
        in_machine("claude"),
    ]


_LOCAL = (*apt.RUNTIME, *apt.TESTING)

TIERS = (
    Tier("lint", "ruff, mypy --strict, rules of the house", 0.5, 2, "120 MB", _lint, _LOCAL),
    Tier(
        "unit",
        "no systemd; distribution's packages, then PyPI's newest",
        3.5,
        7,
        "110 MB",
        _unit,
        (*_LOCAL, *apt.COMPILER),
        (MAIN, PYPI),
    ),
    Tier("bus", "the API on a private D-Bus daemon", 1, 3, "", _bus, (*_LOCAL, *apt.BUS)),
    Tier(
        "machine",
        "make run and make stop, and a newcomer on a clean Debian 12",
        3,
        8,
        "400 MB",
        _machine,
        (*_LOCAL, *apt.BUILD, *apt.MACHINE, "mmdebstrap"),
    ),
    Tier(
        "system",
        "booted machine, .deb installed, ordinary user",
        5,
        10,
        "60 MB",
        _system,
        (*_LOCAL, *apt.BUILD, *apt.MACHINE, *apt.COMPILER),
        (MAIN, PYPI),
    ),
    Tier(
        "vm",
        "virtual machine: memory, CPU and task limits, power cuts",
        10,
        21,
        "700 MB",
        _vm,
        (*_LOCAL, *apt.BUILD, *apt.VIRTUAL),
    ),
    Tier(
        "claude",
        "the real Claude binary against a fake API on loopback",
        4.5,
        8,
        "250 MB",
        _claude,
        (*_LOCAL, *apt.BUILD, *apt.MACHINE, "npm"),
    ),
)
QUICK = ("lint", "unit", "bus")
