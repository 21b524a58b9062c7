# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a face may ask for: every verb of projects and instances, put together from the parts that know one thing each.

Each verb is either done or has left nothing behind; what it refuses, it refuses before anything is made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.creation import Creation, own_branch
from ccorchd.errors import CcorchError
from ccorchd.instances.environment import from_caller
from ccorchd.model import Change, InstanceRecord
from ccorchd.worktrees import Removed, WorktreeStatus

_log = logging.getLogger(__name__)

_RESUMED_AT_ONCE: Final = 3


class Orchestrator(Creation):
    """The verbs. Holds the order in which things are made and unmade; the parts know nothing of each other."""

    # -- coming and going ------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read projects and instances from the database."""
        await super().load()
        await self._changes.load()

    async def adopt(self) -> list[int]:
        """Take over what runs, clear what a crash left half made; return what a reboot took (:meth:`resume_all`)."""
        await self._clear_half_made()
        return await self.instances.adopt()

    async def resume_all(self, instance_ids: Sequence[int]) -> None:
        """Start again what a reboot or log-out took, a few at a time: a host that comes up has other work as well."""
        turn = asyncio.Semaphore(_RESUMED_AT_ONCE)

        async def one(instance_id: int) -> None:
            async with turn:
                try:
                    await self.resume(instance_id, why="resumed after a reboot or log-out")
                except Exception as error:
                    _log.error("instance %d could not be resumed: %s", instance_id, error)

        async with asyncio.TaskGroup() as group:
            for instance_id in instance_ids:
                group.create_task(one(instance_id))

    async def resume(self, instance_id: int, *, why: str = "resumed") -> None:
        """Start an instance that ran before, counting the restart; does nothing if it is no longer wanted."""
        async with self._lock(instance_id):
            record = self.instances.records.get(instance_id)
            if record is None or not record.wanted or self.stopping:
                return  # removed or stopped before its turn came, or we go ourselves
            try:
                await self._changes.apply(instance_id, Change(), columns={"restarts": record.restarts + 1})
                await self._launch(instance_id, prompt="", actor="ccorchd", why=why)
            except Exception as error:
                await self._not_resumed(instance_id, error)
                raise

    async def _not_resumed(self, instance_id: int, error: Exception) -> None:
        """Record a failure that came before the launch, which records its own."""
        record = self.instances.records.get(instance_id)
        if record is None or not record.state.running:
            return
        sentence = error.message if isinstance(error, CcorchError) else str(error) or type(error).__name__
        await self._changes.apply(
            instance_id,
            Change(
                State.FAILED,
                Reason.LOST,
                sentence,
                doing="",
                kind="instance.failed",
                message=f"could not be resumed: {sentence}",
                priority=3,
            ),
            unit=self.instances.unit(record),
            actor="ccorchd",
            columns={"wanted": False, "pid": 0},
        )

    # -- instances: running ----------------------------------------------------------------------------------------

    async def start(self, instance_id: int, *, environment: Mapping[str, str], prompt: str = "", actor: str) -> None:
        """Start a stopped or failed instance; its session is resumed. Raises ``WrongState``, ``LimitReached``."""
        self._check_open()
        async with self._lock(instance_id):
            record = self.instances.record(instance_id)
            if record.state.running:
                raise CcorchError(
                    ErrorCode.WRONG_STATE,
                    f"{record.address} is {record.state} already",
                    f"To start it afresh: ccorchctl instance restart {record.address}",
                )
            with self._room(record):
                await self._take_environment(record, environment)
                await self._launch(instance_id, prompt=prompt, actor=actor, why="started")

    async def stop(self, instance_id: int, *, actor: str) -> None:
        """Stop an instance; its worktree, branch and session stay. Stopping a stopped one is no error."""
        async with self._lock(instance_id):
            await self.instances.stop(instance_id, actor=actor)

    async def restart(self, instance_id: int, *, environment: Mapping[str, str], actor: str) -> None:
        """Stop and start again, resuming the session."""
        self._check_open()
        async with self._lock(instance_id):
            with self._room(self.instances.record(instance_id)):
                await self._take_environment(self.instances.record(instance_id), environment)
                record = self.instances.record(instance_id)
                # What a launch would be refused for is found out while the agent still runs.
                composed, _ = await self._compose(record)
                self.instances.agent(record.agent).check(composed, record.options)
                await self.instances.stop(instance_id, actor=actor, why="restarting")
                await self._changes.apply(instance_id, Change(), columns={"restarts": record.restarts + 1})
                await self._launch(instance_id, prompt="", actor=actor, why="restarted")

    async def remove(self, instance_id: int, *, force: bool, actor: str) -> Removed:
        """Stop and remove an instance with its clean worktree; the branch stays if it holds work of its own.

        Raises ``WorktreeDirty`` unless *force*, which keeps the changes under a ref (see :class:`Removed`).
        """
        async with self._lock(instance_id):
            record = self.instances.record(instance_id)
            repository, path, branch = Path(record.repository), Path(record.worktree), own_branch(record)
            if not force:
                await self.worktrees.check_removable(repository, path, branch)
            await self.instances.stop(instance_id, actor=actor, why="removed")
            removed = await self.worktrees.remove(repository, path, branch, record.base_commit, force=force)
            kept = f"; its changes are kept as {removed.kept_ref}" if removed.kept_ref else ""
            if removed.kept_folder:
                kept += f"; files that no commit can hold are kept in {removed.kept_folder}"
            fate = "deleted, it held nothing new" if removed.branch_deleted else "stays"
            await self._remove_row(record, f"removed; branch {record.branch} {fate}{kept}", actor)
            return removed

    async def send(self, instance_id: int, text: str, *, actor: str) -> bool:
        """Deliver a prompt; return whether the agent confirmed it (False: queued behind the turn it is in)."""
        if not text.strip():
            raise CcorchError(ErrorCode.INVALID_ARGUMENT, "the prompt is empty", "Write what the agent should do.")
        return await self.instances.send(instance_id, text, actor=actor)

    async def diff(self, instance_id: int, *, stat: bool) -> str:
        record = self.instances.record(instance_id)
        return await self.worktrees.diff(Path(record.worktree), record.base_commit, stat=stat)

    async def commits(self, instance_id: int) -> list[tuple[str, str]]:
        """Return id and subject of the commits the branch has beyond its base, newest first."""
        record = self.instances.record(instance_id)
        return await self.worktrees.commits(Path(record.repository), record.base_commit, record.branch)

    async def merge(self, instance_id: int, *, actor: str) -> str:
        """Merge the instance's branch into what the main checkout is on; return the new commit's id."""
        record = self.instances.record(instance_id)
        status = await self._status(record)
        if status.dirty:
            raise CcorchError(
                ErrorCode.WORKTREE_DIRTY,
                f"{record.address} has changes that are not committed; a merge would leave them out",
                f"Let it commit first: ccorchctl send {record.address} 'commit your work'",
            )
        commit = await self.worktrees.merge(Path(record.repository), record.branch)
        await self._changes.apply(
            instance_id,
            Change(kind="instance.merged", message=f"{record.branch} merged as {commit[:12]}", priority=5),
            unit=self.instances.unit(record),
            actor=actor,
        )
        return commit

    async def list_worktrees(self, project: str) -> list[dict[str, object]]:
        """Return a row (``contract.WORKTREE_FIELDS``) for each instance's worktree; all projects for ''."""
        if project:
            self.project(project)
        records = [r for r in self.instances.records.values() if not project or r.project == project]
        rows = []
        for record in sorted(records, key=lambda record: (record.project, record.name)):
            row: dict[str, object] = {
                "project": record.project,
                "instance": record.name,
                "path": record.worktree,
                "branch": record.branch,
                "base": record.base,
                "state": record.state,
            }
            try:
                status = await self._status(record)
            except CcorchError as error:
                _log.warning("the worktree of %s cannot be read: %s", record.address, error.message)
                rows.append({**row, "missing": True})
                continue
            row.update(
                head=status.head,
                ahead=status.ahead,
                behind=status.behind,
                dirty=status.dirty,
                missing=status.missing,
            )
            rows.append(row)
        return rows

    async def _status(self, record: InstanceRecord) -> WorktreeStatus:
        return await self.worktrees.status(
            Path(record.worktree), record.branch, record.base_commit, Path(record.repository), base=record.base
        )

    async def shutdown(self, *, why: str) -> None:
        """Stop every instance, cleanly and all at once; nothing new is started from here on."""
        self.stopping = True

        async def one(instance_id: int) -> None:
            try:
                async with self._lock(instance_id):  # a start that is under way comes first, and gives up
                    if instance_id in self.instances.records:
                        await self.instances.stop(instance_id, why=why)
            except Exception as error:
                _log.error("instance %d could not be stopped: %s", instance_id, error)

        async with asyncio.TaskGroup() as group:
            for record in self._changes.running:
                group.create_task(one(record.id))

    async def _take_environment(self, record: InstanceRecord, environment: Mapping[str, str]) -> None:
        """Keep what the caller sent: a new SSH agent or PATH must reach an instance that is started again."""
        fresh = from_caller(environment, self.config["agents.environment"])
        if fresh:
            await self._changes.apply(record.id, Change(), columns={"environment": {**record.environment, **fresh}})
