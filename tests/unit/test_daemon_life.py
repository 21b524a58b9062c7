# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's own life where its host does not go along: no bus, no systemd, a full disk, a watchdog."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ccorchd.contract import ErrorCode, Naming
from ccorchd.daemon import Daemon
from ccorchd.errors import CcorchError
from ccorchd.events import Broadcast
from ccorchd.history import History
from ccorchd.host.inotify import Inotify
from ccorchd.host.journal import Journal
from ccorchd.storage import Storage

WAIT = 20.0


class Listener:
    """systemd's end of sd_notify(3)."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    async def next(self) -> str:
        async with asyncio.timeout(WAIT):
            return (await asyncio.get_running_loop().sock_recv(self.socket, 4096)).decode()


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    made = Listener(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield made
    made.socket.close()


@pytest.fixture
def naming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Naming:
    for name in ("STATE_HOME", "DATA_HOME", "CONFIG_HOME", "RUNTIME_DIR"):
        monkeypatch.setenv(f"XDG_{name}", str(tmp_path / name))
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path / 'no-bus'}")
    return Naming()


@pytest.fixture
def daemon(naming: Naming, listener: Listener) -> Iterator[Daemon]:
    made = Daemon(naming)
    yield made
    made._notifier.socket.close()


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Storage]:
    opened = await Storage.open(tmp_path / "ccorch.db")
    yield opened
    await opened.close()


async def test_start_without_a_bus_says_why_in_the_units_status(
    daemon: Daemon, naming: Naming, listener: Listener
) -> None:
    try:
        with pytest.raises(CcorchError) as refused:
            await daemon.run()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().remove_signal_handler(number)
    assert (await listener.next()).startswith("STATUS=")
    assert "no-bus" in f"{refused.value.message} {refused.value.hint}"
    assert naming.state_dir.is_dir()


async def test_watchdog_is_fed_as_often_as_it_asks_for(
    daemon: Daemon, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    feeding = asyncio.ensure_future(daemon._watchdog())
    assert [await listener.next() for _ in range(3)] == ["WATCHDOG=1"] * 3
    feeding.cancel()
    await asyncio.gather(feeding, return_exceptions=True)


async def test_without_a_watchdog_nothing_is_fed(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    async with asyncio.timeout(WAIT):
        await daemon._watchdog()


async def test_stop_ends_the_search_for_a_bus(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ccorchd.daemon._RECONNECT_FIRST", 0.01)
    caplog.set_level(logging.DEBUG, "ccorchd.daemon")
    parts: Any = SimpleNamespace()
    searching = asyncio.ensure_future(daemon._reconnect(parts, parts, parts, parts))
    async with asyncio.timeout(WAIT):
        while caplog.text.count("no bus yet") < 3:
            await asyncio.sleep(0.01)
    assert not searching.done()
    daemon._signalled(signal.SIGTERM)
    async with asyncio.timeout(WAIT):
        assert await searching is None


@pytest.mark.parametrize("under_systemd", [True, False])
async def test_quit_ends_it_also_when_systemd_does_not_stop_the_unit(
    daemon: Daemon, naming: Naming, monkeypatch: pytest.MonkeyPatch, *, under_systemd: bool
) -> None:
    asked: list[str] = []

    async def refuse(unit: str) -> None:
        asked.append(unit)
        raise CcorchError(ErrorCode.HOST_FAILED, "no")

    if not under_systemd:
        monkeypatch.delenv("NOTIFY_SOCKET")
    systemd: Any = SimpleNamespace(stop_unit_soon=refuse)
    await daemon._stop_own_unit(systemd)
    assert daemon._stop.is_set()
    assert asked == ([naming.daemon_unit] if under_systemd else [])


@pytest.mark.parametrize("full", [True, False])
async def test_leaving_lets_go_although_the_disk_is_full_or_the_instances_hang(
    daemon: Daemon, storage: Storage, caplog: pytest.LogCaptureFixture, *, full: bool
) -> None:
    """What is stopped on purpose and does not end in time is left to systemd; nothing keeps the daemon."""
    closed: list[str] = []
    stopping = asyncio.Event()

    async def shutdown(*, why: str) -> None:
        stopping.set()
        if not full:
            await asyncio.Event().wait()

    def close(name: str) -> Any:
        async def close() -> None:
            closed.append(name)

        return close

    history = History(storage, Journal(path="/nonexistent"), Broadcast("events"))
    if full:
        await storage.close()  # nothing can be recorded any more
    parts: Any = SimpleNamespace(
        orchestrator=SimpleNamespace(
            shutdown=shutdown, stopping=False, instances=SimpleNamespace(close=close("instances"))
        ),
        history=history,
        inotify=Inotify(),
        server=None,
        bus=None,
    )
    systemd: Any = SimpleNamespace(close=close("systemd"))
    settings: Any = {"daemon.shutdown_timeout": 0.2}
    daemon._quit = True
    async with asyncio.timeout(WAIT):
        await daemon._leave(parts, systemd, settings)
    assert stopping.is_set()
    assert closed == ["instances", "systemd"]
    assert ("not recorded" in caplog.text) is full
    assert ("the rest is left to systemd" in caplog.text) is not full
    assert parts.orchestrator.stopping is full
