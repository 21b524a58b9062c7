# SPDX-License-Identifier: LGPL-2.1-or-later
"""Starting, adopting and talking to instances. Nothing here knows worktrees, projects' files or the bus."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ccorchd.agents.base import Agent
from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.host.systemd import ScopeStatus, cgroup_path
from ccorchd.host.tmux import TmuxServer
from ccorchd.instances import prompts
from ccorchd.instances.changes import requested
from ccorchd.instances.launch import (
    boot_id,
    in_scope,
    instance_paths,
    process_alive,
    remove_runtime,
    tmux_socket,
)
from ccorchd.instances.live import Live
from ccorchd.instances.runs import Runs
from ccorchd.model import Change, InstanceRecord

_log = logging.getLogger(__name__)


class Instances(Runs):
    """All instances of the daemon."""

    # -- starting ---------------------------------------------------------------------------------------------------

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
        record = self.record(instance_id)
        if instance_id in self._live:
            raise CcorchError(ErrorCode.WRONG_STATE, f"{record.address} is {record.state} already")
        agent = self._agent(record)
        agent.check(environment, record.options)
        remove_runtime(instance_paths(self._naming, record))
        live = self._hold(record)
        # What an earlier run left in the spool is part of the story, but no news of this one's state.
        live.last_report = time.time()
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
            self._sampler.forget(instance_id)
            options = {**record.options, "api_key": "stored"} if await self._secrets_for(agent) else record.options
            # All that it will see, not only what is its own: HOME or its configuration's place may be the project's.
            whole = replace(record, environment=dict(environment), options=options)
            launch = await asyncio.to_thread(agent.prepare, whole, live.paths, resume=record.started, prompt=prompt)
            live.tmux, live.pid = await self._launcher.launch(
                record,
                live.paths,
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
            self._watch(instance_id, live, environment)
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
            else:
                await self._let_go(instance_id, live)
                remove_runtime(live.paths)
        except CcorchError as trouble:
            _log.error("%s could not be stopped: %s", live.unit, trouble.message)
        await self._record_end(instance_id, live, change, {"wanted": False, "pid": 0})
        live.gone.set()

    async def _finish_launch(self, instance_id: int, live: Live) -> None:
        """Do what the agent need not wait for: the cgroup's path, the shell window, a look whether it reports."""
        live.cgroup = live.cgroup or await self._cgroup(live.unit)
        record = self.record(instance_id)
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
        await live.settled(limit)
        record = self.records.get(instance_id)
        if live.ready.is_set() or live.gone.is_set() or record is None:
            return
        if record.state is State.STARTING and record.reason is not Reason.SETUP:
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

    async def _secrets_for(self, agent: Agent) -> bool:
        return bool(agent.secrets) and not set(agent.secrets).isdisjoint(await self._secrets.names())

    async def _cgroup(self, unit: str) -> Path | None:
        status = await self._systemd.scope_status(unit)
        return cgroup_path(status.control_group) if status and status.control_group else None

    async def _current_epoch(self) -> str:
        """Return what changes when scopes cannot have survived: the boot, and the user manager's own start."""
        if not self._epoch:
            self._epoch = f"{boot_id()}:{await self._systemd.started_at()}"
        return self._epoch

    # -- adopting ---------------------------------------------------------------------------------------------------

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
        live = self._hold(record)
        try:
            # Reports that wait in the spool, of the dead as well, are part of the story.
            await live.reports.start()
            await live.reports.drain_spool()
        except BaseException:
            await self._let_go(record.id, live)
            raise
        record = self.record(record.id)
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

    # -- talking ----------------------------------------------------------------------------------------------------

    async def send(self, instance_id: int, text: str, *, actor: str) -> bool:
        """Deliver a prompt; return whether the agent confirmed it (see :func:`ccorchd.instances.prompts.deliver`)."""
        record, live = self.record(instance_id), self._live.get(instance_id)
        agent = self._agent(record)
        prompts.check_ready(record, agent)
        if live is None:
            raise CcorchError(
                ErrorCode.NOT_READY,
                f"{record.address} has no terminal yet: {record.reason_text}",
                "Try again in a moment.",
            )
        confirmed = await prompts.deliver(lambda: self.record(instance_id), live, agent, text, self.config)
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
        record = self.record(instance_id)
        await self._terminal(record).keys("agent", *self._agent(record).interrupt_keys)

    def attach_argv(self, instance_id: int, *, read_only: bool, window: str) -> list[str]:
        """Return the command that shows the instance's terminal; raise ``InvalidArgument`` for an unknown window."""
        record = self.record(instance_id)
        if window not in ("agent", "shell"):
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT,
                f"{window!r} is no window of an instance",
                "Windows are 'agent' and 'shell'.",
            )
        return self._terminal(record).attach_argv(read_only=read_only, window=window)

    async def detach(self, instance_id: int) -> int:
        """Detach everybody; return how many there were."""
        return await self._terminal(self.record(instance_id)).detach_all()

    async def screen(self, instance_id: int) -> str:
        """Return what the agent's window shows."""
        return await self._terminal(self.record(instance_id)).capture("agent")

    def _terminal(self, record: InstanceRecord) -> TmuxServer:
        live = self._live.get(record.id)
        if live is None or live.tmux is None:
            raise CcorchError(
                ErrorCode.WRONG_STATE,
                f"{record.address} is {record.state} and has no terminal",
                f"Start it: ccorchctl instance start {record.address}",
            )
        return live.tmux


def _shorten(text: str, width: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
