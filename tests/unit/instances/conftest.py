# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's core on a host without systemd: real database, git, tmux and agents; the user manager is a stand-in."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ccorchd import agents, config
from ccorchd.background import Background
from ccorchd.contract import Naming
from ccorchd.creation import Wish
from ccorchd.errors import CcorchError
from ccorchd.events import Broadcast
from ccorchd.history import History
from ccorchd.host.inotify import Inotify
from ccorchd.host.journal import Journal
from ccorchd.host.systemd import ScopeStatus
from ccorchd.host.usage import UsageReader
from ccorchd.instances import Instances
from ccorchd.instances.changes import Changes
from ccorchd.instances.launch import process_alive
from ccorchd.instances.sampler import Sampler
from ccorchd.model import Event, InstanceRecord
from ccorchd.orchestrator import Orchestrator
from ccorchd.storage import Storage
from ccorchd.worktrees import Worktrees

WAIT = 20.0


class Manager:
    """What stands in for ``host.systemd.Systemd``: scopes that hold nothing, and that end with their tmux server."""

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime
        self.units: dict[str, ScopeStatus] = {}
        self.state: str | CcorchError = "running"
        self.epoch = 1
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.on_start: Callable[[str], Any] | None = None
        """Awaited when a scope is about to start; may raise."""
        self.on_stop: Callable[[str], Any] | None = None
        self.socket_of: Callable[[str], Path | None] = lambda _unit: None
        self._gone: list[Callable[[str, str], None]] = []

    async def start_scope(self, unit: str, pid: int, **_: object) -> None:
        if self.on_start is not None:
            await self.on_start(unit)
        self.units[unit] = ScopeStatus("active", "running", "success", "")
        self.started.append(unit)

    async def stop_scope(self, unit: str, *, timeout: float) -> None:
        if self.on_stop is not None:
            await self.on_stop(unit)
        socket = self.socket_of(unit)
        if socket is not None and socket.exists():
            await asyncio.to_thread(kill_server, socket)
        self.stopped.append(unit)
        self.units.pop(unit, None)

    async def reset_failed(self, unit: str) -> None:
        return None

    async def scopes(self) -> dict[str, ScopeStatus]:
        return dict(self.units)

    async def scope_status(self, unit: str) -> ScopeStatus | None:
        return self.units.get(unit)

    def on_scope_gone(self, callback: Callable[[str, str], None]) -> None:
        self._gone.append(callback)

    async def manager_state(self) -> str:
        if isinstance(self.state, CcorchError):
            raise self.state
        return self.state

    async def started_at(self) -> int:
        return self.epoch

    async def environment(self) -> dict[str, str]:
        return {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def kill_server(socket: Path) -> None:
    """End a tmux server and everything in its panes."""
    listed = subprocess.run(
        ["tmux", "-S", str(socket), "list-panes", "-s", "-F", "#{pane_pid}"],
        capture_output=True,
        text=True,
        check=False,
    )
    subprocess.run(["tmux", "-S", str(socket), "kill-server"], capture_output=True, check=False)
    for pid in listed.stdout.split():
        subprocess.run(["/bin/kill", "-9", pid], capture_output=True, check=False)


class Core:
    """Everything below the bus, wired as the daemon wires it. :meth:`begin` may be called again, as after a crash."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        base = tmp_path / "ccorch"
        for variable, name in (
            ("XDG_STATE_HOME", "state"),
            ("XDG_DATA_HOME", "data"),
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_RUNTIME_DIR", "run"),
        ):
            (base / name).mkdir(parents=True)
            monkeypatch.setenv(variable, str(base / name))
        for module in ("launch", "service", "runs"):
            monkeypatch.setattr(f"ccorchd.instances.{module}.in_scope", lambda pid, _unit: process_alive(pid))
        self.naming = Naming()
        self.config = config.load(self.naming.config_dir, {})
        self.manager = Manager(self.naming.runtime_dir)
        self.repository = tmp_path / "sample"
        self.heard: list[Event] = []
        self._stack: list[Any] = []

    async def begin(self) -> None:
        """Open the database and make the parts; nothing is loaded yet."""
        self.storage = await Storage.open(self.naming.state_dir / "ccorch.db")
        self.background = Background()
        await self.background.__aenter__()
        self.events: Broadcast[Event] = Broadcast("events")
        self.events.subscribe(self.heard.append)
        history = History(self.storage, Journal(path="/nonexistent"), self.events)
        self.changes = Changes(self.storage, history, Broadcast[InstanceRecord]("changes"))
        self.inotify = Inotify()

        async def resume(instance_id: int) -> None:
            await self.orchestrator.resume(instance_id)

        async def none() -> list[str]:
            return []

        manager: Any = self.manager
        secrets: Any = SimpleNamespace(names=none)
        self.instances = Instances(
            self.naming, self.config, self.changes, manager, agents.registry(self.config), Sampler(UsageReader()),
            secrets, self.inotify, self.background, resume,
        )  # fmt: skip
        self.manager.socket_of = self.socket
        self.orchestrator = Orchestrator(
            self.naming, self.config, self.storage, history, self.changes, self.instances,
            Worktrees(self.naming.data_dir), manager, Broadcast("removals"), Broadcast("projects"),
        )  # fmt: skip
        await self.orchestrator.load()

    async def crash(self) -> None:
        """End as SIGKILL would: instances go on, nothing is written."""
        self.background.cancel()
        await self.background.__aexit__(None, None, None)
        await self.instances.close()
        self.inotify.close()
        await self.storage.close()

    async def close(self) -> None:
        for record in self.instances.records.values():
            await self.manager.stop_scope(self.instances.unit(record), timeout=1)
        await self.crash()

    def socket(self, unit: str) -> Path | None:
        for record in self.instances.records.values():
            if self.instances.unit(record) == unit:
                return self.naming.runtime_dir / "i" / str(record.id) / "tmux.sock"
        return None

    async def create(self, name: str, command: str = "sleep 600", **wish: Any) -> InstanceRecord:
        return await self.orchestrator.create(
            "sample", name, Wish(agent="command", options={"command": command}, **wish), actor="test"
        )

    def record(self, name: str) -> InstanceRecord:
        return self.orchestrator.instance(f"sample/{name}")

    async def until(self, predicate: Callable[[], object], what: str) -> None:
        """Wait for a change that makes *predicate* true."""
        async with asyncio.timeout(WAIT):
            while not predicate():
                await asyncio.sleep(0.01)
        assert predicate(), what


def git(repository: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
async def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Core]:
    """A running core with the project ``sample``."""
    made = Core(tmp_path, monkeypatch)
    made.repository.mkdir()
    git(made.repository, "init", "-q", "-b", "main")
    git(
        made.repository,
        "-c",
        "user.name=T",
        "-c",
        "user.email=t@example.com",
        "commit",
        "-q",
        "--allow-empty",
        "-m",
        "0",
    )
    await made.begin()
    await made.orchestrator.register(str(made.repository), "sample", actor="test")
    yield made
    await made.close()
