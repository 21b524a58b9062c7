# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon suffers costs no instance anything, and what is told counts once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from daemons import Daemon, eventually, run

FIVE = [f"sample/n{number}" for number in range(5)]


def _start_five(daemon: Daemon) -> dict[str, int]:
    for address in FIVE:
        daemon.ok("instance", "create", address, "--prompt", "#sleep 600")
    return {address: daemon.wait_state(address, "working")["pid"] for address in FIVE}


def _same(daemon: Daemon, pids: dict[str, int]) -> None:
    records = daemon.instances()
    assert {address: records[address]["pid"] for address in FIVE} == pids
    assert {records[address]["state"] for address in FIVE} == {"working"}
    assert sorted(daemon.scopes()) == sorted(records[address]["unit"] for address in FIVE)
    for pid in pids.values():
        os.kill(pid, 0)


def test_sigkill_and_restart_of_the_daemon_touch_nobody(daemon: Daemon, project: str) -> None:
    pids = _start_five(daemon)
    daemon.kill()
    _same(daemon, pids)
    assert daemon.systemctl("restart").returncode == 0
    _same(daemon, pids)
    for address in FIVE:
        adopted = [event for event in daemon.events(address) if event["kind"] == "instance.adopted"]
        assert len(adopted) == 2
    # They are watched again: a death is noticed.
    os.kill(pids[FIVE[0]], signal.SIGKILL)
    assert daemon.wait_state(FIVE[0], "failed")["reason"] == "signal"


def test_stop_shuts_every_instance_down_cleanly(daemon: Daemon, project: str) -> None:
    pids = _start_five(daemon)
    assert daemon.systemctl("stop").returncode == 0
    assert not daemon.scopes()
    for pid in pids.values():
        assert not Path(f"/proc/{pid}").exists()
    daemon.start()
    records = daemon.instances()
    assert {records[address]["state"] for address in FIVE} == {"stopped"}
    # Cleanly: each agent said good-bye by its own hook before it ended.
    for address in FIVE:
        messages = " ".join(event["message"] for event in daemon.events(address))
        assert "stopped" in messages


def test_shutdown_verb_stops_daemon_and_instances(daemon: Daemon, project: str) -> None:
    daemon.ok("instance", "create", "sample/n0", "--prompt", "#sleep 600")
    daemon.wait_state("sample/n0", "working")
    daemon.ok("shutdown", "--yes")
    eventually("the daemon is gone", lambda: daemon.systemctl("is-active").stdout.strip() == "inactive")
    assert not daemon.scopes()


def test_what_died_while_the_daemon_was_away_is_told(daemon: Daemon, project: str) -> None:
    pids = _start_five(daemon)
    os.kill(daemon.pid, signal.SIGSTOP)
    os.kill(pids[FIVE[0]], signal.SIGKILL)
    run("systemctl", "--user", "stop", daemon.naming.scope("sample", "n1"))
    os.kill(daemon.pid, signal.SIGKILL)
    eventually("the daemon is back", lambda: daemon.active and daemon.ctl("status").returncode == 0)
    for address in FIVE[:2]:
        assert daemon.wait_state(address, "failed")["reason"] in ("signal", "lost", "exit")
    for address in FIVE[2:]:
        assert daemon.instance(address)["pid"] == pids[address]
    daemon.ok("instance", "start", FIVE[0])
    daemon.wait_state(FIVE[0], "idle", "working")


def _hook(daemon: Daemon, record: dict[str, object], event: str, payload: str) -> subprocess.CompletedProcess[str]:
    """Report as the agent of *record* would."""
    number = str(record["object"]).rpartition("i")[2]
    environment = {
        **os.environ,
        "CCORCH_SOCKET": str(daemon.naming.runtime_dir / "i" / number / "events.sock"),
        "CCORCH_SPOOL": str(daemon.naming.state_dir / "spool" / number),
    }
    hook = "/usr/lib/python3/dist-packages/ccorchd/agents/hook.py"
    return subprocess.run(
        ["/usr/bin/python3", "-I", "-S", hook, event],
        input=payload,
        text=True,
        capture_output=True,
        env=environment,
        timeout=60,
        check=False,
    )


