# SPDX-License-Identifier: LGPL-2.1-or-later
"""The virtual machine: commands, files, limits that bite, power cuts and reboots."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from machine import image, vm
from machine.vm import Machine

WHY_NOT = vm.why_not()
pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    machine = Machine.boot(f"test-{os.getpid()}")
    yield machine
    machine.stop()
    assert not machine.alive
    assert not machine.base.exists()


@pytest.fixture(autouse=True)
def no_process_left_behind() -> None:
    """The machine belongs to the module, also when a test has booted it again; its end is checked there."""


def test_every_controller_is_there(machine: Machine) -> None:
    controllers = machine.run(["cat", "/sys/fs/cgroup/cgroup.controllers"], check=True).stdout.split()
    assert {"cpu", "io", "memory", "pids"} <= set(controllers)
    assert machine.run(["systemctl", "--user", "is-system-running"]).stdout == "running\n"


def test_commands(machine: Machine) -> None:
    text = "ä" * 500_000
    assert machine.run(["cat"], input=text).stdout == text
    done = machine.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert machine.run(["id", "-un"], user="root").stdout == "root\n"
    assert machine.run(["tty"], tty=True).stdout.startswith("/dev/pts/")
    assert machine.run(["cat", "/proc/self/oom_score_adj"]).stdout == "0\n"


def test_time_out_ends_the_children_too(machine: Machine) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        machine.run(["sh", "-c", "setsid sleep 98765 & sleep 98765"], timeout=5)
    assert machine.run(["pgrep", "-f", "sleep 98765"]).stdout == ""


def test_several_at_once(machine: Machine) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda number: machine.run(["sh", "-c", f"sleep 0.2; echo {number}"]).stdout, range(6)))
    assert answers == [f"{number}\n" for number in range(6)]


def test_files_in_and_out(machine: Machine, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_bytes(os.urandom(300_000))
    machine.put(source, "/home/dev/copied")
    machine.get("/home/dev/copied", tmp_path / "back")
    assert (tmp_path / "back" / "copied" / "deep" / "file").read_bytes() == (source / "deep" / "file").read_bytes()
    assert machine.run(["stat", "-c", "%U", "/home/dev/copied/deep/file"]).stdout == "dev\n"


def test_memory_limit_bites(machine: Machine) -> None:
    command = ["systemd-run", "--user", "--scope", "-q", "-p", "MemoryMax=60M", "python3", "-c", "bytearray(200 << 20)"]
    assert machine.run(command).returncode == 137


def test_power_cut_and_reboot(machine: Machine) -> None:
    machine.run(["sh", "-c", "echo kept >kept; sync"], check=True)
    machine.power_cut()
    assert not machine.alive
    machine.boot_again()
    assert machine.run(["cat", "kept"]).stdout == "kept\n"
    before = machine.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout
    machine.reboot()
    assert machine.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout != before
    assert machine.run(["cat", "kept"]).stdout == "kept\n"


def test_the_hosts_own_archives_are_used(tmp_path: Path) -> None:
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (folder / "debian.sources").write_text(
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main contrib\n"
        "\nTypes: deb\nURIs: https://other.example/x\nSuites: nodistro\nComponents: main\n"
    )
    (tmp_path / "sources.list").write_text(
        "# deb http://old.example/debian bookworm main\n"
        "deb [signed-by=/k arch=amd64] http://mirror.example/debian-security bookworm-security main\n"
    )
    assert image.sources("bookworm", tmp_path) == [
        "deb http://mirror.example/debian-security bookworm-security main",
        "deb http://mirror.example/debian bookworm main",
        "deb http://mirror.example/debian bookworm-updates main",
    ]
    assert image.sources("trixie", tmp_path) == []
