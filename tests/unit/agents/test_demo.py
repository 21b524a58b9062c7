# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo agent, in a real terminal, on a real repository, reporting through the real helper to the real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ccorchd.agents import demo_agent
from ccorchd.agents.base import Paths
from ccorchd.agents.demo import PROGRAM, DemoAgent
from ccorchd.contract import Reason, State
from ccorchd.errors import CcorchError
from ccorchd.host.reports import ReportServer
from ccorchd.model import Change, InstanceRecord, Limits, Report

SESSION = "6a1f7a52-0000-4000-8000-000000000001"
WAIT = 60.0


def record(worktree: Path, **changes: object) -> InstanceRecord:
    fields: dict[str, object] = {
        "id": 7,
        "project_id": 1,
        "project": "shop",
        "name": "one",
        "agent": "demo",
        "session_id": SESSION,
        "branch": "ccorch/one",
        "base": "main",
        "base_commit": "",
        "worktree": str(worktree),
        "repository": str(worktree),
        "port": 0,
        "prompt": "",
        "limits": Limits(),
        "environment": {},
        "wanted": True,
        "state": State.STARTING,
        "reason": Reason.NONE,
        "reason_text": "",
        "since": 0.0,
        "created": 0.0,
        "restarts": 0,
        **changes,
    }
    return InstanceRecord(**fields)  # type: ignore[arg-type]


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small Python project with one commit, made by somebody whose name git does not know for later commits."""
    root = tmp_path / "repository"
    files = {
        "README.md": "# Shop\n",
        "shop/__init__.py": "",
        "shop/cart.py": "def total(prices):\n    return sum(prices)   \n",
        "shop/tax.py": '"""Taxes."""\n\n\ndef tax(price):\n    return price * 0.2\n',
        "tests/test_cart.py": "import unittest\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "-c", "user.name=u", "-c", "user.email=u@example.org", "commit", "-q", "-m", "Begin")
    return root


class Pane:
    """The demo agent in a pseudo-terminal, with everything it reports."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.repository = repository
        self.reports: list[Report] = []
        self.changes: list[Change] = []
        self.screen = b""
        self._seen = asyncio.Event()
        measuring = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        self.environment = {
            **measuring,
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "CCORCH_DEMO_PACE": "0",
        }
        self.paths = Paths(folder, folder / "events.sock", folder / "spool", repository)
        self.server = ReportServer(7, self.paths.socket, self.paths.spool, self._take)
        self.process: asyncio.subprocess.Process | None = None
        self._terminal = -1
        self._changed = asyncio.Condition()
        self._agent = DemoAgent()

    async def _take(self, report: Report) -> dict[str, object]:
        async with self._changed:
            self.reports.append(report)
            self.changes.append(self._agent.interpret(record(self.repository), report))
            self._changed.notify_all()
        return {}

    async def start(self, prompt: str = "", *, resume: bool = False) -> None:
        launch = self._agent.prepare(record(self.repository), self.paths, resume=resume, prompt=prompt)
        self._terminal, inside = pty.openpty()

        def own_terminal() -> None:
            os.setsid()
            import fcntl
            import termios

            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = await asyncio.create_subprocess_exec(
            *launch.argv,
            cwd=self.repository,
            env={**self.environment, **launch.environment},
            stdin=inside,
            stdout=inside,
            stderr=inside,
            preexec_fn=own_terminal,
        )
        os.close(inside)
        asyncio.get_running_loop().add_reader(self._terminal, self._read)

    def _read(self) -> None:
        try:
            self.screen += os.read(self._terminal, 65536)
        except OSError:
            asyncio.get_running_loop().remove_reader(self._terminal)
        self._seen.set()

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def paste(self, text: str) -> None:
        """As ``tmux paste-buffer -p`` does it, then Enter."""
        self.type("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~\r")

    def events(self) -> list[str]:
        return [report.event for report in self.reports]

    async def until(self, event: str, count: int = 1) -> Report:
        async with asyncio.timeout(WAIT), self._changed:
            await self._changed.wait_for(lambda: self.events().count(event) >= count)
        return [report for report in self.reports if report.event == event][count - 1]

    async def until_shown(self, text: str, count: int = 1) -> None:
        async with asyncio.timeout(WAIT):
            while self.screen.decode("utf-8", "replace").count(text) < count:
                self._seen.clear()
                await self._seen.wait()

    async def end(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(WAIT):
            status = await self.process.wait()
        asyncio.get_running_loop().remove_reader(self._terminal)
        os.close(self._terminal)
        self.process = None
        return status


@pytest.fixture
async def pane(repository: Path) -> AsyncIterator[Pane]:
    with tempfile.TemporaryDirectory(prefix="demo") as folder:  # a socket's path must be short
        pane = Pane(repository, Path(folder))
        await pane.server.start()
        try:
            yield pane
        finally:
            if pane.process is not None:
                # Politely first: a process that is killed leaves no coverage.
                if pane.process.returncode is None:
                    pane.process.terminate()
                try:
                    await asyncio.wait_for(pane.end(), 5)
                except TimeoutError:
                    pane.process.kill()
                    await pane.end()
            await pane.server.close()


async def test_prompt_leads_to_commits_and_reports(pane: Pane) -> None:
    await pane.start("Write a guide to the cart\nin two parts")
    stop = await pane.until("Stop")
    events = pane.events()
    assert events[:2] == ["SessionStart", "UserPromptSubmit"]
    assert events.count("PreToolUse") == events.count("PostToolUse") >= 5
    assert pane.reports[1].payload["prompt"] == "Write a guide to the cart\nin two parts"
    log = git(pane.repository, "log", "--format=%an <%ae> %s", "main")
    assert log.count("ccorch demo agent <demo@localhost> docs:") == 2
    assert "docs/" in str(stop.payload["last_assistant_message"])
    assert git(pane.repository, "status", "--porcelain") == ""
    pane.type("/exit\r")
    assert await pane.end() == 0
    assert pane.events()[-1] == "SessionEnd"


async def test_reports_read_well(pane: Pane) -> None:
    await pane.start("Count the lines of each file")
    await pane.until("Stop")
    assert pane.changes[0].state is State.WORKING
    assert pane.changes[1].prompt_confirmed
    messages = [change.message for change in pane.changes]
    assert messages[1] == "prompt: Count the lines of each file"
    assert any(message.startswith("tool Bash: git commit -m ") and message.endswith("s, ok)") for message in messages)
    assert messages[-1].startswith("answer: Counted ")
    assert pane.changes[-1].state is State.IDLE


async def test_users_own_name_is_used(pane: Pane) -> None:
    git(pane.repository, "config", "user.name", "Somebody")
    git(pane.repository, "config", "user.email", "somebody@example.org")
    await pane.start("tidy white space")
    await pane.until("Stop")
    assert git(pane.repository, "log", "-1", "--format=%an %s") == "Somebody tidy: Remove white space at line ends\n"
    assert (pane.repository / "shop/cart.py").read_text() == "def total(prices):\n    return sum(prices)\n"


async def test_module_has_a_test_that_passes(pane: Pane) -> None:
    await pane.start("Implement a parser for durations")
    await pane.until("Stop")
    tests = list((pane.repository / "tests").glob("test_*duration*.py"))
    assert len(tests) == 1
    name = str(tests[0].relative_to(pane.repository))
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "unittest", "-q", name, cwd=pane.repository, env=environment
    )
    assert await asyncio.wait_for(done.wait(), WAIT) == 0
    assert git(pane.repository, "status", "--porcelain") == ""


