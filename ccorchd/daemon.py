# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's life: everything is made here and handed on by constructor, and taken down in stages.

At SIGTERM the instances stay as they are unless somebody stopped the unit (see :meth:`Daemon._leave`): a restart, an
upgrade or a crash of ccorchd never ends an agent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from typing import Final

import sdnotify

from ccorchd import __version__, agents, config
from ccorchd.background import Background
from ccorchd.bus.guard import Guard
from ccorchd.bus.manager import ManagerInterface
from ccorchd.bus.server import Server
from ccorchd.contract import Naming
from ccorchd.doctor import Doctor
from ccorchd.errors import CcorchError
from ccorchd.events import Broadcast
from ccorchd.history import History
from ccorchd.host.dbus import Bus
from ccorchd.host.inotify import Inotify
from ccorchd.host.journal import Journal
from ccorchd.host.secrets import Secrets
from ccorchd.host.systemd import Systemd
from ccorchd.host.usage import UsageReader
from ccorchd.instances import Instances
from ccorchd.instances.changes import Changes
from ccorchd.instances.sampler import Sampler
from ccorchd.model import Event, InstanceRecord
from ccorchd.orchestrator import Orchestrator
from ccorchd.storage import Storage
from ccorchd.worktrees import Worktrees

_log = logging.getLogger(__name__)
_CALL_DRAIN: Final = 3.0
_RECONNECT_FIRST: Final = 0.2
_RECONNECT_MOST: Final = 5.0


