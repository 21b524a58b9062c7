# SPDX-License-Identifier: LGPL-2.1-or-later
"""Launches that fail half-way: whoever asked is told why, and neither scope nor process is left."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ccorchd.agents.base import Launch
from ccorchd.contract import ErrorCode, State
from ccorchd.errors import CcorchError
from ccorchd.instances.launch import in_scope, launch_script


async def refused(core: Any, name: str) -> CcorchError:
    """Start *name*, which must fail and leave nothing; return the error."""
    with pytest.raises(CcorchError) as caught:
        await core.orchestrator.start(core.record(name).id, environment={}, actor="test")
    assert core.record(name).state is State.FAILED
    assert core.record(name).reason_text == caught.value.message
    assert not core.manager.units
    assert not core.instances.live_units()
    return caught.value


async def test_agent_outside_its_scope_is_not_left_running(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in moves nothing into a scope, which is what a tmux that moves its panes away looks like."""
    monkeypatch.setattr("ccorchd.instances.launch.in_scope", in_scope)
    await core.create("one", start=False)
    error = await refused(core, "one")
    assert error.code is ErrorCode.HOST_FAILED
    assert "its limits would not hold" in error.message
    assert core.manager.stopped == [core.instances.unit(core.record("one"))]


async def test_tmux_that_does_not_start_is_quoted(core: Any) -> None:
    await core.create("one", start=False)
    record = core.record("one")

    async def in_the_way(_unit: str) -> None:
        (core.naming.runtime_dir / "i" / str(record.id) / "tmux.sock" / "x").mkdir(parents=True)

    core.manager.on_start = in_the_way
    error = await refused(core, "one")
    assert error.code is ErrorCode.HOST_FAILED
    assert error.message.startswith("tmux did not start for sample/one: ")
    core.manager.on_start = None
    await core.orchestrator.start(record.id, environment={}, actor="test")
    assert core.record("one").state is State.WORKING


async def test_manager_that_starts_no_scope_in_time(core: Any) -> None:
    core.config.set("instances.start_timeout", 1, "test")
    await core.create("one", start=False)

    async def never(_unit: str) -> None:
        await asyncio.Event().wait()

    core.manager.on_start = never
    error = await refused(core, "one")
    assert error.code is ErrorCode.TIMEOUT
    assert error.message == "sample/one was not launched within 1 s"


async def test_scope_that_is_refused_ends_the_waiting_shell(core: Any) -> None:
    await core.create("one", start=False)
    shells: list[int] = []
    start_scope = core.manager.start_scope

    async def refuse(unit: str, pid: int, **options: object) -> None:
        shells.append(pid)
        raise CcorchError(ErrorCode.HOST_FAILED, "no such slice")

    core.manager.start_scope = refuse
    error = await refused(core, "one")
    assert error.message == "no such slice"
    assert not Path(f"/proc/{shells[0]}").exists()
    core.manager.start_scope = start_scope


def test_only_an_agent_that_may_reach_the_users_bus_finds_it(tmp_path: Path) -> None:
    for allowed, expected in ((True, "unix:path=/run/user/7/bus"), (False, "none")):
        script = tmp_path / "launch.sh"
        argv = ["/bin/sh", "-c", "echo ${DBUS_SESSION_BUS_ADDRESS-none}"]
        script.write_text(launch_script(Launch(argv, user_bus=allowed), []))
        ended = subprocess.run(
            ["/bin/sh", str(script)],
            env={"XDG_RUNTIME_DIR": "/run/user/7", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert ended.stdout.strip() == expected