async def test_different_prompts_lead_to_different_work(pane: Pane) -> None:
    prompts = ["Add a changelog entry", "Add docstrings", "Explain the taxes", "Support currencies", "Count the lines"]
    await pane.start(prompts[0])
    for number, prompt in enumerate(prompts[1:], 1):
        await pane.until("Stop", number)
        pane.paste(prompt)
    await pane.until("Stop", len(prompts))
    assert git(pane.repository, "status", "--porcelain") == ""
    subjects = git(pane.repository, "log", "--format=%s", "main").splitlines()
    assert len(set(subjects)) == len(subjects) >= len(prompts) + 1


async def test_pasted_prompt_is_exact(pane: Pane) -> None:
    await pane.start()
    await pane.until("SessionStart")
    assert pane.changes[0].state is State.IDLE
    prompt = "#sleep 0.01\n  two: äöü – ☂;\n\tthree"
    pane.paste(prompt)
    report = await pane.until("UserPromptSubmit")
    assert report.payload["prompt"] == prompt


async def test_prompts_queue_while_it_works(pane: Pane) -> None:
    await pane.start("#sleep 0.5")
    await pane.until("PreToolUse")
    pane.paste("#sleep 0.01")
    pane.paste("#sleep 0.02")
    await pane.until("Stop", 3)
    said = [report.payload["prompt"] for report in pane.reports if report.event == "UserPromptSubmit"]
    assert said == ["#sleep 0.5", "#sleep 0.01", "#sleep 0.02"]


