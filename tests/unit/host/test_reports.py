# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real seqpacket sockets and spool folders: every report once, none lost, rubbish thrown out."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.host.inotify import Inotify
from ccorchd.host.reports import ReportServer
from ccorchd.model import Report

INSTANCE = 7


class Recorder:
    """A handler that keeps what it gets, drops the uids it knows, and can be told to fail or to take its time."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.calls = 0
        self.answer: dict[str, object] = {}
        self.failing = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self._changed = asyncio.Condition()

    async def __call__(self, report: Report) -> dict[str, object]:
        self.calls += 1
        self.entered.set()
        await self.gate.wait()
        async with self._changed:
            self._changed.notify_all()
            if self.failing:
                raise RuntimeError("the database is away")
            if report.uid not in {known.uid for known in self.reports}:
                self.reports.append(report)
        return self.answer

    async def until(self, predicate: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(predicate)


@pytest.fixture
async def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def server(tmp_path: Path, recorder: Recorder) -> Any:
    server = ReportServer(INSTANCE, tmp_path / "run" / "events.sock", tmp_path / "spool", recorder)
    await server.start()
    yield server
    await server.close()


class Client:
    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self.socket.close()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive(self) -> Any:
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, 1 << 20), 20)
        return json.loads(data) if data else None

    async def ask(self, data: bytes) -> Any:
        await self.send(data)
        return await self.receive()


def message(event: str = "Stop", payload: object = None, **changes: object) -> dict[str, object]:
    whole: dict[str, object] = {"id": uuid.uuid4().hex, "event": event, "time": 1700000000.5, "payload": payload or {}}
    whole.update(changes)
    return whole


def encoded(**changes: Any) -> bytes:
    return json.dumps(message(**changes)).encode()


def spool(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{name}.tmp"
    temporary.write_bytes(content)
    return temporary.rename(folder / name)


async def ask(server: ReportServer, data: bytes) -> Any:
    async with Client(server.socket) as client:
        return await client.ask(data)


async def gone(path: Path) -> None:
    async with asyncio.timeout(20):
        while path.exists():
            await asyncio.sleep(0.01)


async def test_a_report_is_answered_after_its_handler(server: ReportServer, recorder: Recorder) -> None:
    recorder.answer = {"output": "größer", "ok": False}
    recorder.gate.clear()
    sent = message(payload={"tool_name": "Bash", "n": 1})
    async with Client(server.socket) as client:
        await client.send(json.dumps(sent).encode())
        await asyncio.wait_for(recorder.entered.wait(), 10)
        with pytest.raises(BlockingIOError):
            client.socket.recv(1)
        recorder.gate.set()
        assert await client.receive() == {"ok": True, "output": "größer"}
    uid = str(sent["id"])
    assert recorder.reports == [Report(uid, INSTANCE, "Stop", {"tool_name": "Bash", "n": 1}, 1700000000.5)]


async def test_several_messages_on_one_connection(server: ReportServer, recorder: Recorder) -> None:
    async with Client(server.socket) as client:
        for number in range(5):
            assert await client.ask(encoded(payload={"n": number})) == {"ok": True}
    assert [report.payload["n"] for report in recorder.reports] == [0, 1, 2, 3, 4]


async def test_many_at_once(server: ReportServer, recorder: Recorder) -> None:
    recorder.gate.clear()
    asking = [asyncio.create_task(ask(server, encoded(payload={"n": n, "text": "x" * 50_000}))) for n in range(300)]
    await asyncio.wait_for(recorder.entered.wait(), 10)
    recorder.gate.set()
    assert await asyncio.gather(*asking) == [{"ok": True}] * 300
    assert sorted(report.payload["n"] for report in recorder.reports) == list(range(300))  # type: ignore[type-var]


@pytest.mark.parametrize(
    "data",
    [
        b"rubbish",
        b"\xff\xfe\x00",
        b"[]",
        b"{}",
        b"[" * 100_000,
        encoded(id=5),
        encoded(id="../../etc/passwd"),
        encoded(event=""),
        encoded(event="x" * 65),
        encoded(time="now"),
        encoded(time=True),
        encoded(time=float("nan")),
        encoded(payload=[1]),
        encoded(payload={"text": "x" * 170_000}),
    ],
    ids=lambda data: data[:20].decode(errors="replace") + f" {len(data)}",
)
async def test_rubbish_is_refused(server: ReportServer, recorder: Recorder, data: bytes) -> None:
    async with Client(server.socket) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        answer = await client.ask(data)
        assert answer["ok"] is False
        assert answer["drop"] is True
        assert await client.ask(encoded()) == {"ok": True}, "the connection goes on"
    assert server.malformed == 1
    assert len(recorder.reports) == 1


async def test_rubbish_is_logged_once_a_burst(server: ReportServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(50):
        await ask(server, b"rubbish")
    assert server.malformed == 50
    assert len(caplog.records) == 1


async def test_characters_that_no_bus_carries(server: ReportServer, recorder: Recorder) -> None:
    text = b'{"id":"%s","event":"Stop","time":1,"payload":{"a\\u0000":["\\ud83d","\\ud83d\\ude00","\x00","\xff"]}}'
    assert await ask(server, text % uuid.uuid4().hex.encode()) == {"ok": True}
    assert recorder.reports[0].payload == {"a\ufffd": ["\ufffd", "\U0001f600", "\ufffd", "\ufffd"]}


async def test_silent_and_broken_connections(server: ReportServer) -> None:
    silent = [Client(server.socket) for _ in range(20)]
    async with Client(server.socket) as hasty:
        await hasty.send(encoded())
    assert await ask(server, encoded()) == {"ok": True}
    for client in silent:
        client.socket.close()


async def test_a_failing_handler_is_no_acknowledgement(server: ReportServer, recorder: Recorder) -> None:
    recorder.failing = True
    assert await ask(server, encoded()) == {"ok": False, "error": "RuntimeError"}
    recorder.failing = False
    assert await ask(server, encoded()) == {"ok": True}


async def test_an_answer_that_is_no_json(server: ReportServer, recorder: Recorder) -> None:
    recorder.answer = {"output": b"bytes"}
    assert await ask(server, encoded()) == {"ok": True}
    recorder.answer = {"output": "x" * 300_000}
    assert await ask(server, encoded()) == {"ok": True}


async def test_the_socket_is_private(server: ReportServer) -> None:
    assert server.socket.stat().st_mode & 0o777 == 0o600
    assert server.spool.stat().st_mode & 0o777 == 0o700


async def test_spooled_before_the_start(tmp_path: Path, recorder: Recorder) -> None:
    names = [f"{1700000000 + n}.000000-{n:032x}" for n in range(40)]
    for n in reversed(range(40)):
        ending = "large" if n == 13 else "json"
        spool(tmp_path / "spool", f"{names[n]}.{ending}", encoded(payload={"n": n}))
    recorder.gate.clear()
    server = ReportServer(INSTANCE, tmp_path / "events.sock", tmp_path / "spool", recorder)
    await server.start()
    live = asyncio.create_task(ask(server, encoded(payload={"n": 40})))
    await asyncio.wait_for(recorder.entered.wait(), 10)
    recorder.gate.set()
    assert await live == {"ok": True}
    assert [report.payload["n"] for report in recorder.reports] == list(range(41)), "in the order of their times"
    assert list(server.spool.iterdir()) == []
    await server.close()


@pytest.mark.parametrize("shared", [False, True])
async def test_spooled_while_running(tmp_path: Path, recorder: Recorder, shared: bool) -> None:
    watcher = Inotify() if shared else None
    server = ReportServer(INSTANCE, tmp_path / "events.sock", tmp_path / "spool", recorder, watcher=watcher)
    await server.start()
    assert await ask(server, encoded()) == {"ok": True}
    path = spool(server.spool, f"1.0-{uuid.uuid4().hex}.json", encoded(event="SessionEnd"))
    await recorder.until(lambda: len(recorder.reports) == 2)
    await gone(path)
    await server.close()
    if watcher:
        watcher.close()


async def test_a_spool_folder_that_is_deleted(server: ReportServer, recorder: Recorder) -> None:
    assert await ask(server, encoded()) == {"ok": True}
    server.spool.rmdir()
    for number in range(3):
        spool(server.spool, f"{number}.0-{uuid.uuid4().hex}.json", encoded())
        await recorder.until(lambda wanted=number + 2: len(recorder.reports) == wanted)  # type: ignore[misc]


async def test_a_large_report_is_announced(server: ReportServer, recorder: Recorder) -> None:
    recorder.answer = {"output": "yes"}
    sent = message(payload={"text": "x" * 2_000_000})
    path = spool(server.spool, f"1.0-{sent['id']}.large", json.dumps(sent).encode())
    announcement = json.dumps({"id": sent["id"], "event": "Stop", "time": 1.0, "spool": True}).encode()
    assert await ask(server, announcement) == {"ok": True, "output": "yes"}
    assert not path.exists()
    assert recorder.reports[0].payload == sent["payload"]
    assert await ask(server, announcement) == {"ok": True}, "it is gone already, so somebody has handled it"
    assert recorder.calls == 1


async def test_a_spool_file_stays_until_its_handler_succeeds(tmp_path: Path, recorder: Recorder) -> None:
    recorder.failing = True
    path = spool(tmp_path / "spool", f"1.0-{uuid.uuid4().hex}.json", encoded())
    server = ReportServer(INSTANCE, tmp_path / "events.sock", tmp_path / "spool", recorder)
    await server.start()
    await recorder.until(lambda: recorder.calls >= 2)
    assert path.exists()
    recorder.failing = False
    await recorder.until(lambda: len(recorder.reports) == 1)
    await gone(path)
    await server.close()


async def test_malformed_spool_files_are_put_aside(tmp_path: Path, recorder: Recorder) -> None:
    for number in range(30):
        spool(tmp_path / "spool", f"{number:03}.0-{uuid.uuid4().hex}.json", b"rubbish")
    os.mkfifo(tmp_path / "spool" / "050.0-fifo.json")
    (tmp_path / "spool" / "half.tmp").write_bytes(b"{")
    server = ReportServer(INSTANCE, tmp_path / "events.sock", tmp_path / "spool", recorder)
    await server.start()
    assert await ask(server, encoded()) == {"ok": True}
    bad = sorted(path.name for path in (server.spool / "bad").iterdir())
    assert len(bad) == 20
    assert bad[-1] == "050.0-fifo.json"
    assert server.malformed == 31
    assert sorted(path.name for path in server.spool.iterdir()) == ["bad", "half.tmp"]
    assert await server.drain_spool() == 0
    await server.close()


async def test_without_inotify_it_looks_now_and_then(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccorchd.host.reports._RESCAN_SECONDS", 0.05)
    watcher = Inotify()
    watcher.close()
    server = ReportServer(INSTANCE, tmp_path / "events.sock", tmp_path / "spool", recorder, watcher=watcher)
    await server.start()
    assert await ask(server, encoded()) == {"ok": True}
    spool(server.spool, f"1.0-{uuid.uuid4().hex}.json", encoded())
    await recorder.until(lambda: len(recorder.reports) == 2)
    await server.close()


async def test_close_lets_handlers_finish(server: ReportServer, recorder: Recorder) -> None:
    recorder.gate.clear()
    async with Client(server.socket) as client, Client(server.socket) as silent:
        await client.send(encoded())
        await asyncio.wait_for(recorder.entered.wait(), 10)
        closing = asyncio.create_task(server.close())
        assert await silent.receive() is None, "who has said nothing is sent away at once"
        with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
            Client(server.socket)
        recorder.gate.set()
        assert await client.receive() == {"ok": True}
        assert await client.receive() is None
        await asyncio.wait_for(closing, 10)
    await server.close()
    assert not server.socket.exists()


async def test_close_does_not_wait_for_ever(
    server: ReportServer, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccorchd.host.reports._CLOSE_SECONDS", 0.05)
    recorder.gate.clear()
    async with Client(server.socket) as client:
        await client.send(encoded())
        await asyncio.wait_for(recorder.entered.wait(), 10)
        await asyncio.wait_for(server.close(), 10)
        assert await client.receive() is None


async def test_close_in_the_middle_of_a_long_spool(tmp_path: Path, recorder: Recorder) -> None:
    recorder.gate.clear()
    for number in range(100):
        spool(tmp_path / "spool", f"{number:03}.0-{uuid.uuid4().hex}.json", encoded(payload={"n": number}))
    server = ReportServer(INSTANCE, tmp_path / "events.sock", tmp_path / "spool", recorder)
    await server.start()
    async with Client(server.socket) as client:
        await client.send(encoded())
        await asyncio.wait_for(recorder.entered.wait(), 10)
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        recorder.gate.set()
        await asyncio.wait_for(closing, 10)
        answer = await client.receive()
        assert answer is None or answer["ok"] is False, "a later report must not overtake what is still spooled"
    assert len(recorder.reports) + len(list(server.spool.iterdir())) == 100


async def test_a_stale_socket_is_replaced(tmp_path: Path, recorder: Recorder) -> None:
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stale.bind(str(tmp_path / "events.sock"))
    stale.close()
    server = ReportServer(INSTANCE, tmp_path / "events.sock", tmp_path / "spool", recorder)
    await server.start()
    assert await ask(server, encoded()) == {"ok": True}
    await server.close()


async def test_a_place_where_no_socket_can_be(tmp_path: Path, recorder: Recorder) -> None:
    for place in (tmp_path / ("x" * 120) / "events.sock", tmp_path / "file" / "events.sock"):
        (tmp_path / "file").touch()
        server = ReportServer(INSTANCE, place, tmp_path / "spool", recorder)
        with pytest.raises(CcorchError) as caught:
            await server.start()
        assert caught.value.code is ErrorCode.HOST_FAILED
        await server.close()


async def test_only_the_first_of_many_that_fail_is_logged(
    tmp_path: Path, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    server = ReportServer(INSTANCE, tmp_path / "events.sock", tmp_path / "spool", recorder)  # does nothing by itself
    assert await server.drain_spool() == 0, "no folder, no reports"
    recorder.failing = True
    for number in range(3):
        spool(server.spool, f"{number}.0-{uuid.uuid4().hex}.json", encoded())
    assert await server.drain_spool() == 0
    assert len(list(server.spool.glob("*.json"))) == 3
    assert len([record for record in caplog.records if record.message.endswith("stays")]) == 1
    recorder.failing = False
    assert await server.drain_spool() == 3


async def test_a_file_too_large_is_put_aside_unread(server: ReportServer, recorder: Recorder) -> None:
    path = spool(server.spool, f"0.0-{uuid.uuid4().hex}.tmp", b"")
    os.truncate(path, 64 * 1024 * 1024 + 1)
    path.rename(path.with_suffix(".json"))
    await server.drain_spool()
    assert [path.suffix for path in (server.spool / "bad").iterdir()] == [".json"]
    assert (server.malformed, recorder.calls) == (1, 0)


async def test_what_cannot_be_put_aside_is_deleted(server: ReportServer, caplog: pytest.LogCaptureFixture) -> None:
    (server.spool / "bad").write_text("no folder")
    path = spool(server.spool, f"0.0-{uuid.uuid4().hex}.json", b"rubbish")
    await server.drain_spool()
    assert not path.exists(), "it would be read again and again"
    assert server.malformed == 1
    assert "cannot be put aside" in caplog.text


async def test_an_announced_file_that_is_rubbish(server: ReportServer, recorder: Recorder) -> None:
    uid = uuid.uuid4().hex
    path = spool(server.spool, f"1.0-{uid}.large", b"rubbish")
    answer = await ask(server, json.dumps({"id": uid, "event": "Stop", "time": 1.0, "spool": True}).encode())
    assert (answer["ok"], answer["drop"]) == (False, True)
    assert (server.spool / "bad" / path.name).read_bytes() == b"rubbish"
    assert recorder.calls == 0


async def test_a_spool_file_that_goes_before_its_turn(tmp_path: Path, recorder: Recorder) -> None:
    paths = [spool(tmp_path / "spool", f"{n}.0-{uuid.uuid4().hex}.json", encoded(payload={"n": n})) for n in range(3)]
    recorder.gate.clear()
    server = ReportServer(INSTANCE, tmp_path / "events.sock", tmp_path / "spool", recorder)
    await server.start()
    await asyncio.wait_for(recorder.entered.wait(), 10)
    paths[1].unlink()
    recorder.gate.set()
    await recorder.until(lambda: len(recorder.reports) == 2)
    assert [report.payload["n"] for report in recorder.reports] == [0, 2]
    assert server.malformed == 0
    await server.close()
