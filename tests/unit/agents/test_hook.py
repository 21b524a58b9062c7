# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real hook helper as a process, with the real report server, with a broken one and with none."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ccorchd.agents.base import HOOK_FILE, Paths, hook_argv, hook_command
from ccorchd.host.reports import ReportServer
from ccorchd.model import Report

Result = tuple[int, bytes, bytes]
QUIET: Result = (0, b"", b"")


class Ledger:
    """Commits each uid once, as the daemon's event table does."""

    def __init__(self) -> None:
        self.reports: dict[str, Report] = {}
        self.calls = 0
        self.answer: dict[str, object] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self._changed = asyncio.Condition()

    async def __call__(self, report: Report) -> dict[str, object]:
        async with self._changed:
            self.calls += 1
            self.reports.setdefault(report.uid, report)
            self._changed.notify_all()
        self.entered.set()
        await self.gate.wait()
        return self.answer

    async def until(self, predicate: Callable[[], bool]) -> None:
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(predicate)

    @property
    def only(self) -> Report:
        (report,) = self.reports.values()
        return report


@pytest.fixture
async def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path, tmp_path / "events.sock", tmp_path / "state" / "spool" / "7", tmp_path)


@pytest.fixture
async def server(paths: Paths, ledger: Ledger) -> Any:
    server = ReportServer(7, paths.socket, paths.spool, ledger)
    await server.start()
    yield server
    await server.close()


@pytest.fixture
def mute(paths: Paths) -> Iterator[socket.socket]:
    """A daemon that hangs: connections are made, and nothing is ever said."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(paths.socket))
    listener.listen()
    yield listener
    listener.close()


MEASURED = "import posix, runpy, sys; posix._exit = sys.exit; sys.argv.pop(0); runpy.run_path(sys.argv[0])"
MEASURING = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


async def run(
    argv: list[str], paths: Paths | None, payload: bytes = b"", *, stdin: int = asyncio.subprocess.PIPE
) -> Result:
    environment = {"PATH": os.defpath, **MEASURING, **(paths.hook_environment() if paths else {})}
    if MEASURING and argv[0] == sys.executable:
        # coverage begins in site, which -S leaves out, and ends in atexit, which _exit does.
        assert argv[1:3] == ["-I", "-S"]
        argv = [argv[0], "-I", "-c", MEASURED, *argv[3:]]
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    output, errors = await asyncio.wait_for(
        process.communicate(payload if stdin == asyncio.subprocess.PIPE else None), 60
    )
    assert process.returncode is not None
    return process.returncode, output, errors


async def hook(paths: Paths | None, payload: bytes = b"", *, event: str = "Stop", wait: float = 5) -> Result:
    return await run([*hook_argv(event), "--wait", str(wait)], paths, payload)


def spooled(paths: Paths) -> list[dict[str, Any]]:
    """Return what lies in the spool, which must be whole files only."""
    names = sorted(path.name for path in paths.spool.iterdir())
    assert all(name.endswith(".json") for name in names), names
    return [json.loads((paths.spool / name).read_text()) for name in names]


async def test_acknowledged(server: ReportServer, ledger: Ledger, paths: Paths) -> None:
    payload = {"hook_event_name": "Stop", "last_assistant_message": 'Größe "fertig" \U0001f680\n', "n": [1, None, 2.5]}
    before = time.time()
    assert await hook(paths, json.dumps(payload, ensure_ascii=False).encode()) == QUIET
    report = ledger.only
    assert (report.event, report.payload, report.instance_id) == ("Stop", payload, 7)
    assert before <= report.time <= time.time()
    assert ledger.calls == 1
    assert spooled(paths) == []


async def test_nothing_on_standard_input(server: ReportServer, ledger: Ledger, paths: Paths) -> None:
    assert await hook(paths, b" \n") == QUIET
    assert ledger.only.payload == {}


async def test_as_a_shell_command(server: ReportServer, ledger: Ledger, paths: Paths) -> None:
    assert await run(["/bin/sh", "-c", hook_command('Sto"p $HOME')], paths, b"{}") == QUIET
    assert ledger.only.event == 'Sto"p $HOME'


async def test_the_command_never_fails(paths: Paths) -> None:
    """Python exits with 2, Claude Code's word for a veto, when an upgrade has just taken the file away."""
    command = hook_command("PreToolUse").replace(str(HOOK_FILE), "/nonexistent/hook.py")
    assert "/nonexistent" in command
    assert (await run(["/bin/sh", "-c", command], paths))[0] == 0


async def test_output_is_printed(server: ReportServer, ledger: Ledger, paths: Paths) -> None:
    ledger.answer = {"output": '{"decision": "größer"}'}
    assert await hook(paths, b"{}", event="PermissionRequest") == (0, '{"decision": "größer"}\n'.encode(), b"")


async def test_a_secret(server: ReportServer, ledger: Ledger, paths: Paths) -> None:
    ledger.answer = {"secret": "made-up-key"}
    command = shlex.split(hook_command("Secret", ask_secret="api key"))
    assert await run(command, paths, b"not read") == (0, b"made-up-key\n", b"")
    assert (ledger.only.event, ledger.only.payload) == ("Secret", {"secret": "api key"})