def _tool(number: int, size: int = 10) -> str:
    return json.dumps(
        {
            "tool_name": "Bash",
            "detail": f"marker-{number:04d}-end",
            "output": "y" * size,
            "duration_ms": 5,
        }
    )


def _markers(daemon: Daemon, address: str) -> list[str]:
    listed = json.loads(daemon.ok("events", "--instance", address, "-n", "5000", "-o", "json"))
    return [event["message"] for event in listed if "marker-" in event["message"]]


@pytest.mark.parametrize("size", [10, 400_000])
def test_no_event_is_lost_or_counted_twice(daemon: Daemon, project: str, size: int) -> None:
    """Reports go on while the daemon is killed again and again; each must be there once."""
    daemon.ok("instance", "create", "sample/n0", "--prompt", "#sleep 600")
    record = daemon.wait_state("sample/n0", "working")
    count = 30
    for number in range(count):
        if number % 10 == 5:
            os.kill(daemon.pid, signal.SIGKILL)
        assert _hook(daemon, record, "PostToolUse", _tool(number, size)).returncode == 0
    eventually("the daemon is back", lambda: daemon.active and daemon.ctl("status").returncode == 0)

    def all_there() -> bool:
        return len(_markers(daemon, "sample/n0")) >= count

    eventually("every event is there", all_there)
    found = sorted(message.split("marker-")[1][:4] for message in _markers(daemon, "sample/n0"))
    assert found == [f"{number:04d}" for number in range(count)]


def test_half_made_instances_are_cleared_at_start(daemon: Daemon, project: str, repository: Path) -> None:
    """Killed again and again while it creates: afterwards each instance is whole or not there."""
    for number in range(6):
        creating = subprocess.Popen(
            ["ccorchctl", "instance", "create", f"sample/c{number}", "--prompt", "#sleep 600"],
            env={**os.environ, "CCORCH_SUFFIX": daemon.naming.suffix},
            cwd=daemon.home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            creating.wait(0.05 * number + 0.12)
        except subprocess.TimeoutExpired:
            daemon.kill()
        creating.wait(60)
        eventually("the daemon answers", lambda: daemon.ctl("status").returncode == 0)
    records = daemon.instances()
    for record in records.values():
        assert Path(record["worktree"]).is_dir(), record
    running = {record["unit"] for record in records.values() if record["state"] not in ("stopped", "failed")}
    assert set(daemon.scopes()) == running
    worktrees = run("git", "-C", str(repository), "worktree", "list", "--porcelain").stdout.count("worktree ")
    assert worktrees == len(records) + 1


def test_loss_of_the_worktree_is_said(daemon: Daemon, project: str) -> None:
    daemon.ok("instance", "create", "sample/n0")
    record = daemon.wait_state("sample/n0", "idle")
    daemon.ok("instance", "stop", "sample/n0")
    shutil.rmtree(record["worktree"])
    assert "worktree" in daemon.refused(6, "instance", "start", "sample/n0")
    assert "gone" in daemon.ctl("doctor").stdout
    daemon.ok("instance", "remove", "sample/n0", "--yes")


def test_daemon_is_ready_within_its_bounds_and_says_so(daemon: Daemon) -> None:
    shown = daemon.systemctl("show", "-p", "StatusText,Type,WatchdogUSec").stdout
    assert "0 of 0 instances running" in shown
    assert "Type=notify" in shown
    # Told right after READY=1, on which `systemctl start` returned.
    eventually("the journal says so", lambda: "ready after" in daemon.journal())


def test_second_daemon_is_refused(daemon: Daemon) -> None:
    ended = run(
        "/usr/bin/python3", "-P", "-m", "ccorchd", env={**os.environ, "CCORCH_SUFFIX": daemon.naming.suffix}, timeout=30
    )
    assert ended.returncode == 1
    assert str(daemon.pid) in ended.stderr
    assert "Traceback" not in ended.stderr
