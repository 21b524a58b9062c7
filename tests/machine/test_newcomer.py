# SPDX-License-Identifier: LGPL-2.1-or-later
"""A clean Debian 12, the package, and a newcomer: from nothing to an agent's first commit; then an upgrade at work and
the end of the login session that started it all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import nspawn
from machine.image import cache_folder
from machine.nspawn import Machine

CHECKOUT = Path(__file__).resolve().parents[2]
WHY_NOT = nspawn.why_not()
pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), pytest.mark.timeout(600)]
LIMIT = 180.0
"""Seconds from ``apt install`` to the first commit of an agent."""
PACKAGES = "systemd,systemd-sysv,dbus,libpam-systemd,git,ca-certificates,procps"


def _clean_debian() -> Path:
    """Return the root of a minimal Debian 12, made once a month and cached. Machines never write to it."""
    place = cache_folder() / f"clean-bookworm-{time.strftime('%Y-%m')}"
    if not place.is_dir():
        half = place.with_suffix(".part")
        shutil.rmtree(half, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        # The guest's apt reaches the archives the way the host's does.
        hooks = [
            f"--customize-hook=copy-in {folder} {folder.parent}"
            for folder in (Path("/etc/apt"), Path("/etc/ssl/certs"))
        ]
        command = ["mmdebstrap", "--variant=apt", f"--include={PACKAGES}", *hooks, "bookworm", str(half)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        half.rename(place)
    return place


@pytest.fixture(scope="module")
def package() -> Path:
    subprocess.run(
        ["/usr/bin/python3", str(CHECKOUT / "packaging/deb.py")], check=True, capture_output=True, timeout=300
    )
    return max((CHECKOUT / "build").glob("ccorch_*_all.deb"), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="module")
def machine(package: Path) -> Iterator[Machine]:
    made = Machine.boot(f"test-new-{os.getpid()}", lower=str(_clean_debian()))
    try:
        # As text, because that is what run() hands over; a bind would need a folder of the machine's user.
        made.run(["sh", "-c", "base64 -d > /root/ccorch.deb"], user="root", input=_base64(package), check=True)
        yield made
    finally:
        made.stop(force=True)


def _base64(path: Path) -> str:
    return subprocess.run(["base64", str(path)], check=True, capture_output=True, text=True).stdout


def _do(machine: Machine, script: str, *, user: str = "", login: bool = False, timeout: float = 240) -> str:
    done = machine.run(["sh", "-c", script], user=user, login=login, timeout=timeout)
    assert done.returncode == 0, f"{script}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def _instances(machine: Machine) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(_do(machine, "ccorchctl instance list -o json"))}


def _eventually(machine: Machine, what: str, script: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while machine.run(["sh", "-c", script]).returncode:
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.1)


def test_first_commit_comes_in_under_three_minutes(machine: Machine) -> None:
    _do(machine, "apt-get update -qq", user="root")  # what any Debian has done before
    begun = time.monotonic()
    _do(
        machine,
        "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends /root/ccorch.deb",
        user="root",
    )
    _do(
        machine,
        "mkdir shop && cd shop && git init -q -b main && echo '# shop' > README.md && git add -A && "
        "git -c user.name=N -c user.email=n@localhost commit -q -m Start",
    )
    said = _do(machine, "cd shop && ccorchctl init --yes")
    assert "Next:" in said
    _do(machine, "cd shop && ccorchctl try --agent demo --keep 'Add a changelog entry about apples'")
    commits = _do(machine, "cd shop && git log --all --oneline --not main").splitlines()
    took = time.monotonic() - begun
    print(f"first commit after {took:.0f} s: {commits[-1]}")
    assert commits
    assert took < LIMIT


def test_upgrade_while_agents_work_touches_nobody(machine: Machine) -> None:
    _do(machine, "cd shop && ccorchctl create up --agent demo --prompt '#sleep 900'")
    _eventually(machine, "it works", "ccorchctl show shop/up -o json | grep -q working")
    before, daemon = _instances(machine)["up"]["pid"], _do(machine, "systemctl --user show -P MainPID ccorchd").strip()
    _do(machine, "dpkg -i /root/ccorch.deb", user="root")
    _eventually(
        machine,
        "the new daemon answers",
        f"test $(systemctl --user show -P MainPID ccorchd) != {daemon} && ccorchctl status",
    )
    record = _instances(machine)["up"]
    assert (record["pid"], record["state"]) == (before, "working")


def test_end_of_the_login_session_touches_nobody(machine: Machine) -> None:
    """A log-in by PAM, as SSH makes one: its scope ends with it, and nothing of ccorch was ever in it."""
    started = _do(
        machine,
        "cat /proc/self/cgroup; cd shop; "
        "for n in 1 2 3 4 5; do ccorchctl create s$n --agent demo --prompt '#sleep 900' -q || exit; done",
        login=True,
    )
    assert "session-" in started
    _eventually(machine, "no session is left", 'test -z "$(loginctl list-sessions --no-legend)"')
    records = _instances(machine)
    assert {records[f"s{n}"]["state"] for n in range(1, 6)} <= {"working", "starting"}
    for n in range(1, 6):
        _do(machine, f"test -d /proc/{records[f's{n}']['pid']}")


def test_removal_of_the_package_keeps_the_work(machine: Machine) -> None:
    branches = _do(machine, "cd shop && git branch --list 'ccorch/*'")
    _do(machine, "apt-get remove -y -qq ccorch", user="root")
    assert _do(machine, "cd shop && git branch --list 'ccorch/*'") == branches
    assert "ccorch" in branches
