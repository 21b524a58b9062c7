# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every call goes through: calls cut off by a shutdown are undone and audited before anything is closed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ccorchd.bus.guard import Guard, exposed
from ccorchd.contract import ERROR_PREFIX, ErrorCode
from ccorchd.host.dbus import DBusError, ServiceInterface
from ccorchd.model import Event


class Trail:
    def __init__(self) -> None:
        self.events: list[Event] = []

    async def record(self, event: Event) -> Event:
        await asyncio.sleep(0.01)
        self.events.append(event)
        return event


class Slow(ServiceInterface):
    def __init__(self, guard: Guard) -> None:
        super().__init__("org.ccorch1.Slow")
        self.guard = guard
        self.begun = asyncio.Event()
        self.undone = False

    def subject(self, member: str, arguments: Any) -> str:
        return "sample/one"

    @exposed(mutating=True)
    async def Make(self) -> None:
        try:
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            self.undone = True


async def test_a_call_cut_off_is_undone_and_audited_before_the_drain_ends() -> None:
    trail: Any = Trail()
    bus: Any = SimpleNamespace(raw=SimpleNamespace(add_message_handler=lambda _: None))
    guard = Guard(bus, trail)
    guard._actors[""] = "uid 1000"
    slow = Slow(guard)
    # What the bus calls: the attribute itself is a plain function that dbus-next has put around it.
    method: Any = Slow.Make
    call = asyncio.ensure_future(method.__dict__["__DBUS_METHOD"].fn(slow))
    await slow.begun.wait()
    await guard.drain(0.01)
    assert slow.undone
    assert [(event.kind, event.actor) for event in trail.events] == [("audit.refused", "uid 1000")]
    with pytest.raises(DBusError) as refused:
        await call
    assert refused.value.type == ERROR_PREFIX + ErrorCode.SHUTTING_DOWN
