# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

from pathlib import Path

from ccorchd.events import Broadcast
from ccorchd.history import History
from ccorchd.host.journal import Journal
from ccorchd.model import Event
from ccorchd.storage import Storage


async def test_event_that_comes_twice_is_told_once(tmp_path: Path) -> None:
    storage = await Storage.open(tmp_path / "ccorch.db")
    try:
        heard: list[Event] = []
        events: Broadcast[Event] = Broadcast("events")
        events.subscribe(heard.append)
        history = History(storage, Journal(path="/nonexistent"), events)
        first = await history.record(Event("daemon.started", "ready", uid="a"))
        assert first is not None
        assert first.id
        assert await history.record(Event("daemon.started", "ready", uid="a")) is None
        assert heard == [first]
    finally:
        await storage.close()
