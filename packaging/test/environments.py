# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Pythons that tests run on: the distribution's with its own packages, and one with PyPI's newest."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

DISTRIBUTION_PYTHON = Path("/usr/bin/python3")
OLDEST = (3, 11)
REFRESH_AFTER = 7 * 86400.0
"""Seconds after which PyPI is asked for newer versions again."""

TOOLS = ("ruff==0.17.6", "mypy==2.4.1", "types-psutil==7.2.2.20261111", "coverage==7.17.3")
"""Pinned: a new linter must not fail a change that has nothing to do with it. Coverage has to lie in the venv itself,
because the distribution's packages are not yet on the path when the venv's .pth files are read."""

LIBRARIES = (
    "GitPython",
    "aiohttp",
    "dbus-next",
    "keyring",
    "libtmux",
    "peewee",
    "psutil",
    "pystemd",
    "sdnotify",
)
TEST_LIBRARIES = ("coverage", "pytest", "pytest-asyncio", "pytest-timeout")

MEASURE = "import os; os.environ.get('COVERAGE_PROCESS_START') and __import__('coverage').process_startup()\n"
"""A .pth line: each Python that a test starts measures itself when the runner asks for it."""


class Unavailable(Exception):
    """An environment that cannot be made here; the text is one sentence."""


@dataclass(frozen=True)
class Recipe:
    """One venv: where, from which Python, with what in it."""

    folder: Path
    python: Path
    system_packages: bool
    requirements: tuple[str, ...]
    newest: bool = False

    @property
    def executable(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def stamp(self) -> Path:
        return self.folder / "made-from"

    def digest(self) -> str:
        """Return a digest of all that the venv follows from; a new Python or a new pin makes a new venv."""
        version = subprocess.run([str(self.python), "-VV"], capture_output=True, text=True, check=True).stdout
        parts = [str(self.folder.resolve()), version, str(self.system_packages), *self.requirements]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def state(self) -> str:
        """Return ``ready``, ``old`` (usable, but newer versions may be out) or ``missing``."""
        if not self.executable.exists() or not self.stamp.exists() or self.stamp.read_text() != self.digest():
            return "missing"
        if self.newest and time.time() - self.stamp.stat().st_mtime > REFRESH_AFTER:
            return "old"
        return "ready"


def _version(python: Path) -> tuple[int, ...]:
    command = [str(python), "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ()
    return tuple(int(part) for part in answer.stdout.split()) if answer.returncode == 0 else ()


def base_python() -> tuple[Path, bool]:
    """Return the Python to build on, and whether it is the distribution's (whose python3-* packages serve it alone)."""
    if _version(DISTRIBUTION_PYTHON) >= OLDEST:
        return DISTRIBUTION_PYTHON, shutil.which("dpkg-query") is not None
    return Path(sys.executable), False


def recipes(cache: Path) -> tuple[Recipe, Recipe]:
    """Return the recipes of the main venv and of the one with PyPI's newest, both below *cache*."""
    python, distribution = base_python()
    everything = (*LIBRARIES, *TEST_LIBRARIES)
    main = Recipe(cache / "venv", python, distribution, TOOLS if distribution else (*TOOLS, *everything))
    return main, Recipe(cache / "venv-pypi", python, False, everything, newest=True)


def make(recipe: Recipe, log: Path) -> None:
    """Make or refresh a venv; what pip says goes to *log*. Raise Unavailable when none is usable afterwards."""
    state = recipe.state()
    if state == "ready":
        return
    commands = []
    if state == "missing":
        shutil.rmtree(recipe.folder, ignore_errors=True)
        options = ["--system-site-packages"] if recipe.system_packages else []
        commands.append([str(recipe.python), "-m", "venv", *options, str(recipe.folder)])
    pip = [str(recipe.executable), "-m", "pip", "install", "--quiet", "--upgrade", "--disable-pip-version-check"]
    if recipe.newest:
        # Some projects have no wheel; building one needs a setuptools that is not the distribution's.
        commands.append([*pip, "pip", "setuptools", "wheel"])
    commands.append([*pip, *recipe.requirements])
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        for command in commands:
            if subprocess.run(command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, check=False).returncode:
                if state == "old":
                    return
                shutil.rmtree(recipe.folder, ignore_errors=True)
                raise Unavailable(f"{recipe.folder.name} could not be made (package index not reachable?); see {log}")
    for packages in recipe.folder.glob("lib/python*/site-packages"):
        (packages / "ccorch-measure.pth").write_text(MEASURE)
    recipe.stamp.write_text(recipe.digest())
