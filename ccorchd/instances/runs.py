# SPDX-License-Identifier: LGPL-2.1-or-later
"""Running instances: watching them, taking their reports, recording their ends, stopping them.

What brings them to run (a start, an adoption) is in :mod:`ccorchd.instances.service`.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal as signals
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

from ccorchd.agents.base import Agent
from ccorchd.background import Background
from ccorchd.config import Config
from ccorchd.contract import ErrorCode, Naming, State
from ccorchd.errors import CcorchError
from ccorchd.host.inotify import Inotify
from ccorchd.host.pidfd import PidWatch
from ccorchd.host.reports import ReportServer
from ccorchd.host.secrets import Secrets
from ccorchd.host.systemd import Systemd
from ccorchd.instances.changes import Changes, requested
from ccorchd.instances.endings import end_change, final_words, last_words
from ccorchd.instances.launch import (
    Launcher,
    in_scope,
    instance_paths,
    process_alive,
    process_environment,
    remove_runtime,
)
from ccorchd.instances.live import Live
from ccorchd.instances.sampler import Kill, Sampler
from ccorchd.instances.setup import setup_change, setup_columns
from ccorchd.instances.statusfiles import StatusFiles
from ccorchd.model import Change, InstanceRecord, Report, Usage

_log = logging.getLogger(__name__)

_STATUS_GRACE: Final = 2.0
"""Seconds that a hook has for telling of a dialog before the status file alone is believed."""

_MANAGER_PATIENCE: Final = (0.5, 1.0, 2.0, 4.0)
"""Seconds between the questions to a manager that does not answer whether it is going down."""

_RECORD_AGAIN: Final = 5.0
"""Seconds after which an end that could not be recorded (a full disk) is recorded again."""


class Runs:
    """Every instance that has processes, from its launch to the record of its end."""

    def __init__(
        self,
        naming: Naming,
        config: Config,
        changes: Changes,
        systemd: Systemd,
        agents: Mapping[str, Agent],
        sampler: Sampler,
        secrets: Secrets,
        inotify: Inotify,
        background: Background,
        resume: Callable[[int], Awaitable[None]],
    ) -> None:
        """*resume* starts an instance again with the environment that only its owner can compose."""
        self._naming = naming
        self.config = config
        self._changes = changes
        self._systemd = systemd
        self.agents = agents
        self._sampler = sampler
        self._secrets = secrets
        self._inotify = inotify
        self._status_files = StatusFiles(inotify)
        self._background = background
        self._resume = resume
        self._launcher = Launcher(naming, systemd)
        self._live: dict[int, Live] = {}
        self._epoch = ""
        systemd.on_scope_gone(self._scope_gone)

    # -- looking ----------------------------------------------------------------------------------------------------

    @property
    def records(self) -> Mapping[int, InstanceRecord]:
        return self._changes.records

    def usage(self, instance_id: int) -> Usage | None:
        """Return the newest usage sample, that of the last run for an instance without processes."""
        return self._sampler.last(instance_id)

    def unit(self, record: InstanceRecord) -> str:
        return self._naming.scope(record.project, record.name)

    def live_units(self) -> dict[str, int]:
        """Return the scopes that belong to an instance, with the instance's id."""
        return {live.unit: instance_id for instance_id, live in self._live.items()}

    def agent(self, kind: str) -> Agent:
        """Return the profile *kind*; raise ``InvalidArgument`` with the known ones."""
        if kind not in self.agents:
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT,
                f"{kind!r} is no kind of agent",
                f"Known are {', '.join(sorted(self.agents))}.",
            )
        return self.agents[kind]

    def _agent(self, record: InstanceRecord) -> Agent:
        return self.agent(record.agent)

    def record(self, instance_id: int) -> InstanceRecord:
        """Return an instance by its number; raise ``NoSuchInstance``."""
        record = self.records.get(instance_id)
        if record is None:
            raise CcorchError(ErrorCode.NO_SUCH_INSTANCE, f"there is no instance number {instance_id} any more")
        return record

    # -- watching ---------------------------------------------------------------------------------------------------

    def _hold(self, record: InstanceRecord) -> Live:
        """Make the handles of an instance, and the folders that they need."""
        paths = instance_paths(self._naming, record)
        for folder in (paths.runtime, paths.spool):
            folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        reports = ReportServer(record.id, paths.socket, paths.spool, self._reported, watcher=self._inotify)
        live = self._live[record.id] = Live(paths, reports, self.unit(record))
        return live

    def _watch(self, instance_id: int, live: Live, environment: Mapping[str, str] | None = None) -> None:
        """Watch the agent's process and its status file. *environment* is its own, read from it if not given."""

        def died() -> None:
            self._background.spawn(self._ended(instance_id, live), f"end of instance {instance_id}")

        def status_changed() -> None:
            self._background.spawn(self._read_status(instance_id, live), f"status of instance {instance_id}")

        live.watch = PidWatch(live.pid, died)
        record = self.record(instance_id)
        known = process_environment(live.pid) if environment is None else dict(environment)
        whole = replace(record, environment=record.environment | known)
        live.status_file = self._agent(record).status_file(whole)
        if live.status_file is not None:
            self._status_files.follow(live.status_file, status_changed)
            # What fires no hook, Esc for example, may have happened while nobody watched.
            status_changed()

    async def _read_status(self, instance_id: int, live: Live, *, settled: bool = False) -> None:
        """Take in what the agent's status file says, while its process lives (the file is stale after SIGKILL)."""
        record = self.records.get(instance_id)
        if record is None or live.status_file is None or live.stop_reason or not process_alive(live.pid):
            return
        try:
            text = await asyncio.to_thread(live.status_file.read_text, encoding="utf-8", errors="replace")
        except OSError:
            return
        change = self._agent(record).interpret_status(record, text)
        if change.state is State.WAITING and not settled:
            # A hook is about to tell the same, and what is asked for too. Only a dialog without one is told from here.
            await asyncio.sleep(_STATUS_GRACE)
            await self._read_status(instance_id, live, settled=True)
        elif change != Change():
            await self._changes.apply(instance_id, change, unit=live.unit, from_report=True)

    async def _reported(self, report: Report) -> dict[str, object]:
        record = self.records.get(report.instance_id)
        live = self._live.get(report.instance_id)
        if record is None or live is None:
            return {}
        agent = self._agent(record)
        if "secret" in report.payload and len(report.payload) == 1:
            name = str(report.payload["secret"])
            return {"secret": await self._secrets.get(name) or ""} if name in agent.secrets else {}
        change = setup_change(report, live, agent) or agent.interpret(record, report)
        stale = report.time < live.last_report
        if stale and change.state is not None:
            change = Change(kind=change.kind, message=change.message, priority=change.priority, data=change.data)
        fresh = await self._changes.apply(
            record.id,
            change,
            unit=live.unit,
            uid=report.uid,
            from_report=True,
            columns=setup_columns(report, record),
        )
        if not fresh or stale:
            return {}
        if change.state is not None:
            live.last_report = report.time
            if change.state is not State.STARTING:
                live.ready.set()
        if change.prompt_confirmed and live.confirmation is not None and not live.confirmation.done():
            live.confirmation.set_result(None)
        return {}

    # -- ends -------------------------------------------------------------------------------------------------------

    def _scope_gone(self, unit: str, result: str) -> None:
        for instance_id, live in self._live.items():
            # While it is being launched, whoever launches it watches; its agent cannot outlive the scope.
            if live.unit == unit and live.watch is not None:
                self._background.spawn(self._ended(instance_id, live, result), f"end of {unit}")

    async def _ended(self, instance_id: int, live: Live, result: str = "") -> None:
        """Record how the agent ended and take down what is left of its scope. Runs once for each launch."""
        if self._live.get(instance_id) is not live or live.stop_reason or live.gone.is_set():
            return
        live.stop_reason = "ended"
        if await self._dying_with_manager():
            _log.info("%s goes with its manager; it will be resumed", live.unit)
            return
        record = self.record(instance_id)
        agent = self._agent(record)
        kill = await self._last_sample(instance_id, live)
        status, signal, screen = await last_words(live)
        recent = self._sampler.recent_kill(instance_id)
        if kill is None and recent is not None and (signal != 9 or recent.pid in (0, live.pid)):
            kill = recent
        change = end_change(record, agent, live, status, signal, screen, kill, result)
        retry = change.state is State.FAILED and agent.session_lost(screen) and not live.retried_session
        try:
            await self._take_down(instance_id, live)
        except CcorchError as error:
            # The agent is dead all the same, and a stop by hand tries again.
            _log.error("%s could not be stopped: %s", live.unit, error.message)
        # Still wanted if it is started again: a stop in between says that it is not.
        await self._record_end(instance_id, live, change, {"wanted": retry, "pid": 0})
        live.gone.set()
        if retry:
            await self._retry_session(instance_id)

    async def _record_end(self, instance_id: int, live: Live, change: Change, columns: Mapping[str, object]) -> None:
        """Record that the run *live* has ended; what the database does not take now (a full disk) it gets later."""
        try:
            await self._changes.apply(instance_id, change, unit=live.unit, columns=columns, actor="ccorchd")
        except CcorchError as error:
            if error.code is ErrorCode.NO_SUCH_INSTANCE:
                return
            _log.error("the end of %s could not be recorded: %s", live.unit, error.message)
            self._background.spawn(self._record_later(instance_id, live, change, columns), f"record of {live.unit}")

    async def _record_later(self, instance_id: int, live: Live, change: Change, columns: Mapping[str, object]) -> None:
        while True:
            await asyncio.sleep(_RECORD_AGAIN)
            record = self.records.get(instance_id)
            if record is None or not record.state.running or instance_id in self._live:
                return
            try:
                await self._changes.apply(instance_id, change, unit=live.unit, columns=columns, actor="ccorchd")
                return
            except CcorchError as error:
                _log.debug("the end of %s is still not recorded: %s", live.unit, error.message)

    async def _retry_session(self, instance_id: int) -> None:
        """Start once more, the other way round: a session that should be resumed is made new, or the reverse."""
        record = self.record(instance_id)
        await self._changes.apply(
            instance_id,
            Change(
                kind="agent.error", message="its session was not as recorded; starting it the other way", priority=4
            ),
            unit=self.unit(record),
            columns={"started": not record.started},
        )
        await self._resume(instance_id)
        if (live := self._live.get(instance_id)) is not None:
            live.retried_session = True

    async def _last_sample(self, instance_id: int, live: Live) -> Kill | None:
        if live.cgroup is None or not live.cgroup.exists():
            return None
        record = self.record(instance_id)
        limit = record.limits.memory_max
        try:
            return await asyncio.to_thread(self._sampler.sample, instance_id, live.cgroup, limit, final=True)
        except OSError as error:
            _log.debug("the last sample of %s failed: %s", live.unit, error)
            return None

    async def _dying_with_manager(self) -> bool:
        """Tell whether the user manager (or the machine) is going down: then nothing has died, all of it is resumed."""
        for pause in (*_MANAGER_PATIENCE, None):
            try:
                return await self._systemd.manager_state() == "stopping"
            except CcorchError as error:
                _log.warning("cannot tell whether the user manager goes down: %s", error.message)
            if pause is not None:
                await asyncio.sleep(pause)
        # If it did, we should be gone by now ourselves.
        return False

    async def _take_down(self, instance_id: int, live: Live) -> None:
        """Stop the scope, whatever is in it, and let go of the instance. The cgroup is empty afterwards."""
        await self._systemd.stop_scope(live.unit, timeout=float(self.config["instances.stop_timeout"]))
        await self._systemd.reset_failed(live.unit)
        await self._let_go(instance_id, live)
        remove_runtime(live.paths)

    async def _let_go(self, instance_id: int, live: Live) -> None:
        await live.close()
        if live.status_file is not None:
            self._status_files.forget(live.status_file)
        if self._live.get(instance_id) is live:
            del self._live[instance_id]

    def forget(self, record: InstanceRecord) -> None:
        """Drop everything that is kept for an instance that has been removed."""
        self._sampler.forget(record.id)
        paths = instance_paths(self._naming, record)
        shutil.rmtree(paths.runtime, ignore_errors=True)
        shutil.rmtree(paths.spool, ignore_errors=True)

    # -- stopping ---------------------------------------------------------------------------------------------------

    async def stop(self, instance_id: int, *, actor: str = "ccorchd", why: str = "stopped") -> None:
        """End the agent politely, then its scope; return when its cgroup is empty. Does nothing to a stopped one."""
        live = self._live.get(instance_id)
        if live is not None and live.stop_reason:
            await self._wait_gone(live)
            live = self._live.get(instance_id)
        record = self.record(instance_id)
        if live is None:
            if record.wanted or record.state.running:
                # Nobody watches it, which need not mean that nothing is left of it.
                unit = self.unit(record)
                await self._systemd.stop_scope(unit, timeout=float(self.config["instances.stop_timeout"]))
                await self._changes.apply(
                    instance_id,
                    requested(State.STOPPED, why, "instance.stopped"),
                    unit=unit,
                    actor=actor,
                    columns={"wanted": False, "pid": 0},
                )
            return
        live.stop_reason = why
        try:
            await self._stop(instance_id, live, actor, why)
        finally:
            if self._live.get(instance_id) is live:
                live.stop_reason = ""  # it did not work: the next stop may try again
            else:
                live.gone.set()

    async def _stop(self, instance_id: int, live: Live, actor: str, why: str) -> None:
        stopping = requested(State.STOPPING, "stopping", "instance.state")
        try:
            # No longer wanted from here on: what is cut short by a reboot does not come back.
            await self._changes.apply(instance_id, stopping, unit=live.unit, actor=actor, columns={"wanted": False})
        except CcorchError as error:
            # A full disk is no reason to let an agent run on: it may be what fills it.
            _log.error("%s is stopped, which could not be recorded: %s", live.unit, error.message)
        await self._end_agent(live)
        await self._last_sample(instance_id, live)
        usage = self._sampler.last(instance_id)
        await self._take_down(instance_id, live)
        change = requested(State.STOPPED, final_words(why, usage), "instance.stopped")
        await self._changes.apply(instance_id, change, unit=live.unit, actor=actor, columns={"wanted": False, "pid": 0})

    async def _end_agent(self, live: Live) -> None:
        """Send SIGTERM to the agent alone and give it half the stop time-out to say good-bye by its hooks."""
        if not live.pid or not in_scope(live.pid, live.unit):
            return
        gone = asyncio.Event()
        if live.watch is not None:
            live.watch.close()
        live.watch = PidWatch(live.pid, gone.set)
        live.watch.send_signal(signals.SIGTERM)
        try:
            async with asyncio.timeout(float(self.config["instances.stop_timeout"]) / 2):
                await gone.wait()
        except TimeoutError:
            _log.info("%s: the agent did not end at SIGTERM", live.unit)

    async def _wait_gone(self, live: Live) -> None:
        try:
            async with asyncio.timeout(2 * float(self.config["instances.stop_timeout"]) + 5):
                await live.gone.wait()
        except TimeoutError:
            raise CcorchError(
                ErrorCode.TIMEOUT, f"{live.unit} is still being stopped", "Try again in a moment."
            ) from None

    # -- sampling ---------------------------------------------------------------------------------------------------

    async def sample_for_ever(self) -> None:
        """Sample every live scope once an interval (``usage.interval`` seconds); files are read in a thread."""
        while True:
            await asyncio.sleep(float(self.config["usage.interval"]))
            for instance_id, live in list(self._live.items()):
                try:
                    await self._sample(instance_id, live)
                except (CcorchError, OSError) as error:
                    # It may be ending just now, or the disk be full: neither may end the watch over the others.
                    _log.debug("%s could not be sampled: %s", live.unit, error)

    async def _sample(self, instance_id: int, live: Live) -> None:
        record = self.records.get(instance_id)
        if live.cgroup is None or record is None or live.stop_reason:
            return
        kill = await asyncio.to_thread(self._sampler.sample, instance_id, live.cgroup, record.limits.memory_max)
        if kill is not None and process_alive(live.pid):
            await self._changes.apply(
                instance_id,
                Change(
                    kind="instance.oom",
                    message=kill.sentence(record.limits.memory_max),
                    priority=4,
                    data={"pid": kill.pid, "name": kill.name, "resident": kill.resident, "count": kill.count},
                ),
                unit=live.unit,
                # A daemon that has just taken over counts from nothing: what was told is not told again.
                uid=f"oom-{instance_id}-{record.boot_id}-{record.pid}-{kill.total}",
            )

    async def close(self) -> None:
        """Let go of every instance without touching it."""
        await asyncio.gather(*(live.close() for live in self._live.values()))
        self._live.clear()
