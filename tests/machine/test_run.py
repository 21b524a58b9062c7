# SPDX-License-Identifier: LGPL-2.1-or-later
"""``make run`` and ``make stop``, from nothing to five branches and back to nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from machine import nspawn
from machine.nspawn import Machine
from machine.overlay import Bind

CHECKOUT = Path(__file__).resolve().parents[2]
WHY_NOT = nspawn.why_not() or ("PID 1 is systemd here" if Path("/run/systemd/system").is_dir() else "")
pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), pytest.mark.timeout(400)]
NAME = f"test-run-{os.getpid()}"
AUTHOR = ("-c", "user.name=t", "-c", "user.email=t@localhost")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "safe.directory=*", *AUTHOR, "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _repository(folder: Path) -> Path:
    folder.mkdir()
    (folder / "tool.py").write_text("def double(x):\n    return 2 * x \n")
    (folder / "README.md").write_text("# tool\n\nDoubles things.\n")
    _git(folder, "init", "-q", "-b", "main")
    _git(folder, "add", "--all")
    _git(folder, "commit", "-q", "-m", "Begin")
    return folder


def _told(output: str) -> dict[str, int]:
    """Return how many commits the report names for each branch."""
    return {branch: int(count) for branch, count in re.findall(r"branch (ccorch/\S+), (\d+) commit", output)}


def test_without_systemd_branches_are_in_the_repository_and_nothing_else_stays(tmp_path: Path) -> None:
    repository = _repository(tmp_path / "somebody's work")
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "REPO": str(repository),
        "CCORCH_RUN_MACHINE": NAME,
    }

    def make(verb: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = ["/usr/bin/python3", str(CHECKOUT / "packaging/run"), verb]
        return subprocess.run(
            command, env=environment | more, capture_output=True, text=True, timeout=300, check=False, cwd=CHECKOUT
        )

    try:
        done = make("run")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "5 of 5 still running" in done.stdout
        told = _told(done.stdout)
        assert len(told) == 5
        assert all(told.values()), told
        assert make("ctl", ARGS="instance list -o json").stdout.count('"name"') == 5
    finally:
        stopped = make("stop")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    for branch, count in told.items():
        assert _git(repository, "rev-list", "--count", f"main..{branch}") == f"{count}\n"
        assert branch in stopped.stdout
    assert _git(repository, "status", "--porcelain") == ""
    assert len(_git(repository, "worktree", "list").splitlines()) == 1
    mounts = Path("/proc/self/mountinfo").read_text()
    assert NAME not in mounts
    assert str(tmp_path) not in mounts
    assert not (nspawn.BASE / f"ccorch-machine-{NAME}").exists()
    assert not (tmp_path / ".local/state/ccorch_run").exists()
    owners = {os.lstat(os.path.join(folder, file)).st_uid for folder, _, files in os.walk(repository) for file in files}
    assert owners == {os.getuid()}
    assert make("stop").stdout == "Nothing is running.\n"


def test_on_a_systemd_host_an_ordinary_user_needs_no_privilege(tmp_path: Path) -> None:
    repository = _repository(tmp_path / "repository")
    binds = [Bind(str(repository), "/home/dev/repository"), Bind(str(CHECKOUT), "/src", read_only=True)]
    machine = Machine.boot(NAME, binds=binds)
    try:
        environment = {"REPO": "/home/dev/repository", "PYTHONDONTWRITEBYTECODE": "1"}
        done = machine.run(["make", "-C", "/src", "run"], env=environment, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "5 of 5 still running" in done.stdout
        told = _told(done.stdout)
        assert len(told) == 5
        stopped = machine.run(["make", "-C", "/src", "stop"], env=environment, timeout=120)
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        left = machine.run(["systemctl", "--user", "list-units", "--all", "--plain", "--no-legend", "*ccorch*"])
        assert left.stdout == ""
        script = (
            "cd $XDG_RUNTIME_DIR; ls -d *ccorch* systemd/user systemd/transient/*; pgrep -u dev tmux; ls ~/.local/state"
        )
        assert machine.run(["sh", "-c", script]).stdout == ""
    finally:
        machine.stop()
    for branch, count in told.items():
        assert _git(repository, "rev-list", "--count", f"main..{branch}") == f"{count}\n"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"REPO": "/nowhere"}, "REPO=/nowhere: there is no such folder.\n"),
        ({"REPO": "/proc"}, "REPO=/proc is no git repository."),
        ({"N": "many"}, "N=many must be a number from 1 to 9.\n"),
        ({"AGENT": "parrot"}, "AGENT=parrot is neither demo nor claude.\n"),
        ({"MACHINE": "moon"}, "MACHINE=moon is none of host, nspawn, vm.\n"),
    ],
)
def test_a_wrong_wish_is_one_sentence(tmp_path: Path, variables: dict[str, str], sentence: str) -> None:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(tmp_path), "CCORCH_RUN_MACHINE": NAME}
    command = [sys.executable, str(CHECKOUT / "packaging/run"), "run"]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(sentence)
    assert len(done.stderr.splitlines()) == 1
