# SPDX-License-Identifier: LGPL-2.1-or-later
"""The D-Bus connection against a real dbus-daemon of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal as signals
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ccorchd.contract import EVENT_FIELDS, ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.host import dbus
from ccorchd.host.dbus import Bus, DBusCallError, DBusError, Message, ServiceInterface, Variant

NAME = "org.ccorch1.Test"
PATH = "/org/ccorch1/test"

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>
"""


class Daemon:
    def __init__(self, folder: Path) -> None:
        self.address = f"unix:path={folder / 'bus'}"
        config = folder / "bus.conf"
        config.write_text(CONFIG.format(socket=folder / "bus"))
        self.process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address=1"], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    running = Daemon(tmp_path)
    yield running
    running.stop()


@pytest.fixture
async def bus(daemon: Daemon) -> AsyncIterator[Bus]:
    connection = await Bus.connect(daemon.address)
    yield connection
    await connection.close()


@pytest.fixture
async def client(daemon: Daemon) -> AsyncIterator[Bus]:
    connection = await Bus.connect(daemon.address)
    yield connection
    await connection.close()


class Service(ServiceInterface):
    """What the tests call. Everything in it is plain dbus-next."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self.release = asyncio.Event()

    @dbus.method()
    def Echo(self, text: "s") -> "s":  # type: ignore[name-defined]
        return text

    @dbus.method()
    def Record(self) -> "a{sv}":  # type: ignore[syntax]
        return {"number": Variant("u", 7), "deep": Variant("a{sv}", {"list": Variant("as", ["x"])})}

    @dbus.method()
    async def Wait(self) -> "s":  # type: ignore[name-defined]
        await self.release.wait()
        return "done"

    @dbus.method()
    def Refuse(self):
        raise DBusError("org.ccorch1.Error.NoSuchInstance", "No instance\nTry another")

    @dbus.method()
    def Crash(self):
        raise RuntimeError("secret path")


async def heard(queue: asyncio.Queue[Message]) -> Message:
    return await asyncio.wait_for(queue.get(), 5)


async def test_call_unwraps_variants(bus: Bus, client: Bus) -> None:
    bus.export(PATH, Service())
    await bus.request_name(NAME)
    assert await client.call(NAME, PATH, NAME, "Echo", "s", "grüß") == ["grüß"]
    assert await client.call(NAME, PATH, NAME, "Record") == [{"number": 7, "deep": {"list": ["x"]}}]


async def test_errors_keep_name_and_text(bus: Bus, client: Bus) -> None:
    bus.export(PATH, Service())
    with pytest.raises(DBusCallError) as caught:
        await client.call(bus.unique_name, PATH, NAME, "Refuse")
    assert (caught.value.name, caught.value.text) == ("org.ccorch1.Error.NoSuchInstance", "No instance\nTry another")


async def test_no_traceback_leaves_the_process(bus: Bus, client: Bus, caplog: pytest.LogCaptureFixture) -> None:
    bus.export(PATH, Service())
    with pytest.raises(DBusCallError) as caught:
        await client.call(bus.unique_name, PATH, NAME, "Crash")
    assert "secret" not in caught.value.text
    assert "File" not in caught.value.text
    assert "secret path" in caplog.text


async def test_a_string_that_dbus_forbids_does_not_end_the_connection(bus: Bus, client: Bus) -> None:
    bus.export(PATH, Service())
    assert await client.call(bus.unique_name, PATH, NAME, "Echo", "s", "a\0b\udc80") == ["a\N{REPLACEMENT CHARACTER}b?"]
    assert not client.closed.is_set()


async def test_timeout(bus: Bus, client: Bus) -> None:
    service = Service()
    bus.export(PATH, service)
    with pytest.raises(CcorchError) as caught:
        await client.call(bus.unique_name, PATH, NAME, "Wait", timeout=0.05)
    assert caught.value.code == ErrorCode.TIMEOUT
    service.release.set()  # the late answer must not disturb anything
    bus.export(PATH + "/other", Service())
    assert await client.call(bus.unique_name, PATH, NAME, "Echo", "s", "still here") == ["still here"]


async def test_a_lost_bus_ends_waiting_calls_and_says_so(daemon: Daemon, bus: Bus, client: Bus) -> None:
    service = Service()
    bus.export(PATH, service)
    waiting = asyncio.ensure_future(client.call(bus.unique_name, PATH, NAME, "Wait", timeout=30))
    await client.call(bus.unique_name, PATH, NAME, "Echo", "s", "")  # so that the call above is on its way
    daemon.process.kill()
    with pytest.raises(CcorchError) as caught:
        await asyncio.wait_for(waiting, 5)
    assert caught.value.code == ErrorCode.HOST_FAILED
    await asyncio.wait_for(bus.closed.wait(), 5)
    # The answer to a call that outlives its connection goes nowhere, and nobody watches the descriptor for it.
    descriptor = bus.raw._fd
    await asyncio.wait_for(bus.raw.send(Message.new_signal("/a", "a.b", "C")), 5)
    assert not asyncio.get_running_loop().remove_writer(descriptor)
    with pytest.raises(CcorchError):
        await client.call(NAME, PATH, NAME, "Echo", "s", "x")
    client.emit(PATH, NAME, "Nobody")
    # The answer to a call that outlives its connection goes nowhere, and nobody watches the old descriptor for it.
    descriptor = bus.raw._fd
    await asyncio.wait_for(bus.raw.send(Message.new_signal(PATH, NAME, "Late")), 5)
    assert not asyncio.get_running_loop().remove_writer(descriptor)
    service.release.set()


async def test_close_ends_waiting_calls(bus: Bus, client: Bus) -> None:
    service = Service()
    bus.export(PATH, service)
    waiting = asyncio.ensure_future(client.call(bus.unique_name, PATH, NAME, "Wait"))
    await client.call(bus.unique_name, PATH, NAME, "Echo", "s", "")
    await client.close()
    with pytest.raises(CcorchError):
        await waiting
    service.release.set()


@pytest.mark.parametrize("address", ["unix:path=/nonexistent/bus", "nonsense", "unix:path=/nonexistent/b~s"])
async def test_no_bus(address: str) -> None:
    with pytest.raises(CcorchError) as caught:
        await Bus.connect(address)
    assert caught.value.code == ErrorCode.HOST_FAILED


@pytest.mark.parametrize("hangs_up", [True, False])
async def test_a_bus_that_does_not_authenticate(tmp_path: Path, hangs_up: bool) -> None:
    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not hangs_up:
            await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_unix_server(meet, tmp_path / "bus")
    async with server:
        with pytest.raises(CcorchError) as caught:
            await asyncio.wait_for(Bus.connect(f"unix:path={tmp_path / 'bus'}", timeout=0.2), 5)
    assert caught.value.code == ErrorCode.HOST_FAILED


async def test_a_name_has_one_owner(bus: Bus, client: Bus) -> None:
    await bus.request_name(NAME)
    await bus.request_name(NAME)
    with pytest.raises(CcorchError):
        await client.request_name(NAME)
    await bus.release_name(NAME)
    await client.request_name(NAME)


async def test_a_burst_of_signals_fills_the_socket_and_all_arrive(bus: Bus, client: Bus) -> None:
    """3,000 signals of 4 KiB: far more than a socket buffer holds (EAGAIN ended dbus-next's connection)."""
    queue: asyncio.Queue[Message] = asyncio.Queue()
    client.on_signal(path=PATH, interface=NAME, member="Burst", callback=queue.put_nowait)
    await client.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetId")
    refused: list[BlockingIOError] = []

    class Counting(socket.socket):
        def send(self, data: object, flags: int = 0) -> int:  # type: ignore[override]
            try:
                return super().send(data, flags)  # type: ignore[arg-type]
            except BlockingIOError as error:
                refused.append(error)
                raise

    # A second descriptor of the same socket, which counts.
    counting = Counting(fileno=os.dup(bus.raw._sock.fileno()))
    counting.setblocking(False)
    bus.raw._writer.sock._inner = counting
    try:
        for number in range(3000):
            bus.emit(PATH, NAME, "Burst", "us", number, "x" * 4096)
        assert [(await heard(queue)).body[0] for _ in range(3000)] == list(range(3000))
        assert not bus.closed.is_set()
        assert refused
    finally:
        counting.close()


async def test_signals_reach_those_who_asked(bus: Bus, client: Bus) -> None:
    queues: dict[str, asyncio.Queue[Message]] = {
        key: asyncio.Queue() for key in ("namespace", "named", "other", "stopped")
    }

    def bad(message: Message) -> None:
        raise RuntimeError("a bad callback")

    client.on_signal(interface=NAME, callback=bad)
    client.on_signal(path_namespace=PATH, callback=queues["namespace"].put_nowait)
    client.on_signal(sender=NAME, member="Ping", callback=queues["named"].put_nowait)
    client.on_signal(sender=client.unique_name, interface=NAME, callback=queues["other"].put_nowait)
    gone = client.on_signal(interface=NAME, callback=queues["stopped"].put_nowait)
    gone.cancel()
    gone.cancel()
    await client.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetId")

    bus.emit(PATH + "ish", NAME, "Ping", "s", "near miss, and nobody owns the name yet")
    await bus.request_name(NAME)
    bus.emit(PATH, NAME, "Ping", "s", "one")
    bus.emit(PATH + "/child", NAME, "Pong", "s", "two")
    assert [(await heard(queues["namespace"])).body for _ in range(2)] == [["one"], ["two"]]
    assert (await heard(queues["named"])).body == ["one"]
    assert all(queue.empty() for queue in queues.values())


async def test_an_owner_from_before_is_known(bus: Bus, client: Bus) -> None:
    await bus.request_name(NAME)
    queue: asyncio.Queue[Message] = asyncio.Queue()
    client.on_signal(sender=NAME, callback=queue.put_nowait)
    await client.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetId")
    bus.emit(PATH, NAME, "Ping")
    assert (await heard(queue)).member == "Ping"


async def test_introspection_of_objects_whose_names_begin_alike(bus: Bus, client: Bus) -> None:
    for name in ("i1", "i10"):
        bus.export(f"{PATH}/{name}", Service())
    [text] = await client.call(bus.unique_name, f"{PATH}/i1", "org.freedesktop.DBus.Introspectable", "Introspect")
    assert text.count("<node") == 1
    assert NAME in text
    [text] = await client.call(bus.unique_name, "/", "org.freedesktop.DBus.Introspectable", "Introspect")
    assert '<node name="org"' in text
    bus.unexport(f"{PATH}/i1")
    with pytest.raises(DBusCallError):
        await client.call(bus.unique_name, f"{PATH}/i1", NAME, "Echo", "s", "")


async def test_a_frozen_bus_times_out(daemon: Daemon, client: Bus) -> None:
    daemon.process.send_signal(signals.SIGSTOP)
    try:
        with pytest.raises(CcorchError) as caught:
            await client.call("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetId", timeout=0.1)
        assert caught.value.code == ErrorCode.TIMEOUT
    finally:
        daemon.process.send_signal(signals.SIGCONT)


def test_variants_follow_the_contract() -> None:
    record: dict[str, object] = {"id": 3, "kind": ErrorCode.TIMEOUT, "message": None, "priority": 6}
    made = dbus.variants(EVENT_FIELDS, record)
    assert {key: (value.signature, value.value) for key, value in made.items()} == {
        "id": ("t", 3),
        "kind": ("s", "Timeout"),
        "priority": ("y", 6),
    }
    shapes = {"setup": "as", "limits": "a{ss}", "load": "d", "on": "b"}
    made = dbus.variants(shapes, {"setup": ("a", "b"), "limits": {"x": "y"}, "load": 1, "on": 1})
    assert dbus.plain(made) == {"setup": ["a", "b"], "limits": {"x": "y"}, "load": 1.0, "on": True}
    with pytest.raises(KeyError):
        dbus.variants(EVENT_FIELDS, {"unknown": 1})


def test_the_address_of_the_session_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/given")
    assert dbus.session_address() == "unix:path=/run/given"
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/mine")
    assert dbus.session_address() == "unix:path=/run/mine/bus"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert dbus.session_address() == f"unix:path=/run/user/{os.getuid()}/bus"


def test_structures_keep_their_order() -> None:
    made = dbus.variants({"pair": "(su)", "list": "a(su)"}, {"pair": ("a", 1), "list": [("b", 2), ("c", 3)]})
    assert dbus.plain(made) == {"pair": ["a", 1], "list": [["b", 2], ["c", 3]]}


async def test_a_bus_that_hangs_up_in_the_middle_of_authentication(tmp_path: Path) -> None:
    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n")).startswith(b"\0AUTH EXTERNAL")
        writer.write(b"OK 12")
        writer.close()

    server = await asyncio.start_unix_server(meet, tmp_path / "bus")
    async with server:
        with pytest.raises(CcorchError, match="hung up") as caught:
            await asyncio.wait_for(Bus.connect(f"unix:path={tmp_path / 'bus'}"), 10)
    assert caught.value.code == ErrorCode.HOST_FAILED


async def test_who_gives_up_connecting_leaves_no_socket(tmp_path: Path) -> None:
    ended = asyncio.Event()
    met = asyncio.Event()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.set()
        await reader.read()
        ended.set()
        writer.close()

    server = await asyncio.start_unix_server(meet, tmp_path / "bus")
    async with server:
        connecting = asyncio.ensure_future(Bus.connect(f"unix:path={tmp_path / 'bus'}", timeout=30))
        await asyncio.wait_for(met.wait(), 10)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await asyncio.wait_for(ended.wait(), 10)


class Cancelling(Service):
    @dbus.method()
    async def Stop(self):
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.Event().wait()


async def test_a_cancelled_handler_answers(bus: Bus, client: Bus) -> None:
    bus.export(PATH, Cancelling())
    with pytest.raises(DBusCallError) as caught:
        await client.call(bus.unique_name, PATH, NAME, "Stop", timeout=10)
    assert (caught.value.name, caught.value.text) == ("org.freedesktop.DBus.Error.NoReply", "The call was cancelled.")


async def test_a_cancelled_call_and_its_late_answer(bus: Bus, client: Bus) -> None:
    service = Service()
    bus.export(PATH, service)
    waiting = asyncio.ensure_future(client.call(bus.unique_name, PATH, NAME, "Wait"))
    await client.call(bus.unique_name, PATH, NAME, "Echo", "s", "")
    [serial] = client._pending
    waiting.cancel()
    # The answer that is read in the same turn of the loop, before the caller has noticed.
    answer = Message(message_type=dbus.MessageType.METHOD_RETURN, reply_serial=serial, signature="s", body=["done"])
    assert client._received(answer)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await client.call(bus.unique_name, PATH, NAME, "Echo", "s", "goes on") == ["goes on"]
    service.release.set()


async def test_a_call_that_is_cancelled_as_the_connection_closes(bus: Bus, client: Bus) -> None:
    service = Service()
    bus.export(PATH, service)
    waiting = asyncio.ensure_future(client.call(bus.unique_name, PATH, NAME, "Wait"))
    await client.call(bus.unique_name, PATH, NAME, "Echo", "s", "")
    waiting.cancel()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert client.closed.is_set()
    service.release.set()


async def test_a_rule_that_the_bus_refuses_is_logged(client: Bus, caplog: pytest.LogCaptureFixture) -> None:
    client.on_signal(path="no path", callback=lambda message: None)
    await client.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetId")
    assert "refused AddMatch" in caplog.text
    assert not client.closed.is_set()


async def test_a_name_that_the_bus_gives_to_nobody(client: Bus) -> None:
    with pytest.raises(CcorchError, match="refuses us") as caught:
        await client.request_name("org.freedesktop.DBus")
    assert caught.value.code == ErrorCode.HOST_FAILED
