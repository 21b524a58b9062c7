# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the package brought: where it lies, what it enabled, and that its pieces fit together."""

from __future__ import annotations

import configparser
import subprocess
from pathlib import Path

import pytest

UNITS = Path("/usr/lib/systemd/user")
BUS_FILES = Path("/usr/share/dbus-1/services")
DIST_PACKAGES = "/usr/lib/python3/dist-packages/"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("package", ["ccorchd", "ccorchctl", "ccorchweb"])
def test_programs_run_on_the_distributions_python(package: str) -> None:
    """They are imported from where Debian puts modules, and nothing of the checkout is used."""
    ended = run("/usr/bin/python3", "-P", "-c", f"import {package}; print({package}.__file__)")
    assert ended.stdout.startswith(DIST_PACKAGES), ended.stderr


@pytest.mark.parametrize("program", ["ccorchd", "ccorchctl", "ccorch-web"])
def test_scripts_name_the_distributions_python(program: str) -> None:
    first = Path("/usr/bin", program).read_text(encoding="utf-8").splitlines()[0]
    assert first.replace(" ", "") == "#!/usr/bin/python3"


@pytest.mark.parametrize("program", ["ccorchd", "ccorchctl", "ccorch-web"])
def test_programs_have_help_and_a_manual(program: str) -> None:
    assert run(program, "--help").returncode == 0
    assert list(Path("/usr/share/man").glob(f"man[18]/{program}.[18].gz"))


@pytest.mark.parametrize("unit", ["ccorchd.service", "ccorch.slice"])
def test_units_are_without_fault(unit: str) -> None:
    ended = run("systemd-analyze", "--user", "verify", str(UNITS / unit))
    mine = [line for line in ended.stderr.splitlines() if "ccorch" in line and "man " not in line]
    assert not mine


def test_daemon_unit_gives_agents_nothing_to_inherit() -> None:
    """Instances are forked by the daemon: a sandbox or limit on it would be on every agent."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(UNITS / "ccorchd.service")
    inherited = ("Private", "Protect", "Restrict", "Limit", "SystemCall", "NoNewPrivileges", "ReadOnly", "UMask")
    inherited += ("Capability", "OOMScore", "Nice", "CPU", "IO", "Memory", "Tasks", "Lock", "Namespace")
    assert not [name for name in unit["Service"] if name.startswith(inherited)]
    assert unit["Service"]["Restart"] == "always"
    assert unit["Service"]["RuntimeDirectoryPreserve"] == "yes"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"


def test_bus_activation_goes_through_systemd() -> None:
    service = configparser.ConfigParser()
    service.read(BUS_FILES / "org.ccorch1.service")
    section = service["D-BUS Service"]
    assert section["Name"] == "org.ccorch1"
    assert (UNITS / section["SystemdService"]).exists()
    names = run("busctl", "--user", "--activatable", "--no-legend", "list").stdout
    assert "org.ccorch1 " in names


def test_it_is_enabled_for_nobody() -> None:
    """Whoever wants it at boot says so with `ccorchctl init`; other users of the host get nothing."""
    assert run("systemctl", "--global", "is-enabled", "ccorchd.service").stdout.strip() == "disabled"


def test_catalog_is_known() -> None:
    listed = run("journalctl", "--list-catalog").stdout
    assert "ccorch" in listed.lower()