async def test_a_secret_that_there_is_not(paths: Paths, server: ReportServer) -> None:
    argv = hook_argv("Secret", ask_secret="key")
    assert await run(argv, paths) == (1, b"", b"")
    await server.close()
    assert await run(argv, paths) == (1, b"", b"")
    assert spooled(paths) == [], "a question is no event"


async def test_no_daemon(paths: Paths, ledger: Ledger) -> None:
    for number in range(3):
        assert await hook(paths, b'{"n": %d}' % number) == QUIET
    assert [entry["payload"]["n"] for entry in spooled(paths)] == [0, 1, 2]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in paths.spool.iterdir())
    server = ReportServer(7, paths.socket, paths.spool, ledger)
    await server.start()
    await ledger.until(lambda: len(ledger.reports) == 3)
    await server.close()
    assert [report.payload["n"] for report in ledger.reports.values()] == [0, 1, 2]
    assert spooled(paths) == []


async def test_a_daemon_that_never_answers(paths: Paths, mute: socket.socket) -> None:
    assert await hook(paths, b"{}", wait=0.2) == QUIET
    assert len(spooled(paths)) == 1


async def test_a_daemon_whose_queue_is_full(paths: Paths, mute: socket.socket) -> None:
    mute.listen(0)
    waiting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    waiting.connect(str(paths.socket))
    assert await hook(paths, b"{}", wait=0.2) == QUIET
    waiting.close()
    assert len(spooled(paths)) == 1


@pytest.mark.parametrize("size", [100_000, 131_000, 300_000, 2_000_000])
async def test_large_payloads(paths: Paths, ledger: Ledger, server: ReportServer, size: int) -> None:
    payload = {"tool_name": "Bash", "tool_response": "ü" * (size // 2)}
    ledger.answer = {"output": "seen"}
    assert await hook(paths, json.dumps(payload, ensure_ascii=False).encode()) == (0, b"seen\n", b"")
    assert ledger.only.payload == payload
    assert ledger.calls == 1
    assert spooled(paths) == []


@pytest.mark.parametrize("size", [300_000, 2_000_000])
async def test_large_payloads_without_a_daemon(paths: Paths, ledger: Ledger, size: int) -> None:
    payload = {"tool_response": "x" * size}
    assert await hook(paths, json.dumps(payload).encode()) == QUIET
    (entry,) = spooled(paths)
    assert entry["payload"] == payload
    server = ReportServer(7, paths.socket, paths.spool, ledger)
    await server.start()
    await ledger.until(lambda: bool(ledger.reports))
    await server.close()
    assert ledger.only.payload == payload


async def test_a_large_payload_and_no_room_for_it(paths: Paths, ledger: Ledger) -> None:
    blocked = Paths(paths.runtime, paths.socket, paths.runtime / "file" / "spool", paths.worktree)
    (paths.runtime / "file").touch()
    server = ReportServer(7, paths.socket, paths.spool, ledger)
    await server.start()
    assert await hook(blocked, json.dumps({"tool_name": "Bash", "text": "x" * 300_000}).encode()) == QUIET
    await server.close()
    assert ledger.only.payload == {"tool_name": "Bash", "truncated": True}


async def test_nowhere_to_go(paths: Paths) -> None:
    (paths.runtime / "file").touch()
    blocked = Paths(paths.runtime, paths.socket, paths.runtime / "file" / "spool", paths.worktree)
    assert await hook(blocked, b"{}") == QUIET


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b'\xff\xfe{"a"', '\ufffd\ufffd{"a"'),
        (b"plain words", "plain words"),
        (b'{"a": 1} trailing', '{"a": 1} trailing'),
        (b"[1]", "[1]"),
        (b'{"a": 1', '{"a": 1'),
        (b"[" * 100_000, "[" * 16_384),
    ],
    ids=["utf-8", "words", "trailing", "list", "cut", "deep"],
)
async def test_input_that_is_no_object(
    server: ReportServer, ledger: Ledger, paths: Paths, raw: bytes, text: str
) -> None:
    assert await hook(paths, raw) == QUIET
    assert ledger.only.payload == {"text": text}


async def test_invalid_utf8_inside_json(server: ReportServer, ledger: Ledger, paths: Paths) -> None:
    assert await hook(paths, b'{"text": "a\xffb", "line": "one\ntwo", "half": "\\ud83d"}') == QUIET
    assert ledger.only.payload == {"text": "a\ufffdb", "line": "one\ntwo", "half": "\ufffd"}


async def test_without_our_environment(tmp_path: Path) -> None:
    assert await hook(None, b"{}") == QUIET
    assert list(tmp_path.iterdir()) == []
    assert (await run(hook_argv("Secret", ask_secret="key"), None))[0] == 1


async def test_without_arguments(paths: Paths) -> None:
    assert await run(hook_argv("x")[:-1], paths) == QUIET


