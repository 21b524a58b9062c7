# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real tmux server for each test, on a socket of its own, gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import shutil
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.host import tmux
from ccorchd.host.tmux import Pane, TmuxServer

Starter = Callable[..., Awaitable[TmuxServer]]

READER = """
import os, sys, termios, tty
tty.setraw(0)
os.write(1, b"\\x1b[?2004hREADY\\r\\n")
data = b""
while not data.endswith(b"\\x1b[201~\\r"):
    data += os.read(0, 65536)
with open(sys.argv[1] + ".tmp", "wb") as file:
    file.write(data)
os.rename(sys.argv[1] + ".tmp", sys.argv[1])
os.read(0, 1)
"""


async def until(predicate: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await predicate():
            await asyncio.sleep(0.02)


async def content(path: Path) -> bytes:
    async def there() -> bool:
        return path.exists()

    await until(there)
    return path.read_bytes()


def dead(pid: int) -> bool:
    """True for zombies too: not every PID 1 is in a hurry."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def shows(server: TmuxServer, window: str, text: str) -> None:
    async def there() -> bool:
        return text in await server.capture(window)

    await until(there)


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Starter]:
    made: list[tuple[TmuxServer, int]] = []

    async def start(
        *command: str, environment: dict[str, str] | None = None, pane: dict[str, str] | None = None
    ) -> TmuxServer:
        place = tmp_path / str(len(made))
        place.mkdir()
        tmux.write_config(place / "tmux.conf", "project/größe #1 100% 'x'")
        argv = TmuxServer.launch_argv(
            place / "tmux.sock",
            cwd=tmp_path,
            command=command or ("sleep", "600"),
            config=place / "tmux.conf",
            environment=pane,
        )
        base = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SHELL": "/bin/sh", "LANG": "C.UTF-8"}
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=tmux.server_environment({**base, **(environment or {})}),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 20)
        assert (process.returncode, output) == (0, b"")
        server = TmuxServer(place / "tmux.sock")
        made.append((server, await server.server_pid()))
        return server

    yield start
    for server, pid in made:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        await server.recreate_socket(pid)
        await server.kill()
        assert dead(pid)


class Terminal:
    """Somebody's terminal with an attached client in it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.seen = b""
        self.process: asyncio.subprocess.Process | None = None

    async def run(self, argv: Sequence[str], *, columns: int, lines: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "LANG": "C.UTF-8", "INTRUDER": "1"}
        self.process = await asyncio.create_subprocess_exec(
            *argv, stdin=self.slave, stdout=self.slave, stderr=self.slave, env=environment, start_new_session=True
        )
        asyncio.get_running_loop().add_reader(self.master, self._read)

    def _read(self) -> None:
        self.seen += os.read(self.master, 65536)

    async def detached(self) -> bool:
        return b"[detached" in self.seen

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    async def close(self) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
        await asyncio.wait_for(self.process.wait(), 20)
        asyncio.get_running_loop().remove_reader(self.master)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
async def attach() -> AsyncIterator[Callable[..., Awaitable[Terminal]]]:
    terminals: list[Terminal] = []

    async def attach(
        server: TmuxServer, *, read_only: bool = False, window: str = "agent", columns: int = 90, lines: int = 30
    ) -> Terminal:
        before = await server.clients()
        terminal = Terminal()
        terminals.append(terminal)
        argv = server.attach_argv(read_only=read_only, window=window)
        await terminal.run(argv, columns=columns, lines=lines)

        async def attached() -> bool:
            return await server.clients() > before

        await until(attached)
        return terminal

    yield attach
    for terminal in terminals:
        await terminal.close()


async def refused(work: Awaitable[object]) -> CcorchError:
    with pytest.raises(CcorchError) as caught:
        await work
    return caught.value


async def test_launch_and_layout(start: Starter, tmp_path: Path) -> None:
    server = await start("/bin/sh", "-c", 'echo "agent in $PWD;"; exec sleep 600')
    assert await server.server_alive()
    shell = await server.new_window("shell", tmp_path / "0")
    panes = await server.panes()
    assert [(pane.window, pane.dead) for pane in panes] == [("agent", False), ("shell", False)]
    assert panes[1].pid == shell.pid
    assert (await server.new_window("shell", tmp_path)).pid == shell.pid, "it is there already"
    assert os.readlink(f"/proc/{shell.pid}/cwd") == str(tmp_path / "0")
    await shows(server, "agent", f"agent in {tmp_path};")

    async def executed() -> bool:
        return Path(f"/proc/{panes[0].pid}/comm").read_text() == "sleep\n"

    await until(executed)


async def test_the_configuration_has_no_errors(start: Starter, tmp_path: Path) -> None:
    (tmp_path / ".tmux.conf").write_text("set -g status off\n")
    server = await start()
    await server._run("source-file", str(tmp_path / "0" / "tmux.conf"))
    assert await server._run("show-options", "-gv", "status") == ["on"], "the user's own file is not read"
    assert await server._run("show-options", "-gv", "update-environment") == []
    assert await server._run("show-options", "-sv", "exit-empty") == ["on"]
    size = await server._run("display-message", "-p", "-t", "%0", "#{window_width}x#{window_height}")
    assert size == ["200x50"]
    assert tmux.terminal() in ("tmux-256color", "screen-256color", "screen")


async def test_a_single_word_and_a_semicolon(start: Starter, tmp_path: Path) -> None:
    program = tmp_path / "my agent;"
    program.write_text('#!/bin/sh\necho "it runs $#"\nexec sleep 600\n')
    program.chmod(0o755)
    await shows(await start(str(program)), "agent", "it runs 0")
    await shows(await start(str(program), "a;", "-b", ";"), "agent", "it runs 3")


@pytest.mark.parametrize(
    ("command", "end"),
    [("exit 0", (0, None)), ("exit 7", (7, None)), ("kill -9 $$", (None, 9)), ("kill -15 $$", (None, 15))],
)
async def test_how_the_agent_ended(start: Starter, command: str, end: tuple[int | None, int | None]) -> None:
    # tmux drops what it has not read when a program ends: give it the time that a real program takes to exit.
    server = await start("/bin/sh", "-c", f"echo first words; seq 60; echo last words; sleep 0.05; {command}")
    assert await server.exit_of() == end
    assert (await server.pane()).dead
    assert (await server.capture("agent")).endswith("59\n60\nlast words")
    assert (await server.capture("agent", lines=100)).startswith("first words\n1\n2\n")


async def test_nobody_knows_how_it_ended(start: Starter) -> None:
    server = await start()
    assert await server.exit_of(timeout=0.05) == (None, None), "it has not ended"
    assert await server.exit_of("nowhere") == (None, None)
    await server.kill()
    assert await server.exit_of() == (None, None)


async def test_other_windows_go_when_their_shell_ends(start: Starter, tmp_path: Path) -> None:
    server = await start()
    shell = await server.new_window("shell", tmp_path)
    await server._run("split-window", "-d", "-t", "%0", "true")
    os.kill(shell.pid, signal.SIGHUP)

    async def alone() -> bool:
        return [pane.window for pane in await server.panes()] == ["agent"]

    await until(alone)
    assert (await server.new_window("shell", tmp_path)).pid != shell.pid


async def test_the_agent_is_found_whatever_its_window_is_called(start: Starter) -> None:
    server = await start()
    await server._run("rename-window", "-t", "%0", "a|b")
    await server._run("select-pane", "-t", "%0", "-T", "✳ title | with it")
    pane = await server.pane()
    assert (pane.window, pane.title) == ("agent", "✳ title | with it")
    await server._run("split-window", "-d", "-t", "%0", "sleep 600")
    assert sorted(pane.window for pane in await server.panes()) == ["a_b", "agent"]


TEXTS = {
    "semicolon": "first; second;",
    "semicolon alone": ";",
    "dash": "-X --help",
    "tabs": "\tone\t\ttwo\t",
    "umlauts": "Größe, naïve, Ελλάδα, 日本語, e\u0301",
    "emoji": "\U0001f680 \U0001f469\u200d\U0001f4bb ok",
    "lines": "one\n\n  two\n#{pane_id} $HOME `id` 'x' \"y\" \\ \\n %s\nthree\n",
    "bang": "!ls",
    "large": "".join(f"{number:06} ürgh; line\n" for number in range(5_000)),
}


@pytest.mark.parametrize("name", TEXTS)
async def test_text_is_pasted_exactly(start: Starter, tmp_path: Path, name: str) -> None:
    server = await start(sys.executable, "-c", READER, str(tmp_path / "got"))
    await shows(server, "agent", "READY")
    await server.paste("agent", TEXTS[name], enter=False)
    await server.keys("agent", "Enter")
    data = await content(tmp_path / "got")
    assert data.startswith(b"\x1b[200~")
    pasted = data.removeprefix(b"\x1b[200~").removesuffix(b"\x1b[201~\r")
    # A terminal sends Return for the end of a line, in a paste too.
    assert pasted.decode() == TEXTS[name].replace("\n", "\r")
    assert [path.name for path in server.socket.parent.iterdir() if path.name.startswith("paste-")] == []


async def test_text_cannot_press_keys(start: Starter, tmp_path: Path) -> None:
    server = await start(sys.executable, "-c", READER, str(tmp_path / "got"))
    await shows(server, "agent", "READY")
    await server.paste("agent", "a\x1b[201~\rb\x03\x7f\x9bc\r\nd\0", enter=True)
    assert await content(tmp_path / "got") == b"\x1b[200~a[201~\rbc\rd\x1b[201~\r"
    assert tmux.clean_text("a\ud800b") == "a?b"


async def test_a_paste_needs_the_servers_folder(start: Starter) -> None:
    server = await start()
    shutil.rmtree(server.socket.parent)
    error = await refused(server.paste("agent", "text", enter=True))
    assert error.code is ErrorCode.HOST_FAILED
    assert error.message == "text cannot be pasted: No such file or directory"


async def test_keys_and_an_empty_paste(start: Starter) -> None:
    server = await start("/bin/sh", "-c", "cat; echo interrupted; exec sleep 600")
    await server.keys("agent", "a", "b;", ";", "-", "Space", "ü")
    await server.paste("agent", "", enter=True)
    await shows(server, "agent", "ab;;- ü\nab;;- ü")
    await server.keys("agent", "C-d")
    await shows(server, "agent", "interrupted")


async def test_capture(start: Starter) -> None:
    server = await start("/bin/sh", "-c", "seq 1 300; printf '\\033[31mred Größe\\033[0m'; exec sleep 600")
    await shows(server, "agent", "red Größe")
    screen = await server.capture("agent")
    assert screen.splitlines()[0] != "1"
    assert (await server.capture("agent", lines=1000)).splitlines()[0] == "1"
    assert "\x1b[31mred" in await server.capture("agent", colours=True)


@pytest.mark.parametrize("locale", ["C", "POSIX", "", "C.UTF-8"])
async def test_characters_survive_any_locale(start: Starter, monkeypatch: pytest.MonkeyPatch, locale: str) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    monkeypatch.delenv("LANG", raising=False)
    server = await start(
        "/bin/sh", "-c", "printf '\\033]2;✳ Größe\\007'; echo 'Größe ✳'; exec sleep 600", environment={"LC_ALL": locale}
    )
    await shows(server, "agent", "Größe ✳")
    assert (await server.pane()).title == "✳ Größe"


def test_locale_rule() -> None:
    def rule(**environment: str) -> dict[str, str]:
        result = tmux.server_environment(environment)
        assert result.pop("DBUS_SESSION_BUS_ADDRESS") == "unix:path=/nonexistent"
        return result

    assert rule() == {"LC_CTYPE": "C.UTF-8"}
    assert rule(LANG="de_DE.UTF-8", TMUX="x", TMUX_PANE="%1") == {"LANG": "de_DE.UTF-8"}
    assert rule(LANG="en_US.utf8") == {"LANG": "en_US.utf8"}
    assert rule(LANG="de_DE") == {"LANG": "de_DE", "LC_CTYPE": "C.UTF-8"}
    assert rule(LANG="de_DE.UTF-8", LC_ALL="C") == {"LANG": "de_DE.UTF-8", "LC_ALL": "C.UTF-8"}
    assert rule(LANG="C", LC_CTYPE="C.UTF-8", LC_ALL="") == {"LANG": "C", "LC_CTYPE": "C.UTF-8", "LC_ALL": ""}


async def test_the_bus_is_out_of_reach(start: Starter, tmp_path: Path) -> None:
    def variables(pid: int) -> list[bytes]:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")

    address = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/real"}
    server = await start(environment=address)
    assert b"DBUS_SESSION_BUS_ADDRESS=unix:path=/nonexistent" in variables((await server.pane()).pid)
    asked = await start(environment=address, pane=address)
    shell = await asked.new_window("shell", tmp_path)
    assert b"DBUS_SESSION_BUS_ADDRESS=unix:path=/run/real" in variables((await asked.pane()).pid)
    assert b"DBUS_SESSION_BUS_ADDRESS=unix:path=/nonexistent" in variables(await asked.server_pid())
    assert shell.pid


async def test_several_terminals(start: Starter, attach: Callable[..., Awaitable[Terminal]], tmp_path: Path) -> None:
    server = await start("/bin/sh", "-c", "echo agent is here; exec cat")
    shell = await server.new_window("shell", tmp_path)
    agent = await attach(server)
    reader = await attach(server, read_only=True, window="shell")
    assert await server.clients() == 2

    async def drawn() -> bool:
        return b"agent is here" in agent.seen and "project/größe #1 100% x".encode() in agent.seen

    await until(drawn)

    async def named() -> bool:
        return b"read-only" in reader.seen

    await until(named)
    assert b"agent is here" not in reader.seen, "it looks at the shell, and the other still at the agent"
    reader.type(b"nobody reads this\r")
    agent.type(b"hello from a terminal\r")
    await shows(server, "agent", "hello from a terminal\nhello from a terminal")
    assert "nobody" not in await server.capture("shell")
    variables = Path(f"/proc/{shell.pid}/environ").read_bytes()
    assert b"INTRUDER" not in variables
    later = await server.new_window("later", tmp_path)
    assert b"INTRUDER" not in Path(f"/proc/{later.pid}/environ").read_bytes(), "a client brings no environment"
    assert [pane.window for pane in await server.panes()] == ["agent", "shell", "later"]

    assert await server.detach_all() == 2
    for terminal in (agent, reader):
        assert terminal.process is not None
        assert await asyncio.wait_for(terminal.process.wait(), 20) == 0
        await until(terminal.detached)
    assert await server.detach_all() == 0
    assert await server.clients() == 0


async def test_a_terminal_that_is_lost(start: Starter, attach: Callable[..., Awaitable[Terminal]]) -> None:
    server = await start()
    terminal = await attach(server)
    assert terminal.process is not None
    terminal.process.kill()

    async def gone() -> bool:
        return await server.clients() == 0

    await until(gone)
    assert not (await server.pane()).dead


async def test_the_first_word_of_an_error_is_what_failed(start: Starter, tmp_path: Path) -> None:
    server = await start()
    for work in (server.keys("nowhere", "Enter"), server.capture("nowhere"), server.paste("nowhere", "x", enter=True)):
        error = await refused(work)
        assert error.code is ErrorCode.HOST_FAILED
        assert error.message.startswith("tmux ")
        assert "nowhere" in error.message
    nobody = TmuxServer(tmp_path / "nobody.sock")
    assert not await nobody.server_alive()
    assert (await refused(nobody.panes())).code is ErrorCode.HOST_FAILED
    await nobody.kill()


async def test_no_tmux(start: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await start()
    with monkeypatch.context() as context:
        context.setenv("PATH", str(tmp_path))
        for work in (server.panes(), server.server_alive()):
            error = await refused(work)
            assert error.code is ErrorCode.MISSING_PROGRAM
            assert error.hint
        with pytest.raises(CcorchError, match="not installed"):
            server.attach_argv(read_only=False)


async def test_a_server_that_hangs(start: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tmux, "_CALL_SECONDS", 0.3)
    server = await start()
    pid = await server.server_pid()
    os.kill(pid, signal.SIGSTOP)
    assert (await refused(server.panes())).code is ErrorCode.TIMEOUT
    asking = asyncio.create_task(server.panes())
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await refused(server.kill())).code is ErrorCode.TIMEOUT
    os.kill(pid, signal.SIGCONT)
    monkeypatch.setattr(tmux, "_CALL_SECONDS", 5)
    assert [pane.window for pane in await server.panes()] == ["agent"], "and its clients are gone, so are the threads"
    # The loop's default threads are few; one that never came back would be missing here.
    await asyncio.gather(*(asyncio.to_thread(os.getpid) for _ in range(100)))


async def test_a_lost_socket(start: Starter, tmp_path: Path) -> None:
    server = await start()
    pid = await server.server_pid()
    shutil.rmtree(server.socket.parent)
    assert not await server.server_alive()
    sleeper = await asyncio.create_subprocess_exec("sleep", "600")
    assert not await server.recreate_socket(sleeper.pid), "SIGUSR1 would have ended it"
    assert sleeper.returncode is None
    sleeper.kill()
    await sleeper.wait()
    assert not await server.recreate_socket(sleeper.pid)
    assert not await server.recreate_socket(0)
    assert await server.recreate_socket(pid)
    assert await server.server_alive()
    assert await server.server_pid() == pid


async def test_a_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(CcorchError, match="too long"):
        TmuxServer.launch_argv(tmp_path / ("x" * 100), cwd=tmp_path, command=["true"], config=tmp_path / "c")


def test_pane_fields() -> None:
    assert tmux._signal_number("9") == tmux._signal_number("KILL") == tmux._signal_number("SIGKILL") == 9
    assert tmux._signal_number("") is tmux._signal_number("nonsense") is tmux._signal_number("0") is None
    assert Pane("agent", 1, False, None, None, "").window == tmux.AGENT
