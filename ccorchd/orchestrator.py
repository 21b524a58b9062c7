# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a face may ask for: every verb of projects and instances, put together from the parts that know one thing each.

Each verb is either done or has left nothing behind; what it refuses, it refuses before anything is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets as random_source
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ccorchd.config import Config
from ccorchd.contract import ErrorCode, Naming, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.events import Broadcast
from ccorchd.history import History
from ccorchd.host.systemd import Systemd
from ccorchd.host.usage import host_memory
from ccorchd.instances import Instances
from ccorchd.instances.changes import Changes
from ccorchd.instances.environment import check_variables, compose, from_caller
from ccorchd.limits import default_limits
from ccorchd.model import Address, Change, Event, InstanceRecord, Limits, ProjectRecord, check_name
from ccorchd.projectfile import ProjectFile
from ccorchd.projects import Projects
from ccorchd.storage import Storage, Store
from ccorchd.worktrees import Removed, Worktrees, WorktreeStatus

_log = logging.getLogger(__name__)

_RESUMED_AT_ONCE: Final = 3

_MADE_UP: Final = (
    "ash",
    "birch",
    "cedar",
    "elm",
    "fir",
    "hazel",
    "holly",
    "larch",
    "maple",
    "oak",
    "pine",
    "rowan",
    "yew",
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller wants of a new instance; empty fields mean the project's or the daemon's defaults."""

    agent: str = ""
    prompt: str = ""
    base: str = ""
    branch: str = ""
    limits: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    """The caller's own; of it only what :func:`ccorchd.instances.environment.from_caller` lets through counts."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables that the caller named one by one."""
    options: Mapping[str, str] = field(default_factory=dict)
    start: bool = True


class Orchestrator(Projects):
    """The verbs. Holds the order in which things are made and unmade; the parts know nothing of each other."""

    def __init__(
        self,
        naming: Naming,
        config: Config,
        storage: Storage,
        history: History,
        changes: Changes,
        instances: Instances,
        worktrees: Worktrees,
        systemd: Systemd,
        removed: Broadcast[InstanceRecord],
        projects_changed: Broadcast[None],
    ) -> None:
        super().__init__(storage, history, instances, worktrees, projects_changed)
        self.naming = naming
        self.config = config
        self.systemd = systemd
        self.removed = removed
        self.stopping = False
        self._changes = changes
        self._locks: dict[int, asyncio.Lock] = {}
        self._create_lock = asyncio.Lock()
        self._reserved: set[int] = set()
        """Stopped instances that are about to start: they count for ``instances.max`` already."""
        self._manager_environment: dict[str, str] = {}

    # -- coming and going ------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read projects and instances from the database."""
        await super().load()
        await self._changes.load()

    async def adopt(self) -> list[int]:
        """Take over what runs, clear what a crash left half made; return what a reboot took (:meth:`resume_all`)."""
        await self._clear_half_made()
        return await self.instances.adopt()

    async def _clear_half_made(self) -> None:
        """Drop instances whose creation never got as far as a launch: whoever asked for them got no answer."""
        for record in list(self._changes.running):
            if record.boot_id or record.pid:
                continue
            _log.warning("%s was half created when the daemon ended; it is removed", record.address)
            try:
                await self._undo_create(record)
            except (CcorchError, OSError) as error:
                _log.error("%s could not be removed: %s", record.address, error)

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

    # -- instances: making -----------------------------------------------------------------------------------------

    async def create(self, project_name: str, name: str, wish: Wish, *, actor: str) -> InstanceRecord:
        """Make an instance with its branch and worktree, and start it unless *wish* says otherwise.

        Everything is checked first; a failure on the way undoes all that was made.
        """
        self._check_open()
        project = self.project(project_name)
        file, agreed = self.setup_of(project)
        if not agreed:
            raise CcorchError(
                ErrorCode.SETUP_NOT_AGREED,
                f"{project.name} has set-up steps you have not agreed to: {'; '.join(file.asks)}",
                f"Read them and agree: ccorchctl project agree {project.name}",
            )
        check_variables(file.environment, "the project's .ccorch.toml")
        check_variables(wish.variables, "the option variables")
        manager = await self._manager_env()
        async with self._create_lock:
            name = check_name(name, "an instance") if name else await self._free_name(project)
            record = await self._add_row(project, name, wish, file, manager, actor)
        # Nobody else can have it yet. Whoever stops or removes the instance meanwhile waits until it is whole.
        async with self._lock(record.id):
            try:
                await self._make_worktree(project, record, bool(wish.branch))
                if wish.start:
                    await self._launch(record.id, prompt=wish.prompt, actor=actor, why="started", manager=manager)
                else:
                    await self._changes.apply(
                        record.id,
                        Change(
                            State.STOPPED,
                            Reason.REQUESTED,
                            "not started yet",
                            kind="instance.stopped",
                            message="created",
                        ),
                        columns={"wanted": False},
                    )
            except BaseException:
                await asyncio.shield(self._undo_create(self._by_id(record.id)))
                raise
            return self._by_id(record.id)

    async def _add_row(
        self,
        project: ProjectRecord,
        name: str,
        wish: Wish,
        file: ProjectFile,
        manager: Mapping[str, str],
        actor: str,
    ) -> InstanceRecord:
        address = Address(project.name, name)
        if any(record.address == address for record in self.instances.records.values()):
            raise CcorchError(
                ErrorCode.INSTANCE_EXISTS,
                f"there is an instance {str(address)!r} already",
                f"Choose another name, or remove it: ccorchctl instance remove {address}",
            )
        if wish.start:
            self._check_room()
        agent = wish.agent or file.agent or str(self.config["instances.agent"])
        total = host_memory()
        defaults = Limits.parse(file.limits, default_limits(self.config, total), total)
        limits = Limits.parse(dict(wish.limits), defaults, total)
        environment = {**from_caller(wish.environment, self.config["agents.environment"]), **wish.variables}
        port = await self._free_port()
        self.instances.agent(agent).check({**manager, **environment}, {**wish.options})

        def work(store: Store) -> tuple[InstanceRecord, Event | None]:
            record = store.add_instance(
                project_id=project.id,
                name=name,
                agent=agent,
                session_id=str(uuid.uuid4()),
                branch=wish.branch or f"ccorch/{name}",
                base=wish.base or file.base or "HEAD",
                base_commit="",
                worktree=str(self.worktrees.path_for(project.name, name)),
                port=port,
                prompt=wish.prompt,
                limits=limits,
                environment=environment,
                wanted=wish.start,
                state=State.STARTING,
                options=dict(wish.options),
            )
            event = store.add_event(
                Event(
                    "instance.created",
                    f"created on branch {record.branch} from {record.base}",
                    instance_id=record.id,
                    project_id=project.id,
                    project=project.name,
                    instance=name,
                    actor=actor,
                    priority=5,
                )
            )
            return record, event

        record, event = await self.storage.run(work)
        self._changes.add(record)
        if event:
            self.history.publish(event, unit=self.instances.unit(record))
        return record

    async def _make_worktree(self, project: ProjectRecord, record: InstanceRecord, reuse: bool) -> None:
        repository, path = Path(project.repository), Path(record.worktree)
        commit = await self.worktrees.create(
            repository, path, record.branch, record.base, reuse=reuse, environment=record.environment
        )
        await self._changes.apply(record.id, Change(), columns={"base_commit": commit})
        await self.worktrees.include(repository, path)

    async def _undo_create(self, record: InstanceRecord) -> None:
        """Remove row, worktree and branch of an instance that never came to be. Logs what it cannot undo."""
        try:
            await self.instances.stop(record.id, why="its creation failed")
            await self._take_back(record)
        except CcorchError as error:
            _log.error("%s could not be undone wholly: %s", record.address, error.message)
        await self._remove_row(record, "creation failed; undone", "ccorchd")

    async def _take_back(self, record: InstanceRecord) -> None:
        """Remove worktree and branch of an instance whose agent never ran."""
        repository, path, branch = Path(record.repository), Path(record.worktree), _own_branch(record)
        if record.base_commit and branch:
            await self.worktrees.take_back(repository, path, branch, record.base_commit)
        else:
            # Killed in the middle of making the worktree: how far it got is not known.
            await self.worktrees.remove(repository, path, branch, record.base_commit or record.base, force=True)

    async def _remove_row(self, record: InstanceRecord, message: str, actor: str) -> None:
        event = Event(
            "instance.removed",
            message,
            instance_id=record.id,
            project_id=record.project_id,
            project=record.project,
            instance=record.name,
            actor=actor,
            priority=5,
        )

        def work(store: Store) -> Event | None:
            stored = store.add_event(event)
            store.remove_instance(record.id)
            return stored

        stored = await self.storage.run(work)
        self._changes.discard(record.id)
        self._locks.pop(record.id, None)
        self.instances.forget(record)
        if stored:
            self.history.publish(stored, unit=self.instances.unit(record))
        self.removed.publish(record)

    async def _free_name(self, project: ProjectRecord) -> str:
        taken = {record.name for record in self.instances.records.values() if record.project_id == project.id}
        # A removed instance leaves its branch behind when that holds work.
        taken |= await self.worktrees.branches(Path(project.repository), "ccorch")
        for name in random_source.SystemRandom().sample(_MADE_UP, len(_MADE_UP)):
            if name not in taken:
                return name
        return next(f"agent-{number}" for number in range(1, len(taken) + 2) if f"agent-{number}" not in taken)

    def _check_room(self) -> None:
        most = int(self.config["instances.max"])
        if len({record.id for record in self._changes.running} | self._reserved) >= most:
            raise CcorchError(
                ErrorCode.LIMIT_REACHED,
                f"{most} instances run already, and that is the most allowed",
                "Stop one, or raise instances.max in ccorchd.toml.",
            )

    @contextlib.contextmanager
    def _room(self, record: InstanceRecord) -> Iterator[None]:
        """Keep a place among those that run for *record*, which may be running; raise ``LimitReached``."""
        if not record.state.running:
            self._check_room()
        self._reserved.add(record.id)
        try:
            yield
        finally:
            self._reserved.discard(record.id)

    def _check_open(self) -> None:
        if self.stopping:
            raise CcorchError(ErrorCode.SHUTTING_DOWN, "ccorchd is shutting down", "Try again once it is back.")

    async def _free_port(self) -> int:
        def work(store: Store) -> set[int]:
            return store.leased_ports()

        taken = await self.storage.run(work)
        first, last = int(self.config["ports.first"]), int(self.config["ports.last"])
        for port in range(first, last + 1):
            if port not in taken and _bindable(port):
                return port
        raise CcorchError(
            ErrorCode.LIMIT_REACHED,
            f"no port from {first} to {last} is free",
            "Remove instances, or widen ports.first and ports.last in ccorchd.toml.",
        )

    # -- instances: running ----------------------------------------------------------------------------------------

    async def start(self, instance_id: int, *, environment: Mapping[str, str], prompt: str = "", actor: str) -> None:
        """Start a stopped or failed instance; its session is resumed. Raises ``WrongState``, ``LimitReached``."""
        self._check_open()
        async with self._lock(instance_id):
            record = self._by_id(instance_id)
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
            with self._room(self._by_id(instance_id)):
                await self._take_environment(self._by_id(instance_id), environment)
                record = self._by_id(instance_id)
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
            record = self._by_id(instance_id)
            repository, path, branch = Path(record.repository), Path(record.worktree), _own_branch(record)
            if not force:
                await self.worktrees.check_removable(repository, path, branch)
            await self.instances.stop(instance_id, actor=actor, why="removed")
            removed = await self.worktrees.remove(repository, path, branch, record.base_commit, force=force)
            kept = f"; its changes are kept as {removed.kept_ref}" if removed.kept_ref else ""
            if removed.kept_folder:
                kept += f"; files that no commit can hold are kept in {removed.kept_folder}"
            branch = "deleted, it held nothing new" if removed.branch_deleted else "stays"
            await self._remove_row(record, f"removed; branch {record.branch} {branch}{kept}", actor)
            return removed

    async def send(self, instance_id: int, text: str, *, actor: str) -> bool:
        """Deliver a prompt; return whether the agent confirmed it (False: queued behind the turn it is in)."""
        if not text.strip():
            raise CcorchError(ErrorCode.INVALID_ARGUMENT, "the prompt is empty", "Write what the agent should do.")
        return await self.instances.send(instance_id, text, actor=actor)

    async def diff(self, instance_id: int, *, stat: bool) -> str:
        record = self._by_id(instance_id)
        return await self.worktrees.diff(Path(record.worktree), record.base_commit, stat=stat)

    async def commits(self, instance_id: int) -> list[tuple[str, str]]:
        """Return id and subject of the commits the branch has beyond its base, newest first."""
        record = self._by_id(instance_id)
        return await self.worktrees.commits(Path(record.repository), record.base_commit, record.branch)

    async def merge(self, instance_id: int, *, actor: str) -> str:
        """Merge the instance's branch into what the main checkout is on; return the new commit's id."""
        record = self._by_id(instance_id)
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

    # -- launching -------------------------------------------------------------------------------------------------

    async def _launch(
        self, instance_id: int, *, prompt: str, actor: str, why: str, manager: Mapping[str, str] | None = None
    ) -> None:
        """Start the agent. *manager* is the user manager's environment where the caller has just asked for it."""
        self._check_open()
        record = self._by_id(instance_id)
        environment, setup = await self._compose(record, manager)
        if not record.started:
            prompt = prompt or record.prompt
        await self.instances.start(instance_id, environment, prompt=prompt, setup=setup, actor=actor, why=why)

    async def _compose(
        self, record: InstanceRecord, manager: Mapping[str, str] | None = None
    ) -> tuple[dict[str, str], Sequence[str]]:
        """Return environment and set-up steps of a launch; raise what forbids one."""
        project = self.project_by_id(record.project_id)
        file, agreed = self.setup_of(project)
        if not await asyncio.to_thread(Path(record.worktree).is_dir):
            raise CcorchError(
                ErrorCode.WRONG_STATE,
                f"the worktree of {record.address} is gone: {record.worktree}",
                f"Its branch {record.branch} may still be there. Remove the instance: "
                f"ccorchctl instance remove {record.address}",
            )
        if not agreed:
            _log.warning("%s: the project's environment is left out, nobody has agreed to it", record.address)
        environment = compose(
            record,
            manager if manager is not None else await self._manager_env(),
            file.environment if agreed else {},
            port_variable=file.port_variable,
            suffix=self.naming.suffix,
        )
        return environment, file.setup if agreed and record.options.get("setup") != "done" else []

    async def _manager_env(self) -> dict[str, str]:
        """Return the user manager's environment, the last known one while the manager does not answer."""
        try:
            self._manager_environment = await self.systemd.environment()
        except CcorchError as error:
            _log.warning("the user manager's environment cannot be read: %s", error.message)
        return self._manager_environment

    async def _take_environment(self, record: InstanceRecord, environment: Mapping[str, str]) -> None:
        """Keep what the caller sent: a new SSH agent or PATH must reach an instance that is started again."""
        fresh = from_caller(environment, self.config["agents.environment"])
        if fresh:
            await self._changes.apply(record.id, Change(), columns={"environment": {**record.environment, **fresh}})

    def _lock(self, instance_id: int) -> asyncio.Lock:
        return self._locks.setdefault(instance_id, asyncio.Lock())


def _own_branch(record: InstanceRecord) -> str:
    """Return the branch if ccorch made it for this instance; one that the user named is the user's to delete."""
    return record.branch if record.branch == f"ccorch/{record.name}" else ""


def _bindable(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno not in (errno.EADDRINUSE, errno.EACCES)
    return True
