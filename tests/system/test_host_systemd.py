# SPDX-License-Identifier: LGPL-2.1-or-later
"""Scopes in a real user manager: these run inside a booted machine, as an ordinary user whose manager lingers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from ccorchd.contract import ErrorCode, Naming
from ccorchd.errors import CcorchError
from ccorchd.host.dbus import Bus
from ccorchd.host.systemd import Systemd, cgroup_path, members, populated
from ccorchd.host.usage import UsageReader, controllers
from ccorchd.model import Limits

NAMING = Naming("hosttest")
LIMITS = Limits(memory_max=512 * 1024**2, memory_high=400 * 1024**2, cpu_quota_percent=150, cpu_weight=50, tasks_max=64)

pytestmark = pytest.mark.skipif(
    not Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent"), "systemd/private").exists(), reason="no user manager"
)

# A double-forked child in a session of its own, whose parent is gone.
ORPHAN = "setsid sh -c 'sleep 1000 & exec sleep 1000' & exec sleep 1000"
STUBBORN = "trap '' TERM HUP INT; echo ready; while :; do sleep 1000; done"


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    connection = await Bus.connect(f"unix:path={os.environ['XDG_RUNTIME_DIR']}/bus")
    yield connection
    await connection.close()


@pytest.fixture
async def systemd(bus: Bus) -> AsyncIterator[Systemd]:
    opened = await Systemd.open(NAMING, bus)
    yield opened
    for unit in await opened.scopes():
        await opened.stop_scope(unit, timeout=0)
        await opened.reset_failed(unit)
    await opened.close()


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    spawner = Spawn()
    yield spawner
    spawner.clean()


class Spawn:
    """Starts shells that wait for a line before they do their work, as the daemon does."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def __call__(self, script: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"read line; {script}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._running.append(process)
        return process

    def clean(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()


def go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()


def ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


async def until(predicate: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, "it never became true"
        await asyncio.sleep(0.005)


def gone(systemd: Systemd) -> asyncio.Queue[tuple[str, str]]:
    queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    systemd.on_scope_gone(lambda unit, result: queue.put_nowait((unit, result)))
    return queue


async def start(
    systemd: Systemd, process: subprocess.Popen[bytes], name: str, stop_timeout: float = 5
) -> tuple[str, Path]:
    unit = NAMING.scope("shop", name)
    await systemd.start_scope(unit, process.pid, description="A test", limits=LIMITS, stop_timeout=stop_timeout)
    status = await systemd.scope_status(unit)
    assert status is not None
    return unit, cgroup_path(status.control_group)


async def test_a_scope_has_its_process_slice_and_properties(systemd: Systemd, spawn: Spawn) -> None:
    process = spawn("exec sleep 1000")
    unit, cgroup = await start(systemd, process, "one")
    assert members(cgroup) == [process.pid]
    assert cgroup.parent.name == NAMING.slice
    status = (await systemd.scopes())[unit]
    assert (status.active_state, status.sub_state, status.result) == ("active", "running", "success")
    wanted = {
        "OOMPolicy": "continue",
        "TimeoutStopUSec": "5s",
        "MemoryMax": "536870912",
        "MemoryHigh": "419430400",
        "CPUQuotaPerSecUSec": "1.500000s",
        "CPUWeight": "50",
        "TasksMax": "64",
        "SendSIGHUP": "yes",
        "Slice": NAMING.slice,
        "Description": "A test",
    }
    assert show(unit, ",".join(wanted)) == wanted
    await systemd.set_limits(unit, Limits(cpu_quota_percent=50, tasks_max=None, cpu_weight=10))
    assert show(unit, "MemoryMax,CPUQuotaPerSecUSec,CPUWeight,TasksMax") == {
        "MemoryMax": "infinity",
        "CPUQuotaPerSecUSec": "500ms",
        "CPUWeight": "10",
        "TasksMax": "infinity",
    }
    await systemd.stop_scope(unit, timeout=5)
    assert await systemd.scope_status(unit) is None


def systemctl(*arguments: str) -> None:
    subprocess.check_call(["systemctl", "--user", *arguments])


def show(unit: str, names: str) -> dict[str, str]:
    text = subprocess.check_output(["systemctl", "--user", "show", "-p", names, unit], text=True)
    return dict(line.split("=", 1) for line in text.splitlines())


async def test_a_dead_process_makes_no_scope(systemd: Systemd, spawn: Spawn) -> None:
    zombie = spawn("exit 0")
    go(zombie)
    await until(lambda: " Z " in Path(f"/proc/{zombie.pid}/stat").read_text())
    unit = NAMING.scope("shop", "dead")
    for pid in (zombie.pid, 2**22 - 1):
        with pytest.raises(CcorchError) as caught:
            await systemd.start_scope(unit, pid, description="", limits=LIMITS, stop_timeout=1)
        assert caught.value.code == ErrorCode.HOST_FAILED
        assert await systemd.scope_status(unit) is None


async def test_a_running_scope_is_not_replaced(systemd: Systemd, spawn: Spawn) -> None:
    process = spawn("exec sleep 1000")
    await start(systemd, process, "twice")
    with pytest.raises(CcorchError) as caught:
        await start(systemd, spawn("exec sleep 1000"), "twice")
    assert caught.value.code == ErrorCode.WRONG_STATE
    assert process.poll() is None


async def test_a_name_can_be_used_again_at_once(systemd: Systemd, spawn: Spawn) -> None:
    for _ in range(5):
        process = spawn("exec sleep 1000")
        unit, _ = await start(systemd, process, "again")
        await systemd.stop_scope(unit, timeout=5)


async def test_death_is_noticed_at_once(systemd: Systemd, spawn: Spawn) -> None:
    queue = gone(systemd)
    process = spawn("exec sleep 1000")
    unit, _ = await start(systemd, process, "dies")
    began = time.monotonic()
    process.kill()
    process.wait()
    assert await asyncio.wait_for(queue.get(), 5) == (unit, "success")
    assert time.monotonic() - began < 0.5


async def test_usage_of_a_scope(systemd: Systemd, spawn: Spawn) -> None:
    process = spawn(ORPHAN)
    _, cgroup = await start(systemd, process, "usage")
    go(process)
    await until(lambda: len(members(cgroup)) == 3)
    sample = UsageReader().sample(cgroup)
    live = controllers(cgroup)
    assert sample.tasks == 3
    assert sample.memory
    assert sample.memory_peak
    assert sample.memory_peak >= sample.memory
    assert sample.cpu_seconds is not None
    assert sample.source == ("cgroup" if {"memory", "pids"} <= live else "processes")
    assert (sample.oom_kills is None) == ("memory" not in live)


async def test_stop_takes_orphans_along(systemd: Systemd, spawn: Spawn) -> None:
    process = spawn(ORPHAN)
    unit, cgroup = await start(systemd, process, "orphans")
    go(process)
    await until(lambda: len(members(cgroup)) == 3)
    await systemd.stop_scope(unit, timeout=5)
    assert not populated(cgroup)
    assert await systemd.scope_status(unit) is None


@pytest.mark.parametrize("how", ["systemctl", "cgroup", "SIGSTOP"])
async def test_stop_ends_a_frozen_scope(systemd: Systemd, spawn: Spawn, how: str) -> None:
    process = spawn(ORPHAN)
    unit, cgroup = await start(systemd, process, "frozen")
    go(process)
    await until(lambda: len(members(cgroup)) == 3)
    if how == "systemctl":
        systemctl("freeze", unit)
    elif how == "cgroup":
        (cgroup / "cgroup.freeze").write_text("1")
        await until(lambda: "frozen 1" in (cgroup / "cgroup.events").read_text())
    else:
        for pid in members(cgroup):
            os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    await systemd.stop_scope(unit, timeout=5)
    assert time.monotonic() - began < 4
    assert not populated(cgroup)
    assert await systemd.scope_status(unit) is None


@pytest.mark.parametrize("unit_timeout", [0.2, 60])
async def test_stop_ends_what_ignores_sigterm(systemd: Systemd, spawn: Spawn, unit_timeout: float) -> None:
    queue = gone(systemd)
    process = spawn(STUBBORN)
    unit, cgroup = await start(systemd, process, "stubborn", unit_timeout)
    go(process)
    ready(process)
    began = time.monotonic()
    await systemd.stop_scope(unit, timeout=0.5)
    assert time.monotonic() - began < 5
    assert not populated(cgroup)
    status = await systemd.scope_status(unit)
    assert status is None or status.ended
    assert (await asyncio.wait_for(queue.get(), 5))[0] == unit
    await systemd.reset_failed(unit)
    assert await systemd.scope_status(unit) is None
    await start(systemd, spawn("exec sleep 1000"), "stubborn")


async def test_the_result_of_a_failed_scope_is_told(systemd: Systemd, spawn: Spawn) -> None:
    queue = gone(systemd)
    process = spawn(STUBBORN)
    unit, _ = await start(systemd, process, "fails", 0.2)
    go(process)
    ready(process)
    systemctl("stop", "--no-block", unit)
    assert await asyncio.wait_for(queue.get(), 10) == (unit, "timeout")
    status = await systemd.scope_status(unit)
    assert status is not None
    assert (status.active_state, status.result) == ("failed", "timeout")
    await start(systemd, spawn("exec sleep 1000"), "fails")  # makes way by itself


async def test_stop_and_reset_of_nothing_are_quiet(systemd: Systemd) -> None:
    unit = NAMING.scope("shop", "never")
    await systemd.stop_scope(unit, timeout=1)
    await systemd.reset_failed(unit)
    with pytest.raises(CcorchError):
        await systemd.set_limits(unit, LIMITS)


async def test_a_lost_bus_hides_no_death(systemd: Systemd, spawn: Spawn, bus: Bus) -> None:
    queue = gone(systemd)
    dies, lives = spawn("exec sleep 1000"), spawn("exec sleep 1000")
    unit, _ = await start(systemd, dies, "dies")
    other, _ = await start(systemd, lives, "lives")
    await bus.close()
    dies.kill()
    dies.wait()
    # Commands need no bus, and jobs are waited for without one.
    await systemd.stop_scope(other, timeout=5)
    third, _ = await start(systemd, spawn("exec sleep 1000"), "third")
    assert queue.empty()
    second = await Bus.connect(f"unix:path={os.environ['XDG_RUNTIME_DIR']}/bus")
    try:
        await systemd.rebind(second)
        assert {await asyncio.wait_for(queue.get(), 5) for _ in range(2)} == {(unit, "success"), (other, "success")}
        await systemd.stop_scope(third, timeout=5)
        assert await asyncio.wait_for(queue.get(), 5) == (third, "success")
        assert queue.empty()
    finally:
        await second.close()


async def test_the_manager_may_reexecute_itself(systemd: Systemd, spawn: Spawn) -> None:
    queue = gone(systemd)
    process = spawn("exec sleep 1000")
    unit, cgroup = await start(systemd, process, "reexec")
    systemctl("daemon-reexec")
    assert members(cgroup) == [process.pid]
    process.kill()
    process.wait()
    assert await asyncio.wait_for(queue.get(), 10) == (unit, "success")
    await start(systemd, spawn("exec sleep 1000"), "reexec")


async def test_a_manager_that_hangs_does_not_hang_us(systemd: Systemd) -> None:
    [pid] = members(cgroup_path((await manager_cgroup()) + "/init.scope"))[:1]
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert not await systemd.stop_was_requested("dbus.service")
        assert time.monotonic() - began < 2.5
        with pytest.raises(CcorchError) as caught:
            await systemd.manager_state()
        assert caught.value.code == ErrorCode.TIMEOUT
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await systemd.manager_state() in ("running", "degraded")


async def manager_cgroup() -> str:
    text = await asyncio.to_thread(
        subprocess.check_output, ["systemctl", "--user", "show", "-p", "ControlGroup"], text=True
    )
    return str(text.strip().partition("=")[2])


async def test_what_the_manager_says(systemd: Systemd) -> None:
    assert systemd.version >= 252
    assert await systemd.manager_state() in ("running", "degraded")
    assert await systemd.linger()
    await systemd.enable_linger()  # it does already, so no right is needed
    systemctl("set-environment", "CCORCH_HOSTTEST=a=b ü")
    try:
        environment = await systemd.environment()
    finally:
        systemctl("unset-environment", "CCORCH_HOSTTEST")
    assert environment["CCORCH_HOSTTEST"] == "a=b ü"
    assert "PATH" in environment
    assert not {"SYSTEMD_EXEC_PID", "INVOCATION_ID", "NOTIFY_SOCKET"} & environment.keys()


async def test_enable_at_boot(systemd: Systemd) -> None:
    folder = Path.home() / ".config/systemd/user"
    folder.mkdir(parents=True, exist_ok=True)
    name = NAMING.daemon_unit
    (folder / name).write_text("[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=default.target\n")
    try:
        assert not await systemd.enabled_at_boot(name)
        assert await systemd.enable_at_boot(name)
        assert await systemd.enabled_at_boot(name)
        assert not await systemd.enable_at_boot(name)
        assert (folder / "default.target.wants" / name).is_symlink()
    finally:
        systemctl("disable", "--quiet", name)
        (folder / name).unlink()
    with pytest.raises(CcorchError):
        await systemd.enable_at_boot("ccorch-no-such.service")


ASKER = """
import asyncio, os, signal, sys
from ccorchd.contract import Naming
from ccorchd.host.dbus import Bus
from ccorchd.host.systemd import Systemd

async def main():
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    bus = await Bus.connect("unix:path=" + os.environ["XDG_RUNTIME_DIR"] + "/bus")
    systemd = await Systemd.open(Naming("hosttest"), bus)
    with open(sys.argv[1] + "/pids", "a") as file:
        file.write(f"{os.getpid()}\\n")
    await stopped.wait()
    answer = await systemd.stop_was_requested(sys.argv[2])
    with open(sys.argv[1] + "/answers", "a") as file:
        file.write(f"{answer}\\n")

asyncio.run(main())
"""


async def test_stop_is_told_from_restart_and_kill(systemd: Systemd, tmp_path: Path) -> None:
    unit = "ccorchd-hosttest-asker.service"
    (tmp_path / "asker.py").write_text(ASKER)
    root = Path(__file__).resolve().parents[2]

    def lines(name: str) -> list[str]:
        path = tmp_path / name
        return path.read_text().splitlines() if path.exists() else []

    command = [sys.executable, str(tmp_path / "asker.py"), str(tmp_path), unit]
    options = ["-p", "Restart=always", "-p", "RestartSec=0", f"--setenv=PYTHONPATH={root}", f"--unit={unit}"]
    await asyncio.to_thread(
        subprocess.check_call, ["systemd-run", "--user", "--quiet", "--collect", *options, *command]
    )
    try:
        await until(lambda: len(lines("pids")) == 1)
        systemctl("restart", unit)
        await until(lambda: len(lines("pids")) == 2)
        systemctl("try-restart", unit)
        await until(lambda: len(lines("pids")) == 3)
        systemctl("kill", unit)
        await until(lambda: len(lines("pids")) == 4)
        assert lines("answers") == ["False", "False", "False"]
        systemctl("stop", unit)
        assert lines("answers") == ["False", "False", "False", "True"]
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            systemctl("stop", "--quiet", unit)
    assert not await systemd.stop_was_requested(unit)
    assert not await systemd.stop_was_requested("nonsense")
