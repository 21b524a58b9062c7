# SPDX-License-Identifier: LGPL-2.1-or-later
"""One virtual machine for the whole tier: the package installed with dpkg, an ordinary user, ``ccorchctl init``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import vm
from machine.vm import Machine

sys.path.insert(0, str(Path(__file__).parent))

from guest import REPOSITORY, Guest

ROOT = Path(__file__).resolve().parents[2]
WHY_NOT = vm.why_not()
TIME_OUT = 900  # seconds for one test; the first one may make the disk as well

_REPOSITORY = f"""
set -eu
git init -q -b main {REPOSITORY}
cd {REPOSITORY}
git config user.name Test
git config user.email test@example.com
mkdir lib
printf '# sample\\n\\nA sample.\\n' >README.md
printf 'def shout(text):\\n    return text.upper()\\n' >lib/text.py
git add -A
git commit -q -m Start
"""

_SETTINGS = """
mkdir -p ~/.config/ccorch
printf '[instances]\\nagent = "demo"\\n' >~/.config/ccorch/ccorchd.toml
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.timeout(TIME_OUT))


@pytest.fixture(autouse=True)
def no_process_left_behind() -> None:
    """The machine belongs to the session, also when a test has booted it again; its end is checked there."""


@pytest.fixture(scope="session")
def installed() -> Iterator[Guest]:
    """The machine, booted, with the package that was built last."""
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    packages = sorted((ROOT / "build").glob("ccorch_*.deb"), key=lambda path: path.stat().st_mtime)
    assert packages, "there is no package in build/: run `make deb`"
    machine = Machine.boot(f"test-vm-{os.getpid()}")
    try:
        machine.put(packages[-1], "/root/ccorch.deb", user="root")
        machine.run(["dpkg", "--install", "/root/ccorch.deb"], user="root", check=True)
        guest = Guest(machine)
        guest.shell(_REPOSITORY)
        guest.shell(_SETTINGS)
        # What a user of a fresh machine does; the image's user lingers, the daemon is started and enabled by this.
        guest.ok("init", REPOSITORY, "--name", "sample", "--yes")
        yield guest
    finally:
        machine.stop()
        assert not machine.alive
        assert not machine.base.exists()


@pytest.fixture
def guest(installed: Guest) -> Iterator[Guest]:
    """The machine with no instance in it, and none afterwards."""
    yield installed
    if installed.machine.alive:
        installed.clear()
