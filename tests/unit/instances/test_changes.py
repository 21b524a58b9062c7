# SPDX-License-Identifier: LGPL-2.1-or-later
"""State changes against a real database: exactly once, in order, never back from the dead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ccorchd.contract import Reason, State
from ccorchd.events import Broadcast
from ccorchd.history import History
from ccorchd.host.journal import Journal
from ccorchd.instances.changes import Changes
from ccorchd.model import Change, Event, InstanceRecord
from ccorchd.storage import Storage, Store


class Board:
    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.events: Broadcast[Event] = Broadcast("events")
        self.changed: Broadcast[InstanceRecord] = Broadcast("changes")
        self.seen: list[tuple[State, str]] = []
        self.heard: list[Event] = []
        self.changed.subscribe(lambda record: self.seen.append((record.state, record.doing)))
        self.events.subscribe(self.heard.append)
        self.changes = Changes(storage, History(storage, Journal(), self.events), self.changed)
        self.id = 0

    async def add(self) -> None:
        def work(store: Store) -> int:
            project = store.add_project("p", "/r")
            record = store.add_instance(
                project_id=project.id, name="n", agent="demo", branch="b", base="HEAD", base_commit="c", worktree="/w",
                state=State.IDLE, wanted=True,
            )  # fmt: skip
            return record.id

        self.id = await self.storage.run(work)
        await self.changes.load()

    @property
    def record(self) -> InstanceRecord:
        return self.changes.records[self.id]


@pytest.fixture
async def board(tmp_path: Path) -> AsyncIterator[Board]:
    storage = await Storage.open(tmp_path / "ccorch.db")
    made = Board(storage)
    await made.add()
    yield made
    await storage.close()


def working(message: str = "prompt: x") -> Change:
    return Change(state=State.WORKING, doing="x", kind="agent.prompt", message=message)


async def test_row_event_and_announcement_come_together(board: Board) -> None:
    assert await board.changes.apply(board.id, working(), uid="u1", from_report=True)
    assert board.record.state is State.WORKING
    assert board.seen == [(State.WORKING, "x")]
    assert [(event.kind, event.project, event.instance) for event in board.heard] == [("agent.prompt", "p", "n")]
    stored = await board.storage.run(lambda store: store.instance_by_id(board.id))
    assert stored == board.record


async def test_same_report_counts_once(board: Board) -> None:
    assert await board.changes.apply(board.id, working(), uid="u1", from_report=True)
    await board.changes.apply(
        board.id, Change(state=State.IDLE, doing="", kind="agent.message", message="done"), uid="u2"
    )
    assert not await board.changes.apply(board.id, working(), uid="u1", from_report=True)
    assert board.record.state is State.IDLE
    assert len(board.heard) == 2


@pytest.mark.parametrize("state", [State.STOPPED, State.FAILED, State.STOPPING])
async def test_reports_never_bring_an_instance_back(board: Board, state: State) -> None:
    await board.changes.apply(board.id, Change(state=state, kind="instance.stopped", message="over"))
    assert await board.changes.apply(board.id, working(), uid="late", from_report=True)
    assert board.record.state is state
    assert board.heard[-1].message == "prompt: x"


async def test_since_moves_only_with_state_or_reason(board: Board) -> None:
    await board.changes.apply(board.id, working())
    first = board.record.since
    await board.changes.apply(board.id, Change(state=State.WORKING, doing="y"))
    assert board.record.since == first
    assert board.record.doing == "y"
    await board.changes.apply(board.id, Change(state=State.WAITING, reason=Reason.PERMISSION, reason_text="Bash rm"))
    assert board.record.since > first
    assert board.record.reason_text == "Bash rm"


async def test_change_without_kind_leaves_no_row(board: Board) -> None:
    await board.changes.apply(board.id, Change(), columns={"restarts": 3})
    assert board.record.restarts == 3
    assert not board.heard
    before = len(board.seen)
    await board.changes.apply(board.id, Change())
    assert len(board.seen) == before


async def test_running_ones_are_those_with_processes(board: Board) -> None:
    assert [record.id for record in board.changes.running] == [board.id]
    await board.changes.apply(board.id, Change(state=State.FAILED))
    assert not board.changes.running
    board.changes.discard(board.id)
    assert not board.changes.records


async def test_session_that_the_agent_changed_to_is_the_one_to_resume(board: Board) -> None:
    await board.changes.apply(board.id, Change(session_id="other"), from_report=True)
    assert board.record.session_id == "other"
    await board.changes.load()
    assert board.record.session_id == "other"
    await board.changes.apply(board.id, working(), from_report=True)
    assert board.record.session_id == "other"