async def test_standard_input_that_stays_open(server: ReportServer, ledger: Ledger, paths: Paths) -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b'{"a": 1}')
        assert await run(hook_argv("Stop"), paths, stdin=reader) == QUIET
    finally:
        os.close(reader)
        os.close(writer)
    assert ledger.only.payload == {"a": 1}


async def test_standard_input_that_comes_slowly(server: ReportServer, ledger: Ledger, paths: Paths) -> None:
    reader, writer = os.pipe()
    os.write(writer, b'{"a": ')
    helper = asyncio.create_task(run(hook_argv("Stop"), paths, stdin=reader))
    while select.select([reader], [], [], 0)[0]:
        await asyncio.sleep(0)  # until the helper has read the first half
    os.close(reader)

    def go_on() -> None:
        os.write(writer, b"1}")
        os.close(writer)

    asyncio.get_running_loop().call_later(0.4, go_on)  # longer than the pause after which all may be said
    assert await helper == QUIET
    assert ledger.only.payload == {"a": 1}


async def test_terminal_is_not_read(server: ReportServer, ledger: Ledger, paths: Paths) -> None:
    outside, inside = pty.openpty()
    try:
        os.write(outside, b'{"typed": "for the agent"}\n')
        assert await run(hook_argv("Stop"), paths, stdin=inside) == QUIET
        assert ledger.only.payload == {}
        assert select.select([inside], [], [], 0)[0] == [inside]
    finally:
        os.close(outside)
        os.close(inside)


async def test_standard_input_that_cannot_be_read(server: ReportServer, ledger: Ledger, paths: Paths) -> None:
    unreadable = os.open(os.devnull, os.O_WRONLY)
    try:
        assert await run(hook_argv("Stop"), paths, stdin=unreadable) == QUIET
    finally:
        os.close(unreadable)
    assert ledger.only.payload == {}


async def test_spool_that_leads_nowhere(paths: Paths) -> None:
    paths.spool.parent.mkdir(parents=True)
    paths.spool.symlink_to("nowhere")
    assert await hook(paths, b"{}") == QUIET
    assert not paths.spool.exists()


async def test_closed_between_receipt_and_answer(paths: Paths, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon dies with the report in its hands, before or after the commit: it is there, and counts once."""
    monkeypatch.setattr("ccorchd.host.reports._CLOSE_SECONDS", 0.01)
    for payload in (b'{"n": 0}', b'{"n": 1, "text": "%s"}' % (b"x" * 300_000)):
        server = ReportServer(7, paths.socket, paths.spool, ledger)
        await server.start()
        ledger.gate.clear()
        ledger.entered.clear()
        helper = asyncio.create_task(hook(paths, payload))
        await asyncio.wait_for(ledger.entered.wait(), 30)
        await server.close()
        assert await helper == QUIET
        assert len(spooled(paths)) == 1
        ledger.gate.set()
        calls = ledger.calls
        server = ReportServer(7, paths.socket, paths.spool, ledger)
        await server.start()
        await ledger.until(lambda wanted=calls + 1: ledger.calls == wanted)  # type: ignore[misc]
        await server.close()
        assert spooled(paths) == []
    assert [report.payload["n"] for report in ledger.reports.values()] == [0, 1]


async def test_two_hundred_at_once_through_restarts(paths: Paths, ledger: Ledger) -> None:
    server = ReportServer(7, paths.socket, paths.spool, ledger)
    await server.start()
    helper = shlex.join(hook_argv("Stop"))
    script = f'for n in $(seq 0 199); do (echo "{{\\"n\\": $n}}" | {helper} || echo failed) & done; wait'
    helpers = asyncio.create_task(run(["/bin/sh", "-c", script], paths))
    for wanted in (20, 60):
        await ledger.until(lambda wanted=wanted: len(ledger.reports) >= wanted)  # type: ignore[misc]
        await server.close()
        server = ReportServer(7, paths.socket, paths.spool, ledger)
        await server.start()
    assert await helpers == QUIET
    await ledger.until(lambda: len(ledger.reports) == 200)
    await server.drain_spool()
    await server.close()
    assert spooled(paths) == []
    numbers = [int(str(report.payload["n"])) for report in ledger.reports.values()]
    assert sorted(numbers) == list(range(200))


async def test_cost(server: ReportServer, paths: Paths, record_property: Callable[[str, object], None]) -> None:
    """Not asserted: other work on the machine would decide. The figure is in docs/performance.md."""

    def measure(argv: list[str]) -> float:
        times = []
        for _ in range(15):
            begin = time.perf_counter()
            subprocess.run(argv, input=b'{"tool_name": "Bash"}', env=paths.hook_environment(), check=True)
            times.append(time.perf_counter() - begin)
        return statistics.median(times) * 1000

    bare = await asyncio.to_thread(measure, ["/bin/true"])
    helper = await asyncio.to_thread(measure, hook_argv("PreToolUse"))
    record_property("hook_milliseconds", round(helper - bare, 1))
    print(f"\nhook helper: {helper:.1f} ms, /bin/true: {bare:.1f} ms, difference {helper - bare:.1f} ms")