@pytest.mark.parametrize(("key", "granted"), [("y", True), ("n", False)])
async def test_permission(pane: Pane, key: str, granted: bool) -> None:
    before = git(pane.repository, "rev-parse", "HEAD")
    await pane.start("#permission Explain the taxes")
    await pane.until("PermissionRequest")
    waiting = pane.changes[-1]
    assert (waiting.state, waiting.reason) == (State.WAITING, Reason.PERMISSION)
    assert waiting.message == "waiting for permission: Bash git commit, for: Explain the taxes"
    pane.type(key)
    result = await pane.until("PermissionResult")
    assert result.payload["granted"] is granted
    await pane.until("Stop")
    assert (git(pane.repository, "rev-parse", "HEAD") != before) is granted


async def test_question(pane: Pane) -> None:
    await pane.start("#question")
    await pane.until("Question")
    assert (pane.changes[-1].state, pane.changes[-1].reason) == (State.WAITING, Reason.ANSWER)
    pane.type("in blue\r")
    answer = await pane.until("Answer")
    assert answer.payload["answer"] == "in blue"
    stop = await pane.until("Stop")
    assert stop.payload["last_assistant_message"] == "You said: in blue."


async def test_interrupt_ends_the_turn_only(pane: Pane) -> None:
    await pane.start("#sleep 3600")
    await pane.until("PreToolUse")
    pane.type("\x03")
    await pane.until("Interrupted")
    assert pane.changes[-1].state is State.IDLE
    pane.paste("Explain the taxes")
    await pane.until("Stop")
    assert "SessionEnd" not in pane.events()


async def test_interrupt_at_the_prompt_forgets_the_line(pane: Pane) -> None:
    await pane.start()
    await pane.until_shown("demo shop/one: idle")
    pane.type("half a line")
    await pane.until_shown("half a line")
    pane.type("\x03")
    await pane.until_shown("demo shop/one: idle", 2)
    pane.paste("#sleep 0.01")
    assert (await pane.until("UserPromptSubmit")).payload["prompt"] == "#sleep 0.01"
    await pane.until("Stop")
    assert "Interrupted" not in pane.events()


async def test_terminate_ends_it_cleanly(pane: Pane) -> None:
    await pane.start("#sleep 3600")
    await pane.until("PreToolUse")
    assert pane.process is not None
    pane.process.terminate()
    assert await pane.end() == 0
    assert pane.reports[-1].event == "SessionEnd"
    assert pane.reports[-1].payload["reason"] == "SIGTERM"


async def test_exit_status(pane: Pane) -> None:
    await pane.start("#exit 3")
    assert await pane.end() == 3
    assert pane.events()[-1] == "SessionEnd"


