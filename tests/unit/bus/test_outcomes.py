# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a caller and the audit trail are told about calls that fail in ways that nobody foresaw."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ccorchd.bus import guard as guarding
from ccorchd.bus.guard import Guard, exposed
from ccorchd.contract import ERROR_PREFIX, ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.host.dbus import DBusError, ServiceInterface
from ccorchd.model import Event


class Trail:
    def __init__(self) -> None:
        self.events: list[Event] = []

    async def record(self, event: Event) -> Event:
        self.events.append(event)
        return event


class FullTrail(Trail):
    async def record(self, event: Event) -> Event:
        raise CcorchError(ErrorCode.NO_SPACE, "no room for it")


class Asked:
    """A bus that knows no sender any more, and counts how often it is asked."""

    def __init__(self) -> None:
        self.raw = SimpleNamespace(add_message_handler=lambda _: None)
        self.questions: list[str] = []

    async def call(self, *words: str) -> tuple[object, ...]:
        self.questions.append(words[-1])
        raise CcorchError(ErrorCode.HOST_FAILED, "no such name")


class Failing(ServiceInterface):
    def __init__(self, guard: Guard) -> None:
        super().__init__("org.ccorch1.Failing")
        self.guard = guard

    def subject(self, member: str, arguments: Any) -> str:
        return "sample/one"

    @exposed(mutating=True)
    async def Fill(self) -> None:
        Path("/dev/full").write_text("x")

    @exposed(mutating=True)
    async def Read(self) -> None:
        Path("/absent/secret").read_text()

    @exposed(mutating=True)
    async def Slip(self) -> None:
        raise ValueError("the password is swordfish")

    @exposed(mutating=True)
    async def Work(self) -> None:
        return None


def call(interface: Failing, name: str) -> Any:
    method: Any = getattr(Failing, name)
    return method.__dict__["__DBUS_METHOD"].fn(interface)


@pytest.mark.parametrize(
    ("name", "code"),
    [("Fill", ErrorCode.NO_SPACE), ("Read", ErrorCode.INTERNAL), ("Slip", ErrorCode.INTERNAL)],
)
async def test_an_unforeseen_failure_has_a_name_and_tells_nothing_private(name: str, code: ErrorCode) -> None:
    trail: Any = Trail()
    bus: Any = Asked()
    with pytest.raises(DBusError) as refused:
        await call(Failing(Guard(bus, trail)), name)
    assert refused.value.type == ERROR_PREFIX + code
    [event] = trail.events
    assert (event.kind, event.project, event.instance) == ("audit.refused", "sample", "one")
    assert event.data["error"].startswith(f"{code}: ")
    for secret in ("swordfish", "/absent/secret"):
        assert secret not in refused.value.text
        assert secret not in event.message


async def test_a_call_counts_although_the_trail_cannot_be_written(caplog: pytest.LogCaptureFixture) -> None:
    trail: Any = FullTrail()
    bus: Any = Asked()
    assert await call(Failing(Guard(bus, trail)), "Work") is None
    assert "the audit trail could not be written: no room for it" in caplog.text


async def test_who_called_is_asked_once_and_forgotten_when_there_are_many() -> None:
    trail: Any = Trail()
    bus: Any = Asked()
    guard = Guard(bus, trail)

    async def actor(sender: str) -> str:
        token = guarding._sender.set(sender)
        try:
            return await guard.actor()
        finally:
            guarding._sender.reset(token)

    senders = [f":1.{number}" for number in range(257)]
    assert [await actor(sender) for sender in senders] == [f"gone ({sender})" for sender in senders]
    assert await actor(senders[-1]) == f"gone ({senders[-1]})"
    assert bus.questions == senders
    await actor(senders[0])
    assert bus.questions == [*senders, senders[0]]


async def test_a_drain_without_calls_ends_at_once() -> None:
    trail: Any = Trail()
    bus: Any = Asked()
    guard = Guard(bus, trail)
    guard.track()
    await guard.drain(0)
    assert trail.events == []
