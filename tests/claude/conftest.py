# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real Claude Code in a real tmux, launched and read by its profile, with a fake API and a made-up key."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shlex
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from ccorchd.agents.base import Paths
from ccorchd.agents.claude import API_KEY_SECRET, ClaudeAgent
from ccorchd.contract import Reason, State
from ccorchd.host.inotify import CLOSE_WRITE, CREATE, MOVED_TO, Inotify, Watch
from ccorchd.host.reports import ReportServer
from ccorchd.host.tmux import TmuxServer, server_environment, write_config
from ccorchd.model import Change, InstanceRecord, Limits, Report

sys.path.insert(0, str(Path(__file__).parent))
from fake_api import FakeApi
from fetch import binary

WAIT = 60.0
MADE_UP_KEY = "sk-ant-made-up-0123456789-0123456789"


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)


class Pane:
    """One instance of Claude Code, and a record that follows its reports as the daemon's would."""

    def __init__(self, program: Path, api: FakeApi, root: Path) -> None:
        self.api = api
        self.home = root / "home"
        repository, worktree, runtime = root / "repository", root / "worktree", root / "run"
        for folder in (self.home, repository, runtime, root / "tmp"):
            folder.mkdir()
        git(repository, "init", "-q", "-b", "main")
        (repository / "README.md").write_text("# Sample\n")
        git(repository, "add", ".")
        git(repository, "-c", "user.name=u", "-c", "user.email=u@example.org", "commit", "-q", "-m", "Begin")
        git(repository, "worktree", "add", "-q", str(worktree))
        self.paths = Paths(runtime, runtime / "events.sock", root / "spool", worktree)
        self.agent = ClaudeAgent(command=str(program))
        self.environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "SHELL": "/bin/sh",
            "CLAUDE_CODE_TMPDIR": str(root / "tmp"),
            "ANTHROPIC_BASE_URL": api.url,
            "ANTHROPIC_AUTH_TOKEN": "made-up",
        }
        self.record = InstanceRecord(
            id=7,
            project_id=1,
            project="shop",
            name="one",
            agent="claude",
            session_id=str(uuid.uuid4()),
            branch="ccorch/one",
            base="main",
            base_commit="",
            worktree=str(worktree),
            repository=str(repository),
            port=0,
            prompt="",
            limits=Limits(),
            environment={"HOME": str(self.home)},
            wanted=True,
            state=State.STARTING,
            reason=Reason.NONE,
            reason_text="",
            since=0.0,
            created=0.0,
            restarts=0,
        )
        self.reports: list[Report] = []
        self.changes: list[Change] = []
        self.tmux = TmuxServer(runtime / "tmux.sock")
        self.server = ReportServer(7, self.paths.socket, self.paths.spool, self._take)
        self._changed = asyncio.Condition()
        self.follows_status = False
        self._watches = Inotify()
        self._watch: Watch | None = None
        self._tasks: list[asyncio.Future[None]] = []

    async def _take(self, report: Report) -> dict[str, object]:
        if report.event == "ApiKey":
            return {"secret": MADE_UP_KEY} if report.payload == {"secret": API_KEY_SECRET} else {}
        async with self._changed:
            self.reports.append(report)
            self._apply(self.agent.interpret(self.record, report), report.time)
            self._changed.notify_all()
        return {}

    def _apply(self, change: Change, when: float) -> None:
        self.changes.append(change)
        values: dict[str, object] = {}
        if change.state is not None:
            if (change.state, change.reason) != (self.record.state, self.record.reason):
                values["since"] = when
            values.update(state=change.state, reason=change.reason, reason_text=change.reason_text)
        if change.doing is not None:
            values["doing"] = change.doing
        if change.session_id:
            values["session_id"] = change.session_id
        self.record = dataclasses.replace(self.record, **values)  # type: ignore[arg-type]

    async def start(self, prompt: str = "", *, resume: bool = False) -> None:
        self.record = dataclasses.replace(self.record, prompt=prompt, state=State.STARTING)
        launch = self.agent.prepare(self.record, self.paths, resume=resume, prompt=prompt)
        config = self.paths.runtime / "tmux.conf"
        write_config(config, str(self.record.address))
        script = self.paths.runtime / "launch.sh"  # tmux takes no long arguments
        script.write_text(f"exec {shlex.join(launch.argv)}\n")
        command = ["/bin/sh", str(script)]
        argv = TmuxServer.launch_argv(self.tmux.socket, cwd=self.paths.worktree, command=command, config=config)
        environment = server_environment({**self.environment, **launch.environment})
        started = await asyncio.create_subprocess_exec(*argv, env=environment)
        async with asyncio.timeout(WAIT):
            assert await started.wait() == 0
        self.record = dataclasses.replace(self.record, pid=(await self.tmux.pane()).pid)
        if self._watch is None:
            file = self.agent.status_file(self.record)
            assert file is not None
            file.parent.mkdir(parents=True, exist_ok=True)
            self._watch = self._watches.watch(file.parent, CLOSE_WRITE | MOVED_TO | CREATE, self._status_changed)

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait until a report (or a status) makes *predicate* true; show the screen if none does."""
        try:
            async with asyncio.timeout(WAIT), self._changed:
                await self._changed.wait_for(predicate)
        except TimeoutError:
            pytest.fail(f"{[report.event for report in self.reports]}\n{await self.tmux.capture('agent')}")

    async def until_event(self, event: str, count: int = 1) -> None:
        await self.until(lambda: [report.event for report in self.reports].count(event) >= count)

    async def until_state(self, state: State) -> None:
        await self.until(lambda: self.record.state is state)

    def _status(self) -> str:
        file = self.agent.status_file(self.record)
        assert file is not None
        return file.read_text()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _status_changed(self, _: object) -> None:
        if self.follows_status:
            change = self.agent.interpret_status(self.record, self._status())
            if change != Change():
                self._apply(change, time.time())
        self._tasks.append(asyncio.ensure_future(self._notify()))

    async def until_idle_for_prompts(self) -> None:
        """Wait until the session file says idle: Stop comes a moment before the input line takes text again."""
        await self.until(lambda: '"status":"idle"' in self._status())

    async def until_written(self, text: str) -> None:
        """Wait until *text* is in the transcript, which a resumed session reads; it comes up to 0.4 s after Stop."""
        transcript = Path(str(self.reports[0].payload["transcript_path"]))
        async with asyncio.timeout(WAIT):
            while not transcript.exists() or text not in transcript.read_text():
                await asyncio.sleep(0.02)

    async def send(self, text: str) -> None:
        """Paste a prompt and press Enter until it is confirmed; a busy Claude Code swallows an Enter now and then."""
        confirmed = sum(change.prompt_confirmed for change in self.changes)
        await self.until_idle_for_prompts()
        await self.tmux.paste("agent", self.agent.prompt_text(text), enter=True)
        for _ in range(5):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2), self._changed:
                    await self._changed.wait_for(
                        lambda: sum(change.prompt_confirmed for change in self.changes) > confirmed
                    )
                return
            await self.tmux.keys("agent", "Enter")
        pytest.fail(f"not confirmed: {text[:100]!r}\n{await self.tmux.capture('agent')}")

    async def command(self, text: str) -> None:
        """Type a command of Claude Code's own as a person does, and press Enter once it stands there."""
        await self.until_idle_for_prompts()
        await self.tmux.paste("agent", text, enter=False)
        async with asyncio.timeout(WAIT):
            while text not in await self.tmux.capture("agent"):
                await asyncio.sleep(0.05)
        await self.tmux.keys("agent", "Enter")

    async def kill_agent(self) -> None:
        os.kill(self.record.pid, 9)
        assert await self.tmux.exit_of(timeout=WAIT) == (None, 9)
        await self.tmux.kill()

    async def _end(self) -> None:
        """End tmux and wait for Claude Code, which still writes a little when its terminal is gone."""
        try:
            process = os.pidfd_open(self.record.pid) if self.record.pid else -1
        except ProcessLookupError:
            process = -1
        await self.tmux.kill()
        if process >= 0:
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(process, ended.set)
            try:
                async with asyncio.timeout(WAIT):
                    await ended.wait()
            finally:
                asyncio.get_running_loop().remove_reader(process)
                os.close(process)

    async def close(self) -> None:
        await self._end()
        await self.server.close()
        self._watches.close()
        await asyncio.gather(*self._tasks)

    @property
    def messages(self) -> list[str]:
        return [change.message for change in self.changes if change.message]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api


@pytest.fixture
async def pane(api: FakeApi) -> AsyncIterator[Pane]:
    program = binary()
    if program is None:
        pytest.skip("Claude Code is not there: run tests/claude/fetch.py")
    with tempfile.TemporaryDirectory(prefix="cl") as folder:
        pane = Pane(program, api, Path(folder).resolve())
        await pane.server.start()
        try:
            yield pane
        finally:
            await pane.close()