async def test_crash(pane: Pane) -> None:
    await pane.start("#crash")
    assert await pane.end() == -signal.SIGSEGV
    assert "SessionEnd" not in pane.events()


async def test_resume_after_kill_remembers_and_continues(pane: Pane) -> None:
    await pane.start("Explain the taxes")
    await pane.until("Stop")
    pane.environment["CCORCH_DEMO_PACE"] = "3600"
    pane.paste("Describe the cart")
    await pane.until("UserPromptSubmit", 2)
    assert pane.process is not None
    pane.process.kill()
    assert await pane.end() == -signal.SIGKILL
    pane.environment["CCORCH_DEMO_PACE"] = "0"
    await pane.start(resume=True)
    again = await pane.until("SessionStart", 2)
    assert again.payload["source"] == "resume"
    assert again.payload["prompts"] == 1
    assert "resumed" in pane.changes[-1].message
    pane.paste("continue")
    await pane.until("Stop", 2)
    page = next(path for path in (pane.repository / "docs").iterdir() if "cart" in path.name)
    assert "Explain the taxes" in page.read_text()
    assert not list((pane.repository / "docs").glob("*-2.md"))


async def test_work_that_is_there_already_is_not_committed_twice(pane: Pane) -> None:
    await pane.start("Implement a parser for durations")
    await pane.until("Stop")
    pane.type("/exit\r")
    await pane.end()
    # As if it had been killed after its last commit, before it could note the end.
    file = pane.repository / ".git/ccorch-demo-session.json"
    session = json.loads(file.read_text())
    made = [*pane.repository.glob("shop/*duration*.py"), *pane.repository.glob("tests/*duration*.py")]
    unfinished = {"prompts": [], "unfinished": "Implement a parser for durations"}
    names = [str(path.relative_to(pane.repository)) for path in made]
    file.write_text(json.dumps({**session, **unfinished, "made": names}))
    before = git(pane.repository, "rev-parse", "HEAD")
    await pane.start("go on", resume=True)
    stop = await pane.until("Stop", 2)
    assert str(stop.payload["last_assistant_message"]).endswith(" 0 commits.")
    assert git(pane.repository, "rev-parse", "HEAD") == before
    assert git(pane.repository, "status", "--porcelain") == ""


async def test_resume_with_nothing_left_to_do(pane: Pane) -> None:
    await pane.start("#sleep 0.01")
    await pane.until("Stop")
    pane.type("/exit\r")
    await pane.end()
    pane.screen = b""
    await pane.start(resume=True)
    await pane.until("SessionStart", 2)
    await pane.until_shown("I remember 1 earlier prompts:")
    await pane.until_shown("  - #sleep 0.01")
    await pane.until_shown("demo shop/one: idle")
    assert b"Not finished" not in pane.screen


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        ("echo no such luck; exit 1", "git commit ended with status 1: no such luck"),
        ('for page in docs/*; do ln -sf ../README.md "$page"; done', "has become a link"),
    ],
    ids=["refused", "link"],
)
async def test_git_in_the_way_ends_the_turn_only(pane: Pane, hook: str, error: str) -> None:
    script = pane.repository / ".git/hooks/pre-commit"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!/bin/sh\n{hook}\n")
    script.chmod(0o755)
    await pane.start("Explain the taxes")
    assert error in str((await pane.until("Error")).payload["message"])
    stop = await pane.until("Stop")
    assert str(stop.payload["last_assistant_message"]).startswith("I could not finish: ")
    assert (pane.repository / "README.md").read_text() == "# Shop\n"
    pane.paste("#sleep 0.01")
    await pane.until("Stop", 2)


async def test_index_that_is_locked_is_an_error(pane: Pane) -> None:
    (pane.repository / ".git/index.lock").touch()
    await pane.start("Explain the taxes")
    error = await pane.until("Error")
    assert str(error.payload["message"]).startswith("git add ended with status 128: ")
    await pane.until("Stop")


