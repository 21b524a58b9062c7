# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines over the host's own files: what is inside, what is mapped, and that nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import nspawn
from machine.errors import MachineError
from machine.idmap import swapped
from machine.nspawn import Machine
from machine.overlay import Bind

WHY_NOT = nspawn.why_not()
needs_machine = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
NAME = f"test-{os.getpid()}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Path]]:
    folder = tmp_path_factory.mktemp("bound")
    machine = Machine.boot(NAME, binds=[Bind(str(folder), "/bound")])
    yield machine, folder
    machine.stop()


def _mounts() -> list[str]:
    """Return the mounts of our machines that the host sees; others' come and go while we test."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if NAME in line]


def _cgroups() -> list[Path]:
    mount = nspawn._cgroup_mount()
    assert mount is not None
    return list(mount.glob(f"ccorch-machine-{NAME}*"))


def test_swapped_is_a_complete_permutation() -> None:
    for first, second in ((0, 1000), (1000, 0), (0, 1), (7, 7), (65534, 1001)):
        spans = [tuple(map(int, line.split())) for line in swapped(first, second).splitlines()]
        for column in (0, 1):
            edges = sorted((span[column], span[2]) for span in spans)
            assert edges[0][0] == 0
            assert all(start + count == edges[i + 1][0] for i, (start, count) in enumerate(edges[:-1]))
            assert sum(edges[-1]) == 2**32 - 1
        if first != second:
            assert (first, second, 1) in spans or (second, first, 1) in spans


@needs_machine
def test_system_and_user_manager_run(shared: tuple[Machine, Path]) -> None:
    machine, _ = shared
    assert machine.run(["systemctl", "is-system-running"], user="root").stdout == "running\n"
    assert machine.run(["systemctl", "--user", "is-system-running"]).stdout == "running\n"
    assert machine.run(["systemd-run", "--user", "--wait", "--quiet", "true"]).returncode == 0
    assert machine.uid >= 1000


@needs_machine
def test_no_service_of_the_host_runs_inside(shared: tuple[Machine, Path]) -> None:
    machine, _ = shared
    listing = machine.run(
        ["systemctl", "list-units", "--plain", "--no-legend", "--state=running", "--type=service"], user="root"
    )
    running = {line.split()[0] for line in listing.stdout.splitlines()}
    expected = {"dbus.service", "systemd-journald.service", "systemd-logind.service", f"user@{machine.uid}.service"}
    assert running == expected


@needs_machine
def test_environment_is_clean(shared: tuple[Machine, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    machine, _ = shared
    monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
    lines = machine.run(["env"], env={"EXTRA": "a b"}).stdout.splitlines()
    variables = dict(line.split("=", 1) for line in lines)
    assert "SECRET_OF_THE_HOST" not in variables
    assert variables["EXTRA"] == "a b"
    assert variables["HOME"] == "/home/dev"
    assert variables["XDG_RUNTIME_DIR"] == f"/run/user/{machine.uid}"


@needs_machine
def test_input_status_and_terminal(shared: tuple[Machine, Path]) -> None:
    machine, _ = shared
    assert machine.run(["cat"], input="ä\n").stdout == "ä\n"
    assert machine.run(["sh", "-c", "exit 7"]).returncode == 7
    assert machine.run(["tty"]).returncode == 1
    done = machine.run(["tty"], tty=True)
    assert (done.returncode, done.stdout.strip()[:9]) == (0, "/dev/pts/")
    with pytest.raises(MachineError, match="false failed"):
        machine.run(["false"], check=True)


@needs_machine
def test_time_out_ends_the_children_too(shared: tuple[Machine, Path]) -> None:
    machine, _ = shared
    with pytest.raises(subprocess.TimeoutExpired):
        machine.run(["sh", "-c", "setsid sleep 98765 & sleep 98765"], timeout=0.5)
    assert machine.run(["pgrep", "-f", "sleep 98765"]).stdout == ""


@needs_machine
def test_a_login_is_a_session_of_logind(shared: tuple[Machine, Path]) -> None:
    machine, _ = shared
    assert (
        machine.run(["sh", "-c", "echo $XDG_SESSION_ID; cat /proc/self/cgroup"], login=True).stdout.count("session-")
        == 1
    )


@needs_machine
def test_a_journal_of_its_own_that_the_user_reads(shared: tuple[Machine, Path]) -> None:
    machine, _ = shared
    machine.run(["systemd-run", "--user", "--wait", "--quiet", "--unit=speaks", "echo", "hello journal"], check=True)
    machine.run(["journalctl", "--sync"], user="root")
    assert "hello journal" in machine.run(["journalctl", "--user", "-q", "-o", "cat", "-u", "speaks"]).stdout


@needs_machine
@pytest.mark.parametrize("owner", [0, 4242])
def test_commits_inside_belong_to_the_owner_outside(tmp_path: Path, owner: int) -> None:
    repository = tmp_path / "repository"
    author = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    subprocess.run(["git", *author, "-C", str(repository), "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    for folder, names, files in os.walk(repository):
        for entry in (".", *names, *files):
            os.chown(os.path.join(folder, entry), owner, owner)
    machine = Machine.boot(f"{NAME}-map", binds=[str(repository)])
    try:
        script = "echo text >file && git add file && git %s commit -q -m second && git worktree add -q ~/tree"
        script += " && stat -c %%U ."
        done = machine.run(["sh", "-c", script % " ".join(author)], cwd=str(repository), check=True)
        assert done.stdout == "dev\n"
    finally:
        machine.stop(force=True)
    log = ["git", "-c", "safe.directory=*", "-C", str(repository), "log", "--format=%s"]
    assert subprocess.run(log, capture_output=True, text=True, check=True).stdout == "second\nfirst\n"
    owners = {
        os.lstat(os.path.join(folder, entry)).st_uid
        for folder, names, files in os.walk(repository)
        for entry in (*names, *files)
    }
    assert owners == {owner}


@needs_machine
def test_a_read_only_bind(tmp_path: Path) -> None:
    machine = Machine.boot(f"{NAME}-ro", binds=[Bind(str(tmp_path), "/given", read_only=True)])
    try:
        assert "Read-only" in machine.run(["touch", "/given/x"]).stderr
    finally:
        machine.stop(force=True)


@needs_machine
def test_stop_leaves_nothing() -> None:
    machine = Machine.boot(f"{NAME}-gone")
    assert not _mounts(), "mounts of a machine must not show on the host"
    assert nspawn.Machine.open(f"{NAME}-gone") is not None
    machine.run(["sh", "-c", "setsid sleep 87654 >/dev/null 2>&1 &"])
    machine.stop()
    assert not machine.alive
    assert not machine.base.exists()
    assert not _mounts()
    assert subprocess.run(["pgrep", "-f", "sleep 87654"], capture_output=True, check=False).stdout == b""
    assert not [group for group in _cgroups() if group.name.endswith("-gone")]


@needs_machine
def test_what_a_killed_machine_left_is_swept_at_the_next_boot() -> None:
    first = Machine.boot(f"{NAME}-again")
    os.kill(first._pid, signal.SIGKILL)
    assert first._process is not None
    first._process.wait(10)
    assert not first.alive
    assert first.base.exists()
    second = Machine.boot(f"{NAME}-again")
    assert second.run(["true"]).returncode == 0
    second.stop(force=True)
    assert not second.base.exists()


@needs_machine
def test_a_boot_that_fails_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    os.chown(file, 4242, 4242)
    with pytest.raises(MachineError, match="only folders can be bound"):
        Machine.boot(f"{NAME}-bad", binds=[str(file)])
    assert not (nspawn.BASE / f"ccorch-machine-{NAME}-bad").exists()


@needs_machine
def test_on_a_systemd_host_a_machine_is_a_scope_and_its_user_may_exist_there() -> None:
    folder = str(Path(__file__).resolve().parents[2])
    outer = Machine.boot(f"{NAME}-outer", binds=[Bind(folder, read_only=True)])
    try:
        program = ["/usr/bin/python3", "-B", f"{folder}/packaging/machine"]
        outer.run([*program, "boot", "inner"], user="root", check=True)
        assert outer.run([*program, "run", "inner", "id", "-un"], user="root", check=True).stdout == "dev\n"
        units = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "ccorch-machine-*"]
        assert outer.run(units, user="root").stdout.startswith("ccorch-machine-inner.scope ")
        outer.run([*program, "stop", "inner"], user="root", check=True)
        assert outer.run(units, user="root").stdout == ""
        assert outer.run(["sh", "-c", "ls -d /run/ccorch-machine-*"], user="root").stdout == ""
    finally:
        outer.stop(force=True)
