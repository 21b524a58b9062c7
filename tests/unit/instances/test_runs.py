# SPDX-License-Identifier: LGPL-2.1-or-later
"""Running instances from their reports to the record of their end, and what a new daemon makes of them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ccorchd import agents
from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.creation import Wish
from ccorchd.errors import CcorchError
from ccorchd.instances.launch import in_scope
from ccorchd.model import Change, InstanceRecord

MIB = 1024**2


async def demo(core: Any, name: str) -> InstanceRecord:
    """Create a demo agent and wait until it takes prompts."""
    await core.orchestrator.create("sample", name, Wish(agent="demo", options={"pace": "0"}), actor="test")
    await core.until(lambda: core.record(name).state is State.IDLE, "idle")
    return core.record(name)  # type: ignore[no-any-return]


@pytest.fixture
def claude(core: Any, tmp_path: Path) -> Path:
    """Let a program that reports nothing be the agent ``claude``; return the folder of its configuration."""
    program, folder = tmp_path / "claude", tmp_path / "claude-home"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    core.config.set("claude.command", str(program), "test")
    core.config.set("claude.config_dir", str(folder), "test")
    core.instances.agents = agents.registry(core.config)
    return folder


async def background_ended(name: str) -> None:
    """Wait for the end of the background work *name*."""
    async with asyncio.timeout(20):
        for task in asyncio.all_tasks():
            if task.get_name() == name:
                await asyncio.wait([task])


# -- sessions --------------------------------------------------------------------------------------------------------


async def test_session_that_is_gone_is_made_anew(core: Any) -> None:
    record = await demo(core, "one")
    await core.orchestrator.stop(record.id, actor="test")
    session = next(core.repository.glob(".git/**/ccorch-demo-session.json"))
    session.unlink()
    await core.orchestrator.start(record.id, environment={}, actor="test")
    await core.until(lambda: core.record("one").state is State.IDLE, "idle")
    assert [event.message for event in core.heard if event.kind == "agent.error"] == [
        "its session was not as recorded; starting it the other way"
    ]
    assert core.record("one").wanted
    assert session.exists()


# -- status files ----------------------------------------------------------------------------------------------------


async def test_dialog_that_fires_no_hook_is_told_by_the_status_file(
    core: Any, claude: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccorchd.instances.runs._STATUS_GRACE", 0.01)
    await core.orchestrator.create("sample", "one", Wish(agent="claude"), actor="test")
    record = core.record("one")
    await core.changes.apply(record.id, Change(state=State.WORKING))
    status = {"status": "waiting", "statusUpdatedAt": (time.time() + 60) * 1000, "waitingFor": "a dialog"}
    (claude / "sessions" / f"{record.pid}.json").write_text(json.dumps(status))
    await core.until(lambda: core.record("one").state is State.WAITING, "waiting")
    assert core.record("one").reason_text == "a dialog"


async def test_agent_that_reports_nothing_is_told_of_also_after_a_crash(core: Any, claude: Path) -> None:
    core.config.set("instances.start_timeout", 1, "test")
    await core.orchestrator.create("sample", "one", Wish(agent="claude"), actor="test")
    text = "nothing heard for 1 s"
    await core.until(lambda: core.record("one").reason_text == text, "told")
    await core.changes.apply(core.record("one").id, Change(state=State.STARTING))
    await core.crash()
    await core.begin()
    core.instances.agents = agents.registry(core.config)
    await core.orchestrator.adopt()
    await core.until(lambda: core.record("one").reason_text == text, "told again")
    assert core.record("one").state is State.STARTING


# -- ends ------------------------------------------------------------------------------------------------------------


async def test_what_dies_with_its_manager_is_resumed(core: Any) -> None:
    record = await core.create("one")
    core.manager.state = "stopping"
    os.kill(record.pid, signal.SIGKILL)
    live = core.instances._live[record.id]
    await core.until(lambda: live.stop_reason, "noticed")
    await background_ended(f"end of instance {record.id}")
    assert core.record("one").state is State.WORKING
    await core.crash()
    await core.manager.stop_scope(core.instances.unit(record), timeout=1)
    core.manager.state, core.manager.epoch = "running", core.manager.epoch + 1
    await core.begin()
    assert await core.orchestrator.adopt() == [record.id]


async def test_kill_that_was_told_already_is_why_the_agent_ended(core: Any, tmp_path: Path) -> None:
    """The kernel counts a kill before its victim has gone, so a sample may come in between."""
    record = await core.create("one")
    live = core.instances._live[record.id]
    await core.until(lambda: live.tmux is not None, "launched")
    group = tmp_path / "group"
    group.mkdir()
    for name, text in (
        ("cgroup.controllers", "cpu memory pids\n"),
        ("cgroup.procs", f"{record.pid}\n"),
        ("memory.current", f"{20 * MIB}\n"),
        ("memory.events", "oom 1\noom_kill 1\n"),
    ):
        (group / name).write_text(text)
    live.cgroup = group
    core.config.set("usage.interval", 0.1, "test")
    core.background.spawn(core.instances.sample_for_ever(), "sampler")
    await core.until(lambda: any(event.kind == "instance.oom" for event in core.heard), "the kill is told")
    assert core.record("one").state is State.WORKING
    os.kill(record.pid, signal.SIGKILL)
    await core.until(lambda: core.record("one").state is State.FAILED, "failed")
    assert core.record("one").reason is Reason.OUT_OF_MEMORY
    assert len([event for event in core.heard if event.kind == "instance.oom"]) == 1


async def test_end_is_recorded_although_its_scope_does_not_stop(core: Any) -> None:
    record = await core.create("one")

    async def late(_unit: str) -> None:
        raise CcorchError(ErrorCode.TIMEOUT, "a process survives")

    core.manager.on_stop = late
    os.kill(record.pid, signal.SIGKILL)
    await core.until(lambda: core.record("one").state is State.FAILED, "failed")
    assert core.manager.units
    core.manager.on_stop = None
    await core.orchestrator.restart(record.id, environment={}, actor="test")
    assert core.record("one").state is State.WORKING


async def test_end_that_is_recorded_late_changes_nothing_after_a_stop(
    core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccorchd.instances.runs._RECORD_AGAIN", 0.05)
    record = await core.create("one")
    run, full = core.storage.run, True

    async def refuse(work: Any, **options: Any) -> Any:
        if full:
            raise CcorchError(ErrorCode.NO_SPACE, "full")
        return await run(work, **options)

    monkeypatch.setattr(core.storage, "run", refuse)
    os.kill(record.pid, signal.SIGKILL)
    later = f"record of {core.instances.unit(record)}"
    await core.until(lambda: any(task.get_name() == later for task in asyncio.all_tasks()), "not recorded")
    full = False
    await core.instances.stop(record.id, why="by hand")
    await background_ended(later)
    assert core.record("one").state is State.STOPPED
    assert [event.kind for event in core.heard][-1] == "instance.stopped"


async def test_terminal_that_is_ended_from_outside(core: Any) -> None:
    record = await core.create("one")
    unit = core.instances.unit(record)
    await core.manager.stop_scope(unit, timeout=1)
    await core.until(lambda: not core.record("one").state.running, "ended")
    assert core.record("one").reason_text == "its terminal ended from outside"


# -- stopping --------------------------------------------------------------------------------------------------------


async def test_agent_that_ignores_sigterm_is_ended_with_its_scope(
    core: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    core.config.set("instances.stop_timeout", 1, "test")
    deaf = tmp_path / "deaf"
    code = f"import signal; signal.signal(15, signal.SIG_IGN); open({str(deaf)!r}, 'w').close(); signal.pause()"
    record = await core.create("one", shlex.join([sys.executable, "-c", code]))
    await core.until(deaf.exists, "deaf")
    await core.orchestrator.stop(record.id, actor="test")
    assert core.record("one").state is State.STOPPED
    assert "the agent did not end at SIGTERM" in caplog.text
    assert core.manager.stopped == [core.instances.unit(record)]


async def test_two_stops_at_once_are_one(core: Any) -> None:
    record = await core.create("one")
    await asyncio.gather(*(core.instances.stop(record.id, why="test") for _ in range(2)))
    assert core.manager.stopped == [core.instances.unit(record)]
    assert [event.kind for event in core.heard].count("instance.stopped") == 1
    assert core.record("one").state is State.STOPPED


async def test_removed_instance_is_named_by_its_number(core: Any) -> None:
    with pytest.raises(CcorchError, match="no instance number 4711 any more") as refused:
        await core.instances.stop(4711)
    assert refused.value.code is ErrorCode.NO_SUCH_INSTANCE


async def test_running_instance_is_not_started_twice(core: Any) -> None:
    record = await core.create("one")
    with pytest.raises(CcorchError, match="sample/one is working already") as refused:
        await core.instances.start(record.id, {})
    assert refused.value.code is ErrorCode.WRONG_STATE
    assert core.record("one").pid == record.pid


# -- taking over -----------------------------------------------------------------------------------------------------


async def test_start_that_a_crash_cut_short_is_a_failure(core: Any) -> None:
    await core.create("one", start=False)
    begun = asyncio.Event()

    async def hang(_unit: str) -> None:
        begun.set()
        await asyncio.Event().wait()

    core.manager.on_start = hang
    start = asyncio.ensure_future(core.orchestrator.start(core.record("one").id, environment={}, actor="test"))
    await begun.wait()
    await core.crash()
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    core.manager.on_start = None
    await core.begin()
    assert await core.orchestrator.adopt() == []
    record = core.record("one")
    assert (record.state, record.reason_text, record.wanted) == (State.FAILED, "its start was interrupted", False)


async def test_number_of_a_dead_agent_that_is_somebody_elses_is_not_taken_over(
    core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await core.create("one")
    await core.crash()
    # As the stand-in moves nothing into scopes, the agent's number is that of a process outside of its scope.
    monkeypatch.setattr("ccorchd.instances.service.in_scope", in_scope)
    await core.begin()
    await core.orchestrator.adopt()
    await core.until(lambda: not core.record("one").state.running, "ended")
    assert not any(event.kind == "instance.adopted" for event in core.heard)
    assert core.manager.stopped == [core.instances.unit(record)]


async def test_terminal_without_socket_is_taken_over_with_a_warning(
    core: Any, caplog: pytest.LogCaptureFixture
) -> None:
    record = await core.create("one")
    socket = core.socket(core.instances.unit(record))
    await core.crash()
    away = socket.with_name("away")
    socket.rename(away)
    await core.begin()
    with caplog.at_level(logging.WARNING):
        await core.orchestrator.adopt()
        await core.until(lambda: "sample/one has no shell window" in caplog.text, "warned")
    away.rename(socket)
    assert core.record("one").state is State.WORKING


# -- talking ---------------------------------------------------------------------------------------------------------


async def test_prompt_behind_a_turn_is_queued_and_told_shortened(core: Any) -> None:
    record = await demo(core, "one")
    await core.changes.apply(record.id, Change(state=State.WORKING))
    assert await core.orchestrator.send(record.id, "word " * 100, actor="test") is False
    queued = [event for event in core.heard if event.data.get("queued")]
    assert len(queued) == 1
    assert queued[0].message.startswith("prompt queued: word word")
    assert queued[0].message.endswith("…")
    assert len(queued[0].message) == len("prompt queued: ") + 200


async def test_prompt_to_one_that_is_not_watched_is_refused(core: Any) -> None:
    record = await demo(core, "one")
    await core.crash()
    socket = core.naming.runtime_dir / "i" / str(record.id) / "events.sock"
    socket.unlink(missing_ok=True)
    (socket / "in-the-way").mkdir(parents=True)
    await core.begin()
    await core.orchestrator.adopt()
    with pytest.raises(CcorchError, match="has no terminal yet: ccorchd cannot watch it") as refused:
        await core.orchestrator.send(record.id, "hello", actor="test")
    assert refused.value.code is ErrorCode.NOT_READY


async def test_screen_shows_what_the_agent_wrote(core: Any) -> None:
    record = await demo(core, "one")
    assert f"demo agent {record.address}" in await core.instances.screen(record.id)
    await core.orchestrator.stop(record.id, actor="test")
    with pytest.raises(CcorchError, match="has no terminal") as refused:
        await core.instances.screen(record.id)
    assert refused.value.code is ErrorCode.WRONG_STATE
