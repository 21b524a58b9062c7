# SPDX-License-Identifier: LGPL-2.1-or-later
"""What may meet what: starts, stops, ends, crashes and shutdowns at the worst moment, and the state they leave."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import Any

import pytest

from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.model import Change


async def test_an_agent_runs_and_stops(core: Any) -> None:
    record = await core.create("one")
    assert (record.state, record.wanted, record.started) == (State.WORKING, True, True)
    await core.orchestrator.stop(record.id, actor="test")
    record = core.record("one")
    assert (record.state, record.reason, record.wanted, record.pid) == (State.STOPPED, Reason.REQUESTED, False, 0)


async def test_stop_while_the_creation_launches(core: Any) -> None:
    """Whichever wins, no agent runs that nobody knows of."""
    launching, go = asyncio.Event(), asyncio.Event()

    async def hold(_unit: str) -> None:
        launching.set()
        await go.wait()

    core.manager.on_start = hold
    create = asyncio.ensure_future(core.create("one"))
    await launching.wait()
    stop = asyncio.ensure_future(core.orchestrator.stop(core.record("one").id, actor="test"))
    await asyncio.sleep(0)
    go.set()
    await create
    await stop
    record = core.record("one")
    assert record.state is State.STOPPED
    assert not core.manager.units
    assert not core.instances.live_units()


async def test_shutdown_while_a_worktree_is_made(core: Any) -> None:
    """A creation that is under way when everything is stopped starts nothing, and is undone."""
    begun, go = asyncio.Event(), asyncio.Event()
    create_worktree = core.orchestrator.worktrees.create

    async def slow(*args: object, **options: object) -> str:
        begun.set()
        await go.wait()
        return await create_worktree(*args, **options)

    core.orchestrator.worktrees.create = slow
    create = asyncio.ensure_future(core.create("one"))
    await begun.wait()
    shutdown = asyncio.ensure_future(core.orchestrator.shutdown(why="test"))
    await asyncio.sleep(0.05)
    go.set()
    with pytest.raises(CcorchError) as refused:
        await create
    assert refused.value.code is ErrorCode.SHUTTING_DOWN
    await shutdown
    assert not core.manager.started
    assert not core.instances.records


async def test_starts_at_once_keep_to_the_most(core: Any) -> None:
    core.config.set("instances.max", 1, "test")
    for name in ("one", "two"):
        await core.create(name, start=False)
    ids = [core.record(name).id for name in ("one", "two")]
    answers = await asyncio.gather(
        *(core.orchestrator.start(number, environment={}, actor="test") for number in ids), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, CcorchError)]
    assert [error.code for error in refused] == [ErrorCode.LIMIT_REACHED]
    stopped = next(record for record in core.instances.records.values() if not record.state.running)
    with pytest.raises(CcorchError, match="most allowed"):
        await core.orchestrator.restart(stopped.id, environment={}, actor="test")


async def test_a_restart_that_cannot_start_again_does_not_stop(core: Any) -> None:
    record = await core.create("one")
    os.rename(record.worktree, record.worktree + ".away")
    with pytest.raises(CcorchError, match="worktree"):
        await core.orchestrator.restart(record.id, environment={}, actor="test")
    assert core.record("one").state is State.WORKING
    assert core.record("one").pid == record.pid


async def test_an_end_is_recorded_although_the_manager_does_not_answer(
    core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccorchd.instances.runs._MANAGER_PATIENCE", (0.01, 0.01))
    record = await core.create("one")
    core.manager.state = CcorchError(ErrorCode.TIMEOUT, "no answer")
    os.kill(record.pid, signal.SIGKILL)
    await core.until(lambda: core.record("one").state is State.FAILED, "failed")
    assert core.record("one").reason is Reason.SIGNAL


async def test_an_end_is_recorded_once_the_disk_has_room(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccorchd.instances.runs._RECORD_AGAIN", 0.05)
    record = await core.create("one")
    run, refusals = core.storage.run, 0

    async def full(work: Any, **options: Any) -> Any:
        nonlocal refusals
        if not core.instances.live_units() and refusals < 2:
            refusals += 1
            raise CcorchError(ErrorCode.NO_SPACE, "full")
        return await run(work, **options)

    monkeypatch.setattr(core.storage, "run", full)
    os.kill(record.pid, signal.SIGKILL)
    await core.until(lambda: core.record("one").state is State.FAILED, "failed")
    assert refusals == 2


async def test_a_full_disk_does_not_keep_an_agent_from_being_stopped(
    core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await core.create("one")
    run, full = core.storage.run, True

    async def refuse(work: Any, **options: Any) -> Any:
        if full:
            raise CcorchError(ErrorCode.NO_SPACE, "full")
        return await run(work, **options)

    monkeypatch.setattr(core.storage, "run", refuse)
    with pytest.raises(CcorchError) as refused:
        await core.orchestrator.stop(record.id, actor="test")
    assert refused.value.code is ErrorCode.NO_SPACE
    assert not core.manager.units
    full = False
    await core.orchestrator.stop(record.id, actor="test")
    assert core.record("one").state is State.STOPPED


async def test_a_stop_that_failed_can_be_repeated(core: Any) -> None:
    record = await core.create("one")
    failures = 1

    async def late(_unit: str) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise CcorchError(ErrorCode.TIMEOUT, "a process survives")

    core.manager.on_stop = late
    with pytest.raises(CcorchError, match="survives"):
        await core.orchestrator.stop(record.id, actor="test")
    assert core.manager.units
    async with asyncio.timeout(5):
        await core.orchestrator.stop(record.id, actor="test")
    assert core.record("one").state is State.STOPPED
    assert not core.manager.units


async def test_a_launch_that_cannot_be_recorded_leaves_nothing(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await core.create("one", start=False)
    record = core.record("one")
    run = core.storage.run

    async def full(work: Any, **options: Any) -> Any:
        if core.manager.units:
            raise CcorchError(ErrorCode.NO_SPACE, "full")
        return await run(work, **options)

    monkeypatch.setattr(core.storage, "run", full)
    with pytest.raises(CcorchError) as refused:
        await core.orchestrator.start(record.id, environment={}, actor="test")
    assert refused.value.code is ErrorCode.NO_SPACE
    assert not core.manager.units
    assert not core.instances.live_units()
    assert core.record("one").state is State.FAILED


async def test_a_command_with_set_up_steps_works_after_them(core: Any) -> None:
    (core.repository / ".ccorch.toml").write_text('[setup]\nsteps = ["sleep 0.2"]\n')
    project = core.orchestrator.project("sample")
    file, _ = core.orchestrator.setup_of(project)
    await core.orchestrator.agree(project, file.digest, actor="test")
    await core.create("one")
    await core.until(lambda: core.record("one").options.get("setup") == "done", "set up")
    await core.until(lambda: core.record("one").state is State.WORKING, "working")
    assert core.record("one").reason is Reason.NONE


async def test_a_failed_set_up_has_begun_no_session(core: Any) -> None:
    (core.repository / ".ccorch.toml").write_text('[setup]\nsteps = ["exit 3"]\n')
    project = core.orchestrator.project("sample")
    file, _ = core.orchestrator.setup_of(project)
    await core.orchestrator.agree(project, file.digest, actor="test")
    await core.create("one")
    await core.until(lambda: core.record("one").state is State.FAILED, "failed")
    record = core.record("one")
    assert record.reason is Reason.SETUP
    assert not record.started
    assert record.doing == ""


async def test_after_a_crash_survivors_are_watched_and_a_stop_is_finished(core: Any) -> None:
    for name in ("on", "stopping"):
        await core.create(name)
    stopping = core.record("stopping").id
    await core.changes.apply(stopping, _state(State.STOPPING), columns={"wanted": False})
    await core.crash()
    await core.begin()
    assert await core.orchestrator.adopt() == []
    assert core.record("on").state is State.WORKING
    await core.until(lambda: core.record("stopping").state is State.STOPPED, "stopped")
    os.kill(core.record("on").pid, signal.SIGKILL)
    await core.until(lambda: core.record("on").state is State.FAILED, "failed")


async def test_a_stop_that_a_reboot_cut_short_stays_a_stop(core: Any) -> None:
    record = await core.create("one")
    cut = asyncio.Event()

    async def never(_unit: str) -> None:
        cut.set()
        await asyncio.Event().wait()

    core.manager.on_stop = never
    stop = asyncio.ensure_future(core.orchestrator.stop(record.id, actor="test"))
    await cut.wait()
    await core.crash()
    stop.cancel()
    core.manager.on_stop = None
    await core.manager.stop_scope(core.instances.unit(record), timeout=1)
    core.manager.epoch += 1
    await core.begin()
    assert await core.orchestrator.adopt() == []
    assert core.record("one").state is State.STOPPED


async def test_a_reboot_resumes_beside_the_api(core: Any) -> None:
    for name in ("one", "two", "three"):
        await core.create(name)
    await core.crash()
    for unit in list(core.manager.units):
        await core.manager.stop_scope(unit, timeout=1)
    core.manager.epoch += 1
    await core.begin()
    ids = await core.orchestrator.adopt()
    assert len(ids) == 3
    # Until their turn comes they are seen to be starting, refuse a prompt in words, and can be stopped for good.
    assert {record.state for record in core.instances.records.values()} == {State.STARTING}
    with pytest.raises(CcorchError):
        await core.orchestrator.send(core.record("one").id, "hello", actor="test")
    await core.orchestrator.stop(core.record("one").id, actor="test")
    (core.repository / ".ccorch.toml").write_text("")
    worktree = core.record("two").worktree
    os.rename(worktree, worktree + ".away")
    await core.orchestrator.resume_all(ids)
    assert core.record("one").state is State.STOPPED
    assert core.record("two").state is State.FAILED
    assert "worktree" in core.record("two").reason_text
    assert core.record("three").state is State.WORKING
    assert core.record("three").restarts == 1


async def test_one_that_cannot_be_adopted_does_not_keep_the_others(core: Any) -> None:
    for name in ("bad", "good"):
        await core.create(name)
    bad = core.naming.runtime_dir / "i" / str(core.record("bad").id) / "events.sock"
    await core.crash()
    bad.unlink(missing_ok=True)
    (bad / "in-the-way").mkdir(parents=True)
    await core.begin()
    await core.orchestrator.adopt()
    await core.until(lambda: core.record("good").state is State.WORKING, "working")
    await core.orchestrator.stop(core.record("bad").id, actor="test")
    assert core.record("bad").state is State.STOPPED


async def test_what_was_never_launched_is_cleared_after_a_crash(core: Any) -> None:
    reached = asyncio.Event()
    include = core.orchestrator.worktrees.include

    async def hang(*args: object) -> None:
        await include(*args)
        reached.set()
        await asyncio.Event().wait()

    core.orchestrator.worktrees.include = hang
    create = asyncio.ensure_future(core.create("one"))
    await reached.wait()
    worktree = core.record("one").worktree
    await core.crash()
    create.cancel()
    await asyncio.gather(create, return_exceptions=True)
    await core.begin()
    assert await core.orchestrator.adopt() == []
    assert not core.instances.records
    assert not os.path.exists(worktree)


async def test_the_sampler_outlives_what_it_cannot_read_or_write(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    core.config.set("usage.interval", 0.1, "test")
    record = await core.create("one")
    await core.until(lambda: core.instances.live_units(), "live")
    calls = 0

    def fail(*_: object, **__: object) -> None:
        nonlocal calls
        calls += 1
        raise OSError(19, "no such device")

    live = core.instances._live[record.id]
    await core.until(lambda: live.tmux is not None, "launched")
    live.cgroup = core.naming.state_dir
    monkeypatch.setattr(core.instances._sampler, "sample", fail)
    core.background.spawn(core.instances.sample_for_ever(), "sampler")
    await core.until(lambda: calls >= 2, "sampled again")
    os.kill(record.pid, signal.SIGKILL)
    await core.until(lambda: core.record("one").state is State.FAILED, "failed")


async def test_reports_of_an_earlier_run_do_not_move_the_next(core: Any) -> None:
    """What a dying agent spooled is read when the instance starts again: recorded, but no news of the new agent."""
    await core.create("one", start=False)
    record = core.record("one")
    spool = core.naming.state_dir / "spool" / str(record.id)
    spool.mkdir(parents=True)
    payload = {
        "id": "ab" * 8,
        "event": "Status",
        "time": time.time() - 60,
        "payload": {"state": "idle", "message": "x"},
    }
    (spool / "1-abababababababab.json").write_text(json.dumps(payload))
    states = []

    async def look(_unit: str) -> None:
        await core.until(lambda: not list(spool.iterdir()), "the spool is read")
        states.append(core.record("one").state)

    core.manager.on_start = look
    await core.orchestrator.start(record.id, environment={}, actor="test")
    assert states == [State.STARTING]
    assert [event.message for event in core.heard if event.kind == "agent.status"] == ["x"]
    assert core.record("one").state is State.WORKING


async def test_removal_leaves_no_spool(core: Any) -> None:
    record = await core.create("one")
    await core.orchestrator.stop(record.id, actor="test")
    spool = core.naming.state_dir / "spool" / str(record.id)
    spool.mkdir(parents=True, exist_ok=True)
    (spool / "1-late.json").write_text("{}")
    await core.orchestrator.remove(record.id, force=False, actor="test")
    assert not spool.exists()


def _state(state: State) -> Change:
    return Change(state=state, reason=Reason.REQUESTED)