async def test_check_that_fails_ends_the_turn_before_the_commit(pane: Pane) -> None:
    (pane.repository / "unittest.py").write_text("raise SystemExit('all is broken')\n")
    await pane.start("Implement a parser for durations")
    error = await pane.until("Error")
    assert str(error.payload["message"]).endswith("ended with status 1: all is broken")
    await pane.until("Stop")
    assert "?? tests/" in git(pane.repository, "status", "--porcelain")
    outcomes = [report.payload["outcome"] for report in pane.reports if report.event == "PostToolUse"]
    assert outcomes[-1] == "failed: exit code 1"


async def test_nothing_to_stash(pane: Pane) -> None:
    git(pane.repository, "rm", "-rq", ".")
    pane.repository.mkdir(exist_ok=True)
    await pane.start("#stash")
    assert (await pane.until("Error")).payload["message"] == "there is no file to edit"
    await pane.until("Stop")


def test_a_repository_is_needed(tmp_path: Path) -> None:
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    done = subprocess.run(
        [sys.executable, "-I", str(PROGRAM), "--session-id", "x"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("demo agent: fatal: not a git repository")
    assert done.stdout == ""


@pytest.mark.parametrize("resume", [True, False])
async def test_wrong_kind_of_start_is_told(pane: Pane, resume: bool) -> None:
    if not resume:
        await pane.start("/exit")
        await pane.end()
    await pane.start(resume=resume)
    assert await pane.end() == 1
    assert DemoAgent().session_lost(pane.screen.decode())


async def test_orphan_lives_on(pane: Pane) -> None:
    await pane.start("#orphan")
    stop = await pane.until("Stop")
    orphan = int(str(stop.payload["last_assistant_message"]).split()[2])
    try:
        stat = Path(f"/proc/{orphan}/stat").read_text()
        name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
        assert name == "demo-orphan"
        assert pane.process is not None
        assert int(fields[1]) != pane.process.pid
        assert int(fields[3]) != os.getsid(pane.process.pid)
    finally:
        os.kill(orphan, signal.SIGKILL)


async def test_port_is_really_listened_on(pane: Pane) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pane.environment["PORT"] = str(port)
    await pane.start("#port")
    await pane.until("Stop")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), WAIT)
    writer.close()
    await writer.wait_closed()
    assert answer.endswith(b"demo agent shop/one\n")


async def test_port_asked_for_twice_is_the_same(pane: Pane) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pane.environment["PORT"] = str(port)
    await pane.start("#port #port")
    stop = await pane.until("Stop")
    assert stop.payload["last_assistant_message"] == f"Listening on port {port}. Listening on port {port}."


async def test_port_that_nobody_gave_is_an_error(pane: Pane) -> None:
    pane.environment["CCORCH_PORT"] = "none"
    await pane.start("#port")
    assert (await pane.until("Error")).payload["message"] == "PORT is not set"
    await pane.until("Stop")


async def test_taken_port_is_an_error(pane: Pane) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        pane.environment["PORT"] = str(taken.getsockname()[1])
        await pane.start("#port")
        error = await pane.until("Error")
        await pane.until("Stop")
    assert "cannot be had" in str(error.payload["message"])


async def test_balloon_of_a_given_size(pane: Pane) -> None:
    await pane.start("#balloon 20M")
    stop = await pane.until("Stop")
    assert "20 MiB" in str(stop.payload["last_assistant_message"])


async def test_death_of_the_balloon_is_told(pane: Pane) -> None:
    await pane.start("#balloon 100M")
    await pane.until("PreToolUse")
    child = await asyncio.to_thread(_find_child, pane)
    os.kill(child, signal.SIGKILL)
    error = await pane.until("Error")
    assert error.payload["message"] == "my child demo-balloon was killed by SIGKILL on its way to 100 MiB"
    await pane.until("Stop")