class Daemon:
    """One run of ccorchd."""

    def __init__(self, naming: Naming) -> None:
        self._naming = naming
        self._notifier = sdnotify.SystemdNotifier()
        self._stop = asyncio.Event()
        self._stop_signal = 0
        self._quit = False
        self._began = time.monotonic()

    def _notify(self, *lines: str) -> None:
        # sdnotify drops a message that is not Latin-1 as a whole, READY=1 included: ASCII only (libraries.md).
        self._notifier.notify("\n".join(lines).encode("ascii", "replace").decode())

    async def run(self) -> None:
        """Run until told to stop. Raises :class:`CcorchError` when it cannot start."""
        try:
            await self._run()
        except CcorchError as error:
            # Whoever asked for this start by a call on the bus finds the reason in the unit's status.
            self._notify(f"STATUS={error}")
            raise

    async def _run(self) -> None:
        self._catch_signals()
        settings = config.load(self._naming.config_dir, os.environ)
        for folder in (self._naming.state_dir, self._naming.data_dir, self._naming.runtime_dir):
            folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        storage = await Storage.open(self._naming.state_dir / "ccorch.db")
        try:
            async with Background() as background:
                await self._serve(settings, storage, background)
        finally:
            await storage.close()

    async def _serve(self, settings: config.Config, storage: Storage, background: Background) -> None:
        bus = await Bus.connect()
        systemd = await Systemd.open(self._naming, bus)
        changed: Broadcast[InstanceRecord] = Broadcast("instance changes")
        events: Broadcast[Event] = Broadcast("events")
        journal = Journal(limit=int(settings["logs.lines_per_10s"]))
        history = History(storage, journal, events)
        changes = Changes(storage, history, changed)
        secrets = Secrets(self._naming.state_dir, self._naming.config_dir, service=self._naming.stem, bus=bus)
        inotify = Inotify()
        worktrees = Worktrees(self._naming.data_dir)

        async def resume(instance_id: int) -> None:
            await orchestrator.resume(instance_id)

        instances = Instances(
            self._naming,
            settings,
            changes,
            systemd,
            agents.registry(settings),
            Sampler(UsageReader()),
            secrets,
            inotify,
            background,
            resume,
        )
        orchestrator = Orchestrator(
            self._naming,
            settings,
            storage,
            history,
            changes,
            instances,
            worktrees,
            systemd,
            Broadcast("removals"),
            Broadcast("projects"),
        )
        doctor = Doctor(orchestrator, systemd)
        await orchestrator.load()
        lost = await orchestrator.adopt()
        parts = _Face(orchestrator, history, doctor, secrets, inotify, changed, events)
        server = await self._face(bus, parts, settings, background)
        background.spawn(instances.sample_for_ever(), "usage sampler")
        background.spawn(self._watchdog(), "watchdog")
        unsubscribe = changed.subscribe(lambda _: self._status(instances))
        self._status(instances)
        self._notify("READY=1")
        took = time.monotonic() - self._began
        running = sum(record.state.running for record in instances.records.values())
        await _tell(
            history, "daemon.started", f"ccorchd {__version__} ready after {took:.2f} s, {running} instances running"
        )
        # Beside the API: ten slow starts after a reboot must not hold up whoever asks, nor meet the unit's time-out.
        background.spawn(orchestrator.resume_all(lost), "resumption")
        try:
            await self._until_stopped(bus, server, parts, systemd, settings, background)
        finally:
            unsubscribe()
            await self._leave(parts, systemd, settings)

    async def _face(self, bus: Bus, parts: _Face, settings: config.Config, background: Background) -> Server:
        """Put the API on *bus*."""
        guard = Guard(bus, parts.history)

        async def reload() -> None:
            await self._reload(settings, parts)

        def quit_soon() -> None:
            self._quit = True
            background.spawn(self._stop_own_unit(parts.orchestrator.systemd), "stop of the own unit")

        manager = ManagerInterface(parts.orchestrator, guard, parts.doctor, parts.secrets, reload, quit_soon)
        server = Server(bus, parts.orchestrator, guard, manager, parts.changed, parts.events)
        await server.start(self._naming.bus_name)
        parts.server, parts.bus = server, bus
        return server

    # -- while it runs ---------------------------------------------------------------------------------------------

    async def _until_stopped(
        self,
        bus: Bus,
        server: Server,
        parts: _Face,
        systemd: Systemd,
        settings: config.Config,
        background: Background,
    ) -> None:
        """Wait for a signal; survive the loss of the bus by connecting again (agents need no bus)."""
        while True:
            stop = asyncio.ensure_future(self._stop.wait())
            lost = asyncio.ensure_future(bus.closed.wait())
            try:
                await asyncio.wait({stop, lost}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.cancel()
                lost.cancel()
            if self._stop.is_set():
                return
            _log.warning("the bus is gone; connecting again")
            self._notify("STATUS=The bus is gone; connecting again. Instances go on.")
            server.detach()
            fresh = await self._reconnect(parts, systemd, settings, background)
            if fresh is None:
                return
            bus, server = fresh
            self._status(parts.orchestrator.instances)

    async def _reconnect(
        self, parts: _Face, systemd: Systemd, settings: config.Config, background: Background
    ) -> tuple[Bus, Server] | None:
        """Put the API on a new connection as soon as there is one; None when told to stop before."""
        delay = _RECONNECT_FIRST
        while True:
            bus = None
            try:
                bus = await Bus.connect()
                await systemd.rebind(bus)
                parts.secrets.rebind(bus)
                return bus, await self._face(bus, parts, settings, background)
            except CcorchError as error:
                _log.debug("no bus yet: %s", error.message)
                if bus is not None:
                    await bus.close()
            try:
                async with asyncio.timeout(delay):
                    await self._stop.wait()
                return None
            except TimeoutError:
                delay = min(delay * 2, _RECONNECT_MOST)

    async def _watchdog(self) -> None:
        """Tell systemd that the event loop turns (sd_watchdog_enabled(3)): at half the interval it asks for."""
        interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000
        while interval:
            self._notify("WATCHDOG=1")
            await asyncio.sleep(interval / 2)

    def _status(self, instances: Instances) -> None:
        running = [record for record in instances.records.values() if record.state.running]
        waiting = sum(record.state == "waiting" for record in running)
        needs = f", {waiting} waiting for a person" if waiting else ""
        self._notify(f"STATUS={len(running)} of {len(instances.records)} instances running{needs}")

    async def _reload(self, settings: config.Config, parts: _Face) -> None:
        """Read the settings again; an error leaves the old ones in force and is the caller's answer."""
        fresh = config.load(self._naming.config_dir, os.environ)
        applied, waiting = settings.adopt(fresh)
        parts.orchestrator.instances.agents = agents.registry(settings)
        parts.history.limit_journal(int(settings["logs.lines_per_10s"]))
        words = f"settings read again: {', '.join(applied) or 'no change'}"
        if waiting:
            words += f"; {', '.join(waiting)} need a restart of ccorchd"
        await parts.history.record(Event("daemon.reloaded", words, priority=5))

    # -- the end ---------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGHUP, lambda: _log.info("SIGHUP ignored; use: ccorchctl reload"))

    def _signalled(self, number: int) -> None:
        self._stop_signal = number
        self._stop.set()

    async def _stop_own_unit(self, systemd: Systemd) -> None:
        """End for good: with Restart=always only a stop job does. Outside systemd just stop."""
        try:
            if os.environ.get("NOTIFY_SOCKET"):
                await systemd.stop_unit_soon(self._naming.daemon_unit)
                return
        except CcorchError as error:
            # Going, and coming back by Restart=always, is better than staying and refusing everything.
            _log.error("the own unit could not be stopped: %s", error.message)
        self._stop.set()

    async def _leave(self, parts: _Face, systemd: Systemd, settings: config.Config) -> None:
        """Go in stages: no new calls; the instances, if the unit was stopped on purpose; then let go of everything."""
        self._notify("STOPPING=1", "STATUS=Stopping.")
        limit = float(settings["daemon.shutdown_timeout"])
        orchestrator = parts.orchestrator
        keep = not self._quit and not (
            self._stop_signal == signal.SIGTERM and await systemd.stop_was_requested(self._naming.daemon_unit)
        )
        words = "instances go on" if keep else "stopping all instances"
        try:
            async with asyncio.timeout(limit):
                await _tell(parts.history, "daemon.stopping", f"ccorchd stops; {words}")
                if not keep:
                    await orchestrator.shutdown(why="ccorchd was stopped")
                orchestrator.stopping = True
                if parts.server is not None:
                    await parts.server.stop(self._naming.bus_name, drain=_CALL_DRAIN)
        except TimeoutError:
            _log.error("shutdown took more than %g s; the rest is left to systemd", limit)
        await orchestrator.instances.close()
        parts.inotify.close()
        await systemd.close()
        if parts.bus is not None:
            await parts.bus.close()


async def _tell(history: History, kind: str, message: str) -> None:
    """Record something about the daemon itself; a full disk must not keep it from starting or stopping."""
    try:
        await history.record(Event(kind, message, priority=5))
    except CcorchError as error:
        _log.error("%s (not recorded: %s)", message, error.message)


class _Face:
    """What the API is made of, so that it can be put on a new connection."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        history: History,
        doctor: Doctor,
        secrets: Secrets,
        inotify: Inotify,
        changed: Broadcast[InstanceRecord],
        events: Broadcast[Event],
    ) -> None:
        self.orchestrator = orchestrator
        self.history = history
        self.doctor = doctor
        self.secrets = secrets
        self.inotify = inotify
        self.changed = changed
        self.events = events
        self.server: Server | None = None
        self.bus: Bus | None = None
