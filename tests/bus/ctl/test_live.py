# SPDX-License-Identifier: LGPL-2.1-or-later
"""What needs time or a terminal: signals, questions, attaching; and a bus or a daemon that is not there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ccorchctl.client import Client
from ccorchctl.failures import Failure

ROOT = Path(__file__).resolve().parents[3]
Ctl = Callable[..., Any]
Open = Callable[..., Any]

needs_server = pytest.mark.usefixtures("server")


class Background:
    """ccorchctl in a process of its own, its output read line by line."""

    def __init__(self, *words: str, cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ccorchctl", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self, timeout: float = 20) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Callable[..., Background]]:
    started: list[Background] = []

    def start(*words: str) -> Background:
        started.append(Background(*words, cwd=tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.close()


# ---------------------------------------------------------------- signals


def test_wait_follows_signals(background: Callable[..., Background], server: Any) -> None:
    waiting = background("wait", "shop/api", "shop/web")
    assert waiting.line().startswith("shop/api is waiting")  # it subscribed before it looked
    server.becomes("shop/web", "idle", doing="")
    assert waiting.end() == (0, "shop/web is idle\n", "")


def test_wait_notices_an_unwanted_end(background: Callable[..., Background], server: Any) -> None:
    waiting = background("wait", "shop/api", "shop/web", "--until", "idle,waiting")
    waiting.line()
    server.becomes("shop/web", "failed", reason="out-of-memory", reason_text="node (PID 7) was killed")
    assert waiting.end() == (1, "shop/web failed: out of memory (node (PID 7) was killed)\n", "")


def test_wait_notices_a_removal(background: Callable[..., Background], server: Any) -> None:
    waiting = background("wait", "shop/api", "shop/web")
    waiting.line()
    server.remove("shop/web")
    status, _, err = waiting.end()
    assert (status, err) == (4, "ccorchctl: shop/web was removed meanwhile\n")


def test_events_follow_without_gap_or_double(background: Callable[..., Background], server: Any, world: Any) -> None:
    world.event("before", instance="shop/api")
    following = background("events", "-f", "--instance", "shop/api", "-o", "jsonl")
    assert json.loads(following.line())["message"] == "before"
    for number in range(200):
        server.happens(f"other {number}", instance="shop/web")
        server.happens(f"line {number}", instance="shop/api")
    assert [json.loads(following.line())["message"] for _ in range(200)] == [f"line {n}" for n in range(200)]
    following.process.send_signal(signal.SIGINT)
    assert following.end() == (130, "", "")


def test_logs_follow_across_a_restart_of_the_daemon(
    background: Callable[..., Background], dbus_session: str, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccorch_test_service import Server  # type: ignore[import-not-found]

    world.event("first", instance="shop/api")
    with Server(dbus_session, world):
        following = background("logs", "-f", "shop/api")
        following.line()
        assert following.line().endswith("first")
    world.event("while away", instance="shop/api")
    with Server(dbus_session, world) as again:
        assert following.line().endswith("while away")
        again.happens("and after", instance="shop/api")
        assert following.line().endswith("and after")
        following.close()


def test_a_reader_that_has_had_enough(server: Any, world: Any, tmp_path: Path) -> None:
    for number in range(3000):
        world.event(f"a rather long line of an event {number}", instance="shop/api")
    done = subprocess.run(
        f"{sys.executable} -m ccorchctl events -n all | head -1",
        shell=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith("-- ")
    assert done.stderr == ""


# ---------------------------------------------------------------- a terminal


@needs_server
def test_remove_asks(terminal: Open, world: Any) -> None:
    screen = terminal("remove", "shop/api")
    screen.until(r"Remove shop/api and its worktree\? \[y/N\]")
    screen.type("maybe\n")
    screen.until("answer y or n")
    screen.type("n\n")
    assert screen.end() == 6
    assert "nothing was done" in screen.text
    assert not world.called("Remove")
    screen = terminal("remove", "shop/api")
    screen.until(r"\[y/N\]")
    screen.type("y\n")
    assert screen.end() == 0
    assert world.called("Remove") == [("shop/api", False)]


@needs_server
def test_a_question_can_be_interrupted(terminal: Open, world: Any) -> None:
    screen = terminal("shutdown")
    screen.until(r"Stop 2 running instances and the daemon\? \[y/N\]")
    screen.type("\x03")
    assert screen.end() == 130
    assert "Traceback" not in screen.text
    assert not world.called("Shutdown")


@needs_server
def test_a_secret_is_not_shown(terminal: Open, world: Any) -> None:
    screen = terminal("secret", "set", "token")
    screen.until("Value of token:")
    screen.type("s3cret\n")
    assert screen.end() == 0
    assert "s3cret" not in screen.text
    assert world.secrets == {"token": "s3cret"}


@needs_server
def test_attach_hands_over_the_terminal(terminal: Open, world: Any) -> None:
    world.argv = ["sh", "-c", 'tty >/dev/null && echo "here $CCORCH_TEST ${TMUX-none}"; exit 9']
    screen = terminal("attach", "shop/api", "--read-only", "--window", "shell", TMUX="/tmp/other,1,0")
    assert screen.end() == 9
    assert screen.text == "here 1 none\n"
    assert world.called("Attach") == [("shop/api", True, "shell")]


@needs_server
def test_attach_without_the_program(terminal: Open, world: Any) -> None:
    world.argv = ["/nonexistent/tmux", "attach"]
    screen = terminal("attach", "shop/api")
    assert screen.end() == 1
    assert "ccorchctl: /nonexistent/tmux cannot be run: No such file or directory\nHint: Is tmux" in screen.text


@needs_server
@pytest.mark.parametrize(
    ("answers", "called"), [("\n", None), ("m\n", "Merge"), ("discard\ny\n", "Remove"), ("what\nd\nn\n", None)]
)
def test_try_asks_afterwards(
    terminal: Open, world: Any, project_folder: Path, answers: str, called: str | None
) -> None:
    world.argv = ["sh", "-c", "echo at work"]
    screen = terminal("try", "add a test", cwd=project_folder)
    screen.until("at work")
    screen.until("What shall become of it")
    for line in answers.splitlines(keepends=True):
        screen.type(line)
    assert screen.end() == 0, screen.text
    assert "012345678  Add the parser" in screen.text
    assert bool(world.called("Merge")) == (called == "Merge")
    assert bool(world.called("Remove")) == (called in ("Merge", "Remove"))


@needs_server
def test_create_asks_for_agreement(terminal: Open, world: Any, project_folder: Path) -> None:
    world.projects[1] |= {"setup": ["make deps"], "setup_hash": "h1", "setup_agreed": False}
    screen = terminal("create", "new", cwd=project_folder)
    screen.until(r"1\. make deps")
    screen.until(r"Run these commands in each new worktree\? \[y/N\]")
    screen.type("y\n")
    assert screen.end() == 0
    assert "shop/new started" in screen.text


@needs_server
@pytest.mark.parametrize("columns", [80, 100, 160])
def test_screens_fit_the_terminal(terminal: Open, server: Any, world: Any, columns: int) -> None:
    for number in range(100):
        record = world.instance(
            "shop", f"instance-with-quite-a-long-name-{number}", ("idle", "waiting", "failed")[number % 3]
        )
        record |= {"reason_text": "読む " * 30, "doing": "Edit " + "長い名前/" * 20}
        server.run(lambda record=record: server.export_instance(record))
    for words in ((), ("list",), ("worktrees",), ("tree",)):
        screen = terminal(*words, columns=columns)
        assert screen.end() == 0
        lines = screen.text.splitlines()
        widest = max(_columns(line) for line in lines)
        assert widest <= columns, (words, max(lines, key=_columns))
    assert "\x1b[" in screen.raw or words == ("tree",)


def _columns(text: str) -> int:
    import unicodedata

    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


@needs_server
def test_colours_and_no_colours(terminal: Open) -> None:
    coloured = terminal("list")
    assert coloured.end() == 0
    assert "\x1b[33m" in coloured.raw
    for option, variables in (("--no-color", {}), ("--full", {"NO_COLOR": "1"}), ("--full", {"TERM": "dumb"})):
        plain = terminal("list", option, **variables)
        assert plain.end() == 0
        assert "\x1b" not in plain.raw


# ---------------------------------------------------------------- no daemon, no bus


@pytest.mark.usefixtures("dbus_session")
def test_no_daemon(ctl: Ctl) -> None:
    for words in (("list",), ("list", "--no-autostart"), ()):
        result = ctl(*words)
        assert result.status == 3
        assert result.err.startswith("ccorchctl: the daemon is not running")
        assert "systemctl --user status ccorchd.service" in result.err
        assert len(result.err.splitlines()) == 2
    assert ctl("version").out == "ccorchctl 0.1.0\nccorchd (not running)\n"
    assert ctl("shutdown", "--yes").out == "The daemon is not running.\n"
    result = ctl("doctor")
    assert result.status == 1
    assert "FAIL  daemon  the daemon is not running" in result.out


@pytest.mark.usefixtures("dbus_session")
def test_the_suffix_names_another_daemon(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCORCH_SUFFIX", "run")
    result = ctl("list")
    assert "org.ccorch1_run" in result.err
    assert "ccorchd_run.service" in result.err
    monkeypatch.setenv("CCORCH_SUFFIX", "No Good")
    assert ctl("list").status == 2


@pytest.mark.parametrize(
    "address", ["unix:path=/nonexistent/bus", "nonsense", "unix:path=/dev/null", "tcp:host=127.0.0.1,port=1", "unix:x"]
)
def test_no_bus(ctl: Ctl, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    result = ctl("list")
    assert result.status == 1
    assert result.err.startswith("ccorchctl: no session bus: ")
    assert "XDG_RUNTIME_DIR" in result.err
    assert len(result.err.splitlines()) == 2


def test_no_bus_at_all(ctl: Ctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    result = ctl("list")
    assert result.status == 1
    assert f"there is no socket {tmp_path}/bus" in result.err
    assert "FAIL  bus" in ctl("doctor").out


def test_a_bus_that_hangs_up(ctl: Ctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "bus"))
        listener.listen()

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
        result = ctl("list")
        thread.join(10)
    assert result.status == 1
    assert "no session bus" in result.err


def test_a_daemon_that_cannot_be_started(ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = tmp_path / "services"
    services.mkdir()
    (services / "org.ccorch1.service").write_text("[D-BUS Service]\nName=org.ccorch1\nExec=/bin/false\n")
    configuration = tmp_path / "bus.conf"
    configuration.write_text(
        '<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"\n'
        ' "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">\n'
        f"<busconfig><type>session</type><listen>unix:path={tmp_path}/sock</listen><servicedir>{services}</servicedir>"
        '<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/>'
        '<allow own="*"/></policy></busconfig>'
    )
    daemon = subprocess.Popen(
        ["dbus-daemon", f"--config-file={configuration}", "--nofork", "--nopidfile", "--print-address"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path}/sock")
        result = ctl("list")
        assert result.status == 3, result.err
        assert result.err.startswith("ccorchctl: the daemon could not be started: ")
        assert "journalctl --user -u ccorchd.service" in result.err
        assert ctl("list", "--no-autostart").status == 3
    finally:
        daemon.terminate()
        daemon.wait(10)
        assert daemon.stdout is not None
        daemon.stdout.close()


# ---------------------------------------------------------------- the client, as the dashboard uses it


@needs_server
async def test_client_survives_a_burst_of_signals(dbus_session: str, world: Any, server: Any) -> None:
    client = await Client.connect(address=dbus_session, no_autostart=True)
    async with client, client.follow_events() as signals:
        for number in range(300):
            await asyncio.to_thread(server.happens, f"{number} {'x' * 4096}", instance="shop/api")
        async with asyncio.timeout(20):
            rows = [(await signals.get())[2][0] for _ in range(300)]
    assert [row["id"] for row in rows] == list(range(1, 301))


@needs_server
async def test_many_calls_at_once(dbus_session: str) -> None:
    async with await Client.connect(address=dbus_session) as client:
        prompts = ["p" * 100_000] * 50
        path = await client.instance("shop/api")
        assert all(await asyncio.gather(*(client.send(path, text) for text in prompts)))


async def test_a_bus_that_goes_away(server: Any, dbus_session: str) -> None:
    client = await Client.connect(address=dbus_session)
    async with client.follow_events() as signals:
        client._bus.disconnect()
        with pytest.raises(Failure, match="closed the connection"):
            await asyncio.wait_for(signals.get(), 5)
        with pytest.raises(Failure, match="closed the connection"):
            await client.status()
    await client.close()
    await client.close()


@needs_server
async def test_nothing_is_left_open(dbus_session: str) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(3):
        async with await Client.connect(address=dbus_session) as client:
            await client.status()
    assert descriptors() == before


@needs_server
async def test_removed_objects_and_other_versions_are_told_apart_from_bugs(dbus_session: str) -> None:
    async with await Client.connect(address=dbus_session) as client:
        with pytest.raises(Failure, match="does not understand to Describe") as caught:
            await client.describe("/org/ccorch1/instance/i99")
    assert re.search("ccorchctl version", caught.value.hint)
