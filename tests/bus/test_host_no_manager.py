# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host whose user manager is not there, hangs up or says no; the bus is a real one, the manager's part is missing."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ccorchd.contract import ErrorCode, Naming
from ccorchd.errors import CcorchError
from ccorchd.host import systemd as module
from ccorchd.host.dbus import Bus, ServiceInterface, Variant, method
from ccorchd.host.manager import MANAGER, NAME, PATH, SCOPE, UNIT, UserManager, unit_name, unit_path
from ccorchd.host.systemd import Systemd

NAMING = Naming("hosttest")
OURS = f"{NAMING.stem}-one.scope"
PROPERTIES = "org.freedesktop.DBus.Properties"


@pytest.fixture
async def bus(dbus_session: str) -> AsyncIterator[Bus]:
    connection = await Bus.connect(dbus_session)
    yield connection
    await connection.close()


@pytest.fixture
async def owner(dbus_session: str) -> AsyncIterator[Bus]:
    """Who owns the manager's name on the bus, and answers nothing but errors."""
    connection = await Bus.connect(dbus_session)
    yield connection
    await connection.close()


@pytest.fixture
async def systemd() -> AsyncIterator[Systemd]:
    made = Systemd(NAMING)
    yield made
    await made.close()


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def manager() -> Iterator[UserManager]:
    made = UserManager()
    yield made
    made.close()


async def round_trip(bus: Bus) -> None:
    """Wait until all signals that were sent before have arrived."""
    await bus.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetId")


async def test_no_manager_at_all(bus: Bus, runtime: Path) -> None:
    with pytest.raises(CcorchError) as caught:
        await Systemd.open(NAMING, bus)
    assert caught.value.code is ErrorCode.HOST_FAILED
    assert str(os.getuid()) in caught.value.message
    assert "enable-linger" in caught.value.hint


async def test_a_bus_without_a_manager(
    runtime: Path, dbus_session: str, manager: UserManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    (runtime / "systemd").mkdir()
    (runtime / "bus").symlink_to(dbus_session.partition("=")[2])
    monkeypatch.setenv("SYSTEMD_BUS_TIMEOUT", "7s")
    with pytest.raises(CcorchError, match="did not tell its version") as caught:
        await manager.ask("tell its version", lambda _, interface: interface.Version)
    assert caught.value.code is ErrorCode.HOST_FAILED
    assert os.environ["SYSTEMD_BUS_TIMEOUT"] == "7s", "what others set stays"


async def test_a_manager_that_hangs_up(runtime: Path, manager: UserManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYSTEMD_BUS_TIMEOUT", raising=False)
    (runtime / "systemd").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime / "systemd/private"))
        listener.listen()
        listener.settimeout(20)

        def meet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)

        thread = threading.Thread(target=meet)
        thread.start()
        with pytest.raises(CcorchError, match="hung up") as caught:
            await asyncio.wait_for(manager.ask("tell its version", lambda _, interface: interface.Version), 20)
        thread.join()
    assert caught.value.code is ErrorCode.HOST_FAILED
    assert "SYSTEMD_BUS_TIMEOUT" not in os.environ


async def test_no_signals_are_a_failure(bus: Bus, systemd: Systemd) -> None:
    with pytest.raises(CcorchError, match="sends us no signals") as caught:
        await systemd.rebind(bus)
    assert caught.value.code is ErrorCode.HOST_FAILED


async def test_a_manager_that_comes_back_and_refuses_is_logged(bus: Bus, owner: Bus, systemd: Systemd) -> None:
    with pytest.raises(CcorchError):
        await systemd.rebind(bus)
    lines: asyncio.Queue[str] = asyncio.Queue()
    handler, logger = logging.Handler(), logging.getLogger(module.__name__)
    handler.emit = lambda record: lines.put_nowait(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        await owner.request_name(NAME)
        line = await asyncio.wait_for(lines.get(), 10)
    finally:
        logger.removeHandler(handler)
    assert line.startswith("no signals from the user manager after its restart: ")


class Hanging(ServiceInterface):
    """A manager that takes its time to answer."""

    def __init__(self) -> None:
        super().__init__(MANAGER)
        self.asked = asyncio.Event()
        self.release = asyncio.Event()

    @method()
    async def Subscribe(self):
        self.asked.set()
        await self.release.wait()


async def test_close_ends_what_still_asks(bus: Bus, owner: Bus, systemd: Systemd) -> None:
    with pytest.raises(CcorchError):
        await systemd.rebind(bus)
    manager = Hanging()
    owner.export(PATH, manager)
    await owner.request_name(NAME)
    await asyncio.wait_for(manager.asked.wait(), 10)
    [resuming] = systemd._tasks
    await systemd.close()
    await asyncio.wait_for(asyncio.wait({resuming}), 10)
    assert resuming.cancelled()
    manager.release.set()
    await round_trip(owner)


async def test_the_end_of_a_scope_is_told_once_to_everybody(
    bus: Bus, owner: Bus, systemd: Systemd, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[str, str]] = []

    def fail(unit: str, result: str) -> None:
        raise RuntimeError(unit)

    systemd.on_scope_gone(fail)
    systemd.on_scope_gone(lambda unit, result: told.append((unit, result)))
    await owner.request_name(NAME)
    with pytest.raises(CcorchError):
        await systemd.rebind(bus)

    def changed(unit: str, interface: str, name: str, value: str) -> None:
        record = {name: Variant("s", value)}
        owner.emit(unit_path(unit), PROPERTIES, "PropertiesChanged", "sa{sv}as", interface, record, [])

    for unit in (OURS, "other.scope", f"{NAMING.stem}-one.service"):
        changed(unit, UNIT, "ActiveState", "active")
        changed(unit, SCOPE, "Result", "oom-kill")
        changed(unit, UNIT, "ActiveState", "deactivating")
        changed(unit, UNIT, "ActiveState", "failed")
        changed(unit, UNIT, "ActiveState", "inactive")
    await round_trip(owner)
    await round_trip(bus)
    assert told == [(OURS, "oom-kill")]
    assert f"the end of {OURS} failed" in caplog.text


async def test_without_logind_the_file_tells_and_nothing_is_enabled(
    systemd: Systemd, dbus_session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", dbus_session)
    monkeypatch.setattr(module, "_LINGER", tmp_path)
    user = module.pwd.getpwuid(os.getuid()).pw_name
    assert not await systemd.linger()
    with pytest.raises(CcorchError, match="logind refuses SetUserLinger") as caught:
        await systemd.enable_linger()
    assert caught.value.code is ErrorCode.HOST_FAILED
    assert caught.value.hint == f"Ask an administrator for: loginctl enable-linger {user}"
    (tmp_path / user).touch()
    assert await systemd.linger()
    await systemd.enable_linger()


@pytest.mark.parametrize(
    ("unit", "escaped"),
    [("ccorch-a.b.scope", "ccorch_2da_2eb_2escope"), ("7.scope", "_37_2escope"), ("a_b.slice", "a_5fb_2eslice")],
)
def test_unit_paths(unit: str, escaped: str) -> None:
    assert unit_path(unit) == f"/org/freedesktop/systemd1/unit/{escaped}"
    assert unit_name(unit_path(unit)) == unit
