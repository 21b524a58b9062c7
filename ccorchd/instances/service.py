# SPDX-License-Identifier: LGPL-2.1-or-later
"""Starting, watching, adopting and stopping instances. Nothing here knows worktrees, projects' files or the bus."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal as signals
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ccorchd.agents.base import Agent, Paths
from ccorchd.background import Background
from ccorchd.config import Config
from ccorchd.contract import ErrorCode, Naming, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.host.inotify import Inotify
from ccorchd.host.pidfd import PidWatch
from ccorchd.host.reports import ReportServer
from ccorchd.host.secrets import Secrets
from ccorchd.host.systemd import ScopeStatus, Systemd, cgroup_path
from ccorchd.host.tmux import TmuxServer
from ccorchd.instances import prompts
from ccorchd.instances.changes import Changes, requested
from ccorchd.instances.launch import (
    SETUP_DONE,
    SETUP_EXIT,
    SETUP_FAILED,
    SETUP_STEP,
    Launcher,
    boot_id,
    in_scope,
    instance_paths,
    process_alive,
    process_environment,
    remove_runtime,
    tmux_socket,
)
from ccorchd.instances.live import Live
from ccorchd.instances.sampler import Kill, Sampler
from ccorchd.instances.statusfiles import StatusFiles
from ccorchd.model import Change, InstanceRecord, Report, Usage

_log = logging.getLogger(__name__)

_SCREEN_LINES: Final = 15
_TMUX_TIMEOUT: Final = 5.0
_STATUS_GRACE: Final = 2.0
"""Seconds that a hook has for telling of a dialog before the status file alone is believed."""
_MANAGER_PATIENCE: Final = (0.5, 1.0, 2.0, 4.0)
"""Seconds between the questions to a manager that does not answer whether it is going down."""
_RECORD_AGAIN: Final = 5.0
"""Seconds after which an end that could not be recorded (a full disk) is recorded again."""


class Instances:
    """All instances of the daemon."""

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

    # -- looking --------------------------------------------------------------------------------------------------

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

    # -- starting -------------------------------------------------------------------------------------------------

    async def start(
        self,
        instance_id: int,
        environment: Mapping[str, str],
        *,
        prompt: str = "",
        setup: Sequence[str] = (),
        actor: str = "ccorchd",
        why: str = "started",
    ) -> None:
        """Launch the instance; raise without leaving anything behind if that fails. Its record is ``failed`` then."""
        record = self._record(instance_id)
        if instance_id in self._live:
            raise CcorchError(ErrorCode.WRONG_STATE, f"{record.address} is {record.state} already")
        agent = self._agent(record)
        agent.check(environment, record.options)
        paths = instance_paths(self._naming, record)
        remove_runtime(paths)
        paths.runtime.mkdir(parents=True, mode=0o700, exist_ok=True)
        paths.spool.mkdir(parents=True, mode=0o700, exist_ok=True)
        live = Live(paths, self._report_server(instance_id, paths), self.unit(record))
        # What an earlier run left in the spool is part of the story, but no news of this one's state.
        live.last_report = time.time()
        self._live[instance_id] = live
        try:
            await self._changes.apply(
                instance_id,
                Change(
                    state=State.STARTING,
                    doing="",
                    kind="instance.started",
                    message=f"{why}: {record.agent} agent",
                    priority=5,
                ),
                unit=live.unit,
                actor=actor,
                columns={"wanted": True, "boot_id": await self._current_epoch(), "pid": 0},
            )
            await live.reports.start()
            self._sampler.started(instance_id)
            if await self._secrets_for(record):
                record.options["api_key"] = "stored"
            # All that it will see, not only what is its own: HOME or its configuration's place may be the project's.
            whole = replace(record, environment=dict(environment))
            launch = await asyncio.to_thread(agent.prepare, whole, paths, resume=record.started, prompt=prompt)
            live.tmux, live.pid = await self._launcher.launch(
                record,
                paths,
                launch,
                environment,
                setup,
                stop_timeout=float(self.config["instances.stop_timeout"]),
                timeout=float(self.config["instances.start_timeout"]),
            )
            # The agent has a session from here on; after set-up steps it is the report of their end that says so.
            columns: dict[str, object] = {"pid": live.pid} if setup else {"pid": live.pid, "started": True}
            # An agent that reports nothing of its own works from its first moment, or from the end of the set-up.
            silent = not agent.confirms_prompts and not setup
            begun = Change(state=State.WORKING) if silent else Change()
            await self._changes.apply(instance_id, begun, columns=columns)
            if silent:
                live.ready.set()
            self._watch(instance_id, live)
        except BaseException as error:
            await asyncio.shield(self._undo_start(instance_id, live, error))
            raise
        self._background.spawn(self._finish_launch(instance_id, live), f"second window of {record.address}")

    async def _undo_start(self, instance_id: int, live: Live, error: BaseException) -> None:
        """Leave neither scope nor file of a start that failed, and record why; what cannot be undone is logged."""
        sentence = error.message if isinstance(error, CcorchError) else type(error).__name__
        live.stop_reason = "its start failed"
        change = Change(
            state=State.FAILED,
            reason=Reason.LOST,
            reason_text=sentence,
            doing="",
            kind="instance.failed",
            message=f"could not start: {sentence}",
            priority=3,
        )
        try:
            if live.tmux is not None:
                await self._take_down(instance_id, live)
        except CcorchError as trouble:
            _log.error("%s could not be stopped: %s", live.unit, trouble.message)
        else:
            await self._let_go(instance_id, live)
            remove_runtime(live.paths)
        await self._record_end(instance_id, live, change, {"wanted": False, "pid": 0})
        live.gone.set()

    async def _finish_launch(self, instance_id: int, live: Live) -> None:
        """What the agent need not wait for: the shell window, the cgroup's path."""
        live.cgroup = live.cgroup or await self._cgroup(live.unit)
        record = self._record(instance_id)
        try:
            # Adopted ones have it already, unless the daemon died before it was made.
            if (
                live.tmux is not None
                and process_alive(live.pid)
                and all(pane.window != "shell" for pane in await live.tmux.panes())
            ):
                await live.tmux.new_window("shell", Path(record.worktree))
        except CcorchError as error:
            if not live.stop_reason:
                _log.warning("%s has no shell window: %s", record.address, error.message)
        await self._expect_ready(instance_id, live)

    async def _expect_ready(self, instance_id: int, live: Live) -> None:
        """Say so when an agent that ought to report does not."""
        limit = float(self.config["instances.start_timeout"])
        waits = [asyncio.ensure_future(live.ready.wait()), asyncio.ensure_future(live.gone.wait())]
        try:
            done, _ = await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        record = self.records.get(instance_id)
        if not done and record is not None and record.state is State.STARTING and record.reason is not Reason.SETUP:
            await self._changes.apply(
                instance_id,
                Change(
                    state=State.STARTING,
                    reason_text=f"nothing heard for {limit:g} s",
                    kind="agent.error",
                    message=f"the agent has not reported within {limit:g} s; look at its screen",
                    priority=4,
                ),
                unit=live.unit,
            )

    async def _secrets_for(self, record: InstanceRecord) -> bool:
        names = self._agent(record).secrets
        return bool(names) and bool(set(names) & set(await self._secrets.names()))

    async def _cgroup(self, unit: str) -> Path | None:
        status = await self._systemd.scope_status(unit)
        return cgroup_path(status.control_group) if status and status.control_group else None

    def _report_server(self, instance_id: int, paths: Paths) -> ReportServer:
        return ReportServer(instance_id, paths.socket, paths.spool, self._reported, watcher=self._inotify)

    def _watch(self, instance_id: int, live: Live) -> None:
        def died() -> None:
            self._background.spawn(self._ended(instance_id, live), f"end of instance {instance_id}")

        def status_changed() -> None:
            self._background.spawn(self._read_status(instance_id, live), f"status of instance {instance_id}")

        live.watch = PidWatch(live.pid, died)
        record = self._record(instance_id)
        whole = replace(record, environment=record.environment | process_environment(live.pid))
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

    async def _current_epoch(self) -> str:
        """Return what changes when scopes cannot have survived: the boot, and the user manager's own start."""
        if not self._epoch:
            self._epoch = f"{boot_id()}:{await self._systemd.started_at()}"
        return self._epoch

    # -- reports ---------------------------------------------------------------------------------------------------

    async def _reported(self, report: Report) -> dict[str, object]:
        record = self.records.get(report.instance_id)
        live = self._live.get(report.instance_id)
        if record is None or live is None:
            return {}
        if "secret" in report.payload and len(report.payload) == 1:
            name = str(report.payload["secret"])
            return {"secret": await self._secrets.get(name) or ""} if name in self._agent(record).secrets else {}
        agent = self._agent(record)
        change = self._setup_change(report, live, agent) or agent.interpret(record, report)
        stale = report.time < live.last_report
        if stale and change.state is not None:
            change = Change(kind=change.kind, message=change.message, priority=change.priority, data=change.data)
        fresh = await self._changes.apply(
            record.id,
            change,
            unit=live.unit,
            uid=report.uid,
            from_report=True,
            columns=self._setup_columns(report, record),
        )
        if not fresh or stale:
            return {}
        if change.state is not None:
            live.last_report = report.time
            if change.state is not State.STARTING:
                live.ready.set()
        if change.prompt_confirmed:
            for waiter in live.confirmations:
                if not waiter.done():
                    waiter.set_result(None)
                    break
        return {}

    @staticmethod
    def _setup_columns(report: Report, record: InstanceRecord) -> dict[str, object]:
        done = report.event == SETUP_DONE
        return {"options": {**record.options, "setup": "done"}, "started": True} if done else {}

    @staticmethod
    def _setup_change(report: Report, live: Live, agent: Agent) -> Change | None:
        payload = report.payload
        if report.event == SETUP_STEP:
            text = f"{payload.get('number')} of {payload.get('of')}: {payload.get('step')}"
            return Change(
                state=State.STARTING,
                reason=Reason.SETUP,
                reason_text=text,
                doing=f"set-up {text}",
                kind="setup.step",
                message=f"set-up {text}",
            )
        if report.event == SETUP_DONE:
            state = State.STARTING if agent.confirms_prompts else State.WORKING
            return Change(state=state, doing="", kind="setup.step", message="set-up done")
        if report.event == SETUP_FAILED:
            live.setup_failure = f"set-up step {payload.get('number')} ended with status {payload.get('status')}"
            return Change(kind="setup.failed", message=live.setup_failure, priority=3)
        return None

    # -- ends ------------------------------------------------------------------------------------------------------

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
        record = self._record(instance_id)
        agent = self._agent(record)
        kill = await self._last_sample(instance_id, live)
        status, signal, screen = await self._last_words(live)
        recent = self._sampler.recent_kill(instance_id)
        if kill is None and recent is not None and (signal != 9 or recent.pid in (0, live.pid)):
            kill = recent
        change = self._end_change(record, agent, live, status, signal, screen, kill, result)
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

    async def _record_end(
        self, instance_id: int, live: Live, change: Change, columns: Mapping[str, object], *, actor: str = "ccorchd"
    ) -> None:
        """Record that the run *live* has ended; what the database does not take now (a full disk) it gets later."""
        try:
            await self._changes.apply(instance_id, change, unit=live.unit, columns=columns, actor=actor)
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
        record = self._record(instance_id)
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
        record = self._record(instance_id)
        limit = record.limits.memory_max
        try:
            return await asyncio.to_thread(self._sampler.sample, instance_id, live.cgroup, limit, final=True)
        except OSError as error:
            _log.debug("the last sample of %s failed: %s", live.unit, error)
            return None

    async def _last_words(self, live: Live) -> tuple[int | None, int | None, str]:
        """Return exit status, signal and the last lines of the agent's screen, as far as tmux still knows."""
        if live.tmux is None:
            return None, None, ""
        try:
            async with asyncio.timeout(_TMUX_TIMEOUT):
                status, signal = await live.tmux.exit_of("agent")
                screen = await live.tmux.capture("agent")
        except (CcorchError, TimeoutError):
            return None, None, ""
        lines = [line.rstrip() for line in screen.splitlines() if line.strip()]
        return status, signal, "\n".join(lines[-_SCREEN_LINES:])

    @staticmethod
    def _end_change(
        record: InstanceRecord,
        agent: Agent,
        live: Live,
        status: int | None,
        signal: int | None,
        screen: str,
        kill: Kill | None,
        result: str,
    ) -> Change:
        change = agent.exit_change(status, signal)
        reason, text, message = change.reason, change.reason_text, change.message
        oom = kill is not None or result == "oom-kill"
        if live.setup_failure and status == SETUP_EXIT:
            reason, text, message = Reason.SETUP, live.setup_failure, f"not started: {live.setup_failure}"
        elif oom and (signal == 9 or status in (None, 137)):
            reason = Reason.OUT_OF_MEMORY
            if kill and kill.pid != live.pid and signal == 9:  # too fast for the samples, but its end tells
                kill = replace(kill, pid=live.pid, name="its agent", resident=0)
            text = kill.sentence(record.limits.memory_max) if kill else "the kernel killed it"
            message = text
        elif status is None and signal is None:
            text = "its scope was stopped from outside" if result else "its terminal ended from outside"
            message = f"{agent.kind} is gone: {text}"
        failed = change.state is State.FAILED or reason in (Reason.SETUP, Reason.OUT_OF_MEMORY)
        return Change(
            state=State.FAILED if failed else State.STOPPED,
            reason=reason,
            reason_text=text,
            doing="",
            kind="instance.failed" if failed else "instance.stopped",
            message=message,
            priority=4 if failed else 5,
            data={**change.data, **({"screen": screen} if failed and screen else {})},
        )

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

    # -- stopping --------------------------------------------------------------------------------------------------

    async def stop(self, instance_id: int, *, actor: str = "ccorchd", why: str = "stopped") -> None:
        """End the agent politely, then its scope; return when its cgroup is empty. Does nothing to a stopped one."""
        live = self._live.get(instance_id)
        if live is not None and live.stop_reason:
            await self._wait_gone(live)
            live = self._live.get(instance_id)
        record = self._record(instance_id)
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
        stopping = requested(State.STOPPING, f"stopping: {why}", "instance.state")
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
        change = requested(State.STOPPED, _final_words(why, usage), "instance.stopped")
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

    # -- adopting --------------------------------------------------------------------------------------------------

    async def adopt(self) -> list[int]:
        """Take over what an earlier daemon left running; return the ids of those that must be started again.

        Survivors are watched again. What ended while nobody looked is recorded as such. What was lost with the boot or
        with the user manager is returned: it resumes.
        """
        epoch = await self._current_epoch()
        scopes = await self._systemd.scopes()
        resume: list[int] = []

        async def one(record: InstanceRecord) -> None:
            status = scopes.get(self.unit(record))
            try:
                if await self._adopt(record, status, epoch):
                    resume.append(record.id)
            except (CcorchError, OSError) as error:
                # It must not keep the others from being adopted, nor the API from coming up.
                _log.error("%s could not be taken over: %s", record.address, error)
                await self._not_adopted(record, status, str(error))

        async with asyncio.TaskGroup() as group:
            for record in self._changes.running:
                group.create_task(one(record))
        return sorted(resume)

    async def _adopt(self, record: InstanceRecord, status: ScopeStatus | None, epoch: str) -> bool:
        """Take over one instance or record its end; return whether it is to be started again."""
        unit = self.unit(record)
        paths = instance_paths(self._naming, record)
        paths.runtime.mkdir(parents=True, mode=0o700, exist_ok=True)
        paths.spool.mkdir(parents=True, mode=0o700, exist_ok=True)
        live = Live(paths, self._report_server(record.id, paths), unit)
        self._live[record.id] = live
        try:
            # Reports that wait in the spool, of the dead as well, are part of the story.
            await live.reports.start()
            await live.reports.drain_spool()
        except BaseException:
            await self._let_go(record.id, live)
            raise
        record = self._record(record.id)
        if status is not None and status.active_state == "active" and record.boot_id == epoch and record.pid:
            await self._take_over(record, live, status.control_group)
            return False
        await self._take_down(record.id, live)
        if record.boot_id != epoch and record.wanted:
            await self._changes.apply(
                record.id,
                Change(state=State.STARTING, reason_text="waits to be resumed", doing=""),
                columns={"pid": 0},
            )
            return True
        if not record.pid and record.state is State.STARTING:
            await self._interrupted_start(record)
        else:
            await self._lost(record, status.result if status else "")
        return False

    async def _not_adopted(self, record: InstanceRecord, status: ScopeStatus | None, why: str) -> None:
        alive = status is not None and status.active_state == "active"
        change = Change(
            state=record.state if alive else State.FAILED,
            reason=record.reason if alive else Reason.LOST,
            reason_text=f"ccorchd cannot watch it: {why}" if alive else f"it was not taken over: {why}",
            doing=None if alive else "",
            kind="agent.error" if alive else "instance.lost",
            message=f"it could not be taken over: {why}",
            priority=3,
        )
        try:
            columns = {} if alive else {"wanted": False, "pid": 0}
            await self._changes.apply(record.id, change, unit=self.unit(record), actor="ccorchd", columns=columns)
        except CcorchError as error:
            _log.error("nor could that be recorded for %s: %s", record.address, error.message)

    async def _take_over(self, record: InstanceRecord, live: Live, control_group: str) -> None:
        live.pid = record.pid
        live.tmux = TmuxServer(tmux_socket(live.paths))
        live.cgroup = cgroup_path(control_group) if control_group else None
        if record.state is not State.STARTING:
            live.ready.set()
        self._watch(record.id, live)
        if record.state is State.STOPPING:
            # The old daemon was on its way; nobody else will finish it.
            self._background.spawn(self.stop(record.id, why="stopping was under way"), f"stop of {record.address}")
            return
        if process_alive(live.pid) and not in_scope(live.pid, live.unit):
            # The agent ended unseen, and its number is somebody else's now.
            self._background.spawn(self._ended(record.id, live), f"end of {record.address}")
            return
        self._background.spawn(self._finish_launch(record.id, live), f"second window of {record.address}")
        await self._changes.apply(
            record.id,
            Change(kind="instance.adopted", message="still running; watched again", priority=5),
            unit=live.unit,
        )

    async def _interrupted_start(self, record: InstanceRecord) -> None:
        await self._changes.apply(
            record.id,
            Change(
                state=State.FAILED,
                reason=Reason.LOST,
                reason_text="its start was interrupted",
                doing="",
                kind="instance.failed",
                message="its start was interrupted when the daemon ended",
                priority=4,
            ),
            unit=self.unit(record),
            columns={"wanted": False},
        )

    async def _lost(self, record: InstanceRecord, result: str) -> None:
        stopping = record.state is State.STOPPING
        oom = result == "oom-kill"
        text = "out of memory while nobody watched" if oom else "ended while the daemon was away"
        change = (
            requested(State.STOPPED, "stopped", "instance.stopped")
            if stopping
            else Change(
                state=State.FAILED,
                reason=Reason.OUT_OF_MEMORY if oom else Reason.LOST,
                reason_text=text,
                doing="",
                kind="instance.lost",
                message=text,
                priority=4,
                data={"result": result} if result else {},
            )
        )
        await self._changes.apply(record.id, change, unit=self.unit(record), columns={"wanted": False, "pid": 0})

    # -- talking ---------------------------------------------------------------------------------------------------

    async def send(self, instance_id: int, text: str, *, actor: str) -> bool:
        """Deliver a prompt; return whether the agent confirmed it (see :func:`ccorchd.instances.prompts.deliver`)."""
        record, live = self._record(instance_id), self._live.get(instance_id)
        agent = self._agent(record)
        prompts.check_ready(record, agent)
        if live is None:
            raise CcorchError(
                ErrorCode.NOT_READY,
                f"{record.address} has no terminal yet: {record.reason_text}",
                "Try again in a moment.",
            )
        confirmed = await prompts.deliver(lambda: self._record(instance_id), live, agent, text, self.config)
        if not confirmed:
            await self._changes.apply(
                instance_id,
                Change(kind="agent.prompt", message=f"prompt queued: {_shorten(text)}", data={"queued": True}),
                unit=live.unit,
                actor=actor,
            )
        return confirmed

    async def interrupt(self, instance_id: int) -> None:
        """Press the agent's interrupt keys."""
        record = self._record(instance_id)
        await self._terminal(record).keys("agent", *self._agent(record).interrupt_keys)

    def attach_argv(self, instance_id: int, *, read_only: bool, window: str) -> list[str]:
        """Return the command that shows the instance's terminal; raise ``InvalidArgument`` for an unknown window."""
        record = self._record(instance_id)
        if window not in ("agent", "shell"):
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT,
                f"{window!r} is no window of an instance",
                "Windows are 'agent' and 'shell'.",
            )
        return self._terminal(record).attach_argv(read_only=read_only, window=window)

    async def detach(self, instance_id: int) -> int:
        """Detach everybody; return how many there were."""
        return await self._terminal(self._record(instance_id)).detach_all()

    async def screen(self, instance_id: int) -> str:
        """Return what the agent's window shows."""
        return await self._terminal(self._record(instance_id)).capture("agent")

    def _terminal(self, record: InstanceRecord) -> TmuxServer:
        live = self._live.get(record.id)
        if live is None or live.tmux is None:
            raise CcorchError(
                ErrorCode.WRONG_STATE,
                f"{record.address} is {record.state} and has no terminal",
                f"Start it: ccorchctl instance start {record.address}",
            )
        return live.tmux

    # -- sampling --------------------------------------------------------------------------------------------------

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

    # -- small things ----------------------------------------------------------------------------------------------

    def _record(self, instance_id: int) -> InstanceRecord:
        record = self.records.get(instance_id)
        if record is None:
            raise CcorchError(ErrorCode.NO_SUCH_INSTANCE, f"there is no instance number {instance_id} any more")
        return record

    def _agent(self, record: InstanceRecord) -> Agent:
        return self.agent(record.agent)

    def agent(self, kind: str) -> Agent:
        """Return the profile *kind*; raise ``InvalidArgument`` with the known ones."""
        if kind not in self.agents:
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT,
                f"{kind!r} is no kind of agent",
                f"Known are {', '.join(sorted(self.agents))}.",
            )
        return self.agents[kind]


def _shorten(text: str, width: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _final_words(why: str, usage: Usage | None) -> str:
    if usage is None or usage.cpu_seconds is None:
        return why
    peak = f", {usage.memory_peak / 1024**2:.0f} MiB at most" if usage.memory_peak else ""
    return f"{why}; it used {usage.cpu_seconds:.1f} s of CPU{peak}"
