# SPDX-License-Identifier: LGPL-2.1-or-later
"""Making an instance: row, branch and worktree, launch; and taking back what was made when one of them fails."""

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
from ccorchd.worktrees import Worktrees

_log = logging.getLogger(__name__)

_NEW: Final = 0
"""Stands among the reserved places for the one creation that has no row yet; no instance has this number."""

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


class Creation(Projects):
    """Makes instances and launches them, and unmakes what was made of one."""

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
        """Instances that are about to start, or to start again: they count for ``instances.max`` all the while."""
        self._manager_environment: dict[str, str] = {}

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
            try:
                record = await self._add_row(project, name, wish, file, manager, actor)
            finally:
                self._reserved.discard(_NEW)
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
                await asyncio.shield(self._undo_create(self.instances.record(record.id)))
                raise
            return self.instances.record(record.id)

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
            self._reserved.add(_NEW)
        agent = wish.agent or file.agent or str(self.config["instances.agent"])
        total = host_memory()
        defaults = Limits.parse(file.limits, default_limits(self.config, total), total)
        limits = Limits.parse(dict(wish.limits), defaults, total)
        environment = {**from_caller(wish.environment, self.config["agents.environment"]), **wish.variables}
        port = await self._free_port()
        self.instances.agent(agent).check({**manager, **environment}, wish.options)

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
        repository, path, branch = Path(record.repository), Path(record.worktree), own_branch(record)
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
        taken = await self.storage.run(Store.leased_ports)
        first, last = int(self.config["ports.first"]), int(self.config["ports.last"])
        for port in range(first, last + 1):
            if port not in taken and _bindable(port):
                return port
        raise CcorchError(
            ErrorCode.LIMIT_REACHED,
            f"no port from {first} to {last} is free",
            "Remove instances, or widen ports.first and ports.last in ccorchd.toml.",
        )

    async def _clear_half_made(self) -> None:
        """Drop instances whose creation never got as far as a launch: whoever asked for them got no answer."""
        for record in self._changes.running:
            if record.boot_id or record.pid:
                continue
            _log.warning("%s was half created when the daemon ended; it is removed", record.address)
            try:
                await self._undo_create(record)
            except (CcorchError, OSError) as error:
                _log.error("%s could not be removed: %s", record.address, error)

    # -- launching -------------------------------------------------------------------------------------------------

    async def _launch(
        self, instance_id: int, *, prompt: str, actor: str, why: str, manager: Mapping[str, str] | None = None
    ) -> None:
        """Start the agent. *manager* is the user manager's environment where the caller has just asked for it."""
        self._check_open()
        record = self.instances.record(instance_id)
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

    def _lock(self, instance_id: int) -> asyncio.Lock:
        return self._locks.setdefault(instance_id, asyncio.Lock())


def own_branch(record: InstanceRecord) -> str:
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