def _find_child(pane: Pane) -> int:
    assert pane.process is not None
    for _ in range(100_000):
        with contextlib.suppress(OSError):
            for pid in Path(f"/proc/{pane.process.pid}/task/{pane.process.pid}/children").read_text().split():
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"balloon" in command:
                    os.kill(int(pid), signal.SIGSTOP)
                    return int(pid)
    raise AssertionError("no balloon was seen")


async def test_stash_and_gc_of_two_worktrees_do_not_meet(pane: Pane, tmp_path: Path) -> None:
    other = tmp_path / "other"
    git(pane.repository, "worktree", "add", "-q", str(other))
    program = [sys.executable, "-I", str(PROGRAM), "--session-id", "other", "--", "#stash #gc #stash"]
    second = await asyncio.create_subprocess_exec(
        *program, cwd=other, env=pane.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    await pane.start("#stash #gc #stash")
    stop = await pane.until("Stop")
    out, _ = await asyncio.wait_for(second.communicate(), WAIT)
    assert str(stop.payload["last_assistant_message"]).count("took it back") == 2
    assert out.decode().count("took it back") == 2
    assert git(pane.repository, "status", "--porcelain") == git(other, "status", "--porcelain") == ""


@pytest.mark.parametrize("pace", ["fast", "-1"])
def test_pace_is_checked(pace: str) -> None:
    with pytest.raises(CcorchError, match="pace"):
        DemoAgent().check({"PATH": os.environ["PATH"]}, {"pace": pace})


@pytest.mark.parametrize(("text", "pace"), [("2.5", 2.5), ("-3", 0.0), ("1e9", 3600.0), ("fast", 0.5), (None, 0.5)])
def test_pace_is_never_in_the_way(monkeypatch: pytest.MonkeyPatch, text: str | None, pace: float) -> None:
    if text is not None:
        monkeypatch.setenv("CCORCH_DEMO_PACE", text)
    assert demo_agent._pace() == pace


def test_pace_of_an_instance_reaches_the_program(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path / "events.sock", tmp_path / "spool", tmp_path)
    instance = record(tmp_path, options={"pace": "0.25"})
    assert DemoAgent().prepare(instance, paths, resume=False, prompt="").environment["CCORCH_DEMO_PACE"] == "0.25"
    assert "CCORCH_DEMO_PACE" not in DemoAgent().prepare(record(tmp_path), paths, resume=True, prompt="").environment


@pytest.mark.parametrize(
    ("text", "size"), [("300M", 300 << 20), ("1.5g", 3 << 29), ("64k", 64 << 10), ("5000", 5000), ("0", 4096)]
)
def test_sizes(text: str, size: int) -> None:
    assert demo_agent._size(text) == size


def test_words_of_commands() -> None:
    assert demo_agent._last_line("one\n two \n\n") == "two"
    assert demo_agent._last_line(" \n") == "no output"
    assert demo_agent._first_line("\n one\ntwo") == "one"
    assert demo_agent._signal(15) == "SIGTERM"
    assert demo_agent._signal(77) == "signal 77"


def test_report_without_a_duration() -> None:
    payload: dict[str, object] = {"tool_name": "Bash", "detail": "make", "outcome": "failed: exit code 2"}
    change = DemoAgent().interpret(record(Path("/")), Report(uuid.uuid4().hex, 7, "PostToolUse", payload, 0.0))
    assert change.message == "tool Bash: make (failed: exit code 2)"
    assert change.priority == 5
    assert "seconds" not in change.data


def test_git_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CcorchError, match="'git' is not installed"):
        DemoAgent().check({"PATH": str(tmp_path)}, {})


def test_unknown_report_changes_nothing(tmp_path: Path) -> None:
    report = Report(uuid.uuid4().hex, 7, "Later", {}, 0.0)
    assert DemoAgent().interpret(record(tmp_path), report) == Change()


@pytest.fixture(autouse=True)
def no_stray_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CCORCH_DEMO_PACE", raising=False)
